//! Looks at files of volumes, and writes some.
//!
//! WASI has neither modes nor owners nor types of file systems. What a guest may do with a file it
//! can find out by trying; the permissions printed are those, as the owner's, and nobody else's.

use std::fs::{self, OpenOptions};
use std::io;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::Failure;
use crate::flags::{Given, switch, value};

const NEW_CONTENT: &str = "mount-tester new file\n";
/// Pause between two looks at the content in a loop.
const LOOK: Duration = Duration::from_secs(2);
/// How long the loop goes on without `--retry_time`, in seconds.
const RETRY_SECONDS_DEFAULT: u64 = 180;
const NEW_FILES: [&str; 4] = ["new_file_0644", "new_file_0660", "new_file_0666", "new_file_0777"];

pub(crate) fn run(args: &[String]) -> Result<(), Failure> {
    let mut known = vec![
        value("fs_type"),
        value("file_mode"),
        value("file_perm"),
        value("file_owner"),
        value("file_content"),
        value("file_content_in_loop"),
        value("retry_time"),
        switch("break_on_expected_content"),
    ];
    known.extend(NEW_FILES.map(value));
    let given = Given::read(args, &known)?;
    for (flag, what) in [("fs_type", "type of its file system"), ("file_owner", "owner")] {
        if let Some(path) = given.text(flag) {
            return Err(Failure::Usage(format!(
                "--{flag} {path}: WASI does not tell a file's {what}"
            )));
        }
    }
    let retry = Duration::from_secs(given.number("retry_time", RETRY_SECONDS_DEFAULT)?);
    let is_once = given.is_set("break_on_expected_content", true)?;

    let mut has_failed = false;
    let mut note = |outcome: io::Result<()>, verb: &str, path: &str| {
        if let Err(why) = outcome {
            println!("error {verb} file {path:?}: {why}");
            has_failed = true;
        }
    };
    for path in NEW_FILES.iter().flat_map(|flag| given.texts(flag)) {
        note(fs::write(path, NEW_CONTENT), "writing", path);
        note(print_permissions("perms", path), "looking at", path);
    }
    for path in given.texts("file_mode") {
        note(print_permissions("mode", path), "looking at", path);
    }
    for path in given.texts("file_perm") {
        note(print_permissions("perms", path), "looking at", path);
    }
    for path in given.texts("file_content") {
        note(print_content(path), "reading", path);
    }
    for path in given.texts("file_content_in_loop") {
        let start = Instant::now();
        loop {
            let outcome = print_content(path);
            let is_read = outcome.is_ok();
            if (is_read && is_once) || start.elapsed() >= retry {
                note(outcome, "reading", path);
                break;
            }
            // It may come: that is what the loop is for.
            if let Err(why) = outcome {
                println!("error reading file {path:?}: {why}");
            }
            sleep(LOOK);
        }
    }
    if has_failed { Err(Failure::Failed("not all was as asked for".to_owned())) } else { Ok(()) }
}

fn print_content(path: &str) -> io::Result<()> {
    let content = fs::read(path)?;
    println!("content of file {path:?}: {}", String::from_utf8_lossy(&content));
    Ok(())
}

fn print_permissions(what: &str, path: &str) -> io::Result<()> {
    let metadata = fs::metadata(path)?;
    let (kind, can_read, can_write) = if metadata.is_dir() {
        ('d', fs::read_dir(path).is_ok(), can_create_in(Path::new(path)))
    } else {
        ('-', fs::File::open(path).is_ok(), OpenOptions::new().append(true).open(path).is_ok())
    };
    let [read, write] =
        [(can_read, 'r'), (can_write, 'w')].map(|(can, c)| if can { c } else { '-' });
    println!("{what} of file {path:?}: {kind}{read}{write}-------");
    Ok(())
}

fn can_create_in(folder: &Path) -> bool {
    let path = folder.join(".agnhost-mounttest");
    fs::write(&path, "").is_ok() && fs::remove_file(&path).is_ok()
}
