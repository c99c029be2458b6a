//! Tools for files and folders.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use crate::cx::{Cx, letters};

/// Lists folders: `-l` with sizes, `-a` with hidden ones, `-d` the folder itself, `-1` is always so.
pub fn ls(cx: &mut Cx, args: &[String]) -> i32 {
    let (options, names) = letters(args);
    let here = [".".to_owned()];
    let names = if names.is_empty() { &here[..] } else { names };
    let mut code = 0;
    for name in names {
        let path = cx.path(name);
        let mut folder = false;
        let listed = fs::symlink_metadata(&path).and_then(|meta| {
            folder = fs::metadata(&path).is_ok_and(|meta| meta.is_dir()) && !options.contains('d');
            if !folder {
                return Ok(vec![(name.clone(), meta)]);
            }
            let mut entries = Vec::new();
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if options.contains(['a', 'A']) || !name.starts_with('.') {
                    entries.push((name, entry.metadata()?));
                }
            }
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(entries)
        });
        match listed {
            Ok(entries) => {
                if names.len() > 1 {
                    cx.line(&format!("{name}:"));
                }
                for (name, meta) in entries {
                    if options.contains('l') {
                        let at = if folder { format!("{path}/{name}") } else { path.clone() };
                        let (kind, to) = match fs::read_link(at) {
                            Ok(to) if meta.is_symlink() => {
                                ("lrwxrwxrwx", format!(" -> {}", to.display()))
                            }
                            _ if meta.is_dir() => ("drwxr-xr-x", String::new()),
                            _ => ("-rw-r--r--", String::new()),
                        };
                        cx.line(&format!(
                            "{kind}    1 root     root     {:>10} {name}{to}",
                            meta.len()
                        ));
                    } else {
                        cx.line(&name);
                    }
                }
            }
            Err(error) => {
                cx.fail("ls", name, &error);
                code = 1;
            }
        }
    }
    code
}

/// Does one thing to each named file.
fn each(cx: &mut Cx, tool: &str, names: &[String], act: impl Fn(&str) -> io::Result<()>) -> i32 {
    let mut code = i32::from(names.is_empty());
    if names.is_empty() {
        cx.say(&format!("{tool}: missing operand"));
    }
    for name in names {
        if let Err(error) = act(&cx.path(name)) {
            cx.fail(tool, name, &error);
            code = 1;
        }
    }
    code
}

/// Makes folders; `-p` with those above them.
pub fn mkdir(cx: &mut Cx, args: &[String]) -> i32 {
    let (options, names) = letters(args);
    let is_deep = options.contains('p');
    each(cx, "mkdir", names, |path| if is_deep { make_folders(path) } else { fs::create_dir(path) })
}

/// Makes a folder and those above it. Volumes are there already, though not all of the way to them
/// can be looked at.
pub fn make_folders(path: &str) -> io::Result<()> {
    if Path::new(path).is_dir() {
        return Ok(());
    }
    if let Some(parent) = Path::new(path).parent().and_then(Path::to_str) {
        make_folders(parent)?;
    }
    match fs::create_dir(path) {
        Err(_) if Path::new(path).is_dir() => Ok(()),
        made => made,
    }
}

/// Removes files; `-r` folders too, `-f` without a word about missing ones.
pub fn rm(cx: &mut Cx, args: &[String]) -> i32 {
    let (options, names) = letters(args);
    let (is_deep, is_forced) = (options.contains(['r', 'R']), options.contains('f'));
    if is_forced && names.is_empty() {
        return 0;
    }
    each(cx, "rm", names, |path| {
        let removed = fs::symlink_metadata(path).and_then(|meta| match (meta.is_dir(), is_deep) {
            (true, true) => fs::remove_dir_all(path),
            (true, false) => Err(io::Error::other("Is a directory")),
            (false, _) => fs::remove_file(path),
        });
        match removed {
            Err(error) if is_forced && error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    })
}

/// Makes empty files where there are none.
pub fn touch(cx: &mut Cx, args: &[String]) -> i32 {
    let (_, names) = letters(args);
    each(cx, "touch", names, |path| {
        let now = std::time::SystemTime::now();
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        // Times are a nicety: not every volume keeps them.
        let _ = file.set_modified(now);
        Ok(())
    })
}

/// Copies files; `-r` folders too.
pub fn cp(cx: &mut Cx, args: &[String]) -> i32 {
    let (options, names) = letters(args);
    let is_deep = options.contains(['r', 'R', 'a']);
    to_last(cx, "cp", names, |from, to| {
        if Path::new(from).is_dir() && !is_deep {
            return Err(io::Error::other("omitting directory"));
        }
        if to == from || to.strip_prefix(from).is_some_and(|rest| rest.starts_with('/')) {
            return Err(io::Error::other("cannot be copied into itself"));
        }
        copy(from, to)
    })
}

/// Moves files and folders.
pub fn mv(cx: &mut Cx, args: &[String]) -> i32 {
    let (_, names) = letters(args);
    to_last(cx, "mv", names, |from, to| match fs::rename(from, to) {
        // Another volume.
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            copy(from, to)?;
            if Path::new(from).is_dir() { fs::remove_dir_all(from) } else { fs::remove_file(from) }
        }
        other => other,
    })
}

fn to_last(
    cx: &mut Cx,
    tool: &str,
    names: &[String],
    act: impl Fn(&str, &str) -> io::Result<()>,
) -> i32 {
    let Some((last, sources)) = names.split_last().filter(|(_, sources)| !sources.is_empty())
    else {
        cx.say(&format!("{tool}: missing operand"));
        return 1;
    };
    let target = cx.path(last);
    let mut code = 0;
    for name in sources {
        let from = cx.path(name);
        let base = from.rsplit('/').next().unwrap_or_default();
        let to =
            if Path::new(&target).is_dir() { format!("{target}/{base}") } else { target.clone() };
        if let Err(error) = act(&from, &to) {
            cx.fail(tool, name, &error);
            code = 1;
        }
    }
    code
}

fn copy(from: &str, to: &str) -> io::Result<()> {
    if !Path::new(from).is_dir() {
        io::copy(&mut File::open(from)?, &mut File::create(to)?)?;
        return Ok(());
    }
    make_folders(to)?;
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        copy(&format!("{from}/{name}"), &format!("{to}/{name}"))?;
    }
    Ok(())
}

/// The last part of a path, without the ending given.
pub fn basename(cx: &mut Cx, args: &[String]) -> i32 {
    let path = args.get(1).map_or("", String::as_str).trim_end_matches('/');
    let base = path.rsplit('/').next().unwrap_or(path);
    let base = args.get(2).and_then(|ending| base.strip_suffix(ending.as_str())).unwrap_or(base);
    let base = base.to_owned();
    cx.line(&base);
    0
}

/// All but the last part of a path.
pub fn dirname(cx: &mut Cx, args: &[String]) -> i32 {
    let path = args.get(1).map_or("", String::as_str).trim_end_matches('/');
    let folder = match path.rsplit_once('/') {
        Some(("", _)) => "/",
        Some((folder, _)) => folder,
        None => ".",
    };
    let folder = folder.to_owned();
    cx.line(&folder);
    0
}

/// Removes empty folders.
pub fn rmdir(cx: &mut Cx, args: &[String]) -> i32 {
    let (_, names) = letters(args);
    each(cx, "rmdir", names, |path| fs::remove_dir(path))
}

/// A sandbox has one user, who may do what the volumes allow: there is nothing to change.
pub fn nothing(_: &mut Cx, _: &[String]) -> i32 {
    0
}

/// Where a symbolic link leads.
pub fn readlink(cx: &mut Cx, args: &[String]) -> i32 {
    let (options, names) = letters(args);
    let mut code = i32::from(names.is_empty());
    for name in names {
        let path = cx.path(name);
        match fs::read_link(&path) {
            Ok(target) => cx.line(&target.display().to_string()),
            Err(_) if options.contains('f') => cx.line(&path),
            Err(_) => code = 1,
        }
    }
    code
}

/// Makes an empty file of a new name, or a folder with `-d`; says the name.
pub fn mktemp(cx: &mut Cx, args: &[String]) -> i32 {
    /// Names that are tried.
    const TRIES_MAX: u32 = 100;
    let (options, names) = letters(args);
    let template = names.first().map_or("/tmp/tmp.XXXXXX", String::as_str);
    let stem = cx.path(template.trim_end_matches('X'));
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = now.unwrap_or_default().subsec_nanos();
    for attempt in 0..TRIES_MAX {
        let path = format!("{stem}{:06x}", seed.wrapping_add(attempt) & 0xff_ffff);
        let made = if options.contains('d') {
            fs::create_dir(&path)
        } else {
            OpenOptions::new().create_new(true).write(true).open(&path).map(drop)
        };
        match made {
            Ok(()) => {
                cx.line(&path);
                return 0;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => {
                cx.fail("mktemp", template, &error);
                return 1;
            }
        }
    }
    1
}

/// Which of these tools there are.
pub fn which(cx: &mut Cx, args: &[String]) -> i32 {
    let mut code = 0;
    for name in args.iter().skip(1) {
        if crate::applet(name).is_some() {
            cx.line(&format!("/bin/{}", name.rsplit('/').next().unwrap_or(name)));
        } else {
            code = 1;
        }
    }
    code
}

/// `test EXPRESSION` and `[ EXPRESSION ]`: 0 true, 1 false, 2 not understood.
pub fn test(cx: &mut Cx, args: &[String]) -> i32 {
    let mut words: Vec<&str> = args.iter().skip(1).map(String::as_str).collect();
    if args.first().is_some_and(|name| name == "[") && words.pop() != Some("]") {
        cx.say("[: missing ]");
        return 2;
    }
    match truth(cx, &words) {
        Some(is_true) => i32::from(!is_true),
        None => {
            cx.say(&format!("test: {}: unknown operand", words.join(" ")));
            2
        }
    }
}

fn truth(cx: &Cx, words: &[&str]) -> Option<bool> {
    match words {
        [] => Some(false),
        [word] => Some(!word.is_empty()),
        ["!", rest @ ..] => truth(cx, rest).map(|is_true| !is_true),
        ["-n", text] => Some(!text.is_empty()),
        ["-z", text] => Some(text.is_empty()),
        [option, name] => {
            let path = cx.path(name);
            let path = Path::new(&path);
            let meta = fs::metadata(path);
            match *option {
                "-e" | "-r" | "-w" | "-x" => Some(meta.is_ok()),
                "-f" => Some(meta.is_ok_and(|meta| meta.is_file())),
                "-d" => Some(meta.is_ok_and(|meta| meta.is_dir())),
                "-s" => Some(meta.is_ok_and(|meta| meta.len() > 0)),
                "-L" | "-h" => Some(fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink())),
                _ => None,
            }
        }
        [left, "=" | "==", right] => Some(left == right),
        [left, "!=", right] => Some(left != right),
        [left, compare @ ("-eq" | "-ne" | "-lt" | "-le" | "-gt" | "-ge"), right] => {
            let (left, right) = (left.parse::<i64>().ok()?, right.parse::<i64>().ok()?);
            Some(match *compare {
                "-eq" => left == right,
                "-ne" => left != right,
                "-lt" => left < right,
                "-le" => left <= right,
                "-gt" => left > right,
                _ => left >= right,
            })
        }
        // As POSIX has it, `-a` binds more than `-o`.
        _ => ["-o", "-a"].into_iter().find_map(|operator| {
            let at = words.iter().position(|word| *word == operator)?;
            let (left, right) = (words.get(..at)?, words.get(at + 1..)?);
            if left.is_empty() || right.is_empty() {
                return None;
            }
            let (left, right) = (truth(cx, left)?, truth(cx, right)?);
            Some(if operator == "-o" { left || right } else { left && right })
        }),
    }
}
