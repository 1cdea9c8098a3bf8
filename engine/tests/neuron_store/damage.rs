//! No byte of an artefact can change unnoticed, and no manifest can say what is not so.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use millrace_engine::neuron::Request;
use millrace_engine::neuron::compiler::Outcome;
use millrace_engine::neuron::store::StoreError;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::bench::{Bench, DECODE};

struct Stored {
    bench: Bench,
    request: Request,
    directory: std::path::PathBuf,
}

fn stored() -> Stored {
    let bench = Bench::new();
    let (artefact, _) = bench.ensure(Some(&bench.good())).expect("compiled");
    let request = bench.spec.request(&DECODE).expect("a request");
    Stored { request, directory: artefact.directory, bench }
}

impl Stored {
    /// What a reader says now; both ways to look must agree that something is wrong.
    fn refusal(&self, what: &str) -> StoreError {
        self.bench.store.find(&self.request, None).expect_err(what);
        self.bench.store.find(&self.request, Some("cc 1.0")).expect_err(what)
    }
}

#[test]
fn every_byte_counts() {
    let stored = stored();
    for (name, step) in [("manifest.json", 1), ("SHA256SUMS", 1), ("model.neff", 61), ("hlo.pb", 197)] {
        let path = stored.directory.join(name);
        let good = fs::read(&path).expect("read");
        for at in (0..good.len()).step_by(step).chain([good.len() - 1]) {
            // In place: to truncate and write anew would have some file systems flush each time.
            let file = fs::File::options().write(true).open(&path).expect("opened");
            let change = |byte: u8| file.write_all_at(&[byte], at as u64).expect("written");
            change(good[at] ^ 1 << (at % 8));
            let error = stored.bench.store.find(&stored.request, Some("cc 1.0"));
            let error = error.expect_err(&format!("{name}, byte {at}"));
            let StoreError::Damaged { directory, .. } = &error else { panic!("{name}, byte {at}: {error}") };
            assert_eq!(*directory, stored.directory);
            assert!(error.to_string().contains("millrace compile"), "{error}");
            // Only the digests can stand for two files, their own or the one they are of.
            if name != "SHA256SUMS" {
                assert!(error.to_string().contains(name), "{name}, byte {at}: {error}");
            }
            change(good[at]);
        }
        for bad in [&good[..good.len() - 1], &good[..0], &[&good[..], b"\n"].concat()[..]] {
            fs::write(&path, bad).expect("written");
            assert!(matches!(stored.refusal(name), StoreError::Damaged { .. }), "{name}");
        }
        fs::remove_file(&path).expect("removed");
        let error = stored.refusal(name);
        assert!(error.to_string().contains(name), "{error}");
        fs::write(&path, good).expect("written");
        stored.bench.store.find(&stored.request, Some("cc 1.0")).expect("whole again").expect("there");
    }
}

#[test]
fn what_is_damaged_is_compiled_anew() {
    let stored = stored();
    fs::write(stored.directory.join("model.neff"), "x").expect("written");
    assert!(stored.bench.ensure(None).is_err(), "without a compiler there is no way out");
    let (again, outcome) = stored.bench.ensure(Some(&stored.bench.good())).expect("compiled anew");
    assert!(matches!(outcome, Outcome::Compiled(_)));
    assert_eq!(again.directory, stored.directory);
    assert!(matches!(stored.bench.ensure(None), Ok((_, Outcome::Found))));
    assert_eq!(stored.bench.entries(), (1, 0));
}

/// Every value in a JSON document, as a pointer.
fn leaves(value: &Value, at: String, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| leaves(value, format!("{at}/{key}"), out)),
        Value::Array(list) => {
            list.iter().enumerate().for_each(|(i, value)| leaves(value, format!("{at}/{i}"), out))
        }
        _ => out.push(at),
    }
}

/// Writes a manifest together with the digests that belong to it.
fn write_consistently(directory: &Path, manifest: &Value) {
    let text = serde_json::to_string_pretty(manifest).expect("JSON") + "\n";
    fs::write(directory.join("manifest.json"), text).expect("written");
    let line = |name: &str| {
        let digest = Sha256::digest(fs::read(directory.join(name)).expect("read"));
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{hex}  {name}\n")
    };
    let sums = ["hlo.pb", "manifest.json", "model.neff"].map(line).concat();
    fs::write(directory.join("SHA256SUMS"), sums).expect("written");
}

#[test]
fn a_manifest_that_lies_is_found_out() {
    let stored = stored();
    let text = fs::read_to_string(stored.directory.join("manifest.json")).expect("read");
    let good: Value = serde_json::from_str(&text).expect("JSON");
    let mut all = Vec::new();
    leaves(&good, String::new(), &mut all);
    assert!(all.len() > 50, "{} values", all.len());
    for leaf in all {
        let mut lie = good.clone();
        let value = lie.pointer_mut(&leaf).expect("a leaf");
        *value = match &*value {
            Value::Number(number) if number.is_u64() => (number.as_u64().expect("unsigned") + 1).into(),
            Value::Number(number) => (number.as_f64().expect("a float") + 1.0).into(),
            Value::String(text) => format!("{text}x").into(),
            Value::Bool(flag) => (!*flag).into(),
            _ => "x".into(),
        };
        write_consistently(&stored.directory, &lie);
        let found = stored.bench.store.find(&stored.request, Some("cc 1.0"));
        // What only people read, or time.
        if ["/model/name", "/build/seconds"].contains(&leaf.as_str()) {
            assert!(matches!(found, Ok(Some(_))), "{leaf}");
            continue;
        }
        assert!(matches!(found, Err(StoreError::Damaged { .. })), "{leaf}: {found:?}");
    }
    let mut more = good.clone();
    more["unknown"] = 1.into();
    write_consistently(&stored.directory, &more);
    assert!(matches!(stored.refusal("a field too many"), StoreError::Damaged { .. }));
    write_consistently(&stored.directory, &good);
    assert!(matches!(stored.bench.ensure(None), Ok((_, Outcome::Found))));
}

#[test]
fn another_graphs_artefact_in_its_place_is_found_out() {
    let stored = stored();
    let mut spec = stored.bench.spec.clone();
    spec.model.candidates += 1;
    let other = spec.request(&DECODE).expect("a request");
    let place = stored.bench.store.root().join(other.entry("cc 1.0"));
    fs::rename(&stored.directory, &place).expect("moved");
    let error = stored.bench.store.find(&other, Some("cc 1.0")).expect_err("it is another graph's");
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}
