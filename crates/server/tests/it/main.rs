//! The server over real HTTP, on each backend that is there. Modules are laid out like the routes.

mod applications;
mod audit;
mod authorization;
mod binary;
mod ceiling;
mod changes;
mod chaos;
mod cli;
mod client;
mod crypto_checkout;
mod edge;
#[cfg(target_os = "linux")] // every address of 127.0.0.0/8 is its own
mod gateway_examples;
mod gateways;
mod guard;
mod hellgate;
mod idempotency;
mod input;
mod openapi;
mod operator;
mod outage;
mod pepay;
mod processes;
mod rate_limits;
mod readme;
mod replicas;
mod rotation;
mod storlaunch;
mod support;
mod sync;
mod times;
mod tokens;
mod verification;
mod whoami;
mod wire;
