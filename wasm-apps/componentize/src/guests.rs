//! What is built, and how.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER,
};
use wit_component::ComponentEncoder;

use crate::{adapt, check};

/// What becomes of a core module.
#[derive(Clone, Copy)]
pub enum Kind {
    /// Component with `main`: the command adapter.
    Command,
    /// Component without: the reactor adapter.
    Reactor,
    /// Stays as the compiler made it.
    CoreModule,
}

/// A guest of this workspace.
pub struct Guest {
    /// Package, and name of the result.
    pub name: &'static str,
    kind: Kind,
    /// What the result must export; for an interface with the start of its version.
    pub world: &'static str,
}

/// All guests.
pub const GUESTS: &[Guest] = &[
    Guest { name: "busybox", kind: Kind::Reactor, world: "wasi:cli/run@0.2." },
    Guest { name: "echo", kind: Kind::Command, world: "wasi:cli/run@0.2." },
    Guest { name: "hello", kind: Kind::Reactor, world: "wasi:http/incoming-handler@0.2." },
    Guest { name: "hello-p3", kind: Kind::Reactor, world: "wasi:http/handler@0.3.0" },
    Guest { name: "sidecar", kind: Kind::Reactor, world: "wasi:http/incoming-handler@0.2." },
    Guest { name: "agnhost", kind: Kind::Reactor, world: "wasi:cli/run@0.2." },
    Guest { name: "httpd", kind: Kind::Reactor, world: "wasi:http/incoming-handler@0.2." },
    Guest { name: "mirror", kind: Kind::Reactor, world: "wasi:http/handler@0.3.0" },
    Guest { name: "once", kind: Kind::Reactor, world: "wasi:http/incoming-handler@0.2." },
    Guest { name: "pause", kind: Kind::Command, world: "wasi:cli/run@0.2." },
    Guest { name: "probe", kind: Kind::Reactor, world: "wasi:cli/run@0.2." },
    Guest { name: "probe-p3", kind: Kind::Reactor, world: "wasi:cli/run@0.3." },
    Guest { name: "probe-plugin", kind: Kind::Reactor, world: "edgeorc:scheduler/plugin@0.1." },
    Guest { name: "thermal", kind: Kind::Reactor, world: "edgeorc:scheduler/plugin@0.1." },
    Guest { name: "ticker", kind: Kind::CoreModule, world: "_start" },
];

impl Guest {
    /// Makes the result from the compiler's output in `modules`, and checks it.
    pub fn finish(&self, modules: &Path) -> anyhow::Result<Vec<u8>> {
        // Libraries are named by crate, programs by package; only libraries of ours have a dash.
        let path = modules.join(format!("{}.wasm", self.name.replace('-', "_")));
        let module = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let bytes = match self.kind {
            Kind::Command => adapted(&module, true)?,
            // Programs of ours that are linked as libraries keep their exit code as well.
            Kind::Reactor if self.world.starts_with("wasi:cli/run@0.2.") => {
                adapted(&module, false)?
            }
            Kind::Reactor => for_any_runtime(&module)?,
            Kind::CoreModule => {
                // The runtime will adapt it; see now that this can succeed.
                adapted(&module, true)?;
                module
            }
        };
        let outside = check::outside(&bytes)?;
        ensure!(
            outside.exports.iter().any(|name| name.starts_with(self.world)),
            "it must export {}, but exports {:?}",
            self.world,
            outside.exports
        );
        for import in &outside.imports {
            let is_wasi =
                import.starts_with("wasi:") || import == WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME;
            ensure!(is_wasi, "it must import WASI only, but imports {import}");
        }
        Ok(bytes)
    }
}

/// As the runtime does it with core modules: exit codes are kept, by what only WASI 0.2.12 has.
fn adapted(module: &[u8], is_command: bool) -> anyhow::Result<Vec<u8>> {
    adapt::to_component(module, is_command).map_err(anyhow::Error::msg)
}

/// With the adapter as it is.
fn for_any_runtime(module: &[u8]) -> anyhow::Result<Vec<u8>> {
    ComponentEncoder::default()
        .validate(true)
        .module(module)?
        .adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_REACTOR_ADAPTER)?
        .encode()
}

/// Inputs that must be refused, or that behave badly: `bad/*.wat` translated, `bad/*.txt` as they
/// are, and the first half of `hello`. File names with their content.
pub fn bad_inputs(folder: &Path, dist: &Path) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    let mut inputs = Vec::new();
    let entries = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        let Some(stem) = path.file_stem().and_then(|stem| stem.to_str()) else { continue };
        let bytes = match path.extension().and_then(|extension| extension.to_str()) {
            Some("wat") => {
                let bytes = wat::parse_file(&path)?;
                check::outside(&bytes).with_context(|| format!("check {}", path.display()))?;
                bytes
            }
            Some("txt") => fs::read(&path)?,
            _ => continue,
        };
        inputs.push((format!("bad-{stem}.wasm"), bytes));
    }
    let mut truncated = fs::read(dist.join("hello.wasm"))?;
    truncated.truncate(truncated.len() / 2);
    inputs.push(("bad-truncated.wasm".to_owned(), truncated));
    inputs.sort();
    Ok(inputs)
}
