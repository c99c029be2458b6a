//! What the command line asks of the Wasm runtime without starting a node.

use std::path::Path;

use edgeorc_runtime::{CompileError, Machine, World};

use crate::config::Sandboxes;

/// Checks that `wasm` is a module or component a node can run. Does not compile it.
///
/// # Errors
///
/// [`CompileError`]: what it is instead.
pub fn inspect_module(wasm: &[u8]) -> Result<(), CompileError> {
    edgeorc_runtime::inspect(wasm).map(|_| ())
}

/// Whether it has an HTTP handler that the host calls. Anything else is reached only if it listens on a
/// port itself.
#[must_use]
pub fn serves_http(wasm: &[u8]) -> bool {
    matches!(edgeorc_runtime::inspect(wasm), Ok(World::HttpP2 | World::HttpP3))
}

/// This machine, as the sandboxes are planned for it.
pub(super) fn machine(sandboxes: Sandboxes) -> Machine {
    let machine = Machine::probe().with_address_bits_max(sandboxes.address_bits_max);
    if sandboxes.are_interpreted { machine.interpreted() } else { machine }
}

/// Compiles the module or component `input` for this machine into `output`.
///
/// # Errors
///
/// [`CompileError`]; `output` is then not written.
pub fn compile_module(
    input: &Path,
    output: &Path,
    sandboxes: Sandboxes,
) -> Result<(), CompileError> {
    edgeorc_runtime::compile_file_for(machine(sandboxes), input, output)
}

/// Whether the module itself was refused, so that the same bytes will be refused again.
pub fn is_module_at_fault(error: &CompileError) -> bool {
    matches!(error, CompileError::Invalid(_) | CompileError::UnknownWorld(_))
}
