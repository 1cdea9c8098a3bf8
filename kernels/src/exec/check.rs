//! Checks of input elements that are used as indices: all of them before anything is written, so that a kernel
//! can rely on them.

use super::error::RunError;
use super::plan::Slot;

/// What the elements of an input have to satisfy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Check {
    /// Each is in `0..bound`.
    Below { input: u32, bound: usize },
    /// Each is in `0..bound`, and no two are equal.
    Distinct { input: u32, bound: usize },
    /// Each token's row of a block table names existing blocks, as far as its position reaches. Positions and
    /// rows were checked before.
    Blocks { tables: u32, table_blocks: usize, positions: u32, rows: TableRows, block: usize, blocks: usize },
}

/// Which row of the tables a token belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum TableRows {
    Input(u32),
    Width(usize),
}

/// Runs the checks in order. `seen` has a bit for every slot of the largest cache, all zero, and is left so.
pub(crate) fn run(
    checks: &[Check],
    slots: &[Slot],
    inputs: &[&[i32]],
    seen: &mut [u64],
) -> Result<(), RunError> {
    for check in checks {
        match *check {
            Check::Below { input, bound } => below(input, bound, slots, inputs)?,
            Check::Distinct { input, bound } => {
                below(input, bound, slots, inputs)?;
                distinct(input, slots, inputs, seen)?;
            }
            Check::Blocks { tables, table_blocks, positions, rows, block, blocks } => {
                let table = inputs[tables as usize];
                // The first `checked` entries of row `of` are known to be good: tokens of a row follow one another,
                // and each needs what the one before did and a little more.
                let (mut of, mut checked) = (usize::MAX, 0);
                for (token, position) in inputs[positions as usize].iter().enumerate() {
                    let row = match rows {
                        TableRows::Input(rows) => inputs[rows as usize][token] as usize,
                        TableRows::Width(width) => token / width,
                    };
                    if row != of {
                        (of, checked) = (row, 0);
                    }
                    let reached = *position as usize / block + 1;
                    for at in (checked..reached).map(|entry| row * table_blocks + entry) {
                        index(tables, at, table[at], blocks, slots)?;
                    }
                    checked = checked.max(reached);
                }
            }
        }
    }
    Ok(())
}

fn index(input: u32, at: usize, value: i32, bound: usize, slots: &[Slot]) -> Result<(), RunError> {
    match usize::try_from(value) {
        Ok(index) if index < bound => Ok(()),
        _ => Err(RunError::Index { input: slots[input as usize].name.clone(), at, value, bound }),
    }
}

fn below(input: u32, bound: usize, slots: &[Slot], inputs: &[&[i32]]) -> Result<(), RunError> {
    let values = inputs[input as usize].iter().enumerate();
    values.into_iter().try_for_each(|(at, value)| index(input, at, *value, bound, slots))
}

fn distinct(input: u32, slots: &[Slot], inputs: &[&[i32]], seen: &mut [u64]) -> Result<(), RunError> {
    let values = inputs[input as usize];
    let mark = |value: i32| (value as usize / 64, 1u64 << (value as usize % 64));
    let mut twice = None;
    let mut marked = 0;
    for value in values {
        let (word, bit) = mark(*value);
        if seen[word] & bit != 0 {
            twice = Some(RunError::Duplicate {
                input: slots[input as usize].name.clone(),
                at: marked,
                value: *value,
            });
            break;
        }
        seen[word] |= bit;
        marked += 1;
    }
    for value in &values[..marked] {
        seen[mark(*value).0] = 0;
    }
    twice.map_or(Ok(()), Err)
}
