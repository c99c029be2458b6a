//! The durable copy of the state in redb.

use std::io;
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use redb::{
    Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition, TableError,
};

use crate::OpenError;
use crate::envelope::{self, decode_body, encode_body};
use crate::frozen::{RequestV1, RowV1, StateMetaV1};
use crate::state::Mvcc;
use crate::state::mvcc::{Changes, RowId};

/// Versions by revision and position: new ones go to the right edge of the tree.
const ROWS: TableDefinition<RowId, &[u8]> = TableDefinition::new("rows");
/// Remembered requests by number.
const REQUESTS: TableDefinition<u64, &[u8]> = TableDefinition::new("requests");
/// One envelope under [`META_KEY`].
const META: TableDefinition<&str, &[u8]> = TableDefinition::new("meta");
const META_KEY: &str = "state";
/// Pages kept by redb: values are in memory already, so only inner pages are worth it.
const CACHE_BYTES: usize = 2 * 1024 * 1024;

/// What one commit adds to the durable copy.
#[derive(Debug)]
pub(crate) struct Commit {
    pub(crate) changes: Changes,
    pub(crate) meta: StateMetaV1,
    /// Requests below this number are forgotten.
    pub(crate) request_floor: u64,
}

/// The state file.
#[derive(Debug)]
pub(crate) struct Db {
    path: PathBuf,
    /// `None` once closed.
    database: Mutex<Option<Database>>,
}

impl Db {
    /// Opens the state file or makes one, and reads the state. A broken file is thrown away: the
    /// log and the newest snapshot rebuild it.
    pub(crate) fn open(path: &Path) -> Result<(Self, Mvcc, Option<StateMetaV1>), OpenError> {
        // redb may panic on a file that is damaged in a way it does not expect.
        let attempt =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| Self::try_open(path)));
        let reason = match attempt {
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(e)) if e.kind() == io::ErrorKind::PermissionDenied => {
                return Err(OpenError::Io { action: "open", path: path.into(), source: e });
            }
            Ok(Err(e)) => e.to_string(),
            Err(_) => "panicked".to_owned(),
        };
        tracing::warn!(err = reason, "the state file is broken and will be rebuilt");
        let io = |source| OpenError::Io { action: "replace", path: path.into(), source };
        std::fs::remove_file(path).map_err(io)?;
        Self::try_open(path).map_err(io)
    }

    fn try_open(path: &Path) -> io::Result<(Self, Mvcc, Option<StateMetaV1>)> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let is_new = !path.exists();
        let database = builder.create(path).map_err(|e| match e {
            redb::DatabaseError::Storage(redb::StorageError::Io(e)) => e,
            other => io::Error::other(other),
        })?;
        if is_new && let Some(dir) = path.parent() {
            std::fs::File::open(dir)?.sync_all()?;
        }
        let (mvcc, meta) = load(&database)?;
        Ok((Self { path: path.into(), database: Mutex::new(Some(database)) }, mvcc, meta))
    }

    /// Makes changes and counters durable, all or nothing.
    pub(crate) fn commit(&self, commit: Commit) -> io::Result<()> {
        let guard = self.database.lock();
        let database = guard.as_ref().ok_or_else(closed)?;
        let mut write = database.begin_write().map_err(io::Error::other)?;
        // Instant opening after a crash is worth a few more pages at this rate of commits.
        write.set_quick_repair(true);
        {
            let mut buffer = Vec::new();
            let mut rows = write.open_table(ROWS).map_err(io::Error::other)?;
            for (id, row) in &commit.changes.rows {
                rows.insert(id, body(row, &mut buffer)?).map_err(io::Error::other)?;
            }
            for id in &commit.changes.forgotten {
                rows.remove(id).map_err(io::Error::other)?;
            }
            let mut requests = write.open_table(REQUESTS).map_err(io::Error::other)?;
            for (number, request) in &commit.changes.requests {
                if *number >= commit.request_floor {
                    requests
                        .insert(number, body(request, &mut buffer)?)
                        .map_err(io::Error::other)?;
                }
            }
            requests.retain_in(..commit.request_floor, |_, _| false).map_err(io::Error::other)?;
            let meta = envelope::encode(&commit.meta).map_err(io::Error::other)?;
            let mut table = write.open_table(META).map_err(io::Error::other)?;
            table.insert(META_KEY, meta.as_ref()).map_err(io::Error::other)?;
        }
        write.commit().map_err(io::Error::other)
    }

    /// Replaces everything by the given rows and requests, all or nothing.
    pub(crate) fn replace(
        &self,
        meta: &StateMetaV1,
        fill: impl FnOnce(&mut Replacement<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        let guard = self.database.lock();
        let database = guard.as_ref().ok_or_else(closed)?;
        let write = database.begin_write().map_err(io::Error::other)?;
        write.delete_table(ROWS).map_err(io::Error::other)?;
        write.delete_table(REQUESTS).map_err(io::Error::other)?;
        {
            let mut replacement = Replacement {
                rows: write.open_table(ROWS).map_err(io::Error::other)?,
                requests: write.open_table(REQUESTS).map_err(io::Error::other)?,
                buffer: Vec::new(),
            };
            fill(&mut replacement)?;
            let meta = envelope::encode(meta).map_err(io::Error::other)?;
            let mut table = write.open_table(META).map_err(io::Error::other)?;
            table.insert(META_KEY, meta.as_ref()).map_err(io::Error::other)?;
        }
        write.commit().map_err(io::Error::other)
    }

    /// A view of the last commit, unmoved by later ones.
    pub(crate) fn view(&self) -> io::Result<View> {
        let guard = self.database.lock();
        let database = guard.as_ref().ok_or_else(closed)?;
        Ok(View(database.begin_read().map_err(io::Error::other)?))
    }

    /// Closes the file.
    pub(crate) fn close(&self) {
        drop(self.database.lock().take());
        tracing::debug!(path = %self.path.display(), "state file closed");
    }
}

fn closed() -> io::Error {
    io::Error::other("the state file is closed")
}

fn body<'b>(value: &impl serde::Serialize, buffer: &'b mut Vec<u8>) -> io::Result<&'b [u8]> {
    buffer.clear();
    encode_body(value, buffer).map_err(io::Error::other)?;
    Ok(buffer)
}

/// A new content being filled in, in order of ids.
pub(crate) struct Replacement<'txn> {
    rows: redb::Table<'txn, RowId, &'static [u8]>,
    requests: redb::Table<'txn, u64, &'static [u8]>,
    buffer: Vec<u8>,
}

impl Replacement<'_> {
    pub(crate) fn row(&mut self, id: RowId, row: &RowV1) -> io::Result<()> {
        self.rows.insert(id, body(row, &mut self.buffer)?).map_err(io::Error::other)?;
        Ok(())
    }

    pub(crate) fn request(&mut self, number: u64, request: &RequestV1) -> io::Result<()> {
        self.requests.insert(number, body(request, &mut self.buffer)?).map_err(io::Error::other)?;
        Ok(())
    }
}

/// A consistent view of one commit.
pub(crate) struct View(ReadTransaction);

impl View {
    /// Counters and membership; `None` before the first commit.
    pub(crate) fn meta(&self) -> io::Result<Option<StateMetaV1>> {
        let table = match self.0.open_table(META) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(None),
            Err(e) => return Err(io::Error::other(e)),
        };
        let stored = table.get(META_KEY).map_err(io::Error::other)?;
        stored.map(|bytes| envelope::decode(bytes.value()).map_err(io::Error::other)).transpose()
    }

    /// Every row, in order.
    pub(crate) fn rows(
        &self,
        mut each: impl FnMut(RowId, RowV1) -> io::Result<()>,
    ) -> io::Result<()> {
        let table = self.0.open_table(ROWS).map_err(io::Error::other)?;
        for row in table.iter().map_err(io::Error::other)? {
            let (id, row) = row.map_err(io::Error::other)?;
            each(id.value(), decode_body(row.value()).map_err(io::Error::other)?)?;
        }
        Ok(())
    }

    /// Every remembered request, in order.
    pub(crate) fn requests(
        &self,
        mut each: impl FnMut(u64, RequestV1) -> io::Result<()>,
    ) -> io::Result<()> {
        let table = self.0.open_table(REQUESTS).map_err(io::Error::other)?;
        for request in table.iter().map_err(io::Error::other)? {
            let (number, request) = request.map_err(io::Error::other)?;
            each(number.value(), decode_body(request.value()).map_err(io::Error::other)?)?;
        }
        Ok(())
    }
}

fn load(database: &Database) -> io::Result<(Mvcc, Option<StateMetaV1>)> {
    let view = View(database.begin_read().map_err(io::Error::other)?);
    let Some(meta) = view.meta()? else { return Ok((Mvcc::default(), None)) };
    let mut mvcc =
        Mvcc::restore(meta.revision, meta.floor, meta.next_request, meta.removed.iter().copied());
    view.rows(|id, row| {
        mvcc.restore_row(id, row);
        Ok(())
    })?;
    view.requests(|_, request| {
        mvcc.restore_request(request);
        Ok(())
    })?;
    Ok((mvcc, Some(meta)))
}
