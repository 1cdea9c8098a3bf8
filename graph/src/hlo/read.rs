//! Reads the modules that this crate writes back into graphs of primitives.

use std::panic::Location;

use prost::Message;

use super::form::{self, INPUT_NAMES, MAX_RANK, OUTPUT_NAMES, Region};
use super::lint::{self, refuse};
use super::proto::{HloComputationProto, HloInstructionProto, HloModuleProto, LiteralProto, SliceDimensions};
use super::{HloError, write};
use crate::{
    Binary, DType, Direction, DotDims, GatherDims, Graph, Literal, Node, NodeId, Op, Output, Param, ParamId,
    ParamKind, Reduction, ScatterDims, Type, Unary,
};

/// Bytes that a module may have: a hundred layers take a few million. Messages take far more memory than their
/// bytes.
const MAX_MODULE: usize = 32 << 20;

const UNARY: [Unary; 11] = [
    Unary::Negate,
    Unary::Abs,
    Unary::Exp,
    Unary::Log,
    Unary::Sqrt,
    Unary::Rsqrt,
    Unary::Logistic,
    Unary::Tanh,
    Unary::Sin,
    Unary::Cos,
    Unary::Floor,
];

const BINARY: [Binary; 9] = [
    Binary::Add,
    Binary::Subtract,
    Binary::Multiply,
    Binary::Divide,
    Binary::Maximum,
    Binary::Minimum,
    Binary::Power,
    Binary::And,
    Binary::Or,
];

const DIRECTIONS: [Direction; 6] =
    [Direction::Eq, Direction::Ne, Direction::Lt, Direction::Le, Direction::Gt, Direction::Ge];

const REDUCTIONS: [Reduction; 3] = [Reduction::Add, Reduction::Maximum, Reduction::Minimum];

/// The graph of a serialized module that [`super::lint()`] accepts. Its nodes are primitives; the writer's scalar
/// constants are folded into what uses them, so that reading what was written gives the inlined graph, with its
/// parameters first. HLO does not tell weights from inputs: a parameter that an output replaces is a
/// [`ParamKind::State`], every other one a [`ParamKind::Input`]. Nodes have this function's location.
///
/// # Errors
/// Where the bytes are no module, hold a field that is never written here, or do not pass the lint. Memory is bounded
/// by the number of bytes, whatever they say.
pub fn read(bytes: &[u8]) -> Result<Graph, HloError> {
    let refuse = |why: String| HloError::Decode { why };
    if bytes.len() > MAX_MODULE {
        return Err(refuse(format!("{} of them are more than any model needs", bytes.len())));
    }
    let module = HloModuleProto::decode(bytes).map_err(|error| refuse(error.to_string()))?;
    if module.encode_to_vec() != bytes {
        return Err(refuse("they hold fields that are not in use here, or not in order".into()));
    }
    graph(&module)
}

/// The graph of a module, after the lint of its form.
pub(super) fn graph(module: &HloModuleProto) -> Result<Graph, HloError> {
    lint::form(module)?;
    let Some((entry, called)) = module.computations.split_last() else {
        return Err(refuse("computations", "there is none"));
    };
    let regions: Vec<Region> = called.iter().map(region).collect::<Result<_, _>>()?;
    let first = entry.instructions.first().map_or(0, |instruction| instruction.id);
    let mut reader = Reader { entry, first, regions, nodes: Vec::new(), places: Vec::new() };
    let graph = reader.graph(module)?;
    graph.verify()?;
    form::refuse_graph(&graph).map_err(|(id, why)| {
        let place = reader.places.iter().position(|node| *node == id);
        let place = place.map_or_else(String::new, |at| entry.instructions[at].name.clone());
        refuse(format!("instruction {place:?}"), why)
    })?;
    Ok(graph)
}

/// What a called computation does.
fn region(computation: &HloComputationProto) -> Result<Region, HloError> {
    let refuse = || {
        let why = "it is neither a fold of two scalars nor the assignment of the second";
        refuse(format!("computation {:?}", computation.name), why)
    };
    let [x, y, root] = &computation.instructions[..] else { return Err(refuse()) };
    let ty = |instruction: &HloInstructionProto| instruction.shape.as_ref().and_then(|s| form::ty(s).ok());
    let (Some(ty_x), Some(ty_y), Some(ty_root)) = (ty(x), ty(y), ty(root)) else { return Err(refuse()) };
    let scalars = ty_x.rank() == 0 && ty_x == ty_y && ty_x == ty_root;
    if !scalars || x.opcode != "parameter" || y.opcode != "parameter" {
        return Err(refuse());
    }
    let fold = REDUCTIONS.into_iter().find(|op| op.name() == root.opcode);
    match fold {
        Some(op) if root.operand_ids == [x.id, y.id] => Ok(Region::Fold(op, ty_x.dtype)),
        None if root.opcode == "copy" && root.operand_ids == [y.id] => Ok(Region::Assign(ty_x.dtype)),
        _ => Err(refuse()),
    }
}

struct Reader<'a> {
    entry: &'a HloComputationProto,
    /// The id of the entry's first instruction.
    first: i64,
    regions: Vec<Region>,
    nodes: Vec<Node>,
    /// The node of each of the entry's instructions.
    places: Vec<NodeId>,
}

/// For an instruction that is part of its users: a constant, or a custom call.
const FOLDED: NodeId = NodeId(u32::MAX);

impl<'a> Reader<'a> {
    fn operand(&self, id: i64) -> usize {
        (id - self.first) as usize
    }

    fn graph(&mut self, module: &HloModuleProto) -> Result<Graph, HloError> {
        let Some((root, instructions)) = self.entry.instructions.split_last() else {
            return Err(refuse("entry computation", "it is empty"));
        };
        let folded = self.folded(instructions);
        let mut params = Vec::new();
        for (index, instruction) in instructions.iter().enumerate() {
            if folded[index] {
                self.places.push(FOLDED);
                continue;
            }
            let refuse = |why| refuse(format!("instruction {:?}", instruction.name), why);
            if instruction.opcode == "custom-call" {
                self.top_k(instruction).map_err(refuse)?;
                self.places.push(FOLDED);
                continue;
            }
            let ty = instruction.shape.as_ref().ok_or_else(|| "it has no shape".into()).and_then(form::ty);
            let ty = ty.map_err(refuse)?;
            let node = NodeId(self.nodes.len() as u32);
            if instruction.opcode == "parameter" {
                params.push(Param { name: name(instruction, INPUT_NAMES), kind: ParamKind::Input, node });
            }
            let (op, inputs) = self.op(instruction, &ty).map_err(refuse)?;
            self.nodes.push(Node { op, inputs, ty, location: Location::caller() });
            self.places.push(node);
        }
        let names = name(root, OUTPUT_NAMES);
        let names: Vec<&str> = names.split(',').collect();
        let results = &root.operand_ids;
        let shapes = root.shape.as_ref().map(|shape| match root.opcode.as_str() {
            "tuple" => shape.tuple_shapes.clone(),
            _ => vec![shape.clone()],
        });
        let shapes = shapes.unwrap_or_default();
        if names.len() != results.len() || shapes.len() != results.len() {
            return Err(refuse(format!("instruction {:?}", root.name), "names and results differ in number"));
        }
        let mut outputs = Vec::with_capacity(results.len());
        for ((name, id), shape) in names.iter().zip(results).zip(&shapes) {
            let at = self.operand(*id);
            if instructions[at].shape.as_ref() != Some(shape) || self.places[at] == FOLDED {
                let why = format!("its result {name:?} is not of its operand's shape");
                return Err(refuse(format!("instruction {:?}", root.name), why));
            }
            outputs.push(Output { name: (*name).to_owned(), node: self.places[at], alias: None });
        }
        let params_named = params.iter().map(|param| &param.name);
        for name in params_named.chain(outputs.iter().map(|output| &output.name)) {
            form::refuse_name(name).map_err(|why| refuse(format!("the name {name:?}"), why))?;
        }
        self.aliases(module, &mut params, &mut outputs, root.opcode == "tuple")?;
        Ok(Graph { name: module.name.clone(), nodes: std::mem::take(&mut self.nodes), params, outputs })
    }

    /// Which instructions are scalar constants that only broadcasts and reductions use.
    fn folded(&self, instructions: &[HloInstructionProto]) -> Vec<bool> {
        let (mut folds, mut others) = (vec![false; instructions.len()], vec![false; instructions.len()]);
        for instruction in &self.entry.instructions {
            for (i, id) in instruction.operand_ids.iter().enumerate() {
                let initial = instruction.opcode == "reduce" && i == 1;
                let splat = instruction.opcode == "broadcast" && instruction.dimensions.is_empty();
                let uses = if initial || splat { &mut folds } else { &mut others };
                uses[self.operand(*id)] = true;
            }
        }
        let constant = |i: &HloInstructionProto| {
            i.opcode == "constant" && i.shape.as_ref().is_some_and(|shape| shape.dimensions.is_empty())
        };
        instructions
            .iter()
            .enumerate()
            .map(|(at, instruction)| constant(instruction) && folds[at] && !others[at])
            .collect()
    }

    /// K of the custom call for the largest elements of rows, if it is that, and something uses it.
    fn top_k(&self, call: &HloInstructionProto) -> Result<usize, String> {
        let text = std::str::from_utf8(&call.backend_config).unwrap_or_default();
        let k = text.parse::<usize>().ok().filter(|k| k.to_string() == text && *k > 0);
        let ([operand], Some(k)) = (&call.operand_ids[..], k) else {
            return Err(format!("it has {} operands, and {text:?} for K", call.operand_ids.len()));
        };
        if call.custom_call_target != form::TOP_K {
            return Err(format!("a custom call of {:?}", call.custom_call_target));
        }
        let of = self.entry.instructions[self.operand(*operand)].shape.as_ref();
        let of = of.ok_or_else(|| "its operand has no shape".into()).and_then(form::ty)?;
        let mut shape = of.shape.clone();
        shape.iter_mut().rev().take(1).for_each(|last| *last = k);
        let results = [of.dtype, DType::U32].map(|dtype| Some(Type::new(dtype, shape.clone())));
        let stated = call.shape.iter().flat_map(|shape| &shape.tuple_shapes);
        if !stated.map(|shape| form::ty(shape).ok()).eq(results) {
            return Err(format!("its results are not the {k} largest of {of} and their indices"));
        }
        let uses = |other: &&HloInstructionProto| other.operand_ids.contains(&call.id);
        match self.entry.instructions.iter().find(uses) {
            Some(user) if user.opcode == "get-tuple-element" => Ok(k),
            Some(user) => Err(format!("{:?} uses both of its results", user.name)),
            None => Err("nothing uses it".into()),
        }
    }

    /// An instruction's operation and operands, without those that are folded into it. That the operands suit the
    /// operation is for the graph's verification.
    fn op(&self, instruction: &HloInstructionProto, ty: &Type) -> Result<(Op, Vec<NodeId>), String> {
        let mut ids = &instruction.operand_ids[..];
        let source = |id: i64| &self.entry.instructions[self.operand(id)];
        let op = match instruction.opcode.as_str() {
            "parameter" => Op::Parameter(ParamId(instruction.parameter_number as u32)),
            "constant" => Op::Constant(literal(instruction.literal.as_deref(), ty)?),
            "iota" => Op::Iota { dim: one(&instruction.dimensions)? },
            "concatenate" => Op::Concatenate { dim: one(&instruction.dimensions)? },
            "broadcast" => match ids {
                [scalar] if self.places.get(self.operand(*scalar)) == Some(&FOLDED) => {
                    let scalar = source(*scalar);
                    ids = &[];
                    Op::Constant(literal(scalar.literal.as_deref(), &Type::scalar(ty.dtype))?)
                }
                _ => Op::Broadcast { dims: dims(&instruction.dimensions)? },
            },
            "reshape" => Op::Reshape,
            "transpose" => Op::Transpose { perm: dims(&instruction.dimensions)? },
            "slice" => slice(&instruction.slice_dimensions)?,
            "convert" => Op::Convert,
            "select" => Op::Select,
            "compare" => {
                let direction = &instruction.comparison_direction;
                let found = DIRECTIONS.into_iter().find(|ours| ours.name() == direction);
                Op::Compare(found.ok_or_else(|| format!("comparison direction {direction:?}"))?)
            }
            "reduce" => {
                let Region::Fold(op, dtype) = self.called(instruction, ty)? else {
                    return Err("it does not call a fold".into());
                };
                let [value, initial] = ids else { return Err(format!("{} operands", ids.len())) };
                let scalar = Type::scalar(dtype);
                let start = source(*initial).literal.as_deref();
                if start != Some(&write::literal_proto(&form::initial(op, dtype), &scalar)) {
                    return Err(format!("it does not start from the constant {}", form::initial(op, dtype)));
                }
                ids = std::slice::from_ref(value);
                Op::Reduce { op, dims: dims(&instruction.dimensions)? }
            }
            "all-reduce" => {
                let Region::Fold(op, _) = self.called(instruction, ty)? else {
                    return Err("it does not call a fold".into());
                };
                let groups = instruction.replica_groups.iter();
                let rank = |id: &i64| u32::try_from(*id).map_err(|_| format!("rank {id}"));
                let groups = groups.map(|group| group.replica_ids.iter().map(rank).collect());
                Op::AllReduce { op, groups: groups.collect::<Result<_, _>>()? }
            }
            "dot" => {
                let numbers = instruction.dot_dimension_numbers.as_ref().ok_or("no dimension numbers")?;
                Op::Dot(DotDims {
                    lhs_batch: dims(&numbers.lhs_batch_dimensions)?,
                    rhs_batch: dims(&numbers.rhs_batch_dimensions)?,
                    lhs_contracting: dims(&numbers.lhs_contracting_dimensions)?,
                    rhs_contracting: dims(&numbers.rhs_contracting_dimensions)?,
                })
            }
            "gather" => {
                let numbers = instruction.gather_dimension_numbers.as_ref().ok_or("no dimension numbers")?;
                Op::Gather(GatherDims {
                    offset_dims: dims(&numbers.offset_dims)?,
                    collapsed_slice_dims: dims(&numbers.collapsed_slice_dims)?,
                    start_index_map: dims(&numbers.start_index_map)?,
                    index_vector_dim: number(numbers.index_vector_dim)?,
                    slice_sizes: dims(&instruction.gather_slice_sizes)?,
                })
            }
            "scatter" => {
                if self.called(instruction, ty)? != Region::Assign(ty.dtype) || !instruction.unique_indices {
                    return Err("it does not assign at unique indices".into());
                }
                let numbers = instruction.scatter_dimension_numbers.as_ref().ok_or("no dimension numbers")?;
                Op::Scatter(ScatterDims {
                    update_window_dims: dims(&numbers.update_window_dims)?,
                    inserted_window_dims: dims(&numbers.inserted_window_dims)?,
                    scatter_dims_to_operand_dims: dims(&numbers.scatter_dims_to_operand_dims)?,
                    index_vector_dim: number(numbers.index_vector_dim)?,
                })
            }
            "get-tuple-element" => {
                let [call] = ids else { return Err(format!("{} operands", ids.len())) };
                let (call, index) = (source(*call), instruction.tuple_index);
                if call.opcode != "custom-call" || !(0..2).contains(&index) {
                    return Err(format!("result {index} of a {}", call.opcode));
                }
                ids = &call.operand_ids;
                Op::TopK { k: self.top_k(call)?, indices: index == 1 }
            }
            opcode => {
                let unary = UNARY.into_iter().find(|op| op.name() == opcode).map(Op::Unary);
                let binary = BINARY.into_iter().find(|op| op.name() == opcode).map(Op::Binary);
                unary.or(binary).ok_or_else(|| format!("opcode {opcode:?} does not belong there"))?
            }
        };
        let inputs: Vec<NodeId> = ids.iter().map(|id| self.places[self.operand(*id)]).collect();
        match inputs.contains(&FOLDED) {
            true => Err("a scalar is given for another operand".into()),
            false => Ok((op, inputs)),
        }
    }

    /// The one computation that an instruction calls, for elements of its result.
    fn called(&self, instruction: &HloInstructionProto, ty: &Type) -> Result<Region, String> {
        let [id] = instruction.called_computation_ids[..] else {
            return Err(format!("it calls {} computations", instruction.called_computation_ids.len()));
        };
        match self.regions.get(id as usize) {
            Some(region) if region.dtype() == ty.dtype => Ok(*region),
            Some(region) => Err(format!("it calls {} for elements of {}", region.name(), ty.dtype)),
            None => Err(format!("it calls computation {id}")),
        }
    }

    fn aliases(
        &self,
        module: &HloModuleProto,
        params: &mut [Param],
        outputs: &mut [Output],
        tuple: bool,
    ) -> Result<(), HloError> {
        for entry in module.input_output_alias.iter().flat_map(|aliases| &aliases.entries) {
            let output = match entry.output_shape_index[..] {
                [index] if tuple => usize::try_from(index).ok(),
                [] if !tuple => Some(0),
                _ => None,
            };
            let output = output.and_then(|index| outputs.get_mut(index));
            let number = u32::try_from(entry.parameter_number).unwrap_or(u32::MAX);
            let (Some(output), Some(param)) = (output, params.get_mut(number as usize)) else {
                return Err(refuse("input_output_alias", format!("{entry:?} names no result or parameter")));
            };
            let whole = entry.parameter_shape_index.is_empty() && (0..=2).contains(&entry.kind);
            if !whole || output.alias.is_some() || param.kind == ParamKind::State {
                return Err(refuse(
                    "input_output_alias",
                    format!("{entry:?} is ill-formed or not the first"),
                ));
            }
            output.alias = Some(ParamId(number));
            param.kind = ParamKind::State;
        }
        Ok(())
    }
}

fn name(instruction: &HloInstructionProto, key: &str) -> String {
    let attributes = instruction.frontend_attributes.as_ref();
    attributes.and_then(|attributes| attributes.map.get(key)).cloned().unwrap_or_default()
}

/// A number of elements or of a dimension.
fn number(number: i64) -> Result<usize, String> {
    i32::try_from(number)
        .ok()
        .and_then(|number| usize::try_from(number).ok())
        .ok_or(format!("number {number}"))
}

/// One number a dimension.
fn dims(numbers: &[i64]) -> Result<Vec<usize>, String> {
    match numbers.len() <= MAX_RANK {
        true => numbers.iter().map(|dim| number(*dim)).collect(),
        false => Err(format!("{} numbers of dimensions", numbers.len())),
    }
}

fn one(numbers: &[i64]) -> Result<usize, String> {
    match numbers {
        [dim] => number(*dim),
        _ => Err(format!("{} numbers where one dimension belongs", numbers.len())),
    }
}

fn slice(ranges: &[SliceDimensions]) -> Result<Op, String> {
    let list = |field: fn(&SliceDimensions) -> i64| dims(&ranges.iter().map(field).collect::<Vec<_>>());
    Ok(Op::Slice {
        starts: list(|range| range.start)?,
        limits: list(|range| range.limit)?,
        strides: list(|range| range.stride)?,
    })
}

/// The elements of a literal of that type, which are in the type's field and in no other.
fn literal(proto: Option<&LiteralProto>, ty: &Type) -> Result<Literal, String> {
    let Some(proto) = proto else { return Err("it has no literal".into()) };
    let pairs = |bytes: &[u8]| -> Vec<[u8; 2]> { bytes.chunks_exact(2).map(|b| [b[0], b[1]]).collect() };
    let literal = match ty.dtype {
        DType::F32 => Literal::Float(proto.f32s.as_slice().into()),
        DType::F16 => Literal::Float(
            pairs(&proto.f16s).into_iter().map(|b| half::f16::from_le_bytes(b).into()).collect(),
        ),
        DType::BF16 => Literal::Float(
            pairs(&proto.bf16s).into_iter().map(|b| half::bf16::from_le_bytes(b).into()).collect(),
        ),
        DType::Pred => Literal::Int(proto.preds.iter().map(|x| i64::from(*x)).collect()),
        DType::U8 => Literal::Int(proto.u8s.iter().map(|x| i64::from(*x)).collect()),
        DType::I8 => Literal::Int(proto.s8s.iter().map(|x| i64::from(*x as i8)).collect()),
        DType::U32 => Literal::Int(proto.u32s.iter().map(|x| i64::from(*x)).collect()),
        _ => Literal::Int(proto.s32s.iter().map(|x| i64::from(*x)).collect()),
    };
    let whole = literal.len() == ty.elements();
    match whole && *proto == write::literal_proto(&literal, ty) {
        true => Ok(literal),
        false => Err(format!("its literal is not {ty}, or holds what is no number")),
    }
}
