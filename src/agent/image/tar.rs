//! Reading a tar archive: ustar, with the extensions of POSIX (pax) and GNU for long names and large
//! sizes.
//!
//! Every size in an archive is a claim of whoever made it: none is believed beyond what is read.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

/// Size of a header and unit of content.
const BLOCK: usize = 512;
/// Longest extended header, in bytes; those of real images have some hundred.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// Extended headers in front of one entry.
const EXTENSIONS_MAX: usize = 8;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    /// A symbolic link to [`Entry::target`].
    Link,
    /// Another name of the file [`Entry::target`].
    HardLink,
    /// A device, a FIFO: nothing that can be mounted.
    Special,
}

/// One thing in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// As it stands in the archive: not checked.
    pub(super) path: PathBuf,
    pub(super) kind: Kind,
    pub(super) target: PathBuf,
    pub(super) is_executable: bool,
}

/// An archive; as [`Read`], the content of its present entry.
pub(super) struct Archive<R> {
    input: R,
    /// Bytes of the present entry that were not read.
    left: u64,
    /// Bytes after it, up to the next block.
    padding: u64,
}

pub(super) fn damaged(why: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("the image's layer is a damaged archive: {why}"),
    )
}

/// What extended headers say of the entry after them.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0 }
    }

    /// Goes on to the next entry; `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut extended = Extended::default();
        for _ in 0..=EXTENSIONS_MAX {
            let Some(header) = self.header()? else { return Ok(None) };
            let kind = header.get(156).copied().unwrap_or_default();
            let size = number(field(&header, 124, 12))?;
            if matches!(kind, b'x' | b'g' | b'L' | b'K') {
                self.begin(size);
                let content = self.extension(size)?;
                match kind {
                    b'x' => read_pax(&content, &mut extended)?,
                    b'L' => extended.path = Some(text(&content).to_vec()),
                    b'K' => extended.target = Some(text(&content).to_vec()),
                    // Of the whole archive: nothing in it that concerns names.
                    _ => {}
                }
                continue;
            }
            return self.entry(&header, kind, size, extended).map(Some);
        }
        Err(damaged("too many extended headers"))
    }

    fn entry(
        &mut self,
        header: &[u8; BLOCK],
        kind: u8,
        size: u64,
        extended: Extended,
    ) -> io::Result<Entry> {
        let is_posix = field(header, 257, 6) == b"ustar\0";
        let mut name = text(field(header, 0, 100)).to_vec();
        let prefix = text(field(header, 345, 155));
        if is_posix && !prefix.is_empty() {
            name = [prefix, b"/", &name].concat();
        }
        let name = extended.path.unwrap_or(name);
        let target = extended.target.unwrap_or_else(|| text(field(header, 157, 100)).to_vec());
        let kind = match kind {
            // Before POSIX a folder was a file whose name ends so.
            0 | b'0' | b'7' if name.ends_with(b"/") => Kind::Folder,
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Link,
            b'5' => Kind::Folder,
            b'3' | b'4' | b'6' => Kind::Special,
            other => {
                let why = format!("an entry of the type {:?}", char::from(other));
                return Err(damaged(&why));
            }
        };
        // Only files have content, whatever the header of another entry says.
        self.begin(if kind == Kind::File { extended.size.unwrap_or(size) } else { 0 });
        let path = |bytes: &[u8]| PathBuf::from(OsStr::from_bytes(bytes));
        let is_executable = number(field(header, 100, 8)).unwrap_or(0) & 0o111 != 0;
        Ok(Entry { path: path(&name), kind, target: path(&target), is_executable })
    }

    fn begin(&mut self, size: u64) {
        self.left = size;
        let over = size % BLOCK as u64;
        self.padding = if over == 0 { 0 } else { BLOCK as u64 - over };
    }

    /// Skips what is left of the present entry, and reads the next header.
    fn header(&mut self) -> io::Result<Option<[u8; BLOCK]>> {
        let rest = self.left.saturating_add(self.padding);
        if io::copy(&mut (&mut self.input).take(rest), &mut io::sink())? < rest {
            return Err(damaged("it ends within an entry"));
        }
        (self.left, self.padding) = (0, 0);
        let mut header = [0; BLOCK];
        let count = read_full(&mut self.input, &mut header)?;
        // Some archives lack the two empty blocks at the end.
        if count == 0 || header.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        if count < BLOCK || !has_checksum(&header) {
            return Err(damaged("a header that is none"));
        }
        Ok(Some(header))
    }

    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > EXTENSION_BYTES_MAX {
            return Err(damaged("a very long extended header"));
        }
        let mut content = Vec::new();
        self.read_to_end(&mut content)?;
        Ok(content)
    }
}

impl<R: Read> Read for Archive<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 || into.is_empty() {
            return Ok(0);
        }
        let count = (&mut self.input).take(self.left).read(into)?;
        if count == 0 {
            return Err(damaged("it ends within an entry"));
        }
        self.left -= count as u64;
        Ok(count)
    }
}

/// Reads until the buffer is full or the input ends.
pub(super) fn read_full(from: &mut dyn Read, into: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while let Some(rest) = into.get_mut(count..).filter(|rest| !rest.is_empty()) {
        match from.read(rest)? {
            0 => break,
            more => count += more,
        }
    }
    Ok(count)
}

fn field(header: &[u8; BLOCK], at: usize, len: usize) -> &[u8] {
    header.get(at..at + len).unwrap_or_default()
}

/// The bytes in front of the first zero.
fn text(bytes: &[u8]) -> &[u8] {
    bytes.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// A number in octal digits, or in GNU's binary form.
fn number(field: &[u8]) -> io::Result<u64> {
    let wrong = || damaged("a number that is none");
    if let Some((first, rest)) = field.split_first()
        && first & 0x80 != 0
    {
        let mut value = u64::from(first & 0x7f);
        for byte in rest {
            value = value.checked_mul(256).ok_or_else(wrong)? + u64::from(*byte);
        }
        return Ok(value);
    }
    let digits = std::str::from_utf8(text(field)).map_err(|_| wrong())?.trim_matches(' ');
    if digits.is_empty() {
        return Ok(0);
    }
    u64::from_str_radix(digits, 8).map_err(|_| wrong())
}

/// Whether the sum of the header's bytes is the one it names, its own field taken as spaces.
fn has_checksum(header: &[u8; BLOCK]) -> bool {
    let Ok(wanted) = number(field(header, 148, 8)) else { return false };
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(at, byte)| u64::from(if (148..156).contains(&at) { b' ' } else { *byte }))
        .sum();
    sum == wanted
}

/// Reads records of the form `<length> <key>=<value>\n`.
fn read_pax(mut content: &[u8], into: &mut Extended) -> io::Result<()> {
    let wrong = || damaged("an extended header that is none");
    while !content.is_empty() {
        let space = content.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
        let length = content.get(..space).and_then(|digits| std::str::from_utf8(digits).ok());
        let length: usize = length.and_then(|digits| digits.parse().ok()).ok_or_else(wrong)?;
        let record = content.get(space + 1..length).ok_or_else(wrong)?;
        let record = record.strip_suffix(b"\n").ok_or_else(wrong)?;
        content = content.get(length..).ok_or_else(wrong)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
        let (key, value) = record.split_at(equals);
        let value = value.get(1..).unwrap_or_default();
        match key {
            b"path" => into.path = Some(value.to_vec()),
            b"linkpath" => into.target = Some(value.to_vec()),
            b"size" => {
                let size = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
                into.size = Some(size.ok_or_else(wrong)?);
            }
            // The bytes that follow would not be the file's.
            _ if key.starts_with(b"GNU.sparse.") => return Err(damaged("a sparse file")),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An entry as bytes: header and content.
    pub(in crate::agent::image) fn entry(
        name: &str,
        kind: u8,
        target: &str,
        content: &[u8],
    ) -> Vec<u8> {
        let mut header = [0_u8; BLOCK];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000644");
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[156] = kind;
        header[157..157 + target.len()].copy_from_slice(target.as_bytes());
        header[257..263].copy_from_slice(b"ustar\0");
        let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum::<u64>() + 8 * 32;
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let mut all = header.to_vec();
        all.extend(content);
        all.resize(all.len().div_ceil(BLOCK) * BLOCK, 0);
        all
    }

    fn names(bytes: &[u8]) -> io::Result<Vec<(String, Kind, String)>> {
        let mut archive = Archive::new(bytes);
        let mut all = Vec::new();
        while let Some(entry) = archive.next()? {
            let mut content = String::new();
            archive.read_to_string(&mut content)?;
            all.push((entry.path.display().to_string(), entry.kind, content));
        }
        Ok(all)
    }

    #[test]
    fn entries_are_read_with_long_names_of_both_kinds() {
        let long = "long/".repeat(40) + "name";
        let pax = format!("path={long}\n");
        // The length counts itself.
        let pax = format!("{} {pax}", pax.len() + 4);
        let bytes = [
            entry("d/", b'5', "", b""),
            entry("d/a", b'0', "", b"one"),
            entry("ignored", b'x', "", pax.as_bytes()),
            entry("short", b'0', "", b"two"),
            entry("././@LongLink", b'L', "", format!("{long}\0").as_bytes()),
            entry("short", b'2', "d/a", b""),
            vec![0; 1024],
            b"what comes after the end".to_vec(),
        ]
        .concat();
        let all = names(&bytes).unwrap();
        let wanted = [
            ("d/".to_owned(), Kind::Folder, String::new()),
            ("d/a".to_owned(), Kind::File, "one".to_owned()),
            (long.clone(), Kind::File, "two".to_owned()),
            (long, Kind::Link, String::new()),
        ];
        assert_eq!(all, wanted);
    }

    #[test]
    fn damaged_archives_are_errors_and_never_large() {
        let whole = entry("a", b'0', "", &[7; 600]);
        let mut wrong_sum = whole.clone();
        wrong_sum[0] = b'b';
        let huge = {
            let mut header = [0_u8; BLOCK];
            header.copy_from_slice(&entry("x", b'x', "", b"")[..BLOCK]);
            header[124..136].copy_from_slice(b"77777777777 ");
            header[148..156].copy_from_slice(b"        ");
            let sum: u64 = header.iter().map(|byte| u64::from(*byte)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
            header.to_vec()
        };
        for bytes in [
            &whole[..1000],
            &whole[..100],
            &wrong_sum[..],
            &huge[..],
            &entry("p", b'x', "", b"99 path=x\n")[..],
            &entry("p", b'x', "", b"25 GNU.sparse.size=99999\n")[..],
            &entry("s", b'S', "", b"")[..],
            &entry("././@LongLink", b'L', "", b"x").repeat(20)[..],
        ] {
            let error = names(bytes).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{error}");
        }
    }

    #[test]
    fn what_the_systems_tar_writes_is_read() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(folder.path().join("d/e")).unwrap();
        std::fs::write(folder.path().join("d/e/f"), "text").unwrap();
        for format in ["--format=gnu", "--format=pax", "--format=ustar"] {
            let made = std::process::Command::new("tar")
                .args([format, "-cf", "-", "-C"])
                .arg(folder.path())
                .arg("d")
                .output()
                .unwrap();
            let all = names(&made.stdout).unwrap();
            assert_eq!(all.last().unwrap(), &("d/e/f".into(), Kind::File, "text".into()));
        }
    }
}
