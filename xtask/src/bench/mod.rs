//! `cargo xtask bench <what>`: measurements that need more than one process. They print and judge nothing: a machine
//! that does other things as well would make a liar of any limit.

pub(crate) mod dashboard;
pub(crate) mod guard;
pub(crate) mod http;
pub(crate) mod keys;
mod load;
pub(crate) mod revoke;
mod servers;
