//! Which executions a step becomes: a pure function of the step and of what each program costs.
//!
//! A program has one fixed shape, so a step of any shape is several of them. A prompt's chunk runs as one row, in a
//! descending run of widths whose summed cost is least, the last one padded if that is cheaper than one program more.
//! Decodes run together. They are divided by the context that they need only where two narrow programs cost less than
//! one wide one, and likewise those whose logits are adjusted from those whose are not. Chunks come first: the last
//! token of a prompt may be among the decodes, since only those take an adjustment.

use crate::{RunError, Step, Want};

/// A program's shape, and what running it costs.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(super) struct Shape {
    /// Sequences.
    pub(super) rows: usize,
    /// New tokens of each.
    pub(super) width: usize,
    /// KV blocks that each can see.
    pub(super) blocks: usize,
    /// Whether it takes a bias.
    pub(super) adjust: bool,
    /// Seconds of an execution.
    pub(super) cost: f64,
}

/// Some of the new tokens of one of the step's rows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Part {
    /// Whose.
    pub(super) row: usize,
    /// The first of them among the row's new tokens.
    pub(super) first: usize,
    /// How many.
    pub(super) count: usize,
    /// Whether the logits of the last one are wanted.
    pub(super) wanted: bool,
}

/// One run of a program.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Execution {
    /// Which.
    pub(super) program: usize,
    /// Its rows, the first ones of the program's.
    pub(super) parts: Vec<Part>,
}

/// A decode that is still to be put into an execution.
#[derive(Clone, Copy)]
struct Decode {
    part: Part,
    blocks: usize,
    biased: bool,
}

/// The executions of a step, in an order in which each finds in the cache what it reads.
///
/// # Errors
/// Where a row needs a program that there is not.
pub(super) fn dispatch(step: &Step, block_size: usize, shapes: &[Shape]) -> Result<Vec<Execution>, RunError> {
    let mut executions = Vec::new();
    let mut decodes = Vec::with_capacity(step.rows.len());
    for (index, row) in step.rows.iter().enumerate() {
        if row.want == Want::All {
            return Err(RunError::Step("this backend yields no logits of single prompt tokens".into()));
        }
        let count = row.count as usize;
        let blocks = (row.position as usize + count).div_ceil(block_size);
        let (wanted, biased) = (row.want == Want::Last, step.bias_of(index).is_some());
        let mut left = if biased || count == 1 { count - 1 } else { count };
        let mut first = 0;
        for program in chunks(left, blocks, shapes)? {
            if shapes[program].width == 1 && left == 1 && first + 1 == count {
                break;
            }
            let taken = left.min(shapes[program].width);
            (first, left) = (first + taken, left - taken);
            let part =
                Part { row: index, first: first - taken, count: taken, wanted: wanted && first == count };
            executions.push(Execution { program, parts: vec![part] });
        }
        if first < count {
            decodes.push(Decode { part: Part { row: index, first, count: 1, wanted }, blocks, biased });
        }
    }
    decode(&mut decodes, shapes, &mut executions)?;
    Ok(executions)
}

/// The cheapest program that has room for so much.
fn cheapest(shapes: &[Shape], fits: impl Fn(&Shape) -> bool) -> Option<usize> {
    let better = |a: &usize, b: &usize| {
        let (a, b) = (&shapes[*a], &shapes[*b]);
        a.cost.total_cmp(&b.cost).then(a.adjust.cmp(&b.adjust)).then(a.blocks.cmp(&b.blocks))
    };
    (0..shapes.len()).filter(|at| fits(&shapes[*at])).min_by(better)
}

/// Programs of one row whose widths make up `tokens`, the widest first, at the least cost together.
fn chunks(tokens: usize, blocks: usize, shapes: &[Shape]) -> Result<Vec<usize>, RunError> {
    if tokens == 0 {
        return Ok(Vec::new());
    }
    let mut widths: Vec<usize> =
        shapes.iter().filter(|shape| shape.blocks >= blocks).map(|shape| shape.width).collect();
    widths.sort_unstable();
    widths.dedup();
    let of_width = |width| cheapest(shapes, |shape| shape.width == width && shape.blocks >= blocks);
    let programs: Vec<usize> = widths.into_iter().filter_map(of_width).collect();
    if programs.is_empty() {
        return Err(too_long(blocks));
    }
    // The least cost of so many tokens, and the program that comes first then. All but the last run of a width are
    // full, so whole runs of the widest are taken without a search while more than two are left.
    let widest = programs.iter().copied().max_by_key(|at| shapes[*at].width).unwrap_or_default();
    let width = shapes[widest].width;
    let sure = (tokens / width).saturating_sub(2);
    let rest = tokens - sure * width;
    let mut best = vec![(0.0, 0); rest + 1];
    for left in 1..=rest {
        let costs = programs.iter().map(|at| {
            let behind: f64 = best[left - shapes[*at].width.min(left)].0;
            (behind + shapes[*at].cost.max(f64::MIN_POSITIVE), *at)
        });
        best[left] = costs.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or_default();
    }
    let mut found = vec![widest; sure];
    let mut left = rest;
    while left > 0 {
        found.push(best[left].1);
        left -= shapes[best[left].1].width.min(left);
    }
    found.sort_by_key(|at| std::cmp::Reverse(shapes[*at].width));
    Ok(found)
}

fn too_long(blocks: usize) -> RunError {
    RunError::Step(format!("no compiled program has room for {blocks} KV blocks a sequence"))
}

/// Puts decodes into executions: all together, or apart by whether they are adjusted, whichever costs less.
fn decode(decodes: &mut [Decode], shapes: &[Shape], out: &mut Vec<Execution>) -> Result<(), RunError> {
    if decodes.is_empty() {
        return Ok(());
    }
    // Longest contexts last; stable, so that equal steps become equal executions.
    decodes.sort_by_key(|decode| decode.blocks);
    let together = by_context(decodes, shapes);
    let (biased, plain): (Vec<Decode>, Vec<Decode>) = decodes.iter().partition(|decode| decode.biased);
    if biased.is_empty() || plain.is_empty() {
        out.extend(together?.1);
        return Ok(());
    }
    let (biased, plain) = (by_context(&biased, shapes)?, by_context(&plain, shapes)?);
    match together {
        Ok((cost, executions)) if cost <= biased.0 + plain.0 => out.extend(executions),
        _ => out.extend(biased.1.into_iter().chain(plain.1)),
    }
    Ok(())
}

/// Divides decodes, sorted by context, into runs that each fit programs of one context, at the least cost together.
fn by_context(decodes: &[Decode], shapes: &[Shape]) -> Result<(f64, Vec<Execution>), RunError> {
    let adjust = decodes.iter().any(|decode| decode.biased);
    let usable = |shape: &Shape| shape.width == 1 && (shape.adjust || !adjust);
    let mut edges: Vec<usize> =
        shapes.iter().filter(|shape| usable(shape)).map(|shape| shape.blocks).collect();
    edges.sort_unstable();
    edges.dedup();
    // Where each edge's decodes end.
    let ends = edges.iter().map(|edge| decodes.partition_point(|decode| decode.blocks <= *edge));
    let mut ends: Vec<usize> = ends.filter(|end| *end > 0).collect();
    ends.dedup();
    if ends.last() != Some(&decodes.len()) {
        let longest = decodes.iter().map(|decode| decode.blocks).max().unwrap_or_default();
        return Err(too_long(longest));
    }
    let starts: Vec<usize> = std::iter::once(0).chain(ends.iter().copied()).collect();
    let mut plans: Vec<(f64, usize)> = vec![(0.0, 0)];
    for (at, end) in ends.iter().enumerate() {
        let costs = (0..=at).filter_map(|from| {
            let run = &decodes[starts[from]..*end];
            Some((plans[from].0 + programs(run, shapes, adjust)?.0, from))
        });
        plans.push(costs.min_by(|a, b| a.0.total_cmp(&b.0)).ok_or_else(|| too_long(0))?);
    }
    let (mut at, mut executions) = (ends.len(), Vec::new());
    while at > 0 {
        let from = plans[at].1;
        let run = &decodes[starts[from]..ends[at - 1]];
        let (_, chosen) = programs(run, shapes, adjust).ok_or_else(|| too_long(0))?;
        let mut rest = run;
        for program in chosen {
            let (here, behind) = rest.split_at(rest.len().min(shapes[program].rows));
            executions.push(Execution { program, parts: here.iter().map(|decode| decode.part).collect() });
            rest = behind;
        }
        at = from;
    }
    Ok((plans[ends.len()].0, executions))
}

/// Programs for decodes of one context: full ones with the most rows, then the cheapest with room for the rest.
fn programs(run: &[Decode], shapes: &[Shape], adjust: bool) -> Option<(f64, Vec<usize>)> {
    let blocks = run.last()?.blocks;
    let fits = |shape: &Shape| shape.width == 1 && shape.blocks >= blocks && (shape.adjust || !adjust);
    let most = shapes.iter().filter(|shape| fits(shape)).map(|shape| shape.rows).max()?;
    let mut found = Vec::new();
    let mut left = run.len();
    while left > 0 {
        let program = cheapest(shapes, |shape| fits(shape) && shape.rows >= left.min(most))?;
        left -= left.min(shapes[program].rows);
        found.push(program);
    }
    Some((found.iter().map(|at| shapes[*at].cost).sum(), found))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{BlockId, Row, SeqId};

    const BLOCK: usize = 4;
    const CONTEXT: usize = 16;

    fn shapes() -> impl Strategy<Value = Vec<Shape>> {
        let shape = |width: BoxedStrategy<usize>| {
            (1usize..9, width, 1..CONTEXT, any::<bool>(), 0.1f64..4.0).prop_map(
                |(rows, width, blocks, adjust, cost)| {
                    let rows = if width > 1 { 1 } else { rows };
                    Shape { rows, width, blocks, adjust: adjust && width == 1, cost }
                },
            )
        };
        let decodes = prop::collection::vec(shape(Just(1).boxed()), 0..6);
        let prompts = prop::collection::vec(shape((2usize..33).boxed()), 0..5);
        (decodes, prompts, 1usize..9).prop_map(|(mut shapes, prompts, rows)| {
            shapes.extend(prompts);
            // What every set has: a decode of the longest context, adjusted.
            shapes.push(Shape { rows, width: 1, blocks: CONTEXT, adjust: true, cost: 3.0 });
            shapes
        })
    }

    fn step() -> impl Strategy<Value = Step> {
        let row = (0usize..CONTEXT * BLOCK, 1usize..40, 0u8..3);
        prop::collection::vec(row, 1..24).prop_map(|rows| {
            let mut step = Step::default();
            for (at, (position, count, kind)) in rows.into_iter().enumerate() {
                let count = if at % 3 > 0 { 1 } else { count.min(CONTEXT * BLOCK - position) };
                let held = (position + count).div_ceil(BLOCK);
                step.rows.push(Row {
                    seq: SeqId(at as u64),
                    first: step.tokens.len() as u32,
                    count: count as u32,
                    position: position as u32,
                    first_block: step.blocks.len() as u32,
                    blocks: held as u32,
                    want: if kind == 0 { Want::Nothing } else { Want::Last },
                });
                step.tokens.extend((0..count).map(|token| token as u32));
                step.blocks.extend((0..held).map(|block| BlockId((at * CONTEXT + block) as u32)));
                if kind == 2 {
                    step.add_bias(at, 3);
                }
            }
            step
        })
    }

    proptest! {
        /// Every token once, in order, with room for its context, and adjusted where it must be.
        #[test]
        fn every_token_is_computed_once_and_after_those_before_it(shapes in shapes(), step in step()) {
            let executions = dispatch(&step, BLOCK, &shapes).expect("the set covers all");
            let mut done = vec![0; step.rows.len()];
            let mut yielded = vec![0; step.rows.len()];
            for execution in &executions {
                let shape = &shapes[execution.program];
                prop_assert!(!execution.parts.is_empty() && execution.parts.len() <= shape.rows);
                for part in &execution.parts {
                    let row = &step.rows[part.row];
                    prop_assert_eq!(part.first, done[part.row], "tokens of a row come in order");
                    prop_assert!(part.count >= 1 && part.count <= shape.width);
                    done[part.row] += part.count;
                    let end = row.position as usize + part.first + part.count;
                    prop_assert!(end.div_ceil(BLOCK) <= shape.blocks);
                    let last = done[part.row] == row.count as usize;
                    prop_assert_eq!(part.wanted, last && row.want == Want::Last);
                    yielded[part.row] += usize::from(part.wanted);
                    prop_assert!(!part.wanted || step.bias_of(part.row).is_none() || shape.adjust);
                }
            }
            for (row, (done, yielded)) in step.rows.iter().zip(done.iter().zip(&yielded)) {
                prop_assert_eq!(*done, row.count as usize);
                prop_assert_eq!(*yielded, row.logit_rows());
            }
        }

        /// A run of chunks costs no more than any other that was tried, and only its last chunk is padded.
        #[test]
        fn a_run_of_chunks_is_the_cheapest(shapes in shapes(), tokens in 1usize..80, other in prop::collection::vec(any::<prop::sample::Index>(), 80)) {
            let found = chunks(tokens, CONTEXT, &shapes).expect("there is one of width 1");
            let cost = |run: &[usize]| run.iter().map(|at| shapes[*at].cost).sum::<f64>();
            let widths: Vec<usize> = found.iter().map(|at| shapes[*at].width).collect();
            prop_assert!(widths.is_sorted_by(|a, b| a >= b));
            prop_assert!(widths.iter().sum::<usize>() >= tokens);
            prop_assert!(widths[..widths.len() - 1].iter().sum::<usize>() < tokens, "no chunk is empty");
            let able: Vec<usize> = (0..shapes.len()).filter(|at| shapes[*at].blocks >= CONTEXT).collect();
            let (mut left, mut run) = (tokens, Vec::new());
            for index in other {
                let at = able[index.index(able.len())];
                run.push(at);
                left -= shapes[at].width.min(left);
                if left == 0 {
                    break;
                }
            }
            // Whole runs of the widest are taken without a search; what comes after is searched.
            let widest = found.iter().map(|at| shapes[*at].width).max().unwrap_or(1);
            prop_assert!(left > 0 || tokens >= 3 * widest || cost(&found) <= cost(&run) + 1e-9);
        }
    }

    #[test]
    fn decodes_are_divided_where_that_is_cheaper() {
        let shape = |rows, blocks, cost| Shape { rows, width: 1, blocks, adjust: false, cost };
        let mut step = Step::default();
        for (at, position) in [3usize, 2, 60, 1].into_iter().enumerate() {
            let held = position / BLOCK + 1;
            step.rows.push(Row {
                seq: SeqId(at as u64),
                first: at as u32,
                count: 1,
                position: position as u32,
                first_block: step.blocks.len() as u32,
                blocks: held as u32,
                want: Want::Last,
            });
            step.tokens.push(0);
            step.blocks.extend((0..held).map(|block| BlockId(block as u32)));
        }
        let rows = |shapes: &[Shape]| -> Vec<Vec<usize>> {
            let executions = dispatch(&step, BLOCK, shapes).expect("covered");
            executions.iter().map(|it| it.parts.iter().map(|part| part.row).collect()).collect()
        };
        let small = [shape(1, 16, 2.0), shape(4, 1, 1.0), shape(4, 16, 8.0)];
        assert_eq!(rows(&small), [vec![2], vec![0, 1, 3]]);
        let cheap = [shape(1, 16, 2.0), shape(4, 1, 1.0), shape(4, 16, 2.5)];
        assert_eq!(rows(&cheap), [vec![0, 1, 3, 2]]);
        assert!(dispatch(&step, BLOCK, &cheap[1..2]).is_err(), "no program for the long one");
    }
}
