//! Refuses modules in any other form than the writer's. It knows the form from its own tables, not from the writer:
//! what the writer emits is tested against it.

use std::collections::HashSet;

use super::form::{self, ENTRY, INPUT_NAMES, OUTPUT_NAMES};
use super::proto::{HloComputationProto, HloInstructionProto, HloModuleProto, ProgramShapeProto, ShapeProto};
use super::{HloError, read};

/// Checks that a module has the form that the device compiler is known to take, and that it computes something: the
/// form itself, then the types of all instructions, then what the device refuses (indices out of bounds whatever the
/// inputs, products of integers).
///
/// # Errors
/// The first thing found wrong.
pub fn lint(module: &HloModuleProto) -> Result<(), HloError> {
    read::graph(module).map(drop)
}

/// The opcodes in use, each with the fields of an instruction that it may set besides those that all have.
const OPCODES: [(&str, &[&str]); 40] = [
    ("parameter", &["parameter_number"]),
    ("constant", &["literal"]),
    ("broadcast", &["dimensions"]),
    ("reshape", &[]),
    ("transpose", &["dimensions"]),
    ("slice", &["slice_dimensions"]),
    ("concatenate", &["dimensions"]),
    ("iota", &["dimensions"]),
    ("select", &[]),
    ("compare", &["comparison_direction"]),
    ("convert", &[]),
    ("copy", &[]),
    ("add", &[]),
    ("subtract", &[]),
    ("multiply", &[]),
    ("divide", &[]),
    ("power", &[]),
    ("maximum", &[]),
    ("minimum", &[]),
    ("and", &[]),
    ("or", &[]),
    ("negate", &[]),
    ("abs", &[]),
    ("exponential", &[]),
    ("log", &[]),
    ("sqrt", &[]),
    ("rsqrt", &[]),
    ("logistic", &[]),
    ("tanh", &[]),
    ("sine", &[]),
    ("cosine", &[]),
    ("floor", &[]),
    ("reduce", &["dimensions", "called_computation_ids"]),
    ("dot", &["dot_dimension_numbers"]),
    ("gather", &["gather_dimension_numbers", "gather_slice_sizes"]),
    ("scatter", &["scatter_dimension_numbers", "called_computation_ids", "unique_indices"]),
    ("tuple", &[]),
    ("custom-call", &["custom_call_target", "backend_config"]),
    ("get-tuple-element", &["tuple_index"]),
    ("all-reduce", &["replica_groups", "called_computation_ids"]),
];

pub(super) fn refuse(place: impl Into<String>, why: impl Into<String>) -> HloError {
    HloError::Form { place: place.into(), why: why.into() }
}

/// The form alone: ids, names, shapes, the fields in use, program shapes, the root.
pub(super) fn form(module: &HloModuleProto) -> Result<(), HloError> {
    let Some((entry, called)) = module.computations.split_last() else {
        return Err(refuse("computations", "there is none"));
    };
    let last = module.computations.len() as i64 - 1;
    let entry_is_last =
        module.entry_computation_id == last && module.entry_computation_name == ENTRY && entry.name == ENTRY;
    if !entry_is_last {
        return Err(refuse("entry computation", format!("it is not the last, named {ENTRY:?}")));
    }
    if module.host_program_shape != entry.program_shape {
        return Err(refuse("host_program_shape", "it is not the entry computation's"));
    }
    let (mut next, mut names) = (0, HashSet::new());
    for (index, computation) in module.computations.iter().enumerate() {
        if computation.id != index as i64 {
            let why = format!("its id is {}: ids count computations from 0", computation.id);
            return Err(refuse(format!("computation {:?}", computation.name), why));
        }
        next = check_computation(computation, next, &mut names)?;
    }
    for computation in called {
        for instruction in &computation.instructions {
            if let Some(attributes) = &instruction.frontend_attributes {
                let why = format!("attributes {:?} outside the entry computation", attributes.map.keys());
                return Err(refuse(&instruction.name, why));
            }
        }
    }
    check_entry(entry)
}

/// Checks one computation whose first instruction has the id `first`; returns the next computation's.
fn check_computation<'a>(
    computation: &'a HloComputationProto,
    first: i64,
    names: &mut HashSet<&'a str>,
) -> Result<i64, HloError> {
    let place = || format!("computation {:?}", computation.name);
    if computation.name.is_empty() || !names.insert(&computation.name) {
        return Err(refuse(place(), "its name is empty or another's"));
    }
    let count = computation.instructions.len() as i64;
    if count == 0 || computation.root_id != first + count - 1 {
        return Err(refuse(place(), "its root is not its last instruction"));
    }
    let mut parameters: Vec<&ShapeProto> = Vec::new();
    let mut result = None;
    for (index, instruction) in computation.instructions.iter().enumerate() {
        let refuse = |why: String| refuse(format!("instruction {:?}", instruction.name), why);
        let id = first + index as i64;
        if instruction.name.is_empty() || !names.insert(&instruction.name) {
            return Err(refuse("its name is empty or another's".into()));
        }
        if instruction.id != id || id > i64::from(i32::MAX) {
            return Err(refuse(format!("its id is {}, and {id} is next in 32 bits", instruction.id)));
        }
        if let Some(operand) = instruction.operand_ids.iter().find(|operand| !(first..id).contains(operand)) {
            return Err(refuse(format!("operand {operand} is not before it in its computation")));
        }
        let unknown = instruction.called_computation_ids.iter().find(|id| !(0..computation.id).contains(id));
        if let Some(called) = unknown {
            return Err(refuse(format!("computation {called}, which it calls, is not before its own")));
        }
        check_fields(instruction).map_err(refuse)?;
        let Some(shape) = &instruction.shape else { return Err(refuse("it has no shape".into())) };
        match instruction.opcode.as_str() {
            "tuple" | "custom-call" => check_tuple(shape).map_err(refuse)?,
            _ => drop(form::ty(shape).map_err(refuse)?),
        }
        if instruction.opcode == "parameter" {
            let number = index as i64;
            if parameters.len() != index || instruction.parameter_number != number {
                return Err(refuse("parameters are not first and in order".into()));
            }
            parameters.push(shape);
        }
        result = Some(shape);
    }
    let Some(ProgramShapeProto { parameters: stated, result: stated_result, parameter_names }) =
        &computation.program_shape
    else {
        return Err(refuse(place(), "it has no program_shape"));
    };
    let agrees = stated.iter().eq(parameters.iter().copied()) && stated_result.as_ref() == result;
    if !agrees || parameter_names.len() != parameters.len() {
        return Err(refuse(place(), "its program_shape is not that of its parameters and its root"));
    }
    Ok(first + count)
}

fn check_tuple(shape: &ShapeProto) -> Result<(), String> {
    let ShapeProto { element_type, dimensions, tuple_shapes, layout, is_dynamic_dimension } = shape;
    let bare = *element_type == form::TUPLE
        && dimensions.is_empty()
        && layout.is_none()
        && is_dynamic_dimension.is_empty();
    if !bare || tuple_shapes.len() < 2 {
        return Err("its shape is no tuple of several results".into());
    }
    tuple_shapes.iter().try_for_each(|shape| form::ty(shape).map(drop))
}

/// Whether the opcode is one of ours and sets no field of another's.
fn check_fields(instruction: &HloInstructionProto) -> Result<(), String> {
    let opcode = &instruction.opcode;
    let Some((_, own)) = OPCODES.iter().find(|(name, _)| name == opcode) else {
        return Err(format!("opcode {opcode:?} is none of those known to compile"));
    };
    let set = [
        ("literal", instruction.literal.is_some()),
        ("parameter_number", instruction.parameter_number != 0),
        ("dimensions", !instruction.dimensions.is_empty()),
        ("slice_dimensions", !instruction.slice_dimensions.is_empty()),
        ("dot_dimension_numbers", instruction.dot_dimension_numbers.is_some()),
        ("gather_dimension_numbers", instruction.gather_dimension_numbers.is_some()),
        ("gather_slice_sizes", !instruction.gather_slice_sizes.is_empty()),
        ("called_computation_ids", !instruction.called_computation_ids.is_empty()),
        ("scatter_dimension_numbers", instruction.scatter_dimension_numbers.is_some()),
        ("replica_groups", !instruction.replica_groups.is_empty()),
        ("comparison_direction", !instruction.comparison_direction.is_empty()),
        ("unique_indices", instruction.unique_indices),
        ("custom_call_target", !instruction.custom_call_target.is_empty()),
        ("backend_config", !instruction.backend_config.is_empty()),
        ("tuple_index", instruction.tuple_index != 0),
    ];
    match set.iter().find(|(field, set)| *set && !own.contains(field)) {
        Some((field, _)) => Err(format!("{opcode} does not use the field {field}")),
        None => Ok(()),
    }
}

/// Names on every parameter and on the root alone, and no tuple within.
fn check_entry(entry: &HloComputationProto) -> Result<(), HloError> {
    for instruction in &entry.instructions {
        let is_root = instruction.id == entry.root_id;
        let refuse = |why: String| refuse(format!("instruction {:?}", instruction.name), why);
        let opcode = instruction.opcode.as_str();
        if matches!(opcode, "tuple" | "copy") != is_root {
            return Err(refuse("the root alone is a tuple of results, or a copy of the only one".into()));
        }
        let wanted = match opcode {
            "parameter" => Some(INPUT_NAMES),
            _ => is_root.then_some(OUTPUT_NAMES),
        };
        let attributes = instruction.frontend_attributes.as_ref();
        let given: Vec<&String> = attributes.iter().flat_map(|attributes| attributes.map.keys()).collect();
        if given != wanted.iter().collect::<Vec<_>>() || attributes.is_some() != wanted.is_some() {
            return Err(refuse(format!("its attributes are {given:?} and not {wanted:?}")));
        }
    }
    Ok(())
}
