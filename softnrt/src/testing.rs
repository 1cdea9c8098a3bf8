//! For tests: where the double is, and instances of it apart from each other.

use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use neuron_sys::Library;
use neuron_sys::sys::Nrt;

/// The shared library: `MILLRACE_TEST_NEURON_LIBRARY`, or what was built together with the running test.
///
/// # Panics
/// Where it is not there.
pub fn library_path() -> PathBuf {
    built("MILLRACE_TEST_NEURON_LIBRARY", &["deps/libsoftnrt.so", "libsoftnrt.so"])
}

/// `softcc`: `MILLRACE_TEST_NEURON_COMPILER`, or what was built in the directory of the running test. Cargo builds it
/// with the tests of the workspace or of this package, but not for a package that only depends on this one.
///
/// # Panics
/// Where it is not there.
pub fn compiler_path() -> PathBuf {
    built("MILLRACE_TEST_NEURON_COMPILER", &["softcc"])
}

fn built(variable: &str, files: &[&str]) -> PathBuf {
    if let Some(path) = std::env::var_os(variable) {
        return path.into();
    }
    let program = std::env::current_exe().expect("a program knows its file");
    // Tests are in `deps` of the directory that programs are in.
    let found = program
        .ancestors()
        .skip(1)
        .take(2)
        .find_map(|directory| files.iter().map(|file| directory.join(file)).find(|file| file.is_file()));
    found.unwrap_or_else(|| {
        panic!(
            "{} is not beside {}: run `cargo build -p softnrt`, or set {variable}",
            files[0],
            program.display()
        )
    })
}

/// An instance of the library with a state of its own, so that tests can run side by side in one process, and one that
/// a fatal status has left unusable is not in the way of the next. (It is a copy of the file, since the loader opens
/// each file once. Like the vendor's it is never unmapped.)
pub struct Double {
    library: Arc<Library>,
    symbols: libloading::Library,
    file: PathBuf,
}

type Set = unsafe extern "C" fn(*const c_char, *const c_char) -> bool;
type With = unsafe extern "C" fn(*mut c_void, *const c_char);
type Executions = unsafe extern "C" fn(*mut u64) -> u64;
type Complaints = unsafe extern "C" fn(With, *mut c_void);

impl Double {
    /// An instance with some settings, by the names of their environment variables.
    ///
    /// # Panics
    /// Where the library is not there or cannot be copied, or a setting is none.
    pub fn new(settings: &[(&str, &str)]) -> Double {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("libsoftnrt-{}-{number}.so", std::process::id()));
        let opened = copied(&library_path(), &file);
        let (library, symbols) = opened.unwrap_or_else(|why| panic!("{}: {why}", file.display()));
        let double = Double { library, symbols, file };
        settings.iter().for_each(|(name, value)| double.set(name, value));
        double
    }

    /// The library, as opened.
    pub fn library(&self) -> &Arc<Library> {
        &self.library
    }

    /// The instance's functions, for calls that the library's owners do not let through.
    ///
    /// # Panics
    /// Where the file is gone.
    pub fn table(&self) -> Nrt {
        table(&self.file).unwrap_or_else(|why| panic!("{}: {why}", self.file.display()))
    }

    /// Changes a setting; calls are counted anew for the faults. While the library is open, its cores stay.
    ///
    /// # Panics
    /// Where it is no such setting.
    pub fn set(&self, name: &str, value: &str) {
        let string = |text: &str| CString::new(text).expect("a setting has no NUL");
        // SAFETY: the library exports it with this signature, and both are strings.
        let set = unsafe {
            let function = self.symbols.get::<Set>("softnrt_set").expect("the library has it");
            function(string(name).as_ptr(), string(value).as_ptr())
        };
        assert!(set, "{name}={value} is no setting");
    }

    /// Executions so far that did not fail, of all cores, and how long they took together: what is no caller's time.
    ///
    /// # Panics
    /// Never: the library is the double.
    pub fn executions(&self) -> (u64, Duration) {
        let mut nanoseconds = 0;
        // SAFETY: the library exports it with this signature; the number has a place.
        let count = unsafe {
            let function = self.symbols.get::<Executions>("softnrt_executions").expect("the library has it");
            function(&raw mut nanoseconds)
        };
        (count, Duration::from_nanos(nanoseconds))
    }

    /// What was complained about so far.
    ///
    /// # Panics
    /// Never: the library is the double.
    pub fn complaints(&self) -> Vec<String> {
        unsafe extern "C" fn push(to: *mut c_void, complaint: *const c_char) {
            // SAFETY: this is called below, with a list, and by the library, with a string.
            unsafe {
                (*to.cast::<Vec<String>>()).push(CStr::from_ptr(complaint).to_string_lossy().into_owned())
            }
        }
        let mut list: Vec<String> = Vec::new();
        // SAFETY: the library exports it with this signature; `push` takes what it is given here.
        unsafe {
            let function = self.symbols.get::<Complaints>("softnrt_complaints").expect("the library has it");
            function(push, (&raw mut list).cast());
        }
        list
    }
}

impl Drop for Double {
    fn drop(&mut self) {
        // A file left in the temporary directory is not worth a panic.
        let _ = std::fs::remove_file(&self.file);
    }
}

fn open(file: &Path) -> Result<libloading::Library, String> {
    // SAFETY: it is the double, whose initialisers do nothing.
    unsafe { libloading::Library::new(file) }.map_err(|error| error.to_string())
}

fn table(file: &Path) -> Result<Nrt, String> {
    let library = open(file)?;
    // SAFETY: it is the double, whose functions have the signatures of the table.
    unsafe { Nrt::from_library(library) }.map_err(|error| error.to_string())
}

fn copied(from: &Path, to: &Path) -> Result<(Arc<Library>, libloading::Library), String> {
    std::fs::copy(from, to).map_err(|error| error.to_string())?;
    // SAFETY: it is the double, whose functions behave as the runtime's.
    let library = unsafe { Library::from_table(table(to)?) }.map_err(|error| error.to_string())?;
    Ok((library, open(to)?))
}
