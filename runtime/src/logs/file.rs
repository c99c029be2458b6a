//! The file on disk and its rotation.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// An open log file that knows its size.
#[derive(Debug)]
pub(super) struct LogFileWriter {
    path: PathBuf,
    bytes_max: u64,
    file: File,
    len: u64,
}

impl LogFileWriter {
    pub(super) fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let open = || OpenOptions::new().create(true).append(true).open(path);
        let file = match open() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                if let Some(parent) = path.parent() {
                    std::fs::create_dir_all(parent)?;
                }
                open()?
            }
            other => other?,
        };
        let len = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), bytes_max, file, len })
    }

    /// Appends whole lines, after a rotation if they would not fit any more.
    pub(super) fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        let count = u64::try_from(lines.len()).unwrap_or(u64::MAX);
        if self.len > 0 && self.len.saturating_add(count) > self.bytes_max {
            self.rotate()?;
        }
        self.file.write_all(lines)?;
        self.len = self.len.saturating_add(count);
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(".1");
        std::fs::rename(&self.path, &old)?;
        *self = Self::open(&self.path, self.bytes_max)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_kept_once_as_dot_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod").join("app.log");
        let mut writer = LogFileWriter::open(&path, 10).unwrap();
        for line in [b"one---\n", b"two---\n", b"three-\n"] {
            writer.write(line).unwrap();
        }
        assert_eq!(std::fs::read(&path).unwrap(), b"three-\n");
        assert_eq!(std::fs::read(dir.path().join("pod/app.log.1")).unwrap(), b"two---\n");
    }

    #[test]
    fn a_reopened_file_is_continued() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app.log");
        LogFileWriter::open(&path, 100).unwrap().write(b"a\n").unwrap();
        LogFileWriter::open(&path, 100).unwrap().write(b"b\n").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"a\nb\n");
    }
}
