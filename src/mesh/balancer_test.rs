//! Goal: the balancer spreads, prefers what is near, and leaves out what is bad, within bounds.
//! Method: seeded dice, a hand-moved clock, no network.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::mesh::endpoint::{InFlight, REQUESTS_MAX};
use crate::mesh::routes::Place;

/// Past every slow start that began at 0.
const WARM_MS: u64 = 60_000;

fn endpoint(i: u8) -> Arc<EndpointState> {
    let endpoint = EndpointState::new(([10, 42, 0, i], 80).into(), Place::Local, None);
    endpoint.cost(0);
    Arc::new(endpoint)
}

fn backend(count: u8) -> Backend {
    Backend::new((0..count).map(endpoint).collect(), |_| Tier::Cluster)
}

/// `node` endpoints here, `zone` in the zone, `rest` elsewhere.
fn tiered(node: u8, zone: u8, rest: u8) -> Backend {
    Backend::new((0..node + zone + rest).rev().map(endpoint).collect(), |endpoint| {
        let std::net::IpAddr::V4(ip) = endpoint.address.ip() else { panic!() };
        match ip.octets()[3] {
            i if i < node => Tier::Node,
            i if i < node + zone => Tier::Zone,
            _ => Tier::Cluster,
        }
    })
}

const DRAWS: usize = 3000;

fn counts(backend: &Backend, dice: &Dice, now_ms: u64) -> Vec<usize> {
    let mut counts = vec![0; backend.endpoints.len()];
    for _ in 0..DRAWS {
        let (picked, _) = backend.choose(&[], dice, now_ms).unwrap();
        let at = backend.endpoints.iter().position(|e| Arc::ptr_eq(e, &picked)).unwrap();
        counts[at] += 1;
    }
    counts
}

fn dice(seed: u64) -> Dice {
    Dice::new(&crate::rt::Rng::seeded(seed))
}

#[test]
fn equal_endpoints_get_equal_shares() {
    let counts = counts(&backend(3), &dice(1), WARM_MS);
    assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
}

#[test]
fn busy_slow_and_ejected_endpoints_get_less() {
    let dice = dice(2);
    let backend = backend(4);
    let _busy: Vec<_> = (0..5).map(|_| InFlight::new(&backend.endpoints[0])).collect();
    backend.endpoints[1].succeeded(Duration::from_millis(200), WARM_MS);
    let verdict = backend.failed(&backend.endpoints[2], Fault::Unreachable, WARM_MS);
    assert_eq!(verdict, Verdict::Ejected);
    let spread = counts(&backend, &dice, WARM_MS);
    assert!(spread[3] > spread[0] && spread[3] > spread[1], "{spread:?}");
    assert_eq!(spread[2], 0);
    assert!(counts(&backend, &dice, WARM_MS + 5_000)[2] > 500);
}

#[test]
fn a_tried_endpoint_is_not_chosen_again_and_the_ejected_are_the_last_resort() {
    let dice = dice(3);
    let backend = backend(2);
    let tried = vec![Arc::clone(&backend.endpoints[0])];
    for _ in 0..50 {
        let picked = backend.pick(&tried, &dice, WARM_MS).unwrap();
        assert!(Arc::ptr_eq(&picked, &backend.endpoints[1]));
    }
    backend.endpoints[1].eject(WARM_MS);
    let (_, choice) = backend.choose(&tried, &dice, WARM_MS).unwrap();
    assert_eq!(choice, Choice::LastResort);
    let none = backend.choose(&backend.endpoints.clone(), &dice, WARM_MS);
    assert_eq!(none.unwrap_err(), NoChoice::NoEndpoint);
    let none = Backend::default().choose(&[], &dice, WARM_MS);
    assert_eq!(none.unwrap_err(), NoChoice::NoEndpoint);
}

#[test]
fn the_nearest_tier_is_used_and_the_others_are_looked_at_now_and_then() {
    struct Case {
        node: u8,
        zone: u8,
        rest: u8,
        /// Of the tiers, in percent.
        shares: [std::ops::RangeInclusive<usize>; 3],
    }
    let near = 90..=97;
    let seldom = 3..=10;
    let cases = [
        Case { node: 2, zone: 2, rest: 2, shares: [near.clone(), 0..=8, 0..=8] },
        Case { node: 0, zone: 2, rest: 2, shares: [0..=0, near.clone(), seldom.clone()] },
        Case { node: 1, zone: 0, rest: 9, shares: [near, 0..=0, seldom] },
        Case { node: 0, zone: 0, rest: 3, shares: [0..=0, 0..=0, 100..=100] },
        Case { node: 3, zone: 0, rest: 0, shares: [100..=100, 0..=0, 0..=0] },
    ];
    for case in cases {
        let backend = tiered(case.node, case.zone, case.rest);
        let counts = counts(&backend, &dice(4), WARM_MS);
        for ((range, tier), share) in backend.tiers().into_iter().zip(case.shares) {
            let got = counts[range].iter().sum::<usize>() * 100 / DRAWS;
            assert!(share.contains(&got), "{tier:?}: {got} of {share:?}, {counts:?}");
        }
    }
}

#[test]
fn an_overloaded_or_slow_neighbour_is_passed_over_and_one_that_is_gone_too() {
    let dice = dice(5);
    let is_near = |backend: &Backend| {
        let counts = counts(backend, &dice, WARM_MS);
        counts[0] > DRAWS / 2
    };
    let backend = tiered(1, 0, 3);
    let near = Arc::clone(&backend.endpoints[0]);
    let mut load: Vec<_> = (0..3).map(|_| InFlight::new(&near)).collect();
    assert!(is_near(&backend), "three in flight are no overload");
    load.push(InFlight::new(&near));
    let (_, choice) = backend.choose(&[], &dice, WARM_MS).unwrap();
    assert!(!is_near(&backend) && choice == Choice::Spilled);
    load.clear();
    assert!(is_near(&backend));
    near.succeeded(Duration::from_millis(100), WARM_MS);
    assert!(!is_near(&backend));
    let backend = tiered(1, 0, 3);
    assert_eq!(
        backend.failed(&backend.endpoints[0], Fault::Unreachable, WARM_MS),
        Verdict::Ejected
    );
    assert_eq!(counts(&backend, &dice, WARM_MS)[0], 0);
}

#[test]
fn full_endpoints_are_passed_over_until_all_are_and_connections_do_not_mind() {
    let dice = dice(6);
    let backend = tiered(1, 0, 1);
    let fill = |at: usize| -> Vec<_> {
        (0..REQUESTS_MAX).map(|_| InFlight::request(&backend.endpoints[at])).collect()
    };
    let mut near = fill(0);
    assert_eq!(counts(&backend, &dice, WARM_MS)[0], 0);
    let _far = fill(1);
    assert_eq!(backend.choose(&[], &dice, WARM_MS).unwrap_err(), NoChoice::CircuitOpen);
    assert!(backend.pick(&[], &dice, WARM_MS).is_some());
    near.pop();
    assert!(backend.choose(&[], &dice, WARM_MS).is_ok());
}

#[test]
fn half_of_the_endpoints_are_ejected_at_most() {
    for (count, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (9, 4)] {
        let backend = backend(count);
        let verdicts: Vec<_> =
            backend.endpoints.iter().map(|e| backend.failed(e, Fault::Unreachable, 0)).collect();
        let ejected = verdicts.iter().filter(|v| **v == Verdict::Ejected).count();
        assert_eq!(ejected, most, "{verdicts:?}");
        let spared = verdicts.iter().filter(|v| **v == Verdict::Spared).count();
        assert_eq!(ejected + spared, usize::from(count));
    }
}

/// What may happen to an endpoint.
#[derive(Debug, Clone)]
enum Event {
    Fault(usize, u8),
    Success(usize, u64),
    Load(usize),
    Unload,
    Wait(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        (0..8_usize, 0..4_u8).prop_map(|(at, fault)| Event::Fault(at, fault)),
        (0..8_usize, 0..2_000_u64).prop_map(|(at, ms)| Event::Success(at, ms)),
        (0..8_usize).prop_map(Event::Load),
        Just(Event::Unload),
        (0..3_000_u64).prop_map(Event::Wait),
    ];
    proptest::collection::vec(event, 0..120)
}

proptest! {
    /// Whatever happened: somebody is chosen while there is anybody, nobody twice, nobody ejected
    /// while another is free, and never more than half are ejected.
    #[test]
    fn somebody_good_is_always_chosen(
        events in events(), node in 0..4_u8, zone in 0..3_u8, rest in 1..4_u8, seed: u64,
    ) {
        let (backend, dice) = (tiered(node, zone, rest), dice(seed));
        let (mut now, mut load) = (0, Vec::new());
        for event in events {
            let of = |at: usize| &backend.endpoints[at % backend.endpoints.len()];
            match event {
                Event::Fault(at, fault) => {
                    let faults = [Fault::Unreachable, Fault::Broken, Fault::Timeout, Fault::Status];
                    backend.failed(of(at), faults[usize::from(fault)], now);
                }
                Event::Success(at, ms) => of(at).succeeded(Duration::from_millis(ms), now),
                Event::Load(at) => load.push(InFlight::request(of(at))),
                Event::Unload => drop(load.pop()),
                Event::Wait(ms) => now += ms,
            }
            let ejected = backend.endpoints.iter().filter(|e| e.is_ejected(now)).count();
            prop_assert!(ejected * 2 <= backend.endpoints.len());
            let mut tried = Vec::new();
            while tried.len() < backend.endpoints.len() {
                let (picked, choice) = backend.choose(&tried, &dice, now).unwrap();
                prop_assert!(!tried.iter().any(|t| Arc::ptr_eq(t, &picked)));
                let is_any_good = backend
                    .endpoints
                    .iter()
                    .any(|e| e.is_available(now) && !tried.iter().any(|t| Arc::ptr_eq(t, e)));
                if backend.endpoints.len() > 1 {
                    prop_assert_eq!(picked.is_available(now), is_any_good);
                    prop_assert_eq!(choice == Choice::LastResort, !is_any_good);
                }
                tried.push(picked);
            }
            prop_assert!(backend.choose(&tried, &dice, now).is_err());
        }
    }
}
