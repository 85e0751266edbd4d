//! The Tollkey server.
//!
//! | room | says |
//! |---|---|
//! | [`routes`] | the page of routes |
//! | [`surfaces`], [`dashboard`] | how requests and responses read |
//! | [`auth`] | who is calling |
//! | [`sign_in`] | the ways to sign in to the dashboard |
//! | [`state`] | what a request may use |
//! | [`surface`], [`rejection`] | what surfaces share, and what handlers return |
//! | [`edge`], [`body`] | what every request goes through, and what it brings |
//! | [`public_path`] | the path prefix under which clients reach the server |
//! | [`config`], [`dev_mode`] | settings, and what stands in for them on a developer's machine |
//! | [`cli`] | one file per subcommand |
//! | [`server`] | everything put together and set running |
//! | [`transport`] | what slow clients can cost |
//! | [`openapi`] | the document of what is mounted |
#![forbid(unsafe_code)]

pub mod assembly;
pub mod auth;
pub mod background;
pub mod body;
pub mod cli;
pub mod config;
pub mod dashboard;
pub mod database;
pub mod dev_mode;
pub mod edge;
pub mod fallback;
pub mod issuer_url;
pub mod openapi;
pub mod public_path;
pub mod rejection;
pub mod request_id;
pub mod routes;
pub mod server;
pub mod sign_in;
pub mod signals;
pub mod state;
pub mod surface;
pub mod surfaces;
pub mod telemetry;
pub mod transport;
