//! What guests may import: one linker for all worlds.
//!
//! WASI p2 and p3 come from `wasmtime-wasi`, except for sockets and name lookup, which are the
//! virtual network's. Everything that is not in here is a missing import, found before anything
//! runs.

use wasmtime::Engine;
use wasmtime::component::{Component, HasData, InstancePre, Linker, ResourceTable};
use wasmtime_wasi::WasiView as _;
use wasmtime_wasi::cli::{WasiCli, WasiCliView as _};
use wasmtime_wasi::clocks::{WasiClocks, WasiClocksView as _};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView as _};
use wasmtime_wasi::p2::bindings as p2;
use wasmtime_wasi::random::WasiRandom;

use crate::guest::Guest;
use crate::types::StartError;
use crate::{imports, keyvalue, sockets, tls, volumes};

struct GuestIo;

impl HasData for GuestIo {
    type Data<'a> = &'a mut ResourceTable;
}

/// Links everything.
pub(crate) fn linker(engine: &Engine) -> wasmtime::Result<Linker<Guest>> {
    let mut linker = Linker::new(engine);
    add_io(&mut linker)?;
    add_p2(&mut linker)?;
    sockets::add_to_linker(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    wasmtime_wasi::p3::cli::add_to_linker(&mut linker)?;
    wasmtime_wasi::p3::clocks::add_to_linker(&mut linker)?;
    wasmtime_wasi::p3::filesystem::add_to_linker(&mut linker)?;
    wasmtime_wasi::p3::random::add_to_linker(&mut linker)?;
    wasmtime_wasi_http::p3::add_to_linker(&mut linker)?;
    wasmtime_wasi_config::add_to_linker(&mut linker, Guest::config)?;
    keyvalue::add_to_linker(&mut linker)?;
    tls::add_to_linker(&mut linker)?;
    volumes::add_to_linker(&mut linker)?;
    Ok(linker)
}

fn add_io(l: &mut Linker<Guest>) -> wasmtime::Result<()> {
    use wasmtime_wasi_io::bindings::wasi::io;

    io::error::add_to_linker::<Guest, GuestIo>(l, Guest::table)?;
    io::poll::add_to_linker::<Guest, GuestIo>(l, Guest::table)?;
    io::streams::add_to_linker::<Guest, GuestIo>(l, Guest::table)
}

fn add_p2(l: &mut Linker<Guest>) -> wasmtime::Result<()> {
    use p2::{cli, clocks, filesystem, random};

    clocks::wall_clock::add_to_linker::<Guest, WasiClocks>(l, Guest::clocks)?;
    clocks::monotonic_clock::add_to_linker::<Guest, WasiClocks>(l, Guest::clocks)?;
    filesystem::preopens::add_to_linker::<Guest, WasiFilesystem>(l, Guest::filesystem)?;
    filesystem::types::add_to_linker::<Guest, WasiFilesystem>(l, Guest::filesystem)?;
    random::random::add_to_linker::<Guest, WasiRandom>(l, |guest| guest.ctx().ctx.random())?;
    random::insecure::add_to_linker::<Guest, WasiRandom>(l, |guest| guest.ctx().ctx.random())?;
    random::insecure_seed::add_to_linker::<Guest, WasiRandom>(l, |guest| guest.ctx().ctx.random())?;
    cli::exit::add_to_linker::<Guest, WasiCli>(l, Guest::cli)?;
    cli::environment::add_to_linker::<Guest, WasiCli>(l, Guest::cli)?;
    cli::stdin::add_to_linker::<Guest, WasiCli>(l, Guest::cli)?;
    cli::stdout::add_to_linker::<Guest, WasiCli>(l, Guest::cli)?;
    cli::stderr::add_to_linker::<Guest, WasiCli>(l, Guest::cli)?;
    cli::terminal_input::add_to_linker::<Guest, WasiCli>(l, Guest::cli)?;
    cli::terminal_output::add_to_linker::<Guest, WasiCli>(l, Guest::cli)?;
    cli::terminal_stdin::add_to_linker::<Guest, WasiCli>(l, Guest::cli)?;
    cli::terminal_stdout::add_to_linker::<Guest, WasiCli>(l, Guest::cli)?;
    cli::terminal_stderr::add_to_linker::<Guest, WasiCli>(l, Guest::cli)
}

/// Checks a component's imports.
///
/// # Errors
///
/// [`StartError::MissingImports`] with all that are not offered.
pub(crate) fn link(
    linker: &Linker<Guest>,
    component: &Component,
) -> Result<InstancePre<Guest>, StartError> {
    linker.instantiate_pre(component).map_err(|error| imports::missing(linker, component, &error))
}
