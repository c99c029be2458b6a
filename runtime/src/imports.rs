//! Imports that a component wants and does not get, and how that is said.
//!
//! Data in: what the linker said about a component. Data out: the names of all missing imports,
//! each with the capability that would grant it.
//!
//! # Invariants
//!
//! - Names come from strangers' components: how many are told, and how long each may be, is bounded.

use std::fmt::{self, Write as _};

use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker, ResourceType};

use crate::guest::Guest;
use crate::types::StartError;

/// Missing imports told by name; the rest is counted.
const NAMED_MAX: usize = 8;
/// Missing imports looked for at all.
const FOUND_MAX: usize = 64;
/// Longest part of an import's name that is told, in bytes.
const NAME_BYTES_MAX: usize = 128;

/// What there is, for a person whose component wants something else.
const PROVIDED: &str = "wasi:cli, wasi:clocks, wasi:filesystem, wasi:http, wasi:random and \
     wasi:sockets 0.2 and 0.3, wasi:io 0.2, wasi:tls 0.2.0-draft and 0.3.0-draft (clients), wasi:config 0.2.0-rc.1, \
     wasi:keyvalue 0.2.0-draft";

/// Something that guests get only if their pod was granted it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// `wasi:config`: values set for the pod.
    Config,
    /// `wasi:keyvalue`: buckets of the pod's namespace.
    KeyValue,
}

impl Capability {
    /// What `import` needs, if it needs anything.
    fn of(import: &str) -> Option<Self> {
        match import.split_once('/')?.0 {
            "wasi:config" => Some(Self::Config),
            "wasi:keyvalue" => Some(Self::KeyValue),
            _ => None,
        }
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Config => "config",
            Self::KeyValue => "keyvalue",
        })
    }
}

/// One import that a component does not get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingImport {
    /// Interface or function, as the component names it.
    pub name: String,
    /// What would have to be granted; `None` if nothing provides it.
    pub capability: Option<Capability>,
}

/// All imports that a component does not get. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingImports {
    /// By name, in the component's order; at most eight.
    pub named: Vec<MissingImport>,
    /// Further ones.
    pub more: usize,
}

impl MissingImports {
    pub(crate) fn new(mut all: Vec<MissingImport>) -> Self {
        let more = all.len().saturating_sub(NAMED_MAX);
        all.truncate(NAMED_MAX);
        Self { named: all, more }
    }

    /// One line for people. `grant` tells how a capability is granted where they are.
    #[must_use]
    pub fn describe(&self, grant: impl Fn(Capability) -> String) -> String {
        let mut parts = Vec::new();
        let unknown: Vec<_> = self.named.iter().filter(|one| one.capability.is_none()).collect();
        if !unknown.is_empty() {
            let names: Vec<_> = unknown.iter().map(|one| one.name.as_str()).collect();
            parts.push(format!("{}, which edgeorc does not provide", names.join(", ")));
        }
        for one in &self.named {
            if let Some(capability) = one.capability {
                parts.push(format!("{}: {}", one.name, grant(capability)));
            }
        }
        let mut text = format!("the component imports {}", parts.join("; and "));
        if self.more > 0 {
            // Writing to a string cannot fail.
            let _ = write!(text, "; and {} more", self.more);
        }
        if !unknown.is_empty() {
            let _ = write!(text, " (provided: {PROVIDED})");
        }
        text
    }
}

impl fmt::Display for MissingImports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self
            .describe(|capability| format!("its pod was not granted the capability {capability}"));
        f.write_str(&text)
    }
}

/// The imports of a component that a pod must be granted.
pub(crate) fn gated<'a>(imports: impl Iterator<Item = &'a str>) -> Vec<MissingImport> {
    imports
        .filter_map(|name| {
            let capability = Some(Capability::of(name)?);
            Some(MissingImport { name: shorten(name), capability })
        })
        .take(FOUND_MAX)
        .collect()
}

/// Finds all that `linker` does not offer, beginning with what it said first.
///
/// The linker tells one missing import at a time, so each is filled in with something that nobody
/// will call, and the linker is asked again.
pub(crate) fn missing(
    linker: &Linker<Guest>,
    component: &Component,
    first: &wasmtime::Error,
) -> StartError {
    let ty = component.component_type();
    let imports: Vec<_> = ty.imports(linker.engine()).collect();
    let mut linker = linker.clone();
    linker.allow_shadowing(true);
    let mut found: Vec<usize> = Vec::new();
    let mut text = format!("{first:#}");
    while found.len() < FOUND_MAX {
        let next = imports
            .iter()
            .enumerate()
            .filter(|(_, (name, _))| text.contains(&format!("`{name}`, but")))
            .max_by_key(|(_, (name, _))| name.len());
        let Some((at, (name, item))) = next else { break };
        // What is named again cannot be filled in.
        if found.contains(&at) {
            break;
        }
        found.push(at);
        if fill_in(&mut linker, name, &item.ty).is_err() {
            break;
        }
        match linker.instantiate_pre(component) {
            Ok(_) => break,
            Err(error) => text = format!("{error:#}"),
        }
    }
    if found.is_empty() {
        return StartError::Unsupported { reason: format!("{first:#}") };
    }
    found.sort_unstable();
    let named = found.into_iter().filter_map(|at| imports.get(at));
    let all =
        named.map(|(name, _)| MissingImport { name: shorten(name), capability: None }).collect();
    StartError::MissingImports(MissingImports::new(all))
}

/// A name as it may be told: bounded, on one line.
pub(crate) fn shorten(name: &str) -> String {
    let begin = name.get(..name.floor_char_boundary(NAME_BYTES_MAX)).unwrap_or(name);
    begin.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Offers an import in name only.
fn fill_in(linker: &mut Linker<Guest>, name: &str, item: &ComponentItem) -> wasmtime::Result<()> {
    let engine = linker.engine().clone();
    let refuse = || wasmtime::format_err!("a missing import was called");
    match item {
        ComponentItem::ComponentFunc(_) => {
            linker.root().func_new(name, move |_, _, _, _| Err(refuse()))
        }
        ComponentItem::ComponentInstance(instance) => {
            let mut offered = linker.instance(name)?;
            for (name, item) in instance.exports(&engine) {
                match item.ty {
                    ComponentItem::ComponentFunc(_) => {
                        offered.func_new(name, move |_, _, _, _| Err(refuse()))?;
                    }
                    ComponentItem::Resource(_) => {
                        offered.resource(name, ResourceType::host::<()>(), |_, _| Ok(()))?;
                    }
                    _ => {}
                }
            }
            Ok(())
        }
        _ => Err(refuse()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown(name: &str) -> MissingImport {
        MissingImport { name: name.to_owned(), capability: Capability::of(name) }
    }

    #[test]
    fn each_import_is_told_with_its_remedy() {
        let all = ["a:b/c", "wasi:keyvalue/store@0.2.0-draft", "d:e/f@1.0.0"];
        let missing = MissingImports::new(all.into_iter().map(unknown).collect());
        let text = missing.describe(|capability| format!("grant {capability}"));
        let begin = "the component imports a:b/c, d:e/f@1.0.0, which edgeorc does not provide; \
                     and wasi:keyvalue/store@0.2.0-draft: grant keyvalue (provided: wasi:cli";
        assert!(text.starts_with(begin), "{text}");
    }

    #[test]
    fn a_long_list_is_counted() {
        let all = (0..100).map(|at| unknown(&format!("a:b/c{at}"))).collect();
        let missing = MissingImports::new(all);
        assert_eq!((missing.named.len(), missing.more), (NAMED_MAX, 92));
        assert!(missing.to_string().contains("; and 92 more"), "{missing}");
    }

    #[test]
    fn names_are_cut_and_kept_on_their_line() {
        assert_eq!(shorten(&"ü".repeat(100)).len(), NAME_BYTES_MAX);
        assert_eq!(shorten("a\nb\u{1b}[0m"), "a\u{fffd}b\u{fffd}[0m");
    }
}
