//! The client against servers with prepared responses.

mod answers;
mod blocking;
mod connections;
mod lists;
mod operations;
mod proxy;
mod refusals;
mod retries;
mod said;
mod secrets;
mod settings;
mod support;
mod tls;
mod transport;
