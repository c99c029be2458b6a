//! ResourceQuota at admission, last of all: what an object uses is added to its quotas in the same
//! transaction that writes the object. Two at once that fit only alone cannot both be written: the
//! second finds the quota's version gone, reads again, and is refused.

use serde_json::Value;
use tokio::sync::SemaphorePermit;

use crate::api::status::Status;
use crate::api::{self, meta, quota};
use crate::apiserver::error::ApiError;
use crate::apiserver::router::Call;
use crate::store::{Freshness, Key, Page, Scope, Side};

/// What begins the name under which the store says that a quota was changed meanwhile.
pub(super) const CHARGE: &str = "quota/";

/// The charges of one write, and the turn that must be kept until they are written.
pub(super) struct Charges<'a> {
    pub(super) sides: Vec<Side>,
    /// Of one server, charged writes go one after the other: at once, all but one would be refused by
    /// the store, and each refusal costs the log as much as a write.
    _turn: Option<SemaphorePermit<'a>>,
}

/// What writing `new` in the place of `old` adds to the quotas of its namespace.
pub(super) async fn charges<'a>(
    call: &'a Call,
    old: Option<&Value>,
    new: &Value,
) -> Result<Charges<'a>, ApiError> {
    let nothing = Charges { sides: Vec::new(), _turn: None };
    let (resource, namespace) = (call.info.resource, call.info.namespace.as_deref());
    let Some(quotas) = api::find("", "v1", "resourcequotas") else { return Ok(nothing) };
    if !resource.is_namespaced || api::is_volatile(resource, namespace) {
        return Ok(nothing);
    }
    let scope = Scope::new(quotas, namespace);
    let store = &call.context.store;
    if store
        .list(&scope, &Page { limit: 1, ..Page::default() }, Freshness::Any)
        .await?
        .items
        .is_empty()
    {
        return Ok(nothing);
    }
    let turn = call.context.quota_turn.acquire().await.ok();
    let mut refused = None;
    // A copy that is behind can do no harm, but for its "no".
    for freshness in [Freshness::Any, Freshness::Latest] {
        let found = store.list(&scope, &Page::default(), freshness).await?;
        let mut sides = Vec::new();
        refused = None;
        for one in found.items {
            match quota::charge(&one.object, resource, old, new) {
                Ok(None) => {}
                Ok(Some(object)) => sides.push(Side::Change {
                    name: format!("{CHARGE}{}", meta::name(&one.object)),
                    key: Key::new(quotas, namespace, meta::name(&one.object)).bytes(),
                    revision: one.revision,
                    object,
                }),
                Err(refusal) => refused = refused.or(Some(refusal)),
            }
        }
        if refused.is_none() {
            return Ok(Charges { sides, _turn: turn });
        }
    }
    let text = refused.map(|refusal| refusal.to_string()).unwrap_or_default();
    Err(Status::forbidden(resource, meta::name(new), &text).into())
}
