//! How large files and folders are.

use std::fs::{self, Metadata};
use std::io;
use std::path::Path;
use std::time::UNIX_EPOCH;

use crate::cx::{Cx, letters};

/// What a file takes of a disk is not told in a sandbox: these blocks are what most file systems have.
const BLOCK_BYTES: u64 = 4096;
/// Folders within folders that are looked into.
const DEPTH_MAX: usize = 128;

/// What folders take, with all below them: `-s` only what is named, `-a` each file, in KiB; `-h` with
/// units, `-m` in MiB.
pub fn du(cx: &mut Cx, args: &[String]) -> i32 {
    let (options, names) = letters(args);
    let here = [".".to_owned()];
    let mut code = 0;
    for name in if names.is_empty() { &here[..] } else { names } {
        let path = cx.path(name);
        let mut sum = Sum { options: &options, lines: Vec::new() };
        match sum.add(Path::new(&path), name, 0) {
            Ok(bytes) => {
                if options.contains('s') || sum.lines.is_empty() {
                    sum.lines = vec![(bytes, name.clone())];
                }
                for (bytes, name) in sum.lines {
                    cx.line(&format!("{}\t{name}", shown(bytes, &options)));
                }
            }
            Err(error) => {
                cx.fail("du", name, &error);
                code = 1;
            }
        }
    }
    code
}

struct Sum<'a> {
    options: &'a str,
    lines: Vec<(u64, String)>,
}

impl Sum<'_> {
    fn add(&mut self, path: &Path, name: &str, depth: usize) -> io::Result<u64> {
        let meta = fs::symlink_metadata(path)?;
        let mut bytes = meta.len().div_ceil(BLOCK_BYTES) * BLOCK_BYTES;
        if meta.is_dir() && depth < DEPTH_MAX {
            bytes = BLOCK_BYTES;
            let mut entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
            entries.sort_by_key(fs::DirEntry::file_name);
            for entry in entries {
                let below = format!("{name}/{}", entry.file_name().to_string_lossy());
                bytes = bytes.saturating_add(self.add(&entry.path(), &below, depth + 1)?);
            }
        }
        if meta.is_dir() || self.options.contains('a') {
            self.lines.push((bytes, name.to_owned()));
        }
        Ok(bytes)
    }
}

fn shown(bytes: u64, options: &str) -> String {
    const UNITS: [(&str, u64); 3] = [("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)];
    if options.contains('h') {
        let unit = UNITS.into_iter().find(|(_, size)| bytes >= *size).unwrap_or(("K", 1 << 10));
        return format!("{:.1}{}", bytes as f64 / unit.1 as f64, unit.0);
    }
    let unit = if options.contains('m') { 1 << 20 } else { 1 << 10 };
    bytes.div_ceil(unit).to_string()
}

/// What is known of files: `-c FORMAT` with `%n %s %F %a %u %g %U %G %X %Y %Z %%`.
pub fn stat(cx: &mut Cx, args: &[String]) -> i32 {
    let mut words = args.get(1..).unwrap_or_default();
    let mut format = None;
    while let Some((first, rest)) = words.split_first() {
        match first.as_str() {
            "-c" => {
                format = rest.first();
                words = rest.get(1..).unwrap_or_default();
            }
            "-L" | "--" => words = rest,
            option if option.starts_with('-') => {
                cx.say(&format!("stat: invalid option '{option}' (there are: -cL)"));
                return 1;
            }
            _ => break,
        }
    }
    if words.is_empty() {
        cx.say("usage: stat [-c FORMAT] FILE...");
        return 1;
    }
    let mut code = 0;
    for name in words {
        match fs::metadata(cx.path(name)) {
            Ok(meta) => {
                let whole = "  File: %n\n  Size: %s\t%F\nAccess: (%a)  Uid: ( %u/ %U)   Gid: ( %g/ %G)\nModify: %Y";
                let text = filled(format.map_or(whole, String::as_str), name, &meta);
                cx.line(&text);
            }
            Err(error) => {
                cx.fail("stat", name, &error);
                code = 1;
            }
        }
    }
    code
}

fn filled(format: &str, name: &str, meta: &Metadata) -> String {
    let seconds = |time: io::Result<std::time::SystemTime>| {
        let since = time.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        since.map_or(0, |since| since.as_secs()).to_string()
    };
    let (mut text, mut rest) = (String::new(), format.chars());
    while let Some(c) = rest.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let Some(letter) = rest.next() else { break };
        match letter {
            'n' => text.push_str(name),
            's' => text.push_str(&meta.len().to_string()),
            'F' if meta.is_dir() => text.push_str("directory"),
            'F' if meta.len() == 0 => text.push_str("regular empty file"),
            'F' => text.push_str("regular file"),
            // A sandbox has one user, who may do everything.
            'a' if meta.is_dir() => text.push_str("755"),
            'a' => text.push_str("644"),
            'u' | 'g' => text.push('0'),
            'U' | 'G' => text.push_str("root"),
            'X' => text.push_str(&seconds(meta.accessed())),
            'Y' | 'Z' => text.push_str(&seconds(meta.modified())),
            '%' => text.push('%'),
            other => text.extend(['%', other]),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sh::streams::Kept;

    #[test]
    fn folders_are_summed_and_files_described() {
        let folder = std::env::temp_dir().join(format!("busybox-du-{}", std::process::id()));
        fs::create_dir_all(folder.join("a/b")).unwrap();
        fs::write(folder.join("a/b/large"), vec![0; 10_000]).unwrap();
        fs::write(folder.join("a/small"), "x").unwrap();
        let run = |line: &str| {
            let kept = Kept::default();
            let mut cx = Cx::of_process();
            cx.cwd = folder.display().to_string();
            cx.output = kept.output();
            let args = ["sh", "-c", line].map(str::to_owned);
            let code = crate::sh::main(&mut cx, &args);
            (String::from_utf8(kept.take()).unwrap(), code)
        };
        for (line, wanted, code) in [
            ("du a", "16\ta/b\n24\ta\n", 0),
            ("du -s a", "24\ta\n", 0),
            ("du -sh a", "24.0K\ta\n", 0),
            ("du -a a/b", "12\ta/b/large\n16\ta/b\n", 0),
            ("du a/small", "4\ta/small\n", 0),
            ("du none 2> err", "", 1),
            ("stat -c '%n %s %F' a/small a", "a/small 1 regular file\na 4096 directory\n", 0),
            ("stat -c %a%% a/small", "644%\n", 0),
            ("stat none 2> err", "", 1),
        ] {
            let found = run(line);
            if !line.starts_with("stat -c '%n") {
                assert_eq!(found, (wanted.to_owned(), code), "{line}");
                continue;
            }
            // How large a folder is, its file system says.
            assert!(found.0.starts_with("a/small 1 regular file\na "), "{line}: {}", found.0);
            assert!(found.0.ends_with(" directory\n") && found.1 == code, "{line}: {}", found.0);
        }
        fs::remove_dir_all(folder).unwrap();
    }
}
