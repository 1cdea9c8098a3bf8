//! HLO modules: what is written is read back as it was, passes the lint, and is the same bytes everywhere; every
//! other form is refused.

mod cases;

use millrace_graph::define::{definition, inline};
use millrace_graph::hlo::proto::{HloInstructionProto, HloModuleProto, LayoutProto, LiteralProto};
use millrace_graph::hlo::{AliasKind, HloError, HloOptions, lint, module, read, write};
use millrace_graph::{
    Attention, Binary, Builder, DType, GatherDims, Graph, GraphError, Literal, NodeId, Op, ParamKind,
    Reduction, ScatterDims, Type,
};
use proptest::prelude::*;
use prost::Message;

fn f32s(shape: &[usize]) -> Type {
    Type::new(DType::F32, shape)
}

fn i32s(shape: &[usize]) -> Type {
    Type::new(DType::I32, shape)
}

/// The graph as it reads after a round trip: parameters first and in order, states those that an output replaces,
/// and every other one an input.
fn canonical(graph: &Graph) -> Graph {
    let mut graph = graph.clone();
    let mut order: Vec<NodeId> = graph.params.iter().map(|param| param.node).collect();
    let others = (0..graph.nodes.len() as u32).map(NodeId);
    order.extend(others.filter(|id| !matches!(graph.node(*id).op, Op::Parameter(_))));
    let mut place = vec![NodeId(0); order.len()];
    for (to, from) in order.iter().enumerate() {
        place[from.index()] = NodeId(to as u32);
    }
    graph.nodes = order.iter().map(|id| graph.node(*id).clone()).collect();
    graph.nodes.iter_mut().flat_map(|node| &mut node.inputs).for_each(|id| *id = place[id.index()]);
    for (index, param) in graph.params.iter_mut().enumerate() {
        param.node = place[param.node.index()];
        let replaced = graph.outputs.iter().any(|output| output.alias.is_some_and(|id| id.index() == index));
        param.kind = if replaced { ParamKind::State } else { ParamKind::Input };
    }
    graph.outputs.iter_mut().for_each(|output| output.node = place[output.node.index()]);
    graph
}

fn fail(error: impl std::fmt::Display) -> TestCaseError {
    TestCaseError::fail(error.to_string())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn definitions_come_back_as_they_were(case in cases::cases(), kind in 0usize..3) {
        let graph = definition(&case.op, &case.operands, &case.result).map_err(fail)?;
        let options = HloOptions { alias: [AliasKind::Undefined, AliasKind::May, AliasKind::Must][kind] };
        let written = write(&graph, &options);
        if let Some(quantised) = case.operands.iter().position(|ty| ty.dtype.is_quantised()) {
            let refused = matches!(written, Err(HloError::Quantised { name, .. }) if name == quantised.to_string());
            prop_assert!(refused);
            return Ok(());
        }
        let written = written.map_err(fail)?;
        lint(&module(&graph, &options).map_err(fail)?).map_err(fail)?;
        let back = read(&written).map_err(fail)?;
        prop_assert_eq!(back.to_string(), canonical(&graph).to_string());
        prop_assert_eq!(write(&back, &options).map_err(fail)?, written);
    }

    /// Damage is refused or gives another well-formed graph, and never a panic.
    #[test]
    fn damaged_bytes_are_refused_or_a_graph(at: prop::sample::Index, to: u8, cut: prop::sample::Index) {
        let good = write(&step().map_err(fail)?, &HloOptions::default()).map_err(fail)?;
        let mut bad = good.clone();
        bad[at.index(good.len())] = to;
        for bytes in [&bad[..], &good[..cut.index(good.len())]] {
            if let Ok(graph) = read(bytes) {
                prop_assert!(graph.verify().is_ok());
                prop_assert_eq!(write(&graph, &HloOptions::default()).map_err(fail)?.len(), bytes.len());
            }
        }
    }
}

/// One layer's attention: a paged cache written and read, for two rows of one token.
fn step() -> Result<Graph, GraphError> {
    let mut b = Builder::new("step");
    let q = b.param("q", ParamKind::Input, f32s(&[2, 4, 8]))?;
    let positions = b.param("positions", ParamKind::Input, i32s(&[2]))?;
    let slots = b.param("slots", ParamKind::Input, i32s(&[2]))?;
    let tables = b.param("block_tables", ParamKind::Input, i32s(&[2, 3]))?;
    let k = b.param("k_cache.0", ParamKind::State, f32s(&[5, 4, 2, 8]))?;
    let v = b.param("v_cache.0", ParamKind::State, f32s(&[5, 4, 2, 8]))?;
    let angles = b.rope_angles(positions, vec![1.0, 0.25].into(), 1.0)?;
    let turned = b.rope(q, angles)?;
    let new = b.slice(turned, 1, 0, 2)?;
    let (k, v) = (b.write_kv(k, new, slots)?, b.write_kv(v, new, slots)?);
    let how = Attention { scale: 0.5, window: None, softcap: None, width: Some(1) };
    let y = b.paged_attention(&[turned, k, v, tables, positions], how)?;
    let y = b.reshape(y, &[2, 32])?;
    let norm = b.param("norm", ParamKind::Weight, Type::new(DType::BF16, [32]))?;
    let y = b.rms_norm(y, norm, 1e-6, 0.0)?;
    let y = b.push(Op::AllReduce { op: Reduction::Add, groups: vec![vec![0, 1]] }, &[y])?;
    b.output("y", y, None)?;
    b.output("k_cache.0", k, Some("k_cache.0"))?;
    b.output("v_cache.0", v, Some("v_cache.0"))?;
    b.finish()
}

/// The bytes, and the graph that they read as, are kept beside this test: whatever changes them makes every compiled
/// artefact in a store another's. After a change on purpose, `MILLRACE_UPDATE_SNAPSHOTS` writes the new ones.
#[test]
fn bytes_do_not_depend_on_the_process_or_the_machine() {
    let bytes = write(&step().unwrap(), &HloOptions::default()).unwrap();
    let printed = read(&bytes).unwrap().to_string().into_bytes();
    for (file, found) in [("step.hlo.txt", printed), ("step.hlo.pb", bytes)] {
        let kept = format!("{}/tests/data/{file}", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("MILLRACE_UPDATE_SNAPSHOTS").is_some() {
            std::fs::write(&kept, &found).unwrap();
        }
        assert!(found == std::fs::read(&kept).unwrap(), "the module is not that of {kept}");
    }
}

#[test]
fn a_step_reads_as_its_inlined_graph() {
    let graph = step().unwrap();
    let back = read(&write(&graph, &HloOptions::default()).unwrap()).unwrap();
    let inlined = inline(&graph).unwrap();
    assert_eq!(back.to_string(), canonical(&inlined).to_string());
    assert!(back.params.iter().filter(|param| param.kind == ParamKind::State).count() == 2);
}

/// Every element type, literals of many elements, a single aliased result.
#[test]
fn constants_and_single_results_come_back() -> Result<(), GraphError> {
    let many = [
        (DType::F32, Literal::Float(vec![1.5, -0.0, 1e-42].into())),
        (DType::BF16, Literal::Float(vec![1.5, -0.0, 3.0].into())),
        (DType::F16, Literal::Float(vec![1.5, -0.0, 65504.0].into())),
        (DType::I32, Literal::Int(vec![i64::from(i32::MIN), 0, 7].into())),
        (DType::U32, Literal::Int(vec![0, 1, i64::from(u32::MAX)].into())),
        (DType::I8, Literal::Int(vec![-128, 0, 127].into())),
        (DType::U8, Literal::Int(vec![0, 1, 255].into())),
        (DType::Pred, Literal::Int(vec![0, 1, 0].into())),
    ];
    for (dtype, literal) in many {
        for (literal, shape) in [
            (literal.clone(), vec![3]),
            (literal, vec![1, 3]),
            (Literal::int(1), vec![]),
            (Literal::int(1), vec![4]),
        ] {
            let suits = literal.suits(dtype);
            let literal = if suits { literal } else { Literal::float(1.0) };
            let mut b = Builder::new("constant");
            let state = b.param("state", ParamKind::State, Type::new(dtype, shape.clone()))?;
            b.reshape(state, &shape)?;
            let constant = b.constant(Type::new(dtype, shape), literal)?;
            b.output("state", constant, Some("state"))?;
            let graph = b.finish()?;
            let module = module(&graph, &HloOptions::default()).unwrap();
            let entry = module.computations.last().unwrap();
            assert_eq!(entry.instructions.last().unwrap().opcode, "copy");
            let aliases = module.input_output_alias.as_ref().unwrap();
            assert!(aliases.entries.len() == 1 && aliases.entries[0].output_shape_index.is_empty());
            assert_eq!(aliases.entries[0].kind, 2);
            let back = read(&module.encode_to_vec()).unwrap();
            assert_eq!(back.to_string(), graph.to_string());
            assert_eq!(back.nodes[2].op, graph.nodes[2].op);
        }
    }
    Ok(())
}

/// Graphs that the device has no HLO for.
#[test]
fn what_the_device_cannot_do_is_not_written() -> Result<(), GraphError> {
    type Build = fn(&mut Builder, NodeId, NodeId) -> Result<NodeId, GraphError>;
    let row = |b: &mut Builder, x: NodeId, indices: NodeId| {
        let dims = GatherDims {
            offset_dims: vec![1],
            collapsed_slice_dims: vec![0],
            start_index_map: vec![0],
            index_vector_dim: 1,
            slice_sizes: vec![1, 4],
        };
        b.gather(x, indices, dims)
    };
    let cases: [(&str, Build); 8] = [
        ("infinite", |b, _, _| b.constant(f32s(&[2]), Literal::float(f32::INFINITY))),
        ("no finite", |b, _, _| b.constant(Type::new(DType::F16, [2]), Literal::float(1e6))),
        ("the constant 300 is no u8", |b, _, _| b.constant(Type::new(DType::U8, [2]), Literal::int(300))),
        ("computes in f32", |b, _, i| b.dot(i, i, Default::default(), DType::I32)),
        ("computes in f32", |b, _, i| {
            b.push(Op::AllReduce { op: Reduction::Add, groups: vec![vec![0, 1]] }, &[i])
        }),
        ("dimension of 0", |b, _, _| b.iota(f32s(&[0, 2]), 1)),
        ("more than 8 dimensions", |b, x, _| b.reshape(x, &[3, 1, 1, 1, 1, 1, 1, 1, 4])),
        ("dimension of 4294967296", |b, _, i| {
            let one = b.slice(i, 0, 0, 1)?;
            b.broadcast(one, &[1, 1 << 32], &[0])
        }),
    ];
    for (message, build) in cases {
        let mut b = Builder::new("refused");
        let x = b.param("x", ParamKind::Input, f32s(&[3, 4]))?;
        let i = b.param("i", ParamKind::Input, i32s(&[3]))?;
        let y = build(&mut b, x, i)?;
        b.output("y", y, None)?;
        let error = write(&b.finish()?, &HloOptions::default()).unwrap_err().to_string();
        assert!(error.contains(message) || message == "infinite" && error.contains("inf"), "{error}");
    }
    // Indices that are out of bounds whatever the inputs, and the same ones within.
    for (count, low, fits) in [(3, 0, true), (4, 0, false), (3, -1, false), (3, 2, true), (3, 3, false)] {
        let mut b = Builder::new("bounds");
        let x = b.param("x", ParamKind::State, f32s(&[3, 4]))?;
        let indices = match low {
            0 => b.iota(i32s(&[count]), 0)?,
            low => b.constant(i32s(&[count]), Literal::int(low))?,
        };
        let indices = b.reshape(indices, &[count])?;
        let y = row(&mut b, x, indices)?;
        b.output("y", y, None)?;
        assert_eq!(write(&b.finish()?, &HloOptions::default()).is_ok(), fits, "{count} from {low}");

        let mut b = Builder::new("bounds");
        let x = b.param("x", ParamKind::State, f32s(&[3, 4]))?;
        let updates = b.param("updates", ParamKind::Input, f32s(&[count, 4]))?;
        let indices = match low {
            0 => b.iota(i32s(&[count]), 0)?,
            low => b.constant(i32s(&[count]), Literal::int(low))?,
        };
        let dims = ScatterDims {
            update_window_dims: vec![1],
            inserted_window_dims: vec![0],
            scatter_dims_to_operand_dims: vec![0],
            index_vector_dim: 1,
        };
        let y = b.scatter(x, indices, updates, dims)?;
        b.output("x", y, Some("x"))?;
        assert_eq!(write(&b.finish()?, &HloOptions::default()).is_ok(), fits, "{count} from {low}");
    }
    for name in ["a,b", "", "a\"b", "a\nb"] {
        let mut b = Builder::new("names");
        let x = b.param("x", ParamKind::Input, f32s(&[3, 4]))?;
        b.output(name, x, None)?;
        let error = write(&b.finish()?, &HloOptions::default()).unwrap_err();
        assert!(matches!(error, HloError::Unsupported { .. }), "{error}");
    }
    let mut b = Builder::new("nothing");
    b.param("x", ParamKind::Input, f32s(&[3, 4]))?;
    assert!(write(&b.finish()?, &HloOptions::default()).unwrap_err().to_string().contains("no output"));
    Ok(())
}

/// The first instruction of an opcode in the entry computation.
fn of<'a>(module: &'a mut HloModuleProto, opcode: &str) -> &'a mut HloInstructionProto {
    let entry = module.computations.last_mut().unwrap();
    entry.instructions.iter_mut().find(|instruction| instruction.opcode == opcode).unwrap()
}

/// Each change to a module that passes makes one that is refused, for that reason.
#[test]
fn every_other_form_is_refused() {
    type Seed = (&'static str, fn(&mut HloModuleProto));
    let seeds: [Seed; 43] = [
        ("\"sort\" is none of those", |m| of(m, "rsqrt").opcode = "sort".into()),
        ("\"sort\" is none of", |m| of(m, "rsqrt").opcode = "sort".into()),
        ("element type 12 (f64)", |m| of(m, "rsqrt").shape.as_mut().unwrap().element_type = 12),
        ("element type 5 (s64)", |m| of(m, "parameter").shape.as_mut().unwrap().element_type = 5),
        ("element type 15 (complex)", |m| of(m, "rsqrt").shape.as_mut().unwrap().element_type = 15),
        ("element type 20 (an 8-bit", |m| of(m, "rsqrt").shape.as_mut().unwrap().element_type = 20),
        ("dynamic dimension", |m| of(m, "rsqrt").shape.as_mut().unwrap().is_dynamic_dimension[0] = true),
        ("not stated as row-major", |m| {
            of(m, "rsqrt").shape.as_mut().unwrap().is_dynamic_dimension.push(false);
        }),
        ("not stated as row-major", |m| of(m, "rsqrt").shape.as_mut().unwrap().layout = None),
        ("not stated as row-major", |m| {
            let layout = LayoutProto { minor_to_major: vec![0, 1, 2], tail_padding_alignment_in_elements: 1 };
            of(m, "compare").shape.as_mut().unwrap().layout = Some(layout);
        }),
        ("not stated as row-major", |m| {
            let layout = of(m, "rsqrt").shape.as_mut().unwrap().layout.as_mut().unwrap();
            layout.tail_padding_alignment_in_elements = 0;
        }),
        ("dimension of 0", |m| of(m, "rsqrt").shape.as_mut().unwrap().dimensions[0] = -1),
        ("10 dimensions", |m| of(m, "rsqrt").shape.as_mut().unwrap().dimensions = vec![1; 10]),
        ("bytes", |m| of(m, "rsqrt").shape.as_mut().unwrap().dimensions = vec![i64::from(i32::MAX); 3]),
        ("says f32[3]", |m| {
            let shape = of(m, "rsqrt").shape.as_mut().unwrap();
            shape.dimensions = vec![3];
        }),
        ("it has no shape", |m| of(m, "rsqrt").shape = None),
        ("is next in 32 bits", |m| of(m, "rsqrt").id += 1),
        ("is next in 32 bits", |m| of(m, "rsqrt").id = 1 << 32),
        ("empty or another's", |m| of(m, "rsqrt").name = "add_f32".into()),
        ("empty or another's", |m| m.computations[0].name = String::new()),
        ("is not before it", |m| {
            let instruction = of(m, "rsqrt");
            instruction.operand_ids[0] = instruction.id;
        }),
        ("is not before it", |m| of(m, "rsqrt").operand_ids[0] = 0),
        ("is not before its own", |m| {
            let own = m.entry_computation_id;
            of(m, "reduce").called_computation_ids = vec![own];
        }),
        ("does not use the field dimensions", |m| of(m, "rsqrt").dimensions = vec![0]),
        ("does not use the field unique_indices", |m| of(m, "gather").unique_indices = true),
        ("does not assign at unique indices", |m| of(m, "scatter").unique_indices = false),
        ("it does not call a fold", |m| {
            let assign = of(m, "scatter").called_computation_ids.clone();
            of(m, "reduce").called_computation_ids = assign;
        }),
        ("it does not start from", |m| {
            let constants = m.computations.last_mut().unwrap().instructions.iter_mut();
            let lowest = constants.filter(|i| i.literal.as_ref().is_some_and(|l| l.f32s == [f32::MIN]));
            lowest.for_each(|i| i.literal.as_mut().unwrap().f32s = vec![1.0]);
        }),
        ("its literal is not", |m| of(m, "constant").literal.as_mut().unwrap().f32s.push(1.0)),
        ("its literal is not", |m| of(m, "constant").literal.as_mut().unwrap().s32s.push(1)),
        ("its literal is not", |m| {
            let nan = LiteralProto { f32s: vec![f32::NAN; 2], ..*of(m, "constant").literal.clone().unwrap() };
            of(m, "constant").literal = Some(Box::new(nan));
        }),
        ("no finite f32", |m| of(m, "constant").literal.as_mut().unwrap().f32s[0] = f32::NEG_INFINITY),
        ("comparison direction", |m| of(m, "compare").comparison_direction = "ABOVE".into()),
        ("parameters are not first and in order", |m| of(m, "parameter").parameter_number = 1),
        ("its attributes are []", |m| of(m, "parameter").frontend_attributes = None),
        ("its attributes are", |m| {
            let key = "sharding".to_owned();
            of(m, "tuple").frontend_attributes.as_mut().unwrap().map.insert(key, "none".into());
        }),
        ("the name \"\"", |m| {
            let name = of(m, "parameter").frontend_attributes.as_mut().unwrap();
            name.map.insert("neff_input_names".into(), String::new());
        }),
        ("names and results differ", |m| {
            let names = of(m, "tuple").frontend_attributes.as_mut().unwrap();
            names.map.insert("neff_output_names".into(), "a,b".into());
        }),
        ("host_program_shape", |m| m.host_program_shape = None),
        ("program_shape is not that", |m| {
            let shape = m.computations[0].program_shape.as_mut().unwrap();
            shape.parameter_names.pop();
        }),
        ("the last, named \"main\"", |m| m.entry_computation_id = 0),
        ("names no result or parameter", |m| {
            m.input_output_alias.as_mut().unwrap().entries[0].parameter_number = 99;
        }),
        ("not disjoint", |m| of(m, "all-reduce").replica_groups[0].replica_ids[1] = 0),
    ];
    let good = module(&step().unwrap(), &HloOptions::default()).unwrap();
    lint(&good).unwrap();
    for (index, (message, seed)) in seeds.into_iter().enumerate() {
        let mut bad = good.clone();
        seed(&mut bad);
        assert!(bad != good, "seed {index} ({message}) changes nothing");
        match lint(&bad) {
            Err(error) => {
                assert!(error.to_string().contains(message), "seed {index}: {error}, not {message}")
            }
            Ok(()) => panic!("seed {index} ({message}) passes"),
        }
        assert!(read(&bad.encode_to_vec()).is_err());
    }
}

#[test]
fn bytes_beyond_the_subset_are_refused() {
    let good = write(&step().unwrap(), &HloOptions::default()).unwrap();
    read(&good).unwrap();
    // A field that is not in use (19, empty), bytes of another order, none, too many.
    let mut unknown = good.clone();
    unknown.extend([0x9a, 0x01, 0x00]);
    for bytes in [unknown, Vec::new(), vec![0; 40 << 20], [&good[..], &good[..]].concat()] {
        let error = read(&bytes).unwrap_err();
        assert!(matches!(error, HloError::Decode { .. } | HloError::Form { .. }), "{error}");
    }
}

/// A reduction of each kind keeps its start through a round trip, and two share a computation where they can.
#[test]
fn reductions_share_their_computations() -> Result<(), GraphError> {
    let mut b = Builder::new("reductions");
    for dtype in [DType::F32, DType::BF16, DType::F16, DType::I32, DType::U32] {
        let x = b.param(format!("{dtype}"), ParamKind::Input, Type::new(dtype, [3, 4]))?;
        for op in [Reduction::Add, Reduction::Maximum, Reduction::Minimum] {
            let (rows, all) = (b.reduce(op, x, &[1])?, b.reduce(op, x, &[0, 1])?);
            let rows = b.reduce(op, rows, &[0])?;
            let both = b.binary(Binary::Maximum, rows, all)?;
            b.output(format!("{dtype} {}", op.name()), both, None)?;
        }
    }
    let graph = b.finish()?;
    let module = module(&graph, &HloOptions::default()).unwrap();
    assert_eq!(module.computations.len(), 15 + 1);
    assert_eq!(read(&module.encode_to_vec()).unwrap().to_string(), canonical(&graph).to_string());
    Ok(())
}

fn largest(columns: usize, ties: bool) -> Graph {
    let mut b = Builder::new("largest");
    let x = b.param("x", ParamKind::Input, f32s(&[2, columns])).expect("a parameter");
    let values = b.push(Op::TopK { k: 3, indices: false }, &[x]).expect("there are three");
    let indices =
        b.push(Op::TopK { k: if ties { 3 } else { 2 }, indices: true }, &[x]).expect("there are three");
    b.output("values", values, None).expect("an output");
    b.output("indices", indices, None).expect("an output");
    b.finish().expect("well-formed")
}

/// Both results of one operand come from one custom call, of the form that open code gives it; no other call passes.
#[test]
fn the_largest_are_the_vendors_custom_call() {
    let options = HloOptions::default();
    for (graph, calls) in [(largest(16, true), 1), (largest(16, false), 2)] {
        let good = module(&graph, &options).expect("it has a form");
        let opcodes = good.computations[0].instructions.iter().map(|instruction| instruction.opcode.as_str());
        assert_eq!(opcodes.filter(|opcode| *opcode == "custom-call").count(), calls);
        let back = read(&good.encode_to_vec()).expect("its own form");
        assert_eq!(back.to_string(), canonical(&graph).to_string());
        assert_eq!(module(&back, &options).expect("it has a form"), good);
    }
    let good = module(&largest(16, true), &options).expect("it has a form");
    let call = &good.computations[0].instructions[1];
    assert_eq!((call.custom_call_target.as_str(), &call.backend_config[..]), ("AwsNeuronTopK", &b"3"[..]));
    let tuple = &call.shape.as_ref().expect("a shape").tuple_shapes;
    assert_eq!(
        tuple.iter().map(|shape| (shape.element_type, shape.dimensions.clone())).collect::<Vec<_>>(),
        [(11, vec![2, 3]), (8, vec![2, 3])]
    );
    let damages: [fn(&mut HloInstructionProto); 6] = [
        |call| call.custom_call_target = "AwsNeuronArgMax".into(),
        |call| call.backend_config = b"4".to_vec(),
        |call| call.backend_config = b"03".to_vec(),
        |call| call.backend_config.clear(),
        |call| call.operand_ids.clear(),
        |call| call.tuple_index = 1,
    ];
    for damage in damages {
        let mut bad = good.clone();
        damage(&mut bad.computations[0].instructions[1]);
        assert!(lint(&bad).is_err(), "{:?}", bad.computations[0].instructions[1]);
    }
    let mut third = good.clone();
    third.computations[0].instructions[2].tuple_index = 2;
    assert!(lint(&third).is_err());
    assert!(module(&largest(15, true), &options).is_err(), "no whole groups of eight");
}
