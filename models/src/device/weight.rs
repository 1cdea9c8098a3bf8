//! A rank's share of a weight, in the form that the device holds it.

use std::ops::Range;

use half::bf16;
use millrace_graph::dequant::dequantise;
use millrace_graph::{DType, TensorView, Type};

use super::{DeviceModel, DeviceWeights, PADDING_LOGIT, Share};
use crate::{Checkpoint, Config, ModelError, QkNorm};

/// The largest magnitude of a channel of 8-bit integers.
const LARGEST: f32 = 127.0;

/// What a rank has of a weight's rows and columns; ranges may reach beyond the weight, where there are zeros.
struct Part {
    rows: Range<usize>,
    columns: Range<usize>,
}

/// How the device holds a weight of this shape.
pub(super) fn stored(model: &DeviceModel, name: &str, shape: &[usize]) -> Type {
    let floats = matches!(name, "embed") || name.ends_with(".moe.router");
    let dtype = match (shape.len(), model.weights) {
        (1, _) => DType::F32,
        _ if name.ends_with("_scale") => DType::F32,
        (_, DeviceWeights::Int8) if !floats => DType::I8,
        _ => model.dtype,
    };
    Type::new(dtype, shape)
}

/// The bytes of rank `rank`'s share of the weight `name`, which is one of [`super::device_weights`]: read from the
/// checkpoint in whatever format it has, and converted, to the nearest number of the device's type and to the even one
/// on a tie. Scales of a channel are taken from all of its columns, so that the integers do not depend on the ranks.
///
/// # Errors
/// Where there is no such weight or rank, the checkpoint is damaged, or a number of it does not fit: an infinity, or no
/// number.
pub fn device_weight(
    checkpoint: &Checkpoint,
    model: &DeviceModel,
    rank: usize,
    name: &str,
) -> Result<Vec<u8>, ModelError> {
    let config = checkpoint.config();
    model.check()?;
    let share = Share::of_device(config, model.ranks)?;
    if rank >= model.ranks {
        return Err(ModelError::Device { what: format!("rank {rank} of {}", model.ranks) });
    }
    if name == "head_padding" {
        let columns = rank * share.vocab..(rank + 1) * share.vocab;
        let padding = columns.map(|column| if column < config.vocab { 0.0 } else { PADDING_LOGIT });
        return Ok(padding.flat_map(f32::to_le_bytes).collect());
    }
    let (of, wants_scales) = match name.strip_suffix("_scale") {
        Some(of) => (of, true),
        None => (name, false),
    };
    let view = checkpoint.weight(of)?;
    let int8 = stored(model, of, &view.ty.shape).dtype == DType::I8;
    if wants_scales && !int8 {
        return Err(ModelError::Device { what: format!("scales of the weight {of}, which has none") });
    }
    read(config, share, rank, of, &view)?.bytes(model, wants_scales)
}

/// A weight and a rank's part of it.
struct Reader<'a> {
    name: &'a str,
    view: &'a TensorView<'a>,
    /// Rows of one matrix, and how many matrices there are (experts).
    rows: usize,
    matrices: usize,
    part: Part,
}

fn read<'a>(
    config: &Config,
    share: Share,
    rank: usize,
    name: &'a str,
    view: &'a TensorView<'a>,
) -> Result<Reader<'a>, ModelError> {
    let shape = &view.ty.shape;
    // A vector is a matrix of one column.
    let (matrices, rows, columns) = match shape[..] {
        [rows] => (1, rows, 1),
        [rows, columns] => (1, rows, columns),
        [matrices, rows, columns] => (matrices, rows, columns),
        _ => {
            return Err(ModelError::WeightType {
                name: name.into(),
                expected: "a vector, a matrix, or one matrix for each expert".into(),
                found: view.ty.to_string(),
            });
        }
    };
    let nth = |rank: usize, each: usize| rank * each..(rank + 1) * each;
    // Where there are fewer key-value heads than ranks, neighbouring ranks have the same one.
    let kv_rank = rank * config.kv_heads.min(share.ranks) / share.ranks;
    let (all_rows, all_columns) = (0..rows, 0..columns);
    let part =
        name.strip_prefix("layers.").and_then(|rest| rest.split_once('.')).map_or(name, |(_, part)| part);
    let over_projection = config.qk_norm == QkNorm::Projection;
    let (rows_of_rank, columns_of_rank) = match part {
        "head" => (nth(rank, share.vocab), all_columns),
        "attn.q" | "attn.q_bias" => (nth(rank, share.heads * config.head_dim), all_columns),
        "attn.k" | "attn.v" | "attn.k_bias" | "attn.v_bias" => {
            (nth(kv_rank, share.kv_heads * config.head_dim), all_columns)
        }
        "attn.q_norm" if over_projection => (nth(rank, share.heads * config.head_dim), all_columns),
        "attn.k_norm" if over_projection => (nth(kv_rank, share.kv_heads * config.head_dim), all_columns),
        "attn.o" => (all_rows, nth(rank, share.heads * config.head_dim)),
        "mlp.gate" | "mlp.up" | "moe.gate" | "moe.up" => (nth(rank, share.of(rows)), all_columns),
        "mlp.down" | "moe.down" => (all_rows, nth(rank, share.of(columns))),
        _ => (all_rows, all_columns),
    };
    Ok(Reader { name, view, rows, matrices, part: Part { rows: rows_of_rank, columns: columns_of_rank } })
}

impl Reader<'_> {
    fn bytes(&self, model: &DeviceModel, wants_scales: bool) -> Result<Vec<u8>, ModelError> {
        let (matrices, rows, columns) = (self.matrices, self.part.rows.len(), self.part.columns.len());
        let dtype = match wants_scales {
            true => DType::F32,
            false => stored(model, self.name, &self.view.ty.shape).dtype,
        };
        let vector = self.view.ty.rank() == 1;
        let mut bytes = Vec::with_capacity(matrices * rows * columns * dtype.block_bytes());
        // A vector's storage is one row.
        let mut whole = vec![0.0; self.view.ty.cols()];
        if vector {
            self.floats(0, &mut whole)?;
            for row in self.part.rows.clone() {
                push(dtype, whole.get(row).copied().unwrap_or(0.0), &mut bytes);
            }
            return Ok(bytes);
        }
        for (matrix, row) in (0..matrices).flat_map(|m| self.part.rows.clone().map(move |row| (m, row))) {
            match row < self.rows {
                true => self.floats(matrix * self.rows + row, &mut whole)?,
                false => whole.fill(0.0),
            }
            let scale = match wants_scales || dtype == DType::I8 {
                true => scale(&whole),
                false => 1.0,
            };
            if wants_scales {
                push(DType::F32, scale, &mut bytes);
                continue;
            }
            for column in self.part.columns.clone() {
                push(dtype, whole.get(column).copied().unwrap_or(0.0) / scale, &mut bytes);
            }
        }
        Ok(bytes)
    }

    /// One stored row as floats.
    fn floats(&self, row: usize, out: &mut [f32]) -> Result<(), ModelError> {
        let dtype = self.view.ty.dtype;
        let wrong = |expected: &str| ModelError::WeightType {
            name: self.name.into(),
            expected: expected.into(),
            found: self.view.ty.to_string(),
        };
        dequantise(dtype, self.view.row(row), out).map_err(|_| wrong("floats or a block format"))?;
        out.iter_mut().for_each(|x| *x += self.view.offset);
        match out.iter().all(|x| x.is_finite()) {
            true => Ok(()),
            false => Err(wrong("finite numbers")),
        }
    }
}

/// What the integers of a channel are multiplied by; a channel of zeros has zeros whatever it is.
fn scale(channel: &[f32]) -> f32 {
    let largest = channel.iter().fold(0f32, |largest, x| largest.max(x.abs()));
    if largest > 0.0 { largest / LARGEST } else { 1.0 }
}

fn push(dtype: DType, x: f32, bytes: &mut Vec<u8>) {
    match dtype {
        DType::BF16 => bytes.extend(bf16::from_f32(x).to_le_bytes()),
        DType::I8 => bytes.push(x.round_ties_even().clamp(-LARGEST, LARGEST) as i8 as u8),
        _ => bytes.extend(x.to_le_bytes()),
    }
}
