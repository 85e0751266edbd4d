//! Metrics that the use cases record. The server describes and exports them.

use std::time::Duration;

use metrics::{counter, histogram};
use tollkey_core::{Denial, usage::outcome_code};

/// The counter of verifications, by the label `outcome`.
pub const VERIFICATIONS: &str = "tollkey_verifications_total";
pub const PROPAGATION_WAIT: &str = "tollkey_propagation_wait_seconds";

/// The outcome of a verification for which the database did not respond.
pub(crate) const UNAVAILABLE: &str = "unavailable";

/// Creates all series with the value 0. Prometheus does not see the first count of a series as an increase, so an alert
/// would miss it.
pub fn register() {
    let outcomes = Denial::ALL.map(|denial| outcome_code(Some(denial)));
    for outcome in [outcome_code(None), UNAVAILABLE]
        .into_iter()
        .chain(outcomes)
    {
        record_verifications(outcome, 0);
    }
    let _ = histogram!(PROPAGATION_WAIT);
}

/// Counts verifications with this outcome: `valid`, the code of the denial, or `unavailable`.
pub fn record_verifications(outcome: &'static str, count: u64) {
    counter!(VERIFICATIONS, "outcome" => outcome).increment(count);
}

pub(crate) fn record_propagation_wait(took: Duration) {
    histogram!(PROPAGATION_WAIT).record(took);
}
