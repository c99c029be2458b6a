//! Guests that mean harm: the runtime survives, and says what was wrong.

use std::time::Duration;

use edgeorc_runtime::{CompileError, ExitReason, compile};
use tokio::time::Instant;

use crate::bad_guests::generated;
use crate::support::{Node, app, exit, wat};

/// How long a generated guest may run before it is killed.
const RUN_MAX: Duration = Duration::from_millis(20);
/// No refusal takes longer.
const REFUSAL_MAX: Duration = Duration::from_secs(20);
/// Longest text that a refusal has, in bytes.
const TEXT_BYTES_MAX: usize = 4096;

/// Compiles and runs `count` modules; tells how many ran.
async fn run_generated(count: u64) -> usize {
    let node = Node::start();
    let healthy = node.pod("10.0.0.1").await;
    healthy.start(node.container("hello", app("hello"))).await.unwrap();
    let pod = node.pod_with_memory("10.0.0.2", Some(16 << 20)).await;
    let (dir, mut ran) = (tempfile::tempdir().unwrap(), 0);
    for seed in 0..count {
        let Some(wasm) = generated(seed) else { continue };
        let compiled = match compile(&wasm) {
            Ok(compiled) => compiled,
            Err(error) => {
                assert!(error.to_string().len() < TEXT_BYTES_MAX, "{seed}: {error}");
                continue;
            }
        };
        let path = dir.path().join(format!("{seed}.cwasm"));
        std::fs::write(&path, compiled).unwrap();
        let (_, mount) = node.mount(false);
        let mut config = node.container("generated", path.clone());
        config.mounts.push(mount);
        config.log_bytes_per_second_max = 1 << 10;
        match pod.start(config).await {
            Ok(container) => {
                container.stop(RUN_MAX).await;
                let exit = exit(&container).await;
                assert!(exit.code == 0 || exit.reason != ExitReason::Completed, "{seed}: {exit:?}");
                assert_eq!(container.usage().memory_bytes, 0, "{seed}");
                ran += 1;
            }
            Err(error) => assert!(error.to_string().len() < TEXT_BYTES_MAX, "{seed}: {error}"),
        }
        std::fs::remove_file(path).unwrap();
        assert_eq!(node.get("10.0.0.1:8080", "/").await.unwrap().0, 200, "after {seed}");
    }
    ran
}

#[tokio::test]
async fn generated_modules_do_no_harm() {
    let ran = run_generated(100).await;
    assert!(ran >= 20, "only {ran} were good for anything");
}

/// Takes some twenty minutes.
#[tokio::test]
#[ignore = "long: cargo test -p edgeorc-runtime --test runtime -- --ignored ten_thousand"]
async fn ten_thousand_generated_modules_do_no_harm() {
    run_generated(10_000).await;
}

#[tokio::test]
async fn a_spinning_start_function_holds_nobody_up() {
    let node = Node::start_with(|config| config.start_wait_max = Duration::from_millis(300));
    let pod = node.pod("10.0.0.1").await;
    let spins = r#"(module (memory (export "memory") 1) (func $spin (loop (br 0)))
        (func (export "_start")) (start $spin))"#;
    let container = pod.start(node.container("command", wat(spins))).await.unwrap();
    container.stop(Duration::ZERO).await;
    assert_eq!(exit(&container).await.reason, ExitReason::Killed);

    let reactor = spins.replace("_start", "_initialize");
    let container = pod.start(node.container("reactor", wat(&reactor))).await.unwrap();
    container.stop(Duration::ZERO).await;
    assert_eq!(exit(&container).await.reason, ExitReason::Killed);

    let container = pod.start(node.container("http", wat(HTTP_SPINS))).await.unwrap();
    let exit = exit(&container).await;
    assert_eq!((exit.code, exit.reason), (134, ExitReason::Error));
    assert!(exit.message.contains("its start function does not return"), "{}", exit.message);
}

/// An HTTP component that never becomes one.
const HTTP_SPINS: &str = r#"(component
    (import "wasi:http/types@0.2.0" (instance $types
        (export "incoming-request" (type (sub resource)))
        (export "response-outparam" (type (sub resource)))))
    (alias export $types "incoming-request" (type $request))
    (alias export $types "response-outparam" (type $out))
    (core module $m (func $spin (loop (br 0))) (start $spin)
        (func (export "handle") (param i32 i32)))
    (core instance $i (instantiate $m))
    (type $handle (func (param "request" (own $request)) (param "response-out" (own $out))))
    (func $handle (type $handle) (canon lift (core func $i "handle")))
    (component $shim
        (import "request" (type $request (sub resource)))
        (import "out" (type $out (sub resource)))
        (import "handle" (func $handle
            (param "request" (own $request)) (param "response-out" (own $out))))
        (export $r "incoming-request" (type $request))
        (export $o "response-outparam" (type $out))
        (export "handle" (func $handle) (func
            (param "request" (own $r)) (param "response-out" (own $o)))))
    (instance $handler (instantiate $shim
        (with "request" (type $request)) (with "out" (type $out)) (with "handle" (func $handle))))
    (export "wasi:http/incoming-handler@0.2.0" (instance $handler)))"#;

#[test]
fn bombs_for_the_compiler_are_refused_or_compiled() {
    let nested = format!(
        r#"(module (memory (export "memory") 1) (func (export "_start") {}{}))"#,
        "block ".repeat(20_000),
        "end ".repeat(20_000)
    );
    let locals = format!(
        r#"(module (memory (export "memory") 1) (func (export "_start") (local {})))"#,
        "i64 ".repeat(49_999)
    );
    let too_many_locals = locals.replace("(local ", "(local i64 i64 i64 ");
    let components = format!("{}{}", "(component ".repeat(500), ")".repeat(500));
    let branches = format!(
        r#"(module (memory (export "memory") 1) (func (export "_start")
            (block (br_table {} (i32.const 0)))))"#,
        "0 ".repeat(100_000)
    );
    for (name, text) in [
        ("nested", nested),
        ("locals", locals),
        ("too many locals", too_many_locals),
        ("components", components),
        ("branches", branches),
    ] {
        let begin = Instant::now();
        // Nesting that the text parser does not take needs no test.
        let Ok(wasm) = wat::parse_str(&text) else { continue };
        if let Err(error) = compile(&wasm) {
            assert!(error.to_string().len() < TEXT_BYTES_MAX, "{name}: {error}");
        }
        assert!(begin.elapsed() < REFUSAL_MAX, "{name} took {:?}", begin.elapsed());
    }
}

#[test]
fn hostile_names_do_not_get_into_the_logs() {
    let long = "x".repeat(90_000);
    let many: String = (0..900).map(|at| format!(r#"(import "env" "f{at}" (func))"#)).collect();
    let modules = [
        format!(r#"(module (import "env\0a\1b[2J" "{long}" (func)) (func (export "_start")))"#),
        format!(r#"(module {many} (func (export "_start")))"#),
        format!(
            r#"(module (import "wasi_snapshot_preview1" "{long}\0d" (func))
                (memory (export "memory") 1) (func (export "_start")))"#
        ),
        // A known name with a type that it does not have.
        r#"(module (import "wasi_snapshot_preview1" "fd_write" (func (param i64)))
            (memory (export "memory") 1) (func (export "_start")))"#
            .to_owned(),
    ];
    for text in modules {
        let error = compile(&wat::parse_str(&text).unwrap()).unwrap_err();
        assert!(!matches!(error, CompileError::Failed(_)), "it is the module's fault: {error}");
        let told = error.to_string();
        assert!(told.len() < TEXT_BYTES_MAX, "{} bytes", told.len());
        assert!(!told.contains(['\u{1b}', '\r']), "{told}");
    }
}

#[tokio::test]
async fn a_guest_that_wants_more_than_the_engine_has_is_refused_in_words() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    for (want, word) in [
        ("(table 1000000 funcref)", "table"),
        ("(memory i64 1000000)", "memory"),
        ("(memory 65536)", "memory"),
    ] {
        let text = format!(
            r#"(component (core module $m {want} (func (export "run") (result i32) (i32.const 0)))
            (core instance $i (instantiate $m))
            (func $run (result (result)) (canon lift (core func $i "run")))
            (instance $exports (export "run" (func $run)))
            (export "wasi:cli/run@0.2.0" (instance $exports)))"#
        );
        let mut config = node.container("greedy", wat(&text));
        config.memory_bytes_max = Some(64 << 20);
        let told = match pod.start(config).await {
            Ok(container) => {
                let exit = exit(&container).await;
                assert_ne!(exit.code, 0, "{want}");
                exit.message
            }
            Err(error) => error.to_string(),
        };
        assert!(told.contains(word), "{want}: {told}");
    }
}
