//! The file that `softcc` makes: a NEFF's header, then an archive of the module and a table of its tensors.
//!
//! What the vendor's compiler puts into the archive is not public, and is not imitated.

use std::io::{self, Read, Write};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use millrace_graph::hlo::{self, HloError};
use millrace_graph::{Graph, Op};
use millrace_kernels::eval::Program;
use neuron_sys::neff::{HashCheck, Header, NeffError};
use neuron_sys::sys::NRT_STATUS;
use serde::{Deserialize, Serialize};

use crate::world::Refusal;

/// What this version of the format is called in the table.
const FORMAT: &str = "softcc 1";
const TABLE: &str = "softcc.json";
const MODULE: &str = "sg00/hlo.pb";

/// Bytes that the archive's members may have: more than any module that can be read.
const MAX_MEMBER: u64 = 64 << 20;

/// Bytes of a tensor's name in the runtime's description of it, without the NUL.
pub(crate) const MAX_NAME: usize = 255;

/// What the compiler adds to the name of an input whose memory an output takes over.
const ALIAS_SUFFIX: &str = ".must_alias_input";

/// How a program was asked to be compiled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Build {
    /// The device: `inf2`, `trn1`, `trn1n` or `trn2`.
    pub target: String,
    /// Physical cores of a logical one.
    pub lnc: u32,
    /// Whether aliased inputs keep their name, instead of getting the ending `.must_alias_input`.
    pub plain_aliases: bool,
    /// Whether the archive is left uncompressed.
    pub uncompressed: bool,
}

/// Why a module cannot be packed.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// It is not a module in the form that the device's compiler takes.
    #[error(transparent)]
    Hlo(#[from] HloError),
    /// Its name is too long, or the like.
    #[error(transparent)]
    Header(#[from] NeffError),
    /// The archive could not be written.
    #[error("archive: {0}")]
    Archive(#[from] io::Error),
}

#[derive(Serialize, Deserialize, PartialEq, Debug)]
struct Table {
    format: String,
    build: Build,
    tensors: Vec<Tensor>,
}

/// An input or output of a program, as a NEFF names it.
#[derive(Clone, Serialize, Deserialize, PartialEq, Debug)]
pub(crate) struct Tensor {
    pub(crate) name: String,
    pub(crate) output: bool,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: usize,
    /// For an input whose memory an output takes over: that output's index among the outputs.
    pub(crate) alias: Option<usize>,
}

/// A file that has been read and checked.
#[derive(Debug)]
pub(crate) struct Neff {
    pub(crate) program: Program,
    /// In the order of the program's parameters.
    pub(crate) inputs: Vec<Tensor>,
    /// In the order of the program's outputs.
    pub(crate) outputs: Vec<Tensor>,
    pub(crate) collectives: bool,
    /// Of the archive: equal programs have equal ones.
    pub(crate) hash: [u8; 32],
}

/// The tensors of a graph: its parameters, then its outputs.
fn tensors(graph: &Graph, plain_aliases: bool) -> Vec<Tensor> {
    let inputs = graph.params.iter().map(|param| {
        let ty = graph.ty(param.node);
        let alias = graph
            .outputs
            .iter()
            .position(|output| output.alias.is_some_and(|state| std::ptr::eq(graph.param(state), param)));
        let name = match alias {
            Some(_) if !plain_aliases => format!("{}{ALIAS_SUFFIX}", param.name),
            _ => param.name.clone(),
        };
        Tensor { name, output: false, shape: ty.shape.clone(), bytes: ty.bytes().unwrap_or(0), alias }
    });
    let outputs = graph.outputs.iter().map(|output| {
        let ty = graph.ty(output.node);
        let (shape, bytes) = (ty.shape.clone(), ty.bytes().unwrap_or(0));
        Tensor { name: output.name.clone(), output: true, shape, bytes, alias: None }
    });
    inputs.chain(outputs).collect()
}

/// The file for a serialized module. Equal modules give equal bytes.
///
/// # Errors
/// Where the module is not in the form that [`hlo::read`] takes, or its name does not fit the header.
pub fn pack(module: &[u8], build: &Build) -> Result<Vec<u8>, PackError> {
    let graph = hlo::read(module)?;
    let table =
        Table { format: FORMAT.into(), build: build.clone(), tensors: tensors(&graph, build.plain_aliases) };
    let mut archive = tar::Builder::new(Vec::new());
    for (name, bytes) in
        [(TABLE, &serde_json::to_vec(&table).map_err(io::Error::from)?[..]), (MODULE, module)]
    {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        archive.append_data(&mut header, name, bytes)?;
    }
    let mut data = archive.into_inner()?;
    if !build.uncompressed {
        let mut compressed = GzEncoder::new(Vec::new(), Compression::fast());
        compressed.write_all(&data)?;
        data = compressed.finish()?;
    }
    let mut header = Header::for_data(&graph.name, &data);
    header.build_version = concat!("softcc ", env!("CARGO_PKG_VERSION")).into();
    header.lnc_size = build.lnc;
    Ok([&header.write()?[..], &data].concat())
}

/// Reads a file, trusting nothing in it.
pub(crate) fn unpack(file: &[u8]) -> Result<Neff, Refusal> {
    let refuse = |why: String| Refusal::new(NRT_STATUS::NRT_INVALID, why);
    let header = Header::parse(file).map_err(|error| refuse(error.to_string()))?;
    if header.neff_version_major != 1 {
        let why = format!("NEFF version 1 is supported, and this is {}", header.neff_version_major);
        return Err(Refusal::new(NRT_STATUS::NRT_UNSUPPORTED_NEFF_VERSION, why));
    }
    let data = &file[neuron_sys::neff::HEADER_SIZE..];
    if header.check_hash(data) != HashCheck::Sha256 {
        return Err(refuse("the NEFF's archive does not have the hash in its header".into()));
    }
    let read = if data.starts_with(&[0x1f, 0x8b]) { members(GzDecoder::new(data)) } else { members(data) };
    let read = read.map_err(|error| refuse(format!("the NEFF's archive: {error}")))?;
    let [Some(table), Some(module)] = read else {
        return Err(refuse(format!(
            "the NEFF has no {TABLE} or no {MODULE}: it is not softcc's, and only those can be run in software"
        )));
    };
    let table: Table =
        serde_json::from_slice(&table).map_err(|error| refuse(format!("the NEFF's {TABLE}: {error}")))?;
    if table.format != FORMAT {
        return Err(refuse(format!("the NEFF is in the format {:?} and not {FORMAT:?}", table.format)));
    }
    let graph = hlo::read(&module).map_err(|error| refuse(format!("the NEFF's {MODULE}: {error}")))?;
    let mut inputs = tensors(&graph, table.build.plain_aliases);
    if table.tensors != inputs {
        return Err(refuse("the NEFF's tensors are not those of its module".into()));
    }
    if let Some(long) = inputs.iter().find(|tensor| tensor.name.len() > MAX_NAME) {
        return Err(refuse(format!("the name {:?} is longer than {MAX_NAME} bytes", long.name)));
    }
    let outputs = inputs.split_off(graph.params.len());
    let collectives = graph.nodes.iter().any(|node| matches!(node.op, Op::AllReduce { .. }));
    let program = Program::new(graph).map_err(|error| refuse(format!("the NEFF's {MODULE}: {error}")))?;
    Ok(Neff { program, inputs, outputs, collectives, hash: header.hash })
}

/// The table and the module of an archive.
fn members(archive: impl Read) -> io::Result<[Option<Vec<u8>>; 2]> {
    let [mut table, mut module] = [None, None];
    // Bounds what a small compressed file can become.
    for entry in tar::Archive::new(archive.take(2 * MAX_MEMBER)).entries()? {
        let entry = entry?;
        let place = match entry.path()?.to_str() {
            Some(TABLE) => &mut table,
            Some(MODULE) => &mut module,
            _ => continue,
        };
        let mut bytes = Vec::new();
        entry.take(MAX_MEMBER).read_to_end(&mut bytes)?;
        *place = Some(bytes);
    }
    Ok([table, module])
}
