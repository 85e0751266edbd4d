//! The HTTP contract: every test runs the server in its own process and calls it over real HTTP, on each available
//! backend. `../system` has the tests that start other processes.

mod app;
mod applications;
mod audit;
mod authorization;
mod ceiling;
mod changes;
mod client;
mod conditional;
mod connections;
#[path = "../../../core/tests/it/credential_forms.rs"]
mod credential_forms;
mod credentials;
mod crypto_checkout;
mod dashboard;
mod edge;
#[cfg(feature = "grpc")]
mod envoy;
mod fairness;
mod gateways;
#[cfg(feature = "grpc")]
mod grpc;
mod guard;
mod hellgate;
mod idempotency;
mod input;
mod introspection;
mod lineage;
mod openapi;
mod operator;
mod path_prefix;
mod pepay;
mod problems;
mod rate_limits;
mod rotation;
mod sign_in;
mod static_files;
mod stopping;
mod storlaunch;
#[path = "../support/mod.rs"]
mod support;
mod sync;
mod times;
mod tokens;
mod unix_sockets;
mod unkey;
mod verification;
mod whoami;
