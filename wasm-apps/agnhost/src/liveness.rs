//! A server that is well for ten seconds only.

use std::time::{Duration, Instant};

use crate::Failure;
use crate::flags::{Given, value};
use crate::http::{Request, Response, handler, serve};
use crate::rt;

/// How long `/healthz` is well.
const WELL: Duration = Duration::from_secs(10);

pub(crate) fn run(args: &[String]) -> Result<(), Failure> {
    let port = Given::read(args, &[value("port")])?.number("port", 8080)?;
    let start = Instant::now();
    let answer = move |request: Request| async move { answer(start.elapsed(), &request) };
    Err(Failure::Failed(rt::run(serve(port, handler(answer)))))
}

fn answer(age: Duration, request: &Request) -> Response {
    match request.path() {
        "/healthz" if age > WELL => Response::text(500, format!("error: {}", age.as_secs_f64())),
        "/healthz" => Response::text(200, "ok"),
        "/started" => Response::text(200, format!("{}s", age.as_secs_f64())),
        "/redirect" => {
            let location = request.parameter("loc").unwrap_or_default();
            Response::text(302, "").with("location", location)
        }
        _ => Response::text(404, "404 page not found\n"),
    }
}
