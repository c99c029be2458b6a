//! Regular expressions of routes.

use regex::bytes::{Regex, RegexBuilder};

/// Bytes of one compiled expression.
const REGEX_BYTES_MAX: usize = 64 * 1024;

/// Compiles an expression that must match a whole value. `None` when it is none, or too large.
///
/// It works on bytes in linear time; classes such as `\d` mean ASCII.
#[must_use]
pub fn compile_regex(text: &str) -> Option<Regex> {
    RegexBuilder::new(&format!("^(?:{text})$"))
        .unicode(false)
        .size_limit(REGEX_BYTES_MAX)
        .dfa_size_limit(REGEX_BYTES_MAX)
        .build()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_matches_whole_values_only() {
        let regex = compile_regex(r"/v\d+/.*|/x").unwrap();
        assert!(regex.is_match(b"/v12/a") && regex.is_match(b"/x"));
        assert!(!regex.is_match(b"/a/v12/a") && !regex.is_match(b"/xy"));
        assert!(compile_regex("(").is_none());
        assert!(compile_regex("(a{1000}){1000}").is_none());
    }
}
