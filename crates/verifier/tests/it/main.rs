//! A verifier over a source in memory, on clocks that stand still.

mod bounds;
mod judging;
mod leases;
mod limits;
mod memory;
mod misses;
mod reservations;
mod settling;
mod subscribing;
mod usage;
mod watching;
mod world;
