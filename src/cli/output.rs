//! The two channels: data to stdout, words to stderr.

use std::io::{self, Write};

use serde_json::Value;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::args::OutputFormat;
use super::exit::Failure;

/// Writes bytes as they are. When nobody reads them any more, the failure ends the program
/// quietly, as users of `head` expect.
pub(super) fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    write_to(&mut io::stdout().lock(), bytes)
}

/// Writes text.
pub(super) fn data(text: &str) -> Result<(), Failure> {
    bytes(text.as_bytes())
}

fn write_to(out: &mut impl Write, bytes: &[u8]) -> Result<(), Failure> {
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Ok(()) => Ok(()),
        Err(cause) if cause.kind() == io::ErrorKind::BrokenPipe => Err(Failure::reader_gone()),
        Err(cause) => Err(Failure::failed(format!("cannot write to stdout: {cause}"))),
    }
}

/// Resolves when the reader of stdout has gone, so that a verb that has nothing to write for long
/// ends as well. Never resolves where the kernel does not tell: files and devices.
#[expect(
    deprecated,
    reason = "stdout stays open as long as the process, and the replacement is unsafe code"
)]
pub(super) async fn reader_gone() {
    let Ok(stdout) = AsyncFd::with_interest(io::stdout(), Interest::ERROR) else {
        return std::future::pending().await;
    };
    if stdout.ready(Interest::ERROR).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Writes a line of data.
pub(super) fn data_line(text: &str) -> Result<(), Failure> {
    data(&format!("{text}\n"))
}

/// Writes a line for people. Nobody is left to tell when stderr is gone.
pub(super) fn words(text: &str) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Writes an object or list as JSON or YAML.
pub(super) fn document(value: &Value, format: OutputFormat) -> Result<(), Failure> {
    match format {
        OutputFormat::Yaml => {
            let text = serde_saphyr::to_string(value)
                .map_err(|cause| Failure::failed(format!("cannot write YAML: {cause}")))?;
            data(&text)
        }
        _ => {
            let text = serde_json::to_string_pretty(value)
                .map_err(|cause| Failure::failed(format!("cannot write JSON: {cause}")))?;
            data_line(&text)
        }
    }
}

/// Columns padded to the widest cell, three spaces apart, as kubectl prints them.
pub(super) fn columns(rows: &[Vec<String>]) -> String {
    const GAP: usize = 3;
    let mut widths: Vec<usize> = Vec::new();
    for row in rows {
        for (at, cell) in row.iter().enumerate() {
            let len = cell.chars().count();
            match widths.get_mut(at) {
                Some(width) => *width = len.max(*width),
                None => widths.push(len),
            }
        }
    }
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(cell);
            let pad = width + GAP - cell.chars().count();
            line.extend(std::iter::repeat_n(' ', pad));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A pipe whose reader has gone.
    struct Closed(io::ErrorKind);

    impl Write for Closed {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_ends_the_verb_without_a_word() {
        let refused = write_to(&mut Closed(io::ErrorKind::BrokenPipe), b"x").unwrap_err();
        assert_eq!((refused.code, refused.message.as_str()), (141, ""));
        let full = write_to(&mut Closed(io::ErrorKind::StorageFull), b"x").unwrap_err();
        assert!(full.code == 1 && full.message.contains("stdout"), "{full}");
    }

    #[test]
    fn bytes_that_are_no_text_stay_as_they_are() {
        let mut out = Vec::new();
        write_to(&mut out, &[0xff, 0xc3]).unwrap();
        assert_eq!(out, [0xff, 0xc3]);
    }

    #[test]
    fn columns_are_padded_and_lines_do_not_end_in_spaces() {
        let rows = [vec!["NAME".into(), "AGE".into()], vec!["a-long-name".into(), "5s".into()]];
        assert_eq!(columns(&rows), "NAME          AGE\na-long-name   5s\n");
    }
}
