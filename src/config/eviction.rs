//! When a node counts as short of something.

use std::time::Duration;

/// How long a node stays under pressure after the last sign of it: kubelet's.
const TRANSITION_PERIOD: Duration = Duration::from_secs(300);
/// Pause between two looks: kubelet's.
const INTERVAL: Duration = Duration::from_secs(10);

const MIB: u64 = 1 << 20;

/// What can run short, in the order in which it is seen to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// Memory, in bytes.
    MemoryAvailable,
    /// The file system with pods' volumes and logs, in bytes.
    NodeFsAvailable,
    /// The same, in files.
    NodeFsInodesFree,
    /// The file system with images, in bytes.
    ImageFsAvailable,
    /// Processes and threads.
    PidAvailable,
}

impl Signal {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::MemoryAvailable,
        Self::NodeFsAvailable,
        Self::NodeFsInodesFree,
        Self::ImageFsAvailable,
        Self::PidAvailable,
    ];

    /// Kubelet's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::NodeFsAvailable => "nodefs.available",
            Self::NodeFsInodesFree => "nodefs.inodesFree",
            Self::ImageFsAvailable => "imagefs.available",
            Self::PidAvailable => "pid.available",
        }
    }
}

/// How much must be left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Amount {
    /// So much.
    Units(u64),
    /// A part of what there is, but no more than so much.
    Part {
        /// Of what there is.
        percent: u64,
        /// `None` is no bound.
        at_most: Option<u64>,
    },
}

impl Amount {
    /// The amount on a machine that has `capacity` of it.
    #[must_use]
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Units(units) => units,
            Self::Part { percent, at_most } => {
                let part = u128::from(capacity) * u128::from(percent) / 100;
                u64::try_from(part).unwrap_or(u64::MAX).min(at_most.unwrap_or(u64::MAX))
            }
        }
    }
}

/// A node with less than `least` of `signal` is under pressure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Threshold {
    /// What is looked at.
    pub signal: Signal,
    /// What must be left of it.
    pub least: Amount,
}

/// When a node is under pressure, and for how long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvictionSettings {
    /// `--eviction-hard`. Default: kubelet's parts, each with a bound: on a large disk a tenth is
    /// no shortage.
    pub thresholds: Vec<Threshold>,
    /// How long pressure lasts after its last sign. Default 5 min: kubelet's.
    pub transition_period: Duration,
    /// Pause between two looks at the machine. Default 10 s: kubelet's.
    pub interval: Duration,
}

impl Default for EvictionSettings {
    fn default() -> Self {
        let part = |signal, percent, at_most| Threshold {
            signal,
            least: Amount::Part { percent, at_most },
        };
        Self {
            thresholds: vec![
                part(Signal::MemoryAvailable, 10, Some(100 * MIB)),
                part(Signal::NodeFsAvailable, 10, Some(1024 * MIB)),
                part(Signal::NodeFsInodesFree, 5, None),
                part(Signal::ImageFsAvailable, 15, Some(2048 * MIB)),
                part(Signal::PidAvailable, 5, Some(1000)),
            ],
            transition_period: TRANSITION_PERIOD,
            interval: INTERVAL,
        }
    }
}

/// Why `--eviction-hard` is refused. Give up; the text says what to change.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "--eviction-hard {text:?} must be like memory.available<100Mi,nodefs.available<10%, of memory.available, nodefs.available, nodefs.inodesFree, imagefs.available and pid.available, or none"
)]
pub struct ThresholdError {
    /// What was given.
    pub text: String,
}

/// Reads `SIGNAL<AMOUNT,..`; `none` is no threshold at all.
///
/// # Errors
///
/// When a part is not of that form, or a signal is named twice.
pub fn parse_thresholds(text: &str) -> Result<Vec<Threshold>, ThresholdError> {
    let refused = || ThresholdError { text: text.to_owned() };
    if text == "none" {
        return Ok(Vec::new());
    }
    let mut thresholds: Vec<Threshold> = Vec::new();
    for part in text.split(',') {
        let (name, amount) = part.split_once('<').ok_or_else(refused)?;
        let signal = Signal::ALL.into_iter().find(|signal| signal.name() == name.trim());
        let signal = signal.ok_or_else(refused)?;
        let least = amount_of(amount.trim()).ok_or_else(refused)?;
        if thresholds.iter().any(|known| known.signal == signal) {
            return Err(refused());
        }
        thresholds.push(Threshold { signal, least });
    }
    thresholds.sort_by_key(|threshold| threshold.signal);
    Ok(thresholds)
}

fn amount_of(text: &str) -> Option<Amount> {
    if let Some(percent) = text.strip_suffix('%') {
        let percent: u64 = percent.parse().ok().filter(|percent| (1..=100).contains(percent))?;
        return Some(Amount::Part { percent, at_most: None });
    }
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let shift = match suffix {
        "" => 0,
        "Ki" => 10,
        "Mi" => 20,
        "Gi" => 30,
        "Ti" => 40,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(1 << shift).map(Amount::Units)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kubelets_form_is_read() {
        let read = parse_thresholds("nodefs.available<10%, memory.available<100Mi").unwrap();
        let names: Vec<_> = read.iter().map(|threshold| threshold.signal.name()).collect();
        assert_eq!(names, ["memory.available", "nodefs.available"]);
        assert_eq!(read[0].least, Amount::Units(100 * MIB));
        assert_eq!(read[1].least.of(1000), 100);
        assert_eq!(parse_thresholds("none").unwrap(), []);
        for bad in [
            "",
            "memory.available",
            "memory.available<",
            "memory.free<1Gi",
            "memory.available<0%",
            "memory.available<101%",
            "memory.available<1GB",
            "pid.available<1,pid.available<2",
        ] {
            assert!(parse_thresholds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_part_has_a_bound_by_default() {
        let least = |signal, capacity| {
            let thresholds = EvictionSettings::default().thresholds;
            let found = thresholds.iter().find(|threshold| threshold.signal == signal).unwrap();
            found.least.of(capacity)
        };
        assert_eq!(least(Signal::MemoryAvailable, 512 * MIB), 53_687_091);
        assert_eq!(least(Signal::MemoryAvailable, 64 << 30), 100 * MIB);
        assert_eq!(least(Signal::NodeFsAvailable, 8 << 30), 858_993_459);
        assert_eq!(least(Signal::NodeFsAvailable, 1 << 40), 1 << 30);
        assert_eq!(least(Signal::NodeFsInodesFree, 1000), 50);
    }
}
