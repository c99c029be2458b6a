//! The process with the hollow nodes.

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use edgeorc::config::{Environment, NodeFlags, NodeSettings};
use edgeorc::roles::{Hollow, start_hollow};
use edgeorc::rt::Threads;
use futures_util::StreamExt as _;
use tokio::runtime::Handle;

use crate::hollow::{CalmMachine, Script};

/// Nodes that join at the same time: more only wait for the servers.
const JOINS_AT_ONCE: usize = 8;
/// Tries of one node to join.
const TRIES_MAX: u32 = 20;

/// `agents FOLDER SERVERS FIRST COUNT`: starts the nodes `fleet-FIRST` and so on with the tokens in
/// `FOLDER/tokens`, one a line, at the servers in turn, and runs until it is killed.
pub(crate) fn run(args: &[String]) {
    let [folder, servers, first, count] = args else { panic!("agents FOLDER SERVERS FIRST COUNT") };
    let servers: Vec<&str> = servers.split(',').collect();
    let (first, count): (usize, usize) = (first.parse().unwrap(), count.parse().unwrap());
    let folder = PathBuf::from(folder);
    let tokens = std::fs::read_to_string(folder.join("tokens")).unwrap();
    let tokens: Vec<String> = tokens.lines().skip(first).take(count).map(str::to_owned).collect();
    if let Some(filter) = std::env::var_os("FLEET_LOG") {
        let log = filter.to_string_lossy().into_owned();
        let environment = Environment { log: Some(log), ..Environment::default() };
        let log = edgeorc::telemetry::LogSettings::from_environment(&environment, "info");
        edgeorc::telemetry::init_logs(&log.unwrap()).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let packets = Threads::start("packets", 1, 1).unwrap();
    runtime.block_on(async {
        let began = std::time::Instant::now();
        let joins = tokens.iter().enumerate().map(|(at, token)| {
            let settings = settings(&folder, servers[at % servers.len()], first + at, token);
            join(settings, packets.handle().clone())
        });
        let nodes: Vec<_> =
            futures_util::stream::iter(joins).buffer_unordered(JOINS_AT_ONCE).collect().await;
        eprintln!("{} nodes have joined after {:.1?}", nodes.len(), began.elapsed());
        std::future::pending::<()>().await;
        drop(nodes);
    });
}

/// Name of a node.
pub(crate) fn name(at: usize) -> String {
    format!("fleet-{at:04}")
}

fn address(at: usize) -> IpAddr {
    let [_, b, c, d] = u32::try_from(at + 256).unwrap().to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(127, 100 + b, c, d))
}

fn settings(folder: &Path, server: &str, at: usize, token: &str) -> NodeSettings {
    let flags = NodeFlags {
        node_name: Some(name(at)),
        bind_address: Some(address(at)),
        data_dir: Some(folder.join(name(at))),
        join: Some(server.to_owned()),
        token: Some(token.to_owned()),
        ..NodeFlags::default()
    };
    NodeSettings::build(flags, &Environment::default()).unwrap()
}

async fn join(settings: NodeSettings, packets: Handle) -> edgeorc::roles::RunningNode {
    for attempt in 1.. {
        let node = settings.node_name.clone();
        let script = Script { node: node.clone(), board: None, has_logs: false };
        let (runtime, machine) = (Arc::new(script), Arc::new(CalmMachine));
        let hollow = Hollow { runtime, machine, packets: packets.clone() };
        match Box::pin(start_hollow(settings.clone(), hollow)).await {
            Ok(running) => return running,
            Err(why) => {
                eprintln!("{node}: {why}");
                assert!(attempt < TRIES_MAX, "{node} cannot join");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
    unreachable!()
}
