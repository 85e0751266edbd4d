//! The rules of core from outside: documented tables row by row, properties over random input, and vectors that
//! every release must reproduce.

mod access;
mod audit;
mod ceiling;
mod etag;
mod id;
mod key_format;
mod lineage;
mod metadata;
mod network;
mod restrictions;
mod route;
mod scope;
mod scope_expression;
mod support;
mod text;
mod vectors;
