//! Downloads a model's files into the cache: resumed where they broke off, checked before they count.

use super::cache::{INDEX, Repository, create_dir, is_file_name, is_hash, is_safetensors, shards};
use super::{Hub, HubError, ModelId, Progress};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;
use ureq::http::{Response, StatusCode};
use ureq::{Agent, Body, ResponseExt};

/// What serving reads beside the weights.
const FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    INDEX,
];
/// The list of a model's files is kilobytes.
const LARGEST_LIST: u64 = 16 << 20;
/// Attempts without any progress before giving up.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Fetches what is missing of a model and gives the folder with its files.
pub(super) fn model(
    hub: &Hub,
    id: &ModelId,
    repository: &Repository,
    progress: Progress<'_>,
) -> Result<PathBuf, HubError> {
    let client = Client::new(hub, id);
    let (commit, files) = client.list()?;
    let has = |name: &str| files.iter().any(|file| file == name);
    let unusable = |why| HubError::Unusable { model: id.to_string(), why };
    if !has("config.json") {
        return Err(unusable(if files.iter().any(|file| file.ends_with(".gguf")) {
            "it holds GGUF files; download one of them and give its path"
        } else {
            "it has no config.json, so it is no transformers checkpoint"
        }));
    }
    let mut fetch = |file: &str| client.fetch(repository, &commit, file, progress);
    for file in FILES.iter().filter(|file| has(file)) {
        fetch(file)?;
    }
    let weights = if has(INDEX) {
        let path = repository.snapshot_dir(&commit).join(INDEX);
        let index = std::fs::read(&path).map_err(|source| HubError::Io { path: path.clone(), source })?;
        shards(&index).map_err(|why| HubError::Answer { what: path.display().to_string(), why })?
    } else if has("model.safetensors") {
        vec!["model.safetensors".to_owned()]
    } else {
        files.iter().filter(|file| is_safetensors(Path::new(file))).cloned().collect()
    };
    if weights.is_empty() {
        return Err(unusable("it has no weights in safetensors; convert them"));
    }
    for file in &weights {
        fetch(file)?;
    }
    if id.revision != commit {
        repository.set_ref(&id.revision, &commit)?;
    }
    Ok(repository.snapshot_dir(&commit))
}

/// What a file's head says.
struct Head {
    /// Names the content; of large files it is the SHA-256.
    etag: String,
    size: Option<u64>,
}

struct Client<'a> {
    hub: &'a Hub,
    id: &'a ModelId,
    agent: Agent,
}

impl<'a> Client<'a> {
    fn new(hub: &'a Hub, id: &'a ModelId) -> Self {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(Duration::from_secs(15)))
            .timeout_recv_response(Some(Duration::from_secs(60)))
            .timeout_per_read(Some(Duration::from_secs(60)))
            // A compressed body could not be resumed by its length.
            .accept_encoding("identity")
            .user_agent(concat!("millrace/", env!("CARGO_PKG_VERSION")));
        Self { hub, id, agent: config.build().new_agent() }
    }

    /// The commit of the revision and the names of its files.
    fn list(&self) -> Result<(String, Vec<String>), HubError> {
        let ModelId { organisation, name, revision } = self.id;
        let revision = revision.replace('/', "%2F");
        let url = format!("{}/api/models/{organisation}/{name}/revision/{revision}", self.hub.endpoint);
        let mut response = self.patiently(&url, || self.get(&url, 0))?;
        let answer = |why: String| HubError::Answer { what: url.clone(), why };
        let body = response.body_mut().with_config().limit(LARGEST_LIST).read_to_vec();
        let list: Value = serde_json::from_slice(&body.map_err(|error| self.network(&url, &error))?)
            .map_err(|error| answer(error.to_string()))?;
        let commit = list.get("sha").and_then(Value::as_str).filter(|commit| is_hash(commit));
        let commit = commit.ok_or_else(|| answer("no commit".to_owned()))?;
        let siblings = list.get("siblings").and_then(Value::as_array);
        let siblings = siblings.ok_or_else(|| answer("no list of files".to_owned()))?;
        let names = siblings.iter().filter_map(|file| file.get("rfilename")?.as_str());
        // Names with a folder in them are other formats, or examples.
        Ok((commit.to_owned(), names.filter(|name| is_file_name(name)).map(str::to_owned).collect()))
    }

    /// Makes a file part of the snapshot.
    fn fetch(
        &self,
        repository: &Repository,
        commit: &str,
        file: &str,
        progress: Progress<'_>,
    ) -> Result<(), HubError> {
        let ModelId { organisation, name, .. } = self.id;
        let url = format!("{}/{organisation}/{name}/resolve/{commit}/{file}", self.hub.endpoint);
        let head = self.head(&url)?;
        let blob = repository.blob(&head.etag);
        if !blob.exists() {
            create_dir(blob.parent().unwrap_or(&blob))?;
            self.download(&url, file, &head, &blob, progress)?;
        }
        repository.link(commit, file, &head.etag)
    }

    /// Large files are redirected to a store; the head of the redirection describes them. A model that was renamed is
    /// redirected within the hub first.
    fn head(&self, url: &str) -> Result<Head, HubError> {
        let mut url = url.to_owned();
        let mut response = self.ask_head(&url)?;
        for _ in 0..3 {
            let headers = response.headers();
            let location = headers.get("location").and_then(|value| value.to_str().ok());
            let Some(path) = location.filter(|path| path.starts_with('/') && !path.starts_with("//")) else {
                break;
            };
            if headers.contains_key("x-linked-etag") {
                break;
            }
            url = format!("{}{path}", origin(&self.hub.endpoint));
            response = self.ask_head(&url)?;
        }
        let header = |name: &str| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
        let etag = header("x-linked-etag").or_else(|| header("etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        if !is_file_name(&etag) {
            let why = format!("the etag {etag:?} is no name for a file");
            return Err(HubError::Answer { what: url, why });
        }
        let redirected = response.status().is_redirection();
        let length = || header("content-length").filter(|_| !redirected);
        let size = header("x-linked-size").or_else(length).and_then(|size| size.parse().ok());
        Ok(Head { etag, size })
    }

    fn ask_head(&self, url: &str) -> Result<Response<Body>, HubError> {
        self.patiently(url, || {
            let request =
                self.agent.head(url).config().max_redirects(0).max_redirects_will_error(false).build();
            self.authorised(request).call()
        })
    }

    /// Fills `blob` by way of `blob.incomplete`, which a later attempt continues.
    fn download(
        &self,
        url: &str,
        name: &str,
        head: &Head,
        blob: &Path,
        progress: Progress<'_>,
    ) -> Result<(), HubError> {
        let path = blob.with_file_name(format!("{}.incomplete", head.etag));
        let io = |source| HubError::Io { path: path.clone(), source };
        let mut options = OpenOptions::new();
        let mut file = options.read(true).write(true).create(true).truncate(false).open(&path).map_err(io)?;
        // Another process may be at it; when it is done, so are we.
        file.lock().map_err(io)?;
        if blob.exists() {
            return Ok(());
        }
        let (mut failures, mut pause) = (0, FIRST_PAUSE);
        loop {
            let before = file.seek(SeekFrom::End(0)).map_err(io)?;
            let wanted = head.size.unwrap_or(u64::MAX);
            if before == wanted {
                break;
            }
            match self.transfer(url, name, head, &mut file, progress) {
                Ok(()) => break,
                Err(Transfer::Fatal(error)) => return Err(error),
                Err(Transfer::Disk(source)) => return Err(io(source)),
                Err(Transfer::Broken(why)) => {
                    let progressed = file.seek(SeekFrom::End(0)).map_err(io)? > before;
                    (failures, pause) = if progressed { (1, FIRST_PAUSE) } else { (failures + 1, pause * 2) };
                    if failures >= ATTEMPTS {
                        return Err(HubError::Network { what: url.to_owned(), why });
                    }
                    tracing::info!(file = name, why, "the download broke off and is resumed");
                    std::thread::sleep(pause);
                }
            }
        }
        if let Err(why) = verify(&mut file, head).map_err(io)? {
            // What is wrong at some place cannot be continued.
            std::fs::remove_file(&path).map_err(io)?;
            return Err(HubError::Answer { what: url.to_owned(), why });
        }
        file.sync_all().map_err(io)?;
        std::fs::rename(&path, blob).map_err(io)
    }

    /// One request for the rest of the file.
    fn transfer(
        &self,
        url: &str,
        name: &str,
        head: &Head,
        file: &mut File,
        progress: Progress<'_>,
    ) -> Result<(), Transfer> {
        let mut done = file.seek(SeekFrom::End(0)).map_err(Transfer::Disk)?;
        let broken = |error: ureq::Error| Transfer::Broken(error.to_string());
        let mut response = self.get(url, done).map_err(broken)?;
        let status = response.status();
        let start = content_start(&response);
        let restart = match status {
            StatusCode::OK => true,
            StatusCode::PARTIAL_CONTENT if start == Some(done) => false,
            StatusCode::RANGE_NOT_SATISFIABLE if done > 0 => {
                // What is there is not what the hub has.
                file.set_len(0).map_err(Transfer::Disk)?;
                return Err(Transfer::Broken("the hub cannot continue the file".to_owned()));
            }
            status if transient(status) => return Err(Transfer::Broken(format!("status {status}"))),
            status => return Err(Transfer::Fatal(self.refused(url, status))),
        };
        if restart && done > 0 {
            file.set_len(0).map_err(Transfer::Disk)?;
            file.rewind().map_err(Transfer::Disk)?;
            done = 0;
        }
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 18];
        loop {
            progress(name, done, head.size.unwrap_or(done));
            let count = match body.read(&mut buffer) {
                Ok(0) if head.size.is_some_and(|size| done < size) => {
                    return Err(Transfer::Broken(format!("the connection ended after {done} bytes")));
                }
                Ok(0) => return Ok(()),
                Ok(count) => count,
                Err(error) => return Err(Transfer::Broken(error.to_string())),
            };
            done += count as u64;
            if head.size.is_some_and(|size| done > size) {
                file.set_len(0).map_err(Transfer::Disk)?;
                let why = format!("more than the {} bytes announced", head.size.unwrap_or(0));
                return Err(Transfer::Fatal(HubError::Answer { what: url.to_owned(), why }));
            }
            file.write_all(&buffer[..count]).map_err(Transfer::Disk)?;
        }
    }

    fn get(&self, url: &str, start: u64) -> Result<Response<Body>, ureq::Error> {
        let mut request = self.agent.get(url);
        if start > 0 {
            request = request.header("range", format!("bytes={start}-"));
        }
        let response = self.authorised(request).call()?;
        tracing::debug!(url, at = %response.get_uri(), status = %response.status(), start, "download");
        Ok(response)
    }

    /// The agent drops the header where a redirection leads to.
    fn authorised<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        match &self.hub.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    /// Repeats a request while the hub is out of reach or overloaded; other refusals are errors.
    fn patiently(
        &self,
        url: &str,
        ask: impl Fn() -> Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, HubError> {
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            match ask() {
                Ok(response) if response.status().is_success() || response.status().is_redirection() => {
                    return Ok(response);
                }
                Ok(response) if !transient(response.status()) || attempt == ATTEMPTS => {
                    return Err(self.refused(url, response.status()));
                }
                // No route and no name will not appear within a second.
                Err(error) if attempt == ATTEMPTS || !matches!(error, ureq::Error::Timeout(_)) => {
                    return Err(self.network(url, &error));
                }
                _ => std::thread::sleep(pause),
            }
            pause *= 2;
        }
        unreachable!("the last attempt returns")
    }

    fn network(&self, url: &str, error: &ureq::Error) -> HubError {
        HubError::Network { what: url.to_owned(), why: error.to_string() }
    }

    fn refused(&self, url: &str, status: StatusCode) -> HubError {
        match status.as_u16() {
            status @ (401 | 403) => HubError::Refused { model: self.id.to_string(), status },
            404 => HubError::Missing { model: self.id.to_string(), endpoint: self.hub.endpoint.clone() },
            _ => HubError::Answer { what: url.to_owned(), why: format!("status {status}") },
        }
    }
}

/// Why a request for a file did not bring all of it.
enum Transfer {
    /// Worth another attempt.
    Broken(String),
    Fatal(HubError),
    Disk(std::io::Error),
}

/// Scheme and host of an address.
fn origin(url: &str) -> &str {
    let host = url.find("://").map_or(0, |at| at + 3);
    url[host..].find('/').map_or(url, |at| &url[..host + at])
}

fn transient(status: StatusCode) -> bool {
    status.is_server_error()
        || status == StatusCode::TOO_MANY_REQUESTS
        || status == StatusCode::REQUEST_TIMEOUT
}

/// Where the part sent begins, of a header such as `bytes 5-9/10`.
fn content_start(response: &Response<Body>) -> Option<u64> {
    let range = response.headers().get("content-range")?.to_str().ok()?;
    range.strip_prefix("bytes ")?.split_once('-')?.0.parse().ok()
}

/// Whether the file is what its head announced; if not, why.
fn verify(file: &mut File, head: &Head) -> std::io::Result<Result<(), String>> {
    let size = file.seek(SeekFrom::End(0))?;
    if let Some(expected) = head.size.filter(|expected| *expected != size) {
        return Ok(Err(format!("{size} bytes where {expected} were announced")));
    }
    // Small files have git's hash of theirs, which takes in more than the content.
    if head.etag.len() != 64 || !is_hash(&head.etag) {
        return Ok(Ok(()));
    }
    file.rewind()?;
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 18]);
    loop {
        let count = file.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        hash.update(&buffer[..count]);
    }
    let found: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    if found == head.etag.to_ascii_lowercase() {
        return Ok(Ok(()));
    }
    Ok(Err(format!("the content has the SHA-256 {found} where {} was announced", head.etag)))
}
