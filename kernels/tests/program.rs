//! Programs that run many times: states in place, states after a failure, and ranks that run together.

use std::time::Duration;

use millrace_graph::{
    Binary, Builder, DType, DotDims, Graph, GraphError, Op, ParamKind, Reduction, ScatterDims, Type,
};
use millrace_kernels::eval::{EvalError, Fault, Meeting, Program, Ranks, Value};

const PATIENCE: Duration = Duration::from_secs(20);

fn floats(shape: &[usize], elements: &[f32]) -> Value {
    Value::from_floats(Type::new(DType::F32, shape), elements.to_vec()).expect("as many as the shape has")
}

fn ints(elements: &[i64]) -> Value {
    Value::from_ints(Type::new(DType::I32, [elements.len()]), elements.to_vec()).expect("in range")
}

/// Writes `rows` into two caches, one after the other, at `first` and `second`.
fn two_caches() -> Result<Graph, GraphError> {
    let mut b = Builder::new("caches");
    let dims = ScatterDims {
        update_window_dims: vec![1],
        inserted_window_dims: vec![0],
        scatter_dims_to_operand_dims: vec![0],
        index_vector_dim: 1,
    };
    let rows = b.param("rows", ParamKind::Input, Type::new(DType::F32, [2, 3]))?;
    let mut outputs = Vec::new();
    for name in ["first", "second"] {
        let at = b.param(name, ParamKind::Input, Type::new(DType::I32, [2]))?;
        let state = b.param(format!("{name}_cache"), ParamKind::State, Type::new(DType::F32, [2, 2, 3]))?;
        let flat = b.reshape(state, &[4, 3])?;
        let written = b.push(Op::Scatter(dims.clone()), &[flat, at, rows])?;
        let whole = b.reshape(written, &[2, 2, 3])?;
        outputs.push((name, whole));
    }
    for (name, whole) in outputs {
        b.output(format!("{name}_out"), whole, Some(&format!("{name}_cache")))?;
    }
    b.finish()
}

fn address(value: &Value) -> *const f32 {
    value.floats().expect("floats").as_ptr()
}

#[test]
fn a_state_given_away_is_updated_in_place() {
    let program = Program::new(two_caches().expect("a graph")).expect("a program");
    let rows = floats(&[2, 3], &[1., 2., 3., 4., 5., 6.]);
    let (mut first, mut second) = (floats(&[2, 2, 3], &[0.; 12]), floats(&[2, 2, 3], &[9.; 12]));
    let (place, kept) = (address(&first), second.clone());
    let mut seen = Vec::new();
    for step in 0..2 {
        let at = ints(&[step, 3]);
        let mut inputs = [Some(rows.clone()), Some(at.clone()), Some(first), Some(at), Some(second)];
        let mut outputs = program.run(&mut inputs, None).expect("in bounds").into_iter();
        assert!(inputs.iter().all(Option::is_none));
        (first, second) = (outputs.next().expect("the first"), outputs.next().expect("the second"));
        assert_eq!(address(&first), place);
        seen.push(address(&second));
    }
    assert_eq!(first.floats(), Some(&[1., 2., 3., 1., 2., 3., 0., 0., 0., 4., 5., 6.][..]));
    // Somebody else had the second one: it was copied the first time, and is theirs no more.
    assert_eq!(kept.floats(), Some(&[9.; 12][..]));
    assert!(seen[0] != address(&kept) && seen[0] == seen[1]);
}

#[test]
fn states_survive_a_failure_as_they_stand() {
    let program = Program::new(two_caches().expect("a graph")).expect("a program");
    let rows = floats(&[2, 3], &[1., 2., 3., 4., 5., 6.]);
    let (first, second) = (floats(&[2, 2, 3], &[0.; 12]), floats(&[2, 2, 3], &[9.; 12]));
    let mut inputs =
        [Some(rows), Some(ints(&[0, 1])), Some(first), Some(ints(&[2, 4])), Some(second.clone())];
    let error = program.run(&mut inputs, None).expect_err("4 is beyond");
    let fault = Fault::OutOfBounds { index: 4, dim: 0, window: 1, size: 4 };
    assert!(matches!(error, EvalError::Node { fault: got, .. } if got == fault));
    let first = inputs[2].as_ref().expect("the first, written already");
    assert_eq!(first.floats(), Some(&[1., 2., 3., 4., 5., 6., 0., 0., 0., 0., 0., 0.][..]));
    assert_eq!(first.ty(), &Type::new(DType::F32, [2, 2, 3]));
    assert_eq!(inputs[4].as_ref().expect("the second").floats(), second.floats());
    assert!(inputs[0].is_none());
}

/// `(x + the sum of all x of the group), of several rounds`.
fn rounds(groups: &[Vec<u32>], count: usize) -> Result<Graph, GraphError> {
    let mut b = Builder::new("rounds");
    let mut x = b.param("x", ParamKind::Input, Type::new(DType::F32, [3]))?;
    for _ in 0..count {
        let sum = b.push(Op::AllReduce { op: Reduction::Add, groups: groups.to_vec() }, &[x])?;
        x = b.binary(Binary::Add, x, sum)?;
    }
    b.output("x", x, None)?;
    b.finish()
}

/// Runs one program on as many ranks, some times; `fails` says in which run which rank stays away.
fn together(
    groups: &[Vec<u32>],
    ranks: usize,
    runs: u64,
    fails: Option<(u64, u32)>,
) -> Vec<Vec<Result<Value, EvalError>>> {
    let program = Program::new(rounds(groups, 3).expect("a graph")).expect("a program");
    let meeting = Meeting::new(ranks, PATIENCE);
    std::thread::scope(|scope| {
        let ranks: Vec<_> = (0..ranks as u32)
            .map(|rank| {
                let (program, meeting) = (&program, &meeting);
                scope.spawn(move || {
                    let run = |run| {
                        let ranks = meeting.together(rank, run);
                        if fails == Some((run, rank)) {
                            ranks.fail("it was told to");
                            return Ok(floats(&[1], &[0.]));
                        }
                        let x = floats(&[3], &[rank as f32 + 1., run as f32, -1.]);
                        Ok(program.run(&mut [Some(x)], Some(&ranks))?.remove(0))
                    };
                    (0..runs).map(run).collect()
                })
            })
            .collect();
        ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
    })
}

#[test]
fn ranks_reduce_within_their_groups() {
    for (ranks, groups) in [
        (1, vec![vec![0]]),
        (2, vec![vec![0, 1]]),
        (4, vec![vec![0, 1, 2, 3]]),
        (4, vec![vec![2, 0], vec![1, 3]]),
    ] {
        for (rank, runs) in together(&groups, ranks, 5, None).into_iter().enumerate() {
            let group = groups.iter().find(|group| group.contains(&(rank as u32))).expect("a group");
            let size = group.len() as f32;
            for (run, value) in runs.into_iter().enumerate() {
                let start = |rank: u32| [rank as f32 + 1., run as f32, -1.];
                let expected: Vec<f32> = (0..3)
                    .map(|i| {
                        // x and the group's sum s become x + s and s + n·s.
                        let (mut x, mut sum) =
                            (start(rank as u32)[i], group.iter().map(|r| start(*r)[i]).sum::<f32>());
                        for _ in 0..3 {
                            (x, sum) = (x + sum, sum * (1. + size));
                        }
                        x
                    })
                    .collect();
                let value = value.expect("all ranks came");
                assert_eq!(value.floats(), Some(&expected[..]), "rank {rank} of {groups:?}, run {run}");
            }
        }
    }
}

#[test]
fn a_rank_that_fails_stops_the_others_in_that_run_alone() {
    let results = together(&[vec![0, 1, 2, 3]], 4, 4, Some((1, 2)));
    for (rank, runs) in results.iter().enumerate() {
        for (run, result) in runs.iter().enumerate() {
            assert_eq!(result.is_ok(), run != 1 || rank == 2, "rank {rank}, run {run}: {result:?}");
            if let Err(error) = result {
                assert!(error.to_string().contains("rank 2 failed: it was told to"), "{error}");
            }
        }
    }
}

#[test]
fn ranks_that_do_not_come_and_groups_that_do_not_add_up_are_errors() {
    let run = |groups: &[Vec<u32>], ranks: Option<&dyn Ranks>| {
        let program = Program::new(rounds(groups, 1).expect("a graph")).expect("a program");
        let x = floats(&[3], &[0.; 3]);
        program.run(&mut [Some(x)], ranks).expect_err("no result").to_string()
    };
    assert!(run(&[vec![0]], None).contains("needs the other ranks"));
    let alone = Meeting::new(2, Duration::from_millis(20)).together(1, 0);
    let late = run(&[vec![0, 1]], Some(&alone));
    assert!(late.contains("rank 1 waited 20ms for the others"), "{late}");
    let one = |run| Meeting::new(1, PATIENCE).together(0, run);
    assert!(run(&[vec![0, 1]], Some(&one(0))).contains("do not have each of 1 ranks once"));
    assert!(run(&[vec![1]], Some(&one(1))).contains("rank 0 is in none of the groups"));
    let beyond = Meeting::new(1, PATIENCE).together(3, 0);
    assert!(run(&[vec![3]], Some(&beyond)).contains("rank 3 of 1"));
}

/// Products that are large enough for threads are the same as small ones: one column after the other.
#[test]
fn large_products_are_those_of_their_columns() {
    let (rows, columns, length) = (3, 2000, 256);
    let dims = DotDims { lhs_contracting: vec![1], rhs_contracting: vec![1], ..DotDims::default() };
    let product = |x: &Value, y: &Value| {
        let mut b = Builder::new("dot");
        let x_node = b.param("x", ParamKind::Input, x.ty().clone()).expect("a parameter");
        let y_node = b.param("y", ParamKind::Input, y.ty().clone()).expect("a parameter");
        let dot = b.dot(x_node, y_node, dims.clone(), DType::F32).expect("a product");
        b.output("dot", dot, None).expect("an output");
        let program = Program::new(b.finish().expect("a graph")).expect("a program");
        let value = program.run(&mut [Some(x.clone()), Some(y.clone())], None).expect("a value").remove(0);
        value.floats().expect("floats").to_vec()
    };
    let number = |i: usize| ((i * 7919) % 1013) as f32 / 500. - 1.;
    let x: Vec<f32> = (0..rows * length).map(number).collect();
    let y: Vec<f32> = (0..columns * length).map(|i| number(i + 5)).collect();
    let whole = product(&floats(&[rows, length], &x), &floats(&[columns, length], &y));
    for column in [0, 1, 999, 1000, 1001, 1999] {
        let one =
            product(&floats(&[rows, length], &x), &floats(&[1, length], &y[column * length..][..length]));
        for row in 0..rows {
            assert_eq!(whole[row * columns + column], one[row], "{row}, {column}");
        }
    }
}
