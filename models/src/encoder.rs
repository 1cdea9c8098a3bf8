//! Sentence encoders of the BERT family (Devlin et al. 2018; Reimers and Gurevych 2019) as a graph: texts in, one
//! vector of length one for each out.
//!
//! Inputs, in order: `tokens s32[T]`, `positions s32[T]`, `token_types s32[T]`, `last s32[B]`: B texts, each padded to
//! W tokens, `T = B · W`, of which the first `last + 1` are its own. Output: `embeddings` f32 `[B, hidden]`. Weights
//! have the names that Hugging Face gives them.

use std::path::{Path, PathBuf};

use millrace_graph::dequant::dequantise;
use millrace_graph::{Builder, DType, Graph, NodeId, ParamKind, TensorView, Type};

use crate::config::EncoderConfig;
use crate::tensors::Tensors;
use crate::{ModelError, safetensors};

/// The static shape of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EncoderShape {
    /// B: texts.
    pub texts: usize,
    /// W: tokens of each, padding included.
    pub width: usize,
}

/// A sentence encoder on disk: configuration checked, weights mapped.
#[derive(Debug)]
pub struct EncoderCheckpoint {
    directory: PathBuf,
    config: EncoderConfig,
    tensors: Tensors,
    /// What precedes weights' names in the file.
    prefix: &'static str,
}

impl EncoderCheckpoint {
    /// Opens a directory of sentence-transformers.
    ///
    /// # Errors
    /// Where a file is missing or malformed, the model is of another kind, or a weight is missing or of another shape.
    pub fn open(directory: &Path) -> Result<EncoderCheckpoint, ModelError> {
        let config = EncoderConfig::read(directory)?;
        let tensors = safetensors::open(directory)?;
        let prefix = match tensors.contains("bert.embeddings.word_embeddings.weight") {
            true => "bert.",
            false => "",
        };
        let checkpoint = EncoderCheckpoint { directory: directory.into(), config, tensors, prefix };
        let smallest = EncoderShape { texts: 1, width: 1 };
        encoder(&checkpoint.config, &smallest, &|name| checkpoint.weight_type(name))?;
        Ok(checkpoint)
    }

    /// The configuration.
    pub fn config(&self) -> &EncoderConfig {
        &self.config
    }

    /// Where its files lie, the tokenizer among them.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The stored type of a weight.
    ///
    /// # Errors
    /// Where there is no such weight, or its element type is not supported.
    pub fn weight_type(&self, name: &str) -> Result<Type, ModelError> {
        let tensor = format!("{}{name}", self.prefix);
        self.tensors.ty(&tensor)?.ok_or_else(|| ModelError::MissingWeight {
            name: name.into(),
            wanted: tensor,
            file: self.tensors.first_file(),
        })
    }

    /// A weight in f32, as little-endian bytes: what an accelerator is given for [`device_encoder`].
    ///
    /// # Errors
    /// As [`EncoderCheckpoint::weight_type`], and where a number is not finite.
    pub fn floats(&self, name: &str) -> Result<Vec<u8>, ModelError> {
        let view = self.weight(name)?;
        let wrong = |expected: &str| ModelError::WeightType {
            name: name.into(),
            expected: expected.into(),
            found: view.ty.to_string(),
        };
        let mut row = vec![0.0; view.ty.cols()];
        let mut bytes = Vec::with_capacity(4 * view.ty.elements());
        for at in 0..view.ty.elements() / row.len().max(1) {
            dequantise(view.ty.dtype, view.row(at), &mut row).map_err(|_| wrong("floats"))?;
            if !row.iter().all(|x| x.is_finite()) {
                return Err(wrong("finite numbers"));
            }
            bytes.extend(row.iter().flat_map(|x| x.to_le_bytes()));
        }
        Ok(bytes)
    }

    /// A weight; its bytes are the file's.
    ///
    /// # Errors
    /// As [`EncoderCheckpoint::weight_type`].
    pub fn weight(&self, name: &str) -> Result<TensorView<'_>, ModelError> {
        let ty = self.weight_type(name)?;
        let tensor = &self.tensors.by_name[&format!("{}{name}", self.prefix)];
        Ok(TensorView::new(ty, self.tensors.bytes(tensor)))
    }
}

/// Builds the graph of one batch. `weight_type` says how each weight is stored.
///
/// # Errors
/// Where `weight_type` fails, a weight's shape is not what `config` asks for, or `shape` makes no sense.
pub fn encoder(
    config: &EncoderConfig,
    shape: &EncoderShape,
    weight_type: &dyn Fn(&str) -> Result<Type, ModelError>,
) -> Result<Graph, ModelError> {
    build(config, shape, &|name, _| weight_type(name))
}

/// The graph of one batch for an accelerator, which takes weights and computes in f32: encoders are small. No checkpoint
/// is needed.
///
/// # Errors
/// Where `shape` makes no sense.
pub fn device_encoder(config: &EncoderConfig, shape: &EncoderShape) -> Result<Graph, ModelError> {
    let most = i32::MAX as usize;
    if [shape.texts, shape.width].contains(&0) || shape.texts.saturating_mul(shape.width) > most {
        return Err(ModelError::Device { what: format!("{} texts of {} tokens", shape.texts, shape.width) });
    }
    build(config, shape, &|_, shape| Ok(Type::new(DType::F32, shape)))
}

/// What says how a weight of this name and shape is stored.
type Stored<'a> = dyn Fn(&str, &[usize]) -> Result<Type, ModelError> + 'a;

fn build(config: &EncoderConfig, shape: &EncoderShape, stored: &Stored<'_>) -> Result<Graph, ModelError> {
    let mut b = Builder::new("encoder");
    let tokens = shape.texts * shape.width;
    let index = |count: usize| Type::new(DType::I32, [count]);
    let ids = b.param("tokens", ParamKind::Input, index(tokens))?;
    let positions = b.param("positions", ParamKind::Input, index(tokens))?;
    let token_types = b.param("token_types", ParamKind::Input, index(tokens))?;
    let last = b.param("last", ParamKind::Input, index(shape.texts))?;

    let mut model = Model { b, config, stored };
    let mut x = None;
    for (part, rows, indices) in [
        ("word", config.vocab, ids),
        ("position", config.positions, positions),
        ("token_type", config.token_types, token_types),
    ] {
        let table = model.weight(&format!("embeddings.{part}_embeddings.weight"), &[rows, config.hidden])?;
        let embedded = model.b.embed(table, indices, 1.0, DType::F32)?;
        x = Some(match x {
            None => embedded,
            Some(x) => model.b.add(x, embedded)?,
        });
    }
    let x = x.unwrap_or_else(|| unreachable!("there are three tables"));
    let mut x = model.norm(x, "embeddings.LayerNorm")?;
    for l in 0..config.layers {
        x = model.layer(x, last, tokens, &format!("encoder.layer.{l}"))?;
    }
    let pooled = model.b.mean_pool(x, last)?;
    model.b.output("embeddings", pooled, None)?;
    Ok(model.b.finish()?)
}

struct Model<'a> {
    b: Builder,
    config: &'a EncoderConfig,
    stored: &'a Stored<'a>,
}

impl Model<'_> {
    fn weight(&mut self, name: &str, shape: &[usize]) -> Result<NodeId, ModelError> {
        let ty = (self.stored)(name, shape)?;
        if ty.shape != shape {
            return Err(ModelError::WeightType {
                name: name.into(),
                expected: format!("{shape:?}"),
                found: ty.to_string(),
            });
        }
        Ok(self.b.param(name, ParamKind::Weight, ty)?)
    }

    fn norm(&mut self, x: NodeId, name: &str) -> Result<NodeId, ModelError> {
        let width = [self.config.hidden];
        let weight = self.weight(&format!("{name}.weight"), &width)?;
        let bias = self.weight(&format!("{name}.bias"), &width)?;
        Ok(self.b.layer_norm(x, weight, bias, self.config.eps)?)
    }

    /// Linear layers over one input, side by side.
    fn linear(&mut self, x: NodeId, names: &[String], out: usize) -> Result<NodeId, ModelError> {
        let width = self.b.ty(x).cols();
        let (mut weights, mut biases) = (Vec::new(), Vec::new());
        for name in names {
            weights.push(self.weight(&format!("{name}.weight"), &[out, width])?);
            biases.push(self.weight(&format!("{name}.bias"), &[out])?);
        }
        Ok(self.b.linear(x, &weights, &biases)?)
    }

    fn layer(&mut self, x: NodeId, last: NodeId, tokens: usize, name: &str) -> Result<NodeId, ModelError> {
        let EncoderConfig { hidden, heads, ffn, .. } = *self.config;
        let dim = hidden / heads;
        let names = ["query", "key", "value"].map(|part| format!("{name}.attention.self.{part}"));
        let qkv = self.linear(x, &names, hidden)?;
        let mut part = |i: usize| {
            let part = self.b.slice(qkv, 1, i * hidden, (i + 1) * hidden)?;
            self.b.reshape(part, &[tokens, heads, dim])
        };
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let y = self.b.full_attention([q, k, v, last], (dim as f32).sqrt().recip())?;
        let y = self.b.reshape(y, &[tokens, hidden])?;
        let y = self.linear(y, &[format!("{name}.attention.output.dense")], hidden)?;
        let x = self.b.add(x, y)?;
        let x = self.norm(x, &format!("{name}.attention.output.LayerNorm"))?;
        let y = self.linear(x, &[format!("{name}.intermediate.dense")], ffn)?;
        let y = self.b.gelu(y)?;
        let y = self.linear(y, &[format!("{name}.output.dense")], hidden)?;
        let x = self.b.add(x, y)?;
        self.norm(x, &format!("{name}.output.LayerNorm"))
    }
}
