//! Every family's decoder against logits of the reference implementation, run by the graph evaluator and by
//! the executor.

mod support;

use millrace_graph::{DType, ParamKind};
use millrace_kernels::pool::Pool;
use millrace_kernels::{Executor, Precision, Weights};
use millrace_models::{Checkpoint, Config, StepShape, decoder};
use support::{Golden, Sequence, argmax, distance};

const TOLERANCE: f32 = 1e-4;

/// The checkpoints that are checked in, two prompts each: in one step and in uneven chunks.
#[test]
fn own_checkpoints_agree_with_the_reference() {
    for folder in support::own_checkpoints() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let golden = Golden::open(&folder.join("golden.safetensors"));
        for prompt in 0..2 {
            let (_, ids) = golden.ids(&format!("input_ids.{prompt}"));
            let (_, expected) = golden.floats(&format!("logits.{prompt}"));
            // The reference takes LongRoPE's divisors by the length at hand; here the context decides.
            let config = checkpoint.config();
            let config = match ids.len() > config.context {
                true => config.with_context(config.max_context).unwrap(),
                false => config.clone(),
            };
            let mut sequence = Sequence::new(&checkpoint, config);
            let whole = sequence.extend(&ids, true).concat();
            let off = distance(&whole, &expected);
            assert!(off <= TOLERANCE, "{name}: prompt {prompt} is off by {off}");

            sequence.restart();
            let (first, rest) = ids.split_at(5);
            let mut chunked = sequence.extend(first, false);
            for token in &rest[..2] {
                chunked.extend(sequence.extend(&[*token], true));
            }
            chunked.extend(sequence.extend(&rest[2..], false));
            let off = distance(&chunked.concat(), &expected);
            assert!(off <= TOLERANCE, "{name}: prompt {prompt} in chunks is off by {off}");
        }
    }
}

/// The checkpoints beside the repository: logits at every position, and greedy continuations.
#[test]
fn shared_checkpoints_agree_with_the_reference() {
    let names =
        ["llama", "llama_tied", "llama3_rope", "mistral_window", "qwen2", "qwen3", "qwen3_moe", "gemma3"];
    for name in names {
        let Some(folder) = support::shared(&format!("golden/{name}")) else {
            support::skipped(&format!("golden/{name} is not there"));
            continue;
        };
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let golden = Golden::open(&folder.join("golden.safetensors"));
        let (shape, ids) = golden.ids("input_ids");
        let (_, expected) = golden.floats("logits");
        let (_, greedy) = golden.ids("greedy");
        let (prompts, length, vocab) = (shape[0], shape[1], checkpoint.config().vocab);
        let mut sequence = Sequence::new(&checkpoint, checkpoint.config().clone());
        for prompt in 0..prompts {
            sequence.restart();
            let ids = &ids[prompt * length..][..length];
            let logits = sequence.extend(ids, true).concat();
            let off = distance(&logits, &expected[prompt * length * vocab..][..length * vocab]);
            assert!(off <= TOLERANCE, "{name}: prompt {prompt} is off by {off}");

            sequence.restart();
            let greedy = &greedy[prompt * (greedy.len() / prompts)..][..greedy.len() / prompts];
            let mut logits = sequence.extend(&greedy[..20], true);
            for (step, expected) in greedy[20..].iter().enumerate() {
                let next = argmax(logits.last().unwrap());
                assert_eq!(next, *expected, "{name}: prompt {prompt}, greedy token {step}");
                logits = sequence.extend(&[next], true);
            }
        }
    }
}

/// The checkpoints that are checked in, once more on the executor with its packed weights and fast paths.
#[test]
fn the_executor_agrees_with_the_reference() {
    for folder in support::own_checkpoints() {
        let name = folder.file_name().unwrap().to_string_lossy().into_owned();
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let golden = Golden::open(&folder.join("golden.safetensors"));
        for prompt in 0..2 {
            let (_, ids) = golden.ids(&format!("input_ids.{prompt}"));
            let (_, expected) = golden.floats(&format!("logits.{prompt}"));
            let config = checkpoint.config();
            let context = if ids.len() > config.context { config.max_context } else { config.context };
            let found = execute(&checkpoint, &config.with_context(context).unwrap(), &ids);
            let off = distance(&found, &expected);
            assert!(off <= TOLERANCE, "{name}: prompt {prompt} is off by {off}");
        }
    }
}

/// Logits at every position, from one step.
fn execute(checkpoint: &Checkpoint, config: &Config, ids: &[u32]) -> Vec<f32> {
    let count = ids.len();
    let shape = StepShape {
        tokens: count,
        rows: 1,
        table_blocks: 3,
        logits: count,
        width: None,
        kv_blocks: 3,
        block_size: 8,
        kv_dtype: DType::F32,
        compute: DType::F32,
    };
    let graph = decoder(config, &shape, &|name| checkpoint.weight_type(name)).unwrap();
    let pool = Pool::new(2);
    let mut weights = Weights::new();
    for param in graph.params.iter().filter(|param| param.kind == ParamKind::Weight) {
        if param.name == "head" && checkpoint.tied() {
            weights.share("head", "embed").unwrap();
        } else {
            weights.insert(&param.name, &checkpoint.weight(&param.name).unwrap(), &pool).unwrap();
        }
    }
    let mut executor = Executor::new(pool, Precision::Reference, weights);
    executor.allocate(&graph).unwrap();
    let plan = executor.plan(&graph).unwrap();
    let tokens: Vec<i32> = ids.iter().map(|id| *id as i32).collect();
    let positions: Vec<i32> = (0..count as i32).collect();
    let rows = vec![0; count];
    let mut logits = vec![0.0; count * config.vocab];
    executor
        .run(&plan, &[&tokens, &positions, &rows, &positions, &[0, 1, 2], &positions], &mut [&mut logits])
        .unwrap();
    logits
}
