//! The Tollkey server.
//!
//! | module | contents |
//! |---|---|
//! | [`cli`], [`config`], [`dev_mode`] | commands, settings, development mode |
//! | [`assembly`], [`database`] | creating the state of requests from the settings; opening the database |
//! | [`server`], [`background`], [`signals`] | listeners and graceful shutdown; background tasks; SIGTERM and SIGINT |
//! | `service_manager` | notifications to systemd |
//! | [`transport`] | the layer between the sockets and actix |
//! | [`listen_address`] | the addresses of listeners: TCP and Unix sockets |
//! | [`edge`], [`fallback`] | the outermost middleware; paths that no route matches |
//! | `grpc` | the gateway protocol of Envoy over gRPC (feature `grpc`) |
//! | [`surface`], [`routes`] | the type of a group of routes; the list of all groups |
//! | [`surfaces`], [`dashboard`] | handlers, and the formats of their requests and responses |
//! | [`auth`], [`sign_in`] | authentication of callers; sign-in to the dashboard |
//! | [`body`], [`rejection`], [`request_id`], [`public_path`], [`state`] | what handlers receive, use and return |
//! | [`openapi`], [`static_file`], [`telemetry`] | the OpenAPI document; compressed files; logs and metrics |
//!
//! The operations themselves are in `tollkey-service`.
//!
//! | feature | effect |
//! |---|---|
//! | `pg-tls` | TLS to PostgreSQL, with an OpenSSL that is built from source; needs perl and make |
//! | `grpc` | Envoy's `ext_authz` over gRPC: `TOLLKEY_GRPC_LISTEN` |
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
#[cfg(feature = "grpc")]
mod grpc;
pub mod issuer_url;
pub mod listen_address;
mod metrics_listener;
pub mod openapi;
pub mod public_path;
pub mod rejection;
pub mod request_id;
pub mod routes;
pub mod server;
mod service_manager;
pub mod sign_in;
pub mod signals;
pub mod state;
pub mod static_file;
pub mod surface;
pub mod surfaces;
pub mod telemetry;
pub mod transport;
