//! `nc`: a TCP connection to somewhere. What waits for others in manifests is mostly `nc -z HOST PORT`.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::cx::Cx;
use crate::net::{self, Connection, Deadline};

/// How long all may take, unless `-w` says otherwise.
const TIMEOUT: Duration = Duration::from_secs(3600);
/// Bytes moved at once.
const COPY_BYTES: usize = 32 * 1024;

/// What the command line says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wish {
    host: String,
    port: u16,
    only_connects: bool,
    is_verbose: bool,
    timeout: Option<Duration>,
}

/// `nc [-vz] [-w SECONDS] HOST PORT`: sends its input, and writes what comes back. `-z` only connects.
pub fn main(cx: &mut Cx, args: &[String]) -> i32 {
    let done = wish(args.get(1..).unwrap_or_default()).and_then(|wish| talk(cx, &wish));
    match done {
        Ok(()) => 0,
        Err(why) => {
            if !why.is_empty() {
                cx.say(&format!("nc: {why}"));
            }
            1
        }
    }
}

fn wish(args: &[String]) -> Result<Wish, String> {
    let mut wish = Wish::default();
    let mut place = Vec::new();
    let mut words = args.iter();
    while let Some(word) = words.next() {
        let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
            place.push(word);
            continue;
        };
        for (at, letter) in letters.char_indices() {
            match letter {
                'z' => wish.only_connects = true,
                'v' => wish.is_verbose = true,
                'n' => {}
                'w' => {
                    let rest = letters.get(at + 1..).filter(|rest| !rest.is_empty());
                    let value = rest.map(str::to_owned).or_else(|| words.next().cloned());
                    let value = value.ok_or("option requires an argument -- 'w'")?;
                    let seconds = value.parse().map_err(|_| format!("invalid number '{value}'"))?;
                    wish.timeout = Some(Duration::from_secs(seconds));
                    break;
                }
                other => {
                    return Err(format!("invalid option -- '{other}' (there are: -nvwz)"));
                }
            }
        }
    }
    let [host, port] = place.as_slice() else {
        return Err("usage: nc [-vz] [-w SECONDS] HOST PORT".to_owned());
    };
    wish.host.clone_from(host);
    wish.port = port.parse().map_err(|_| format!("bad port '{port}'"))?;
    Ok(wish)
}

fn talk(cx: &mut Cx, wish: &Wish) -> Result<(), String> {
    let deadline = Deadline::after(wish.timeout.unwrap_or(TIMEOUT));
    let found = net::resolve(&wish.host, deadline).unwrap_or_default();
    let mut connection = connect(cx, wish, &found, |ip| Connection::open(ip, wish.port, deadline))?;
    if wish.only_connects {
        return Ok(());
    }
    let broken = |error: io::Error| match error.kind() {
        io::ErrorKind::TimedOut => String::new(),
        _ => error.to_string(),
    };
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        let count = cx.input.read(&mut buffer).map_err(|error| error.to_string())?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
        connection.write_all(bytes).map_err(broken)?;
    }
    connection.flush().map_err(broken)?;
    connection.ends_sending();
    loop {
        let count = connection.read(&mut buffer).map_err(broken)?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
        cx.write(bytes);
        cx.flush();
    }
    Ok(())
}

/// The first address that answers.
fn connect<T>(
    cx: &mut Cx,
    wish: &Wish,
    found: &[IpAddr],
    open: impl Fn(IpAddr) -> io::Result<T>,
) -> Result<T, String> {
    let mut why = format!("bad address '{}'", wish.host);
    for ip in found {
        let at = SocketAddr::new(*ip, wish.port);
        match open(*ip) {
            Ok(connection) => {
                if wish.is_verbose {
                    cx.say(&format!("{} ({at}) open", wish.host));
                }
                return Ok(connection);
            }
            Err(error) => {
                let what = match error.kind() {
                    io::ErrorKind::ConnectionRefused => "Connection refused".to_owned(),
                    io::ErrorKind::TimedOut => "Connection timed out".to_owned(),
                    _ => error.to_string(),
                };
                why = format!("{} ({at}): {what}", wish.host);
            }
        }
    }
    Err(why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sh::streams::Kept;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn options_stand_before_or_behind_the_place() {
        let wanted = Wish {
            host: "db".to_owned(),
            port: 5432,
            only_connects: true,
            timeout: Some(Duration::from_secs(2)),
            ..Wish::default()
        };
        for text in ["-z -w 2 db 5432", "-zw2 db 5432", "db 5432 -w2 -z"] {
            assert_eq!(wish(&words(text)).as_ref(), Ok(&wanted), "{text}");
        }
        for text in ["", "db", "db x", "db 70000", "-l db 1", "-w db 1", "-w"] {
            assert!(wish(&words(text)).is_err(), "{text}");
        }
    }

    #[test]
    fn each_address_is_tried_and_the_last_one_says_why() {
        let wish = Wish { host: "db".into(), port: 1, is_verbose: true, ..Wish::default() };
        let kept = Kept::default();
        let mut cx = Cx::of_process();
        cx.error = kept.output();
        let found: [IpAddr; 2] = [[10, 0, 0, 1].into(), [10, 0, 0, 2].into()];
        let refused = || Err(io::Error::from(io::ErrorKind::ConnectionRefused));
        let second = |ip| if ip == found[1] { Ok(ip) } else { refused() };
        assert_eq!(connect(&mut cx, &wish, &found, second), Ok(found[1]));
        assert_eq!(String::from_utf8(kept.take()).unwrap(), "db (10.0.0.2:1) open\n");
        let nobody = |_| -> io::Result<IpAddr> { refused() };
        let why = connect(&mut cx, &wish, &found, nobody).unwrap_err();
        assert_eq!(why, "db (10.0.0.2:1): Connection refused");
        assert_eq!(connect(&mut cx, &wish, &[], nobody).unwrap_err(), "bad address 'db'");
    }
}
