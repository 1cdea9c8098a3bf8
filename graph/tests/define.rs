//! Definitions are graphs of primitives with the types that the fused ops' documentation states.

mod cases;

use cases::i32s;
use millrace_graph::define::{definition, inline};
use millrace_graph::{Builder, DType, Fused, Graph, GraphError, Op, ParamKind, Type};
use proptest::prelude::*;

fn is_primitive(graph: &Graph) -> bool {
    graph.nodes.iter().all(|node| !matches!(node.op, Op::Fused(_)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn definitions_have_the_documented_types(case in cases::cases()) {
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
