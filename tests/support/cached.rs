//! Where tests and benches find models: what a variable names, or what the scripts have put into the cache's folder.

use std::path::PathBuf;

/// The path that `variable` holds, else `name` in the folder of `scripts/fetch-*`, if it is there.
pub(crate) fn cached(variable: &str, name: &str) -> Option<PathBuf> {
    let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
    if let Some(path) = path(variable) {
        return Some(path);
    }
    let folder = path("MILLRACE_CACHE")
        .or_else(|| Some(path("XDG_CACHE_HOME")?.join("millrace")))
        .or_else(|| Some(path("HOME")?.join(".cache/millrace")))?;
    Some(folder.join(name)).filter(|path| path.exists())
}

/// SmolLM2-135M-Instruct in Q4_1.
#[allow(dead_code, reason = "not everybody asks for this one")]
pub(crate) fn smollm2() -> Option<PathBuf> {
    cached("MILLRACE_TEST_MODEL", "SmolLM2-135M-Instruct.Q4_1.gguf")
}
