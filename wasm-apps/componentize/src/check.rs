//! What a module or component shows to the outside.

use anyhow::Context;
use wasmparser::{Parser, Payload, Validator, WasmFeatures};

/// Names at the outermost level.
#[derive(Debug, Default)]
pub struct Outside {
    /// Interfaces (component) or modules (core module) it needs.
    pub imports: Vec<String>,
    /// Interfaces (component) or functions, memories, … (core module) it gives.
    pub exports: Vec<String>,
}

/// Validates the bytes and reads their outermost imports and exports.
pub fn outside(bytes: &[u8]) -> anyhow::Result<Outside> {
    Validator::new_with_features(WasmFeatures::all()).validate_all(bytes).context("validate")?;
    let mut outside = Outside::default();
    // Bytes of modules and components inside this one are skipped, not entered.
    let mut depth = 0_usize;
    for payload in Parser::new(0).parse_all(bytes) {
        match payload? {
            Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
            Payload::End(_) => depth = depth.saturating_sub(1),
            _ if depth > 0 => {}
            Payload::ComponentImportSection(section) => {
                for import in section {
                    outside.imports.push(import?.name.name.to_owned());
                }
            }
            Payload::ComponentExportSection(section) => {
                for export in section {
                    outside.exports.push(export?.name.name.to_owned());
                }
            }
            Payload::ImportSection(section) => {
                for import in section.into_imports() {
                    outside.imports.push(import?.module.to_owned());
                }
            }
            Payload::ExportSection(section) => {
                for export in section {
                    outside.exports.push(export?.name.to_owned());
                }
            }
            _ => {}
        }
    }
    outside.imports.sort();
    outside.imports.dedup();
    Ok(outside)
}
