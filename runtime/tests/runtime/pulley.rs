//! Guests under the interpreter, as on machines for which there is no code generator.

use std::time::Duration;

use edgeorc_runtime::{ExitReason, Machine, PodRuntime as _, StartError, compatibility_hash_for};

use crate::support::{Node, app, app_bytes, exit, interpreted};

const SPINS: &str = r#"(module (memory (export "memory") 1)
    (func (export "_start") (loop (br 0))))"#;

/// Grows by a page until it may not, then traps, as allocators do.
const GROWS: &str = r#"(module (memory (export "memory") 1) (func (export "_start")
    (loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
    unreachable))"#;

/// Reads what it does not have.
const STRAYS: &str = r#"(module (memory (export "memory") 1) (func (export "_start")
    (drop (i32.load (i32.const 0x7fff0000)))))"#;

/// Calls itself until there is no stack left.
const RECURSES: &str = r#"(module (memory (export "memory") 1)
    (func $f (param i32) (result i32) (i32.add (call $f (local.get 0)) (i32.const 1)))
    (func (export "_start") (drop (call $f (i32.const 1)))))"#;

/// Address bits of the machines that are played: one of 32 bits, and this one.
const MACHINES: [Option<u32>; 2] = [Some(32), None];

fn node(bits: Option<u32>) -> Node {
    Node::start_with(|config| {
        config.is_interpreted = true;
        config.address_bits_max = bits;
    })
}

fn wasm(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

#[tokio::test]
async fn components_are_compiled_for_it_and_served() {
    for bits in MACHINES {
        let node = node(bits);
        assert!(node.runtime.machine().contains("interpreted by Pulley"));
        let machine = Machine::probe().with_address_bits_max(bits).interpreted();
        assert_eq!(node.runtime.compatibility_hash(), compatibility_hash_for(machine));
        let pod = node.pod("10.0.0.1").await;
        let code = interpreted(bits, &app_bytes("hello"));
        let container = pod.start(node.container("hello", code)).await.unwrap();
        for _ in 0..3 {
            let (status, text) = node.send("10.0.0.1:8080", "/echo", "some body").await.unwrap();
            assert_eq!((status, text.as_str()), (200, "some body"));
        }
        assert!(container.usage().cpu > Duration::ZERO);
        let code = interpreted(bits, &app_bytes("hello-p3"));
        let mut config = node.container("hello-p3", code);
        config.http_port = 8081;
        pod.start(config).await.unwrap();
        let (status, text) = node.get("10.0.0.1:8081", "/").await.unwrap();
        assert!(status == 200 && text.starts_with("Hello"), "{text}");
    }
}

#[tokio::test]
async fn limits_hold_and_traps_are_told() {
    for bits in MACHINES {
        let node = node(bits);
        let pod = node.pod("10.0.0.1").await;
        let start = async |name: &str, text: &str, memory: Option<u64>| {
            let mut config = node.container(name, interpreted(bits, &wasm(text)));
            config.memory_bytes_max = memory;
            pod.start(config).await.unwrap()
        };
        let grown = exit(&start("grows", GROWS, Some(4 << 20)).await).await;
        assert_eq!((grown.code, grown.reason), (137, ExitReason::OomKilled), "{}", grown.message);
        let strayed = exit(&start("strays", STRAYS, None).await).await;
        assert_eq!(strayed.code, 134);
        assert!(strayed.message.contains("out of bounds memory access"), "{}", strayed.message);
        let sunk = exit(&start("recurses", RECURSES, None).await).await;
        assert!(sunk.message.contains("call stack exhausted"), "{}", sunk.message);
    }
}

#[tokio::test]
async fn a_spinning_guest_is_interrupted_throttled_and_stopped() {
    let node = node(Some(32));
    let pod = node.pod("10.0.0.1").await;
    let mut config = node.container("spins", interpreted(Some(32), &wasm(SPINS)));
    config.cpu_millis_max = Some(100);
    let spinner = pod.start(config).await.unwrap();
    // On the one thread that guests have here, others have their turn.
    let code = interpreted(Some(32), &app_bytes("hello"));
    pod.start(node.container("hello", code)).await.unwrap();
    assert_eq!(node.get("10.0.0.1:8080", "/").await.unwrap().0, 200);
    let before = spinner.usage().cpu;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let used = spinner.usage().cpu.saturating_sub(before);
    assert!(used < Duration::from_millis(300), "{used:?} of 500 ms, with a tenth of a core");
    spinner.stop(Duration::ZERO).await;
    assert_eq!(exit(&spinner).await.reason, ExitReason::Killed);
}

#[tokio::test]
async fn native_code_is_refused_by_it_and_its_code_by_others() {
    let (native, pulley) = (Node::start(), node(None));
    let pods = [native.pod("10.0.0.1").await, pulley.pod("10.0.0.1").await];
    let codes = [interpreted(None, &app_bytes("hello")), app("hello")];
    for ((pod, node), code) in pods.iter().zip([&native, &pulley]).zip(codes) {
        let refused = pod.start(node.container("hello", code)).await.err().unwrap();
        assert!(matches!(refused, StartError::Unsupported { .. }), "{refused}");
    }
}
