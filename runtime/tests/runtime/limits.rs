//! Memory and CPU limits.

use std::time::Duration;

use edgeorc_runtime::ExitReason;
use tokio::time::Instant;

use crate::support::{Node, app, exit, wat};

/// Grows by a page until it may not, then traps, as allocators do.
const GROWS: &str = r#"(module (memory (export "memory") 1) (func (export "_start")
    (loop (br_if 0 (i32.ne (memory.grow (i32.const 1)) (i32.const -1))))
    unreachable))"#;

#[tokio::test]
async fn a_guest_that_dies_at_its_memory_limit_was_oom_killed() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let mut config = node.container("grower", wat(GROWS));
    config.memory_bytes_max = Some(4 << 20);
    let container = pod.start(config).await.unwrap();
    let exit = exit(&container).await;
    assert_eq!((exit.code, exit.reason), (137, ExitReason::OomKilled));
    assert!(exit.message.contains("4194304"), "{}", exit.message);
    assert_eq!(container.usage().memory_bytes, 0);
}

#[tokio::test]
async fn the_limit_of_the_pod_holds_for_its_containers_together() {
    let node = Node::start();
    let pod = node.pod_with_memory("10.0.0.1", Some(4 << 20)).await;
    let container = pod.start(node.container("grower", wat(GROWS))).await.unwrap();
    assert_eq!(exit(&container).await.reason, ExitReason::OomKilled);
}

#[tokio::test]
async fn a_guest_that_begins_above_its_limit_is_oom_killed_at_once() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let large = r#"(module (memory (export "memory") 100) (func (export "_start")))"#;
    for (name, code) in [("command", wat(large)), ("http", app("hello"))] {
        let mut config = node.container(name, code);
        config.memory_bytes_max = Some(64 << 10);
        let container = pod.start(config).await.unwrap();
        assert_eq!(exit(&container).await.reason, ExitReason::OomKilled, "{name}");
    }
    assert!(node.get("10.0.0.1:8080", "/").await.is_err(), "its port is free again");
}

#[tokio::test]
async fn an_http_guest_out_of_memory_fails_its_request_only() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let mut config = node.container("hello", app("hello"));
    config.memory_bytes_max = Some(16 << 20);
    let container = pod.start(config).await.unwrap();
    assert!(node.get("10.0.0.1:8080", "/grow?mib=64").await.is_err());
    assert_eq!(node.get("10.0.0.1:8080", "/").await.unwrap().0, 200);
    node.logged("hello", "out of memory: container limit 16777216 bytes").await;
    assert!(container.usage().memory_bytes < 16 << 20);
}

#[tokio::test]
async fn a_cpu_limit_holds() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let spins = r#"(module (memory (export "memory") 1)
        (func (export "_start") (loop (br 0))))"#;
    let mut config = node.container("spinner", wat(spins));
    config.cpu_millis_max = Some(100);
    let container = pod.start(config).await.unwrap();
    let begin = Instant::now();
    // A stretch is counted in whole, so the last one may be three ticks of 10 ms beyond the limit,
    // and the first 10 ms are free: the other 60 of 100 ms take 600 ms.
    while container.usage().cpu < Duration::from_millis(100) {
        assert!(begin.elapsed() < crate::support::PATIENCE);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let elapsed = begin.elapsed();
    assert!(elapsed > Duration::from_millis(500), "100 ms of CPU at 100m took only {elapsed:?}");
}

#[tokio::test]
async fn cpu_time_of_requests_is_counted() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let container = pod.start(node.container("hello", app("hello"))).await.unwrap();
    node.get("10.0.0.1:8080", "/burn?ms=100").await.unwrap();
    let used = container.usage().cpu;
    assert!(used >= Duration::from_millis(50), "{used:?}");
    // Nothing runs now, so nothing is counted.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(container.usage().cpu <= used + Duration::from_millis(30));
}
