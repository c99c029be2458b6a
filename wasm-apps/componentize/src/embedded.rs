//! The `hello` that the edgeorc binary embeds: `hello.wasm`, and `hello.sources`, which says what
//! it was made from. The definition stands at the top of `build`; a test of edgeorc has it too.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};

use crate::put;

const COMPONENT: &str = "hello.wasm";
const SOURCES: &str = "hello.sources";
/// Largest component that is worth embedding, in bytes.
const BYTES_MAX: usize = 150 * 1024;

/// Copies the built component and writes down its sources.
pub fn update(dist: &Path) -> anyhow::Result<()> {
    let path = dist.join(COMPONENT);
    let bytes = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    ensure!(
        bytes.len() <= BYTES_MAX,
        "{COMPONENT} has {} bytes, at most {BYTES_MAX} are embedded",
        bytes.len()
    );
    put(Path::new(COMPONENT), &bytes)?;
    put(Path::new(SOURCES), record(&bytes)?.as_bytes())
}

/// Fails when the sources, or the component, are not those that were written down.
pub fn check() -> anyhow::Result<()> {
    let bytes = fs::read(COMPONENT).with_context(|| format!("read {COMPONENT}"))?;
    let written = fs::read_to_string(SOURCES).with_context(|| format!("read {SOURCES}"))?;
    ensure!(
        written == record(&bytes)?,
        "{COMPONENT} is stale: run wasm-apps/build --update-embedded"
    );
    Ok(())
}

/// Content of `hello.sources`.
fn record(component: &[u8]) -> anyhow::Result<String> {
    let mut files = vec![PathBuf::from("Cargo.lock"), PathBuf::from("Cargo.toml")];
    list(Path::new("hello"), &mut files)?;
    let mut lines = Vec::new();
    for file in files {
        let name = file.to_str().with_context(|| format!("{} is not UTF-8", file.display()))?;
        let bytes = fs::read(&file).with_context(|| format!("read {name}"))?;
        lines.push((name.to_owned(), format!("{}  {name}\n", hex(&bytes))));
    }
    lines.sort();
    let all: String = lines.into_iter().map(|(_, line)| line).collect();
    Ok(format!("{}  sources\n{}  {COMPONENT}\n", hex(all.as_bytes()), hex(component)))
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            list(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
