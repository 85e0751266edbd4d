//! Waking up the task that records revocations.

use tokio::sync::Notify;

/// Wakes up the task that records pending revocations.
#[derive(Debug, Default)]
pub struct Revocations(Notify);

impl Revocations {
    /// Wakes up the task, because there may be something to record.
    pub fn notify(&self) {
        self.0.notify_one();
    }

    /// Waits until there may be something to record.
    pub async fn notified(&self) {
        self.0.notified().await;
    }
}
