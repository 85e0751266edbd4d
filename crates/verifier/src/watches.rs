//! Notifies long-running requests of changes to their keys after authorization. A key stays watched after it
//! is evicted.

use std::collections::HashMap;

use tokio::sync::watch;
use tollkey_core::{AccountId, ApiKey, ApplicationId, Changed, KeyId};

/// The number of watched keys at which those without a watcher are removed for the first time.
const FIRST_SWEEP: usize = 64;

#[derive(Debug)]
struct Watched {
    account_id: AccountId,
    application_id: Option<ApplicationId>,
    changed: watch::Sender<()>,
}

#[derive(Debug)]
pub(crate) struct Watches {
    by_key: HashMap<KeyId, Watched>,
    sweep_at: usize,
}

impl Watches {
    pub(crate) fn new() -> Self {
        Self {
            by_key: HashMap::new(),
            sweep_at: FIRST_SWEEP,
        }
    }

    /// Watches a key until the receiver is dropped. The receiver is notified of every change that is applied
    /// from now on.
    pub(crate) fn watch(&mut self, key: &ApiKey) -> watch::Receiver<()> {
        if self.by_key.len() >= self.sweep_at {
            self.by_key
                .retain(|_, watched| watched.changed.receiver_count() > 0);
            self.sweep_at = (self.by_key.len() * 2).max(FIRST_SWEEP);
        }
        let watched = self.by_key.entry(key.id).or_insert_with(|| Watched {
            account_id: key.account_id.clone(),
            application_id: key.application_id,
            changed: watch::Sender::new(()),
        });
        watched.changed.subscribe()
    }

    pub(crate) fn notify(&self, changed: &Changed) {
        match changed {
            Changed::Key(id) => self.by_key.get(id).into_iter().for_each(Watched::notify),
            Changed::Application(id) => {
                self.notify_if(|watched| watched.application_id == Some(*id))
            }
            Changed::Account(id) => self.notify_if(|watched| watched.account_id == *id),
            Changed::ServiceKey(_) => {}
        }
    }

    /// Notifies all watchers. Used when the changes are unknown.
    pub(crate) fn notify_all(&self) {
        self.notify_if(|_| true);
    }

    fn notify_if(&self, is_affected: impl Fn(&Watched) -> bool) {
        self.by_key
            .values()
            .filter(|watched| is_affected(watched))
            .for_each(Watched::notify);
    }
}

impl Watched {
    fn notify(&self) {
        self.changed.send_replace(());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::record;

    fn key(n: u8) -> ApiKey {
        let mut key = record(&format!(
            "ks_test_{}",
            char::from(b'a' + n % 26).to_string().repeat(32)
        ))
        .key;
        key.id = KeyId::from_bytes([n; 16]);
        key
    }

    #[test]
    fn watchers_are_notified_only_of_changes_to_their_key() {
        let mut watches = Watches::new();
        let (mut one, mut other) = (key(1), key(2));
        one.application_id = Some(ApplicationId::from_bytes([1; 16]));
        other.account_id = "other".parse().unwrap();
        let (mut first, mut second) = (watches.watch(&one), watches.watch(&other));
        for (changed, of_first, of_second) in [
            (Changed::Key(one.id), true, false),
            (Changed::Key(other.id), false, true),
            (
                Changed::Application(ApplicationId::from_bytes([1; 16])),
                true,
                false,
            ),
            (Changed::Account("other".parse().unwrap()), false, true),
            (Changed::Account(one.account_id.clone()), true, false),
            (
                Changed::ServiceKey(tollkey_core::ServiceKeyId::from_bytes([1; 16])),
                false,
                false,
            ),
        ] {
            watches.notify(&changed);
            let notified = [&mut first, &mut second].map(|watcher| {
                let has_changed = watcher.has_changed().unwrap();
                watcher.mark_unchanged();
                has_changed
            });
            assert_eq!(notified, [of_first, of_second], "{changed:?}");
        }
        watches.notify_all();
        assert!(first.has_changed().unwrap() && second.has_changed().unwrap());
    }

    #[test]
    fn keys_without_watchers_are_removed() {
        let mut watches = Watches::new();
        let kept = watches.watch(&key(0));
        for round in 0..1000_u16 {
            let mut key = key(1);
            key.id = KeyId::from_bytes((u128::from(round) + 1000).to_be_bytes());
            drop(watches.watch(&key));
        }
        assert!(
            watches.by_key.len() <= FIRST_SWEEP,
            "{}",
            watches.by_key.len()
        );
        watches.notify_all();
        assert!(kept.has_changed().unwrap());
    }
}
