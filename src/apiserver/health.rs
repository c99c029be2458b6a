//! `/healthz`, `/livez`, `/readyz`, `/version`: for everybody.

use axum::body::Body;
use http::{Response, StatusCode};
use serde_json::json;

use crate::apiserver::context::Context;
use crate::apiserver::query::Query;
use crate::apiserver::response;

/// Kubernetes version whose API this server speaks.
const MINOR: &str = "36";

/// The version as clients read it.
pub(super) fn git_version() -> String {
    format!("v1.{MINOR}.0+edgeorc{}", env!("CARGO_PKG_VERSION"))
}

/// Answers health and version paths; `None` for others.
pub(super) fn respond(context: &Context, path: &str, query: &Query) -> Option<Response<Body>> {
    if path == "/version" || path == "/version/" {
        return Some(response::json(StatusCode::OK, &version()));
    }
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let (root, check) = (parts.next()?, parts.next().unwrap_or_default());
    let checks: &[(&str, bool)] = match root {
        "livez" | "healthz" => &[("ping", true)],
        "readyz" => &[("ping", true), ("store", context.store.is_ready())],
        _ => return None,
    };
    let is_asked = |name: &str| check.is_empty() || check == name;
    if !checks.iter().any(|(name, _)| is_asked(name)) {
        return Some(response::text(StatusCode::NOT_FOUND, "404 page not found"));
    }
    let is_good = checks.iter().filter(|(name, _)| is_asked(name)).all(|(_, good)| *good);
    if is_good && !query.is_set("verbose") {
        return Some(response::text(StatusCode::OK, "ok"));
    }
    let mut text = String::new();
    for (name, good) in checks.iter().filter(|(name, _)| is_asked(name)) {
        let line = if *good {
            format!("[+]{name} ok\n")
        } else {
            format!("[-]{name} failed: no leader is known\n")
        };
        text.push_str(&line);
    }
    let verdict = if is_good { "passed" } else { "failed" };
    text.push_str(&format!("{root} check {verdict}\n"));
    let code = if is_good { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
    Some(response::text(code, text))
}

fn version() -> serde_json::Value {
    json!({
        "major": "1",
        "minor": MINOR,
        "gitVersion": git_version(),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("linux/{}", std::env::consts::ARCH),
    })
}
