//! A verifier over a source in memory, on clocks that stand still.

mod held;
mod judging;
mod leases;
mod limits;
mod memory;
mod misses;
mod settling;
mod subscribing;
mod usage;
mod watching;
mod world;
