//! The page of a folder that has no index.

use std::fs;
use std::io;
use std::path::Path;

/// Most names on a page.
const NAMES_MAX: usize = 10_000;

/// Names in a folder, sorted; folders end with a slash. Names that begin with a dot are left out:
/// volumes keep their own there.
pub(crate) fn names(folder: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder)?.take(NAMES_MAX) {
        let entry = entry?;
        let Ok(mut name) = entry.file_name().into_string() else { continue };
        if name.starts_with('.') {
            continue;
        }
        if fs::metadata(entry.path()).is_ok_and(|metadata| metadata.is_dir()) {
            name.push('/');
        }
        names.push(name);
    }
    names.sort();
    Ok(names)
}

/// A page with a link for each name.
pub(crate) fn page(path: &str, names: &[String]) -> String {
    let title = escaped(&String::from_utf8_lossy(&crate::percent_decoded(path)));
    let links: String = names
        .iter()
        .map(|name| format!("<li><a href=\"{}\">{}</a></li>\n", encoded(name), escaped(name)))
        .collect();
    format!(
        "<!doctype html>\n<html><head><title>{title}</title></head><body><h1>{title}</h1>\n<ul>\n{links}</ul>\n</body></html>\n"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A name as a relative URL. `./` keeps a colon in it from being read as a scheme.
fn encoded(name: &str) -> String {
    let mut url = "./".to_owned();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            url.push(char::from(byte));
        } else {
            url.push_str(&format!("%{byte:02X}"));
        }
    }
    url
}
