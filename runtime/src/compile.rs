//! From Wasm to compiled code, meant to run in a short-lived child process: a module can be made
//! to need any amount of memory and time to compile, and the process takes that with it.
//!
//! Data in: a component, or a core module for WASI preview 1. Data out: a `.cwasm` file that
//! engines with the same [`compatibility_hash`] can map.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;

use wasi_preview1_component_adapter_provider::WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME;
use wasmparser::{Parser, Payload};

use crate::adapt;
use crate::code::Entry;
use crate::engine::{self, Plan};
use crate::imports::shorten;
use crate::machine::Machine;
use crate::types::{CompileError, World};

/// Largest module or component that is looked at, in bytes. Interpreters of other languages
/// compiled to Wasm reach some 50 MB.
pub const WASM_BYTES_MAX: usize = 128 << 20;
/// Longest text of an error, in bytes.
const ERROR_BYTES_MAX: usize = 2048;
/// Imports named in an error.
const IMPORTS_NAMED_MAX: usize = 5;
/// What begins every module and component.
const MAGIC: &[u8] = b"\0asm";
/// Custom section in which toolchains put the component type of a core module.
const COMPONENT_TYPE_SECTION: &str = "component-type";

/// Compiles a component, or a core module for WASI p1, to the bytes of a `.cwasm` file.
///
/// # Errors
///
/// See [`CompileError`].
pub fn compile(wasm: &[u8]) -> Result<Vec<u8>, CompileError> {
    compile_for(Machine::probe(), wasm)
}

fn compile_for(machine: Machine, wasm: &[u8]) -> Result<Vec<u8>, CompileError> {
    let failed = |error: wasmtime::Error| CompileError::Failed(bounded(&format!("{error:#}")));
    let compiler = Plan::new(machine).compiler().map_err(failed)?;
    // Whatever is wrong now is a fault of the module, or a proposal that is off.
    let invalid = |error: wasmtime::Error| CompileError::Invalid(bounded(&format!("{error:#}")));
    match Outline::read(wasm)? {
        Outline::Component { .. } => compiler.precompile_component(wasm).map_err(invalid),
        Outline::Module(module) => {
            compiler.precompile_component(&module.adapt(wasm)?).map_err(invalid)
        }
    }
}

/// Tells what a module or component is without compiling it.
///
/// # Errors
///
/// See [`CompileError`].
pub fn inspect(wasm: &[u8]) -> Result<World, CompileError> {
    match Outline::read(wasm)? {
        Outline::Component { entry } => Ok(entry.world()),
        Outline::Module(module) => {
            module.check()?;
            if module.has_component_type {
                let component = module.adapt(wasm)?;
                return match Outline::read(&component)? {
                    Outline::Component { entry } => Ok(entry.world()),
                    Outline::Module(_) => Ok(World::Reactor),
                };
            }
            Ok(if module.is_command { World::Command } else { World::Reactor })
        }
    }
}

/// Compiles `input` to `output`, which appears whole or not at all.
///
/// # Errors
///
/// See [`CompileError`]; trouble with a file is [`CompileError::Failed`].
pub fn compile_file(input: &Path, output: &Path) -> Result<(), CompileError> {
    compile_file_for(Machine::probe(), input, output)
}

/// As [`compile_file`], for the sandboxes of another `machine`.
///
/// # Errors
///
/// As [`compile_file`].
pub fn compile_file_for(machine: Machine, input: &Path, output: &Path) -> Result<(), CompileError> {
    let file = |what: &'static str, path: &Path| {
        let path = path.display().to_string();
        move |error: std::io::Error| CompileError::Failed(format!("{what} {path}: {error}"))
    };
    let mut wasm = Vec::new();
    let limit = u64::try_from(WASM_BYTES_MAX).unwrap_or(u64::MAX).saturating_add(1);
    File::open(input)
        .and_then(|file| file.take(limit).read_to_end(&mut wasm))
        .map_err(file("cannot read", input))?;
    let compiled = compile_for(machine, &wasm)?;
    drop(wasm);

    let mut name = output.as_os_str().to_owned();
    name.push(format!(".tmp-{}", std::process::id()));
    let temporary = Path::new(&name);
    let written = write_synced(temporary, &compiled).and_then(|()| fs::rename(temporary, output));
    if let Err(error) = written {
        // The error is what the caller needs; a leftover is only untidy.
        let _ = fs::remove_file(temporary);
        return Err(file("cannot write", output)(error));
    }
    if let Some(folder) = output.parent()
        && let Ok(folder) = File::open(folder)
    {
        // Some file systems cannot sync folders; the rename is then as durable as it gets.
        let _ = folder.sync_all();
    }
    Ok(())
}

fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// The string that [`crate::PodRuntime::compatibility_hash`] gives, without a runtime. Empty if
/// there can be no engine on this machine.
#[must_use]
pub fn compatibility_hash() -> String {
    compatibility_hash_for(Machine::probe())
}

/// As [`compatibility_hash`], for the sandboxes of another `machine`.
#[must_use]
pub fn compatibility_hash_for(machine: Machine) -> String {
    Plan::new(machine)
        .compiler()
        .map_or_else(|_| String::new(), |compiler| engine::compatibility_hash(&compiler))
}

/// What the sections of a file tell without validating its code.
enum Outline {
    Component { entry: Entry },
    Module(Module),
}

/// A core module.
#[derive(Default)]
struct Module {
    /// `(module, name)` of everything it imports.
    imports: Vec<(String, String)>,
    /// Exports `_start`.
    is_command: bool,
    /// Exports `_initialize`.
    is_reactor: bool,
    /// Carries its component type: a component in the making.
    has_component_type: bool,
}

impl Outline {
    fn read(wasm: &[u8]) -> Result<Self, CompileError> {
        if wasm.len() > WASM_BYTES_MAX {
            let text = format!("larger than {} MiB", WASM_BYTES_MAX >> 20);
            return Err(CompileError::Failed(text));
        }
        if !wasm.starts_with(MAGIC) {
            return Err(CompileError::Invalid("it does not begin like a Wasm file".to_owned()));
        }
        if Parser::is_component(wasm) {
            let exports = component_exports(wasm).map_err(invalid)?;
            let entry = Entry::of(exports.into_iter())
                .map_err(|error| CompileError::UnknownWorld(error.to_string()))?;
            return Ok(Self::Component { entry });
        }
        Module::read(wasm).map(Self::Module).map_err(invalid)
    }
}

fn invalid(error: wasmparser::BinaryReaderError) -> CompileError {
    let text = if error.message().contains("unexpected end") {
        format!("it is cut off after byte {}", error.offset())
    } else {
        bounded(&error.to_string())
    };
    CompileError::Invalid(text)
}

/// A tool's words about a stranger's file: they may repeat whatever names are in there.
fn bounded(text: &str) -> String {
    let begin = text.get(..text.floor_char_boundary(ERROR_BYTES_MAX)).unwrap_or(text);
    begin.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// Reads the exports of the outermost component.
fn component_exports(wasm: &[u8]) -> wasmparser::Result<Vec<&str>> {
    let mut depth = 0_usize;
    let mut names = Vec::new();
    for payload in Parser::new(0).parse_all(wasm) {
        match payload? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            Payload::ComponentExportSection(exports) if depth == 0 => {
                for export in exports {
                    names.push(export?.name.name);
                }
            }
            _ => {}
        }
    }
    Ok(names)
}

impl Module {
    fn read(wasm: &[u8]) -> wasmparser::Result<Self> {
        let mut module = Self::default();
        for payload in Parser::new(0).parse_all(wasm) {
            match payload? {
                Payload::ImportSection(imports) => {
                    for import in imports.into_imports() {
                        let import = import?;
                        module.imports.push((import.module.to_owned(), import.name.to_owned()));
                    }
                }
                Payload::ExportSection(exports) => {
                    for export in exports {
                        let name = export?.name;
                        module.is_command |= name == "_start";
                        module.is_reactor |= name == "_initialize";
                    }
                }
                Payload::CustomSection(section) => {
                    module.has_component_type |= section.name().starts_with(COMPONENT_TYPE_SECTION);
                }
                _ => {}
            }
        }
        Ok(module)
    }

    /// A plain core module must export what makes it a command or a reactor, and can have no
    /// imports but those of WASI preview 1.
    fn check(&self) -> Result<(), CompileError> {
        if self.has_component_type {
            return Ok(());
        }
        if !self.is_command && !self.is_reactor {
            return Err(CompileError::UnknownWorld(
                "the core module exports neither _start (a command) nor _initialize (a reactor): \
                 there is nothing to run"
                    .to_owned(),
            ));
        }
        let unknown: Vec<_> = self
            .imports
            .iter()
            .filter(|(module, _)| module != WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME)
            .map(|(module, name)| format!("{}.{}", shorten(module), shorten(name)))
            .collect();
        if unknown.is_empty() {
            return Ok(());
        }
        let named = unknown.iter().take(IMPORTS_NAMED_MAX).map(String::as_str);
        let named = named.collect::<Vec<_>>().join(", ");
        let more = unknown.len().saturating_sub(IMPORTS_NAMED_MAX);
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Err(CompileError::UnknownWorld(format!(
            "the core module imports {named}{more}, which WASI preview 1 does not have; \
             only WASI preview 1 modules and components run here"
        )))
    }

    /// Wraps the module into a component.
    fn adapt(&self, wasm: &[u8]) -> Result<Vec<u8>, CompileError> {
        self.check()?;
        adapt::to_component(wasm, self.is_command)
            .map_err(|error| CompileError::Invalid(bounded(&error)))
    }
}
