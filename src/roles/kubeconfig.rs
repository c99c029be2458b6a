//! The admin kubeconfig that a server writes into its data directory.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::net::pki::CertificateAuthority;
use crate::roles::NodeError;
use crate::roles::data_dir::DataDir;

/// Its file name inside the data directory.
pub const ADMIN_KUBECONFIG: &str = "admin.kubeconfig";
/// Name of cluster, user and context in it.
const ENTRY: &str = "edgeorc";

/// Writes a kubeconfig with a fresh client certificate of the cluster's administrator.
pub(super) fn write(
    dir: &DataDir,
    authority: &CertificateAuthority,
    server: &str,
) -> Result<(), NodeError> {
    let admin =
        authority.issue_client("edgeorc-admin", &["system:masters"]).map_err(NodeError::failed)?;
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": ENTRY, "cluster": {
            "server": server,
            "certificate-authority-data": STANDARD.encode(authority.cert_pem()),
        }}],
        "users": [{"name": ENTRY, "user": {
            "client-certificate-data": STANDARD.encode(admin.cert_pem),
            "client-key-data": STANDARD.encode(admin.key_pem),
        }}],
        "contexts": [{"name": ENTRY, "context": {"cluster": ENTRY, "user": ENTRY}}],
        "current-context": ENTRY,
    });
    let text = serde_saphyr::to_string(&config).map_err(NodeError::failed)?;
    dir.write(ADMIN_KUBECONFIG, text.as_bytes())
}
