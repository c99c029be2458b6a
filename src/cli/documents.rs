//! Objects in files: YAML with several documents, JSON, folders, standard input.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::exit::{self, Failure};

/// Largest file read, in bytes.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Deepest folder read with `--recursive`.
const DEPTH_MAX: u32 = 32;
/// Endings of the files that a folder is searched for.
const ENDINGS: &[&str] = &["yaml", "yml", "json"];

/// One object as a file holds it, or why it cannot be read.
#[derive(Debug)]
pub(super) struct Document {
    /// File and number of the document in it, for messages.
    pub(super) place: String,
    /// The object.
    pub(super) object: Result<Value, String>,
}

/// Reads the documents of files, folders (in the order of their names) and `-`, in order. Lists
/// are taken apart.
pub(super) fn read(names: &[PathBuf], is_recursive: bool) -> Result<Vec<Document>, Failure> {
    let mut documents = Vec::new();
    for name in names {
        if name.as_os_str() == "-" {
            let text = text_of("stdin", std::io::stdin().lock())?;
            documents.extend(split("stdin", &text));
            continue;
        }
        let mut files = Vec::new();
        if name.is_dir() {
            let depth = if is_recursive { DEPTH_MAX } else { 0 };
            files_in(name, depth, &mut files).map_err(|cause| bad(name, &cause))?;
            if files.is_empty() {
                let text = format!("{}: no file ends in .yaml, .yml or .json", name.display());
                return Err(Failure::with(exit::INPUT, text));
            }
        } else {
            files.push(name.clone());
        }
        for file in files {
            let place = file.display().to_string();
            let open = std::fs::File::open(&file).map_err(|cause| bad(&file, &cause))?;
            documents.extend(split(&place, &text_of(&place, open)?));
        }
    }
    Ok(documents)
}

fn bad(path: &Path, cause: &std::io::Error) -> Failure {
    Failure::with(exit::INPUT, format!("{}: cannot read it: {cause}", path.display()))
}

fn text_of(place: &str, from: impl std::io::Read) -> Result<String, Failure> {
    let mut text = String::new();
    let read = from.take(FILE_BYTES_MAX + 1).read_to_string(&mut text);
    read.map_err(|cause| Failure::with(exit::INPUT, format!("{place}: cannot read it: {cause}")))?;
    if u64::try_from(text.len()).unwrap_or(u64::MAX) > FILE_BYTES_MAX {
        let text = format!("{place}: it is over the limit of {FILE_BYTES_MAX} bytes");
        return Err(Failure::with(exit::INPUT, text));
    }
    Ok(text)
}

fn files_in(folder: &Path, depth: u32, files: &mut Vec<PathBuf>) -> std::io::Result<()> {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    entries.sort();
    for path in entries {
        let ending = path.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
        if path.is_dir() {
            if depth > 0 {
                files_in(&path, depth - 1, files)?;
            }
        } else if ENDINGS.contains(&ending) {
            files.push(path);
        }
    }
    Ok(())
}

/// The documents of a text. Each is parsed alone, so that a broken one is told by its number and
/// the others are read all the same: `---` in the first column stands between documents only.
fn split(place: &str, text: &str) -> Vec<Document> {
    let is_mark = |line: &str| {
        line.strip_prefix("---")
            .is_some_and(|rest| rest.trim_end().is_empty() || rest.starts_with(' '))
    };
    let mut parts = vec![String::new()];
    for line in text.trim_start_matches('\u{feff}').lines() {
        if is_mark(line) {
            parts.push(String::new());
        } else if let Some(part) = parts.last_mut() {
            part.push_str(line);
            part.push('\n');
        }
    }
    let is_empty = |part: &String| {
        part.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    };
    parts.retain(|part| !is_empty(part));
    let is_single = parts.len() == 1;
    let mut documents = Vec::new();
    for (at, part) in parts.iter().enumerate() {
        let place =
            if is_single { place.to_owned() } else { format!("{place}, document {}", at + 1) };
        match serde_saphyr::from_str::<Value>(part) {
            Ok(Value::Null) => {}
            Ok(object) => flatten(&place, object, &mut documents),
            Err(cause) => {
                documents.push(Document { place, object: Err(first_line(&cause.to_string())) });
            }
        }
    }
    documents
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// Takes a `List` apart.
fn flatten(place: &str, object: Value, documents: &mut Vec<Document>) {
    let is_list = object.get("kind").and_then(Value::as_str) == Some("List");
    match object.get("items").and_then(Value::as_array) {
        Some(items) if is_list => documents.extend(items.iter().enumerate().map(|(at, item)| {
            Document { place: format!("{place}, item {}", at + 1), object: Ok(item.clone()) }
        })),
        _ => documents.push(Document { place: place.to_owned(), object: Ok(object) }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_read_in_order_and_a_broken_one_is_told_by_its_number() {
        let text = "# a comment\n---\na: 1\n---\nb: [\n--- # the third\n{\"c\": 3}\n---\n---\n\
                    kind: List\nitems: [{d: 4}, {e: 5}]\n";
        let found = split("f.yaml", text);
        let places: Vec<_> = found.iter().map(|d| d.place.as_str()).collect();
        assert_eq!(
            places,
            [
                "f.yaml, document 1",
                "f.yaml, document 2",
                "f.yaml, document 3",
                "f.yaml, document 4, item 1",
                "f.yaml, document 4, item 2",
            ]
        );
        assert_eq!(found[0].object.as_ref().unwrap()["a"], 1);
        assert!(found[1].object.is_err());
        assert_eq!(found[2].object.as_ref().unwrap()["c"], 3);
        assert_eq!(found[4].object.as_ref().unwrap()["e"], 5);
    }

    #[test]
    fn a_folder_is_read_by_name_and_only_its_manifests() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("c")).unwrap();
        for (name, text) in
            [("b.yaml", "x: 2"), ("a.json", "{\"x\": 1}"), ("c/d.yml", "x: 3"), ("readme.md", "no")]
        {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        let xs = |is_recursive| -> Vec<_> {
            let found = read(&[folder.path().to_owned()], is_recursive).unwrap();
            found.into_iter().map(|d| d.object.unwrap()["x"].as_u64().unwrap()).collect()
        };
        assert_eq!(xs(false), [1, 2]);
        assert_eq!(xs(true), [1, 2, 3]);
        assert_eq!(read(&[folder.path().join("none")], false).unwrap_err().code, exit::INPUT);
    }
}
