//! Getting code onto the shelf: one job per code, which outlives those who wait for it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use http::{Response, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::api::compiled_code::{
    self, Absence, NoCode, ONLY_HERE, Statement, TICKET_HEADER, Ticket,
};
use crate::apiserver::compiled::owner::rank;
use crate::apiserver::compiled::{Compiled, Key, MakeError, receive};
use crate::apiserver::{forward, registry};

/// Jobs that run or whose failure is remembered; more are refused.
const JOBS_MAX: usize = 1024;
/// How long a failure stands before the next question tries again.
const FAILURE_KEPT: Duration = Duration::from_secs(30);
/// How long another server may take to answer; it does after a second even if it compiles. One whose
/// connection is lost is noticed sooner.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(8);
/// How long another server is asked again that is still compiling.
const PEER_MAX: Duration = Duration::from_secs(180);
/// How long a job goes on that nobody asks for: nodes ask every second. Their pod may be gone.
const UNASKED_MAX: Duration = Duration::from_secs(15);
/// How often that is looked at.
const UNASKED_LOOK: Duration = Duration::from_millis(500);
/// Pause before it is asked again.
const AGAIN: Duration = Duration::from_millis(50);
/// Most that is read of an answer without code, in bytes.
const COMPLAINT_BYTES_MAX: usize = 16 * 1024;

/// How a job ended: the code is on the shelf, or why not.
pub(super) type Ended = Result<(), NoCode>;

/// What a job may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Reach {
    /// Only the compiler of this server.
    Here,
    /// All servers by their rank, this one among them.
    Fleet,
}

struct Job {
    ended: watch::Receiver<Option<Ended>>,
    /// When somebody asked last.
    asked: Instant,
    /// When the failure is forgotten.
    until: Option<Instant>,
}

/// A file that is of no use once this is dropped, unless it was renamed; and what a compiler that was ended
/// left beside it.
struct Scrap(PathBuf);

impl Drop for Scrap {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        let (Some(folder), Some(stem)) = (self.0.parent(), self.0.file_stem()) else { return };
        let mark = format!("{}.", stem.to_string_lossy());
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&mark) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// A component that a node brought, while it is compiled.
struct Brought<'a> {
    jobs: &'a Jobs,
    component: &'a str,
    file: Scrap,
}

impl Drop for Brought<'_> {
    fn drop(&mut self) {
        self.jobs.brought.lock().remove(self.component);
    }
}

/// The jobs by what they bring.
#[derive(Default)]
pub(super) struct Jobs {
    jobs: Mutex<BTreeMap<(Key, Reach), Job>>,
    /// Components that nodes brought, until they are compiled.
    brought: Mutex<BTreeMap<String, PathBuf>>,
}

impl Jobs {
    /// Whether a component lies here, brought by a node.
    pub(super) fn has_brought(&self, component: &str) -> bool {
        self.brought.lock().contains_key(component)
    }

    /// Takes a component for the next job that wants it. `false`: too many lie here already.
    pub(super) fn bring(&self, component: &str, file: PathBuf, files_max: usize) -> bool {
        let mut brought = self.brought.lock();
        if brought.len() >= files_max || brought.contains_key(component) {
            return false;
        }
        brought.insert(component.to_owned(), file);
        true
    }

    /// Forgets a component that was brought for nothing.
    pub(super) fn forget(&self, component: &str) {
        drop(self.brought.lock().remove(component).map(Scrap));
    }

    /// What was brought of a component, which goes when this does.
    fn brought<'a>(&'a self, component: &'a str) -> Option<Brought<'a>> {
        let file = Scrap(self.brought.lock().get(component)?.clone());
        Some(Brought { jobs: self, component, file })
    }
}

/// Joins the job for this code, or starts it.
pub(super) fn join(
    compiled: &Compiled,
    key: &Key,
    reach: Reach,
) -> Option<watch::Receiver<Option<Ended>>> {
    let now = Instant::now();
    let mut jobs = compiled.jobs.jobs.lock();
    // A job that neither runs nor has failed broke off.
    jobs.retain(|_, job| match job.until {
        Some(until) => until > now,
        None => job.ended.has_changed().is_ok(),
    });
    let name = (key.clone(), reach);
    if let Some(job) = jobs.get_mut(&name) {
        job.asked = now;
        return Some(job.ended.clone());
    }
    if jobs.len() >= JOBS_MAX {
        return None;
    }
    let (tell, ended) = watch::channel(None);
    jobs.insert(name.clone(), Job { ended: ended.clone(), asked: now, until: None });
    drop(jobs);
    let task = Arc::clone(compiled);
    compiled.tasks.spawn_until_cancelled("compiled-code", async move {
        let work = async {
            match reach {
                Reach::Here => here(&task, &name.0).await,
                Reach::Fleet => fleet(&task, &name.0).await,
            }
        };
        let outcome = tokio::select! {
            outcome = work => outcome,
            () = unasked(&task.jobs, &name, &tell) => {
                tracing::info!(image.digest = name.0.component, "nobody waits for this code any more");
                Err(none(Absence::OtherEngine, "nobody waited for it any more"))
            }
        };
        // What took long to find out is not tried again at once.
        let is_kept = outcome
            .as_ref()
            .is_err_and(|none| matches!(none.reason, Absence::Refused | Absence::Unfinished));
        let mut jobs = task.jobs.jobs.lock();
        if let Some(job) = jobs.get_mut(&name).filter(|_| is_kept) {
            job.until = Some(Instant::now() + FAILURE_KEPT);
        } else {
            jobs.remove(&name);
        }
        drop(jobs);
        tell.send_replace(Some(outcome));
    });
    Some(ended)
}

/// Waits until nobody has asked for a job, and nobody waits for it, for a while.
async fn unasked(jobs: &Jobs, name: &(Key, Reach), waiting: &watch::Sender<Option<Ended>>) {
    loop {
        tokio::time::sleep(UNASKED_LOOK).await;
        let mut jobs = jobs.jobs.lock();
        let Some(job) = jobs.get_mut(name) else { return };
        // One receiver is the job's own.
        if waiting.receiver_count() > 1 {
            job.asked = Instant::now();
        } else if job.asked.elapsed() > UNASKED_MAX {
            return;
        }
    }
}

fn none(reason: Absence, message: impl Into<String>) -> NoCode {
    NoCode { reason, message: message.into(), server: None }
}

/// Waits for the end of a job.
pub(super) async fn ended(mut job: watch::Receiver<Option<Ended>>) -> Ended {
    let stopping = || none(Absence::Unfinished, "this server is stopping");
    match job.wait_for(Option::is_some).await {
        Ok(ended) => ended.clone().unwrap_or_else(|| Err(stopping())),
        Err(_) => Err(stopping()),
    }
}

/// Asks the servers by their rank until one has the code; this one compiles when it is its turn.
async fn fleet(compiled: &Compiled, key: &Key) -> Ended {
    let me = &compiled.context.node_name;
    let mut servers = compiled.context.store.other_servers(me);
    servers.push(me.clone());
    let text = "no server can compile for this engine";
    let mut why = none(Absence::OtherEngine, text);
    for server in rank(servers, key) {
        let got = if server == *me {
            match join(compiled, key, Reach::Here) {
                Some(job) => ended(job).await,
                None => Err(none(Absence::Unfinished, "too much is being compiled")),
            }
        } else {
            from_peer(compiled, key, &server).await
        };
        match got {
            Ok(()) => return Ok(()),
            // Another server would come to the same, at the same cost.
            Err(failed @ NoCode { reason: Absence::Refused | Absence::Unfinished, .. }) => {
                return Err(failed);
            }
            // Another one may have it; if none has, the node brings it to the first.
            Err(failed) if failed.reason == Absence::NoComponent => {
                if why.reason != Absence::NoComponent {
                    why = failed;
                }
            }
            Err(failed) => tracing::debug!(peer = server, reason = failed.message, "no code"),
        }
    }
    Err(why)
}

/// Compiles on this server.
async fn here(compiled: &Compiled, key: &Key) -> Ended {
    let me = &compiled.context.node_name;
    // Whatever comes of it, it does not stay.
    let brought = compiled.jobs.brought(&key.component);
    match compiled.config.maker.engine() {
        None => return Err(none(Absence::OtherEngine, format!("server {me} does not compile"))),
        Some(engine) if engine != key.engine => {
            let text = format!("server {me} compiles for another engine");
            return Err(none(Absence::OtherEngine, text));
        }
        Some(_) => {}
    }
    if compiled.shelf.lock().take(key).is_some() {
        return Ok(());
    }
    let file = match &brought {
        Some(brought) => Some(brought.file.0.clone()),
        None => component(compiled, &key.component).await,
    };
    let Some(file) = file else {
        let message = "no server has this component".to_owned();
        let server = Some(me.clone());
        return Err(NoCode { reason: Absence::NoComponent, message, server });
    };
    make(compiled, key, &file).await
}

/// The file of a component.
async fn component(compiled: &Compiled, hex: &str) -> Option<PathBuf> {
    let of_pods = compiled.config.components.iter().map(|folder| folder.join(hex));
    if let Some(file) = of_pods.into_iter().find(|file| file.is_file()) {
        return Some(file);
    }
    registry::file(&compiled.context, hex).await
}

async fn make(compiled: &Compiled, key: &Key, component: &Path) -> Ended {
    let unfinished = |cause: std::io::Error| {
        tracing::warn!(err = %cause, "compiled code cannot be kept");
        none(Absence::Unfinished, "the server cannot use its disk")
    };
    let temporary = compiled.shelf.lock().temporary().map_err(unfinished)?;
    let _scrap = Scrap(temporary.clone());
    // A disk may have changed it, and what is signed goes to all nodes.
    let (found, _) = receive::of_file(component).await.map_err(unfinished)?;
    if found != key.component {
        tracing::error!(image.digest = key.component, "the component on the disk is damaged");
        tokio::fs::remove_file(component).await.map_err(unfinished)?;
        return Err(none(Absence::Unfinished, "the server's copy of the component was damaged"));
    }
    let started = Instant::now();
    let made = compiled.config.maker.make(component, &temporary).await;
    let kept = match made {
        Ok(()) => keep(compiled, key, &temporary).await.map_err(unfinished),
        Err(MakeError::Refused(message)) => Err(none(Absence::Refused, message)),
        Err(MakeError::Unfinished(message)) => Err(none(Absence::Unfinished, message)),
    };
    let elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    if kept.is_ok() {
        tracing::info!(
            image.digest = key.component,
            elapsed_ms,
            "component compiled for all nodes"
        );
    }
    kept
}

async fn keep(compiled: &Compiled, key: &Key, file: &Path) -> std::io::Result<()> {
    let (code, bytes) = receive::of_file(file).await?;
    let (engine, component) = (key.engine.clone(), key.component.clone());
    let statement = Statement { engine, component, code, bytes };
    compiled.shelf.lock().put(file, &statement)
}

/// Fetches the code from the server that has or makes it.
async fn from_peer(compiled: &Compiled, key: &Key, server: &str) -> Ended {
    let path = format!("{}?{ONLY_HERE}", compiled_code::path(&key.engine, &key.component));
    let deadline = Instant::now() + PEER_MAX;
    let away = || none(Absence::OtherEngine, format!("server {server} does not answer"));
    loop {
        let asked = compiled.context.forward.server(server, forward::get(&path));
        let answer = match tokio::time::timeout(ANSWER_TIMEOUT, asked).await {
            Ok(Ok(answer)) => answer,
            _ => return Err(away()),
        };
        match answer.status() {
            StatusCode::OK => return take(compiled, key, server, answer).await,
            StatusCode::ACCEPTED if Instant::now() < deadline => tokio::time::sleep(AGAIN).await,
            StatusCode::ACCEPTED => return Err(away()),
            _ => {
                let body = Limited::new(answer.into_body(), COMPLAINT_BYTES_MAX).collect();
                let body = tokio::time::timeout(ANSWER_TIMEOUT, body).await;
                let Ok(Ok(body)) = body else { return Err(away()) };
                return Err(serde_json::from_slice(&body.to_bytes()).unwrap_or_else(|_| away()));
            }
        }
    }
}

/// Checks what a server sent, as a node would, and keeps it.
async fn take(compiled: &Compiled, key: &Key, server: &str, answer: Response<Body>) -> Ended {
    let refused = |why: &dyn std::fmt::Display| {
        tracing::warn!(peer = server, err = %why, "compiled code of a server refused");
        none(Absence::OtherEngine, format!("what server {server} sent was refused"))
    };
    let header = answer.headers().get(TICKET_HEADER).and_then(|value| value.to_str().ok());
    let ticket = Ticket::parse(header.unwrap_or_default(), &key.engine, &key.component)
        .map_err(|why| refused(&why))?;
    let message = ticket.statement.message();
    let identity = &compiled.config.identity;
    identity
        .verify_server(&message, &ticket.certificate, &ticket.signature)
        .map_err(|why| refused(&why))?;
    let statement = &ticket.statement;
    let temporary = compiled.shelf.lock().temporary().map_err(|why| refused(&why))?;
    let _scrap = Scrap(temporary.clone());
    let received = receive::to_file(answer.into_body(), &temporary, statement.bytes).await;
    match received {
        Ok((code, _)) if code == statement.code => {
            compiled.shelf.lock().put(&temporary, statement).map_err(|why| refused(&why))
        }
        Ok(_) => Err(refused(&"other bytes came than were signed")),
        Err(why) => Err(refused(&why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_brought_goes_with_whoever_takes_it_or_when_nobody_does() {
        let folder = tempfile::tempdir().unwrap();
        let jobs = Jobs::default();
        let bring = |name: &str| {
            let file = folder.path().join(name);
            std::fs::write(&file, "component").unwrap();
            assert!(jobs.bring("c", file.clone(), 1));
            assert!(!jobs.bring("d", file.clone(), 1), "there is place for one");
            file
        };
        let file = bring("1.tmp");
        let left = folder.path().join("1.unpacked.tmp");
        let other = folder.path().join("11.tmp");
        std::fs::write(&left, "of a compiler").unwrap();
        std::fs::write(&other, "of another job").unwrap();
        drop(jobs.brought("c").unwrap());
        assert!(!file.exists() && !left.exists() && other.exists());
        assert!(!jobs.has_brought("c"));
        let file = bring("2.tmp");
        jobs.forget("c");
        assert!(!file.exists() && !jobs.has_brought("c"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_job_goes_on_while_somebody_waits_or_asks_and_no_longer() {
        let jobs = Jobs::default();
        let key = Key { engine: "e".to_owned(), component: "c".to_owned() };
        let name = (key, Reach::Here);
        let (tell, ended) = watch::channel(None);
        let job = Job { ended: ended.clone(), asked: Instant::now(), until: None };
        jobs.jobs.lock().insert(name.clone(), job);
        let over = unasked(&jobs, &name, &tell);
        tokio::pin!(over);
        let goes_on = tokio::time::timeout(UNASKED_MAX * 10, &mut over).await;
        assert!(goes_on.is_err(), "somebody waits");
        drop(ended);
        let goes_on = tokio::time::timeout(UNASKED_MAX / 2, &mut over).await;
        assert!(goes_on.is_err(), "somebody may ask again");
        jobs.jobs.lock().get_mut(&name).unwrap().asked = Instant::now();
        let goes_on = tokio::time::timeout(UNASKED_MAX / 2 + UNASKED_LOOK, &mut over).await;
        assert!(goes_on.is_err(), "somebody has");
        tokio::time::timeout(UNASKED_MAX, over).await.unwrap();
    }
}
