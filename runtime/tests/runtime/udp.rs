//! Datagrams of guests of both versions.

use edgeorc_runtime::Datagrams;

use crate::support::{Node, PATIENCE, exit};

#[tokio::test]
async fn guests_of_both_versions_exchange_datagrams_in_both_families() {
    let node = Node::start();
    let one = node.pod_with(&["10.0.0.1", "fd00::1"], None).await;
    let two = node.pod_with(&["10.0.0.2", "fd00::2"], None).await;
    one.start(node.probe("p2", "probe", &["udp-echo", "53"])).await.unwrap();
    one.start(node.probe("p3", "probe-p3", &["udp-echo", "[::]:53"])).await.unwrap();
    one.start(node.probe("inner", "probe-p3", &["udp-echo", "127.0.0.1:54"])).await.unwrap();
    for server in ["p2", "p3", "inner"] {
        node.logged(server, "bound").await;
    }
    for (name, pod, probe, to) in [
        ("two-four", &two, "probe", "10.0.0.1:53"),
        ("three-four", &two, "probe-p3", "10.0.0.1:53"),
        ("two-six", &two, "probe", "[fd00::1]:53"),
        ("three-six", &two, "probe-p3", "[fd00::1]:53"),
        ("two-own", &one, "probe", "127.0.0.1:54"),
        ("three-own", &one, "probe-p3", "[::1]:53"),
    ] {
        let ask = node.probe(name, probe, &["udp-ask", to, "hello"]);
        let container = pod.start(ask).await.unwrap();
        assert_eq!(exit(&container).await.code, 0, "{probe} {to}: {}", node.log(name));
        assert_eq!(node.log(name), format!("stdout F hello from {to}\n"), "{probe}");
    }
    // Another pod's loopback is not this one's.
    let ask = node.probe("none", "probe-p3", &["udp-ask", "127.0.0.1:54", "hello"]);
    let container = two.start(ask).await.unwrap();
    assert_eq!(exit(&container).await.code, 1);
    assert!(node.log("none").contains("ConnectionRefused"), "{}", node.log("none"));
}

#[tokio::test]
async fn a_flow_from_elsewhere_reaches_a_bound_socket_and_ends_with_it() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let echo = pod.start(node.probe("echo", "probe", &["udp-echo", "53"])).await.unwrap();
    node.logged("echo", "bound").await;
    let (mut near, far) = Datagrams::pair();
    let (from, to) = ("192.0.2.7:4000".parse().unwrap(), "10.0.0.1:53".parse().unwrap());
    let carrying = node.network.datagrams(from, to, far);
    let talking = async {
        near.tx.send("question".into()).await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, near.rx.recv()).await.unwrap();
        assert_eq!(answer.unwrap(), "question");
        echo.stop(std::time::Duration::ZERO).await;
        assert!(near.rx.recv().await.is_none());
    };
    let (carried, ()) = tokio::join!(carrying, talking);
    carried.unwrap();
    let (_near, far) = Datagrams::pair();
    let error = node.network.datagrams(from, to, far).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
}

#[tokio::test]
async fn datagrams_to_a_socket_that_nobody_reads_are_dropped_and_their_sender_goes_on() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let flood = node.probe("flood", "probe", &["udp-flood", "127.0.0.1:9", "20000"]);
    let container = pod.start(flood).await.unwrap();
    assert_eq!(exit(&container).await.code, 0, "{}", node.log("flood"));
    assert_eq!(node.log("flood"), "stdout F sent 20000\n");
}
