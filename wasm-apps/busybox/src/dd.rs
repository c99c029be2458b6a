//! `dd`: copies blocks.

use std::fs::OpenOptions;
use std::io::{self, Read, Seek as _, SeekFrom, Write};
use std::time::Instant;

use crate::cx::Cx;

/// Largest block, in bytes: one is in memory.
const BLOCK_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What the command line says.
#[derive(Debug, PartialEq, Eq)]
struct Wish {
    from: Option<String>,
    to: Option<String>,
    block: u64,
    count: Option<u64>,
    skip: u64,
    seek: u64,
    keeps_rest: bool,
    is_quiet: bool,
}

/// Blocks that were read or written: whole ones, and shorter ones.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Blocks {
    whole: u64,
    part: u64,
}

impl Blocks {
    fn count(&mut self, bytes: usize, block: usize) {
        if bytes == block {
            self.whole += 1;
        } else {
            self.part += 1;
        }
    }
}

/// `dd [if=FILE] [of=FILE] [bs=N] [count=N] [skip=N] [seek=N] [conv=notrunc] [status=none]`.
pub fn main(cx: &mut Cx, args: &[String]) -> i32 {
    let wish = match wish(args.get(1..).unwrap_or_default()) {
        Ok(wish) => wish,
        Err(why) => {
            cx.say(&format!("dd: {why}"));
            return 1;
        }
    };
    match copy(cx, &wish) {
        Ok(()) => 0,
        Err((name, error)) => {
            cx.fail("dd", &name, &error);
            1
        }
    }
}

fn wish(args: &[String]) -> Result<Wish, String> {
    let mut wish = Wish {
        from: None,
        to: None,
        block: 512,
        count: None,
        skip: 0,
        seek: 0,
        keeps_rest: false,
        is_quiet: false,
    };
    for word in args {
        let (name, value) =
            word.split_once('=').ok_or_else(|| format!("unrecognized operand '{word}'"))?;
        let is_one_of =
            |known: &[&str]| value.split(',').all(|flag| flag.is_empty() || known.contains(&flag));
        match name {
            "if" => wish.from = Some(value.to_owned()),
            "of" => wish.to = Some(value.to_owned()),
            "bs" => wish.block = number(value)?,
            "count" => wish.count = Some(number(value)?),
            "skip" => wish.skip = number(value)?,
            "seek" => wish.seek = number(value)?,
            "conv" if is_one_of(&["notrunc", "fsync", "fdatasync"]) => {
                wish.keeps_rest = value.split(',').any(|flag| flag == "notrunc");
            }
            "status" if is_one_of(&["none", "noxfer", "progress"]) => {
                wish.is_quiet = value == "none";
            }
            // What is written is written; there are no caches to go around.
            "oflag" | "iflag" if is_one_of(&["direct", "sync", "dsync", "fullblock"]) => {}
            _ => return Err(format!("'{word}' is not supported")),
        }
    }
    if wish.block == 0 || wish.block > BLOCK_BYTES_MAX {
        return Err(format!("bs must be from 1 to {BLOCK_BYTES_MAX}"));
    }
    Ok(wish)
}

/// `10`, `4k`, `1M`.
fn number(text: &str) -> Result<u64, String> {
    let invalid = || format!("invalid number '{text}'");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..).unwrap_or_default() {
        "" | "c" => 1,
        "b" => 512,
        "k" | "K" | "KiB" => 1 << 10,
        "kB" | "KB" => 1000,
        "M" | "MiB" => 1 << 20,
        "MB" => 1_000_000,
        "G" | "GiB" => 1 << 30,
        _ => return Err(invalid()),
    };
    digits.parse::<u64>().ok().and_then(|n| n.checked_mul(unit)).ok_or_else(invalid)
}

fn copy(cx: &mut Cx, wish: &Wish) -> Result<(), (String, io::Error)> {
    let from = wish.from.clone().unwrap_or_else(|| "-".to_owned());
    let to = wish.to.clone().unwrap_or_else(|| "standard output".to_owned());
    let began = Instant::now();
    let mut input = open(cx, &from).map_err(|error| (from.clone(), error))?;
    let mut output = create(cx, wish).map_err(|error| (to.clone(), error))?;
    let skipped = wish.skip.saturating_mul(wish.block);
    io::copy(&mut input.by_ref().take(skipped), &mut io::sink())
        .map_err(|error| (from.clone(), error))?;
    let block = usize::try_from(wish.block).unwrap_or(usize::MAX);
    let mut buffer = vec![0; block];
    let (mut blocks_in, mut blocks_out, mut bytes) = (Blocks::default(), Blocks::default(), 0_u64);
    while wish.count.is_none_or(|count| blocks_in.whole + blocks_in.part < count) {
        let count = fill(&mut input, &mut buffer).map_err(|error| (from.clone(), error))?;
        let Some(piece) = buffer.get(..count).filter(|piece| !piece.is_empty()) else { break };
        blocks_in.count(count, block);
        output.write_all(piece).map_err(|error| (to.clone(), error))?;
        blocks_out.count(count, block);
        bytes += count as u64;
    }
    output.flush().map_err(|error| (to.clone(), error))?;
    if !wish.is_quiet {
        let seconds = began.elapsed().as_secs_f64();
        let rate = bytes as f64 / 1e6 / seconds.max(1e-6);
        cx.say(&format!(
            "{}+{} records in\n{}+{} records out\n{bytes} bytes copied, {seconds:.6} seconds, {rate:.1}MB/s",
            blocks_in.whole, blocks_in.part, blocks_out.whole, blocks_out.part
        ));
    }
    Ok(())
}

/// Reads a whole block, unless the end comes before.
fn fill(input: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut count = 0;
    while let Some(rest) = buffer.get_mut(count..).filter(|rest| !rest.is_empty()) {
        match input.read(rest)? {
            0 => break,
            more => count += more,
        }
    }
    Ok(count)
}

/// A file to read; there are no devices in a sandbox but these.
fn open(cx: &mut Cx, name: &str) -> io::Result<Box<dyn Read>> {
    match name {
        "/dev/zero" => Ok(Box::new(io::repeat(0))),
        "/dev/urandom" | "/dev/random" => Ok(Box::new(Random)),
        name => cx.open(name),
    }
}

fn create(cx: &mut Cx, wish: &Wish) -> io::Result<Box<dyn Write>> {
    match wish.to.as_deref() {
        None => Ok(Box::new(cx.output.clone())),
        Some("/dev/null") => Ok(Box::new(io::sink())),
        Some(name) => {
            let whole = !wish.keeps_rest && wish.seek == 0;
            let mut options = OpenOptions::new();
            let mut file = options.write(true).create(true).truncate(whole).open(cx.path(name))?;
            let at = wish.seek.saturating_mul(wish.block);
            if !wish.keeps_rest && wish.seek > 0 {
                file.set_len(at)?;
            }
            file.seek(SeekFrom::Start(at))?;
            Ok(Box::new(file))
        }
    }
}

/// Random bytes without an end.
struct Random;

impl Read for Random {
    #[cfg(target_family = "wasm")]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        /// Asked of the host at once.
        const ASKED_MAX: usize = 4096;
        let count = buffer.len().min(ASKED_MAX);
        let bytes = wasip2::random::random::get_random_bytes(count as u64);
        let into = buffer.get_mut(..bytes.len()).ok_or(io::ErrorKind::InvalidData)?;
        into.copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    #[cfg(not(target_family = "wasm"))]
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        std::fs::File::open("/dev/urandom")?.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sh::streams::{Input, Kept};

    #[test]
    fn blocks_are_copied_skipped_and_put_in_their_place() {
        let folder = std::env::temp_dir().join(format!("busybox-dd-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let run = |line: &str, input: &str| {
            let (out, err) = (Kept::default(), Kept::default());
            let mut cx = Cx::of_process();
            cx.cwd = folder.display().to_string();
            cx.input = Input::new(io::Cursor::new(input.as_bytes().to_vec()));
            (cx.output, cx.error) = (out.output(), err.output());
            let args: Vec<String> = line.split(' ').map(str::to_owned).collect();
            let code = main(&mut cx, &args);
            let text = |kept: Kept| String::from_utf8(kept.take()).unwrap();
            (code, text(out), text(err))
        };
        let (code, _, said) = run("dd if=/dev/zero of=zeros bs=1k count=3", "");
        assert_eq!(code, 0, "{said}");
        assert!(said.starts_with("3+0 records in\n3+0 records out\n3072 bytes copied"), "{said}");
        assert_eq!(std::fs::read(folder.join("zeros")).unwrap(), [0; 3072]);
        let (_, _, said) = run("dd if=/dev/urandom of=/dev/null bs=10000 count=2", "");
        assert!(said.contains("20000 bytes"), "{said}");
        assert_eq!(run("dd bs=2 skip=1 count=2 status=none", "abcdefgh").1, "cdef");
        assert_eq!(run("dd of=f bs=4 status=none", "abcdefghij").0, 0);
        run("dd of=f bs=1 seek=2 conv=notrunc status=none", "XY");
        assert_eq!(std::fs::read(folder.join("f")).unwrap(), b"abXYefghij");
        run("dd of=f bs=1 seek=3 status=none", "Z");
        assert_eq!(std::fs::read(folder.join("f")).unwrap(), b"abXZ");
        let said = run("dd bs=3", "abcd").2;
        assert!(said.starts_with("1+1 records in\n1+1 records out\n4 bytes"), "{said}");
        for line in ["dd bs=0", "dd bs=1G", "dd bs=x", "dd conv=ucase", "dd file", "dd if=none"] {
            assert_eq!(run(line, "").0, 1, "{line}");
        }
        std::fs::remove_dir_all(folder).unwrap();
    }
}
