//! `edgeorc delete`.

use std::time::Duration;

use http::Method;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::api::{ACCEPT_JSON, Session};
use super::args::{Delete, Global};
use super::exit::{self, Failure};
use super::output;
use super::progress::Progress;
use super::target::{self, Target};
use crate::config::Environment;

/// How often the object is looked for while waiting.
const POLL: Duration = Duration::from_millis(100);
/// What `deploy` makes, in the order in which it is taken away.
const APP_KINDS: &[&str] = &["ingress", "service", "deployment"];

/// Deletes objects and waits until they are gone.
pub(super) async fn run(
    delete: Delete,
    global: &Global,
    environment: &Environment,
) -> Result<(), Failure> {
    let targets = targets(&delete.what)?;
    let session = Session::open(global, environment).await?;
    let is_app = is_app(&delete.what);
    let mut deleted = Vec::new();
    for target in targets {
        let path = target.path(Some(&session.namespace));
        let body = json!({"propagationPolicy": "Background"});
        match session.json(Method::DELETE, &path, ACCEPT_JSON, Some(&body)).await {
            Ok(_) => {
                let name = target.name.as_deref().unwrap_or_default();
                output::data_line(&format!("{} \"{name}\" deleted", target.resource.singular))?;
                deleted.push(path);
            }
            // An app may have lost a part already.
            Err(refused) if is_app && refused.is_not_found() => {}
            Err(refused) => return Err(refused.into()),
        }
    }
    if deleted.is_empty() {
        return Err(Failure::failed("found nothing to delete"));
    }
    if delete.no_wait {
        return Ok(());
    }
    wait_until_gone(&session, &deleted, Duration::from_secs(delete.timeout)).await
}

fn is_app(what: &[String]) -> bool {
    what.first().is_some_and(|word| word == "app" || word.starts_with("app/"))
}

fn targets(what: &[String]) -> Result<Vec<Target>, Failure> {
    let targets = if is_app(what) {
        let mut targets = Vec::new();
        let names = what.iter().filter_map(|w| match w.split_once('/') {
            Some((_, name)) => Some(name),
            None => (w != "app").then_some(w.as_str()),
        });
        for name in names {
            for kind in APP_KINDS {
                targets.extend(target::parse(&[format!("{kind}/{name}")])?);
            }
        }
        targets
    } else {
        target::parse(what)?
    };
    if targets.is_empty() || targets.iter().any(|t| t.name.is_none()) {
        return Err(Failure::with(
            exit::USAGE,
            "name the objects to delete, for example `pod/hello-abc`",
        ));
    }
    Ok(targets)
}

async fn wait_until_gone(
    session: &Session,
    paths: &[String],
    limit: Duration,
) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    let progress =
        Progress::start("waiting until the objects are gone; their pods end by themselves");
    for path in paths {
        loop {
            match session.get(path, ACCEPT_JSON).await {
                Err(refused) if refused.is_not_found() => break,
                Err(refused) if !refused.is_transient() => return Err(refused.into()),
                _ => {}
            }
            if Instant::now() >= deadline {
                return Err(Failure::with(
                    exit::TIMEOUT,
                    format!("{path} is still there after {} s", limit.as_secs()),
                ));
            }
            sleep(POLL).await;
        }
    }
    drop(progress);
    Ok(())
}
