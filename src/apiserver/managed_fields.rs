//! Who writes, and whether it is written down in `metadata.managedFields`.
//!
//! The system's own writers (controllers, scheduler, agents) write often and to what nobody else
//! applies. They are written down only where somebody is already: on objects that a client has made or
//! changed; of status only if a client owns some of it. A client that applies to an object without
//! owners finds all of it owned by `before-first-apply`, so it is told of what it would change.

use http::header;
use serde_json::Value;

use crate::api::FieldError;
use crate::api::apply::{self, Writer};
use crate::api::status::Status;
use crate::apiserver::access;
use crate::apiserver::error::ApiError;
use crate::apiserver::router::Call;
use crate::apiserver::update::Part;
use crate::store::Store;

/// Longest name of a manager, in bytes.
const MANAGER_BYTES_MAX: usize = 128;

/// Checks the query of a write; `kind` is that of its options.
pub(super) fn check(call: &Call, kind: &str) -> Result<(), ApiError> {
    let manager = call.query.get("fieldManager").unwrap_or_default();
    let refused = |error| Err(Status::invalid_options(kind, &error).into());
    if manager.len() > MANAGER_BYTES_MAX {
        return refused(FieldError::too_long("fieldManager", MANAGER_BYTES_MAX));
    }
    if manager.chars().any(char::is_control) {
        let rule = "should only contain printable characters";
        return refused(FieldError::invalid("fieldManager", &manager.into(), rule));
    }
    Ok(())
}

/// The name that the client gives itself: `fieldManager`, or its user agent up to `/`, or its user.
pub(super) fn manager(call: &Call) -> String {
    if let Some(manager) = call.query.get("fieldManager") {
        return manager.to_owned();
    }
    let agent = call.headers.get(header::USER_AGENT).and_then(|value| value.to_str().ok());
    let agent = agent.and_then(|agent| agent.split('/').next()).unwrap_or_default().trim();
    let name = if agent.is_empty() { call.user.name.trim_start_matches("system:") } else { agent };
    let printable = name.chars().filter(|c| !c.is_control());
    let mut length = 0;
    printable
        .take_while(|c| {
            length += c.len_utf8();
            length <= MANAGER_BYTES_MAX
        })
        .collect()
}

/// Notes who owns what in `new`, after a write that is no apply.
pub(super) fn track(call: &Call, part: Part, stored: Option<&Value>, new: &mut Value) {
    if let Some(stored) = stored {
        if !is_tracked(call, part, stored) {
            return apply::keep(stored, new);
        }
    } else if access::is_system(&call.user) || is_volatile(call) {
        return;
    }
    let (manager, now) = (manager(call), call.context.clock.now_rfc3339());
    let subresource = call.info.subresource.as_deref().unwrap_or_default();
    let writer = Writer { manager: &manager, subresource, now: &now };
    apply::track(call.info.resource, stored, new, &writer);
}

fn is_tracked(call: &Call, part: Part, stored: &Value) -> bool {
    match part {
        Part::Internal => false,
        _ if is_volatile(call) => false,
        _ if !access::is_system(&call.user) => true,
        Part::Main | Part::Status | Part::EphemeralContainers => {
            apply::is_tracked(stored, part == Part::Status)
        }
    }
}

/// Events, and the leases of nodes: nobody applies them.
fn is_volatile(call: &Call) -> bool {
    Store::is_volatile(call.info.resource, call.info.namespace.as_deref())
}
