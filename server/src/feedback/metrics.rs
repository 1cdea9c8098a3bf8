//! What is counted of feedback.

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::record::Opinion;
use crate::metrics::{add, encode};

type Label = [(&'static str, &'static str); 1];

pub(crate) struct FeedbackMetrics {
    registry: Registry,
    votes: Family<Label, Counter>,
    answers: Family<Label, Counter>,
    pub(crate) queue: Gauge,
    pub(crate) write_seconds: Histogram,
    pub(crate) failures: Counter,
}

impl FeedbackMetrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let r = &mut registry;
        let times = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0];
        let votes = add(r, "millrace:feedback_votes", "Votes stored, by value", Family::default());
        let answers = add(
            r,
            "millrace:feedback_answers",
            "Answers for the feedback store, by outcome",
            Family::default(),
        );
        let queue = add(
            r,
            "millrace:feedback_queue",
            "Records and requests that wait to be stored",
            Gauge::default(),
        );
        let help = "Time to write and sync a batch of records";
        let write_seconds = add(r, "millrace:feedback_write_seconds", help, Histogram::new(times));
        let failures =
            add(r, "millrace:feedback_failures", "Batches that could not be stored", Counter::default());
        let metrics = FeedbackMetrics { registry, votes, answers, queue, write_seconds, failures };
        // So that they are there, at 0, before anybody votes.
        Opinion::ALL.iter().for_each(|value| drop(metrics.votes.get_or_create(&[("value", value.name())])));
        metrics.answer("stored", 0);
        metrics.answer("dropped", 0);
        metrics
    }

    pub(crate) fn vote(&self, value: Opinion) {
        self.votes.get_or_create(&[("value", value.name())]).inc();
    }

    pub(crate) fn answer(&self, outcome: &'static str, count: u64) {
        self.answers.get_or_create(&[("outcome", outcome)]).inc_by(count);
    }

    pub(crate) fn encode(&self, text: &mut String) {
        encode(&self.registry, text);
    }
}
