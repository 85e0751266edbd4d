//! The types of `src/locks.rs` on shuttle's locks and atomics, so that its scheduler decides which thread runs next.

use std::{
    hash::{BuildHasher, Hash},
    marker::PhantomData,
};

use papaya::{HashMapRef, LocalGuard};
use shuttle::sync::atomic::Ordering;
pub(crate) use shuttle::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64},
};

/// papaya's map. Its own atomics are invisible to the scheduler. Therefore each operation first lets the scheduler switch
/// threads, and an operation that is not atomic does so between its steps.
pub(crate) struct Map<K, V, H> {
    map: papaya::HashMap<K, V, H>,
    switch: Switch,
}

/// Lets the scheduler switch to another thread.
struct Switch(AtomicBool);

impl Switch {
    fn here(&self) {
        self.0.load(Ordering::SeqCst);
    }
}

pub(crate) struct Builder<K, V, H>(H, PhantomData<(K, V)>);

impl<K, V> Map<K, V, ()> {
    pub(crate) fn builder() -> Builder<K, V, ()> {
        Builder((), PhantomData)
    }
}

impl<K, V> Builder<K, V, ()> {
    pub(crate) fn hasher<H>(self, hasher: H) -> Builder<K, V, H> {
        Builder(hasher, PhantomData)
    }
}

impl<K, V, H> Builder<K, V, H> {
    pub(crate) fn build(self) -> Map<K, V, H> {
        Map {
            map: papaya::HashMap::builder().hasher(self.0).build(),
            switch: Switch(AtomicBool::default()),
        }
    }
}

impl<K: Hash + Eq + Copy, V, H: BuildHasher> Map<K, V, H> {
    pub(crate) fn pin(&self) -> Pinned<'_, K, V, H> {
        Pinned {
            map: self.map.pin(),
            switch: &self.switch,
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.map.len()
    }
}

pub(crate) struct Pinned<'a, K, V, H> {
    map: HashMapRef<'a, K, V, H, LocalGuard<'a>>,
    switch: &'a Switch,
}

impl<K: Hash + Eq + Copy, V, H: BuildHasher> Pinned<'_, K, V, H> {
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
