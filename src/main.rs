//! The command line and the composition root: reads arguments, wires the parts, waits.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod compile;
mod doctor;
mod feedback;
mod generate;
mod index;
mod load;
mod neuron;
mod serve;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Command};

/// The version and the commit it was built from.
const VERSION: &str = env!("MILLRACE_VERSION");

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_env("MILLRACE_LOG");
    // A server's log is its voice; a command that prints its result speaks up only where something is wrong.
    let quiet = !matches!(cli.command, Command::Serve(_));
    let filter = filter.unwrap_or_else(|_| EnvFilter::new(if quiet { "warn" } else { "info" }));
    let ansi = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(std::io::stderr).init();
    let result = match &cli.command {
        Command::Serve(args) => serve::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Index(args) => index::build(args),
        Command::Search(args) => index::search(args),
        Command::Feedback(args) => feedback::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Compile(args) => compile::run(args),
        Command::Doctor(args) => doctor::run(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
