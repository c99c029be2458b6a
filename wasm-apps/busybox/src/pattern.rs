//! Regular expressions of POSIX, for `grep` and `sed`.

use regex_lite::{Regex, RegexBuilder};

/// Characters that mean in a basic expression, behind a `\`, what they mean in an extended one alone.
const SWAPPED: &str = "(){}|+?";

/// Compiles a basic or an extended expression.
pub fn compile(text: &str, is_extended: bool, is_caseless: bool) -> Result<Regex, String> {
    let text = if is_extended { text.to_owned() } else { extended(text) };
    let built = RegexBuilder::new(&text).case_insensitive(is_caseless).build();
    built.map_err(|error| error.to_string())
}

fn extended(basic: &str) -> String {
    let (mut text, mut chars) = (String::new(), basic.chars().peekable());
    let mut is_first = true;
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(next) if SWAPPED.contains(next) => text.push(next),
                Some(next) => text.extend(['\\', next]),
                None => text.push_str("\\\\"),
            },
            '[' => {
                text.push('[');
                for (at, c) in chars.by_ref().enumerate() {
                    text.push(c);
                    if c == ']' && at > 0 && !text.ends_with("[^]") {
                        break;
                    }
                }
            }
            '*' if is_first => text.push_str("\\*"),
            c if SWAPPED.contains(c) => text.extend(['\\', c]),
            c => text.push(c),
        }
        is_first = c == '^' && text.len() == 1;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_basic_expression_says_less_than_an_extended_one() {
        for (pattern, is_extended, text, is_match) in [
            ("a+b", false, "a+b", true),
            ("a+b", true, "aab", true),
            ("a\\+b", false, "aab", true),
            ("^a.*c$", false, "abc", true),
            ("\\(ab\\)\\{2\\}", false, "abab", true),
            ("(x|y)", false, "(x|y)", true),
            ("(x|y)", true, "y", true),
            ("[(]x", false, "(x", true),
            ("*a", false, "*a", true),
            ("a|b", false, "a", false),
        ] {
            let found = compile(pattern, is_extended, false).unwrap();
            assert_eq!(found.is_match(text), is_match, "{pattern} {text}");
        }
        assert!(compile("(", true, false).is_err());
        assert!(compile("A", false, true).unwrap().is_match("a"));
    }
}
