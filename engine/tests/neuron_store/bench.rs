//! What the tests work with: a tiny model, a store, a script for a compiler.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_engine::neuron::compiler::{CompileError, CompileOptions, Compiler, Outcome, ensure};
use millrace_engine::neuron::store::{Artefact, Store};
use millrace_engine::neuron::{Bucket, Spec, Target};
use millrace_graph::DType;
use millrace_models::device::{DeviceModel, DeviceWeights, TopKForm};
use millrace_models::{Config, read_config};
use neuron_sys::neff::Header;
use tempfile::TempDir;

pub(crate) const DECODE: Bucket = Bucket { rows: 2, width: 1, blocks: 4, adjust: false };
pub(crate) const CHUNK: Bucket = Bucket { rows: 1, width: 8, blocks: 4, adjust: false };

pub(crate) struct Bench {
    pub(crate) directory: TempDir,
    pub(crate) store: Store,
    pub(crate) spec: Spec,
}

pub(crate) fn config() -> Config {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/neuron_store/tiny_llama");
    read_config(&path).expect("the configuration is read")
}

pub(crate) fn spec() -> Spec {
    let model = DeviceModel {
        ranks: 1,
        dtype: DType::F32,
        weights: DeviceWeights::Float,
        candidates: 4,
        top_k: TopKForm::Hlo,
        block_size: 8,
        kv_blocks: 16,
    };
    Spec { config: config(), model, name: "tiny".into(), target: Target::Trn1, compiler_flags: Vec::new() }
}

impl Bench {
    pub(crate) fn new() -> Bench {
        let directory = TempDir::new().expect("a directory");
        let store = Store::new(directory.path().join("store"));
        Bench { store, spec: spec(), directory }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A compiler that says `version`, notes that it was run in `runs`, and does `body`, where `$neff` is a good
    /// program and `$out` where to put it.
    pub(crate) fn compiler(&self, version: &str, body: &str) -> Compiler {
        let data = [7u8; 3000];
        let neff = [Header::for_data("test", &data).write().expect("a header").as_slice(), &data].concat();
        fs::write(self.path("good.neff"), neff).expect("written");
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = --version ]; then echo '{version}'; exit 0; fi\ncd '{dir}'\n\
             neff='{dir}/good.neff'; out=; last=\nfor word in \"$@\"; do [ \"$last\" = --output ] && out=$word; last=$word; done\n\
             echo \"$@\" >> runs\n{body}\n",
            dir = self.directory.path().display()
        );
        // A new name for each: a script that still runs cannot be written.
        let path = self.path(&format!("cc-{}", fs::read_dir(self.directory.path()).expect("listed").count()));
        fs::write(&path, script).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
        // While another test's thread forks, a file just written may still be open for writing in the child.
        for _ in 0..100 {
            match Compiler::new(&path) {
                Err(CompileError::Start { source, .. }) if source.raw_os_error() == Some(26) => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                compiler => return compiler.expect("it says its version"),
            }
        }
        panic!("{} stays busy", path.display());
    }

    pub(crate) fn good(&self) -> Compiler {
        self.compiler("cc 1.0", "cp \"$neff\" \"$out\"")
    }

    pub(crate) fn runs(&self) -> usize {
        fs::read_to_string(self.path("runs")).map_or(0, |text| text.lines().count())
    }

    pub(crate) fn ensure(&self, compiler: Option<&Compiler>) -> Result<(Artefact, Outcome), CompileError> {
        ensure(&self.spec, &DECODE, &self.store, compiler, &patient(&|| false))
    }

    /// Everything in the store that is neither a lock nor a log.
    pub(crate) fn entries(&self) -> (usize, usize) {
        let count = |path: &Path| fs::read_dir(path).map_or(0, |listing| listing.flatten().count());
        (self.store.list().expect("listed").len(), count(&self.store.root().join(".staging")))
    }
}

pub(crate) fn patient(interrupted: &(dyn Fn() -> bool + Sync)) -> CompileOptions<'_> {
    CompileOptions { jobs: 1, timeout: Duration::from_secs(60), interrupted }
}
