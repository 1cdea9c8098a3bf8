//! What the executor refuses, and that the message says which and where.

mod common;

use common::{Stored, run};
use millrace_graph::{Attention, Builder, DType, Graph, NodeId, ParamKind, TensorView, Type, Unary};
use millrace_kernels::{PlanError, Pool, Precision, WeightError, Weights};

fn input(b: &mut Builder, name: &str, shape: &[usize]) -> NodeId {
    b.param(name, ParamKind::Input, Type::new(DType::I32, shape)).expect("an input")
}

/// A graph that embeds three tokens and makes something of them.
fn embedded(stored: &mut Stored, then: impl FnOnce(&mut Builder, NodeId) -> NodeId) -> Graph {
    let mut b = Builder::new("embedded");
    let ids = input(&mut b, "ids", &[3]);
    let table = stored.weight(&mut b, "table", DType::F32, &[5, 8]);
    let x = b.embed(table, ids, 1.0, DType::F32).expect("an embedding");
    let y = then(&mut b, x);
    b.output("y", y, None).expect("an output");
    b.finish().expect("a graph")
}

fn refused(stored: &Stored, graph: &Graph) -> PlanError {
    stored.executor(1, Precision::Reference).plan(graph).expect_err("a graph to refuse")
}

#[test]
fn nodes_without_a_kernel_are_named_with_their_place() {
    let mut stored = Stored::new(1);
    let line = line!() + 1;
    let graph = embedded(&mut stored, |b, x| b.unary(Unary::Exp, x).expect("a function"));
    let error = refused(&stored, &graph);
    let PlanError::Unsupported { op, location, .. } = &error else { panic!("{error}") };
    assert_eq!((*op, location.line()), ("exponential", line));
    assert!(error.to_string().contains("refusals.rs"), "{error}");

    let graph = embedded(&mut stored, |b, x| {
        let heads = b.reshape(x, &[3, 2, 4]).expect("heads");
        b.slice(heads, 2, 1, 3).expect("a part of each head")
    });
    let error = refused(&stored, &graph);
    assert!(error.to_string().contains("slice") && error.to_string().contains("copy"), "{error}");

    let mut b = Builder::new("half");
    let ids = input(&mut b, "ids", &[3]);
    let table = stored.weight(&mut b, "table", DType::F32, &[5, 8]);
    let x = b.embed(table, ids, 1.0, DType::BF16).expect("an embedding");
    b.output("x", x, None).expect("an output");
    let error = refused(&stored, &b.finish().expect("a graph"));
    assert!(error.to_string().contains("bf16[3,8]: values are f32"), "{error}");
}

#[test]
fn ill_formed_graphs_are_refused() {
    let mut stored = Stored::new(1);
    let mut graph = embedded(&mut stored, |b, x| b.scale(x, 2.0).expect("a scale"));
    let last = graph.nodes.last_mut().expect("nodes");
    last.ty = Type::new(DType::F32, [300, 8]);
    assert!(matches!(refused(&stored, &graph), PlanError::Graph(_)));
}

#[test]
fn weights_have_to_be_there_as_the_graph_says() {
    let mut stored = Stored::new(1);
    let graph = embedded(&mut stored, |_, x| x);
    let error = refused(&Stored::new(1), &graph);
    assert!(matches!(&error, PlanError::Weight { name, op: "embed", .. } if name == "table"), "{error}");

    let mut other = Stored::new(1);
    other.weight(&mut Builder::new("other"), "table", DType::F16, &[5, 8]);
    let error = refused(&other, &graph).to_string();
    assert!(error.contains("f32[5,8]") && error.contains("f16[5,8]"), "{error}");
}

#[test]
fn caches_have_to_be_allocated_and_used_in_one_role() {
    let caches = |b: &mut Builder| {
        ["k", "v"].map(|name| {
            b.param(name, ParamKind::State, Type::new(DType::F32, [2, 8, 1, 8])).expect("a cache")
        })
    };
    let attention = Attention { scale: 1.0, window: None, softcap: None, width: Some(1) };
    let mut stored = Stored::new(1);
    let mut build = |crossed: bool| {
        let mut b = Builder::new("attention");
        let [k, v] = caches(&mut b);
        let [ids, slots, positions] = ["ids", "slots", "positions"].map(|name| input(&mut b, name, &[3]));
        let tables = input(&mut b, "tables", &[3, 1]);
        let table = stored.weight(&mut b, "table", DType::F32, &[5, 8]);
        let x = b.embed(table, ids, 1.0, DType::F32).expect("an embedding");
        let x = b.reshape(x, &[3, 1, 8]).expect("a head");
        let (new_k, new_v) =
            (b.write_kv(k, x, slots).expect("keys"), b.write_kv(v, x, slots).expect("values"));
        let y = b.paged_attention(&[x, new_k, new_v, tables, positions], attention).expect("attention");
        b.output("y", y, None).expect("an output");
        if crossed {
            let z = b.paged_attention(&[x, new_v, new_k, tables, positions], attention).expect("attention");
            b.output("z", z, None).expect("an output");
        }
        b.output("k", new_k, Some("k")).expect("a cache");
        b.output("v", new_v, Some("v")).expect("a cache");
        b.finish().expect("a graph")
    };
    let (good, crossed) = (build(false), build(true));
    let mut executor = stored.executor(1, Precision::Reference);
    let error = executor.plan(&good).expect_err("no caches yet");
    assert!(matches!(&error, PlanError::State { name, .. } if name == "k"), "{error}");
    let error = executor.allocate(&crossed).expect_err("two roles");
    assert!(matches!(&error, PlanError::State { name, .. } if name == "k" || name == "v"), "{error}");
    executor.allocate(&good).expect("caches");
    executor.allocate(&good).expect("the same caches");
    let plan = executor.plan(&good).expect("a plan");
    // The second and third row attend to zeros, the first to itself.
    let inputs = [vec![1, 2, 3], vec![0, 9, 10], vec![0, 0, 0], vec![0, 1, 1]];
    run(&mut executor, &plan, &good, &inputs);

    let mut b = Builder::new("larger");
    let ty = Type::new(DType::F32, [3, 8, 1, 8]);
    let k = b.param("k", ParamKind::State, ty.clone()).expect("a cache");
    let v = b.param("v", ParamKind::State, ty).expect("a cache");
    let [ids, positions] = ["ids", "positions"].map(|name| input(&mut b, name, &[1]));
    let tables = input(&mut b, "tables", &[1, 1]);
    let table = stored.weight(&mut b, "table", DType::F32, &[5, 8]);
    let x = b.embed(table, ids, 1.0, DType::F32).expect("an embedding");
    let x = b.reshape(x, &[1, 1, 8]).expect("a head");
    let y = b.paged_attention(&[x, k, v, tables, positions], attention).expect("attention");
    b.output("y", y, None).expect("an output");
    let error = executor.allocate(&b.finish().expect("a graph")).expect_err("another size").to_string();
    assert!(error.contains("f32[2,8,1,8]") && error.contains("f32[3,8,1,8]"), "{error}");
}

#[test]
fn weights_are_taken_in_once_and_shared_by_name() {
    let pool = Pool::new(1);
    let mut weights = Weights::new();
    let bytes: Vec<u8> = (0..64u32).flat_map(|i| (i as f32).to_le_bytes()).collect();
    let matrix = TensorView::new(Type::new(DType::F32, [2, 32]), &bytes);
    weights.insert("embed", &matrix, &pool).expect("a matrix");
    let size = weights.bytes();
    weights.share("head", "embed").expect("a second name");
    assert_eq!(weights.bytes(), size);
    assert!(matches!(weights.share("head", "embed"), Err(WeightError::Duplicate(name)) if name == "head"));
    assert!(
        matches!(weights.insert("head", &matrix, &pool), Err(WeightError::Duplicate(name)) if name == "head")
    );
    assert!(matches!(weights.share("x", "y"), Err(WeightError::Unknown { name, .. }) if name == "y"));

    let vector = |len: usize| TensorView::new(Type::new(DType::F32, [len]), &bytes);
    assert!(matches!(weights.insert("norm", &vector(63), &pool), Err(WeightError::Size { bytes: 256, .. })));
    weights.insert("norm", &vector(64), &pool).expect("a vector");
    assert_eq!(weights.bytes(), size + 256);
    let ints = TensorView::new(Type::new(DType::I32, [64]), &bytes);
    assert!(matches!(weights.insert("ints", &ints, &pool), Err(WeightError::Format { .. })));
    let ints = TensorView::new(Type::new(DType::I32, [2, 32]), &bytes);
    assert!(matches!(weights.insert("ints", &ints, &pool), Err(WeightError::Pack { .. })));
}

/// One packed tensor under two names serves as table and as head, and a vector is read with its offset.
#[test]
fn shared_and_offset_weights_compute_the_right_thing() {
    let mut b = Builder::new("tied");
    let ids = input(&mut b, "ids", &[2]);
    let ty = Type::new(DType::F32, [4, 8]);
    let table = b.param("embed", ParamKind::Weight, ty.clone()).expect("a weight");
    let head = b.param("head", ParamKind::Weight, ty.clone()).expect("a weight");
    let norm = b.param("norm", ParamKind::Weight, Type::new(DType::F32, [8])).expect("a weight");
    let x = b.embed(table, ids, 1.0, DType::F32).expect("an embedding");
    let x = b.rms_norm(x, norm, 0.0, 0.0).expect("a norm");
    let y = b.linear(x, &[head], &[]).expect("logits");
    b.output("y", y, None).expect("an output");
    let graph = b.finish().expect("a graph");

    // Row i is twice the unit vector i, which a norm scales to √8 times it.
    let bytes: Vec<u8> =
        (0..32).flat_map(|i| (if i / 8 == i % 8 { 2.0f32 } else { 0.0 }).to_le_bytes()).collect();
    let zeros = vec![0u8; 32];
    let pool = Pool::new(1);
    let mut weights = Weights::new();
    weights.insert("embed", &TensorView::new(ty, &bytes), &pool).expect("a matrix");
    weights.share("head", "embed").expect("a second name");
    let view = TensorView { offset: 1.0, ..TensorView::new(Type::new(DType::F32, [8]), &zeros) };
    weights.insert("norm", &view, &pool).expect("a vector");
    let mut executor = millrace_kernels::Executor::new(pool, Precision::Reference, weights);
    let plan = executor.plan(&graph).expect("a plan");
    let got = run(&mut executor, &plan, &graph, &[vec![3, 1]]);
    let product = 2.0 * 8.0f32.sqrt();
    for (i, logit) in got[0].iter().enumerate() {
        let expected = if i == 3 || i == 4 + 1 { product } else { 0.0 };
        assert!((logit - expected).abs() < 1e-5, "logit {i} is {logit}, not {expected}");
    }
}
