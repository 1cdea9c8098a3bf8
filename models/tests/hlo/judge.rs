//! XLA, by way of the script that runs a module on it.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use millrace_graph::{DType, Type};
use millrace_kernels::eval::Value;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};

use crate::support;

/// Calls the script once for each module, in one process: importing jax takes longer than most modules.
const DRIVER: &str = r#"
import sys
sys.path.insert(0, sys.argv[1])
import run_hlo
folder, jobs, ranks = sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for job in range(jobs):
    names = [f"{folder}/{job}.pb"] + [f"{folder}/{job}.{{rank}}.{way}" for way in ("in", "out")]
    if run_hlo.main(["run_hlo.py", *names, "--ranks", str(ranks)]):
        sys.exit(f"module {job}")
"#;

/// A module, what it is given, and what it returns.
pub(crate) struct Job {
    pub(crate) module: Vec<u8>,
    pub(crate) inputs: HashMap<String, Value>,
    pub(crate) outputs: Vec<(String, Type)>,
}

pub(crate) struct Judge {
    python: PathBuf,
    script: PathBuf,
}

#[allow(clippy::print_stderr, reason = "what was measured belongs in the test's output")]
pub(crate) fn say(what: &str) {
    eprintln!("{what}");
}

impl Judge {
    pub(crate) fn find() -> Option<Judge> {
        let Some(python) = std::env::var_os("MILLRACE_TEST_JAX_PYTHON") else {
            support::skipped("MILLRACE_TEST_JAX_PYTHON names no Python with jax");
            return None;
        };
        let Some(script) = support::shared("tools/run_hlo.py") else {
            support::skipped("tools/run_hlo.py is not there");
            return None;
        };
        Some(Judge { python: python.into(), script })
    }

    /// The outputs of each module, in order.
    pub(crate) fn run(&self, jobs: &[Job]) -> Vec<Vec<Value>> {
        let each: Vec<&[Job]> = jobs.chunks(1).collect();
        self.execute(&each, 1).into_iter().flatten().collect()
    }

    /// The outputs of each rank of one module.
    pub(crate) fn run_ranks(&self, ranks: &[Job]) -> Vec<Vec<Value>> {
        self.execute(&[ranks], ranks.len()).remove(0)
    }

    fn execute(&self, modules: &[&[Job]], ranks: usize) -> Vec<Vec<Vec<Value>>> {
        static FOLDERS: AtomicUsize = AtomicUsize::new(0);
        let unique =
            format!("millrace-hlo-{}-{}", std::process::id(), FOLDERS.fetch_add(1, Ordering::Relaxed));
        let folder = std::env::temp_dir().join(unique);
        fs::create_dir_all(&folder).unwrap();
        for (index, jobs) in modules.iter().enumerate() {
            fs::write(folder.join(format!("{index}.pb")), &jobs[0].module).unwrap();
            for (rank, job) in jobs.iter().enumerate() {
                fs::write(folder.join(format!("{index}.{rank}.in")), stored(&job.inputs)).unwrap();
            }
        }
        let mut command = Command::new(&self.python);
        command.arg("-c").arg(DRIVER).arg(self.script.parent().expect("a file is in a folder")).arg(&folder);
        let output = command.args([modules.len().to_string(), ranks.to_string()]).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "XLA refuses a module; see {}\n{errors}", folder.display());
        let read = |index: usize, rank: usize, job: &Job| {
            let bytes = fs::read(folder.join(format!("{index}.{rank}.out"))).unwrap();
            let file = SafeTensors::deserialize(&bytes).unwrap();
            let value = |(name, ty): &(String, Type)| {
                let tensor = file.tensor(name).unwrap();
                assert_eq!((tensor.shape(), tensor.dtype()), (&ty.shape[..], dtype(ty.dtype)), "{name}");
                Value::from_bytes(ty.clone(), tensor.data()).unwrap()
            };
            job.outputs.iter().map(value).collect()
        };
        let results = modules
            .iter()
            .enumerate()
            .map(|(index, jobs)| jobs.iter().enumerate().map(|(rank, job)| read(index, rank, job)).collect());
        let results = results.collect();
        fs::remove_dir_all(&folder).unwrap();
        results
    }
}

fn dtype(dtype: DType) -> Dtype {
    match dtype {
        DType::F32 => Dtype::F32,
        DType::F16 => Dtype::F16,
        DType::BF16 => Dtype::BF16,
        DType::I32 => Dtype::I32,
        DType::I8 => Dtype::I8,
        other => panic!("no test needs tensors of {other}"),
    }
}

fn stored(inputs: &HashMap<String, Value>) -> Vec<u8> {
    let bytes: Vec<(&String, &Type, Vec<u8>)> =
        inputs.iter().map(|(name, value)| (name, value.ty(), value.to_bytes())).collect();
    let views = bytes.iter().map(|(name, ty, bytes)| {
        (*name, TensorView::new(dtype(ty.dtype), ty.shape.clone(), bytes).expect("whole"))
    });
    serialize(views, None).unwrap()
}
