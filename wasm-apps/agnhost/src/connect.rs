//! Tries to connect, and says in one fixed word why it cannot.

use std::time::Duration;

use crate::Failure;
use crate::flags::{Given, value};
use crate::rt::{self, timeout};
use crate::tcp::Stream;

/// Longest try when no timeout is given.
const TIMEOUT_DEFAULT: Duration = Duration::from_secs(120);

pub(crate) fn run(args: &[String]) -> Result<(), Failure> {
    let given = Given::read(args, &[value("timeout"), value("protocol")])?;
    match given.text("protocol") {
        None | Some("tcp") => {}
        Some(other) => return Err(Failure::Usage(format!("pods have no {other}, only tcp"))),
    }
    let limit = given.duration("timeout")?.filter(|limit| !limit.is_zero());
    let [address] = given.words.as_slice() else {
        return Err(Failure::Usage("wants one HOST:PORT".to_owned()));
    };
    let (host, port) = address
        .rsplit_once(':')
        .and_then(|(host, port)| Some((host, port.parse().ok()?)))
        .ok_or_else(|| format!("{address} is not HOST:PORT"))?;
    let limit = limit.unwrap_or(TIMEOUT_DEFAULT);
    let words = match rt::run(timeout(limit, Stream::connect(host, port))) {
        Some(Ok(_)) => return Ok(()),
        Some(Err(why)) => why.to_string(),
        None => "TIMEOUT".to_owned(),
    };
    // Tests compare the line as it stands, so it bears no name of ours.
    eprintln!("{words}");
    std::process::exit(1);
}
