//! The functions of WASI 0.2 that make files, or make them larger.

use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use rustix::io::Errno;
use wasmtime::StoreContextMut;
use wasmtime::component::{Linker, LinkerInstance, Resource};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystemView as _};
use wasmtime_wasi::p2::FsResult;
use wasmtime_wasi::p2::bindings::filesystem::types::{
    DescriptorFlags, ErrorCode, Host as _, HostDescriptor, OpenFlags, PathFlags,
};
use wasmtime_wasi_io::async_trait;
use wasmtime_wasi_io::poll::Pollable;
use wasmtime_wasi_io::streams::{DynOutputStream, OutputStream, StreamError, StreamResult};

use super::quota::{Entry, Quota, grow_to, length};
use super::{Full, Opening, again, file, folder, is_one_volume};
use crate::guest::Guest;

/// The interface whose functions are replaced, as `wasmtime-wasi` names it.
const INTERFACE: &str = "wasi:filesystem/types@0.2.12";

type Fd = Resource<Descriptor>;
/// What a function answers its guest, or a trap.
type Answer<T> = wasmtime::Result<Result<T, ErrorCode>>;

impl From<Full> for ErrorCode {
    fn from(Full: Full) -> Self {
        Self::InsufficientSpace
    }
}

pub(super) fn add_to_linker(linker: &mut Linker<Guest>) -> wasmtime::Result<()> {
    let mut types = linker.instance(INTERFACE)?;
    add_writes(&mut types)?;
    add_names(&mut types)
}

/// What makes files longer or shorter.
fn add_writes(types: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    types.func_wrap_async(
        "[method]descriptor.write",
        |mut store: StoreContextMut<'_, Guest>, (fd, bytes, offset): (Fd, Vec<u8>, u64)| {
            Box::new(async move { Ok((write(store.data_mut(), fd, bytes, offset).await?,)) })
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.set-size",
        |mut store: StoreContextMut<'_, Guest>, (fd, size): (Fd, u64)| {
            Box::new(async move { Ok((set_size(store.data_mut(), fd, size).await?,)) })
        },
    )?;
    types.func_wrap(
        "[method]descriptor.write-via-stream",
        |mut store: StoreContextMut<'_, Guest>, (fd, offset): (Fd, u64)| {
            let guest = store.data_mut();
            let file = file(guest.filesystem().table, &fd);
            let stream = guest.filesystem().write_via_stream(fd, offset);
            let stream = counted(guest, stream, file, Some(offset))?;
            Ok((told(guest, stream)?,))
        },
    )?;
    types.func_wrap(
        "[method]descriptor.append-via-stream",
        |mut store: StoreContextMut<'_, Guest>, (fd,): (Fd,)| {
            let guest = store.data_mut();
            let file = file(guest.filesystem().table, &fd);
            let stream = guest.filesystem().append_via_stream(fd);
            let stream = counted(guest, stream, file, None)?;
            Ok((told(guest, stream)?,))
        },
    )
}

/// What makes files, folders and links, or moves them.
fn add_names(types: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    types.func_wrap_async(
        "[method]descriptor.open-at",
        |mut store: StoreContextMut<'_, Guest>,
         (fd, follow, path, how, flags): (Fd, PathFlags, String, OpenFlags, DescriptorFlags)| {
            Box::new(async move {
                let what = Open { follow, path, how, flags };
                Ok((open_at(store.data_mut(), fd, what).await?,))
            })
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.create-directory-at",
        |mut store: StoreContextMut<'_, Guest>, (fd, path): (Fd, String)| {
            Box::new(async move {
                let guest = store.data_mut();
                let Ok(entry) = make(guest, &fd) else { return Ok((Err(Full.into()),)) };
                let made = guest.filesystem().create_directory_at(fd, path).await;
                Ok((kept(entry, told(guest, made)?),))
            })
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.symlink-at",
        |mut store: StoreContextMut<'_, Guest>, (fd, to, path): (Fd, String, String)| {
            Box::new(async move {
                let guest = store.data_mut();
                let Ok(entry) = make(guest, &fd) else { return Ok((Err(Full.into()),)) };
                let made = guest.filesystem().symlink_at(fd, to, path).await;
                Ok((kept(entry, told(guest, made)?),))
            })
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.link-at",
        |mut store: StoreContextMut<'_, Guest>,
         (fd, follow, path, to, name): (Fd, PathFlags, String, Fd, String)| {
            Box::new(async move {
                let guest = store.data_mut();
                if !is_one(guest, &fd, &to) {
                    return Ok((Err(ErrorCode::CrossDevice),));
                }
                let Ok(entry) = make(guest, &to) else { return Ok((Err(Full.into()),)) };
                let made = guest.filesystem().link_at(fd, follow, path, to, name).await;
                Ok((kept(entry, told(guest, made)?),))
            })
        },
    )?;
    types.func_wrap_async(
        "[method]descriptor.rename-at",
        |mut store: StoreContextMut<'_, Guest>, (fd, path, to, name): (Fd, String, Fd, String)| {
            Box::new(async move {
                let guest = store.data_mut();
                if !is_one(guest, &fd, &to) {
                    return Ok((Err(ErrorCode::CrossDevice),));
                }
                let moved = guest.filesystem().rename_at(fd, path, to, name).await;
                Ok((told(guest, moved)?,))
            })
        },
    )
}

/// The error as guests hear it.
fn told<T>(guest: &mut Guest, result: FsResult<T>) -> Answer<T> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error) => guest.filesystem().convert_error_code(error).map(Err),
    }
}

async fn write(guest: &mut Guest, fd: Fd, bytes: Vec<u8>, offset: u64) -> Answer<u64> {
    let end = offset.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    if let Some(file) = file(guest.filesystem().table, &fd)
        && let Err(full) = guest.quotas().write(&file, offset, end)
    {
        return Ok(Err(full.into()));
    }
    let written = guest.filesystem().write(fd, bytes, offset).await;
    told(guest, written)
}

async fn set_size(guest: &mut Guest, fd: Fd, size: u64) -> Answer<()> {
    let file = file(guest.filesystem().table, &fd);
    let cut = match file.map(|file| guest.quotas().resize(&file, size)).transpose() {
        Ok(cut) => cut,
        Err(full) => return Ok(Err(full.into())),
    };
    let set = guest.filesystem().set_size(fd, size).await;
    let set = told(guest, set)?;
    if let (Ok(()), Some(cut)) = (&set, cut) {
        cut.done();
    }
    Ok(set)
}

/// What is to be opened, and how.
struct Open {
    follow: PathFlags,
    path: String,
    how: OpenFlags,
    flags: DescriptorFlags,
}

async fn open_at(guest: &mut Guest, fd: Fd, what: Open) -> Answer<Fd> {
    let Open { follow, path, how, flags } = what;
    let (makes, cuts) = (how.contains(OpenFlags::CREATE), how.contains(OpenFlags::TRUNCATE));
    let opening = if makes || cuts {
        let found = guest.filesystem().stat_at(again(&fd), follow, path.clone()).await;
        let length = found.ok().map(|found| found.size);
        let folder = folder(guest.filesystem().table, &fd);
        match Opening::ask(guest.quotas(), folder.as_deref(), length, makes, cuts) {
            Ok(opening) => Some(opening),
            Err(full) => return Ok(Err(full.into())),
        }
    } else {
        None
    };
    let is_written = makes || cuts || flags.contains(DescriptorFlags::WRITE);
    let opened = guest.filesystem().open_at(fd, follow, path, how, flags).await;
    let opened = told(guest, opened)?;
    if let Ok(fd) = &opened
        && is_written
    {
        let file = file(guest.filesystem().table, fd);
        let opening = opening.unwrap_or(Opening { entry: None, cut: 0 });
        opening.done(guest.quotas(), file.as_ref(), is_written);
    }
    Ok(opened)
}

fn make(guest: &mut Guest, fd: &Fd) -> Result<Option<Entry>, Full> {
    let folder = folder(guest.filesystem().table, fd);
    folder.map(|folder| guest.quotas().make(&folder)).transpose()
}

/// Keeps what was granted if it was used.
fn kept<T>(entry: Option<Entry>, made: Result<T, ErrorCode>) -> Result<T, ErrorCode> {
    if let (Some(entry), Ok(_)) = (entry, &made) {
        entry.keep();
    }
    made
}

fn is_one(guest: &mut Guest, from: &Fd, to: &Fd) -> bool {
    let from = folder(guest.filesystem().table, from);
    let to = folder(guest.filesystem().table, to);
    is_one_volume(guest.quotas(), from.as_deref(), to.as_deref())
}

/// Puts a counting stream into the place of `stream`.
fn counted(
    guest: &mut Guest,
    stream: FsResult<Resource<DynOutputStream>>,
    file: Option<Arc<File>>,
    position: Option<u64>,
) -> wasmtime::Result<FsResult<Resource<DynOutputStream>>> {
    let (Ok(stream), Some(file)) = (&stream, file) else { return Ok(stream) };
    let quota = guest.quotas().of(&file);
    let place = guest.table().get_mut(stream)?;
    let inner = std::mem::replace(place, Box::new(Closed));
    *place = Box::new(Counted { inner, quota, file, position, end: 0 });
    Ok(Ok(Resource::new_own(stream.rep())))
}

/// A stream to a file.
struct Counted {
    inner: DynOutputStream,
    /// `None` in a volume without a limit.
    quota: Option<Arc<Quota>>,
    file: Arc<File>,
    /// Where the next write goes; `None` appends.
    position: Option<u64>,
    /// End of what was granted so far: the file may be longer soon than it is now.
    end: u64,
}

#[async_trait]
impl Pollable for Counted {
    async fn ready(&mut self) {
        self.inner.ready().await;
    }
}

#[async_trait]
impl OutputStream for Counted {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        let count = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        let start = self.position.unwrap_or_else(|| length(&self.file).max(self.end));
        let end = start.saturating_add(count);
        if !grow_to(&self.file, self.quota.as_deref(), start, end, self.end) {
            let full = std::io::Error::from(Errno::NOSPC);
            return Err(StreamError::LastOperationFailed(full.into()));
        }
        self.end = self.end.max(end);
        if let Some(position) = &mut self.position {
            *position = end;
        }
        self.inner.write(bytes)
    }

    fn flush(&mut self) -> StreamResult<()> {
        self.inner.flush()
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.inner.check_write()
    }

    async fn cancel(&mut self) {
        self.inner.cancel().await;
    }
}

/// Stands in a table's slot for a moment.
struct Closed;

#[async_trait]
impl Pollable for Closed {
    async fn ready(&mut self) {}
}

impl OutputStream for Closed {
    fn write(&mut self, _: Bytes) -> StreamResult<()> {
        Err(StreamError::Closed)
    }

    fn flush(&mut self) -> StreamResult<()> {
        Err(StreamError::Closed)
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Err(StreamError::Closed)
    }
}
