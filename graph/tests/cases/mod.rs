//! Fused ops over random types.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(unreachable_pub, reason = "a module of several test binaries")]

use millrace_graph::{Activation, Attention, DType, Fused, Type};
use proptest::prelude::*;
use proptest::sample::select;

/// A fused op, the types of its operands, and the type that its documentation gives the result.
#[derive(Clone, Debug)]
pub struct Case {
    pub op: Fused,
    pub operands: Vec<Type>,
    pub result: Type,
}

fn float() -> impl Strategy<Value = DType> {
    select(vec![DType::F32, DType::BF16, DType::F16])
}

/// Types that a weight may have whose rows are a multiple of 256 long, and others.
fn weight() -> impl Strategy<Value = DType> {
    select(vec![DType::F32, DType::BF16, DType::F16, DType::Q8_0, DType::Q4_1, DType::Q4K, DType::Q6K])
}

fn activation() -> impl Strategy<Value = Activation> {
    select(vec![Activation::Silu, Activation::GeluTanh])
}

/// Rounds a row length up to whole blocks.
fn whole(dtype: DType, length: usize) -> usize {
    length.next_multiple_of(dtype.block_len())
}

pub fn i32s(shape: impl Into<Vec<usize>>) -> Type {
    Type::new(DType::I32, shape)
}

pub fn row_wise() -> impl Strategy<Value = Case> {
    let sizes = (1usize..6, 1usize..5, 1usize..9, 0usize..4);
    (float(), weight(), float(), sizes, 0usize..12).prop_map(
        |(act, stored, plain, (t, h, d, extra), which)| {
            let case = |op, operands: Vec<Type>, result| Case { op, operands, result };
            let x = Type::new(act, [t, d]);
            match which {
                0 => {
                    let dim = whole(stored, d);
                    let table = Type::new(stored, [h + 5, dim]);
                    case(Fused::Embed { scale: d as f32 }, vec![table, i32s([t])], Type::new(plain, [t, dim]))
                }
                1 => {
                    let x = Type::new(act, [t, h, d]);
                    let norm = Fused::RmsNorm { eps: 1e-5, offset: extra as f32 };
                    case(norm, vec![x.clone(), Type::new(plain, [d])], x)
                }
                2 => {
                    let angles = Type::new(DType::F32, [t, 2, d]);
                    let inv_freq = vec![0.5; d].into();
                    case(Fused::RopeAngles { inv_freq, scale: h as f32 }, vec![i32s([t])], angles)
                }
                3 => {
                    let x = Type::new(act, [t, h, 2 * d + extra]);
                    case(Fused::Rope, vec![x.clone(), Type::new(DType::F32, [t, 2, d])], x)
                }
                4 => case(Fused::Softcap { cap: 30.0 }, vec![x.clone()], x),
                5 => case(Fused::Scale { factor: 0.5 }, vec![x.clone()], x),
                8 => {
                    let x = Type::new(act, [t, h, d]);
                    let vector = Type::new(plain, [d]);
                    case(Fused::LayerNorm { eps: 1e-5 }, vec![x.clone(), vector.clone(), vector], x)
                }
                9 => case(Fused::Gelu, vec![x.clone()], x),
                10 => {
                    let x = Type::new(act, [t * (extra + 1), h, d]);
                    let operands = vec![x.clone(), x.clone(), x.clone(), i32s([t])];
                    case(Fused::FullAttention { scale: 0.3 }, operands, x)
                }
                11 => {
                    let operands = vec![Type::new(act, [t * h, d]), i32s([t])];
                    case(Fused::MeanPool, operands, Type::new(act, [t, d]))
                }
                6 => case(Fused::SelectRows, vec![x, i32s([h])], Type::new(act, [h, d])),
                _ => {
                    let values = Type::new(act, [t, h, d]);
                    let cache = Type::new(plain, [extra + 1, t, h, d]);
                    case(Fused::WriteKv, vec![cache.clone(), values, i32s([t])], cache)
                }
            }
        },
    )
}

pub fn matrices() -> impl Strategy<Value = Case> {
    let parts = prop::collection::vec((weight(), 1usize..5), 1..4);
    let plain = (float(), activation(), 1usize..4, 1usize..4);
    (float(), 1usize..5, parts, plain, any::<[bool; 2]>(), 0usize..3).prop_map(
        |(act, t, parts, (plain, gate, experts, top_k), [flag, blocks], which)| {
            let k = if blocks { 256 } else { 8 };
            let stored = |dtype: DType| if blocks { dtype } else { plain };
            let x = Type::new(act, [t, k]);
            match which {
                0 => {
                    let mut operands = vec![x];
                    operands.extend(parts.iter().map(|(dtype, n)| Type::new(stored(*dtype), [*n, k])));
                    if flag {
                        operands.extend(parts.iter().map(|(_, n)| Type::new(plain, [*n])));
                    }
                    let columns: usize = parts.iter().map(|(_, n)| n).sum();
                    let op = Fused::Linear { weights: parts.len(), bias: flag };
                    Case { op, operands, result: Type::new(act, [t, columns]) }
                }
                1 => {
                    let f = parts[0].1;
                    let (gate_weight, up) = (stored(parts[0].0), stored(parts[parts.len() - 1].0));
                    let operands = vec![x, Type::new(gate_weight, [f, k]), Type::new(up, [f, k])];
                    let result = Type::new(act, [t, f]);
                    Case { op: Fused::GatedLinear { act: gate }, operands, result }
                }
                _ => {
                    let (stored, f) = (stored(parts[0].0), whole(stored(parts[0].0), parts[0].1));
                    let up = Type::new(stored, [experts, f, k]);
                    let down = Type::new(stored, [experts, k, f]);
                    let router = Type::new(act, [t, experts]);
                    let op = Fused::Experts { top_k: top_k.min(experts), normalise: flag, act: gate };
                    Case { op, operands: vec![x.clone(), router, up.clone(), up, down], result: x }
                }
            }
        },
    )
}

pub fn attention() -> impl Strategy<Value = Case> {
    let heads = (1usize..4, 1usize..4, 1usize..6);
    let cache = (1usize..4, 1usize..5, 1usize..4);
    let how = (prop::option::of(0usize..5), prop::option::of(1f32..50.0), prop::option::of(1usize..4));
    (float(), float(), heads, cache, how, 1usize..4, 1usize..6).prop_map(
        |(act, stored, (g, group, d), (b, s, m), (window, softcap, width), r, ragged)| {
            let t = width.map_or(ragged, |width| r * width);
            let q = Type::new(act, [t, g * group, d]);
            let cache = Type::new(stored, [b, s, g, d]);
            let mut operands = vec![q.clone(), cache.clone(), cache, i32s([r, m]), i32s([t])];
            if width.is_none() {
                operands.push(i32s([t]));
            }
            let op = Fused::PagedAttention(Attention { scale: 0.3, window, softcap, width });
            Case { op, operands, result: q }
        },
    )
}

/// Any fused op.
pub fn cases() -> impl Strategy<Value = Case> {
    prop_oneof![row_wise(), matrices(), attention()]
}
