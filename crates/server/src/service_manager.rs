//! Notifies the service manager of the state of the server, if one started it with `NOTIFY_SOCKET`: systemd with
//! `Type=notify`, as in `deploy/debian/tollkey.service`.

use std::time::Duration;

use sd_notify::NotifyState;

/// How long the server may take to stop after its drain: `TimeoutStopSec` of the unit.
const STOP: Duration = Duration::from_secs(25);

/// Call this when the server listens.
pub(crate) fn ready() {
    notify(&[NotifyState::Ready]);
}

/// Call this when a drain of this length begins. Without it, systemd kills a server that drains for longer than
/// `TimeoutStopSec`.
pub(crate) fn stopping(drain: Duration) {
    let limit = u32::try_from((drain + STOP).as_micros()).unwrap_or(u32::MAX);
    notify(&[NotifyState::Stopping, NotifyState::ExtendTimeoutUsec(limit)]);
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "cannot notify the service manager");
    }
}
