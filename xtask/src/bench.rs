//! `cargo xtask bench <name>`: benchmarks that need more than one process. They print results and have no limits that
//! could fail, because the results depend on the load of the machine.

pub(crate) mod dashboard;
pub(crate) mod descendants;
pub(crate) mod guard;
pub(crate) mod http;
pub(crate) mod keys;
mod load;
pub(crate) mod revoke;
mod servers;

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
