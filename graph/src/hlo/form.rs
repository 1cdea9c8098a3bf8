//! What writer, reader and lint agree on: encodings, limits, called computations, and what the device refuses
//! whatever the form.

use super::proto::{LayoutProto, ShapeProto};
use crate::topk::CALL_GROUP;
use crate::{DType, Graph, Literal, Node, NodeId, Op, Reduction, Type};

/// Dimensions that a tensor may have. The decoder's graphs need five.
pub(super) const MAX_RANK: usize = 8;

/// Bytes that a tensor may have: more than any core's memory, so that sizes of a damaged module are refused before
/// they are computed with.
const MAX_BYTES: usize = 1 << 40;

/// The tuple's element type.
pub(super) const TUPLE: i32 = 13;

/// The entry computation's name.
pub(super) const ENTRY: &str = "main";

/// The custom call for the largest elements of rows.
pub(super) const TOP_K: &str = "AwsNeuronTopK";

/// Key of a parameter's name among its frontend attributes.
pub(super) const INPUT_NAMES: &str = "neff_input_names";

/// Key of the results' names, joined by commas, among the root's frontend attributes.
pub(super) const OUTPUT_NAMES: &str = "neff_output_names";

/// How an output and the state that it replaces share memory: XLA's `HloInputOutputAliasProto.Kind`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AliasKind {
    /// Not stated.
    Undefined,
    /// They may.
    May,
    /// They must: two copies of a KV cache would not fit, and the runner binds one tensor to both names.
    #[default]
    Must,
}

impl AliasKind {
    /// XLA's number.
    pub(super) fn number(self) -> i32 {
        match self {
            AliasKind::Undefined => 0,
            AliasKind::May => 1,
            AliasKind::Must => 2,
        }
    }
}

/// XLA's `PrimitiveType` of the element types that the device takes.
const ELEMENT_TYPES: [(DType, i32); 8] = [
    (DType::Pred, 1),
    (DType::I8, 2),
    (DType::I32, 4),
    (DType::U8, 6),
    (DType::U32, 8),
    (DType::F16, 10),
    (DType::F32, 11),
    (DType::BF16, 16),
];

/// XLA's number of an element type.
pub(super) fn element_type(dtype: DType) -> Option<i32> {
    ELEMENT_TYPES.iter().find(|(ours, _)| *ours == dtype).map(|(_, number)| *number)
}

/// The element type of that number, if the device takes it.
pub(super) fn dtype(number: i32) -> Option<DType> {
    ELEMENT_TYPES.iter().find(|(_, theirs)| *theirs == number).map(|(dtype, _)| *dtype)
}

/// The type that a shape states, if it is an array's, row-major and static.
pub(super) fn ty(shape: &ShapeProto) -> Result<Type, String> {
    let number = shape.element_type;
    let Some(dtype) = dtype(number) else {
        let name = match number {
            3 => " (s16)",
            5 => " (s64)",
            7 => " (u16)",
            9 => " (u64)",
            12 => " (f64)",
            TUPLE => " (a tuple)",
            15 | 18 => " (complex)",
            19..=29 => " (an 8-bit float or 4-bit integer)",
            _ => "",
        };
        return Err(format!("element type {number}{name} is none that the device takes here"));
    };
    if shape.dimensions.len() > MAX_RANK {
        return Err(format!("{} dimensions, and {MAX_RANK} are the most", shape.dimensions.len()));
    }
    let dims: Vec<usize> = shape.dimensions.iter().map(|dim| usize::try_from(*dim).unwrap_or(0)).collect();
    let ty = Type::new(dtype, dims);
    refuse_type(&ty)?;
    if shape.is_dynamic_dimension.contains(&true) {
        return Err(format!("{ty} has a dynamic dimension"));
    }
    match *shape == self::shape(number, &ty.shape) {
        true => Ok(ty),
        false => Err(format!("{ty} is not stated as row-major, unpadded and static")),
    }
}

/// A shape of these dimensions, row-major and static.
pub(super) fn shape(element_type: i32, dims: &[usize]) -> ShapeProto {
    ShapeProto {
        element_type,
        dimensions: dims.iter().map(|dim| *dim as i64).collect(),
        tuple_shapes: Vec::new(),
        layout: Some(LayoutProto {
            minor_to_major: (0..dims.len() as i64).rev().collect(),
            tail_padding_alignment_in_elements: 1,
        }),
        is_dynamic_dimension: vec![false; dims.len()],
    }
}

/// A computation that an instruction calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Region {
    /// Two scalars of this type to one.
    Fold(Reduction, DType),
    /// The second of two scalars.
    Assign(DType),
}

impl Region {
    /// What a node calls.
    pub(super) fn of(node: &Node) -> Option<Region> {
        match &node.op {
            Op::Reduce { op, .. } | Op::AllReduce { op, .. } => Some(Region::Fold(*op, node.ty.dtype)),
            Op::Scatter(_) => Some(Region::Assign(node.ty.dtype)),
            _ => None,
        }
    }

    /// The computation's name.
    pub(super) fn name(self) -> String {
        match self {
            Region::Fold(op, dtype) => format!("{}_{dtype}", op.name()),
            Region::Assign(dtype) => format!("assign_{dtype}"),
        }
    }

    /// The scalars' type.
    pub(super) fn dtype(self) -> DType {
        let (Region::Fold(_, dtype) | Region::Assign(dtype)) = self;
        dtype
    }
}

/// What a reduction starts from. For floats the lowest or highest finite number: devices may saturate or fault on
/// infinities, and a maximum over at least one number is the same.
pub(super) fn initial(op: Reduction, dtype: DType) -> Literal {
    let (low, high) = integer_range(dtype);
    let largest = largest(dtype);
    match (op, dtype.is_float()) {
        (Reduction::Add, true) => Literal::float(0.0),
        (Reduction::Maximum, true) => Literal::float(-largest),
        (Reduction::Minimum, true) => Literal::float(largest),
        (Reduction::Add, false) => Literal::int(0),
        (Reduction::Maximum, false) => Literal::int(low),
        (Reduction::Minimum, false) => Literal::int(high),
    }
}

/// The largest finite number of a float type.
fn largest(dtype: DType) -> f32 {
    match dtype {
        DType::F16 => f32::from(half::f16::MAX),
        DType::BF16 => f32::from(half::bf16::MAX),
        _ => f32::MAX,
    }
}

/// The integers of a type, with `pred` as 0 and 1.
fn integer_range(dtype: DType) -> (i64, i64) {
    match dtype {
        DType::Pred => (0, 1),
        DType::I8 => (i64::from(i8::MIN), i64::from(i8::MAX)),
        DType::U8 => (0, i64::from(u8::MAX)),
        DType::U32 => (0, i64::from(u32::MAX)),
        _ => (i64::from(i32::MIN), i64::from(i32::MAX)),
    }
}

/// Why attributes, which join names by commas and quote them in HLO text, cannot hold a name.
pub(super) fn refuse_name(name: &str) -> Result<(), String> {
    let plain = |c: char| !matches!(c, ',' | '"' | '\\') && !c.is_control();
    match !name.is_empty() && name.chars().all(plain) {
        true => Ok(()),
        false => Err("names are not empty and hold no comma, quote, backslash or control character".into()),
    }
}

/// Why a tensor of this type has no place on the device.
pub(super) fn refuse_type(ty: &Type) -> Result<(), String> {
    if element_type(ty.dtype).is_none() {
        return Err(format!("{ty} is in a block format"));
    }
    if ty.rank() > MAX_RANK {
        return Err(format!("{ty} has more than {MAX_RANK} dimensions"));
    }
    if let Some(dim) = ty.shape.iter().find(|dim| **dim == 0 || **dim > i32::MAX as usize) {
        return Err(format!("{ty} has a dimension of {dim}"));
    }
    match ty.bytes() {
        Some(bytes) if bytes <= MAX_BYTES => Ok(()),
        _ => Err(format!("{ty} has more than {MAX_BYTES} bytes")),
    }
}

/// What the device refuses, or computes differently, in a well-typed graph of primitives: the first such node.
pub(super) fn refuse_graph(graph: &Graph) -> Result<(), (NodeId, String)> {
    // The smallest and largest element of each index tensor that is known without running the graph.
    let mut known: Vec<Option<(i64, i64)>> = Vec::with_capacity(graph.nodes.len());
    for (index, node) in graph.nodes.iter().enumerate() {
        let refuse = |why: String| (NodeId(index as u32), why);
        refuse_type(&node.ty).map_err(refuse)?;
        let operand = |i: usize| graph.ty(node.inputs[i]);
        match &node.op {
            Op::Constant(literal) => refuse_literal(literal, &node.ty).map_err(refuse)?,
            Op::Dot(_) | Op::AllReduce { .. } if !operand(0).dtype.is_float() => {
                return Err(refuse(format!("of {}, which the device computes in f32", operand(0).dtype)));
            }
            Op::TopK { .. } if !operand(0).cols().is_multiple_of(CALL_GROUP) => {
                return Err(refuse(format!("of {}, which are no whole groups of {CALL_GROUP}", operand(0))));
            }
            Op::Fused(_) => return Err(refuse("is a fused op and not a primitive".into())),
            Op::Gather(dims) => {
                let sizes: Vec<usize> = dims.slice_sizes.clone();
                refuse_indices(known[node.inputs[1].index()], operand(0), &dims.start_index_map, &sizes)
                    .map_err(refuse)?;
            }
            Op::Scatter(dims) => {
                let mut window = dims.update_window_dims.iter();
                let sizes: Vec<usize> = (0..operand(0).rank())
                    .map(|dim| match dims.inserted_window_dims.contains(&dim) {
                        true => 1,
                        false => window.next().map_or(1, |update| operand(2).shape[*update]),
                    })
                    .collect();
                let map = &dims.scatter_dims_to_operand_dims;
                refuse_indices(known[node.inputs[1].index()], operand(0), map, &sizes).map_err(refuse)?;
            }
            _ => {}
        }
        known.push(range(node, &known));
    }
    Ok(())
}

fn refuse_literal(literal: &Literal, ty: &Type) -> Result<(), String> {
    match literal {
        Literal::Float(values) => {
            match values.iter().find(|value| !value.is_finite() || value.abs() > largest(ty.dtype)) {
                Some(value) => Err(format!("the constant {value} is no finite {}", ty.dtype)),
                None => Ok(()),
            }
        }
        Literal::Int(values) => {
            let (low, high) = integer_range(ty.dtype);
            match values.iter().find(|value| !(low..=high).contains(*value)) {
                Some(value) => Err(format!("the constant {value} is no {}", ty.dtype)),
                None => Ok(()),
            }
        }
    }
}

/// The extreme elements of constants and iotas, however they are laid out.
fn range(node: &Node, known: &[Option<(i64, i64)>]) -> Option<(i64, i64)> {
    match &node.op {
        Op::Constant(Literal::Int(values)) => Some((*values.iter().min()?, *values.iter().max()?)),
        Op::Iota { dim } if node.ty.dtype.is_integer() => Some((0, node.ty.shape[*dim] as i64 - 1)),
        Op::Broadcast { .. } | Op::Reshape | Op::Transpose { .. } => known[node.inputs[0].index()],
        _ => None,
    }
}

/// Refuses index tensors one of whose elements is beyond every dimension that it could count in.
fn refuse_indices(
    known: Option<(i64, i64)>,
    operand: &Type,
    map: &[usize],
    sizes: &[usize],
) -> Result<(), String> {
    let last = map.iter().map(|dim| (operand.shape[*dim] - sizes[*dim]) as i64).max();
    match (known, last) {
        (Some((low, high)), Some(last)) if low < 0 || high > last => {
            Err(format!("an index of {} into {operand} is out of bounds", if low < 0 { low } else { high }))
        }
        _ => Ok(()),
    }
}
