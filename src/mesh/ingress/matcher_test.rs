//! Goal: requests go to the rule that Ingress and the Gateway API say. Method: tables.

use super::*;
use crate::api::gateway::compile_regex;

fn prefix(path: &str) -> PathTest {
    PathTest::Prefix(path.to_owned())
}

fn exact(path: &str) -> PathTest {
    PathTest::Exact(path.to_owned())
}

/// Rules of port 80 in the given order; each is its own number.
fn matcher(rules: Vec<(HostTest, PathTest)>) -> Matcher {
    let mut matcher = Matcher::default();
    for (action, (host, path)) in rules.into_iter().enumerate() {
        matcher.add(80, &host, path, Rule::plain(action));
    }
    matcher.finish();
    matcher
}

fn find(matcher: &Matcher, host: &str, uri: &str) -> Option<ActionId> {
    ask(matcher, "GET", host, uri, &[]).map(|found| found.action)
}

fn ask(
    matcher: &Matcher,
    method: &str,
    host: &str,
    uri: &str,
    headers: &[(&str, &str)],
) -> Option<Found> {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(()).unwrap();
    matcher.find(80, &Head::of(host, &request))
}

#[test]
fn prefixes_match_whole_elements_and_the_longest_wins() {
    let any = || HostTest::Any;
    let matcher = matcher(vec![
        (any(), prefix("/")),
        (any(), prefix("/foo")),
        (any(), prefix("/foo/bar/")),
        (any(), exact("/foo/bar")),
    ]);
    for (path, rule, prefix_bytes) in [
        ("/", 0, 0),
        ("/foobar", 0, 0),
        ("/foo", 1, 4),
        ("/foo/", 1, 4),
        ("/foo/ba", 1, 4),
        ("/foo/bar", 3, 0),
        ("/foo/bar/", 2, 8),
        ("/foo/bar/baz", 2, 8),
        ("/foo/barbaz/qux", 1, 4),
        ("/x/y/z/and/on/and/on", 0, 0),
    ] {
        let found = ask(&matcher, "GET", "any.host", path, &[]);
        assert_eq!(found, Some(Found { action: rule, prefix_bytes }), "{path}");
    }
    assert_eq!(find(&matcher, "any.host", "*"), None);
}

#[test]
fn the_most_specific_host_wins_and_an_ingress_wildcard_covers_one_label() {
    let mut matcher = matcher(vec![
        (HostTest::of_ingress("A.example.org"), prefix("/named")),
        (HostTest::of_ingress("*.example.org"), prefix("/")),
        (HostTest::of_ingress(""), prefix("/only")),
    ]);
    assert_eq!(find(&matcher, "a.example.org", "/named/x"), Some(0));
    assert_eq!(find(&matcher, "A.Example.ORG", "/named"), Some(0));
    assert_eq!(find(&matcher, "a.example.org.", "/named"), Some(0));
    assert_eq!(find(&matcher, "a.example.org", "/else"), Some(1));
    assert_eq!(find(&matcher, "b.example.org", "/named"), Some(1));
    assert_eq!(find(&matcher, "example.org", "/"), None);
    assert_eq!(find(&matcher, ".example.org", "/"), None);
    assert_eq!(find(&matcher, "b.c.example.org", "/"), None);
    assert_eq!(find(&matcher, "b.c.example.org", "/only"), Some(2));
    matcher.set_default(80, 7);
    matcher.set_default(80, 8);
    assert_eq!(find(&matcher, "nowhere", "/"), Some(7));
}

#[test]
fn a_gateway_wildcard_covers_any_number_of_labels_and_the_longest_wins() {
    let matcher = matcher(vec![
        (HostTest::of_gateway("*.org"), prefix("/")),
        (HostTest::of_gateway("*.example.org"), prefix("/")),
        (HostTest::of_gateway("a.example.org"), prefix("/")),
    ]);
    assert_eq!(find(&matcher, "a.example.org", "/"), Some(2));
    assert_eq!(find(&matcher, "b.c.example.org", "/"), Some(1));
    assert_eq!(find(&matcher, "example.org", "/"), Some(0));
    assert_eq!(find(&matcher, "org", "/"), None);
}

#[test]
fn the_first_of_two_equal_rules_stays() {
    let host = || HostTest::of_ingress("h");
    let matcher = matcher(vec![
        (host(), prefix("/x")),
        (host(), prefix("/x/")),
        (host(), exact("/y")),
        (host(), exact("/y")),
    ]);
    assert_eq!(find(&matcher, "h", "/x"), Some(0));
    assert_eq!(find(&matcher, "h", "/y"), Some(2));
    assert_eq!(find(&matcher, "h", "/"), None);
}

#[test]
fn precedence_is_path_then_method_then_headers_then_query_then_age() {
    let mut matcher = Matcher::default();
    let header = |name: &'static str, value: &str| {
        (HeaderName::from_static(name), ValueTest::Exact(value.to_owned()))
    };
    let query = |name: &str| (name.to_owned(), ValueTest::Exact("1".to_owned()));
    let rules: [(PathTest, Rule); 8] = [
        (prefix("/"), Rule { query: vec![query("q")], ..Rule::plain(0) }),
        (prefix("/"), Rule { headers: vec![header("a", "1")], ..Rule::plain(1) }),
        (prefix("/"), Rule { headers: vec![header("a", "1"), header("b", "1")], ..Rule::plain(2) }),
        (prefix("/"), Rule { method: Some(Method::POST), ..Rule::plain(3) }),
        (prefix("/long"), Rule::plain(4)),
        (prefix("/long"), Rule::plain(5)),
        (PathTest::Regex(compile_regex(r"/\d+").unwrap()), Rule::plain(6)),
        (exact("/long/e"), Rule { method: Some(Method::PUT), ..Rule::plain(7) }),
    ];
    for (path, rule) in rules {
        matcher.add(80, &HostTest::Any, path, rule);
    }
    matcher.finish();
    let both = [("a", "1"), ("b", "1")];
    for (method, uri, headers, wanted) in [
        ("GET", "/?q=1", &[][..], Some(0)),
        ("GET", "/?q=2", &[], None),
        ("GET", "/?q=1", &both[..1], Some(1)),
        ("GET", "/?q=1", &both, Some(2)),
        ("POST", "/?q=1", &both, Some(3)),
        ("POST", "/long/x", &both, Some(4)),
        ("PUT", "/long/e", &[], Some(7)),
        ("GET", "/long/e", &[], Some(4)),
        ("GET", "/42", &[], Some(6)),
        ("GET", "/x", &[], None),
    ] {
        let found = ask(&matcher, method, "h", uri, headers).map(|found| found.action);
        assert_eq!(found, wanted, "{method} {uri} {headers:?}");
    }
}

#[test]
fn values_are_compared_as_they_are_meant() {
    let mut matcher = Matcher::default();
    let value = |name: &str, test: ValueTest| Rule {
        query: vec![(name.to_owned(), test)],
        ..Rule::plain(0)
    };
    let spaced = ValueTest::Exact("a b/ü".to_owned());
    matcher.add(80, &HostTest::Any, prefix("/q"), value("the name", spaced));
    let many = Rule {
        headers: vec![(HeaderName::from_static("x"), ValueTest::Exact("1,2".to_owned()))],
        ..Rule::plain(1)
    };
    matcher.add(80, &HostTest::Any, prefix("/h"), many);
    let regex = ValueTest::Regex(compile_regex("v[12]").unwrap());
    let by_regex = Rule { headers: vec![(HeaderName::from_static("x"), regex)], ..Rule::plain(2) };
    matcher.add(80, &HostTest::Any, prefix("/r"), by_regex);
    matcher.finish();
    assert_eq!(find(&matcher, "h", "/q?z&the+name=a%20b%2f%C3%BC"), Some(0));
    // The first of several counts.
    assert_eq!(find(&matcher, "h", "/q?the+name=x&the+name=a%20b%2f%C3%BC"), None);
    assert_eq!(find(&matcher, "h", "/q?the+name=%"), None);
    let by = |uri: &str, headers: &[(&str, &str)]| {
        ask(&matcher, "GET", "h", uri, headers).map(|found| found.action)
    };
    assert_eq!(by("/h", &[("x", "1"), ("X", "2")]), Some(1));
    assert_eq!(by("/h", &[("x", "1")]), None);
    assert_eq!(by("/r", &[("x", "v2")]), Some(2));
    assert_eq!(by("/r", &[("x", "v22")]), None);
}

#[test]
fn a_listener_does_not_see_the_requests_of_a_more_specific_one() {
    let mut matcher = Matcher::default();
    let of = |listener, action| Rule {
        owner: Some(Owner { gateway: 0, listener }),
        ..Rule::plain(action)
    };
    matcher.add(80, &HostTest::Any, prefix("/"), of(0, 0));
    matcher.add(80, &HostTest::of_gateway("*.a.com"), prefix("/wild"), of(1, 1));
    matcher.add(80, &HostTest::of_gateway("x.a.com"), prefix("/x"), of(2, 2));
    let hosts = vec![(String::new(), 0), ("*.a.com".to_owned(), 1), ("x.a.com".to_owned(), 2)];
    matcher.isolate(80, 0, hosts);
    // An Ingress is no listener's.
    matcher.add(80, &HostTest::Any, prefix("/ingress"), Rule::plain(3));
    matcher.finish();
    assert_eq!(find(&matcher, "b.com", "/"), Some(0));
    assert_eq!(find(&matcher, "y.a.com", "/wild"), Some(1));
    assert_eq!(find(&matcher, "y.a.com", "/"), None);
    assert_eq!(find(&matcher, "x.a.com", "/x"), Some(2));
    assert_eq!(find(&matcher, "x.a.com", "/wild"), None);
    assert_eq!(find(&matcher, "x.a.com", "/ingress"), Some(3));
}

#[test]
fn ports_are_apart() {
    let mut matcher = matcher(vec![(HostTest::Any, prefix("/"))]);
    matcher.add(443, &HostTest::Any, prefix("/"), Rule::plain(1));
    let request = Request::get("/").body(()).unwrap();
    let head = Head::of("h", &request);
    let action = |port| matcher.find(port, &head).map(|found| found.action);
    assert_eq!([action(80), action(443), action(81)], [Some(0), Some(1), None]);
}
