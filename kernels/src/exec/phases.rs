//! The list of phases as it grows, and how long each storage is needed.

use super::place::Storage;
use super::plan::{RowKind, RowOp, Work};
use super::view::View;

#[derive(Default)]
pub(crate) struct Phases {
    pub(crate) works: Vec<Work>,
    pub(crate) storages: Vec<Storage>,
}

impl Phases {
    /// A storage of so many floats; it lives from the first phase that touches it to the last one.
    pub(crate) fn storage(&mut self, elements: usize) -> u32 {
        self.storages.push(Storage { elements, first: usize::MAX, last: 0, output: None });
        self.storages.len() as u32 - 1
    }

    fn touch(&mut self, storage: u32, phase: usize) {
        let storage = &mut self.storages[storage as usize];
        storage.first = storage.first.min(phase);
        storage.last = storage.last.max(phase);
    }

    /// Appends a phase.
    pub(crate) fn push(&mut self, work: Work) {
        let phase = self.works.len();
        work.storages(|storage| self.touch(storage, phase));
        self.works.push(work);
    }

    /// Appends a row-wise op: to the last phase if that is one of as many rows and allows it.
    pub(crate) fn push_row_op(&mut self, op: RowOp) {
        let count = op.at.rows;
        match self.works.last_mut() {
            Some(Work::Rows { rows, ops })
                if *rows == count && ops.iter().all(|other| op.can_share_phase(other)) =>
            {
                let phase = self.works.len() - 1;
                op.storages().for_each(|storage| self.touch(storage, phase));
                if let Some(Work::Rows { ops, .. }) = self.works.last_mut() {
                    ops.push(op);
                }
            }
            _ => self.push(Work::Rows { rows: count, ops: vec![op] }),
        }
    }

    /// Takes the last op back if it is a norm that leaves its operand as it was and fills `view`: whoever reads the view
    /// next may as well compute it. Returns the operand, and the norm's weight, epsilon and offset.
    pub(crate) fn take_norm(&mut self, view: &View) -> Option<(View, (u32, f32, f32))> {
        let Some(Work::Rows { ops, .. }) = self.works.last_mut() else { return None };
        let norm = match ops.last() {
            Some(&RowOp { kind: RowKind::Norm { weight, eps, offset }, from: Some(from), at })
                if at == *view =>
            {
                (from, (weight, eps, offset))
            }
            _ => return None,
        };
        ops.pop();
        if ops.is_empty() {
            self.works.pop();
        }
        Some(norm)
    }

    /// Whether a row-wise op on so many rows would join the last phase.
    pub(crate) fn ends_in_rows(&self, count: usize) -> bool {
        matches!(self.works.last(), Some(Work::Rows { rows, .. }) if *rows == count)
    }

    /// Makes a value an output: its storage becomes the output's memory where the value is all of it.
    pub(crate) fn give_out(&mut self, view: View, output: u32) {
        let elements = view.rows * view.cols;
        let storage = &mut self.storages[view.storage as usize];
        if storage.output.is_none()
            && storage.elements == elements
            && (view.stride == view.cols || view.rows <= 1)
        {
            storage.output = Some(output);
            return;
        }
        let at = View { storage: self.storage(elements), offset: 0, stride: view.cols, ..view };
        self.storages[at.storage as usize].output = Some(output);
        self.push_row_op(RowOp { kind: RowKind::Copy, from: Some(view), at });
    }
}
