//! The form of a snapshot: envelopes of head, rows, requests, foot; each with its checksum, the
//! foot with one over everything.

use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::envelope::{self, HEADER_BYTES, Header, Message, kind};
use crate::frozen::{RequestV1, RowV1, StateMetaV1};
use crate::log::DiskFile;
use crate::state::mvcc::RowId;

/// Rows are put into frames of about this size.
const FRAME_BYTES: usize = 256 * 1024;
/// Counted for each row beside key and value.
const ROW_OVERHEAD_BYTES: usize = 64;

#[derive(Debug, Serialize, Deserialize)]
struct HeadV1 {
    meta: StateMetaV1,
}

impl Message for HeadV1 {
    const KIND: u16 = kind::SNAPSHOT_HEAD;
    const VERSION: u16 = 1;
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct RowsV1(Vec<(RowId, RowV1)>);

impl Message for RowsV1 {
    const KIND: u16 = kind::SNAPSHOT_ROWS;
    const VERSION: u16 = 1;
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct RequestsV1(Vec<(u64, RequestV1)>);

impl Message for RequestsV1 {
    const KIND: u16 = kind::SNAPSHOT_REQUESTS;
    const VERSION: u16 = 1;
}

#[derive(Debug, Serialize, Deserialize)]
struct FootV1 {
    rows: u64,
    requests: u64,
    /// Of every byte before this frame.
    crc: u32,
}

impl Message for FootV1 {
    const KIND: u16 = kind::SNAPSHOT_FOOT;
    const VERSION: u16 = 1;
}

/// Writes a snapshot front to back.
pub(crate) struct Writer {
    file: Arc<dyn DiskFile>,
    offset: u64,
    crc: u32,
    rows: RowsV1,
    requests: RequestsV1,
    waiting_bytes: usize,
    row_count: u64,
    request_count: u64,
}

impl Writer {
    pub(crate) fn new(file: Arc<dyn DiskFile>, meta: StateMetaV1) -> io::Result<Self> {
        let mut writer = Self {
            file,
            offset: 0,
            crc: 0,
            rows: RowsV1::default(),
            requests: RequestsV1::default(),
            waiting_bytes: 0,
            row_count: 0,
            request_count: 0,
        };
        writer.frame(&HeadV1 { meta })?;
        Ok(writer)
    }

    pub(crate) fn row(&mut self, id: RowId, row: RowV1) -> io::Result<()> {
        let size = row.key.len().saturating_add(row.value.as_ref().map_or(0, bytes::Bytes::len));
        self.waiting_bytes =
            self.waiting_bytes.saturating_add(size).saturating_add(ROW_OVERHEAD_BYTES);
        self.rows.0.push((id, row));
        self.row_count = self.row_count.saturating_add(1);
        if self.waiting_bytes >= FRAME_BYTES { self.flush() } else { Ok(()) }
    }

    pub(crate) fn request(&mut self, number: u64, request: RequestV1) -> io::Result<()> {
        self.waiting_bytes = self.waiting_bytes.saturating_add(ROW_OVERHEAD_BYTES);
        self.requests.0.push((number, request));
        self.request_count = self.request_count.saturating_add(1);
        if self.waiting_bytes >= FRAME_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.waiting_bytes = 0;
        if !self.rows.0.is_empty() {
            let rows = std::mem::take(&mut self.rows);
            self.frame(&rows)?;
        }
        if !self.requests.0.is_empty() {
            let requests = std::mem::take(&mut self.requests);
            self.frame(&requests)?;
        }
        Ok(())
    }

    fn frame(&mut self, message: &impl Message) -> io::Result<()> {
        let bytes = envelope::encode(message).map_err(io::Error::other)?;
        self.file.write_at(self.offset, &bytes)?;
        self.crc = crc32c::crc32c_append(self.crc, &bytes);
        self.offset = self.offset.saturating_add(to_u64(bytes.len()));
        Ok(())
    }

    /// Writes the foot and makes the file durable. Returns its bytes.
    pub(crate) fn finish(mut self) -> io::Result<u64> {
        self.flush()?;
        let foot = FootV1 { rows: self.row_count, requests: self.request_count, crc: self.crc };
        self.frame(&foot)?;
        self.file.sync()?;
        Ok(self.offset)
    }
}

/// One thing read from a snapshot.
pub(crate) enum Item {
    Row(RowId, RowV1),
    Request(u64, RequestV1),
}

/// Reads a whole snapshot; `each` gets every row and request in order. An error of kind
/// `InvalidData` means the file is damaged.
pub(crate) fn read(
    file: &dyn DiskFile,
    mut each: impl FnMut(Item) -> io::Result<()>,
) -> io::Result<StateMetaV1> {
    let bytes = file.len()?;
    let mut crc = 0;
    let (mut rows, mut requests) = (0_u64, 0_u64);
    let (mut offset, head) = frame(file, 0, bytes)?;
    crc = crc32c::crc32c_append(crc, &head);
    let meta = envelope::decode::<HeadV1>(&head).map_err(damaged)?.meta;
    loop {
        let (next, bytes) = frame(file, offset, bytes)?;
        offset = next;
        match Header::parse(&bytes).map_err(damaged)?.kind {
            kind::SNAPSHOT_ROWS => {
                for (id, row) in envelope::decode::<RowsV1>(&bytes).map_err(damaged)?.0 {
                    rows = rows.saturating_add(1);
                    each(Item::Row(id, row))?;
                }
            }
            kind::SNAPSHOT_REQUESTS => {
                for (number, request) in envelope::decode::<RequestsV1>(&bytes).map_err(damaged)?.0
                {
                    requests = requests.saturating_add(1);
                    each(Item::Request(number, request))?;
                }
            }
            _ => {
                let foot = envelope::decode::<FootV1>(&bytes).map_err(damaged)?;
                if (foot.rows, foot.requests, foot.crc) != (rows, requests, crc) {
                    return Err(damaged("the foot does not match"));
                }
                break;
            }
        }
        crc = crc32c::crc32c_append(crc, &bytes);
    }
    if offset != bytes {
        return Err(damaged("bytes after the foot"));
    }
    Ok(meta)
}

/// Reads one envelope; also where the next one starts.
fn frame(file: &dyn DiskFile, offset: u64, end: u64) -> io::Result<(u64, Vec<u8>)> {
    let left = usize::try_from(end.saturating_sub(offset)).unwrap_or(usize::MAX);
    if left < HEADER_BYTES {
        return Err(damaged("cut off"));
    }
    let mut head = [0; HEADER_BYTES];
    file.read_at(offset, &mut head)?;
    let header = Header::parse(&head).map_err(damaged)?;
    let length = usize::try_from(header.length).unwrap_or(usize::MAX);
    let whole = length.saturating_add(HEADER_BYTES);
    if length > envelope::BODY_BYTES_MAX || whole > left {
        return Err(damaged("cut off"));
    }
    let mut bytes = vec![0; whole];
    file.read_at(offset, &mut bytes)?;
    Ok((offset.saturating_add(to_u64(whole)), bytes))
}

fn damaged(reason: impl ToString) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("snapshot: {}", reason.to_string()))
}

fn to_u64(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}
