//! Writing the HLO of a model of 32 layers in the shape of Llama 3.1 8B: a decode of 32 rows and a prompt chunk of 512
//! tokens, each over a context of 2048, on one core and as one of eight. No checkpoint is needed.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use millrace_graph::hlo::{HloOptions, write};
use millrace_graph::{Activation, DType};
use millrace_models::device::{Bucket, DeviceModel, DeviceWeights, TopKForm, device_decoder};
use millrace_models::{Config, Layer, Mlp, QkNorm, Rope, RopeScaling};

const BLOCK: usize = 32;

fn config() -> Config {
    let layer = Layer { window: None, rope: Some(0), mlp: Mlp::Dense { ffn: 14336 } };
    Config {
        architecture: "LlamaForCausalLM".into(),
        vocab: 128_256,
        hidden: 4096,
        heads: 32,
        kv_heads: 8,
        head_dim: 128,
        layers: vec![layer; 32],
        ropes: vec![Rope { dim: 128, theta: 500_000.0, scaling: RopeScaling::None }],
        eps: 1e-5,
        context: 8192,
        max_context: 131_072,
        bos: None,
        eos: Vec::new(),
        dtype: DType::BF16,
        tied: false,
        activation: Activation::Silu,
        norm_offset: 0.0,
        pre_norm: true,
        post_norm: false,
        qk_norm: QkNorm::None,
        qkv_bias: false,
        o_bias: false,
        attention_scale: 128f32.sqrt().recip(),
        attention_softcap: None,
        logit_softcap: None,
        embed_scale: 1.0,
        residual_scale: 1.0,
        logit_scale: 1.0,
    }
}

fn writing(c: &mut Criterion) {
    let config = config();
    let mut group = c.benchmark_group("hlo");
    group.sample_size(20);
    for (what, rows, width) in [("decode", 32, 1), ("chunk", 1, 512)] {
        for ranks in [1, 8] {
            let model = DeviceModel {
                ranks,
                dtype: DType::BF16,
                weights: DeviceWeights::Float,
                candidates: 64,
                top_k: TopKForm::Hlo,
                block_size: BLOCK,
                kv_blocks: 4096,
            };
            let bucket = Bucket { rows, width, blocks: 2048 / BLOCK, adjust: true };
            group.bench_function(BenchmarkId::new(what, format!("{ranks} ranks")), |b| {
                b.iter(|| {
                    let graph = device_decoder(&config, &model, &bucket).expect("eight ranks divide it");
                    write(&graph, &HloOptions::default()).expect("the device takes it")
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, writing);
criterion_main!(benches);
