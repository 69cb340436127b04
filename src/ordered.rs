//! A map and a set in the order of their keys: what `BTreeMap` does, in a fifth of its code for each type they are used
//! with, of which there are many here.
//!
//! A list of lists, each of at most [`CHUNK_MAX`] entries: a change moves that many entries at most, and with 100,000
//! entries there are some thousand lists. Methods are those of `BTreeMap` and `BTreeSet`, where not said otherwise.

use std::borrow::Borrow;
use std::fmt;
use std::iter::Flatten;
use std::slice;
use std::vec;

mod set;
#[cfg(test)]
mod tests;

pub use set::Set;

/// Entries in one list, at most.
const CHUNK_MAX: usize = 32;

/// Keys with values, in the order of the keys.
pub struct Map<K, V> {
    /// None is empty, and all keys of one come before those of the next.
    chunks: Vec<Vec<(K, V)>>,
    len: usize,
}

/// Where a key is, or where it would be.
struct Place {
    chunk: usize,
    entry: usize,
    found: bool,
}

impl<K, V> Map<K, V> {
    /// An empty map.
    pub const fn new() -> Map<K, V> {
        Map { chunks: Vec::new(), len: 0 }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Removes every entry.
    pub fn clear(&mut self) {
        *self = Map::new();
    }

    /// All entries, in the order of their keys.
    pub fn iter(&self) -> Iter<'_, K, V> {
        Iter { chunks: self.chunks.iter(), chunk: [].iter() }
    }

    /// All entries, to change their values.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut V)> {
        self.chunks.iter_mut().flatten().map(|(key, value)| (&*key, value))
    }

    /// The keys, in order.
    pub fn keys(&self) -> impl Iterator<Item = &K> + Clone {
        self.iter().map(|(key, _)| key)
    }

    /// The values, in the order of their keys.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, value)| value)
    }

    /// The values, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.iter_mut().map(|(_, value)| value)
    }

    /// The values alone.
    pub fn into_values(self) -> impl Iterator<Item = V> {
        self.into_iter().map(|(_, value)| value)
    }

    /// The entry with the smallest key.
    pub fn first_key_value(&self) -> Option<(&K, &V)> {
        self.iter().next()
    }

    /// Takes out the entry with the smallest key.
    pub fn pop_first(&mut self) -> Option<(K, V)> {
        (self.len > 0).then(|| self.take(0, 0))
    }

    /// Removes the entries for which `keep` says `false`.
    pub fn retain(&mut self, mut keep: impl FnMut(&K, &mut V) -> bool) {
        for chunk in &mut self.chunks {
            chunk.retain_mut(|(key, value)| keep(key, value));
        }
        self.chunks.retain(|chunk| !chunk.is_empty());
        self.len = self.chunks.iter().map(Vec::len).sum();
    }

    /// Takes out an entry that is there.
    fn take(&mut self, chunk: usize, entry: usize) -> (K, V) {
        self.len -= 1;
        let list = self.chunk(chunk);
        let taken = list.remove(entry);
        if list.is_empty() {
            self.chunks.remove(chunk);
        } else if list.len() * 4 < list.capacity() {
            list.shrink_to(list.len() * 2);
        }
        taken
    }

    /// A list that is there.
    #[allow(clippy::indexing_slicing, reason = "places come from `find`, and nothing changed since")]
    fn chunk(&mut self, chunk: usize) -> &mut Vec<(K, V)> {
        &mut self.chunks[chunk]
    }

    /// The value at a place where there is one.
    #[allow(clippy::indexing_slicing, reason = "places come from `find` and `put`, and nothing changed since")]
    fn value(&mut self, chunk: usize, entry: usize) -> &mut V {
        &mut self.chunks[chunk][entry].1
    }

    /// Puts an entry where `find` did not find its key, and says where it is then.
    fn put(&mut self, place: &Place, key: K, value: V) -> (usize, usize) {
        let Place { mut chunk, mut entry, .. } = *place;
        self.len += 1;
        if self.chunks.is_empty() {
            // Room for one: thousands of owners have a single binding each.
            self.chunks = Vec::with_capacity(1);
            self.chunks.push(Vec::with_capacity(1));
        }
        if self.chunk(chunk).len() == CHUNK_MAX {
            // What comes in order fills the lists; else there is room in both halves.
            let split = if entry == CHUNK_MAX { CHUNK_MAX } else { CHUNK_MAX / 2 };
            let rest = self.chunk(chunk).split_off(split);
            self.chunks.insert(chunk + 1, rest);
            if entry >= split {
                chunk += 1;
                entry -= split;
            }
        }
        self.chunk(chunk).insert(entry, (key, value));
        (chunk, entry)
    }
}

impl<K: Ord, V> Map<K, V> {
    fn find<Q: Ord + ?Sized>(&self, key: &Q) -> Place
    where
        K: Borrow<Q>,
    {
        let starts_after = |list: &Vec<(K, V)>| list.first().is_none_or(|(first, _)| first.borrow() > key);
        let chunk = self.chunks.partition_point(|list| !starts_after(list)).saturating_sub(1);
        let list = self.chunks.get(chunk).map(Vec::as_slice).unwrap_or_default();
        match list.binary_search_by(|(other, _)| other.borrow().cmp(key)) {
            Ok(entry) => Place { chunk, entry, found: true },
            Err(entry) => Place { chunk, entry, found: false },
        }
    }

    /// Like `find`, for a key to be put in: those mostly come in order, and one look tells that this is the last.
    fn find_room(&self, key: &K) -> Place {
        match (self.chunks.len().checked_sub(1), self.chunks.last().map(Vec::as_slice)) {
            (Some(chunk), Some(list @ [.., (last, _)])) if last < key => {
                Place { chunk, entry: list.len(), found: false }
            }
            _ => self.find(key),
        }
    }

    /// The entries from a key on, be it there or not.
    pub fn range_from<Q: Ord + ?Sized>(&self, key: &Q) -> Iter<'_, K, V>
    where
        K: Borrow<Q>,
    {
        let Place { chunk, entry, .. } = self.find(key);
        let mut chunks = self.chunks.get(chunk..).unwrap_or_default().iter();
        let chunk = chunks.next().and_then(|list| list.get(entry..)).unwrap_or_default().iter();
        Iter { chunks, chunk }
    }

    /// The value of a key.
    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
    {
        let Place { chunk, entry, found } = self.find(key);
        if found { self.chunks.get(chunk)?.get(entry).map(|(_, value)| value) } else { None }
    }

    /// The value of a key, to be changed.
    pub fn get_mut<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        let Place { chunk, entry, found } = self.find(key);
        found.then(|| self.value(chunk, entry))
    }

    /// Whether there is such a key.
    pub fn contains_key<Q: Ord + ?Sized>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.find(key).found
    }

    /// Gives a key a value, and hands back the one it had.
    pub fn insert(&mut self, key: K, value: V) -> Option<V> {
        let place = self.find_room(&key);
        if place.found {
            return Some(std::mem::replace(self.value(place.chunk, place.entry), value));
        }
        self.put(&place, key, value);
        None
    }

    /// Removes a key, and hands back its value.
    pub fn remove<Q: Ord + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        let Place { chunk, entry, found } = self.find(key);
        found.then(|| self.take(chunk, entry).1)
    }

    /// The place of a key, to give it a value where it has none.
    pub fn entry(&mut self, key: K) -> Entry<'_, K, V> {
        Entry { place: self.find_room(&key), map: self, key }
    }
}

/// See [`Map::entry`].
pub struct Entry<'a, K, V> {
    map: &'a mut Map<K, V>,
    place: Place,
    key: K,
}

impl<'a, K, V> Entry<'a, K, V> {
    /// The key's value, which is the one given if it had none.
    pub fn or_insert_with(self, value: impl FnOnce() -> V) -> &'a mut V {
        let Entry { map, place, key } = self;
        let (chunk, entry) = if place.found { (place.chunk, place.entry) } else { map.put(&place, key, value()) };
        map.value(chunk, entry)
    }

    /// The key's value, which is the one given if it had none.
    pub fn or_insert(self, value: V) -> &'a mut V {
        self.or_insert_with(|| value)
    }

    /// The key's value, which is the default one if it had none.
    pub fn or_default(self) -> &'a mut V
    where
        V: Default,
    {
        self.or_insert_with(V::default)
    }
}

/// See [`Map::iter`].
pub struct Iter<'a, K, V> {
    chunks: slice::Iter<'a, Vec<(K, V)>>,
    chunk: slice::Iter<'a, (K, V)>,
}

impl<K, V> Clone for Iter<'_, K, V> {
    fn clone(&self) -> Self {
        Iter { chunks: self.chunks.clone(), chunk: self.chunk.clone() }
    }
}

impl<'a, K, V> Iterator for Iter<'a, K, V> {
    type Item = (&'a K, &'a V);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.chunk.next() {
                return Some((key, value));
            }
            self.chunk = self.chunks.next()?.iter();
        }
    }
}

impl<'a, K, V> IntoIterator for &'a Map<K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, K, V>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl<K, V> IntoIterator for Map<K, V> {
    type Item = (K, V);
    type IntoIter = Flatten<vec::IntoIter<Vec<(K, V)>>>;

    fn into_iter(self) -> Self::IntoIter {
        self.chunks.into_iter().flatten()
    }
}

impl<K: Ord, V> Extend<(K, V)> for Map<K, V> {
    fn extend<I: IntoIterator<Item = (K, V)>>(&mut self, entries: I) {
        entries.into_iter().for_each(|(key, value)| drop(self.insert(key, value)));
    }
}

impl<K: Ord, V> FromIterator<(K, V)> for Map<K, V> {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(entries: I) -> Self {
        let mut map = Map::new();
        map.extend(entries);
        map
    }
}

impl<K: Ord, V, const N: usize> From<[(K, V); N]> for Map<K, V> {
    fn from(entries: [(K, V); N]) -> Self {
        entries.into_iter().collect()
    }
}

impl<K, V> Default for Map<K, V> {
    fn default() -> Self {
        Map::new()
    }
}

impl<K: Clone, V: Clone> Clone for Map<K, V> {
    fn clone(&self) -> Self {
        Map { chunks: self.chunks.clone(), len: self.len }
    }
}

impl<K: PartialEq, V: PartialEq> PartialEq for Map<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.iter().eq(other.iter())
    }
}

impl<K: Eq, V: Eq> Eq for Map<K, V> {}

impl<K: fmt::Debug, V: fmt::Debug> fmt::Debug for Map<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self).finish()
    }
}
