//! The server over real HTTP, on each backend that is there. Modules are laid out like the routes.

mod applications;
mod audit;
mod authorization;
mod binary;
mod cli;
mod edge;
mod gateways;
mod input;
mod openapi;
mod operator;
mod processes;
mod readme;
mod replicas;
mod support;
mod tokens;
mod verification;
mod whoami;
