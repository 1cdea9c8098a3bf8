//! The bodies of searches. A question is two of them, by words and by meaning, in one `_msearch`; their lists of ids are
//! fused here.
//!
//! OpenSearch can fuse them itself (query `hybrid` with a `score-ranker-processor`), but then documents with equal scores
//! come in the order of segments and shards, which changes from one version of the same data to the next and from one
//! copy to another, and the order would not be that of the other indexes. Fusing here takes one request all the same,
//! needs no pipeline that somebody else could change, and no plugin but k-NN.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::schema::{Searched, amount, attribute, keyword};
use crate::assistant::retrieve::fuse;
use crate::assistant::source::{Filters, Source};

/// Results of a search that OpenSearch gives at most (`index.max_result_window`), and the largest `k`.
pub(super) const MOST_RESULTS: usize = 10_000;
/// Words of a query: a match has a clause for each, of which 1,024 are allowed.
const MOST_TERMS: usize = 1_000;

/// What a document must fulfil.
pub(super) fn conditions(of: Searched, filters: &Filters) -> Vec<Value> {
    let Filters { products, categories, sources, price_min, price_max, attributes } = filters;
    let mut all = vec![term("kind", of.name())];
    let mut on_product = Vec::new();
    if !products.is_empty() {
        on_product.push(json!({ "terms": { "product": products } }));
    }
    if !categories.is_empty() {
        let lower: Vec<String> = categories.iter().map(|name| keyword(&name.to_lowercase())).collect();
        on_product.push(json!({ "terms": { "categories": lower } }));
    }
    if let Some(least) = price_min {
        on_product.push(json!({ "range": { "price_max": { "gte": amount(*least) } } }));
    }
    if let Some(most) = price_max {
        on_product.push(json!({ "range": { "price_min": { "lte": amount(*most) } } }));
    }
    on_product.extend(attributes.iter().map(|(name, value)| term("attributes", &attribute(name, value))));
    if of == Searched::Product {
        all.extend(on_product);
        return all;
    }
    if !sources.is_empty() {
        let names: Vec<&str> = sources.iter().map(|source| source.name()).collect();
        all.push(json!({ "terms": { "source": names } }));
    }
    if on_product.is_empty() || !sources.contains(&Source::Policy) {
        all.extend(on_product);
        return all;
    }
    // A policy without a product speaks of all.
    let general = json!({ "bool": {
        "filter": [term("source", Source::Policy.name())],
        "must_not": [{ "exists": { "field": "product" } }],
    }});
    all.push(json!({ "bool": {
        "should": [{ "bool": { "filter": on_product } }, general],
        "minimum_should_match": 1,
    }}));
    all
}

pub(super) fn term(field: &str, value: &str) -> Value {
    json!({ "term": { field: { "value": value } } })
}

/// By words: the header and the body. `None` where the query has none.
pub(super) fn by_words(
    of: Searched,
    conditions: &[Value],
    terms: &BTreeSet<String>,
    depth: usize,
) -> Option<(Value, Value)> {
    if terms.is_empty() {
        return None;
    }
    let words: Vec<&str> = terms.iter().take(MOST_TERMS).map(String::as_str).collect();
    let query = json!({ "bool": {
        "must": [{ "match": { of.words(): { "query": words.join(" "), "operator": "or" } } }],
        "filter": conditions,
    }});
    // How rare a word is, over all shards: else equal documents score differently on different ones.
    Some((json!({ "search_type": "dfs_query_then_fetch" }), ranked(query, depth)))
}

/// By meaning: the header and the body.
pub(super) fn by_meaning(of: Searched, conditions: &[Value], vector: &[f32], depth: usize) -> (Value, Value) {
    let knn = json!({ "knn": { of.vector(): {
        "vector": vector,
        "k": depth.min(MOST_RESULTS),
        "filter": { "bool": { "filter": conditions } },
    }}});
    (json!({}), ranked(knn, depth))
}

/// The best by score, equal ones by id; of documents only what is needed to fuse.
fn ranked(query: Value, depth: usize) -> Value {
    json!({
        "size": depth.min(MOST_RESULTS),
        "_source": false,
        "track_total_hits": false,
        "query": query,
        "sort": [{ "_score": { "order": "desc" } }, { "id": { "order": "asc" } }],
    })
}

/// All that fulfil the conditions, by id, from behind an id on.
pub(super) fn listed(conditions: &[Value], size: usize, source: Value, after: Option<&Value>) -> Value {
    let mut body = json!({
        "size": size.min(MOST_RESULTS),
        "_source": source,
        "track_total_hits": false,
        "query": { "bool": { "filter": conditions } },
        "sort": [{ "id": { "order": "asc" } }],
    });
    if let Some(after) = after {
        body["search_after"] = after.clone();
    }
    body
}

/// What a search found. `Err` says why it is not all of it.
pub(super) fn hits(response: &Value) -> Result<&Vec<Value>, String> {
    if response["error"].is_object() || response["error"].is_string() {
        return Err(super::client::cause(&response["error"]));
    }
    if response["timed_out"].as_bool() == Some(true) {
        return Err("the search took too long there".to_owned());
    }
    let shards = &response["_shards"];
    if let Some(failed) = shards["failed"].as_u64().filter(|failed| *failed > 0) {
        let why = super::client::cause(&shards["failures"][0]["reason"]);
        return Err(format!("{failed} of {} shards failed: {why}", shards["total"]));
    }
    response["hits"]["hits"].as_array().ok_or_else(|| "an answer without hits".to_owned())
}

/// Lists of hits, each with what it counts, as one: the names of documents with their scores, the best first, equal ones
/// by id.
pub(super) fn fused(lists: &[(f32, &Vec<Value>)], limit: usize) -> Result<Vec<(String, f32)>, String> {
    let mut names: BTreeMap<&str, &str> = BTreeMap::new();
    let mut ids: Vec<(f32, Vec<&str>)> = Vec::new();
    for (weight, hits) in lists {
        let mut list = Vec::new();
        for hit in *hits {
            let (Some(id), Some(name)) = (hit["sort"][1].as_str(), hit["_id"].as_str()) else {
                return Err("a hit without its id".to_owned());
            };
            names.insert(id, name);
            list.push(id);
        }
        ids.push((*weight, list));
    }
    // Numbered in the order of ids, by which ties are broken.
    let numbers: BTreeMap<&str, u32> = names.keys().zip(0..).map(|(id, number)| (*id, number)).collect();
    let names: Vec<&str> = names.values().copied().collect();
    let ranked =
        ids.iter().map(|(weight, list)| (*weight, list.iter().map(|id| (numbers[id], 0.0)).collect()));
    let fused = fuse(&ranked.collect::<Vec<(f32, Vec<(u32, f32)>)>>(), limit);
    Ok(fused.into_iter().map(|(number, score)| (names[number as usize].to_owned(), score)).collect())
}
