//! `/dial` of netexec: asks other servers, and tells what they answered as JSON.

use std::time::Duration;

use crate::http::{Request, Response, get};
use crate::rt::timeout;

/// Most tries of one request.
const TRIES_MAX: u32 = 1000;
/// Longest time of one try.
const TRY: Duration = Duration::from_secs(5);

/// Answers 200 when the last try had an answer, else 417; 400 for parameters that make no sense.
pub(crate) async fn dial(request: Request) -> Response {
    let parameter = |name: &str| request.parameter(name).filter(|text| !text.is_empty());
    let bad = |words: &str| Response::text(400, format!("{words}\n"));
    let Some(host) = parameter("host") else { return bad("host is missing") };
    let Some(port) = parameter("port").and_then(|port| port.parse().ok()) else {
        return bad("port is missing or no port");
    };
    let Some(target) = parameter("request") else { return bad("request is missing") };
    match parameter("protocol").as_deref() {
        None | Some("http") => {}
        Some(protocol) => return bad(&format!("protocol {protocol} is not offered, only http")),
    }
    let tries = parameter("tries").map_or(Ok(1), |tries| tries.parse::<u32>());
    let Some(tries) = tries.ok().filter(|tries| (1..=TRIES_MAX).contains(tries)) else {
        return bad("tries is no number from 1 to 1000");
    };

    let target = format!("/{}", target.trim_start_matches('/').replace([' ', '\r', '\n'], "%20"));
    let (mut responses, mut errors) = (Vec::new(), Vec::new());
    let mut status = 200;
    for _ in 0..tries {
        let answer = timeout(TRY, get(&host, port, &target)).await;
        match answer.unwrap_or_else(|| Err(format!("{host}:{port} gave no answer in time"))) {
            Ok(body) => {
                responses.push(body);
                status = 200;
            }
            Err(why) => {
                errors.push(why);
                status = 417;
            }
        }
    }
    let lists = [("responses", &responses), ("errors", &errors)];
    let fields: Vec<String> = lists
        .into_iter()
        .filter(|(_, texts)| !texts.is_empty())
        .map(|(name, texts)| format!("\"{name}\":{}", list(texts)))
        .collect();
    Response::text(status, format!("{{{}}}", fields.join(",")))
}

fn list(texts: &[String]) -> String {
    let quoted: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
    format!("[{}]", quoted.join(","))
}

/// A text as JSON writes it.
pub(crate) fn quoted(text: &str) -> String {
    let mut json = "\"".to_owned();
    for c in text.chars() {
        match c {
            '"' => json.push_str("\\\""),
            '\\' => json.push_str("\\\\"),
            '\n' => json.push_str("\\n"),
            '\r' => json.push_str("\\r"),
            '\t' => json.push_str("\\t"),
            c if c.is_control() => json.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => json.push(c),
        }
    }
    json.push('"');
    json
}
