//! The server over real HTTP, on each backend that is there. Modules are laid out like the routes.

mod applications;
mod audit;
mod authorization;
mod binary;
mod ceiling;
mod changes;
mod cli;
mod crypto_checkout;
mod edge;
mod gateways;
mod hellgate;
mod idempotency;
mod input;
mod openapi;
mod operator;
mod pepay;
mod processes;
mod rate_limits;
mod readme;
mod replicas;
mod rotation;
mod storlaunch;
mod support;
mod tokens;
mod verification;
mod whoami;
