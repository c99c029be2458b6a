//! Failure drills with real processes on hosts of their own: five nodes, three of them servers, under
//! load, and one failure after the other, each several times. And three servers whose clocks jump.
//!
//! Run by `just test-drills`; `EDGEORC_DRILL_TURNS` (20) is how often. What must never happen is
//! asserted in each turn; how long things take goes to `target/bench/drills.json`, with its budget.

mod clocks;
mod doubles;
pub(crate) mod figures;
mod links;
mod losses;
mod power;
mod world;

use world::{Plan, World};

/// Turns of each drill when nobody says otherwise.
const TURNS_DEFAULT: usize = 20;

fn turns() -> usize {
    let turns = std::env::var("EDGEORC_DRILL_TURNS").ok().and_then(|text| text.parse().ok());
    turns.unwrap_or(TURNS_DEFAULT)
}

/// Whether this drill is wanted: `EDGEORC_DRILLS` may name some, by parts of their names.
fn is_wanted(name: &str) -> bool {
    std::env::var("EDGEORC_DRILLS")
        .map_or(true, |some| some.split(',').any(|one| name.contains(one)))
}

/// A drill: its name, and one turn of it.
type Drill = (&'static str, fn(&mut World, usize));

fn run(plan: &Plan, drills: &[Drill]) {
    let mut world = World::start(plan);
    for turn in 0..turns() {
        for (name, drill) in drills.iter().filter(|(name, _)| is_wanted(name)) {
            let before = std::time::Instant::now();
            world.settle();
            drill(&mut world, turn);
            eprintln!("turn {turn} of {name} took {:?}", before.elapsed());
        }
        // Whoever stops it early has what there is.
        world.figures.report();
    }
    world.settle();
}

#[test]
#[ignore = "takes its time, and needs root and network namespaces: `just test-drills`"]
fn drills_of_hosts_and_links() {
    let plan = Plan {
        network: ("sw", "10.98.0"),
        hosts: &["one", "two", "three", "four", "five"],
        replicas: 8,
        unique: 3,
        environment: |_, _| Vec::new(),
    };
    run(
        &plan,
        &[
            (losses::KILLED, losses::killed),
            (losses::FROZEN, losses::frozen),
            (links::CUT_SHORT, links::cut_short),
            (links::CUT_OFF, links::cut_off),
            (links::LEADER, links::leader_cut_off),
            (links::MOST, links::most_cut_off),
            (power::ALONE, power::alone),
            (power::SERVER, power::server_restarted),
            (power::AGENT, power::agent_restarted),
        ],
    );
}

#[test]
#[ignore = "takes its time, and needs root, network namespaces and libfaketime: `just test-drills`"]
fn drills_of_clocks() {
    let plan = Plan {
        network: ("swc", "10.97.0"),
        hosts: &["sun", "moon", "star"],
        replicas: 4,
        unique: 1,
        environment: clocks::environment,
    };
    run(&plan, &[(clocks::LEADER, clocks::leader), (clocks::FOLLOWER, clocks::follower)]);
    // Whoever has booted in the past keeps to the last time it saw: its clock jumps back no more.
    run(&plan, &[(clocks::BOOT, clocks::boot)]);
}
