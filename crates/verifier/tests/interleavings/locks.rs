//! The types of `src/locks.rs` on shuttle's locks and atomics, so that its scheduler decides which thread runs next.

use std::{
    hash::{BuildHasher, Hash},
    marker::PhantomData,
};

use papaya::{Equivalent, HashMapRef, HashSetRef, LocalGuard};
use shuttle::sync::atomic::Ordering;
pub(crate) use shuttle::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64},
};

/// Lets the scheduler switch to another thread.
struct Switch(AtomicBool);

impl Switch {
    fn here(&self) {
        self.0.load(Ordering::SeqCst);
    }
}

/// papaya's map. Its own atomics are invisible to the scheduler. Therefore each operation first lets the scheduler switch
/// threads, and an operation that is not atomic does so between its steps.
pub(crate) struct Map<K, V, H> {
    map: papaya::HashMap<K, V, H>,
    switch: Switch,
}

pub(crate) struct MapBuilder<K, V, H>(H, PhantomData<(K, V)>);

impl<K, V> Map<K, V, ()> {
    pub(crate) fn builder() -> MapBuilder<K, V, ()> {
        MapBuilder((), PhantomData)
    }
}

impl<K, V> MapBuilder<K, V, ()> {
    pub(crate) fn hasher<H>(self, hasher: H) -> MapBuilder<K, V, H> {
        MapBuilder(hasher, PhantomData)
    }
}

impl<K, V, H> MapBuilder<K, V, H> {
    pub(crate) fn build(self) -> Map<K, V, H> {
        Map {
            map: papaya::HashMap::builder().hasher(self.0).build(),
            switch: Switch(AtomicBool::default()),
        }
    }
}

impl<K: Hash + Eq + Copy, V, H: BuildHasher> Map<K, V, H> {
    pub(crate) fn pin(&self) -> PinnedMap<'_, K, V, H> {
        PinnedMap {
            map: self.map.pin(),
            switch: &self.switch,
        }
    }
}

pub(crate) struct PinnedMap<'a, K, V, H> {
    map: HashMapRef<'a, K, V, H, LocalGuard<'a>>,
    switch: &'a Switch,
}

impl<K: Hash + Eq + Copy, V, H: BuildHasher> PinnedMap<'_, K, V, H> {
    pub(crate) fn get(&self, key: &K) -> Option<&V> {
        self.switch.here();
        self.map.get(key)
    }

    pub(crate) fn contains_key(&self, key: &K) -> bool {
        self.get(key).is_some()
    }

    pub(crate) fn insert(&self, key: K, value: V) -> Option<&V> {
        self.switch.here();
        self.map.insert(key, value)
    }

    pub(crate) fn remove(&self, key: &K) -> Option<&V> {
        self.switch.here();
        self.map.remove(key)
    }

    pub(crate) fn retain(&self, mut keep: impl FnMut(&K, &V) -> bool) {
        for (key, value) in &self.map {
            self.switch.here();
            if !keep(key, value) {
                self.map.remove(key);
            }
        }
    }

    pub(crate) fn clear(&self) {
        self.retain(|_, _| false);
    }
}

/// papaya's set, with the same switches.
pub(crate) struct Set<K, H> {
    set: papaya::HashSet<K, H>,
    switch: Switch,
}

pub(crate) struct SetBuilder<K, H>(H, PhantomData<K>);

impl<K> Set<K, ()> {
    pub(crate) fn builder() -> SetBuilder<K, ()> {
        SetBuilder((), PhantomData)
    }
}

impl<K> SetBuilder<K, ()> {
    pub(crate) fn hasher<H>(self, hasher: H) -> SetBuilder<K, H> {
        SetBuilder(hasher, PhantomData)
    }
}

impl<K, H> SetBuilder<K, H> {
    pub(crate) fn build(self) -> Set<K, H> {
        Set {
            set: papaya::HashSet::builder().hasher(self.0).build(),
            switch: Switch(AtomicBool::default()),
        }
    }
}

impl<K: Hash + Eq + Clone, H: BuildHasher> Set<K, H> {
    pub(crate) fn pin(&self) -> PinnedSet<'_, K, H> {
        PinnedSet {
            set: self.set.pin(),
            switch: &self.switch,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.set.len()
    }
}

pub(crate) struct PinnedSet<'a, K, H> {
    set: HashSetRef<'a, K, H, LocalGuard<'a>>,
    switch: &'a Switch,
}

impl<K: Hash + Eq + Clone, H: BuildHasher> PinnedSet<'_, K, H> {
    pub(crate) fn get<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> Option<&K> {
        self.switch.here();
        self.set.get(key)
    }

    pub(crate) fn insert(&self, key: K) -> bool {
        self.switch.here();
        self.set.insert(key)
    }

    pub(crate) fn remove<Q: Hash + Equivalent<K> + ?Sized>(&self, key: &Q) -> bool {
        self.switch.here();
        self.set.remove(key)
    }

    pub(crate) fn clear(&self) {
        for key in &self.set {
            self.switch.here();
            self.set.remove(key);
        }
    }
}
