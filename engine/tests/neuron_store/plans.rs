//! Plans: what fits, what does not, and what is said then.

use millrace_engine::neuron::buckets::Limits;
use millrace_engine::neuron::memory::{KvOptions, MemoryError};
use millrace_engine::neuron::{PlanError, PlanOptions, Target, plan};
use millrace_graph::DType;
use millrace_models::device::{DeviceModel, DeviceWeights, TopKForm, device_weights};
use millrace_models::{Config, read_config};

fn large() -> Config {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/llama_8b");
    read_config(&path).expect("the configuration is read")
}

fn options(target: Target, ranks: usize) -> PlanOptions {
    let model = DeviceModel {
        ranks,
        dtype: DType::BF16,
        weights: DeviceWeights::Float,
        candidates: 64,
        top_k: TopKForm::Hlo,
        block_size: 1,
        kv_blocks: 1,
    };
    let limits = Limits { max_num_seqs: 8, max_model_len: 4096, max_num_batched_tokens: 256, block_size: 16 };
    let kv = KvOptions::default();
    PlanOptions {
        name: "large".into(),
        target,
        model,
        limits,
        kv,
        buckets: None,
        histogram: None,
        compiler_flags: Vec::new(),
    }
}

#[test]
fn eight_billion_parameters_need_more_than_one_core() {
    let config = large();
    let error = plan(&config, &options(Target::Inf2, 1)).expect_err("15 GiB of weights");
    let PlanError::Memory(MemoryError::DoesNotFit { weights, .. }) = &error else { panic!("{error}") };
    assert!((14 << 30..16 << 30).contains(weights), "{weights}");
    assert!(error.to_string().contains("--tensor-parallel-size"), "{error}");
    let planned = plan(&config, &options(Target::Inf2, 8)).expect("it fits 8 cores");
    let memory = &planned.memory;
    let used = memory.weights + memory.kv + memory.scratch + memory.programs + memory.runtime;
    assert!(used <= memory.total, "{memory}");
    assert_eq!(planned.spec.model.kv_blocks, memory.kv_blocks);
    // One KV head a core: 2 · 32 layers · 16 tokens · 128 · 2 bytes.
    assert_eq!(memory.block, 2 * 32 * 16 * 128 * 2);
    let exact = device_weights(&config, &planned.spec.model).expect("weights");
    let exact: usize = exact.iter().map(|(_, ty)| ty.bytes().expect("whole")).sum();
    assert_eq!(memory.weights, exact as u64);
    // All sequences at their longest, and room for the padding of the widest graph.
    assert_eq!(memory.kv_blocks, 8 * 256 + 16);
}

#[test]
fn the_kv_cache_can_be_chosen_within_what_is_there() {
    let config = large();
    let mut options = options(Target::Trn2, 4);
    options.limits.max_num_seqs = 2;
    let with =
        |bytes: u64| plan(&config, &PlanOptions { kv: KvOptions { bytes: Some(bytes) }, ..options.clone() });
    let block = plan(&config, &options).expect("it fits").memory.block;
    let least = 256 + 16;
    assert_eq!(with(block * least).expect("just enough").memory.kv_blocks as u64, least);
    let error = with(block * least - 1).expect_err("one byte short");
    assert!(error.to_string().contains(&format!("at least {} bytes", block * least)), "{error}");
    let error = with(1 << 40).expect_err("more than a core has");
    assert!(matches!(error, PlanError::Memory(MemoryError::DoesNotFit { .. })), "{error}");
}

#[test]
fn limits_that_make_no_sense_are_refused() {
    let config = large();
    let good = options(Target::Trn1, 8);
    for (flag, change) in [
        ("--max-num-seqs", (|l: &mut Limits| l.max_num_seqs = 0) as fn(&mut Limits)),
        ("--max-model-len", |l| l.max_model_len = 8193),
        ("--block-size", |l| l.block_size = 0),
        ("--max-num-batched-tokens", |l| l.max_num_batched_tokens = usize::MAX),
    ] {
        let mut options = good.clone();
        change(&mut options.limits);
        let error = plan(&config, &options).expect_err(flag);
        assert!(error.to_string().contains(flag), "{error}");
    }
    // 32 query heads are not shared by 5 cores.
    assert!(matches!(
        plan(&config, &options(Target::Trn1, 5)),
        Err(PlanError::Memory(MemoryError::Model(_)))
    ));
}
