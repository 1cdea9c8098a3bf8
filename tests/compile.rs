//! `millrace compile --hlo-only` for a model of 8 billion parameters of which there is only a configuration.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

fn compile(output: &Path) -> (String, BTreeMap<PathBuf, Vec<u8>>) {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/llama_8b");
    let ran = Command::new(env!("CARGO_BIN_EXE_millrace"))
        .args(["compile", "--target=inf2", "--tensor-parallel-size=8", "--max-num-seqs=4", "--hlo-only"])
        .arg("--model")
        .arg(model)
        .arg("--output")
        .arg(output)
        .output()
        .expect("it runs");
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let files = std::fs::read_dir(output.join("hlo")).expect("listed").flatten();
    let files = files.map(|file| (file.file_name().into(), std::fs::read(file.path()).expect("read")));
    (String::from_utf8(ran.stdout).expect("text"), files.collect())
}

#[test]
fn two_processes_write_the_same_graphs() {
    let directories =
        ["a", "b"].map(|name| Path::new(env!("CARGO_TARGET_TMPDIR")).join("hlo_only").join(name));
    for directory in &directories {
        let _ = std::fs::remove_dir_all(directory);
    }
    let (said, first) = compile(&directories[0]);
    let (_, second) = compile(&directories[1]);
    assert!(first.len() > 10 && first == second, "{} and {} graphs", first.len(), second.len());
    for part in
        ["memory of each of 8 cores of inf2", "KV cache", "whole prompts, powers of two", "cut into runs"]
    {
        assert!(said.contains(part), "{part:?} is not said:\n{said}");
    }
}
