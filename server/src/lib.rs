//! The HTTP front: OpenAI's API over an engine, with metrics and a graceful end.
//!
//! A request's way: [`serve`] accepts its connection, `route` finds what it asks for and whether it may, `body` reads it
//! within limits, `openai::parse` makes it a checked value or a 4xx that names the field, the engine queues it, and
//! `openai::choice` turns the engine's events into text, which leaves whole or as server-sent events.
//!
//! Nobody has to cancel anything: a client that goes away takes its connection, its body and so its channels from the
//! engine with it.
#![forbid(unsafe_code)]

pub mod assistant;
mod auth;
mod body;
mod config;
mod embed;
mod error;
pub mod feedback;
mod grammar;
mod http;
mod json;
mod metrics;
mod openai;
mod page;
mod route;
mod service;

pub use auth::ApiKey;
pub use config::{BindRefused, Limits, ServerConfig, check_bind};
pub use embed::{Embed, EmbedError, EmbedLoadError, TextEncoder};
pub use grammar::{FormError, Forms};
pub use http::serve;
pub use metrics::Metrics;
pub use service::{Model, Service};
