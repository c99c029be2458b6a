//! Label, field and node selectors.
//!
//! # Invariants
//!
//! - What cannot be parsed is refused with its reason, never read as "everything".

mod field;
mod label;
mod node;

pub use field::FieldSelector;
pub use label::{LabelSelector, Operator, Requirement};
pub use node::{is_empty_term, node_term_matches};

/// Terms that one selector may have.
pub const TERMS_MAX: usize = 256;
/// Bytes of a selector string.
pub const SELECTOR_BYTES_MAX: usize = 64 * 1024;

/// Why a selector is refused; answer 400.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The text does not parse.
    #[error("unable to parse requirement: {0}")]
    Syntax(String),
    /// A key or value breaks the rules of labels.
    #[error("{0}")]
    Invalid(String),
    /// The field cannot be selected by.
    #[error("field label not supported: {0}")]
    UnsupportedField(String),
    /// More than [`TERMS_MAX`] terms or [`SELECTOR_BYTES_MAX`] bytes.
    #[error("the selector is too long")]
    TooLong,
}
