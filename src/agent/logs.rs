//! Container logs, in kubelet's paths: `GET /containerLogs/{namespace}/{pod}/{container}`.
//!
//! A run of a container writes `<run>.log` in the CRI format, one line each:
//! `<RFC 3339> stdout|stderr F|P <text>`; when it is full it becomes `<run>.log.1`.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path as UrlPath, Query, State};
use axum::routing::get;
use bytes::Bytes;
use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use crate::agent::dirs::PodDir;
use crate::agent::log_file::{LogFile, rotated};
use crate::agent::pod::state::RunState;
use crate::agent::pod::writer::Numbered;
use crate::rt::WallClock;

/// How often a followed log is looked at for more.
const FOLLOW_POLL: Duration = Duration::from_millis(100);
/// Most logs of this node that are read at a time; the next is told to come again.
const READERS_MAX: usize = 128;

/// A pod whose logs can be read.
#[derive(Debug, Clone)]
pub(crate) struct LogSource {
    pub(crate) dir: PodDir,
    pub(crate) states: watch::Receiver<Numbered>,
}

/// The pods of this node by namespace and name.
#[derive(Debug, Clone, Default)]
pub(crate) struct LogSources(Arc<Mutex<BTreeMap<(String, String), LogSource>>>);

impl LogSources {
    pub(crate) fn insert(&self, namespace: &str, name: &str, source: LogSource) {
        self.0.lock().insert((namespace.to_owned(), name.to_owned()), source);
    }

    /// Forgets the pod, unless another one has taken its name.
    pub(crate) fn remove(&self, namespace: &str, name: &str, states: &watch::Receiver<Numbered>) {
        let key = (namespace.to_owned(), name.to_owned());
        let mut sources = self.0.lock();
        if sources.get(&key).is_some_and(|source| source.states.same_channel(states)) {
            sources.remove(&key);
        }
    }

    fn find(&self, namespace: &str, name: &str) -> Option<LogSource> {
        self.0.lock().get(&(namespace.to_owned(), name.to_owned())).cloned()
    }
}

/// The agent's API.
pub(crate) fn router(sources: LogSources, clock: WallClock) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/containerLogs/{namespace}/{pod}/{container}", get(respond))
        .with_state((sources, clock, Arc::new(Semaphore::new(READERS_MAX))))
}

/// What part of the log is wanted, and how.
#[derive(Debug, Clone, Default)]
struct Options {
    is_followed: bool,
    has_timestamps: bool,
    tail: Option<usize>,
    since: Option<Timestamp>,
    bytes_max: Option<u64>,
    is_previous: bool,
}

impl Options {
    fn read(query: &BTreeMap<String, String>, now: Timestamp) -> Self {
        let text = |key: &str| query.get(key).map(String::as_str);
        let is_set = |key: &str| matches!(text(key), Some("true" | "1" | ""));
        let number = |key: &str| text(key).and_then(|n| n.parse::<u64>().ok());
        let seconds = number("sinceSeconds").and_then(|s| i64::try_from(s).ok());
        let ago = seconds.and_then(|s| now.checked_sub(SignedDuration::from_secs(s)).ok());
        Self {
            is_followed: is_set("follow"),
            has_timestamps: is_set("timestamps"),
            tail: number("tailLines").and_then(|n| usize::try_from(n).ok()),
            since: ago.or_else(|| text("sinceTime").and_then(|t| t.parse().ok())),
            bytes_max: number("limitBytes"),
            is_previous: is_set("previous"),
        }
    }

    /// The line as the client reads it; `None` is not wanted.
    fn show(&self, line: &[u8]) -> Option<Vec<u8>> {
        let mut parts = line.splitn(4, |b| *b == b' ');
        let (time, _stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
        let text = parts.next().unwrap_or_default();
        if let Some(since) = self.since {
            let at: Option<Timestamp> = std::str::from_utf8(time).ok()?.parse().ok();
            if at? < since {
                return None;
            }
        }
        let mut shown = Vec::with_capacity(line.len() + 1);
        if self.has_timestamps {
            shown.extend_from_slice(time);
            shown.push(b' ');
        }
        shown.extend_from_slice(text);
        if tag != b"P" {
            shown.push(b'\n');
        }
        Some(shown)
    }
}

type Answer = Result<Body, (StatusCode, &'static str)>;

async fn respond(
    State((sources, clock, turns)): State<(LogSources, WallClock, Arc<Semaphore>)>,
    UrlPath((namespace, pod, container)): UrlPath<(String, String, String)>,
    Query(query): Query<BTreeMap<String, String>>,
) -> Answer {
    let turn = turns.try_acquire_owned();
    let turn = turn.map_err(|_| (StatusCode::TOO_MANY_REQUESTS, "too many logs are being read"))?;
    let options = Options::read(&query, clock.now());
    let source = sources.find(&namespace, &pod).ok_or((StatusCode::NOT_FOUND, "no such pod"))?;
    let runs = Runs::of(&source, &container).ok_or((StatusCode::NOT_FOUND, "no such container"))?;
    let run = if options.is_previous { runs.previous } else { Some(runs.present) };
    let run = run.ok_or((StatusCode::NOT_FOUND, "no previous run"))?;
    let path = source.dir.log_file(&container, run);
    // A run makes its file at its start: without one, nothing of the previous run is left here.
    let is_there = || path.exists() || rotated(&path).exists();
    if options.is_previous && !is_there() {
        return Err((StatusCode::NOT_FOUND, "no log of the previous run"));
    }
    let unreadable = |_| (StatusCode::INTERNAL_SERVER_ERROR, "the log cannot be read");
    let log = LogFile::open(path, options.tail).await.map_err(unreadable)?;
    let reader = Reader { source, container, run, log, options, sent: 0, _turn: turn };
    let stream = futures_util::stream::unfold(reader, |mut reader| async {
        let chunk = reader.more().await?;
        let chunk = reader.within_limit(chunk)?;
        Some((Ok::<_, io::Error>(Bytes::from(chunk)), reader))
    });
    Ok(Body::from_stream(stream))
}

/// The runs of a container whose logs can be asked for. Runs are counted from 0, and
/// `restart_count` is the number of the run that goes on, has ended, or is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Runs {
    /// The run that goes on or has ended; while the container waits for its next run, the last
    /// one that has ended.
    present: u32,
    /// The last run that ended before the one that goes on, has ended, or is due: while the
    /// container waits, the same as `present`, as `lastState` has it.
    previous: Option<u32>,
}

impl Runs {
    fn of(source: &LogSource, container: &str) -> Option<Self> {
        let (_, state) = source.states.borrow().clone();
        let record = state.containers.iter().find(|record| record.name == container)?;
        let is_waiting = matches!(record.state, RunState::Waiting { .. });
        let run = record.restart_count;
        let previous = run.checked_sub(1);
        Some(Self { present: if is_waiting { previous.unwrap_or(0) } else { run }, previous })
    }
}

/// Shows one run's log.
struct Reader {
    source: LogSource,
    container: String,
    run: u32,
    log: LogFile,
    options: Options,
    sent: u64,
    _turn: OwnedSemaphorePermit,
}

impl Reader {
    /// The next that is to be shown; `None` at the end.
    async fn more(&mut self) -> Option<Vec<u8>> {
        loop {
            // Looked at before reading: what is written before the end is then read after it.
            let is_over = !self.options.is_followed || self.is_over();
            let lines = self.log.next().await.ok()?;
            let shown = lines.split(|b| *b == b'\n').filter(|line| !line.is_empty());
            let shown: Vec<u8> =
                shown.filter_map(|line| self.options.show(line)).flatten().collect();
            if !shown.is_empty() {
                return Some(shown);
            }
            if lines.is_empty() {
                if is_over {
                    return None;
                }
                tokio::time::sleep(FOLLOW_POLL).await;
            }
        }
    }

    /// Whether this run has ended.
    fn is_over(&self) -> bool {
        if self.source.states.has_changed().is_err() {
            return true;
        }
        let (_, state) = self.source.states.borrow().clone();
        let record = state.containers.iter().find(|record| record.name == self.container);
        record.is_none_or(|record| record.restart_count != self.run || !record.is_running())
    }

    /// Cuts a chunk to `limitBytes`; `None` when nothing more may be sent.
    fn within_limit(&mut self, mut chunk: Vec<u8>) -> Option<Vec<u8>> {
        if let Some(max) = self.options.bytes_max {
            let left = usize::try_from(max.saturating_sub(self.sent)).unwrap_or(usize::MAX);
            if left == 0 {
                return None;
            }
            chunk.truncate(left);
        }
        self.sent += chunk.len() as u64;
        Some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use tower::ServiceExt as _;

    use super::*;
    use crate::agent::pod::plan::Role;
    use crate::agent::pod::state::{ContainerRecord, PodState};

    fn options(pairs: &[(&str, &str)]) -> Options {
        let query = pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Options::read(&query, "2026-01-01T00:01:00Z".parse().unwrap())
    }

    #[test]
    fn a_line_is_shown_without_its_envelope() {
        let line = b"2026-01-01T00:00:30Z stdout F hello world";
        assert_eq!(options(&[]).show(line).unwrap(), b"hello world\n");
        let stamped = options(&[("timestamps", "true")]).show(line).unwrap();
        assert_eq!(stamped, b"2026-01-01T00:00:30Z hello world\n");
        assert_eq!(options(&[("sinceSeconds", "10")]).show(line), None);
        assert!(options(&[("sinceSeconds", "60")]).show(line).is_some());
        assert_eq!(options(&[]).show(b"2026-01-01T00:00:30Z stdout P part").unwrap(), b"part");
        assert_eq!(options(&[]).show(b"garbage"), None);
    }

    /// What the agent answers for a container that was restarted `restart_count` times, is in
    /// `state`, and wrote `run <n>` in each run of `runs`.
    async fn answer(
        state: RunState,
        restart_count: u32,
        runs: std::ops::Range<u32>,
        query: &str,
    ) -> (StatusCode, String) {
        let lines = |run| format!("2026-01-01T00:00:30Z stdout F run {run}\n");
        let logs = runs.map(|run| (run, lines(run))).collect();
        answer_of(state, restart_count, logs, query).await
    }

    /// As [`answer`], with the text of each run's log.
    async fn answer_of(
        state: RunState,
        restart_count: u32,
        logs: Vec<(u32, String)>,
        query: &str,
    ) -> (StatusCode, String) {
        let folder = tempfile::tempdir().unwrap();
        let dirs = crate::agent::dirs::Dirs::create(folder.path().to_owned()).unwrap();
        let dir = dirs.pod("u1");
        std::fs::create_dir_all(dir.logs("main")).unwrap();
        for (run, text) in logs {
            std::fs::write(dir.log_file("main", run), text).unwrap();
        }
        let pod = PodState {
            containers: vec![ContainerRecord {
                name: "main".into(),
                image: String::new(),
                role: Role::Main,
                state,
                last: None,
                restart_count,
                image_id: String::new(),
                volume_mounts: Vec::new(),
                ran: Duration::ZERO,
                is_started: false,
                is_ready: false,
                is_in_post_start: false,
                is_heir: false,
            }],
            ips: Vec::new(),
            host_ips: Vec::new(),
            start_time: Timestamp::UNIX_EPOCH,
            has_sandbox: true,
            is_initialized: true,
            is_terminating: false,
            outcome: None,
        };
        let (_sender, states) = watch::channel((1, Arc::new(pod)));
        let sources = LogSources::default();
        sources.insert("default", "p", LogSource { dir, states });
        let request = http::Request::get(format!("/containerLogs/default/p/main?{query}"));
        let answer = router(sources, WallClock::manual(0))
            .oneshot(request.body(Body::empty()).unwrap())
            .await
            .unwrap();
        let status = answer.status();
        let body = axum::body::to_bytes(answer.into_body(), 1 << 16).await.unwrap();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    fn waiting() -> RunState {
        RunState::Waiting { reason: "CrashLoopBackOff", message: String::new() }
    }

    fn running() -> RunState {
        RunState::Running { started_at: Timestamp::UNIX_EPOCH, container_id: String::new() }
    }

    #[tokio::test]
    async fn previous_is_the_run_that_ended_last_before_the_present_one() {
        let ok = |text: &str| (StatusCode::OK, text.to_owned());
        // Runs 0 to 2 have ended; run 3 is due.
        assert_eq!(answer(waiting(), 3, 0..3, "previous=true").await, ok("run 2\n"));
        assert_eq!(answer(waiting(), 3, 0..3, "").await, ok("run 2\n"));
        assert_eq!(answer(waiting(), 1, 0..1, "previous=true").await, ok("run 0\n"));
        assert_eq!(answer(running(), 3, 0..4, "previous=true").await, ok("run 2\n"));
        assert_eq!(answer(running(), 3, 0..4, "").await, ok("run 3\n"));
    }

    #[tokio::test]
    async fn without_a_previous_run_there_is_no_such_log() {
        assert_eq!(answer(running(), 0, 0..1, "previous=true").await.0, StatusCode::NOT_FOUND);
        // The file is gone: the disk was changed by hand, or the pod came from elsewhere.
        assert_eq!(answer(running(), 3, 3..4, "previous=true").await.0, StatusCode::NOT_FOUND);
    }

    #[tokio::test]
    async fn every_parameter_says_which_part_is_shown() {
        let lines: String =
            (1..=4).map(|n| format!("2026-01-01T00:00:0{n}.5Z stderr F line {n}\n")).collect();
        for (query, wanted) in [
            ("", "line 1\nline 2\nline 3\nline 4\n"),
            ("tailLines=2", "line 3\nline 4\n"),
            ("tailLines=0", ""),
            ("limitBytes=9", "line 1\nli"),
            ("sinceTime=2026-01-01T00:00:03Z", "line 3\nline 4\n"),
            ("sinceTime=2026-01-01T01:00:04%2B01:00", "line 4\n"),
            ("tailLines=1&timestamps=true", "2026-01-01T00:00:04.5Z line 4\n"),
            // The clock of this node is at the beginning of 1970.
            ("sinceSeconds=1", "line 1\nline 2\nline 3\nline 4\n"),
            ("insecureSkipTLSVerifyBackend=true&tailLines=1", "line 4\n"),
        ] {
            let logs = vec![(0, lines.clone())];
            let got = answer_of(running(), 0, logs, query).await;
            assert_eq!(got, (StatusCode::OK, wanted.to_owned()), "{query}");
        }
        // Who follows gets the end of a run that is over.
        let ended = RunState::Waiting { reason: "CrashLoopBackOff", message: String::new() };
        let got = answer_of(ended, 1, vec![(0, lines)], "follow=true&tailLines=1").await;
        assert_eq!(got, (StatusCode::OK, "line 4\n".to_owned()));
    }
}
