//! Completion indexes of an Indexed Job as its status tells them: `0,2-4,7`.

use std::fmt;

/// A set of indexes, kept as ranges: as large as its text, however many indexes it holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Indexes {
    /// First and last of each range; sorted, apart from each other by more than one.
    ranges: Vec<(u32, u32)>,
}

/// Why a text is no set of indexes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexesError {
    /// A part is no number: refuse the text.
    #[error("cannot convert string to integer for index: {0:?}")]
    NotANumber(String),
    /// A part has more than two numbers: refuse the text.
    #[error(
        "the fragment {0:?} violates the requirement that an index interval can have at most two parts separated by '-'"
    )]
    NotAnInterval(String),
    /// A part is not above the one before it, or ends before it begins: refuse the text.
    #[error("non-increasing order, previous: {0}, current: {1}")]
    NotIncreasing(u32, u32),
    /// An index is not below the number of completions: refuse the text.
    #[error("too large index: {0:?}")]
    TooLarge(String),
}

impl Indexes {
    /// Parses text in which indexes rise and all are below `completions`.
    ///
    /// # Errors
    ///
    /// What is wrong with the text.
    pub fn parse(text: &str, completions: u32) -> Result<Self, IndexesError> {
        let mut indexes = Self::default();
        if text.is_empty() {
            return Ok(indexes);
        }
        let number = |part: &str| {
            let number =
                part.parse::<u32>().map_err(|_| IndexesError::NotANumber(part.to_owned()))?;
            if number < completions {
                Ok(number)
            } else {
                Err(IndexesError::TooLarge(part.to_owned()))
            }
        };
        let mut last: Option<u32> = None;
        for part in text.split(',') {
            let mut ends = part.split('-');
            let from = number(ends.next().unwrap_or_default())?;
            let to = ends.next().map_or(Ok(from), number)?;
            if ends.next().is_some() {
                return Err(IndexesError::NotAnInterval(part.to_owned()));
            }
            if let Some(last) = last.filter(|last| from <= *last) {
                return Err(IndexesError::NotIncreasing(last, from));
            }
            if to < from {
                return Err(IndexesError::NotIncreasing(from, to));
            }
            indexes.push(from, to);
            last = Some(to);
        }
        Ok(indexes)
    }

    /// As [`Self::parse`] of what the server itself wrote: what is not below `completions`, or makes
    /// no sense, is left out.
    #[must_use]
    pub fn read(text: &str, completions: u32) -> Self {
        let Ok(all) = Self::parse(text, u32::MAX) else { return Self::default() };
        let mut indexes = Self::default();
        for (from, to) in all.ranges {
            if from < completions {
                indexes.push(from, to.min(completions.saturating_sub(1)));
            }
        }
        indexes
    }

    /// Whether `index` is in it.
    #[must_use]
    pub fn contains(&self, index: u32) -> bool {
        let at = self.ranges.partition_point(|(_, to)| *to < index);
        self.ranges.get(at).is_some_and(|(from, _)| *from <= index)
    }

    /// Adds `index`.
    pub fn insert(&mut self, index: u32) {
        if self.contains(index) {
            return;
        }
        let at = self.ranges.partition_point(|(_, to)| *to < index);
        self.ranges.insert(at, (index, index));
        let ranges = std::mem::take(&mut self.ranges);
        for (from, to) in ranges {
            self.push(from, to);
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        let of = |(from, to): &(u32, u32)| to.saturating_sub(*from) as usize + 1;
        self.ranges.iter().map(of).sum()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many are in both.
    #[must_use]
    pub fn common(&self, other: &Self) -> usize {
        let mut count = 0;
        for (from, to) in &self.ranges {
            let at = other.ranges.partition_point(|(_, end)| end < from);
            for (start, end) in other.ranges.iter().skip(at).take_while(|(start, _)| start <= to) {
                let (first, last) = (*from.max(start), *to.min(end));
                count += last.saturating_sub(first) as usize + 1;
            }
        }
        count
    }

    /// Appends a range that begins after the last one.
    fn push(&mut self, from: u32, to: u32) {
        match self.ranges.last_mut() {
            Some(last) if from <= last.1.saturating_add(1) => last.1 = last.1.max(to),
            _ => self.ranges.push((from, to)),
        }
    }
}

impl FromIterator<u32> for Indexes {
    fn from_iter<I: IntoIterator<Item = u32>>(indexes: I) -> Self {
        let mut sorted: Vec<u32> = indexes.into_iter().collect();
        sorted.sort_unstable();
        let mut set = Self::default();
        for index in sorted {
            set.push(index, index);
        }
        set
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (from, to)) in self.ranges.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match to.saturating_sub(*from) {
                0 => write!(f, "{comma}{from}")?,
                1 => write!(f, "{comma}{from},{to}")?,
                _ => write!(f, "{comma}{from}-{to}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn indexes_are_written_as_kubernetes_writes_them() {
        for (indexes, text) in [
            (vec![], ""),
            (vec![0], "0"),
            (vec![0, 1], "0,1"),
            (vec![0, 2, 3, 4], "0,2-4"),
            (vec![7, 1, 2, 3, 7, 5], "1-3,5,7"),
        ] {
            let set: Indexes = indexes.into_iter().collect();
            assert_eq!(set.to_string(), text);
            assert_eq!(Indexes::parse(text, 8), Ok(set));
        }
    }

    #[test]
    fn what_is_no_set_of_indexes_says_why() {
        for (text, why) in [
            ("x", "cannot convert"),
            ("1,", "cannot convert"),
            ("1-2-3", "at most two parts"),
            ("3-1", "non-increasing"),
            ("1,1", "non-increasing"),
            ("9", "too large"),
            ("0-8", "too large"),
        ] {
            let refused = Indexes::parse(text, 8).unwrap_err().to_string();
            assert!(refused.contains(why), "{text}: {refused}");
        }
        assert_eq!(Indexes::read("0,2-9", 4).to_string(), "0,2,3");
    }

    proptest! {
        #[test]
        fn a_set_of_indexes_is_a_set(
            a in proptest::collection::vec(0_u32..60, 0..40),
            b in proptest::collection::vec(0_u32..60, 0..40),
        ) {
            let model: BTreeSet<u32> = a.iter().copied().collect();
            let other: BTreeSet<u32> = b.iter().copied().collect();
            let mut set = Indexes::default();
            a.iter().for_each(|index| set.insert(*index));
            prop_assert_eq!(&set, &a.iter().copied().collect::<Indexes>());
            prop_assert_eq!(set.len(), model.len());
            for index in 0..60 {
                prop_assert_eq!(set.contains(index), model.contains(&index));
            }
            prop_assert_eq!(&Indexes::parse(&set.to_string(), 60).unwrap(), &set);
            let common = model.intersection(&other).count();
            prop_assert_eq!(set.common(&b.iter().copied().collect()), common);
        }
    }
}
