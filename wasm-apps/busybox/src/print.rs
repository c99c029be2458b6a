//! `printf` (POSIX).

use crate::cx::Cx;

/// What `once` says of a format that it does not know.
const INVALID_DIRECTIVE: i32 = 2;

/// Writes a format with its arguments: `%s %b %d %i %u %x %X %o %c %%`, widths, and escapes. The format is
/// used again until no argument is left.
pub fn printf(cx: &mut Cx, args: &[String]) -> i32 {
    let Some((format, mut rest)) = args.get(1..).and_then(<[String]>::split_first) else {
        cx.say("usage: printf FORMAT [ARGUMENT]...");
        return 1;
    };
    let (mut text, mut code) = (String::new(), 0);
    loop {
        let before = rest.len();
        if !once(format, &mut rest, &mut text, &mut code) || rest.is_empty() || rest.len() == before
        {
            break;
        }
    }
    cx.write(text.as_bytes());
    match code {
        0 => return 0,
        INVALID_DIRECTIVE => {
            cx.say("printf: a directive is not one of %s %b %d %i %u %x %X %o %c %%")
        }
        _ => cx.say("printf: invalid number"),
    }
    1
}

/// One turn of the format; whether to go on.
fn once(format: &str, rest: &mut &[String], text: &mut String, code: &mut i32) -> bool {
    let mut chars = format.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                let tail: String = chars.clone().collect();
                let (escaped, taken) = escape(&tail);
                text.push_str(&escaped);
                chars.by_ref().take(taken).for_each(drop);
            }
            '%' => {
                let mut spec = String::new();
                while let Some(c) = chars.next_if(|c| "-+ 0#.".contains(*c) || c.is_ascii_digit()) {
                    spec.push(c);
                }
                let Some(kind) = chars.next() else { return false };
                if kind == '%' {
                    text.push('%');
                    continue;
                }
                if !"sbdiuxXoc".contains(kind) {
                    *code = INVALID_DIRECTIVE;
                    return false;
                }
                let argument = rest.split_first().map(|(first, more)| {
                    *rest = more;
                    first.as_str()
                });
                text.push_str(&one(kind, &spec, argument.unwrap_or_default(), code));
            }
            other => text.push(other),
        }
    }
    true
}

fn one(kind: char, spec: &str, argument: &str, code: &mut i32) -> String {
    let (flags, sizes) = spec.split_at(spec.find(|c| !"-+ 0#".contains(c)).unwrap_or(spec.len()));
    let (width, precision) = sizes.split_once('.').unwrap_or((sizes, ""));
    let mut number = || {
        let (sign, digits) = match argument.strip_prefix('-') {
            Some(digits) => (-1, digits),
            None => (1, argument),
        };
        let value = match digits.strip_prefix("0x") {
            Some(hex) => i64::from_str_radix(hex, 16).ok(),
            None if digits.is_empty() => Some(0),
            None => digits.parse().ok(),
        };
        value.map_or_else(
            || {
                *code = 1;
                0
            },
            |value| sign * value,
        )
    };
    let body = match kind {
        'd' | 'i' | 'u' => number().to_string(),
        'x' => format!("{:x}", number()),
        'X' => format!("{:X}", number()),
        'o' => format!("{:o}", number()),
        'c' => argument.chars().take(1).collect(),
        'b' => unescaped(argument),
        _ => match precision.parse() {
            Ok(most) => argument.chars().take(most).collect(),
            Err(_) => argument.to_owned(),
        },
    };
    // As wide as a terminal, many times over: no more is made of nothing.
    let width: usize = width.parse().unwrap_or(0).min(4096);
    let missing = width.saturating_sub(body.chars().count());
    if flags.contains('-') {
        return body + &" ".repeat(missing);
    }
    if flags.contains('0') && "diuxXo".contains(kind) {
        let (sign, digits) = body.split_at(usize::from(body.starts_with('-')));
        return format!("{sign}{}{digits}", "0".repeat(missing));
    }
    " ".repeat(missing) + &body
}

/// A text with its escapes replaced.
pub fn unescaped(text: &str) -> String {
    let (mut found, mut rest) = (String::new(), text);
    while let Some((before, after)) = rest.split_once('\\') {
        found.push_str(before);
        let (escaped, taken) = escape(after);
        found.push_str(&escaped);
        rest = after.get(taken..).unwrap_or_default();
    }
    found + rest
}

/// What stands behind a `\`, and how many characters of it are used up.
fn escape(text: &str) -> (String, usize) {
    let plain = |text: &str| (text.to_owned(), 1);
    match text.chars().next() {
        Some('n') => plain("\n"),
        Some('t') => plain("\t"),
        Some('r') => plain("\r"),
        Some('\\') => plain("\\"),
        Some('a') => plain("\u{7}"),
        Some('"') => plain("\""),
        Some('0'..='7') => {
            let digits: String =
                text.chars().take(4).take_while(|c| ('0'..='7').contains(c)).collect();
            let value = u8::from_str_radix(&digits, 8).unwrap_or(b'?');
            (char::from(value).to_string(), digits.len())
        }
        _ => ("\\".to_owned(), 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sh::streams::Kept;

    #[test]
    fn formats_are_filled_in_and_used_again() {
        for (words, wanted) in [
            (vec!["%s-%d\\n", "a", "5"], "a-5\n"),
            (vec!["%s,", "a", "b", "c"], "a,b,c,"),
            (vec!["%5s|%-5s|%05d|%x", "a", "b", "-42", "255"], "    a|b    |-0042|ff"),
            (vec!["%.2s%%\\t\\101", "abc"], "ab%\tA"),
            (vec!["%b", "x\\ny"], "x\ny"),
            (vec!["plain", "more"], "plain"),
            (vec!["%d", ""], "0"),
        ] {
            let kept = Kept::default();
            let mut cx = Cx::of_process();
            cx.output = kept.output();
            let args: Vec<String> =
                std::iter::once("printf").chain(words).map(str::to_owned).collect();
            assert_eq!(printf(&mut cx, &args), 0);
            assert_eq!(String::from_utf8(kept.take()).unwrap(), wanted, "{args:?}");
        }
    }
}
