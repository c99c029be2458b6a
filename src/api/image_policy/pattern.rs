//! Patterns of image names: `*` is any text without a slash, `**` any text.

use std::fmt;

/// A pattern for `HOST/REPOSITORY`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pattern(String);

impl Pattern {
    pub(super) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// Whether the whole name fits.
    ///
    /// Table of prefixes: the time is bounded by the product of the lengths, whatever the pattern.
    pub(super) fn matches(&self, name: &str) -> bool {
        let name = name.as_bytes();
        let mut fits: Vec<bool> = std::iter::once(true).chain(name.iter().map(|_| false)).collect();
        let mut rest = self.0.as_bytes();
        while let Some((first, after)) = rest.split_first() {
            let is_star = *first == b'*';
            let is_deep = is_star && after.first() == Some(&b'*');
            let mut next = vec![is_star && fits.first() == Some(&true)];
            for (at, byte) in name.iter().enumerate() {
                let (here, before) = (fits.get(at + 1) == Some(&true), fits.get(at) == Some(&true));
                let grown = next.last() == Some(&true) && (is_deep || *byte != b'/');
                next.push(if is_star { here || grown } else { before && byte == first });
            }
            fits = next;
            rest = if is_deep { after.get(1..).unwrap_or_default() } else { after };
        }
        fits.last() == Some(&true)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_star_stays_within_a_part_and_two_do_not() {
        let cases = [
            ("ghcr.io/a/b", "ghcr.io/a/b", true),
            ("ghcr.io/a/b", "ghcr.io/a/bc", false),
            ("ghcr.io/a/*", "ghcr.io/a/b", true),
            ("ghcr.io/a/*", "ghcr.io/a/b/c", false),
            ("ghcr.io/a/**", "ghcr.io/a/b/c", true),
            ("ghcr.io/a/**", "ghcr.io.evil/a/b", false),
            ("*.example/x", "reg.example/x", true),
            ("**", "any.host:5000/x", true),
            ("*/x", "a/b/x", false),
            ("**/x", "a/b/x", true),
            ("", "x", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
        ];
        for (pattern, name, fits) in cases {
            assert_eq!(Pattern::new(pattern).matches(name), fits, "{pattern} {name}");
        }
    }
}
