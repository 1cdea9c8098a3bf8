//! Downloads from a stand-in for the hub that behaves like it, and misbehaves like networks do.

use millrace_models::hub::{Hub, HubError, resolve};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What the stand-in does beyond answering.
#[derive(Clone, Default)]
struct Script {
    files: HashMap<String, Vec<u8>>,
    /// Statuses to answer with, one per request, before behaving.
    statuses: Vec<u16>,
    /// The store breaks off after so many bytes of each answer, for so many answers.
    cut_after: usize,
    cuts: usize,
    ignore_ranges: bool,
    /// The store sends these bytes in place of the file's, once.
    forged: Option<Vec<u8>>,
    etag: Option<String>,
    requires_token: bool,
}

/// A hub on one port and the store it redirects to on another.
struct StandIn {
    script: Arc<Mutex<Script>>,
    /// `hub` or `store`, the request line, and its `range` header.
    log: Arc<Mutex<Vec<String>>>,
    endpoint: String,
}

impl StandIn {
    fn start(script: Script) -> Self {
        let (hub, store) =
            (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
        let endpoint = format!("http://{}", hub.local_addr().unwrap());
        let store_at = format!("http://{}", store.local_addr().unwrap());
        let (script, log) = (Arc::new(Mutex::new(script)), Arc::new(Mutex::new(Vec::new())));
        for (listener, is_store) in [(hub, false), (store, true)] {
            let (script, log, store_at) = (script.clone(), log.clone(), store_at.clone());
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (script, log, store_at) = (script.clone(), log.clone(), store_at.clone());
                    std::thread::spawn(move || {
                        let _ = answer(stream, is_store, &script, &log, &store_at);
                    });
                }
            });
        }
        Self { script, log, endpoint }
    }

    fn hub(&self, cache: &Path) -> Hub {
        Hub {
            cache: cache.to_owned(),
            endpoint: self.endpoint.clone(),
            token: Some("secret".to_owned()),
            offline: false,
        }
    }

    fn requests(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

fn large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn answer(
    mut stream: TcpStream,
    is_store: bool,
    script: &Mutex<Script>,
    log: &Mutex<Vec<String>>,
    store_at: &str,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut headers = HashMap::new();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header)?;
        let Some((name, value)) = header.trim().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let mut words = line.split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_owned());
    let who = if is_store { "store" } else { "hub" };
    let range = headers.get("range").map_or("", String::as_str);
    log.lock().unwrap().push(format!("{who} {method} {path} {range}").trim().to_owned());
    let mut script = script.lock().unwrap();
    assert!(!is_store || !headers.contains_key("authorization"), "the token must stay with the hub");

    let mut reply = |head: &str, body: &[u8]| {
        write!(stream, "HTTP/1.1 {head}\r\nconnection: close\r\n\r\n")?;
        if method == "HEAD" { Ok(()) } else { stream.write_all(body) }
    };
    if !script.statuses.is_empty() {
        let status = script.statuses.remove(0);
        return reply(&format!("{status} Whatever\r\ncontent-length: 0"), b"");
    }
    if script.requires_token
        && !is_store
        && headers.get("authorization").map(String::as_str) != Some("Bearer secret")
    {
        return reply("401 Unauthorized\r\ncontent-length: 0", b"");
    }
    if path == "/api/models/org/name/revision/main" || path == "/api/models/org/name/revision/refs%2Fpr%2F1" {
        let files: Vec<_> = script.files.keys().map(|name| json!({ "rfilename": name })).collect();
        let body = json!({ "sha": COMMIT, "siblings": files }).to_string();
        return reply(&format!("200 OK\r\ncontent-length: {}", body.len()), body.as_bytes());
    }
    let name = path.rsplit('/').next().unwrap_or_default().to_owned();
    let known = path == format!("/org/name/resolve/{COMMIT}/{name}") || path == format!("/store/{name}");
    let Some(content) = script.files.get(&name).filter(|_| known).cloned() else {
        return reply("404 Not Found\r\ncontent-length: 0", b"");
    };
    if !is_store {
        let etag = script.etag.clone();
        if large(&name) {
            let etag = etag.unwrap_or_else(|| hex(&Sha256::digest(&content)));
            let size = content.len();
            return reply(
                &format!(
                    "302 Found\r\nlocation: {store_at}/store/{name}\r\nx-repo-commit: {COMMIT}\r\n\
                     x-linked-etag: \"{etag}\"\r\nx-linked-size: {size}\r\ncontent-length: 0"
                ),
                b"",
            );
        }
        let etag = etag.unwrap_or_else(|| hex(&Sha256::digest(&content)[..20]));
        return reply(
            &format!(
                "200 OK\r\netag: \"{etag}\"\r\nx-repo-commit: {COMMIT}\r\ncontent-length: {}",
                content.len()
            ),
            &content,
        );
    }
    let content = script.forged.take().unwrap_or(content);
    let start = headers.get("range").filter(|_| !script.ignore_ranges);
    let start = start.map(|range| range["bytes=".len()..].trim_end_matches('-').parse::<usize>().unwrap());
    let rest = &content[start.unwrap_or(0)..];
    let head = match start {
        Some(start) => {
            format!("206 Partial\r\ncontent-range: bytes {start}-{}/{}", content.len() - 1, content.len())
        }
        None => "200 OK".to_owned(),
    };
    let cut = if script.cuts > 0 {
        script.cuts -= 1;
        script.cut_after.min(rest.len())
    } else {
        rest.len()
    };
    reply(&format!("{head}\r\ncontent-length: {}", rest.len()), &rest[..cut])
}

fn files() -> HashMap<String, Vec<u8>> {
    let weights: Vec<u8> = (0..1_000_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let files: [(&str, &[u8]); 8] = [
        ("config.json", b"{}"),
        ("tokenizer.json", b"{\"a\": 1}"),
        ("tokenizer_config.json", b"{\"b\": 2}"),
        ("generation_config.json", b"{\"c\": 3}"),
        ("model.safetensors", &weights),
        ("pytorch_model.bin", b"pickle"),
        ("onnx/model.safetensors", b"elsewhere"),
        ("../../evil.safetensors", b"evil"),
    ];
    files.into_iter().map(|(name, content)| (name.to_owned(), content.to_vec())).collect()
}

/// A folder of its own for each test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("millrace-hub-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn get(hub: &Hub, model: &str) -> Result<PathBuf, HubError> {
    hub.resolve(model, &mut |_, done, total| assert!(done <= total))
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        dir.read_dir().unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn what_serving_needs_is_fetched_once() {
    let (cache, stand_in) =
        (Folder::new("once"), StandIn::start(Script { files: files(), ..Script::default() }));
    let mut hub = stand_in.hub(&cache.0);
    let mut seen = HashMap::new();
    let dir = hub
        .resolve("org/name", &mut |file, done, total| {
            seen.insert(file.to_owned(), (done, total));
        })
        .unwrap();
    let repository = cache.0.join("models--org--name");
    assert_eq!(dir, repository.join("snapshots").join(COMMIT));
    let expected = [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names(&dir), expected);
    for name in expected {
        assert_eq!(std::fs::read(dir.join(name)).unwrap(), files()[name]);
        assert!(std::fs::read_link(dir.join(name)).unwrap().starts_with("../../blobs"));
    }
    assert_eq!(std::fs::read_to_string(repository.join("refs/main")).unwrap(), COMMIT);
    assert_eq!(names(&repository.join("blobs")).len(), 5, "nothing half done may be left");
    assert_eq!(seen["model.safetensors"], (1_000_000, 1_000_000));
    assert!(stand_in.requests().iter().any(|line| line == "store GET /store/model.safetensors"));

    assert_eq!(get(&hub, "org/name").unwrap(), dir);
    assert_eq!(get(&hub, &format!("org/name@{COMMIT}")).unwrap(), dir);
    hub.offline = true;
    assert_eq!(get(&hub, "org/name").unwrap(), dir);
    assert_eq!(stand_in.requests(), [""; 0]);
    assert!(matches!(get(&hub, "org/name@other"), Err(HubError::Offline { .. })));

    hub.offline = false;
    assert_eq!(get(&hub, "org/name@refs/pr/1").unwrap(), dir, "a revision may contain a slash");
    assert!(
        !stand_in.requests().iter().any(|line| line.contains("store")),
        "equal content is not fetched again"
    );
}

#[test]
fn a_broken_download_is_continued() {
    let script =
        Script { files: files(), cut_after: 150_000, cuts: 6, statuses: vec![503, 429], ..Script::default() };
    let (cache, stand_in) = (Folder::new("broken"), StandIn::start(script));
    let dir = get(&stand_in.hub(&cache.0), "org/name").unwrap();
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), files()["model.safetensors"]);
    let store: Vec<_> = stand_in.requests().into_iter().filter(|line| line.starts_with("store")).collect();
    let ranges = (1..=6).map(|n| format!("store GET /store/model.safetensors bytes={}-", n * 150_000));
    let expected: Vec<_> =
        ["store GET /store/model.safetensors".to_owned()].into_iter().chain(ranges).collect();
    assert_eq!(store, expected);
}

#[test]
fn another_process_continues_what_one_left() {
    let (cache, stand_in) =
        (Folder::new("left"), StandIn::start(Script { files: files(), ..Script::default() }));
    let weights = &files()["model.safetensors"];
    let blobs = cache.0.join("models--org--name/blobs");
    std::fs::create_dir_all(&blobs).unwrap();
    let partial = blobs.join(format!("{}.incomplete", hex(&Sha256::digest(weights))));
    std::fs::write(&partial, &weights[..999_000]).unwrap();
    let dir = get(&stand_in.hub(&cache.0), "org/name").unwrap();
    assert_eq!(&std::fs::read(dir.join("model.safetensors")).unwrap(), weights);
    assert!(stand_in.requests().contains(&"store GET /store/model.safetensors bytes=999000-".to_owned()));
    assert!(!partial.exists());
}

#[test]
fn a_store_that_ignores_ranges_sends_all_of_it() {
    let script = Script { files: files(), cut_after: 10, cuts: 1, ignore_ranges: true, ..Script::default() };
    let (cache, stand_in) = (Folder::new("ranges"), StandIn::start(script));
    let dir = get(&stand_in.hub(&cache.0), "org/name").unwrap();
    assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), files()["model.safetensors"]);
}

#[test]
fn forged_content_is_refused_and_forgotten() {
    let forgeries = [vec![7; 1_000_000], vec![7; 1_000_001]];
    for (round, forged) in forgeries.into_iter().enumerate() {
        let script = Script { files: files(), forged: Some(forged), ..Script::default() };
        let (cache, stand_in) = (Folder::new(&format!("forged{round}")), StandIn::start(script));
        let hub = stand_in.hub(&cache.0);
        let error = get(&hub, "org/name").unwrap_err();
        assert!(matches!(error, HubError::Answer { .. }), "{error}");
        assert!(!cache.0.join("models--org--name/refs/main").exists());
        let dir = get(&hub, "org/name").unwrap();
        assert_eq!(std::fs::read(dir.join("model.safetensors")).unwrap(), files()["model.safetensors"]);
    }
}

#[test]
fn shards_are_those_the_index_names() {
    let mut files = files();
    for name in ["a", "b", "c"] {
        files.insert(format!("model-{name}.safetensors"), name.into());
    }
    let index = |shards: [&str; 2]| {
        json!({"weight_map": {"x": shards[0], "y": shards[1], "z": shards[0]}}).to_string()
    };
    let name = "model.safetensors.index.json".to_owned();
    files.insert(name.clone(), index(["model-a.safetensors", "model-b.safetensors"]).into());
    let (cache, stand_in) = (Folder::new("shards"), StandIn::start(Script { files, ..Script::default() }));
    let hub = stand_in.hub(&cache.0);
    let dir = get(&hub, "org/name").unwrap();
    let weights: Vec<_> = names(&dir).into_iter().filter(|name| large(name)).collect();
    assert_eq!(weights, ["model-a.safetensors", "model-b.safetensors"]);

    // A snapshot that lacks a shard, as another client may leave it, is completed.
    std::fs::remove_file(dir.join("model-b.safetensors")).unwrap();
    stand_in.requests();
    assert_eq!(get(&hub, "org/name").unwrap(), dir);
    assert!(dir.join("model-b.safetensors").exists() && !stand_in.requests().is_empty());

    for evil in ["../../../evil.safetensors", "/etc/passwd", "a/b.safetensors", ""] {
        let cache = Folder::new("evil-shards");
        stand_in
            .script
            .lock()
            .unwrap()
            .files
            .insert(name.clone(), index(["model-a.safetensors", evil]).into());
        let error = get(&stand_in.hub(&cache.0), "org/name").unwrap_err();
        assert!(matches!(error, HubError::Answer { .. }), "{error}");
    }
}

#[test]
fn an_etag_names_nothing_outside_the_cache() {
    for etag in ["../../evil", "a/b", "", ".hidden"] {
        let script = Script { files: files(), etag: Some(etag.to_owned()), ..Script::default() };
        let (cache, stand_in) = (Folder::new("etag"), StandIn::start(script));
        let error = get(&stand_in.hub(&cache.0), "org/name").unwrap_err();
        assert!(matches!(error, HubError::Answer { .. }), "{error}");
    }
}

#[test]
fn refusals_say_what_to_do() {
    let cache = Folder::new("refusals");
    let try_with = |script: Script, change: &dyn Fn(&mut Hub)| {
        let stand_in = StandIn::start(script);
        let mut hub = stand_in.hub(&cache.0);
        change(&mut hub);
        let error = get(&hub, "org/name").unwrap_err();
        (error.to_string(), error)
    };
    let same = |_: &mut Hub| {};
    let script = || Script { files: files(), ..Script::default() };

    let private = Script { requires_token: true, ..script() };
    let (text, error) = try_with(private, &|hub| hub.token = None);
    assert!(matches!(error, HubError::Refused { status: 401, .. }) && text.contains("HF_TOKEN"), "{text}");
    let (text, error) = try_with(Script { statuses: vec![403], ..script() }, &same);
    assert!(matches!(error, HubError::Refused { status: 403, .. }) && text.contains("org/name"), "{text}");
    let (text, error) = try_with(Script { statuses: vec![404], ..script() }, &same);
    assert!(matches!(error, HubError::Missing { .. }) && text.contains("check the name"), "{text}");
    let (text, error) = try_with(script(), &|hub| hub.endpoint = "http://127.0.0.1:9".to_owned());
    assert!(matches!(error, HubError::Network { .. }) && text.contains("HF_ENDPOINT"), "{text}");
    let (text, error) = try_with(script(), &|hub| hub.offline = true);
    assert!(matches!(error, HubError::Offline { .. }) && text.contains("HF_HUB_OFFLINE"), "{text}");

    let keep = |names: &[&str]| {
        let files = files().into_iter().filter(|(name, _)| names.contains(&name.as_str()));
        Script { files: files.collect(), ..Script::default() }
    };
    let (text, error) = try_with(keep(&["model.safetensors"]), &same);
    assert!(matches!(error, HubError::Unusable { .. }) && text.contains("config.json"), "{text}");
    let (text, error) = try_with(keep(&["config.json", "pytorch_model.bin"]), &same);
    assert!(matches!(error, HubError::Unusable { .. }) && text.contains("safetensors"), "{text}");
}

#[test]
fn a_path_is_itself_and_nonsense_is_nothing() {
    let here = env!("CARGO_MANIFEST_DIR");
    assert_eq!(resolve(here, &mut |_, _, _| {}).unwrap(), Path::new(here));
    for nonsense in ["no-such-thing", "/no/such/path", "../../no/such", "org/name/too/deep"] {
        let error = resolve(nonsense, &mut |_, _, _| {}).unwrap_err();
        assert!(matches!(error, HubError::Name { .. }), "{error}");
    }
}
