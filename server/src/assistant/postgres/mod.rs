//! [`Retrieve`] over PostgreSQL with pgvector: for catalogs that one machine's memory does not hold, and for several
//! servers that share one index.
//!
//! The order is that of the embedded index. PostgreSQL's own text search ranks in its own way, so words are not left to
//! it: terms are found by the same code (`lexical`) when a record is written ([`update`]), and kept with their counts in
//! tables; BM25F is then computed by the statement that also scans the vectors exactly and fuses both lists (`query`). The
//! passages that it finds are put in order by the same code too (`retrieve::rank`).
//! A version is one transaction: whoever reads sees it whole or not at all.

mod connect;
mod query;
mod schema;
mod tls;
mod update;

use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use rustc_hash::FxHashMap;
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::index::IndexError;
use super::index::lexical::{content_words, query_terms};
use super::planner::{Group, Probe};
use super::retrieve::Signals;
use super::retrieve::rank::{Candidate, RANKED, all_signals, rank};
use super::source::{
    Evidence, Filters, Passage, Product, Retrieval, Retrieve, RetrieveError, RetrieveRequest, RetrieveResult,
    Source,
};
use crate::embed::Embed;
use connect::{Pool, Server, unavailable};
use query::{Searched, number, search};
pub use update::update;

/// How often it is asked whether the index has changed.
const POLL: Duration = Duration::from_secs(2);

/// Whether an index's place is an address of PostgreSQL rather than a folder.
pub fn is_postgres(place: &str) -> bool {
    place.starts_with("postgres://") || place.starts_with("postgresql://")
}

/// Whether an address can be used, as far as can be told without asking.
///
/// # Errors
/// What is wrong with it.
pub fn check(place: &str) -> Result<(), IndexError> {
    Server::parse(place).map(drop)
}

/// The address without its user, password and options: for messages.
pub fn shown(place: &str) -> String {
    let config = tls::options(place).ok().and_then(|(place, _)| place.parse().ok());
    config.map_or_else(|| "postgres://…".to_owned(), |config| connect::shown(&config))
}

/// An index in a database; clones share its connections.
#[derive(Clone)]
pub struct PostgresIndex(Arc<Inner>);

struct Inner {
    pool: Pool,
    version: Mutex<String>,
    encoder: Option<Arc<dyn Embed>>,
}

impl std::fmt::Debug for PostgresIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PostgresIndex {} at {}", self.version(), self.0.pool.server())
    }
}

impl PostgresIndex {
    /// Connects to the index at an address (`postgres://user@host/database`). A password that is not in it is taken
    /// from `PGPASSWORD` or the file that `PGPASSFILE` names. Meaning is searched where the index has vectors and
    /// `encoder` is the one that made them. Needs a Tokio runtime, here and later.
    ///
    /// # Errors
    /// Where the server does not answer, it holds no index or one of another format, or vectors of another encoder.
    pub async fn open(place: &str, encoder: Option<Arc<dyn Embed>>) -> Result<PostgresIndex, IndexError> {
        let pool = Pool::new(Server::parse(place)?);
        let failed = |error: RetrieveError| match error {
            RetrieveError::Unavailable { reason, .. } => pool.server().error(reason),
            error => pool.server().error(error.to_string()),
        };
        let exists = pool.query(schema::EXISTS, &[]).await.map_err(failed)?;
        if !exists.first().is_some_and(|row| row.get(0)) {
            return Err(IndexError::Missing { path: shown(place).into() });
        }
        let rows = pool.query(schema::STATE, &[]).await.map_err(failed)?;
        let state = rows.first().ok_or_else(|| IndexError::Missing { path: shown(place).into() })?;
        schema::check(state.get(0), pool.server())?;
        let found: Option<String> = state.get(2);
        if let Some(encoder) = &encoder
            && found.as_deref() != Some(encoder.id())
        {
            let found = found.unwrap_or_else(|| "none".to_owned());
            return Err(IndexError::Encoder { found, wanted: encoder.id().to_owned() });
        }
        let version = Mutex::new(schema::version(state.get(1)));
        let inner = Arc::new(Inner { pool, version, encoder });
        tokio::spawn(watch(Arc::downgrade(&inner)));
        Ok(PostgresIndex(inner))
    }

    async fn search(&self, request: RetrieveRequest, of: Searched) -> Result<Vec<Row>, RetrieveError> {
        let RetrieveRequest { query, filters, limit } = request;
        let limit = match of {
            Searched::Passages if !query.trim().is_empty() => limit.max(RANKED),
            _ => limit,
        };
        let vector = self.0.embed(&query).await?;
        let statement = search(of, &filters, &query_terms(&query), &query, vector.as_deref(), limit);
        self.0.pool.query(&statement.text, &statement.parameters()).await
    }
}

impl PostgresIndex {
    /// The passages that the lists found, the first of them fused.
    async fn candidates(&self, request: RetrieveRequest) -> Result<Vec<Candidate>, RetrieveError> {
        let rows = self.search(request, Searched::Passages).await?;
        let candidate = |row: &Row| {
            let passage = read::<Passage>(row.get(0))?;
            Ok(Candidate { passage, words: row.get(2), meaning: row.get(3), answer: row.get(4) })
        };
        rows.iter().map(candidate).collect()
    }
}

impl Inner {
    /// The query's vector in pgvector's notation.
    async fn embed(&self, query: &str) -> Result<Option<String>, RetrieveError> {
        let (Some(encoder), false) = (self.encoder.clone(), query.trim().is_empty()) else { return Ok(None) };
        let query = query.to_owned();
        let embedded = tokio::task::spawn_blocking(move || encoder.embed(&[&query])).await;
        let vectors = embedded
            .map_err(|error| RetrieveError::Index(error.to_string()))?
            .map_err(|error| RetrieveError::Index(error.to_string()))?;
        Ok(vectors.first().map(|vector| schema::vector(vector)))
    }
}

/// Keeps the version up to date, as long as the index is in use: another process may build a new one.
async fn watch(index: Weak<Inner>) {
    loop {
        tokio::time::sleep(POLL).await;
        let Some(index) = index.upgrade() else { return };
        match index.pool.query(schema::STATE, &[]).await {
            Err(error) => tracing::warn!(%error, "the index's version"),
            Ok(rows) => {
                let Some(state) = rows.first() else { continue };
                let encoder: Option<String> = state.get(2);
                if let Some(own) = &index.encoder
                    && encoder.as_deref() != Some(own.id())
                {
                    tracing::error!("the index was rebuilt with another encoder: restart with that one");
                }
                *index.version.lock().unwrap_or_else(PoisonError::into_inner) = schema::version(state.get(1));
            }
        }
    }
}

fn read<T: serde::de::DeserializeOwned>(record: &str) -> Result<Arc<T>, RetrieveError> {
    serde_json::from_str(record).map(Arc::new).map_err(|error| unavailable(format!("a bad record: {error}")))
}

impl Retrieve for PostgresIndex {
    fn retrieve(&self, request: RetrieveRequest) -> RetrieveResult<'_, Retrieval> {
        Box::pin(async move {
            if request.query.trim().is_empty() {
                let rows = self.search(request, Searched::Passages).await?;
                let evidence = rows
                    .iter()
                    .map(|row| Ok(Evidence { passage: read::<Passage>(row.get(0))?, score: row.get(1) }));
                return Ok(Retrieval { evidence: evidence.collect::<Result<_, RetrieveError>>()? });
            }
            let (query, limit) = (request.query.clone(), request.limit);
            let candidates = self.candidates(request).await?;
            Ok(Retrieval { evidence: rank(&query, candidates, limit) })
        })
    }

    fn signals(&self, request: RetrieveRequest) -> RetrieveResult<'_, Vec<(Arc<Passage>, Signals)>> {
        Box::pin(async move {
            if request.query.trim().is_empty() {
                return Ok(Vec::new());
            }
            let query = request.query.clone();
            let candidates = self.candidates(request).await?;
            let signals = all_signals(&query, &candidates);
            Ok(candidates.into_iter().map(|candidate| candidate.passage).zip(signals).collect())
        })
    }

    fn search_products(&self, request: RetrieveRequest) -> RetrieveResult<'_, Vec<(Arc<Product>, f32)>> {
        Box::pin(async move {
            let filters = Filters { sources: Vec::new(), ..request.filters };
            let rows = self.search(RetrieveRequest { filters, ..request }, Searched::Products).await?;
            rows.iter().map(|row| Ok((read::<Product>(row.get(0))?, row.get(1)))).collect()
        })
    }

    fn products(&self, ids: Vec<String>) -> RetrieveResult<'_, Vec<Arc<Product>>> {
        Box::pin(async move {
            let sql = "SELECT id, record FROM millrace.products WHERE id = ANY($1)";
            let mut found = FxHashMap::default();
            for row in self.0.pool.query(sql, &[&ids]).await? {
                found.insert(row.get::<_, String>(0), read::<Product>(row.get(1))?);
            }
            Ok(ids.iter().filter_map(|id| found.get(id).cloned()).collect())
        })
    }

    fn passages(&self, product: String, sources: Vec<Source>) -> RetrieveResult<'_, Vec<Arc<Passage>>> {
        Box::pin(async move {
            let sources: Vec<i16> = match sources.is_empty() {
                true => Source::ALL.into_iter().map(number).collect(),
                false => sources.into_iter().map(number).collect(),
            };
            let sql =
                "SELECT record FROM millrace.passages WHERE product = $1 AND source = ANY($2) ORDER BY id";
            let parameters: [&(dyn ToSql + Sync); 2] = [&product, &sources];
            self.0.pool.query(sql, &parameters).await?.iter().map(|row| read(row.get(0))).collect()
        })
    }

    fn probe(&self, query: String, products: Vec<String>) -> RetrieveResult<'_, Option<Vec<Probe>>> {
        Box::pin(async move {
            let wanted = content_words(&query);
            let vector = self.0.embed(&query).await?;
            let statement = query::probe(&products, &wanted, vector.as_deref());
            let rows = self.0.pool.query(&statement.text, &statement.parameters()).await?;
            let probe = |(number, group): (usize, Group)| {
                let row = rows.iter().find(|row| row.get::<_, i32>(0) == number as i32);
                Probe {
                    group,
                    passages: row.map_or(0, |row| row.get::<_, i64>(1) as usize),
                    similarity: row.and_then(|row| row.get(2)),
                    overlap: row.map_or(0.0, |row| row.get::<_, i64>(3) as f32 / wanted.len().max(1) as f32),
                }
            };
            Ok(Some(Group::OF_PRODUCTS.into_iter().enumerate().map(probe).collect()))
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
    fn messages_show_no_credentials() {
        assert_eq!(shown("postgres://me:secret@db:5432/shop?sslmode=require"), "postgres://db/shop");
        assert_eq!(shown("postgres://me:secret@db/shop?sslmode=verify-full"), "postgres://db/shop");
        assert_eq!(shown("postgresql://me:sec%40ret@a,b/shop"), "postgres://a,b/shop");
        assert_eq!(shown("postgres:///shop?host=/run/pg&password=secret"), "postgres:///run/pg/shop");
        assert_eq!(shown("postgres://me:secret@db:port/shop"), "postgres://…");
        let server = Server::parse("postgres://me:secret@db/shop").unwrap();
        assert!(!format!("{server}").contains("secret"));
        let error = Server::parse("postgres://me:secret@db:99999999/shop").map(drop).unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
