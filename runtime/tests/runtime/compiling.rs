//! What is compiled, what is refused, and with which words.

use edgeorc_runtime::{CompileError, World, compile, compile_file, inspect};

use crate::support::app_bytes;

const COMMAND: &str = r#"(module (memory (export "memory") 1) (func (export "_start")))"#;

fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

#[test]
fn worlds_are_told_without_compiling() {
    let command = wat(COMMAND);
    let reactor = wat(r#"(module (memory (export "memory") 1) (func (export "_initialize")))"#);
    assert_eq!(inspect(&command).unwrap(), World::Command);
    assert_eq!(inspect(&reactor).unwrap(), World::Reactor);
    assert_eq!(inspect(&app_bytes("hello")).unwrap(), World::HttpP2);
    assert_eq!(inspect(&app_bytes("hello-p3")).unwrap(), World::HttpP3);
    assert_eq!(inspect(&app_bytes("ticker")).unwrap(), World::Command);
    assert_eq!(inspect(&app_bytes("echo")).unwrap(), World::Command);
}

#[test]
fn garbage_is_refused_with_a_reason() {
    let text = |wasm: &[u8]| compile(wasm).unwrap_err().to_string();
    assert_eq!(
        text(b"#!/bin/sh"),
        "not a valid WebAssembly module or component: it does not begin like a Wasm file"
    );
    let hello = app_bytes("hello");
    let cut = text(&hello[..hello.len() / 2]);
    assert!(cut.contains("it is cut off after byte"), "{cut}");
    assert!(matches!(compile(b""), Err(CompileError::Invalid(_))));
    let wrong = wat(&COMMAND.replace("\"_start\")", "\"_start\") (result i32)"));
    assert!(matches!(compile(&wrong), Err(CompileError::Invalid(_))), "does not validate");
}

#[test]
fn unknown_imports_of_a_core_module_are_named() {
    let module =
        wat(r#"(module (import "env" "log" (func)) (import "wasi_snapshot_preview1" "sched_yield"
           (func (result i32))) (func (export "_start")))"#);
    let error = compile(&module).unwrap_err();
    assert!(matches!(error, CompileError::UnknownWorld(_)));
    assert!(error.to_string().starts_with("the core module imports env.log, which"), "{error}");
}

#[test]
fn a_module_with_nothing_to_run_is_refused() {
    let library = wat(r#"(module (memory (export "memory") 1) (func (export "add")))"#);
    let error = inspect(&library).unwrap_err();
    assert!(matches!(error, CompileError::UnknownWorld(_)));
    assert!(error.to_string().contains("exports neither _start"), "{error}");
}

#[test]
fn a_compiled_file_appears_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let (input, output) = (dir.path().join("a.wasm"), dir.path().join("a.cwasm"));
    std::fs::write(&input, b"not wasm").unwrap();
    assert!(compile_file(&input, &output).is_err());
    std::fs::write(&input, wat(COMMAND)).unwrap();
    compile_file(&input, &output).unwrap();
    let names: Vec<_> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert!(compile_file(&input, &dir.path().join("none/a.cwasm")).is_err());
}
