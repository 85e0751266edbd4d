//! The client against servers that answer as they are told.

mod operations;
mod said;
mod support;
