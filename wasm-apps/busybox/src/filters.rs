//! Tools that make one text of another.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};

use sha2::{Digest as _, Sha256};

use crate::cx::{Cx, letters};
use crate::print::unescaped;

/// Parts of lines: `-d X -f LIST` by a separator (a tab), `-c LIST` by character.
pub fn cut(cx: &mut Cx, args: &[String]) -> i32 {
    let (mut separator, mut list, mut by_field, mut names) =
        ("\t".to_owned(), None, true, Vec::new());
    let mut words = args.iter().skip(1);
    while let Some(word) = words.next() {
        let Some((option, value)) =
            word.strip_prefix('-').and_then(|word| word.split_at_checked(1))
        else {
            names.push(word.clone());
            continue;
        };
        let value = if value.is_empty() {
            words.next().cloned().unwrap_or_default()
        } else {
            value.to_owned()
        };
        match option {
            "d" => separator = value,
            "f" | "c" | "b" => (list, by_field) = (ranges(&value), option == "f"),
            _ => {}
        }
    }
    let Some(list) = list else {
        cx.say("usage: cut [-d X] -f LIST | -c LIST [FILE]...");
        return 1;
    };
    let is_wanted = |at: usize| list.iter().any(|(from, to)| (*from..=*to).contains(&(at + 1)));
    let (bytes, code) = cx.read_all("cut", &names);
    for line in String::from_utf8_lossy(&bytes).lines() {
        if !by_field {
            let part: String =
                line.chars().enumerate().filter(|(at, _)| is_wanted(*at)).map(|(_, c)| c).collect();
            cx.line(&part);
        } else if line.contains(&separator) {
            let parts = line.split(&separator).enumerate().filter(|(at, _)| is_wanted(*at));
            cx.line(&parts.map(|(_, part)| part).collect::<Vec<_>>().join(&separator));
        } else {
            cx.line(line);
        }
    }
    code
}

/// `1,3-5,7-`.
fn ranges(list: &str) -> Option<Vec<(usize, usize)>> {
    let one = |part: &str| {
        let (from, to) = part.split_once('-').unwrap_or((part, part));
        let from = if from.is_empty() { 1 } else { from.parse().ok()? };
        Some((from, if to.is_empty() { usize::MAX } else { to.parse().ok()? }))
    };
    list.split(',').map(one).collect()
}

/// Replaces characters of one set by those of another, `-d` removes them, `-s` makes one of many.
pub fn tr(cx: &mut Cx, args: &[String]) -> i32 {
    let (options, sets) = letters(args);
    let set = |at: usize| characters(sets.get(at).map_or("", String::as_str));
    let (from, to) = (set(0), set(1));
    let is_inverted = options.contains(['c', 'C']);
    let (bytes, code) = cx.read_all("tr", &[]);
    let (mut text, mut last) = (String::new(), None);
    for c in String::from_utf8_lossy(&bytes).chars() {
        let at = from.iter().position(|it| *it == c);
        let is_in = at.is_some() != is_inverted;
        if is_in && options.contains('d') {
            continue;
        }
        let new = match at {
            _ if !is_in || to.is_empty() => c,
            Some(at) => *to.get(at).or(to.last()).unwrap_or(&c),
            None => *to.last().unwrap_or(&c),
        };
        if options.contains('s') && is_in && last == Some(new) {
            continue;
        }
        last = Some(new);
        text.push(new);
    }
    cx.write(text.as_bytes());
    code
}

fn characters(set: &str) -> Vec<char> {
    let classes = [("[:upper:]", 'A'..='Z'), ("[:lower:]", 'a'..='z'), ("[:digit:]", '0'..='9')];
    if let Some((_, range)) = classes.into_iter().find(|(name, _)| *name == set) {
        return range.collect();
    }
    if set == "[:space:]" {
        return " \t\n\r".chars().collect();
    }
    let set: Vec<char> = unescaped(set).chars().collect();
    let (mut found, mut rest) = (Vec::new(), set.as_slice());
    loop {
        rest = match rest {
            [from, '-', to, rest @ ..] => {
                found.extend(*from..=*to);
                rest
            }
            [one, rest @ ..] => {
                found.push(*one);
                rest
            }
            [] => return found,
        };
    }
}

/// Lines that follow each other only once: `-c` with how many there were, `-d` those of many.
pub fn uniq(cx: &mut Cx, args: &[String]) -> i32 {
    let (options, names) = letters(args);
    let (bytes, code) = cx.read_all("uniq", names);
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    for same in lines.chunk_by(|a, b| a == b) {
        let Some(line) = same.first() else { continue };
        if options.contains('d') && same.len() == 1 {
            continue;
        }
        let count =
            if options.contains('c') { format!("{:>7} ", same.len()) } else { String::new() };
        cx.line(&format!("{count}{line}"));
    }
    code
}

/// Writes what it reads to files as well; `-a` adds to them.
pub fn tee(cx: &mut Cx, args: &[String]) -> i32 {
    let (options, names) = letters(args);
    let (mut files, mut code) = (Vec::new(), 0);
    let is_added = options.contains('a');
    for name in names {
        let mut open = OpenOptions::new();
        open.create(true).write(true).append(is_added).truncate(!is_added);
        match open.open(cx.path(name)) {
            Ok(file) => files.push(file),
            Err(error) => {
                cx.fail("tee", name, &error);
                code = 1;
            }
        }
    }
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(count) = cx.input.read(&mut buffer) {
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
        cx.write(bytes);
        cx.flush();
        for file in &mut files {
            if let Err(error) = file.write_all(bytes) {
                cx.fail("tee", "a file", &error);
                code = 1;
            }
        }
    }
    code
}

/// Runs a tool with the words it reads as arguments: `-n N` so many at once, `-I X` each line in the
/// place of X.
pub fn xargs(cx: &mut Cx, args: &[String]) -> i32 {
    let (mut most, mut place) = (usize::MAX, None);
    let mut words = args.iter().skip(1).peekable();
    while let Some(option) = words.next_if(|word| word.starts_with('-')) {
        match option.as_str() {
            "-n" => {
                most = words.next().and_then(|n| n.parse().ok()).filter(|n| *n > 0).unwrap_or(most)
            }
            "-I" => place = words.next().cloned(),
            "-r" => {}
            _ => match option.split_at_checked(2) {
                Some(("-n", count)) => most = count.parse().unwrap_or(most).max(1),
                Some(("-I", word)) => place = Some(word.to_owned()),
                _ => {
                    cx.say(&format!("xargs: invalid option {option:?}"));
                    return 1;
                }
            },
        }
    }
    let mut command: Vec<String> = words.cloned().collect();
    if command.is_empty() {
        command.push("echo".to_owned());
    }
    let (bytes, mut code) = cx.read_all("xargs", &[]);
    let text = String::from_utf8_lossy(&bytes);
    if let Some(place) = place.filter(|place| !place.is_empty()) {
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<String> =
                command.iter().map(|word| word.replace(&place, line)).collect();
            code = code.max(crate::sh::run(cx, &words));
        }
        return code;
    }
    let found: Vec<&str> = text.split_whitespace().collect();
    for part in found.chunks(most) {
        let words: Vec<String> =
            command.iter().cloned().chain(part.iter().map(|word| (*word).to_owned())).collect();
        code = code.max(crate::sh::run(cx, &words));
    }
    code
}

/// Writes a line again and again.
pub fn yes(cx: &mut Cx, args: &[String]) -> i32 {
    let word = args.get(1).map_or("y", String::as_str);
    let line = format!("{word}\n").into_bytes();
    while cx.output.write_all(&line).is_ok() {}
    0
}

/// SHA-256 of files.
pub fn sha256sum(cx: &mut Cx, args: &[String]) -> i32 {
    let (_, names) = letters(args);
    let stdin = ["-".to_owned()];
    let mut code = 0;
    for name in if names.is_empty() { &stdin[..] } else { names } {
        let (bytes, failed) = cx.read_all("sha256sum", std::slice::from_ref(name));
        code = code.max(failed);
        if failed == 0 {
            let digest: String =
                Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            cx.line(&format!("{digest}  {name}"));
        }
    }
    code
}

const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 (RFC 4648) in lines of 76 letters, `-w 0` in one; `-d` the way back.
pub fn base64(cx: &mut Cx, args: &[String]) -> i32 {
    let is_one_line =
        args.windows(2).any(|pair| pair == ["-w", "0"]) || args.iter().any(|it| it == "-w0");
    let names: Vec<String> = args
        .iter()
        .skip(1)
        .filter(|word| !word.starts_with('-') && *word != "0")
        .cloned()
        .collect();
    let (bytes, code) = cx.read_all("base64", &names);
    if args.iter().any(|word| word == "-d" || word == "-D") {
        let (mut held, mut bits, mut found) = (0_u32, 0, Vec::new());
        for letter in bytes.iter().filter(|byte| !byte.is_ascii_whitespace() && **byte != b'=') {
            let Some(value) = LETTERS.iter().position(|it| it == letter) else {
                cx.say("base64: invalid input");
                return 1;
            };
            held = (held << 6) | u32::try_from(value).unwrap_or(0);
            bits += 6;
            if bits >= 8 {
                bits -= 8;
                found.push(u8::try_from((held >> bits) & 0xff).unwrap_or(0));
            }
        }
        cx.write(&found);
        return code;
    }
    let mut text = String::new();
    for part in bytes.chunks(3) {
        let held = part.iter().fold(0_u32, |held, byte| (held << 8) | u32::from(*byte));
        let held = held << (8 * (3 - part.len()));
        for at in 0..4 {
            let value = usize::try_from((held >> (18 - 6 * at)) & 63).unwrap_or(0);
            let letter = LETTERS.get(value).copied().unwrap_or(b'=');
            text.push(char::from(if at <= part.len() { letter } else { b'=' }));
        }
    }
    let width = if is_one_line { text.len().max(1) } else { 76 };
    for line in text.as_bytes().chunks(width) {
        cx.line(&String::from_utf8_lossy(line));
    }
    code
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::sh::streams::{Input, Kept};

    fn through(line: &str, input: &str) -> (String, i32) {
        let kept = Kept::default();
        let mut cx = Cx::of_process();
        cx.input = Input::new(io::Cursor::new(input.as_bytes().to_vec()));
        cx.output = kept.output();
        let args = ["sh", "-c", line].map(str::to_owned);
        let code = crate::sh::main(&mut cx, &args);
        (String::from_utf8(kept.take()).unwrap(), code)
    }

    #[test]
    fn texts_are_cut_replaced_counted_and_encoded() {
        for (line, input, wanted) in [
            ("cut -d: -f1,3", "a:b:c\nplain\n", "a:c\nplain\n"),
            ("cut -c2-3", "abcd\n", "bc\n"),
            ("tr a-c A-C", "abcd\n", "ABCd\n"),
            ("tr '[:lower:]' '[:upper:]'", "x1\n", "X1\n"),
            ("tr -d '\\n'", "a\nb\n", "ab"),
            ("tr -s ' '", "a   b\n", "a b\n"),
            ("tr ',' '\\n'", "a,b", "a\nb"),
            ("uniq -c", "a\na\nb\n", "      2 a\n      1 b\n"),
            ("xargs echo x", "a\nb c\n", "x a b c\n"),
            ("xargs -n 2", "a b c\n", "a b\nc\n"),
            ("xargs -n1", "a b\n", "a\nb\n"),
            ("xargs -I{} echo '<{}>'", "a b\n", "<a b>\n"),
            ("echo -e 'a\\tb'; echo -ne 'c\\n'; echo -n d; echo -x", "", "a\tb\nc\nd-x\n"),
            ("tail -n+2; echo a | tail -n +1", "x\ny\n", "y\na\n"),
            ("echo a > f; echo b >> f; tail -n +2 f; rm f", "", "b\n"),
            ("xargs -I {} echo '<{}>'", "a b\nc\n", "<a b>\n<c>\n"),
            ("base64", "hello", "aGVsbG8=\n"),
            ("base64 -d", "aGVsbG8=\n", "hello"),
            ("yes | head -n 2", "", "y\ny\n"),
            ("sha256sum | cut -c1-8", "hello", "2cf24dba\n"),
            ("sed -n '2,3p' | tr b B", "a\nb\nc\nd\n", "B\nc\n"),
            ("grep -oE '[0-9]+'", "a12b3\n", "12\n3\n"),
        ] {
            assert_eq!(through(line, input), (wanted.to_owned(), 0), "{line}");
        }
    }
}
