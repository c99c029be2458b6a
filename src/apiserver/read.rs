//! get and list.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::meta;
use crate::api::selector::{FieldSelector, LabelSelector};
use crate::api::status::Status;
use crate::apiserver::error::ApiError;
use crate::apiserver::negotiate::Shape;
use crate::apiserver::neighbours::Neighbours;
use crate::apiserver::router::Call;
use crate::store::{Freshness, Key, Page, Scope, Shown, StoreError};

/// How long a read waits for a revision that this server has not yet; Kubernetes' figure.
pub(super) const FUTURE_WAIT: Duration = Duration::from_secs(3);
/// Objects read at once while filtering a page by a selector.
const SCAN_PAGE: usize = 500;

/// Reads one object.
pub(super) async fn get(call: Call) -> Result<Response<Body>, ApiError> {
    let shape = Shape::negotiate(&call.headers, &call.query)?;
    let Some(key) = call.info.key() else { return Err(Status::no_such_path().into()) };
    let store = &call.context.store;
    let freshness = freshness(&call, &call.info.scope()).await?;
    let found = store.get(&key, freshness).await.map_err(|error| ApiError::store(error, &key))?;
    let stored = found.ok_or_else(|| Status::not_found(key.resource, &key.name))?;
    let now = call.context.clock.now();
    Ok(shape.respond(StatusCode::OK, key.resource, &stored.object, now))
}

/// How current a read without an exact revision must be.
async fn freshness(call: &Call, scope: &Scope) -> Result<Freshness, ApiError> {
    match call.query.number("resourceVersion")? {
        None => Ok(Freshness::Latest),
        Some(0) => Ok(Freshness::Any),
        Some(revision) => {
            call.context.store.wait_for(scope, revision, FUTURE_WAIT).await?;
            Ok(Freshness::Any)
        }
    }
}

/// What a selector or a name in the path lets through, and what of it.
#[derive(Debug, Clone)]
pub(super) struct Filter {
    labels: LabelSelector,
    fields: FieldSelector,
    name: Option<String>,
    neighbours: Option<Neighbours>,
}

impl Filter {
    pub(super) fn of(call: &Call) -> Result<Self, ApiError> {
        Ok(Self {
            labels: call.query.labels()?,
            fields: call.query.fields(call.info.resource)?,
            name: call.info.name.clone(),
            neighbours: Neighbours::of(call),
        })
    }

    pub(super) fn is_everything(&self) -> bool {
        self.labels.is_everything() && self.fields.is_empty() && self.name.is_none()
    }

    /// The node that what is let through concerns: that pods must be on, or that asks for Nodes. Whoever
    /// selects Nodes looks at more of them than is told.
    pub(super) fn concerned_node(&self) -> Option<&str> {
        let selects = !self.labels.is_everything() || !self.fields.is_empty();
        let asking = self.neighbours.as_ref().filter(|_| !selects).map(Neighbours::me);
        asking.or_else(|| self.fields.required("spec.nodeName"))
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let is_named = self.name.as_deref().is_none_or(|name| meta::name(object) == name);
        let is_told = self.neighbours.as_ref().is_none_or(|neighbours| neighbours.has(object));
        is_named && is_told && self.labels.matches(object) && self.fields.matches(object)
    }

    /// What is told of an object that [`Self::matches`].
    pub(super) fn told(&self, object: Value) -> Value {
        match &self.neighbours {
            Some(neighbours) => neighbours.told(object),
            None => object,
        }
    }

    /// What is told of an object that others watch as well; `None` if it is not let through.
    pub(super) fn told_of<'a>(&self, shown: Option<&'a Arc<Shown>>) -> Option<&'a Shown> {
        let shown = shown.filter(|shown| self.matches(shown.object()))?;
        Some(match &self.neighbours {
            Some(neighbours) => neighbours.told_of(shown),
            None => shown,
        })
    }

    /// Whether what is told is a part only.
    pub(super) fn cuts(&self) -> bool {
        self.neighbours.is_some()
    }
}

/// Where a list goes on: opaque to clients.
#[derive(Debug, Serialize, Deserialize)]
struct Token {
    /// Revision of the whole list; 0 goes on with whatever is there now.
    rv: u64,
    /// Last key seen, in hex.
    after: String,
}

impl Token {
    fn encode(&self) -> String {
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(self).unwrap_or_default())
    }

    fn decode(text: &str) -> Option<(u64, Vec<u8>)> {
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let token: Self = serde_json::from_slice(&bytes).ok()?;
        Some((token.rv, hex::decode(token.after).ok()?))
    }
}

/// A list as far as it was asked for.
pub(super) struct Found {
    pub(super) items: Vec<Value>,
    pub(super) revision: u64,
    remaining: u64,
    last_key: Option<Vec<u8>>,
}

/// Reads a collection.
pub(super) async fn list(call: Call) -> Result<Response<Body>, ApiError> {
    let shape = Shape::negotiate(&call.headers, &call.query)?;
    let filter = Filter::of(&call)?;
    let limit = call.query.limit()?;
    let (mut page, freshness) = place(&call, limit).await?;
    let scope = call.info.scope();
    let found = match scan(&call, &scope, &mut page, freshness, &filter, limit).await {
        Err(StoreError::Compacted { .. }) if call.query.get("continue").is_some() => {
            let after = hex::encode(page.after.unwrap_or_default());
            return Err(Status::expired_continue(Token { rv: 0, after }.encode()).into());
        }
        other => other?,
    };
    let mut list_meta = json!({"resourceVersion": found.revision.to_string()});
    if let (Some(fields), Some(last), true) =
        (list_meta.as_object_mut(), &found.last_key, found.remaining > 0)
    {
        let token = Token { rv: found.revision, after: hex::encode(last) };
        fields.insert("continue".to_owned(), json!(token.encode()));
        if filter.is_everything() {
            fields.insert("remainingItemCount".to_owned(), json!(found.remaining));
        }
    }
    let now = call.context.clock.now();
    let items = found.items.into_iter().map(|object| filter.told(object)).collect();
    let document = shape.list(call.info.resource, items, list_meta, now);
    Ok(super::response::json(StatusCode::OK, &document))
}

/// Where to start and at which revision, from `continue`, `resourceVersion` and
/// `resourceVersionMatch`.
async fn place(call: &Call, limit: usize) -> Result<(Page, Freshness), ApiError> {
    let query = &call.query;
    let exact = query.get("resourceVersionMatch");
    if let Some(text) = query.get("continue") {
        if exact.is_some() {
            return Err(
                Status::bad_request("resourceVersionMatch is forbidden for continue").into()
            );
        }
        let (rv, after) = Token::decode(text).ok_or_else(|| {
            Status::bad_request("continue key is not valid: it was not made by this server")
        })?;
        let scope = call.info.scope();
        if after < scope.start() || after >= scope.end() {
            return Err(Status::bad_request(
                "continue key is not valid: it is not of this collection",
            )
            .into());
        }
        // The page before may have come from a server that is ahead of this one.
        call.context.store.wait_for(&scope, rv, FUTURE_WAIT).await?;
        let at = (rv > 0).then_some(rv);
        return Ok((Page { limit, after: Some(after), at, ..Page::default() }, Freshness::Any));
    }
    let asked = query.number("resourceVersion")?;
    let is_exact = match (exact, asked) {
        (None, Some(revision)) => limit > 0 && revision > 0,
        (None, None) => false,
        (Some(_), None) => {
            return Err(Status::bad_request(
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            )
            .into());
        }
        (Some("NotOlderThan"), Some(_)) => false,
        (Some("Exact"), Some(0)) => {
            return Err(Status::bad_request(
                "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
            )
            .into());
        }
        (Some("Exact"), Some(_)) => true,
        (Some(other), Some(_)) => {
            return Err(Status::bad_request(format!(
                "resourceVersionMatch: Unsupported value: {other:?}"
            ))
            .into());
        }
    };
    let freshness = freshness(call, &call.info.scope()).await?;
    let at = asked.filter(|_| is_exact);
    Ok((Page { limit, after: None, at, ..Page::default() }, freshness))
}

/// Reads until `limit` objects passed the filter or the collection ended.
async fn scan(
    call: &Call,
    scope: &Scope,
    page: &mut Page,
    mut freshness: Freshness,
    filter: &Filter,
    limit: usize,
) -> Result<Found, StoreError> {
    let store = &call.context.store;
    if limit == 0 || filter.is_everything() {
        page.counts_remaining = limit > 0;
        let listed = store.list(scope, page, freshness).await?;
        let items = listed.items.into_iter().map(|stored| stored.object);
        return Ok(Found {
            items: items.filter(|object| filter.matches(object)).collect(),
            revision: listed.revision,
            remaining: listed.remaining,
            last_key: listed.last_key,
        });
    }
    let mut items = Vec::new();
    // Whole pages, whatever the limit: a selector that lets little through reads each object once.
    page.limit = SCAN_PAGE;
    loop {
        let listed = store.list(scope, page, freshness).await?;
        freshness = Freshness::Any;
        page.at = Some(listed.revision);
        let read = listed.items.len();
        for (at, stored) in listed.items.into_iter().enumerate() {
            if !filter.matches(&stored.object) {
                continue;
            }
            items.push(stored.object);
            if items.len() >= limit {
                let unread = (read - at - 1) as u64;
                let last_key = items.last().map(|last| key_of(scope, last).bytes());
                let remaining = listed.remaining.saturating_add(unread);
                return Ok(Found { items, revision: listed.revision, remaining, last_key });
            }
        }
        if listed.remaining == 0 {
            return Ok(Found { items, revision: listed.revision, remaining: 0, last_key: None });
        }
        page.after = listed.last_key;
    }
}

fn key_of(scope: &Scope, object: &Value) -> Key {
    Key::new(scope.resource, Some(meta::namespace(object)), meta::name(object))
}

/// A whole collection, for watches that begin with the present state.
pub(super) async fn all(call: &Call, filter: &Filter) -> Result<Found, ApiError> {
    let scope = call.info.scope();
    let freshness = freshness(call, &scope).await?;
    Ok(scan(call, &scope, &mut Page::default(), freshness, filter, 0).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_continue_token_survives_its_way_through_the_client() {
        let token = Token { rv: 7, after: hex::encode(b"/registry/x") }.encode();
        assert_eq!(Token::decode(&token), Some((7, b"/registry/x".to_vec())));
        for bad in ["", "x", "!!", "e30"] {
            assert_eq!(Token::decode(bad), None, "{bad}");
        }
    }
}
