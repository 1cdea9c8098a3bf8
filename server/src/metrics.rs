//! Prometheus metrics under vLLM's names, with vLLM's meaning of each count, so that dashboards and gateways made for it
//! need no change.

mod neuron;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use millrace_engine::neuron::NeuronFigures;
use millrace_engine::{KvSpec, Observer, RequestStats, StepStats};
use prometheus_client::encoding::text::encode_registry;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

type FloatGauge = Gauge<f64, AtomicU64>;
type Seconds = Counter<f64, AtomicU64>;

const TTFT: [f64; 22] = [
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
const INTER_TOKEN: [f64; 21] = [
    0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0,
];
const REQUEST: [f64; 21] = [
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];
const ITERATION: [f64; 15] =
    [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

/// The metrics of one engine. Clones share them: one goes to the engine as its observer, one to the
/// [`Model`](crate::Model).
#[derive(Clone)]
pub struct Metrics(Arc<Inner>);

struct Inner {
    neuron: Option<Arc<NeuronFigures>>,
    registry: Registry,
    running: Gauge,
    waiting: Gauge,
    kv_usage: FloatGauge,
    prefix_queries: Counter,
    prefix_hits: Counter,
    preemptions: Counter,
    prompt_tokens: Counter,
    generation_tokens: Counter,
    computed_tokens: Counter,
    host_seconds: Seconds,
    device_seconds: Seconds,
    iteration_tokens: Histogram,
    time_to_first_token: Histogram,
    inter_token_latency: Histogram,
    success: [(&'static str, Counter); 4],
    request_prompt_tokens: Histogram,
    request_generation_tokens: Histogram,
    request_n: Histogram,
    request_max_tokens: Histogram,
    e2e: Histogram,
    queue: Histogram,
    inference: Histogram,
    prefill: Histogram,
    decode: Histogram,
}

/// Values of `finished_reason`. All are exported from the start, so that rates exist.
const REASONS: [&str; 4] = ["stop", "length", "abort", "error"];

/// 1, 2, 5, 10, 20, 50 … up to `max`.
fn one_two_five(max: usize) -> Vec<f64> {
    let decades = (0..).map(|e| 10u64.saturating_pow(e));
    let steps = decades.flat_map(|d| [d, d.saturating_mul(2), d.saturating_mul(5)]);
    steps.take_while(|&v| v <= max.max(1) as u64).map(|v| v as f64).collect()
}

impl Metrics {
    /// Metrics labelled with the model's canonical name.
    pub fn new(model_name: &str, max_model_len: usize, kv: KvSpec) -> Self {
        let mut root = Registry::default();
        let labels = [("model_name".into(), model_name.to_owned().into()), ("engine".into(), "0".into())];
        let r = root.sub_registry_with_labels(labels.into_iter());

        let gauge = |r: &mut Registry, name: &str, help: &str| add(r, name, help, Gauge::default());
        let counter =
            |r: &mut Registry, name: &str, help: &str| add(r, name, help, Counter::<u64>::default());
        let seconds = |r: &mut Registry, name: &str, help: &str| add(r, name, help, Seconds::default());
        let histogram = |r: &mut Registry, name: &str, help: &str, buckets: &[f64]| {
            add(r, name, help, Histogram::new(buckets.iter().copied()))
        };
        let tokens = one_two_five(max_model_len);

        let success: Family<[(&str, &str); 1], Counter> =
            add(r, "vllm:request_success", "Sequences that ended, by reason", Family::default());
        let cache: Family<[(&str, String); 2], Gauge> =
            add(r, "vllm:cache_config_info", "The KV cache's shape, in labels", Family::default());
        let cache_labels =
            [("block_size", kv.block_size.to_string()), ("num_gpu_blocks", kv.blocks.to_string())];
        cache.get_or_create(&cache_labels).set(1);

        let inner = Inner {
            neuron: None,
            running: gauge(r, "vllm:num_requests_running", "Sequences in the batch"),
            waiting: gauge(r, "vllm:num_requests_waiting", "Sequences in the queue"),
            kv_usage: add(r, "vllm:kv_cache_usage_perc", "KV blocks in use; 1 is all", FloatGauge::default()),
            prefix_queries: counter(
                r,
                "vllm:prefix_cache_queries",
                "Prompt tokens looked up in the prefix cache",
            ),
            prefix_hits: counter(r, "vllm:prefix_cache_hits", "Prompt tokens found in the prefix cache"),
            preemptions: counter(r, "vllm:num_preemptions", "Preemptions"),
            prompt_tokens: counter(r, "vllm:prompt_tokens", "Prompt tokens, cached ones included"),
            generation_tokens: counter(r, "vllm:generation_tokens", "Tokens sampled"),
            computed_tokens: counter(r, "millrace:computed_tokens", "Tokens computed, of prompts or not"),
            host_seconds: seconds(r, "millrace:host_seconds", "Time in planning, sampling and committing"),
            device_seconds: seconds(r, "millrace:device_seconds", "Time in the backend"),
            iteration_tokens: histogram(
                r,
                "vllm:iteration_tokens_total",
                "Prompt and generated tokens per iteration",
                &ITERATION,
            ),
            time_to_first_token: histogram(
                r,
                "vllm:time_to_first_token_seconds",
                "From arrival to first token",
                &TTFT,
            ),
            inter_token_latency: histogram(
                r,
                "vllm:inter_token_latency_seconds",
                "From token to token",
                &INTER_TOKEN,
            ),
            success: REASONS
                .map(|reason| (reason, success.get_or_create_owned(&[("finished_reason", reason)]))),
            request_prompt_tokens: histogram(
                r,
                "vllm:request_prompt_tokens",
                "Prompt tokens per request",
                &tokens,
            ),
            request_generation_tokens: histogram(
                r,
                "vllm:request_generation_tokens",
                "Generated tokens per request",
                &tokens,
            ),
            request_n: histogram(r, "vllm:request_params_n", "n asked for", &[1.0, 2.0, 5.0, 10.0, 20.0]),
            request_max_tokens: histogram(
                r,
                "vllm:request_params_max_tokens",
                "max_tokens asked for",
                &tokens,
            ),
            e2e: histogram(r, "vllm:e2e_request_latency_seconds", "From arrival to the end", &REQUEST),
            queue: histogram(
                r,
                "vllm:request_queue_time_seconds",
                "From arrival until first scheduled",
                &REQUEST,
            ),
            inference: histogram(
                r,
                "vllm:request_inference_time_seconds",
                "From first scheduled to the end",
                &REQUEST,
            ),
            prefill: histogram(
                r,
                "vllm:request_prefill_time_seconds",
                "From first scheduled to first token",
                &REQUEST,
            ),
            decode: histogram(r, "vllm:request_decode_time_seconds", "From first token to the end", &REQUEST),
            registry: root,
        };
        Metrics(Arc::new(inner))
    }

    /// The same with what the Neuron backend counts. Before anybody shares them: else they stay as they are.
    pub fn with_neuron(mut self, model_name: &str, figures: Arc<NeuronFigures>) -> Self {
        if let Some(inner) = Arc::get_mut(&mut self.0) {
            let labels = [("model_name".into(), model_name.to_owned().into()), ("engine".into(), "0".into())];
            let registry = inner.registry.sub_registry_with_labels(labels.into_iter());
            registry.register_collector(Box::new(neuron::Collected(figures.clone())));
            inner.neuron = Some(figures);
        }
        self
    }

    /// What the Neuron backend counts, where it is the one that runs.
    pub(crate) fn neuron(&self) -> Option<&NeuronFigures> {
        self.0.neuron.as_deref()
    }

    /// A sequence has ended. The server counts these and not the engine's observer: the engine knows no text, so a
    /// sequence that met a stop string looks there as if its client had gone away.
    pub(crate) fn finished(&self, reason: &'static str) {
        if let Some((_, counter)) = self.0.success.iter().find(|(known, _)| *known == reason) {
            counter.inc();
        }
    }

    pub(crate) fn encode(&self, text: &mut String) {
        encode(&self.0.registry, text);
    }
}

pub(crate) fn add<M: prometheus_client::registry::Metric + Clone>(
    registry: &mut Registry,
    name: &str,
    help: &str,
    metric: M,
) -> M {
    registry.register(name, help, metric.clone());
    metric
}

pub(crate) fn encode(registry: &Registry, text: &mut String) {
    encode_registry(text, registry).unwrap_or_else(|_| unreachable!("writing to a string"));
}

impl Observer for Metrics {
    fn step(&mut self, stats: &StepStats<'_>) {
        let m = &self.0;
        m.running.set(stats.running as i64);
        m.waiting.set(stats.waiting as i64);
        m.kv_usage.set(stats.blocks_used as f64 / stats.blocks_total.max(1) as f64);
        m.prefix_queries.inc_by(stats.prefix_queries as u64);
        m.prefix_hits.inc_by(stats.prefix_hits as u64);
        m.preemptions.inc_by(stats.preemptions as u64);
        m.host_seconds.inc_by(stats.host_seconds);
        if stats.rows == 0 {
            return;
        }
        m.device_seconds.inc_by(stats.device_seconds);
        m.prompt_tokens.inc_by(stats.prompt_tokens as u64);
        m.generation_tokens.inc_by(stats.generation_tokens as u64);
        m.computed_tokens.inc_by(stats.computed_tokens as u64);
        m.iteration_tokens.observe((stats.prompt_tokens + stats.generation_tokens) as f64);
        stats.time_to_first_token.iter().for_each(|&s| m.time_to_first_token.observe(s));
        stats.inter_token_latency.iter().for_each(|&s| m.inter_token_latency.observe(s));
    }

    fn request(&mut self, stats: &RequestStats) {
        let m = &self.0;
        m.request_prompt_tokens.observe(stats.prompt_tokens as f64);
        m.request_generation_tokens.observe(stats.generation_tokens as f64);
        m.request_n.observe(stats.n.into());
        m.request_max_tokens.observe(stats.max_tokens.into());
        m.e2e.observe(stats.e2e);
        m.queue.observe(stats.queue);
        m.inference.observe(stats.prefill + stats.decode);
        m.prefill.observe(stats.prefill);
        m.decode.observe(stats.decode);
    }
}

type HttpLabels = [(&'static str, String); 3];

/// Counts of HTTP responses; they exist before there is a model.
pub(crate) struct HttpMetrics {
    registry: Registry,
    requests: Family<HttpLabels, Counter>,
}

impl HttpMetrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let requests = add(&mut registry, "http_requests", "HTTP responses", Family::default());
        HttpMetrics { registry, requests }
    }

    /// Counts a response. `handler` must come from the router, so that there are few.
    pub(crate) fn count(&self, handler: &str, method: &str, status: u16) {
        let labels =
            [("handler", handler.to_owned()), ("method", method.to_owned()), ("status", status.to_string())];
        self.requests.get_or_create(&labels).inc();
    }

    pub(crate) fn encode(&self, text: &mut String) {
        encode(&self.registry, text);
    }
}

/// OpenMetrics as the Prometheus text format 0.0.4, which names a counter's family as its sample. Readers of the older
/// format would otherwise see the samples as untyped.
pub(crate) fn to_prometheus_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + 512);
    let mut help = None;
    for line in open_metrics.lines() {
        if line.starts_with("# HELP ") {
            help = Some(line);
            continue;
        }
        let family = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' '));
        let suffix = if family.is_some_and(|(_, kind)| kind == "counter") { "_total" } else { "" };
        if let Some((name, kind)) = family {
            if let Some((name, words)) = help.take().and_then(|h| h["# HELP ".len()..].split_once(' ')) {
                text += &format!("# HELP {name}{suffix} {words}\n");
            }
            text += &format!("# TYPE {name}{suffix} {kind}\n");
        } else {
            text += line;
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets() {
        assert_eq!(one_two_five(100), [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        assert_eq!(one_two_five(0), [1.0]);
    }

    #[test]
    fn counters_keep_their_names_in_the_older_format() {
        let metrics = Metrics::new("m", 64, KvSpec { block_size: 16, blocks: 8, bytes: 1 });
        let mut open = String::new();
        metrics.encode(&mut open);
        assert!(open.contains("# TYPE vllm:prompt_tokens counter"), "{open}");
        let text = to_prometheus_text(&open);
        for line in [
            "# HELP vllm:prompt_tokens_total Prompt tokens, cached ones included.",
            "# TYPE vllm:prompt_tokens_total counter",
            "vllm:prompt_tokens_total{model_name=\"m\",engine=\"0\"} 0",
            "# TYPE vllm:iteration_tokens_total histogram",
            "vllm:iteration_tokens_total_count{model_name=\"m\",engine=\"0\"} 0",
            "vllm:request_success_total{model_name=\"m\",engine=\"0\",finished_reason=\"stop\"} 0",
            "vllm:cache_config_info{model_name=\"m\",engine=\"0\",block_size=\"16\",num_gpu_blocks=\"8\"} 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
