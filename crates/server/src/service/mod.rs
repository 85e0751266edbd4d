//! Use-cases: what happens. No actix, no diesel: callers come in as [`Manager`](crate::caller::Manager), what is
//! kept goes through `tollkey-store`, and every change goes through [`State::change`](crate::state::State::change),
//! which answers only once it holds everywhere.

pub mod accounts;
pub mod api_keys;
pub mod applications;
pub mod audit;
pub mod service_keys;

/// A page of a counted list.
#[derive(Debug)]
pub struct Page<T> {
    /// The items of this page.
    pub items: Vec<T>,
    /// How many items there are in all.
    pub total: u64,
}
