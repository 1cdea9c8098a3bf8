//! Settings and mapping of an index, and documents by them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Answer, Document, object, refuse};

#[derive(Clone)]
pub(crate) enum Field {
    Keyword,
    Long,
    Boolean,
    /// Not looked into.
    Opaque,
    Text(Text),
    Vector(usize),
}

#[derive(Clone)]
pub(crate) struct Text {
    /// Whether terms come with their frequencies.
    pub(crate) weighed: bool,
    /// Of the similarity.
    pub k1: f32,
}

#[derive(Clone)]
pub(crate) struct Mapping {
    /// As it was sent.
    pub(crate) body: Value,
    pub(crate) fields: BTreeMap<String, Field>,
    pub(crate) shards: usize,
}

fn setting<T>(name: &str) -> Answer<T> {
    let why = format!(
        "unknown setting [{name}] please check that any required plugins are installed, or check the breaking changes documentation for removed settings"
    );
    refuse(400, "illegal_argument_exception", why)
}

fn wrong<T>(why: impl Into<String>) -> Answer<T> {
    refuse(400, "mapper_parsing_exception", why)
}

fn known<'a>(map: &'a Map<String, Value>, name: &str) -> &'a Value {
    map.get(name).unwrap_or(&Value::Null)
}

impl Mapping {
    /// From the body of a request that makes an index.
    pub(crate) fn parse(body: &Value) -> Answer<Mapping> {
        let body = object(body, "create index", &["settings", "mappings"])?;
        let settings = object(known(body, "settings"), "settings", &["index", "analysis"])
            .or_else(|_| setting("index.?"))?;
        let keys = ["number_of_shards", "number_of_replicas", "refresh_interval", "knn", "similarity"];
        let index =
            object(known(settings, "index"), "index", &keys).or_else(|refusal| setting(&refusal.reason))?;
        let number = |name: &str, default: u64| known(index, name).as_u64().unwrap_or(default);
        let shards = number("number_of_shards", 1);
        let interval = known(index, "refresh_interval").as_str().unwrap_or("1s");
        if !(1..=1024).contains(&shards)
            || number("number_of_replicas", 1) > 100
            || !["-1", "1s"].contains(&interval)
        {
            return refuse(400, "illegal_argument_exception", "Failed to parse a setting");
        }
        let similarities = similarities(known(index, "similarity"))?;
        let analyzers = analyzers(known(settings, "analysis"))?;
        let mappings = object(known(body, "mappings"), "mappings", &["dynamic", "_meta", "properties"])?;
        if known(mappings, "dynamic") != "strict" || !known(mappings, "_meta").is_object() {
            return wrong("this double takes strict mappings with _meta");
        }
        let Some(properties) = known(mappings, "properties").as_object() else {
            return wrong("Expected map for property [properties]");
        };
        let knn = known(index, "knn") == true;
        let mut fields = BTreeMap::new();
        for (name, about) in properties {
            fields.insert(name.clone(), field(name, about, &similarities, &analyzers, knn)?);
        }
        Ok(Mapping { body: Value::Object(mappings.clone()), fields, shards: shards as usize })
    }

    /// A document as it is written.
    pub(crate) fn document(&self, id: &str, source: Value) -> Answer<Document> {
        let Some(given) = source.as_object() else { return wrong("failed to parse: no object") };
        let mut terms = BTreeMap::new();
        for (name, value) in given {
            let Some(field) = self.fields.get(name) else {
                let why = format!(
                    "mapping set to strict, dynamic introduction of [{name}] within [_doc] is not allowed"
                );
                return refuse(400, "strict_dynamic_mapping_exception", why);
            };
            let bad = || wrong(format!("failed to parse field [{name}] in document with id '{id}'"));
            match field {
                Field::Keyword => {
                    let one = std::slice::from_ref(value);
                    for value in value.as_array().map_or(one, Vec::as_slice) {
                        let Some(text) = value.as_str() else { return bad() };
                        if text.len() > 32_766 {
                            let why =
                                format!("Document contains at least one immense term in field=\"{name}\"");
                            return refuse(400, "illegal_argument_exception", why);
                        }
                    }
                }
                Field::Long if value.as_i64().is_none() => return bad(),
                Field::Boolean if !value.is_boolean() => return bad(),
                Field::Opaque if !value.is_object() => {
                    return wrong(format!(
                        "object mapping for [{name}] tried to parse field [{name}] as object, but found a concrete value"
                    ));
                }
                Field::Vector(dimension) => {
                    let Some(vector) = value.as_array() else { return bad() };
                    if !vector.iter().all(Value::is_number) {
                        return bad();
                    }
                    if vector.len() != *dimension {
                        return wrong(format!(
                            "failed to parse: Vector dimension mismatch. Expected: {dimension}, Given: {}",
                            vector.len()
                        ));
                    }
                }
                Field::Text(text) => {
                    let Some(value) = value.as_str() else { return bad() };
                    terms.insert(name.clone(), analyzed(value, text.weighed)?);
                }
                Field::Long | Field::Boolean | Field::Opaque => {}
            }
        }
        // As murmur3 of the id does, for tests: spreads, and is the same each time.
        let hash =
            id.bytes().fold(17usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(usize::from(byte)));
        Ok(Document { source, shard: hash % self.shards, terms })
    }
}

/// How often a text has each term. Tokens are what stands between white space, 255 letters at most.
fn analyzed(text: &str, weighed: bool) -> Answer<BTreeMap<String, u32>> {
    let (mut terms, mut length) = (BTreeMap::new(), 0u64);
    for token in text.split_whitespace() {
        if token.chars().count() > 255 {
            return wrong("this double splits no tokens");
        }
        let (term, frequency) = match token.split_once('|').filter(|_| weighed) {
            None => (token, 1),
            Some((term, digits)) => match digits.parse::<i32>() {
                Ok(frequency) if frequency >= 1 => (term, frequency as u32),
                _ => {
                    return refuse(
                        400,
                        "illegal_argument_exception",
                        format!("Invalid term frequency: {digits}"),
                    );
                }
            },
        };
        length += u64::from(frequency);
        *terms.entry(term.to_owned()).or_insert(0) += frequency;
    }
    match length <= i32::MAX as u64 {
        true => Ok(terms),
        false => refuse(400, "illegal_argument_exception", "too many tokens for field"),
    }
}

fn similarities(given: &Value) -> Answer<BTreeMap<String, f32>> {
    let mut all = BTreeMap::new();
    for (name, about) in given.as_object().into_iter().flatten() {
        let about =
            object(about, "similarity", &["type", "k1", "b", "discount_overlaps"]).or_else(|refusal| {
                refuse(
                    400,
                    "illegal_argument_exception",
                    format!("Unknown settings for similarity: {}", refusal.reason),
                )
            })?;
        let (k1, b) =
            (known(about, "k1").as_f64().unwrap_or(1.2), known(about, "b").as_f64().unwrap_or(0.75));
        if known(about, "type") != "BM25" || !(k1 >= 0.0 && (0.0..=1.0).contains(&b)) {
            return refuse(400, "illegal_argument_exception", "illegal similarity");
        }
        // There are no norms in what is tested, so lengths must not matter.
        if b != 0.0 {
            return wrong("this double has no lengths: b must be 0");
        }
        all.insert(name.clone(), k1 as f32);
    }
    Ok(all)
}

/// Whether an analyzer reads frequencies, by its name.
fn analyzers(given: &Value) -> Answer<BTreeMap<String, bool>> {
    let mut all = BTreeMap::from([("whitespace".to_owned(), false)]);
    if given.is_null() {
        return Ok(all);
    }
    let given = object(given, "analysis", &["analyzer"]).or_else(|refusal| setting(&refusal.reason))?;
    for (name, about) in known(given, "analyzer").as_object().into_iter().flatten() {
        let about = object(about, "analyzer", &["type", "tokenizer", "filter"])?;
        if known(about, "type") != "custom" || known(about, "tokenizer") != "whitespace" {
            let why = format!("Custom Analyzer [{name}] failed to find tokenizer");
            return refuse(400, "illegal_argument_exception", why);
        }
        let filters = known(about, "filter").as_array().cloned().unwrap_or_default();
        if filters.iter().any(|filter| filter != "delimited_term_freq") {
            let why = format!("Custom Analyzer [{name}] failed to find filter");
            return refuse(400, "illegal_argument_exception", why);
        }
        all.insert(name.clone(), !filters.is_empty());
    }
    Ok(all)
}

fn field(
    name: &str,
    about: &Value,
    similarities: &BTreeMap<String, f32>,
    analyzers: &BTreeMap<String, bool>,
    knn: bool,
) -> Answer<Field> {
    let kind = about["type"].as_str().unwrap_or("object");
    let allowed: &[&str] = match kind {
        "keyword" => &["type", "ignore_above", "doc_values", "index"],
        "long" | "boolean" => &["type", "doc_values", "index"],
        "object" => &["type", "enabled"],
        "text" => &["type", "analyzer", "search_analyzer", "similarity", "index_options", "norms"],
        "knn_vector" => &["type", "dimension", "method"],
        _ => return wrong(format!("No handler for type [{kind}] declared on field [{name}]")),
    };
    let about = object(about, name, allowed).or_else(|refusal| {
        wrong(format!("unknown parameter on mapper [{name}] of type [{kind}]: {}", refusal.reason))
    })?;
    match kind {
        "keyword" if about.len() == 1 => Ok(Field::Keyword),
        "long" if about.len() == 1 => Ok(Field::Long),
        "boolean" if about.len() == 1 => Ok(Field::Boolean),
        "object" if known(about, "enabled") == false => Ok(Field::Opaque),
        "text" => {
            let analyzer = |key: &str| match known(about, key).as_str().map(|name| analyzers.get(name)) {
                Some(Some(weighed)) => Ok(*weighed),
                _ => wrong(format!("analyzer [{}] has not been configured in mappings", known(about, key))),
            };
            let weighed = analyzer("analyzer")?;
            if analyzer("search_analyzer")? {
                return wrong("a query's terms have no frequencies");
            }
            let k1 = known(about, "similarity").as_str().and_then(|name| similarities.get(name));
            let Some(k1) = k1 else {
                return wrong(format!(
                    "Unknown Similarity type {} for field [{name}]",
                    known(about, "similarity")
                ));
            };
            if weighed && known(about, "index_options") != "freqs" {
                let why = "cannot index positions while using custom TermFrequencyAttribute";
                return refuse(400, "illegal_argument_exception", why);
            }
            if known(about, "norms") != false {
                return wrong("this double has no norms");
            }
            Ok(Field::Text(Text { weighed, k1: *k1 }))
        }
        "knn_vector" => {
            let Some(dimension) = known(about, "dimension").as_u64().filter(|d| (1..=16_000).contains(d))
            else {
                return wrong(format!("Dimension value must be from 1 to 16000 for vector: {name}"));
            };
            let method =
                object(known(about, "method"), "method", &["name", "engine", "space_type", "parameters"])?;
            let space = known(method, "space_type").as_str().unwrap_or("l2");
            if known(method, "name") != "hnsw"
                || known(method, "engine") != "lucene"
                || space != "innerproduct"
            {
                return wrong("this double knows hnsw of lucene with innerproduct");
            }
            match knn {
                true => Ok(Field::Vector(dimension as usize)),
                false => wrong("index.knn must be true for a method"),
            }
        }
        _ => wrong(format!("this double knows no such [{kind}]")),
    }
}
