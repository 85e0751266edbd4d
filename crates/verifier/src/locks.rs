//! The locks, atomics and maps of `cache.rs`. A separate module, so that `tests/interleavings` can compile that file with the
//! locks of a scheduler instead, which tries many orders of the threads.

pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64},
};

pub(crate) use papaya::HashMap as Map;
