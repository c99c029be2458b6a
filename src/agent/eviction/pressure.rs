//! Which thresholds are met, and for how long a node counts as under pressure.

use std::time::Duration;

use tokio::time::Instant;

use crate::agent::usage::Figures;
use crate::api::quantity::format_bytes;
use crate::config::{Signal, Threshold};

/// A threshold that is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shortage {
    pub(super) signal: Signal,
    pub(super) available: u64,
    pub(super) least: u64,
}

impl Shortage {
    /// The resource, as messages name it.
    pub(super) fn resource(&self) -> &'static str {
        match self.signal {
            Signal::MemoryAvailable => "memory",
            Signal::NodeFsAvailable | Signal::ImageFsAvailable => "ephemeral-storage",
            Signal::NodeFsInodesFree => "inodes",
            Signal::PidAvailable => "pids",
        }
    }

    /// An amount of it, for people.
    pub(super) fn show(&self, amount: u64) -> String {
        match self.signal {
            Signal::NodeFsInodesFree | Signal::PidAvailable => amount.to_string(),
            _ => show_bytes(amount),
        }
    }
}

/// Bytes for people: whole KiB, as Kubernetes shows them.
pub(super) fn show_bytes(bytes: u64) -> String {
    let whole = if bytes < 1024 { bytes } else { bytes / 1024 * 1024 };
    format_bytes(i64::try_from(whole).unwrap_or(i64::MAX))
}

/// The thresholds that are met, in the order in which they are seen to.
pub(super) fn shortages(thresholds: &[Threshold], figures: &Figures) -> Vec<Shortage> {
    let found = thresholds.iter().filter_map(|threshold| {
        let (capacity, available) = of(threshold.signal, figures);
        let least = threshold.least.of(capacity);
        // What has no size could not be read.
        let is_met = capacity > 0 && available < least;
        is_met.then_some(Shortage { signal: threshold.signal, available, least })
    });
    let mut found: Vec<_> = found.collect();
    found.sort_by_key(|shortage| shortage.signal);
    found
}

/// How much there is, and how much of it is left.
fn of(signal: Signal, figures: &Figures) -> (u64, u64) {
    match signal {
        Signal::MemoryAvailable => (figures.memory_bytes, figures.memory_available_bytes),
        Signal::NodeFsAvailable => {
            (figures.node_disk.capacity_bytes, figures.node_disk.available_bytes)
        }
        Signal::NodeFsInodesFree => (figures.node_disk.inodes, figures.node_disk.inodes_free),
        Signal::ImageFsAvailable => {
            (figures.image_disk.capacity_bytes, figures.image_disk.available_bytes)
        }
        Signal::PidAvailable => (figures.pids_max, figures.pids_max.saturating_sub(figures.pids)),
    }
}

/// What the Node's conditions say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    /// `MemoryPressure`.
    pub(crate) memory: bool,
    /// `DiskPressure`.
    pub(crate) disk: bool,
    /// `PIDPressure`.
    pub(crate) pid: bool,
}

/// When each kind of pressure was last seen: a condition does not flap.
#[derive(Debug)]
pub(super) struct Conditions {
    period: Duration,
    memory: Option<Instant>,
    disk: Option<Instant>,
    pid: Option<Instant>,
}

impl Conditions {
    /// Pressure lasts for `period` after its last sign.
    pub(super) fn new(period: Duration) -> Self {
        Self { period, memory: None, disk: None, pid: None }
    }

    /// Takes note of what is short at `now`; gives what the conditions are then.
    pub(super) fn note(&mut self, shortages: &[Shortage], now: Instant) -> Pressure {
        for shortage in shortages {
            let seen = match shortage.signal {
                Signal::MemoryAvailable => &mut self.memory,
                Signal::PidAvailable => &mut self.pid,
                _ => &mut self.disk,
            };
            *seen = Some(now);
        }
        let lasts = |seen: Option<Instant>| {
            seen.is_some_and(|at| at == now || now.saturating_duration_since(at) < self.period)
        };
        Pressure { memory: lasts(self.memory), disk: lasts(self.disk), pid: lasts(self.pid) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::usage::Disk;
    use crate::config::EvictionSettings;

    const GIB: u64 = 1 << 30;

    fn roomy() -> Figures {
        let disk = Disk {
            capacity_bytes: 10 * GIB,
            available_bytes: 5 * GIB,
            inodes: 1000,
            inodes_free: 500,
        };
        Figures {
            memory_bytes: 4 * GIB,
            memory_available_bytes: 2 * GIB,
            node_disk: disk,
            image_disk: disk,
            pids_max: 32_768,
            pids: 200,
            ..Figures::default()
        }
    }

    fn names(figures: &Figures) -> Vec<&'static str> {
        let thresholds = EvictionSettings::default().thresholds;
        shortages(&thresholds, figures).iter().map(|found| found.signal.name()).collect()
    }

    #[test]
    fn a_threshold_is_met_below_it_and_not_at_it() {
        assert_eq!(names(&roomy()), Vec::<&str>::new());
        let with = |change: &dyn Fn(&mut Figures)| {
            let mut figures = roomy();
            change(&mut figures);
            names(&figures)
        };
        let memory = |bytes| with(&|f: &mut Figures| f.memory_available_bytes = bytes);
        assert_eq!(memory(100 << 20), Vec::<&str>::new());
        assert_eq!(memory((100 << 20) - 1), ["memory.available"]);
        let disk = |bytes| with(&|f: &mut Figures| f.node_disk.available_bytes = bytes);
        assert_eq!(disk(GIB - 1), ["nodefs.available"]);
        assert_eq!(disk(GIB), Vec::<&str>::new());
        assert_eq!(with(&|f| f.node_disk.inodes_free = 49), ["nodefs.inodesFree"]);
        assert_eq!(with(&|f| f.image_disk.available_bytes = GIB), ["imagefs.available"]);
        assert_eq!(with(&|f| f.pids = 32_000), ["pid.available"]);
        let both = with(&|f| {
            f.node_disk.inodes_free = 1;
            f.memory_available_bytes = 1;
        });
        assert_eq!(both, ["memory.available", "nodefs.inodesFree"]);
        assert_eq!(names(&Figures::default()), Vec::<&str>::new(), "nobody could tell");
    }

    #[tokio::test(start_paused = true)]
    async fn pressure_lasts_for_a_while_after_its_last_sign() {
        let mut conditions = Conditions::new(Duration::from_secs(300));
        let short = Shortage { signal: Signal::NodeFsInodesFree, available: 1, least: 2 };
        assert_eq!(conditions.note(&[], Instant::now()), Pressure::default());
        let disk = Pressure { disk: true, ..Pressure::default() };
        assert_eq!(conditions.note(&[short], Instant::now()), disk);
        tokio::time::advance(Duration::from_secs(299)).await;
        assert_eq!(conditions.note(&[], Instant::now()), disk);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(conditions.note(&[], Instant::now()), Pressure::default());
        let mut at_once = Conditions::new(Duration::ZERO);
        assert_eq!(at_once.note(&[short], Instant::now()), disk);
    }

    #[test]
    fn amounts_are_shown_as_kubernetes_does() {
        assert_eq!(show_bytes(100 << 20), "100Mi");
        assert_eq!(show_bytes((50 << 20) + 1), "50Mi");
        assert_eq!(show_bytes(1500), "1Ki");
        assert_eq!(show_bytes(0), "0");
    }
}
