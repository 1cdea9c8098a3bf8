//! A double of OpenSearch for contract tests: takes only what OpenSearch's documentation allows in a request, answers
//! what does not fit with its error shape, and evaluates searches over what was written. Where OpenSearch is free, it is
//! awkward: documents are seen after a refresh only, words are counted by shard unless a search asks for all shards.

mod mapping;
mod search;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine as _;
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};

use mapping::Mapping;

/// What a request is refused with.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) kind: &'static str,
    pub(crate) reason: String,
}

pub(crate) type Answer<T = Value> = Result<T, Refusal>;

pub(crate) fn refuse<T>(status: u16, kind: &'static str, reason: impl Into<String>) -> Answer<T> {
    Err(Refusal { status, kind, reason: reason.into() })
}

impl Refusal {
    pub(crate) fn error(&self) -> Value {
        let cause = json!({ "type": self.kind, "reason": self.reason });
        json!({ "root_cause": [cause], "type": self.kind, "reason": self.reason })
    }
}

/// An object with none but these keys.
pub(crate) fn object<'a>(value: &'a Value, what: &str, keys: &[&str]) -> Answer<&'a Map<String, Value>> {
    let Some(map) = value.as_object() else {
        return refuse(400, "parsing_exception", format!("[{what}] must be an object"));
    };
    match map.keys().find(|key| !keys.contains(&key.as_str())) {
        Some(key) => refuse(400, "parsing_exception", format!("[{what}] unknown field [{key}]")),
        None => Ok(map),
    }
}

/// What happens to a request instead of what it asks for.
pub(crate) enum Fault {
    /// Another answer.
    Answer(u16, String),
    /// The answer, later.
    Slow(Duration),
    /// No answer: the connection ends.
    Close,
    /// It is done, and the connection ends before the answer.
    Lost,
    /// The answer, with something in it replaced.
    Change(fn(&mut Value)),
}

pub(crate) struct Document {
    pub(crate) source: Value,
    pub(crate) shard: usize,
    /// Of each text field, how often it has each term.
    pub(crate) terms: BTreeMap<String, BTreeMap<String, u32>>,
}

pub(crate) struct Index {
    pub(crate) mapping: Mapping,
    pub(crate) created: u64,
    pub(crate) written: BTreeMap<String, Arc<Document>>,
    /// What searches see.
    pub(crate) seen: BTreeMap<String, Arc<Document>>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) indexes: BTreeMap<String, Index>,
    /// The indexes of each alias.
    pub(crate) aliases: BTreeMap<String, BTreeSet<String>>,
    pub(crate) log: Vec<String>,
    /// For the next requests whose method and path have this in them.
    pub(crate) faults: VecDeque<(&'static str, Fault)>,
    /// `user:password` where they are asked for.
    pub(crate) credentials: Option<String>,
    pub(crate) clock: u64,
}

pub(crate) struct Double {
    pub(crate) port: u16,
    state: Arc<Mutex<State>>,
    _runtime: tokio::runtime::Runtime,
}

impl Double {
    pub(crate) fn start() -> Double {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State { clock: 1_700_000_000_000, ..State::default() }));
        let shared = state.clone();
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let state = shared.clone();
                tokio::spawn(async move {
                    let service = service_fn(|request| serve(state.clone(), request));
                    let http = hyper::server::conn::http1::Builder::new();
                    let _ = http.serve_connection(TokioIo::new(stream), service).await;
                });
            }
        });
        Double { port, state, _runtime: runtime }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn fault(&self, of: &'static str, fault: Fault) {
        self.state().faults.push_back((of, fault));
    }

    pub(crate) fn address(&self, name: &str) -> String {
        format!("opensearch+http://127.0.0.1:{}/{name}", self.port)
    }
}

struct Closed;

impl std::fmt::Debug for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("told to close")
    }
}

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("told to close")
    }
}

impl std::error::Error for Closed {}

async fn serve(
    state: Arc<Mutex<State>>,
    request: hyper::Request<Incoming>,
) -> Result<hyper::Response<Full<Bytes>>, Closed> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Closed)?.to_bytes();
    let header =
        |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("").to_owned();
    let asked = Asked {
        method: head.method.as_str().to_owned(),
        path: head.uri.path().trim_start_matches('/').to_owned(),
        query: head.uri.query().unwrap_or("").to_owned(),
        content_type: header("content-type"),
        authorization: header("authorization"),
        chunked: head.headers.contains_key("transfer-encoding"),
        body: String::from_utf8(body.to_vec()).unwrap_or_default(),
    };
    let fault = {
        let mut state = state.lock().unwrap();
        let line = format!("{} {}", asked.method, asked.path);
        let of = state.faults.iter().position(|(of, _)| line.contains(of));
        of.and_then(|at| state.faults.remove(at)).map(|(_, fault)| fault)
    };
    let (status, text) = match fault {
        Some(Fault::Close) => return Err(Closed),
        Some(Fault::Answer(status, text)) => (status, text),
        other => {
            if let Some(Fault::Slow(time)) = other {
                tokio::time::sleep(time).await;
            }
            let (status, mut answer) = state.lock().unwrap().answer(&asked);
            match other {
                Some(Fault::Change(change)) => change(&mut answer),
                Some(Fault::Lost) => return Err(Closed),
                _ => {}
            }
            (status, answer.to_string())
        }
    };
    let response = hyper::Response::builder().status(status).header("content-type", "application/json");
    Ok(response.body(Full::new(Bytes::from(text))).unwrap())
}

struct Asked {
    method: String,
    path: String,
    query: String,
    content_type: String,
    authorization: String,
    chunked: bool,
    body: String,
}

impl Asked {
    /// The parameters of the address, which must be among these.
    fn parameters(&self, known: &[&str]) -> Answer<BTreeMap<String, String>> {
        let pairs = self.query.split('&').filter(|pair| !pair.is_empty());
        let pairs: BTreeMap<String, String> = pairs
            .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        match pairs.keys().find(|key| !known.contains(&key.as_str())) {
            Some(key) => refuse(
                400,
                "illegal_argument_exception",
                format!("request [/{}] contains unrecognized parameter: [{key}]", self.path),
            ),
            None => Ok(pairs),
        }
    }

    fn json(&self) -> Answer {
        if self.content_type != "application/json" {
            return refuse(406, "media_type_header_exception", "Content-Type header is not supported");
        }
        serde_json::from_str(&self.body).or_else(|e| refuse(400, "parse_exception", e.to_string()))
    }

    fn nothing(&self) -> Answer<()> {
        match self.body.is_empty() {
            true => Ok(()),
            false => refuse(400, "illegal_argument_exception", "request does not support having a body"),
        }
    }

    /// Values, one a line, each line ended.
    fn lines(&self) -> Answer<Vec<Value>> {
        if self.content_type != "application/x-ndjson" {
            return refuse(406, "media_type_header_exception", "Content-Type header is not supported");
        }
        if !self.body.ends_with('\n') {
            let why = "The request must be terminated by a newline [\\n]";
            return refuse(400, "illegal_argument_exception", why);
        }
        let parse =
            |line| serde_json::from_str(line).or_else(|_| refuse(400, "parse_exception", "malformed line"));
        self.body.trim_end_matches('\n').split('\n').map(parse).collect()
    }
}

impl State {
    /// An index like another, without documents, as an update leaves it that breaks off.
    pub(crate) fn abandon(&mut self, name: &str, like: &str, created: u64) {
        let mapping = self.indexes[like].mapping.clone();
        let (written, seen) = (BTreeMap::new(), BTreeMap::new());
        self.indexes.insert(name.to_owned(), Index { mapping, created, written, seen });
    }

    fn answer(&mut self, asked: &Asked) -> (u16, Value) {
        let query = if asked.query.is_empty() { String::new() } else { format!("?{}", asked.query) };
        self.log.push(format!("{} /{}{query}\n{}", asked.method, asked.path, asked.body));
        if let Some(credentials) = &self.credentials {
            let encoded = base64::engine::general_purpose::STANDARD.encode(credentials);
            if asked.authorization != format!("Basic {encoded}") {
                return (401, json!("Unauthorized"));
            }
        }
        match self.route(asked) {
            Ok(answer) => (200, answer),
            Err(refusal) => (refusal.status, json!({ "error": refusal.error(), "status": refusal.status })),
        }
    }

    fn route(&mut self, asked: &Asked) -> Answer {
        if asked.chunked {
            return refuse(400, "illegal_argument_exception", "chunked bodies are not to be sent");
        }
        let parts: Vec<&str> = asked.path.split('/').collect();
        match (asked.method.as_str(), parts.as_slice()) {
            ("POST", ["_aliases"]) => self.change_aliases(asked),
            ("GET", ["_alias", name]) => {
                asked.nothing()?;
                let Some(indexes) = self.aliases.get(*name).filter(|indexes| !indexes.is_empty()) else {
                    return refuse(404, "aliases_not_found_exception", format!("alias [{name}] missing"));
                };
                let one = |index: &String| (index.clone(), json!({ "aliases": { *name: {} } }));
                Ok(Value::Object(indexes.iter().map(one).collect()))
            }
            ("PUT", [index]) => self.create(index, asked),
            ("DELETE", [index]) => {
                asked.nothing()?;
                if self.aliases.contains_key(*index) {
                    return refuse(
                        400,
                        "illegal_argument_exception",
                        format!(
                            "The provided expression [{index}] matches an alias, specify the corresponding concrete indices instead."
                        ),
                    );
                }
                if self.indexes.remove(*index).is_none() {
                    return missing(index);
                }
                for indexes in self.aliases.values_mut() {
                    indexes.remove(*index);
                }
                self.aliases.retain(|_, indexes| !indexes.is_empty());
                Ok(json!({ "acknowledged": true }))
            }
            ("GET", [index, "_mapping"]) => {
                asked.nothing()?;
                let found = self.resolve(index)?;
                let one = |index: String| {
                    let mappings = self.indexes[&index].mapping.body.clone();
                    (index, json!({ "mappings": mappings }))
                };
                Ok(Value::Object(found.into_iter().map(one).collect()))
            }
            ("GET", [pattern, "_settings", "index.creation_date"]) => {
                asked.nothing()?;
                let (start, end) = pattern.split_once('*').expect("a pattern");
                let fits = |name: &String| name.starts_with(start) && name.ends_with(end);
                let one = |(name, index): (&String, &Index)| {
                    let created = index.created.to_string();
                    (name.clone(), json!({ "settings": { "index": { "creation_date": created } } }))
                };
                Ok(Value::Object(self.indexes.iter().filter(|(name, _)| fits(name)).map(one).collect()))
            }
            ("POST", [index, "_refresh"]) => {
                asked.nothing()?;
                for index in self.resolve(index)? {
                    let index = self.indexes.get_mut(&index).unwrap();
                    index.seen = index.written.clone();
                }
                Ok(json!({ "_shards": { "total": 2, "successful": 2, "failed": 0 } }))
            }
            ("GET", [index, "_count"]) => {
                asked.nothing()?;
                let count: usize =
                    self.resolve(index)?.iter().map(|index| self.indexes[index].seen.len()).sum();
                Ok(
                    json!({ "count": count, "_shards": { "total": 2, "successful": 2, "skipped": 0, "failed": 0 } }),
                )
            }
            ("POST", [index, "_bulk"]) => self.bulk(index, asked),
            ("POST", [index, "_search"]) => {
                let parameters = asked.parameters(&["search_type", "cancel_after_time_interval"])?;
                let dfs = parameters.get("search_type").is_some_and(|kind| kind == "dfs_query_then_fetch");
                self.search(index, &asked.json()?, dfs)
            }
            ("POST", [index, "_msearch"]) => {
                asked.parameters(&["max_concurrent_searches"])?;
                let lines = asked.lines()?;
                if lines.len() % 2 != 0 {
                    return refuse(400, "illegal_argument_exception", "a header without a body");
                }
                let mut responses = Vec::new();
                for pair in lines.chunks(2) {
                    let header = object(
                        &pair[0],
                        "header",
                        &["search_type", "preference", "cancel_after_time_interval"],
                    )?;
                    let dfs = match header.get("search_type").map(|kind| kind.as_str().unwrap_or("")) {
                        None | Some("query_then_fetch") => false,
                        Some("dfs_query_then_fetch") => true,
                        Some(_) => return refuse(400, "illegal_argument_exception", "No search type"),
                    };
                    if let Some(time) = header.get("cancel_after_time_interval") {
                        let seconds =
                            time.as_str().and_then(|time| time.strip_suffix('s')?.parse::<u32>().ok());
                        if seconds.is_none() {
                            return refuse(400, "parse_exception", "failed to parse a time value");
                        }
                    }
                    responses.push(match self.search(index, &pair[1], dfs) {
                        Ok(mut found) => {
                            found["status"] = json!(200);
                            found
                        }
                        Err(refusal) => json!({ "error": refusal.error(), "status": refusal.status }),
                    });
                }
                Ok(json!({ "took": 1, "responses": responses }))
            }
            ("POST", [index, "_mget"]) => self.get_many(index, asked),
            _ => refuse(
                400,
                "illegal_argument_exception",
                format!("no handler found for uri [/{}] and method [{}]", asked.path, asked.method),
            ),
        }
    }

    /// The indexes that a name stands for.
    fn resolve(&self, name: &str) -> Answer<Vec<String>> {
        match self.aliases.get(name) {
            Some(indexes) => Ok(indexes.iter().cloned().collect()),
            None if self.indexes.contains_key(name) => Ok(vec![name.to_owned()]),
            None => missing(name),
        }
    }

    fn create(&mut self, name: &str, asked: &Asked) -> Answer {
        asked.parameters(&["timeout", "wait_for_active_shards"])?;
        let bad = |c: char| c.is_uppercase() || "\\/*?\"<>| ,#:".contains(c);
        if name.starts_with(['_', '-', '+']) || name.contains(bad) || name.len() > 255 {
            return refuse(400, "invalid_index_name_exception", format!("Invalid index name [{name}]"));
        }
        if self.indexes.contains_key(name) {
            return refuse(
                400,
                "resource_already_exists_exception",
                format!("index [{name}] already exists"),
            );
        }
        if self.aliases.contains_key(name) {
            return refuse(400, "invalid_index_name_exception", "already exists as alias");
        }
        let mapping = Mapping::parse(&asked.json()?)?;
        self.clock += 1000;
        let (written, seen) = (BTreeMap::new(), BTreeMap::new());
        self.indexes.insert(name.to_owned(), Index { mapping, created: self.clock, written, seen });
        Ok(json!({ "acknowledged": true, "shards_acknowledged": true, "index": name }))
    }

    fn change_aliases(&mut self, asked: &Asked) -> Answer {
        let body = asked.json()?;
        let actions = object(&body, "aliases", &["actions"])?.get("actions").and_then(Value::as_array);
        let Some(actions) = actions.filter(|actions| !actions.is_empty()) else {
            return refuse(
                400,
                "action_request_validation_exception",
                "Must specify at least one alias action",
            );
        };
        let mut aliases = self.aliases.clone();
        for action in actions {
            let action = object(action, "action", &["add", "remove"])?;
            let Some((kind, about)) = action.iter().next().filter(|_| action.len() == 1) else {
                return refuse(
                    400,
                    "illegal_argument_exception",
                    "Too many operations declared on operation entry",
                );
            };
            let keys: &[&str] =
                if kind == "add" { &["index", "alias"] } else { &["index", "alias", "must_exist"] };
            object(about, kind, keys)?;
            let (Some(index), Some(alias)) = (about["index"].as_str(), about["alias"].as_str()) else {
                return refuse(400, "illegal_argument_exception", "One of [index] or [alias] is missing");
            };
            if !self.indexes.contains_key(index) {
                return missing(index);
            }
            if self.indexes.contains_key(alias) {
                let why = format!(
                    "Invalid alias name [{alias}]: an index or data stream exists with the same name as the alias"
                );
                return refuse(400, "invalid_alias_name_exception", why);
            }
            let indexes = aliases.entry(alias.to_owned()).or_default();
            if kind == "add" {
                indexes.insert(index.to_owned());
            } else if !indexes.remove(index) && about["must_exist"] == true {
                return refuse(404, "aliases_not_found_exception", format!("aliases [{alias}] missing"));
            }
        }
        aliases.retain(|_, indexes| !indexes.is_empty());
        self.aliases = aliases;
        Ok(json!({ "acknowledged": true }))
    }

    fn bulk(&mut self, name: &str, asked: &Asked) -> Answer {
        asked.parameters(&["refresh", "timeout"])?;
        let indexes = self.resolve(name)?;
        let [index] = indexes.as_slice() else {
            return refuse(400, "illegal_argument_exception", "no write index is defined for alias");
        };
        let index = self.indexes.get_mut(index).unwrap();
        let mut lines = asked.lines()?.into_iter();
        let (mut items, mut errors) = (Vec::new(), false);
        while let Some(action) = lines.next() {
            let kinds = object(&action, "action", &["index"])?;
            let Some(about) = kinds.get("index") else {
                return refuse(400, "illegal_argument_exception", "Malformed action/metadata line");
            };
            let Some(id) = object(about, "index", &["_id"])?.get("_id").and_then(Value::as_str) else {
                return refuse(400, "illegal_argument_exception", "Malformed action/metadata line");
            };
            let Some(source) = lines.next() else {
                return refuse(400, "illegal_argument_exception", "an action without its source");
            };
            let written = match id.len() <= 512 {
                true => index.mapping.document(id, source),
                false => refuse(400, "illegal_argument_exception", "id is too long"),
            };
            items.push(match written {
                Ok(document) => {
                    let new = index.written.insert(id.to_owned(), Arc::new(document)).is_none();
                    let (status, result) = if new { (201, "created") } else { (200, "updated") };
                    json!({ "index": { "_index": name, "_id": id, "_version": 1, "result": result, "status": status } })
                }
                Err(refusal) => {
                    errors = true;
                    let error = json!({ "type": refusal.kind, "reason": refusal.reason });
                    json!({ "index": { "_index": name, "_id": id, "status": refusal.status, "error": error } })
                }
            });
        }
        Ok(json!({ "took": 1, "errors": errors, "items": items }))
    }

    fn get_many(&self, name: &str, asked: &Asked) -> Answer {
        let parameters = asked.parameters(&["_source_includes", "realtime"])?;
        let indexes = self.resolve(name)?;
        let [index] = indexes.as_slice() else {
            return refuse(
                400,
                "illegal_argument_exception",
                "alias has more than one index associated with it",
            );
        };
        let body = asked.json()?;
        let Some(ids) = object(&body, "mget", &["ids"])?.get("ids").and_then(Value::as_array) else {
            return refuse(400, "action_request_validation_exception", "no documents to get");
        };
        let one = |id: &Value| {
            let found = id.as_str().and_then(|id| self.indexes[index].written.get(id));
            let Some(document) = found else { return json!({ "_index": index, "_id": id, "found": false }) };
            let includes =
                parameters.get("_source_includes").map(|names| json!(names.split(',').collect::<Vec<_>>()));
            let source = search::source(&document.source, includes.as_ref());
            json!({ "_index": index, "_id": id, "_version": 1, "found": true, "_source": source })
        };
        if ids.is_empty() {
            return refuse(
                400,
                "action_request_validation_exception",
                "Validation Failed: 1: no documents to get;",
            );
        }
        Ok(json!({ "docs": ids.iter().map(one).collect::<Vec<_>>() }))
    }
}

fn missing<T>(name: &str) -> Answer<T> {
    refuse(404, "index_not_found_exception", format!("no such index [{name}]"))
}
