//! Tests of the server over real HTTP, on each available backend.

mod applications;
mod audit;
mod authorization;
mod binary;
mod browser;
mod ceiling;
mod changes;
mod chaos;
mod cli;
mod client;
mod connections;
#[path = "../../../core/tests/it/credential_forms.rs"]
mod credential_forms;
mod credentials;
mod crypto_checkout;
mod dashboard;
mod database;
mod edge;
mod example_checkout;
mod example_shops;
mod examples;
mod fairness;
#[cfg(target_os = "linux")] // every address of 127.0.0.0/8 is its own
mod gateway_examples;
mod gateways;
mod guard;
mod hellgate;
mod idempotency;
mod input;
mod lineage_attack;
mod logs;
#[cfg(target_os = "linux")] // the memory of a process is read from /proc
mod memory;
mod openapi;
mod operator;
mod outage;
mod path_prefix;
mod pepay;
mod problems;
mod processes;
mod rate_limits;
mod readme;
mod replicas;
#[cfg(target_os = "linux")] // every address of 127.0.0.0/8 is its own
mod rolling_restart;
mod rotation;
mod sign_in;
mod silence;
mod silent_connections;
mod stopping;
mod storlaunch;
mod support;
mod sync;
mod times;
mod tokens;
mod upgrades;
mod verification;
mod whoami;
mod wire;
