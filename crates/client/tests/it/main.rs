//! The client against servers that answer as they are told.

mod answers;
mod operations;
mod refusals;
mod retries;
mod said;
mod support;
