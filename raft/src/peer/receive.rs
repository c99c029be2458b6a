//! Receiving a snapshot part by part.

use std::io;

use crate::frozen::LogIdV1;
use crate::peer::wire::SnapshotPartV1;
use crate::state::{Receiving, SnapshotFile, Snapshots};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Which {
    last: Option<LogIdV1>,
    total: u64,
}

/// The snapshot that is coming in, if any.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    current: Option<(Which, Receiving)>,
    offset: u64,
}

/// What to do after a part.
#[derive(Debug)]
pub(crate) enum Received {
    /// Ask for the part at this offset.
    Next(u64),
    /// All there and checked.
    Whole(Box<SnapshotFile>),
}

impl Incoming {
    /// Takes in a part. Blocks on the disk.
    pub(crate) fn part(
        &mut self,
        snapshots: &Snapshots,
        part: &SnapshotPartV1,
    ) -> io::Result<Received> {
        let which = Which { last: part.last, total: part.total };
        if self.current.as_ref().is_none_or(|(current, _)| *current != which) {
            self.current = Some((which, snapshots.receive()?));
            self.offset = 0;
        }
        let Some((_, receiving)) = &self.current else { return Ok(Received::Next(0)) };
        if part.offset != self.offset {
            return Ok(Received::Next(self.offset));
        }
        receiving.file.write_at(self.offset, &part.bytes)?;
        let bytes = u64::try_from(part.bytes.len()).unwrap_or(u64::MAX);
        self.offset = self.offset.saturating_add(bytes);
        if self.offset < part.total {
            return Ok(Received::Next(self.offset));
        }
        // Damaged or not, this transfer is over.
        self.offset = 0;
        let Some((_, receiving)) = self.current.take() else { return Ok(Received::Next(0)) };
        Ok(Received::Whole(Box::new(snapshots.received(receiving)?)))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::frozen::{StateMetaV1, VoteV1};
    use crate::log::FsDisk;
    use crate::state::Db;
    use crate::type_config::StoredMembership;

    fn meta() -> StateMetaV1 {
        StateMetaV1 {
            applied: None,
            membership: (&StoredMembership::default()).into(),
            revision: 3,
            floor: 0,
            next_request: 0,
            removed: Vec::new(),
        }
    }

    fn part(bytes: &[u8], from: usize, upto: usize) -> SnapshotPartV1 {
        SnapshotPartV1 {
            vote: VoteV1 { term: 1, voted_for: 1, committed: true },
            last: None,
            total: bytes.len() as u64,
            offset: from as u64,
            bytes: bytes[from..upto].to_vec().into(),
        }
    }

    fn whole(received: Received) -> SnapshotFile {
        match received {
            Received::Whole(file) => *file,
            Received::Next(next) => panic!("not whole, wants byte {next}"),
        }
    }

    #[test]
    fn a_snapshot_sent_again_leaves_the_one_being_installed_whole() {
        let dir = tempfile::tempdir().unwrap();
        let folder = |name: &str| Arc::new(FsDisk::new(dir.path().join(name)).unwrap());
        let (db, _, _) = Db::open(&dir.path().join("state.redb")).unwrap();
        let sender = Snapshots::open(folder("sender")).unwrap();
        let sent = sender.build(&db.view().unwrap(), meta()).unwrap();
        let bytes = sent.part(0, usize::MAX).unwrap();
        let receiver = Snapshots::open(folder("receiver")).unwrap();
        let mut incoming = Incoming::default();
        let all = part(&bytes, 0, bytes.len());
        let first = whole(incoming.part(&receiver, &all).unwrap());
        let again = incoming.part(&receiver, &part(&bytes, 0, 5)).unwrap();
        assert!(matches!(again, Received::Next(5)));
        let kept = receiver.keep(first).unwrap();
        kept.read(|_| Ok(())).unwrap();
        let rest = part(&bytes, 5, bytes.len());
        drop(whole(incoming.part(&receiver, &rest).unwrap()));
        let names: Vec<_> = std::fs::read_dir(dir.path().join("receiver")).unwrap().collect();
        assert_eq!(names.len(), 1, "what was not installed leaves nothing behind: {names:?}");
    }
}
