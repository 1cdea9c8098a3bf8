//! Takes JSON Lines into the database: one transaction, which becomes a version when it ends.
//!
//! Records are first written as they come, in batches, so that memory holds a batch however large the catalog is; those
//! that changed are marked `dirty`. Then what follows from them is made anew for the marked ones only: a product's
//! passages, the terms, the statistics of the terms that were touched, the vectors of texts that have none.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use rust_stemmers::{Algorithm, Stemmer};
use tokio::runtime::Runtime;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row};

use super::connect::{Server, reason};
use super::query::{amount, attribute, number};
use super::schema::{self, columns};
use crate::assistant::index::lexical::counts;
use crate::assistant::index::lines::{BadLine, Kind, Record};
use crate::assistant::index::store::key;
use crate::assistant::index::{IndexError, MAX_ATTRIBUTE_VECTORS, Progress, Report, fields, passages, read};
use crate::assistant::source::{Passage, Product, Source};
use crate::embed::Embed;

/// Records written at a time.
const BATCH: usize = 2000;
/// Texts embedded and written at a time.
const EMBED_BATCH: i64 = 256;
/// Of the lock that keeps others from building in the same database; any number that is ours.
const LOCK: i64 = 0x6d69_6c6c_7261_6365;

/// Takes files into the index at an address, which is made where there is none: as
/// [`index::update`](crate::assistant::index::update) does for a folder. Not to be called on a runtime's thread.
///
/// # Errors
/// Where a file cannot be read or the server does not do what it should; the index is then what it was.
pub fn update(
    place: &str,
    files: &[(Kind, PathBuf)],
    encoder: Option<&dyn Embed>,
    progress: &mut dyn FnMut(Progress),
    bad: &mut dyn FnMut(&BadLine),
) -> Result<Report, IndexError> {
    let session = Session::open(Server::parse(place)?)?;
    let mut batch = Batch::default();
    let mut report = read(files, progress, bad, &mut |record| {
        batch.take(record);
        if batch.len() < BATCH { Ok(()) } else { session.write(std::mem::take(&mut batch)) }
    })?;
    session.write(batch)?;
    report.orphans = session.forget_orphans()?;
    while session.refresh_products()? {}
    while session.refresh_passages()? {}
    for (kind, table, fields) in TABLES {
        session.count(kind, table, fields)?;
    }
    report.embedded = session.embed(encoder, progress)?;
    let count = |condition: &str| -> Result<usize, IndexError> {
        let rows = session.rows(&format!("SELECT count(*) FROM millrace.{condition}"), &[])?;
        Ok(rows.first().map_or(0, |row| row.get::<_, i64>(0)) as usize)
    };
    (report.products, report.passages) = (count("products")?, count("passages WHERE given")?);
    report.version = session.commit(encoder.map(Embed::id))?;
    Ok(report)
}

const TABLES: [(&str, &str, usize); 2] =
    [("product", "products", fields::PRODUCT.len()), ("passage", "passages", fields::PASSAGE.len())];

/// What a batch of lines leaves of each record: the last word on it, `None` where it is gone.
#[derive(Default)]
struct Batch {
    products: BTreeMap<String, Option<Product>>,
    passages: BTreeMap<String, Option<Passage>>,
}

impl Batch {
    fn take(&mut self, record: Record) {
        match record {
            Record::Product(product) => drop(self.products.insert(product.id.clone(), Some(*product))),
            Record::Passage(passage) => drop(self.passages.insert(passage.id.clone(), Some(passage))),
            Record::DeleteProduct(id) => drop(self.products.insert(id, None)),
            Record::DeletePassage(id) => drop(self.passages.insert(id, None)),
        }
    }

    fn len(&self) -> usize {
        self.products.len() + self.passages.len()
    }
}

/// A transaction under way. Dropped before [`commit`](Self::commit), it leaves nothing.
struct Session {
    runtime: Runtime,
    client: Client,
    server: Server,
}

type Parameters<'a> = &'a [&'a (dyn ToSql + Sync)];

impl Session {
    fn open(server: Server) -> Result<Session, IndexError> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.map_err(|error| server.error(error.to_string()))?;
        let client = runtime.block_on(server.connect()).map_err(|error| server.error(reason(&error)))?;
        let session = Session { runtime, client, server };
        session.batch("SET client_min_messages = warning; BEGIN; SET LOCAL statement_timeout = 0")?;
        let rows = session.rows("SELECT pg_try_advisory_xact_lock($1)", &[&LOCK])?;
        if !rows.first().is_some_and(|row| row.get(0)) {
            return Err(IndexError::Busy { path: session.server.to_string().into() });
        }
        let exists = session.rows(schema::EXISTS, &[])?;
        if exists.first().is_some_and(|row| row.get(0)) {
            let state = session.rows(schema::STATE, &[])?;
            state.first().map_or(Ok(()), |state| schema::check(state.get(0), &session.server))?;
        }
        session.batch(&schema::create())?;
        for (kind, ..) in TABLES {
            session.batch(&format!(
                "CREATE TEMP TABLE touched_{kind} (term text COLLATE \"C\") ON COMMIT DROP"
            ))?;
        }
        Ok(session)
    }

    fn batch(&self, sql: &str) -> Result<(), IndexError> {
        let done = self.runtime.block_on(self.client.batch_execute(sql));
        done.map_err(|error| self.server.error(reason(&error)))
    }

    fn rows(&self, sql: &str, parameters: Parameters<'_>) -> Result<Vec<Row>, IndexError> {
        let rows = self.runtime.block_on(self.client.query(sql, parameters));
        rows.map_err(|error| self.server.error(reason(&error)))
    }

    fn run(&self, sql: &str, parameters: Parameters<'_>) -> Result<u64, IndexError> {
        let done = self.runtime.block_on(self.client.execute(sql, parameters));
        done.map_err(|error| self.server.error(reason(&error)))
    }

    /// Deletes documents by a condition, and their terms, which it notes as touched. Rows: one for each document,
    /// whether it was given.
    fn delete(
        &self,
        kind: &str,
        table: &str,
        condition: &str,
        parameters: Parameters<'_>,
    ) -> Result<Vec<Row>, IndexError> {
        let given = if kind == "passage" { "given" } else { "true AS given" };
        let sql = format!(
            "WITH gone AS (DELETE FROM millrace.{table} d WHERE {condition} RETURNING id, {given}),
             words AS (DELETE FROM millrace.{kind}_postings p USING gone WHERE p.document = gone.id RETURNING term),
             noted AS (INSERT INTO touched_{kind} SELECT DISTINCT term FROM words)
             SELECT given FROM gone"
        );
        self.rows(&sql, parameters)
    }

    /// Writes the records of a batch.
    fn write(&self, batch: Batch) -> Result<(), IndexError> {
        for (kind, table, gone) in
            [("product", "products", gone(&batch.products)), ("passage", "passages", gone(&batch.passages))]
        {
            if !gone.is_empty() {
                self.delete(kind, table, "d.id = ANY($1)", &[&gone])?;
            }
        }
        self.write_products(&batch.products.into_values().flatten().collect::<Vec<_>>())?;
        self.write_passages(&batch.passages.into_values().flatten().collect::<Vec<_>>(), true)
    }

    fn write_products(&self, products: &[Product]) -> Result<(), IndexError> {
        if products.is_empty() {
            return Ok(());
        }
        let column = |each: &dyn Fn(&Product) -> String| products.iter().map(each).collect::<Vec<String>>();
        let ids = column(&|product| product.id.clone());
        let records = self.records(products)?;
        let titles = column(&|product| product.title.clone());
        let categories = column(&|product| array(product.categories.iter().map(|name| name.to_lowercase())));
        let attributes =
            column(&|product| array(product.attributes.iter().map(|(name, value)| attribute(name, value))));
        let price = |dear: bool| -> Vec<Option<i64>> {
            let range = products.iter().map(|product| product.price_range.as_ref());
            range.map(|range| range.map(|r| amount(if dear { r.max.amount } else { r.min.amount }))).collect()
        };
        let (cheapest, dearest) = (price(false), price(true));
        let embedded: Vec<Vec<u8>> =
            products.iter().map(|product| key(&passages::product_text(product)).to_vec()).collect();
        self.run(
            "INSERT INTO millrace.products
                 (id, record, title, categories, attributes, price_min, price_max, embedded, dirty)
             SELECT id, record, title, categories::text[], attributes::text[], price_min, price_max, embedded, true
             FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::bigint[], $7::bigint[], $8::bytea[])
                 new (id, record, title, categories, attributes, price_min, price_max, embedded)
             ON CONFLICT (id) DO UPDATE SET record = excluded.record, title = excluded.title,
                 categories = excluded.categories, attributes = excluded.attributes,
                 price_min = excluded.price_min, price_max = excluded.price_max, embedded = excluded.embedded,
                 dirty = true
             WHERE products.record <> excluded.record",
            &[&ids, &records, &titles, &categories, &attributes, &cheapest, &dearest, &embedded],
        )?;
        Ok(())
    }

    fn write_passages(&self, new: &[Passage], given: bool) -> Result<(), IndexError> {
        if new.is_empty() {
            return Ok(());
        }
        let ids: Vec<&str> = new.iter().map(|passage| passage.id.as_str()).collect();
        let records = self.records(new)?;
        let products: Vec<Option<&str>> = new.iter().map(|passage| passage.product.as_deref()).collect();
        let sources: Vec<i16> = new.iter().map(|passage| number(passage.source)).collect();
        let embedded: Vec<Vec<u8>> =
            new.iter().map(|passage| key(&passages::embedded_text(passage)).to_vec()).collect();
        let answers: Vec<Option<Vec<u8>>> =
            new.iter().map(|passage| Some(key(passages::answer_text(passage)?).to_vec())).collect();
        self.run(
            "INSERT INTO millrace.passages (id, record, product, source, given, embedded, answer, dirty)
             SELECT id, record, product, source, $7, embedded, answer, true
             FROM unnest($1::text[], $2::text[], $3::text[], $4::smallint[], $5::bytea[], $6::bytea[])
                 new (id, record, product, source, embedded, answer)
             ON CONFLICT (id) DO UPDATE SET record = excluded.record, product = excluded.product,
                 source = excluded.source, given = excluded.given, embedded = excluded.embedded,
                 answer = excluded.answer, dirty = true
             WHERE passages.record <> excluded.record",
            &[&ids, &records, &products, &sources, &embedded, &answers, &given],
        )?;
        Ok(())
    }

    fn records<T: serde::Serialize>(&self, records: &[T]) -> Result<Vec<String>, IndexError> {
        let text =
            |record| serde_json::to_string(record).map_err(|error| self.server.error(error.to_string()));
        records.iter().map(text).collect()
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, record: &str) -> Result<T, IndexError> {
        serde_json::from_str(record).map_err(|error| self.server.error(format!("a bad record: {error}")))
    }

    /// Deletes passages of products that are not there. Returns how many were given as records.
    fn forget_orphans(&self) -> Result<usize, IndexError> {
        let absent = "d.product IS NOT NULL AND NOT EXISTS
            (SELECT FROM millrace.products p WHERE p.id = d.product)";
        let gone = self.delete("passage", "passages", absent, &[])?;
        Ok(gone.iter().filter(|row| row.get(0)).count())
    }

    /// Makes anew what follows from some changed products. Returns whether there were any.
    fn refresh_products(&self) -> Result<bool, IndexError> {
        let sql = format!("SELECT record FROM millrace.products WHERE dirty ORDER BY id LIMIT {BATCH}");
        let rows = self.rows(&sql, &[])?;
        let products: Vec<Product> =
            rows.iter().map(|row| self.parse(row.get(0))).collect::<Result<_, _>>()?;
        if products.is_empty() {
            return Ok(false);
        }
        let ids: Vec<&str> = products.iter().map(|product| product.id.as_str()).collect();
        let of_products: BTreeMap<String, Passage> = products
            .iter()
            .flat_map(passages::of_product)
            .map(|passage| (passage.id.clone(), passage))
            .collect();
        let kept: Vec<&str> = of_products.keys().map(String::as_str).collect();
        let stale = "d.product = ANY($1) AND NOT d.given AND d.id NOT IN (SELECT unnest($2::text[]))";
        self.delete("passage", "passages", stale, &[&ids, &kept])?;
        self.write_passages(&of_products.into_values().collect::<Vec<_>>(), false)?;
        // The title of a product is a field of its passages.
        let sql = "UPDATE millrace.passages SET dirty = true WHERE product = ANY($1) AND NOT dirty";
        self.run(sql, &[&ids])?;
        let documents: Vec<(&str, Vec<String>)> = products
            .iter()
            .map(|product| (product.id.as_str(), fields::of_product(product).to_vec()))
            .collect();
        self.post(TABLES[0], &documents)?;
        Ok(true)
    }

    /// Makes anew the terms of some changed passages. Returns whether there were any.
    fn refresh_passages(&self) -> Result<bool, IndexError> {
        let sql = format!(
            "SELECT d.record, coalesce(p.title, '') FROM millrace.passages d
             LEFT JOIN millrace.products p ON p.id = d.product WHERE d.dirty ORDER BY d.id LIMIT {BATCH}"
        );
        let rows = self.rows(&sql, &[])?;
        let all: Vec<(Passage, &str)> = rows
            .iter()
            .map(|row| Ok((self.parse(row.get(0))?, row.get(1))))
            .collect::<Result<_, IndexError>>()?;
        let documents: Vec<(&str, Vec<String>)> = all
            .iter()
            .map(|(passage, title)| {
                (passage.id.as_str(), fields::of_passage(passage, title).map(str::to_owned).to_vec())
            })
            .collect();
        if !documents.is_empty() {
            self.post(TABLES[1], &documents)?;
        }
        Ok(!documents.is_empty())
    }

    /// Writes the terms of documents, given by their fields.
    fn post(&self, of: (&str, &str, usize), documents: &[(&str, Vec<String>)]) -> Result<(), IndexError> {
        let (kind, table, fields) = of;
        let ids: Vec<&str> = documents.iter().map(|(id, _)| *id).collect();
        self.run(
            &format!(
                "WITH words AS (DELETE FROM millrace.{kind}_postings WHERE document = ANY($1) RETURNING term)
                 INSERT INTO touched_{kind} SELECT DISTINCT term FROM words"
            ),
            &[&ids],
        )?;
        let stemmer = Stemmer::create(Algorithm::English);
        let (mut terms, mut holders, mut touched) = (Vec::new(), Vec::new(), BTreeSet::new());
        let (mut found, mut lengths) = (vec![Vec::new(); fields], vec![Vec::new(); fields]);
        for (id, texts) in documents {
            let (of_terms, of_fields) = counts(&stemmer, texts);
            for (term, of_fields) in of_terms {
                found.iter_mut().zip(of_fields).for_each(|(column, count)| column.push(i32::from(count)));
                terms.push(term.clone());
                holders.push(*id);
                touched.insert(term);
            }
            lengths.iter_mut().zip(of_fields).for_each(|(column, length)| column.push(length as i32));
        }
        let arrays = |first: usize| {
            (0..fields).map(|field| format!("${}::integer[]", first + field)).collect::<Vec<_>>().join(", ")
        };
        let names = |name: &str| columns(name, fields, |name| name);
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&terms, &holders];
        parameters.extend(found.iter().map(|column| column as &(dyn ToSql + Sync)));
        let sql = format!(
            "INSERT INTO millrace.{kind}_postings (term, document, {counts})
             SELECT * FROM unnest($1::text[], $2::text[], {arrays})",
            counts = names("count"),
            arrays = arrays(3),
        );
        self.run(&sql, &parameters)?;
        let mut parameters: Vec<&(dyn ToSql + Sync)> = vec![&ids];
        parameters.extend(lengths.iter().map(|column| column as &(dyn ToSql + Sync)));
        let sql = format!(
            "UPDATE millrace.{table} d SET dirty = false, {set}
             FROM unnest($1::text[], {arrays}) new (id, {lengths}) WHERE d.id = new.id",
            set = columns("length", fields, |name| format!("{name} = new.{name}")),
            lengths = names("length"),
            arrays = arrays(2),
        );
        self.run(&sql, &parameters)?;
        let touched: Vec<String> = touched.into_iter().collect();
        self.run(&format!("INSERT INTO touched_{kind} SELECT unnest($1::text[])"), &[&touched])?;
        Ok(())
    }

    /// Counts anew: documents of the terms that were touched, words of all documents.
    fn count(&self, kind: &str, table: &str, fields: usize) -> Result<(), IndexError> {
        self.batch(&format!(
            "ANALYZE touched_{kind};
             ANALYZE millrace.{kind}_postings;
             WITH counted AS (
                 SELECT touched.term, count(p.document) AS documents
                 FROM (SELECT DISTINCT term FROM touched_{kind}) touched
                 LEFT JOIN millrace.{kind}_postings p ON p.term = touched.term GROUP BY touched.term
             ), gone AS (
                 DELETE FROM millrace.{kind}_terms t USING counted WHERE t.term = counted.term AND counted.documents = 0
             )
             INSERT INTO millrace.{kind}_terms SELECT term, documents FROM counted WHERE documents > 0
             ON CONFLICT (term) DO UPDATE SET documents = excluded.documents;
             DELETE FROM millrace.{kind}_totals;
             INSERT INTO millrace.{kind}_totals SELECT count(*), {sums} FROM millrace.{table};
             ANALYZE millrace.{table};
             ANALYZE millrace.{kind}_terms;",
            sums = columns("length", fields, |name| format!("coalesce(sum({name}), 0)")),
        ))
    }

    /// Embeds the texts that have no vector, and forgets the vectors of texts that are gone.
    fn embed(
        &self,
        encoder: Option<&dyn Embed>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<usize, IndexError> {
        let before = self.rows(schema::STATE, &[])?;
        let before: Option<String> = before.first().and_then(|state| state.get(2));
        if before.as_deref() != encoder.map(Embed::id) {
            self.batch("DELETE FROM millrace.embeddings")?;
        }
        let Some(encoder) = encoder else { return Ok(0) };
        let attribute = number(Source::Attribute);
        let rows = self.rows(
            "SELECT count(DISTINCT embedded) FROM millrace.passages WHERE source = $1",
            &[&attribute],
        )?;
        let attributes: i64 = rows.first().map_or(0, |row| row.get(0));
        let mut wanted = "true".to_owned();
        if attributes as usize > MAX_ATTRIBUTE_VECTORS {
            tracing::warn!(
                attributes,
                most = MAX_ATTRIBUTE_VECTORS,
                "attributes are too many to embed; they are found by their words alone"
            );
            wanted = format!("d.source <> {attribute}");
        }
        self.batch(&format!(
            "DELETE FROM millrace.embeddings e
             WHERE NOT EXISTS (SELECT FROM millrace.products d WHERE d.embedded = e.text)
             AND NOT EXISTS (SELECT FROM millrace.passages d WHERE d.embedded = e.text AND {wanted})
             AND NOT EXISTS (SELECT FROM millrace.passages d WHERE d.answer = e.text);
             CREATE TEMP TABLE missing ON COMMIT DROP AS
             SELECT record, part, row_number() OVER (ORDER BY length(record), embedded) AS number FROM (
                 SELECT DISTINCT ON (embedded) embedded, record, part FROM (
                     SELECT d.embedded, d.record, 'product' AS part FROM millrace.products d
                     UNION ALL SELECT d.embedded, d.record, 'passage' FROM millrace.passages d WHERE {wanted}
                     UNION ALL SELECT d.answer, d.record, 'answer' FROM millrace.passages d WHERE d.answer IS NOT NULL
                 ) every WHERE NOT EXISTS (SELECT FROM millrace.embeddings e WHERE e.text = every.embedded)
             ) lacking;
             CREATE INDEX ON missing (number)"
        ))?;
        let total: i64 = self.rows("SELECT count(*) FROM missing", &[])?.first().map_or(0, |row| row.get(0));
        for done in (0..total).step_by(EMBED_BATCH as usize) {
            progress(Progress::Embedding(done as u64, total as u64));
            let sql = "SELECT record, part FROM missing WHERE number > $1 AND number <= $2";
            let mut texts = Vec::new();
            for row in self.rows(sql, &[&done, &(done + EMBED_BATCH)])? {
                texts.push(match row.get(1) {
                    "product" => passages::product_text(&self.parse(row.get(0))?),
                    "passage" => passages::embedded_text(&self.parse(row.get(0))?),
                    _ => passages::answer_text(&self.parse(row.get(0))?).unwrap_or_default().to_owned(),
                });
            }
            let vectors = encoder.embed(&texts.iter().map(String::as_str).collect::<Vec<_>>())?;
            let keys: Vec<Vec<u8>> = texts.iter().map(|text| key(text).to_vec()).collect();
            let vectors: Vec<String> = vectors.iter().map(|vector| schema::vector(vector)).collect();
            self.run(
                "INSERT INTO millrace.embeddings SELECT text, embedding::vector
                 FROM unnest($1::bytea[], $2::text[]) new (text, embedding)",
                &[&keys, &vectors],
            )?;
        }
        progress(Progress::Embedding(total as u64, total as u64));
        self.batch("ANALYZE millrace.embeddings")?;
        Ok(total as usize)
    }

    /// Puts the version in force. Returns its name.
    fn commit(&self, encoder: Option<&str>) -> Result<String, IndexError> {
        let sql = "UPDATE millrace.state SET version = version + 1, encoder = $1 RETURNING version";
        let rows = self.rows(sql, &[&encoder])?;
        self.batch("COMMIT")?;
        Ok(schema::version(rows.first().map_or(0, |row| row.get(0))))
    }
}

fn gone<T>(records: &BTreeMap<String, Option<T>>) -> Vec<String> {
    records.iter().filter(|(_, record)| record.is_none()).map(|(id, _)| id.clone()).collect()
}

/// An array in PostgreSQL's notation.
fn array(items: impl Iterator<Item = String>) -> String {
    let items: Vec<String> =
        items.map(|item| format!("\"{}\"", item.replace('\\', "\\\\").replace('"', "\\\""))).collect();
    format!("{{{}}}", items.join(","))
}
