//! Answers for a real folder.

#![allow(clippy::unwrap_used, reason = "a broken setup step should fail the test at once")]

use std::fs;
use std::path::PathBuf;

use super::{Answer, Body, Question, answer};

/// A folder that goes away at the end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("static-files-{}-{name}", std::process::id()));
        fs::create_dir_all(path.join("root/sub")).unwrap();
        fs::write(path.join("secret"), "secret").unwrap();
        fs::write(path.join("root/a b.txt"), "0123456789").unwrap();
        Self(path)
    }

    fn ask(&self, question: Question<'_>) -> Answer {
        answer(&self.0.join("root"), &Question { method: "GET", ..question }, Some("hi"))
    }

    fn get(&self, target: &str) -> Answer {
        self.ask(Question { target, ..Question::default() })
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _gone = fs::remove_dir_all(&self.0);
    }
}

fn header(answer: &Answer, name: &str) -> String {
    let found = answer.headers.iter().find(|(key, _)| *key == name);
    found.map(|(_, value)| value.clone()).unwrap_or_default()
}

#[test]
fn no_path_leads_out_of_the_root() {
    let folder = Folder::new("escape");
    for target in ["/../secret", "/%2e%2e/secret", "/sub/../../secret", "/..", "secret", "/%ff"] {
        assert_eq!(folder.get(target).status, 400, "{target}");
    }
    for target in ["/..%2fsecret", "/..%5csecret", "/sub%2f..%2f..%2fsecret", "/a%00", "/...."] {
        assert_eq!(folder.get(target).status, 404, "{target}");
    }
    assert_eq!(folder.get("/sub/../a%20b.txt?query").status, 200);
}

#[test]
fn a_file_has_type_length_and_tag_and_is_not_sent_twice() {
    let folder = Folder::new("file");
    let whole = folder.get("/a%20b.txt");
    assert_eq!(header(&whole, "content-type"), "text/plain; charset=utf-8");
    assert_eq!(header(&whole, "content-length"), "10");
    let etag = header(&whole, "etag");
    let target = "/a%20b.txt";
    let known = format!("\"other\", W/{etag}");
    let again = folder.ask(Question { target, if_none_match: Some(&known), ..Question::default() });
    assert_eq!((again.status, again.body), (304, Body::Empty));

    let part = folder.ask(Question { target, range: Some("bytes=2-4"), ..Question::default() });
    assert_eq!((part.status, header(&part, "content-range")), (206, "bytes 2-4/10".to_owned()));
    assert!(matches!(part.body, Body::File { first: 2, length: 3, .. }));
    let (range, if_range) = (Some("bytes=2-4"), Some("\"older\""));
    assert_eq!(folder.ask(Question { target, range, if_range, ..Question::default() }).status, 200);
    let past = folder.ask(Question { target, range: Some("bytes=10-"), ..Question::default() });
    assert_eq!((past.status, header(&past, "content-range")), (416, "bytes */10".to_owned()));
}

#[test]
fn a_folder_is_its_index_or_a_list_and_an_empty_root_greets() {
    let folder = Folder::new("folder");
    assert_eq!(header(&folder.get("/sub"), "location"), "/sub/");
    let list = match folder.get("/").body {
        Body::Text(list) => list,
        other => format!("{other:?}"),
    };
    assert!(list.contains("<a href=\"./a%20b.txt\">a b.txt</a>"), "{list}");
    assert!(list.contains("<a href=\"./sub/\">sub/</a>"), "{list}");
    fs::write(folder.0.join("root/index.html"), "index").unwrap();
    assert!(matches!(folder.get("/").body, Body::File { length: 5, .. }));
    assert_eq!(folder.get("/index.html/").status, 404);

    fs::remove_dir_all(folder.0.join("root")).unwrap();
    assert_eq!(folder.get("/").body, Body::Text("hi".to_owned()));
    assert_eq!(folder.get("/x").status, 404);
    fs::create_dir(folder.0.join("root")).unwrap();
    assert_eq!(folder.get("/").body, Body::Text("hi".to_owned()));
}

#[test]
fn head_has_no_body_and_other_methods_are_refused() {
    let folder = Folder::new("head");
    let ask = |method| {
        let question = Question { method, target: "/a%20b.txt", ..Question::default() };
        answer(&folder.0.join("root"), &question, None)
    };
    let head = ask("HEAD");
    assert_eq!((head.status, header(&head, "content-length")), (200, "10".to_owned()));
    assert_eq!(head.body, Body::Empty);
    assert_eq!((ask("POST").status, header(&ask("POST"), "allow")), (405, "GET, HEAD".to_owned()));
}
