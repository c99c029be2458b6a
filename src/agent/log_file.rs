//! The log of one run of a container, read in order over its rotations.

use std::collections::VecDeque;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, SeekFrom};

/// Bytes read at once.
const READ_BYTES: usize = 64 * 1024;
/// Longest line that is waited for; the runtime writes shorter ones.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Where a full log file goes.
pub(crate) fn rotated(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".1");
    PathBuf::from(name)
}

/// Reads `<run>.log.1` and `<run>.log`, and what is added. The file that is read stays open, so that what it
/// had when it was rotated is read before the next one; a log that is rotated twice between two reads has
/// lost a file.
#[derive(Debug)]
pub(crate) struct LogFile {
    path: PathBuf,
    /// The oldest first.
    open: VecDeque<File>,
    /// The start of a line whose end is not written yet.
    partial: Vec<u8>,
}

impl LogFile {
    /// From the first line that is left, or from the last `tail` lines.
    ///
    /// # Errors
    ///
    /// The file cannot be read. That there is none yet is no error.
    pub(crate) async fn open(path: PathBuf, tail: Option<usize>) -> io::Result<Self> {
        // The newer one first: should it be rotated now, it is still the one that follows.
        let present = open_if_there(&path).await?;
        let older = open_if_there(&rotated(&path)).await?;
        let is_same = match (&present, &older) {
            (Some(present), Some(older)) => same_file(present, older).await?,
            _ => false,
        };
        let older = older.filter(|_| !is_same);
        let mut open: VecDeque<File> = older.into_iter().chain(present).collect();
        let mut missing = tail;
        for file in open.iter_mut().rev() {
            if let Some(lines) = &mut missing {
                *lines = seek_tail(file, *lines).await?;
            }
        }
        Ok(Self { path, open, partial: Vec::new() })
    }

    /// From what is added from now on.
    ///
    /// # Errors
    ///
    /// See [`LogFile::open`].
    pub(crate) async fn at_end(path: PathBuf) -> io::Result<Self> {
        Self::open(path, Some(0)).await
    }

    /// The next whole lines with their ends; nothing if there are none now.
    ///
    /// # Errors
    ///
    /// The file cannot be read.
    pub(crate) async fn next(&mut self) -> io::Result<Vec<u8>> {
        loop {
            if let Some(file) = self.open.front_mut() {
                let mut bytes = vec![0; READ_BYTES];
                let count = file.read(&mut bytes).await?;
                bytes.truncate(count);
                if count > 0 {
                    match self.whole_lines(&bytes) {
                        lines if lines.is_empty() => continue,
                        lines => return Ok(lines),
                    }
                }
            }
            if self.open.len() > 1 {
                self.open.pop_front();
                self.partial.clear();
            } else if !self.follow_rotation().await? {
                return Ok(Vec::new());
            }
        }
    }

    /// Whether another file stands where the one that is read stood; it is read once that is at its end.
    async fn follow_rotation(&mut self) -> io::Result<bool> {
        let Some(fresh) = open_if_there(&self.path).await? else { return Ok(false) };
        if let Some(had) = self.open.back()
            && same_file(had, &fresh).await?
        {
            return Ok(false);
        }
        self.open.push_back(fresh);
        Ok(true)
    }

    fn whole_lines(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.partial.extend_from_slice(bytes);
        let Some(end) = self.partial.iter().rposition(|b| *b == b'\n') else {
            if self.partial.len() > LINE_BYTES_MAX {
                self.partial.clear();
            }
            return Vec::new();
        };
        let rest = self.partial.split_off(end + 1);
        std::mem::replace(&mut self.partial, rest)
    }
}

async fn open_if_there(path: &Path) -> io::Result<Option<File>> {
    match File::open(path).await {
        Ok(file) => Ok(Some(file)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(cause),
    }
}

async fn same_file(one: &File, other: &File) -> io::Result<bool> {
    let (one, other) = (one.metadata().await?, other.metadata().await?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

/// Goes to the last `lines` lines of a file; says how many it has not.
async fn seek_tail(file: &mut File, mut lines: usize) -> io::Result<usize> {
    let mut from = file.seek(SeekFrom::End(0)).await?;
    let mut block = vec![0; READ_BYTES];
    if lines == 0 {
        return Ok(0);
    }
    // The end of the last line is not that of one before it.
    let mut is_last = true;
    while from > 0 {
        let count = from.min(READ_BYTES as u64);
        from -= count;
        file.seek(SeekFrom::Start(from)).await?;
        let part = block.get_mut(..usize::try_from(count).unwrap_or(0)).unwrap_or_default();
        file.read_exact(part).await?;
        for (at, byte) in part.iter().enumerate().rev() {
            if *byte != b'\n' || std::mem::take(&mut is_last) {
                is_last = false;
                continue;
            }
            lines -= 1;
            if lines == 0 {
                file.seek(SeekFrom::Start(from + at as u64 + 1)).await?;
                return Ok(0);
            }
        }
    }
    file.seek(SeekFrom::Start(0)).await?;
    // The first line has none before it.
    Ok(if is_last { lines } else { lines - 1 })
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    async fn all(log: &mut LogFile) -> String {
        let mut text = String::new();
        loop {
            let lines = log.next().await.unwrap();
            if lines.is_empty() {
                return text;
            }
            text.push_str(std::str::from_utf8(&lines).unwrap());
        }
    }

    fn lines(range: std::ops::Range<u32>) -> String {
        range.fold(String::new(), |mut text, n| {
            writeln!(text, "line {n}").unwrap();
            text
        })
    }

    #[tokio::test]
    async fn what_was_written_before_a_rotation_is_read_before_what_comes_after() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        let mut log = LogFile::open(path.clone(), None).await.unwrap();
        assert_eq!(all(&mut log).await, "", "there is no file yet");
        std::fs::write(&path, "a\n").unwrap();
        assert_eq!(all(&mut log).await, "a\n");
        std::fs::write(&path, "a\nb\nc").unwrap();
        assert_eq!(all(&mut log).await, "b\n");
        // The rest of the line, more lines and a rotation, all before the next look; the fresh file is
        // longer than what was read of the old one.
        std::fs::write(&path, "a\nb\nc!\nd\n").unwrap();
        std::fs::rename(&path, rotated(&path)).unwrap();
        assert_eq!(all(&mut log).await, "c!\nd\n", "between the two there is no file");
        std::fs::write(&path, "e e e e e e\n").unwrap();
        assert_eq!(all(&mut log).await, "e e e e e e\n");
        let mut whole = LogFile::open(path, None).await.unwrap();
        assert_eq!(all(&mut whole).await, "a\nb\nc!\nd\ne e e e e e\n");
    }

    #[tokio::test]
    async fn the_tail_goes_over_blocks_and_rotations() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("0.log");
        std::fs::write(rotated(&path), lines(0..20_000)).unwrap();
        std::fs::write(&path, lines(20_000..40_000)).unwrap();
        for (tail, from) in
            [(0, 40_000), (1, 39_999), (20_000, 20_000), (20_001, 19_999), (39_999, 1), (50_000, 0)]
        {
            let mut log = LogFile::open(path.clone(), Some(tail)).await.unwrap();
            assert!(all(&mut log).await == lines(from..40_000), "{tail}");
        }
        std::fs::write(&path, "").unwrap();
        let mut log = LogFile::open(path.clone(), Some(2)).await.unwrap();
        assert_eq!(all(&mut log).await, lines(19_998..20_000));
    }
}
