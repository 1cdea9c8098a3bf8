//! What the Neuron backend counts, under the names of vLLM's plugin for these devices. Its counts of padding are
//! totals here.

use std::fmt;
use std::sync::Arc;

use millrace_engine::neuron::NeuronFigures;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::{MetricType, TypedMetric};

#[derive(Debug)]
pub(super) struct Collected(pub(super) Arc<NeuronFigures>);

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let figures = &*self.0;
        let out = &mut encoder;
        let count = |value: u64| ConstCounter::new(value);
        one(
            out,
            "num_seqs_padding",
            "Rows of executions without a sequence",
            count(figures.sequences_padding()),
        )?;
        let tokens = count(figures.tokens_padding());
        one(out, "num_batched_tokens_padding", "Tokens of executions that stood for nothing", tokens)?;
        let startup = ConstGauge::new(figures.startup_seconds);
        one(out, "startup_time_seconds", "From opening the runtime to readiness", startup)?;
        let load = ConstGauge::new(figures.model_load_seconds);
        one(out, "model_load_time_seconds", "Uploading the weights", load)?;
        let bytes = ConstGauge::new(figures.model_load_bytes as f64);
        one(out, "model_load_size_bytes", "Weights on all cores", bytes)?;

        let (name, help) = ("vllm_neuron:neff_execution_count", "Executions of each compiled program");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for program in &figures.programs {
            let labels = [("bucket_name", program.bucket.as_str())];
            ConstCounter::new(program.executions()).encode(family.encode_family(&labels)?)?;
        }
        let (name, help) =
            ("vllm_neuron:compilation_time_seconds", "Compiling each program, whenever it was");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for program in &figures.programs {
            let labels = [("bucket_name", program.bucket.as_str())];
            if let Some(seconds) = program.compilation_seconds() {
                ConstGauge::new(seconds).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

fn one<M: EncodeMetric + TypedMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    metric: M,
) -> fmt::Result {
    let name = format!("vllm_neuron:{name}");
    metric.encode(encoder.encode_descriptor(&name, help, None, M::TYPE)?)
}
