//! The client against servers that answer as they are told.

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
