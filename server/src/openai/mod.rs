//! The OpenAI API, with vLLM's additions: requests are read and checked once, then submitted, then answered whole or as
//! a stream, both from the same [`Delta`](choice::Delta)s.

mod choice;
mod embeddings;
mod generate;
mod models;
mod parse;
mod prompt;
mod render;
mod structured;
mod tokenize;
mod tools;

pub(crate) use choice::{Choice, Choices, Rules};
pub(crate) use embeddings::embeddings;
pub(crate) use generate::{Caller, chat, completion};
pub(crate) use models::{model, models};
pub(crate) use prompt::template_error;
pub(crate) use tokenize::{detokenize, tokenize};
