//! Command lines as Go's flag libraries read them: `--name value`, `--name=value`, `-n value`, and
//! `--name` alone for what is yes or no. Everything else are words.

use std::time::Duration;

/// A flag that a subcommand knows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flag {
    /// Without dashes.
    pub(crate) name: &'static str,
    /// One letter, or nothing.
    pub(crate) short: &'static str,
    /// Whether it stands alone when it means yes.
    pub(crate) is_switch: bool,
}

/// A flag with a value.
pub(crate) const fn value(name: &'static str) -> Flag {
    Flag { name, short: "", is_switch: false }
}

/// A flag that means yes when it stands alone.
pub(crate) const fn switch(name: &'static str) -> Flag {
    Flag { name, short: "", is_switch: true }
}

/// What was given.
#[derive(Debug, Default)]
pub(crate) struct Given {
    flags: Vec<(&'static str, String)>,
    /// Words that are no flags.
    pub(crate) words: Vec<String>,
}

impl Given {
    /// Reads arguments; a sentence for the user when one is not known or has no value.
    pub(crate) fn read(args: &[String], known: &[Flag]) -> Result<Self, String> {
        let mut given = Self::default();
        let mut args = args.iter();
        while let Some(arg) = args.next() {
            let Some(name) = arg.strip_prefix('-').filter(|name| !name.is_empty()) else {
                given.words.push(arg.clone());
                continue;
            };
            if name == "-" {
                given.words.extend(args.cloned());
                break;
            }
            let name = name.strip_prefix('-').unwrap_or(name);
            let (name, inline) = match name.split_once('=') {
                Some((name, text)) => (name, Some(text.to_owned())),
                None => (name, None),
            };
            let flag = known
                .iter()
                .find(|flag| flag.name == name || (flag.short == name && !flag.short.is_empty()))
                .ok_or_else(|| format!("unknown flag: {arg}"))?;
            let text = match inline {
                Some(text) => text,
                None if flag.is_switch => "true".to_owned(),
                None => args.next().cloned().ok_or_else(|| format!("flag needs a value: {arg}"))?,
            };
            given.flags.push((flag.name, text));
        }
        Ok(given)
    }

    /// The last value of a flag.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.flags.iter().rev().find(|(known, _)| *known == name).map(|(_, text)| text.as_str())
    }

    /// All values of a flag.
    pub(crate) fn texts(&self, name: &str) -> impl Iterator<Item = &str> {
        self.flags.iter().filter(move |(known, _)| *known == name).map(|(_, text)| text.as_str())
    }

    /// A number.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str, default: T) -> Result<T, String> {
        let Some(text) = self.text(name) else { return Ok(default) };
        text.parse().map_err(|_| format!("--{name}: {text} is not a number that fits"))
    }

    /// Yes or no.
    pub(crate) fn is_set(&self, name: &str, default: bool) -> Result<bool, String> {
        match self.text(name) {
            None => Ok(default),
            Some("true" | "1" | "t" | "T" | "TRUE" | "True") => Ok(true),
            Some("false" | "0" | "f" | "F" | "FALSE" | "False") => Ok(false),
            Some(text) => Err(format!("--{name}: {text} is neither true nor false")),
        }
    }

    /// A time like `1m30s`.
    pub(crate) fn duration(&self, name: &str) -> Result<Option<Duration>, String> {
        let Some(text) = self.text(name) else { return Ok(None) };
        duration(text).map(Some).ok_or_else(|| format!("--{name}: {text} is not a duration"))
    }
}

/// Reads Go's durations: numbers with units, for example `1h2m`, `1.5s` or `300ms`.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let split = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(split);
        let split = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, next) = after.split_at(split);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let number: f64 = number.parse().ok()?;
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = next;
    }
    (!text.is_empty()).then_some(total)
}
