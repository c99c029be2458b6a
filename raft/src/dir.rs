//! The data folder: who has it open, whose it is, how much room is left.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::envelope::{self, Message, kind};
use crate::{Member, NodeId, OpenError};

const LOCK_NAME: &str = "LOCK";
const IDENTITY_NAME: &str = "identity";
const IDENTITY_NEW_NAME: &str = "identity.tmp";
/// Below this much free space, or below a twentieth if that is less, no user write is taken.
const FREE_BYTES_MIN: u64 = 64 * 1024 * 1024;
const FREE_SHARE_MIN: u64 = 20;
/// The filesystem is asked at most this often.
const SPACE_CHECK_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct IdentityV1 {
    id: NodeId,
    store_uuid: [u8; 16],
}

impl Message for IdentityV1 {
    const KIND: u16 = kind::IDENTITY;
    const VERSION: u16 = 1;
}

/// The claim on a data folder; gone when dropped.
#[derive(Debug)]
pub(crate) struct DirLock(#[expect(dead_code, reason = "held, not read")] File);

/// Makes the folder, claims it, and checks (or writes) whose it is. Blocks on the disk.
pub(crate) fn claim(dir: &Path, me: &Member) -> Result<DirLock, OpenError> {
    let io = |action, name: &str, source| OpenError::Io { action, path: dir.join(name), source };
    make_durably(dir).map_err(|e| io("create", "", e))?;
    let mut options = OpenOptions::new();
    let lock = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join(LOCK_NAME))
        .map_err(|e| io("open", LOCK_NAME, e))?;
    if let Err(e) = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        if e == rustix::io::Errno::WOULDBLOCK {
            return Err(OpenError::Foreign(format!(
                "another process has the data folder {} open",
                dir.display()
            )));
        }
        return Err(io("lock", LOCK_NAME, e.into()));
    }
    let mine = IdentityV1 { id: me.id, store_uuid: me.store_uuid };
    match std::fs::read(dir.join(IDENTITY_NAME)) {
        Ok(bytes) => {
            let found: IdentityV1 = envelope::decode(&bytes)
                .map_err(|e| io("read", IDENTITY_NAME, io::Error::other(e)))?;
            if found != mine {
                return Err(OpenError::Foreign(format!(
                    "the data folder {} belongs to node id {} with another store, this is {}",
                    dir.display(),
                    found.id,
                    me.id
                )));
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            write_identity(dir, &mine).map_err(|e| io("write", IDENTITY_NAME, e))?;
        }
        Err(e) => return Err(io("read", IDENTITY_NAME, e)),
    }
    Ok(DirLock(lock))
}

/// Makes a folder and those above it; their names survive a power cut.
fn make_durably(dir: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = dir.ancestors().take_while(|folder| !folder.exists()).collect();
    std::fs::create_dir_all(dir)?;
    for made in missing {
        // The parent of a relative one-part path is the empty path: the working directory.
        let parent = made.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(())
}

fn write_identity(dir: &Path, identity: &IdentityV1) -> io::Result<()> {
    let bytes = envelope::encode(identity).map_err(io::Error::other)?;
    let new = dir.join(IDENTITY_NEW_NAME);
    let mut file = File::create(&new)?;
    file.write_all(&bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, dir.join(IDENTITY_NAME))?;
    File::open(dir)?.sync_all()
}

/// Free space of the data folder's filesystem.
#[derive(Debug)]
pub(crate) struct Space {
    dir: PathBuf,
    last: Mutex<Option<(Instant, Result<(), u64>)>>,
}

impl Space {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, last: Mutex::new(None) }
    }

    /// `Err` with the free bytes when they are too few for user writes.
    pub(crate) fn check(&self) -> Result<(), u64> {
        let mut last = self.last.lock();
        if let Some((at, answer)) = *last
            && at.elapsed() < SPACE_CHECK_EVERY
        {
            return answer;
        }
        // A filesystem that does not answer is not a full one: the write will tell.
        let answer = rustix::fs::statvfs(&self.dir).map_or(Ok(()), |stat| {
            let free = stat.f_bavail.saturating_mul(stat.f_frsize);
            let share = stat.f_blocks.saturating_mul(stat.f_frsize) / FREE_SHARE_MIN;
            if free < share.min(FREE_BYTES_MIN) { Err(free) } else { Ok(()) }
        });
        *last = Some((Instant::now(), answer));
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(id: NodeId) -> Member {
        Member { id, store_uuid: [7; 16], ..Member::default() }
    }

    #[test]
    fn a_folder_is_opened_once_and_by_its_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let lock = claim(dir.path(), &member(1)).unwrap();
        assert!(matches!(claim(dir.path(), &member(1)), Err(OpenError::Foreign(_))));
        drop(lock);
        assert!(matches!(claim(dir.path(), &member(2)), Err(OpenError::Foreign(_))));
        let cloned = Member { store_uuid: [8; 16], ..member(1) };
        assert!(matches!(claim(dir.path(), &cloned), Err(OpenError::Foreign(_))));
        claim(dir.path(), &member(1)).unwrap();
    }
}
