//! `expr` (POSIX): numbers, comparisons and parts of texts, a word each.

use crate::cx::Cx;
use crate::pattern;

/// How deep parentheses may be nested.
const DEPTH_MAX: usize = 64;
/// Operators of two sides, by rank: what binds less comes first.
const RANKS: [&[&str]; 6] = [
    &["|"],
    &["&"],
    &["=", "==", "!=", "<", "<=", ">", ">="],
    &["+", "-"],
    &["*", "/", "%"],
    &[":"],
];

/// `expr EXPRESSION`: writes what it comes to; 1 if that is nothing or 0, 2 if it is none.
pub fn main(cx: &mut Cx, args: &[String]) -> i32 {
    let words = args.get(1..).unwrap_or_default();
    let words = words.strip_prefix(&["--".to_owned()]).unwrap_or(words);
    let mut reader = Reader { words, depth: 0 };
    let value = reader.rank(0).and_then(|value| match reader.words.first() {
        None => Ok(value),
        Some(_) => Err("syntax error".to_owned()),
    });
    match value {
        Ok(value) => {
            cx.line(&value);
            i32::from(is_nothing(&value))
        }
        Err(why) => {
            cx.say(&format!("expr: {why}"));
            2
        }
    }
}

fn is_nothing(value: &str) -> bool {
    value.is_empty() || value.parse() == Ok(0_i64)
}

struct Reader<'a> {
    words: &'a [String],
    depth: usize,
}

impl Reader<'_> {
    fn next(&mut self) -> Result<String, String> {
        let (first, rest) = self.words.split_first().ok_or("syntax error")?;
        self.words = rest;
        Ok(first.clone())
    }

    /// The operator of this rank that comes next.
    fn operator(&mut self, rank: usize) -> Option<&'static str> {
        let known = RANKS.get(rank)?;
        let found = known.iter().copied().find(|op| self.words.first().is_some_and(|w| w == op))?;
        self.words = self.words.get(1..)?;
        Some(found)
    }

    fn rank(&mut self, rank: usize) -> Result<String, String> {
        if rank == RANKS.len() {
            return self.primary();
        }
        let mut left = self.rank(rank + 1)?;
        while let Some(operator) = self.operator(rank) {
            let right = self.rank(rank + 1)?;
            left = apply(operator, left, &right)?;
        }
        Ok(left)
    }

    fn primary(&mut self) -> Result<String, String> {
        let word = self.next()?;
        let has_more = !self.words.is_empty();
        match word.as_str() {
            "(" => {
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    return Err("too many parentheses".to_owned());
                }
                let value = self.rank(0)?;
                self.depth -= 1;
                if self.next()? == ")" { Ok(value) } else { Err("syntax error".to_owned()) }
            }
            ")" => Err("syntax error".to_owned()),
            "length" if has_more => Ok(self.next()?.chars().count().to_string()),
            "match" if has_more => {
                let (text, pattern) = (self.next()?, self.next()?);
                matched(&text, &pattern)
            }
            "index" if has_more => {
                let (text, wanted) = (self.next()?, self.next()?);
                let at = text.chars().position(|c| wanted.contains(c));
                Ok(at.map_or(0, |at| at + 1).to_string())
            }
            "substr" if has_more => {
                let (text, from, count) = (self.next()?, self.next()?, self.next()?);
                let place = |text: &str| text.parse::<usize>().unwrap_or(0);
                let Some(skipped) = place(&from).checked_sub(1) else { return Ok(String::new()) };
                Ok(text.chars().skip(skipped).take(place(&count)).collect())
            }
            _ => Ok(word),
        }
    }
}

fn apply(operator: &str, left: String, right: &str) -> Result<String, String> {
    let truth = |is_so: bool| Ok(i32::from(is_so).to_string());
    let order = match (left.parse::<i64>(), right.parse::<i64>()) {
        (Ok(left), Ok(right)) => left.cmp(&right),
        _ => left.as_str().cmp(right),
    };
    match operator {
        "|" if !is_nothing(&left) => Ok(left),
        "|" if is_nothing(right) => Ok("0".to_owned()),
        "|" => Ok(right.to_owned()),
        "&" if is_nothing(&left) || is_nothing(right) => Ok("0".to_owned()),
        "&" => Ok(left),
        "=" | "==" => truth(order.is_eq()),
        "!=" => truth(order.is_ne()),
        "<" => truth(order.is_lt()),
        "<=" => truth(order.is_le()),
        ">" => truth(order.is_gt()),
        ">=" => truth(order.is_ge()),
        ":" => matched(&left, right),
        _ => compute(operator, &left, right),
    }
}

fn compute(operator: &str, left: &str, right: &str) -> Result<String, String> {
    let number = |text: &str| text.parse::<i64>().map_err(|_| "non-integer argument".to_owned());
    let (left, right) = (number(left)?, number(right)?);
    if right == 0 && matches!(operator, "/" | "%") {
        return Err("division by zero".to_owned());
    }
    let value = match operator {
        "+" => left.checked_add(right),
        "-" => left.checked_sub(right),
        "*" => left.checked_mul(right),
        "/" => left.checked_div(right),
        _ => left.checked_rem(right),
    };
    value.map(|value| value.to_string()).ok_or_else(|| "the number is too large".to_owned())
}

/// What the first group of a pattern matches, or how many characters all of it does, from the start on.
fn matched(text: &str, pattern: &str) -> Result<String, String> {
    let regex = pattern::compile(pattern, false, false)?;
    let found = regex.captures(text).filter(|all| all.get(0).is_some_and(|all| all.start() == 0));
    let has_groups = regex.captures_len() > 1;
    Ok(match found {
        Some(all) if has_groups => all.get(1).map_or("", |group| group.as_str()).to_owned(),
        Some(all) => all.get(0).map_or(0, |all| all.as_str().chars().count()).to_string(),
        None if has_groups => String::new(),
        None => "0".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sh::streams::{Kept, Output};

    #[test]
    fn expressions_come_to_what_posix_says() {
        for (line, code, wanted) in [
            ("1 + 2 * 3", 0, "7"),
            ("( 1 + 2 ) * 3", 0, "9"),
            ("7 % 4 - 3", 1, "0"),
            ("2 < 10", 0, "1"),
            ("b < a", 1, "0"),
            ("a = a", 0, "1"),
            ("0 | x", 0, "x"),
            ("3 & 0", 1, "0"),
            ("length hello", 0, "5"),
            ("substr hello 2 3", 0, "ell"),
            ("index hello lo", 0, "3"),
            ("app-12 : .*-\\([0-9]*\\)", 0, "12"),
            ("abc : b", 1, "0"),
            ("abc : a.", 0, "2"),
            ("length", 0, "length"),
            ("1 / 0", 2, ""),
            ("x + 1", 2, ""),
            ("1 +", 2, ""),
            ("( 1", 2, ""),
            ("1 2", 2, ""),
            ("9223372036854775807 + 1", 2, ""),
        ] {
            let kept = Kept::default();
            let mut cx = Cx::of_process();
            (cx.output, cx.error) = (kept.output(), Output::new(std::io::sink()));
            let words = std::iter::once("expr").chain(line.split(' ')).map(str::to_owned);
            let found = main(&mut cx, &words.collect::<Vec<_>>());
            let text = String::from_utf8(kept.take()).unwrap();
            assert_eq!((found, text.trim_end()), (code, wanted), "{line}");
        }
    }
}
