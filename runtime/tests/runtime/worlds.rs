//! Every kind of guest that runs, and components made of several.

use edgeorc_runtime::{CompileError, ExitReason, World, inspect};

use crate::support::{Node, exit, wat};

/// A command whose `run` returns what the component `lib` says: 1, which is a failure.
const COMPOSED: &str = r#"(component
    (component $lib
        (core module $m (func (export "answer") (result i32) (i32.const 1)))
        (core instance $i (instantiate $m))
        (func (export "answer") (result u32) (canon lift (core func $i "answer"))))
    (component $app
        (import "answer" (func $answer (result u32)))
        (core func $lowered (canon lower (func $answer)))
        (core module $m
            (import "lib" "answer" (func $answer (result i32)))
            (func (export "run") (result i32) (call $answer)))
        (core instance $i (instantiate $m
            (with "lib" (instance (export "answer" (func $lowered))))))
        (func $run (result (result)) (canon lift (core func $i "run")))
        (instance $exports (export "run" (func $run)))
        (export "wasi:cli/run@0.2.0" (instance $exports)))
    (instance $one (instantiate $lib))
    (instance $two (instantiate $app (with "answer" (func $one "answer"))))
    (export "wasi:cli/run@0.2.0" (instance $two "wasi:cli/run@0.2.0")))"#;

/// A command of WASI p3 that fails.
const COMMAND_P3: &str = r#"(component
    (core module $m (func (export "run") (result i32) (i32.const 1)))
    (core instance $i (instantiate $m))
    (func $run async (result (result)) (canon lift (core func $i "run")))
    (instance $exports (export "run" (func $run)))
    (export "wasi:cli/run@0.3.0" (instance $exports)))"#;

/// Exports a function that is none of the known ones.
const REACTOR: &str = r#"(component
    (core module $m (memory (export "memory") 1) (func (export "f")))
    (core instance $i (instantiate $m))
    (func (export "greet") (canon lift (core func $i "f"))))"#;

#[tokio::test]
async fn composed_components_call_each_other() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let container = pod.start(node.container("composed", wat(COMPOSED))).await.unwrap();
    let exit = exit(&container).await;
    assert_eq!((exit.code, exit.reason), (1, ExitReason::Error), "{}", exit.message);
}

/// Eight copies of a component with a memory of its own, chained by their exports: what a tool
/// that composes makes of eight parts.
#[tokio::test]
async fn a_composition_of_many_parts_fits_the_pool() {
    let mut text = String::from(
        r#"(component (component $part
            (import "next" (func $next (result u32)))
            (core func $lowered (canon lower (func $next)))
            (core module $shim (table (export "t") 1 funcref))
            (core instance $s (instantiate $shim))
            (core module $m
                (import "next" "next" (func $next (result i32)))
                (memory (export "memory") 1)
                (func (export "f") (result i32) (i32.add (call $next) (i32.const 1))))
            (core instance $i (instantiate $m
                (with "next" (instance (export "next" (func $lowered))))))
            (func (export "f") (result u32) (canon lift (core func $i "f"))))
        (component $zero
            (core module $m (func (export "f") (result i32) (i32.const -12)))
            (core instance $i (instantiate $m))
            (func (export "f") (result u32) (canon lift (core func $i "f"))))
        (instance $part0 (instantiate $zero))"#,
    );
    for at in 1..=12 {
        text.push_str(&format!(
            r#"(instance $part{at} (instantiate $part (with "next" (func $part{} "f"))))"#,
            at - 1
        ));
    }
    // The sum is 0: success.
    text.push_str(
        r#"(component $app
            (import "f" (func $f (result u32)))
            (core func $lowered (canon lower (func $f)))
            (core module $m (import "f" "f" (func $f (result i32)))
                (func (export "run") (result i32) (call $f)))
            (core instance $i (instantiate $m (with "f" (instance (export "f" (func $lowered))))))
            (func $run (result (result)) (canon lift (core func $i "run")))
            (instance $exports (export "run" (func $run)))
            (export "wasi:cli/run@0.2.0" (instance $exports)))
        (instance $end (instantiate $app (with "f" (func $part12 "f"))))
        (export "wasi:cli/run@0.2.0" (instance $end "wasi:cli/run@0.2.0")))"#,
    );
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let container = pod.start(node.container("parts", wat(&text))).await.unwrap();
    let exit = exit(&container).await;
    assert_eq!((exit.code, exit.reason), (0, ExitReason::Completed), "{}", exit.message);
}

#[tokio::test]
async fn a_p3_command_runs_to_its_end() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let container = pod.start(node.container("p3", wat(COMMAND_P3))).await.unwrap();
    let exit = exit(&container).await;
    assert_eq!((exit.code, exit.reason), (1, ExitReason::Error), "{}", exit.message);
}

#[tokio::test]
async fn a_component_with_other_exports_is_kept() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let container = pod.start(node.container("reactor", wat(REACTOR))).await.unwrap();
    assert!(container.usage().memory_bytes >= 64 << 10);
    container.stop(std::time::Duration::ZERO).await;
    assert_eq!(exit(&container).await.reason, ExitReason::Killed);
}

#[test]
fn a_component_that_nobody_can_call_is_refused() {
    let inspect = |text: &str| inspect(&wat::parse_str(text).unwrap());
    assert_eq!(inspect(REACTOR).unwrap(), World::Reactor);
    assert_eq!(inspect(COMPOSED).unwrap(), World::Command);
    assert_eq!(inspect(COMMAND_P3).unwrap(), World::Command);
    let refused = |text: &str| match inspect(text).unwrap_err() {
        CompileError::UnknownWorld(reason) => reason,
        other => panic!("{other}"),
    };
    let nothing = refused("(component)");
    assert!(nothing.contains("exports nothing"), "{nothing}");
    let draft = refused(&COMMAND_P3.replace("@0.3.0", "@0.3.0-rc-2025-09-16"));
    assert!(draft.contains("wasi:cli/run@0.3.0-rc-2025-09-16, which is none"), "{draft}");
}
