//! One answer: the model's text and the stores' data become [`Event`]s.
//!
//! Text leaves the moment it arrives. A directive becomes a card at its place in the text, at once and pending; its
//! data follows whenever it comes. When the text has ended, what is still missing has until its deadline, so an answer
//! always ends and no card is left pending. Dropping the future ends everything that was begun for this answer alone.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::future::Future;
use std::time::Duration;

use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::Instant;

use super::amounts::{Amounts, Notes};
use super::cards::Draft;
use super::directive::{AllowedHosts, Directive, Parser, Piece};
use super::event::{Card, CardBody, Citation, Event, State};
use super::grounding::{Grounding, Sentences};
use super::hydrate::{FetchError, Fetched, Role, Shopper, Source};

/// Where the model's text comes from.
pub trait TextSource: Send {
    /// The next part; `None` at the end. May be dropped while it waits without losing text.
    fn next(&mut self) -> impl Future<Output = Option<Result<String, TextFailure>>> + Send;
}

/// Why there is no more text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextFailure {
    /// For machines.
    pub code: String,
    /// For people.
    pub message: String,
}

/// What an answer may show.
#[derive(Clone, Default)]
pub struct Desk {
    /// Who knows about products and orders.
    pub sources: Vec<Source>,
    /// Products that the text may name: those that were retrieved.
    pub products: HashSet<String>,
    /// What they are called.
    pub names: Vec<String>,
    /// Evidence that it may cite.
    pub citations: Vec<Citation>,
    /// The order that the shopper speaks of.
    pub order: Option<String>,
    /// What identifies the shopper to the store.
    pub shopper: Option<Shopper>,
    /// Where links may lead.
    pub allowed: AllowedHosts,
    /// Shown before the text: what the question itself calls for.
    pub opening: Vec<Directive>,
    /// Shown behind the text where the text has shown no product by itself.
    pub closing: Option<Directive>,
    /// Shown at the end.
    pub suggestions: Vec<String>,
    /// What stands in the text for prices and stock levels, which cards show.
    pub notes: Notes,
}

impl Desk {
    /// What a passage says, with its title.
    fn quote(&self, number: u32) -> Option<String> {
        let citation = self.citations.iter().find(|citation| citation.number == number)?;
        // Grounding takes a passage's first word for its verdict, so the title comes behind.
        Some(format!("{} \n{}", citation.quote, citation.title))
    }
}

/// What became of an answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// The model's text, directives included.
    pub raw: String,
    /// Evidence that was cited, by number.
    pub cited: BTreeSet<u32>,
    /// Products that its cards name, in the order of the text.
    pub named: Vec<String>,
    /// Sentences, and what they are founded on.
    pub sentences: Sentences,
    /// Directives that could not be read or named what was not retrieved, and citations of nothing.
    pub dropped: u32,
    /// Links that led elsewhere.
    pub links_dropped: u32,
    /// Amounts of money, which are not for the model to write.
    pub amounts_dropped: u32,
    /// Stock levels and days of delivery, which are not either.
    pub availability_dropped: u32,
    /// Data that was asked for cards, by source and by what came: `fresh`, `stale`, or the code of an error.
    pub lookups: BTreeMap<(String, &'static str), u64>,
    /// Cards by the state they ended in: ready, stale, unavailable.
    pub cards: [u32; 3],
    /// From the start to the first text.
    pub first_text: Option<Duration>,
    /// From the start to the first card.
    pub first_card: Option<Duration>,
    /// From the start to the last change of a card.
    pub last_hydration: Option<Duration>,
}

/// Turns text into events until both text and data have ended.
///
/// # Errors
/// Where the text has failed. Its cards are final then, too.
pub async fn compose<T, E>(text: &mut T, desk: &Desk, emit: E) -> (Summary, Result<(), TextFailure>)
where
    T: TextSource,
    E: FnMut(Event) + Send,
{
    let parser = Parser::new(desk.allowed.clone());
    let mut composer = Composer {
        desk,
        emit,
        started: Instant::now(),
        drafts: Vec::new(),
        asks: JoinSet::new(),
        owners: HashMap::new(),
        summary: Summary::default(),
        shown: Grounding::new(|number| desk.quote(number), desk.names.iter().map(String::as_str)),
        amounts: Amounts::new(desk.notes),
    };
    composer.prefetch();
    for directive in &desk.opening {
        composer.card(directive.clone());
    }
    let result = composer.text(text, parser).await;
    match &result {
        Ok(()) => {
            if composer.summary.named.is_empty()
                && let Some(directive) = desk.closing.clone()
            {
                composer.card(directive);
            }
            composer.rest().await;
            composer.suggest();
        }
        Err(_) => composer.give_up(),
    }
    (composer.summary, result)
}

struct Composer<'a, E> {
    desk: &'a Desk,
    emit: E,
    started: Instant,
    drafts: Vec<Draft>,
    asks: JoinSet<Fetched>,
    /// The card and the need that each ask is for.
    owners: HashMap<Id, (usize, usize)>,
    summary: Summary,
    shown: Grounding<'a>,
    amounts: Amounts,
}

impl<E: FnMut(Event) + Send> Composer<'_, E> {
    /// What was retrieved is likely to be shown, so its live data is asked for before the first word.
    fn prefetch(&self) {
        let mut products: Vec<&str> = self.desk.products.iter().map(String::as_str).collect();
        products.sort_unstable();
        for source in self.desk.sources.iter().filter(|s| matches!(s.role(), Role::Catalog | Role::Live)) {
            source.prefetch(products.iter().copied());
        }
    }

    async fn text<T: TextSource>(&mut self, text: &mut T, mut parser: Parser) -> Result<(), TextFailure> {
        loop {
            tokio::select! {
                // Text first: data never holds it up.
                biased;
                next = text.next() => match next {
                    Some(Ok(part)) => {
                        self.summary.raw.push_str(&part);
                        self.pieces(parser.push(&part));
                    }
                    Some(Err(failure)) => return Err(failure),
                    None => break,
                },
                Some(landed) = self.asks.join_next_with_id(), if !self.asks.is_empty() => self.landed(landed),
            }
        }
        self.pieces(parser.finish());
        let rest = self.amounts.finish();
        self.show(rest);
        self.summary.amounts_dropped = self.amounts.prices_dropped();
        self.summary.availability_dropped = self.amounts.availability_dropped();
        self.summary.dropped += parser.malformed();
        self.summary.links_dropped = parser.links_dropped();
        self.summary.sentences = self.shown.finish();
        Ok(())
    }

    fn pieces(&mut self, pieces: Vec<Piece>) {
        let mut prose = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => prose.push_str(&text),
                Piece::Cite(number) => {
                    let Some(citation) = self.desk.citations.iter().find(|c| c.number == number) else {
                        self.summary.dropped += 1;
                        continue;
                    };
                    if self.summary.cited.insert(number) {
                        self.prose(&mut prose);
                        (self.emit)(Event::Source(citation.clone()));
                    }
                    prose.push_str(&format!("[{number}]"));
                }
                Piece::Directive(directive) => {
                    // What a review can talk the model into must not ask for an order that nobody spoke of.
                    let known = match &directive {
                        Directive::Order => self.desk.order.is_some(),
                        other => other.products().iter().all(|id| self.desk.products.contains(id)),
                    };
                    if known {
                        self.prose(&mut prose);
                        let rest = self.amounts.pause();
                        self.show(rest);
                        self.card(directive);
                    } else {
                        self.summary.dropped += 1;
                    }
                }
            }
        }
        self.prose(&mut prose);
    }

    fn prose(&mut self, prose: &mut String) {
        let text = self.amounts.push(&std::mem::take(prose));
        self.show(text);
    }

    fn show(&mut self, text: String) {
        if text.is_empty() {
            return;
        }
        self.summary.first_text.get_or_insert(self.started.elapsed());
        self.shown.push(&text);
        (self.emit)(Event::Text(text));
    }

    fn card(&mut self, directive: Directive) {
        let desk = self.desk;
        for id in directive.products() {
            if !self.summary.named.contains(id) {
                self.summary.named.push(id.clone());
            }
        }
        let slot = self.drafts.len() as u32 + 1;
        let draft = Draft::new(slot, directive, &desk.sources, desk.order.as_deref(), desk.allowed.clone());
        let index = self.drafts.len();
        for (number, need) in draft.needs.iter().enumerate() {
            let (source, key, shopper) = (need.source.clone(), need.key.clone(), desk.shopper.clone());
            let ask = self.asks.spawn(async move { source.get(&key, shopper).await });
            self.owners.insert(ask.id(), (index, number));
        }
        self.summary.first_card.get_or_insert(self.started.elapsed());
        (self.emit)(Event::Card(draft.card.clone()));
        self.count(draft.card.state);
        self.drafts.push(draft);
    }

    fn landed(&mut self, landed: Result<(Id, Fetched), JoinError>) {
        let (id, fetched) = landed.unwrap_or_else(|error| {
            tracing::error!(%error, "while hydrating a card");
            (error.id(), Fetched::Failed(FetchError::Aborted))
        });
        let Some((index, need)) = self.owners.remove(&id) else { return };
        let outcome = match &fetched {
            Fetched::Fresh { .. } => "fresh",
            Fetched::Stale { .. } => "stale",
            Fetched::Failed(error) => error.code(),
        };
        let source = self.drafts[index].needs[need].source.name().to_owned();
        *self.summary.lookups.entry((source, outcome)).or_default() += 1;
        if self.drafts[index].accept(need, fetched) {
            self.changed(index);
        }
    }

    fn changed(&mut self, index: usize) {
        let card = self.drafts[index].card.clone();
        self.summary.last_hydration = Some(self.started.elapsed());
        self.count(card.state);
        (self.emit)(Event::Card(card));
    }

    fn count(&mut self, state: State) {
        match state {
            State::Pending | State::Partial => {}
            State::Ready => self.summary.cards[0] += 1,
            State::Stale => self.summary.cards[1] += 1,
            State::Unavailable => self.summary.cards[2] += 1,
        }
    }

    /// Waits for what is under way, which each source bounds by its deadline.
    async fn rest(&mut self) {
        while let Some(landed) = self.asks.join_next_with_id().await {
            self.landed(landed);
        }
        self.give_up();
    }

    fn give_up(&mut self) {
        self.asks.abort_all();
        for index in 0..self.drafts.len() {
            if !self.drafts[index].card.state.is_final() && self.drafts[index].give_up(FetchError::Aborted) {
                self.changed(index);
            }
        }
    }

    fn suggest(&mut self) {
        if self.desk.suggestions.is_empty() {
            return;
        }
        let slot = self.drafts.len() as u32 + 1;
        (self.emit)(Event::Card(Card {
            id: format!("c{slot}"),
            v: 1,
            slot,
            rev: 0,
            body: CardBody::SuggestedQuestions { questions: self.desk.suggestions.clone() },
            layout: None,
            state: State::Ready,
            deadline_ms: None,
            as_of: None,
            error: None,
        }));
    }
}
