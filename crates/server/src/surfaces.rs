//! The surfaces: the routes of each API, and how its requests and responses read. What an operation does is in
//! `tollkey-service`.
//!
//! A surface is a module with a [`Surface`](crate::surface::Surface). Its case, its times and its words are in its `present` and
//! in `tollkey-api`. [`routes`](crate::routes) mounts all of them.

pub mod account;
pub mod applications;
pub mod audit;
pub mod commerce;
pub mod docs;
pub mod health;
pub mod members;
pub mod operator;
pub mod parameters;
pub mod retry;
pub mod verification;
