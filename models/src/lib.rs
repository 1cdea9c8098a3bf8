//! Checkpoints, tokenizers, chat templates, and the decoder graph.
//!
//! [`Checkpoint::open`] maps a Hugging Face directory or a GGUF file and reads it into one validated
//! [`Config`] and weights under canonical [`names`]; [`decoder()`] turns the configuration and a step's shape
//! into a graph. This crate knows no request and no backend.
#![deny(unsafe_code)]

mod config;
mod decoder;
pub mod device;
mod encoder;
mod error;
mod gguf;
pub mod hub;
mod json;
mod map;
pub mod names;
mod safetensors;
mod tensors;
pub mod text;
mod weights;

pub use config::{Config, EncoderConfig, Layer, Mlp, QkNorm, Rope, RopeScaling};
pub use decoder::{StepShape, decoder};
pub use encoder::{EncoderCheckpoint, EncoderShape, device_encoder, encoder};
pub use error::ModelError;
pub use gguf::{Gguf, Value};
pub use weights::{Checkpoint, read_config};
