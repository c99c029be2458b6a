//! Memory and CPU limits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use edgeorc_runtime::{ExitReason, Machine, MayRun, VolumeLimit};
use tokio::time::Instant;

use crate::support::{Node, app, app_bytes, compiled_for, exit, wat};

const SPINS: &str = r#"(module (memory (export "memory") 1)
    (func (export "_start") (loop (br 0))))"#;

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
async fn a_pods_cpu_time_goes_on_over_the_runs_of_its_containers() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let mut last = Duration::ZERO;
    for _ in 0..3 {
        let container = pod.start(node.container("spinner", wat(SPINS))).await.unwrap();
        assert!(pod.usage().cpu >= last && pod.usage().memory_bytes >= 64 << 10);
        while container.usage().cpu < Duration::from_millis(20) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        container.stop(Duration::ZERO).await;
        let used = pod.usage().cpu;
        assert!(used >= last + Duration::from_millis(20), "{used:?} after {last:?}");
        last = used;
    }
    assert_eq!(pod.usage().memory_bytes, 0);
}

#[tokio::test]
async fn the_limit_of_the_pod_holds_for_its_containers_together() {
    let node = Node::start();
    let pod = node.pod_with_memory("10.0.0.1", Some(4 << 20)).await;
    let container = pod.start(node.container("grower", wat(GROWS))).await.unwrap();
    assert_eq!(exit(&container).await.reason, ExitReason::OomKilled);
}

#[tokio::test]
async fn guests_without_a_limit_leave_the_node_its_memory() {
    let node = Node::start_with(|config| config.memory_bytes_max = Some(64 << 20));
    let (large, small) = (node.pod("10.0.0.1").await, node.pod("10.0.0.2").await);
    // Neither pod has a limit, and both try to take all there is at the same time.
    let one = large.start(node.container("one", wat(GROWS))).await.unwrap();
    let two = small.start(node.container("two", wat(GROWS))).await.unwrap();
    for container in [&one, &two] {
        let exit = exit(container).await;
        assert_eq!((exit.code, exit.reason), (137, ExitReason::OomKilled), "{}", exit.message);
        assert!(exit.message.contains("limit of all pods 67108864 bytes"), "{}", exit.message);
    }
    // What they had is free again.
    let pod = node.pod("10.0.0.3").await;
    pod.start(node.container("hello", app("hello"))).await.unwrap();
    assert_eq!(node.get("10.0.0.3:8080", "/grow?mib=32").await.unwrap().0, 200);
}

#[tokio::test]
async fn where_addresses_are_short_the_memories_alone_limit_how_many_guests_run() {
    const BITS: Option<u32> = Some(38);
    // 511 memories fit, and an adapted module is a component of five instances and one memory.
    const GUESTS: u8 = 250;
    let node = Node::start_with(|config| config.address_bits_max = BITS);
    let machine = Machine::probe().with_address_bits_max(BITS);
    let code = compiled_for(machine, &app_bytes("hello"));
    let mut running = Vec::new();
    for guest in 1..=GUESTS {
        for half in 0..2 {
            let pod = node.pod(&format!("10.0.{half}.{guest}")).await;
            let container = pod.start(node.container("hello", code.clone())).await.unwrap();
            running.push((pod, container));
        }
    }
    assert_eq!(node.get("10.0.1.250:8080", "/").await.unwrap().0, 200);
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
    let mut config = node.container("spinner", wat(SPINS));
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

/// Goal: a guest that may not run does not, be it in the middle of its computing or a request; and goes
/// on where it was. Method: a switch that the runtime asks.
#[tokio::test]
async fn a_guest_that_may_not_run_stands_still_until_it_may() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let switch = Arc::new(AtomicBool::new(true));
    let may_run = || {
        let switch = Arc::clone(&switch);
        Some(MayRun::new(move || switch.load(Ordering::Relaxed)))
    };
    let mut config = node.container("spinner", wat(SPINS));
    config.may_run = may_run();
    let spinner = pod.start(config).await.unwrap();
    let mut config = node.container("hello", app("hello"));
    config.may_run = may_run();
    let _hello = pod.start(config).await.unwrap();
    assert_eq!(node.get("10.0.0.1:8080", "/").await.unwrap().0, 200);
    let until_above = async |used: Duration| {
        let begin = Instant::now();
        while spinner.usage().cpu <= used {
            assert!(begin.elapsed() < crate::support::PATIENCE);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    until_above(Duration::from_millis(20)).await;
    switch.store(false, Ordering::Relaxed);
    // It sees that at its next tick, which may be late on a busy machine.
    let mut used = Duration::ZERO;
    while spinner.usage().cpu != used {
        used = spinner.usage().cpu;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(node.get("10.0.0.1:8080", "/").await.is_err(), "it takes no requests");
    assert_eq!(spinner.usage().cpu, used);
    switch.store(true, Ordering::Relaxed);
    until_above(used).await;
    assert_eq!(node.get("10.0.0.1:8080", "/").await.unwrap().0, 200);
    switch.store(false, Ordering::Relaxed);
    spinner.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn a_limited_guest_gets_its_share() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let mut config = node.container("spinner", wat(SPINS));
    config.cpu_millis_max = Some(100);
    let container = pod.start(config).await.unwrap();
    let begin = Instant::now();
    // 200 ms are earned, and 10 ms are free; the latest stretch may be overdrawn. Others may leave it less
    // of the machine, but not all the time.
    let (least, most) = (Duration::from_millis(100), Duration::from_millis(300));
    loop {
        let before = container.usage().cpu;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let used = container.usage().cpu - before;
        assert!(used < most, "{used:?} in 2 s at 100m");
        if used >= least {
            break;
        }
        assert!(begin.elapsed() < crate::support::PATIENCE, "never more than {used:?} in 2 s");
    }
}

#[tokio::test]
async fn busy_guests_share_a_thread_by_their_requests() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let mut spinners = Vec::new();
    for (name, millis) in [("one", 100), ("three", 300)] {
        let mut config = node.container(name, wat(SPINS));
        config.cpu_millis = Some(millis);
        spinners.push(pod.start(config).await.unwrap());
    }
    let [one, three] = &spinners[..] else { unreachable!() };
    let begin = Instant::now();
    // They run where nobody else wants the processor: how long that takes is the machine's business,
    // and who is in the middle of a stretch when it does.
    loop {
        let before = [one.usage().cpu, three.usage().cpu];
        let used = || [one.usage().cpu - before[0], three.usage().cpu - before[1]];
        while used().iter().sum::<Duration>() < Duration::from_millis(1200) {
            assert!(
                begin.elapsed() < Duration::from_secs(300),
                "the thread was idle: {:?}",
                used()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let used = used();
        let ratio = used[1].as_secs_f64() / used[0].as_secs_f64();
        if (2.0..4.5).contains(&ratio) {
            break;
        }
        assert!(begin.elapsed() < crate::support::PATIENCE, "{used:?}: 1 to {ratio:.1}");
    }
}

/// Grows a table by 1000 elements until it may not, then exits with 7.
const GROWS_TABLE: &str = r#"(module
    (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
    (memory (export "memory") 1)
    (table $t 1 funcref)
    (func (export "_start")
        (loop (br_if 0 (i32.ne (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1))))
        (call $proc_exit (i32.const 7))))"#;

#[tokio::test]
async fn tables_are_bounded_and_count_as_memory() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let container = pod.start(node.container("tables", wat(GROWS_TABLE))).await.unwrap();
    assert_eq!(exit(&container).await.code, 7, "the guest is told that it cannot grow");
    let dies = GROWS_TABLE.replace("(call $proc_exit (i32.const 7))", "unreachable");
    let mut config = node.container("tables", wat(&dies));
    config.memory_bytes_max = Some(256 << 10);
    let container = pod.start(config).await.unwrap();
    assert_eq!(exit(&container).await.reason, ExitReason::OomKilled);
}

#[tokio::test]
async fn a_request_for_too_many_random_bytes_traps() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    for (bytes, code) in [(1 << 20, 0), ((1 << 20) + 1, 134)] {
        let guest = format!(
            r#"(module
            (import "wasi_snapshot_preview1" "random_get"
                (func $random_get (param i32 i32) (result i32)))
            (memory (export "memory") 64)
            (func (export "_start")
                (drop (call $random_get (i32.const 1024) (i32.const {bytes})))))"#
        );
        let container = pod.start(node.container("random", wat(&guest))).await.unwrap();
        let exit = exit(&container).await;
        assert_eq!(exit.code, code, "{}", exit.message);
    }
}

/// Makes a file in the first preopened folder and writes 1000 bytes at a time to it; exits with
/// WASI's number of the first error.
const FILLS: &str = r#"(module
    (import "wasi_snapshot_preview1" "path_open" (func $path_open
        (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "fd_write"
        (func $fd_write (param i32 i32 i32 i32) (result i32)))
    (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
    (memory (export "memory") 1)
    (data (i32.const 8) "\00\04\00\00\e8\03\00\00")
    (data (i32.const 16) "file")
    (func (export "_start") (local $error i32)
        (if (call $path_open
            (i32.const 3) (i32.const 0) (i32.const 16) (i32.const 4) (i32.const 1)
            (i64.const 64) (i64.const 0) (i32.const 0) (i32.const 0)) (then unreachable))
        (loop
            (local.set $error
                (call $fd_write (i32.load (i32.const 0)) (i32.const 8) (i32.const 1) (i32.const 4)))
            (br_if 0 (i32.eqz (local.get $error))))
        (call $proc_exit (local.get $error))))"#;
/// `ENOSPC` of WASI preview 1.
const NO_SPACE: i32 = 51;

#[tokio::test]
async fn a_volume_does_not_grow_beyond_its_limit() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let (folder, mut mount) = node.mount(false);
    std::fs::write(folder.join("before"), [0; 5000]).unwrap();
    mount.limit = Some(VolumeLimit { root: folder.clone(), bytes_max: 20_000 });
    for _ in 0..2 {
        let mut config = node.container("filler", wat(FILLS));
        config.mounts.push(mount.clone());
        let container = pod.start(config).await.unwrap();
        let exit = exit(&container).await;
        assert_eq!(exit.code, NO_SPACE, "{}", exit.message);
        assert_eq!(std::fs::metadata(folder.join("file")).unwrap().len(), 15_000);
    }
}

/// Prints lines without end.
const FLOODS: &str = r#"(module
    (import "wasi_snapshot_preview1" "fd_write"
        (func $fd_write (param i32 i32 i32 i32) (result i32)))
    (memory (export "memory") 1)
    (data (i32.const 8) "\10\00\00\00\08\00\00\00")
    (data (i32.const 16) "a line.\n")
    (func (export "_start")
        (loop (drop (call $fd_write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 0)))
            (br 0))))"#;

#[tokio::test]
async fn a_flood_of_lines_is_cut_with_a_notice() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let mut config = node.container("flood", wat(FLOODS));
    config.log_bytes_per_second_max = 1000;
    let container = pod.start(config).await.unwrap();
    node.logged("flood", "stderr F edgeorc: the container logs too fast").await;
    node.logged("flood", "bytes) were dropped").await;
    container.stop(Duration::ZERO).await;
    let lines = node.log("flood").lines().filter(|line| line.ends_with("a line.")).count();
    assert!(lines < 4 * 1250, "{lines} lines");
}

#[tokio::test]
async fn a_flood_of_empty_lines_is_cut_as_well() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let mut config =
        node.container("flood", wat(&FLOODS.replace("a line.", r"\0a\0a\0a\0a\0a\0a\0a")));
    config.log_bytes_per_second_max = 1000;
    let container = pod.start(config).await.unwrap();
    node.logged("flood", "stderr F edgeorc: the container logs too fast").await;
    container.stop(Duration::ZERO).await;
    let bytes = node.log("flood").len();
    assert!(bytes < 4 * 10_000, "{bytes} bytes, what stands around the lines included");
}

#[tokio::test]
async fn cpu_time_of_requests_is_counted() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let container = pod.start(node.container("hello", app("hello"))).await.unwrap();
    // As much as there is for it: others may keep the processor busy.
    let begin = Instant::now();
    while container.usage().cpu < Duration::from_millis(20) {
        assert!(begin.elapsed() < crate::support::PATIENCE, "{:?}", container.usage().cpu);
        node.get("10.0.0.1:8080", "/burn?ms=1000").await.unwrap();
    }
    let used = container.usage().cpu;
    // Nothing runs now, so nothing is counted.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(container.usage().cpu <= used + Duration::from_millis(30));
}
