//! The tables.
//!
//! ```text
//! state        one row: format, version, encoder
//! products     what the catalog says, with what filters compare in columns of its own
//! passages     what can be quoted: given as records, or cut out of a product
//! *_postings   for each term and document, how often it is in each field
//! *_terms      for each term, in how many documents it is
//! *_totals     one row: documents, words in each field
//! embeddings   vectors by the hash of their text; equal texts have one
//! ```

use std::fmt::Write;

use super::connect::Server;
use crate::assistant::index::IndexError;
use crate::assistant::index::fields;

/// Changes with the tables, and with whatever is computed when a record is written: the terms of a text, the fields of
/// a document, the passages of a product.
const FORMAT: i32 = 2;

pub(super) const EXISTS: &str = "SELECT to_regclass('millrace.state') IS NOT NULL";
pub(super) const STATE: &str = "SELECT format, version, encoder FROM millrace.state";

/// Fails for an index of another format.
pub(super) fn check(found: i32, server: &Server) -> Result<(), IndexError> {
    if found == FORMAT {
        return Ok(());
    }
    Err(server.error(format!(
        "holds an index of format {found}, and this version reads format {FORMAT}: run DROP SCHEMA millrace CASCADE \
         there, then millrace index --catalog FILE --reviews FILE --qa FILE --output with this address"
    )))
}

/// The name of a version.
pub(super) fn version(number: i64) -> String {
    format!("v{number:06}")
}

/// A vector in pgvector's notation.
pub(super) fn vector(floats: &[f32]) -> String {
    let mut text = String::from("[");
    for (i, x) in floats.iter().enumerate() {
        let _ = write!(text, "{}{x}", if i > 0 { "," } else { "" });
    }
    text + "]"
}

/// Columns `x1, x2, …`, one for each field.
pub(super) fn columns(name: &str, fields: usize, each: impl Fn(String) -> String) -> String {
    (1..=fields).map(|field| each(format!("{name}{field}"))).collect::<Vec<_>>().join(", ")
}

/// Makes what is not there.
pub(super) fn create() -> String {
    let mut sql = format!(
        r#"
CREATE EXTENSION IF NOT EXISTS vector;
CREATE SCHEMA IF NOT EXISTS millrace;
CREATE TABLE IF NOT EXISTS millrace.state (
    one boolean PRIMARY KEY DEFAULT true CHECK (one),
    format integer NOT NULL,
    version bigint NOT NULL,
    encoder text
);
INSERT INTO millrace.state (format, version) VALUES ({FORMAT}, 0) ON CONFLICT DO NOTHING;
CREATE TABLE IF NOT EXISTS millrace.products (
    id text COLLATE "C" PRIMARY KEY,
    record text NOT NULL,
    title text NOT NULL,
    categories text[] NOT NULL,
    attributes text[] NOT NULL,
    price_min bigint,
    price_max bigint,
    embedded bytea NOT NULL,
    dirty boolean NOT NULL,
    {product_lengths}
);
CREATE TABLE IF NOT EXISTS millrace.passages (
    id text COLLATE "C" PRIMARY KEY,
    record text NOT NULL,
    product text COLLATE "C",
    source smallint NOT NULL,
    given boolean NOT NULL,
    embedded bytea NOT NULL,
    answer bytea,
    dirty boolean NOT NULL,
    {passage_lengths}
);
CREATE INDEX IF NOT EXISTS passages_product ON millrace.passages (product);
CREATE INDEX IF NOT EXISTS passages_answer ON millrace.passages (answer) WHERE answer IS NOT NULL;
CREATE TABLE IF NOT EXISTS millrace.embeddings (text bytea PRIMARY KEY, embedding vector NOT NULL);
"#,
        product_lengths =
            columns("length", fields::PRODUCT.len(), |name| format!("{name} integer NOT NULL DEFAULT 0")),
        passage_lengths =
            columns("length", fields::PASSAGE.len(), |name| format!("{name} integer NOT NULL DEFAULT 0")),
    );
    for (kind, table, fields) in
        [("product", "products", fields::PRODUCT.len()), ("passage", "passages", fields::PASSAGE.len())]
    {
        let counts = columns("count", fields, |name| format!("{name} integer NOT NULL"));
        let words = columns("words", fields, |name| format!("{name} bigint NOT NULL"));
        let _ = write!(
            sql,
            r#"
CREATE INDEX IF NOT EXISTS {table}_dirty ON millrace.{table} (id) WHERE dirty;
CREATE INDEX IF NOT EXISTS {table}_embedded ON millrace.{table} (embedded);
CREATE TABLE IF NOT EXISTS millrace.{kind}_postings (
    term text COLLATE "C" NOT NULL,
    document text COLLATE "C" NOT NULL,
    {counts},
    PRIMARY KEY (term, document)
);
CREATE INDEX IF NOT EXISTS {kind}_postings_document ON millrace.{kind}_postings (document);
CREATE TABLE IF NOT EXISTS millrace.{kind}_terms (term text COLLATE "C" PRIMARY KEY, documents bigint NOT NULL);
CREATE TABLE IF NOT EXISTS millrace.{kind}_totals (documents bigint NOT NULL, {words});
"#
        );
    }
    sql
}
