//! What a sequence may say next, where a request limits it: a grammar, a schema, a list of choices. The engine knows
//! none of these; it knows a set of allowed tokens before each token, and learns after it whether the sequence has
//! come to its end.
//!
//! The set for the next token follows from the tokens so far, so it is worked out while the backend computes the
//! logits it will be applied to. A constraint lives on the host beside the sampler's state, and survives preemption.

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use crate::TokenId;

/// Limits the tokens of one sequence. It is called on the engine's thread or on one of the backend's workers, and every
/// other sequence waits for it: so an implementation must bound its own work, and fail rather than exceed the bound.
pub trait Constraint: Debug + Send {
    /// The same constraint at the same place, for another sequence.
    fn fork(&self) -> Box<dyn Constraint>;

    /// Replaces `allowed` by the set of tokens that may come next: token `t` is bit `t % 32` of word `t / 32`, and
    /// words that are not there are zero. The set must hold an end-of-sequence token where the sequence may end.
    ///
    /// # Errors
    /// Where nothing can follow, or the work exceeds the constraint's bound.
    fn allowed(&mut self, allowed: &mut Vec<u32>) -> Result<(), ConstraintError>;

    /// Takes the token that was chosen, one of those allowed. Yields whether the sequence ends with it because nothing
    /// may follow.
    ///
    /// # Errors
    /// Where the work exceeds the constraint's bound.
    fn accept(&mut self, token: TokenId) -> Result<bool, ConstraintError>;
}

impl Clone for Box<dyn Constraint> {
    fn clone(&self) -> Self {
        self.fork()
    }
}

/// Why a constraint could not go on; its sequence fails with it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConstraintError(pub String);

/// A sequence's constraint, and where it stands between plan and commit.
#[derive(Debug)]
pub(crate) struct Guide {
    /// Never locked, as only `&mut self` reaches it: it makes the guide something that sampling threads may hold a
    /// reference to the neighbour of.
    constraint: Mutex<Box<dyn Constraint>>,
    /// Whether the set for the next token is known. A step may be tried several times.
    known: bool,
    failure: Option<ConstraintError>,
}

impl Guide {
    pub(crate) fn new(constraint: Box<dyn Constraint>) -> Self {
        Guide { constraint: Mutex::new(constraint), known: false, failure: None }
    }

    /// Whether what may come next is still to be worked out.
    pub(crate) fn waits(&self) -> bool {
        !self.known && self.failure.is_none()
    }

    /// Works out what may come next, unless that is known. A failure is kept for [`failure`](Self::failure).
    pub(crate) fn prepare(&mut self, allowed: &mut Vec<u32>) {
        if self.waits() {
            self.failure = guarded(|| self.constraint().allowed(allowed)).err();
            self.known = true;
        }
    }

    /// Why no token may be chosen.
    pub(crate) fn failure(&self) -> Option<&ConstraintError> {
        self.failure.as_ref()
    }

    /// Goes on behind the token; yields whether it was the last.
    pub(crate) fn accept(&mut self, token: TokenId) -> Result<bool, ConstraintError> {
        self.known = false;
        guarded(|| self.constraint().accept(token))
    }

    fn constraint(&mut self) -> &mut dyn Constraint {
        &mut **self.constraint.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A constraint that panics costs its own sequence only.
fn guarded<T>(work: impl FnOnce() -> Result<T, ConstraintError>) -> Result<T, ConstraintError> {
    let panicked = |_| Err(ConstraintError("the constraint panicked".to_owned()));
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(panicked)
}

/// Puts `value` in the place of the logits of all tokens that are not in the set.
pub(crate) fn forbid_others(logits: &mut [f32], allowed: &[u32], value: f32) {
    let words = allowed.iter().copied().chain(std::iter::repeat(0));
    for (logits, word) in logits.chunks_mut(32).zip(words) {
        match word {
            u32::MAX => {}
            0 => logits.fill(value),
            _ => {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = value;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_others_are_forbidden_and_nothing_else(length in 0usize..200, words in prop::collection::vec(
            prop_oneof![Just(0), Just(u32::MAX), any::<u32>()], 0..8)) {
            let mut logits: Vec<f32> = (0..length).map(|at| at as f32).collect();
            forbid_others(&mut logits, &words, -1.0);
            for (at, logit) in logits.iter().enumerate() {
                let allowed = words.get(at / 32).is_some_and(|word| word >> (at % 32) & 1 == 1);
                prop_assert_eq!(*logit, if allowed { at as f32 } else { -1.0 });
            }
        }
    }
}
