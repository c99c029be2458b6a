//! Autoscaling drill: requests from none to 500 a second and back to none, as they come and not as they
//! are answered; what the autoscaler does is judged by Kubernetes' formula, and no request may be lost.
//!
//! Run by `just test-drills`; `EDGEORC_DRILL_RATE` (500) is the load. Writes
//! `target/bench/autoscaling.json`.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::drills::figures::percentile;
use crate::kubectl::push;
use crate::support::{Block, Node, PATIENCE, Process, both, eventually, get, hello, succeed};

/// Requests per second at the top when nobody says otherwise.
const RATE_DEFAULT: f64 = 500.0;
/// Seconds to the top.
const RISE: f64 = 60.0;
/// Seconds there.
const HOLD: f64 = 40.0;
/// Seconds back.
const FALL: f64 = 60.0;
/// Requests under way at once; one beyond is lost.
const IN_FLIGHT_MAX: usize = 20_000;
/// Longest a request may take: what an ingress keeps one for while there is no pod.
const REQUEST_LIMIT: Duration = Duration::from_secs(30);
/// Pause between two samples.
const SAMPLE: Duration = Duration::from_millis(500);

/// Requests per second for one replica.
const TARGET: f64 = 50.0;
/// What changes nothing: Kubernetes' tolerance.
const TOLERANCE: f64 = 0.1;
/// Most replicas.
const REPLICAS_MAX: u32 = 12;
/// Seconds between two looks of the autoscaler, with what a look and a sample may take.
const LOOK: f64 = 10.0 + SLACK;
const SLACK: f64 = 3.0;
/// Seconds for which the highest recommendation counts on the way down.
const DOWN_WINDOW: u32 = 20;
/// Seconds and replicas of both policies; upwards twice as many are allowed as well.
const PERIOD: u32 = 15;
const STEP: u32 = 4;

fn manifest(image: &str) -> String {
    let objects = [
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "web", "image": image}]}}}}),
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": {
            "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}}),
        // For any host: a default backend of an older Ingress comes after that.
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": "web"},
            "spec": {"rules": [{"http": {"paths": [{"path": "/", "pathType": "Prefix",
                "backend": {"service": {"name": "web", "port": {"number": 80}}}}]}}]}}),
        json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "web"}, "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
            "minReplicas": 0, "maxReplicas": REPLICAS_MAX,
            "metrics": [{"type": "Object", "object": {
                "describedObject": {"apiVersion": "v1", "kind": "Service", "name": "web"},
                "metric": {"name": "requests-per-second"},
                "target": {"type": "AverageValue", "averageValue": TARGET.to_string()}}}],
            "behavior": {
                "scaleUp": {"stabilizationWindowSeconds": 0, "policies": [
                    {"type": "Pods", "value": STEP, "periodSeconds": PERIOD},
                    {"type": "Percent", "value": 100, "periodSeconds": PERIOD}]},
                "scaleDown": {"stabilizationWindowSeconds": DOWN_WINDOW, "policies": [
                    {"type": "Pods", "value": STEP, "periodSeconds": PERIOD}]}}}}),
    ];
    json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string()
}

/// When the n-th request of the ramp is due, in seconds; `None` once the ramp is over.
fn due(n: u32, rate: f64) -> Option<f64> {
    let n = f64::from(n);
    let (up, top) = (rate * RISE / 2.0, rate * HOLD);
    if n < up {
        return Some((2.0 * RISE * n / rate).sqrt());
    }
    if n < up + top {
        return Some(RISE + (n - up) / rate);
    }
    let left = rate * FALL / 2.0 - (n - up - top);
    (left > 0.0).then(|| RISE + HOLD + FALL - (2.0 * FALL * left / rate).sqrt())
}

/// What became of the requests.
#[derive(Default)]
struct Outcome {
    sent: u32,
    lost: Vec<String>,
    /// Milliseconds to the whole answer, and from when it was due until it was sent.
    took: Vec<f64>,
    late: Vec<f64>,
}

/// Sends each request when it is due, whatever became of those before.
async fn ramp(at: SocketAddr, rate: f64) -> Outcome {
    let client: Client<HttpConnector, Empty<Bytes>> = Client::builder(TokioExecutor::new())
        .pool_idle_timeout(REQUEST_LIMIT)
        .retry_canceled_requests(false)
        .build_http();
    let slots = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let mut requests = tokio::task::JoinSet::new();
    let (mut outcome, start) = (Outcome::default(), tokio::time::Instant::now());
    while let Some(seconds) = due(outcome.sent, rate) {
        let moment = start + Duration::from_secs_f64(seconds);
        tokio::time::sleep_until(moment).await;
        outcome.sent += 1;
        outcome.late.push(moment.elapsed().as_secs_f64() * 1e3);
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            outcome.lost.push(format!("{IN_FLIGHT_MAX} are under way"));
            continue;
        };
        let client = client.clone();
        requests.spawn(async move {
            let began = Instant::now();
            let answer = tokio::time::timeout(REQUEST_LIMIT, ask(&client, at)).await;
            drop(slot);
            let answer = answer.unwrap_or_else(|_| Err(format!("no answer in {REQUEST_LIMIT:?}")));
            answer.map(|()| began.elapsed().as_secs_f64() * 1e3)
        });
    }
    for answer in requests.join_all().await {
        match answer {
            Ok(millis) => outcome.took.push(millis),
            Err(why) => outcome.lost.push(why),
        }
    }
    outcome
}

async fn ask(client: &Client<HttpConnector, Empty<Bytes>>, at: SocketAddr) -> Result<(), String> {
    let request = Request::get(format!("http://{at}/")).body(Empty::new()).unwrap();
    let answer = client.request(request).await.map_err(|err| format!("{err:?}"))?;
    let code = answer.status();
    let body = answer.into_body().collect().await.map_err(|err| format!("{err:?}"))?.to_bytes();
    if code == StatusCode::OK { Ok(()) } else { Err(format!("{code}: {body:?}")) }
}

/// What was seen at one moment.
#[derive(Debug, Clone, Copy)]
struct Sample {
    /// Seconds since the beginning.
    at: f64,
    /// Requests per second, as the autoscaler is told.
    rate: f64,
    /// Replicas that are wanted.
    replicas: u32,
}

/// Reads the API through `kubectl proxy`, which knows the certificates.
struct Watcher {
    _proxy: Process,
    at: SocketAddr,
}

impl Watcher {
    fn start(node: &Node) -> Self {
        let mut proxy: Command = node.kubectl(&["proxy", "--port=0"]);
        let proxy = Process::spawn(&mut proxy, node.data_dir.with_extension("proxy.log"));
        let line = proxy.line(PATIENCE);
        let at = line.rsplit(' ').next().unwrap().parse().unwrap();
        Self { _proxy: proxy, at }
    }

    fn read(&self, path: &str) -> Value {
        let answer = get(self.at, "localhost", path, PATIENCE).unwrap();
        assert_eq!(answer.code, 200, "{path}: {answer:?}");
        serde_json::from_str(&answer.body).unwrap()
    }

    fn replicas(&self) -> u32 {
        let deployment = self.read("/apis/apps/v1/namespaces/default/deployments/web");
        u32::try_from(deployment["spec"]["replicas"].as_u64().unwrap()).unwrap()
    }

    fn sample(&self, began: Instant) -> Sample {
        let metric = self.read(
            "/apis/custom.metrics.k8s.io/v1beta2/namespaces/default/services/web/requests-per-second",
        );
        let millis = metric["items"][0]["value"].as_str().unwrap().trim_end_matches('m').to_owned();
        let rate = millis.parse::<f64>().unwrap() / 1e3;
        Sample { at: began.elapsed().as_secs_f64(), rate, replicas: self.replicas() }
    }
}

/// Replicas for a rate, rounded up.
fn asked(rate: f64, per_replica: f64) -> u32 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small number")]
    let replicas = (rate / per_replica).ceil() as u32;
    replicas.min(REPLICAS_MAX)
}

/// Samples with their times in a range.
fn during(samples: &[Sample], times: RangeInclusive<f64>) -> impl Iterator<Item = &Sample> + Clone {
    samples.iter().filter(move |sample| times.contains(&sample.at))
}

/// What the algorithm does not allow.
///
/// The moments of its looks are not known, only that there is one in every [`LOOK`] seconds: each bound
/// is the widest that some moments allow.
fn offences(samples: &[Sample]) -> Vec<String> {
    let first = samples[0].replicas;
    let (period, window) = (f64::from(PERIOD), f64::from(DOWN_WINDOW));
    // Replicas a policy's period before a look in this range of times.
    let before = |times: RangeInclusive<f64>| {
        let times = times.start() - period - SLACK..=times.end() - period + SLACK;
        let found: Vec<_> = during(samples, times.clone()).map(|sample| sample.replicas).collect();
        let is_early = *times.start() < samples[0].at;
        let all = found.into_iter().chain(is_early.then_some(first));
        all.fold((u32::MAX, 0), |(least, most), one| (least.min(one), most.max(one)))
    };
    let up_limit = |replicas: u32| (replicas + STEP).max(replicas * 2);
    let mut found = Vec::new();
    for (at, sample) in samples.iter().enumerate().skip(1) {
        let (now, is) = (sample.at, sample.replicas);
        // Not fewer than were asked for at the last look, or than the policy let there be.
        let least = during(samples, now - LOOK..=now)
            .map(|one| asked(one.rate, TARGET * (1.0 + TOLERANCE)))
            .min()
            .unwrap_or(0);
        let least = least.min(up_limit(before(now - LOOK..=now).0));
        if is < least && now > samples[0].at + LOOK {
            found.push(format!("{is} replicas, {least} were due: {sample:?}"));
        }
        // Not more than were asked for in the window, than tolerance keeps, or than a policy holds.
        let lately = during(samples, now - LOOK - window..=now + SLACK);
        let most = lately
            .map(|one| {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small")]
                let kept = (one.rate / (TARGET * (1.0 - TOLERANCE))).floor() as u32;
                asked(one.rate, TARGET).max(kept.min(REPLICAS_MAX))
            })
            .max()
            .unwrap_or(0);
        let held = before(now - LOOK..=now).1.saturating_sub(STEP);
        if is > most.max(held).max(1) {
            found.push(format!("{is} replicas, {most} were enough: {sample:?}"));
        }
        if is == 0 && during(samples, now - LOOK - SLACK..=now).all(|one| one.rate > 0.0) {
            found.push(format!("none while there were requests: {sample:?}"));
        }
        // A step is no larger than policies allow, and goes where the rate of its moment says.
        let previous = samples[at - 1];
        let moment = previous.at - SLACK..=now;
        let (low, high) = before(moment.clone());
        let rates = during(samples, moment);
        if is > previous.replicas {
            let most = rates.map(|one| asked(one.rate, TARGET)).max().unwrap_or(0).max(1);
            if is > most.min(up_limit(high)) {
                found.push(format!("{} to {is} replicas: {sample:?}", previous.replicas));
            }
        } else if is < previous.replicas {
            let least = rates.map(|one| asked(one.rate, TARGET)).min().unwrap_or(0);
            if is < least.max(low.saturating_sub(STEP).min(previous.replicas)) {
                found.push(format!("{} to {is} replicas: {sample:?}", previous.replicas));
            }
        }
    }
    found
}

/// A row of the report; with a budget it is met up to that.
fn row(name: &str, value: f64, unit: &str, budget: Option<f64>) -> Value {
    let is_met = budget.is_none_or(|budget| value <= budget);
    eprintln!("{name:<44} {value:>10.1} {unit:<10} {budget:?} {is_met}");
    json!({"name": name, "value": value, "unit": unit, "peer": "", "ratio": null,
        "budget": budget, "met": is_met})
}

#[test]
#[ignore = "takes its time: `just test-drills`"]
fn replicas_follow_the_load_up_and_down_and_no_request_is_lost() {
    let rate = std::env::var("EDGEORC_DRILL_RATE").ok().and_then(|text| text.parse().ok());
    let rate: f64 = rate.unwrap_or(RATE_DEFAULT);
    let folder = tempfile::tempdir().unwrap();
    let node = Node::start(folder.path(), "one", Block::take().address(1), None);
    node.wait_ready();
    let image = push(&node, hello().to_str().unwrap());
    let file = folder.path().join("web.json");
    std::fs::write(&file, manifest(&image)).unwrap();
    succeed(&mut node.kubectl(&["apply", "-f", file.to_str().unwrap()]));
    let state = || both(&node.kubectl(&["describe", "hpa", "web"]).output().unwrap());
    let watcher = Watcher::start(&node);
    let until_none = || {
        eventually("no replica is wanted, no pod left", PATIENCE * 3, || {
            let pods = watcher.read("/api/v1/namespaces/default/pods?labelSelector=app%3Dweb");
            let left = pods["items"].as_array().unwrap().len();
            let wanted = watcher.replicas();
            if (wanted, left) == (0, 0) { Ok(()) } else { Err((wanted, left, state())) }
        });
    };
    until_none();

    let is_over = Arc::new(AtomicBool::new(false));
    let (over, ingress) = (Arc::clone(&is_over), node.ingress());
    let load = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let outcome = runtime.block_on(ramp(ingress, rate));
        over.store(true, Ordering::Relaxed);
        outcome
    });
    let start = Instant::now();
    let mut samples = vec![watcher.sample(start)];
    // After the last request, until nothing is left of what it asked for.
    while !is_over.load(Ordering::Relaxed) || samples.last().is_some_and(|last| last.replicas > 0) {
        let sample = watcher.sample(start);
        if samples.last().is_some_and(|last| last.replicas != sample.replicas) {
            eprintln!("{sample:?}");
        }
        samples.push(sample);
        assert!(sample.at < RISE + HOLD + FALL + 240.0, "it never ends: {}", state());
        std::thread::sleep(SAMPLE);
    }
    let outcome = load.join().unwrap();
    until_none();
    let began = Instant::now();
    let first = get(node.ingress(), "web.local", "/", REQUEST_LIMIT);
    let from_zero = began.elapsed().as_secs_f64() * 1e3;
    let is_answered = first.as_ref().is_ok_and(|answer| answer.code == 200);

    let offences = offences(&samples);
    let top =
        during(&samples, RISE + HOLD - SLACK..=RISE + HOLD).map(|sample| sample.replicas).max();
    let by_formula = f64::from(asked(rate, TARGET));
    let top_ratio = f64::from(top.unwrap_or(0)) / by_formula;
    #[allow(clippy::cast_precision_loss, reason = "counts of a few minutes")]
    let count = |n: usize| n as f64;
    let lost = outcome.lost.len() + usize::from(!is_answered);
    let mut rows = vec![
        row("requests lost", count(lost), "requests", Some(0.0)),
        row("requests sent", f64::from(outcome.sent), "requests", None),
        row(
            "samples beyond what the algorithm allows",
            count(offences.len()),
            "samples",
            Some(0.0),
        ),
        row("samples", count(samples.len()), "samples", None),
        row("a request from zero", from_zero, "ms", None),
        row("answer p50", percentile(&outcome.took, 0.5), "ms", None),
        row("answer p99", percentile(&outcome.took, 0.99), "ms", None),
        row("sent later than due p99", percentile(&outcome.late, 0.99), "ms", None),
    ];
    rows.push(json!({"name": "replicas at the top", "value": top, "unit": "replicas",
        "peer": format!("formula {by_formula}"), "ratio": top_ratio, "budget": 1.0 + TOLERANCE,
        "met": (1.0 - TOLERANCE..=1.0 + TOLERANCE).contains(&top_ratio)}));
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench/autoscaling.json");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, serde_json::to_string_pretty(&rows).unwrap()).unwrap();
    eprintln!("written to {}", path.display());
    assert!(is_answered, "{first:?}");
    assert!(outcome.lost.is_empty(), "{} lost: {:?}", outcome.lost.len(), &outcome.lost[..1]);
    assert!(offences.is_empty(), "{offences:#?}");
    assert!(rows.iter().all(|row| row["met"] == true), "{rows:#?}");
}

#[test]
fn the_judge_tells_what_the_algorithm_allows_from_what_it_does_not() {
    // A rise to 500/s in 30 s, and a sudden end; replicas follow at looks every 10 s.
    let run = |replicas: &dyn Fn(f64) -> u32| -> Vec<Sample> {
        let at = |n: u32| f64::from(n) / 2.0;
        let rate =
            |at: f64| if at < 80.0 { (at - 10.0).clamp(0.0, 30.0) / 30.0 * 500.0 } else { 0.0 };
        (0..260)
            .map(|n| Sample { at: at(n), rate: rate(at(n)), replicas: replicas(at(n)) })
            .collect()
    };
    let right = |at: f64| match at {
        ..=12.0 => 0,
        ..=22.0 => 1,
        ..=32.0 => 4,
        ..=42.0 => 5,
        ..=52.0 => 8,
        ..=102.0 => 10,
        ..=122.0 => 6,
        _ => 2,
    };
    assert_eq!(offences(&run(&right)), Vec::<String>::new());
    let wrong: [(&str, &dyn Fn(f64) -> u32); 5] = [
        ("too few", &|at| right(at).min(8)),
        ("too many", &|at| if at > 52.0 { right(at).max(12) } else { right(at) }),
        ("up too fast", &|at| if at > 22.0 { right(at).max(5) } else { right(at) }),
        ("down too fast", &|at| if at > 102.0 { 2 } else { right(at) }),
        ("down too late", &|at| if at > 52.0 { 10 } else { right(at) }),
    ];
    for (what, replicas) in wrong {
        assert!(!offences(&run(replicas)).is_empty(), "{what}");
    }
}

#[test]
fn the_ramp_rises_stays_and_falls() {
    let all: Vec<f64> = (0..).map_while(|n| due(n, 10.0)).collect();
    assert_eq!(all.len(), 10 * 100, "half of the rise, all of the hold, half of the fall");
    assert!(all.is_sorted() && all[0] == 0.0);
    let within = |times: RangeInclusive<f64>| all.iter().filter(|at| times.contains(at)).count();
    assert!((99..=101).contains(&within(70.0..=80.0)), "{}", within(70.0..=80.0));
    assert!((49..=51).contains(&within(25.0..=35.0)), "{}", within(25.0..=35.0));
    assert!((49..=51).contains(&within(125.0..=135.0)), "{}", within(125.0..=135.0));
}
