//! An open table from hashes to numbers; a hash may have several.
//!
//! Owns: the slots. Does not know: what the numbers stand for; whoever asks compares that itself.
//! Invariant: numbers of one hash come out in the order in which they went in.

/// Eight bytes a slot, at most seven of eight slots in use: what is looked at lies side by side.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// The hash above, the number plus one below; zero is empty. A power of two, or none.
    slots: Box<[u64]>,
    used: usize,
}

impl Index {
    /// A pair that is there already is not added again. `number` is less than `u32::MAX`.
    pub(crate) fn insert(&mut self, hash: u32, number: u32) {
        if self.find(hash).any(|other| other == number) {
            return;
        }
        if (self.used + 1) * 8 > self.slots.len() * 7 {
            self.resize((self.slots.len() * 2).max(SLOTS_MIN));
        }
        self.put(u64::from(hash) << 32 | u64::from(number + 1));
    }

    /// Nothing happens when it is not there.
    pub(crate) fn remove(&mut self, hash: u32, number: u32) {
        let entry = u64::from(hash) << 32 | u64::from(number + 1);
        let Some(mut hole) = self.places(hash).find(|at| self.slots[*at] == entry) else { return };
        let mask = self.slots.len() - 1;
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let moved = self.slots[at];
            if moved == 0 {
                break;
            }
            // One that would stand before its own place stays.
            let from_home = at.wrapping_sub((moved >> 32) as usize) & mask;
            if from_home >= (at.wrapping_sub(hole) & mask) {
                self.slots[hole] = moved;
                hole = at;
            }
        }
        self.slots[hole] = 0;
        self.used -= 1;
        if self.used * 8 < self.slots.len() && self.slots.len() > SLOTS_MIN {
            self.resize(self.slots.len() / 2);
        }
    }

    /// The numbers of a hash.
    pub(crate) fn find(&self, hash: u32) -> impl Iterator<Item = u32> + Clone + '_ {
        let entries = self.places(hash).map(|at| self.slots[at]);
        entries.filter(move |entry| (entry >> 32) as u32 == hash).map(|entry| entry as u32 - 1)
    }

    /// Slots from the home of a hash to the first that is empty.
    fn places(&self, hash: u32) -> impl Iterator<Item = usize> + Clone + '_ {
        let mask = self.slots.len().wrapping_sub(1);
        (0..self.slots.len())
            .map(move |step| (hash as usize).wrapping_add(step) & mask)
            .take_while(|at| self.slots[*at] != 0)
    }

    fn put(&mut self, entry: u64) {
        let mask = self.slots.len() - 1;
        let mut at = (entry >> 32) as usize & mask;
        while self.slots[at] != 0 {
            at = (at + 1) & mask;
        }
        self.slots[at] = entry;
        self.used += 1;
    }

    fn resize(&mut self, count: usize) {
        let old = std::mem::replace(&mut self.slots, vec![0; count].into());
        self.used = 0;
        // From behind an empty slot on, so that those that went around the end keep their order.
        let begin = old.iter().position(|entry| *entry == 0).unwrap_or(0);
        for entry in old[begin..].iter().chain(&old[..begin]).filter(|entry| **entry != 0) {
            self.put(*entry);
        }
    }
}

const SLOTS_MIN: usize = 8;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::Index;

    proptest! {
        #[test]
        fn an_index_is_a_map_of_lists_in_order(
            steps in prop::collection::vec((any::<bool>(), 0..60_u32, 0..50_u32), 0..600),
            spread in prop::sample::select(vec![1, 4, 0x1000_0001_u32]),
        ) {
            let (mut index, mut model) = (Index::default(), BTreeMap::<u32, Vec<u32>>::new());
            for (adds, hash, number) in steps {
                let hash = hash.wrapping_mul(spread).wrapping_sub(9);
                let list = model.entry(hash).or_default();
                if adds {
                    index.insert(hash, number);
                    if !list.contains(&number) {
                        list.push(number);
                    }
                } else {
                    index.remove(hash, number);
                    list.retain(|other| *other != number);
                }
                prop_assert_eq!(&index.find(hash).collect::<Vec<_>>(), &*list);
            }
            for (hash, list) in &model {
                prop_assert_eq!(&index.find(*hash).collect::<Vec<_>>(), list);
            }
        }
    }
}
