//! `$((..))` (POSIX shell, 2.6.4): whole numbers of 64 bits, variables and assignments.

use std::collections::BTreeMap;

/// How deep parentheses may be nested.
const DEPTH_MAX: usize = 64;
/// Operators of two sides, by rank: what binds less comes first.
const RANKS: [&[&str]; 10] = [
    &["||"],
    &["&&"],
    &["|"],
    &["^"],
    &["&"],
    &["==", "!="],
    &["<=", ">=", "<", ">"],
    &["<<", ">>"],
    &["+", "-"],
    &["*", "/", "%"],
];
const ASSIGNMENTS: [&str; 6] = ["+=", "-=", "*=", "/=", "%=", "="];

/// What an expression comes to. Assignments are made in `variables`.
pub fn evaluate(text: &str, variables: &mut BTreeMap<String, String>) -> Result<i64, String> {
    let mut reader = Reader { rest: text.trim(), variables, depth: 0, is_idle: false };
    if reader.rest.is_empty() {
        return Ok(0);
    }
    let value = reader.choice()?;
    if reader.rest.is_empty() {
        Ok(value)
    } else {
        Err(format!("arithmetic: unexpected {:?}", reader.rest))
    }
}

struct Reader<'a> {
    rest: &'a str,
    variables: &'a mut BTreeMap<String, String>,
    depth: usize,
    /// What is read does not count: the other side has decided.
    is_idle: bool,
}

impl<'a> Reader<'a> {
    fn skip(&mut self, text: &str) -> bool {
        let found = self.rest.strip_prefix(text);
        self.rest = found.unwrap_or(self.rest).trim_start();
        found.is_some()
    }

    /// `TEST ? YES : NO`, or less.
    fn choice(&mut self) -> Result<i64, String> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err("arithmetic: nested too deep".to_owned());
        }
        let test = self.ranked(0)?;
        let mut value = test;
        if self.skip("?") {
            let yes = self.idle_if(test == 0, Self::choice)?;
            if !self.skip(":") {
                return Err("arithmetic: expected ':'".to_owned());
            }
            let no = self.idle_if(test != 0, Self::choice)?;
            value = if test != 0 { yes } else { no };
        }
        self.depth -= 1;
        Ok(value)
    }

    fn idle_if(
        &mut self,
        is_idle: bool,
        read: impl Fn(&mut Self) -> Result<i64, String>,
    ) -> Result<i64, String> {
        let before = self.is_idle;
        self.is_idle |= is_idle;
        let value = read(self);
        self.is_idle = before;
        value
    }

    fn ranked(&mut self, rank: usize) -> Result<i64, String> {
        let Some(operators) = RANKS.get(rank) else { return self.single() };
        let mut left = self.ranked(rank + 1)?;
        while let Some(operator) = self.operator(operators) {
            let decided = (operator == "||" && left != 0) || (operator == "&&" && left == 0);
            let right = self.idle_if(decided, |reader| reader.ranked(rank + 1))?;
            let is_idle = self.is_idle;
            left =
                if decided { i64::from(left != 0) } else { apply(operator, left, right, is_idle)? };
        }
        Ok(left)
    }

    /// The next operator, if it is one of these: not when it is the beginning of a longer one.
    fn operator(&mut self, operators: &[&'static str]) -> Option<&'static str> {
        let found = operators.iter().copied().find(|operator| {
            self.rest.strip_prefix(operator).is_some_and(|after| {
                let is_longer = match *operator {
                    "|" | "&" => after.starts_with(*operator) || after.starts_with('='),
                    "<" | ">" => after.starts_with(*operator),
                    "+" | "-" | "*" | "/" | "%" | "^" => after.starts_with('='),
                    _ => false,
                };
                !is_longer
            })
        })?;
        self.skip(found);
        Some(found)
    }

    fn single(&mut self) -> Result<i64, String> {
        for step in ["++", "--"] {
            if self.skip(step) {
                let name = self.name().ok_or("arithmetic: expected a variable")?;
                let value = self.value(name)?.wrapping_add(if step == "++" { 1 } else { -1 });
                return Ok(self.assign(name, value));
            }
        }
        for sign in ["!", "~", "-", "+"] {
            if self.skip(sign) {
                self.depth += 1;
                if self.depth > DEPTH_MAX {
                    return Err("arithmetic: nested too deep".to_owned());
                }
                let value = self.single()?;
                self.depth -= 1;
                return Ok(match sign {
                    "!" => i64::from(value == 0),
                    "~" => !value,
                    "-" => value.wrapping_neg(),
                    _ => value,
                });
            }
        }
        if self.skip("(") {
            let value = self.choice()?;
            return if self.skip(")") {
                Ok(value)
            } else {
                Err("arithmetic: expected ')'".to_owned())
            };
        }
        if let Some(name) = self.name() {
            return self.variable(name);
        }
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(self.rest.len());
        let (digits, _) = self.rest.split_at(end);
        if digits.is_empty() {
            return Err(format!("arithmetic: expected a number, not {:?}", self.rest));
        }
        let value = number(digits).ok_or_else(|| format!("arithmetic: {digits:?} is no number"))?;
        self.skip(digits);
        Ok(value)
    }

    fn name(&mut self) -> Option<&'a str> {
        let rest = self.rest;
        let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let (name, _) = rest.split_at(end);
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
            return None;
        }
        self.skip(name);
        Some(name)
    }

    /// A variable, with an assignment behind it or not.
    fn variable(&mut self, name: &str) -> Result<i64, String> {
        for (step, by) in [("++", 1), ("--", -1)] {
            if self.skip(step) {
                let value = self.value(name)?;
                self.assign(name, value.wrapping_add(by));
                return Ok(value);
            }
        }
        if self.rest.starts_with("==") {
            return self.value(name);
        }
        let Some(operator) = ASSIGNMENTS.into_iter().find(|operator| self.skip(operator)) else {
            return self.value(name);
        };
        let right = self.choice()?;
        let value = match operator.strip_suffix('=') {
            Some("") | None => right,
            Some(operator) => {
                let left = self.value(name)?;
                apply(operator, left, right, self.is_idle)?
            }
        };
        Ok(self.assign(name, value))
    }

    fn value(&self, name: &str) -> Result<i64, String> {
        let text = self.variables.get(name).map_or("", |text| text.trim());
        if text.is_empty() {
            return Ok(0);
        }
        let (is_negative, digits) = match text.strip_prefix('-') {
            Some(digits) => (true, digits),
            None => (false, text),
        };
        let value = number(digits).ok_or_else(|| format!("arithmetic: {text:?} is no number"))?;
        Ok(if is_negative { value.wrapping_neg() } else { value })
    }

    fn assign(&mut self, name: &str, value: i64) -> i64 {
        if !self.is_idle {
            self.variables.insert(name.to_owned(), value.to_string());
        }
        value
    }
}

fn number(digits: &str) -> Option<i64> {
    if let Some(hex) = digits.strip_prefix("0x").or_else(|| digits.strip_prefix("0X")) {
        return i64::from_str_radix(hex, 16).ok();
    }
    match digits.strip_prefix('0').filter(|rest| !rest.is_empty()) {
        Some(octal) => i64::from_str_radix(octal, 8).ok(),
        None => digits.parse().ok(),
    }
}

fn apply(operator: &str, left: i64, right: i64, is_idle: bool) -> Result<i64, String> {
    if matches!(operator, "/" | "%") && right == 0 {
        return if is_idle { Ok(0) } else { Err("arithmetic: division by zero".to_owned()) };
    }
    let shift = u32::try_from(right & 63).unwrap_or(0);
    Ok(match operator {
        "||" => i64::from(left != 0 || right != 0),
        "&&" => i64::from(left != 0 && right != 0),
        "|" => left | right,
        "^" => left ^ right,
        "&" => left & right,
        "==" => i64::from(left == right),
        "!=" => i64::from(left != right),
        "<" => i64::from(left < right),
        "<=" => i64::from(left <= right),
        ">" => i64::from(left > right),
        ">=" => i64::from(left >= right),
        "<<" => left.wrapping_shl(shift),
        ">>" => left.wrapping_shr(shift),
        "+" => left.wrapping_add(right),
        "-" => left.wrapping_sub(right),
        "*" => left.wrapping_mul(right),
        "/" => left.wrapping_div(right),
        _ => left.wrapping_rem(right),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_come_to_what_a_posix_shell_says() {
        let mut variables: BTreeMap<String, String> =
            [("i", "5"), ("n", "-3"), ("bad", "x")].map(|(k, v)| (k.into(), v.into())).into();
        for (text, wanted) in [
            ("1 + 2 * 3", 7),
            ("(1 + 2) * 3", 9),
            ("-2 - -3", 1),
            ("7 / 2 + 7 % 2", 4),
            ("1 << 4 | 1", 17),
            ("2 > 1 && 1 >= 1", 1),
            ("i == 5 ? 10 : 20", 10),
            ("!i || 0", 0),
            ("0x10 + 010", 24),
            ("i++ + i", 11),
            ("i", 6),
            ("i += 4", 10),
            ("n * 2", -6),
            ("none", 0),
            ("0 && (i = 99)", 0),
            ("i", 10),
            ("1 || 1 / 0", 1),
            ("", 0),
            ("3 - 1 - 1", 1),
        ] {
            assert_eq!(evaluate(text, &mut variables), Ok(wanted), "{text}");
        }
        for text in ["1 +", "1 / 0", "(1", "1 2", "bad + 1", "08"] {
            assert!(evaluate(text, &mut variables).is_err(), "{text}");
        }
        assert!(evaluate(&"(".repeat(1000), &mut variables).is_err());
    }
}
