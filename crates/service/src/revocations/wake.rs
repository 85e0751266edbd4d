//! Wakes up the task that records revocations.

use tokio::sync::Notify;

/// Wakes up the task that records pending revocations.
#[derive(Debug, Default)]
pub struct Revocations(Notify);

impl Revocations {
    /// Call it after a pending revocation may have been added.
    pub fn notify(&self) {
        self.0.notify_one();
    }

    /// Waits until [`Self::notify`] is called; returns immediately if it was called since the last wait.
    pub async fn notified(&self) {
        self.0.notified().await;
    }
}
