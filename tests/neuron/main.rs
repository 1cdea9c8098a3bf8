//! `millrace serve --backend neuron` as its clients and its supervisor see it: the real program, with the software
//! doubles of the compiler and of the runtime in the vendor's place.
#![allow(clippy::print_stderr, reason = "a test that skips says so, and prints what it measured")]

#[path = "../support/cached.rs"]
mod cached;
mod hangs;
mod refusals;
mod rig;
mod smollm2;
mod statuses;
