//! The functions of WASI 0.3 that make files, or make them larger.

use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wasmtime::StoreContextMut;
use wasmtime::component::{
    Accessor, FutureReader, Linker, LinkerInstance, Resource, Source, StreamConsumer, StreamReader,
    StreamResult,
};
use wasmtime_wasi::filesystem::{Descriptor, WasiFilesystem, WasiFilesystemView};
use wasmtime_wasi::p3::bindings::filesystem::types::{
    DescriptorFlags, ErrorCode, HostDescriptorWithStore, OpenFlags, PathFlags,
};
use wasmtime_wasi::p3::filesystem::FilesystemResult;

use super::quota::{Entry, Quotas};
use super::{Full, Opening, again, file, folder, is_one_volume};
use crate::guest::Guest;
use crate::tasks::Guests;

/// The interface whose functions are replaced, as `wasmtime-wasi` names it.
const INTERFACE: &str = "wasi:filesystem/types@0.3.0";
/// Bytes written at once.
const WRITE_BYTES_MAX: usize = 64 << 10;
/// Longest path, as Linux has it: it is kept while what it leads to is looked at.
const PATH_BYTES_MAX: usize = 4096;

type Fd = Resource<Descriptor>;
/// What a function answers its guest, or a trap.
type Answer<T> = wasmtime::Result<Result<T, ErrorCode>>;
/// What a stream's end is told.
type End = FutureReader<Result<(), ErrorCode>>;

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
    types.func_wrap(
        "[method]descriptor.write-via-stream",
        |store: StoreContextMut<'_, Guest>, (fd, data, offset): (Fd, StreamReader<u8>, u64)| {
            Ok((write_via_stream(store, &fd, data, Some(offset))?,))
        },
    )?;
    types.func_wrap(
        "[method]descriptor.append-via-stream",
        |store: StoreContextMut<'_, Guest>, (fd, data): (Fd, StreamReader<u8>)| {
            Ok((write_via_stream(store, &fd, data, None)?,))
        },
    )?;
    types.func_wrap_concurrent(
        "[method]descriptor.set-size",
        |store: &Accessor<Guest>, (fd, size): (Fd, u64)| {
            Box::pin(async move { Ok((set_size(store, fd, size).await?,)) })
        },
    )
}

/// What makes files, folders and links, or moves them.
fn add_names(types: &mut LinkerInstance<'_, Guest>) -> wasmtime::Result<()> {
    types.func_wrap_concurrent(
        "[method]descriptor.open-at",
        |store: &Accessor<Guest>,
         (fd, follow, path, how, flags): (Fd, PathFlags, String, OpenFlags, DescriptorFlags)| {
            Box::pin(async move {
                let what = Open { follow, path, how, flags };
                Ok((open_at(store, fd, what).await?,))
            })
        },
    )?;
    types.func_wrap_concurrent(
        "[method]descriptor.create-directory-at",
        |store: &Accessor<Guest>, (fd, path): (Fd, String)| {
            Box::pin(async move {
                let Ok(entry) = make(store, &fd) else { return Ok((Err(Full.into()),)) };
                let made = WasiFilesystem::create_directory_at(&wasi(store), fd, path).await;
                Ok((kept(entry, told(made)?),))
            })
        },
    )?;
    types.func_wrap_concurrent(
        "[method]descriptor.symlink-at",
        |store: &Accessor<Guest>, (fd, to, path): (Fd, String, String)| {
            Box::pin(async move {
                let Ok(entry) = make(store, &fd) else { return Ok((Err(Full.into()),)) };
                let made = WasiFilesystem::symlink_at(&wasi(store), fd, to, path).await;
                Ok((kept(entry, told(made)?),))
            })
        },
    )?;
    types.func_wrap_concurrent(
        "[method]descriptor.link-at",
        |store: &Accessor<Guest>,
         (fd, follow, path, to, name): (Fd, PathFlags, String, Fd, String)| {
            Box::pin(async move {
                if !is_one(store, &fd, &to) {
                    return Ok((Err(ErrorCode::CrossDevice),));
                }
                let Ok(entry) = make(store, &to) else { return Ok((Err(Full.into()),)) };
                let made = WasiFilesystem::link_at(&wasi(store), fd, follow, path, to, name).await;
                Ok((kept(entry, told(made)?),))
            })
        },
    )?;
    types.func_wrap_concurrent(
        "[method]descriptor.rename-at",
        |store: &Accessor<Guest>, (fd, path, to, name): (Fd, String, Fd, String)| {
            Box::pin(async move {
                if !is_one(store, &fd, &to) {
                    return Ok((Err(ErrorCode::CrossDevice),));
                }
                let moved = WasiFilesystem::rename_at(&wasi(store), fd, path, to, name).await;
                Ok((told(moved)?,))
            })
        },
    )
}

/// The store as the functions that are replaced see it.
fn wasi(store: &Accessor<Guest>) -> Accessor<Guest, WasiFilesystem> {
    store.with_getter::<WasiFilesystem>(<Guest as WasiFilesystemView>::filesystem)
}

/// The error as guests hear it.
fn told<T>(result: FilesystemResult<T>) -> Answer<T> {
    match result {
        Ok(value) => Ok(Ok(value)),
        Err(error) => error.downcast().map(Err),
    }
}

/// The container's quotas, and the file and the folder behind a descriptor.
fn look(store: &Accessor<Guest>, fd: &Fd) -> (Quotas, Option<Arc<File>>, Option<Arc<File>>) {
    store.with(|mut access| {
        let guest = access.data_mut();
        let quotas = guest.quotas().clone();
        let table = guest.table();
        (quotas, file(table, fd), folder(table, fd))
    })
}

async fn set_size(store: &Accessor<Guest>, fd: Fd, size: u64) -> Answer<()> {
    let (quotas, file, _) = look(store, &fd);
    let cut = match file.map(|file| quotas.resize(&file, size)).transpose() {
        Ok(cut) => cut,
        Err(full) => return Ok(Err(full.into())),
    };
    let set = told(WasiFilesystem::set_size(&wasi(store), fd, size).await)?;
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

async fn open_at(store: &Accessor<Guest>, fd: Fd, what: Open) -> Answer<Fd> {
    let Open { follow, path, how, flags } = what;
    if path.len() > PATH_BYTES_MAX {
        return Ok(Err(ErrorCode::NameTooLong));
    }
    let (makes, cuts) = (how.contains(OpenFlags::CREATE), how.contains(OpenFlags::TRUNCATE));
    let (quotas, _, folder) = look(store, &fd);
    let opening = if makes || cuts {
        let found = WasiFilesystem::stat_at(&wasi(store), again(&fd), follow, path.clone()).await;
        let length = found.ok().map(|found| found.size);
        match Opening::ask(&quotas, folder.as_deref(), length, makes, cuts) {
            Ok(opening) => Some(opening),
            Err(full) => return Ok(Err(full.into())),
        }
    } else {
        None
    };
    let is_written = makes || cuts || flags.contains(DescriptorFlags::WRITE);
    let opened = WasiFilesystem::open_at(&wasi(store), fd, follow, path, how, flags).await;
    let opened = told(opened)?;
    if let Ok(fd) = &opened
        && is_written
    {
        let (_, file, _) = look(store, fd);
        let opening = opening.unwrap_or(Opening { entry: None, cut: 0 });
        opening.done(&quotas, file.as_ref(), is_written);
    }
    Ok(opened)
}

fn make(store: &Accessor<Guest>, fd: &Fd) -> Result<Option<Entry>, Full> {
    let (quotas, _, folder) = look(store, fd);
    folder.map(|folder| quotas.make(&folder)).transpose()
}

/// Keeps what was granted if it was used.
fn kept<T>(entry: Option<Entry>, made: Result<T, ErrorCode>) -> Result<T, ErrorCode> {
    if let (Some(entry), Ok(_)) = (entry, &made) {
        entry.keep();
    }
    made
}

fn is_one(store: &Accessor<Guest>, from: &Fd, to: &Fd) -> bool {
    let (quotas, _, from) = look(store, from);
    let (_, _, to) = look(store, to);
    is_one_volume(&quotas, from.as_deref(), to.as_deref())
}

/// Writes what comes out of a stream, at a position or at the end.
fn write_via_stream(
    mut store: StoreContextMut<'_, Guest>,
    fd: &Fd,
    mut data: StreamReader<u8>,
    position: Option<u64>,
) -> wasmtime::Result<End> {
    let (ended, end) = oneshot::channel();
    let guest = store.data_mut();
    let file = match guest.table().get(fd)? {
        Descriptor::File(file) if file.perms.write_not_permitted() => Err(ErrorCode::NotPermitted),
        Descriptor::File(file) => Ok(Arc::clone(&file.file)),
        Descriptor::Dir(_) => Err(ErrorCode::BadDescriptor),
    };
    match file {
        Ok(file) => {
            let (quotas, guests) = (guest.quotas().clone(), Arc::clone(guest.threads()));
            let ended = Some(ended);
            let writer = Writer { file, quotas, guests, position, writing: None, ended };
            data.pipe(&mut store, writer)?;
        }
        Err(code) => {
            data.close(&mut store)?;
            // The other end is in our hands.
            let _ = ended.send(Err(code));
        }
    }
    FutureReader::new(&mut store, end)
}

/// Takes a stream into a file.
struct Writer {
    file: Arc<File>,
    quotas: Quotas,
    guests: Arc<Guests>,
    /// Where the next bytes go; `None` appends.
    position: Option<u64>,
    /// The write that is under way.
    writing: Option<JoinHandle<io::Result<usize>>>,
    /// Told how it ended.
    ended: Option<oneshot::Sender<Result<(), ErrorCode>>>,
}

impl Writer {
    fn end(&mut self, result: Result<(), ErrorCode>) {
        if let Some(ended) = self.ended.take() {
            // A guest that does not want to know has dropped the future.
            let _ = ended.send(result);
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.end(Ok(()));
    }
}

impl<D: 'static> StreamConsumer<D> for Writer {
    type Item = u8;

    fn poll_consume(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        store: StoreContextMut<'_, D>,
        source: Source<'_, u8>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let me = self.get_mut();
        let mut source = source.as_direct(store);
        let mut writing = match me.writing.take() {
            Some(writing) => writing,
            None if finish => return Poll::Ready(Ok(StreamResult::Cancelled)),
            None => {
                let bytes = source.remaining();
                if bytes.is_empty() {
                    return Poll::Ready(Ok(StreamResult::Completed));
                }
                let bytes = bytes.get(..WRITE_BYTES_MAX).unwrap_or(bytes).to_vec();
                let (file, quotas) = (Arc::clone(&me.file), me.quotas.clone());
                let position = me.position;
                // Ends by itself: it is one write.
                me.guests.spawn_blocking(move || quotas.write_now(&file, position, &bytes))
            }
        };
        // A write that has begun is waited for, so that the guest knows what was written.
        let Poll::Ready(written) = Pin::new(&mut writing).poll(cx) else {
            me.writing = Some(writing);
            return Poll::Pending;
        };
        let result = match written {
            Ok(Ok(count)) => {
                source.mark_read(count);
                if let Some(position) = &mut me.position {
                    *position = position.saturating_add(u64::try_from(count).unwrap_or(u64::MAX));
                }
                return Poll::Ready(Ok(StreamResult::Completed));
            }
            Ok(Err(error)) => error.into(),
            Err(_) => ErrorCode::Io,
        };
        me.end(Err(result));
        Poll::Ready(Ok(StreamResult::Dropped))
    }
}
