//! `find`.

use std::fs;

use crate::cx::Cx;
use crate::sh::glob::fits;

/// Files below folders: `-name PATTERN`, `-type f|d|l`, `-maxdepth N`, and `-print`.
pub fn main(cx: &mut Cx, args: &[String]) -> i32 {
    let mut wanted = Wanted { name: None, kind: None, depth_max: usize::MAX };
    let mut folders = Vec::new();
    let mut words = args.iter().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "-name" => wanted.name = words.next().cloned(),
            "-type" => wanted.kind = words.next().and_then(|kind| kind.chars().next()),
            "-maxdepth" => match words.next().and_then(|depth| depth.parse().ok()) {
                Some(depth) => wanted.depth_max = depth,
                None => return usage(cx),
            },
            "-print" => {}
            option if option.starts_with('-') => return usage(cx),
            folder => folders.push(folder.to_owned()),
        }
    }
    if folders.is_empty() {
        folders.push(".".to_owned());
    }
    folders.into_iter().fold(0, |code, folder| code.max(walk(cx, &wanted, &folder, 0)))
}

struct Wanted {
    name: Option<String>,
    kind: Option<char>,
    depth_max: usize,
}

fn usage(cx: &mut Cx) -> i32 {
    cx.say("usage: find [FOLDER]... [-maxdepth N] [-name PATTERN] [-type f|d|l] [-print]");
    1
}

fn walk(cx: &mut Cx, wanted: &Wanted, shown: &str, depth: usize) -> i32 {
    let path = cx.path(shown);
    let meta = match fs::symlink_metadata(&path) {
        Ok(meta) => meta,
        Err(error) => {
            cx.fail("find", shown, &error);
            return 1;
        }
    };
    let base = path.rsplit('/').next().unwrap_or_default();
    let is_name = wanted.name.as_ref().is_none_or(|pattern| fits(pattern, base));
    let is_kind = wanted.kind.is_none_or(|kind| match kind {
        'd' => meta.is_dir(),
        'l' => meta.is_symlink(),
        _ => meta.is_file(),
    });
    if is_name && is_kind {
        cx.line(shown);
    }
    if !meta.is_dir() || depth >= wanted.depth_max {
        return 0;
    }
    let entries = fs::read_dir(&path).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|it| it.file_name().into_string().ok()).collect();
    names.sort();
    let above = shown.trim_end_matches('/');
    names
        .iter()
        .fold(0, |code, name| code.max(walk(cx, wanted, &format!("{above}/{name}"), depth + 1)))
}
