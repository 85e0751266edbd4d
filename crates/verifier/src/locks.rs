//! What `cache.rs` synchronises with. In a module of its own so that `tests/interleavings` can compile that file with
//! a scheduler's locks in their place, and try the orders in which threads may come.

pub(crate) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64},
};

pub(crate) use papaya::HashMap as Map;
