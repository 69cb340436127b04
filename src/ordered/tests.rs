//! The map and `BTreeMap`, step by step.

use super::*;
use std::collections::BTreeMap;

/// Numbers that look random, the same in every run.
fn numbers(seed: u64) -> impl Iterator<Item = u64> {
    std::iter::successors(Some(seed), |n| Some(n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1)))
        .map(|n| n >> 33)
}

fn assert_same(map: &Map<u64, u64>, model: &BTreeMap<u64, u64>) {
    assert!(map.iter().eq(model));
    assert_eq!((map.len(), map.is_empty()), (model.len(), model.is_empty()));
    assert!(map.chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= CHUNK_MAX));
}

#[test]
fn does_what_a_btree_map_does() {
    // Keys close together are met again, those far apart fill many lists.
    for (seed, keys) in [(1, 50), (2, 1_000), (3, 100_000)] {
        let (mut map, mut model) = (Map::new(), BTreeMap::new());
        let mut numbers = numbers(seed);
        for step in 0..20_000 {
            let (what, key, value) =
                (numbers.next().unwrap() % 20, numbers.next().unwrap() % keys, numbers.next().unwrap());
            match what {
                0..8 => assert_eq!(map.insert(key, value), model.insert(key, value)),
                // More go than come in the second half.
                8..12 => assert_eq!(map.remove(&key), model.remove(&key)),
                12..15 if step > 10_000 => assert_eq!(map.pop_first(), model.pop_first()),
                15 => assert_eq!(map.entry(key).or_insert(value), model.entry(key).or_insert(value)),
                16 => assert_eq!(map.get_mut(&key), model.get_mut(&key)),
                17 => assert!(map.range_from(&key).take(300).eq(model.range(key..).take(300))),
                _ => {
                    assert_eq!((map.get(&key), map.contains_key(&key)), (model.get(&key), model.contains_key(&key)))
                }
            }
            if step % 500 == 0 {
                assert_same(&map, &model);
            }
        }
        assert_eq!(map, model.clone().into_iter().rev().collect());
        map.retain(|key, value| (*key + *value) % 3 > 0);
        model.retain(|key, value| (*key + *value) % 3 > 0);
        assert_same(&map, &model);
        assert!(map.into_iter().eq(model));
    }
}

#[test]
fn what_comes_in_order_fills_the_lists() {
    let map: Map<usize, ()> = (0..10 * CHUNK_MAX).map(|key| (key, ())).collect();
    assert_eq!(map.chunks.len(), 10);
}
