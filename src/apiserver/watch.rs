//! watch: one JSON document a line, for as long as the client listens.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use http::{Response, StatusCode, header};
use serde_json::{Value, json};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::api::Resource;
use crate::apiserver::by_node::Follow;
use crate::apiserver::context::Context;
use crate::apiserver::error::ApiError;
use crate::apiserver::negotiate::Shape;
use crate::apiserver::read::{self, Filter};
use crate::apiserver::router::Call;
use crate::store::{Batch, Change, Shown, StoreError};

/// Shortest life of a watch whose client named none; the longest is twice that.
const LIFE_MIN: Duration = Duration::from_secs(1800);
/// Longest life a client may name.
const LIFE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Marks the bookmark after the initial events of a streaming list.
const INITIAL_END: &str = "k8s.io/initial-events-end";

/// A watch under way.
struct Feed {
    context: Context,
    resource: &'static Resource,
    shape: Shape,
    filter: Arc<Filter>,
    follow: Follow,
    /// Lines to send before anything else is waited for.
    pending: VecDeque<Bytes>,
    /// Everything up to here has been sent.
    revision: u64,
    has_bookmarks: bool,
    bookmark: Interval,
    ends_at: Instant,
    has_sent_columns: bool,
    is_over: bool,
}

/// Starts a watch.
pub(super) async fn respond(call: Call) -> Result<Response<Body>, ApiError> {
    let shape = Shape::negotiate(&call.headers, &call.query)?;
    let filter = Filter::of(&call)?;
    let asked = call.query.number("resourceVersion")?;
    let sends_initial = call.query.is_set("sendInitialEvents");
    let is_fresh = sends_initial || matches!(asked, None | Some(0));
    let initial = if is_fresh { Some(read::all(&call, &filter).await?) } else { None };
    let revision = initial.as_ref().map_or(asked.unwrap_or(0), |found| found.revision);
    let (scope, store) = (call.info.scope(), &call.context.store);
    if !is_fresh {
        store.wait_for(&scope, revision, read::FUTURE_WAIT).await?;
    }
    let node = filter.concerned_node().map(str::to_owned);
    let follow = Follow::new(Arc::clone(&call.context), scope, node.as_deref(), revision);
    let follow = match follow {
        Ok(follow) => follow,
        // Clients look for this one within the stream: an HTTP 410 makes some watch from the same
        // revision for ever.
        Err(error @ StoreError::Compacted { .. }) => {
            let status = ApiError::from(error).0.to_value();
            return Ok(streaming(Body::from(line("ERROR", &status))));
        }
        Err(error) => return Err(error.into()),
    };
    let life = match call.query.number("timeoutSeconds")? {
        Some(seconds) if seconds > 0 => Duration::from_secs(seconds).min(LIFE_MAX),
        _ => LIFE_MIN + Duration::from_secs(call.context.rng.below(LIFE_MIN.as_secs())),
    };
    let pause = call.context.bookmark_interval;
    let mut bookmark = interval_at(Instant::now() + pause, pause);
    bookmark.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut feed = Feed {
        resource: call.info.resource,
        shape,
        filter: Arc::new(filter),
        follow,
        pending: VecDeque::new(),
        revision,
        has_bookmarks: call.query.is_set("allowWatchBookmarks"),
        bookmark,
        ends_at: Instant::now() + life,
        has_sent_columns: false,
        is_over: false,
        context: call.context,
    };
    for object in initial.into_iter().flat_map(|found| found.items) {
        let object = feed.filter.told(object);
        feed.push("ADDED", &object);
    }
    if sends_initial {
        feed.push_bookmark(true);
    }
    let lines = futures_util::stream::unfold(feed, |mut feed| async move {
        let line = feed.next().await?;
        Some((Ok::<_, Infallible>(line), feed))
    });
    Ok(streaming(Body::from_stream(lines)))
}

fn streaming(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::OK;
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

impl Feed {
    /// The next line; `None` is the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.pending.pop_front() {
                return Some(line);
            }
            if self.is_over {
                return None;
            }
            let cancel = self.context.cancel.clone();
            tokio::select! {
                biased;
                () = cancel.cancelled() => return None,
                batch = self.follow.next() => match batch {
                    Ok(batch) => self.took(&batch),
                    Err(error) => {
                        let status = ApiError::from(error).0.to_value();
                        self.pending.push_back(line("ERROR", &status));
                        self.is_over = true;
                    }
                },
                () = tokio::time::sleep_until(self.ends_at) => {
                    if self.has_bookmarks {
                        self.tell_progress();
                    }
                    self.is_over = true;
                }
                _ = self.bookmark.tick(), if self.has_bookmarks => self.tell_progress(),
            }
        }
    }

    fn took(&mut self, batch: &Batch) {
        for change in &batch.changes {
            self.change(change);
        }
        self.revision = batch.revision;
    }

    fn tell_progress(&mut self) {
        if let Some(batch) = self.follow.taken() {
            self.took(&batch);
        }
        self.push_bookmark(false);
    }

    /// What a change means to this watcher: leaving the selector is DELETED, entering is ADDED.
    fn change(&mut self, change: &Change) {
        let filter = Arc::clone(&self.filter);
        let before = filter.told_of(change.previous.as_ref());
        match (before, filter.told_of(change.current.as_ref())) {
            (None, None) => {}
            (None, Some(now)) => self.push_shared("ADDED", now),
            // Both carry the revision of the change: what was cut out of them may be all of it.
            (Some(before), Some(now)) if filter.cuts() && before.object() == now.object() => {}
            (Some(_), Some(now)) => self.push_shared("MODIFIED", now),
            (Some(before), None) => self.push_shared("DELETED", before),
        }
    }

    /// As [`Self::push`], with what other watchers of the object have done already.
    fn push_shared(&mut self, kind: &str, shown: &Shown) {
        if self.shape == Shape::Object {
            self.pending.push_back(wrap(kind, &shown.json()));
        } else {
            self.push(kind, shown.object());
        }
    }

    fn push(&mut self, kind: &str, object: &Value) {
        let now = self.context.clock.now();
        if self.shape == Shape::Object {
            self.pending.push_back(line(kind, object));
            return;
        }
        let shaped = self.shape.event(self.resource, object, now, !self.has_sent_columns);
        self.has_sent_columns = true;
        self.pending.push_back(line(kind, &shaped));
    }

    fn push_bookmark(&mut self, ends_initial: bool) {
        let mut metadata = json!({"resourceVersion": self.revision.to_string()});
        if let (true, Some(fields)) = (ends_initial, metadata.as_object_mut()) {
            fields.insert("annotations".to_owned(), json!({INITIAL_END: "true"}));
        }
        let object = json!({
            "kind": self.resource.kind,
            "apiVersion": self.resource.api_version(),
            "metadata": metadata,
        });
        self.pending.push_back(line("BOOKMARK", &object));
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    wrap(kind, object.to_string().as_bytes())
}

/// One line; `kind` is a word that needs no escapes.
fn wrap(kind: &str, object: &[u8]) -> Bytes {
    [br#"{"type":""#, kind.as_bytes(), br#"","object":"#, object, b"}\n"].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_json_document() {
        let object = json!({"metadata": {"name": "a\nb"}});
        let text = line("ADDED", &object);
        assert!(text.ends_with(b"\n") && !text[..text.len() - 1].contains(&b'\n'));
        let event: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(event, json!({"type": "ADDED", "object": object}));
    }
}
