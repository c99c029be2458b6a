//! Merge keys.
