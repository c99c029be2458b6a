//! `edgeorc kubeconfig`.

use std::path::{Path, PathBuf};

use super::args::{Global, KubeconfigFlags};
use super::exit::{self, Failure};
use super::output;
use crate::config::Environment;
use crate::roles;

/// Where a server keeps its admin kubeconfig.
pub(super) fn path_in(data_dir: &Path) -> PathBuf {
    data_dir.join(roles::ADMIN_KUBECONFIG)
}

/// Prints the kubeconfig in use.
pub(super) fn run(
    flags: &KubeconfigFlags,
    global: &Global,
    environment: &Environment,
) -> Result<(), Failure> {
    let path = chosen(flags.data_dir.as_deref(), global.kubeconfig.as_deref(), environment);
    let text = std::fs::read_to_string(&path).map_err(|cause| {
        Failure::with(
            exit::INPUT,
            format!("cannot read {}: {cause}; a server writes its admin kubeconfig at its first start, name its folder with --data-dir", path.display()),
        )
    })?;
    output::data(&text)
}

/// The file that the other commands would use, but that of a folder that was named comes first.
///
/// Of `$KUBECONFIG` the first file with something in it: a shell empties the one that the output is
/// written to before anything is read.
fn chosen(data_dir: Option<&Path>, named: Option<&Path>, environment: &Environment) -> PathBuf {
    if let Some(dir) = data_dir {
        return path_in(dir);
    }
    if let Some(file) = named {
        return file.to_owned();
    }
    let listed = environment.kubeconfig.iter().flat_map(std::env::split_paths);
    let mut full = listed.filter(|path| std::fs::metadata(path).is_ok_and(|meta| meta.len() > 0));
    full.next().unwrap_or_else(|| path_in(&environment.default_data_dir()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_comes_first_then_the_environment_then_this_machines_node() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("full"), "x").unwrap();
        std::fs::write(at("empty"), "").unwrap();
        let of = |listed: &[&str]| Environment {
            kubeconfig: Some(
                std::env::join_paths(listed.iter().map(|name| at(name))).unwrap().into(),
            ),
            data_dir: Some(at("data")),
            ..Environment::default()
        };
        let own = path_in(&at("data"));
        assert_eq!(chosen(None, None, &of(&["none", "empty", "full"])), at("full"));
        assert_eq!(chosen(None, None, &of(&["none", "empty"])), own);
        let silent = Environment { kubeconfig: None, ..of(&[]) };
        assert_eq!(chosen(None, None, &silent), own);
        assert_eq!(chosen(None, Some(&at("x")), &of(&["full"])), at("x"));
        assert_eq!(chosen(Some(&at("y")), Some(&at("x")), &of(&["full"])), path_in(&at("y")));
    }
}
