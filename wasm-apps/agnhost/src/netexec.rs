//! A server to talk to: names, echoes, exits, and questions to other servers.

use std::time::Duration;

use crate::dial::{dial, quoted};
use crate::flags::{Given, duration, switch, value};
use crate::http::{Request, Response, handler, serve};
use crate::{Failure, host, rt};

/// Time for the answer of `/exit` and `/shutdown` to leave.
const GOODBYE: Duration = Duration::from_millis(100);

pub(crate) fn run(args: &[String]) -> Result<(), Failure> {
    let known = [
        value("http-port"),
        value("udp-port"),
        value("sctp-port"),
        value("http-override"),
        value("delay-shutdown"),
        value("tls-cert-file"),
        value("tls-private-key-file"),
        switch("https-redirect"),
    ];
    let given = Given::read(args, &known)?;
    let port: u16 = given.number("http-port", 8080)?;
    // Pods have TCP only. The UDP port has a default and stands in many manifests, so it is no error.
    if given.number("udp-port", 8081)? >= 0 {
        eprintln!("agnhost netexec: pods have no UDP, so only HTTP is served");
    }
    if given.number("sctp-port", -1)? >= 0 {
        return Err(Failure::Usage("--sctp-port: pods have no SCTP".to_owned()));
    }
    if given.text("tls-cert-file").is_some_and(|file| !file.is_empty()) {
        return Err(Failure::Usage("--tls-cert-file: TLS is not offered".to_owned()));
    }
    // There are no signals in WASI, so there is no shutdown to delay.
    given.number("delay-shutdown", 0)?;
    let instead = given.text("http-override").map(str::to_owned);
    let answer = move |mut request: Request| {
        if let Some(target) = &instead {
            request.target.clone_from(target);
        }
        answer(port, request)
    };
    Err(Failure::Failed(rt::run(serve(port, handler(answer)))))
}

async fn answer(port: u16, request: Request) -> Response {
    let path = request.path().to_owned();
    println!("{} {}", request.method, request.target.escape_default());
    match path.as_str() {
        "/" => Response::text(200, format!("NOW: {}", host::now())),
        "/clientip" => {
            Response::text(200, request.peer.map_or_else(String::new, |p| p.to_string()))
        }
        "/serverport" => Response::text(200, port.to_string()),
        "/healthz" => Response::text(200, ""),
        "/hostname" | "/hostName" => Response::text(200, host::name()),
        "/header" => {
            let name = request.parameter("key").unwrap_or_default().to_ascii_lowercase();
            Response::text(200, request.headers.get(&name).unwrap_or_default())
        }
        "/echo" => echo(&request),
        "/redirect" => redirect(&request),
        "/dial" => dial(request).await,
        "/exit" => exit(&request),
        "/shutdown" => end_soon(GOODBYE, 0),
        "/shell" => refuse(417, "there is no shell in a WebAssembly sandbox"),
        "/upload" => refuse(501, "uploads are not offered: nothing here could run them"),
        _ => Response::text(404, "404 page not found\n"),
    }
}

fn refuse(status: u16, words: &str) -> Response {
    Response::text(status, format!("{{\"error\":{}}}", quoted(words)))
}

/// Status that a client may choose: one that has a body.
fn status(request: &Request, default: u16) -> Result<u16, Response> {
    let Some(code) = request.parameter("code").filter(|code| !code.is_empty()) else {
        return Ok(default);
    };
    let code = code.parse().ok().filter(|code| (200..600).contains(code) && *code != 204);
    code.ok_or_else(|| Response::text(400, "code is no status code\n"))
}

fn echo(request: &Request) -> Response {
    let message = request.parameter("msg").unwrap_or_default();
    match status(request, 200) {
        Ok(status) => Response::text(status, message),
        Err(refusal) => refusal,
    }
}

fn redirect(request: &Request) -> Response {
    let location = request.parameter("location").unwrap_or_default();
    match status(request, 302) {
        Ok(status) => Response::text(status, "").with("location", location),
        Err(refusal) => refusal,
    }
}

fn exit(request: &Request) -> Response {
    let time = |name: &str| match request.parameter(name).filter(|text| !text.is_empty()) {
        Some(text) => duration(&text),
        None => Some(Duration::ZERO),
    };
    let code = request.parameter("code").unwrap_or_default();
    let code = if code.is_empty() { Ok(0) } else { code.parse() };
    match (code, time("wait"), time("timeout")) {
        (Ok(code @ 0..=127), Some(wait), Some(_)) => end_soon(wait.max(GOODBYE), code),
        _ => Response::text(400, "code is no exit code, or wait or timeout no duration\n"),
    }
}

fn end_soon(wait: Duration, code: i32) -> Response {
    println!("ending with exit code {code}");
    rt::spawn(async move {
        rt::sleep(wait).await;
        std::process::exit(code);
    });
    Response::text(200, "").with("connection", "close")
}
