//! The index in OpenSearch against a double of it, since no package carries a cluster: the requests hold to the
//! documented contract, and the answers are those of the embedded index.

mod double;
#[path = "../shop/mod.rs"]
mod shop;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_server::assistant::index::lines::Kind;
use millrace_server::assistant::index::{self, IndexError, Report};
use millrace_server::assistant::opensearch::{self, OpenSearchIndex};
use millrace_server::assistant::retrieve::EmbeddedIndex;
use millrace_server::assistant::{Filters, Place, Retrieve, RetrieveError, RetrieveRequest, Source};
use millrace_server::{Embed, EmbedError};
use serde_json::json;

use double::{Double, Fault};
use shop::{DIM, Shop, Words, answers, encoder, lines};

/// A double of a cluster, and a folder for files and an embedded index.
struct Cluster {
    double: Double,
    runtime: tokio::runtime::Runtime,
    folder: tempfile::TempDir,
}

impl Cluster {
    fn new() -> Cluster {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        Cluster { double: Double::start(), runtime, folder: tempfile::tempdir().unwrap() }
    }

    fn address(&self) -> String {
        self.double.address("shop?shards=2&replicas=0")
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn update(&self, files: &[(Kind, PathBuf)], encoder: Option<&dyn Embed>) -> Result<Report, IndexError> {
        opensearch::update(&self.address(), files, encoder, &mut |_| {}, &mut |_| {})
    }

    /// The same files into both.
    fn update_both(&self, files: &[(Kind, PathBuf)], encoder: Option<&dyn Embed>) {
        let there = self.update(files, encoder).unwrap();
        let here = index::update(&self.folder.path().join("index"), files, encoder, &mut |_| {}, &mut |_| {});
        assert_eq!(there, here.unwrap());
    }

    fn open(&self, encoder: Option<Arc<dyn Embed>>) -> Result<OpenSearchIndex, IndexError> {
        self.runtime.block_on(OpenSearchIndex::open(&self.address(), encoder))
    }

    fn run<T>(&self, future: impl Future<Output = Result<T, RetrieveError>>) -> T {
        self.runtime.block_on(future).unwrap()
    }

    /// A small catalog.
    fn hats(&self) -> [(Kind, PathBuf); 1] {
        let text = "{\"id\":\"hat\",\"title\":\"wool hat\",\"description\":\"A warm hat.\"}\n{\"id\":\"pan\",\"title\":\"iron pan\"}\n";
        [(Kind::Catalog, self.file("hats", text))]
    }

    fn indexes(&self) -> Vec<String> {
        self.double.state().indexes.keys().cloned().collect()
    }

    fn in_force(&self) -> Vec<String> {
        self.double.state().aliases.get("shop").into_iter().flatten().cloned().collect()
    }
}

fn compare(cluster: &Cluster, encoder: Option<Arc<dyn Embed>>) {
    let here = EmbeddedIndex::open(&cluster.folder.path().join("index"), encoder.clone()).unwrap();
    let there = cluster.open(encoder).unwrap();
    let here_said = cluster.runtime.block_on(answers(&here));
    let there_said = cluster.runtime.block_on(answers(&there));
    let (mut found, mut other) = (0, 0);
    for ((question, here), (_, there)) in here_said.iter().zip(&there_said) {
        found += here.len();
        if here == there {
            continue;
        }
        // Frequencies are rounded in the index and sums taken in another order, so two documents whose scores agree to
        // six digits or so may change places, now and then. Scores of passages have such a sum in them.
        let ids = |found: &[(String, u32)]| found.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>();
        other += usize::from(ids(here) != ids(there));
        let score = |bits: &u32| f32::from_bits(*bits);
        let near = here.iter().zip(there).all(|((_, a), (_, b))| (score(a) - score(b)).abs() < 3e-4);
        assert!(near && here.len() == there.len(), "{question}:\n{here:?}\n{there:?}");
    }
    println!("{other} of {} answers in another order", here_said.len());
    assert!(other * 50 <= here_said.len(), "{other} of {} answers in another order", here_said.len());
    assert!(found > 10_000, "the questions are to find something: {found}");
    let ids: Vec<String> = ["p7", "none", "p1", "p7"].map(str::to_owned).to_vec();
    assert_eq!(cluster.run(here.products(ids.clone())), cluster.run(there.products(ids)));
    for sources in [vec![], vec![Source::Review], vec![Source::Attribute, Source::Policy]] {
        for product in ["p1", "p3", "none"] {
            let ask = |index: &dyn Retrieve| cluster.run(index.passages(product.into(), sources.clone()));
            assert_eq!(ask(&here), ask(&there));
        }
    }
}

#[test]
fn answers_are_those_of_the_embedded_index() {
    let cluster = Cluster::new();
    let mut shop = Shop::new();
    let policies = "{\"id\":\"a\",\"title\":\"Returns\",\"text\":\"Send it back.\"}\n{\"id\":\"b\",\"product\":\"p3\",\"text\":\"Warm returns\"}\nbad\n";
    let files = [
        (Kind::Catalog, cluster.file("c", &lines(60, |i| shop.product(i)))),
        (Kind::Reviews, cluster.file("r", &lines(150, |i| shop.review(i, 70)))),
        (Kind::Qa, cluster.file("q", &lines(40, |i| shop.qa(i)))),
        (Kind::Policies, cluster.file("p", policies)),
    ];
    cluster.update_both(&files, Some(&*encoder()));
    compare(&cluster, Some(encoder()));
    compare(&cluster, None);

    let mut changes = lines(25, |i| shop.product(i * 3));
    changes += "{\"id\":\"p4\",\"deleted\":true}\n{\"id\":\"p7\",\"deleted\":true}\n{\"id\":\"p8\",\"deleted\":true}\n";
    changes += &(shop.product(8) + "\n");
    let reviews = "{\"id\":\"r1\",\"deleted\":true}\n{\"id\":\"never\",\"deleted\":true}\n";
    let files = [(Kind::Catalog, cluster.file("c", &changes)), (Kind::Reviews, cluster.file("r", reviews))];
    cluster.update_both(&files, Some(&*encoder()));
    compare(&cluster, Some(encoder()));

    // Vectors are read back, so nothing new is nothing to embed; without an encoder they are gone.
    assert_eq!(cluster.update(&files, Some(&*encoder())).unwrap().embedded, 0);
    cluster.update(&files, None).unwrap();
    assert!(matches!(cluster.open(Some(encoder())), Err(IndexError::Encoder { .. })));
}

#[test]
fn a_version_is_seen_whole_or_not_at_all() {
    let cluster = Cluster::new();
    assert!(matches!(cluster.open(None), Err(IndexError::Missing { .. })));
    cluster.update(&cluster.hats(), Some(&*encoder())).unwrap();
    let index = cluster.open(Some(encoder())).unwrap();
    let titles = || {
        let request = RetrieveRequest { query: "hat".into(), limit: 1, ..RetrieveRequest::default() };
        let found = cluster.run(index.search_products(request));
        found.iter().map(|(product, _)| product.title.clone()).collect::<Vec<_>>()
    };
    let files = [(Kind::Catalog, cluster.file("d", "{\"id\":\"hat\",\"title\":\"straw hat\"}\n"))];
    let before = (cluster.indexes(), cluster.in_force());
    let refused = r#"{"error":{"root_cause":[{"type":"cluster_block_exception","reason":"disk usage exceeded"}],"type":"x","reason":"y"},"status":403}"#;
    let lost = |answer: &mut serde_json::Value| answer["count"] = json!(1);
    let bad = |answer: &mut serde_json::Value| {
        answer["items"][1]["index"]["status"] = json!(400);
        answer["items"][1]["index"]["error"] =
            json!({ "type": "mapper_parsing_exception", "reason": "failed to parse field [x]" });
    };
    let faults: [(&str, Fault, &str); 7] = [
        ("PUT shop-v000002", Fault::Answer(403, refused.into()), "disk usage exceeded"),
        ("_bulk", Fault::Answer(403, refused.into()), "disk usage exceeded"),
        ("_bulk", Fault::Change(bad), "refuses 1 of "),
        ("_bulk", Fault::Answer(200, "<html>".into()), "is that OpenSearch"),
        ("_refresh", Fault::Answer(503, "{}".into()), "status 503"),
        ("_count", Fault::Change(lost), "are there; the index is what it was"),
        ("_aliases", Fault::Answer(403, refused.into()), "disk usage exceeded"),
    ];
    for (of, fault, why) in faults {
        cluster.double.fault(of, fault);
        let error = cluster.update(&files, Some(&*encoder())).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("127.0.0.1"), "{of}: {error}");
        assert_eq!((cluster.indexes(), cluster.in_force()), before, "{of}: {error}");
        assert_eq!(titles(), ["wool hat"]);
        assert!(cluster.double.state().faults.is_empty(), "{of}");
    }
    // Where no answer comes, what is done is found out, and nothing is removed that may be in force.
    cluster.double.fault("_aliases", Fault::Close);
    let error = cluster.update(&files, Some(&*encoder())).unwrap_err().to_string();
    assert!(error.contains("run it again"), "{error}");
    assert_eq!(
        (cluster.indexes().len(), cluster.in_force(), titles()),
        (2, before.1, vec!["wool hat".into()])
    );
    cluster.double.fault("_aliases", Fault::Lost);
    assert_eq!(cluster.update(&files, Some(&*encoder())).unwrap().version, "v000002");
    assert_eq!(titles(), ["straw hat"]);
    let start = Instant::now();
    while index.version() != "v000002" {
        assert!(start.elapsed() < Duration::from_secs(20), "the new version is never noticed");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Runs something when it is asked to embed: while an update is under way.
struct Meanwhile<F: Fn() + Send + Sync>(F);

impl<F: Fn() + Send + Sync> Embed for Meanwhile<F> {
    fn id(&self) -> &str {
        "words"
    }

    fn dim(&self) -> usize {
        DIM
    }

    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        (self.0)();
        Words("words").embed(texts)
    }
}

#[test]
fn of_two_updates_at_a_time_one_gives_up() {
    let cluster = Cluster::new();
    cluster.update(&cluster.hats(), Some(&*encoder())).unwrap();
    let other = [(Kind::Catalog, cluster.file("o", "{\"id\":\"cap\",\"title\":\"cap\"}\n"))];
    let mine = [(Kind::Catalog, cluster.file("m", "{\"id\":\"mitten\",\"title\":\"mitten\"}\n"))];
    let slow = Meanwhile(|| drop(cluster.update(&other, Some(&*encoder())).unwrap()));
    let error = cluster.update(&mine, Some(&slow)).unwrap_err();
    assert!(matches!(error, IndexError::Busy { .. }), "{error}");
    let index = cluster.open(None).unwrap();
    let found = cluster.run(index.products(vec!["cap".into(), "mitten".into(), "hat".into()]));
    assert_eq!(found.iter().map(|product| product.id.as_str()).collect::<Vec<_>>(), ["cap", "hat"]);
    assert_eq!((index.version().as_str(), cluster.indexes().len()), ("v000002", 2));
}

#[test]
fn old_versions_go_and_the_last_stays() {
    let cluster = Cluster::new();
    for _ in 0..4 {
        cluster.update(&cluster.hats(), None).unwrap();
    }
    let names = cluster.indexes();
    assert!(
        names.len() == 2 && names[0].contains("-v000003-") && names[1].contains("-v000004-"),
        "{names:?}"
    );
    assert_eq!(cluster.in_force(), names[1..]);
    // What an update left behind is removed a day later, what is not ours never.
    for (name, age) in [("shop-v000005-0badcafe", 10), ("shop-v000006-0badcafe", 90_000), ("shop-v2", 90_000)]
    {
        let mut state = cluster.double.state();
        let created = state.clock - age * 1000;
        state.abandon(name, &names[0], created);
    }
    cluster.update(&cluster.hats(), None).unwrap();
    let names = cluster.indexes();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(names.contains(&"shop-v000005-0badcafe".to_owned()) && names.contains(&"shop-v2".to_owned()));
}

#[test]
fn what_finds_no_room_is_sent_again() {
    let cluster = Cluster::new();
    let full = |answer: &mut serde_json::Value| {
        answer["errors"] = json!(true);
        answer["items"][0]["index"]["status"] = json!(429);
        answer["items"][0]["index"]["error"] =
            json!({ "type": "rejected_execution_exception", "reason": "queue is full" });
    };
    cluster.double.fault("_bulk", Fault::Answer(503, "{}".into()));
    cluster.double.fault("_bulk", Fault::Close);
    cluster.double.fault("_bulk", Fault::Change(full));
    let report = cluster.update(&cluster.hats(), None).unwrap();
    assert_eq!((report.products, report.version.as_str()), (2, "v000001"));
    let sizes: Vec<usize> = {
        let state = cluster.double.state();
        let bulks = state.log.iter().filter(|request| request.contains("/_bulk\n"));
        bulks.map(|request| request.lines().count() / 2).collect()
    };
    // Only what was refused the last time; the first two requests did not reach the log.
    assert_eq!(sizes, [3, 1]);
}

#[test]
fn errors_say_what_to_do() {
    let cluster = Cluster::new();
    cluster.double.state().credentials = Some("me:ge:heim".into());
    let error = cluster.update(&cluster.hats(), None).unwrap_err().to_string();
    assert!(error.contains("OPENSEARCH_PASSWORD") && error.contains("127.0.0.1"), "{error}");
    let address = with_user(&cluster.address(), "me:ge%3Aheim@");
    opensearch::update(&address, &cluster.hats(), Some(&*encoder()), &mut |_| {}, &mut |_| {}).unwrap();
    let place: Place = address.parse().unwrap();
    let index = cluster.runtime.block_on(place.open(Some(encoder()))).unwrap();
    let ask = || {
        let request = RetrieveRequest { query: "warm hat".into(), limit: 3, ..RetrieveRequest::default() };
        cluster.runtime.block_on(index.retrieve(request))
    };
    assert_eq!(ask().unwrap().evidence[0].passage.text, "A warm hat.");
    let late = |answer: &mut serde_json::Value| answer["responses"][1]["timed_out"] = json!(true);
    let part = |answer: &mut serde_json::Value| {
        answer["responses"][0]["_shards"] = json!({ "total": 2, "successful": 1, "failed": 1, "failures":
            [{ "shard": 0, "reason": { "type": "circuit_breaking_exception", "reason": "Data too large" } }] });
    };
    let inner = |answer: &mut serde_json::Value| {
        answer["responses"][1] = json!({ "status": 400, "error": { "type": "search_phase_execution_exception",
            "reason": "all shards failed", "root_cause": [{ "type": "query_shard_exception", "reason": "no vector" }] } });
    };
    let faults: [(&str, Fault, &str); 7] = [
        ("_msearch", Fault::Change(late), "too long"),
        ("_msearch", Fault::Change(part), "1 of 2 shards failed: circuit_breaking_exception: Data too large"),
        ("_msearch", Fault::Change(inner), "query_shard_exception: no vector"),
        ("_msearch", Fault::Answer(200, "{}".into()), "no responses"),
        ("_msearch", Fault::Answer(429, "{}".into()), "overloaded"),
        ("_mget", Fault::Close, "no answer"),
        ("_mget", Fault::Answer(200, "{\"docs\":[{\"_id\":\"x\",\"found\":true}]}".into()), "a bad record"),
    ];
    for (of, fault, why) in faults {
        cluster.double.fault(of, fault);
        let error = ask().unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("opensearch+http://127.0.0.1"), "{of}: {error}");
        assert!(!error.contains("heim"), "{error}");
    }
    // Who stops waiting leaves nothing behind that others would wait for.
    for _ in 0..40 {
        cluster.double.fault("_msearch", Fault::Slow(Duration::from_millis(300)));
        let late = cluster.runtime.block_on(async {
            let request = RetrieveRequest { query: "hat".into(), limit: 3, ..RetrieveRequest::default() };
            tokio::time::timeout(Duration::from_millis(1), index.retrieve(request)).await
        });
        assert!(late.is_err());
    }
    cluster.double.state().faults.clear();
    assert_eq!(ask().unwrap().evidence[0].passage.text, "A warm hat.");

    let other: Arc<dyn Embed> = Arc::new(Words("other"));
    let other = cluster.runtime.block_on(OpenSearchIndex::open(&address, Some(other)));
    assert!(matches!(other, Err(IndexError::Encoder { .. })));
}

fn with_user(address: &str, user: &str) -> String {
    address.replacen("://", &format!("://{user}"), 1)
}

/// What is sent, word for word: set `MILLRACE_RECORD` to write the record anew, and read it against OpenSearch's
/// documentation.
#[test]
fn requests_are_those_on_record() {
    let cluster = Cluster::new();
    let reviews =
        "{\"id\":\"1\",\"product\":\"hat\",\"title\":\"Warm\",\"text\":\"Keeps me warm.\",\"rating\":5}\n";
    let policies = "{\"id\":\"returns\",\"text\":\"Send it back.\"}\n";
    let catalog = "{\"id\":\"hat\",\"title\":\"wool hat\",\"categories\":[\"Hats\"],\"attributes\":{\"Material\":\"Wool\"},\"price\":{\"amount\":1900,\"currency\":\"EUR\"}}\n";
    let files = [
        (Kind::Catalog, cluster.file("c", catalog)),
        (Kind::Reviews, cluster.file("r", reviews)),
        (Kind::Policies, cluster.file("p", policies)),
    ];
    cluster.update(&files, Some(&*encoder())).unwrap();
    cluster
        .update(&[(Kind::Reviews, cluster.file("r", "{\"id\":\"1\",\"deleted\":true}\n"))], Some(&*encoder()))
        .unwrap();
    let index = cluster.open(Some(encoder())).unwrap();
    let filters = Filters {
        products: vec!["hat".into()],
        categories: vec!["Hats".into()],
        sources: vec![Source::Review, Source::Policy],
        price_min: Some(100),
        price_max: Some(5000),
        attributes: [("Material".into(), "Wool".into())].into(),
    };
    let request = |query: &str| RetrieveRequest { query: query.into(), filters: filters.clone(), limit: 3 };
    assert_eq!(cluster.run(index.retrieve(request("warm"))).evidence.len(), 1);
    assert_eq!(cluster.run(index.search_products(request("hats"))).len(), 1);
    assert_eq!(cluster.run(index.search_products(request(""))).len(), 1);
    assert_eq!(cluster.run(index.products(vec!["hat".into()])).len(), 1);
    assert_eq!(cluster.run(index.passages("hat".into(), vec![])).len(), 1);
    let log = cluster.double.state().log.join("\n\n");
    // The mark of a version is drawn at random.
    let mut said = String::new();
    let mut rest = log.as_str();
    while let Some(at) = rest.find("shop-v00000").map(|at| at + "shop-v000001-".len()) {
        said += &rest[..at];
        said += "MARK";
        rest = &rest[at + 8..];
    }
    said += rest;
    said += "\n";
    // The index asks for its version now and then.
    let poll = "GET /shop/_mapping\n";
    let requests: Vec<&str> = said.split("\n\n").filter(|request| request.trim() != poll.trim()).collect();
    let said = requests.join("\n\n");
    let path = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/opensearch/requests.txt"));
    if std::env::var_os("MILLRACE_RECORD").is_some() {
        fs::write(&path, &said).unwrap();
    }
    let record = fs::read_to_string(&path).unwrap_or_default();
    for (said, record) in said.lines().zip(record.lines()) {
        assert_eq!(said, record);
    }
    assert_eq!(said.lines().count(), record.lines().count());
}

/// A double that takes everything proves nothing.
#[test]
fn the_double_refuses_what_opensearch_refuses() {
    let cluster = Cluster::new();
    cluster.update(&cluster.hats(), Some(&*encoder())).unwrap();
    let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let ask = |method: &str, path: &str, kind: &str, body: &str| {
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://127.0.0.1:{}/{path}", cluster.double.port))
            .header("content-type", kind)
            .body(body.to_owned());
        let mut response = agent.run(request.unwrap()).unwrap();
        let text = response.body_mut().read_to_string().unwrap();
        (response.status().as_u16(), text)
    };
    let (lines, single) = ("application/x-ndjson", "application/json");
    let search = |query: &str| format!("{{\"query\":{query}}}");
    let cases: Vec<(&str, &str, &str, String, &str)> = vec![
        ("PUT", "Shop", single, "{}".into(), "invalid_index_name_exception"),
        ("PUT", "x", single, r#"{"settings":{"index":{"shards":1}}}"#.into(), "unknown setting"),
        ("PUT", "x", single, r#"{"mapping":{}}"#.into(), "unknown field [mapping]"),
        ("POST", "shop/_bulk", single, "{}\n".into(), "media_type_header_exception"),
        ("POST", "shop/_bulk", lines, r#"{"index":{"_id":"1"}}"#.into(), "terminated by a newline"),
        (
            "POST",
            "shop/_bulk",
            lines,
            "{\"index\":{\"_id\":\"1\",\"x\":1}}\n{}\n".into(),
            "unknown field [x]",
        ),
        (
            "POST",
            "shop/_bulk",
            lines,
            "{\"index\":{\"_id\":\"1\"}}\n{\"x\":1}\n".into(),
            "strict_dynamic_mapping_exception",
        ),
        (
            "POST",
            "shop/_bulk",
            lines,
            "{\"index\":{\"_id\":\"1\"}}\n{\"price_min\":\"1\"}\n".into(),
            "mapper_parsing_exception",
        ),
        (
            "POST",
            "shop/_bulk",
            lines,
            "{\"index\":{\"_id\":\"1\"}}\n{\"product_vector\":[1]}\n".into(),
            "dimension mismatch",
        ),
        (
            "POST",
            "shop/_bulk",
            lines,
            "{\"index\":{\"_id\":\"1\"}}\n{\"product_words\":\"hat|0\"}\n".into(),
            "term frequency",
        ),
        ("POST", "shop/_search", single, search(r#"{"hybrid":{}}"#), "unknown query [hybrid]"),
        (
            "POST",
            "shop/_search",
            single,
            search(r#"{"term":{"kind":{"values":"x"}}}"#),
            "unknown field [values]",
        ),
        (
            "POST",
            "shop/_search",
            single,
            search(r#"{"knn":{"product_vector":{"vector":[1],"k":5}}}"#),
            "invalid dimension",
        ),
        (
            "POST",
            "shop/_search",
            single,
            search(r#"{"knn":{"kind":{"vector":[1],"k":5}}}"#),
            "not knn_vector",
        ),
        (
            "POST",
            "shop/_search",
            single,
            search(r#"{"range":{"price_min":{"min":5}}}"#),
            "unknown field [min]",
        ),
        ("POST", "shop/_search", single, r#"{"size":10001}"#.into(), "Result window is too large"),
        ("POST", "shop/_search", single, r#"{"sort":[{"x":{"order":"asc"}}]}"#.into(), "No mapping found"),
        ("POST", "shop/_search?sort=id", single, "{}".into(), "unrecognized parameter: [sort]"),
        ("POST", "shop/_msearch", lines, "{}\n".into(), "a header without a body"),
        ("POST", "shop/_msearch", lines, "{\"searchtype\":1}\n{}\n".into(), "unknown field [searchtype]"),
        ("POST", "other/_search", single, "{}".into(), "index_not_found_exception"),
        (
            "POST",
            "_aliases",
            single,
            r#"{"actions":[{"remove":{"index":"no","alias":"shop"}}]}"#.into(),
            "no such index",
        ),
        ("DELETE", "shop", single, String::new(), "matches an alias"),
        ("POST", "shop/_reindex", single, "{}".into(), "no handler found"),
    ];
    for (method, path, kind, body, why) in cases {
        let (status, text) = ask(method, path, kind, &body);
        assert!(text.contains(why), "{method} {path} {body}: {status} {text}");
    }
}
