//! What guests import: all that is missing is named; what must be granted works when it is.

use std::collections::{BTreeMap, BTreeSet};

use edgeorc_runtime::{Capability, StartError};

use crate::support::{Node, exit, wat};

/// A command that imports `imports` and succeeds.
fn command(imports: &str) -> String {
    format!(
        r#"(component {imports}
            (core module $m (func (export "run") (result i32) (i32.const 0)))
            (core instance $i (instantiate $m))
            (func $run (result (result)) (canon lift (core func $i "run")))
            (instance $exports (export "run" (func $run)))
            (export "wasi:cli/run@0.2.0" (instance $exports)))"#
    )
}

#[tokio::test]
async fn all_missing_imports_are_named_before_anything_runs() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let needy = command(
        r#"(import "acme:gpio/pins@1.0.0" (instance (export "set" (func))))
        (import "wasi:cli/environment@0.2.0" (instance
            (export "get-arguments" (func (result (list string))))))
        (import "acme:gpio/bus@1.0.0" (instance $bus
            (export "wire" (type $wire (sub resource)))
            (export "open" (func (result (own $wire))))))
        (alias export $bus "wire" (type $wire))
        (import "acme:gpio/spi@1.0.0" (instance
            (alias outer 1 $wire (type $outer))
            (export "wire" (type $wire (eq $outer)))
            (export "send" (func (param "to" (borrow $wire))))))
        (import "log" (func))"#,
    );
    let error = pod.start(node.container("needy", wat(&needy))).await.err().unwrap();
    let StartError::MissingImports(missing) = error else { panic!("{error}") };
    let names: Vec<_> = missing.named.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(
        names,
        ["acme:gpio/pins@1.0.0", "acme:gpio/bus@1.0.0", "acme:gpio/spi@1.0.0", "log"]
    );
    assert!(missing.named.iter().all(|one| one.capability.is_none()));
    assert!(missing.to_string().contains("(provided: wasi:cli, "), "{missing}");
}

#[tokio::test]
async fn a_function_that_an_interface_lacks_is_a_missing_import() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let needy = command(
        r#"(import "wasi:cli/environment@0.2.9" (instance (export "set-variable" (func))))"#,
    );
    let error = pod.start(node.container("needy", wat(&needy))).await.err().unwrap();
    assert!(error.to_string().contains("wasi:cli/environment@0.2.9"), "{error}");
}

#[tokio::test]
async fn what_must_be_granted_is_denied_by_default() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let error = pod.start(node.container("config", wat(CONFIG))).await.err().unwrap();
    let StartError::MissingImports(missing) = error else { panic!("{error}") };
    let first = missing.named.first().unwrap();
    assert_eq!(first.name, "wasi:config/store@0.2.0-rc.1");
    assert_eq!(first.capability, Some(Capability::Config));
    let text = missing.describe(|_| "grant it".to_owned());
    assert_eq!(text, "the component imports wasi:config/store@0.2.0-rc.1: grant it");

    let error = pod.start(node.container("kv", wat(&counter("hits")))).await.err().unwrap();
    let text = error.to_string();
    assert!(text.contains("wasi:keyvalue/store@0.2.0-draft: its pod was not granted"), "{text}");
    assert!(text.contains("wasi:keyvalue/atomics@0.2.0-draft"), "{text}");
}

/// Exits with 0 if the key `color` has a value, else traps.
const CONFIG: &str = r#"(component
    (type $error' (variant (case "upstream" string) (case "io" string)))
    (import "wasi:config/store@0.2.0-rc.1" (instance $store
        (type $error' (variant (case "upstream" string) (case "io" string)))
        (export "error" (type $error (eq $error')))
        (export "get" (func (param "key" string)
            (result (result (option string) (error $error)))))))
    (core module $libc
        (memory (export "memory") 1)
        (data (i32.const 8) "color")
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
    (core instance $libc (instantiate $libc))
    (core func $get (canon lower (func $store "get")
        (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
    (core module $m
        (import "libc" "memory" (memory 1))
        (import "host" "get" (func $get (param i32 i32 i32)))
        (func (export "run") (result i32)
            (call $get (i32.const 8) (i32.const 5) (i32.const 64))
            ;; result: 64, option: 68, pointer: 72, length: 76
            (if (i32.load8_u (i32.const 64)) (then unreachable))
            (if (i32.eqz (i32.load8_u (i32.const 68))) (then (return (i32.const 1))))
            (if (i32.ne (i32.load (i32.const 76)) (i32.const 4)) (then unreachable))
            (i32.const 0)))
    (core instance $i (instantiate $m
        (with "libc" (instance $libc))
        (with "host" (instance (export "get" (func $get))))))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance $exports (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $exports)))"#;

#[tokio::test]
async fn configured_values_are_read() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    for (values, code) in [(BTreeMap::from([("color", "blue")]), 0), (BTreeMap::new(), 1)] {
        let mut config = node.container("config", wat(CONFIG));
        let values = values.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned()));
        config.config = Some(values.collect());
        let container = pod.start(config).await.unwrap();
        let exit = exit(&container).await;
        assert_eq!(exit.code, code, "{}", exit.message);
    }
}

#[tokio::test]
async fn a_guest_cannot_make_the_host_copy_a_huge_buffer() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let huge = CONFIG
        .replace(r#"(memory (export "memory") 1)"#, r#"(memory (export "memory") 400)"#)
        .replace("(i32.const 8) (i32.const 5)", "(i32.const 8) (i32.const 17000000)");
    let mut config = node.container("huge", wat(&huge));
    config.config = Some(BTreeMap::new());
    let exit = exit(&pod.start(config).await.unwrap()).await;
    assert_eq!(exit.code, 134, "{}", exit.message);
    assert!(exit.message.contains("fuel"), "{}", exit.message);
}

/// Adds 1 to the key `n` of a bucket. Fails if that does not work or the sum is 3; traps if the
/// bucket cannot be opened.
fn counter(bucket: &str) -> String {
    let length = bucket.len();
    format!(
        r#"(component
    (import "wasi:keyvalue/store@0.2.0-draft" (instance $store
        (export "bucket" (type $bucket (sub resource)))
        (type $error' (variant (case "no-such-store") (case "access-denied") (case "other" string)))
        (export "error" (type $error (eq $error')))
        (export "open" (func (param "identifier" string)
            (result (result (own $bucket) (error $error)))))))
    (alias export $store "bucket" (type $bucket))
    (alias export $store "error" (type $error))
    (import "wasi:keyvalue/atomics@0.2.0-draft" (instance $atomics
        (alias outer 1 $bucket (type $bucket'))
        (export "bucket" (type $bucket (eq $bucket')))
        (alias outer 1 $error (type $error'))
        (export "error" (type $error (eq $error')))
        (export "increment" (func (param "bucket" (borrow $bucket)) (param "key" string)
            (param "delta" u64) (result (result u64 (error $error)))))))
    (core module $libc
        (memory (export "memory") 1)
        (data (i32.const 8) "n")
        (data (i32.const 16) "{bucket}")
        (func (export "realloc") (param i32 i32 i32 i32) (result i32) (i32.const 1024)))
    (core instance $libc (instantiate $libc))
    (core func $open (canon lower (func $store "open")
        (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
    (core func $increment (canon lower (func $atomics "increment")
        (memory (core memory $libc "memory")) (realloc (core func $libc "realloc"))))
    (core module $m
        (import "libc" "memory" (memory 1))
        (import "host" "open" (func $open (param i32 i32 i32)))
        (import "host" "increment" (func $increment (param i32 i32 i32 i64 i32)))
        (func (export "run") (result i32)
            (call $open (i32.const 16) (i32.const {length}) (i32.const 64))
            (if (i32.load8_u (i32.const 64)) (then unreachable))
            (call $increment (i32.load (i32.const 68)) (i32.const 8) (i32.const 1) (i64.const 1)
                (i32.const 80))
            (if (i32.load8_u (i32.const 80)) (then (return (i32.const 1))))
            (i64.eq (i64.load (i32.const 88)) (i64.const 3))))
    (core instance $i (instantiate $m
        (with "libc" (instance $libc))
        (with "host" (instance (export "open" (func $open)) (export "increment" (func $increment))))))
    (func $run (result (result)) (canon lift (core func $i "run")))
    (instance $exports (export "run" (func $run)))
    (export "wasi:cli/run@0.2.0" (instance $exports)))"#
    )
}

#[tokio::test]
async fn a_granted_bucket_outlives_its_guests_and_others_are_denied() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let run = async |bucket: &str| {
        let mut config = node.container("kv", wat(&counter(bucket)));
        config.buckets = Some(BTreeSet::from(["hits".to_owned(), "default".to_owned()]));
        exit(&pod.start(config).await.unwrap()).await.code
    };
    assert_eq!([run("hits").await, run("hits").await, run("hits").await], [0, 0, 1], "1, 2, 3");
    assert_eq!(run("").await, 0, "no name is the default bucket, another one");
    assert_eq!(run("other").await, 134, "not granted");
    assert_eq!(run("no/name").await, 134);
}
