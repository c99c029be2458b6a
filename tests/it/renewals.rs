//! Heartbeats on a stream, against the real API of a server that leads. `e2e` has servers that do not.

use std::time::Duration;

use bytes::Bytes;
use edgeorc::client::{in_process, send_streamed};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use kube::client::Body;
use serde_json::json;
use tokio::sync::mpsc;

use crate::support::Api;

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
const MEDIA_TYPE: &str = "application/vnd.edgeorc.renewals.v1";
const PATIENCE: Duration = Duration::from_secs(20);

/// A stream, as the node `user` opens it.
struct Stream {
    lines: mpsc::Sender<Bytes>,
    code: StatusCode,
    answers: Body,
}

impl Stream {
    async fn open(api: &Api, user: &str, lease: &str, media_type: &str) -> Self {
        Self::open_as(api, &["system:nodes"], (user, lease), media_type).await
    }

    async fn open_as(
        api: &Api,
        groups: &[&str],
        (user, lease): (&str, &str),
        media_type: &str,
    ) -> Self {
        let client = in_process(api.router.clone(), &format!("system:node:{user}"), groups);
        let request = Request::post(format!("{LEASES}/{lease}/renewals"));
        let request = request.header("content-type", media_type).body(()).unwrap();
        let (lines, read) = mpsc::channel::<Bytes>(8);
        let frames = futures_util::stream::unfold(read, |mut read| async move {
            Some((Ok(http_body::Frame::data(read.recv().await?)), read))
        });
        let body = StreamBody::new(frames).boxed_unsync();
        let (head, answers) = send_streamed(&client, request, body).await.unwrap().into_parts();
        Self { lines, code: head.status, answers }
    }

    async fn say(&self, lines: &'static str) {
        self.lines.send(Bytes::from_static(lines.as_bytes())).await.unwrap();
    }

    /// The next answer; `None` when the stream is over.
    async fn answer(&mut self) -> Option<Bytes> {
        let frame = tokio::time::timeout(PATIENCE, self.answers.frame()).await.unwrap()?;
        Some(frame.unwrap().into_data().unwrap())
    }
}

async fn make_lease(api: &Api, name: &str) {
    let lease = json!({"metadata": {"name": name}, "spec": {"holderIdentity": name}});
    assert_eq!(api.post(LEASES, &lease).await.code, StatusCode::CREATED);
}

#[tokio::test]
async fn each_line_counts_and_comes_back_and_nothing_is_written() {
    let api = Api::start().await;
    make_lease(&api, "a").await;
    let before = api.get(&format!("{LEASES}/a")).await.json();
    let mut stream = Stream::open(&api, "a", "a", MEDIA_TYPE).await;
    assert_eq!(stream.code, StatusCode::OK);
    let mut last = None;
    for (said, heard) in [("a 1\n", "a 1\n"), ("a 2\na", "a 2\n"), (" 3\n", "a 3\n")] {
        stream.say(said).await;
        assert_eq!(stream.answer().await.unwrap(), heard);
        let renewal = api.store.last_heartbeat("a");
        assert!(renewal > last, "{heard}");
        last = renewal;
    }
    assert_eq!(api.store.last_heartbeat("b"), None);
    assert_eq!(api.get(&format!("{LEASES}/a")).await.json(), before);
}

#[tokio::test]
async fn a_node_without_a_lease_is_told_by_the_end_of_its_stream_and_others_are_not_bothered() {
    let api = Api::start().await;
    let mut stream = Stream::open(&api, "a", "a", MEDIA_TYPE).await;
    stream.say("a 1\n").await;
    assert_eq!(stream.answer().await, None, "it writes a Lease, then opens another stream");
    make_lease(&api, "a").await;
    let made = api.store.last_heartbeat("a");
    let server = ["system:nodes", "edgeorc:servers"];
    let mut line = Stream::open_as(&api, &server, ("b", "b"), MEDIA_TYPE).await;
    line.say("c 1\na 2\n").await;
    assert_eq!(line.answer().await.unwrap(), "a 2\n");
    assert!(api.store.last_heartbeat("a") > made && api.store.last_heartbeat("c").is_none());
}

#[tokio::test]
async fn a_node_renews_its_own_lease_only() {
    let api = Api::start().await;
    make_lease(&api, "a").await;
    make_lease(&api, "b").await;
    let before = ["a", "b"].map(|node| api.store.last_heartbeat(node));
    assert_eq!(Stream::open(&api, "b", "a", MEDIA_TYPE).await.code, StatusCode::FORBIDDEN);
    let mut stream = Stream::open(&api, "a", "a", MEDIA_TYPE).await;
    stream.say("a 1\n").await;
    assert_eq!(stream.answer().await.unwrap(), "a 1\n");
    stream.say("a 2\nb 3\n").await;
    assert_eq!(stream.answer().await, None, "the stream is over");
    assert!(api.store.last_heartbeat("a") > before[0]);
    assert_eq!(api.store.last_heartbeat("b"), before[1]);
}

#[tokio::test]
async fn what_is_no_heartbeat_ends_the_stream() {
    let api = Api::start().await;
    make_lease(&api, "a").await;
    let refused = Stream::open(&api, "a", "a", "application/json").await;
    assert_eq!(refused.code, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let mut stream = Stream::open(&api, "a", "a", MEDIA_TYPE).await;
    stream.say("hello\n").await;
    assert_eq!(stream.answer().await, None);
    let elsewhere = "/apis/coordination.k8s.io/v1/namespaces/default/leases/a/renewals";
    assert_eq!(api.post(elsewhere, &json!({})).await.code, StatusCode::NOT_FOUND);
    assert_eq!(api.get(&format!("{LEASES}/a/renewals")).await.code, StatusCode::METHOD_NOT_ALLOWED);
}
