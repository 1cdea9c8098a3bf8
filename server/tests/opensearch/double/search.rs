//! Searches: the query DSL as far as it is documented and needed, over the documents that a refresh has shown.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::mapping::Field;
use super::{Answer, Document, Index, State, object, refuse};

/// Scores by document.
type Found<'a> = BTreeMap<&'a str, f32>;

/// What of a source is asked for.
pub(crate) fn source(source: &Value, wanted: Option<&Value>) -> Value {
    match wanted {
        Some(Value::Array(names)) => {
            let kept = source.as_object().into_iter().flatten();
            let kept = kept.filter(|(key, _)| names.iter().any(|name| name.as_str() == Some(key)));
            Value::Object(kept.map(|(key, value)| (key.clone(), value.clone())).collect::<Map<_, _>>())
        }
        _ => source.clone(),
    }
}

impl State {
    pub(crate) fn search(&self, name: &str, body: &Value, dfs: bool) -> Answer {
        let indexes = self.resolve(name)?;
        let [name] = indexes.as_slice() else { return refuse(400, "x", "this double searches one index") };
        let index = &self.indexes[name];
        let keys = ["size", "_source", "track_total_hits", "query", "sort", "search_after"];
        let body = object(body, "search", &keys)?;
        let size = body.get("size").map_or(Some(10), Value::as_u64);
        let Some(size) = size.filter(|size| *size <= 10_000) else {
            let why = "Result window is too large, from + size must be less than or equal to: [10000]";
            return refuse(400, "illegal_argument_exception", why);
        };
        let found = index.run(body.get("query").unwrap_or(&json!({ "match_all": {} })), dfs)?;
        let sort = index.sort(body.get("sort"))?;
        let mut hits: Vec<(&str, f32, Vec<Value>)> = found
            .into_iter()
            .map(|(id, score)| {
                let document = &index.seen[id];
                let key = |(field, _): &(String, bool)| match field.as_str() {
                    "_score" => json!(score),
                    field => document.source.get(field).cloned().unwrap_or(Value::Null),
                };
                (id, score, sort.iter().map(key).collect())
            })
            .collect();
        // What a sort leaves open comes in an order that is none: here, of names backwards.
        hits.sort_by(|a, b| compare(&a.2, &b.2, &sort).then(b.0.cmp(a.0)));
        if let Some(after) = body.get("search_after") {
            let Some(after) = after.as_array().filter(|after| after.len() == sort.len()) else {
                let why = "search_after has another number of values than sort has fields";
                return refuse(400, "illegal_argument_exception", why);
            };
            hits.retain(|(_, _, key)| compare(key, after, &sort) == Ordering::Greater);
        }
        let scored = sort.iter().any(|(field, _)| field == "_score");
        let hit = |(id, score, key): &(&str, f32, Vec<Value>)| {
            let mut hit =
                json!({ "_index": name, "_id": id, "_score": scored.then_some(score), "sort": key });
            if body.get("_source") != Some(&Value::Bool(false)) {
                hit["_source"] = source(&index.seen[*id].source, body.get("_source"));
            }
            hit
        };
        let hits: Vec<Value> = hits.iter().take(size as usize).map(hit).collect();
        let shards = index.mapping.shards;
        Ok(json!({
            "took": 1, "timed_out": false,
            "_shards": { "total": shards, "successful": shards, "skipped": 0, "failed": 0 },
            "hits": { "max_score": null, "hits": hits },
        }))
    }
}

fn compare(a: &[Value], b: &[Value], sort: &[(String, bool)]) -> Ordering {
    let one = |(i, (_, descending)): (usize, &(String, bool))| {
        let order = match (&a[i], &b[i]) {
            (Value::String(a), Value::String(b)) => a.as_bytes().cmp(b.as_bytes()),
            (a, b) => a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal),
        };
        if *descending { order.reverse() } else { order }
    };
    sort.iter().enumerate().map(one).find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

fn unknown<T>(why: impl Into<String>) -> Answer<T> {
    refuse(400, "parsing_exception", why)
}

/// The only field of a clause, with what is said of it.
fn only<'a>(clause: &'a Value, kind: &str) -> Answer<(&'a str, &'a Value)> {
    let map = clause.as_object().filter(|map| map.len() == 1);
    match map.and_then(|map| map.iter().next()) {
        Some((name, about)) => Ok((name, about)),
        None => unknown(format!("[{kind}] query doesn't support multiple fields, or has none")),
    }
}

impl Index {
    fn sort(&self, given: Option<&Value>) -> Answer<Vec<(String, bool)>> {
        let mut sort = Vec::new();
        for one in given.and_then(Value::as_array).into_iter().flatten() {
            let (field, about) = only(one, "sort")?;
            let order = object(about, "sort", &["order"])?.get("order").and_then(Value::as_str);
            let sortable = field == "_score"
                || matches!(self.mapping.fields.get(field), Some(Field::Keyword | Field::Long));
            match (sortable, order) {
                (true, Some(order @ ("asc" | "desc"))) => sort.push((field.to_owned(), order == "desc")),
                (true, _) => return unknown("[order] is asc or desc"),
                (false, _) => {
                    let why = format!("No mapping found for [{field}] in order to sort on");
                    return refuse(400, "query_shard_exception", why);
                }
            }
        }
        Ok(sort)
    }

    fn those(&self, keep: impl Fn(&Document) -> bool) -> Found<'_> {
        let kept = self.seen.iter().filter(|(_, document)| keep(document));
        kept.map(|(id, _)| (id.as_str(), 1.0)).collect()
    }

    fn run(&self, query: &Value, dfs: bool) -> Answer<Found<'_>> {
        let (kind, about) = only(query, "query")?;
        match kind {
            "match_all" => {
                object(about, kind, &[])?;
                Ok(self.those(|_| true))
            }
            "term" => {
                let (field, about) = only(about, kind)?;
                let value = object(about, kind, &["value"])?.get("value");
                let Some(value) = value.filter(|value| value.is_string() || value.is_boolean()) else {
                    return unknown("[term] needs a value");
                };
                self.exact(field)?;
                Ok(self.those(|document| has(document, field, value)))
            }
            "terms" => {
                let (field, values) = only(about, kind)?;
                let Some(values) = values.as_array().filter(|values| values.len() <= 65_536) else {
                    return unknown("[terms] query requires an array of terms");
                };
                self.exact(field)?;
                Ok(self.those(|document| values.iter().any(|value| has(document, field, value))))
            }
            "exists" => {
                let field = object(about, kind, &["field"])?.get("field").and_then(Value::as_str);
                let Some(field) = field else { return unknown("[exists] must be provided with a [field]") };
                Ok(self.those(|document| document.source.get(field).is_some_and(|value| !value.is_null())))
            }
            "range" => {
                let (field, about) = only(about, kind)?;
                let bounds = object(about, kind, &["gte", "lte"])?;
                if !matches!(self.mapping.fields.get(field), Some(Field::Long))
                    || bounds.values().any(|v| !v.is_i64())
                {
                    return unknown(format!("[range] on [{field}]: long"));
                }
                let bound = |name: &str, none| bounds.get(name).and_then(Value::as_i64).unwrap_or(none);
                let (least, most) = (bound("gte", i64::MIN), bound("lte", i64::MAX));
                Ok(self.those(|document| {
                    document
                        .source
                        .get(field)
                        .and_then(Value::as_i64)
                        .is_some_and(|x| (least..=most).contains(&x))
                }))
            }
            "match" => self.matching(about, dfs),
            "knn" => self.nearest(about, dfs),
            "bool" => self.boolean(about, dfs),
            _ => unknown(format!("unknown query [{kind}]")),
        }
    }

    fn exact(&self, field: &str) -> Answer<()> {
        match self.mapping.fields.get(field) {
            Some(Field::Keyword | Field::Boolean) => Ok(()),
            _ => unknown(format!("this double compares keywords only, not [{field}]")),
        }
    }

    fn boolean(&self, about: &Value, dfs: bool) -> Answer<Found<'_>> {
        let about = object(about, "bool", &["must", "filter", "should", "must_not", "minimum_should_match"])?;
        let clauses = |name: &str| -> Answer<Vec<Found<'_>>> {
            match about.get(name) {
                None => Ok(Vec::new()),
                Some(Value::Array(all)) => all.iter().map(|query| self.run(query, dfs)).collect(),
                Some(one) => Ok(vec![self.run(one, dfs)?]),
            }
        };
        let (must, filter, should, must_not) =
            (clauses("must")?, clauses("filter")?, clauses("should")?, clauses("must_not")?);
        let default = u64::from(must.is_empty() && filter.is_empty() && !should.is_empty());
        let least = match about.get("minimum_should_match") {
            None => default,
            Some(given) => match given.as_u64() {
                Some(given) => given,
                None => return unknown("[minimum_should_match] is a number here"),
            },
        };
        let mut found = Found::new();
        for id in self.seen.keys().map(String::as_str) {
            let any = should.iter().filter(|clause| clause.contains_key(id)).count() as u64;
            let fits = must.iter().chain(&filter).all(|clause| clause.contains_key(id))
                && !must_not.iter().any(|clause| clause.contains_key(id))
                && any >= least;
            if fits {
                let scored = must.iter().chain(&should).filter_map(|clause| clause.get(id));
                found.insert(id, scored.map(|score| f64::from(*score)).sum::<f64>() as f32);
            }
        }
        Ok(found)
    }

    /// Lucene's BM25 for a field without norms.
    fn matching(&self, about: &Value, dfs: bool) -> Answer<Found<'_>> {
        let (field, about) = only(about, "match")?;
        let about = object(about, "match", &["query", "operator"])?;
        let Some(Field::Text(text)) = self.mapping.fields.get(field) else {
            return unknown(format!("this double matches texts only, not [{field}]"));
        };
        let Some(query) = about.get("query").and_then(Value::as_str) else {
            return unknown("No text specified for text query");
        };
        if about.get("operator").is_some_and(|operator| operator != "or") {
            return unknown("this double matches by [or]");
        }
        let words: Vec<&str> = query.split_whitespace().collect();
        if words.len() > 1024 {
            return refuse(400, "too_many_clauses", "maxClauseCount is set to 1024");
        }
        let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
        for word in words {
            for shard in 0..self.mapping.shards {
                let counted = || self.seen.values().filter(|document| dfs || document.shard == shard);
                let count =
                    counted().filter(|d| d.terms.get(field).is_some_and(|t| !t.is_empty())).count() as f64;
                let holders = counted()
                    .filter(|d| d.terms.get(field).is_some_and(|t| t.contains_key(word)))
                    .count() as f64;
                let weight = (1.0 + (count - holders + 0.5) / (holders + 0.5)).ln() as f32;
                for (id, document) in self.seen.iter().filter(|(_, document)| document.shard == shard) {
                    let Some(frequency) = document.terms.get(field).and_then(|terms| terms.get(word)) else {
                        continue;
                    };
                    let score = weight - weight / (1.0 + *frequency as f32 * (1.0 / text.k1));
                    *sums.entry(id).or_default() += f64::from(score);
                }
            }
        }
        Ok(sums.into_iter().map(|(id, sum)| (id, sum as f32)).collect())
    }

    /// An exact search: the best `k` of each shard.
    fn nearest(&self, about: &Value, dfs: bool) -> Answer<Found<'_>> {
        let (field, about) = only(about, "knn")?;
        let about = object(about, "knn", &["vector", "k", "filter"])?;
        let Some(Field::Vector(dimension)) = self.mapping.fields.get(field) else {
            return refuse(
                400,
                "query_shard_exception",
                format!("failed to create query: Field '{field}' is not knn_vector type."),
            );
        };
        let floats = |value: &Value| -> Vec<f32> {
            value.as_array().into_iter().flatten().filter_map(Value::as_f64).map(|x| x as f32).collect()
        };
        let vector = floats(about.get("vector").unwrap_or(&Value::Null));
        if vector.len() != *dimension {
            let why = format!(
                "failed to create query: Query vector has invalid dimension: {}. Dimension should be: {dimension}",
                vector.len()
            );
            return refuse(400, "query_shard_exception", why);
        }
        let Some(k) = about.get("k").and_then(Value::as_u64).filter(|k| (1..=10_000).contains(k)) else {
            return refuse(
                400,
                "illegal_argument_exception",
                "[knn] requires k to be in the range (0, 10000]",
            );
        };
        let allowed = about.get("filter").map(|filter| self.run(filter, dfs)).transpose()?;
        let mut found = Found::new();
        for shard in 0..self.mapping.shards {
            let mut near: Vec<(&str, f32)> = Vec::new();
            for (id, document) in self.seen.iter().filter(|(_, document)| document.shard == shard) {
                if allowed.as_ref().is_some_and(|allowed| !allowed.contains_key(id.as_str())) {
                    continue;
                }
                let Some(held) = document.source.get(field) else { continue };
                let product: f32 = floats(held).iter().zip(&vector).map(|(a, b)| a * b).sum();
                near.push((id, if product < 0.0 { 1.0 / (1.0 - product) } else { product + 1.0 }));
            }
            // Which of equally near ones are the last of the k OpenSearch does not say; here, those with lower ids.
            let by = |id: &str| self.seen[id].source["id"].as_str().unwrap_or_default();
            near.sort_by(|a, b| b.1.total_cmp(&a.1).then(by(a.0).cmp(by(b.0))));
            found.extend(near.into_iter().take(k as usize));
        }
        Ok(found)
    }
}

fn has(document: &Document, field: &str, value: &Value) -> bool {
    match document.source.get(field) {
        Some(Value::Array(all)) => all.contains(value),
        Some(one) => one == value,
        None => false,
    }
}
