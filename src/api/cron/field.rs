//! One field of a schedule: the numbers it names.

/// What a field may name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    min: u8,
    max: u8,
    /// Words for the numbers from `min` on.
    names: &'static [&'static str],
}

pub(super) const MINUTES: Bounds = Bounds { min: 0, max: 59, names: &[] };
pub(super) const HOURS: Bounds = Bounds { min: 0, max: 23, names: &[] };
pub(super) const DAYS: Bounds = Bounds { min: 1, max: 31, names: &[] };
pub(super) const MONTHS: Bounds = Bounds {
    min: 1,
    max: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
pub(super) const WEEKDAYS: Bounds =
    Bounds { min: 0, max: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

/// The numbers a field names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field {
    /// Bit n stands for n.
    bits: u64,
    /// It names all, by a star.
    pub(super) is_star: bool,
}

impl Field {
    /// Whether it names `number`.
    pub(super) fn has(self, number: i8) -> bool {
        u32::try_from(number).is_ok_and(|n| self.bits.checked_shr(n).is_some_and(|b| b & 1 == 1))
    }

    /// Parses `*`, `?`, `1`, `1-5`, `*/5`, `10/5`, `1-20/3`, and lists of them.
    pub(super) fn parse(text: &str, bounds: Bounds) -> Result<Self, String> {
        let mut field = Self { bits: 0, is_star: false };
        for part in text.split(',') {
            let one = Self::part(part, bounds)?;
            field.bits |= one.bits;
            field.is_star |= one.is_star;
        }
        Ok(field)
    }

    fn part(text: &str, bounds: Bounds) -> Result<Self, String> {
        let (range, step) = match text.split_once('/') {
            Some((range, step)) => (range, Some(number(step)?)),
            None => (text, None),
        };
        if step == Some(0) {
            return Err(format!("step of range should be a positive number: {text}"));
        }
        let is_star = matches!(range, "*" | "?");
        let (from, to) = if is_star {
            (bounds.min, bounds.max)
        } else if let Some((from, to)) = range.split_once('-') {
            (bounds.value(from)?, bounds.value(to)?)
        } else {
            let from = bounds.value(range)?;
            // `10/5` goes on to the end.
            (from, if step.is_some() { bounds.max } else { from })
        };
        if from < bounds.min {
            let min = bounds.min;
            return Err(format!("beginning of range ({from}) below minimum ({min}): {text}"));
        }
        if to > bounds.max {
            let max = bounds.max;
            return Err(format!("end of range ({to}) above maximum ({max}): {text}"));
        }
        if from > to {
            return Err(format!("beginning of range ({from}) beyond end of range ({to}): {text}"));
        }
        let step = step.unwrap_or(1);
        let bits = (from..=to).step_by(usize::from(step)).fold(0, |bits, n| bits | (1_u64 << n));
        // A star with a step is a restriction like any other.
        Ok(Self { bits, is_star: is_star && step == 1 })
    }
}

impl Bounds {
    fn value(self, text: &str) -> Result<u8, String> {
        let lower = text.to_lowercase();
        match self.names.iter().position(|name| *name == lower) {
            Some(at) => Ok(self.min.saturating_add(u8::try_from(at).unwrap_or(u8::MAX))),
            None => number(text),
        }
    }
}

fn number(text: &str) -> Result<u8, String> {
    let is_number = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    let parsed = text.parse::<u8>().ok().filter(|_| is_number);
    parsed.ok_or_else(|| format!("failed to parse int from {text}"))
}
