//! `wget`: fetches a URL over plain HTTP.

use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::time::Duration;

use crate::cx::Cx;
use crate::net::{self, Connection, Deadline};

/// How long all may take, unless `-T` says otherwise: the original's.
const TIMEOUT: Duration = Duration::from_secs(900);
/// Most redirects that are followed.
const REDIRECTS_MAX: usize = 5;
/// Longest line of a head, and most of them.
const LINE_BYTES_MAX: u64 = 64 * 1024;
const LINES_MAX: usize = 256;
/// Bytes moved at once.
const COPY_BYTES: usize = 32 * 1024;

/// What the command line says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wish {
    url: String,
    /// `-O`; `-` is standard output.
    output: Option<String>,
    is_quiet: bool,
    shows_head: bool,
    is_spider: bool,
    headers: Vec<String>,
    body: Option<String>,
    timeout: Option<Duration>,
}

/// Where to ask, and what for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Url {
    host: String,
    port: u16,
    path: String,
}

/// What came before the body.
#[derive(Debug)]
struct Head {
    status: String,
    code: u16,
    fields: Vec<(String, String)>,
}

/// `wget [-q] [-S] [-O FILE] [-T SECONDS] [--spider] [--header TEXT] [--post-data TEXT] URL`.
pub fn main(cx: &mut Cx, args: &[String]) -> i32 {
    let done = wish(args.get(1..).unwrap_or_default()).and_then(|wish| fetch(cx, &wish));
    match done {
        Ok(()) => 0,
        Err(why) => {
            cx.say(&format!("wget: {why}"));
            1
        }
    }
}

fn wish(args: &[String]) -> Result<Wish, String> {
    let mut wish = Wish::default();
    let mut words = args.iter();
    let missing = |option: &str| format!("option requires an argument -- '{option}'");
    let seconds = |text: &str| {
        text.parse().map(Duration::from_secs).map_err(|_| format!("invalid number '{text}'"))
    };
    while let Some(word) = words.next() {
        if let Some(long) = word.strip_prefix("--") {
            let (name, mut value) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (long, None),
            };
            let mut take =
                || value.take().or_else(|| words.next().cloned()).ok_or_else(|| missing(name));
            match name {
                "spider" => wish.is_spider = true,
                "quiet" => wish.is_quiet = true,
                "server-response" => wish.shows_head = true,
                "header" => wish.headers.push(take()?),
                "post-data" => wish.body = Some(take()?),
                "timeout" => wish.timeout = Some(seconds(&take()?)?),
                "output-document" => wish.output = Some(take()?),
                "user-agent" => wish.headers.push(format!("User-Agent: {}", take()?)),
                "no-check-certificate" => {}
                _ => return Err(format!("unrecognized option '--{name}'")),
            }
            continue;
        }
        let Some(letters) = word.strip_prefix('-').filter(|letters| !letters.is_empty()) else {
            if !wish.url.is_empty() {
                return Err("one URL at a time".to_owned());
            }
            wish.url.clone_from(word);
            continue;
        };
        let mut rest = letters;
        while let Some(letter) = rest.chars().next() {
            rest = rest.get(letter.len_utf8()..).unwrap_or_default();
            if !"OTU".contains(letter) {
                match letter {
                    'q' => wish.is_quiet = true,
                    'S' => wish.shows_head = true,
                    'c' => return Err("-c is not supported".to_owned()),
                    other => return Err(format!("unrecognized option '{other}'")),
                }
                continue;
            }
            let value = Some(rest.to_owned()).filter(|rest| !rest.is_empty());
            let value = value
                .or_else(|| words.next().cloned())
                .ok_or_else(|| missing(&letter.to_string()))?;
            match letter {
                'O' => wish.output = Some(value),
                'T' => wish.timeout = Some(seconds(&value)?),
                _ => wish.headers.push(format!("User-Agent: {value}")),
            }
            break;
        }
    }
    if wish.url.is_empty() {
        return Err("no URL; usage: wget [-qS] [-O FILE] [-T SECONDS] [--spider] [--header TEXT] [--post-data TEXT] URL".to_owned());
    }
    Ok(wish)
}

impl Url {
    fn parse(text: &str) -> Result<Self, String> {
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some(("https", _)) => return Err("https is not supported by this tool".to_owned()),
            Some((scheme, _)) => return Err(format!("not an http url: {scheme}")),
            None => text,
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (place, path) = rest.split_at(end);
        let path = path.split('#').next().unwrap_or_default();
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let place = place.rsplit('@').next().unwrap_or(place);
        let bad = || format!("bad address '{place}'");
        let (host, port) = match place.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, port.parse().map_err(|_| bad())?),
            _ => (place, 80),
        };
        if host.is_empty() {
            return Err(bad());
        }
        Ok(Self { host: host.to_owned(), port, path })
    }

    /// The target of a redirect.
    fn join(&self, location: &str) -> Result<Self, String> {
        if location.contains("://") {
            return Self::parse(location);
        }
        if let Some(rest) = location.strip_prefix("//") {
            return Self::parse(rest);
        }
        let folder = self.path.split('?').next().unwrap_or_default();
        let folder = folder.rsplit_once('/').map_or("", |(folder, _)| folder);
        let path = if location.starts_with('/') {
            location.to_owned()
        } else {
            format!("{folder}/{location}")
        };
        Ok(Self { path, ..self.clone() })
    }

    /// The file that it is saved to.
    fn file(&self) -> &str {
        let path = self.path.split('?').next().unwrap_or_default();
        path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or("index.html")
    }

    fn request(&self, wish: &Wish) -> String {
        let method = match (&wish.body, wish.is_spider) {
            (Some(_), _) => "POST",
            (None, true) => "HEAD",
            (None, false) => "GET",
        };
        let host = if self.port == 80 {
            self.host.clone()
        } else {
            format!("{}:{}", self.host, self.port)
        };
        let names = |name: &str| {
            wish.headers.iter().any(|line| {
                line.split_once(':').is_some_and(|(given, _)| given.eq_ignore_ascii_case(name))
            })
        };
        let mut text = format!("{method} {} HTTP/1.1\r\n", self.path);
        for (name, value) in
            [("Host", host.as_str()), ("User-Agent", "Wget"), ("Connection", "close")]
        {
            if !names(name) {
                text.push_str(&format!("{name}: {value}\r\n"));
            }
        }
        for line in &wish.headers {
            text.push_str(&format!("{line}\r\n"));
        }
        if let Some(body) = &wish.body {
            if !names("Content-Type") {
                text.push_str("Content-Type: application/x-www-form-urlencoded\r\n");
            }
            text.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        text.push_str("\r\n");
        text.push_str(wish.body.as_deref().unwrap_or_default());
        text
    }
}

impl Head {
    fn read(input: &mut impl BufRead) -> Result<Self, String> {
        let status = line(input)?;
        let code = status.split(' ').nth(1).and_then(|code| code.parse().ok());
        let code = code.filter(|_| status.starts_with("HTTP/"));
        let code = code.ok_or_else(|| format!("unexpected server answer: {status}"))?;
        let mut fields = Vec::new();
        loop {
            let text = line(input)?;
            if text.is_empty() {
                return Ok(Self { status, code, fields });
            }
            if fields.len() >= LINES_MAX {
                return Err("the answer's head is too long".to_owned());
            }
            let (name, value) = text.split_once(':').unwrap_or((&text, ""));
            fields.push((name.trim().to_ascii_lowercase(), value.trim().to_owned()));
        }
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// Moves the body.
    fn body(&self, input: &mut impl BufRead, output: &mut dyn Write) -> Result<(), String> {
        if matches!(self.code, 204 | 304) {
            return Ok(());
        }
        if self.field("transfer-encoding").is_some_and(|how| how.eq_ignore_ascii_case("chunked")) {
            loop {
                let size = line(input)?;
                let size = size.split(';').next().unwrap_or_default().trim();
                let size =
                    u64::from_str_radix(size, 16).map_err(|_| "bad chunk length".to_owned())?;
                if size == 0 {
                    return Ok(());
                }
                copy(input, output, Some(size))?;
                line(input)?;
            }
        }
        let length = self.field("content-length").map(str::parse).transpose();
        copy(input, output, length.map_err(|_| "bad content length".to_owned())?)
    }
}

/// A line without its end.
fn line(input: &mut impl BufRead) -> Result<String, String> {
    let mut bytes = Vec::new();
    input.take(LINE_BYTES_MAX).read_until(b'\n', &mut bytes).map_err(|error| broken(&error))?;
    if bytes.last() != Some(&b'\n') {
        return Err("error getting response".to_owned());
    }
    Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
}

/// Moves so many bytes, or all.
fn copy(input: &mut impl Read, output: &mut dyn Write, count: Option<u64>) -> Result<(), String> {
    let mut left = count;
    let mut buffer = vec![0; COPY_BYTES];
    while left != Some(0) {
        let most = left
            .map_or(COPY_BYTES, |left| usize::try_from(left).unwrap_or(COPY_BYTES).min(COPY_BYTES));
        let into = buffer.get_mut(..most).unwrap_or_default();
        let got = input.read(into).map_err(|error| broken(&error))?;
        if got == 0 {
            return if left.is_none() {
                Ok(())
            } else {
                Err("connection closed prematurely".to_owned())
            };
        }
        let bytes = buffer.get(..got).unwrap_or_default();
        output.write_all(bytes).map_err(|error| format!("short write: {error}"))?;
        left = left.map(|left| left.saturating_sub(u64::try_from(got).unwrap_or(0)));
    }
    Ok(())
}

fn broken(error: &io::Error) -> String {
    if error.kind() == io::ErrorKind::TimedOut {
        return "download timed out".to_owned();
    }
    format!("read error: {error}")
}

fn fetch(cx: &mut Cx, wish: &Wish) -> Result<(), String> {
    let deadline = Deadline::after(wish.timeout.unwrap_or(TIMEOUT));
    let mut url = Url::parse(&wish.url)?;
    let first = url.clone();
    for _ in 0..=REDIRECTS_MAX {
        let mut connection = connect(cx, &url, wish, deadline)?;
        let request = url.request(wish);
        connection.write_all(request.as_bytes()).map_err(|error| broken(&error))?;
        connection.flush().map_err(|error| broken(&error))?;
        let mut input = BufReader::new(connection);
        let mut head = Head::read(&mut input)?;
        while head.code == 100 {
            head = Head::read(&mut input)?;
        }
        if wish.shows_head {
            cx.say(&format!("  {}", head.status));
            for (name, value) in &head.fields {
                cx.say(&format!("  {name}: {value}"));
            }
        }
        match (head.code, head.field("location")) {
            (200..=299, _) => return save(cx, wish, &first, &head, &mut input),
            (301 | 302 | 303 | 307 | 308, Some(location)) => url = url.join(location)?,
            _ => return Err(format!("server returned error: {}", head.status)),
        }
    }
    Err("too many redirections".to_owned())
}

fn connect(cx: &mut Cx, url: &Url, wish: &Wish, deadline: Deadline) -> Result<Connection, String> {
    let found = net::resolve(&url.host, deadline);
    let found = found.ok().filter(|found| !found.is_empty());
    let found = found.ok_or_else(|| format!("bad address '{}'", url.host))?;
    let mut last = String::new();
    for ip in found {
        if !wish.is_quiet {
            cx.say(&format!("Connecting to {} ({ip}:{})", url.host, url.port));
        }
        match Connection::open(ip, url.port, deadline) {
            Ok(connection) => return Ok(connection),
            Err(error) => {
                let why = match error.kind() {
                    io::ErrorKind::ConnectionRefused => "Connection refused".to_owned(),
                    io::ErrorKind::TimedOut => "Connection timed out".to_owned(),
                    _ => error.to_string(),
                };
                last = format!("can't connect to remote host ({ip}): {why}");
            }
        }
    }
    Err(last)
}

fn save(
    cx: &mut Cx,
    wish: &Wish,
    url: &Url,
    head: &Head,
    input: &mut impl BufRead,
) -> Result<(), String> {
    if wish.is_spider {
        if !wish.is_quiet {
            cx.say("remote file exists");
        }
        return Ok(());
    }
    let name = wish.output.as_deref().unwrap_or_else(|| url.file());
    if name == "-" {
        head.body(input, &mut cx.output)?;
        cx.flush();
        return Ok(());
    }
    // What was not named is not overwritten.
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).create_new(wish.output.is_none());
    let opened = options.open(cx.path(name));
    let mut file = opened.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => format!("can't open '{name}': File exists"),
        _ => format!("can't open '{name}': {error}"),
    })?;
    if !wish.is_quiet {
        cx.say(&format!("saving to '{name}'"));
    }
    head.body(input, &mut file)?;
    if !wish.is_quiet {
        cx.say(&format!("'{name}' saved"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn options_are_read_alone_and_together() {
        for text in ["-qO- http://a/", "-q -O - http://a/", "http://a/ -q --output-document=-"] {
            let got = wish(&words(text)).unwrap();
            assert!(got.is_quiet && got.output.as_deref() == Some("-"), "{text}: {got:?}");
            assert_eq!(got.url, "http://a/");
        }
        let got = wish(&words("-T 3 --header X:1 --post-data a=b --spider -S a")).unwrap();
        assert_eq!(got.timeout, Some(Duration::from_secs(3)));
        assert_eq!((got.headers, got.body), (vec!["X:1".to_owned()], Some("a=b".to_owned())));
        assert!(got.is_spider && got.shows_head);
        for bad in ["", "-q", "-O", "-Z http://a/", "-T x a", "a b"] {
            assert!(wish(&words(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_url_says_where_to_ask_and_what_for() {
        let url = |host: &str, port, path: &str| Url { host: host.into(), port, path: path.into() };
        for (text, wanted) in [
            ("http://web", url("web", 80, "/")),
            ("web.default:8080/a/b?c=d#e", url("web.default", 8080, "/a/b?c=d")),
            ("http://[::1]:81/x", url("[::1]", 81, "/x")),
            ("http://[::1]", url("[::1]", 80, "/")),
            ("http://u:p@web?x", url("web", 80, "/?x")),
        ] {
            assert_eq!(Url::parse(text).unwrap(), wanted, "{text}");
        }
        for bad in ["https://web", "ftp://web", "http://", "http://web:x/"] {
            assert!(Url::parse(bad).is_err(), "{bad}");
        }
        let from = url("web", 80, "/a/b?c");
        assert_eq!(from.join("/d").unwrap(), url("web", 80, "/d"));
        assert_eq!(from.join("d").unwrap(), url("web", 80, "/a/d"));
        assert_eq!(from.join("http://other:81/").unwrap(), url("other", 81, "/"));
        assert_eq!((from.file(), url("web", 80, "/").file()), ("b", "index.html"));
    }

    #[test]
    fn a_request_has_what_was_asked_for_in_it() {
        let url = Url::parse("web:81/x").unwrap();
        let plain = url.request(&Wish::default());
        assert_eq!(
            plain,
            "GET /x HTTP/1.1\r\nHost: web:81\r\nUser-Agent: Wget\r\nConnection: close\r\n\r\n"
        );
        let headers = vec!["host: other".to_owned()];
        let post = url.request(&Wish { headers, body: Some("a=b".into()), ..Wish::default() });
        assert!(post.starts_with("POST /x HTTP/1.1\r\nUser-Agent"), "{post}");
        assert!(
            post.contains("host: other\r\n") && post.ends_with("Content-Length: 3\r\n\r\na=b"),
            "{post}"
        );
    }

    #[test]
    fn bodies_come_in_all_three_forms_and_a_broken_one_is_an_error() {
        let read = |text: &str| {
            let mut input = io::Cursor::new(text.as_bytes().to_vec());
            let head = Head::read(&mut input)?;
            let mut body = Vec::new();
            head.body(&mut input, &mut body)?;
            Ok::<_, String>((head.code, String::from_utf8(body).unwrap()))
        };
        let head = "HTTP/1.1 200 OK\r\n";
        for text in [
            "Content-Length: 5\r\n\r\nhellomore",
            "\r\nhello",
            "Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n",
        ] {
            assert_eq!(
                read(&format!("{head}{text}")).unwrap(),
                (200, "hello".to_owned()),
                "{text}"
            );
        }
        for bad in
            ["Content-Length: 9\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\nzz\r\n", "X"]
        {
            assert!(read(&format!("{head}{bad}")).is_err(), "{bad}");
        }
        assert!(read("nonsense\r\n\r\n").is_err());
    }
}
