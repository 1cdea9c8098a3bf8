//! Evidence for a question, from every source that answers in time.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::Assistant;
use crate::assistant::event::{Plan, PlannedSource, SourceState};
use crate::assistant::planner::{self, Group, Planned};
use crate::assistant::source::{Evidence, Filters, Product, Retrieve, RetrieveError, RetrieveRequest};

/// What was found, and what was asked.
#[derive(Default)]
pub(super) struct Finding {
    pub(super) plan: Plan,
    /// The best first, the sources in turn.
    pub(super) evidence: Vec<Evidence>,
    /// Products that the answer may name.
    pub(super) products: Vec<Arc<Product>>,
}

/// Products that a question without any may bring.
const MOST_PRODUCTS: usize = 6;

enum Found {
    Evidence(usize, Result<Vec<Evidence>, RetrieveError>),
    Products(Result<Vec<Arc<Product>>, RetrieveError>),
}

/// Asks the planned sources at once. What comes after the deadline is left out and named in the plan.
pub(super) async fn find(assistant: &Assistant, question: &str, products: &[String]) -> Finding {
    let Some(retrieve) = assistant.retrieve.clone() else { return Finding::default() };
    let deadline = Instant::now() + Duration::from_millis(assistant.config.retrieval_deadline_ms);
    let limit = assistant.config.passages;
    let groups = planned(&*retrieve, question, products, deadline).await.groups;
    if groups.is_empty() {
        return Finding::default();
    }
    let mut asks = JoinSet::new();
    for (index, group) in groups.iter().enumerate() {
        // A policy speaks of the shop.
        let of = if *group == Group::Policy { Vec::new() } else { products.to_vec() };
        let filters = Filters { products: of, sources: group.sources().to_vec(), ..Filters::default() };
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
    let mut states = vec![(SourceState::Late, Vec::new()); groups.len()];
    while let Ok(Some(found)) = timeout_at(deadline, asks.join_next()).await {
        match found {
            Ok(Found::Evidence(index, Ok(evidence))) => states[index] = (SourceState::Ready, evidence),
            Ok(Found::Evidence(index, Err(error))) => {
                tracing::warn!(source = groups[index].name(), %error, "retrieval");
                states[index].0 = SourceState::Failed;
            }
            Ok(Found::Products(Ok(products))) => finding.products = products,
            Ok(Found::Products(Err(error))) => tracing::warn!(%error, "retrieval of products"),
            Err(error) => tracing::error!(%error, "retrieval"),
        }
    }
    for (group, (state, evidence)) in groups.iter().zip(&states) {
        let passages = (*state == SourceState::Ready).then_some(evidence.len());
        finding.plan.sources.push(PlannedSource { id: group.name().to_owned(), state: *state, passages });
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

/// Which groups of sources to ask. An index that fails to say what it holds is asked for all.
async fn planned(retrieve: &dyn Retrieve, question: &str, products: &[String], deadline: Instant) -> Planned {
    let mut probes = None;
    if !products.is_empty() {
        probes = match timeout_at(deadline, retrieve.probe(question.to_owned(), products.to_vec())).await {
            Ok(Ok(probes)) => probes,
            Ok(Err(error)) => {
                tracing::warn!(%error, "probe of the index");
                None
            }
            Err(_) => None,
        };
    }
    planner::plan(question, probes.as_deref())
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
