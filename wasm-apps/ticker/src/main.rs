//! Logs a line a second: `tick 1`, `tick 2`, … on stdout, and every tenth also on stderr.
//!
//! Options: `--interval-ms N` (1000), `--count N` (without end), `--exit CODE` (0, after `--count`).

use std::process::ExitCode;
use std::thread::sleep;
use std::time::Duration;

/// Exit code for arguments that make no sense, as in `sysexits.h`.
const EXIT_USAGE: u8 = 64;
/// How many lines of stdout there are for one of stderr.
const STDERR_EVERY: u64 = 10;

struct Options {
    interval: Duration,
    count: Option<u64>,
    exit: u8,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("ticker: {message}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    let mut tick = 0;
    while options.count.is_none_or(|count| tick < count) {
        tick += 1;
        println!("tick {tick}");
        if tick % STDERR_EVERY == 0 {
            eprintln!("{tick} ticks so far");
        }
        if options.count != Some(tick) {
            sleep(options.interval);
        }
    }
    ExitCode::from(options.exit)
}

fn parse(mut args: impl Iterator<Item = String>) -> Result<Options, String> {
    let mut options = Options { interval: Duration::from_millis(1000), count: None, exit: 0 };
    while let Some(name) = args.next() {
        let value = args.next().ok_or_else(|| format!("option {name} needs a value"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("{name} {value}: not a number"));
        match name.as_str() {
            "--interval-ms" => options.interval = Duration::from_millis(number()?),
            "--count" => options.count = Some(number()?),
            "--exit" => {
                options.exit =
                    u8::try_from(number()?).map_err(|_| format!("{name} {value}: above 255"))?;
            }
            _ => return Err(format!("unknown option {name}")),
        }
    }
    Ok(options)
}
