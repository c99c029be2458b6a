//! Which rule a request belongs to: by port, host, path, method, header fields and query.
//!
//! The most specific host wins: named, then the longest wildcard, then rules for any host. Within
//! a host: exact path, regular expression, longest prefix; then a method, more header fields, more
//! query parameters; then what was added first, which is the older object.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;

use http::header::{HeaderMap, HeaderName};
use http::{Method, Request};
use regex::bytes::Regex;

use crate::api::gateway::matches_host;

/// Place of an action in its table.
pub(super) type ActionId = usize;

/// How a path is compared.
#[derive(Debug, Clone)]
pub(super) enum PathTest {
    /// The whole path, letter by letter.
    Exact(String),
    /// Element by element from the front.
    Prefix(String),
    /// The whole path.
    Regex(Regex),
}

/// How a value is compared.
#[derive(Debug, Clone)]
pub(super) enum ValueTest {
    Exact(String),
    Regex(Regex),
}

impl ValueTest {
    fn accepts(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(wanted) => wanted.as_bytes() == value,
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

/// Which hosts a rule is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum HostTest {
    Any,
    /// In lower case.
    Named(String),
    /// `*.` and this; one label, as Ingress has it.
    OneLabel(String),
    /// `*.` and this; any number of labels, as the Gateway API has it.
    Labels(String),
}

impl HostTest {
    /// An Ingress' host.
    pub(super) fn of_ingress(host: &str) -> Self {
        Self::parse(host, Self::OneLabel)
    }

    /// A route's or listener's host.
    pub(super) fn of_gateway(host: &str) -> Self {
        Self::parse(host, Self::Labels)
    }

    fn parse(host: &str, wildcard: fn(String) -> Self) -> Self {
        let host = host.to_ascii_lowercase();
        match host.strip_prefix("*.") {
            _ if host.is_empty() || host == "*" => Self::Any,
            Some(rest) => wildcard(rest.to_owned()),
            None => Self::Named(host),
        }
    }
}

/// A listener of a Gateway, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) gateway: usize,
    pub(super) listener: usize,
}

/// What a request must have beside host and path, and what becomes of it.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) method: Option<Method>,
    pub(super) headers: Vec<(HeaderName, ValueTest)>,
    pub(super) query: Vec<(String, ValueTest)>,
    pub(super) action: ActionId,
    /// The listener it came by; none for an Ingress.
    pub(super) owner: Option<Owner>,
}

impl Rule {
    /// For every request to its host and path.
    pub(super) fn plain(action: ActionId) -> Self {
        Self { method: None, headers: Vec::new(), query: Vec::new(), action, owner: None }
    }

    fn accepts(&self, head: &Head<'_>, hidden: &[Owner]) -> bool {
        self.method.as_ref().is_none_or(|method| method == head.method)
            && self.headers.iter().all(|(name, test)| has_field(head.headers, name, test))
            && self.query.iter().all(|(name, test)| has_parameter(head.query, name, test))
            && self.owner.is_none_or(|owner| !hidden.contains(&owner))
    }
}

fn has_field(headers: &HeaderMap, name: &HeaderName, test: &ValueTest) -> bool {
    let mut values = headers.get_all(name).iter();
    let Some(first) = values.next() else { return false };
    if values.next().is_none() {
        return test.accepts(first.as_bytes());
    }
    // Several fields of one name are one field with commas (RFC 9110, 5.3).
    let all: Vec<&[u8]> = headers.get_all(name).iter().map(|value| value.as_bytes()).collect();
    test.accepts(&all.join(&b","[..]))
}

fn has_parameter(query: &str, name: &str, test: &ValueTest) -> bool {
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let found = pairs.map(|(key, value)| (unescape(key), value)).find(|(key, _)| key == name);
    found.is_some_and(|(_, value)| test.accepts(unescape(value).as_bytes()))
}

/// `%20` and `+` as the bytes they stand for; what is not UTF-8 then is left as it was.
fn unescape(text: &str) -> Cow<'_, str> {
    if !text.bytes().any(|byte| byte == b'%' || byte == b'+') {
        return Cow::Borrowed(text);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = after.get(..2).filter(|_| *first == b'%');
        let escaped = escaped.and_then(|digits| std::str::from_utf8(digits).ok());
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(if *first == b'+' { b' ' } else { *first });
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).map_or(Cow::Borrowed(text), Cow::Owned)
}

/// What is looked at of a request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head<'a> {
    /// Without port.
    pub(super) host: &'a str,
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) method: &'a Method,
    pub(super) headers: &'a HeaderMap,
}

impl<'a> Head<'a> {
    pub(super) fn of<B>(host: &'a str, request: &'a Request<B>) -> Self {
        Self {
            host,
            path: request.uri().path(),
            query: request.uri().query().unwrap_or_default(),
            method: request.method(),
            headers: request.headers(),
        }
    }
}

/// The rule that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) action: ActionId,
    /// Bytes of the path that a prefix matched; 0 when it was no prefix.
    pub(super) prefix_bytes: usize,
}

/// All rules, by port.
#[derive(Debug, Default)]
pub(super) struct Matcher {
    ports: BTreeMap<u16, PortRules>,
}

#[derive(Debug, Default)]
struct PortRules {
    named: BTreeMap<String, Paths>,
    /// Keyed by what follows the first dot.
    one_label: BTreeMap<String, Paths>,
    /// Keyed by what follows `*.`.
    labels: BTreeMap<String, Paths>,
    any: Paths,
    default: Option<ActionId>,
    /// Gateways with several hosts at this port: their listeners do not see each other's requests.
    isolated: Vec<(usize, Vec<(String, usize)>)>,
}

#[derive(Debug, Default)]
struct Paths {
    exact: BTreeMap<String, Vec<Rule>>,
    regex: Vec<(Regex, Rule)>,
    /// Without trailing slash.
    prefixes: BTreeMap<String, Vec<Rule>>,
    prefix_bytes_max: usize,
}

impl Matcher {
    /// Adds a rule; of two that are equal the first wins.
    pub(super) fn add(&mut self, port: u16, host: &HostTest, path: PathTest, rule: Rule) {
        let rules = self.ports.entry(port).or_default();
        let paths = match host {
            HostTest::Any => &mut rules.any,
            HostTest::Named(host) => rules.named.entry(host.clone()).or_default(),
            HostTest::OneLabel(rest) => rules.one_label.entry(rest.clone()).or_default(),
            HostTest::Labels(rest) => rules.labels.entry(rest.clone()).or_default(),
        };
        paths.add(path, rule);
    }

    /// Sets what requests to `port` get that no rule is for. The first stays.
    pub(super) fn set_default(&mut self, port: u16, action: ActionId) {
        self.ports.entry(port).or_default().default.get_or_insert(action);
    }

    /// Tells the hosts of a Gateway's listeners at `port`, so that each request is for the most
    /// specific of them only.
    pub(super) fn isolate(&mut self, port: u16, gateway: usize, mut hosts: Vec<(String, usize)>) {
        if hosts.len() > 1 {
            // Named before wildcards, longer before shorter; the empty one, for any host, is last.
            hosts.sort_by_key(|(host, _)| (host.starts_with('*'), Reverse(host.len())));
            hosts.sort_by_key(|(host, _)| host.is_empty());
            self.ports.entry(port).or_default().isolated.push((gateway, hosts));
        }
    }

    /// Puts the rules into the order in which they are tried. Called once, before the first search.
    pub(super) fn finish(&mut self) {
        for rules in self.ports.values_mut() {
            let hosts = rules.named.values_mut().chain(rules.one_label.values_mut());
            for paths in hosts.chain(rules.labels.values_mut()).chain([&mut rules.any]) {
                paths.finish();
            }
        }
    }

    /// The rule for a request at `port`.
    pub(super) fn find(&self, port: u16, head: &Head<'_>) -> Option<Found> {
        let rules = self.ports.get(&port)?;
        let host = if head.host.bytes().any(|b| b.is_ascii_uppercase()) {
            Cow::Owned(head.host.to_ascii_lowercase())
        } else {
            Cow::Borrowed(head.host)
        };
        let host = host.strip_suffix('.').unwrap_or(&host);
        let hidden = rules.hidden(host);
        let found = rules.named.get(host).and_then(|paths| paths.find(head, &hidden));
        found
            .or_else(|| rules.find_wildcard(host, head, &hidden))
            .or_else(|| rules.any.find(head, &hidden))
            .or_else(|| rules.default.map(|action| Found { action, prefix_bytes: 0 }))
    }
}

impl PortRules {
    fn find_wildcard(&self, host: &str, head: &Head<'_>, hidden: &[Owner]) -> Option<Found> {
        if self.one_label.is_empty() && self.labels.is_empty() {
            return None;
        }
        let (label, mut rest) = host.split_once('.')?;
        if label.is_empty() {
            return None;
        }
        let one = self.one_label.get(rest).and_then(|paths| paths.find(head, hidden));
        if one.is_some() || self.labels.is_empty() {
            return one;
        }
        loop {
            let found = self.labels.get(rest).and_then(|paths| paths.find(head, hidden));
            if found.is_some() {
                return found;
            }
            rest = rest.split_once('.')?.1;
        }
    }

    /// Listeners whose rules do not count: another one of their Gateway is more specific.
    fn hidden(&self, host: &str) -> Vec<Owner> {
        let mut hidden = Vec::new();
        for (gateway, hosts) in &self.isolated {
            let is_for =
                |(pattern, _): &&(String, usize)| pattern.is_empty() || matches_host(pattern, host);
            let chosen = hosts.iter().find(is_for).map(|(_, listener)| *listener);
            let others = hosts.iter().map(|(_, listener)| *listener);
            let others = others.filter(|listener| Some(*listener) != chosen);
            hidden.extend(others.map(|listener| Owner { gateway: *gateway, listener }));
        }
        hidden
    }
}

impl Paths {
    fn add(&mut self, path: PathTest, rule: Rule) {
        match path {
            PathTest::Exact(path) => self.exact.entry(path).or_default().push(rule),
            PathTest::Regex(regex) => self.regex.push((regex, rule)),
            PathTest::Prefix(path) => {
                let path = path.trim_end_matches('/').to_owned();
                self.prefix_bytes_max = self.prefix_bytes_max.max(path.len());
                self.prefixes.entry(path).or_default().push(rule);
            }
        }
    }

    fn finish(&mut self) {
        let rank = |rule: &Rule| {
            (rule.method.is_none(), Reverse(rule.headers.len()), Reverse(rule.query.len()))
        };
        for rules in self.exact.values_mut().chain(self.prefixes.values_mut()) {
            rules.sort_by_key(rank);
        }
        self.regex.sort_by_key(|(regex, rule)| (Reverse(regex.as_str().len()), rank(rule)));
    }

    fn find(&self, head: &Head<'_>, hidden: &[Owner]) -> Option<Found> {
        let first = |rules: &Vec<Rule>| {
            rules.iter().find(|rule| rule.accepts(head, hidden)).map(|rule| rule.action)
        };
        if let Some(action) = self.exact.get(head.path).and_then(first) {
            return Some(Found { action, prefix_bytes: 0 });
        }
        let mut regex = self.regex.iter();
        let by_regex = regex.find(|(regex, rule)| {
            rule.accepts(head, hidden) && regex.is_match(head.path.as_bytes())
        });
        if let Some((_, rule)) = by_regex {
            return Some(Found { action: rule.action, prefix_bytes: 0 });
        }
        self.prefixes_of(head.path).find_map(|prefix| {
            let action = self.prefixes.get(prefix).and_then(first)?;
            Some(Found { action, prefix_bytes: prefix.len() })
        })
    }

    /// The beginnings of `path` that end with a whole element, the longest first, none longer than
    /// any prefix there is.
    fn prefixes_of<'a>(&self, path: &'a str) -> impl Iterator<Item = &'a str> + use<'a> {
        let longest = self.prefix_bytes_max;
        let shorter = |path: &'a str| path.rfind('/').and_then(|at| path.get(..at));
        let start = if path.len() <= longest {
            Some(path)
        } else {
            // The element after the longest prefix begins with a slash, which may stand right there.
            let slash = path.bytes().take(longest.saturating_add(1)).rposition_of(b'/');
            slash.and_then(|at| path.get(..at))
        };
        std::iter::successors(start, move |path| shorter(path))
    }
}

/// Where a byte occurs last.
trait LastPosition {
    fn rposition_of(self, wanted: u8) -> Option<usize>;
}

impl<I: Iterator<Item = u8>> LastPosition for I {
    fn rposition_of(self, wanted: u8) -> Option<usize> {
        self.enumerate().filter(|(_, byte)| *byte == wanted).last().map(|(at, _)| at)
    }
}

#[cfg(test)]
#[path = "matcher_test.rs"]
mod tests;
