//! Prints a graph in the manner of HLO text: one line a node, then the outputs.

use std::fmt::{self, Display, Formatter};

use crate::{Activation, Fused, Graph, Literal, Node, Op, ParamKind};

/// Literals and tables longer than this are cut short.
const SHOWN: usize = 8;

impl Display for Graph {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} {{", self.name)?;
        for (index, node) in self.nodes.iter().enumerate() {
            write!(f, "  %{index} = {} {}(", node.ty, node.op.name())?;
            match &node.op {
                Op::Parameter(id) => write!(f, "{}", id.0)?,
                Op::Constant(literal) => literal.fmt(f)?,
                _ => list(f, node.inputs.iter().map(|id| format!("%{}", id.0)))?,
            }
            f.write_str(")")?;
            if let Op::Parameter(id) = &node.op {
                let param = self.param(*id);
                write!(f, ", name={:?}, kind={}", param.name, param.kind)?;
            }
            attributes(f, node)?;
            writeln!(f)?;
        }
        for output in &self.outputs {
            write!(f, "  output {:?} = %{}", output.name, output.node.0)?;
            if let Some(state) = output.alias {
                write!(f, ", alias={:?}", self.param(state).name)?;
            }
            writeln!(f)?;
        }
        writeln!(f, "}}")
    }
}

impl Display for ParamKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ParamKind::Input => "input",
            ParamKind::Weight => "weight",
            ParamKind::State => "state",
        })
    }
}

impl Display for Literal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Literal::Float(values) => cut(f, values),
            Literal::Int(values) => cut(f, values),
        }
    }
}

impl Display for Activation {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Activation::Silu => "silu",
            Activation::GeluTanh => "gelu-tanh",
        })
    }
}

fn list<T: Display>(f: &mut Formatter<'_>, items: impl IntoIterator<Item = T>) -> fmt::Result {
    for (i, item) in items.into_iter().enumerate() {
        let comma = if i > 0 { ", " } else { "" };
        write!(f, "{comma}{item}")?;
    }
    Ok(())
}

/// One value bare, several in braces. `Debug` prints the shortest decimal that reads back as the same float.
fn cut<T: fmt::Debug>(f: &mut Formatter<'_>, values: &[T]) -> fmt::Result {
    if let [one] = values {
        return write!(f, "{one:?}");
    }
    f.write_str("{")?;
    list(f, values.iter().take(SHOWN).map(|value| format!("{value:?}")))?;
    if values.len() > SHOWN {
        write!(f, ", … {} in all", values.len())?;
    }
    f.write_str("}")
}

fn attributes(f: &mut Formatter<'_>, node: &Node) -> fmt::Result {
    let mut dims = |name: &str, dims: &[usize]| {
        write!(f, ", {name}={{")?;
        list(f, dims)?;
        f.write_str("}")
    };
    match &node.op {
        Op::Iota { dim } | Op::Concatenate { dim } => dims("dimensions", &[*dim]),
        Op::Broadcast { dims: list } | Op::Transpose { perm: list } | Op::Reduce { dims: list, .. } => {
            dims("dimensions", list)?;
            if let Op::Reduce { op, .. } = &node.op {
                write!(f, ", to_apply={}", op.name())?;
            }
            Ok(())
        }
        Op::Slice { starts, limits, strides } => {
            let ranges = starts.iter().zip(limits).zip(strides);
            f.write_str(", slice={")?;
            list(f, ranges.map(|((start, limit), stride)| format!("[{start}:{limit}:{stride}]")))?;
            f.write_str("}")
        }
        Op::Compare(direction) => write!(f, ", direction={}", direction.name()),
        Op::Dot(dot) => {
            dims("lhs_batch_dims", &dot.lhs_batch)?;
            dims("rhs_batch_dims", &dot.rhs_batch)?;
            dims("lhs_contracting_dims", &dot.lhs_contracting)?;
            dims("rhs_contracting_dims", &dot.rhs_contracting)
        }
        Op::Gather(gather) => {
            dims("offset_dims", &gather.offset_dims)?;
            dims("collapsed_slice_dims", &gather.collapsed_slice_dims)?;
            dims("start_index_map", &gather.start_index_map)?;
            dims("slice_sizes", &gather.slice_sizes)?;
            write!(f, ", index_vector_dim={}", gather.index_vector_dim)
        }
        Op::Scatter(scatter) => {
            dims("update_window_dims", &scatter.update_window_dims)?;
            dims("inserted_window_dims", &scatter.inserted_window_dims)?;
            dims("scatter_dims_to_operand_dims", &scatter.scatter_dims_to_operand_dims)?;
            write!(f, ", index_vector_dim={}", scatter.index_vector_dim)
        }
        Op::TopK { k, indices } => write!(f, ", k={k}, indices={indices}"),
        Op::AllReduce { op, groups } => {
            f.write_str(", replica_groups={")?;
            list(f, groups.iter().map(|group| format!("{group:?}")))?;
            write!(f, "}}, to_apply={}", op.name())
        }
        Op::Fused(op) => fused(f, op),
        Op::Parameter(_)
        | Op::Constant(_)
        | Op::Reshape
        | Op::Convert
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Select => Ok(()),
    }
}

fn fused(f: &mut Formatter<'_>, op: &Fused) -> fmt::Result {
    match op {
        Fused::Embed { scale } => write!(f, ", scale={scale:?}"),
        Fused::RmsNorm { eps, offset } => write!(f, ", eps={eps:?}, offset={offset:?}"),
        Fused::RopeAngles { inv_freq, scale } => {
            f.write_str(", inv_freq=")?;
            cut(f, inv_freq)?;
            write!(f, ", scale={scale:?}")
        }
        Fused::Linear { weights, bias } => write!(f, ", weights={weights}, bias={bias}"),
        Fused::GatedLinear { act } => write!(f, ", act={act}"),
        Fused::PagedAttention(attention) => {
            write!(f, ", scale={:?}", attention.scale)?;
            if let Some(window) = attention.window {
                write!(f, ", window={window}")?;
            }
            if let Some(cap) = attention.softcap {
                write!(f, ", softcap={cap:?}")?;
            }
            match attention.width {
                Some(width) => write!(f, ", width={width}"),
                None => f.write_str(", ragged"),
            }
        }
        Fused::Experts { top_k, normalise, act } => {
            write!(f, ", top_k={top_k}, normalise={normalise}, act={act}")
        }
        Fused::Softcap { cap } => write!(f, ", cap={cap:?}"),
        Fused::Scale { factor } => write!(f, ", factor={factor:?}"),
        Fused::LayerNorm { eps } => write!(f, ", eps={eps:?}"),
        Fused::FullAttention { scale } => write!(f, ", scale={scale:?}"),
        Fused::Rope | Fused::WriteKv | Fused::SelectRows | Fused::Gelu | Fused::MeanPool => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use crate::{Activation, Attention, Builder, DType, GraphError, ParamKind, Type};

    #[test]
    fn prints_one_line_a_node() -> Result<(), GraphError> {
        let mut b = Builder::new("step");
        let f32s = |shape: &[usize]| Type::new(DType::F32, shape);
        let i32s = |shape: &[usize]| Type::new(DType::I32, shape);
        let x = b.param("x", ParamKind::Input, f32s(&[2, 8]))?;
        let norm = b.param("norm", ParamKind::Weight, Type::new(DType::BF16, [8]))?;
        let w = b.param("w", ParamKind::Weight, Type::new(DType::F16, [8, 8]))?;
        let cache = b.param("cache", ParamKind::State, f32s(&[3, 4, 2, 4]))?;
        let slots = b.param("slots", ParamKind::Input, i32s(&[2]))?;
        let tables = b.param("tables", ParamKind::Input, i32s(&[1, 2]))?;
        let y = b.rms_norm(x, norm, 1e-6, 0.0)?;
        let y = b.linear(y, &[w], &[])?;
        let heads = b.reshape(y, &[2, 2, 4])?;
        let cache = b.write_kv(cache, heads, slots)?;
        let how = Attention { scale: 0.5, window: Some(16), softcap: None, width: Some(2) };
        let y = b.paged_attention(&[heads, cache, cache, tables, slots], how)?;
        let y = b.slice(y, 0, 1, 2)?;
        let y = b.reshape(y, &[1, 8])?;
        let y = b.gated_linear(y, w, w, Activation::Silu)?;
        b.output("y", y, None)?;
        b.output("cache", cache, Some("cache"))?;
        let printed = b.finish()?.to_string();
        assert_eq!(
            printed,
            r#"step {
  %0 = f32[2,8] parameter(0), name="x", kind=input
  %1 = bf16[8] parameter(1), name="norm", kind=weight
  %2 = f16[8,8] parameter(2), name="w", kind=weight
  %3 = f32[3,4,2,4] parameter(3), name="cache", kind=state
  %4 = s32[2] parameter(4), name="slots", kind=input
  %5 = s32[1,2] parameter(5), name="tables", kind=input
  %6 = f32[2,8] rms-norm(%0, %1), eps=1e-6, offset=0.0
  %7 = f32[2,8] linear(%6, %2), weights=1, bias=false
  %8 = f32[2,2,4] reshape(%7)
  %9 = f32[3,4,2,4] write-kv(%3, %8, %4)
  %10 = f32[2,2,4] paged-attention(%8, %9, %9, %5, %4), scale=0.5, window=16, width=2
  %11 = f32[1,2,4] slice(%10), slice={[1:2:1], [0:2:1], [0:4:1]}
  %12 = f32[1,8] reshape(%11)
  %13 = f32[1,8] gated-linear(%12, %2, %2), act=silu
  output "y" = %13
  output "cache" = %9, alias="cache"
}
"#
        );
        Ok(())
    }

    #[test]
    fn prints_primitives_with_their_dimension_numbers() -> Result<(), GraphError> {
        let mut b = Builder::new("rows");
        let table = b.param("table", ParamKind::Weight, Type::new(DType::F32, [9, 4]))?;
        let ids = b.param("ids", ParamKind::Input, Type::new(DType::I32, [3]))?;
        let x = b.embed(table, ids, 2.0, DType::F32)?;
        b.output("x", x, None)?;
        let printed = crate::define::inline(&b.finish()?)?.to_string();
        assert_eq!(
            printed,
            r#"rows {
  %0 = f32[9,4] parameter(0), name="table", kind=weight
  %1 = s32[3] parameter(1), name="ids", kind=input
  %2 = f32[3,4] gather(%0, %1), offset_dims={1}, collapsed_slice_dims={0}, start_index_map={0}, slice_sizes={1, 4}, index_vector_dim=1
  %3 = f32[3,4] constant(2.0)
  %4 = f32[3,4] multiply(%2, %3)
  output "x" = %4
}
"#
        );
        Ok(())
    }
}
