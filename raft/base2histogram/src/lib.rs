//! A histogram of unsigned integers with one bucket per power of two: 65 counters, no tables.
//! Percentiles are exact to within a factor of two.

use std::fmt;
use std::marker::PhantomData;

/// Bucket 0 holds the zeroes, bucket `i` the values in `2^(i-1)..2^i`.
const BUCKETS: usize = u64::BITS as usize + 1;

/// Counts of values, by power of two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram<T = ()> {
    counts: [u64; BUCKETS],
    period: PhantomData<T>,
}

impl<T> Default for Histogram<T> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T> Histogram<T> {
    /// An empty histogram.
    pub const fn new() -> Self {
        Self { counts: [0; BUCKETS], period: PhantomData }
    }

    /// Counts `value` once.
    pub fn record(&mut self, value: u64) {
        self.record_n(value, 1);
    }

    /// Counts `value` `count` times; a counter stays at `u64::MAX` once it is there.
    pub fn record_n(&mut self, value: u64, count: u64) {
        let bucket = (u64::BITS - value.leading_zeros()) as usize;
        if let Some(counter) = self.counts.get_mut(bucket) {
            *counter = counter.saturating_add(count);
        }
    }

    /// How many values were counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The least value of the bucket below which, or in which, `permille` thousandths of the values
    /// lie; 0 for an empty histogram.
    pub fn percentile(&self, permille: u64) -> u64 {
        let wanted = u128::from(self.total()) * u128::from(permille);
        let mut seen = 0_u128;
        for (bucket, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            seen += u128::from(*count);
            if seen * 1000 >= wanted {
                return least_of(bucket);
            }
        }
        0
    }

    /// The percentiles that a person looks at.
    pub fn percentile_stats(&self) -> PercentileStats {
        PercentileStats {
            samples: self.total(),
            p0_1: self.percentile(1),
            p1: self.percentile(10),
            p5: self.percentile(50),
            p10: self.percentile(100),
            p50: self.percentile(500),
            p90: self.percentile(900),
            p99: self.percentile(990),
            p99_9: self.percentile(999),
        }
    }
}

fn least_of(bucket: usize) -> u64 {
    match bucket {
        0 => 0,
        bucket => 1 << (bucket - 1),
    }
}

/// Percentiles of a [`Histogram`], in the unit of its values; `p0_1` is the 0.1th.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is the percentile of its name")]
pub struct PercentileStats {
    /// How many values were counted.
    pub samples: u64,
    pub p0_1: u64,
    pub p1: u64,
    pub p5: u64,
    pub p10: u64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
}

impl fmt::Display for PercentileStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} samples, p0.1 {}, p1 {}, p5 {}, p10 {}, p50 {}, p90 {}, p99 {}, p99.9 {}",
            self.samples,
            self.p0_1,
            self.p1,
            self.p5,
            self.p10,
            self.p50,
            self.p90,
            self.p99,
            self.p99_9
        )
    }
}

/// Several histograms below each other, a line per bucket that is not empty.
#[derive(Clone, Debug, Default)]
pub struct AsciiChart {
    rows: Vec<(String, Histogram)>,
}

impl AsciiChart {
    /// An empty chart.
    pub const fn new() -> Self {
        Self { rows: Vec::new() }
    }

    /// Adds a histogram under `label`.
    #[must_use]
    pub fn add(mut self, label: impl Into<String>, histogram: Histogram) -> Self {
        self.rows.push((label.into(), histogram));
        self
    }
}

impl fmt::Display for AsciiChart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (label, histogram) in &self.rows {
            writeln!(f, "{label}")?;
            let counts = histogram.counts.iter().enumerate();
            for (bucket, count) in counts.filter(|(_, count)| **count > 0) {
                writeln!(f, "  >= {:<20} {count}", least_of(bucket))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_the_least_value_of_their_bucket() {
        let mut histogram: Histogram = Histogram::new();
        histogram.record_n(1, 900);
        histogram.record_n(5, 90);
        histogram.record_n(u64::MAX, 10);
        let stats = histogram.percentile_stats();
        assert_eq!(stats.samples, 1000);
        assert_eq!((stats.p1, stats.p50, stats.p90), (1, 1, 1));
        assert_eq!((stats.p99, stats.p99_9), (4, 1 << 63));
    }

    #[test]
    fn an_empty_histogram_is_all_zeroes() {
        let stats = Histogram::<()>::new().percentile_stats();
        assert_eq!((stats.samples, stats.p0_1, stats.p99_9), (0, 0, 0));
    }

    #[test]
    fn a_chart_names_each_bucket_in_use() {
        let mut histogram = Histogram::new();
        histogram.record(0);
        histogram.record_n(300, 2);
        let chart = AsciiChart::new().add("apply", histogram).to_string();
        assert_eq!(chart.lines().count(), 3, "{chart}");
        assert!(chart.starts_with("apply\n") && chart.contains("256"), "{chart}");
    }
}
