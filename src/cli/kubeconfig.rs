//! `edgeorc kubeconfig`.

use std::path::{Path, PathBuf};

use super::args::KubeconfigFlags;
use super::exit::{self, Failure};
use super::output;
use crate::config::Environment;
use crate::roles;

/// Where a server keeps its admin kubeconfig.
pub(super) fn path_in(data_dir: &Path) -> PathBuf {
    data_dir.join(roles::ADMIN_KUBECONFIG)
}

/// Prints the admin kubeconfig of this machine's node.
pub(super) fn run(flags: &KubeconfigFlags, environment: &Environment) -> Result<(), Failure> {
    let dir = flags.data_dir.clone().unwrap_or_else(|| environment.default_data_dir());
    let path = path_in(&dir);
    let text = std::fs::read_to_string(&path).map_err(|cause| {
        Failure::with(
            exit::INPUT,
            format!("cannot read {}: {cause}; a server writes it at its first start, name its folder with --data-dir", path.display()),
        )
    })?;
    output::data(&text)
}
