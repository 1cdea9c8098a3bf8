//! From a directive to a card, and from what the sources say to what it shows. Pure: a [`Draft`] is told what came and
//! works out its card anew.

use serde_json::{Map, Value};

use super::directive::{AllowedHosts, Directive};
use super::event::{Card, CardBody, CardError, ComparisonRow, Item, Ref, State, timestamp};
use super::hydrate::{FetchError, Fetched, Role, Source};

/// Something a card needs to know, from one source.
pub struct Need {
    /// Who knows it.
    pub source: Source,
    /// What it is asked for.
    pub key: String,
    /// What it said.
    pub fetched: Option<Fetched>,
}

/// A card that may still lack data.
pub struct Draft {
    /// As it was last shown.
    pub card: Card,
    /// What it waits for, and what has come.
    pub needs: Vec<Need>,
    directive: Directive,
    allowed: AllowedHosts,
}

/// A product as far as it is known.
struct Joined {
    product: Map<String, Value>,
    state: State,
    as_of: Option<std::time::SystemTime>,
    error: Option<CardError>,
}

impl Draft {
    /// The card of a directive, as it is before anything has come. `order` is the order that the shopper speaks of.
    pub fn new(
        slot: u32,
        directive: Directive,
        sources: &[Source],
        order: Option<&str>,
        allowed: AllowedHosts,
    ) -> Self {
        let wants = |role| match &directive {
            Directive::Reviews { .. } => role == Role::Reviews,
            Directive::Link { .. } => role == Role::Catalog,
            Directive::Order => role == Role::Orders,
            _ => matches!(role, Role::Catalog | Role::Live),
        };
        let keys: Vec<&str> = match &directive {
            Directive::Order => order.into_iter().collect(),
            other => other.products().iter().map(String::as_str).collect(),
        };
        let mut needs = Vec::new();
        for source in sources.iter().filter(|source| wants(source.role())) {
            for key in &keys {
                needs.push(Need { source: source.clone(), key: (*key).to_owned(), fetched: None });
            }
        }
        let deadline = needs.iter().map(|need| need.source.policy().deadline).max();
        let layout = match &directive {
            Directive::Product { layout, .. } | Directive::List { layout, .. } => *layout,
            _ => None,
        };
        let card = Card {
            id: format!("c{slot}"),
            v: 1,
            slot,
            rev: 0,
            body: CardBody::SuggestedQuestions { questions: Vec::new() },
            layout,
            state: State::Pending,
            deadline_ms: deadline.map(|d| d.as_millis() as u64),
            as_of: None,
            error: None,
        };
        let mut draft = Draft { card, needs, directive, allowed };
        draft.work_out();
        draft
    }

    /// Takes what a need's source said; whether the card has changed.
    pub fn accept(&mut self, need: usize, fetched: Fetched) -> bool {
        self.needs[need].fetched = Some(fetched);
        let before = self.card.clone();
        self.work_out();
        let changed = self.card != before;
        self.card.rev += u32::from(changed);
        changed
    }

    /// Ends the waiting; whether the card has changed.
    pub fn give_up(&mut self, error: FetchError) -> bool {
        let before = self.card.clone();
        for need in self.needs.iter_mut().filter(|need| need.fetched.is_none()) {
            need.fetched = Some(Fetched::Failed(error));
        }
        self.work_out();
        let changed = self.card != before;
        self.card.rev += u32::from(changed);
        changed
    }

    fn work_out(&mut self) {
        let reference = |id: &str| Ref { source: "catalog", id: id.to_owned() };
        let (body, state, as_of, error) = match &self.directive {
            Directive::Product { id, .. } => {
                let Joined { product, state, as_of, error } = self.join(id);
                (CardBody::Product { r#ref: reference(id), product }, state, as_of, error)
            }
            Directive::List { ids, .. } => {
                let (items, state, as_of, error) = self.join_all(ids);
                (CardBody::ProductList { items }, state, as_of, error)
            }
            Directive::Compare { ids, attrs } => {
                let (columns, state, as_of, error) = self.join_all(ids);
                let rows = if state == State::Pending { Vec::new() } else { compare(&columns, attrs) };
                (CardBody::Comparison { columns, rows }, state, as_of, error)
            }
            Directive::Reviews { id } => {
                let Joined { product: summary, state, as_of, error } = self.join(id);
                (CardBody::ReviewSummary { r#ref: reference(id), summary }, state, as_of, error)
            }
            Directive::Link { id } => {
                let mut joined = self.join(id);
                let text = |name: &str| joined.product.get(name).and_then(Value::as_str).map(str::to_owned);
                let (label, address) = (text("title"), text("url"));
                let href = address.clone().filter(|url| self.allowed.allow(url));
                if joined.state.is_final() && joined.state != State::Unavailable && href.is_none() {
                    let code = if address.is_some() { "not_allowed" } else { "not_found" };
                    joined.state = State::Unavailable;
                    joined.error = Some(CardError { code, source: "catalog".into() });
                }
                let body = CardBody::Navigation { r#ref: reference(id), label, href };
                (body, joined.state, joined.as_of, joined.error)
            }
            Directive::Order => {
                let id = self.needs.first().map(|need| need.key.clone());
                let joined = self.join(id.as_deref().unwrap_or(""));
                let r#ref = id.map(|id| Ref { source: "orders", id });
                let body = CardBody::OrderStatus { r#ref, order: joined.product };
                (body, joined.state, joined.as_of, joined.error)
            }
        };
        self.card.body = body;
        // Never to the left, whatever a source may say late.
        self.card.state = self.card.state.max(state);
        self.card.as_of = as_of.map(timestamp);
        self.card.error = error;
    }

    /// What all sources have said of a key.
    fn join(&self, key: &str) -> Joined {
        let mut joined = Joined { product: Map::new(), state: State::Ready, as_of: None, error: None };
        let (mut waiting, mut live_failed) = (false, false);
        let order = |need: &&Need| need.source.role() != Role::Catalog;
        let mut needs: Vec<&Need> = self.needs.iter().filter(|need| need.key == key).collect();
        // What is current covers what the catalog says.
        needs.sort_by_key(order);
        for need in needs {
            let error =
                |error: FetchError| CardError { code: error.code(), source: need.source.name().to_owned() };
            let is_catalog = need.source.role() == Role::Catalog;
            let (value, at) = match &need.fetched {
                None => {
                    waiting = true;
                    continue;
                }
                Some(Fetched::Failed(why)) => {
                    if !(is_catalog && *why == FetchError::NotFound) {
                        live_failed |= !is_catalog;
                    }
                    joined.error.get_or_insert(error(*why));
                    continue;
                }
                Some(Fetched::Fresh { value, as_of }) => (value, as_of),
                Some(Fetched::Stale { value, as_of, error: why }) => {
                    if !is_catalog {
                        joined.state = State::Stale;
                        joined.error.get_or_insert(error(*why));
                    }
                    (value, as_of)
                }
            };
            if let Value::Object(fields) = &**value {
                joined.product.extend(fields.iter().map(|(name, value)| (name.clone(), value.clone())));
            }
            if !is_catalog {
                joined.as_of = Some(joined.as_of.map_or(*at, |other| other.min(*at)));
            }
        }
        let empty = joined.product.is_empty();
        if waiting {
            joined.state = if empty { State::Pending } else { State::Partial };
            joined.error = None;
        } else if live_failed || empty {
            joined.state = State::Unavailable;
            let nobody = || CardError { code: "not_found", source: "store".into() };
            joined.error.get_or_insert_with(nobody);
        } else if joined.state == State::Ready {
            // The catalog does not know it and the store does: that is enough.
            joined.error = None;
        }
        joined
    }

    #[allow(clippy::type_complexity)]
    fn join_all(
        &self,
        ids: &[String],
    ) -> (Vec<Item>, State, Option<std::time::SystemTime>, Option<CardError>) {
        let (mut items, mut as_of, mut error) = (Vec::new(), None::<std::time::SystemTime>, None);
        for id in ids {
            let joined = self.join(id);
            as_of = match (as_of, joined.as_of) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
            error = error.or(joined.error);
            let r#ref = Ref { source: "catalog", id: id.clone() };
            items.push(Item { r#ref, state: joined.state, product: joined.product });
        }
        let all = |state| items.iter().all(|item| item.state == state);
        let any = |state| items.iter().any(|item| item.state == state);
        let state = if all(State::Pending) {
            State::Pending
        } else if items.iter().any(|item| !item.state.is_final()) {
            State::Partial
        } else if all(State::Unavailable) {
            State::Unavailable
        } else if any(State::Stale) {
            State::Stale
        } else {
            // Some may be unavailable, which each item says of itself.
            State::Ready
        };
        let error = error.filter(|_| matches!(state, State::Stale | State::Unavailable));
        (items, state, as_of, error)
    }
}

/// The lines of a comparison: what was asked for, else what at least two products have; and always the price.
fn compare(columns: &[Item], attrs: &[String]) -> Vec<ComparisonRow> {
    let attribute = |item: &Item, name: &str| {
        let attributes = item.product.get("attributes").and_then(Value::as_object);
        let known = attributes.and_then(|a| a.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)));
        known.map(|(_, value)| value.clone()).or_else(|| item.product.get(name).cloned())
    };
    let mut names: Vec<String> = attrs.to_vec();
    if names.is_empty() {
        let maps =
            columns.iter().filter_map(|item| item.product.get("attributes").and_then(Value::as_object));
        let all: Vec<&String> = maps.flat_map(Map::keys).collect();
        for name in &all {
            if all.iter().filter(|other| other == &name).count() > 1 && !names.contains(name) {
                names.push((*name).clone());
            }
        }
        names.truncate(8);
    }
    for live in ["price", "availability"] {
        let known = columns.iter().any(|item| item.product.contains_key(live));
        if known && !names.iter().any(|name| name.eq_ignore_ascii_case(live)) {
            names.push(live.to_owned());
        }
    }
    let row = |attr: String| {
        let values = columns.iter().map(|item| attribute(item, &attr).unwrap_or(Value::Null)).collect();
        ComparisonRow { attr, values }
    };
    names.into_iter().map(row).collect()
}
