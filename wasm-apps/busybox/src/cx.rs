//! What a tool runs in: folder, variables, streams.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};

use crate::sh::streams::{Input, Output};

/// WASI's error for what a guest has no right to.
const NOT_CAPABLE: i32 = 76;

/// A tool's surroundings. WASI has no working folder, so paths are made absolute here.
pub struct Cx {
    /// Working folder, absolute.
    pub cwd: String,
    /// Variables.
    pub env: BTreeMap<String, String>,
    /// Standard input.
    pub input: Input,
    /// Standard output.
    pub output: Output,
    /// Standard error.
    pub error: Output,
}

impl Cx {
    /// The streams and variables of the process.
    pub fn of_process() -> Self {
        let env: BTreeMap<String, String> = std::env::vars().collect();
        let cwd = env.get("PWD").filter(|dir| dir.starts_with('/')).cloned();
        Self {
            cwd: cwd.unwrap_or_else(|| "/".to_owned()),
            env,
            input: Input::new(io::stdin()),
            output: Output::new(io::BufWriter::new(io::stdout())),
            error: Output::new(io::stderr()),
        }
    }

    /// A path as the user wrote it, absolute and without `.` and `..`.
    pub fn path(&self, text: &str) -> String {
        let whole =
            if text.starts_with('/') { text.to_owned() } else { format!("{}/{text}", self.cwd) };
        let mut parts: Vec<&str> = Vec::new();
        for part in whole.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                name => parts.push(name),
            }
        }
        format!("/{}", parts.join("/"))
    }

    /// Opens a file to read; `-` is standard input.
    pub fn open(&mut self, name: &str) -> io::Result<Box<dyn Read>> {
        if matches!(name, "-" | "/dev/stdin") {
            return Ok(Box::new(self.input.clone()));
        }
        Ok(Box::new(File::open(self.path(name))?))
    }

    /// All that is in the files, or in standard input if none is named. What cannot be read is
    /// complained about; the code is 1 then.
    pub fn read_all(&mut self, tool: &str, names: &[String]) -> (Vec<u8>, i32) {
        let (mut bytes, mut code) = (Vec::new(), 0);
        let stdin = ["-".to_owned()];
        for name in if names.is_empty() { &stdin[..] } else { names } {
            let read = self.open(name).and_then(|mut file| file.read_to_end(&mut bytes));
            if let Err(error) = read {
                self.fail(tool, name, &error);
                code = 1;
            }
        }
        (bytes, code)
    }

    /// Writes to standard output; a reader that is gone is no error.
    pub fn write(&mut self, bytes: &[u8]) {
        let _ = self.output.write_all(bytes);
    }

    /// Writes a line to standard output.
    pub fn line(&mut self, text: &str) {
        let _ = writeln!(self.output, "{text}");
    }

    /// Writes a line to standard error, after what was written to standard output.
    pub fn say(&mut self, text: &str) {
        self.flush();
        let _ = writeln!(self.error, "{text}");
    }

    /// Complains about a file.
    pub fn fail(&mut self, tool: &str, name: &str, error: &io::Error) {
        let why = match error.kind() {
            io::ErrorKind::NotFound => "No such file or directory".to_owned(),
            io::ErrorKind::PermissionDenied => "Permission denied".to_owned(),
            io::ErrorKind::AlreadyExists => "File exists".to_owned(),
            io::ErrorKind::ReadOnlyFilesystem => "Read-only file system".to_owned(),
            // Beside the folders that a guest is given there is nothing, and nothing can be made.
            _ if cfg!(target_family = "wasm") && error.raw_os_error() == Some(NOT_CAPABLE) => {
                "Read-only file system".to_owned()
            }
            _ => error.to_string(),
        };
        self.say(&format!("{tool}: {name}: {why}"));
    }

    /// Puts out what is held back.
    pub fn flush(&mut self) {
        let _ = self.output.flush();
    }
}

/// The letters of a tool's leading options, and the rest of its arguments. `--` ends the options,
/// and so does a lone `-`.
pub fn letters(args: &[String]) -> (String, &[String]) {
    let mut found = String::new();
    let mut rest = args.get(1..).unwrap_or_default();
    while let Some((first, more)) = rest.split_first() {
        if first == "--" {
            return (found, more);
        }
        match first.strip_prefix('-').filter(|letters| !letters.is_empty()) {
            Some(letters) => found.push_str(letters),
            None => break,
        }
        rest = more;
    }
    (found, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_made_absolute() {
        let mut cx = Cx::of_process();
        cx.cwd = "/data/x".to_owned();
        for (text, path) in
            [("a", "/data/x/a"), ("../a/./b", "/data/a/b"), ("/a//b/", "/a/b"), ("../../..", "/")]
        {
            assert_eq!(cx.path(text), path);
        }
    }

    #[test]
    fn options_end_at_the_first_word_that_is_none() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let args = words("ls -l -a x -y");
        let (found, rest) = letters(&args);
        assert_eq!((found.as_str(), rest), ("la", &words("x -y")[..]));
        assert_eq!(letters(&words("rm -- -f")).1, words("-f"));
    }
}
