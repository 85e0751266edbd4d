//! The Rust examples of the pages, as documentation tests.
//!
//! A crate of its own, because the package of a published crate does not contain the pages.
#![forbid(unsafe_code)]

#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
mod readme {}

#[cfg(doctest)]
#[doc = include_str!("../../../docs/rust-client.md")]
mod rust_client {}

#[cfg(doctest)]
#[doc = include_str!("../../../docs/middleware.md")]
mod middleware {}
