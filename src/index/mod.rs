//! `millrace index` builds and updates an index, `millrace search` asks it.

use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use millrace_server::assistant::index::{self, Progress, lines::Kind};
use millrace_server::assistant::retrieve::SIGNALS;
use millrace_server::assistant::{Filters, Place, Retrieve, RetrieveRequest, Source, planner};
use millrace_server::{Embed, TextEncoder};
use serde::Deserialize;
use serde_json::json;

/// Bad lines that are shown; all are counted.
const SHOWN: u64 = 20;

#[derive(Args, Debug)]
pub(crate) struct IndexArgs {
    /// Products, as JSON Lines (docs/catalog.md has the schema).
    #[arg(long, value_name = "FILE", num_args = 1..)]
    catalog: Vec<PathBuf>,
    /// Reviews by customers.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    reviews: Vec<PathBuf>,
    /// Customers' questions with answers.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    qa: Vec<PathBuf>,
    /// Policies of the shop: returns, delivery, warranty.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    policies: Vec<PathBuf>,
    /// Where the index is to be: a folder, `postgres://user@host/database` or `opensearch://user@host/name`; one that is
    /// there is updated.
    #[arg(long, value_name = "PLACE", env = "MILLRACE_INDEX", hide_env_values = true)]
    output: Place,
    /// Folder of a sentence encoder (scripts/fetch-encoder gets one). Without it only words are searched, not meaning.
    #[arg(long, value_name = "PATH")]
    embedding_model: Option<PathBuf>,
    /// CPU threads; one per available core unless given.
    #[arg(long, value_name = "N")]
    threads: Option<usize>,
}

#[derive(Args, Debug)]
pub(crate) struct SearchArgs {
    /// What to look for.
    #[arg(required_unless_present = "queries")]
    query: Option<String>,
    /// Where the index is: a folder, `postgres://…` or `opensearch://…`.
    #[arg(long, value_name = "PLACE", env = "MILLRACE_INDEX", hide_env_values = true)]
    index: Place,
    /// Folder of the encoder that the index was built with; without it only words are searched.
    #[arg(long, value_name = "PATH")]
    embedding_model: Option<PathBuf>,
    /// Search passages instead of products.
    #[arg(long)]
    passages: bool,
    /// Print which sources the assistant would ask about the products, and why, as JSON.
    #[arg(long, conflicts_with = "passages")]
    plan: bool,
    /// Print what passages are judged by, as JSON; see docs/catalog.md.
    #[arg(long, requires = "passages")]
    signals: bool,
    /// Only these products.
    #[arg(long, value_name = "ID")]
    product: Vec<String>,
    /// Only these sources: attribute, bullet, description, review, qa, policy.
    #[arg(long, value_name = "SOURCE", value_parser = source)]
    source: Vec<Source>,
    /// Results for a query.
    #[arg(long, value_name = "N", default_value_t = 10)]
    limit: usize,
    /// Print JSON Lines.
    #[arg(long)]
    json: bool,
    /// Answer many queries: a file of lines `{"id": …, "query": …, "products": […]}`; prints JSON Lines.
    #[arg(long, value_name = "FILE", conflicts_with = "query")]
    queries: Option<PathBuf>,
}

fn source(name: &str) -> Result<Source, String> {
    let names = || Source::ALL.map(Source::name).join(", ");
    Source::from_name(name).ok_or_else(|| format!("it is none of {}", names()))
}

/// Builds or updates an index.
pub(crate) fn build(args: &IndexArgs) -> anyhow::Result<()> {
    let mut files = Vec::new();
    for (kind, paths) in [
        (Kind::Catalog, &args.catalog),
        (Kind::Reviews, &args.reviews),
        (Kind::Qa, &args.qa),
        (Kind::Policies, &args.policies),
    ] {
        files.extend(paths.iter().map(|path| (kind, path.clone())));
    }
    if files.is_empty() {
        bail!("nothing to index: give --catalog, --reviews, --qa or --policies");
    }
    let threads = match args.threads {
        Some(threads) if (1..=1024).contains(&threads) => threads,
        Some(threads) => bail!("--threads is {threads}; it must lie between 1 and 1024"),
        None => std::thread::available_parallelism().map_or(1, usize::from),
    };
    let encoder = args.embedding_model.as_ref().map(|path| open(path, threads)).transpose()?;
    if encoder.is_none() {
        tracing::warn!("without --embedding-model only words are searched, not meaning");
    }
    let bar = bar();
    let mut stage = "";
    let mut progress = |at: Progress| {
        let (now, done, total) = match at {
            Progress::Reading(done, total) => ("reading", done, total),
            Progress::Embedding(done, total) => ("embedding", done, total),
            Progress::Writing(done, total) => ("writing", done, total),
        };
        if stage != now {
            bar.reset();
            bar.set_message(now);
            stage = now;
        }
        bar.set_length(total);
        bar.set_position(done);
    };
    let mut shown = 0;
    let mut bad = |line: &index::lines::BadLine| {
        shown += 1;
        if shown <= SHOWN {
            bar.suspend(|| tracing::warn!("{line}"));
        }
    };
    let encoder = encoder.as_deref().map(|encoder| encoder as &dyn Embed);
    let report = args
        .output
        .update(&files, encoder, &mut progress, &mut bad)
        .with_context(|| format!("cannot index into {}", args.output))?;
    bar.finish_and_clear();
    if report.bad > SHOWN {
        tracing::warn!("{} more bad lines", report.bad - SHOWN);
    }
    if report.orphans > 0 {
        tracing::warn!("{} reviews or answers name a product that is not in the catalog", report.orphans);
    }
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "{} {}: {} products, {} reviews, answers and policies; {} lines taken, {} left out, {} texts embedded",
        args.output,
        report.version,
        report.products,
        report.passages,
        report.read,
        report.bad,
        report.embedded
    )?;
    Ok(())
}

/// Asks an index.
pub(crate) fn search(args: &SearchArgs) -> anyhow::Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let encoder = args.embedding_model.as_ref().map(|path| open(path, threads)).transpose()?;
    let encoder = encoder.map(|encoder| encoder as Arc<dyn Embed>);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let index = runtime.block_on(args.index.open(encoder)).context("cannot open the index")?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut ask = |query: Query, id: Option<&serde_json::Value>| -> anyhow::Result<()> {
        let results = runtime.block_on(answer(&*index, args, query))?;
        match id {
            Some(id) => writeln!(out, "{}", json!({ "id": id, "results": results }))?,
            None if args.json || args.plan || args.signals => {
                results.iter().try_for_each(|result| writeln!(out, "{result}"))?
            }
            None => results.iter().try_for_each(|result| {
                let score = result["score"].as_f64().unwrap_or_default();
                let field = |name: &str| result[name].as_str().unwrap_or_default().to_owned();
                writeln!(out, "{score:.4}  {}  {}", field("id"), field("text"))
            })?,
        }
        Ok(())
    };
    let Some(path) = &args.queries else {
        let query = args.query.clone().unwrap_or_default();
        return ask(Query { id: json!(null), query, products: args.product.clone() }, None);
    };
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    for (number, line) in std::io::BufReader::new(file).lines().enumerate() {
        let line = line?;
        let query: Query = serde_json::from_str(&line)
            .with_context(|| format!("{}:{}: no query", path.display(), number + 1))?;
        let id = query.id.clone();
        ask(query, Some(&id))?;
    }
    Ok(())
}

#[derive(Deserialize)]
struct Query {
    id: serde_json::Value,
    query: String,
    #[serde(default)]
    products: Vec<String>,
}

async fn answer(
    index: &dyn Retrieve,
    args: &SearchArgs,
    query: Query,
) -> anyhow::Result<Vec<serde_json::Value>> {
    if args.plan {
        let probes = match query.products.is_empty() {
            true => None,
            false => index.probe(query.query.clone(), query.products).await?,
        };
        let planned = planner::plan(&query.query, probes.as_deref());
        return Ok(vec![
            json!({ "sources": planned.groups, "confidence": planned.confidence, "probes": probes }),
        ]);
    }
    let filters = Filters { products: query.products, sources: args.source.clone(), ..Filters::default() };
    let request = RetrieveRequest { query: query.query, filters, limit: args.limit };
    if args.signals {
        let found = index.signals(request).await?;
        let results = found.iter().map(|(passage, signals)| {
            let signals: serde_json::Map<_, _> = SIGNALS
                .iter()
                .zip(signals)
                .map(|(name, signal)| ((*name).to_owned(), json!(signal)))
                .collect();
            json!({ "id": passage.id, "signals": signals })
        });
        return Ok(results.collect());
    }
    if args.passages {
        let found = index.retrieve(request).await?.evidence;
        let results = found.iter().map(|evidence| {
            let passage = &evidence.passage;
            json!({
                "id": passage.id, "product": passage.product, "source": passage.source, "text": passage.text,
                "score": evidence.score,
            })
        });
        return Ok(results.collect());
    }
    let found = index.search_products(request).await?;
    Ok(found
        .iter()
        .map(|(product, score)| json!({ "id": product.id, "text": product.title, "score": score }))
        .collect())
}

/// The index as the assistant asks it.
pub(crate) async fn retriever(
    index: &Place,
    encoder: Option<Arc<TextEncoder>>,
) -> anyhow::Result<Arc<dyn Retrieve>> {
    if encoder.is_none() {
        tracing::warn!("without --embedding-model the index is searched by words only, not by meaning");
    }
    let encoder = encoder.map(|encoder| encoder as Arc<dyn Embed>);
    index.open(encoder).await.context("cannot open the index")
}

/// The sentence encoder in a folder.
pub(crate) fn open(path: &Path, threads: usize) -> anyhow::Result<Arc<TextEncoder>> {
    let encoder = TextEncoder::open(path, threads);
    Ok(Arc::new(encoder.with_context(|| format!("cannot load the encoder in {}", path.display()))?))
}

fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg} {bar:40} {percent}% {eta}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
