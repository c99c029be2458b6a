//! TCP and name lookup of WASI 0.3 guests, on the same network as those of 0.2.

use std::net::SocketAddr;
use std::time::Duration;

use edgeorc_runtime::BoxIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Node, PATIENCE, app, exit};

/// A connection to a listener that may still be starting.
async fn connect(node: &Node, to: &str) -> BoxIo {
    let to: SocketAddr = to.parse().unwrap();
    let connecting = async {
        loop {
            match node.network.connect(to).await {
                Ok(pipe) => return pipe,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, connecting).await.unwrap()
}

#[tokio::test]
async fn an_echo_server_of_wasi_0_3_gives_back_every_byte_and_then_the_end() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    pod.start(node.probe("echo", "probe-p3", &["tcp-echo", "0.0.0.0:7000"])).await.unwrap();
    for _ in 0..3 {
        let (mut read, mut write) = tokio::io::split(connect(&node, "10.0.0.1:7000").await);
        // More than all buffers on the way hold.
        let sent: Vec<u8> = (0..=250).cycle().take(1 << 20).collect();
        let send = async {
            write.write_all(&sent).await.unwrap();
            write.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let both = async { tokio::join!(read.read_to_end(&mut got), send) };
        let (read, ()) = tokio::time::timeout(PATIENCE, both).await.unwrap();
        read.unwrap();
        assert!(got == sent);
    }
}

#[tokio::test]
async fn guests_of_both_versions_talk_in_both_families() {
    let node = Node::start();
    let one = node.pod_with(&["10.0.0.1", "fd00::1"], None).await;
    let two = node.pod_with(&["10.0.0.2", "fd00::2"], None).await;
    one.start(node.container("p2", app("echo"))).await.unwrap();
    one.start(node.probe("p3", "probe-p3", &["tcp-echo", "[::]:7001"])).await.unwrap();
    drop(connect(&node, "10.0.0.1:7000").await);
    drop(connect(&node, "[fd00::1]:7001").await);
    for (name, pod, to) in [
        ("four", &two, "10.0.0.1:7000"),
        ("six", &two, "[fd00::1]:7001"),
        ("loopback", &one, "[::1]:7001"),
    ] {
        let ask = node.probe(name, "probe-p3", &["tcp-ask", to, "some words"]);
        let container = pod.start(ask).await.unwrap();
        assert_eq!(exit(&container).await.code, 0, "{to}: {}", node.log(name));
        assert_eq!(node.log(name), "stdout F some words\n", "{to}");
    }
    // A socket of IPv6 takes no IPv4, and loopback is each pod's own.
    for (name, to) in [("other family", "127.0.0.1:7001"), ("other pod", "10.0.0.2:7000")] {
        let ask = node.probe(name, "probe-p3", &["tcp-ask", to, "some words"]);
        let container = one.start(ask).await.unwrap();
        assert_eq!(exit(&container).await.code, 1);
        assert!(node.log(name).contains("ConnectionRefused"), "{to}: {}", node.log(name));
    }
}

#[tokio::test]
async fn a_guest_that_does_not_read_stops_its_peer() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    pod.start(node.probe("deaf", "probe-p3", &["tcp-serve-once", "0.0.0.0:7000"])).await.unwrap();
    let mut pipe = connect(&node, "10.0.0.1:7000").await;
    node.logged("deaf", "taken").await;
    let mut taken = 0;
    let chunk = vec![0; 4096];
    while let Ok(written) =
        tokio::time::timeout(Duration::from_millis(200), pipe.write(&chunk)).await
    {
        taken += written.unwrap();
        assert!(taken <= 256 << 10, "nothing stops it");
    }
    assert!(taken > 0);
}

#[tokio::test]
async fn names_are_looked_up_by_guests_of_wasi_0_3() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    for (ask, name, code, said) in [
        ("near", "web", 0, "10.0.0.1"),
        ("own", "localhost", 0, "::1"),
        ("address", "[::1]", 0, "::1"),
        ("unknown", "nobody", 1, "NameUnresolvable"),
        ("wrong", "no name", 1, "InvalidArgument"),
    ] {
        let container = pod.start(node.probe(ask, "probe-p3", &["lookup", name])).await.unwrap();
        assert_eq!(exit(&container).await.code, code, "{name}: {}", node.log(ask));
        assert!(node.log(ask).contains(said), "{name}: {}", node.log(ask));
    }
}

#[tokio::test]
async fn connections_wait_for_a_listener_that_restarts_with_its_container() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    for (guest, args) in [("probe-p3", &["tcp-echo", "0.0.0.0:7000"][..]), ("echo", &[])] {
        let first = pod.start(node.probe("first", guest, args)).await.unwrap();
        drop(connect(&node, "10.0.0.1:7000").await);
        first.stop(Duration::ZERO).await;
        // Not refused, though nobody listens.
        let waiting = node.network.connect("10.0.0.1:7000".parse().unwrap());
        let waited = tokio::time::timeout(Duration::from_millis(50), waiting).await;
        assert!(waited.is_err(), "{guest}: {:?}", waited.map(|result| result.err()));
        let again = pod.start(node.probe("again", guest, args)).await.unwrap();
        let mut pipe = connect(&node, "10.0.0.1:7000").await;
        pipe.write_all(b"x").await.unwrap();
        pipe.read_exact(&mut [0; 1]).await.unwrap();
        again.stop(Duration::ZERO).await;
    }
    pod.destroy().await;
}
