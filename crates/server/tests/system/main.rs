//! The whole system: the binary in processes of its own, several replicas, gateways, a browser, the examples, faults and
//! upgrades. `../it` has the tests of the HTTP contract.

mod binary;
mod browser;
mod chaos;
mod cli;
mod client;
mod database;
mod example_checkout;
mod example_shops;
mod examples;
#[cfg(target_os = "linux")] // every address of 127.0.0.0/8 is its own
mod gateway_examples;
mod guard;
mod lineage_attack;
mod logs;
#[cfg(target_os = "linux")] // the memory of a process is read from /proc
mod memory;
mod monitoring;
mod outage;
mod processes;
mod readme;
mod replicas;
#[cfg(target_os = "linux")] // every address of 127.0.0.0/8 is its own
mod rolling_restart;
mod sign_in;
mod silence;
mod silent_connections;
mod stopping;
#[path = "../support/mod.rs"]
mod support;
mod unix_sockets;
mod upgrades;
mod wire;
