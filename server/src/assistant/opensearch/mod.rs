//! [`Retrieve`] over an OpenSearch cluster: for catalogs that outgrow one machine, in a shop that runs one already.
//!
//! A version is an index of its own, `NAME-v000002-…`; the alias `NAME` points to the one in force, and moving it is the
//! one step by which an update is seen ([`update`]). Answers are those of the embedded index as far as the cluster's own
//! means go: words by the same BM25F, whose frequencies are put into the index (`schema`); meaning by k-NN over HNSW
//! graphs, which may miss a neighbour where the embedded index scans exactly; both fused here (`query`). The
//! passages found are then ranked by the code of the embedded index (`retrieve::rank`).
//!
//! It is tested against a double that holds to OpenSearch's documentation, never yet against a cluster.

mod address;
mod client;
mod query;
mod schema;
mod update;

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustc_hash::{FxHashMap, FxHashSet};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use ureq::http::Method;

use super::index::IndexError;
use super::index::lexical::query_terms;
use super::retrieve::rank::{Candidate, RANKED, all_signals, rank};
use super::retrieve::{DEPTH, MEANING_OF_PASSAGES, MEANING_OF_PRODUCTS, Signals};
use super::source::{
    Evidence, Filters, Passage, Product, Retrieval, Retrieve, RetrieveError, RetrieveRequest, RetrieveResult,
    Source,
};
use crate::embed::Embed;
pub(crate) use address::is_opensearch;
use client::{ASK_TIMEOUT, Body, Server};
use query::{MOST_RESULTS, by_meaning, by_words, conditions, fused, hits, listed};
use schema::{FORMAT, Meta, Searched};
pub use update::update;

/// How often it is asked whether the index has changed.
const POLL: Duration = Duration::from_secs(2);
/// Passages of a product that are read at a time.
const PAGE: usize = 1000;

/// Whether an address can be used, as far as can be told without asking.
///
/// # Errors
/// What is wrong with it; no credentials are in the message.
pub(crate) fn check(place: &str) -> Result<(), String> {
    address::Address::parse(place).map(drop)
}

/// The address without credentials and options: for messages.
pub(crate) fn shown(place: &str) -> String {
    address::Address::parse(place).map_or_else(|_| "opensearch://…".to_owned(), |address| address.to_string())
}

/// The index in force and what is known of it; `None` where there is none.
fn current(server: &Server, answer: Value) -> Result<Option<(String, Meta)>, IndexError> {
    let wrong = |reason: String| IndexError::Server { server: server.address.to_string(), reason };
    let name = &server.address.name;
    let indexes = answer.as_object().ok_or_else(|| wrong("a mapping that is no object".to_owned()))?;
    let (index, mapping) = match (indexes.len(), indexes.iter().next()) {
        (1, Some(only)) => only,
        (0, _) | (_, None) => return Ok(None),
        (count, _) => {
            return Err(wrong(format!(
                "the alias {name} points to {count} indexes; remove it from all but the newest with POST /_aliases"
            )));
        }
    };
    let meta = Meta::of(&mapping["mappings"]).ok_or_else(|| {
        wrong(format!("the index {index} is not one of Millrace's: take another name than {name}"))
    })?;
    if meta.format != FORMAT {
        return Err(wrong(format!(
            "holds an index of format {}, and this version reads format {FORMAT}: build it anew under another name, or \
             delete {index} there, then run millrace index --catalog FILE --reviews FILE --qa FILE --output with this \
             address",
            meta.format
        )));
    }
    Ok(Some((index.clone(), meta)))
}

/// An index in a cluster; clones share its connections.
#[derive(Clone)]
pub struct OpenSearchIndex(Arc<Inner>);

struct Inner {
    server: Arc<Server>,
    version: Mutex<String>,
    encoder: Option<Arc<dyn Embed>>,
}

impl std::fmt::Debug for OpenSearchIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OpenSearchIndex {} at {}", self.version(), self.0.server.address)
    }
}

impl OpenSearchIndex {
    /// The index at an address, `opensearch://user@host:9200/NAME` or, without encryption, `opensearch+http://…`. What
    /// is not in it is taken from `OPENSEARCH_USERNAME` and `OPENSEARCH_PASSWORD`. Meaning is searched where the index
    /// has vectors and `encoder` is the one that made them. Needs a Tokio runtime, here and later.
    ///
    /// # Errors
    /// Where the cluster does not answer, it holds no index or one of another format, or vectors of another encoder.
    pub async fn open(place: &str, encoder: Option<Arc<dyn Embed>>) -> Result<OpenSearchIndex, IndexError> {
        let server = Arc::new(Server::open(place)?);
        let found = {
            let server = server.clone();
            let asked = tokio::task::spawn_blocking(move || server.state()).await;
            asked
                .map_err(|error| IndexError::Server { server: shown(place), reason: error.to_string() })??
        };
        let (_, meta) =
            found.ok_or_else(|| IndexError::Missing { path: server.address.to_string().into() })?;
        let found = meta.encoder.as_ref().map(|(id, _)| id.as_str());
        if let Some(encoder) = &encoder
            && found != Some(encoder.id())
        {
            let found = found.unwrap_or("none").to_owned();
            return Err(IndexError::Encoder { found, wanted: encoder.id().to_owned() });
        }
        let inner = Arc::new(Inner { server, version: Mutex::new(meta.name()), encoder });
        tokio::spawn(watch(Arc::downgrade(&inner)));
        Ok(OpenSearchIndex(inner))
    }

    /// The best by words and meaning.
    async fn search(
        &self,
        of: Searched,
        query: &str,
        filters: &Filters,
        limit: usize,
    ) -> Result<Search, RetrieveError> {
        let conditions = conditions(of, filters);
        let server = &self.0.server;
        let depth = DEPTH.max(limit);
        let words = by_words(of, &conditions, &query_terms(query), depth);
        let has_words = words.is_some();
        let mut searches: Vec<_> = words.into_iter().collect();
        let vector = self.0.embed(query.to_owned()).await?;
        searches.extend(vector.as_ref().map(|vector| by_meaning(of, &conditions, vector, depth)));
        let mut found = Search { names: Vec::new(), words: FxHashMap::default(), vector };
        if searches.is_empty() {
            return Ok(found);
        }
        let mut lines = String::new();
        for (mut header, body) in searches {
            // Nobody waits for longer, so it is not to go on there.
            header["cancel_after_time_interval"] = json!(format!("{}s", ASK_TIMEOUT.as_secs()));
            lines += &format!("{header}\n{body}\n");
        }
        let path = format!("{}/_msearch", server.address.name);
        let answer = server.ask(Method::POST, path, Some((Body::Lines, lines.into_bytes()))).await?;
        let responses = answer["responses"].as_array().ok_or_else(|| server.unavailable("no responses"))?;
        let meaning = match of {
            Searched::Product => MEANING_OF_PRODUCTS,
            Searched::Passage => MEANING_OF_PASSAGES,
        };
        let weights = has_words.then_some(1.0).into_iter().chain([meaning]);
        let lists: Result<Vec<(f32, &Vec<Value>)>, String> =
            weights.zip(responses).map(|(weight, response)| Ok((weight, hits(response)?))).collect();
        let lists = lists.map_err(|why| server.unavailable(why))?;
        for hit in lists.first().filter(|_| has_words).into_iter().flat_map(|(_, list)| list.iter()) {
            if let (Some(name), Some(score)) = (hit["_id"].as_str(), hit["sort"][0].as_f64()) {
                found.words.insert(name.to_owned(), score as f32);
            }
        }
        found.names = fused(&lists, limit).map_err(|why| server.unavailable(why))?;
        Ok(found)
    }

    /// The passages that the lists found, the first of them fused.
    async fn candidates(&self, request: &RetrieveRequest) -> Result<Vec<Candidate>, RetrieveError> {
        let RetrieveRequest { query, filters, limit } = request;
        let found = self.search(Searched::Passage, query, filters, (*limit).max(RANKED)).await?;
        let names: Vec<String> = found.names.iter().map(|(name, _)| name.clone()).collect();
        let parts = format!("record,answer,{}", Searched::Passage.vector());
        let documents = self.documents(names, &parts).await?;
        let near = |vector: &Value| {
            let (asked, vector) = (found.vector.as_ref()?, vector.as_array()?);
            let products = asked.iter().zip(vector).map(|(a, b)| Some(a * b.as_f64()? as f32));
            products.sum::<Option<f32>>().filter(|_| asked.len() == vector.len())
        };
        let candidates = found.names.iter().filter_map(|(name, _)| Some((name, documents.get(name)?)));
        let candidate = |(name, document): (&String, &Value)| {
            Ok(Candidate {
                passage: Arc::new(self.0.read(&document["record"])?),
                words: found.words.get(name).copied().unwrap_or_default(),
                meaning: near(&document[Searched::Passage.vector()]),
                answer: near(&document["answer"]["vector"]),
            })
        };
        candidates.map(candidate).collect()
    }

    /// Records by the names of their documents. What is gone since is left out.
    async fn records<T: DeserializeOwned>(
        &self,
        names: Vec<String>,
    ) -> Result<FxHashMap<String, Arc<T>>, RetrieveError> {
        let documents = self.documents(names, "record").await?;
        let record =
            |(name, document): (String, Value)| Ok((name, Arc::new(self.0.read(&document["record"])?)));
        documents.into_iter().map(record).collect()
    }

    /// Parts of documents by their names, the record among them. What is gone since is left out.
    async fn documents(
        &self,
        names: Vec<String>,
        parts: &str,
    ) -> Result<FxHashMap<String, Value>, RetrieveError> {
        let server = &self.0.server;
        let mut found = FxHashMap::default();
        for names in names.chunks(PAGE) {
            let path = format!("{}/_mget?_source_includes={parts}", server.address.name);
            let body = json!({ "ids": names }).to_string().into_bytes();
            let mut answer = server.ask(Method::POST, path, Some((Body::Json, body))).await?;
            let documents = answer["docs"].as_array_mut().ok_or_else(|| server.unavailable("no docs"))?;
            for document in documents {
                if document["error"].is_object() {
                    return Err(server.unavailable(client::cause(&document["error"])));
                }
                let Some(name) = document["_id"].as_str().filter(|_| document["found"] == true) else {
                    continue;
                };
                let name = name.to_owned();
                let source = document["_source"].take();
                if !source["record"].is_object() {
                    return Err(server.unavailable("a bad record: there is none"));
                }
                found.insert(name, source);
            }
        }
        Ok(found)
    }

    /// All that fulfil the conditions, by id, up to a number.
    async fn list<T: DeserializeOwned>(
        &self,
        conditions: &[Value],
        most: usize,
    ) -> Result<Vec<T>, RetrieveError> {
        let server = &self.0.server;
        let (mut records, mut after) = (Vec::new(), None::<Value>);
        while records.len() < most {
            let size = (most - records.len()).min(PAGE);
            let body = listed(conditions, size, json!(["record"]), after.as_ref()).to_string();
            let path = format!("{}/_search", server.address.name);
            let answer = server.ask(Method::POST, path, Some((Body::Json, body.into_bytes()))).await?;
            let page = hits(&answer).map_err(|why| server.unavailable(why))?;
            for hit in page {
                records.push(self.0.read(&hit["_source"]["record"])?);
            }
            after = page.last().map(|hit| hit["sort"].clone());
            if page.len() < size {
                break;
            }
        }
        Ok(records)
    }
}

/// What a search found.
struct Search {
    /// Names of documents with their scores, the best first.
    names: Vec<(String, f32)>,
    /// Scores by words, of those that have any.
    words: FxHashMap<String, f32>,
    vector: Option<Vec<f32>>,
}

impl Inner {
    async fn embed(&self, query: String) -> Result<Option<Vec<f32>>, RetrieveError> {
        let Some(encoder) = self.encoder.clone() else { return Ok(None) };
        let embedded = tokio::task::spawn_blocking(move || encoder.embed(&[&query])).await;
        let vectors = embedded
            .map_err(|error| RetrieveError::Index(error.to_string()))?
            .map_err(|error| RetrieveError::Index(error.to_string()))?;
        Ok(vectors.into_iter().next())
    }

    fn read<T: DeserializeOwned>(&self, record: &Value) -> Result<T, RetrieveError> {
        T::deserialize(record).map_err(|error| self.server.unavailable(format!("a bad record: {error}")))
    }
}

impl Server {
    /// The index in force, asked on this thread.
    fn state(&self) -> Result<Option<(String, Meta)>, IndexError> {
        match self.request(Method::GET, &format!("{}/_mapping", self.address.name), None) {
            Ok(answer) => current(self, answer),
            Err(failure) if failure.is_missing() => Ok(None),
            Err(failure) => Err(self.error(failure)),
        }
    }
}

/// Keeps the version up to date, as long as the index is in use: another process may build a new one.
async fn watch(index: Weak<Inner>) {
    loop {
        tokio::time::sleep(POLL).await;
        let Some(index) = index.upgrade() else { return };
        let server = index.server.clone();
        match tokio::task::spawn_blocking(move || server.state()).await {
            Err(error) => tracing::warn!(%error, "the index's version"),
            Ok(Err(error)) => tracing::warn!(%error, "the index's version"),
            Ok(Ok(None)) => tracing::warn!(server = %index.server.address, "the index is gone"),
            Ok(Ok(Some((_, meta)))) => {
                if let Some(own) = &index.encoder
                    && meta.encoder.as_ref().is_none_or(|(id, _)| id != own.id())
                {
                    tracing::error!("the index was rebuilt with another encoder: restart with that one");
                }
                *index.version.lock().unwrap_or_else(PoisonError::into_inner) = meta.name();
            }
        }
    }
}

impl Retrieve for OpenSearchIndex {
    fn retrieve(&self, request: RetrieveRequest) -> RetrieveResult<'_, Retrieval> {
        Box::pin(async move {
            let RetrieveRequest { query, filters, limit } = &request;
            if *limit == 0 {
                return Ok(Retrieval::default());
            }
            if query.trim().is_empty() {
                let found = self.list(&conditions(Searched::Passage, filters), *limit).await?;
                let evidence =
                    found.into_iter().map(|passage| Evidence { passage: Arc::new(passage), score: 0.0 });
                return Ok(Retrieval { evidence: evidence.collect() });
            }
            let candidates = self.candidates(&request).await?;
            Ok(Retrieval { evidence: rank(query, candidates, *limit) })
        })
    }

    fn signals(&self, request: RetrieveRequest) -> RetrieveResult<'_, Vec<(Arc<Passage>, Signals)>> {
        Box::pin(async move {
            if request.query.trim().is_empty() {
                return Ok(Vec::new());
            }
            let candidates = self.candidates(&request).await?;
            let signals = all_signals(&request.query, &candidates);
            Ok(candidates.into_iter().map(|candidate| candidate.passage).zip(signals).collect())
        })
    }

    fn search_products(&self, request: RetrieveRequest) -> RetrieveResult<'_, Vec<(Arc<Product>, f32)>> {
        Box::pin(async move {
            let RetrieveRequest { query, filters, limit } = &request;
            if *limit == 0 {
                return Ok(Vec::new());
            }
            if query.trim().is_empty() {
                let found = self.list(&conditions(Searched::Product, filters), *limit).await?;
                return Ok(found.into_iter().map(|product| (Arc::new(product), 0.0)).collect());
            }
            let found = self.search(Searched::Product, query, filters, *limit).await?.names;
            let names: Vec<String> = found.iter().map(|(name, _)| name.clone()).collect();
            let mut records = self.records(names).await?;
            Ok(found.iter().filter_map(|(name, score)| Some((records.remove(name)?, *score))).collect())
        })
    }

    fn products(&self, ids: Vec<String>) -> RetrieveResult<'_, Vec<Arc<Product>>> {
        Box::pin(async move {
            let keys: Vec<String> = ids.iter().map(|id| Searched::Product.key(id)).collect();
            let once: FxHashSet<&String> = keys.iter().collect();
            let found = self.records(once.into_iter().cloned().collect()).await?;
            Ok(keys.iter().filter_map(|key| found.get(key).cloned()).collect())
        })
    }

    fn passages(&self, product: String, sources: Vec<Source>) -> RetrieveResult<'_, Vec<Arc<Passage>>> {
        Box::pin(async move {
            let filters = Filters { products: vec![product], sources, ..Filters::default() };
            let mut conditions = conditions(Searched::Passage, &filters);
            // Not what speaks of all products.
            conditions.push(query::term("product", &filters.products[0]));
            let found = self.list(&conditions, MOST_RESULTS * 10).await?;
            Ok(found.into_iter().map(Arc::new).collect())
        })
    }

    fn version(&self) -> String {
        self.0.version.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_that_cannot_be_read_is_refused_with_what_to_do() {
        let server = Server::open("opensearch://me:geheim@host/shop").unwrap();
        let mapping = |format: u64| json!({ "mappings": { "_meta": { "millrace": { "format": format, "version": 3 } } } });
        let found = current(&server, json!({ "shop-v000003-0badcafe": mapping(FORMAT) })).unwrap().unwrap();
        assert_eq!((found.0.as_str(), found.1.name().as_str()), ("shop-v000003-0badcafe", "v000003"));
        assert_eq!(current(&server, json!({})).unwrap(), None);
        for (answer, advice) in [
            (json!({ "a": mapping(FORMAT), "b": mapping(FORMAT) }), "remove it from all but the newest"),
            (json!({ "shop": { "mappings": {} } }), "take another name than shop"),
            (json!({ "shop-v000001-0badcafe": mapping(99) }), "millrace index --catalog"),
        ] {
            let error = current(&server, answer).unwrap_err().to_string();
            assert!(error.contains(advice) && error.contains("opensearch://host:9200/shop"), "{error}");
        }
    }
}
