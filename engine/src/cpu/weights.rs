//! A checkpoint's weights in the kernels' layout: packed, or mapped from what was packed before.

use std::time::Instant;

use half::{bf16, f16};
use millrace_graph::{DType, Graph, ParamKind, TensorView, Type};
use millrace_kernels::{Pool, Weights};
use millrace_models::Checkpoint;
use rustc_hash::FxHashMap;

use super::{CpuLoadError, CpuOptions, cache};

/// Bytes of weights after which the pages of the checkpoint's files are let go.
pub(super) const DROP_BYTES: usize = 16 << 20;

/// A weight that the graph reads.
pub(super) struct Wanted<'a> {
    pub(super) name: &'a str,
    /// What the graph takes it for.
    pub(super) ty: Type,
    pub(super) source: Source<'a>,
}

/// Where a weight comes from.
pub(super) enum Source<'a> {
    /// The checkpoint's bytes; converted first, where they are not of the weight's type.
    Stored(TensorView<'a>),
    /// It is the same as this one, which comes before it.
    Alias(&'static str),
}

/// The packed weights, and their types.
type Loaded = (Weights, FxHashMap<String, Type>);

/// Takes in the weights that `graph` names.
pub(super) fn load(
    checkpoint: &Checkpoint,
    graph: &Graph,
    options: &CpuOptions,
    pool: &Pool,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Loaded, CpuLoadError> {
    let mut wanted = Vec::new();
    for param in graph.params.iter().filter(|param| param.kind == ParamKind::Weight) {
        let source = match param.name.as_str() {
            "head" if checkpoint.tied() => Source::Alias("embed"),
            name => Source::Stored(checkpoint.weight(name)?),
        };
        wanted.push(Wanted { name: &param.name, ty: graph.ty(param.node).clone(), source });
    }
    let types = wanted.iter().map(|weight| (weight.name.to_owned(), weight.ty.clone())).collect();
    let let_go = || checkpoint.advise_dont_need();
    let weights = match &options.packed_cache {
        None => {
            let started = Instant::now();
            let weights = pack(&wanted, pool, &let_go, progress)?;
            let (bytes, seconds) = (weights.bytes(), started.elapsed().as_secs_f64());
            tracing::info!(bytes, seconds, "weights are packed");
            weights
        }
        Some(directory) => {
            let entry = cache::Entry::of(directory, &wanted, pool, &let_go);
            match entry.read(&wanted, pool) {
                Some(weights) => weights,
                None => {
                    let weights = pack(&wanted, pool, &let_go, progress)?;
                    entry.write(&weights);
                    weights
                }
            }
        }
    };
    Ok((weights, types))
}

fn pack(
    wanted: &[Wanted<'_>],
    pool: &Pool,
    let_go: &dyn Fn(),
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Weights, CpuLoadError> {
    let bytes = |ty: &Type| ty.bytes().unwrap_or(0);
    let total = wanted.iter().map(|weight| bytes(&weight.ty)).sum::<usize>();
    let (mut weights, mut done, mut dropped) = (Weights::new(), 0, 0);
    for Wanted { name, ty, source } in wanted {
        let refused = |source| CpuLoadError::Weight { name: (*name).to_owned(), source };
        match source {
            Source::Alias(of) => weights.share(name, of).map_err(refused)?,
            Source::Stored(view) if view.ty.dtype == ty.dtype => {
                weights.insert(name, view, pool).map_err(refused)?
            }
            Source::Stored(view) => {
                let dense = convert(view, ty.dtype);
                let view = TensorView::new(Type::new(ty.dtype, view.ty.shape.clone()), &dense);
                weights.insert(name, &view, pool).map_err(refused)?;
            }
        }
        done += bytes(ty);
        // What is packed is not read again: without this a load would hold the whole file twice.
        if done - dropped >= DROP_BYTES {
            let_go();
            dropped = done;
        }
        progress(done as u64, total as u64);
    }
    Ok(weights)
}

/// The type that a matrix is converted to, where it is.
pub(super) fn converted(ty: &Type, wanted: Option<DType>) -> Option<DType> {
    wanted.filter(|dtype| ty.rank() > 1 && ty.dtype.is_float() && ty.dtype != *dtype)
}

/// A plain floating-point tensor in another plain type, rounded to nearest even.
fn convert(view: &TensorView<'_>, to: DType) -> Vec<u8> {
    let mut dense = Vec::with_capacity(view.ty.elements() * to.block_bytes());
    for row in 0..view.ty.rows() {
        let bytes = view.row(row);
        let values = bytes.chunks_exact(view.ty.dtype.block_bytes()).map(|raw| match (view.ty.dtype, raw) {
            (DType::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (DType::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            (_, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            _ => unreachable!("only plain floats are converted"),
        });
        for value in values {
            match to {
                DType::F16 => dense.extend(f16::from_f32(value).to_le_bytes()),
                DType::BF16 => dense.extend(bf16::from_f32(value).to_le_bytes()),
                _ => dense.extend(value.to_le_bytes()),
            }
        }
    }
    dense
}
