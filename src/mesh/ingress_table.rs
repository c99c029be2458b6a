//! Which backend a host and path belong to, by the rules of `networking.k8s.io/v1` Ingress.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// How a path of a rule is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PathType {
    /// The whole path, letter by letter.
    Exact,
    /// Element by element from the front. `ImplementationSpecific` is the same here.
    Prefix,
}

impl PathType {
    pub(super) fn parse(text: &str) -> Self {
        if text == "Exact" { Self::Exact } else { Self::Prefix }
    }
}

/// Hosts and paths to backends.
///
/// The most specific host wins: named, then wildcard (one label), then rules for any host. Within
/// a host an exact path wins, then the longest prefix. What no rule matches goes to the default
/// backend, if there is one.
#[derive(Debug, Clone)]
pub struct IngressTable<T> {
    named: BTreeMap<String, Paths<T>>,
    /// Keyed by what follows the first dot.
    wildcard: BTreeMap<String, Paths<T>>,
    any: Paths<T>,
    default: Option<T>,
}

#[derive(Debug, Clone)]
struct Paths<T> {
    exact: BTreeMap<String, T>,
    /// Without trailing slash, longest first.
    prefixes: Vec<(String, T)>,
}

impl<T> Default for Paths<T> {
    fn default() -> Self {
        Self { exact: BTreeMap::new(), prefixes: Vec::new() }
    }
}

impl<T> Default for IngressTable<T> {
    fn default() -> Self {
        Self {
            named: BTreeMap::new(),
            wildcard: BTreeMap::new(),
            any: Paths::default(),
            default: None,
        }
    }
}

impl<T> IngressTable<T> {
    /// Adds a rule. The first of two equal rules stays.
    pub(super) fn add(&mut self, host: Option<&str>, kind: PathType, path: &str, backend: T) {
        let paths = match host.filter(|host| !host.is_empty()) {
            None => &mut self.any,
            Some(host) => match host.strip_prefix("*.") {
                Some(rest) => self.wildcard.entry(rest.to_ascii_lowercase()).or_default(),
                None => self.named.entry(host.to_ascii_lowercase()).or_default(),
            },
        };
        let path = if path.is_empty() { "/" } else { path };
        match kind {
            PathType::Exact => {
                paths.exact.entry(path.to_owned()).or_insert(backend);
            }
            PathType::Prefix => {
                let path = path.trim_end_matches('/');
                if paths.prefixes.iter().any(|(known, _)| known == path) {
                    return;
                }
                let shorter = |(known, _): &(String, T)| known.len() >= path.len();
                let at = paths.prefixes.partition_point(shorter);
                paths.prefixes.insert(at, (path.to_owned(), backend));
            }
        }
    }

    /// Sets what unmatched requests get. The first stays.
    pub(super) fn set_default(&mut self, backend: T) {
        self.default.get_or_insert(backend);
    }

    /// The backend for a request; `host` without port.
    pub fn find(&self, host: &str, path: &str) -> Option<&T> {
        let host = if host.bytes().any(|b| b.is_ascii_uppercase()) {
            Cow::Owned(host.to_ascii_lowercase())
        } else {
            Cow::Borrowed(host)
        };
        let host = host.strip_suffix('.').unwrap_or(&host);
        let wildcard = || {
            let (label, rest) = host.split_once('.')?;
            if label.is_empty() { None } else { self.wildcard.get(rest)?.find(path) }
        };
        self.named
            .get(host)
            .and_then(|paths| paths.find(path))
            .or_else(wildcard)
            .or_else(|| self.any.find(path))
            .or(self.default.as_ref())
    }

    /// The same table with other backends.
    pub(super) fn map<U>(&self, mut change: impl FnMut(&T) -> U) -> IngressTable<U> {
        let mut hosts = |hosts: &BTreeMap<String, Paths<T>>| {
            hosts.iter().map(|(host, paths)| (host.clone(), paths.map(&mut change))).collect()
        };
        let (named, wildcard) = (hosts(&self.named), hosts(&self.wildcard));
        IngressTable {
            named,
            wildcard,
            any: self.any.map(&mut change),
            default: self.default.as_ref().map(change),
        }
    }
}

impl<T> Paths<T> {
    fn find(&self, path: &str) -> Option<&T> {
        let is_under = |prefix: &str| {
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.exact.get(path).or_else(|| {
            let found = self.prefixes.iter().find(|(prefix, _)| is_under(prefix));
            found.map(|(_, backend)| backend)
        })
    }

    fn map<U>(&self, change: &mut impl FnMut(&T) -> U) -> Paths<U> {
        Paths {
            exact: self.exact.iter().map(|(path, b)| (path.clone(), change(b))).collect(),
            prefixes: self.prefixes.iter().map(|(path, b)| (path.clone(), change(b))).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use PathType::{Exact, Prefix};

    fn table(rules: &[(Option<&str>, PathType, &str, &'static str)]) -> IngressTable<&'static str> {
        let mut table = IngressTable::default();
        for (host, kind, path, backend) in rules {
            table.add(*host, *kind, path, *backend);
        }
        table
    }

    #[test]
    fn prefixes_match_whole_elements_and_the_longest_wins() {
        let table = table(&[
            (None, Prefix, "/", "root"),
            (None, Prefix, "/foo", "foo"),
            (None, Prefix, "/foo/bar/", "foobar"),
            (None, Exact, "/foo/bar", "exact"),
        ]);
        for (path, backend) in [
            ("/", "root"),
            ("/foobar", "root"),
            ("/foo", "foo"),
            ("/foo/", "foo"),
            ("/foo/ba", "foo"),
            ("/foo/bar", "exact"),
            ("/foo/bar/", "foobar"),
            ("/foo/bar/baz", "foobar"),
        ] {
            assert_eq!(table.find("any.host", path), Some(&backend), "{path}");
        }
    }

    #[test]
    fn the_most_specific_host_wins_and_wildcards_cover_one_label() {
        let mut table = table(&[
            (Some("a.example.org"), Prefix, "/named", "named"),
            (Some("*.example.org"), Prefix, "/", "wild"),
            (None, Prefix, "/only", "any"),
        ]);
        assert_eq!(table.find("a.example.org", "/named/x"), Some(&"named"));
        assert_eq!(table.find("A.Example.ORG", "/named"), Some(&"named"));
        assert_eq!(table.find("a.example.org", "/else"), Some(&"wild"));
        assert_eq!(table.find("b.example.org", "/named"), Some(&"wild"));
        assert_eq!(table.find("example.org", "/"), None);
        assert_eq!(table.find("b.c.example.org", "/"), None);
        assert_eq!(table.find("b.c.example.org", "/only"), Some(&"any"));
        table.set_default("default");
        table.set_default("second");
        assert_eq!(table.find("nowhere", "/"), Some(&"default"));
    }

    #[test]
    fn the_first_of_two_equal_rules_stays() {
        let table = table(&[
            (Some("h"), Prefix, "/x", "old"),
            (Some("h"), Prefix, "/x/", "new"),
            (Some("h"), Exact, "/y", "old"),
            (Some("h"), Exact, "/y", "new"),
        ]);
        assert_eq!(table.find("h", "/x"), Some(&"old"));
        assert_eq!(table.find("h", "/y"), Some(&"old"));
        assert_eq!(table.find("h", "/"), None);
    }
}
