//! `softcc`: the command line of `neuronx-cc`, as far as it is public and in use here, over [`crate::pack`].
//!
//! Flags that choose how a real compiler optimises are accepted and mean nothing; any other flag is refused.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use millrace_graph::hlo;

use crate::neff::{self, Build};

/// What the vendor's compiler ends with after a diagnosis.
const FAILED: u8 = 70;

const VERSION: &str = concat!(
    "NeuronX Compiler version ",
    env!("CARGO_PKG_VERSION"),
    "+softcc\n\nsoftcc, a software double of the compiler, for tests: what it makes runs on no device"
);

#[derive(Parser)]
#[command(name = "softcc", version = VERSION, disable_help_subcommand = true)]
#[command(about = "A software double of neuronx-cc, for tests: lints HLO and packs it for libsoftnrt.so")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compiles an HLO module.
    Compile(Box<Compile>),
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Framework {
    #[value(name = "XLA")]
    Xla,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Target {
    Inf2,
    Trn1,
    Trn1n,
    Trn2,
}

#[derive(Args)]
struct Compile {
    /// The serialized HloModuleProto.
    file: PathBuf,
    #[arg(long)]
    framework: Framework,
    #[arg(long)]
    target: Target,
    #[arg(long, default_value = "file.neff")]
    output: PathBuf,
    /// Physical cores of a logical one; 2 on trn2 unless said otherwise, 1 elsewhere.
    #[arg(long, visible_alias = "logical-nc-config", value_parser = clap::value_parser!(u32).range(1..=2))]
    lnc: Option<u32>,
    /// Leaves the archive uncompressed.
    #[arg(long)]
    enable_fast_loading_neuron_binaries: bool,
    /// Where diagnoses are written besides stderr.
    #[arg(long)]
    logfile: Option<PathBuf>,
    #[command(flatten)]
    ignored: Ignored,
}

/// Flags of the real compiler that mean nothing here.
#[derive(Args)]
struct Ignored {
    #[arg(long, value_parser = ["generic", "transformer", "unet-inference"])]
    model_type: Option<String>,
    #[arg(long, value_parser = ["none", "matmult", "all"])]
    auto_cast: Option<String>,
    #[arg(long, value_parser = ["bf16", "fp16", "tf32", "fp8_e4m3"])]
    auto_cast_type: Option<String>,
    #[arg(short = 'O', long, value_parser = ["1", "2", "3"])]
    optlevel: Option<String>,
    #[arg(long)]
    enable_mixed_precision_accumulation: bool,
    #[arg(long)]
    disable_mixed_precision_accumulation: bool,
    #[arg(long)]
    enable_saturate_infinity: bool,
    #[arg(long)]
    enable_fast_context_switch: bool,
    #[arg(long, value_parser = ["default", "enabled", "disabled"])]
    native_int64: Option<String>,
    #[arg(long)]
    implicit_integer_downcast: Option<String>,
    #[arg(long, value_parser = ["llm-training"])]
    distribution_strategy: Option<String>,
    #[arg(long)]
    verbose: Option<String>,
    #[arg(long, num_args = 2)]
    pipeline: Option<Vec<String>>,
    #[arg(long)]
    execute_repetition: Option<u32>,
    #[arg(long, allow_hyphen_values = true)]
    tensorizer_options: Option<String>,
    #[arg(long, allow_hyphen_values = true)]
    internal_hlo2tensorizer_options: Option<String>,
    #[arg(long, allow_hyphen_values = true)]
    internal_backend_options: Option<String>,
    #[arg(long)]
    internal_tensorizer_opt_level: Option<u32>,
    #[arg(long)]
    internal_enable_dge_levels: Option<String>,
    #[arg(long)]
    hbm_scratchpad_page_size: Option<u32>,
}

impl Target {
    fn name(self) -> &'static str {
        match self {
            Target::Inf2 => "inf2",
            Target::Trn1 => "trn1",
            Target::Trn1n => "trn1n",
            Target::Trn2 => "trn2",
        }
    }

    /// Device memory of a logical core.
    fn memory(self, lnc: u32) -> usize {
        match self {
            Target::Trn2 => 12_000_000_000 * lnc as usize,
            _ => 16 << 30,
        }
    }
}

/// What goes wrong on request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    None,
    Error,
    Crash,
    Half,
    Full,
    Hang,
    Slow(Duration),
}

impl Fault {
    /// Of the value of `SOFTCC_FAULT`, for an input.
    fn parse(text: &str, file: &Path) -> Result<Fault, String> {
        let (what, part) = text.split_once('@').unwrap_or((text, ""));
        let fault = match what {
            "" => Fault::None,
            "error" => Fault::Error,
            "crash" => Fault::Crash,
            "half" => Fault::Half,
            "full" => Fault::Full,
            "hang" => Fault::Hang,
            other => match other.strip_prefix("slow:").and_then(|ms| ms.parse().ok()) {
                Some(ms) => Fault::Slow(Duration::from_millis(ms)),
                None => return Err(format!("SOFTCC_FAULT is {text:?}, which is no fault")),
            },
        };
        Ok(if file.to_string_lossy().contains(part) { fault } else { Fault::None })
    }
}

/// Runs the program: reads the arguments, writes the output and diagnoses.
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let command = match Cli::try_parse_from(arguments) {
        Ok(Cli { command: Command::Compile(command) }) => command,
        Err(error) => {
            // Help and the version go to stdout; where that is closed there is nobody to tell.
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS };
        }
    };
    match command.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, why)) => {
            let line = format!("[ERROR] {why}\n");
            let _ = io::stderr().write_all(line.as_bytes());
            if let Some(log) = &command.logfile {
                let _ = fs::write(log, line);
            }
            ExitCode::from(code)
        }
    }
}

impl Compile {
    fn run(&self) -> Result<(), (u8, String)> {
        let failed = |why: String| (FAILED, why);
        let fault = std::env::var("SOFTCC_FAULT").unwrap_or_default();
        let fault = Fault::parse(&fault, &self.file).map_err(failed)?;
        match fault {
            Fault::Error => return Err(failed("[NCC_SOFT001] SOFTCC_FAULT asks for this error".into())),
            Fault::Hang => loop {
                std::thread::park();
            },
            Fault::Slow(time) => std::thread::sleep(time),
            _ => {}
        }
        let target = self.target;
        let lnc = self.lnc.unwrap_or(if target == Target::Trn2 { 2 } else { 1 });
        if lnc > 1 && target != Target::Trn2 {
            let why = format!("[NCC_EARG001] {} has no logical cores of {lnc}", target.name());
            return Err(failed(why));
        }
        let file = self.file.display();
        let module = fs::read(&self.file).map_err(|error| failed(format!("{file}: {error}")))?;
        self.check_memory(&module, lnc).map_err(|why| failed(format!("{file}: {why}")))?;
        let build = Build {
            target: target.name().into(),
            lnc,
            plain_aliases: std::env::var("SOFTCC_PLAIN_ALIASES").is_ok_and(|value| value == "1"),
            uncompressed: self.enable_fast_loading_neuron_binaries,
        };
        let neff = neff::pack(&module, &build).map_err(|error| failed(format!("{file}: {error}")))?;
        let broken = matches!(fault, Fault::Crash | Fault::Half | Fault::Full);
        let bytes = if broken { &neff[..neff.len() / 2] } else { &neff[..] };
        let output = self.output.display();
        fs::write(&self.output, bytes).map_err(|error| (1, format!("{output}: {error}")))?;
        match fault {
            Fault::Crash => std::process::abort(),
            Fault::Full => Err((1, format!("{output}: No space left on device (os error 28)"))),
            _ => Ok(()),
        }
    }

    /// Whether what the program is given and what it makes fits a core, as the real compiler checks, too.
    fn check_memory(&self, module: &[u8], lnc: u32) -> Result<(), String> {
        let graph = hlo::read(module).map_err(|error| format!("[NCC_EVRF001] {error}"))?;
        let outputs = graph.outputs.iter().filter(|output| output.alias.is_none()).map(|output| output.node);
        let all = graph.params.iter().map(|param| param.node).chain(outputs);
        let bytes =
            all.fold(0usize, |sum, node| sum.saturating_add(graph.ty(node).bytes().unwrap_or(usize::MAX)));
        let limit = self.target.memory(lnc);
        match bytes <= limit {
            true => Ok(()),
            false => Err(format!(
                "[NCC_EOOM001] its tensors take {bytes} bytes, and a core of {} has {limit}",
                self.target.name()
            )),
        }
    }
}
