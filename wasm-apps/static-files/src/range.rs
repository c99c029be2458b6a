//! The header `range`, as far as one part of a file goes.

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it: no range, several ranges, or one that makes no sense and is to be ignored.
    Whole,
    /// From the first to the last byte, both included.
    Bytes { first: u64, last: u64 },
    /// None of the file's bytes.
    Outside,
}

/// Reads `bytes=A-B`, `bytes=A-` and `bytes=-N` for a file of `length` bytes.
pub(crate) fn part(range: Option<&str>, length: u64) -> Part {
    let Some((from, to)) = range
        .and_then(|range| range.trim().strip_prefix("bytes="))
        .filter(|parts| !parts.contains(','))
        .and_then(|part| part.trim().split_once('-'))
    else {
        return Part::Whole;
    };
    let (first, last) = match (from.parse::<u64>(), to.parse::<u64>()) {
        (Ok(first), Ok(last)) if first <= last => (first, last),
        (Ok(first), Err(_)) if to.is_empty() => (first, u64::MAX),
        (Err(_), Ok(0)) if from.is_empty() => return Part::Outside,
        (Err(_), Ok(count)) if from.is_empty() => (length.saturating_sub(count), u64::MAX),
        _ => return Part::Whole,
    };
    if first >= length {
        return Part::Outside;
    }
    Part::Bytes { first, last: last.min(length - 1) }
}

#[cfg(test)]
mod tests {
    use super::{Part, part};

    #[test]
    fn one_range_is_understood_and_cut_at_the_end() {
        let bytes = |first, last| Part::Bytes { first, last };
        assert_eq!(part(Some("bytes=0-3"), 10), bytes(0, 3));
        assert_eq!(part(Some("bytes=4-"), 10), bytes(4, 9));
        assert_eq!(part(Some("bytes=-3"), 10), bytes(7, 9));
        assert_eq!(part(Some("bytes=-30"), 10), bytes(0, 9));
        assert_eq!(part(Some("bytes=8-99"), 10), bytes(8, 9));
    }

    #[test]
    fn bytes_that_are_not_there_are_refused_and_nonsense_is_ignored() {
        for outside in ["bytes=10-", "bytes=-0", "bytes=99-100"] {
            assert_eq!(part(Some(outside), 10), Part::Outside, "{outside}");
        }
        assert_eq!(part(Some("bytes=0-"), 0), Part::Outside);
        for nonsense in ["bytes=3-1", "lines=0-1", "bytes=0-1,3-4", "bytes=-", "bytes=a-b"] {
            assert_eq!(part(Some(nonsense), 10), Part::Whole, "{nonsense}");
        }
        assert_eq!(part(None, 10), Part::Whole);
    }
}
