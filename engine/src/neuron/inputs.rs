//! What an execution is given: the step's tokens in the program's shape, and padding around them.
//!
//! Padding must be harmless. A scatter is told that its slots are distinct, so a token that stands for nothing is
//! written to a slot of its own in blocks that no sequence has; a row that stands for nothing looks into those blocks,
//! as do the ends of block tables. What is there is finite, as caches begin as zeros.

use super::dispatch::{Execution, Shape};
use crate::Step;

/// The inputs of one execution, the same for every rank.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Inputs {
    /// `[rows · width]`: token ids.
    pub(super) tokens: Vec<i32>,
    /// `[rows · width]`: places in the sequence.
    pub(super) positions: Vec<i32>,
    /// `[rows · width]`: where keys and values go, `block · block_size + offset`.
    pub(super) slots: Vec<i32>,
    /// `[rows, blocks]`.
    pub(super) block_tables: Vec<i32>,
    /// `[rows]`: which token of all yields the row's logits.
    pub(super) logit_rows: Vec<i32>,
    /// For each row, what is added to its logits: a whole vocabulary, or nothing. Empty where the program takes none.
    pub(super) bias: Vec<Option<Vec<f32>>>,
}

/// Where padding goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parking {
    /// Tokens in a block.
    pub(super) block_size: usize,
    /// The first block that no sequence has.
    pub(super) first_block: usize,
}

impl Inputs {
    /// Of an execution that stands for nothing.
    pub(super) fn padding(shape: &Shape, parking: Parking) -> Self {
        let tokens = shape.rows * shape.width;
        let first = parking.first_block * parking.block_size;
        Inputs {
            tokens: vec![0; tokens],
            positions: vec![0; tokens],
            slots: (first..first + tokens).map(|slot| slot as i32).collect(),
            block_tables: vec![parking.first_block as i32; shape.rows * shape.blocks],
            logit_rows: (0..shape.rows).map(|row| (row * shape.width) as i32).collect(),
            bias: if shape.adjust { vec![None; shape.rows] } else { Vec::new() },
        }
    }

    /// Of an execution of a step.
    pub(super) fn of(step: &Step, execution: &Execution, shape: &Shape, parking: Parking) -> Self {
        let mut inputs = Inputs::padding(shape, parking);
        let size = parking.block_size;
        for (at, part) in execution.parts.iter().enumerate() {
            let row = &step.rows[part.row];
            let blocks = step.blocks_of(row);
            let tokens = &step.tokens_of(row)[part.first..][..part.count];
            let (first, start) = (at * shape.width, row.position as usize + part.first);
            for (i, token) in tokens.iter().enumerate() {
                let position = start + i;
                inputs.tokens[first + i] = *token as i32;
                inputs.positions[first + i] = position as i32;
                inputs.slots[first + i] =
                    (blocks[position / size].0 as usize * size + position % size) as i32;
            }
            let seen = &blocks[..(start + part.count).div_ceil(size)];
            for (entry, block) in inputs.block_tables[at * shape.blocks..].iter_mut().zip(seen) {
                *entry = block.0 as i32;
            }
            inputs.logit_rows[at] = (first + part.count - 1) as i32;
            if part.wanted && shape.adjust {
                inputs.bias[at] = step.bias_of(part.row).map(<[f32]>::to_vec);
            }
        }
        inputs
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::dispatch::Part;
    use super::*;
    use crate::{BlockId, Row, SeqId, Want};

    #[test]
    fn padding_has_slots_of_its_own() {
        let shape = Shape { rows: 3, width: 4, blocks: 3, adjust: true, cost: 1.0 };
        let parking = Parking { block_size: 2, first_block: 50 };
        let row = |seq, first, position, count, first_block, blocks| Row {
            seq: SeqId(seq),
            first,
            count,
            position,
            first_block,
            blocks,
            want: Want::Last,
        };
        let mut step = Step {
            tokens: vec![11, 12, 13, 21],
            blocks: [7, 9, 3, 4, 5].map(BlockId).to_vec(),
            rows: vec![row(1, 0, 1, 3, 0, 2), row(2, 3, 4, 1, 2, 3)],
            ..Step::default()
        };
        step.add_bias(1, 2).copy_from_slice(&[0.5, -1.0]);
        let part = |row, count| Part { row, first: 0, count, wanted: true };
        let execution = Execution { program: 0, parts: vec![part(0, 3), part(1, 1)] };
        let inputs = Inputs::of(&step, &execution, &shape, parking);
        assert_eq!(inputs.tokens, [11, 12, 13, 0, 21, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(inputs.positions, [1, 2, 3, 0, 4, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(inputs.slots[..5], [15, 18, 19, 103, 10]);
        assert_eq!(inputs.block_tables, [7, 9, 50, 3, 4, 5, 50, 50, 50]);
        assert_eq!(inputs.logit_rows, [2, 4, 8]);
        assert_eq!(inputs.bias, [None, Some(vec![0.5, -1.0]), None]);
        assert_eq!(inputs.slots.iter().collect::<HashSet<_>>().len(), 12, "distinct slots");
    }
}
