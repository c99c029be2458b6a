//! Patterns that stand for names of files.

use std::fs;

use crate::cx::Cx;

/// Files whose name fits a pattern with `*` in its last part; the pattern itself if there is none.
pub fn matches(cx: &Cx, pattern: &str) -> Vec<String> {
    let (folder, last) = match pattern.rsplit_once('/') {
        Some((folder, last)) => (format!("{folder}/"), last),
        None => (String::new(), pattern),
    };
    let path = cx.path(if folder.is_empty() { "." } else { &folder });
    let names = fs::read_dir(path).into_iter().flatten().flatten();
    let mut found: Vec<String> = names
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| (last.starts_with('.') || !name.starts_with('.')) && fits(last, name))
        .map(|name| format!("{folder}{name}"))
        .collect();
    found.sort();
    if found.is_empty() { vec![pattern.to_owned()] } else { found }
}

fn fits(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == name,
        Some((head, rest)) => name.strip_prefix(head).is_some_and(|name| {
            let ends = name.char_indices().map(|(at, _)| at).chain([name.len()]);
            ends.into_iter().any(|at| name.get(at..).is_some_and(|name| fits(rest, name)))
        }),
    }
}
