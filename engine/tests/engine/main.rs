//! The engine through its public interface, on a backend that is stricter than any real one.

mod candidates;
mod constraint;
mod failure;
mod fake;
mod invariance;
mod lifecycle;
mod validation;
