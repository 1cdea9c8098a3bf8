//! The mapping of a version's index, and its documents.
//!
//! Words are ranked as the embedded index ranks them, by BM25F, though OpenSearch has BM25 for one field only: the part
//! of BM25F that a document has for a term, its frequency over the fields, weighted and normalised by their lengths, is
//! known when it is written. It is put into the index as the term's frequency, in units of 1/[`SCALE`]
//! (`hat|65536 wool|9362`, token filter `delimited_term_freq`). What is left to do for a query is
//! `idf · f / (f + k1)`: OpenSearch's own BM25 without norms, with `b` = 0 and `k1` in the same units.

use rust_stemmers::Stemmer;
use serde::Serialize;
use serde_json::{Value, json};

use super::address::Address;
use crate::assistant::index::fields;
use crate::assistant::index::lexical::{B, K1, counts};
use crate::assistant::index::store::key;
use crate::assistant::source::{Passage, Product, Source};

/// Changes with the mapping, and with whatever is computed when a record is written: the terms of a text, the fields of
/// a document, the passages of a product.
pub(super) const FORMAT: u64 = 2;
/// A frequency of one, in the index.
const SCALE: f32 = 65536.0;
/// Bytes of a text that is compared or sorted by; OpenSearch takes 32,766.
const MOST_KEYWORD: usize = 1000;

/// Products or passages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Searched {
    Product,
    Passage,
}

impl Searched {
    pub(super) fn name(self) -> &'static str {
        match self {
            Searched::Product => "product",
            Searched::Passage => "passage",
        }
    }

    /// The field with the words.
    pub(super) fn words(self) -> &'static str {
        match self {
            Searched::Product => "product_words",
            Searched::Passage => "passage_words",
        }
    }

    /// The field with the meaning.
    pub(super) fn vector(self) -> &'static str {
        match self {
            Searched::Product => "product_vector",
            Searched::Passage => "passage_vector",
        }
    }

    /// The name of a document in OpenSearch, which takes 512 bytes of it and no two of the same.
    pub(super) fn key(self, id: &str) -> String {
        hex(&key(&format!("{}/{id}", self.name())))
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What is kept with an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) format: u64,
    pub(super) version: u64,
    /// Which encoder made the vectors, and floats in one.
    pub(super) encoder: Option<(String, usize)>,
}

impl Meta {
    /// From a mapping; `None` where the index is not one of ours.
    pub(super) fn of(mappings: &Value) -> Option<Meta> {
        let meta = &mappings["_meta"]["millrace"];
        let encoder = meta["encoder"].as_str().map(str::to_owned);
        let dim = meta["dim"].as_u64().and_then(|dim| usize::try_from(dim).ok()).unwrap_or(0);
        Some(Meta {
            format: meta["format"].as_u64()?,
            version: meta["version"].as_u64()?,
            encoder: encoder.map(|id| (id, dim)),
        })
    }

    /// The name of the version.
    pub(super) fn name(&self) -> String {
        format!("v{:06}", self.version)
    }
}

/// The body that makes the index of a version.
pub(super) fn create(meta: &Meta, address: &Address) -> Value {
    let encoder = meta.encoder.as_ref();
    let mut index = json!({
        // Nothing is searched before all of it is there.
        "refresh_interval": "-1",
        "similarity": { "bm25f": { "type": "BM25", "k1": K1 * SCALE, "b": 0.0 } },
    });
    if encoder.is_some() {
        index["knn"] = json!(true);
    }
    for (name, number) in [("number_of_shards", address.shards), ("number_of_replicas", address.replicas)] {
        if let Some(number) = number {
            index[name] = json!(number);
        }
    }
    let words = json!({
        "type": "text",
        "analyzer": "weighed",
        "search_analyzer": "whitespace",
        "similarity": "bm25f",
        // Frequencies that are given allow no positions.
        "index_options": "freqs",
        "norms": false,
    });
    let mut properties = json!({
        "kind": { "type": "keyword" },
        "id": { "type": "keyword" },
        "product": { "type": "keyword" },
        "source": { "type": "keyword" },
        "given": { "type": "boolean" },
        "categories": { "type": "keyword" },
        "attributes": { "type": "keyword" },
        "price_min": { "type": "long" },
        "price_max": { "type": "long" },
        "record": { "type": "object", "enabled": false },
        // Read with a passage that was found, never searched.
        "answer": { "type": "object", "enabled": false },
        Searched::Product.words(): words,
        Searched::Passage.words(): words,
    });
    if let Some((_, dim)) = encoder {
        let vector = json!({
            "type": "knn_vector",
            "dimension": dim,
            "method": { "name": "hnsw", "engine": "lucene", "space_type": "innerproduct" },
        });
        properties[Searched::Product.vector()] = vector.clone();
        properties[Searched::Passage.vector()] = vector;
    }
    json!({
        "settings": {
            "index": index,
            "analysis": {
                "analyzer": {
                    "weighed": { "type": "custom", "tokenizer": "whitespace", "filter": ["delimited_term_freq"] },
                },
            },
        },
        "mappings": {
            "dynamic": "strict",
            "_meta": { "millrace": {
                "format": meta.format,
                "version": meta.version,
                "encoder": encoder.map(|(id, _)| id),
                "dim": encoder.map(|(_, dim)| dim),
            }},
            "properties": properties,
        },
    })
}

/// How often words are in the fields of all documents: what lengths are measured by.
#[derive(Clone, Debug)]
pub(super) struct Totals {
    documents: u64,
    words: Vec<u64>,
}

impl Totals {
    pub(super) fn new(fields: usize) -> Self {
        Totals { documents: 0, words: vec![0; fields] }
    }

    pub(super) fn add(&mut self, stemmer: &Stemmer, fields: &[String]) {
        self.documents += 1;
        let (_, lengths) = counts(stemmer, fields);
        self.words.iter_mut().zip(lengths).for_each(|(sum, length)| *sum += u64::from(length));
    }

    /// The terms of a document with their frequencies, as the index takes them.
    pub(super) fn weigh(&self, stemmer: &Stemmer, weights: &[f32], fields: &[String]) -> String {
        let (terms, lengths) = counts(stemmer, fields);
        let mut text = String::new();
        for (term, found) in terms {
            let mut frequency = 0.0;
            for (field, count) in found.iter().enumerate().filter(|(_, count)| **count > 0) {
                let mean = (self.words[field] as f32 / self.documents.max(1) as f32).max(1.0);
                frequency +=
                    weights[field] * f32::from(*count) / (1.0 - B + B * lengths[field] as f32 / mean);
            }
            let scaled = ((frequency * SCALE).round() as u32).max(1);
            if !text.is_empty() {
                text.push(' ');
            }
            text += &format!("{term}|{scaled}");
        }
        text
    }
}

/// A document. A passage has what filters ask of its product, since there are no joins.
#[derive(Serialize)]
pub(super) struct Document<'a> {
    kind: Searched,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    product: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<Source>,
    /// Whether it was given, or follows from a product.
    given: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    categories: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attributes: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    price_min: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    price_max: Option<i64>,
    record: Record<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    product_words: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    passage_words: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    product_vector: Option<&'a [f32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    passage_vector: Option<&'a [f32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<Answer<'a>>,
}

/// Of a passage without its title, where that is a text of its own.
#[derive(Serialize)]
struct Answer<'a> {
    vector: &'a [f32],
}

#[derive(Serialize)]
#[serde(untagged)]
enum Record<'a> {
    Product(&'a Product),
    Passage(&'a Passage),
}

impl<'a> Document<'a> {
    pub(super) fn of_product(product: &'a Product, words: String, vector: Option<&'a [f32]>) -> Self {
        Document {
            kind: Searched::Product,
            id: keyword(&product.id),
            product: Some(&product.id),
            source: None,
            given: true,
            categories: product.categories.iter().map(|name| keyword(&name.to_lowercase())).collect(),
            attributes: product.attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
            price_min: product.price_range.as_ref().map(|range| amount(range.min.amount)),
            price_max: product.price_range.as_ref().map(|range| amount(range.max.amount)),
            record: Record::Product(product),
            product_words: Some(words),
            passage_words: None,
            product_vector: vector,
            passage_vector: None,
            answer: None,
        }
    }

    /// Of a passage about `product`, which was given or follows from that.
    pub(super) fn of_passage(
        passage: &'a Passage,
        product: Option<&'a Product>,
        given: bool,
        words: String,
        vector: Option<&'a [f32]>,
        answer: Option<&'a [f32]>,
    ) -> Self {
        let of_product = product.map(|product| Document::of_product(product, String::new(), None));
        Document {
            kind: Searched::Passage,
            id: keyword(&passage.id),
            source: Some(passage.source),
            given,
            record: Record::Passage(passage),
            product_words: None,
            passage_words: Some(words),
            product_vector: None,
            passage_vector: vector,
            answer: answer.map(|vector| Answer { vector }),
            ..of_product.unwrap_or(Document {
                kind: Searched::Passage,
                id: String::new(),
                product: None,
                source: None,
                given,
                categories: Vec::new(),
                attributes: Vec::new(),
                price_min: None,
                price_max: None,
                record: Record::Passage(passage),
                product_words: None,
                passage_words: None,
                product_vector: None,
                passage_vector: None,
                answer: None,
            })
        }
    }
}

/// A text that is compared or sorted by: itself, unless it is longer than the index takes.
pub(super) fn keyword(text: &str) -> String {
    if text.len() <= MOST_KEYWORD {
        return text.to_owned();
    }
    let end = (0..=MOST_KEYWORD - 40).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    format!("{}…{}", &text[..end], hex(&key(text)))
}

/// An attribute as filters compare it.
pub(super) fn attribute(name: &str, value: &str) -> String {
    keyword(&format!("{}={}", name.to_lowercase().replace('=', "=="), value.to_lowercase()))
}

/// An amount as filters compare it.
pub(super) fn amount(minor: u64) -> i64 {
    i64::try_from(minor).unwrap_or(i64::MAX)
}

/// The weights of the fields that are searched.
pub(super) fn weights(of: Searched) -> &'static [f32] {
    match of {
        Searched::Product => &fields::PRODUCT,
        Searched::Passage => &fields::PASSAGE,
    }
}

#[cfg(test)]
mod tests {
    use rust_stemmers::Algorithm;

    use super::*;

    #[test]
    fn frequencies_are_those_of_bm25f() {
        let stemmer = Stemmer::create(Algorithm::English);
        let documents =
            [["wool hat".to_owned(), "a hat, warm".to_owned()], ["pan".to_owned(), String::new()]];
        let mut totals = Totals::new(2);
        documents.iter().for_each(|fields| totals.add(&stemmer, fields));
        let text = totals.weigh(&stemmer, &[2.0, 1.0], &documents[0]);
        let found: Vec<(&str, f32)> = text
            .split(' ')
            .map(|pair| pair.split_once('|').unwrap())
            .map(|(term, scaled)| (term, scaled.parse::<f32>().unwrap() / SCALE))
            .collect();
        // Fields have 1.5 words on average each.
        let (title, text) = (2.0 / (0.25 + 0.75 * 2.0 / 1.5), 1.0 / (0.25 + 0.75 * 3.0 / 1.5));
        let want = [("a", text), ("hat", title + text), ("warm", text), ("wool", title)];
        for ((term, frequency), (wanted, right)) in found.iter().zip(want) {
            assert!(
                *term == wanted && (frequency - right).abs() < 1e-4,
                "{term} {frequency}, not {wanted} {right}"
            );
        }
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn keywords_are_bounded_and_stay_apart() {
        let long = "é".repeat(600);
        let (a, b) = (keyword(&format!("{long}a")), keyword(&format!("{long}b")));
        assert!(a != b && a.len() <= MOST_KEYWORD && b.len() <= MOST_KEYWORD, "{} {}", a.len(), b.len());
        assert_ne!(attribute("a=b", "c"), attribute("a", "b=c"));
        assert_ne!(Searched::Product.key("x"), Searched::Passage.key("x"));
    }
}
