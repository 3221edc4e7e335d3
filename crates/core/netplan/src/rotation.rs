//! A change of keys: which of two generations leads to each peer, and when one is not needed.
//!
//! Owns: that decision. Does not know: keys' bytes, clocks, who sees handshakes.
//! Invariant: a peer is led to a newer key only after a handshake with it, and never back to an
//! older one while both have the newer; nothing is dropped before all who may use it have said for
//! a while that they do not, or before the deadline.

use std::collections::{BTreeMap, BTreeSet};

use base::Millis;

/// What a peer says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said {
    /// Generations of its keys.
    pub keys: BTreeSet<u32>,
    /// The newest that it uses towards all; zero: none.
    pub sends_with: u32,
}

/// What follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judged {
    /// The generation that leads to each peer, by its number; a peer without a common one has none.
    pub uses: BTreeMap<u32, u32>,
    /// The newest that is used towards every peer that can be reached; zero: there is no key.
    pub sends_with: u32,
    /// Keys of this node that nobody needs any more.
    pub droppable: BTreeSet<u32>,
}

/// The generations of one node and its peers.
#[derive(Clone, Debug, Default)]
pub struct Rotation {
    /// Own ones, with when they were first heard of.
    own: BTreeMap<u32, Millis>,
    peers: BTreeMap<u32, Said>,
    /// Generation and number of the peers with whom a handshake was seen.
    shaken: BTreeSet<(u32, u32)>,
    uses: BTreeMap<u32, u32>,
    /// The newest generation, and since when nobody sends with an older one.
    unused_since: Option<(u32, Millis)>,
}

impl Rotation {
    /// The generations that this node has keys of.
    pub fn set_own(&mut self, generations: &BTreeSet<u32>, now: Millis) {
        self.own.retain(|generation, _| generations.contains(generation));
        for generation in generations {
            self.own.entry(*generation).or_insert(now);
        }
        let own = &self.own;
        self.shaken.retain(|(generation, _)| own.contains_key(generation));
    }

    /// The peers, by number; those that are not named are none any more.
    pub fn set_peers(&mut self, peers: BTreeMap<u32, Said>) {
        self.peers = peers;
        let peers = &self.peers;
        self.shaken.retain(|(generation, number)| {
            peers.get(number).is_some_and(|said| said.keys.contains(generation))
        });
        self.uses.retain(|number, _| peers.contains_key(number));
    }

    /// A handshake with the key that the peer has now.
    pub fn saw_handshake(&mut self, generation: u32, number: u32) {
        let known = self.peers.get(&number).is_some_and(|said| said.keys.contains(&generation));
        if known && self.own.contains_key(&generation) {
            self.shaken.insert((generation, number));
        }
    }

    /// The peer has another key of this generation than before: a handshake with the old one says
    /// nothing.
    pub fn forget_handshake(&mut self, generation: u32, number: u32) {
        self.shaken.remove(&(generation, number));
    }

    /// Peers with whom there should be a session soon.
    #[must_use]
    pub fn awaits_any(&self) -> bool {
        let own = self.own.keys();
        own.into_iter().any(|generation| {
            let with = self.peers.iter().filter(|(_, said)| said.keys.contains(generation));
            with.into_iter().any(|(number, _)| !self.shaken.contains(&(*generation, *number)))
        })
    }

    pub fn judge(&mut self, now: Millis) -> Judged {
        self.choose();
        let sends_with = self.sends_with();
        let droppable = self.droppable(sends_with, now);
        Judged { uses: self.uses.clone(), sends_with, droppable }
    }

    fn choose(&mut self) {
        for (number, said) in &self.peers {
            let common = || said.keys.iter().filter(|key| self.own.contains_key(key)).copied();
            let before = self.uses.get(number).copied().filter(|used| common().any(|g| g == *used));
            let shaken = common().filter(|key| self.shaken.contains(&(*key, *number))).max();
            let chosen = before.or_else(|| common().min()).max(shaken);
            match chosen {
                Some(generation) => self.uses.insert(*number, generation),
                None => self.uses.remove(number),
            };
        }
    }

    fn sends_with(&self) -> u32 {
        let newest = self.own.keys().next_back().copied().unwrap_or_default();
        let lowest = self.uses.values().min().copied().unwrap_or(newest);
        // Towards a peer without the newest, which is used all the same, an older one.
        self.own.range(..=lowest).next_back().map_or(0, |(generation, _)| *generation)
    }

    fn droppable(&mut self, sends_with: u32, now: Millis) -> BTreeSet<u32> {
        let Some((&newest, &made)) = self.own.last_key_value() else { return BTreeSet::new() };
        let using = || self.peers.values().filter(|said| !said.keys.is_empty());
        let unused = sends_with >= newest && using().all(|said| said.sends_with >= newest);
        let known = self.unused_since.filter(|(generation, _)| *generation == newest);
        self.unused_since = unused.then(|| known.unwrap_or((newest, now)));
        let linger = if using().next().is_some() { LINGER } else { Millis(0) };
        let passed = |since: Millis, time: Millis| now.0.saturating_sub(since.0) >= time.0;
        let over = self.unused_since.is_some_and(|(_, since)| passed(since, linger));
        let older = self.own.range(..newest).map(|(generation, _)| *generation);
        older.filter(|_| over || passed(made, DEADLINE)).collect()
    }
}

/// What was sent before the last one changed may still be on its way, in a queue of a busy machine.
pub const LINGER: Millis = Millis::from_secs(3);
/// A peer that is down must not hold an old key for ever.
pub const DEADLINE: Millis = Millis::from_secs(120);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn said(keys: &[u32], sends_with: u32) -> Said {
        Said { keys: keys.iter().copied().collect(), sends_with }
    }

    fn peers<const N: usize>(all: [(u32, Said); N]) -> BTreeMap<u32, Said> {
        all.into_iter().collect()
    }

    fn own(generations: &[u32]) -> BTreeSet<u32> {
        generations.iter().copied().collect()
    }

    fn uses(judged: &Judged) -> Vec<(u32, u32)> {
        judged.uses.iter().map(|(number, generation)| (*number, *generation)).collect()
    }

    #[test]
    fn peers_are_switched_one_by_one_and_the_old_key_goes_when_all_have_said_so() {
        let mut rotation = Rotation::default();
        assert_eq!(rotation.judge(Millis(0)), Judged::default());
        rotation.set_own(&own(&[1]), Millis(0));
        rotation.set_peers(peers([(2, said(&[1], 1)), (3, said(&[1], 1))]));
        let judged = rotation.judge(Millis(0));
        assert_eq!((uses(&judged), judged.sends_with), (vec![(2, 1), (3, 1)], 1));
        assert!(judged.droppable.is_empty() && rotation.awaits_any());

        rotation.set_own(&own(&[1, 2]), Millis(1_000));
        rotation.saw_handshake(2, 2);
        assert_eq!(uses(&rotation.judge(Millis(1_000))), [(2, 1), (3, 1)], "it has no such key");
        rotation.set_peers(peers([(2, said(&[1, 2], 1)), (3, said(&[1, 2], 1))]));
        rotation.saw_handshake(2, 2);
        let judged = rotation.judge(Millis(2_000));
        assert_eq!((uses(&judged), judged.sends_with), (vec![(2, 2), (3, 1)], 1));
        rotation.saw_handshake(2, 3);
        let judged = rotation.judge(Millis(2_000));
        assert_eq!((uses(&judged), judged.sends_with), (vec![(2, 2), (3, 2)], 2));
        assert!(judged.droppable.is_empty(), "they still send with the old one");
        rotation.set_peers(peers([(2, said(&[1, 2], 2)), (3, said(&[1, 2], 1))]));
        assert!(rotation.judge(Millis(3_000)).droppable.is_empty());
        rotation.set_peers(peers([(2, said(&[2], 2)), (3, said(&[1, 2], 2))]));
        let since = Millis(3_000);
        assert!(rotation.judge(since).droppable.is_empty(), "something may be on its way");
        assert!(rotation.judge(Millis(since.0 + LINGER.0 - 1)).droppable.is_empty());
        let now = Millis(since.0 + LINGER.0);
        assert_eq!(rotation.judge(now).droppable, own(&[1]));
        rotation.set_own(&own(&[2]), now);
        let judged = rotation.judge(now);
        assert_eq!((uses(&judged), judged.sends_with), (vec![(2, 2), (3, 2)], 2));
        assert!(judged.droppable.is_empty());
    }

    #[test]
    fn a_peer_that_is_down_holds_the_old_key_until_the_deadline_and_is_reached_until_then() {
        let mut rotation = Rotation::default();
        rotation.set_own(&own(&[1]), Millis(0));
        rotation.set_peers(peers([(2, said(&[1], 1)), (3, said(&[1], 1))]));
        rotation.judge(Millis(0));
        rotation.set_own(&own(&[1, 2]), Millis(5_000));
        rotation.set_peers(peers([(2, said(&[1, 2], 2)), (3, said(&[1], 1))]));
        rotation.saw_handshake(2, 2);
        let just_before = Millis(5_000 + DEADLINE.0 - 1);
        let judged = rotation.judge(just_before);
        assert_eq!((uses(&judged), judged.sends_with), (vec![(2, 2), (3, 1)], 1));
        assert!(judged.droppable.is_empty());
        assert_eq!(rotation.judge(Millis(just_before.0 + 1)).droppable, own(&[1]));
        rotation.set_own(&own(&[2]), just_before);
        let judged = rotation.judge(just_before);
        assert_eq!((uses(&judged), judged.sends_with), (vec![(2, 2)], 2));
        // It comes back, and needs no handshake to be led to: there is only one way.
        rotation.set_peers(peers([(2, said(&[2], 2)), (3, said(&[1, 2], 1))]));
        assert_eq!(uses(&rotation.judge(just_before)), [(2, 2), (3, 2)]);
    }

    #[test]
    fn a_node_without_peers_drops_at_once_and_one_without_keys_says_so() {
        let mut rotation = Rotation::default();
        rotation.set_own(&own(&[4, 5]), Millis(0));
        let judged = rotation.judge(Millis(0));
        assert_eq!((judged.sends_with, judged.droppable), (5, own(&[4])));
        // A peer that has published no key holds nothing.
        rotation.set_peers(peers([(2, Said::default())]));
        let judged = rotation.judge(Millis(0));
        assert_eq!((judged.sends_with, judged.droppable), (5, own(&[4])));
        rotation.set_own(&own(&[]), Millis(0));
        assert_eq!(rotation.judge(Millis(0)).sends_with, 0);
    }

    #[test]
    fn a_handshake_with_a_key_that_was_replaced_does_not_count() {
        let mut rotation = Rotation::default();
        rotation.set_own(&own(&[1, 2]), Millis(0));
        rotation.set_peers(peers([(2, said(&[1, 2], 1))]));
        rotation.saw_handshake(2, 2);
        rotation.forget_handshake(2, 2);
        assert_eq!(uses(&rotation.judge(Millis(0))), [(2, 1)]);
        rotation.saw_handshake(2, 2);
        rotation.judge(Millis(0));
        rotation.forget_handshake(2, 2);
        assert_eq!(uses(&rotation.judge(Millis(0))), [(2, 2)], "there is no way back");
    }

    #[derive(Clone, Debug)]
    enum Event {
        Own(BTreeSet<u32>),
        Peer(u32, BTreeSet<u32>, u32),
        Gone(u32),
        Shake(u32, u32),
        Wait(u64),
    }

    fn event() -> impl Strategy<Value = Event> {
        let generations = || prop::collection::btree_set(1u32..4, 0..3);
        prop_oneof![
            generations().prop_map(Event::Own),
            (2u32..6, generations(), 0u32..4).prop_map(|(n, keys, s)| Event::Peer(n, keys, s)),
            (2u32..6).prop_map(Event::Gone),
            (1u32..4, 2u32..6).prop_map(|(g, n)| Event::Shake(g, n)),
            (0u64..100_000).prop_map(Event::Wait),
        ]
    }

    proptest! {
        #[test]
        fn what_is_used_both_have_and_nothing_in_use_is_dropped_early(
            events in prop::collection::vec(event(), 1..60)
        ) {
            let (mut rotation, mut now, mut known) = (Rotation::default(), 0, BTreeMap::new());
            let (mut mine, mut made) = (BTreeSet::new(), BTreeMap::new());
            for event in events {
                match event {
                    Event::Own(generations) => {
                        mine = generations;
                        made.retain(|generation, _| mine.contains(generation));
                        for generation in &mine {
                            made.entry(*generation).or_insert(now);
                        }
                        rotation.set_own(&mine, Millis(now));
                    }
                    Event::Peer(number, keys, sends_with) => {
                        known.insert(number, Said { keys, sends_with });
                        rotation.set_peers(known.clone());
                    }
                    Event::Gone(number) => {
                        known.remove(&number);
                        rotation.set_peers(known.clone());
                    }
                    Event::Shake(generation, number) => rotation.saw_handshake(generation, number),
                    Event::Wait(time) => now += time,
                }
                let judged = rotation.judge(Millis(now));
                for (number, said) in &known {
                    let used = judged.uses.get(number);
                    let common = said.keys.intersection(&mine).count();
                    prop_assert_eq!(used.is_some(), common > 0);
                    prop_assert!(used.is_none_or(|g| said.keys.contains(g) && mine.contains(g)));
                    prop_assert!(used.is_none_or(|g| *g >= judged.sends_with));
                }
                let newest = mine.iter().next_back();
                prop_assert!(newest.is_none_or(|newest| !judged.droppable.contains(newest)));
                let since = newest.map_or(now, |newest| made[newest]);
                let late = now - since >= DEADLINE.0;
                for dropped in &judged.droppable {
                    let used = judged.uses.values().any(|used| used == dropped);
                    prop_assert!(late || !used);
                }
                prop_assert_eq!(rotation.judge(Millis(now)), judged, "asking changes nothing");
            }
        }
    }
}
