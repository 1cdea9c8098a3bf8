//! A checkpoint on disk: its configuration, and its weights under canonical names.

use std::path::{Path, PathBuf};

use millrace_graph::{DType, RowOrder, TensorView, Type};
use serde_json::{Map, Value};

use crate::config::{Family, gguf as gguf_config, hf};
use crate::gguf::Gguf;
use crate::names::{Layout, Source, sources};
use crate::tensors::{Tensor, Tensors};
use crate::{Config, ModelError, StepShape, decoder, gguf, json, safetensors};

/// Bytes that a `config.json` may have.
const CONFIG_LIMIT: u64 = 10 << 20;

/// A checkpoint whose files are mapped and checked. Weights keep the format that they are stored in.
#[derive(Debug)]
pub struct Checkpoint {
    directory: PathBuf,
    config: Config,
    layout: Layout,
    tensors: Tensors,
    gguf: Option<Gguf>,
    interleaved_rope: bool,
}

/// The configuration of a checkpoint that need not have weights: a directory with `config.json` alone will do. Whether
/// the head is tied is then as the file says, or as the family has it.
///
/// # Errors
/// As [`Checkpoint::open`], where there are weights; else where the configuration is malformed or not supported.
pub fn read_config(path: &Path) -> Result<Config, ModelError> {
    let file = path.join("config.json");
    let io = |source| ModelError::Io { path: path.into(), source };
    let weights =
        |entry: &std::fs::DirEntry| entry.path().extension().is_some_and(|end| end == "safetensors");
    if !file.exists() || path.read_dir().map_err(io)?.flatten().any(|entry| weights(&entry)) {
        return Ok(Checkpoint::open(path)?.config);
    }
    let json: Map<String, Value> = json::read(&file, CONFIG_LIMIT)?;
    hf::read(&file.display().to_string(), &json, &Map::new(), DType::BF16, true)
}

impl Checkpoint {
    /// Opens a Hugging Face directory (`config.json` and safetensors), a GGUF file, or a directory with one GGUF
    /// file and no `config.json`. Weights are mapped, not read.
    ///
    /// # Errors
    /// Where there is no such checkpoint, its architecture or one of its settings is not supported, a file is
    /// malformed, or a weight that the decoder needs is missing or of another shape.
    pub fn open(path: &Path) -> Result<Checkpoint, ModelError> {
        let metadata = path.metadata().map_err(|source| ModelError::Io { path: path.into(), source })?;
        let checkpoint = if !metadata.is_dir() {
            Self::open_gguf(path)?
        } else if path.join("config.json").exists() {
            Self::open_hf(path)?
        } else {
            Self::open_gguf(&only_gguf(path)?)?
        };
        // Building any step's graph asks for every weight with its shape.
        let smallest = StepShape {
            tokens: 1,
            rows: 1,
            table_blocks: 1,
            logits: 1,
            width: None,
            kv_blocks: 1,
            block_size: 1,
            kv_dtype: DType::F32,
            compute: DType::F32,
        };
        decoder(&checkpoint.config, &smallest, &|name| checkpoint.weight_type(name))?;
        Ok(checkpoint)
    }

    fn open_hf(directory: &Path) -> Result<Checkpoint, ModelError> {
        let path = directory.join("config.json");
        let file = path.display().to_string();
        let json: Map<String, Value> = json::read(&path, CONFIG_LIMIT)?;
        let generation_path = directory.join("generation_config.json");
        let generation: Map<String, Value> = match generation_path.exists() {
            true => json::read(&generation_path, CONFIG_LIMIT)?,
            false => Map::new(),
        };
        // The architecture is refused before weights are looked for.
        hf::family(&file, &json)?;
        let tensors = safetensors::open(directory)?;
        // A multimodal checkpoint's language model: transformers 4's spelling, then 5's.
        let prefixes = ["model.", "language_model.model.", "model.language_model."];
        let embed = |prefix: &str| format!("{prefix}embed_tokens.weight");
        let prefix =
            prefixes.into_iter().find(|prefix| tensors.contains(&embed(prefix))).unwrap_or(prefixes[0]);
        let heads = ["lm_head.weight", "language_model.lm_head.weight"];
        let head = heads.into_iter().find(|head| tensors.contains(head));
        let stored = tensors.ty(&embed(prefix))?.map_or(DType::F32, |ty| ty.dtype);
        let config = hf::read(&file, &json, &generation, stored, head.is_some())?;
        let layout = Layout::Hf { prefix: prefix.into(), head: head.unwrap_or(heads[0]).into() };
        let directory = directory.to_path_buf();
        Ok(Checkpoint { directory, config, layout, tensors, gguf: None, interleaved_rope: false })
    }

    fn open_gguf(path: &Path) -> Result<Checkpoint, ModelError> {
        let (gguf, tensors) = gguf::open(path)?;
        let (config, family): (Config, Family) = gguf_config::read(&gguf, &tensors)?;
        let fused_gate_up = !tensors.contains("blk.0.ffn_gate.weight") && family == Family::Phi3;
        Ok(Checkpoint {
            directory: path.parent().map(Path::to_path_buf).unwrap_or_default(),
            config,
            layout: Layout::Gguf { fused_gate_up },
            tensors,
            gguf: Some(gguf),
            interleaved_rope: family.gguf_interleaves_rope(),
        })
    }

    /// The configuration, with the checkpoint's own context.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The directory that holds the files: a tokenizer may lie beside them.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The metadata of a GGUF file, tokenizer and chat template among it; `None` for a Hugging Face directory.
    pub fn gguf(&self) -> Option<&Gguf> {
        self.gguf.as_ref()
    }

    /// Whether `head` is the same tensor as `embed`.
    pub fn tied(&self) -> bool {
        self.config.tied
    }

    /// The stored type of a weight, by its canonical name ([`crate::names`]).
    ///
    /// # Errors
    /// Where there is no such weight, or it is stored in a type or shape that cannot be used.
    pub fn weight_type(&self, name: &str) -> Result<Type, ModelError> {
        Ok(self.weight(name)?.ty)
    }

    /// A weight, by its canonical name. Its bytes are the file's: nothing is copied or converted.
    ///
    /// # Errors
    /// As [`Checkpoint::weight_type`].
    pub fn weight(&self, name: &str) -> Result<TensorView<'_>, ModelError> {
        let candidates = sources(&self.layout, &self.config, name);
        let found = candidates.iter().find(|source| self.tensors.contains(source.tensor()));
        let Some(source) = found else {
            return Err(self.missing(name, candidates.first().map_or("of that name", Source::tensor)));
        };
        let mut view = self.view(name, source)?;
        if self.interleaved_rope
            && let Some(part) = name.strip_prefix("layers.")
        {
            view.order = match part.split_once('.').map(|(_, part)| part) {
                Some("attn.q") => RowOrder::RopeInterleaved { heads: self.config.heads },
                Some("attn.k") => RowOrder::RopeInterleaved { heads: self.config.kv_heads },
                _ => RowOrder::Natural,
            };
        }
        Ok(view)
    }

    fn view(&self, name: &str, source: &Source) -> Result<TensorView<'_>, ModelError> {
        let expect = |ty: &Type, expected: String, fits: bool| match fits {
            true => Ok(()),
            false => Err(ModelError::WeightType { name: name.into(), expected, found: ty.to_string() }),
        };
        match source {
            Source::Whole(tensor) => {
                let (ty, bytes) = self.tensor(name, tensor)?;
                Ok(TensorView::new(ty, bytes))
            }
            Source::Rows { tensor, first, rows, of } => {
                let (ty, bytes) = self.tensor(name, tensor)?;
                expect(&ty, format!("in a matrix of {of} rows"), ty.rank() == 2 && ty.shape[0] == *of)?;
                let row = bytes.len() / of;
                let bytes = &bytes[first * row..][..rows * row];
                Ok(TensorView::new(Type::new(ty.dtype, [*rows, ty.cols()]), bytes))
            }
            Source::Each(tensors) => {
                let mut parts = Vec::with_capacity(tensors.len());
                let mut first: Option<Type> = None;
                for tensor in tensors {
                    let (ty, bytes) = self.tensor(name, tensor)?;
                    let like = first.get_or_insert_with(|| ty.clone());
                    expect(&ty, format!("{like} for every expert"), ty == *like && ty.rank() == 2)?;
                    parts.push(bytes);
                }
                let Some(Type { dtype, shape }) = first else {
                    return Err(self.missing(name, "for any expert"));
                };
                Ok(TensorView {
                    ty: Type::new(dtype, [tensors.len(), shape[0], shape[1]]),
                    parts,
                    order: RowOrder::Natural,
                    offset: 0.0,
                })
            }
            Source::RowsOfEach { tensor, experts, first, rows, of } => {
                let (ty, bytes) = self.tensor(name, tensor)?;
                let fits = matches!(ty.shape[..], [e, r, _] if e == *experts && r == *of);
                expect(&ty, format!("in a tensor [{experts}, {of}, ..]"), fits)?;
                let row = bytes.len() / (experts * of);
                let parts = bytes.chunks_exact(of * row).map(|expert| &expert[first * row..][..rows * row]);
                Ok(TensorView {
                    ty: Type::new(ty.dtype, [*experts, *rows, ty.cols()]),
                    parts: parts.collect(),
                    order: RowOrder::Natural,
                    offset: 0.0,
                })
            }
        }
    }

    fn tensor(&self, name: &str, tensor: &str) -> Result<(Type, &[u8]), ModelError> {
        let ty = self.tensors.ty(tensor)?.ok_or_else(|| self.missing(name, tensor))?;
        let held: &Tensor = &self.tensors.by_name[tensor];
        Ok((ty, self.tensors.bytes(held)))
    }

    fn missing(&self, name: &str, wanted: &str) -> ModelError {
        ModelError::MissingWeight {
            name: name.into(),
            wanted: wanted.into(),
            file: self.tensors.first_file(),
        }
    }

    /// Tells the system that the mapped pages are not needed for now. Called once the weights have been packed,
    /// so that they do not count twice; a page that is touched again is read again.
    pub fn advise_dont_need(&self) {
        for file in &self.tensors.files {
            file.advise_dont_need();
        }
    }
}

/// The one GGUF file of a directory.
fn only_gguf(directory: &Path) -> Result<PathBuf, ModelError> {
    let io = |source| ModelError::Io { path: directory.into(), source };
    let mut found = Vec::new();
    for entry in directory.read_dir().map_err(io)? {
        let path = entry.map_err(io)?.path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            found.push(path);
        }
    }
    let why = match found.len() {
        1 => return Ok(found.remove(0)),
        0 => "it has neither a config.json nor a .gguf file".into(),
        count => format!("it has {count} .gguf files: name one of them"),
    };
    Err(ModelError::NotACheckpoint { path: directory.into(), why })
}
