//! The sets of allowed tokens that a step needs, worked out by whoever is there: each follows from its own sequence
//! alone, so neither the number of threads nor the order changes a set.

use std::sync::{Mutex, PoisonError};

use millrace_kernels::Pool;

use crate::constraint::Guide;

/// A guide on loan from its sequence, with the set that it fills.
#[derive(Debug)]
pub(crate) struct Loan {
    /// The step's row.
    pub(crate) row: usize,
    pub(crate) guide: Guide,
    pub(crate) allowed: Vec<u32>,
}

/// Asks the guides of a step, on the backend's workers where it lends them. Allocates nothing once it has had as many.
#[derive(Debug, Default)]
pub(crate) struct Masks {
    loans: Vec<Loan>,
}

impl Masks {
    /// Takes a guide that is to be asked.
    pub(crate) fn lend(&mut self, loan: Loan) {
        self.loans.push(loan);
    }

    /// Asks them all, and gives them back.
    pub(crate) fn work_out(&mut self, pool: Option<&Pool>) -> impl Iterator<Item = Loan> {
        let many = self.loans.len() > 1;
        let loans = Mutex::new(self.loans.iter_mut());
        let next = || loans.lock().unwrap_or_else(PoisonError::into_inner).next();
        let work = || {
            while let Some(Loan { guide, allowed, .. }) = next() {
                guide.prepare(allowed);
            }
        };
        match pool.filter(|_| many) {
            Some(pool) => pool.run(&|_| work()),
            None => work(),
        }
        self.loans.drain(..)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{Constraint, ConstraintError, TokenId};

    /// Allows what its number says; fails or panics for some numbers.
    #[derive(Clone, Debug)]
    struct Numbered(u32);

    impl Constraint for Numbered {
        fn fork(&self) -> Box<dyn Constraint> {
            Box::new(self.clone())
        }

        fn allowed(&mut self, allowed: &mut Vec<u32>) -> Result<(), ConstraintError> {
            match self.0 % 8 {
                6 => return Err(ConstraintError(format!("{} is refused", self.0))),
                7 => panic!("{}", self.0),
                _ => {}
            }
            allowed.clear();
            allowed.extend([self.0, self.0 + 1]);
            Ok(())
        }

        fn accept(&mut self, _: TokenId) -> Result<bool, ConstraintError> {
            Ok(false)
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        /// Any number of threads finds what each guide says alone, and one that fails costs no other its set.
        #[test]
        fn threads_find_what_one_does(
            numbers in prop::collection::vec(any::<u16>(), 0..24), threads in 1usize..5,
        ) {
            let pool = Pool::new(threads);
            let mut masks = Masks::default();
            for pool in [Some(&pool), None, Some(&pool)] {
                for (row, number) in numbers.iter().enumerate() {
                    let guide = Guide::new(Box::new(Numbered(u32::from(*number))));
                    prop_assert!(guide.waits());
                    masks.lend(Loan { row, guide, allowed: vec![9; 3] });
                }
                let back: Vec<Loan> = masks.work_out(pool).collect();
                prop_assert_eq!(back.len(), numbers.len());
                for (row, (loan, number)) in back.iter().zip(&numbers).enumerate() {
                    let number = u32::from(*number);
                    prop_assert_eq!(loan.row, row);
                    prop_assert!(!loan.guide.waits());
                    match (number % 8, loan.guide.failure()) {
                        (6, Some(failure)) => prop_assert_eq!(&failure.0, &format!("{number} is refused")),
                        (7, Some(failure)) => prop_assert_eq!(&failure.0, "the constraint panicked"),
                        (0..=5, None) => prop_assert_eq!(&loan.allowed, &vec![number, number + 1]),
                        (_, failure) => prop_assert!(false, "{number}: {failure:?}"),
                    }
                }
            }
        }
    }
}
