//! Spreading new connections evenly over backends, with the fewest changes.
//!
//! Owns: size classes, and which backend has which slots of a service.
//! Does not know: addresses, services, how a slot is looked up.
//! Invariant: every slot of a class has a backend, and the numbers of slots of any two backends
//! differ by one at most.
//!
//! A service with n backends has n slots, one each, and a constant rule picks one of n at random.
//! Above 64 there are few classes, and some backends have a slot more than others.

use std::collections::{BTreeMap, BTreeSet};

/// Numbers of slots that a service may have, ascending.
pub const CLASSES: &[u32] = &{
    let mut all = [0; 64 + LARGE.len()];
    let mut index = 0;
    while index < 64 {
        all[index] = index as u32 + 1;
        index += 1;
    }
    while index < all.len() {
        all[index] = LARGE[index - 64];
        index += 1;
    }
    all
};

/// Each at most half as large again as the one before, so that no backend gets more than twice
/// what another one does.
const LARGE: [u32; 11] = [96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072];

/// The smallest class with a slot for each; zero for none. Beyond the largest, the last backends
/// get no new connections.
#[must_use]
pub fn class_of(backends: usize) -> u32 {
    if backends == 0 {
        return 0;
    }
    let fits = CLASSES.iter().find(|class| **class as usize >= backends);
    fits.or(CLASSES.last()).copied().unwrap_or_default()
}

/// One change of a balancer's slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step<B> {
    /// The slot leads there from now on.
    Set(usize, B),
    /// The slot is not looked up any more.
    Clear(usize),
}

/// Gives the backends slots, moving as few as possible; answers what changed.
pub fn rearrange<B: Ord + Clone>(slots: &mut Vec<B>, backends: &BTreeSet<B>) -> Vec<Step<B>> {
    let before = std::mem::take(slots);
    let class = class_of(backends.len()) as usize;
    if before.is_empty() && class == backends.len() {
        slots.extend(backends.iter().cloned());
        return slots.iter().cloned().enumerate().map(|(slot, b)| Step::Set(slot, b)).collect();
    }
    let mut load: BTreeMap<&B, usize> =
        backends.iter().take(class).map(|backend| (backend, 0)).collect();
    let mut now: Vec<Option<&B>> = vec![None; class];
    let most = if load.is_empty() { 0 } else { class.div_ceil(load.len()) };
    for (slot, backend) in before.iter().enumerate().take(class) {
        if let Some((name, count)) = load.get_key_value(backend).map(|(k, v)| (*k, *v))
            && count < most
        {
            now[slot] = Some(name);
            load.insert(name, count + 1);
        }
    }
    let mut waiting: BTreeSet<(usize, &B)> = load.iter().map(|(b, n)| (*n, *b)).collect();
    for slot in &mut now {
        if slot.is_none()
            && let Some((count, backend)) = waiting.pop_first()
        {
            *slot = Some(backend);
            waiting.insert((count + 1, backend));
        }
    }
    level(&mut now, waiting);
    *slots = now.into_iter().flatten().cloned().collect();
    let mut steps: Vec<Step<B>> = slots
        .iter()
        .enumerate()
        .filter(|(slot, backend)| before.get(*slot) != Some(backend))
        .map(|(slot, backend)| Step::Set(slot, backend.clone()))
        .collect();
    steps.extend((class..before.len()).map(Step::Clear));
    steps
}

/// Moves slots from those with the most to those with the fewest, while they differ by two.
fn level<'a, B: Ord>(slots: &mut [Option<&'a B>], mut load: BTreeSet<(usize, &'a B)>) {
    while let (Some(fewest), Some(most)) = (load.first().copied(), load.last().copied()) {
        if most.0 <= fewest.0 + 1 {
            return;
        }
        let Some(slot) = slots.iter_mut().find(|slot| **slot == Some(most.1)) else { return };
        *slot = Some(fewest.1);
        load.remove(&fewest);
        load.remove(&most);
        load.insert((fewest.0 + 1, fewest.1));
        load.insert((most.0 - 1, most.1));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set(items: impl IntoIterator<Item = u32>) -> BTreeSet<u32> {
        items.into_iter().collect()
    }

    #[test]
    fn one_backend_replaced_is_one_slot_changed() {
        let mut slots = Vec::new();
        assert_eq!(rearrange(&mut slots, &set(1..=3)).len(), 3);
        let steps = rearrange(&mut slots, &set([1, 3, 9]));
        assert_eq!(steps, [Step::Set(1, 9)]);
        assert_eq!(rearrange(&mut slots, &set([1, 3, 9])), []);
    }

    #[test]
    fn growing_adds_a_slot_and_shrinking_moves_the_last_one() {
        let mut slots = vec![1, 2, 3];
        assert_eq!(rearrange(&mut slots, &set(1..=4)), [Step::Set(3, 4)]);
        assert_eq!(rearrange(&mut slots, &set(2..=4)), [Step::Set(0, 4), Step::Clear(3)]);
        assert_eq!(slots, [4, 2, 3]);
        let none = rearrange(&mut slots, &set([]));
        assert_eq!(none, [Step::Clear(0), Step::Clear(1), Step::Clear(2)]);
    }

    #[test]
    fn classes_ascend_and_fit() {
        assert!(CLASSES.windows(2).all(|pair| pair[0] < pair[1]));
        for (backends, class) in
            [(0, 0), (1, 1), (64, 64), (65, 96), (97, 128), (2000, 2048), (9999, 3072)]
        {
            assert_eq!(class_of(backends), class);
        }
    }

    proptest! {
        #[test]
        fn every_backend_has_its_share(
            rounds in prop::collection::vec(prop::collection::btree_set(0u32..300, 0..200), 1..6)
        ) {
            let mut slots: Vec<u32> = Vec::new();
            for backends in rounds {
                let mut mirror = slots.clone();
                for step in rearrange(&mut slots, &backends) {
                    match step {
                        Step::Set(slot, backend) if slot < mirror.len() => mirror[slot] = backend,
                        Step::Set(slot, backend) => {
                            prop_assert_eq!(slot, mirror.len());
                            mirror.push(backend);
                        }
                        Step::Clear(slot) => mirror[slot] = u32::MAX,
                    }
                }
                mirror.retain(|backend| *backend != u32::MAX);
                prop_assert_eq!(&mirror, &slots);
                prop_assert_eq!(slots.len(), class_of(backends.len()) as usize);
                let counts: Vec<usize> = backends
                    .iter()
                    .map(|backend| slots.iter().filter(|slot| *slot == backend).count())
                    .collect();
                let spread = (counts.iter().min(), counts.iter().max());
                if let (Some(least), Some(most)) = spread {
                    prop_assert!(*least >= 1 && most - least <= 1, "{:?}", counts);
                }
            }
        }
    }
}
