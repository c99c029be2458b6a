//! The data directory: lock, layout, and who this node is.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::roles::NodeError;

/// Version of the layout written by this binary.
const LAYOUT_VERSION: u32 = 1;
/// Free bytes below which a node does not start: it could not write its log.
pub(super) const FREE_BYTES_MIN: u64 = 16 * 1024 * 1024;

/// What a node remembers of itself between starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct NodeState {
    /// [`LAYOUT_VERSION`] of the binary that wrote it.
    pub(super) version: u32,
    /// Cluster id: the trust domain of its certificates.
    pub(super) cluster: String,
    /// Name of the node.
    pub(super) node_name: String,
    /// Raft id; `None` for an agent.
    pub(super) raft_id: Option<u64>,
    /// Random id of this disk, in hex.
    pub(super) store_uuid: String,
    /// `name` and `host:port` of the servers known last.
    pub(super) servers: Vec<(String, String)>,
}

impl NodeState {
    /// Of a node that takes part in `cluster` from now on.
    pub(super) fn new(
        cluster: String,
        node_name: String,
        raft_id: Option<u64>,
        store_uuid: String,
    ) -> Self {
        Self {
            version: LAYOUT_VERSION,
            cluster,
            node_name,
            raft_id,
            store_uuid,
            servers: Vec::new(),
        }
    }

    /// The disk's id as bytes.
    pub(super) fn store_uuid_bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        // A damaged id is caught by the store, which keeps its own copy.
        let _ = hex::decode_to_slice(&self.store_uuid, &mut bytes);
        bytes
    }
}

/// An open and locked data directory. The lock is held until this is dropped.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    _lock: File,
}

impl DataDir {
    /// Creates the folder when it is missing, and locks it.
    ///
    /// # Errors
    ///
    /// [`NodeError::DataDir`] with what to do.
    pub(super) fn open(path: &Path) -> Result<Self, NodeError> {
        let refused = |reason: String| NodeError::DataDir { path: path.to_owned(), reason };
        let io = |action: &str, cause: &io::Error| {
            refused(format!("cannot {action}: {cause}; {}", advice(cause)))
        };
        fs::create_dir_all(path).map_err(|cause| io("create it", &cause))?;
        let path = path.canonicalize().map_err(|cause| io("resolve it", &cause))?;
        // The folder holds keys: nobody else may look in.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700))
            .map_err(|cause| io("restrict its access", &cause))?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("LOCK"))
            .map_err(|cause| io("write to it", &cause))?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            refused(
                "another edgeorc process uses it; stop that one or name another with --data-dir"
                    .into(),
            )
        })?;
        let free = rustix::fs::statvfs(&path).map(|s| s.f_bavail.saturating_mul(s.f_frsize));
        if let Ok(free) = free
            && free < FREE_BYTES_MIN
        {
            return Err(refused(format!(
                "the disk is full: {free} bytes free, {FREE_BYTES_MIN} needed; free some space or name another folder with --data-dir"
            )));
        }
        Ok(Self { path, _lock: lock })
    }

    /// A path inside.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The address that this node tells others: `found`, or, when the machine has no network yet, the one of an
    /// earlier start. A loopback address would lead everybody who is told it to themselves. `bind` is what the
    /// node listens on: an address that was chosen is told as it is.
    pub(super) fn advertised(&self, found: IpAddr, bind: IpAddr) -> IpAddr {
        const FILE: &str = "address";
        if !bind.is_unspecified() {
            return found;
        }
        let text = fs::read_to_string(self.join(FILE)).unwrap_or_default();
        let before = text.trim().parse::<IpAddr>().ok();
        if found.is_loopback() {
            return before.unwrap_or(found);
        }
        if before != Some(found)
            && let Err(err) = self.write(FILE, found.to_string().as_bytes())
        {
            tracing::warn!(%err, "cannot remember this node's address");
        }
        found
    }

    /// What this node remembers; `None` at its first start.
    pub(super) fn state(&self) -> Result<Option<NodeState>, NodeError> {
        let path = self.join("node.json");
        let refused = |reason: String| NodeError::DataDir { path: path.clone(), reason };
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(cause) => return Err(refused(format!("cannot read it: {cause}"))),
        };
        let state: NodeState = serde_json::from_slice(&text)
            .map_err(|cause| refused(format!("it is damaged: {cause}; restore it from a backup or join as a new node with an empty folder")))?;
        if state.version > LAYOUT_VERSION {
            return Err(refused(format!(
                "it was written by a newer edgeorc (layout {}, this one reads {LAYOUT_VERSION}); start that version",
                state.version
            )));
        }
        Ok(Some(state))
    }

    /// Remembers `state`.
    pub(super) fn save_state(&self, state: &NodeState) -> Result<(), NodeError> {
        let text = serde_json::to_vec_pretty(state).map_err(NodeError::failed)?;
        self.write("node.json", &text)
    }

    /// Writes a file whole or not at all, readable by this user only.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> Result<(), NodeError> {
        let path = self.join(name);
        let refused = |cause: io::Error| NodeError::DataDir {
            path: path.clone(),
            reason: format!("cannot write it: {cause}; {}", advice(&cause)),
        };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(refused)?;
        }
        let temporary = path.with_extension("tmp");
        let write = || -> io::Result<()> {
            let mut file = OpenOptions::new()
                .create(true)
                .truncate(true)
                .write(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            if let Some(parent) = path.parent() {
                File::open(parent)?.sync_all()?;
            }
            Ok(())
        };
        write().map_err(refused)
    }

    /// Reads a file as text.
    pub(super) fn read(&self, name: &str) -> Result<String, NodeError> {
        let path = self.join(name);
        fs::read_to_string(&path).map_err(|cause| NodeError::DataDir {
            path,
            reason: format!("cannot read it: {cause}; {}", advice(&cause)),
        })
    }
}

/// What to do about an I/O error.
fn advice(cause: &io::Error) -> &'static str {
    match cause.kind() {
        io::ErrorKind::PermissionDenied => {
            "run as its owner or name another folder with --data-dir"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the disk is full, free some space"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "the filesystem is read-only, name another folder with --data-dir"
        }
        io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
            "it is no folder, name another one with --data-dir"
        }
        _ => "name another folder with --data-dir",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_owner() {
        let folder = tempfile::tempdir().unwrap();
        let first = DataDir::open(folder.path()).unwrap();
        let second = DataDir::open(folder.path()).unwrap_err().to_string();
        assert!(second.contains("another edgeorc process"), "{second}");
        drop(first);
        DataDir::open(folder.path()).unwrap();
    }

    #[test]
    fn without_a_network_the_address_of_before_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::open(folder.path()).unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let (none, any) = (ip("127.0.0.1"), ip("0.0.0.0"));
        assert_eq!(dir.advertised(none, any), none, "nothing better is known");
        assert_eq!(dir.advertised(ip("10.0.0.7"), any), ip("10.0.0.7"));
        assert_eq!(dir.advertised(none, any), ip("10.0.0.7"));
        assert_eq!(dir.advertised(ip("10.0.0.8"), ip("::")), ip("10.0.0.8"));
        assert_eq!(dir.advertised(none, any), ip("10.0.0.8"), "the newest");
        assert_eq!(dir.advertised(none, none), none, "as it was chosen");
    }

    #[test]
    fn a_node_remembers_itself_and_refuses_what_it_cannot_read() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::open(folder.path()).unwrap();
        assert_eq!(dir.state().unwrap(), None);
        let state = NodeState::new("c".into(), "n".into(), Some(1), hex::encode([7; 16]));
        dir.save_state(&state).unwrap();
        assert_eq!(dir.state().unwrap(), Some(state.clone()));
        assert_eq!(state.store_uuid_bytes(), [7; 16]);
        dir.save_state(&NodeState { version: 99, ..state }).unwrap();
        assert!(dir.state().unwrap_err().to_string().contains("newer edgeorc"));
        dir.write("node.json", b"{").unwrap();
        assert!(dir.state().unwrap_err().to_string().contains("damaged"));
    }

    #[test]
    fn a_file_in_place_of_the_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(matches!(DataDir::open(&file), Err(NodeError::DataDir { .. })));
    }
}
