//! What the turns measured, and the table at the end.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// A figure of one drill: its values, and what it may be at most.
struct Figure {
    unit: &'static str,
    budget: Option<f64>,
    values: Vec<f64>,
}

/// All figures, by drill and name.
#[derive(Default)]
pub(super) struct Figures(BTreeMap<(&'static str, &'static str), Figure>);

impl Figures {
    /// A duration in milliseconds; `budget_ms` is the longest there may be.
    pub(super) fn took(
        &mut self,
        drill: &'static str,
        figure: &'static str,
        time: Duration,
        budget_ms: Option<f64>,
    ) {
        self.note(drill, figure, "ms", time.as_secs_f64() * 1000.0, budget_ms);
    }

    /// A number of things of which there may be at most `budget`.
    pub(super) fn counted(
        &mut self,
        drill: &'static str,
        figure: &'static str,
        count: usize,
        budget: Option<f64>,
    ) {
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        self.note(drill, figure, "1", count as f64, budget);
    }

    fn note(
        &mut self,
        drill: &'static str,
        figure: &'static str,
        unit: &'static str,
        value: f64,
        budget: Option<f64>,
    ) {
        eprintln!("{drill}: {figure} {value:.0} {unit}");
        let empty = || Figure { unit, budget, values: Vec::new() };
        self.0.entry((drill, figure)).or_insert_with(empty).values.push(value);
    }

    /// Prints the table, and writes its rows to `target/bench/drills.json` in place of those of the
    /// same drills that are there.
    pub(super) fn report(&self) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench/drills.json");
        let before = std::fs::read(&path).ok();
        let before = before.and_then(|bytes| serde_json::from_slice::<Vec<Value>>(&bytes).ok());
        let is_ours = |row: &Value| {
            let name = row["name"].as_str().unwrap_or_default();
            self.0.keys().any(|(drill, _)| name.starts_with(&format!("{drill}: ")))
        };
        let mut rows = before.unwrap_or_default();
        rows.retain(|row| !is_ours(row));
        for ((drill, name), figure) in &self.0 {
            for (part, of) in [("p50", 0.5), ("p99", 0.99)] {
                let value = percentile(&figure.values, of);
                let (unit, budget, turns) = (figure.unit, figure.budget, figure.values.len());
                let is_met = budget.is_none_or(|budget| value <= budget);
                let told = budget.map(|budget| {
                    format!("of {budget:.0} {}", if is_met { "met" } else { "NOT MET" })
                });
                let title = format!("{drill}: {name} {part}");
                let told = told.unwrap_or_default();
                eprintln!("{title:<58} n={turns:<3} {value:>8.0} {unit:<3} {told}");
                rows.push(json!({
                    "name": title, "value": value, "unit": unit, "peer": "", "ratio": null,
                    "budget": budget, "met": is_met,
                }));
            }
        }
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, serde_json::to_string_pretty(&rows).unwrap()).unwrap();
        eprintln!("written to {}", path.display());
    }
}

/// The smallest value that at least this part of all is not above; of none, no number.
pub(crate) fn percentile(values: &[f64], part: f64) -> f64 {
    if values.is_empty() {
        return f64::NAN;
    }
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a place in a short list"
    )]
    let at = ((sorted.len() as f64 * part).ceil() as usize).clamp(1, sorted.len()) - 1;
    sorted[at]
}
