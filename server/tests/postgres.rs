//! The index in PostgreSQL against a real server, and against the embedded index: one table of questions, the same
//! answers to the last bit. Needs `MILLRACE_TEST_POSTGRES` (scripts/with-postgres starts a server); skipped without.
#![cfg(feature = "postgres")]

mod shop;

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use millrace_server::assistant::index::lines::Kind;
use millrace_server::assistant::index::{self, IndexError, Report};
use millrace_server::assistant::postgres::{self, PostgresIndex};
use millrace_server::assistant::retrieve::EmbeddedIndex;
use millrace_server::assistant::{Retrieve, RetrieveError, RetrieveRequest, Source};
use millrace_server::{Embed, EmbedError};
use shop::{DIM, Shop, Words, answers, encoder, lines};
use tokio_postgres::NoTls;

/// A database and a folder of its own for a test.
struct Place {
    runtime: tokio::runtime::Runtime,
    database: String,
    folder: PathBuf,
}

impl Place {
    fn new() -> Option<Place> {
        let Ok(server) = std::env::var("MILLRACE_TEST_POSTGRES") else {
            println!("skipped: MILLRACE_TEST_POSTGRES is not set (scripts/with-postgres sets it)");
            return None;
        };
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("t{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (base, _) = server.rsplit_once('/').unwrap();
        let place = Place {
            runtime,
            database: format!("{base}/{name}"),
            folder: std::env::temp_dir().join(format!("millrace-postgres-test-{name}")),
        };
        place.sql_at(&server, &format!("CREATE DATABASE {name}"));
        fs::create_dir_all(&place.folder).unwrap();
        Some(place)
    }

    fn sql_at(&self, address: &str, sql: &str) {
        self.runtime.block_on(async {
            let (client, connection) = tokio_postgres::connect(address, NoTls).await.unwrap();
            tokio::spawn(connection);
            client.batch_execute(sql).await.unwrap();
        });
    }

    fn sql(&self, sql: &str) {
        self.sql_at(&self.database, sql);
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn update(&self, files: &[(Kind, PathBuf)], encoder: Option<&dyn Embed>) -> Result<Report, IndexError> {
        postgres::update(&self.database, files, encoder, &mut |_| {}, &mut |_| {})
    }

    /// The same files into both.
    fn update_both(&self, files: &[(Kind, PathBuf)], encoder: Option<&dyn Embed>) {
        let there = self.update(files, encoder).unwrap();
        let here =
            index::update(&self.folder.join("index"), files, encoder, &mut |_| {}, &mut |_| {}).unwrap();
        assert_eq!(there, here);
    }

    fn open(&self, encoder: Option<Arc<dyn Embed>>) -> Result<PostgresIndex, IndexError> {
        self.runtime.block_on(PostgresIndex::open(&self.database, encoder))
    }

    fn run<T>(&self, future: impl Future<Output = Result<T, RetrieveError>>) -> T {
        self.runtime.block_on(future).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn compare(place: &Place, encoder: Option<Arc<dyn Embed>>) {
    let here = EmbeddedIndex::open(&place.folder.join("index"), encoder.clone()).unwrap();
    let there = place.open(encoder).unwrap();
    let (here_said, there_said) =
        (place.runtime.block_on(answers(&here)), place.runtime.block_on(answers(&there)));
    let mut found = 0;
    for (here, there) in here_said.iter().zip(&there_said) {
        assert_eq!(here, there);
        found += here.1.len();
    }
    assert!(found > 10_000, "the questions are to find something: {found}");
    let ids: Vec<String> = ["p7", "none", "p1", "p7"].map(str::to_owned).to_vec();
    assert_eq!(place.run(here.products(ids.clone())), place.run(there.products(ids)));
    for sources in [vec![], vec![Source::Review], vec![Source::Attribute, Source::Qa]] {
        for product in ["p1", "p7", "none"] {
            let ask = |index: &dyn Retrieve| place.run(index.passages(product.into(), sources.clone()));
            assert_eq!(ask(&here), ask(&there));
        }
    }
    let mut held = 0;
    for query in ["is it warm?", "does the iron skillet rust in the dishwasher", "28 cm nowhere"] {
        for products in [vec!["p1"], vec!["p3", "p4", "p9"], vec!["none"]] {
            let products: Vec<String> = products.into_iter().map(str::to_owned).collect();
            let ask = |index: &dyn Retrieve| place.run(index.probe(query.into(), products.clone())).unwrap();
            let (here, there) = (ask(&here), ask(&there));
            held += here.iter().map(|probe| probe.passages).sum::<usize>();
            assert_eq!(here, there, "{query} {products:?}");
        }
    }
    assert!(held > 50, "the probes are to find something: {held}");
}

#[test]
fn both_indexes_give_the_same_answers() {
    let Some(place) = Place::new() else { return };
    let mut shop = Shop::new();
    let files = [
        (Kind::Catalog, place.file("c", &lines(60, |i| shop.product(i)))),
        (Kind::Reviews, place.file("r", &lines(150, |i| shop.review(i, 70)))),
        (Kind::Qa, place.file("q", &lines(40, |i| shop.qa(i)))),
        (
            Kind::Policies,
            place.file(
                "p",
                "{\"id\":\"a\",\"title\":\"Returns\",\"text\":\"Send it back.\"}\n{\"id\":\"b\",\"product\":\"p3\",\"text\":\"Warm returns\"}\nbad\n",
            ),
        ),
    ];
    place.update_both(&files, Some(&*encoder()));
    compare(&place, Some(encoder()));
    compare(&place, None);

    // Some change, some go, and with them what was said of them; one goes and comes back.
    let mut changes = lines(25, |i| shop.product(i * 3));
    changes += "{\"id\":\"p4\",\"deleted\":true}\n{\"id\":\"p7\",\"deleted\":true}\n{\"id\":\"p8\",\"deleted\":true}\n";
    changes += &(shop.product(8) + "\n");
    let mut reviews = lines(30, |i| shop.review(i * 4, 60));
    reviews += "{\"id\":\"r1\",\"deleted\":true}\n{\"id\":\"never\",\"deleted\":true}\n";
    let files = [(Kind::Catalog, place.file("c", &changes)), (Kind::Reviews, place.file("r", &reviews))];
    place.update_both(&files, Some(&*encoder()));
    compare(&place, Some(encoder()));

    // Nothing new is nothing to embed; without an encoder the vectors are gone.
    assert_eq!(place.update(&files, Some(&*encoder())).unwrap().embedded, 0);
    index::update(&place.folder.join("index"), &files, Some(&*encoder()), &mut |_| {}, &mut |_| {}).unwrap();
    place.update_both(&files, None);
    compare(&place, None);
    assert!(matches!(place.open(Some(encoder())), Err(IndexError::Encoder { .. })));
}

/// Tells when it is asked, and goes on or fails when it is told.
struct Gate {
    asked: std::sync::mpsc::Sender<()>,
    go_on: std::sync::Mutex<std::sync::mpsc::Receiver<bool>>,
}

impl Embed for Gate {
    fn id(&self) -> &str {
        "words"
    }

    fn dim(&self) -> usize {
        DIM
    }

    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        self.asked.send(()).unwrap();
        assert!(self.go_on.lock().unwrap().recv().unwrap(), "told to fail");
        Words("words").embed(texts)
    }
}

#[test]
fn a_version_is_seen_whole_or_not_at_all() {
    let Some(place) = Place::new() else { return };
    let hat = place.file("c", "{\"id\":\"hat\",\"title\":\"wool hat\"}\n");
    place.update(&[(Kind::Catalog, hat)], Some(&*encoder())).unwrap();
    let index = place.open(Some(encoder())).unwrap();
    let titles = || {
        let request = RetrieveRequest { query: "hat".into(), limit: 9, ..RetrieveRequest::default() };
        let found = place.run(index.search_products(request));
        found.iter().map(|(product, _)| product.title.clone()).collect::<Vec<_>>()
    };
    let files = [(
        Kind::Catalog,
        place.file(
            "d",
            "{\"id\":\"hat\",\"title\":\"straw hat\"}\n{\"id\":\"cap\",\"title\":\"hat, small\"}\n",
        ),
    )];
    for goes_on in [false, true] {
        let (asked, was_asked) = std::sync::mpsc::channel();
        let (tell, go_on) = std::sync::mpsc::channel();
        let gate = Gate { asked, go_on: go_on.into() };
        std::thread::scope(|scope| {
            let build = scope.spawn(|| place.update(&files, Some(&gate)));
            was_asked.recv().unwrap();
            assert_eq!((titles(), index.version().as_str()), (vec!["wool hat".to_owned()], "v000001"));
            let busy = place.update(&files, None);
            assert!(matches!(busy, Err(IndexError::Busy { .. })), "{busy:?}");
            tell.send(goes_on).unwrap();
            assert_eq!(build.join().is_ok(), goes_on);
        });
    }
    assert_eq!(titles(), ["hat, small", "straw hat"]);
    let start = Instant::now();
    while index.version() != "v000002" {
        assert!(start.elapsed() < Duration::from_secs(20), "the new version is never noticed");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_what_to_do() {
    let Some(place) = Place::new() else { return };
    let error = place.open(None).unwrap_err();
    assert!(
        matches!(&error, IndexError::Missing { .. }) && error.to_string().contains("millrace index"),
        "{error}"
    );
    let file = place.file("c", "{\"id\":\"hat\",\"title\":\"wool hat\"}\n");
    place.update(&[(Kind::Catalog, file.clone())], Some(&*encoder())).unwrap();
    let other: Arc<dyn Embed> = Arc::new(Words("other"));
    assert!(matches!(place.open(Some(other)), Err(IndexError::Encoder { .. })));

    place.sql("UPDATE millrace.state SET format = 99");
    for error in [place.open(None).unwrap_err(), place.update(&[(Kind::Catalog, file)], None).unwrap_err()] {
        assert!(error.to_string().contains("DROP SCHEMA millrace CASCADE"), "{error}");
    }

    let nobody = "postgres://someone:geheim@127.0.0.1:1/shop";
    let error = place.runtime.block_on(PostgresIndex::open(nobody, None)).unwrap_err().to_string();
    assert!(error.contains("127.0.0.1:1/shop") && !error.contains("geheim"), "{error}");
}

#[test]
fn connections_that_break_are_made_anew() {
    let Some(place) = Place::new() else { return };
    let file = place.file("c", "{\"id\":\"hat\",\"title\":\"wool hat\"}\n");
    place.update(&[(Kind::Catalog, file)], None).unwrap();
    let index = place.open(None).unwrap();
    let ask = || {
        let request = RetrieveRequest { query: "hat".into(), limit: 1, ..RetrieveRequest::default() };
        index.search_products(request)
    };
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                WHERE datname = current_database() AND pid <> pg_backend_pid()";
    for _ in 0..3 {
        assert_eq!(place.run(ask()).len(), 1);
        place.sql(kill);
    }
    // Who stops waiting leaves nothing behind that others would wait for.
    place.runtime.block_on(async {
        for micros in (0..3000).step_by(100) {
            let _ = tokio::time::timeout(Duration::from_micros(micros), ask()).await;
        }
        let all = (0..32).map(|_| {
            tokio::spawn({
                let index = index.clone();
                async move { index.products(vec!["hat".into()]).await }
            })
        });
        for task in all.collect::<Vec<_>>() {
            assert_eq!(task.await.unwrap().unwrap().len(), 1);
        }
    });
    place.sql("DROP SCHEMA millrace CASCADE");
    let gone = place.runtime.block_on(ask());
    assert!(matches!(gone, Err(RetrieveError::Unavailable { backend: "postgres", .. })), "{gone:?}");
}
