//! Receiving a snapshot part by part.

use std::io;
use std::sync::Arc;

use crate::frozen::LogIdV1;
use crate::log::DiskFile;
use crate::peer::wire::SnapshotPartV1;
use crate::state::{SnapshotFile, Snapshots};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Which {
    last: Option<LogIdV1>,
    total: u64,
}

/// The snapshot that is coming in, if any.
#[derive(Debug, Default)]
pub(crate) struct Incoming {
    current: Option<(Which, Arc<dyn DiskFile>)>,
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
        let Some((_, file)) = &self.current else { return Ok(Received::Next(0)) };
        if part.offset != self.offset {
            return Ok(Received::Next(self.offset));
        }
        file.write_at(self.offset, &part.bytes)?;
        let bytes = u64::try_from(part.bytes.len()).unwrap_or(u64::MAX);
        self.offset = self.offset.saturating_add(bytes);
        if self.offset < part.total {
            return Ok(Received::Next(self.offset));
        }
        // Damaged or not, this transfer is over.
        self.current = None;
        self.offset = 0;
        Ok(Received::Whole(Box::new(snapshots.received()?)))
    }
}
