//! What is asked of the compiler and of the store: one graph, with all that its program depends on.

use millrace_graph::hlo::{self, HloError, HloOptions};
use millrace_models::device::{DeviceModel, DeviceWeights, TopKForm, device_decoder};
use millrace_models::{Config, ModelError};

use super::compiler::flags;
use super::manifest::{BuildEntry, FORMAT, FileEntry, Manifest, ModelEntry, TensorEntry, Usage};
use super::store::digest_of;
use super::{Bucket, Target};

/// A model as it is compiled: what turns a bucket into a [`Request`].
#[derive(Clone, Debug)]
pub struct Spec {
    /// The model, for its greatest length.
    pub config: Config,
    /// Its layout on the cores.
    pub model: DeviceModel,
    /// What it is called; for people.
    pub name: String,
    /// The device.
    pub target: Target,
    /// Flags for the compiler besides those that it always gets.
    pub compiler_flags: Vec<String>,
}

/// What turns buckets into requests: a decoder's [`Spec`], or an [`EncoderSpec`](super::EncoderSpec).
pub trait Graphs: Sync {
    /// The graph of a bucket, with all that its program depends on. Deterministic.
    ///
    /// # Errors
    /// Where the graph cannot be built or written.
    fn request(&self, bucket: &Bucket) -> Result<Request, SpecError>;
}

impl Graphs for Spec {
    fn request(&self, bucket: &Bucket) -> Result<Request, SpecError> {
        Spec::request(self, bucket)
    }
}

/// Why a bucket has no graph for the device.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The model cannot be laid out so.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The graph has no HLO.
    #[error(transparent)]
    Hlo(#[from] HloError),
    /// A tensor's size is no number of bytes.
    #[error("tensor {name:?} of the graph is too large")]
    Tensor {
        /// The tensor.
        name: String,
    },
}

impl Spec {
    /// The compiler's flags for a bucket, without the names of files.
    pub fn flags(&self, bucket: &Bucket) -> Vec<String> {
        let mut flags = flags(bucket, self.target, self.target.cores_per_logical_core());
        flags.extend(self.compiler_flags.iter().cloned());
        flags
    }

    /// The graph of a bucket, with all that its program depends on. Deterministic.
    ///
    /// # Errors
    /// Where the graph cannot be built or written.
    pub fn request(&self, bucket: &Bucket) -> Result<Request, SpecError> {
        let graph = device_decoder(&self.config, &self.model, bucket)?;
        let hlo = hlo::write(&graph, &HloOptions::default())?;
        let tensors = TensorEntry::of_graph(&graph).map_err(|name| SpecError::Tensor { name })?;
        let weights = tensors.iter().filter(|tensor| tensor.usage == Usage::Weight);
        let weights: Vec<String> = weights.map(|t| format!("{} {}{:?}", t.name, t.dtype, t.shape)).collect();
        let fields: Vec<&[u8]> = weights.iter().map(String::as_bytes).collect();
        let DeviceModel { ranks, dtype, weights, candidates, top_k, block_size, kv_blocks } = self.model;
        let model = ModelEntry {
            name: self.name.clone(),
            architecture: self.config.architecture.clone(),
            weights_digest: digest_of(&fields),
            ranks,
            dtype: dtype.to_string(),
            weights: match weights {
                DeviceWeights::Float => "float",
                DeviceWeights::Int8 => "int8",
            }
            .into(),
            top_k: match top_k {
                TopKForm::Hlo => "hlo",
                TopKForm::Neuron => "neuron",
            }
            .into(),
            block_size,
            kv_blocks,
            candidates,
        };
        let (lnc, flags) = (self.target.cores_per_logical_core(), self.flags(bucket));
        Ok(Request { bucket: *bucket, model, tensors, hlo, flags, target: self.target, lnc })
    }
}

/// One graph to be compiled, or to be found compiled.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its static shape.
    pub bucket: Bucket,
    /// The model it is of.
    pub model: ModelEntry,
    /// Its tensors.
    pub tensors: Vec<TensorEntry>,
    /// The serialised module.
    pub hlo: Vec<u8>,
    /// The compiler's flags, without the names of files.
    pub flags: Vec<String>,
    /// The device.
    pub target: Target,
    /// Physical cores in a logical one.
    pub lnc: u32,
}

impl Request {
    /// All that the program depends on, except the compiler.
    fn graph_digest(&self) -> String {
        let lnc = self.lnc.to_string();
        let mut fields: Vec<&[u8]> =
            vec![b"millrace graph", &self.hlo, self.target.name().as_bytes(), lnc.as_bytes()];
        fields.extend(self.flags.iter().map(String::as_bytes));
        digest_of(&fields)
    }

    /// The part of an entry's name that does not depend on the compiler's version.
    pub(super) fn prefix(&self) -> String {
        format!("{}-", &self.graph_digest()[..16])
    }

    /// The name of the entry in the store.
    pub fn entry(&self, compiler: &str) -> String {
        let graph = self.graph_digest();
        let key = digest_of(&[b"millrace program", graph.as_bytes(), compiler.as_bytes()]);
        format!("{}-{key}", &graph[..16])
    }

    /// The manifest of its artefact.
    pub fn manifest(&self, compiler: &str, seconds: f64, neff: FileEntry) -> Manifest {
        Manifest {
            format: FORMAT,
            bucket: self.bucket,
            model: self.model.clone(),
            build: BuildEntry {
                compiler: compiler.to_owned(),
                flags: self.flags.clone(),
                target: self.target,
                lnc: self.lnc,
                seconds,
            },
            hlo: FileEntry::of(&self.hlo),
            neff,
            tensors: self.tensors.clone(),
        }
    }

    /// Whether a manifest is of this request.
    ///
    /// # Errors
    /// In words, where it is not.
    pub(super) fn compare(&self, manifest: &Manifest) -> Result<(), String> {
        let build = &manifest.build;
        let mut expected = self.manifest(&build.compiler, build.seconds, manifest.neff.clone());
        expected.model.name.clone_from(&manifest.model.name);
        let parts = [
            ("graph's digest", expected.hlo == manifest.hlo),
            ("bucket", expected.bucket == manifest.bucket),
            ("model", expected.model == manifest.model),
            ("compiler flags or target", expected.build == manifest.build),
            ("tensors", expected.tensors == manifest.tensors),
        ];
        match parts.iter().find(|(_, equal)| !equal) {
            None => Ok(()),
            Some((part, _)) => Err(format!("its {part} is not what this model and bucket ask for")),
        }
    }
}
