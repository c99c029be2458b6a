//! The two channels: data to stdout, words to stderr.

use std::io::{self, Write as _};

use serde_json::Value;

use super::args::OutputFormat;
use super::exit::Failure;

/// Writes data. A closed pipe ends the program quietly, as users of `head` expect.
pub(super) fn data(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(cause) if cause.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("cannot write to stdout: {cause}")))
        }
        _ => Ok(()),
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

    #[test]
    fn columns_are_padded_and_lines_do_not_end_in_spaces() {
        let rows = [vec!["NAME".into(), "AGE".into()], vec!["a-long-name".into(), "5s".into()]];
        assert_eq!(columns(&rows), "NAME          AGE\na-long-name   5s\n");
    }
}
