//! The locks, atomics and maps of `cache.rs`. They are a separate module so that `tests/interleavings` can replace them with
//! those of a scheduler that tests many thread interleavings.

pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64},
};

pub(crate) use papaya::{HashMap as Map, HashSet as Set};
