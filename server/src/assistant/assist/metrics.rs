//! What operators see of the assistant: how soon answers begin and fill, and what became of asking each source.

use std::time::Duration;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::assistant::compose::Summary;
use crate::assistant::event::{Plan, SourceState};
use crate::metrics::{add, encode};

const SECONDS: [f64; 14] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0];

type BySource = Family<[(&'static str, String); 2], Counter>;

/// Counts of all answers.
pub(super) struct Metrics {
    registry: Registry,
    first_text: Histogram,
    first_card: Histogram,
    last_hydration: Histogram,
    lookups: BySource,
    retrievals: BySource,
    dropped: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut registry = Registry::default();
        let r = &mut registry;
        let seconds = |r: &mut Registry, name: &str, help: &str| {
            add(r, name, help, Histogram::new(SECONDS.iter().copied()))
        };
        Metrics {
            first_text: seconds(r, "millrace:assist_first_text_seconds", "From arrival to the first text"),
            first_card: seconds(r, "millrace:assist_first_card_seconds", "From arrival to the first card"),
            last_hydration: seconds(
                r,
                "millrace:assist_last_hydration_seconds",
                "From arrival to the last change of a card",
            ),
            lookups: add(
                r,
                "millrace:assist_lookups",
                "Data asked of sources for cards, by what came: fresh, stale, or why there was none",
                Family::default(),
            ),
            retrievals: add(
                r,
                "millrace:assist_retrievals",
                "Sources asked for evidence, by what became of it: ready, late, failed",
                Family::default(),
            ),
            dropped: add(
                r,
                "millrace:assist_dropped",
                "What was taken out of answers: directives, links, amounts, availability",
                Family::default(),
            ),
            registry,
        }
    }

    /// An answer has ended; its clock began so long after its question came.
    pub(super) fn answered(&self, summary: &Summary, plan: &Plan, waited: Duration) {
        for (histogram, after) in [
            (&self.first_text, summary.first_text),
            (&self.first_card, summary.first_card),
            (&self.last_hydration, summary.last_hydration),
        ] {
            if let Some(after) = after {
                histogram.observe((after + waited).as_secs_f64());
            }
        }
        for ((source, outcome), count) in &summary.lookups {
            let labels = [("source", source.clone()), ("outcome", (*outcome).to_owned())];
            self.lookups.get_or_create(&labels).inc_by(*count);
        }
        for source in &plan.sources {
            let state = match source.state {
                SourceState::Ready => "ready",
                SourceState::Late => "late",
                SourceState::Failed => "failed",
                SourceState::Running => continue,
            };
            let labels = [("source", source.id.clone()), ("state", state.to_owned())];
            self.retrievals.get_or_create(&labels).inc();
        }
        for (what, count) in [
            ("directives", summary.dropped),
            ("links", summary.links_dropped),
            ("amounts", summary.amounts_dropped),
            ("availability", summary.availability_dropped),
        ] {
            self.dropped.get_or_create(&[("what", what)]).inc_by(count.into());
        }
    }

    pub(super) fn encode(&self, text: &mut String) {
        encode(&self.registry, text);
    }
}
