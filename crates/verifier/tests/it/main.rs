//! A verifier over a source in memory, on clocks that stand still.

mod bounds;
mod cache;
mod judging;
mod leases;
mod limits;
mod look_ups;
mod propagation;
mod reservations;
mod subscription;
mod usage;
mod watching;
mod world;
