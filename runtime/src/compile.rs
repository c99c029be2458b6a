//! From Wasm to compiled code, meant to run in a short-lived child process.

use std::path::Path;

use crate::types::{CompileError, World};

/// Compiles a component, or a core module for WASI p1, to the bytes of a `.cwasm` file.
///
/// # Errors
///
/// See [`CompileError`].
pub fn compile(_wasm: &[u8]) -> Result<Vec<u8>, CompileError> {
    Err(CompileError::Failed("not built".into()))
}

/// Tells what a module or component is without compiling it.
///
/// # Errors
///
/// See [`CompileError`].
pub fn inspect(_wasm: &[u8]) -> Result<World, CompileError> {
    Err(CompileError::Failed("not built".into()))
}

/// Compiles `input` to `output`, which appears whole or not at all.
///
/// # Errors
///
/// See [`CompileError`]; trouble with a file is [`CompileError::Failed`].
pub fn compile_file(_input: &Path, _output: &Path) -> Result<(), CompileError> {
    Err(CompileError::Failed("not built".into()))
}

/// The string that [`crate::PodRuntime::compatibility_hash`] gives, without a runtime.
#[must_use]
pub fn compatibility_hash() -> String {
    String::new()
}
