//! How full a disk is, how much must go, and how much more may come.

use std::io;
use std::path::{Path, PathBuf};

/// What of a disk is left alone: a tenth of it, but not more than this many bytes. The store of a server
/// ends it when it cannot write, and what comes from outside must not bring that about.
const RESERVED_PART: u64 = 10;
const RESERVED_BYTES_MAX: u64 = 512 << 20;
/// How many bytes are written between two looks at the disk.
const LOOK_BYTES: u64 = 16 << 20;

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

/// Whether a disk takes so many bytes more without what is left alone of it.
///
/// # Errors
///
/// `StorageFull` if not; otherwise what the file system says.
pub fn check_room(folder: &Path, bytes: u64) -> io::Result<()> {
    let stat = rustix::fs::statvfs(folder)?;
    let size = |blocks: u64| blocks.saturating_mul(stat.f_frsize);
    let reserved = (size(stat.f_blocks) / RESERVED_PART).min(RESERVED_BYTES_MAX);
    if size(stat.f_bavail) < reserved.saturating_add(bytes) {
        return Err(io::ErrorKind::StorageFull.into());
    }
    Ok(())
}

/// Looks at a disk while something comes that is to be written to it.
#[derive(Debug)]
pub struct Room {
    folder: PathBuf,
    /// Bytes until the next look.
    left: u64,
}

impl Room {
    /// On the disk of a folder.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), left: 0 }
    }

    /// Before so many bytes are written.
    ///
    /// # Errors
    ///
    /// As [`check_room`].
    pub fn take(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > self.left {
            self.left = LOOK_BYTES.max(bytes);
            check_room(&self.folder, self.left)?;
        }
        self.left -= bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_disk_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Disk::of(folder.path()).unwrap();
        check_room(folder.path(), 1).unwrap();
        let all = check_room(folder.path(), disk.available).unwrap_err();
        assert_eq!(all.kind(), io::ErrorKind::StorageFull);
        let mut room = Room::new(folder.path());
        room.take(1).unwrap();
        assert_eq!(room.left, LOOK_BYTES - 1);
        room.take(LOOK_BYTES - 1).unwrap();
        assert_eq!(room.take(disk.available).unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}
