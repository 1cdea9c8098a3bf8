//! The evaluator's primitives against index formulas written out element by element, and its refusals.

use std::collections::HashMap;
use std::sync::Arc;

use millrace_graph::{
    Binary, Builder, DType, Direction, DotDims, Fused, GatherDims, Graph, GraphError, Literal, NodeId, Op,
    ParamKind, Reduction, ScatterDims, Type, Unary,
};
use millrace_kernels::eval::{EvalError, Fault, Value, evaluate};
use proptest::prelude::*;

fn f32s(shape: &[usize]) -> Type {
    Type::new(DType::F32, shape)
}

fn i32s(shape: &[usize]) -> Type {
    Type::new(DType::I32, shape)
}

/// 0, 1, 2, …: every element tells where it came from.
fn counted(shape: &[usize]) -> Value {
    let n = shape.iter().product::<usize>();
    Value::from_floats(f32s(shape), (0..n).map(|x| x as f32).collect()).expect("as many as the shape has")
}

fn ints(shape: &[usize], elements: &[i64]) -> Value {
    Value::from_ints(i32s(shape), elements.to_vec()).expect("in range")
}

fn floats(elements: &[f32]) -> Value {
    Value::from_floats(f32s(&[elements.len()]), elements.to_vec()).expect("floats")
}

/// A graph of one node over parameters of the operands' types.
fn graph(
    operands: &[&Value],
    node: impl FnOnce(&mut Builder, &[NodeId]) -> Result<NodeId, GraphError>,
) -> Result<Graph, GraphError> {
    let mut b = Builder::new("test");
    let params: Vec<NodeId> = operands
        .iter()
        .enumerate()
        .map(|(i, value)| b.param(i.to_string(), ParamKind::Input, value.ty().clone()))
        .collect::<Result<_, _>>()?;
    let node = node(&mut b, &params)?;
    b.output("result", node, None)?;
    b.finish()
}

fn run(
    operands: &[&Value],
    node: impl FnOnce(&mut Builder, &[NodeId]) -> Result<NodeId, GraphError>,
) -> Result<Value, EvalError> {
    let inputs = operands.iter().enumerate().map(|(i, value)| (i.to_string(), (*value).clone())).collect();
    Ok(evaluate(&graph(operands, node)?, &inputs)?.remove(0))
}

fn op(operands: &[&Value], op: Op) -> Result<Value, EvalError> {
    run(operands, |b, x| b.push(op, x))
}

/// All index vectors of a shape, row-major.
fn indices(shape: &[usize]) -> Vec<Vec<usize>> {
    shape.iter().fold(vec![vec![]], |all, &size| {
        let longer = all.iter().flat_map(|index| (0..size).map(move |i| [&index[..], &[i]].concat()));
        longer.collect()
    })
}

fn at(shape: &[usize], index: &[usize]) -> usize {
    index.iter().zip(shape).fold(0, |at, (i, size)| at * size + i)
}

fn permuted<T: Copy>(of: &[T], by: &[usize]) -> Vec<T> {
    by.iter().map(|i| of[*i]).collect()
}

fn shape() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1usize..5, 1..5)
}

/// A shape and a permutation of its dimensions.
fn shape_and_order() -> impl Strategy<Value = (Vec<usize>, Vec<usize>)> {
    shape().prop_flat_map(|shape| {
        let order: Vec<usize> = (0..shape.len()).collect();
        (Just(shape), Just(order).prop_shuffle())
    })
}

proptest! {
    #[test]
    fn transpose_and_reduce((shape, order) in shape_and_order(), folded in 0usize..4) {
        let x = counted(&shape);
        let y = run(&[&x], |b, x| b.transpose(x[0], &order)).unwrap();
        for (index, y) in indices(&y.ty().shape).iter().zip(y.floats().unwrap()) {
            let mut from = vec![0; shape.len()];
            order.iter().zip(index).for_each(|(dim, i)| from[*dim] = *i);
            prop_assert_eq!(*y, at(&shape, &from) as f32);
        }

        let mut dims = order[..folded.min(order.len())].to_vec();
        dims.sort_unstable();
        for (reduction, start, fold) in [
            (Reduction::Add, 0.0, (|x, y| x + y) as fn(f32, f32) -> f32),
            (Reduction::Maximum, f32::NEG_INFINITY, f32::max),
            (Reduction::Minimum, f32::INFINITY, f32::min),
        ] {
            let y = run(&[&x], |b, x| b.reduce(reduction, x[0], &dims)).unwrap();
            let mut want = vec![start; y.ty().elements()];
            for (i, index) in indices(&shape).iter().enumerate() {
                let kept: Vec<usize> = (0..shape.len()).filter(|dim| !dims.contains(dim)).map(|dim| index[dim]).collect();
                let to = &mut want[at(&y.ty().shape, &kept)];
                *to = fold(*to, i as f32);
            }
            prop_assert_eq!(y.floats().unwrap(), &want[..]);
        }
    }

    #[test]
    fn broadcast_slice_concatenate(shape in shape(), places in prop::collection::vec(any::<bool>(), 8), step in 1usize..3) {
        let x = counted(&shape);
        // Dimensions of the operand among new ones of size 2 or 3.
        let (mut wide, mut dims) = (Vec::new(), Vec::new());
        let mut sizes = shape.iter();
        for (i, old) in places.iter().enumerate() {
            if *old {
                let Some(size) = sizes.next() else { break };
                dims.push(wide.len());
                wide.push(*size);
            } else if wide.len() < 5 {
                wide.push(2 + i % 2);
            }
        }
        for size in sizes {
            dims.push(wide.len());
            wide.push(*size);
        }
        let y = run(&[&x], |b, x| b.broadcast(x[0], &wide, &dims)).unwrap();
        for (index, y) in indices(&wide).iter().zip(y.floats().unwrap()) {
            prop_assert_eq!(*y, at(&shape, &permuted(index, &dims)) as f32);
        }

        let starts: Vec<usize> = shape.iter().map(|size| size / 3).collect();
        let slice = Op::Slice { starts: starts.clone(), limits: shape.clone(), strides: vec![step; shape.len()] };
        let y = op(&[&x], slice).unwrap();
        for (index, y) in indices(&y.ty().shape).iter().zip(y.floats().unwrap()) {
            let from: Vec<usize> = index.iter().zip(&starts).map(|(i, start)| start + i * step).collect();
            prop_assert_eq!(*y, at(&shape, &from) as f32);
        }

        for dim in 0..shape.len() {
            let y = run(&[&x, &x, &x], |b, x| b.concatenate(x, dim)).unwrap();
            prop_assert_eq!(y.ty().shape[dim], 3 * shape[dim]);
            for (index, y) in indices(&y.ty().shape).iter().zip(y.floats().unwrap()) {
                let mut from = index.clone();
                from[dim] %= shape[dim];
                prop_assert_eq!(*y, at(&shape, &from) as f32);
            }
        }
    }

    /// A dot product over dimensions in any order: batch, free and contracting sizes are drawn, and both
    /// operands are laid out by a permutation.
    #[test]
    fn dot_over_any_dimensions(
        sizes in prop::collection::vec(1usize..4, 4),
        wide in 1usize..20,
        (x_order, y_order) in (Just(vec![0, 1, 2, 3]).prop_shuffle(), Just(vec![0, 1, 2, 3]).prop_shuffle()),
    ) {
        let [batch, rows, columns, k] = sizes[..] else { unreachable!() };
        // Logical dimensions: batch, free, contracting, contracting.
        let (x_logical, y_logical) = ([batch, rows, k, wide], [batch, columns, k, wide]);
        let (x_shape, y_shape) = (permuted(&x_logical, &x_order), permuted(&y_logical, &y_order));
        let place = |order: &[usize], dim: usize| order.iter().position(|d| *d == dim).unwrap();
        let dims = DotDims {
            lhs_batch: vec![place(&x_order, 0)],
            rhs_batch: vec![place(&y_order, 0)],
            lhs_contracting: vec![place(&x_order, 2), place(&x_order, 3)],
            rhs_contracting: vec![place(&y_order, 2), place(&y_order, 3)],
        };
        let (x, y) = (counted(&x_shape), counted(&y_shape));
        let z = run(&[&x, &y], |b, x| b.dot(x[0], x[1], dims.clone(), DType::F32)).unwrap();
        prop_assert_eq!(&z.ty().shape, &vec![batch, rows, columns]);
        let as_ints = |x: &Value| {
            let ints = x.floats().unwrap().iter().map(|x| *x as i64).collect();
            Value::from_ints(i32s(&x.ty().shape), ints).unwrap()
        };
        let whole = run(&[&as_ints(&x), &as_ints(&y)], |b, x| b.dot(x[0], x[1], dims, DType::I32)).unwrap();
        for (i, index) in indices(&[batch, rows, columns]).iter().enumerate() {
            let mut sum = 0i64;
            for inner in indices(&[k, wide]) {
                let x = at(&x_shape, &permuted(&[index[0], index[1], inner[0], inner[1]], &x_order));
                let y = at(&y_shape, &permuted(&[index[0], index[2], inner[0], inner[1]], &y_order));
                sum += (x * y) as i64;
            }
            prop_assert_eq!(z.floats().unwrap()[i], sum as f32);
            prop_assert_eq!(whole.ints().unwrap()[i], sum);
        }
    }

    /// Windows of one column block from a table of rows, with the batch dimension of the result first or last.
    #[test]
    fn gather_and_scatter_windows(
        rows in prop::collection::vec(0usize..7, 1..5),
        column in 0usize..3,
        last in any::<bool>(),
    ) {
        let (x, n) = (counted(&[7, 5]), rows.len());
        // Index vectors (column, row), along the first dimension.
        let flat: Vec<i64> = std::iter::repeat_n(column as i64, n).chain(rows.iter().map(|r| *r as i64)).collect();
        let starts = ints(&[2, n], &flat);
        let dims = GatherDims {
            offset_dims: vec![usize::from(!last)],
            collapsed_slice_dims: vec![0],
            start_index_map: vec![1, 0],
            index_vector_dim: 0,
            slice_sizes: vec![1, 3],
        };
        let y = run(&[&x, &starts], |b, x| b.gather(x[0], x[1], dims)).unwrap();
        prop_assert_eq!(&y.ty().shape, &if last { vec![3, n] } else { vec![n, 3] });
        for (index, y) in indices(&y.ty().shape).iter().zip(y.floats().unwrap()) {
            let (which, within) = if last { (index[1], index[0]) } else { (index[0], index[1]) };
            prop_assert_eq!(*y, (rows[which] * 5 + column + within) as f32);
        }

        let updates = run(&[&y], |b, x| b.unary(Unary::Negate, x[0])).unwrap();
        let dims = ScatterDims {
            update_window_dims: vec![usize::from(!last)],
            inserted_window_dims: vec![0],
            scatter_dims_to_operand_dims: vec![1, 0],
            index_vector_dim: 0,
        };
        let z = run(&[&x, &starts, &updates], |b, x| b.scatter(x[0], x[1], x[2], dims));
        let mut distinct = rows.clone();
        distinct.sort_unstable();
        distinct.dedup();
        if distinct.len() < n {
            let duplicate = matches!(z, Err(EvalError::Node { node: 3, fault: Fault::Duplicate { .. }, .. }));
            prop_assert!(duplicate, "{z:?}");
        } else {
            for (i, z) in z.unwrap().floats().unwrap().iter().enumerate() {
                let hit = rows.contains(&(i / 5)) && (column..column + 3).contains(&(i % 5));
                prop_assert_eq!(*z, if hit { -(i as f32) } else { i as f32 });
            }
        }
    }
}

#[test]
fn rows_of_a_block_format_are_gathered_and_converted() {
    let table = Type::new(DType::Q8_0, [3, 32]);
    let mut bytes = Vec::new();
    for row in 0..3i8 {
        bytes.extend_from_slice(&half::f16::from_f32(0.5).to_le_bytes());
        bytes.extend((0..32).map(|i| (row * 32 + i) as u8));
    }
    let table = Value::from_bytes(table, &bytes).unwrap();
    assert_eq!(table.to_bytes(), bytes);
    let rows = run(&[&table, &ints(&[2], &[2, 0])], |b, x| {
        let dims = GatherDims {
            offset_dims: vec![1],
            collapsed_slice_dims: vec![0],
            start_index_map: vec![0],
            index_vector_dim: 1,
            slice_sizes: vec![1, 32],
        };
        let rows = b.gather(x[0], x[1], dims)?;
        b.convert(rows, DType::F32)
    });
    let want: Vec<f32> = (64..96).chain(0..32).map(|x| x as f32 / 2.0).collect();
    assert_eq!(rows.unwrap().floats().unwrap(), want);
}

#[test]
fn indices_out_of_bounds_are_named() {
    let x = counted(&[4, 2]);
    let dims = GatherDims {
        offset_dims: vec![1],
        collapsed_slice_dims: vec![0],
        start_index_map: vec![0],
        index_vector_dim: 1,
        slice_sizes: vec![1, 2],
    };
    for index in [-1, 4, i64::from(i32::MAX), i64::from(i32::MIN)] {
        let error =
            run(&[&x, &ints(&[2], &[3, index])], |b, x| b.gather(x[0], x[1], dims.clone())).unwrap_err();
        let EvalError::Node { node, op, location, fault } = error else { panic!("{error}") };
        assert_eq!((node, op, location.file()), (2, "gather", file!()));
        assert_eq!(fault, Fault::OutOfBounds { index, dim: 0, window: 1, size: 4 });
    }
    let dims = ScatterDims {
        update_window_dims: vec![1],
        inserted_window_dims: vec![0],
        scatter_dims_to_operand_dims: vec![0],
        index_vector_dim: 1,
    };
    let error = run(&[&x, &ints(&[1], &[4]), &counted(&[1, 2])], |b, x| b.scatter(x[0], x[1], x[2], dims));
    assert!(error.unwrap_err().to_string().contains("index 4 with a window of 1 in dimension 0 of size 4"));
}

#[test]
fn inputs_must_be_there_and_of_their_type() {
    let x = counted(&[2]);
    let graph = graph(&[&x, &x], |b, x| b.add(x[0], x[1])).unwrap();
    let mut inputs = HashMap::from([("0".to_owned(), x.clone()), ("spare".to_owned(), x.clone())]);
    assert!(matches!(evaluate(&graph, &inputs), Err(EvalError::MissingInput { name, .. }) if name == "1"));
    inputs.insert("1".to_owned(), counted(&[1, 2]));
    assert!(matches!(evaluate(&graph, &inputs), Err(EvalError::InputType { name, .. }) if name == "1"));
    inputs.insert("1".to_owned(), x);
    assert_eq!(evaluate(&graph, &inputs).unwrap()[0].floats().unwrap(), [0.0, 2.0]);
}

#[test]
fn fused_ops_collectives_and_ill_formed_graphs_are_refused() {
    let x = counted(&[2]);
    let fault = |result: Result<Value, EvalError>| match result {
        Err(EvalError::Node { fault, .. }) => fault,
        other => panic!("{other:?}"),
    };
    assert_eq!(fault(op(&[&x], Op::Fused(Fused::Scale { factor: 2.0 }))), Fault::Fused);
    let groups = vec![vec![0, 1]];
    assert_eq!(fault(op(&[&x], Op::AllReduce { op: Reduction::Add, groups })), Fault::NeedsRanks);
    let mut graph = graph(&[&x], |b, x| b.add(x[0], x[0])).unwrap();
    graph.nodes[1].ty.shape = vec![3];
    let inputs = HashMap::from([("0".to_owned(), x)]);
    assert!(matches!(evaluate(&graph, &inputs), Err(EvalError::Graph(_))));
}

#[test]
fn values_hold_what_their_type_holds() {
    assert!(Value::from_floats(f32s(&[3]), vec![0.0; 2]).is_err());
    assert!(Value::from_floats(i32s(&[2]), vec![0.0; 2]).is_err());
    assert!(Value::from_ints(f32s(&[2]), vec![0; 2]).is_err());
    assert!(Value::from_ints(Type::new(DType::U8, [1]), vec![256]).is_err());
    assert!(Value::from_ints(i32s(&[1]), vec![1 << 31]).is_err());
    assert!(Value::from_bytes(i32s(&[usize::MAX, 2]), &[]).is_err());
    let rounded = Value::from_floats(Type::new(DType::BF16, [2]), vec![1.001, 3.0]).unwrap();
    assert_eq!(rounded.floats().unwrap(), [1.0, 3.0]);
    for (dtype, x) in [(DType::I8, -128), (DType::U8, 255), (DType::I32, -1 << 31), (DType::U32, 0xffff_ffff)]
    {
        let ty = Type::new(dtype, [1]);
        let value = Value::from_ints(ty.clone(), vec![x]).unwrap();
        assert_eq!(value.to_bytes().len(), dtype.block_bytes());
        assert_eq!(Value::from_bytes(ty, &value.to_bytes()).unwrap().ints().unwrap(), [x]);
    }
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let ty = Type::new(dtype, [2]);
        let value = Value::from_floats(ty.clone(), vec![-0.5, 1e-3]).unwrap();
        let back = Value::from_bytes(ty, &value.to_bytes()).unwrap();
        assert_eq!(back.floats(), value.floats());
    }
}

#[test]
fn integers_wrap_and_refuse_division_by_zero() {
    let (big, two) = (ints(&[1], &[i64::from(i32::MAX)]), ints(&[1], &[2]));
    let whole = |op: Binary, x: &Value, y: &Value| {
        run(&[x, y], |b, x| b.binary(op, x[0], x[1])).map(|z| z.ints().unwrap()[0])
    };
    assert_eq!(whole(Binary::Add, &big, &two).unwrap(), i64::from(i32::MIN) + 1);
    assert_eq!(whole(Binary::Multiply, &big, &two).unwrap(), -2);
    assert_eq!(whole(Binary::Divide, &ints(&[1], &[-7]), &two).unwrap(), -3);
    assert_eq!(whole(Binary::Power, &two, &two).unwrap(), 4);
    assert!(whole(Binary::Divide, &two, &ints(&[1], &[0])).is_err());
    let lowest = ints(&[1], &[i64::from(i32::MIN)]);
    assert_eq!(op(&[&lowest], Op::Unary(Unary::Negate)).unwrap().ints().unwrap(), [i64::from(i32::MIN)]);
}

#[test]
fn floats_follow_ieee_and_xla() {
    let x = floats(&[f32::NAN, 1.0, -2.0]);
    let y = floats(&[1.0, f32::NAN, 3.0]);
    for binary in [Binary::Maximum, Binary::Minimum] {
        let z = op(&[&x, &y], Op::Binary(binary)).unwrap();
        assert!(z.floats().unwrap()[..2].iter().all(|z| z.is_nan()), "{binary:?}");
    }
    let max = run(&[&x], |b, x| b.reduce(Reduction::Maximum, x[0], &[0])).unwrap();
    assert!(max.floats().unwrap()[0].is_nan());
    let equal = op(&[&x, &x], Op::Compare(Direction::Eq)).unwrap();
    assert_eq!(equal.to_bytes(), [0, 1, 1]);
    let less = op(&[&x, &y], Op::Compare(Direction::Lt)).unwrap();
    let chosen = op(&[&less, &x, &y], Op::Select).unwrap();
    assert_eq!(chosen.floats().unwrap()[2], -2.0);
    let z = floats(&[0.25, 1.0, 2.0]);
    for (unary, want) in [
        (Unary::Negate, [-0.25, -1.0, -2.0]),
        (Unary::Exp, [1.284_025_4, std::f32::consts::E, 7.389_056]),
        (Unary::Log, [-1.386_294_4, 0.0, std::f32::consts::LN_2]),
        (Unary::Rsqrt, [2.0, 1.0, std::f32::consts::FRAC_1_SQRT_2]),
        (Unary::Logistic, [0.562_176_5, 0.731_058_6, 0.880_797_1]),
        (Unary::Tanh, [0.244_918_66, 0.761_594_2, 0.964_027_6]),
        (Unary::Sin, [0.247_403_96, 0.841_471, 0.909_297_4]),
        (Unary::Cos, [0.968_912_4, 0.540_302_3, -0.416_146_84]),
        (Unary::Floor, [0.0, 1.0, 2.0]),
        (Unary::Sqrt, [0.5, 1.0, std::f32::consts::SQRT_2]),
        (Unary::Abs, [0.25, 1.0, 2.0]),
    ] {
        let got = op(&[&z], Op::Unary(unary)).unwrap();
        let close = got.floats().unwrap().iter().zip(want).all(|(x, y)| (x - y).abs() < 1e-6);
        assert!(close, "{unary:?}: {got:?}");
    }
}

#[test]
fn conversions_round_truncate_and_refuse() {
    let x = floats(&[2.9, -2.9, 1.001]);
    let to = |x: &Value, dtype| run(&[x], |b, x| b.convert(x[0], dtype));
    assert_eq!(to(&x, DType::I32).unwrap().ints().unwrap(), [2, -2, 1]);
    assert_eq!(to(&x, DType::BF16).unwrap().floats().unwrap(), [2.906_25, -2.906_25, 1.0]);
    assert!(to(&floats(&[f32::NAN]), DType::I32).is_err());
    assert!(to(&floats(&[3e9]), DType::I32).is_err());
    assert_eq!(to(&floats(&[3e9]), DType::U32).unwrap().ints().unwrap(), [3_000_000_000]);
    assert_eq!(to(&ints(&[3], &[0, -7, 300]), DType::Pred).unwrap().to_bytes(), [0, 1, 1]);
    assert_eq!(to(&ints(&[2], &[-7, 300]), DType::U8).unwrap().ints().unwrap(), [249, 44]);
    let pred = Value::from_ints(Type::new(DType::Pred, [2]), vec![0, 1]).unwrap();
    assert_eq!(to(&pred, DType::F32).unwrap().floats().unwrap(), [0.0, 1.0]);
}

#[test]
fn constants_and_iotas() {
    let leaf = |node: fn(&mut Builder) -> Result<NodeId, GraphError>| run(&[], |b, _| node(b)).unwrap();
    let iota = leaf(|b| b.iota(Type::new(DType::I32, [2, 3, 2]), 1));
    assert_eq!(iota.ints().unwrap(), [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2]);
    assert_eq!(leaf(|b| b.iota(f32s(&[3]), 0)).floats().unwrap(), [0.0, 1.0, 2.0]);
    assert_eq!(leaf(|b| b.constant(f32s(&[2, 2]), Literal::float(0.5))).floats().unwrap(), [0.5; 4]);
    let table = leaf(|b| b.constant(i32s(&[2, 2]), Literal::Int(Arc::new([1, 2, 3, 4]))));
    assert_eq!(table.ints().unwrap(), [1, 2, 3, 4]);
}
