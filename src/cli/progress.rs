//! Progress of long work: a spinner on a terminal, plain lines elsewhere.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::output::words;

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(100);

/// One line that says what is being done now.
#[derive(Debug)]
pub(super) struct Progress {
    bar: Option<ProgressBar>,
    last: String,
}

impl Progress {
    /// Starts with `step`.
    pub(super) fn start(step: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(TICK);
            bar
        });
        let mut progress = Self { bar, last: String::new() };
        progress.step(step);
        progress
    }

    /// Says what is being done now; a repeat of the last step says nothing.
    pub(super) fn step(&mut self, step: &str) {
        if self.last == step {
            return;
        }
        step.clone_into(&mut self.last);
        match &self.bar {
            Some(bar) => bar.set_message(step.to_owned()),
            None => words(step),
        }
    }

    /// Takes the line away.
    pub(super) fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
