//! The client against servers with prepared responses.

mod blocking;
mod connections;
mod error_responses;
mod fixtures;
mod lists;
mod operations;
mod proxy;
mod retries;
mod secrets;
mod settings;
mod support;
mod tls;
mod transport;
mod unexpected_responses;
