//! Opening a library file: what is said of those that are none, and what is found in one that is.
#![allow(clippy::print_stderr)] // a test that cannot run says so

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use neuron_sys::{Error, Library, OpenError, Reaction, Runtime};

/// A folder under the system's temporary one, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("neuron-open-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn tried(path: &Path) -> String {
    match Library::open(Some(path)).unwrap_err() {
        OpenError::NotFound { tried } => {
            assert_eq!(tried.len(), 1);
            assert_eq!(tried[0].0, path);
            tried[0].1.clone()
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_file_that_is_missing_or_no_library() {
    let folder = Folder::new("none");
    let missing = folder.0.join("absent.so");
    assert!(tried(&missing).contains("No such file"), "{}", tried(&missing));
    let text = folder.0.join("text.so");
    fs::write(&text, "this is not a library, however long it may be: ".repeat(10)).unwrap();
    assert!(tried(&text).contains("ELF"), "{}", tried(&text));
    let error = Library::open(Some(&text)).unwrap_err().to_string();
    assert!(error.contains("text.so") && error.contains("give the library's path"), "{error}");
}

#[test]
fn a_library_of_something_else() {
    match Library::open(Some(Path::new("libm.so.6"))) {
        Err(OpenError::MissingSymbols { path, missing }) => {
            assert_eq!(path, Path::new("libm.so.6"));
            assert_eq!(missing.len(), 12, "{missing:?}");
            assert!(missing.contains(&"nrt_init") && missing.contains(&"nrt_execute"), "{missing:?}");
        }
        Err(OpenError::NotFound { tried }) => eprintln!("skipped: there is no libm.so.6 here: {tried:?}"),
        Ok(_) => panic!("libm is no Neuron runtime"),
    }
}

/// A C file with the mandatory functions, of which `nrt_init` fails, and some of the optional ones.
const SOURCE: &str = r#"
#include <string.h>
#include "nrt.h"
NRT_STATUS nrt_init(nrt_framework_type_t a, const char *b, const char *c) { return a == 1 && !*b && !*c ? 1005 : 2; }
void nrt_close() {}
NRT_STATUS nrt_load(const void *a, size_t b, int32_t c, int32_t d, nrt_model_t **e) { return 13; }
NRT_STATUS nrt_unload(nrt_model_t *a) { return 13; }
NRT_STATUS nrt_execute(nrt_model_t *a, const nrt_tensor_set_t *b, nrt_tensor_set_t *c) { return 13; }
NRT_STATUS nrt_tensor_allocate(nrt_tensor_placement_t a, int b, size_t c, const char *d, nrt_tensor_t **e) { return 13; }
void nrt_tensor_free(nrt_tensor_t **a) {}
NRT_STATUS nrt_tensor_read(const nrt_tensor_t *a, void *b, size_t c, size_t d) { return 13; }
NRT_STATUS nrt_tensor_write(nrt_tensor_t *a, const void *b, size_t c, size_t d) { return 13; }
NRT_STATUS nrt_allocate_tensor_set(nrt_tensor_set_t **a) { return 13; }
void nrt_destroy_tensor_set(nrt_tensor_set_t **a) {}
NRT_STATUS nrt_add_tensor_to_tensor_set(nrt_tensor_set_t *a, const char *b, nrt_tensor_t *c) { return 13; }
NRT_STATUS nrt_get_version(nrt_version_t *version, size_t size) {
    if (size != 224) return NRT_INVALID;
    version->rt_major = 2; version->rt_minor = 30; version->rt_patch = 50;
    strcpy(version->rt_detail, "detail");
    memset(version->git_hash, 'f', sizeof version->git_hash);
    return NRT_SUCCESS;
}
NRT_STATUS nrt_get_visible_nc_count(uint32_t *count) { *count = 3; return NRT_SUCCESS; }
NRT_STATUS nrta_is_completed(uint64_t sequence, bool *completed) { return 13; }
"#;

#[test]
fn a_library_of_c() {
    let folder = Folder::new("c");
    let (source, library) = (folder.0.join("nrt.c"), folder.0.join("libnrt.so.1"));
    fs::write(&source, SOURCE).unwrap();
    let include = concat!("-I", env!("CARGO_MANIFEST_DIR"), "/include");
    let built =
        Command::new("cc").args(["-shared", "-fPIC", include, "-o"]).arg(&library).arg(&source).output();
    match built {
        Err(error) => return eprintln!("skipped: no C compiler: {error}"),
        Ok(output) => assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr)),
    }
    let library = Library::open(Some(&library)).unwrap();
    assert_eq!(library.version(), Some(&*format!("2.30.50.0 detail {}", "f".repeat(64))));
    assert_eq!((library.visible_cores(), library.total_cores()), (Some(3), None));
    assert_eq!(library.optional(), ["nrt_get_version", "nrt_get_visible_nc_count", "nrta_is_completed"]);
    let lacking = library.lacking();
    assert!(
        lacking.contains(&"nrta_execute_schedule") && lacking.contains(&"nrt_load_collectives"),
        "{lacking:?}"
    );
    let line = library.describe();
    assert!(line.contains("libnrt.so.1, version 2.30.50.0") && !line.contains('\n'), "{line}");

    let error = Runtime::init(library).unwrap_err();
    assert!(matches!(error, Error::Nrt(_)), "{error}");
    assert_eq!(error.reaction(), Reaction::RetryInit, "{error}");
}
