//! Takes JSON Lines into the cluster: a new index with all of it, and an alias that moves when it is complete.
//!
//! What is in force is read first, with its vectors, so that only new texts are embedded. All of it is in this process's
//! memory meanwhile, as for a folder; who searches needs none of it. Nobody is locked out: of two updates at a time the
//! second to move the alias finds that it no longer points where it did, gives up, and has changed nothing.

use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::time::Duration;

use rust_stemmers::{Algorithm, Stemmer};
use rustc_hash::{FxHashMap, FxHashSet};
use serde_json::{Value, json};
use ureq::http::Method;

use super::client::{Body, Failure, Server, cause};
use super::query::{hits, term};
use super::schema::{Document, FORMAT, Meta, Searched, Totals, create, weights};
use crate::assistant::index::lines::{BadLine, Kind};
use crate::assistant::index::store::{Contents, EncoderId, Vectors, key};
use crate::assistant::index::{self, IndexError, Progress, Report, fields, passages};
use crate::assistant::source::{Passage, Product};
use crate::embed::Embed;

/// Documents read at a time: with their vectors some megabytes.
const PAGE: usize = 500;
/// A bulk request is sent when it has so many bytes, or documents.
const BULK_BYTES: usize = 5 << 20;
const BULK_DOCUMENTS: usize = 1000;
/// How often what was refused for lack of room is sent again, after waits that double.
const RETRIES: u32 = 6;
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// After so long what an update has left behind is taken for one that broke off.
const ABANDONED: u64 = 24 * 3600 * 1000;

/// Takes files into the index at an address, which is made where there is none: as
/// [`index::update`](crate::assistant::index::update) does for a folder. Blocks.
///
/// # Errors
/// Where a file cannot be read or the cluster does not do what it should; the index is then what it was.
pub fn update(
    place: &str,
    files: &[(Kind, PathBuf)],
    encoder: Option<&dyn Embed>,
    progress: &mut dyn FnMut(Progress),
    bad: &mut dyn FnMut(&BadLine),
) -> Result<Report, IndexError> {
    let server = Server::open(place)?;
    let old = server.state()?;
    let mut contents = match &old {
        Some((index, meta)) => read(&server, index, meta)?,
        None => Contents::default(),
    };
    let mut report = index::take(&mut contents, files, encoder, progress, bad)?;
    let meta = Meta {
        format: FORMAT,
        version: old.as_ref().map_or(0, |(_, meta)| meta.version) + 1,
        encoder: contents.encoder.as_ref().map(|encoder| (encoder.id.clone(), encoder.dim)),
    };
    // Another update may make the same version at the same time.
    let mark = RandomState::new().hash_one(std::process::id()) as u32;
    let index = format!("{}-{}-{mark:08x}", server.address.name, meta.name());
    let body = create(&meta, &server.address).to_string().into_bytes();
    server.call(Method::PUT, &index, Some((Body::Json, body)))?;
    let old = old.map(|(index, _)| index);
    if let Err(error) = upload(&server, &index, &contents, progress) {
        discard(&server, &index);
        return Err(error);
    }
    put_in_force(&server, old.as_deref(), &index)?;
    remove_old(&server, old.as_deref(), &index);
    report.version = meta.name();
    Ok(report)
}

impl Server {
    fn call(&self, method: Method, path: &str, body: Option<(Body, Vec<u8>)>) -> Result<Value, IndexError> {
        self.request(method, path, body).map_err(|failure| self.error(failure))
    }

    fn wrong(&self, reason: String) -> IndexError {
        self.error(Failure { status: 0, reason })
    }
}

/// All that a version holds.
fn read(server: &Server, index: &str, meta: &Meta) -> Result<Contents, IndexError> {
    let mut contents = Contents {
        encoder: meta.encoder.as_ref().map(|(id, dim)| EncoderId { id: id.clone(), dim: *dim }),
        vectors: Vectors { dim: meta.encoder.as_ref().map_or(0, |(_, dim)| *dim), ..Vectors::default() },
        ..Contents::default()
    };
    for of in [Searched::Product, Searched::Passage] {
        let mut after = None::<Value>;
        loop {
            let source = json!(["record", "given", "answer", of.vector()]);
            let body = super::listed(&[term("kind", of.name())], PAGE, source, after.as_ref()).to_string();
            let path = format!("{index}/_search");
            let answer = server.call(Method::POST, &path, Some((Body::Json, body.into_bytes())))?;
            let page = hits(&answer).map_err(|why| server.wrong(why))?;
            for hit in page {
                take(&mut contents, of, &hit["_source"]).map_err(|why| server.wrong(why))?;
            }
            after = page.last().map(|hit| hit["sort"].clone());
            if page.len() < PAGE {
                break;
            }
        }
    }
    Ok(contents)
}

/// Takes a document of the version in force.
fn take(contents: &mut Contents, of: Searched, document: &Value) -> Result<(), String> {
    let bad = |error: serde_json::Error| format!("a bad record: {error}");
    let record = document["record"].clone();
    let mut vector = |text: &str, vector: &Value| {
        let Some(vector) = vector.as_array() else { return };
        let vector: Vec<f32> = vector.iter().filter_map(Value::as_f64).map(|x| x as f32).collect();
        if vector.len() == contents.vectors.dim {
            contents.vectors.by_text.insert(key(text), vector);
        }
    };
    match of {
        Searched::Product => {
            let product: Product = serde_json::from_value(record).map_err(bad)?;
            vector(&passages::product_text(&product), &document[of.vector()]);
            contents.products.insert(product.id.clone(), product);
        }
        Searched::Passage => {
            let passage: Passage = serde_json::from_value(record).map_err(bad)?;
            vector(&passages::embedded_text(&passage), &document[of.vector()]);
            if let Some(answer) = passages::answer_text(&passage) {
                vector(answer, &document["answer"]["vector"]);
            }
            if document["given"] == true {
                contents.passages.insert(passage.id.clone(), passage);
            }
        }
    }
    Ok(())
}

/// A product with what is said of it.
fn documents(contents: &Contents) -> impl Iterator<Item = (Option<&Product>, Vec<(Passage, bool)>)> {
    let mut said: FxHashMap<Option<&str>, Vec<&Passage>> = FxHashMap::default();
    for passage in contents.passages.values() {
        let known = passage.product.as_deref().filter(|id| contents.products.contains_key(*id));
        said.entry(known).or_default().push(passage);
    }
    let general = said.remove(&None).unwrap_or_default();
    let general = general.into_iter().map(|passage| (passage.clone(), true)).collect();
    let of_products = contents.products.values().map(move |product| {
        let given = said.remove(&Some(product.id.as_str())).unwrap_or_default();
        let given = given.into_iter().map(|passage| (passage.clone(), true));
        let follow = passages::of_product(product).into_iter().map(|passage| (passage, false));
        (Some(product), given.chain(follow).collect())
    });
    of_products.chain(std::iter::once((None, general)))
}

/// Writes all of it into an index.
fn upload(
    server: &Server,
    index: &str,
    contents: &Contents,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), IndexError> {
    let stemmer = Stemmer::create(Algorithm::English);
    let of_product = |product: &Product| fields::of_product(product).to_vec();
    let of_passage = |passage: &Passage, product: Option<&Product>| {
        let title = product.map_or("", |product| product.title.as_str());
        fields::of_passage(passage, title).map(str::to_owned).to_vec()
    };
    let mut product_words = Totals::new(weights(Searched::Product).len());
    let mut passage_words = Totals::new(weights(Searched::Passage).len());
    let mut total = 0;
    for (product, said) in documents(contents) {
        if let Some(product) = product {
            product_words.add(&stemmer, &of_product(product));
            total += 1;
        }
        for (passage, _) in &said {
            passage_words.add(&stemmer, &of_passage(passage, product));
            total += 1;
        }
    }
    let vector = |text: &str| contents.vectors.by_text.get(&key(text)).map(Vec::as_slice);
    let mut bulk =
        Bulk { server, index, waiting: Vec::new(), bytes: 0, sent: 0, known: FxHashSet::default() };
    for (product, said) in documents(contents) {
        if let Some(product) = product {
            let words = product_words.weigh(&stemmer, weights(Searched::Product), &of_product(product));
            let vector = vector(&passages::product_text(product));
            bulk.add(Searched::Product, &product.id, &Document::of_product(product, words, vector))?;
        }
        for (passage, given) in &said {
            let words =
                passage_words.weigh(&stemmer, weights(Searched::Passage), &of_passage(passage, product));
            let answer = passages::answer_text(passage).and_then(vector);
            let vector = vector(&passages::embedded_text(passage));
            let document = Document::of_passage(passage, product, *given, words, vector, answer);
            bulk.add(Searched::Passage, &passage.id, &document)?;
        }
        progress(Progress::Writing(bulk.sent, total));
    }
    bulk.flush()?;
    progress(Progress::Writing(total, total));
    server.call(Method::POST, &format!("{index}/_refresh"), None)?;
    let counted = server.call(Method::GET, &format!("{index}/_count"), None)?;
    match counted["count"].as_u64() {
        Some(count) if count == bulk.sent => Ok(()),
        count => Err(server.wrong(format!(
            "{} documents were sent and {} are there; the index is what it was",
            bulk.sent,
            count.unwrap_or(0)
        ))),
    }
}

/// Documents on their way.
struct Bulk<'a> {
    server: &'a Server,
    index: &'a str,
    /// The id of the record, and the two lines.
    waiting: Vec<(String, String)>,
    bytes: usize,
    sent: u64,
    /// Names of documents: ids of two passages may be made of different parts and be the same.
    known: FxHashSet<String>,
}

impl Bulk<'_> {
    fn add(&mut self, of: Searched, id: &str, document: &Document<'_>) -> Result<(), IndexError> {
        let name = of.key(id);
        let lines = json!({ "index": { "_id": name } });
        if !self.known.insert(name) {
            return Ok(());
        }
        let text = serde_json::to_string(document).map_err(|error| self.server.wrong(error.to_string()))?;
        let lines = format!("{lines}\n{text}\n");
        self.bytes += lines.len();
        self.waiting.push((id.to_owned(), lines));
        if self.bytes < BULK_BYTES && self.waiting.len() < BULK_DOCUMENTS { Ok(()) } else { self.flush() }
    }

    /// Sends what waits, what finds no room again and again.
    fn flush(&mut self) -> Result<(), IndexError> {
        let mut rest = std::mem::take(&mut self.waiting);
        (self.bytes, self.sent) = (0, self.sent + rest.len() as u64);
        let mut wait = FIRST_WAIT;
        for retry in 0.. {
            if rest.is_empty() {
                break;
            }
            let body: String = rest.iter().map(|(_, lines)| lines.as_str()).collect();
            let path = format!("{}/_bulk", self.index);
            let why = match self.server.request(Method::POST, &path, Some((Body::Lines, body.into_bytes()))) {
                Err(failure) if failure.is_passing() => failure.reason,
                Err(failure) => return Err(self.server.error(failure)),
                Ok(answer) => {
                    let why;
                    (rest, why) = self.refused(rest, &answer)?;
                    why
                }
            };
            if retry == RETRIES && !rest.is_empty() {
                return Err(self.server.wrong(format!(
                    "{} documents were refused {RETRIES} times: {why}; the index is what it was",
                    rest.len()
                )));
            }
            if !rest.is_empty() {
                std::thread::sleep(wait);
                wait *= 2;
            }
        }
        Ok(())
    }

    /// Those of some documents that are to be sent again, and why.
    fn refused(
        &self,
        sent: Vec<(String, String)>,
        answer: &Value,
    ) -> Result<(Vec<(String, String)>, String), IndexError> {
        let items = answer["items"].as_array().filter(|items| items.len() == sent.len());
        let items =
            items.ok_or_else(|| self.server.wrong("answers a bulk upload with other items".to_owned()))?;
        let (mut again, mut why) = (Vec::new(), String::new());
        let (mut bad, mut first) = (0, None);
        for (document, item) in sent.into_iter().zip(items) {
            let item = &item["index"];
            match item["status"].as_u64() {
                Some(200..=299) => {}
                Some(429 | 503) => {
                    why = cause(&item["error"]);
                    again.push(document);
                }
                _ => {
                    bad += 1;
                    first = first.or(Some((document.0, cause(&item["error"]))));
                }
            }
        }
        match first {
            None => Ok((again, why)),
            Some((id, why)) => Err(self.server.wrong(format!(
                "refuses {bad} of {} documents, first that of {id}: {why}; the index is what it was",
                items.len()
            ))),
        }
    }
}

/// Removes an index that will not be in force.
fn discard(server: &Server, index: &str) {
    if let Err(left) = server.request(Method::DELETE, index, None) {
        tracing::warn!(index, why = left.reason, "left behind; a later update removes it");
    }
}

/// Moves the alias from the old version to the new one, which is removed where that is refused.
fn put_in_force(server: &Server, old: Option<&str>, new: &str) -> Result<(), IndexError> {
    let name = &server.address.name;
    let busy = || IndexError::Busy { path: server.address.to_string().into() };
    let mut actions = Vec::new();
    if let Some(old) = old {
        actions.push(json!({ "remove": { "index": old, "alias": name, "must_exist": true } }));
    }
    actions.push(json!({ "add": { "index": new, "alias": name } }));
    let moved = |actions: &Value| {
        let body = json!({ "actions": actions }).to_string().into_bytes();
        server.request(Method::POST, "_aliases", Some((Body::Json, body)))
    };
    if let Err(failure) = moved(&json!(actions)) {
        // Without an answer it may be done all the same, now or soon: then the index must stay.
        if failure.status == 0 || failure.status >= 500 {
            let now = server.state();
            return match now {
                Ok(Some((index, _))) if index == new => Ok(()),
                _ => Err(server.wrong(format!(
                    "{}; whether the new version {new} is in force is not known, nothing is lost: run it again",
                    failure.reason
                ))),
            };
        }
        discard(server, new);
        // Another update was faster.
        let faster = failure.is_missing() && old.is_some();
        return Err(if faster { busy() } else { server.error(failure) });
    }
    if old.is_some() {
        return Ok(());
    }
    match server.request(Method::GET, &format!("_alias/{name}"), None) {
        // Of two first versions neither is in force; to run one of them again is safe.
        Ok(holders) if holders.as_object().is_some_and(|holders| holders.len() > 1) => {
            moved(&json!([{ "remove": { "index": new, "alias": name } }])).map_err(|f| server.error(f))?;
            discard(server, new);
            Err(busy())
        }
        Ok(_) => Ok(()),
        Err(failure) => {
            tracing::warn!(
                why = failure.reason,
                "it is not known whether another first version is in force too"
            );
            Ok(())
        }
    }
}

/// Removes the versions before the last, which is kept for questions under way, and what updates have left behind that
/// broke off long ago. What cannot be removed is left to the next update.
fn remove_old(server: &Server, old: Option<&str>, new: &str) {
    let name = &server.address.name;
    let path = format!("{name}-v*/_settings/index.creation_date");
    let settings = match server.request(Method::GET, &path, None) {
        Ok(settings) => settings,
        Err(failure) => return tracing::warn!(why = failure.reason, "old versions stay"),
    };
    let created =
        |index: &Value| -> Option<u64> { index["settings"]["index"]["creation_date"].as_str()?.parse().ok() };
    let now = created(&settings[new]).unwrap_or(0);
    for (index, about) in settings.as_object().into_iter().flatten() {
        let Some(number) = version(name, index).filter(|_| index != new && Some(index.as_str()) != old)
        else {
            continue;
        };
        let before = old.and_then(|old| version(name, old)).is_some_and(|old| number < old);
        let abandoned = created(about).is_some_and(|then| now.saturating_sub(then) > ABANDONED);
        if (before || abandoned)
            && let Err(failure) = server.request(Method::DELETE, index, None)
        {
            tracing::warn!(index, why = failure.reason, "an old version stays");
        }
    }
}

/// The number of a version of ours, by its index's name.
fn version(name: &str, index: &str) -> Option<u64> {
    let (digits, mark) = index.strip_prefix(name)?.strip_prefix("-v")?.split_once('-')?;
    let fits = digits.len() >= 6 && mark.len() == 8 && mark.bytes().all(|byte| byte.is_ascii_hexdigit());
    (fits && digits.bytes().all(|byte| byte.is_ascii_digit())).then(|| digits.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_versions_are_known_as_such() {
        assert_eq!(version("shop", "shop-v000012-0badcafe"), Some(12));
        assert_eq!(version("shop", "shop-v1000000-0badcafe"), Some(1_000_000));
        for other in [
            "shop",
            "shop-v000012",
            "shop-v000012-0badcaf",
            "shop-v12-0badcafe",
            "shop-v2-v000012-0badcafe",
            "shop-v000012-v000001-0badcafe",
            "shop-x-v000012-0badcafe",
            "workshop-v000012-0badcafe",
        ] {
            assert_eq!(version("shop", other), None, "{other}");
        }
    }
}
