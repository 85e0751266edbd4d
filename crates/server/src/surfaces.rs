//! The routes of each API, and the format of its requests and responses. `tollkey-service` has the operations.
//!
//! A surface is a module with a [`Surface`](crate::surface::Surface). Its `present` module converts between domain
//! values and the types of `tollkey-api`. [`routes`](crate::routes) mounts all of them.

pub mod account;
pub mod applications;
pub mod audit;
pub mod commerce;
pub mod conditional;
pub mod docs;
pub mod health;
pub mod members;
pub mod operator;
pub mod parameters;
pub mod retry;
pub mod unkey;
pub mod verification;
