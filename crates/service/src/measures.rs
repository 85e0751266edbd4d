//! Metrics that the use cases record. The server describes and exports them.

use std::time::Duration;

use metrics::{counter, histogram};

/// The counter of verifications, by the label `outcome`.
pub const VERIFICATIONS: &str = "tollkey_verifications_total";
pub const PROPAGATION_WAIT: &str = "tollkey_propagation_wait_seconds";

/// Counts verifications with this outcome: `valid`, or the code of the denial.
pub fn record_verifications(outcome: &'static str, count: u64) {
    counter!(VERIFICATIONS, "outcome" => outcome).increment(count);
}

pub(crate) fn record_propagation_wait(took: Duration) {
    histogram!(PROPAGATION_WAIT).record(took);
}
