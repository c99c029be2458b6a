//! TCP guests on the virtual network.

use std::io::ErrorKind;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Node, PATIENCE, app};

const ECHO: &str = "10.0.0.1:7000";

async fn echo_node() -> (Node, std::sync::Arc<dyn edgeorc_runtime::Pod>) {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    pod.start(node.container("echo", app("echo"))).await.unwrap();
    tokio::time::timeout(PATIENCE, async {
        while !node.network.is_listening(ECHO.parse().unwrap()) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    (node, pod)
}

#[tokio::test]
async fn an_echo_server_gives_back_every_byte_and_then_the_end() {
    let (node, _pod) = echo_node().await;
    let pipe = node.network.connect(ECHO.parse().unwrap()).await.unwrap();
    let (mut read, mut write) = tokio::io::split(pipe);
    // More than all buffers on the way hold.
    let sent: Vec<u8> = (0..=250).cycle().take(1 << 20).collect();
    let send = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let (read, ()) = tokio::join!(read.read_to_end(&mut got), send);
    read.unwrap();
    assert!(got == sent);
}

#[tokio::test]
async fn many_connections_are_told_apart() {
    let (node, _pod) = echo_node().await;
    let exchange = |number: u32| {
        let node = &node;
        async move {
            let mut pipe = node.network.connect(ECHO.parse().unwrap()).await.unwrap();
            for round in 0..10_u32 {
                let sent = [number.to_le_bytes(), round.to_le_bytes()].concat();
                pipe.write_all(&sent).await.unwrap();
                let mut got = [0; 8];
                pipe.read_exact(&mut got).await.unwrap();
                assert_eq!(sent, got);
            }
        }
    };
    let all = futures_util::future::join_all((0..50).map(exchange));
    tokio::time::timeout(PATIENCE, all).await.unwrap();
}

#[tokio::test]
async fn a_port_without_a_listener_refuses() {
    let (node, pod) = echo_node().await;
    let error = node.network.connect("10.0.0.1:7001".parse().unwrap()).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    pod.destroy().await;
    let error = node.network.connect(ECHO.parse().unwrap()).await.err().unwrap();
    assert_eq!(error.kind(), ErrorKind::HostUnreachable);
}

#[tokio::test]
async fn connections_of_a_stopped_guest_end() {
    let (node, pod) = echo_node().await;
    let mut pipe = node.network.connect(ECHO.parse().unwrap()).await.unwrap();
    pipe.write_all(b"x").await.unwrap();
    pipe.read_exact(&mut [0; 1]).await.unwrap();
    pod.destroy().await;
    assert_eq!(pipe.read(&mut [0; 1]).await.unwrap(), 0);
}

#[tokio::test]
async fn a_server_that_is_stopped_keeps_its_connections_and_takes_no_new_ones() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let container = pod.start(node.container("echo", app("echo"))).await.unwrap();
    tokio::time::timeout(PATIENCE, async {
        while !node.network.is_listening(ECHO.parse().unwrap()) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    let mut open = node.network.connect(ECHO.parse().unwrap()).await.unwrap();
    let refused = async {
        while node.network.connect(ECHO.parse().unwrap()).await.is_ok() {
            tokio::task::yield_now().await;
        }
        open.write_all(b"still here").await.unwrap();
        let mut answer = [0; 10];
        open.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"still here");
        drop(open);
    };
    let stop = container.stop(PATIENCE * 100);
    tokio::time::timeout(PATIENCE, async { tokio::join!(refused, stop) }).await.unwrap();
}
