//! Typed tensor graphs of static shapes: one definition of a model, two consumers. The CPU executor runs a
//! graph with kernels for its fused ops; the HLO writer inlines their definitions for the device compiler.
//! This crate knows no file, no weight and no sequence.
#![forbid(unsafe_code)]

mod builder;
pub mod define;
pub mod dequant;
mod dtype;
mod error;
mod graph;
pub mod hlo;
mod infer;
mod op;
mod print;
pub mod topk;
mod types;
mod verify;

pub use builder::Builder;
pub use dtype::DType;
pub use error::GraphError;
pub use graph::{Graph, Node, NodeId, Output, Param, ParamId, ParamKind};
pub use op::{
    Activation, Attention, Binary, Direction, DotDims, Fused, GatherDims, Literal, Op, Reduction,
    ScatterDims, Unary,
};
pub use types::{RowOrder, TensorView, Type};
