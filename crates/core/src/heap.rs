//! Estimates of the memory that values take on the heap, so that caches can be bounded in bytes.
//!
//! They are estimates: what an allocation really takes depends on the allocator. `crates/verifier/tests/it/bounds.rs`
//! compares them with what is allocated, and `crates/server/tests/it/memory.rs` with the memory of real processes.

/// Estimates what an allocation of `bytes` takes: allocators round up to size classes, by an eighth on average, and some
/// keep a header. Nothing is allocated for 0 bytes.
#[must_use]
pub const fn allocation(bytes: usize) -> usize {
    if bytes == 0 {
        0
    } else {
        bytes + bytes / 8 + 16
    }
}

/// What the buffer of a `String` takes.
pub(crate) fn string(text: &String) -> usize {
    allocation(text.capacity())
}

/// What the buffer of a `Vec` takes, without what its items own.
pub(crate) fn vec<T>(items: &Vec<T>) -> usize {
    allocation(items.capacity() * size_of::<T>())
}

/// What a list of strings takes.
pub(crate) fn strings(texts: &Vec<String>) -> usize {
    vec(texts) + texts.iter().map(string).sum::<usize>()
}
