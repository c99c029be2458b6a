//! Server-side tables: what `kubectl get` prints.
//!
//! # Invariants
//!
//! - A row has one cell for each column of its resource.

mod duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::meta;
use crate::api::resource::Resource;

pub(crate) use duration::since;
pub use duration::{age, human_duration};

/// `columnDefinitions` of a Table of `res`.
#[must_use]
pub fn definitions(res: &Resource) -> Vec<Value> {
    res.columns
        .iter()
        .map(|column| {
            json!({
                "name": column.name,
                "type": column.kind,
                "format": column.format,
                "description": "",
                "priority": i32::from(column.is_wide),
            })
        })
        .collect()
}

/// The cells of one object, one for each column.
#[must_use]
pub fn row(res: &Resource, object: &Value, now: Timestamp) -> Vec<Value> {
    (res.strategy.cells)(object, now)
}

/// Cells of a kind that has nothing more to say.
pub(crate) fn name_and_age(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![json!(meta::name(object)), json!(age(object, now))]
}
