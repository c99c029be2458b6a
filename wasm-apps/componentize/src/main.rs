//! Finishes the guests: core modules become components, texts become the bad inputs of tests, and
//! each result is checked. Run by `../build`; needs no Wasm toolchain itself.
//!
//! ```text
//! componentize all MODULES DIST   # everything, into the folder DIST
//! componentize embed DIST         # DIST/hello.wasm becomes hello.wasm, with hello.sources
//! componentize fresh              # fails when hello.wasm is older than its sources
//! ```
//!
//! All are run with `wasm-apps` as the working folder. A file whose content stays is not written.

#[path = "../../../runtime/src/adapt.rs"]
mod adapt;
mod check;
mod embedded;
mod guests;

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("componentize: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[String]) -> anyhow::Result<()> {
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["all", modules, dist] => {
            let (modules, dist) = (Path::new(modules), Path::new(dist));
            fs::create_dir_all(dist).with_context(|| format!("create {}", dist.display()))?;
            for guest in guests::GUESTS {
                let bytes =
                    guest.finish(modules).with_context(|| format!("finish {}", guest.name))?;
                put(&dist.join(format!("{}.wasm", guest.name)), &bytes)?;
                println!("{:24} {:>8} bytes  {}", guest.name, bytes.len(), guest.world);
            }
            for (name, bytes) in guests::bad_inputs(Path::new("bad"), dist)? {
                put(&dist.join(&name), &bytes)?;
                println!("{name:24} {:>8} bytes  bad input", bytes.len());
            }
            Ok(())
        }
        ["embed", dist] => embedded::update(Path::new(dist)),
        ["fresh"] => embedded::check(),
        _ => bail!("usage: componentize all MODULES DIST | embed DIST | fresh"),
    }
}

/// Writes a file unless it already has this content.
fn put(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    if fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    fs::write(path, bytes).with_context(|| format!("write {}", path.display()))
}
