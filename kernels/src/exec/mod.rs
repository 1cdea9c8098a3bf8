//! Plans graphs and runs plans.

pub(crate) mod view;
