//! The watch and the measurement, driven by hand: who is asked when, what is made of answers.
//!
//! Owns: nothing. Does not know: sockets. Invariant: time is a number here.

use base::Id;
use types::PathCheck;

use super::*;

fn scope(network: u128) -> Scope {
    Scope::Overlay(network_id(network))
}

fn network_id(network: u128) -> NetworkId {
    NetworkId(Id::from_u128(network).unwrap())
}

fn peers(numbers: impl IntoIterator<Item = u32>) -> Arc<Peers> {
    peers_on(9, numbers)
}

fn peers_on(network: u128, numbers: impl IntoIterator<Item = u32>) -> Arc<Peers> {
    let peer = |number: u32| {
        let node = NodeId(Id::from_u128(u128::from(number)).unwrap());
        (number, Peer { node, mtu: 1450 })
    };
    let network = network_id(network);
    Arc::new(Peers { network, mtu: 1450, peers: numbers.into_iter().map(peer).collect() })
}

/// Runs the watch from one time to another; `answers` says which probe comes back.
fn run(
    watch: &mut Watch,
    from: u64,
    to: u64,
    mut answers: impl FnMut(&Probe) -> bool,
) -> Vec<Probe> {
    let mut all = Vec::new();
    for now in (from..to).step_by(TICK.0 as usize) {
        for probe in watch.next(Millis(now)) {
            if answers(&probe) {
                watch.answered(probe.scope, probe.number, probe.size);
            }
            all.push(probe);
        }
    }
    all
}

#[test]
fn each_peer_is_watched_on_one_network_once_a_second() {
    let mut watch = Watch::default();
    let all = AllPeers::from([
        (Scope::Mesh, peers(1..=3)),
        (scope(1), peers([2, 3, 4])),
        (scope(2), peers([4])),
    ]);
    watch.set_peers(&all);
    assert_eq!(watch.watched(), 4);
    let asked = run(&mut watch, 0, 10_000, |_| true);
    for (number, scope) in [(1, Scope::Mesh), (2, Scope::Mesh), (3, Scope::Mesh), (4, scope(1))] {
        let small = asked.iter().filter(|p| p.number == number && p.size == SMALL_BYTES);
        let scopes: Vec<Scope> = small.map(|probe| probe.scope).collect();
        assert!((9..=11).contains(&scopes.len()), "{number}: {}", scopes.len());
        assert!(scopes.iter().all(|one| *one == scope));
    }
    // The others are looked at within their period.
    let asked = run(&mut watch, 10_000, 75_000, |_| true);
    let full: BTreeSet<Key> =
        asked.iter().filter(|p| p.size == 1450).map(|p| (p.scope, p.number)).collect();
    assert_eq!(full.len(), 7);
    assert!(watch.bad_paths(Millis(75_000)).is_empty());
}

#[test]
fn a_thousand_peers_on_many_networks_cost_a_bounded_number_of_questions() {
    let mut watch = Watch::default();
    let mut all = AllPeers::from([(Scope::Mesh, peers(1..=1_000))]);
    for network in 1..=40 {
        all.insert(scope(network), peers(1..=1_000));
    }
    watch.set_peers(&all);
    let asked = run(&mut watch, 0, 60_000, |_| true);
    assert!(asked.len() <= 60 * 251, "{}", asked.len());
    let watched: BTreeSet<u32> =
        asked.iter().filter(|p| p.scope == Scope::Mesh).map(|p| p.number).collect();
    assert_eq!(watched.len(), 1_000);
    // When nobody answers, it is no more than that, either.
    let asked = run(&mut watch, 60_000, 120_000, |_| false);
    assert!(asked.len() <= 60 * 350, "{}", asked.len());
    watch.set_alert(true);
    let asked = run(&mut watch, 120_000, 180_000, |_| false);
    assert!(asked.len() <= 60 * 650, "{}", asked.len());
    assert!(watch.bad_paths(Millis(180_000)).len() <= BAD_PATHS_MAX);
}

#[test]
fn a_peer_that_does_not_answer_is_silent_after_a_few_seconds_and_no_longer_once_it_does() {
    let mut watch = Watch::default();
    watch.set_peers(&AllPeers::from([(Scope::Mesh, peers(1..=3)), (scope(1), peers(1..=3))]));
    run(&mut watch, 0, 5_000, |_| true);
    let period = Millis::from_secs(3);
    run(&mut watch, 5_000, 7_900, |probe| probe.number != 2);
    assert!(watch.silent(Millis(7_900), period).is_empty());
    run(&mut watch, 7_900, 9_500, |probe| probe.number != 2);
    assert_eq!(watch.silent(Millis(9_500), period), BTreeSet::from([2]));
    run(&mut watch, 9_500, 90_000, |probe| probe.number != 2);
    let bad = watch.bad_paths(Millis(90_000));
    assert_eq!(bad.len(), 1, "one path says it all: {bad:?}");
    assert_eq!((bad[0].network, bad[0].trouble), (network_id(9), PathTrouble::Silent));
    run(&mut watch, 90_000, 92_000, |_| true);
    assert!(watch.silent(Millis(92_000), period).is_empty());
    run(&mut watch, 92_000, 100_000, |_| true);
    assert!(watch.bad_paths(Millis(100_000)).is_empty());
}

#[test]
fn one_lost_packet_in_ten_is_no_silence() {
    let mut watch = Watch::default();
    watch.set_peers(&AllPeers::from([(Scope::Mesh, peers(1..=20))]));
    let mut count = 0;
    for from in (0..120_000).step_by(1_000) {
        run(&mut watch, from, from + 1_000, |_| {
            count += 1;
            count % 10 != 0
        });
        assert!(watch.silent(Millis(from + 1_000), Millis::from_secs(3)).is_empty());
    }
}

#[test]
fn a_network_whose_packets_are_dropped_is_bad_though_the_peer_lives() {
    let mut watch = Watch::default();
    watch.set_peers(&AllPeers::from([
        (Scope::Mesh, peers([1, 2])),
        (scope(1), peers_on(1, [1, 2])),
    ]));
    let lives = |probe: &Probe| probe.scope == Scope::Mesh || probe.number == 1;
    run(&mut watch, 0, 80_000, lives);
    let bad = watch.bad_paths(Millis(80_000));
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert_eq!((bad[0].network, bad[0].trouble), (network_id(1), PathTrouble::Silent));
}

#[test]
fn large_packets_that_do_not_come_back_are_named_by_their_size() {
    let mut watch = Watch::default();
    watch.set_peers(&AllPeers::from([(Scope::Mesh, peers([1, 2]))]));
    run(&mut watch, 0, 80_000, |probe| probe.size < 1_400 || probe.number == 1);
    let bad = watch.bad_paths(Millis(80_000));
    assert_eq!(bad.len(), 1, "{bad:?}");
    assert_eq!(bad[0].trouble, PathTrouble::TooLarge(1450));
    assert!(watch.silent(Millis(80_000), Millis::from_secs(3)).is_empty());
}

#[test]
fn peers_that_are_gone_are_not_asked_any_more() {
    let mut watch = Watch::default();
    watch.set_peers(&AllPeers::from([(Scope::Mesh, peers([1, 2]))]));
    run(&mut watch, 0, 80_000, |_| false);
    watch.set_peers(&AllPeers::from([(Scope::Mesh, peers([1]))]));
    let asked = run(&mut watch, 80_000, 90_000, |_| false);
    assert!(!asked.is_empty() && asked.iter().all(|probe| probe.number == 1));
    watch.set_peers(&AllPeers::new());
    assert!(run(&mut watch, 90_000, 95_000, |_| false).is_empty());
    assert!(watch.bad_paths(Millis(95_000)).is_empty());
}

/// Measures paths of which those in `largest` pass packets up to a size.
fn measured(largest: &[(u32, u32)], lost: impl Fn(usize) -> bool) -> BTreeMap<u32, PathCheck> {
    let largest: BTreeMap<u32, u32> = largest.iter().copied().collect();
    let mut measure = Measure::new(&peers(largest.keys().copied()));
    let (mut now, mut count) = (0, 0);
    while let Some(asked) = measure.next(Millis(now)) {
        for (number, size) in asked {
            count += 1;
            if size <= largest[&number] && !lost(count) {
                measure.answered(number, size, 200);
            }
        }
        now += 20;
        assert!(now < 15_000, "it ends");
    }
    largest.into_keys().zip(measure.checks()).collect()
}

#[test]
fn a_measurement_finds_the_largest_size_to_the_byte() {
    let paths = [(1, 9_000), (2, 1_400), (3, 1_399), (4, 73), (5, 72), (6, 0), (7, 1_449)];
    let found = measured(&paths, |_| false);
    for (number, largest) in paths {
        assert_eq!(found[&number].passes, largest.min(1_450), "{number}");
    }
    assert_eq!((found[&6].loss_percent(), found[&6].round_trip_us), (100, 0));
    assert_eq!((found[&1].loss_percent(), found[&1].round_trip_us), (0, 200));
}

#[test]
fn a_measurement_counts_what_is_lost() {
    let found = measured(&[(1, 1_450)], |count| count % 5 == 0);
    assert!((10..=30).contains(&found[&1].loss_percent()), "{:?}", found[&1]);
    assert_eq!(found[&1].passes, 1_450);
}

#[test]
fn the_first_packets_between_two_hosts_are_not_counted() {
    let found = measured(&[(1, 1_450), (2, 1_450)], |count| count <= 2);
    assert!(found.values().all(|path| path.loss_percent() == 0 && path.passes == 1_450));
}

#[test]
fn a_measurement_of_very_many_peers_ends_within_seconds() {
    let all: Vec<(u32, u32)> = (1..=1_000).map(|number| (number, 1_450)).collect();
    let found = measured(&all, |_| false);
    assert!(found.values().all(|path| path.sent >= 4 && path.answered == path.sent));
}
