//! The wall clock of one node jumps by hours, as that of a board without a battery does. Who waits and
//! measures uses another clock: nobody is lost, nothing is moved, and what is new works.
//!
//! Method: libfaketime changes what a process takes for the time of day; each node reads the offset from a
//! file of its own. Monotonic clocks are left alone.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use super::links::assert_kept;
use super::world::{Pods, World};
use crate::hosts::Host;
use crate::support::{PATIENCE, eventually, succeed};

pub(super) const LEADER: &str = "clock of the leader jumps";
pub(super) const FOLLOWER: &str = "clock of a follower jumps";
pub(super) const BOOT: &str = "node boots hours in the past";

/// Where Debian's package `faketime` puts it.
const LIBRARIES: [&str; 2] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
];
/// The jumps of a turn, the last one back to the truth.
const JUMPS: [&str; 3] = ["+3h", "-3h", "+0h"];

fn offset_file(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.clock"))
}

/// The variables of a node whose clock may jump.
pub(super) fn environment(folder: &Path, name: &str) -> Vec<(&'static str, String)> {
    let library = LIBRARIES.iter().find(|path| Path::new(path).exists());
    let library = library.expect("libfaketime is missing: apt-get install faketime");
    let file = offset_file(folder, name);
    std::fs::write(&file, "+0h\n").unwrap();
    vec![
        ("LD_PRELOAD", (*library).to_owned()),
        ("FAKETIME_TIMESTAMP_FILE", file.to_str().unwrap().to_owned()),
        ("FAKETIME_CACHE_DURATION", "1".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
        ("FAKETIME_NO_FAKE_STAT", "1".to_owned()),
        ("NO_FAKE_STAT", "1".to_owned()),
    ]
}

fn jump(host: &Host, offset: &str) {
    let file = offset_file(host.data_dir.parent().unwrap(), host.name);
    std::fs::write(file, format!("{offset}\n")).unwrap();
}

/// Waits until the server itself says that its clock has jumped: it stamps what it creates.
fn until_jumped(host: &Host, offset: &str) {
    let hours: i64 = offset.trim_end_matches('h').parse().unwrap();
    let at = PATIENCE;
    eventually("the clock has jumped", at, || {
        let now = jiff::Timestamp::now().as_second();
        let args = ["create", "token", "default", "--duration=10m"];
        let token = succeed(&mut host.kubectl(&args));
        let issued = issued_at(token.trim());
        let off = (issued - now - hours * 3600).abs();
        if off < 60 { Ok(()) } else { Err(format!("{off} s off")) }
    });
}

/// The claim `iat` of a token.
fn issued_at(token: &str) -> i64 {
    use base64::Engine as _;
    let claims = token.split('.').nth(1).unwrap();
    let claims = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(claims).unwrap();
    let claims: serde_json::Value = serde_json::from_slice(&claims).unwrap();
    claims["iat"].as_i64().unwrap()
}

pub(super) fn leader(world: &mut World, turn: usize) {
    let at = world.leader();
    jumps(world, LEADER, at, turn);
}

pub(super) fn follower(world: &mut World, turn: usize) {
    let leader = world.leader();
    let at = (0..world.servers()).filter(|at| *at != leader).nth(turn % 2).unwrap();
    jumps(world, FOLLOWER, at, turn);
}

/// The clock jumps ahead, behind, and back. After each jump a pod is started that was not there, on the
/// node or by it, and all others go on.
fn jumps(world: &mut World, drill: &'static str, at: usize, turn: usize) {
    let before = world.settle();
    for (step, offset) in JUMPS.iter().enumerate() {
        jump(&world.hosts[at], offset);
        until_jumped(&world.hosts[at], offset);
        let began = Instant::now();
        new_pods(world, &format!("new-{drill}-{turn}-{step}").replace(' ', "-"));
        world.figures.took(drill, "new pods ready", began.elapsed(), None);
        assert_well(world, &before, offset);
    }
}

/// Nobody is lost, nothing was moved or restarted.
fn assert_well(world: &World, before: &Pods, offset: &str) {
    let ready = super::world::healthy(&world.hosts[0]);
    assert_eq!(ready.len(), world.hosts.len(), "{offset}: ready are {ready:?}");
    assert_kept(before, &World::pods(&world.hosts[0]).unwrap(), &[]);
}

/// A pod on each node that takes pods becomes ready, and shows its logs, at every server; then it goes.
fn new_pods(world: &World, name: &str) {
    let image = "jsonpath={.spec.template.spec.containers[0].image}";
    let image = succeed(&mut world.hosts[0].kubectl(&["get", "deploy", "seed", "-o", image]));
    let names: Vec<_> = world.hosts.iter().map(|host| format!("{name}-{}", host.name)).collect();
    for (host, name) in world.hosts.iter().zip(&names) {
        world.apply(
            &json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": {
            "nodeName": host.name, "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "c", "image": image}]}}),
        );
    }
    for name in &names {
        let wait = ["wait", "--for=condition=Ready", "pod", name, "--timeout=60s"];
        succeed(&mut world.hosts[0].kubectl(&wait));
        for host in &world.hosts {
            let log = succeed(&mut host.kubectl(&["logs", name]));
            assert!(log.starts_with("tick 1"), "{name} at {}: {log}", host.name);
        }
    }
    for name in &names {
        succeed(&mut world.hosts[0].kubectl(&["delete", "pod", name, "--timeout=60s"]));
    }
}

/// A node is restarted while its clock is hours behind: it comes back with its pods.
pub(super) fn boot(world: &mut World, turn: usize) {
    let before = world.settle();
    let at = 1 + turn % (world.hosts.len() - 1);
    let name = world.hosts[at].name;
    world.hosts[at].process().kill();
    jump(&world.hosts[at], "-3h");
    let started = Instant::now();
    world.hosts[at].start(None);
    world.until_run_again(&world.hosts[0], &before, &[name]);
    world.until_healthy(&world.hosts[0]);
    world.until_whole(&world.hosts[0]);
    world.figures.took(BOOT, "back", started.elapsed(), None);
    jump(&world.hosts[at], "+0h");
    assert_kept(&before, &world.settle(), &[name]);
}
