//! The compiler's command line, as a build host would call it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use millrace_graph::{Binary, Builder, DType, ParamKind, Type, hlo};
use neuron_sys::Runtime;
use neuron_sys::neff::{HashCheck, Header};
use softnrt::testing::{Double, compiler_path};

/// A directory that is gone at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Folder {
        let folder = std::env::temp_dir().join(format!("softcc-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Folder(folder)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.0.join(file)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// `sum = x + y`, each of that many floats.
fn module(elements: usize) -> Vec<u8> {
    let mut b = Builder::new("sum");
    let x = b.param("x", ParamKind::Input, Type::new(DType::F32, [elements])).unwrap();
    let y = b.param("y", ParamKind::Weight, Type::new(DType::F32, [elements])).unwrap();
    let sum = b.binary(Binary::Add, x, y).unwrap();
    b.output("sum", sum, None).unwrap();
    hlo::write(&b.finish().unwrap(), &hlo::HloOptions::default()).unwrap()
}

fn softcc(arguments: &[&str], fault: &str) -> Output {
    Command::new(compiler_path()).args(arguments).env("SOFTCC_FAULT", fault).output().unwrap()
}

/// Compiles with the flags that a decode graph would be.
fn compile(file: &Path, output: &Path, fault: &str, more: &[&str]) -> Output {
    let (file, output) = (file.to_str().unwrap(), output.to_str().unwrap());
    let flags = ["--framework", "XLA", "--target", "inf2", "--output", output];
    softcc(&[&["compile", file], &flags[..], more].concat(), fault)
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn it_compiles_what_the_runtime_loads() {
    let folder = Folder::new("compiles");
    let (file, first, second) = (folder.path("sum.hlo"), folder.path("1.neff"), folder.path("2.neff"));
    fs::write(&file, module(5)).unwrap();
    let flags = [
        "--model-type=transformer",
        "--auto-cast=none",
        "-O2",
        "--lnc=1",
        "--verbose=35",
        "--tensorizer-options=--enable-ccop-compute-overlap --vectorize-strided-dma",
        "--internal-hlo2tensorizer-options",
        "--verify-hlo=true",
        "--pipeline",
        "compile",
        "SaveTemps",
    ];
    for path in [&first, &second] {
        let done = compile(&file, path, "", &flags);
        assert!(done.status.success(), "{}", stderr(&done));
    }
    let neff = fs::read(&first).unwrap();
    assert_eq!(neff, fs::read(&second).unwrap(), "equal modules give equal bytes");
    let header = Header::parse(&neff).unwrap();
    assert_eq!((header.name.as_str(), header.lnc_size), ("sum", 1));
    assert_eq!(header.check_hash(&neff[1024..]), HashCheck::Sha256);
    // Uncompressed, it is another file of the same program.
    let done = compile(&file, &second, "", &["--enable-fast-loading-neuron-binaries"]);
    assert!(done.status.success(), "{}", stderr(&done));
    let plain = fs::read(&second).unwrap();
    assert!(plain.len() > neff.len());
    let double = Double::new(&[]);
    let core = Runtime::init(double.library().clone()).unwrap().core(0).unwrap();
    for neff in [neff, plain] {
        let model = core.load(&neff).unwrap();
        let tensors = model.tensors().unwrap();
        let seen: Vec<_> = tensors.iter().map(|info| (info.name.as_str(), info.bytes)).collect();
        assert_eq!(seen, [("x", 20), ("y", 20), ("sum", 20)]);
    }
}

#[test]
fn it_says_which_version_it_is_and_what() {
    let version = softcc(&["--version"], "");
    let text = String::from_utf8_lossy(&version.stdout).into_owned();
    assert!(
        version.status.success() && text.contains("NeuronX Compiler version ") && text.contains("double"),
        "{text}"
    );
}

#[test]
fn wrong_arguments_and_inputs_are_refused() {
    let folder = Folder::new("refuses");
    let (good, bad, large) = (folder.path("good"), folder.path("bad"), folder.path("large"));
    fs::write(&good, module(5)).unwrap();
    fs::write(&bad, b"no module").unwrap();
    fs::write(&large, module((1 << 31) - 1)).unwrap();
    let output = folder.path("out.neff");
    let cases: [(&Path, &[&str], i32, &str); 8] = [
        (&good, &["--no-such-flag"], 2, "--no-such-flag"),
        (&good, &["--auto-cast=some"], 2, "some"),
        (&good, &["-O4"], 2, "4"),
        (&good, &["--lnc=2"], 70, "NCC_EARG001"),
        (&bad, &[], 70, "NCC_EVRF001"),
        (&large, &[], 70, "NCC_EOOM001"),
        (&folder.path("absent"), &[], 70, "No such file"),
        (&good, &["--output=again"], 2, "--output"),
    ];
    for (file, more, code, text) in cases {
        let done = compile(file, &output, "", more);
        assert_eq!(done.status.code(), Some(code), "{more:?}: {}", stderr(&done));
        assert!(stderr(&done).contains(text), "{more:?}: {}", stderr(&done));
        assert!(!output.exists(), "{more:?}");
    }
    let file = good.to_str().unwrap();
    for missing in [
        &["compile", file, "--target", "inf2"][..],
        &["compile", file, "--framework", "XLA"],
        &["compile"],
        &[],
    ] {
        assert_eq!(softcc(missing, "").status.code(), Some(2), "{missing:?}");
    }
    let unknown = ["compile", file, "--framework", "XLA", "--target", "gpu"];
    assert_eq!(softcc(&unknown, "").status.code(), Some(2));
}

#[test]
fn it_fails_as_it_is_told_to() {
    use std::os::unix::process::ExitStatusExt;
    let folder = Folder::new("faults");
    let file = folder.path("decode.hlo");
    fs::write(&file, module(5)).unwrap();
    let run = |fault: &str| {
        let (output, log) = (folder.path("out.neff"), folder.path("log"));
        let _ = fs::remove_file(&output);
        let logged = format!("--logfile={}", log.display());
        let done = compile(&file, &output, fault, &[&logged]);
        (done.status, stderr(&done), fs::metadata(&output).map(|file| file.len()).ok())
    };
    let whole = run("").2.unwrap();
    let (status, text, size) = run("error");
    assert_eq!((status.code(), size), (Some(70), None));
    assert!(text.contains("[ERROR]") && fs::read_to_string(folder.path("log")).unwrap() == text);
    let (status, _, size) = run("crash");
    assert_eq!((status.signal(), size), (Some(6), Some(whole / 2)));
    let (status, _, size) = run("half");
    assert_eq!((status.code(), size), (Some(0), Some(whole / 2)));
    let (status, text, size) = run("full");
    assert_eq!((status.code(), size), (Some(1), Some(whole / 2)));
    assert!(text.contains("No space left on device"), "{text}");
    // Only the inputs that are meant.
    assert_eq!(run("error@prefill").0.code(), Some(0));
    assert_eq!(run("error@decode").0.code(), Some(70));
    assert_eq!(run("strange").0.code(), Some(70));
    let start = Instant::now();
    assert_eq!(run("slow:120").0.code(), Some(0));
    assert!(start.elapsed() >= Duration::from_millis(120));
    let arguments = ["compile", file.to_str().unwrap(), "--framework", "XLA", "--target", "inf2"];
    let mut stuck =
        Command::new(compiler_path()).args(arguments).env("SOFTCC_FAULT", "hang").spawn().unwrap();
    std::thread::sleep(Duration::from_millis(150));
    assert!(stuck.try_wait().unwrap().is_none());
    stuck.kill().unwrap();
    stuck.wait().unwrap();
}
