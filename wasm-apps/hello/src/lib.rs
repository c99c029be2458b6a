//! A web app for `wasi:http` 0.2 that says which pod and node answered.
//!
//! | path | answer |
//! |---|---|
//! | `/` | `Hello from pod <POD_NAME> on node <NODE_NAME>, request <n>`; `n` counts this instance's requests |
//! | `/healthz` | `ok` |
//! | `/burn?ms=N` | spins for N milliseconds of wall time, then `burned N ms` |
//! | `/echo` | the request's body, streamed |
//! | `/grow?mib=N` | takes N MiB more and keeps them, then `holding M MiB` |
//! | `/trap` | nothing: the instance traps |
//! | `/sidecar` | what the pod's own port 9090 answers |
//! | `/fetch?url=U` | what a GET of U answers; U may be percent-encoded |

mod fetch;
mod query;
mod reply;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use wasip2::cli::environment::get_environment;
use wasip2::clocks::monotonic_clock;
use wasip2::http::types::{IncomingRequest, ResponseOutparam};

use crate::query::{number, parameter, percent_decoded};

wasip2::http::proxy::export!(Hello);

struct Hello;

/// Address of the pod's sidecar: the same pod's loopback.
const SIDECAR_URL: &str = "http://127.0.0.1:9090/";
/// Longest time `/burn` spins, in milliseconds.
const BURN_MS_MAX: u64 = 600_000;
/// Most that one `/grow` takes, in MiB: the address space of a 32-bit guest.
const GROW_MIB_MAX: u64 = 4095;

/// Greetings given by this instance.
static REQUESTS: AtomicU64 = AtomicU64::new(0);
/// What `/grow` has taken.
static HELD: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

impl wasip2::exports::http::incoming_handler::Guest for Hello {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let target = request.path_with_query().unwrap_or_else(|| "/".to_owned());
        let (path, query) = target.split_once('?').unwrap_or((&target, ""));
        match path {
            "/" => reply::text(out, 200, &greeting()),
            "/healthz" => reply::text(out, 200, "ok\n"),
            "/burn" => match number(query, "ms", BURN_MS_MAX) {
                Ok(ms) => reply::text(out, 200, &burn(ms)),
                Err(message) => reply::text(out, 400, &message),
            },
            "/grow" => match number(query, "mib", GROW_MIB_MAX) {
                Ok(mib) => reply::text(out, 200, &grow(mib)),
                Err(message) => reply::text(out, 400, &message),
            },
            "/echo" => reply::echo(&request, out),
            "/trap" => std::process::abort(),
            "/sidecar" => fetch::relay(SIDECAR_URL, out),
            "/fetch" => match parameter(query, "url") {
                Some(url) => fetch::relay(&percent_decoded(url), out),
                None => reply::text(out, 400, "url is missing: /fetch?url=http://name/\n"),
            },
            _ => reply::text(out, 404, "not found\n"),
        }
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

fn grow(mib: u64) -> String {
    let Ok(mut held) = HELD.lock() else { return "poisoned\n".to_owned() };
    let bytes = usize::try_from(mib << 20).unwrap_or(usize::MAX);
    // Not zeros: every page is to be touched. Out of memory aborts, which is a trap.
    held.push(vec![0xA5; bytes]);
    format!("holding {} MiB\n", held.iter().map(|block| block.len() >> 20).sum::<usize>())
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
