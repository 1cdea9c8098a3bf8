//! The statement that searches: words by BM25F, meaning by a scan of the vectors, both lists fused by reciprocal ranks,
//! in single precision and in the order of operations of the embedded index, so that equal scores are equal here too.

use std::collections::BTreeSet;

use tokio_postgres::types::ToSql;

use super::schema::columns;
use crate::assistant::index::fields;
use crate::assistant::index::lexical::{B, K1};
use crate::assistant::planner::Group;
use crate::assistant::retrieve::{DEPTH, MEANING_OF_PASSAGES, MEANING_OF_PRODUCTS, MOST_PROBED, RRF_K};
use crate::assistant::source::{Filters, Source};

/// What is searched.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Searched {
    Products,
    Passages,
}

/// A statement with its parameters.
pub(super) struct Search {
    pub(super) text: String,
    parameters: Vec<Box<dyn ToSql + Sync + Send>>,
}

impl Search {
    pub(super) fn parameters(&self) -> Vec<&(dyn ToSql + Sync)> {
        self.parameters.iter().map(|parameter| &**parameter as &(dyn ToSql + Sync)).collect()
    }

    /// The place of a new parameter in the text.
    fn bind(&mut self, value: impl ToSql + Sync + Send + 'static) -> String {
        self.parameters.push(Box::new(value));
        format!("${}", self.parameters.len())
    }
}

/// A source as the tables have it.
pub(super) fn number(source: Source) -> i16 {
    Source::ALL.iter().position(|other| *other == source).unwrap_or_default() as i16
}

/// An attribute as the tables have it.
pub(super) fn attribute(name: &str, value: &str) -> String {
    format!("{}\u{1f}{}", name.to_lowercase(), value.to_lowercase())
}

/// What the tables hold of an amount.
pub(super) fn amount(minor: u64) -> i64 {
    i64::try_from(minor).unwrap_or(i64::MAX)
}

/// The condition on a product `p`, where anything restricts products.
fn products(search: &mut Search, filters: &Filters) -> Option<String> {
    let Filters { products, categories, sources: _, price_min, price_max, attributes } = filters;
    let mut all = Vec::new();
    if !products.is_empty() {
        all.push(format!("p.id = ANY({}::text[])", search.bind(products.clone())));
    }
    if !categories.is_empty() {
        let lower: Vec<String> = categories.iter().map(|category| category.to_lowercase()).collect();
        all.push(format!("p.categories && {}::text[]", search.bind(lower)));
    }
    if let Some(least) = price_min {
        all.push(format!("p.price_max >= {}::bigint", search.bind(amount(*least))));
    }
    if let Some(most) = price_max {
        all.push(format!("p.price_min <= {}::bigint", search.bind(amount(*most))));
    }
    if !attributes.is_empty() {
        let pairs: Vec<String> = attributes.iter().map(|(name, value)| attribute(name, value)).collect();
        all.push(format!("p.attributes @> {}::text[]", search.bind(pairs)));
    }
    (!all.is_empty()).then(|| all.join(" AND "))
}

/// The condition on a document `d`.
fn condition(search: &mut Search, of: Searched, filters: &Filters) -> String {
    let product = products(search, filters);
    if of == Searched::Products {
        let Some(product) = product else { return "true".to_owned() };
        return format!("d.id IN (SELECT p.id FROM millrace.products p WHERE {product})");
    }
    let mut condition = match filters.sources.is_empty() {
        true => "true".to_owned(),
        false => {
            let sources: Vec<i16> = filters.sources.iter().copied().map(number).collect();
            format!("d.source = ANY({}::smallint[])", search.bind(sources))
        }
    };
    if let Some(product) = product {
        // A policy without a product speaks of all.
        let general = match filters.sources.contains(&Source::Policy) {
            true => format!(" OR d.product IS NULL AND d.source = {}", number(Source::Policy)),
            false => String::new(),
        };
        condition +=
            &format!(" AND (d.product IN (SELECT p.id FROM millrace.products p WHERE {product}){general})");
    }
    condition
}

/// The statement for a query: its terms, its words as they came, its vector in pgvector's notation. Rows are
/// (record, score), the best first; of passages that were searched for anything (record, score, BM25F, cosine, cosine of
/// the answer alone).
pub(super) fn search(
    of: Searched,
    filters: &Filters,
    terms: &BTreeSet<String>,
    query: &str,
    vector: Option<&str>,
    limit: usize,
) -> Search {
    let mut search = Search { text: String::new(), parameters: Vec::new() };
    let condition = condition(&mut search, of, filters);
    let (kind, table, weights) = match of {
        Searched::Products => ("product", "products", &fields::PRODUCT[..]),
        Searched::Passages => ("passage", "passages", &fields::PASSAGE[..]),
    };
    let limit = i64::try_from(limit).unwrap_or(i64::MAX);
    let most = search.bind(limit);
    if query.trim().is_empty() {
        search.text = format!(
            "SELECT d.record, 0::real FROM millrace.{table} d WHERE {condition} ORDER BY d.id LIMIT {most}"
        );
        return search;
    }
    let depth = search.bind(limit.max(DEPTH as i64));
    let terms = search.bind(terms.iter().cloned().collect::<Vec<_>>());
    let means = columns("words", weights.len(), |words| {
        format!("greatest({words}::real / greatest(documents, 1)::real, 1::real) AS mean_{words}")
    });
    let real = |x: f32| format!("{x}::real");
    let frequency = weights.iter().enumerate().map(|(i, weight)| {
        let i = i + 1;
        format!(
            "{} * p.count{i}::real / ({} + {} * d.length{i}::real / totals.mean_words{i})",
            real(*weight),
            real(1.0 - B),
            real(B)
        )
    });
    let frequency = frequency.collect::<Vec<_>>().join(" + ");
    let (k1, k1_more, rrf) = (real(K1), real(K1 + 1.0), real(RRF_K));
    let ranked = |list: &str, weight: f32| {
        let weight = real(weight);
        format!(
            "SELECT id, {weight} / ({rrf} + (row_number() OVER (ORDER BY score DESC, id))::real) AS share FROM {list}"
        )
    };
    let share = match of {
        Searched::Products => MEANING_OF_PRODUCTS,
        Searched::Passages => MEANING_OF_PASSAGES,
    };
    let (meaning, both, near) = match vector {
        None => (String::new(), ranked("words", 1.0), "NULL::real, NULL::real".to_owned()),
        Some(vector) => {
            let vector = search.bind(vector.to_owned());
            (
                format!(
                    "meaning AS (
    SELECT d.id, (-(e.embedding <#> {vector}::text::vector))::real AS score
    FROM millrace.{table} d JOIN millrace.embeddings e ON e.text = d.embedded
    WHERE {condition}
    ORDER BY score DESC, d.id LIMIT {depth}
), "
                ),
                format!("{} UNION ALL {}", ranked("words", 1.0), ranked("meaning", share)),
                format!(
                    "(-(e.embedding <#> {vector}::text::vector))::real, (-(a.embedding <#> {vector}::text::vector))::real"
                ),
            )
        }
    };
    let (signals, joined) = match of {
        Searched::Products => (String::new(), ""),
        Searched::Passages => (
            format!(", coalesce(scored.score, 0::real), {near}"),
            " LEFT JOIN scored ON scored.id = d.id
LEFT JOIN millrace.embeddings e ON e.text = d.embedded LEFT JOIN millrace.embeddings a ON a.text = d.answer",
        ),
    };
    search.text = format!(
        "WITH totals AS (
    SELECT documents, {means} FROM millrace.{kind}_totals
), asked AS (
    SELECT t.term, ln(1 + (totals.documents - t.documents + 0.5::float8) / (t.documents + 0.5::float8))::real AS idf
    FROM millrace.{kind}_terms t, totals WHERE t.term = ANY({terms}::text[])
), weighed AS (
    SELECT d.id, asked.term, asked.idf, {frequency} AS frequency
    FROM asked JOIN millrace.{kind}_postings p ON p.term = asked.term
    JOIN millrace.{table} d ON d.id = p.document CROSS JOIN totals
    WHERE {condition}
), scored AS (
    SELECT id, sum(idf * frequency * {k1_more} / (frequency + {k1}) ORDER BY term) AS score
    FROM weighed GROUP BY id
), words AS (
    SELECT id, score FROM scored ORDER BY score DESC, id LIMIT {depth}
), {meaning}fused AS (
    SELECT id, sum(share) AS score FROM ({both}) lists GROUP BY id ORDER BY score DESC, id LIMIT {most}
)
SELECT d.record, fused.score{signals} FROM fused JOIN millrace.{table} d ON d.id = fused.id{joined}
ORDER BY fused.score DESC, d.id"
    );
    search
}

/// The statement that says what each group of sources holds of some products. Rows are (position in
/// [`Group::OF_PRODUCTS`], passages, cosine of the nearest, the most of the wanted words that one of them has).
pub(super) fn probe(products: &[String], wanted: &BTreeSet<String>, vector: Option<&str>) -> Search {
    let mut search = Search { text: String::new(), parameters: Vec::new() };
    let (mut sources, mut groups) = (Vec::new(), Vec::new());
    for (position, group) in (0i32..).zip(Group::OF_PRODUCTS) {
        sources.extend(group.sources().iter().copied().map(number));
        groups.extend(group.sources().iter().map(|_| position));
    }
    let products = search.bind(products.to_vec());
    let (sources, groups) = (search.bind(sources), search.bind(groups));
    let most = search.bind(MOST_PROBED as i64);
    let wanted = search.bind(wanted.iter().cloned().collect::<Vec<_>>());
    let (similarity, vectors) = match vector {
        None => ("NULL::real".to_owned(), ""),
        Some(vector) => (
            format!("max((-(e.embedding <#> {}::text::vector))::real)", search.bind(vector.to_owned())),
            "LEFT JOIN millrace.embeddings e ON e.text = held.embedded",
        ),
    };
    // Fields 1 and 2 are the passage's own; the third is its product's title.
    search.text = format!(
        "WITH held AS (
    SELECT d.id, d.embedded, g.position, row_number() OVER of AS place, count(*) OVER (PARTITION BY g.position) AS passages
    FROM millrace.passages d JOIN unnest({sources}::smallint[], {groups}::integer[]) g (source, position) ON g.source = d.source
    WHERE d.product = ANY({products}::text[])
    WINDOW of AS (PARTITION BY g.position ORDER BY d.id)
)
SELECT held.position, max(held.passages), {similarity}, max(words.found)
FROM held {vectors} CROSS JOIN LATERAL (
    SELECT count(*) AS found FROM millrace.passage_postings p
    WHERE p.document = held.id AND p.term = ANY({wanted}::text[]) AND (p.count1 > 0 OR p.count2 > 0)
) words
WHERE held.place <= {most} GROUP BY held.position"
    );
    search
}
