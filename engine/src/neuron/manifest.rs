//! What is known of one compiled graph, written beside it as `manifest.json`.
//!
//! The device's library reports element types by codes that changed between releases, and sizes and names alone can
//! be relied on. So everything else that binds a graph's tensors comes from here.

use millrace_graph::{DType, Graph, ParamKind, Type};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Bucket, Target};

/// The version of the manifest's form, and of the store's.
pub const FORMAT: u32 = 1;

/// The manifest of a compiled graph.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// The static shape.
    #[serde(with = "BucketForm")]
    pub bucket: Bucket,
    /// The model and how it is laid out on the cores.
    pub model: ModelEntry,
    /// What made the graph into a program.
    pub build: BuildEntry,
    /// The graph: `hlo.pb`.
    pub hlo: FileEntry,
    /// The program: `model.neff`.
    pub neff: FileEntry,
    /// Parameters in order, then results in order.
    pub tensors: Vec<TensorEntry>,
}

/// How a bucket is written.
#[derive(Serialize, Deserialize)]
#[serde(remote = "Bucket", deny_unknown_fields)]
struct BucketForm {
    rows: usize,
    width: usize,
    blocks: usize,
    adjust: bool,
}

/// The part of a manifest that says what was compiled.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelEntry {
    /// What the model was called when its graph was first compiled. For people: other weights of the same
    /// architecture share the program.
    pub name: String,
    /// The architecture as its configuration spells it.
    pub architecture: String,
    /// SHA-256, in hexadecimal, over the names and types of one rank's weights.
    pub weights_digest: String,
    /// Cores that run the graph together.
    pub ranks: usize,
    /// Element type of activations, KV cache and floating-point weights.
    pub dtype: String,
    /// How matrices are stored: `float`, in that type, or `int8`.
    pub weights: String,
    /// How the largest logits are found: `hlo`, or `neuron` for the vendor's custom call.
    pub top_k: String,
    /// Tokens in a KV block.
    pub block_size: usize,
    /// Blocks of each KV cache, those that padding is parked on among them.
    pub kv_blocks: usize,
    /// Candidates that each rank returns for a row.
    pub candidates: usize,
}

/// The part of a manifest that says how it was compiled.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BuildEntry {
    /// What the compiler calls itself.
    pub compiler: String,
    /// The compiler's flags, without the names of files.
    pub flags: Vec<String>,
    /// The device.
    pub target: Target,
    /// Physical cores in a logical one.
    pub lnc: u32,
    /// How long it took.
    pub seconds: f64,
}

/// A file of an artefact.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    /// Its length.
    pub bytes: u64,
    /// Its SHA-256 in hexadecimal.
    pub sha256: String,
}

impl FileEntry {
    /// Of these bytes.
    pub fn of(bytes: &[u8]) -> FileEntry {
        FileEntry { bytes: bytes.len() as u64, sha256: sha256(bytes) }
    }
}

/// What a tensor is to the runner.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Usage {
    /// Written anew for every step.
    Input,
    /// Bound once, and shared by all graphs of a model.
    Weight,
    /// Lives on the device between steps; a result of the same name takes its memory over.
    State,
    /// A result.
    Output,
}

/// One tensor of a compiled graph.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorEntry {
    /// Its name in the graph.
    pub name: String,
    /// What it is to the runner.
    pub usage: Usage,
    /// Its element type in XLA's spelling.
    pub dtype: String,
    /// Its dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Its size.
    pub bytes: u64,
    /// For a result: the state whose memory it takes over.
    pub alias: Option<String>,
}

impl TensorEntry {
    /// The tensors of a graph: its parameters in order, then its results in order.
    ///
    /// # Errors
    /// The name of a tensor whose size overflows or has no whole number of bytes.
    pub fn of_graph(graph: &Graph) -> Result<Vec<TensorEntry>, String> {
        let entry = |name: &str, usage, ty: &Type, alias: Option<String>| {
            let bytes = ty.bytes().ok_or_else(|| name.to_owned())? as u64;
            let (name, dtype) = (name.to_owned(), ty.dtype.to_string());
            Ok(TensorEntry { name, usage, dtype, shape: ty.shape.clone(), bytes, alias })
        };
        let params = graph.params.iter().map(|param| {
            let usage = match param.kind {
                ParamKind::Input => Usage::Input,
                ParamKind::Weight => Usage::Weight,
                ParamKind::State => Usage::State,
            };
            entry(&param.name, usage, graph.ty(param.node), None)
        });
        let outputs = graph.outputs.iter().map(|output| {
            let alias = output.alias.map(|param| graph.param(param).name.clone());
            entry(&output.name, Usage::Output, graph.ty(output.node), alias)
        });
        params.chain(outputs).collect()
    }

    /// The type, where the element type is one that is known.
    pub fn ty(&self) -> Option<Type> {
        let dtype = DType::ALL.into_iter().find(|dtype| dtype.to_string() == self.dtype)?;
        Some(Type::new(dtype, self.shape.clone()))
    }
}

impl Manifest {
    /// The tensors of one usage, in order.
    pub fn tensors(&self, usage: Usage) -> impl Iterator<Item = &TensorEntry> {
        self.tensors.iter().filter(move |tensor| tensor.usage == usage)
    }
}

/// SHA-256 in hexadecimal.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub(crate) fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
