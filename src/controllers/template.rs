//! Pod templates by their hash, and numbers of pods that may be percentages.

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;

/// A hash of `template`, stable for the template, in characters that never spell a word.
///
/// The value is private to the controllers; `collisions` gives another one when the name is taken.
pub(super) fn hash(template: &impl Serialize, collisions: i32) -> String {
    const ALPHABET: &[u8; 16] = b"bcdfghjklmnpqrst";
    let mut hash = 0x811c_9dc5_u32;
    // Fields and map keys serialize in a fixed order.
    let text = serde_json::to_vec(template).unwrap_or_default();
    for byte in text.into_iter().chain(collisions.to_le_bytes()) {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    let nibbles = hash.to_be_bytes().into_iter().flat_map(|byte| [byte >> 4, byte & 15]);
    nibbles
        .filter_map(|nibble| ALPHABET.get(usize::from(nibble)).copied().map(char::from))
        .collect()
}

/// What becomes of a fraction of a pod.
#[derive(Debug, Clone, Copy)]
pub(super) enum Rounding {
    Up,
    Down,
}

/// The number of pods that `value` means of `all`; never negative.
pub(super) fn share(value: &IntOrString, all: i32, rounding: Rounding) -> i32 {
    let percent = match value {
        IntOrString::Int(number) => return (*number).max(0),
        IntOrString::String(text) => {
            text.strip_suffix('%').and_then(|number| number.parse::<i64>().ok()).unwrap_or(0)
        }
    };
    let hundredfold = percent.max(0).saturating_mul(i64::from(all));
    let whole = match rounding {
        Rounding::Up => hundredfold.saturating_add(99) / 100,
        Rounding::Down => hundredfold / 100,
    };
    i32::try_from(whole).unwrap_or(i32::MAX)
}

/// A count as statuses have it.
pub(super) fn count(n: usize) -> i32 {
    i32::try_from(n).unwrap_or(i32::MAX)
}
