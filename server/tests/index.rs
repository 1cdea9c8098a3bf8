//! The index as a whole: built from files, updated, asked, damaged. Vectors come from a hash of words instead of an
//! encoder, so that nearness is what the test says.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace_server::assistant::index::lines::{BadLine, Kind};
use millrace_server::assistant::index::{IndexError, Report, update};
use millrace_server::assistant::retrieve::EmbeddedIndex;
use millrace_server::assistant::{Filters, Retrieve, RetrieveRequest, Source};
use millrace_server::{Embed, EmbedError};
use proptest::prelude::*;

/// A folder that is gone with its test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("millrace-index-{}-{number}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn index(&self) -> PathBuf {
        self.0.join("index")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Words as directions; those of a group mean the same.
struct Words {
    id: &'static str,
    calls: AtomicUsize,
}

const DIM: usize = 8;

impl Embed for Words {
    fn id(&self) -> &str {
        self.id
    }

    fn dim(&self) -> usize {
        DIM
    }

    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        self.calls.fetch_add(texts.len(), Ordering::Relaxed);
        let group = |word: &str| match word {
            "hat" | "beanie" | "headgear" => 0,
            "pan" | "skillet" => 1,
            word => 2 + word.len() % (DIM - 2),
        };
        let vector = |text: &&str| {
            let mut vector = [0.01; DIM];
            text.to_lowercase()
                .split(|c: char| !c.is_alphanumeric())
                .filter(|w| !w.is_empty())
                .for_each(|word| vector[group(word)] += 1.0);
            let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
            vector.map(|x| x / length).to_vec()
        };
        Ok(texts.iter().map(vector).collect())
    }
}

fn words() -> Arc<Words> {
    Arc::new(Words { id: "words", calls: AtomicUsize::new(0) })
}

fn build(index: &Path, files: &[(Kind, PathBuf)], encoder: Option<&Words>) -> (Report, Vec<BadLine>) {
    let mut bad = Vec::new();
    let encoder = encoder.map(|encoder| encoder as &dyn Embed);
    let report = update(index, files, encoder, &mut |_| {}, &mut |line| bad.push(line.clone())).unwrap();
    (report, bad)
}

fn open(index: &Path, encoder: Option<Arc<Words>>) -> EmbeddedIndex {
    EmbeddedIndex::open(index, encoder.map(|encoder| encoder as Arc<dyn Embed>)).unwrap()
}

fn run<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn found(index: &EmbeddedIndex, query: &str, filters: Filters) -> Vec<String> {
    let request = RetrieveRequest { query: query.into(), filters, limit: 10 };
    let evidence = run(index.retrieve(request)).unwrap().evidence;
    evidence.iter().map(|evidence| evidence.passage.id.clone()).collect()
}

const CATALOG: &str = r#"{"id":"hat","title":"Wool beanie","brand":"Nord","categories":["Golf","Headwear"],"price":{"amount":2500,"currency":"EUR"},"attributes":{"material":"merino wool"},"description":"Keeps ears warm on cold mornings."}
{"id":"broken","title":
{"id":"pan","title":"Iron skillet","categories":["Kitchen"],"price":{"amount":6000,"currency":"EUR"},"bullets":["Works on induction"]}
"#;
const REVIEWS: &str = r#"{"id":"1","product":"hat","rating":5,"text":"Warm even in the wind"}
{"id":"2","product":"pan","rating":2,"text":"Rusts when it is wet"}
{"id":"3","product":"gone","text":"An orphan"}
"#;

fn shop() -> (Folder, Vec<(Kind, PathBuf)>) {
    let folder = Folder::new();
    let files = vec![
        (Kind::Catalog, folder.file("c.jsonl", CATALOG)),
        (Kind::Reviews, folder.file("r.jsonl", REVIEWS)),
    ];
    (folder, files)
}

#[test]
fn a_bad_line_is_named_and_the_rest_is_found() {
    let (folder, files) = shop();
    let encoder = words();
    let (report, bad) = build(&folder.index(), &files, Some(&encoder));
    assert_eq!((report.products, report.passages, report.bad, report.orphans), (2, 2, 1, 1));
    assert_eq!((bad.len(), bad[0].line), (1, 2));
    assert!(bad[0].file.ends_with("c.jsonl"));

    let index = open(&folder.index(), Some(encoder));
    assert_eq!(found(&index, "it rusts when wet?", Filters::default())[0], "review/2");
    // Not a word in common with the product: only its meaning leads there.
    let request = RetrieveRequest { query: "headgear".into(), limit: 1, ..RetrieveRequest::default() };
    assert_eq!(run(index.search_products(request)).unwrap()[0].0.id, "hat");
    let products = run(index.products(vec!["pan".into(), "none".into(), "hat".into()])).unwrap();
    assert_eq!(products.iter().map(|product| product.id.as_str()).collect::<Vec<_>>(), ["pan", "hat"]);
    let passages = run(index.passages("hat".into(), vec![Source::Review, Source::Attribute])).unwrap();
    let ids: Vec<&str> = passages.iter().map(|passage| passage.id.as_str()).collect();
    assert_eq!(ids, ["attribute/hat/material", "review/1"]);
}

#[test]
fn filters_leave_nothing_else() {
    let (folder, files) = shop();
    build(&folder.index(), &files, None);
    let index = open(&folder.index(), None);
    let query = "warm wool induction rust wet merino wind";
    let all = found(&index, query, Filters::default());
    assert_eq!(all.len(), 5, "{all:?}");
    let filters = |f: &dyn Fn(&mut Filters)| {
        let mut filters = Filters::default();
        f(&mut filters);
        filters
    };
    for (filters, expected) in [
        (filters(&|f| f.products = vec!["pan".into()]), &["bullet/pan/0", "review/2"][..]),
        (
            filters(&|f| f.categories = vec!["golf".into()]),
            &["attribute/hat/material", "description/hat/0", "review/1"],
        ),
        (filters(&|f| f.sources = vec![Source::Review]), &["review/1", "review/2"]),
        (
            filters(&|f| f.price_max = Some(3000)),
            &["attribute/hat/material", "description/hat/0", "review/1"],
        ),
        (filters(&|f| f.price_min = Some(3000)), &["bullet/pan/0", "review/2"]),
        (
            filters(&|f| drop(f.attributes.insert("Material".into(), "MERINO wool".into()))),
            &["attribute/hat/material", "description/hat/0", "review/1"],
        ),
        (filters(&|f| f.products = vec!["none".into()]), &[]),
    ] {
        let mut got = found(&index, query, filters.clone());
        got.sort();
        assert_eq!(got, expected, "{filters:?}");
    }
}

#[test]
fn an_update_keeps_what_did_not_change_and_forgets_what_is_gone() {
    let (folder, files) = shop();
    let encoder = words();
    let (first, _) = build(&folder.index(), &files, Some(&encoder));
    let calls = encoder.calls.load(Ordering::Relaxed);
    assert_eq!(calls, first.embedded);

    let changes = "{\"id\":\"hat\",\"deleted\":true}\n{\"id\":\"wok\",\"title\":\"Steel wok\"}\n";
    let files = [(Kind::Catalog, folder.file("u.jsonl", changes))];
    let (second, _) = build(&folder.index(), &files, Some(&encoder));
    assert_eq!((second.products, second.passages, second.embedded), (2, 1, 1), "only the wok is new");
    assert_ne!(first.version, second.version);
    let index = open(&folder.index(), Some(encoder));
    assert!(
        found(&index, "warm wind", Filters::default())
            .iter()
            .all(|id| !id.contains("hat") && id != "review/1")
    );
    let folders =
        fs::read_dir(folder.index()).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir()).count();
    assert_eq!(folders, 1, "the version before is gone");
}

/// A build that stops anywhere before the pointer moves leaves the old version in force.
#[test]
fn an_unfinished_version_is_as_if_it_never_was() {
    let (folder, files) = shop();
    build(&folder.index(), &files, None);
    let half = folder.index().join("v000002");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("products.jsonl"), "{\"id\":").unwrap();
    fs::write(folder.index().join("CURRENT.new"), "v0000").unwrap();
    assert_eq!(open(&folder.index(), None).version(), "v000001");
    let (report, _) = build(&folder.index(), &files, None);
    assert_eq!(report.version, "v000002");
    assert_eq!(open(&folder.index(), None).version(), "v000002");
}

#[test]
fn what_cannot_be_trusted_is_refused_with_what_to_do() {
    let (folder, files) = shop();
    let open = |encoder: Option<Arc<Words>>| {
        let encoder = encoder.map(|encoder| encoder as Arc<dyn Embed>);
        EmbeddedIndex::open(&folder.index(), encoder).unwrap_err()
    };
    fs::create_dir(folder.index()).unwrap();
    assert!(open(None).to_string().contains("millrace index"));
    build(&folder.index(), &files, Some(&words()));
    let other = Arc::new(Words { id: "other", calls: AtomicUsize::new(0) });
    assert!(matches!(open(Some(other)), IndexError::Encoder { .. }));

    let manifest = folder.index().join("v000001/manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("\"format\": 2", "\"format\": 1")).unwrap();
    let error = open(None);
    assert!(matches!(error, IndexError::Format { .. }));
    assert!(error.to_string().contains("millrace index --catalog"), "{error}");
    fs::write(&manifest, text).unwrap();

    for name in ["products.jsonl", "passages.jsonl", "vectors.bin"] {
        let path = folder.index().join("v000001").join(name);
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        bytes[whole.len() / 2] ^= 1;
        fs::write(&path, &bytes).unwrap();
        assert!(matches!(open(None), IndexError::Corrupt { .. }), "{name} with a bit turned");
        fs::write(&path, &whole[..whole.len() - 1]).unwrap();
        assert!(matches!(open(None), IndexError::Corrupt { .. }), "{name} cut short");
        fs::write(&path, whole).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// In how many updates the data came does not matter, nor in which order.
    #[test]
    fn many_updates_are_one(order in Just((0..12usize).collect::<Vec<_>>()).prop_shuffle(), cut in 0usize..12) {
        let line = |i: &usize| format!("{{\"id\":\"p{i}\",\"title\":\"thing number {i} of wool\"}}\n");
        let (once, twice) = (Folder::new(), Folder::new());
        let all: String = (0..12).map(|i| line(&i)).collect();
        build(&once.index(), &[(Kind::Catalog, once.file("a", &all))], None);
        for (name, part) in [("a", &order[..cut]), ("b", &order[cut..])] {
            let text: String = part.iter().map(line).collect();
            build(&twice.index(), &[(Kind::Catalog, twice.file(name, &text))], None);
        }
        let ask = |folder: &Folder| {
            let index = open(&folder.index(), None);
            let request = RetrieveRequest { query: "wool 7".into(), limit: 12, ..RetrieveRequest::default() };
            run(index.search_products(request)).unwrap().iter().map(|(p, score)| (p.id.clone(), score.to_bits())).collect::<Vec<_>>()
        };
        let answer = ask(&once);
        prop_assert_eq!(&answer[0].0, "p7");
        prop_assert_eq!(answer, ask(&twice));
    }
}
