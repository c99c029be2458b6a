//! `nslookup`: the addresses of a name, asked of the pod's own resolver.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use crate::cx::Cx;
use crate::net::{self, Deadline};

/// How long the resolver may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// `nslookup NAME`. What is asked of another server, and records other than addresses, are refused.
pub fn main(cx: &mut Cx, args: &[String]) -> i32 {
    let (options, names): (Vec<&String>, Vec<&String>) =
        args.iter().skip(1).partition(|word| word.starts_with('-'));
    let is_known = |option: &&&String| {
        let kind = option.split_once('=').map_or("a", |(_, kind)| kind);
        !matches!(kind.to_ascii_lowercase().as_str(), "a" | "aaaa" | "any")
    };
    if let Some(option) = options.iter().find(is_known) {
        cx.say(&format!("nslookup: {option} is not supported, only addresses are looked up"));
        return 1;
    }
    match names.as_slice() {
        [name] => look_up(cx, name, |name| net::resolve(name, Deadline::after(TIMEOUT))),
        [_, _] => {
            cx.say("nslookup: another server cannot be asked from within a pod");
            1
        }
        _ => {
            cx.say("usage: nslookup NAME");
            1
        }
    }
}

fn look_up(cx: &mut Cx, name: &str, resolve: impl Fn(&str) -> io::Result<Vec<IpAddr>>) -> i32 {
    let config = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    if let Some(server) = server(&config) {
        cx.line(&format!("Server:\t\t{server}\nAddress:\t{server}:53\n"));
    }
    match resolve(name) {
        Ok(found) if !found.is_empty() => {
            for ip in found {
                cx.line(&format!("Name:\t{name}\nAddress: {ip}"));
            }
            0
        }
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            cx.say(";; connection timed out; no servers could be reached");
            1
        }
        _ => {
            cx.line(&format!("** server can't find {name}: NXDOMAIN"));
            1
        }
    }
}

/// The first server that the pod's resolver asks.
fn server(config: &str) -> Option<&str> {
    config.lines().find_map(|line| line.trim().strip_prefix("nameserver")).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sh::streams::Output;

    #[test]
    fn addresses_are_told_as_the_original_does_and_a_missing_name_is_an_error() {
        let ask = |found: io::Result<Vec<IpAddr>>| {
            let kept = crate::sh::streams::Kept::default();
            let mut cx = Cx::of_process();
            (cx.output, cx.error) = (kept.output(), Output::new(io::sink()));
            let found = std::cell::RefCell::new(Some(found));
            let code = look_up(&mut cx, "web", |_| found.take().unwrap());
            (code, String::from_utf8(kept.take()).unwrap())
        };
        let (code, text) = ask(Ok(vec!["10.43.0.9".parse().unwrap()]));
        assert!(code == 0 && text.ends_with("Name:\tweb\nAddress: 10.43.0.9\n"), "{text}");
        let (code, text) = ask(Ok(Vec::new()));
        assert!(code == 1 && text.contains("can't find web: NXDOMAIN"), "{text}");
        assert_eq!(ask(Err(io::ErrorKind::TimedOut.into())).0, 1);
    }

    #[test]
    fn the_server_is_read_from_the_pods_resolver() {
        assert_eq!(
            server("search a\nnameserver 10.43.0.10\noptions ndots:5\n"),
            Some("10.43.0.10")
        );
        assert_eq!(server("search a\n"), None);
    }
}
