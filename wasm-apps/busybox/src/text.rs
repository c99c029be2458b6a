//! Tools for text, and about the system.

use std::io::{Read, Seek as _, SeekFrom, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use regex_lite::Regex;

use crate::cx::{Cx, letters};

/// Pause between two looks at a file that is followed.
const FOLLOW_PAUSE: Duration = Duration::from_millis(200);
/// Bytes copied at once.
const COPY_BYTES: usize = 32 * 1024;

/// Writes files one after the other, as they come.
pub fn cat(cx: &mut Cx, args: &[String]) -> i32 {
    let (_, names) = letters(args);
    let stdin = ["-".to_owned()];
    let names = if names.is_empty() { &stdin[..] } else { names };
    let mut code = 0;
    let mut buffer = vec![0; COPY_BYTES];
    for name in names {
        let copied = cx.open(name).and_then(|mut file| {
            loop {
                let count = file.read(&mut buffer)?;
                if count == 0 {
                    return Ok(());
                }
                cx.output.write_all(buffer.get(..count).unwrap_or_default())?;
                cx.output.flush()?;
            }
        });
        if let Err(error) = copied {
            cx.fail("cat", name, &error);
            code = 1;
        }
    }
    code
}

/// Writes its arguments; `-n` without a line end, `-e` with escapes replaced.
pub fn echo(cx: &mut Cx, args: &[String]) -> i32 {
    let mut words = args.get(1..).unwrap_or_default();
    let (mut end, mut is_escaped) = ("\n", false);
    while let Some((first, rest)) = words.split_first() {
        let letters = first.strip_prefix('-').filter(|letters| !letters.is_empty());
        let Some(letters) = letters.filter(|it| it.chars().all(|c| "neE".contains(c))) else {
            break;
        };
        end = if letters.contains('n') { "" } else { end };
        is_escaped |= letters.contains('e');
        words = rest;
    }
    let text = words.join(" ");
    let text = if is_escaped { crate::print::unescaped(&text) } else { text };
    cx.write(format!("{text}{end}").as_bytes());
    0
}

/// Shows variables, all or the named ones; `env NAME=VALUE TOOL ...` runs a tool with them.
pub fn env(cx: &mut Cx, args: &[String]) -> i32 {
    let mut rest = args.get(1..).unwrap_or_default();
    while let Some((first, more)) = rest.split_first() {
        let Some((name, value)) = first.split_once('=') else { break };
        cx.env.insert(name.to_owned(), value.to_owned());
        rest = more;
    }
    if rest.is_empty() {
        for (name, value) in cx.env.clone() {
            cx.line(&format!("{name}={value}"));
        }
        return 0;
    }
    if args.first().is_some_and(|tool| tool.ends_with("printenv")) {
        let mut code = 0;
        for name in rest {
            match cx.env.get(name).cloned() {
                Some(value) => cx.line(&value),
                None => code = 1,
            }
        }
        return code;
    }
    crate::sh::run(cx, rest)
}

/// Lines that fit a regular expression, extended with `-E`, or have a text with `-F`: `-v` that do not,
/// `-i` in any case, `-x` as a whole, `-c` how many, `-n` with numbers, `-o` what fits, `-q` only whether.
pub fn grep(cx: &mut Cx, args: &[String]) -> i32 {
    let (options, rest) = letters(args);
    let Some((pattern, names)) = rest.split_first() else {
        cx.say("usage: grep [-cEFinoqvx] PATTERN [FILE]...");
        return 2;
    };
    let wanted = pattern.as_str();
    let is_tool = |name: &str| args.first().is_some_and(|tool| tool.ends_with(name));
    let (bytes, failed) = cx.read_all("grep", names);
    let text = String::from_utf8_lossy(&bytes);
    let fold = |text: &str| {
        if options.contains('i') { text.to_lowercase() } else { text.to_owned() }
    };
    let pattern = if is_tool("fgrep") || options.contains('F') {
        Regex::new(&regex_lite::escape(pattern)).map_err(|error| error.to_string())
    } else {
        let is_extended = is_tool("egrep") || options.contains('E');
        crate::pattern::compile(pattern, is_extended, options.contains('i'))
    };
    let pattern = match pattern {
        Ok(pattern) => pattern,
        Err(why) => {
            cx.say(&format!("grep: bad regex: {why}"));
            return 2;
        }
    };
    let is_folded = options.contains('F') && options.contains('i');
    let is_match = |line: &str| {
        let is_there = match (is_folded, options.contains('x')) {
            (true, _) => fold(line).contains(&fold(wanted)),
            (false, true) => pattern.find(line).is_some_and(|found| found.len() == line.len()),
            (false, false) => pattern.is_match(line),
        };
        is_there != options.contains('v')
    };
    let found: Vec<_> = text.lines().enumerate().filter(|(_, line)| is_match(line)).collect();
    if options.contains('c') {
        cx.line(&found.len().to_string());
    } else if options.contains('o') {
        for part in found.iter().flat_map(|(_, line)| pattern.find_iter(line)) {
            cx.line(part.as_str());
        }
    } else if !options.contains('q') {
        for (number, line) in &found {
            let number =
                if options.contains('n') { format!("{}:", number + 1) } else { String::new() };
            cx.line(&format!("{number}{line}"));
        }
    }
    if failed != 0 { 2 } else { i32::from(found.is_empty()) }
}

/// How much of a file is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Amount {
    Lines(usize),
    Bytes(usize),
}

/// `-n 5`, `-n5`, `-5`, `-c 5`, `-c5`, or 10 lines; and the files.
fn amount(args: &[String]) -> (Amount, Vec<String>) {
    let (mut wanted, mut names) = (Amount::Lines(10), Vec::new());
    let mut words = args.iter().skip(1);
    while let Some(word) = words.next() {
        let Some(option) = word.strip_prefix('-').filter(|option| !option.is_empty()) else {
            names.push(word.clone());
            continue;
        };
        let is_bytes = option.starts_with('c');
        let number = match option.trim_start_matches(['c', 'n']) {
            "" => words.next().map_or("", String::as_str),
            number => number,
        };
        match number.parse() {
            Ok(number) if is_bytes => wanted = Amount::Bytes(number),
            Ok(number) => wanted = Amount::Lines(number),
            Err(_) if option == "f" => {}
            Err(_) => names.push(word.clone()),
        }
    }
    (wanted, names)
}

/// The first lines, or bytes.
pub fn head(cx: &mut Cx, args: &[String]) -> i32 {
    let (wanted, names) = amount(args);
    let (bytes, code) = cx.read_all("head", &names);
    let part = match wanted {
        Amount::Lines(lines) => {
            bytes.split_inclusive(|b| *b == b'\n').take(lines).flatten().copied().collect()
        }
        Amount::Bytes(count) => bytes.get(..count).unwrap_or(&bytes).to_vec(),
    };
    cx.write(&part);
    code
}

/// The last lines, or bytes; with `+N` those from the Nth on. `-f` and `-F` go on with what is added to the
/// file, until the tool is stopped.
pub fn tail(cx: &mut Cx, args: &[String]) -> i32 {
    let is_follow = |word: &str| matches!(word, "-f" | "-F");
    let follows = args.iter().any(|word| is_follow(word));
    let mut args: Vec<String> = args.iter().filter(|word| !is_follow(word)).cloned().collect();
    let from = args.iter().position(|word| word.trim_start_matches("-n").starts_with('+'));
    let from = from.map(|at| {
        let word = args.remove(at);
        if args.get(at - 1).is_some_and(|option| option == "-n") {
            args.remove(at - 1);
        }
        word
    });
    let (wanted, names) = amount(&args);
    let (bytes, code) = cx.read_all("tail", &names);
    let lines = |bytes: &[u8]| -> Vec<Vec<u8>> {
        bytes.split_inclusive(|b| *b == b'\n').map(<[u8]>::to_vec).collect()
    };
    let part = match (from, wanted) {
        (Some(from), _) => {
            let from: usize = from.trim_start_matches(['-', 'n', '+']).parse().unwrap_or(1);
            lines(&bytes).get(from.saturating_sub(1)..).unwrap_or_default().concat()
        }
        (None, Amount::Lines(count)) => {
            let all = lines(&bytes);
            all.get(all.len().saturating_sub(count)..).unwrap_or_default().concat()
        }
        (None, Amount::Bytes(count)) => {
            bytes.get(bytes.len().saturating_sub(count)..).unwrap_or_default().to_vec()
        }
    };
    cx.write(&part);
    match names.first() {
        Some(name) if follows => follow(cx, name, bytes.len()),
        _ => code,
    }
}

/// Writes what is added to a file, from a place on; a file that got shorter is read anew.
fn follow(cx: &mut Cx, name: &str, from: usize) -> i32 {
    let mut at = u64::try_from(from).unwrap_or(0);
    let path = cx.path(name);
    loop {
        cx.flush();
        std::thread::sleep(FOLLOW_PAUSE);
        let Ok(mut file) = std::fs::File::open(&path) else { continue };
        let length = file.metadata().map_or(at, |meta| meta.len());
        if length < at {
            at = 0;
        }
        if length == at || file.seek(SeekFrom::Start(at)).is_err() {
            continue;
        }
        let mut added = Vec::new();
        let Ok(count) = file.read_to_end(&mut added) else { continue };
        at += u64::try_from(count).unwrap_or(0);
        cx.write(&added);
    }
}

/// Counts lines (`-l`), words (`-w`) and bytes (`-c`).
pub fn wc(cx: &mut Cx, args: &[String]) -> i32 {
    let (options, names) = letters(args);
    let options = if options.is_empty() { "lwc".to_owned() } else { options };
    let (bytes, code) = cx.read_all("wc", names);
    let counts = [
        ('l', bytes.iter().filter(|b| **b == b'\n').count()),
        ('w', bytes.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()).count()),
        ('c', bytes.len()),
    ];
    let shown: Vec<String> = counts
        .iter()
        .filter(|(letter, _)| options.contains(*letter))
        .map(|(_, count)| count.to_string())
        .chain(names.first().filter(|_| names.len() == 1).cloned())
        .collect();
    cx.line(&shown.join(" "));
    code
}

/// Lines in order: `-r` the other way, `-n` by number, `-u` each once.
pub fn sort(cx: &mut Cx, args: &[String]) -> i32 {
    let (options, names) = letters(args);
    let (bytes, code) = cx.read_all("sort", names);
    let text = String::from_utf8_lossy(&bytes);
    let mut lines: Vec<&str> = text.lines().collect();
    if options.contains('n') {
        lines.sort_by_key(|line| line.trim().parse::<i64>().unwrap_or(0));
    } else {
        lines.sort_unstable();
    }
    if options.contains('r') {
        lines.reverse();
    }
    if options.contains('u') {
        lines.dedup();
    }
    for line in lines {
        cx.line(line);
    }
    code
}

/// `seq LAST`, `seq FIRST LAST`.
pub fn seq(cx: &mut Cx, args: &[String]) -> i32 {
    let numbers: Vec<i64> = args.iter().skip(1).filter_map(|word| word.parse().ok()).collect();
    let range = match numbers.as_slice() {
        [last] => 1..=*last,
        [first, last] => *first..=*last,
        _ => {
            cx.say("usage: seq [FIRST] LAST");
            return 1;
        }
    };
    for number in range {
        cx.line(&number.to_string());
    }
    0
}

/// Waits for seconds, or with `s`, `m`, `h` behind the number.
pub fn sleep(cx: &mut Cx, args: &[String]) -> i32 {
    cx.flush();
    for word in args.iter().skip(1) {
        let (number, unit) = match word.find(|c: char| c.is_ascii_alphabetic()) {
            Some(at) => word.split_at(at),
            None => (word.as_str(), "s"),
        };
        let unit = match unit {
            "m" => 60.0,
            "h" => 3600.0,
            _ => 1.0,
        };
        let seconds = number.parse::<f64>().ok().map(|number| number * unit);
        match seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()) {
            Some(pause) => std::thread::sleep(pause),
            None => {
                cx.say(&format!("sleep: invalid number '{word}'"));
                return 1;
            }
        }
    }
    0
}

/// The time, in UTC, as RFC 3339 or by `+FORMAT` (`%Y %m %d %H %M %S %s %F %T`).
pub fn date(cx: &mut Cx, args: &[String]) -> i32 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    // Counted in years that begin in March, so that the leap day is the last of its year.
    let days = now / 86_400 + 719_468;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_based = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_based + 2) / 5 + 1;
    let month = if march_based < 10 { march_based + 3 } else { march_based - 9 };
    let year = days / 146_097 * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (now / 3600 % 24, now / 60 % 60, now % 60);
    let format = args.iter().find_map(|word| word.strip_prefix('+'));
    let mut text = format.unwrap_or("%FT%TZ").replace("%F", "%Y-%m-%d").replace("%T", "%H:%M:%S");
    for (mark, value) in [
        ("%Y", format!("{year:04}")),
        ("%m", format!("{month:02}")),
        ("%d", format!("{day:02}")),
        ("%H", format!("{hour:02}")),
        ("%M", format!("{minute:02}")),
        ("%S", format!("{second:02}")),
        ("%s", now.to_string()),
    ] {
        text = text.replace(mark, &value);
    }
    cx.line(&text);
    0
}

/// The pod's name.
pub fn hostname(cx: &mut Cx, _: &[String]) -> i32 {
    let name = cx.env.get("HOSTNAME").cloned().unwrap_or_default();
    cx.line(&name);
    0
}

/// A sandbox has one user.
pub fn id(cx: &mut Cx, args: &[String]) -> i32 {
    let (options, _) = letters(args);
    let text = match (options.contains(['u', 'g']), options.contains('n')) {
        (true, true) => "root",
        (true, false) => "0",
        _ => "uid=0(root) gid=0(root) groups=0(root)",
    };
    cx.line(text);
    0
}

/// The name of that user.
pub fn whoami(cx: &mut Cx, _: &[String]) -> i32 {
    cx.line("root");
    0
}

/// The working folder.
pub fn pwd(cx: &mut Cx, _: &[String]) -> i32 {
    let cwd = cx.cwd.clone();
    cx.line(&cwd);
    0
}

/// What this runs on: `-m` the machine, `-n` the host, `-a` all.
pub fn uname(cx: &mut Cx, args: &[String]) -> i32 {
    let (options, _) = letters(args);
    let host = cx.env.get("HOSTNAME").cloned().unwrap_or_default();
    let text = match options.as_str() {
        "a" => format!("WASI {host} wasm32"),
        "m" => "wasm32".to_owned(),
        "n" => host,
        _ => "WASI".to_owned(),
    };
    cx.line(&text);
    0
}
