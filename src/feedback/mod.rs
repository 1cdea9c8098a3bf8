//! `millrace feedback`: what shoppers thought of answers, as a list or as data to train on, and its deletion.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use millrace_server::feedback::export::{self, Format, Report, entries};
use millrace_server::feedback::{Key, Selector, forget};

#[derive(Args, Debug)]
pub(crate) struct FeedbackArgs {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Write answers and votes as JSON Lines for a trainer.
    Export(ExportArgs),
    /// Show the votes, the last first.
    List(ListArgs),
    /// Remove all that is known of a shopper, a conversation or an answer, from the files too; a server that has the
    /// store open does it itself.
    Delete(DeleteArgs),
}

#[derive(Args, Debug)]
struct ExportArgs {
    /// The store: the folder given to `serve --feedback`.
    #[arg(long, value_name = "DIR")]
    feedback: PathBuf,
    /// Whom for: kto, dpo, grpo, sft, bedrock, langfuse.
    #[arg(long, value_parser = format)]
    format: Format,
    /// The file; it is replaced.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Add a column `millrace` with token ids, evidence, plan, reasons and where it comes from.
    #[arg(long)]
    details: bool,
}

#[derive(Args, Debug)]
struct ListArgs {
    /// The store: the folder given to `serve --feedback`.
    #[arg(long, value_name = "DIR")]
    feedback: PathBuf,
    /// Votes at most.
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
    /// Print JSON Lines.
    #[arg(long)]
    json: bool,
}

#[derive(Args, Debug)]
struct DeleteArgs {
    /// The store: the folder given to `serve --feedback`.
    #[arg(long, value_name = "DIR")]
    feedback: PathBuf,
    #[command(flatten)]
    whose: Whose,
}

#[derive(Args, Debug)]
#[group(required = true, multiple = false)]
struct Whose {
    /// A shopper, by the hash that records have.
    #[arg(long, value_name = "HASH")]
    user: Option<String>,
    /// A shopper, by what the shop sends as X-Shopper-Token.
    #[arg(long, value_name = "TOKEN")]
    user_token: Option<String>,
    /// A conversation, by the hash that records have.
    #[arg(long, value_name = "HASH")]
    session: Option<String>,
    /// A conversation, by the id that the client gave it.
    #[arg(long, value_name = "ID")]
    session_id: Option<String>,
    /// One answer.
    #[arg(long, value_name = "ID")]
    message: Option<String>,
}

fn format(name: &str) -> Result<Format, String> {
    let names = || Format::ALL.map(Format::name).join(", ");
    Format::from_name(name).ok_or_else(|| format!("it is none of {}", names()))
}

pub(crate) fn run(args: &FeedbackArgs) -> anyhow::Result<()> {
    match &args.command {
        Command::Export(args) => export(args),
        Command::List(args) => list(args),
        Command::Delete(args) => delete(args),
    }
}

fn export(args: &ExportArgs) -> anyhow::Result<()> {
    let file = args.output.display();
    // Beside it first: what is there is not lost to an export that fails.
    let partial = args.output.with_extension("partial");
    let created = File::create(&partial).with_context(|| format!("cannot write {}", partial.display()))?;
    let mut out = BufWriter::new(created);
    let report = export::export(&args.feedback, args.format, args.details, &mut out);
    let report = report.with_context(|| cannot_read(&args.feedback)).inspect_err(|_| {
        let _ = std::fs::remove_file(&partial);
    })?;
    drop(out);
    std::fs::rename(&partial, &args.output).with_context(|| format!("cannot write {file}"))?;
    warn(&args.feedback, &report);
    println!("{} rows in {file}", report.rows);
    if args.format == Format::Bedrock && !(100..=20_000).contains(&report.rows) {
        tracing::warn!("Amazon Bedrock takes 100 to 20000 rows");
    }
    Ok(())
}

fn cannot_read(folder: &Path) -> String {
    format!("cannot read the feedback in {}", folder.display())
}

fn warn(folder: &Path, report: &Report) {
    for damage in &report.damage {
        tracing::warn!("{}: {damage}", folder.display());
    }
    if report.orphans > 0 {
        tracing::warn!(
            "{} answers with votes are not in the store themselves and were left out",
            report.orphans
        );
    }
}

fn list(args: &ListArgs) -> anyhow::Result<()> {
    let mut rows = Vec::new();
    let report = entries(&args.feedback, |entry| {
        for (part, state) in entry.parts {
            rows.push((
                state.at,
                entry.answer.message.clone(),
                entry.answer.user.clone(),
                entry.answer.question.clone(),
                part,
                state,
            ));
        }
        Ok(())
    });
    let report = report.with_context(|| cannot_read(&args.feedback))?;
    warn(&args.feedback, &report);
    rows.sort_by_key(|row| std::cmp::Reverse(row.0));
    rows.truncate(args.limit);
    let mut out = std::io::stdout().lock();
    for (at, message, user, question, part, state) in rows {
        let question = export::redacted(&question);
        let comment = state.comment.as_deref().map(export::redacted).unwrap_or_default();
        let reasons: Vec<&str> = state.reasons.iter().map(|reason| reason.name()).collect();
        let written = if args.json {
            let row = serde_json::json!({
                "at": export::iso(at), "messageId": message, "part": part, "user": user, "value": state.value,
                "reasons": reasons, "comment": comment, "implicit": state.implicit, "question": question,
            });
            writeln!(out, "{row}")
        } else {
            let (at, value, reasons) = (export::iso(at), state.value.name(), reasons.join(","));
            writeln!(out, "{at}  {value:<7}  {part:<12}  {message}  {reasons:<12}  {question:?}  {comment:?}")
        };
        match written {
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

fn delete(args: &DeleteArgs) -> anyhow::Result<()> {
    let hash = |kind: &str, text: &str| -> anyhow::Result<String> {
        let key = Key::read(&args.feedback).with_context(|| cannot_read(&args.feedback))?;
        Ok(key.hash(kind, text))
    };
    let whose = match &args.whose {
        Whose { user: Some(user), .. } => Selector::User(user.clone()),
        Whose { user_token: Some(token), .. } => Selector::User(hash("user", token)?),
        Whose { session: Some(session), .. } => Selector::Session(session.clone()),
        Whose { session_id: Some(id), .. } => Selector::Session(hash("session", id)?),
        Whose { message: Some(message), .. } => Selector::Message(message.clone()),
        _ => bail!("give --user, --user-token, --session, --session-id or --message"),
    };
    // Nobody's records have an empty name; those of unknown users do.
    if let Selector::User(name) | Selector::Session(name) | Selector::Message(name) = &whose
        && name.is_empty()
    {
        bail!("an empty name is nobody's");
    }
    let removed = forget(&args.feedback, whose, Duration::from_secs(120));
    let removed = removed.with_context(|| format!("in {}", args.feedback.display()))?;
    println!("{} answers and {} votes deleted", removed.answers, removed.votes);
    Ok(())
}
