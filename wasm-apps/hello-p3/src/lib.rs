//! `hello` for `wasi:http` 0.3: asynchronous from end to end, so that one instance serves many
//! requests at once. Paths and answers are those of `hello`, except that it has no `/grow`.

mod fetch;
#[path = "../../hello/src/query.rs"]
mod query;
mod reply;

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use wasip3::cli::environment::get_environment;
use wasip3::clocks::monotonic_clock;
use wasip3::http::types::{ErrorCode, Request, Response};

use crate::query::{number, parameter, percent_decoded};

wasip3::http::service::export!(Hello);

struct Hello;

/// Address of the pod's sidecar: the same pod's loopback.
const SIDECAR_URL: &str = "http://127.0.0.1:9090/";
/// Longest time `/burn` spins, in milliseconds.
const BURN_MS_MAX: u64 = 600_000;

/// Greetings given by this instance.
static REQUESTS: AtomicU64 = AtomicU64::new(0);

impl wasip3::exports::http::handler::Guest for Hello {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        let target = request.get_path_with_query().unwrap_or_else(|| "/".to_owned());
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        Ok(match path {
            "/" => reply::text(200, greeting()),
            "/healthz" => reply::text(200, "ok\n".to_owned()),
            "/burn" => match number(query, "ms", BURN_MS_MAX) {
                Ok(ms) => reply::text(200, burn(ms)),
                Err(message) => reply::text(400, message),
            },
            "/echo" => reply::echo(request),
            "/trap" => std::process::abort(),
            "/sidecar" => fetch::relay(SIDECAR_URL).await,
            "/fetch" => match parameter(query, "url") {
                Some(url) => fetch::relay(&percent_decoded(url)).await,
                None => reply::text(400, "url is missing: /fetch?url=http://name/\n".to_owned()),
            },
            _ => reply::text(404, "not found\n".to_owned()),
        })
    }
}

fn greeting() -> String {
    let request = REQUESTS.fetch_add(1, Ordering::Relaxed) + 1;
    let (pod, node) = place();
    format!("Hello from pod {pod} on node {node}, request {request}\n")
}

fn burn(ms: u64) -> String {
    let end = monotonic_clock::now() + ms * 1_000_000;
    while monotonic_clock::now() < end {
        std::hint::spin_loop();
    }
    format!("burned {ms} ms\n")
}

/// Name of the pod and of its node, as far as the environment tells. Asked once per instance: the host
/// hands over all variables at a time.
fn place() -> &'static (String, String) {
    static PLACE: OnceLock<(String, String)> = OnceLock::new();
    PLACE.get_or_init(|| {
        let all = get_environment();
        let value = |name| {
            let found = all.iter().find(|(key, _)| key == name);
            found.map_or_else(|| "unknown".to_owned(), |(_, value)| value.clone())
        };
        (value("POD_NAME"), value("NODE_NAME"))
    })
}
