//! The store of compiled graphs and what fills it: processes that race, compilers that misbehave, files that are
//! damaged, manifests that lie. The compilers are shell scripts with neuronx-cc's command line.

mod bench;
mod compilers;
mod damage;
mod plans;
mod providing;
