//! A fleet on one machine: three real servers, and hollow nodes that join them over QUIC.
//!
//! Method: three `edgeorc` processes (`just dist`; another binary by `EDGEORC`) are the servers. The
//! nodes are the real agent with all its watches, heartbeats, certificates and connections, on a
//! scripted runtime (`tests/hollow`), hundreds in one process; their folders are in memory. One such
//! process has the nodes that are to be lost: it is killed. What the servers cost is read from
//! `/proc`, what travels from the counters of the loopback device: run it in a network namespace of
//! its own, as `just bench-fleet` does. Prints a table and writes `target/bench/fleet.json`.
//!
//! `--nodes N` (1000), `--replicas N` (10000), `--lost N` (100), `--idle SECONDS` (60).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::disallowed_methods,
    clippy::disallowed_types,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::cast_precision_loss,
    dead_code,
    reason = "a bench that cannot run should stop at once, and it measures real time"
)]

mod agents;
mod cluster;
mod gauge;
#[path = "../../tests/hollow/mod.rs"]
mod hollow;
mod scenario;
#[path = "../support/mod.rs"]
mod support;

use std::path::Path;

use mimalloc::MiMalloc;
use scenario::Size;

/// The agents' memory is that of `edgeorc` itself.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("--list") => return,
        // This program is its own compiler: what a hollow node runs is not looked at.
        Some("compile") => {
            let [.., input, output] = args.as_slice() else { panic!("compile IN OUT") };
            std::fs::copy(input, output).unwrap();
            return;
        }
        Some("agents") => return agents::run(&args[1..]),
        _ => {}
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut rows = Vec::new();
    let ended = runtime.block_on(Box::pin(scenario::run(&Size::from_args(&args), &mut rows)));
    support::report(root, "fleet", &rows);
    if let Err(why) = ended {
        eprintln!("the fleet did not get there: {why}");
        std::process::exit(1);
    }
}
