//! Emits a graph as an `HloModuleProto`.

use std::collections::BTreeMap;

use prost::Message;

use super::form::{self, ENTRY, INPUT_NAMES, OUTPUT_NAMES, Region};
use super::proto::{
    AliasEntryProto, DotDimensionNumbers, FrontendAttributes, GatherDimensionNumbers, HloComputationProto,
    HloInputOutputAliasProto, HloInstructionProto, HloModuleProto, LiteralProto, ProgramShapeProto,
    ReplicaGroup, ScatterDimensionNumbers, ShapeProto, SliceDimensions,
};
use super::{AliasKind, HloError};
use crate::{DType, Graph, Literal, Node, Op, Type, define};

/// What a caller chooses about the HLO of a graph.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HloOptions {
    /// How outputs that replace a state are aliased.
    pub alias: AliasKind,
}

/// The serialized [`module()`].
///
/// # Errors
/// As [`module()`].
pub fn write(graph: &Graph, options: &HloOptions) -> Result<Vec<u8>, HloError> {
    Ok(module(graph, options)?.encode_to_vec())
}

/// The module of a graph, whose fused ops are inlined. Parameters keep their order and are declared whether they are
/// used or not (a compiler may still drop those that are not: a runner binds by name). A constant of one value
/// becomes a scalar and a broadcast; a single result is the root through a `copy`, several are a `tuple`.
///
/// # Errors
/// Where the graph is ill-formed, a weight is in a block format, or something in the graph has no form on the device:
/// an empty tensor, no output, a name that attributes cannot hold, an infinite constant, an index that is out of
/// bounds whatever the inputs, a dot product or all-reduce of integers.
pub fn module(graph: &Graph, options: &HloOptions) -> Result<HloModuleProto, HloError> {
    for param in &graph.params {
        let dtype = graph.ty(param.node).dtype;
        if dtype.is_quantised() {
            return Err(HloError::Quantised { name: param.name.clone(), dtype });
        }
    }
    let names = graph.params.iter().map(|param| &param.name);
    for name in names.chain(graph.outputs.iter().map(|output| &output.name)) {
        form::refuse_name(name).map_err(|why| unsupported(&format!("the name {name:?}"), &why))?;
    }
    if graph.outputs.is_empty() {
        return Err(unsupported(&graph.name, "it has no output"));
    }
    let graph = define::inline(graph)?;
    form::refuse_graph(&graph).map_err(|(id, why)| {
        let node = graph.node(id);
        unsupported(&format!("%{} {}, built at {}", id.0, node.op.name(), node.location), &why)
    })?;
    Writer::default().module(&graph, options)
}

fn unsupported(node: &str, why: &str) -> HloError {
    HloError::Unsupported { node: node.into(), why: why.into() }
}

/// Hands out ids: one count of instructions over all computations.
#[derive(Default)]
struct Writer {
    instructions: i64,
    computations: Vec<HloComputationProto>,
    regions: Vec<Region>,
    /// Operand, K and id of each custom call.
    calls: Vec<(i64, usize, i64)>,
}

impl Writer {
    fn module(mut self, graph: &Graph, options: &HloOptions) -> Result<HloModuleProto, HloError> {
        for region in graph.nodes.iter().filter_map(Region::of) {
            if !self.regions.contains(&region) {
                self.region(region);
                self.regions.push(region);
            }
        }
        self.entry(graph);
        if self.instructions > i64::from(i32::MAX) {
            return Err(unsupported(&graph.name, "its instructions' ids do not fit 32 bits"));
        }
        let tuple = graph.outputs.len() > 1;
        let outputs = graph.outputs.iter().enumerate();
        let entries: Vec<AliasEntryProto> = outputs
            .filter_map(|(i, output)| {
                Some(AliasEntryProto {
                    output_shape_index: if tuple { vec![i as i64] } else { Vec::new() },
                    parameter_number: i64::from(output.alias?.0),
                    parameter_shape_index: Vec::new(),
                    kind: options.alias.number(),
                })
            })
            .collect();
        Ok(HloModuleProto {
            name: graph.name.clone(),
            entry_computation_name: ENTRY.into(),
            host_program_shape: self.computations.last().and_then(|entry| entry.program_shape.clone()),
            entry_computation_id: self.computations.len() as i64 - 1,
            input_output_alias: (!entries.is_empty()).then_some(HloInputOutputAliasProto { entries }),
            computations: self.computations,
        })
    }

    /// An instruction with the next id.
    fn instruction(&mut self, opcode: &str, shape: ShapeProto, operand_ids: Vec<i64>) -> HloInstructionProto {
        let id = self.instructions;
        self.instructions += 1;
        HloInstructionProto {
            name: format!("{opcode}.{id}"),
            opcode: opcode.into(),
            shape: Some(shape),
            id,
            operand_ids,
            ..HloInstructionProto::default()
        }
    }

    /// Appends a computation, whose root is its last instruction.
    fn computation(
        &mut self,
        name: String,
        instructions: Vec<HloInstructionProto>,
        parameter_names: Vec<String>,
    ) {
        let parameters = instructions.iter().filter(|instruction| instruction.opcode == "parameter");
        let program_shape = ProgramShapeProto {
            parameters: parameters.filter_map(|parameter| parameter.shape.clone()).collect(),
            result: instructions.last().and_then(|root| root.shape.clone()),
            parameter_names,
        };
        self.computations.push(HloComputationProto {
            name,
            root_id: self.instructions - 1,
            instructions,
            program_shape: Some(program_shape),
            id: self.computations.len() as i64,
        });
    }

    fn region(&mut self, region: Region) {
        let scalar = || type_shape(&Type::scalar(region.dtype()));
        let x = self.instruction("parameter", scalar(), Vec::new());
        let mut y = self.instruction("parameter", scalar(), Vec::new());
        y.parameter_number = 1;
        let root = match region {
            Region::Fold(op, _) => self.instruction(op.name(), scalar(), vec![x.id, y.id]),
            Region::Assign(_) => self.instruction("copy", scalar(), vec![y.id]),
        };
        self.computation(region.name(), vec![x, y, root], vec!["x".into(), "y".into()]);
    }

    fn entry(&mut self, graph: &Graph) {
        let mut instructions = Vec::with_capacity(graph.nodes.len() + 1);
        let mut ids = vec![0i64; graph.nodes.len()];
        for (number, param) in graph.params.iter().enumerate() {
            let mut instruction = self.instruction("parameter", type_shape(graph.ty(param.node)), Vec::new());
            instruction.parameter_number = number as i64;
            instruction.frontend_attributes = attribute(INPUT_NAMES, &param.name);
            ids[param.node.index()] = instruction.id;
            instructions.push(instruction);
        }
        for (index, node) in graph.nodes.iter().enumerate() {
            if matches!(node.op, Op::Parameter(_)) {
                continue;
            }
            let operands = node.inputs.iter().map(|id| ids[id.index()]).collect();
            ids[index] = self.node(node, operands, &mut instructions);
        }
        let results: Vec<i64> = graph.outputs.iter().map(|output| ids[output.node.index()]).collect();
        let mut shapes = graph.outputs.iter().map(|output| type_shape(graph.ty(output.node)));
        let mut root = match (results.len(), shapes.next()) {
            (1, Some(shape)) => self.instruction("copy", shape, results),
            (_, first) => {
                let tuple_shapes = first.into_iter().chain(shapes).collect();
                let shape = ShapeProto { element_type: form::TUPLE, tuple_shapes, ..ShapeProto::default() };
                self.instruction("tuple", shape, results)
            }
        };
        let names: Vec<&str> = graph.outputs.iter().map(|output| output.name.as_str()).collect();
        root.frontend_attributes = attribute(OUTPUT_NAMES, &names.join(","));
        instructions.push(root);
        let names = graph.params.iter().map(|param| param.name.clone()).collect();
        self.computation(ENTRY.into(), instructions, names);
    }

    /// Appends a node that is no parameter; returns the id of its result.
    fn node(&mut self, node: &Node, operands: Vec<i64>, instructions: &mut Vec<HloInstructionProto>) -> i64 {
        if let Op::Constant(literal) = &node.op {
            return self.constant(literal, &node.ty, instructions);
        }
        if let Op::TopK { k, indices } = node.op {
            return self.top_k(k, indices, &node.ty, operands[0], instructions);
        }
        let mut operands = operands;
        if let Op::Reduce { op, .. } = &node.op {
            let dtype = node.ty.dtype;
            let initial = form::initial(*op, dtype);
            operands.push(self.constant(&initial, &Type::scalar(dtype), instructions));
        }
        let mut to = self.instruction(node.op.name(), type_shape(&node.ty), operands);
        if let Some(region) = Region::of(node) {
            let called = self.regions.iter().position(|written| *written == region);
            to.called_computation_ids = called.map(|id| id as i64).into_iter().collect();
        }
        match &node.op {
            Op::Iota { dim } | Op::Concatenate { dim } => to.dimensions = vec![*dim as i64],
            Op::Broadcast { dims } | Op::Transpose { perm: dims } | Op::Reduce { dims, .. } => {
                to.dimensions = signed(dims);
            }
            Op::Slice { starts, limits, strides } => {
                let ranges = starts.iter().zip(limits).zip(strides);
                to.slice_dimensions = ranges
                    .map(|((start, limit), stride)| SliceDimensions {
                        start: *start as i64,
                        limit: *limit as i64,
                        stride: *stride as i64,
                    })
                    .collect();
            }
            Op::Compare(direction) => to.comparison_direction = direction.name().into(),
            Op::Dot(dims) => {
                to.dot_dimension_numbers = Some(DotDimensionNumbers {
                    lhs_contracting_dimensions: signed(&dims.lhs_contracting),
                    rhs_contracting_dimensions: signed(&dims.rhs_contracting),
                    lhs_batch_dimensions: signed(&dims.lhs_batch),
                    rhs_batch_dimensions: signed(&dims.rhs_batch),
                });
            }
            Op::Gather(dims) => {
                to.gather_dimension_numbers = Some(GatherDimensionNumbers {
                    offset_dims: signed(&dims.offset_dims),
                    collapsed_slice_dims: signed(&dims.collapsed_slice_dims),
                    start_index_map: signed(&dims.start_index_map),
                    index_vector_dim: dims.index_vector_dim as i64,
                });
                to.gather_slice_sizes = signed(&dims.slice_sizes);
            }
            Op::Scatter(dims) => {
                to.scatter_dimension_numbers = Some(ScatterDimensionNumbers {
                    update_window_dims: signed(&dims.update_window_dims),
                    inserted_window_dims: signed(&dims.inserted_window_dims),
                    scatter_dims_to_operand_dims: signed(&dims.scatter_dims_to_operand_dims),
                    index_vector_dim: dims.index_vector_dim as i64,
                });
                to.unique_indices = true;
            }
            Op::AllReduce { groups, .. } => {
                let ids = |group: &Vec<u32>| group.iter().map(|rank| i64::from(*rank)).collect();
                to.replica_groups =
                    groups.iter().map(|group| ReplicaGroup { replica_ids: ids(group) }).collect();
            }
            Op::Parameter(_)
            | Op::Constant(_)
            | Op::Reshape
            | Op::Convert
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Select
            | Op::TopK { .. }
            | Op::Fused(_) => {}
        }
        let id = to.id;
        instructions.push(to);
        id
    }

    /// One of the results of a custom call, which is written before the first that is asked for.
    fn top_k(
        &mut self,
        k: usize,
        indices: bool,
        ty: &Type,
        operand: i64,
        instructions: &mut Vec<HloInstructionProto>,
    ) -> i64 {
        let written = self.calls.iter().find(|(of, count, _)| (*of, *count) == (operand, k));
        let call = match written {
            Some((.., id)) => *id,
            None => {
                let shape = instructions.iter().find(|instruction| instruction.id == operand);
                let dtype = shape.and_then(|of| of.shape.as_ref()).and_then(|shape| form::ty(shape).ok());
                let dtype = dtype.map_or(DType::F32, |ty| ty.dtype);
                let results =
                    [dtype, DType::U32].map(|dtype| type_shape(&Type::new(dtype, ty.shape.clone())));
                let shape = ShapeProto {
                    element_type: form::TUPLE,
                    tuple_shapes: results.into(),
                    ..ShapeProto::default()
                };
                let mut call = self.instruction("custom-call", shape, vec![operand]);
                call.custom_call_target = form::TOP_K.into();
                call.backend_config = k.to_string().into_bytes();
                let id = call.id;
                instructions.push(call);
                self.calls.push((operand, k, id));
                id
            }
        };
        let mut result = self.instruction("get-tuple-element", type_shape(ty), vec![call]);
        result.tuple_index = i64::from(indices);
        let id = result.id;
        instructions.push(result);
        id
    }

    fn constant(&mut self, literal: &Literal, ty: &Type, instructions: &mut Vec<HloInstructionProto>) -> i64 {
        let splat = literal.len() == 1 && ty.rank() > 0;
        let stored = if splat { Type::scalar(ty.dtype) } else { ty.clone() };
        let mut instruction = self.instruction("constant", type_shape(&stored), Vec::new());
        instruction.literal = Some(Box::new(literal_proto(literal, &stored)));
        let mut id = instruction.id;
        instructions.push(instruction);
        if splat {
            let broadcast = self.instruction("broadcast", type_shape(ty), vec![id]);
            id = broadcast.id;
            instructions.push(broadcast);
        }
        id
    }
}

fn attribute(key: &str, value: &str) -> Option<FrontendAttributes> {
    Some(FrontendAttributes { map: BTreeMap::from([(key.to_owned(), value.to_owned())]) })
}

fn signed(dims: &[usize]) -> Vec<i64> {
    dims.iter().map(|dim| *dim as i64).collect()
}

/// The shape of a type that [`form::refuse_type`] accepts.
pub(super) fn type_shape(ty: &Type) -> ShapeProto {
    let element_type = form::element_type(ty.dtype).expect("the graph's types have been checked");
    form::shape(element_type, &ty.shape)
}

/// A literal in XLA's form; one element, or as many as the type has.
pub(super) fn literal_proto(literal: &Literal, ty: &Type) -> LiteralProto {
    let mut proto = LiteralProto { shape: Some(type_shape(ty)), ..LiteralProto::default() };
    match (literal, ty.dtype) {
        (Literal::Float(values), DType::F16) => {
            proto.f16s = values.iter().flat_map(|x| half::f16::from_f32(*x).to_le_bytes()).collect();
        }
        (Literal::Float(values), DType::BF16) => {
            proto.bf16s = values.iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect();
        }
        (Literal::Float(values), _) => proto.f32s = values.to_vec(),
        (Literal::Int(values), DType::Pred) => proto.preds = values.iter().map(|x| *x != 0).collect(),
        (Literal::Int(values), DType::U8) => proto.u8s = values.iter().map(|x| *x as u8).collect(),
        (Literal::Int(values), DType::I8) => proto.s8s = values.iter().map(|x| *x as i8 as u8).collect(),
        (Literal::Int(values), DType::U32) => proto.u32s = values.iter().map(|x| *x as u32).collect(),
        (Literal::Int(values), _) => proto.s32s = values.iter().map(|x| *x as i32).collect(),
    }
    proto
}
