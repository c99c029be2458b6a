//! Quantities: `250m`, `64Mi`, `1e3`.

use std::fmt;
use std::str::FromStr;

/// Why a text is no quantity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "quantities must match the regular expression \
     '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'"
)]
pub struct QuantityError;

/// Bytes that the text of a quantity may have; longer is not an amount anybody means.
const TEXT_BYTES_MAX: usize = 40;
/// Largest power of ten or, in absolute value, smallest that an exponent may name.
const EXPONENT_MAX: i32 = 18;
const NANOS_PER_UNIT: i128 = 1_000_000_000;

/// An exact amount with the notation it came in.
///
/// Compare amounts with [`Quantity::nanos`]; equality also compares the notation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quantity {
    nanos: i128,
    notation: Notation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Notation {
    Decimal,
    Binary,
    Exponent,
}

const DECIMAL: [(&str, i32); 10] = [
    ("E", 18),
    ("P", 15),
    ("T", 12),
    ("G", 9),
    ("M", 6),
    ("k", 3),
    ("", 0),
    ("m", -3),
    ("u", -6),
    ("n", -9),
];
const BINARY: [(&str, u32); 6] =
    [("Ei", 60), ("Pi", 50), ("Ti", 40), ("Gi", 30), ("Mi", 20), ("Ki", 10)];

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self { nanos: 0, notation: Notation::Decimal };

    /// So many of something.
    #[must_use]
    pub const fn of_count(count: u32) -> Self {
        // A `u32` times a billion is far from the end of an `i128`.
        Self { nanos: (count as i128) * NANOS_PER_UNIT, notation: Notation::Decimal }
    }

    /// Both together, in the notation of the first that is something.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let notation = if self.nanos == 0 { other.notation } else { self.notation };
        Self { nanos: self.nanos.saturating_add(other.nanos), notation }
    }

    /// What is left of it; never less than nothing.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self { nanos: self.nanos.saturating_sub(other.nanos).max(0), notation: self.notation }
    }

    /// The larger of both.
    #[must_use]
    pub const fn or_more(self, other: Self) -> Self {
        if other.nanos > self.nanos { other } else { self }
    }

    /// The amount in billionths.
    #[must_use]
    pub const fn nanos(self) -> i128 {
        self.nanos
    }

    /// The amount in thousandths, rounded up; cut to what fits.
    #[must_use]
    pub fn millis(self) -> i64 {
        clamp(div_up(self.nanos, NANOS_PER_UNIT / 1000))
    }

    /// The amount, rounded up; cut to what fits.
    #[must_use]
    pub fn units(self) -> i64 {
        clamp(div_up(self.nanos, NANOS_PER_UNIT))
    }
}

fn clamp(n: i128) -> i64 {
    i64::try_from(n).unwrap_or(if n < 0 { i64::MIN } else { i64::MAX })
}

/// Division that rounds towards positive infinity; `by` is positive.
fn div_up(n: i128, by: i128) -> i128 {
    n.div_euclid(by) + i128::from(n.rem_euclid(by) != 0)
}

impl FromStr for Quantity {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        if text.len() > TEXT_BYTES_MAX {
            return Err(QuantityError);
        }
        let (is_negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let end =
            unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(QuantityError);
        }
        let (multiplier, divisor, notation) = scale_of(suffix)?;
        let digits = format!("{whole}{fraction}");
        let mantissa: i128 = digits.parse().map_err(|_| QuantityError)?;
        let fraction_len = u32::try_from(fraction.len()).map_err(|_| QuantityError)?;
        let divisor = 10_i128
            .checked_pow(fraction_len)
            .and_then(|p| p.checked_mul(divisor))
            .ok_or(QuantityError)?;
        let scaled = mantissa.checked_mul(multiplier).ok_or(QuantityError)?;
        // Finer than a billionth rounds away from zero, so nothing asked for becomes nothing.
        let nanos = div_up(scaled, divisor);
        Ok(Self { nanos: if is_negative { -nanos } else { nanos }, notation })
    }
}

/// What to multiply a number with, and to divide it by, to get billionths.
fn scale_of(suffix: &str) -> Result<(i128, i128, Notation), QuantityError> {
    if let Some((_, power)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Ok((NANOS_PER_UNIT << power, 1, Notation::Binary));
    }
    let (power, notation) = match DECIMAL.iter().find(|(name, _)| *name == suffix) {
        Some((_, power)) => (*power, Notation::Decimal),
        None => {
            let digits = suffix.strip_prefix(['e', 'E']).ok_or(QuantityError)?;
            let power: i32 = digits.parse().map_err(|_| QuantityError)?;
            (power, Notation::Exponent)
        }
    };
    if power.abs() > EXPONENT_MAX {
        return Err(QuantityError);
    }
    let shift = power + 9;
    let magnitude = 10_i128.pow(shift.unsigned_abs());
    Ok(if shift >= 0 { (magnitude, 1, notation) } else { (1, magnitude, notation) })
}

impl fmt::Display for Quantity {
    /// Kubernetes' canonical form: no fraction, the largest suffix that allows it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let is_whole = self.nanos % NANOS_PER_UNIT == 0;
        // Small or broken amounts have no binary suffix that fits.
        if self.notation == Notation::Binary && is_whole {
            let units = self.nanos / NANOS_PER_UNIT;
            return match BINARY.iter().find(|(_, power)| units % (1_i128 << power) == 0) {
                Some((name, power)) => write!(f, "{}{name}", units >> power),
                None => write!(f, "{units}"),
            };
        }
        for (name, power) in DECIMAL {
            let unit = 10_i128.pow((power + 9).unsigned_abs());
            if self.nanos % unit == 0 {
                let mantissa = self.nanos / unit;
                return match self.notation {
                    Notation::Exponent if power != 0 => write!(f, "{mantissa}e{power}"),
                    _ => write!(f, "{mantissa}{name}"),
                };
            }
        }
        write!(f, "{}n", self.nanos)
    }
}

/// Thousandths of a CPU, rounded up.
///
/// # Errors
///
/// When `text` is no quantity.
pub fn parse_cpu_millis(text: &str) -> Result<i64, QuantityError> {
    Ok(text.parse::<Quantity>()?.millis())
}

/// Bytes, or whole units of anything countable, rounded up.
///
/// # Errors
///
/// When `text` is no quantity.
pub fn parse_bytes(text: &str) -> Result<i64, QuantityError> {
    Ok(text.parse::<Quantity>()?.units())
}

/// `250m`, `2`.
#[must_use]
pub fn format_cpu_millis(millis: i64) -> String {
    if millis % 1000 == 0 { (millis / 1000).to_string() } else { format!("{millis}m") }
}

/// `64Mi`, `1000`: the largest binary suffix without a fraction.
#[must_use]
pub fn format_bytes(bytes: i64) -> String {
    let nanos = i128::from(bytes) * NANOS_PER_UNIT;
    Quantity { nanos, notation: Notation::Binary }.to_string()
}

/// The text in canonical form.
///
/// # Errors
///
/// When `text` is no quantity.
pub fn canonical(text: &str) -> Result<String, QuantityError> {
    Ok(text.parse::<Quantity>()?.to_string())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn amounts_are_read() {
        for (text, millis) in [
            ("250m", 250),
            ("1", 1000),
            ("0.5", 500),
            (".5", 500),
            ("2.", 2000),
            ("1e3", 1_000_000),
            ("1E3", 1_000_000),
            ("1k", 1_000_000),
            ("100u", 1),
            ("1n", 1),
            ("-250m", -250),
            ("+1", 1000),
        ] {
            assert_eq!(parse_cpu_millis(text), Ok(millis), "{text}");
        }
        for (text, bytes) in [
            ("64Mi", 64 << 20),
            ("1.5Gi", 3 << 29),
            ("1G", 1_000_000_000),
            ("1E", 1_000_000_000_000_000_000),
            ("100m", 1),
            ("0", 0),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "m", "1.2.3", "1x", "1 Gi", "e3", "1e", "1e99", "--1", ".", "1mi", "1K"] {
            assert!(text.parse::<Quantity>().is_err(), "{text}");
        }
        assert!("9".repeat(50).parse::<Quantity>().is_err());
    }

    #[test]
    fn the_canonical_form_is_that_of_kubernetes() {
        for (text, canonical_text) in [
            ("1000m", "1"),
            ("0.5", "500m"),
            ("1500m", "1500m"),
            ("1000", "1k"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Ki", "512"),
            ("1000Ki", "1000Ki"),
            ("0Mi", "0"),
            ("1e3", "1e3"),
            ("1000e3", "1e6"),
            ("-0.1", "-100m"),
        ] {
            assert_eq!(canonical(text).as_deref(), Ok(canonical_text), "{text}");
        }
        assert_eq!(format_bytes(64 << 20), "64Mi");
        assert_eq!(format_bytes(1000), "1000");
        assert_eq!(format_cpu_millis(1500), "1500m");
        assert_eq!(format_cpu_millis(2000), "2");
    }

    #[test]
    fn amounts_are_added_in_the_notation_they_came_in() {
        let of = |text: &str| text.parse::<Quantity>().unwrap();
        assert_eq!(Quantity::ZERO.plus(of("64Mi")).plus(of("64Mi")).to_string(), "128Mi");
        assert_eq!(of("500m").plus(of("0.5")).to_string(), "1");
        assert_eq!(of("1").minus(of("2")).to_string(), "0");
        assert_eq!(Quantity::of_count(1000).to_string(), "1k");
        assert_eq!(of("1").or_more(of("1500m")).to_string(), "1500m");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[-+0-9.eEinumkKMGTP]{0,45}") {
            if let Ok(quantity) = text.parse::<Quantity>() {
                let again: Quantity = quantity.to_string().parse().unwrap();
                prop_assert_eq!(again.nanos(), quantity.nanos());
            }
        }
    }
}
