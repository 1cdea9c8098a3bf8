//! Finding and opening the vendor's library.

use std::{
    ffi::c_char,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{error::OpenError, gate::Gate};
use crate::{
    result,
    sys::{Nrt, PROBED},
};

/// Where the library is looked for when no path is given: by its soname on the loader's path, then where the vendor's
/// packages put it.
const DEFAULT_PATHS: [&str; 2] = ["libnrt.so.1", "/opt/aws/neuron/lib/libnrt.so.1"];

/// One library instance a process: the vendor's keeps its state in statics.
static PROCESS: Gate = Gate::new();

/// An opened runtime library.
///
/// It is never unmapped again: the vendor's runs threads of its own, whose code would go with it.
pub struct Library {
    pub(super) nrt: &'static Nrt,
    pub(super) gate: &'static Gate,
    path: Option<PathBuf>,
    version: Option<String>,
    probed: Vec<&'static str>,
}

impl Library {
    /// Opens the library at `path`, or else the first that opens of `libnrt.so.1` on the loader's path and
    /// `/opt/aws/neuron/lib/libnrt.so.1`.
    ///
    /// This runs the library's initialisers but claims no device. The file is trusted: whoever can write it can run
    /// code in this process.
    ///
    /// # Errors
    /// If none opens, or the one that does lacks a mandatory function (no other is tried then: it would hide that the
    /// wrong one is installed).
    pub fn open(path: Option<&Path>) -> Result<Arc<Self>, OpenError> {
        let candidates = match path {
            Some(path) => vec![path.to_path_buf()],
            None => DEFAULT_PATHS.iter().map(PathBuf::from).collect(),
        };
        let mut tried = Vec::new();
        for path in candidates {
            // SAFETY: a library's initialisers may do anything; which library to trust is the caller's decision.
            match unsafe { libloading::Library::new(&path) } {
                Ok(library) => return Self::from_library(path, library),
                Err(error) => {
                    let reason =
                        std::error::Error::source(&error).map_or(error.to_string(), ToString::to_string);
                    tried.push((path, reason));
                }
            }
        }
        Err(OpenError::NotFound { tried })
    }

    fn from_library(path: PathBuf, library: libloading::Library) -> Result<Arc<Self>, OpenError> {
        let probed = PROBED
            .into_iter()
            // SAFETY: the symbol is only looked for and never used, so that its type does not matter.
            .filter(|name| unsafe { library.get::<*const ()>(*name).is_ok() })
            .collect();
        // SAFETY: whether a function of that name has the signature of `include/nrt.h` cannot be seen from its
        // symbol; the header follows the interface that the vendor published for this soname.
        let nrt = unsafe { Nrt::from_library(library) };
        let nrt = nrt
            .unwrap_or_else(|error| unreachable!("no function is required, so none can be missing: {error}"));
        let missing = missing(&nrt);
        if !missing.is_empty() {
            return Err(OpenError::MissingSymbols { path, missing });
        }
        Ok(Arc::new(Self::new(nrt, &PROCESS, Some(path), probed)))
    }

    /// A library from a table of functions that is in the program already. It is counted apart from the opened one, so
    /// that each such table can be initialised.
    ///
    /// # Errors
    /// If a mandatory function is missing.
    ///
    /// # Safety
    /// - The functions behave as the runtime's: they treat handles and buffers as `include/nrt.h` says.
    pub unsafe fn from_table(nrt: Nrt) -> Result<Arc<Self>, OpenError> {
        let missing = missing(&nrt);
        if !missing.is_empty() {
            return Err(OpenError::MissingSymbols { path: PathBuf::from("table"), missing });
        }
        Ok(Arc::new(Self::new(nrt, Box::leak(Box::new(Gate::new())), None, Vec::new())))
    }

    fn new(nrt: Nrt, gate: &'static Gate, path: Option<PathBuf>, probed: Vec<&'static str>) -> Self {
        let nrt: &'static Nrt = Box::leak(Box::new(nrt));
        // SAFETY: the table is that of a runtime library; this call is legal at any time.
        let version = unsafe { result::version(nrt) }.and_then(Result::ok).map(|version| {
            let numbers = [version.rt_major, version.rt_minor, version.rt_patch, version.rt_maintenance];
            let numbers = numbers.map(|number| number.to_string()).join(".");
            format!("{numbers} {} {}", text(&version.rt_detail), text(&version.git_hash))
                .trim_end()
                .to_owned()
        });
        Self { nrt, gate, path, version, probed }
    }

    /// The file that was opened, as it was asked for; `None` for a table.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The library's own version, such as `2.30.50.0` and its build; `None` if it does not say.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// The functions it has beyond the mandatory ones.
    pub fn optional(&self) -> Vec<&'static str> {
        let here = self.nrt.optional().filter(|(_, found)| *found).map(|(name, _)| name);
        here.chain(self.probed.iter().copied()).collect()
    }

    /// The optional functions that it lacks.
    pub fn lacking(&self) -> Vec<&'static str> {
        let absent = self.nrt.optional().filter(|(_, found)| !found).map(|(name, _)| name);
        absent.chain(PROBED.into_iter().filter(|name| !self.probed.contains(name))).collect()
    }

    /// Cores that a process with this environment could use; legal before initialisation. `None` if the library cannot
    /// tell, or fails, as it does without a driver.
    pub fn visible_cores(&self) -> Option<u32> {
        // SAFETY: the table is that of a runtime library; this call is legal at any time.
        unsafe { result::visible_cores(self.nrt) }?.ok()
    }

    /// Cores of this machine; as [`Self::visible_cores`].
    pub fn total_cores(&self) -> Option<u32> {
        // SAFETY: the table is that of a runtime library; this call is legal at any time.
        unsafe { result::total_cores(self.nrt) }?.ok()
    }

    /// One line for a log: file, version, and which optional functions there are and are not.
    pub fn describe(&self) -> String {
        let path = self.path.as_deref().map_or("built-in table".into(), |path| path.display().to_string());
        let list = |names: Vec<&str>| if names.is_empty() { "nothing".to_owned() } else { names.join(" ") };
        format!(
            "{path}, version {}; has {}; lacks {}",
            self.version().unwrap_or("unknown"),
            list(self.optional()),
            list(self.lacking())
        )
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library")
            .field("path", &self.path)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

fn missing(nrt: &Nrt) -> Vec<&'static str> {
    nrt.mandatory().filter(|(_, found)| !found).map(|(name, _)| name).collect()
}

/// The text in a field that ends with a NUL, or fills its array.
pub(super) fn text(field: &[c_char]) -> String {
    let bytes: Vec<u8> = field.iter().map(|&c| c.cast_unsigned()).take_while(|&byte| byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
