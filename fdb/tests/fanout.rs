//! The fan-out as a map: against a plain one, through growth and shrinkage, under collisions.

use std::collections::BTreeMap;

use fdb::fanout::{Fanout, Full};
use fdb::hash::{Key, Seed};
use proptest::prelude::*;

fn contents<K: Key + Ord>(table: &Fanout<K, u32>) -> BTreeMap<K, u32> {
    table.iter().map(|(key, value)| (*key, *value)).collect()
}

#[derive(Clone, Debug)]
enum Step {
    Clone,
    Insert(u64, u32),
    InsertRange(u64, u64),
    Remove(u64),
    RemoveRange(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let key = || 0..3000u64;
    prop_oneof![
        1 => Just(Step::Clone),
        6 => (key(), any::<u32>()).prop_map(|(key, value)| Step::Insert(key, value)),
        1 => (key(), 1..1500u64).prop_map(|(first, len)| Step::InsertRange(first, len)),
        6 => key().prop_map(Step::Remove),
        1 => (key(), 1..1500u64).prop_map(|(first, len)| Step::RemoveRange(first, len)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn behaves_as_a_map(
        seed in any::<[u64; 6]>(),
        steps in proptest::collection::vec(step(), 0..60),
    ) {
        let mut table = Fanout::new(Seed::from_words(seed));
        let mut model = BTreeMap::new();
        let mut clones = Vec::new();
        for step in steps {
            match step {
                Step::Clone => clones.push((table.clone(), model.clone())),
                Step::Insert(key, value) => {
                    prop_assert_eq!(table.insert(key, value), Ok(model.insert(key, value)));
                }
                Step::InsertRange(first, len) => {
                    for key in first..first + len {
                        prop_assert_eq!(table.insert(key, 7), Ok(model.insert(key, 7)));
                    }
                }
                Step::Remove(key) => prop_assert_eq!(table.remove(&key), model.remove(&key)),
                Step::RemoveRange(first, len) => {
                    for key in first..first + len {
                        prop_assert_eq!(table.remove(&key), model.remove(&key));
                    }
                }
            }
            prop_assert_eq!(table.len(), model.len());
            prop_assert_eq!(table.iter().count(), model.len());
        }
        prop_assert_eq!(&contents(&table), &model);
        for key in 0..4500 {
            prop_assert_eq!(table.get(&key), model.get(&key));
        }
        for (table, model) in &clones {
            prop_assert_eq!(&contents(table), model);
        }
    }
}

#[test]
fn gives_memory_back() {
    let mut table = Fanout::new(Seed::random());
    let empty = table.memory_bytes();
    for key in 0..100_000u64 {
        table.insert(key, 1u32).unwrap();
    }
    let full = table.memory_bytes();
    assert!(full < 100_000 * 64, "{full} bytes");
    for key in 0..100_000 {
        assert_eq!(table.remove(&key), Some(1));
    }
    assert!(table.is_empty());
    assert!(table.memory_bytes() <= empty + 4096, "{} bytes left", table.memory_bytes());
}

#[test]
fn one_change_shares_almost_everything() {
    let mut table = Fanout::new(Seed::random());
    for key in 0..100_000u64 {
        table.insert(key, 1u32).unwrap();
    }
    let before = table.clone();
    table.insert(5, 2).unwrap();
    let place = |table: &Fanout<u64, u32>| -> BTreeMap<u64, *const u32> {
        table.iter().map(|(key, value)| (*key, std::ptr::from_ref(value))).collect()
    };
    let (old, new) = (place(&before), place(&table));
    let moved = old.iter().filter(|(key, at)| new[key] != **at).count();
    assert!((1..=96).contains(&moved), "{moved} entries copied");
}

/// Keys that hash alike in groups, as an attacker who knows the seed could choose them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Colliding(u32);

impl Key for Colliding {
    fn words(&self) -> [u64; 2] {
        [u64::from(self.0 % 10), 0]
    }
}

#[test]
fn collisions_are_refused_before_they_cost() {
    let mut table = Fanout::new(Seed::random());
    let mut model = BTreeMap::new();
    let mut refused = 0;
    for i in 0..2000 {
        match table.insert(Colliding(i), i) {
            Ok(_) => drop(model.insert(Colliding(i), i)),
            Err(Full) => refused += 1,
        }
    }
    assert!(table.len() <= 10 * 96 && refused >= 2000 - 10 * 96);
    assert_eq!(contents(&table), model);
    assert!(table.memory_bytes() < 256 * 1024, "{} bytes", table.memory_bytes());
    for key in model.keys() {
        assert_eq!(table.get(key), Some(&key.0));
        assert_eq!(table.insert(*key, key.0), Ok(Some(key.0)));
    }
    for key in model.keys() {
        assert!(table.remove(key).is_some());
    }
    assert!(table.is_empty());
}
