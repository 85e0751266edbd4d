//! Estimates of the memory that values take on the heap, so that the size of a cache can be limited in bytes.
//!
//! The real size of an allocation depends on the allocator. `crates/verifier/tests/it/bounds.rs` compares the estimates
//! with the allocated bytes, and `crates/server/tests/system/memory.rs` with the memory of processes.

/// Estimates the memory of an allocation of `bytes`. Allocators round up to size classes, by an eighth on average, and
/// some add a header. No memory is allocated for 0 bytes.
#[must_use]
pub const fn allocation(bytes: usize) -> usize {
    if bytes == 0 {
        0
    } else {
        bytes + bytes / 8 + 16
    }
}

/// Estimates the memory of the buffer of a `String`.
pub(crate) fn string(text: &String) -> usize {
    allocation(text.capacity())
}

/// Estimates the memory of the buffer of a `Vec`, without the allocations of its items.
pub(crate) fn vec<T>(items: &Vec<T>) -> usize {
    allocation(items.capacity() * size_of::<T>())
}

/// Estimates the memory of a list of strings.
pub(crate) fn strings(texts: &Vec<String>) -> usize {
    vec(texts) + texts.iter().map(string).sum::<usize>()
}
