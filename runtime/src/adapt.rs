//! Wraps core modules for WASI preview 1 into components.
//!
//! The adapter that does it comes with wasmtime. One thing it loses: its `proc_exit` tells only
//! success from failure. Exit codes matter to Kubernetes, so that one import is moved to a small
//! adapter of our own, which calls `exit-with-code`.
//!
//! Also part of `wasm-apps/componentize`, so that commands of ours that are built as components keep
//! their codes.

use std::borrow::Cow;

use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
    WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wasmparser::{ExternalKind, Parser, Payload};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// Name of our adapter: as long as the other's, so that an import can be renamed in place.
const EXIT_ADAPTER_NAME: &str = "wasi_snapshot_procexit";
const _: () = assert!(EXIT_ADAPTER_NAME.len() == WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME.len());

/// The function that moves.
const PROC_EXIT: &str = "proc_exit";

/// What our adapter imports. The interface is given whole, as the other adapter has it.
const EXIT_WIT: &str = "
    package wasi:cli@0.2.12;
    interface exit {
        exit: func(status: result);
        exit-with-code: func(status-code: u8);
    }
    world proc-exit { import exit; }
";

/// Wraps a module. The command adapter adds `wasi:cli/run`; a module with a component type of its
/// own brings its exports, whatever they are, and the reactor adapter offers it all of preview 1
/// (the proxy adapter offers less, for hosts that do).
pub(crate) fn to_component(wasm: &[u8], is_command: bool) -> Result<Vec<u8>, String> {
    let adapter = if is_command {
        WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER
    } else {
        WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER
    };
    if !exports_memory(wasm).map_err(in_words)? {
        return Err(
            "a module for WASI exports its memory as \"memory\", which this one does not".into()
        );
    }
    let module = rename_exit(wasm).map_err(in_words)?;
    let mut encoder = ComponentEncoder::default()
        .validate(true)
        .module(&module)
        .and_then(|encoder| encoder.adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, adapter))
        .map_err(in_words)?;
    if matches!(module, Cow::Owned(_)) {
        encoder = encoder.adapter(EXIT_ADAPTER_NAME, &exit_adapter()?).map_err(in_words)?;
    }
    encoder.encode().map_err(in_words)
}

/// The tools' own error type, without a dependency on it.
fn in_words(error: impl std::fmt::Display) -> String {
    format!("{error:#}")
}

/// Whether there is what the adapters read and write.
fn exports_memory(wasm: &[u8]) -> wasmparser::Result<bool> {
    for payload in Parser::new(0).parse_all(wasm) {
        let Payload::ExportSection(exports) = payload? else { continue };
        for export in exports {
            let export = export?;
            if export.kind == ExternalKind::Memory && export.name == "memory" {
                return Ok(true);
            }
        }
        break;
    }
    Ok(false)
}

/// Moves `proc_exit` to our adapter, if the module imports it.
fn rename_exit(wasm: &[u8]) -> wasmparser::Result<Cow<'_, [u8]>> {
    let mut renamed = Cow::Borrowed(wasm);
    for payload in Parser::new(0).parse_all(wasm) {
        let Payload::ImportSection(imports) = payload? else { continue };
        for import in imports.into_imports_with_offsets() {
            let (offset, import) = import?;
            if import.module != WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME || import.name != PROC_EXIT {
                continue;
            }
            // The name follows its length, which is one byte. An unusual encoding keeps the
            // import where it is: then codes are 0 and 1.
            let name = offset + 1..offset + 1 + EXIT_ADAPTER_NAME.len();
            if wasm.get(name.clone()) == Some(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME.as_bytes())
                && let Some(name) = renamed.to_mut().get_mut(name)
            {
                name.copy_from_slice(EXIT_ADAPTER_NAME.as_bytes());
            }
        }
        // There is one import section, and the code behind it need not be read.
        break;
    }
    Ok(renamed)
}

/// `proc_exit(code) { exit-with-code(code); unreachable }`, with its component type.
fn exit_adapter() -> Result<Vec<u8>, String> {
    let mut resolve = Resolve::default();
    let package = resolve.push_source("exit.wit", EXIT_WIT).map_err(in_words)?;
    let world = resolve.select_world(&[package], None).map_err(in_words)?;
    let mut module = b"\0asm\x01\0\0\0".to_vec();
    // One type: a function from i32 to nothing.
    section(&mut module, 1, &[b"\x01\x60\x01\x7f\x00"]);
    // One import, a function of type 0.
    section(&mut module, 2, &[b"\x01\x14wasi:cli/exit@0.2.12", b"\x0eexit-with-code", b"\x00\x00"]);
    // One function of type 0, exported.
    section(&mut module, 3, &[b"\x01\x00"]);
    section(&mut module, 7, &[b"\x01\x09proc_exit\x00\x01"]);
    // local.get 0, call 0, unreachable, end.
    section(&mut module, 10, &[b"\x01\x07\x00", b"\x20\x00\x10\x00\x00\x0b"]);
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8)
        .map_err(in_words)?;
    Ok(module)
}

/// Appends a section that is shorter than 128 bytes.
fn section(module: &mut Vec<u8>, id: u8, parts: &[&[u8]]) {
    let length = parts.iter().map(|part| part.len()).sum::<usize>();
    debug_assert!(length < 0x80);
    module.push(id);
    module.push(u8::try_from(length).unwrap_or(u8::MAX));
    parts.iter().for_each(|part| module.extend_from_slice(part));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_adapter_is_a_valid_module() {
        wasmparser::Validator::new().validate_all(&exit_adapter().unwrap()).unwrap();
    }

    #[test]
    fn a_module_without_a_memory_is_told_that_it_needs_one() {
        let none = wat::parse_str(r#"(module (func (export "_start")))"#).unwrap();
        assert!(to_component(&none, true).unwrap_err().contains("exports its memory"));
        let some = r#"(module (memory (export "memory") 1) (func (export "_start")))"#;
        to_component(&wat::parse_str(some).unwrap(), true).unwrap();
    }

    #[test]
    fn only_modules_that_exit_are_touched() {
        let plain = wat::parse_str(
            r#"(module (import "wasi_snapshot_preview1" "sched_yield" (func (result i32))))"#,
        );
        assert!(matches!(rename_exit(&plain.unwrap()).unwrap(), Cow::Borrowed(_)));
        let exits = wat::parse_str(
            r#"(module (import "wasi_snapshot_preview1" "proc_exit" (func (param i32))))"#,
        );
        let exits = rename_exit(exits.as_deref().unwrap()).unwrap().into_owned();
        let text = String::from_utf8_lossy(&exits);
        assert!(text.contains("wasi_snapshot_procexit\u{9}proc_exit"), "{text}");
    }
}
