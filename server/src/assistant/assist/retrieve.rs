//! Evidence for a question, from every source that answers in time.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::Assistant;
use crate::assistant::event::{Plan, PlannedSource, SourceState};
use crate::assistant::source::{
    Evidence, Filters, Product, Retrieve, RetrieveError, RetrieveRequest, Source,
};

/// What was found, and what was asked.
#[derive(Default)]
pub(super) struct Finding {
    pub(super) plan: Plan,
    /// The best first, the sources in turn.
    pub(super) evidence: Vec<Evidence>,
    /// Products that the answer may name.
    pub(super) products: Vec<Arc<Product>>,
}

/// Sources that are asked together: what each gives competes with its own kind only, so that a catalog with many
/// attributes does not crowd out the reviews.
const GROUPS: [(&str, &[Source]); 4] = [
    ("catalog", &[Source::Attribute, Source::Bullet, Source::Description]),
    ("reviews", &[Source::Review]),
    ("qa", &[Source::Qa]),
    ("policy", &[Source::Policy]),
];
/// Products that a question without any may bring.
const MOST_PRODUCTS: usize = 6;

enum Found {
    Evidence(usize, Result<Vec<Evidence>, RetrieveError>),
    Products(Result<Vec<Arc<Product>>, RetrieveError>),
}

/// Asks all sources at once. What comes after the deadline is left out and named in the plan.
pub(super) async fn find(assistant: &Assistant, question: &str, products: &[String]) -> Finding {
    let Some(retrieve) = assistant.retrieve.clone() else { return Finding::default() };
    let deadline = Instant::now() + Duration::from_millis(assistant.config.retrieval_deadline_ms);
    let limit = assistant.config.passages;
    let mut asks = JoinSet::new();
    for (index, (_, sources)) in GROUPS.iter().enumerate() {
        // A policy speaks of the shop.
        let of = if sources.contains(&Source::Policy) { Vec::new() } else { products.to_vec() };
        let filters = Filters { products: of, sources: sources.to_vec(), ..Filters::default() };
        let request = RetrieveRequest { query: question.to_owned(), filters, limit };
        let retrieve = retrieve.clone();
        asks.spawn(async move {
            let found = retrieve.retrieve(request).await;
            Found::Evidence(index, found.map(|retrieval| retrieval.evidence))
        });
    }
    {
        let (retrieve, question, products) = (retrieve.clone(), question.to_owned(), products.to_vec());
        asks.spawn(async move { Found::Products(candidates(&*retrieve, question, products).await) });
    }

    let mut finding = Finding::default();
    let late = |_| (SourceState::Late, Vec::new());
    let mut states: [(SourceState, Vec<Evidence>); GROUPS.len()] = std::array::from_fn(late);
    while let Ok(Some(found)) = timeout_at(deadline, asks.join_next()).await {
        match found {
            Ok(Found::Evidence(index, Ok(evidence))) => states[index] = (SourceState::Ready, evidence),
            Ok(Found::Evidence(index, Err(error))) => {
                tracing::warn!(source = GROUPS[index].0, %error, "retrieval");
                states[index].0 = SourceState::Failed;
            }
            Ok(Found::Products(Ok(products))) => finding.products = products,
            Ok(Found::Products(Err(error))) => tracing::warn!(%error, "retrieval of products"),
            Err(error) => tracing::error!(%error, "retrieval"),
        }
    }
    for ((name, _), (state, evidence)) in GROUPS.iter().zip(&states) {
        let passages = (*state == SourceState::Ready).then_some(evidence.len());
        finding.plan.sources.push(PlannedSource { id: (*name).to_owned(), state: *state, passages });
    }
    // In turn: scores of different retrievals cannot be compared.
    for rank in 0..limit {
        finding.evidence.extend(states.iter().filter_map(|(_, evidence)| evidence.get(rank).cloned()));
    }
    finding.evidence.truncate(limit);
    // Evidence may speak of further products, and a card of theirs is worth showing too.
    let known = |id: &String| finding.products.iter().any(|product| product.id == *id);
    let mut more: Vec<String> = finding.evidence.iter().filter_map(|e| e.passage.product.clone()).collect();
    more.retain(|id| !known(id));
    more.sort();
    more.dedup();
    if !more.is_empty()
        && let Ok(Ok(more)) = timeout_at(deadline, retrieve.products(more)).await
    {
        finding.products.extend(more);
    }
    finding
}

/// The products that a question is about, else those that fit it.
async fn candidates(
    retrieve: &dyn Retrieve,
    query: String,
    products: Vec<String>,
) -> Result<Vec<Arc<Product>>, RetrieveError> {
    if !products.is_empty() {
        return retrieve.products(products).await;
    }
    let request = RetrieveRequest { query, filters: Filters::default(), limit: MOST_PRODUCTS };
    let found = retrieve.search_products(request).await?;
    Ok(found.into_iter().map(|(product, _)| product).collect())
}
