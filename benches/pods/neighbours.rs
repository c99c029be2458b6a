//! How much slower a pod answers while another one misbehaves.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::{NODE, Row, median, row};
use crate::{Bench, percentile};

/// Requests per second at the neighbour: light, so that only the culprit can hold it up.
const RATE: u32 = 200;
/// How much its p99 may rise, as a ratio.
const RISE_MAX: f64 = 1.10;
/// How long a culprit may take to get going.
const WARM_UP: Duration = Duration::from_secs(2);

/// One who misbehaves: its guest, its number, and what is special of its container, as JSON.
struct Culprit {
    name: &'static str,
    guest: &'static str,
    pods: usize,
    special: &'static str,
}

const CULPRITS: &[Culprit] = &[
    Culprit { name: "four spinners", guest: "bad-spinner", pods: 4, special: "" },
    Culprit {
        name: "a memory grower",
        guest: "bad-grower",
        pods: 1,
        special: r#","resources":{"limits":{"memory":"256Mi"}}"#,
    },
    Culprit {
        name: "a log flood",
        guest: "busybox",
        pods: 1,
        special: r#","command":["sh","-c","x=0123456789; x=$x$x$x$x$x$x$x$x$x$x; x=$x$x$x$x$x$x$x$x$x$x; x=$x$x$x$x$x$x$x$x$x$x; cd /data; echo $x > a; cat a a a a a a a a > b; cat b b b b b b b b > c; cat c c c c c c c c; cat c c c c c c c c; exit 1"],
            "volumeMounts":[{"name":"data","mountPath":"/data"}]"#,
    },
    Culprit {
        name: "a volume filler",
        guest: "busybox",
        pods: 1,
        special: r#","command":["sh","-c","cd /data; seq 1 20000 > a; cat a a a a a a a a > b; cat b b b b b b b b > c; cat c c c c c c c c > d; exit 1"],
            "volumeMounts":[{"name":"data","mountPath":"/data"}]"#,
    },
];

/// p99 of `hello` beside each culprit, in turns with its p99 alone.
pub(crate) fn rows(bench: &Bench, turns: usize, length: Duration) -> Vec<Row> {
    let mut rows = Vec::new();
    for culprit in CULPRITS {
        eprintln!("beside {}", culprit.name);
        bench.push("culprit", &bench.guest(culprit.guest));
        // A spinner hears no request to end.
        let patch = format!(
            r#"{{"spec":{{"template":{{"spec":{{"terminationGracePeriodSeconds":0,
            "volumes":[{{"name":"data","emptyDir":{{"sizeLimit":"16Mi"}}}}],
            "containers":[{{"name":"culprit"{}}}]}}}}}}}}"#,
            culprit.special
        );
        bench.kubectl(&["patch", "deploy", "culprit", "-p", &patch]);
        let (mut alone, mut beside) = (Vec::new(), Vec::new());
        for _ in 0..turns {
            bench.scale("culprit", 0);
            std::thread::sleep(WARM_UP);
            alone.push(p99_ms(length));
            bench.scale("culprit", culprit.pods);
            std::thread::sleep(WARM_UP);
            beside.push(p99_ms(length));
        }
        bench.edgeorc(&["delete", "app", "culprit"]);
        let (alone, beside) = (median(alone), median(beside));
        let ratio = beside / alone;
        let name = format!("p99 of a pod beside {}", culprit.name);
        let row = row(&name, beside, "ms", &format!("alone {alone:.2}"), RISE_MAX);
        rows.push(Row { ratio: Some(ratio), met: ratio <= RISE_MAX, ..row });
    }
    rows
}

/// p99 of requests at a steady rate, each timed from when it was due: a stall counts for all that it
/// held up.
fn p99_ms(length: Duration) -> f64 {
    let began = Instant::now();
    let (mut next, mut took) = (began, Vec::new());
    while began.elapsed() < length {
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
        ask().unwrap_or_else(|cause| panic!("hello does not answer: {cause}"));
        took.push(next.elapsed().as_secs_f64() * 1e3);
        next += Duration::from_secs(1) / RATE;
    }
    percentile(&took, 99)
}

fn ask() -> std::io::Result<()> {
    let mut stream = TcpStream::connect((NODE, 8080))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    write!(stream, "GET / HTTP/1.1\r\nHost: hello.default.localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    if answer.starts_with(b"HTTP/1.1 200") {
        Ok(())
    } else {
        Err(std::io::Error::other(String::from_utf8_lossy(&answer).into_owned()))
    }
}
