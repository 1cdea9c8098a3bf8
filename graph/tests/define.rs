//! Definitions are graphs of primitives with the types that the fused ops' documentation states.

use millrace_graph::define::{definition, inline};
use millrace_graph::{Activation, Attention, Builder, DType, Fused, Graph, GraphError, Op, ParamKind, Type};
use proptest::prelude::*;
use proptest::sample::select;

/// A fused op, the types of its operands, and the type that its documentation gives the result.
#[derive(Clone, Debug)]
struct Case {
    op: Fused,
    operands: Vec<Type>,
    result: Type,
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

fn i32s(shape: impl Into<Vec<usize>>) -> Type {
    Type::new(DType::I32, shape)
}

fn row_wise() -> impl Strategy<Value = Case> {
    let sizes = (1usize..6, 1usize..5, 1usize..9, 0usize..4);
    (float(), weight(), float(), sizes, 0usize..8).prop_map(
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

fn matrices() -> impl Strategy<Value = Case> {
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

fn attention() -> impl Strategy<Value = Case> {
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

fn is_primitive(graph: &Graph) -> bool {
    graph.nodes.iter().all(|node| !matches!(node.op, Op::Fused(_)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn definitions_have_the_documented_types(case in prop_oneof![row_wise(), matrices(), attention()]) {
        let graph = definition(&case.op, &case.operands, &case.result).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert!(is_primitive(&graph));
        prop_assert_eq!(graph.params.len(), case.operands.len());
        for (i, (param, ty)) in graph.params.iter().zip(&case.operands).enumerate() {
            prop_assert_eq!(&param.name, &i.to_string());
            prop_assert_eq!(graph.ty(param.node), ty);
        }
        prop_assert_eq!(graph.outputs.len(), 1);
        prop_assert_eq!(graph.ty(graph.outputs[0].node), &case.result);
        // Nothing is computed that the result does not need.
        let mut needed = vec![false; graph.nodes.len()];
        needed[graph.outputs[0].node.index()] = true;
        for (index, node) in graph.nodes.iter().enumerate().rev() {
            if needed[index] {
                node.inputs.iter().for_each(|id| needed[id.index()] = true);
            }
        }
        for (needed, node) in needed.iter().zip(&graph.nodes) {
            prop_assert!(*needed || matches!(node.op, Op::Parameter(_)), "{graph}");
        }
        let again = inline(&graph).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(again.to_string(), graph.to_string());
    }
}

#[test]
fn a_wrong_result_type_is_refused() {
    let x = Type::new(DType::F32, [2, 4]);
    let refused = |result: Type| {
        definition(&Fused::Scale { factor: 2.0 }, std::slice::from_ref(&x), &result).unwrap_err()
    };
    assert!(refused(Type::new(DType::BF16, [2, 4])).why.contains("yields f32[2,4] and not bf16[2,4]"));
    assert!(refused(Type::new(DType::F32, [8])).location.file().ends_with("define.rs"));
    let operands = [x.clone(), Type::new(DType::F32, [5])];
    assert!(definition(&Fused::RmsNorm { eps: 0.0, offset: 0.0 }, &operands, &x).is_err());
    assert!(definition(&Fused::Rope, &[], &x).is_err());
}

#[test]
fn inlining_keeps_parameters_outputs_and_locations() -> Result<(), GraphError> {
    let mut b = Builder::new("step");
    let ids = b.param("ids", ParamKind::Input, i32s([3]))?;
    let table = b.param("table", ParamKind::Weight, Type::new(DType::Q8_0, [7, 32]))?;
    let cache = b.param("cache", ParamKind::State, Type::new(DType::BF16, [2, 4, 1, 32]))?;
    let x = b.embed(table, ids, 1.0, DType::F32)?;
    let rows = b.reshape(x, &[3, 1, 32])?;
    let cache = b.write_kv(cache, rows, ids)?;
    let x = b.scale(x, 0.5)?;
    b.output("cache", cache, Some("cache"))?;
    b.output("x", x, None)?;
    let graph = b.finish()?;
    let inlined = inline(&graph)?;
    assert!(is_primitive(&inlined) && !is_primitive(&graph));
    for (ours, theirs) in inlined.params.iter().zip(&graph.params) {
        assert_eq!((&ours.name, ours.kind), (&theirs.name, theirs.kind));
        assert_eq!(inlined.ty(ours.node), graph.ty(theirs.node));
    }
    for (ours, theirs) in inlined.outputs.iter().zip(&graph.outputs) {
        assert_eq!((&ours.name, ours.alias), (&theirs.name, theirs.alias));
        assert_eq!(inlined.ty(ours.node), graph.ty(theirs.node));
        assert_eq!(inlined.node(ours.node).location, graph.node(theirs.node).location);
    }
    assert!(inlined.nodes.iter().all(|node| node.location.file() == file!()));
    Ok(())
}
