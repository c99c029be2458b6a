//! Folders and files of the host that the node's configuration allows pods to mount.

use std::io;
use std::path::{Component, Path};

use crate::agent::beneath::{self, Held, Missing};
use crate::agent::pod::env::ConfigError;

use crate::config::HostPath;

/// What a pod asked of the host, opened, and whether the node's configuration lets it be written.
#[derive(Debug)]
pub(super) struct Allowed {
    pub(super) held: Held,
    pub(super) is_read_only: bool,
}

/// Opens `path` if `allowed` covers it and it is of `kind`, Kubernetes' `hostPath.type`.
///
/// The allowed folder is the administrator's word and may be a link; below it no link is followed:
/// a pod that writes there must not widen what is allowed.
pub(super) fn open(path: &str, kind: &str, allowed: &[HostPath]) -> Result<Allowed, ConfigError> {
    let asked = Path::new(path);
    let is_plain = asked.is_absolute()
        && asked.components().all(|c| matches!(c, Component::Normal(_) | Component::RootDir));
    if !is_plain {
        return Err(ConfigError::Unsupported(format!(
            "hostPath {path} must be absolute and without .."
        )));
    }
    // The longest wins: a folder within another may be allowed for writing, or only for reading.
    let covering = allowed
        .iter()
        .filter_map(|one| Some((one, asked.strip_prefix(&one.path).ok()?)))
        .max_by_key(|(one, _)| one.path.components().count());
    let Some((one, rest)) = covering else {
        return Err(ConfigError::Unsupported(format!(
            "hostPath {path} is not allowed on this node; start the node with --allow-host-path {path} to allow it"
        )));
    };
    let failed = |cause: io::Error| {
        ConfigError::Unavailable(format!("hostPath {path} of type {kind:?}: {cause}"))
    };
    let may_make = !one.is_read_only;
    let held = match kind {
        "" | "Directory" | "File" => {
            beneath::open(&one.path, rest, Missing::Refuse).map_err(failed)?
        }
        "DirectoryOrCreate" if may_make => {
            if rest.as_os_str().is_empty() {
                std::fs::create_dir_all(&one.path).map_err(failed)?;
            }
            beneath::open(&one.path, rest, Missing::MakeFolder).map_err(failed)?
        }
        "FileOrCreate" if may_make => make_file(&one.path, rest).map_err(failed)?,
        "DirectoryOrCreate" | "FileOrCreate" => {
            beneath::open(&one.path, rest, Missing::Refuse).map_err(failed)?
        }
        other => {
            return Err(ConfigError::Unsupported(format!(
                "hostPath type {other} is not supported; Directory, DirectoryOrCreate, File, FileOrCreate and \"\" are"
            )));
        }
    };
    let is_right = match kind {
        "Directory" | "DirectoryOrCreate" => held.is_folder,
        "File" | "FileOrCreate" => !held.is_folder,
        _ => true,
    };
    if !is_right {
        return Err(ConfigError::Unavailable(format!("hostPath {path} is not a {kind}")));
    }
    Ok(Allowed { held, is_read_only: one.is_read_only })
}

fn make_file(root: &Path, rest: &Path) -> io::Result<Held> {
    let (Some(parent), Some(name)) = (rest.parent(), rest.file_name()) else {
        return Err(io::ErrorKind::IsADirectory.into());
    };
    let parent = beneath::open(root, parent, Missing::Refuse)?;
    // Making a new file follows no link.
    match std::fs::OpenOptions::new().write(true).create_new(true).open(parent.path().join(name)) {
        Err(err) if err.kind() != io::ErrorKind::AlreadyExists => return Err(err),
        _ => {}
    }
    beneath::open(&parent.path(), Path::new(name), Missing::Refuse)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn message(result: Result<Allowed, ConfigError>) -> String {
        result.unwrap_err().to_string()
    }

    #[test]
    fn nothing_of_the_host_is_allowed_unless_the_node_says_so() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().display().to_string();
        assert_eq!(
            message(open(&path, "", &[])),
            format!(
                "hostPath {path} is not allowed on this node; start the node with --allow-host-path {path} to allow it"
            )
        );
        let allowed = [HostPath { path: root.path().join("a"), is_read_only: false }];
        assert!(message(open(&path, "", &allowed)).contains("is not allowed"));
        // A name that only begins like an allowed one is another name.
        assert!(message(open(&format!("{path}/ab"), "", &allowed)).contains("is not allowed"));
        assert!(message(open(&format!("{path}/a/../b"), "", &allowed)).contains("without .."));
    }

    #[test]
    fn types_are_checked_and_made_only_where_writing_is_allowed() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("file"), "x").unwrap();
        std::fs::create_dir(root.path().join("ro")).unwrap();
        let allowed = [
            HostPath { path: root.path().to_owned(), is_read_only: false },
            HostPath { path: root.path().join("ro"), is_read_only: true },
        ];
        let at = |name: &str| root.path().join(name).display().to_string();
        assert!(open(&at("new"), "Directory", &allowed).is_err());
        assert!(open(&at("new"), "DirectoryOrCreate", &allowed).unwrap().held.is_folder);
        assert!(!open(&at("made"), "FileOrCreate", &allowed).unwrap().held.is_folder);
        assert!(!open(&at("file"), "File", &allowed).unwrap().held.is_folder);
        assert!(open(&at("file"), "Directory", &allowed).is_err());
        assert!(open(&at("new"), "File", &allowed).is_err());
        assert!(open(&at("file"), "Socket", &allowed).is_err());
        assert!(open(&at("ro"), "Directory", &allowed).unwrap().is_read_only);
        assert!(open(&at("ro/new"), "DirectoryOrCreate", &allowed).is_err());
        assert!(!root.path().join("ro/new").exists());
    }

    #[test]
    fn links_below_an_allowed_folder_lead_nowhere() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        symlink(outside.path(), root.path().join("out")).unwrap();
        let allowed = [HostPath { path: root.path().to_owned(), is_read_only: false }];
        let path = root.path().join("out/x").display().to_string();
        assert!(open(&path, "DirectoryOrCreate", &allowed).is_err());
        assert!(open(&path, "FileOrCreate", &allowed).is_err());
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
