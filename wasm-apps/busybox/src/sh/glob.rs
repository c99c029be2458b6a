//! Patterns (POSIX shell, 2.13): `*`, `?`, `[..]`, and `\` before what stands for itself.

use std::fs;

use crate::cx::Cx;

/// Whether a pattern has anything but plain text.
pub fn is_pattern(pattern: &str) -> bool {
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => drop(chars.next()),
            '*' | '?' | '[' => return true,
            _ => {}
        }
    }
    false
}

/// A text as a pattern that fits it and nothing else.
pub fn quoted(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for c in text.chars() {
        if "\\*?[]!-".contains(c) {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}

/// A pattern without its quotes.
pub fn plain(pattern: &str) -> String {
    let (mut text, mut chars) = (String::with_capacity(pattern.len()), pattern.chars());
    while let Some(c) = chars.next() {
        text.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    text
}

/// Files whose paths fit, in order; none if there is none.
pub fn files(cx: &Cx, pattern: &str) -> Vec<String> {
    let (root, rest) = match pattern.strip_prefix('/') {
        Some(rest) => ("/", rest),
        None => ("", pattern),
    };
    let mut found = vec![root.to_owned()];
    let parts: Vec<&str> = rest.split('/').filter(|part| !part.is_empty()).collect();
    for (at, part) in parts.iter().enumerate() {
        let is_last = at + 1 == parts.len();
        let mut next = Vec::new();
        for folder in found {
            let at = cx.path(if folder.is_empty() { "." } else { &folder });
            if !is_pattern(part) {
                next.push(format!("{folder}{}", plain(part)));
                continue;
            }
            let names = fs::read_dir(at).into_iter().flatten().flatten();
            next.extend(
                names
                    .filter_map(|entry| entry.file_name().into_string().ok())
                    .filter(|name| part.starts_with('.') || !name.starts_with('.'))
                    .filter(|name| fits(part, name))
                    .map(|name| format!("{folder}{name}")),
            );
        }
        found = if is_last { next } else { next.into_iter().map(|at| format!("{at}/")).collect() };
    }
    found.retain(|path| fs::symlink_metadata(cx.path(path)).is_ok());
    found.sort();
    found
}

/// Whether the whole text fits.
pub fn fits(pattern: &str, text: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let text: Vec<char> = text.chars().collect();
    fits_chars(&pattern, &text)
}

fn fits_chars(pattern: &[char], text: &[char]) -> bool {
    match pattern {
        [] => text.is_empty(),
        ['*', rest @ ..] => {
            (0..=text.len()).any(|at| fits_chars(rest, text.get(at..).unwrap_or_default()))
        }
        ['?', rest @ ..] => text.split_first().is_some_and(|(_, text)| fits_chars(rest, text)),
        ['[', rest @ ..] => match set(rest) {
            Some((set, is_inverted, rest)) => text.split_first().is_some_and(|(c, text)| {
                set.iter().any(|(from, to)| (from..=to).contains(&c)) != is_inverted
                    && fits_chars(rest, text)
            }),
            None => text.split_first().is_some_and(|(c, text)| *c == '[' && fits_chars(rest, text)),
        },
        ['\\', wanted, rest @ ..] | [wanted, rest @ ..] => {
            text.split_first().is_some_and(|(c, text)| c == wanted && fits_chars(rest, text))
        }
    }
}

/// The set that begins behind `[`: its ranges, whether it is what is not in them, and what follows.
#[expect(clippy::type_complexity, reason = "read by the one caller at once")]
fn set(pattern: &[char]) -> Option<(Vec<(char, char)>, bool, &[char])> {
    let (is_inverted, mut rest) = match pattern {
        ['!' | '^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut ranges = Vec::new();
    loop {
        rest = match rest {
            [']', rest @ ..] if !ranges.is_empty() => return Some((ranges, is_inverted, rest)),
            ['\\', c, rest @ ..] => {
                ranges.push((*c, *c));
                rest
            }
            [from, '-', to, rest @ ..] if *to != ']' => {
                ranges.push((*from, *to));
                rest
            }
            [c, rest @ ..] => {
                ranges.push((*c, *c));
                rest
            }
            [] => return None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_marks_sets_and_quotes() {
        for (pattern, text, is_fit) in [
            ("*.txt", "a.txt", true),
            ("*.txt", "a.txt.gz", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[]x]", "]", true),
            ("[ab", "[ab", true),
            ("\\*", "*", true),
            ("\\*", "a", false),
            ("*", "", true),
        ] {
            assert_eq!(fits(pattern, text), is_fit, "{pattern} {text}");
        }
        assert!(fits(&quoted("a*[b]?"), "a*[b]?") && !fits(&quoted("a*"), "ab"));
        assert_eq!(plain(&quoted("a*\\b")), "a*\\b");
    }
}
