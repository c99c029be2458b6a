//! How full a disk is, and how much must go.

use std::io;
use std::path::Path;

/// When a disk counts as full, in percent of what may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskMarks {
    /// Above this use, what nobody needs is deleted; 100 is never. Default 85.
    pub high_percent: u8,
    /// Deleting stops below this use. Default 80.
    pub low_percent: u8,
}

impl Default for DiskMarks {
    fn default() -> Self {
        Self { high_percent: 85, low_percent: 80 }
    }
}

/// How full a disk is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// All that may be used.
    pub capacity: u64,
    /// What is left of it.
    pub available: u64,
}

impl Disk {
    /// The disk that a folder is on.
    ///
    /// # Errors
    ///
    /// What the file system says.
    pub fn of(folder: &Path) -> io::Result<Self> {
        let stat = rustix::fs::statvfs(folder)?;
        Ok(Self {
            // As df counts: what is reserved for root is nobody's to use.
            capacity: stat
                .f_blocks
                .saturating_sub(stat.f_bfree)
                .saturating_add(stat.f_bavail)
                .saturating_mul(stat.f_frsize),
            available: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }

    /// How many bytes must go, in the arithmetic of kubelet's image garbage collection; 0 below the
    /// high mark.
    #[must_use]
    pub fn excess(self, marks: DiskMarks) -> u64 {
        let free_percent = self.available.saturating_mul(100).checked_div(self.capacity);
        let used_percent = 100_u64.saturating_sub(free_percent.unwrap_or(100));
        if used_percent < u64::from(marks.high_percent) {
            return 0;
        }
        let to_be_free = 100_u64.saturating_sub(u64::from(marks.low_percent));
        (self.capacity / 100).saturating_mul(to_be_free).saturating_sub(self.available)
    }
}
