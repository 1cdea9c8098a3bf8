//! Small programs.

use millrace_graph::{
    Binary, Builder, DType, Graph, GraphError, Op, ParamKind, Reduction, ScatterDims, Type, hlo,
};
use softnrt::{Build, pack};

fn neff(graph: Result<Graph, GraphError>, plain_aliases: bool) -> Vec<u8> {
    let module = hlo::write(&graph.unwrap(), &hlo::HloOptions::default()).unwrap();
    pack(&module, &Build { target: "inf2".into(), lnc: 1, plain_aliases, uncompressed: false }).unwrap()
}

/// `cache f32[8, 4]` gets row `x f32[1, 4]` at `at s32[1]`; `total f32[4]` is the sum of its rows.
pub(crate) fn cache(plain_aliases: bool) -> Vec<u8> {
    let build = || {
        let mut b = Builder::new("cache");
        let x = b.param("x", ParamKind::Input, Type::new(DType::F32, [1, 4]))?;
        let at = b.param("at", ParamKind::Input, Type::new(DType::I32, [1]))?;
        let cache = b.param("cache", ParamKind::State, Type::new(DType::F32, [8, 4]))?;
        let dims = ScatterDims {
            update_window_dims: vec![1],
            inserted_window_dims: vec![0],
            scatter_dims_to_operand_dims: vec![0],
            index_vector_dim: 1,
        };
        let written = b.push(Op::Scatter(dims), &[cache, at, x])?;
        let total = b.reduce(Reduction::Add, written, &[0])?;
        b.output("total", total, None)?;
        b.output("cache", written, Some("cache"))?;
        b.finish()
    };
    neff(build(), plain_aliases)
}

/// `ratio f32[2]` is `x / y`.
pub(crate) fn ratio() -> Vec<u8> {
    let build = || {
        let mut b = Builder::new("ratio");
        let x = b.param("x", ParamKind::Input, Type::new(DType::F32, [2]))?;
        let y = b.param("y", ParamKind::Input, Type::new(DType::F32, [2]))?;
        let ratio = b.binary(Binary::Divide, x, y)?;
        b.output("ratio", ratio, None)?;
        b.finish()
    };
    neff(build(), false)
}

/// `sum f32[3]` is twice the sum of all ranks' `x f32[3]`, by way of two collectives.
pub(crate) fn sum(ranks: u32) -> Vec<u8> {
    let build = || {
        let mut b = Builder::new("sum");
        let x = b.param("x", ParamKind::Input, Type::new(DType::F32, [3]))?;
        let groups = vec![(0..ranks).collect::<Vec<_>>()];
        let sum = b.push(Op::AllReduce { op: Reduction::Add, groups: groups.clone() }, &[x])?;
        let most = b.push(Op::AllReduce { op: Reduction::Maximum, groups }, &[sum])?;
        let sum = b.add(sum, most)?;
        b.output("sum", sum, None)?;
        b.finish()
    };
    neff(build(), false)
}
