//! Tests of a verifier with an in-memory source and clocks that the test controls.

mod bounds;
mod cache;
mod decisions;
mod leases;
mod limits;
mod look_ups;
mod propagation;
mod reservations;
mod subscription;
mod usage;
mod watching;
mod world;
