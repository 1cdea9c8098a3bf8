//! The server over loopback sockets, with the real engine on a model whose every answer is known.
//!
//! What is asserted of the API follows the suites of vLLM (`test_completion`, `test_chat`, `test_metrics`,
//! `test_shutdown`, `test_return_token_ids`) and llama.cpp (`test_chat_completion`, `test_security`).

// A skipped test says so where its reader looks.
#![allow(clippy::print_stderr)]

mod assist;
mod assist_clients;
mod assist_sessions;
mod auth;
mod chat;
mod client;
mod completion;
mod connection;
mod disconnect;
mod drain;
mod embeddings;
mod feedback;
mod hostile;
mod injection;
mod json_suite;
mod metrics;
mod model;
mod page;
mod server;
mod structured;
mod tokenize;
mod validation;
