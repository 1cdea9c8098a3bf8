//! `millrace serve`: the listener first, so that probes get an answer while the model loads.

use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use millrace_server::assistant::{Assistant, AssistantConfig};
use millrace_server::feedback::{Feedback, FeedbackConfig};
use millrace_server::{ApiKey, Metrics, Model, ServerConfig, Service, check_bind, serve};
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::args::ServeArgs;
use crate::index;
use crate::load::{self, Engine, Text};

/// How long compilers get to end when a signal comes while the model is loaded; each is killed if it takes longer than
/// a part of it.
const COMPILERS_END: Duration = Duration::from_secs(4);

/// Serves until a signal ends it.
pub(crate) fn run(args: &ServeArgs) -> anyhow::Result<()> {
    let api_keys = match &args.api_key_file {
        None => Vec::new(),
        Some(path) => {
            let file = path.display();
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {file}"))?;
            match ApiKey::parse_file(&text) {
                Ok(keys) => keys,
                Err(0) => bail!("{file} holds no API key"),
                Err(line) => bail!("{file}, line {line}: not an API key (printable ASCII without spaces)"),
            }
        }
    };
    let address = SocketAddr::new(args.host, args.port);
    check_bind(address, !api_keys.is_empty(), args.allow_unauthenticated).context(
        "refusing to listen (--api-key-file gives a key, --allow-unauthenticated opens the server to everybody)",
    )?;
    let feedback = feedback(args)?;
    let setup = Setup::read(args, feedback.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let engine = runtime.block_on(listen(args, address, api_keys, setup, feedback.clone()));
    if let Some(feedback) = feedback {
        runtime.block_on(feedback.flush());
    }
    // Dropped, it would wait for a model that is still being loaded.
    runtime.shutdown_background();
    match engine? {
        None => Ok(()),
        Some(engine) => engine.stop(),
    }
}

/// Listens, loads, serves and drains. Yields the engine, unless the process was told to end before there was one.
async fn listen(
    args: &ServeArgs,
    address: SocketAddr,
    api_keys: Vec<ApiKey>,
    setup: Setup,
    feedback: Option<Arc<Feedback>>,
) -> anyhow::Result<Option<Engine>> {
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let address = listener.local_addr()?;
    let mut model_names = args.served_model_name.clone();
    if model_names.is_empty() {
        model_names.push(load::model_name(&args.model.model));
    }
    let name = model_names[0].clone();
    let service = Service::new(ServerConfig {
        model_names,
        model_root: Some(args.model.model.clone()),
        version: crate::VERSION.to_owned(),
        loopback_hosts_only: address.ip().is_loopback() && api_keys.is_empty(),
        api_keys,
        shutdown_timeout: Duration::from_secs(args.shutdown_timeout),
        ..ServerConfig::default()
    });
    if let Some(feedback) = feedback {
        service.install_feedback(feedback);
    }
    let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let signals = tokio::spawn(end_on_signals(service.clone(), terminate, interrupt));
    let serving = tokio::spawn(serve(listener, service.clone()));

    let engine = {
        let (model, max_queued_requests) = (args.model.clone(), args.max_queued_requests);
        let install = service.clone();
        let interrupt = Arc::new(AtomicBool::new(false));
        let interrupted = interrupt.clone();
        let runtime = tokio::runtime::Handle::current();
        let mut loading = tokio::task::spawn_blocking(move || -> anyhow::Result<Engine> {
            setup.install(&install, &runtime)?;
            let loaded = load::open(&model, &interrupted)?;
            let Text { tokenizer, template, defaults } = loaded.text()?;
            if template.is_none() {
                tracing::warn!("the model has no chat template: /v1/completions only");
            }
            let mut metrics = Metrics::new(&name, loaded.max_model_len, loaded.runner.kv());
            if let Some(figures) = &loaded.figures {
                metrics = metrics.with_neuron(&name, figures.clone());
            }
            let engine = loaded.start(&model, max_queued_requests, false, Box::new(metrics.clone()))?;
            let handle = engine.handle.clone();
            install.install(Model { handle, tokenizer, template, defaults, metrics });
            tracing::info!("ready on http://{address}");
            Ok(engine)
        });
        tokio::select! {
            loaded = &mut loading => loaded.context("loading the model panicked")??,
            // A signal came first; what was loaded so far goes with the process.
            () = async { let _ = signals.await; } => {
                interrupt.store(true, Ordering::Relaxed);
                // Compilers are programs of their own, which would stay behind.
                let _ = tokio::time::timeout(COMPILERS_END, loading).await;
                return Ok(None);
            }
        }
    };
    // An engine that has died is of no use to anybody: the process ends, and its supervisor starts it anew.
    let (handle, dying) = (engine.handle.clone(), service.clone());
    tokio::spawn(async move {
        while handle.is_alive() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        dying.drain();
    });
    serving.await.context("the server panicked")??;
    Ok(Some(engine))
}

/// The store of feedback, where there is to be one.
fn feedback(args: &ServeArgs) -> anyhow::Result<Option<Arc<Feedback>>> {
    let Some(directory) = &args.feedback else { return Ok(None) };
    let config =
        FeedbackConfig { retention_days: args.feedback_retention_days, ..FeedbackConfig::new(directory) };
    let feedback = Feedback::open(&config)
        .with_context(|| format!("cannot keep feedback in {}", directory.display()))?;
    Ok(Some(Arc::new(feedback)))
}

/// What the assistant and `/v1/embeddings` are made of.
struct Setup {
    config: AssistantConfig,
    threads: usize,
    /// Makes marks around evidence unpredictable.
    key: [u8; 32],
}

impl Setup {
    /// Reads the configuration. Flags go before what it says; its paths start from the folder it lies in.
    fn read(args: &ServeArgs, feedback: Option<&Feedback>) -> anyhow::Result<Setup> {
        let mut config = match &args.assistant_config {
            None => AssistantConfig::default(),
            Some(path) => {
                let file = path.display();
                let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {file}"))?;
                let mut config: AssistantConfig = toml::from_str(&text)
                    .with_context(|| format!("{file} is no configuration of the assistant"))?;
                let folder = path.parent().unwrap_or(Path::new(""));
                config.index = config.index.map(|place| place.within(folder));
                config.embedding_model = config.embedding_model.map(|path| folder.join(path));
                config
            }
        };
        config.index = args.index.clone().or(config.index);
        config.embedding_model = args.embedding_model.clone().or(config.embedding_model);
        let threads = match args.embedding_threads {
            Some(threads) if (1..=1024).contains(&threads) => threads,
            Some(threads) => bail!("--embedding-threads is {threads}; it must lie between 1 and 1024"),
            None => std::thread::available_parallelism().map_or(1, usize::from).div_ceil(4),
        };
        let key = match feedback {
            // The same prompt for the same evidence after a restart too, so that answers to it can be compared.
            Some(feedback) => feedback.key().derive("evidence"),
            None => {
                let mut key = [0; 32];
                std::fs::File::open("/dev/urandom")
                    .and_then(|mut random| random.read_exact(&mut key))
                    .context("cannot read random bytes")?;
                key
            }
        };
        Ok(Setup { config, threads, key })
    }

    /// Loads encoder and index, and gives them to the service.
    fn install(self, service: &Service, runtime: &tokio::runtime::Handle) -> anyhow::Result<()> {
        let Setup { config, threads, key } = self;
        let encoder = config.embedding_model.as_ref().map(|path| index::open(path, threads)).transpose()?;
        let open = |place| runtime.block_on(index::retriever(place, encoder.clone()));
        let retrieve = config.index.as_ref().map(open).transpose()?;
        if let (Some(path), Some(encoder)) = (&config.embedding_model, encoder) {
            service.install_embeddings(load::model_name(&path.to_string_lossy()), encoder);
        }
        service.install_assistant(Assistant::new(config, retrieve, key)?);
        Ok(())
    }
}

/// The first SIGTERM or SIGINT drains, the second aborts what still runs.
async fn end_on_signals(service: Arc<Service>, mut terminate: Signal, mut interrupt: Signal) {
    either(&mut terminate, &mut interrupt).await;
    service.drain();
    tokio::spawn(async move {
        either(&mut terminate, &mut interrupt).await;
        service.abort();
    });
}

async fn either(terminate: &mut Signal, interrupt: &mut Signal) {
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}
