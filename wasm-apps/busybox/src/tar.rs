//! `tar`: archives of files and folders, as `kubectl cp` makes and reads them.
//!
//! Written: ustar, with GNU's long names. Read: ustar, GNU's long names, pax' `path`. Links, devices
//! and owners are left out.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;

use crate::cx::Cx;
use crate::files::make_folders;

/// Bytes of a header, and what contents are filled up to.
const BLOCK: usize = 512;
/// Bytes of a name in a header.
const NAME_BYTES: usize = 100;
/// Longest name that is read, in bytes.
const LONG_NAME_BYTES_MAX: u64 = 64 * 1024;
/// Bytes copied at once; a multiple of a block.
const COPY_BYTES: usize = 64 * 1024;
/// Where the fields of a header are: first byte and length.
const MODE: (usize, usize) = (100, 8);
const SIZE: (usize, usize) = (124, 12);
const TIME: (usize, usize) = (136, 12);
const CHECKSUM: (usize, usize) = (148, 8);
const KIND: usize = 156;
const PREFIX: (usize, usize) = (345, 155);

/// What the arguments ask for.
#[derive(Debug, Default)]
struct Options {
    does: Option<char>,
    archive: Option<String>,
    folder: Option<String>,
    is_verbose: bool,
    keeps_time: bool,
    strip: usize,
    names: Vec<String>,
}

impl Options {
    fn read(args: &[String]) -> Result<Self, String> {
        let mut options = Self { keeps_time: true, ..Self::default() };
        let mut words = args.iter().skip(1).peekable();
        // The first word may be letters without a dash: `tar cf - x`.
        let mut letters: Vec<String> = Vec::new();
        if let Some(first) = words.next_if(|word| !word.starts_with('-')) {
            letters.push(first.clone());
        }
        loop {
            while let Some(group) = letters.pop() {
                for letter in group.chars() {
                    match letter {
                        'c' | 'x' | 't' => options.does = Some(letter),
                        'v' => options.is_verbose = true,
                        'm' => options.keeps_time = false,
                        'f' => options.archive = words.next().cloned(),
                        'C' => options.folder = words.next().cloned(),
                        'p' | 'o' | 'h' | 'P' => {}
                        other => return Err(format!("unknown option '{other}'")),
                    }
                }
            }
            let Some(word) = words.next() else { break };
            if let Some(long) = word.strip_prefix("--") {
                match long.split_once('=') {
                    Some(("strip-components", count)) => options.strip = count.parse().unwrap_or(0),
                    Some(("directory", folder)) => options.folder = Some(folder.to_owned()),
                    Some(("file", file)) => options.archive = Some(file.to_owned()),
                    _ if matches!(
                        long,
                        "no-same-owner" | "no-same-permissions" | "numeric-owner"
                    ) => {}
                    _ => return Err(format!("unknown option '--{long}'")),
                }
            } else if let Some(group) = word.strip_prefix('-').filter(|group| !group.is_empty()) {
                letters.push(group.to_owned());
            } else {
                options.names.push(word.clone());
            }
        }
        Ok(options)
    }
}

/// `tar c|x|t [f ARCHIVE] [C FOLDER] [NAME]...`; without a file or with `-`, standard streams.
pub fn main(cx: &mut Cx, args: &[String]) -> i32 {
    let options = match Options::read(args) {
        Ok(options) => options,
        Err(why) => {
            cx.say(&format!("tar: {why}"));
            return 1;
        }
    };
    let base = cx.path(options.folder.as_deref().unwrap_or("."));
    let done = match options.does {
        Some('c') => create(cx, &options, &base),
        Some('x') if !Path::new(&base).is_dir() => Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("can't change directory to '{base}': No such file or directory"),
        )),
        Some('x' | 't') => extract(cx, &options, &base),
        _ => Err(io::Error::other("one of c, x and t must be given")),
    };
    match done {
        Ok(code) => code,
        Err(error) => {
            cx.say(&format!("tar: {error}"));
            1
        }
    }
}

fn create(cx: &mut Cx, options: &Options, base: &str) -> io::Result<i32> {
    let file = options.archive.as_deref().filter(|name| *name != "-");
    let file = file.map(|name| File::create(cx.path(name))).transpose()?;
    let folder = Cx { cwd: base.to_owned(), ..Cx::of_process() };
    let mut failures = Vec::new();
    let mut out: Box<dyn Write> = match file {
        Some(file) => Box::new(io::BufWriter::new(file)),
        None => Box::new(cx.output.clone()),
    };
    for name in &options.names {
        let path = folder.path(name);
        // As GNU tar: names in an archive are relative.
        let name = name.trim_start_matches('/').trim_end_matches('/');
        let name = if name.is_empty() { "." } else { name };
        if let Err(error) = add(&mut *out, &path, name) {
            failures.push((name.to_owned(), error));
        }
    }
    let code = i32::from(!failures.is_empty());
    for (name, error) in &failures {
        cx.fail("tar", name, error);
    }
    // An archive of nothing has no end either: a reader that has seen one asks for no exit code.
    if failures.len() < options.names.len() {
        out.write_all(&[0; 2 * BLOCK])?;
    }
    out.flush()?;
    Ok(code)
}

fn add(out: &mut dyn Write, path: &str, name: &str) -> io::Result<()> {
    let meta = fs::symlink_metadata(path)?;
    let time = meta.modified().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    let time = time.map_or(0, |since| since.as_secs());
    if meta.is_dir() {
        header(out, &format!("{name}/"), b'5', 0, time)?;
        let mut entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let below = entry.file_name().to_string_lossy().into_owned();
            add(out, &format!("{path}/{below}"), &format!("{name}/{below}"))?;
        }
        return Ok(());
    }
    if !meta.is_file() {
        return Ok(());
    }
    let mut file = File::open(path)?;
    let size = meta.len();
    header(out, name, b'0', size, time)?;
    // Exactly as many bytes as the header says, whatever happens to the file meanwhile.
    let copied = io::copy(&mut (&mut file).take(size), out)?;
    io::copy(&mut io::repeat(0).take(size - copied + padding(size)), out)?;
    Ok(())
}

fn padding(size: u64) -> u64 {
    let block = BLOCK as u64;
    (block - size % block) % block
}

fn header(out: &mut dyn Write, name: &str, kind: u8, size: u64, time: u64) -> io::Result<()> {
    if name.len() > NAME_BYTES {
        let bytes = name.len() as u64 + 1;
        header(out, "././@LongLink", b'L', bytes, 0)?;
        out.write_all(name.as_bytes())?;
        out.write_all(&vec![0; usize::try_from(1 + padding(bytes)).unwrap_or(1)])?;
    }
    let mut block = [0_u8; BLOCK];
    let mut put = |(at, length): (usize, usize), text: &str| {
        let place = block.iter_mut().skip(at).take(length);
        place.zip(text.bytes()).for_each(|(place, byte)| *place = byte);
    };
    put((0, NAME_BYTES), name);
    put(MODE, if kind == b'5' { "0000755" } else { "0000644" });
    put((108, 8), "0000000");
    put((116, 8), "0000000");
    put(SIZE, &format!("{size:011o}"));
    put(TIME, &format!("{time:011o}"));
    put(CHECKSUM, "        ");
    put((257, 8), "ustar  ");
    put((265, 32), "root");
    put((297, 32), "root");
    if let Some(place) = block.get_mut(KIND) {
        *place = kind;
    }
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    for (place, byte) in block.iter_mut().skip(CHECKSUM.0).zip(format!("{sum:06o}\0 ").bytes()) {
        *place = byte;
    }
    out.write_all(&block)
}

fn extract(cx: &mut Cx, options: &Options, base: &str) -> io::Result<i32> {
    let archive = options.archive.clone().unwrap_or_else(|| "-".to_owned());
    let mut input = io::BufReader::with_capacity(COPY_BYTES, cx.open(&archive)?);
    let is_list = options.does == Some('t');
    let (mut code, mut long) = (0, None);
    while let Some(entry) = Entry::read(&mut input)? {
        match entry.kind {
            b'L' => long = Some(text(&mut input, entry.size)?.trim_end_matches('\0').to_owned()),
            b'x' => long = pax_path(&text(&mut input, entry.size)?).or(long),
            b'g' | b'K' => skip(&mut input, entry.size)?,
            kind => {
                let name = long.take().unwrap_or(entry.name);
                if is_list {
                    cx.line(&name);
                    skip(&mut input, entry.size)?;
                    continue;
                }
                if options.is_verbose {
                    cx.line(&name);
                }
                let Some(path) = place(base, &name, options.strip) else {
                    skip(&mut input, entry.size)?;
                    continue;
                };
                let time = options.keeps_time.then_some(entry.time);
                if let Err(error) = unpack(&mut input, kind, &path, entry.size, time)? {
                    cx.fail("tar", &name, &error);
                    code = 1;
                }
            }
        }
    }
    // What follows the end is read, or the sender would see a broken pipe.
    io::copy(&mut input, &mut io::sink())?;
    Ok(code)
}

/// Writes one entry. The outer error is the archive's, the inner one the file's.
fn unpack(
    input: &mut impl Read,
    kind: u8,
    path: &str,
    size: u64,
    time: Option<u64>,
) -> io::Result<io::Result<()>> {
    match kind {
        b'5' => Ok(make_folders(path)),
        b'0' | 0 | b'7' => {
            if let Some(parent) = Path::new(path).parent().and_then(Path::to_str) {
                let _ = make_folders(parent);
            }
            let mut file = match File::create(path) {
                Ok(file) => file,
                Err(error) => {
                    skip(input, size)?;
                    return Ok(Err(error));
                }
            };
            let mut left = size;
            let mut buffer = vec![0; COPY_BYTES];
            let mut written = Ok(());
            while left > 0 {
                let want = usize::try_from(left).unwrap_or(COPY_BYTES).min(COPY_BYTES);
                let part = buffer.get_mut(..want).unwrap_or_default();
                input.read_exact(part)?;
                if written.is_ok() {
                    written = file.write_all(part);
                }
                left -= want as u64;
            }
            io::copy(&mut input.take(padding(size)), &mut io::sink())?;
            if let Some(at) = time.and_then(|time| {
                std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(time))
            }) {
                let _ = file.set_modified(at);
            }
            Ok(written)
        }
        // Links could lead out of where the caller wants files.
        _ => {
            skip(input, size)?;
            Ok(Err(io::Error::other("not a file or folder: left out")))
        }
    }
}

/// Where an entry goes: below the base, whatever its name says. `None` is nowhere.
fn place(base: &str, name: &str, strip: usize) -> Option<String> {
    let parts: Vec<&str> =
        name.split('/').filter(|part| !matches!(*part, "" | ".")).skip(strip).collect();
    if parts.contains(&"..") {
        return None;
    }
    if parts.is_empty() {
        return (strip == 0).then(|| base.to_owned());
    }
    Some(format!("{}/{}", base.trim_end_matches('/'), parts.join("/")))
}

/// A header that was read.
#[derive(Debug)]
struct Entry {
    name: String,
    kind: u8,
    size: u64,
    time: u64,
}

impl Entry {
    /// `None` at the end of the archive.
    fn read(input: &mut impl Read) -> io::Result<Option<Self>> {
        let mut block = [0_u8; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            let count = input.read(block.get_mut(have..).unwrap_or_default())?;
            if count == 0 {
                return if have == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            }
            have += count;
        }
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let field = |(at, length): (usize, usize)| block.get(at..at + length).unwrap_or_default();
        let (start, end) = (CHECKSUM.0, CHECKSUM.0 + CHECKSUM.1);
        let bytes = block.iter().enumerate();
        let sum: u64 = bytes
            .map(|(at, byte)| if (start..end).contains(&at) { 32 } else { u64::from(*byte) })
            .sum();
        if number(field(CHECKSUM)) != Some(sum) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "invalid tar header checksum"));
        }
        let size = number(field(SIZE));
        let size =
            size.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "invalid size"))?;
        let name = words(field((0, NAME_BYTES)));
        // GNU's headers have other things where POSIX' have the first part of a name.
        let prefix =
            if field((257, 6)) == b"ustar\0" { words(field(PREFIX)) } else { String::new() };
        let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
        let kind = block.get(KIND).copied().unwrap_or(0);
        let size = if matches!(kind, b'5' | b'1' | b'2') { 0 } else { size };
        Ok(Some(Self { name, kind, size, time: number(field(TIME)).unwrap_or(0) }))
    }
}

/// A text field.
fn words(field: &[u8]) -> String {
    let text = field.split(|byte| *byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(text).into_owned()
}

/// A number field: octal digits, or base 256 for what has too many of them.
fn number(field: &[u8]) -> Option<u64> {
    if field.first().is_some_and(|byte| byte & 0x80 != 0) {
        let digits = field.iter().rev().take(8).rev();
        return Some(digits.fold(0, |number, byte| number << 8 | u64::from(*byte)));
    }
    let text = std::str::from_utf8(field).ok()?;
    let text = text.trim_matches(['\0', ' ']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

fn text(input: &mut impl Read, size: u64) -> io::Result<String> {
    if size > LONG_NAME_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a name is too long"));
    }
    let mut bytes = Vec::new();
    input.take(size).read_to_end(&mut bytes)?;
    io::copy(&mut input.take(padding(size)), &mut io::sink())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `path` of pax records: `<length> path=<value>\n`.
fn pax_path(records: &str) -> Option<String> {
    let mut rest = records;
    while let Some((length, _)) = rest.split_once(' ') {
        let record = rest.get(..length.parse().ok()?)?;
        let (_, pair) = record.trim_end_matches('\n').split_once(' ')?;
        if let Some(path) = pair.strip_prefix("path=") {
            return Some(path.to_owned());
        }
        rest = rest.get(record.len()..)?;
    }
    None
}

fn skip(input: &mut impl Read, size: u64) -> io::Result<()> {
    io::copy(&mut input.take(size + padding(size)), &mut io::sink())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sh::streams::Input;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn the_arguments_of_kubectl_cp_are_understood() {
        let options = Options::read(&words("tar -xmf - -C /data")).unwrap();
        assert_eq!(options.does, Some('x'));
        assert_eq!(options.folder.as_deref(), Some("/data"));
        assert!(!options.keeps_time);
        let options = Options::read(&words("tar cf - /data/x")).unwrap();
        assert_eq!((options.does, options.archive.as_deref()), (Some('c'), Some("-")));
        assert_eq!(options.names, ["/data/x"]);
    }

    #[test]
    fn an_archive_is_unpacked_as_it_was_packed_and_never_outside() {
        let root = std::env::temp_dir().join(format!("busybox-tar-{}", std::process::id()));
        let root = root.to_str().unwrap().to_owned();
        let long = "n".repeat(120);
        make_folders(&format!("{root}/from/deep")).unwrap();
        fs::write(format!("{root}/from/deep/{long}"), vec![7; 1000]).unwrap();
        fs::write(format!("{root}/from/empty"), "").unwrap();
        let mut archive = Vec::new();
        add(&mut archive, &format!("{root}/from"), "from").unwrap();
        header(&mut archive, "../escaped", b'0', 0, 0).unwrap();
        archive.extend_from_slice(&[0; 2 * BLOCK]);
        assert_eq!(archive.len() % BLOCK, 0);
        let mut cx = Cx::of_process();
        cx.input = Input::new(io::Cursor::new(archive));
        make_folders(&format!("{root}/to")).unwrap();
        assert_eq!(main(&mut cx, &words(&format!("tar xf - -C {root}/to"))), 0);
        assert_eq!(fs::read(format!("{root}/to/from/deep/{long}")).unwrap(), vec![7; 1000]);
        assert!(fs::read(format!("{root}/to/from/empty")).unwrap().is_empty());
        assert!(!Path::new(&format!("{root}/escaped")).exists());
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn broken_archives_are_refused() {
        let read = |bytes: &[u8]| Entry::read(&mut io::Cursor::new(bytes.to_vec()));
        assert!(read(&[]).unwrap().is_none());
        assert!(read(&[1; 100]).is_err(), "less than a header");
        assert!(read(&[1; BLOCK]).is_err(), "no checksum");
        assert_eq!(pax_path("12 path=a/b\n"), Some("a/b".to_owned()));
        assert_eq!(pax_path("99 path=a/b\n"), None);
    }
}
