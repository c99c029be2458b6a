//! HTTP components: reuse, traps, draining, loopback, byte streams.

use std::sync::Arc;
use std::time::Duration;

use edgeorc_runtime::{BodyError, ExitReason, HttpError, Machine, StartError};
use http_body_util::{BodyExt as _, StreamBody};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::support::{Node, app, app_bytes, compiled_for, exit, request};

const HELLO: &str = "10.0.0.1:8080";

#[tokio::test]
async fn an_instance_is_kept_from_request_to_request() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let mut config = node.container("hello", app("hello"));
    Arc::make_mut(&mut config.env).push(("NODE_NAME".to_owned(), "n".to_owned()));
    pod.start(config).await.unwrap();
    // An instance that has answered may still be busy with its return when the next request
    // comes, so that there may be several; but not one for each request.
    let mut most = 0;
    for _ in 0..20 {
        let (status, text) = node.get(HELLO, "/").await.unwrap();
        assert_eq!(status, 200);
        let count = text.strip_prefix("Hello from pod p on node n, request ").unwrap();
        most = most.max(count.trim_end().parse().unwrap());
    }
    assert!(most >= 4, "no instance had more than {most} of 20 requests");
}

#[tokio::test]
async fn a_fresh_instance_for_each_request_on_demand() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let mut config = node.container("hello", app("hello"));
    config.fresh_instance_per_request = true;
    pod.start(config).await.unwrap();
    for _ in 0..3 {
        assert!(node.get(HELLO, "/").await.unwrap().1.ends_with("request 1\n"));
    }
}

#[tokio::test]
async fn an_instance_is_replaced_after_so_many_requests() {
    let node = Node::start_with(|config| config.requests_per_instance_max = 3);
    let pod = node.pod("10.0.0.1").await;
    pod.start(node.container("hello", app("hello"))).await.unwrap();
    for _ in 0..20 {
        let text = node.get(HELLO, "/").await.unwrap().1;
        let count = text.trim_end().rsplit(' ').next().unwrap();
        assert!(count.parse::<u32>().unwrap() <= 3, "{text}");
    }
}

#[tokio::test]
async fn an_instance_past_its_memory_mark_is_replaced() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let mut config = node.container("hello", app("hello"));
    config.memory_bytes_max = Some(30 << 20);
    let container = pod.start(config).await.unwrap();
    // Two thirds are 20 MiB: the instance is past that once it has answered, and goes at once. A
    // second one would not fit beside it.
    for _ in 0..3 {
        assert_eq!(
            node.get(HELLO, "/grow?mib=22").await.unwrap(),
            (200, "holding 22 MiB\n".into())
        );
        while container.usage().memory_bytes > 10 << 20 {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!(node.get(HELLO, "/").await.unwrap().0, 200);
}

#[tokio::test]
async fn a_p3_component_is_served_too() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    pod.start(node.container("hello-p3", app("hello-p3"))).await.unwrap();
    let (status, text) = node.get(HELLO, "/").await.unwrap();
    assert_eq!(status, 200, "{text}");
    assert!(text.starts_with("Hello from pod p"), "{text}");
}

#[tokio::test]
async fn a_p3_instance_has_many_requests_in_flight_and_a_p2_instance_one() {
    const OPEN: u64 = 12;
    let node = Node::start();
    for (address, app_name, is_shared) in
        [("10.0.0.1", "hello-p3", true), ("10.0.0.2", "hello", false)]
    {
        let pod = node.pod(address).await;
        let container = pod.start(node.container(app_name, app(app_name))).await.unwrap();
        let one = container.usage().memory_bytes;
        let mut open = Vec::new();
        for _ in 0..OPEN {
            // The guest answers at once and then waits for the rest of the body.
            let body = StreamBody::new(futures_util::stream::pending::<Result<_, BodyError>>());
            let mut request = request("/echo", "");
            *request.body_mut() = body.boxed_unsync();
            let to = format!("{address}:8080").parse().unwrap();
            open.push(node.network.http(to, request).await.unwrap());
        }
        let instances = container.usage().memory_bytes / one;
        if is_shared {
            assert!(instances <= OPEN / 3, "{instances} instances for {OPEN} requests");
        } else {
            assert!(instances >= OPEN, "{instances} instances for {OPEN} requests");
        }
        drop(open);
        pod.destroy().await;
    }
}

#[tokio::test]
async fn requests_at_the_same_time_are_all_answered() {
    let node = Arc::new(Node::start());
    let pod = node.pod("10.0.0.1").await;
    pod.start(node.container("hello", app("hello"))).await.unwrap();
    let requests = (0..64).map(|_| node.send(HELLO, "/echo", "some body"));
    for response in futures_util::future::join_all(requests).await {
        assert_eq!(response.unwrap(), (200, "some body".to_owned()));
    }
}

#[tokio::test]
async fn a_trap_costs_its_instance_and_no_more() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    pod.start(node.container("hello", app("hello"))).await.unwrap();
    node.get(HELLO, "/").await.unwrap();
    assert!(matches!(node.get(HELLO, "/trap").await, Err(HttpError::Guest(_))));
    assert_eq!(node.get(HELLO, "/").await.unwrap().0, 200);
    node.logged("hello", "stderr F wasm trap").await;
}

#[tokio::test]
async fn nothing_but_traps_ends_the_container() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let container = pod.start(node.container("hello", app("hello"))).await.unwrap();
    for _ in 0..3 {
        let _ = node.get(HELLO, "/trap").await;
    }
    let exit = exit(&container).await;
    assert_eq!((exit.code, exit.reason), (134, ExitReason::Error));
    assert!(matches!(node.get(HELLO, "/").await, Err(HttpError::Refused(_))));
    pod.start(node.container("hello", app("hello"))).await.unwrap();
    assert_eq!(node.get(HELLO, "/").await.unwrap().0, 200, "it can be started again");
}

#[tokio::test]
async fn a_stopped_server_finishes_what_it_has_begun() {
    let node = Arc::new(Node::start());
    let pod = node.pod("10.0.0.1").await;
    let container = pod.start(node.container("hello", app("hello"))).await.unwrap();
    node.get(HELLO, "/").await.unwrap();
    let slow = node.get(HELLO, "/burn?ms=3000");
    let stop = async {
        // The request is under way once it has used CPU time.
        let before = container.usage().cpu;
        while container.usage().cpu <= before + Duration::from_millis(4) {
            tokio::task::yield_now().await;
        }
        container.stop(Duration::from_secs(30)).await;
    };
    let (response, ()) = tokio::join!(slow, stop);
    assert_eq!(response.unwrap().0, 200);
    let end = exit(&container).await;
    assert_eq!((end.code, end.reason), (0, ExitReason::Stopped));
    assert!(matches!(node.get(HELLO, "/").await, Err(HttpError::Refused(_))));
}

#[tokio::test]
async fn a_server_that_does_not_drain_is_killed() {
    let node = Arc::new(Node::start());
    let pod = node.pod("10.0.0.1").await;
    let container = pod.start(node.container("hello", app("hello"))).await.unwrap();
    let endless = node.get(HELLO, "/burn?ms=600000");
    let stop = async {
        while container.usage().cpu < Duration::from_millis(20) {
            tokio::task::yield_now().await;
        }
        container.stop(Duration::from_millis(50)).await;
    };
    let (response, ()) = tokio::join!(endless, stop);
    assert!(matches!(response, Err(HttpError::Guest(_))));
    assert_eq!(exit(&container).await.reason, ExitReason::Killed);
}

#[tokio::test]
async fn a_run_takes_the_place_of_another_and_no_request_is_lost() {
    let node = Arc::new(Node::start());
    let pod = node.pod("10.0.0.1").await;
    let old = pod.start(node.container("hello", app("hello"))).await.unwrap();
    let (mut slow, asking) = (tokio::task::JoinSet::new(), Arc::clone(&node));
    slow.spawn(async move { asking.get(HELLO, "/burn?ms=1000").await.map(|(code, _)| code) });
    let pipe = node.network.connect(HELLO.parse().unwrap()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(pipe)).await.unwrap();
    let mut connections = tokio::task::JoinSet::new();
    connections.spawn(connection);
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let swaps = async {
        let mut old = old;
        // The slow request is under way once it has used CPU time.
        while old.usage().cpu < Duration::from_millis(4) {
            tokio::task::yield_now().await;
        }
        for _ in 0..20 {
            assert!(old.hand_over());
            let new = pod.start(node.container("hello", app("hello"))).await.unwrap();
            old.stop(Duration::from_secs(30)).await;
            assert_eq!(exit(&old).await.reason, ExitReason::Stopped);
            old = new;
        }
        drop(stop);
    };
    let asks = async {
        let mut asked = 0;
        while stopped.try_recv() == Err(tokio::sync::oneshot::error::TryRecvError::Empty) {
            let piped = async {
                sender.ready().await.unwrap();
                let response = sender.send_request(request("/healthz", "")).await.unwrap();
                // A body that is not read to its end may end the connection.
                let (head, body) = response.into_parts();
                body.collect().await.unwrap();
                head.status.as_u16()
            };
            let (one, piped) = tokio::join!(node.get(HELLO, "/healthz"), piped);
            assert_eq!((one.unwrap().0, piped), (200, 200));
            asked += 1;
        }
        asked
    };
    let ((), asked) = tokio::join!(swaps, asks);
    assert!(asked > 20, "{asked} requests over 20 swaps");
    assert_eq!(slow.join_next().await.unwrap().unwrap().unwrap(), 200);
}

#[tokio::test]
async fn a_client_that_has_sent_its_last_gets_its_answer() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let _container = pod.start(node.container("hello", app("hello"))).await.unwrap();
    let mut pipe = node.network.connect(HELLO.parse().unwrap()).await.unwrap();
    pipe.write_all(b"GET /burn?ms=50 HTTP/1.0\r\n\r\n").await.unwrap();
    pipe.shutdown().await.unwrap();
    let mut answer = String::new();
    pipe.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
}

#[tokio::test]
async fn a_request_without_room_for_an_instance_is_given_back_after_a_while() {
    // Room for 511 memories, of which one container may have a quarter.
    const BITS: Option<u32> = Some(38);
    let node = Arc::new(Node::start_with(|config| config.address_bits_max = BITS));
    let machine = Machine::probe().with_address_bits_max(BITS);
    let code = compiled_for(machine, &app_bytes("hello"));
    let pod = node.pod("10.0.0.1").await;
    let container = pod.start(node.container("hello", code)).await.unwrap();
    let mut busy = tokio::task::JoinSet::new();
    for _ in 0..160 {
        let node = Arc::clone(&node);
        // However long that takes: who gives up makes room.
        busy.spawn(async move {
            let burn = request("/burn?ms=600000", "");
            node.network.http(HELLO.parse().unwrap(), burn).await.map(drop)
        });
    }
    let refused = async {
        loop {
            match node.get(HELLO, "/").await {
                Ok((status, _)) => assert_eq!(status, 200),
                Err(error) => return error,
            }
        }
    };
    let refused = tokio::time::timeout(Duration::from_secs(120), refused).await.unwrap();
    assert!(matches!(refused, HttpError::Busy(_)), "{refused:?}");
    container.stop(Duration::ZERO).await;
    while busy.join_next().await.is_some() {}
}

#[tokio::test]
async fn containers_of_a_pod_share_its_loopback() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    let mut sidecar = node.container("sidecar", app("sidecar"));
    sidecar.http_port = 9090;
    pod.start(sidecar).await.unwrap();
    pod.start(node.container("hello", app("hello"))).await.unwrap();
    let (status, text) = node.get(HELLO, "/sidecar").await.unwrap();
    assert_eq!((status, text.as_str()), (200, "sidecar of p, seen 1\n"));
}

#[tokio::test]
async fn ports_of_two_pods_do_not_collide_but_those_of_one_do() {
    let node = Node::start();
    let (one, two) = (node.pod("10.0.0.1").await, node.pod("10.0.0.2").await);
    one.start(node.container("one", app("hello"))).await.unwrap();
    two.start(node.container("two", app("hello"))).await.unwrap();
    let error = one.start(node.container("three", app("hello"))).await.err().unwrap();
    assert!(matches!(error, StartError::PortInUse { port: 8080 }), "{error}");
    assert_eq!(node.get("10.0.0.2:8080", "/healthz").await.unwrap().1, "ok\n");
}

#[tokio::test]
async fn a_guest_reaches_other_pods_by_name() {
    let node = Node::start();
    let (web, client) = (node.pod("10.0.0.1").await, node.pod("10.0.0.2").await);
    web.start(node.container("web", app("hello"))).await.unwrap();
    client.start(node.container("client", app("hello"))).await.unwrap();
    let path = "/fetch?url=http%3A%2F%2Fweb%3A8080%2Fhealthz";
    assert_eq!(node.get("10.0.0.2:8080", path).await.unwrap(), (200, "ok\n".to_owned()));
}

#[tokio::test]
async fn a_byte_stream_to_an_http_component_speaks_http() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    pod.start(node.container("hello", app("hello"))).await.unwrap();
    let pipe = node.network.connect(HELLO.parse().unwrap()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(pipe)).await.unwrap();
    let exchange = async {
        for _ in 0..2 {
            let body = String::from("over a pipe");
            let (parts, _) = request("/echo", "").into_parts();
            let response =
                sender.send_request(http::Request::from_parts(parts, body)).await.unwrap();
            let text = response.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(text, "over a pipe");
        }
        drop(sender);
    };
    let (connection, ()) = tokio::join!(connection, exchange);
    connection.unwrap();
}

#[tokio::test]
async fn nobody_at_an_address_is_a_refusal_with_the_request_inside() {
    let node = Node::start();
    let _pod = node.pod("10.0.0.1").await;
    for to in ["10.0.0.1:1", "10.9.9.9:1"] {
        match node.network.http(to.parse().unwrap(), request("/x", "")).await {
            Err(HttpError::Refused(unsent)) => {
                assert_eq!(unsent.into_request().uri().path(), "/x");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn components_whose_instances_answer_one_request_lose_none() {
    let node = Arc::new(Node::start());
    let pod = node.pod("10.0.0.1").await;
    let container = pod.start(node.container("once", app("once"))).await.unwrap();
    for _ in 0..20 {
        let (status, text) = node.get(HELLO, "/").await.unwrap();
        assert_eq!((status, text.as_str()), (200, "Hello, once\n"));
    }
    // The body goes to the instance that answers.
    for _ in 0..5 {
        assert_eq!(node.send(HELLO, "/echo", "some body").await.unwrap().1, "some body");
    }
    node.logged("once", "answer one request each").await;
    assert_eq!(node.log("once").matches("answer one request each").count(), 1);
    container.stop(Duration::from_secs(1)).await;
    // It is known by now: another container of it has no traps.
    let pod = node.pod("10.0.0.2").await;
    pod.start(node.container("again", app("once"))).await.unwrap();
    for _ in 0..5 {
        assert_eq!(node.get("10.0.0.2:8080", "/").await.unwrap().0, 200);
    }
    assert_eq!(node.log("again"), "");
}

#[tokio::test]
async fn many_requests_at_once_lose_none_either() {
    let node = Arc::new(Node::start());
    let pod = node.pod("10.0.0.1").await;
    pod.start(node.container("once", app("once"))).await.unwrap();
    for _ in 0..5 {
        let requests = (0..20).map(|_| node.send(HELLO, "/echo", "some body"));
        for response in futures_util::future::join_all(requests).await {
            assert_eq!(response.unwrap(), (200, "some body".to_owned()));
        }
    }
}

#[tokio::test]
async fn a_request_that_traps_anywhere_is_not_taken_for_a_second_one() {
    let node = Node::start();
    let pod = node.pod("10.0.0.1").await;
    pod.start(node.container("hello", app("hello"))).await.unwrap();
    for _ in 0..5 {
        assert_eq!(node.get(HELLO, "/").await.unwrap().0, 200);
        assert!(matches!(node.get(HELLO, "/trap").await, Err(HttpError::Guest(_))));
    }
    assert!(!node.log("hello").contains("answer one request each"));
}
