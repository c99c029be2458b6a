//! What the machine says of itself: the only place that figures of memory and disks come from.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Ticks of the kernel's CPU accounting per second, as user space sees them.
const TICKS_PER_SECOND: u64 = 100;
/// Where the control group of this process is seen from within a container.
const CGROUP: &str = "/sys/fs/cgroup";

/// Source of [`Figures`]: [`ThisMachine`] in production.
pub trait Machine: Send + Sync + 'static {
    /// What the machine has and uses now. May block on the file system for a moment.
    fn read(&self) -> Figures;
}

/// What a machine has and uses. What nobody can tell is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Time that all cores together were not idle since the machine booted.
    pub cpu: Duration,
    /// Memory that processes may use, in bytes.
    pub memory_bytes: u64,
    /// The part of it that is free, or could be at once.
    pub memory_available_bytes: u64,
    /// File system with pods' volumes and logs.
    pub node_disk: Disk,
    /// File system with images.
    pub image_disk: Disk,
    /// Whether those are two.
    pub has_image_disk: bool,
    /// Processes and threads that there may be.
    pub pids_max: u64,
    /// Those that there are.
    pub pids: u64,
}

impl Figures {
    /// Bytes of memory in use that could not be given to somebody else at once.
    #[must_use]
    pub fn memory_used_bytes(&self) -> u64 {
        self.memory_bytes.saturating_sub(self.memory_available_bytes)
    }
}

/// How full a file system is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Disk {
    /// Its size.
    pub capacity_bytes: u64,
    /// What this process may still write.
    pub available_bytes: u64,
    /// Files it can have; 0 where there is no such number.
    pub inodes: u64,
    /// Files that may still be made.
    pub inodes_free: u64,
}

/// The machine that this process runs on, or the container.
#[derive(Debug, Clone)]
pub struct ThisMachine {
    data_dir: PathBuf,
    image_dir: PathBuf,
}

impl ThisMachine {
    /// With the file systems of the agent's data folder.
    #[must_use]
    pub fn new(data_dir: &Path) -> Self {
        Self { data_dir: data_dir.to_owned(), image_dir: data_dir.join("images") }
    }
}

impl Machine for ThisMachine {
    fn read(&self) -> Figures {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let number = |path: &str| text(path).trim().parse::<u64>().ok();
        let group = |name: &str| text(&format!("{CGROUP}/{name}"));
        let (total, available) = memory(&text("/proc/meminfo"));
        let limit = group("memory.max").trim().parse::<u64>().ok().filter(|limit| *limit < total);
        let (memory_bytes, memory_available_bytes) = match limit {
            Some(limit) => {
                let used = group_used(&group("memory.current"), &group("memory.stat"));
                (limit, available.min(limit.saturating_sub(used)))
            }
            None => (total, available),
        };
        let pids_max = [number("/proc/sys/kernel/pid_max"), number("/proc/sys/kernel/threads-max")];
        let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev()).ok();
        Figures {
            cpu: cpu(&text("/proc/stat")),
            memory_bytes,
            memory_available_bytes,
            node_disk: disk(&self.data_dir),
            image_disk: disk(&self.image_dir),
            has_image_disk: device(&self.data_dir) != device(&self.image_dir),
            pids_max: pids_max.into_iter().flatten().min().unwrap_or(0),
            pids: pids(&text("/proc/loadavg")),
        }
    }
}

fn disk(path: &Path) -> Disk {
    let Ok(stat) = rustix::fs::statvfs(path) else { return Disk::default() };
    Disk {
        capacity_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
        available_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        inodes: stat.f_files,
        inodes_free: stat.f_ffree,
    }
}

/// Total and available bytes, from `/proc/meminfo`.
fn memory(meminfo: &str) -> (u64, u64) {
    let kib = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        number.unwrap_or(0).saturating_mul(1024)
    };
    (kib("MemTotal:"), kib("MemAvailable:"))
}

/// Bytes a control group uses that the kernel could not take back at once.
fn group_used(current: &str, stat: &str) -> u64 {
    let cached = stat.lines().find_map(|line| line.strip_prefix("inactive_file "));
    let cached = cached.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0);
    current.trim().parse::<u64>().unwrap_or(0).saturating_sub(cached)
}

/// Time that all cores were busy, from `/proc/stat`: user, nice, system, irq, softirq and steal, but
/// neither idle nor waiting for disks. Guests of virtual machines are in user already.
fn cpu(stat: &str) -> Duration {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "));
    let ticks = line.into_iter().flat_map(str::split_whitespace).take(8).enumerate();
    let busy = ticks.filter(|(at, _)| !matches!(at, 3 | 4));
    let busy: u64 = busy.filter_map(|(_, ticks)| ticks.parse::<u64>().ok()).sum();
    Duration::from_millis(busy.saturating_mul(1000 / TICKS_PER_SECOND))
}

/// Processes and threads, from `/proc/loadavg`: `0.1 0.2 0.3 running/all last`.
fn pids(loadavg: &str) -> u64 {
    let all = loadavg.split_whitespace().nth(3).and_then(|counts| counts.split_once('/'));
    all.and_then(|(_, all)| all.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_texts_are_read() {
        let meminfo = "MemTotal:        1000 kB\nMemFree:  10 kB\nMemAvailable:     400 kB\n";
        assert_eq!(memory(meminfo), (1_024_000, 409_600));
        let stat = "cpu  100 20 30 9999 500 4 5 6 50 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n";
        assert_eq!(cpu(stat), Duration::from_millis(1650));
        assert_eq!(pids("0.00 0.01 0.05 1/234 5678\n"), 234);
        assert_eq!(group_used("1000\n", "anon 5\ninactive_file 300\nactive_file 1\n"), 700);
        assert_eq!((memory(""), cpu(""), pids("")), ((0, 0), Duration::ZERO, 0));
    }

    #[test]
    fn this_machine_answers() {
        let folder = tempfile::tempdir().unwrap();
        let figures = ThisMachine::new(folder.path()).read();
        assert!(figures.memory_bytes > 0 && figures.node_disk.capacity_bytes > 0, "{figures:?}");
        assert!(figures.memory_used_bytes() < figures.memory_bytes);
    }
}
