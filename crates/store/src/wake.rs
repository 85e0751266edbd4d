//! Waking other replicas: PostgreSQL tells everyone who listens that the change counter has moved.
//!
//! This only makes revocations quick. A notification that gets lost costs time, never correctness: verifiers also look
//! at every renewal of their lease.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use diesel::{PgConnection, connection::SimpleConnection as _};

use crate::{
    Store,
    connection::{AnyConnection, Target, Use, establish},
};

/// The channel of the notifications. They say nothing but that there is something.
pub(crate) const CHANNEL: &str = "tollkey_changes";

/// libpq cannot be waited for from outside, so a thread looks: 0.4 % of a core at this interval.
const LOOK: Duration = Duration::from_millis(10);
/// How long after a lost connection a new one is tried.
const AGAIN: Duration = Duration::from_secs(1);

/// Listens until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the listening"]
pub struct Listener {
    stop: Arc<AtomicBool>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Store {
    /// Calls `wake` whenever another process may have changed something, on a thread of its own. `None` on SQLite,
    /// which cannot tell.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn listen(&self, wake: impl Fn() + Send + 'static) -> std::io::Result<Option<Listener>> {
        let target = self.target().clone();
        if !matches!(target, Target::Postgres(_)) {
            return Ok(None);
        }
        let stop = Arc::new(AtomicBool::new(false));
        let listener = Listener { stop: stop.clone() };
        std::thread::Builder::new().name("tollkey-listen".into()).spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if let Ok(AnyConnection::Postgres(mut conn)) = establish(&target, Use::Write)
                    && conn.batch_execute(&format!("LISTEN {CHANNEL}")).is_ok()
                {
                    wake(); // for what happened while nobody listened
                    look(&mut conn, &stop, &wake);
                }
                // In steps, so that dropping the listener ends the thread soon.
                let mut waited = Duration::ZERO;
                while waited < AGAIN && !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(LOOK);
                    waited += LOOK;
                }
            }
        })?;
        Ok(Some(listener))
    }
}

/// Looks for notifications until told to stop or the connection is lost.
fn look(conn: &mut PgConnection, stop: &AtomicBool, wake: &impl Fn()) {
    while !stop.load(Ordering::Relaxed) {
        let mut any = false;
        for notification in conn.notifications_iter() {
            if notification.is_err() {
                tracing::warn!("the connection that listens for changes was lost");
                return;
            }
            any = true;
        }
        if any {
            wake();
        }
        std::thread::sleep(LOOK);
    }
}
