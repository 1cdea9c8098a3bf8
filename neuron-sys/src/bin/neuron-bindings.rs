//! Prints the Rust bindings of the Neuron runtime's C interface.
//!
//! `neuron-bindings` reads `include/nrt.h`; its output is `src/sys/bindings.rs`.
//! `neuron-bindings --bare` leaves comments out, and `neuron-bindings --bare --include DIR` reads the headers of an
//! installed SDK instead: the difference of the two is how far ours are from it.

use std::{env, error::Error, path::Path};

/// What is taken from a header, ours or the SDK's. Everything a function or type needs comes with it.
const FUNCTIONS: &str = "nrt_(get_status_as_str|get_version|get_instance_info|get_(total|visible)_v?nc_count\
    |get_vnc_memory_stats|init|close|load|load_collectives|build_global_comm|unload|get_model_tensor_info\
    |free_model_tensor_info|get_model_instance_count|execute|tensor_(allocate|allocate_slice|free|read|write|memset)\
    |tensor_(read|write)_batch|(allocate|destroy)_tensor_set|add_tensor_to_tensor_set)";

/// The SDK's headers that declare those functions.
const SDK: [&str; 4] = ["nrt/nrt.h", "nrt/nrt_experimental.h", "nrt/nrt_version.h", "nrt/nrt_status.h"];

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut bare, mut sdk) = (false, None);
    let mut arguments = env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--bare" => bare = true,
            "--include" => sdk = Some(arguments.next().ok_or("--include needs a folder")?),
            other => return Err(format!("unknown argument {other}; known: --bare, --include DIR").into()),
        }
    }
    let builder = match sdk {
        None => bindgen::builder().header(path(&root.join("include/nrt.h"))?),
        Some(folder) => {
            let text: String = SDK.iter().map(|header| format!("#include <{header}>\n")).collect();
            bindgen::builder().header_contents("sdk.h", &text).clang_arg(format!("-I{folder}"))
        }
    };
    let bindings = builder
        .allowlist_function(FUNCTIONS)
        .allowlist_type("NRT_STATUS|nrt_dtype_t|nrt_framework_type_t|nrt_tensor_(placement|usage)_t")
        .default_enum_style(bindgen::EnumVariation::NewType { is_bitfield: false, is_global: false })
        .dynamic_library_name("Nrt")
        .dynamic_link_require_all(false)
        .wrap_unsafe_ops(true)
        .layout_tests(true)
        .sort_semantically(true)
        .generate_comments(!bare)
        .rust_target(bindgen::RustTarget::stable(85, 0).map_err(|error| error.to_string())?)
        .rust_edition(bindgen::RustEdition::Edition2024)
        .rustfmt_configuration_file(Some(root.join("../rustfmt.toml")))
        .generate()?;
    bindings.write(Box::new(std::io::stdout()))?;
    Ok(())
}

fn path(path: &Path) -> Result<&str, String> {
    path.to_str().ok_or_else(|| format!("{} is not UTF-8", path.display()))
}
