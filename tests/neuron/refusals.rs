//! What is missing, foreign, damaged or a lie: the process says which file and what to do, and ends; what is half made
//! is never used.

use std::path::Path;

use serde_json::Value;
use sha2::{Digest, Sha256};
use softnrt::testing::{compiler_path, library_path};

use crate::rig::{Rig, Server, all, artefacts, chat, copy, decode, text};
use crate::statuses::undisturbed;

/// Starts where it must not; yields what it says.
fn refused(mut server: Server, label: &str, words: &[&str]) -> String {
    assert!(server.ready().is_err(), "{label}: it serves:\n{}", server.log());
    let (code, log, _) = server.ended();
    assert_eq!(code, Some(1), "{label}:\n{log}");
    let errors: String = log.split_inclusive('\n').skip_while(|line| !line.contains("ERROR")).collect();
    for words in words {
        assert!(errors.contains(words), "{label}: {words:?} is not in\n{log}");
    }
    assert!(!log.contains("panicked"), "{label}:\n{log}");
    log
}

#[test]
fn libraries_that_are_none() {
    let rig = Rig::new(1);
    let (absent, prose, lacking) =
        (rig.path("absent.so.1"), rig.path("prose.so.1"), rig.path("lacking.so.1"));
    std::fs::write(&prose, "this is no library, whatever its name may be. ".repeat(20)).expect("written");
    // The double with a mandatory function under another name.
    let mut bytes = std::fs::read(library_path()).expect("it is built");
    let name = b"\0nrt_unload\0";
    let found: Vec<usize> =
        (0..bytes.len() - name.len()).filter(|at| bytes[*at..].starts_with(name)).collect();
    assert!(!found.is_empty(), "the double exports nrt_unload");
    found.iter().for_each(|at| bytes[at + 5] = b'U');
    std::fs::write(&lacking, bytes).expect("written");
    let remedy = "install aws-neuronx-runtime-lib or give the library's path";
    let cases: [(&str, &[&str]); 4] = [
        (&absent, &["absent.so.1", "No such file", remedy]),
        (&prose, &["prose.so.1", remedy]),
        (&lacking, &["lacking.so.1 is not a usable Neuron runtime library", "it lacks nrt_unload"]),
        ("libm.so.6", &["libm.so.6", "it lacks nrt_init"]),
    ];
    all(&cases, |(library, words)| {
        // The last of two flags would not do: it is refused. So the rig's own is not given.
        let (model, store) = (rig.path("model"), rig.path("store"));
        let flags = [
            "--model",
            &model,
            "--backend=neuron",
            "--neuron-store",
            &store,
            "--neuron-library",
            library,
            "--target=trn1",
            "--dtype=f32",
            "--max-model-len=64",
            "--block-size=8",
            "--max-num-seqs=2",
            "--max-num-batched-tokens=8",
            "--kv-memory=64KiB",
            "--buckets=2x1@8+adjust,1x4@8",
        ];
        refused(Server::start(&flags, &[]), library, words);
    });
}

/// Where nobody says what computes and no device is there, the CPU does, whatever library there is.
#[test]
fn without_a_device_the_cpu_computes() {
    if Path::new("/dev/neuron0").exists() {
        return eprintln!("skipped: there is a NeuronCore here");
    }
    let rig = Rig::new(1);
    let (model, library) = (rig.path("model"), library_path().display().to_string());
    let common = ["--model", &model, "--kv-memory=1MB", "--max-num-seqs=2"];
    for more in [&["--neuron-library", library.as_str()][..], &["--neuron-library=/absent"], &[]] {
        let mut server = Server::start(&[&common[..], more].concat(), &[]);
        assert!(server.ready().is_ok(), "{}", server.log());
        let client = server.client().expect("it listens");
        let (_, version) = client.get("/version").expect("an answer");
        assert!(version.contains("version") && !version.contains("neuron"), "{version}");
        assert_eq!(client.metric("vllm_neuron:neff_execution_count_total"), None);
        text(&client.post("/v1/chat/completions", &chat(3, false)));
        let log = server.drained();
        let said = log.contains("--neuron-library is not used, the CPU computes");
        assert_eq!(said, !more.is_empty(), "{log}");
    }
}

/// Writes a manifest together with the digests that belong to it.
fn write_consistently(directory: &Path, manifest: &Value) {
    std::fs::write(directory.join("manifest.json"), manifest.to_string()).expect("written");
    let line = |name: &str| {
        let digest = Sha256::digest(std::fs::read(directory.join(name)).expect("read"));
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{hex}  {name}\n")
    };
    let sums = ["hlo.pb", "manifest.json", "model.neff"].map(line).concat();
    std::fs::write(directory.join("SHA256SUMS"), sums).expect("written");
}

/// What is done to an artefact.
enum Harm {
    /// A byte in the middle of a file becomes another.
    Flip(&'static str),
    /// A file loses its second half.
    Cut(&'static str),
    Remove(&'static str),
    /// A value of the manifest becomes another, and the digests are made to agree.
    Lie(&'static str),
    /// The program is another file, and manifest and digests are made to agree.
    Foreign,
}

impl Harm {
    fn is_done_to(&self, directory: &Path) {
        match self {
            Harm::Flip(name) | Harm::Cut(name) => {
                let path = directory.join(name);
                let mut bytes = std::fs::read(&path).expect("read");
                let middle = bytes.len() / 2;
                match self {
                    Harm::Flip(_) => bytes[middle] ^= 1,
                    _ => bytes.truncate(middle),
                }
                std::fs::write(path, bytes).expect("written");
            }
            Harm::Remove(name) => std::fs::remove_file(directory.join(name)).expect("removed"),
            Harm::Lie(leaf) => {
                let text = std::fs::read_to_string(directory.join("manifest.json")).expect("read");
                let mut manifest: Value = serde_json::from_str(&text).expect("JSON");
                let value = manifest.pointer_mut(leaf).expect("a value of that name");
                *value = match &*value {
                    Value::Number(number) => (number.as_u64().expect("unsigned") + 1).into(),
                    Value::String(text) if *leaf == "/build/target" => {
                        if text == "inf2" { "trn1" } else { "inf2" }.into()
                    }
                    Value::String(text) => format!("{text}x").into(),
                    Value::Bool(flag) => (!flag).into(),
                    other => panic!("{leaf} is {other}"),
                };
                write_consistently(directory, &manifest);
            }
            Harm::Foreign => {
                let foreign = b"a program of another compiler, or none at all".repeat(100);
                let text = std::fs::read_to_string(directory.join("manifest.json")).expect("read");
                let mut manifest: Value = serde_json::from_str(&text).expect("JSON");
                let digest = Sha256::digest(&foreign);
                let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                manifest["neff"]["bytes"] = foreign.len().into();
                manifest["neff"]["sha256"] = hex.into();
                std::fs::write(directory.join("model.neff"), foreign).expect("written");
                write_consistently(directory, &manifest);
            }
        }
    }
}

#[test]
fn artefacts_that_are_damaged_or_lie() {
    let rig = Rig::new(1);
    let expected = undisturbed(&rig, 1);
    let remedy = "Run `millrace compile` with the same arguments";
    let damaged = |file: &'static str| vec![file, "is damaged", remedy];
    let mut cases: Vec<(String, Harm, Vec<&str>)> = Vec::new();
    for name in ["model.neff", "hlo.pb", "manifest.json", "SHA256SUMS"] {
        cases.push((format!("flip {name}"), Harm::Flip(name), damaged("/")));
        cases.push((format!("cut {name}"), Harm::Cut(name), damaged("/")));
        cases.push((format!("remove {name}"), Harm::Remove(name), damaged(name)));
    }
    for leaf in [
        "/format",
        "/bucket/rows",
        "/bucket/width",
        "/bucket/blocks",
        "/bucket/adjust",
        "/model/architecture",
        "/model/weights_digest",
        "/model/ranks",
        "/model/dtype",
        "/model/weights",
        "/model/block_size",
        "/model/kv_blocks",
        "/model/candidates",
        "/build/compiler",
        "/build/flags/0",
        "/build/target",
        "/build/lnc",
        "/hlo/sha256",
        "/neff/bytes",
        "/neff/sha256",
        "/tensors/0/name",
        "/tensors/0/usage",
        "/tensors/0/dtype",
        "/tensors/0/shape/0",
        "/tensors/0/bytes",
    ] {
        cases.push((format!("lie {leaf}"), Harm::Lie(leaf), damaged("/")));
    }
    let refusal = vec!["program 2x1@8+adjust", "NRT_INVALID (2)", "compile them anew"];
    cases.push(("foreign".into(), Harm::Foreign, refusal));
    let compiler = format!("--compiler={}", compiler_path().display());
    let numbered: Vec<_> = cases.iter().enumerate().collect();
    all(&numbered, |(number, (label, harm, words))| {
        let store = rig.path(&format!("harmed-{number}"));
        copy(Path::new(&rig.path("store")), Path::new(&store));
        let directory = decode(Path::new(&store));
        harm.is_done_to(&directory);
        refused(rig.serve_from(&store, &[], &[]), label, words);
        // A host that has the compiler mends it, unless nothing shows that it is wrong.
        if number % 5 == 0 && !matches!(harm, Harm::Foreign) {
            let mut server = rig.serve_from(&store, &[&compiler], &[]);
            assert!(server.ready().is_ok(), "{label}:\n{}", server.log());
            let answer = server.client().expect("it listens").post("/v1/chat/completions", &chat(12, false));
            assert_eq!(text(&answer), expected, "{label}");
            let log = server.drained();
            assert!(log.contains("it is compiled anew"), "{label}:\n{log}");
        }
    });
}

#[test]
fn compilers_that_fail() {
    let rig = Rig::new(1);
    let compiler = compiler_path().display().to_string();
    let cases: [(&str, &str, &str, &[&str]); 6] = [
        ("no graph, no compiler", "", "", &["2x1@8+adjust", "is not in the store", "run `millrace compile`"]),
        ("absent", "/absent/neuronx-cc", "", &["cannot run the compiler /absent/neuronx-cc", "--compiler"]),
        ("error", &compiler, "error", &["2x1@8+adjust", "exit status: 70", "NCC_SOFT001", "/logs/"]),
        ("crash", &compiler, "crash", &["2x1@8+adjust", "signal: 6", "/logs/"]),
        ("half", &compiler, "half", &["2x1@8+adjust"]),
        ("full", &compiler, "full", &["2x1@8+adjust", "No space left on device", "/logs/"]),
    ];
    all(&cases, |(label, program, fault, words)| {
        let store = rig.path(&format!("store of {label}"));
        let flag = format!("--compiler={program}");
        let more = if program.is_empty() { vec![] } else { vec![flag.as_str()] };
        refused(rig.serve_from(&store, &more, &[("SOFTCC_FAULT", fault)]), label, words);
        let store = Path::new(&store);
        assert!(artefacts(store).is_empty(), "{label}: something was kept");
        let left = std::fs::read_dir(store.join(".staging")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{label}: a staging directory is left behind");
    });
}

#[test]
fn flags_that_are_missing_are_named() {
    let rig = Rig::new(1);
    let (model, store) = (rig.path("model"), rig.path("store"));
    let common = ["--model", &model, "--backend=neuron"];
    let cases: [(&[&str], &str); 3] = [
        (&["--target=trn1"], "needs --neuron-store DIR"),
        (&["--neuron-store", &store], "--target inf2, trn1 or trn2"),
        (&["--neuron-store", &store, "--target=trn1", "--dtype=f16"], "bf16 or f32"),
    ];
    all(&cases, |(more, words)| {
        refused(Server::start(&[&common[..], more].concat(), &[]), words, &[words]);
    });
}
