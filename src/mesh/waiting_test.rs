//! Goal: requests to a workload that is scaled to zero wait for its first pod, and no others do. Method:
//! one node without peers, its pods played by a script, in paused time.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncReadExt as _;

use super::local::Local;
use super::mesh_harness::{Act, Pods, get, text};
use super::testing::{node, service, slice};
use super::waiting::{WAIT_MAX, WAITING_MAX};
use super::*;
use crate::api::node_load::SCALES_FROM_ZERO;
use crate::rt::Rng;

const POD: &str = "10.42.0.2";

/// A node with pods that listen, and a Service of `pods` that is marked or not.
struct Place {
    mesh: Mesh,
    pods: Arc<Pods>,
    is_marked: bool,
}

impl Place {
    fn new(is_marked: bool) -> Self {
        let tasks = TaskGroup::new(&tokio_util::sync::CancellationToken::new());
        let pods = Pods::new(&[]);
        let local: Arc<dyn Local> = pods.clone();
        let mut config = MeshConfig::new("a", local, tasks, Rng::seeded(7));
        config.node_port_ip = None;
        let place = Self { mesh: Mesh::new(config), pods, is_marked };
        place.publish(&[]);
        place
    }

    fn publish(&self, pods: &[&str]) {
        let mut web =
            service("web", json!({ "clusterIP": "10.43.0.9", "ports": [{ "port": 80 }] }));
        if self.is_marked {
            let mark = (SCALES_FROM_ZERO.to_owned(), "scaler".to_owned());
            web.metadata.annotations = Some([mark].into());
        }
        let pods: Vec<(&str, &str)> = pods.iter().map(|pod| (*pod, "a")).collect();
        let slices = [slice("web", 8080, &pods)];
        let nodes = [node("a", "10.42.0.0/24")];
        self.mesh.publish(Routes::build(&[web], &slices, &nodes, &[], "a"));
    }

    fn begin(&self) {
        self.pods.set(&format!("{POD}:8080"), Act::Answer);
        self.publish(&[POD]);
    }

    fn waiting(&self) -> usize {
        self.mesh.waiting_services().borrow().values().sum()
    }

    async fn until_waiting(&self, count: usize) {
        let mut told = self.mesh.waiting_services();
        let has_come = |all: &BTreeMap<(String, String), usize>| all.values().sum::<usize>() > 0;
        let _ = told.wait_for(has_come).await.unwrap();
        while self.waiting() < count {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_waits_for_the_first_pod_and_is_answered_by_it() {
    let place = Place::new(true);
    let asking = place.mesh.http("default", get("http://web/"));
    let beginning = async {
        place.until_waiting(1).await;
        let services: Vec<_> = place.mesh.waiting_services().borrow().keys().cloned().collect();
        assert_eq!(services, [("default".to_owned(), "web".to_owned())]);
        // A table without a pod changes nothing.
        place.publish(&[]);
        tokio::time::sleep(Duration::from_secs(5)).await;
        place.begin();
    };
    let (answer, ()) = tokio::join!(asking, beginning);
    assert_eq!(text(answer.unwrap()).await.trim(), "10.42.0.2:8080");
    assert_eq!(place.waiting(), 0);
    let traffic = place.mesh.service_traffic();
    assert_eq!((traffic[0].name.as_str(), traffic[0].requests, traffic[0].errors), ("web", 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_request_to_a_pod_that_has_just_gone_waits_for_the_next_one() {
    let place = Place::new(true);
    // The table still has a pod that listens no more.
    place.publish(&["10.42.0.3"]);
    let asking = place.mesh.http("default", get("http://web/"));
    let beginning = async {
        place.until_waiting(1).await;
        place.begin();
    };
    let (answer, ()) = tokio::join!(asking, beginning);
    assert_eq!(text(answer.unwrap()).await.trim(), "10.42.0.2:8080");
}

#[tokio::test(start_paused = true)]
async fn a_connection_waits_as_well() {
    let place = Place::new(true);
    let connecting = place.mesh.connect("10.43.0.9:80".parse().unwrap());
    let beginning = async {
        place.until_waiting(1).await;
        place.begin();
    };
    let (stream, ()) = tokio::join!(connecting, beginning);
    let mut greeting = [0; 14];
    stream.unwrap().read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"10.42.0.2:8080");
}

#[tokio::test(start_paused = true)]
async fn the_wait_is_bounded_in_time_and_others_do_not_wait_at_all() {
    let began = Instant::now();
    let refused = Place::new(false).mesh.http("default", get("http://web/")).await;
    assert!(matches!(refused.unwrap_err(), CallError::NoEndpoint));
    assert_eq!(began.elapsed(), Duration::ZERO);
    let refused = Place::new(true).mesh.http("default", get("http://web/")).await;
    assert!(matches!(refused.unwrap_err(), CallError::NoEndpoint));
    assert!(began.elapsed() >= WAIT_MAX && began.elapsed() < WAIT_MAX * 2);
}

#[tokio::test(start_paused = true)]
async fn the_wait_is_bounded_in_number() {
    let place = Place::new(true);
    let all = (0..WAITING_MAX).map(|_| place.mesh.http("default", get("http://web/")));
    let one_more = async {
        place.until_waiting(WAITING_MAX).await;
        let refused = place.mesh.http("default", get("http://web/")).await;
        assert!(matches!(refused.unwrap_err(), CallError::NoEndpoint));
        place.begin();
    };
    let (answers, ()) = tokio::join!(futures_util::future::join_all(all), one_more);
    assert!(answers.iter().all(Result::is_ok));
}
