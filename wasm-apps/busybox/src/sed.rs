//! `sed` (POSIX): a line at a time through commands with addresses.

use regex_lite::Regex;

use crate::cx::Cx;
use crate::pattern::compile;
use crate::print::unescaped;

#[derive(Debug)]
enum Address {
    Line(usize),
    Last,
    Fits(Regex),
}

#[derive(Debug)]
enum Action {
    Print,
    Delete,
    Quit,
    Number,
    Append(String),
    Insert(String),
    Change(String),
    Substitute { pattern: Regex, with: String, which: usize, is_all: bool, prints: bool },
    Translate(Vec<char>, Vec<char>),
}

#[derive(Debug)]
struct Command {
    from: Option<Address>,
    to: Option<Address>,
    is_inverted: bool,
    action: Action,
    /// Between its two addresses.
    is_open: bool,
}

/// `sed [-n] [-E] [-i] [-e] SCRIPT [FILE]...`.
pub fn main(cx: &mut Cx, args: &[String]) -> i32 {
    let (mut is_quiet, mut is_extended, mut in_place) = (false, false, false);
    let (mut scripts, mut names) = (Vec::new(), Vec::new());
    let mut words = args.iter().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "-n" => is_quiet = true,
            "-E" | "-r" => is_extended = true,
            "-i" => in_place = true,
            "-e" => scripts.extend(words.next().cloned()),
            option if option.len() > 1 && option.starts_with('-') => {
                cx.say(&format!("sed: invalid option {option:?} (there are: -Eein)"));
                return 1;
            }
            _ => names.push(word.clone()),
        }
    }
    if scripts.is_empty() && !names.is_empty() {
        scripts.push(names.remove(0));
    }
    let script = scripts.join("\n");
    let commands = match parse(&script, is_extended) {
        Ok(commands) if !commands.is_empty() => commands,
        Ok(_) => {
            cx.say("usage: sed [-nEi] [-e] SCRIPT [FILE]...");
            return 1;
        }
        Err(why) => {
            cx.say(&format!("sed: {why}"));
            return 1;
        }
    };
    if !in_place {
        let (bytes, code) = cx.read_all("sed", &names);
        let text = edit(commands, &String::from_utf8_lossy(&bytes), is_quiet);
        cx.write(text.as_bytes());
        return code;
    }
    let mut code = 0;
    for name in &names {
        let (bytes, failed) = cx.read_all("sed", std::slice::from_ref(name));
        code = code.max(failed);
        let Ok(commands) = parse(&script, is_extended) else { return 1 };
        let text = edit(commands, &String::from_utf8_lossy(&bytes), is_quiet);
        if failed == 0
            && let Err(error) = std::fs::write(cx.path(name), text)
        {
            cx.fail("sed", name, &error);
            code = 1;
        }
    }
    code
}

fn parse(script: &str, is_extended: bool) -> Result<Vec<Command>, String> {
    let (mut commands, mut rest) = (Vec::new(), script);
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\n', ';']);
        if rest.is_empty() {
            return Ok(commands);
        }
        let (from, after) = address(rest, is_extended)?;
        let (to, after) = match after.trim_start().strip_prefix(',') {
            Some(after) => address(after.trim_start(), is_extended)?,
            None => (None, after),
        };
        let after = after.trim_start();
        let (is_inverted, after) = match after.strip_prefix('!') {
            Some(after) => (true, after.trim_start()),
            None => (false, after),
        };
        let (action, after) = action(after, is_extended)?;
        commands.push(Command { from, to, is_inverted, action, is_open: false });
        rest = after;
    }
}

fn address(text: &str, is_extended: bool) -> Result<(Option<Address>, &str), String> {
    if let Some(rest) = text.strip_prefix('$') {
        return Ok((Some(Address::Last), rest));
    }
    if let Some(rest) = text.strip_prefix('/') {
        let (pattern, rest) = until(rest, '/')?;
        return Ok((Some(Address::Fits(compile(&pattern, is_extended, false)?)), rest));
    }
    let (digits, rest) =
        text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    Ok((digits.parse().ok().map(Address::Line), rest))
}

/// The text up to a delimiter, which may stand in it behind a `\`.
fn until(text: &str, delimiter: char) -> Result<(String, &str), String> {
    let (mut found, mut chars) = (String::new(), text.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some((_, next)) if next == delimiter => found.push(next),
                Some((_, next)) => found.extend(['\\', next]),
                None => break,
            },
            c if c == delimiter => {
                return Ok((found, text.get(at + c.len_utf8()..).unwrap_or_default()));
            }
            c => found.push(c),
        }
    }
    Err(format!("unterminated {delimiter:?}"))
}

fn action(text: &str, is_extended: bool) -> Result<(Action, &str), String> {
    let Some(name) = text.chars().next() else { return Err("missing command".to_owned()) };
    let rest = text.get(name.len_utf8()..).unwrap_or_default();
    Ok(match name {
        'p' => (Action::Print, rest),
        'd' => (Action::Delete, rest),
        'q' => (Action::Quit, rest),
        '=' => (Action::Number, rest),
        'a' | 'i' | 'c' => {
            let (line, rest) = rest.split_once('\n').unwrap_or((rest, ""));
            let line = line.trim_start().trim_start_matches('\\').trim_start().to_owned();
            let action = match name {
                'a' => Action::Append(line),
                'i' => Action::Insert(line),
                _ => Action::Change(line),
            };
            (action, rest)
        }
        's' | 'y' => {
            let delimiter = rest.chars().next().ok_or("missing delimiter")?;
            let rest = rest.get(delimiter.len_utf8()..).unwrap_or_default();
            let (pattern, rest) = until(rest, delimiter)?;
            let (with, rest) = until(rest, delimiter)?;
            if name == 'y' {
                let chars = |text: &str| unescaped(text).chars().collect();
                return Ok((Action::Translate(chars(&pattern), chars(&with)), rest));
            }
            let end = rest.find([';', '\n', ' ', '}']).unwrap_or(rest.len());
            let (flags, rest) = rest.split_at(end);
            let digits: String = flags.chars().filter(char::is_ascii_digit).collect();
            let action = Action::Substitute {
                pattern: compile(&pattern, is_extended, flags.contains(['i', 'I']))?,
                with,
                which: digits.parse().unwrap_or(1),
                is_all: flags.contains('g'),
                prints: flags.contains('p'),
            };
            (action, rest)
        }
        other => return Err(format!("{other:?} is not supported: p d q = a i c s y are")),
    })
}

fn edit(mut commands: Vec<Command>, text: &str, is_quiet: bool) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut out = String::new();
    let mut put = |line: &str| {
        out.push_str(line);
        out.push('\n');
    };
    for (at, line) in lines.iter().enumerate() {
        let (mut line, mut behind, mut is_gone, mut is_over) =
            ((*line).to_owned(), Vec::new(), false, false);
        for command in &mut commands {
            if !command.is_due(at + 1, at + 1 == lines.len(), &line) {
                continue;
            }
            match &command.action {
                Action::Print => put(&line),
                Action::Delete => is_gone = true,
                Action::Quit => is_over = true,
                Action::Number => put(&(at + 1).to_string()),
                Action::Append(text) => behind.push(text.clone()),
                Action::Insert(text) => put(text),
                Action::Change(text) => {
                    put(text);
                    is_gone = true;
                }
                Action::Substitute { pattern, with, which, is_all, prints } => {
                    if let Some(new) = substitute(&line, pattern, with, *which, *is_all) {
                        line = new;
                        if *prints {
                            put(&line);
                        }
                    }
                }
                Action::Translate(from, to) => {
                    let new =
                        |c| from.iter().position(|it| *it == c).and_then(|at| to.get(at).copied());
                    line = line.chars().map(|c| new(c).unwrap_or(c)).collect();
                }
            }
            if is_gone || is_over {
                break;
            }
        }
        if !is_quiet && !is_gone {
            put(&line);
        }
        behind.iter().for_each(|line| put(line));
        if is_over {
            break;
        }
    }
    out
}

impl Command {
    fn is_due(&mut self, number: usize, is_last: bool, line: &str) -> bool {
        let fits = |address: &Address| match address {
            Address::Line(wanted) => *wanted == number,
            Address::Last => is_last,
            Address::Fits(pattern) => pattern.is_match(line),
        };
        let is_in = match (&self.from, &self.to) {
            (None, _) => true,
            (Some(from), None) => fits(from),
            (Some(_), Some(to)) if self.is_open => {
                self.is_open = !fits(to) && !matches!(to, Address::Line(end) if *end <= number);
                true
            }
            (Some(from), Some(to)) => {
                let begins = fits(from);
                self.is_open = begins && !matches!(to, Address::Line(end) if *end <= number);
                begins
            }
        };
        is_in != self.is_inverted
    }
}

/// A line with what fits replaced: the `which`th place, or all from it on. `None`: nothing fits.
fn substitute(
    line: &str,
    pattern: &Regex,
    with: &str,
    which: usize,
    is_all: bool,
) -> Option<String> {
    let (mut new, mut end, mut count) = (String::new(), 0, 0);
    for found in pattern.captures_iter(line) {
        let Some(whole) = found.get(0) else { continue };
        count += 1;
        if count < which || (!is_all && count > which) {
            continue;
        }
        new.push_str(line.get(end..whole.start()).unwrap_or_default());
        let mut chars = with.chars();
        while let Some(c) = chars.next() {
            match c {
                '&' => new.push_str(whole.as_str()),
                '\\' => match chars.next() {
                    Some(digit @ '0'..='9') => {
                        let group =
                            digit.to_digit(10).and_then(|at| found.get(usize::try_from(at).ok()?));
                        new.push_str(group.map_or("", |group| group.as_str()));
                    }
                    Some('n') => new.push('\n'),
                    Some('t') => new.push('\t'),
                    Some(other) => new.push(other),
                    None => new.push('\\'),
                },
                c => new.push(c),
            }
        }
        end = whole.end();
    }
    if count < which {
        return None;
    }
    new.push_str(line.get(end..).unwrap_or_default());
    Some(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_chosen_and_changed() {
        for (script, is_quiet, wanted) in [
            ("s/a/X/", false, "X b a\nsecond\nlXst\n"),
            ("s/a/X/g; s/X/[&]/2", false, "X b [X]\nsecond\nlXst\n"),
            ("s,\\(.\\)econd,\\1ECOND,", false, "a b a\nsECOND\nlast\n"),
            ("2d", false, "a b a\nlast\n"),
            ("/sec/,$d", false, "a b a\n"),
            ("$!d", false, "last\n"),
            ("/last/p", true, "last\n"),
            ("2q", false, "a b a\nsecond\n"),
            ("1a after\n2i before", false, "a b a\nafter\nbefore\nsecond\nlast\n"),
            ("2,3c gone", false, "a b a\ngone\ngone\n"),
            ("y/ab/xy/", false, "x y x\nsecond\nlxst\n"),
            ("s/A/z/I", false, "z b a\nsecond\nlzst\n"),
            ("2,1p", true, "second\n"),
        ] {
            let commands = parse(script, false).unwrap();
            assert_eq!(edit(commands, "a b a\nsecond\nlast\n", is_quiet), wanted, "{script}");
        }
        for bad in ["s/a", "s/a/b", "z", "/a"] {
            assert!(parse(bad, false).is_err(), "{bad}");
        }
    }
}
