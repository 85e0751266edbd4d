//! What only these tests do with an [`App`]: replicas with their own clock or settings, and keys that no API can create.

use serde_json::Value;
use tollkey_core::{AccountId, ApiKey, Family, KeyId, Scope};
use tollkey_server::{config::Settings, server::RunningServer};
use tollkey_store::{Owner, testing::backends};
use tollkey_verifier::testing::ManualClock;

use crate::support::{App, Reply, eventually};

/// Runs a test on each backend with a second replica, which has that clock. Leases are short: two replicas on one
/// SQLite file cannot notify each other, so a change waits until the other's lease has expired.
pub async fn each_backend_with_replica(
    clock: Option<&ManualClock>,
    test: impl AsyncFn(&App, &RunningServer),
) {
    for database in backends() {
        let _migrated = database.store();
        database.sql("UPDATE settings SET value = '300' WHERE name = 'lease_ms'");
        let app = App::start(database, &[]).await;
        let replica = app.replica_at(clock.unwrap_or(&app.clock)).await;
        test(&app, &replica).await;
        replica.stop().await;
        app.stop().await;
    }
}

/// The built-in scopes, as errors list them.
pub fn valid_scopes() -> String {
    Scope::BUILT_IN.map(|scope| scope.to_string()).join(", ")
}

impl App {
    /// A replica with its own clock.
    pub async fn replica_at(&self, clock: &ManualClock) -> RunningServer {
        self.replica_like(&self.settings, clock).await
    }

    /// A replica with its own settings.
    pub async fn replica_with(&self, settings: &Settings) -> RunningServer {
        self.replica_like(settings, &self.clock).await
    }

    /// Changes a key in the store, including fields that no API can change. Returns once the change has propagated.
    pub async fn edit_key(
        &self,
        account: &str,
        id: &str,
        edit: impl FnOnce(&mut ApiKey) + Clone + Send + 'static,
    ) {
        let account: AccountId = account.parse().expect("an account ID");
        let id: KeyId = id.parse().expect("a key ID");
        let changed =
            self.running()
                .state()
                .service
                .change(Owner::from(&account.clone()), move |tx| {
                    let mut account = tx.account(&account);
                    let mut key = account
                        .lock_key(&Family::ALL, &id)?
                        .expect("the key exists");
                    edit(&mut key);
                    Ok(account.save_key(&key)?)
                });
        changed.await.expect("a change");
    }

    /// Waits until every revocation is recorded on all affected keys. The keys are rejected before that.
    pub async fn revocations_recorded(&self) {
        let store = &self.running().state().service.store;
        eventually("every revocation is recorded", async || {
            store
                .read(|db| db.accounts_with_pending_revocations(None, 1))
                .await
                .is_ok_and(|accounts| accounts.is_empty())
        })
        .await;
    }
}

impl Reply {
    /// The problem's `errors`, each as its pointer and detail.
    pub fn errors(&self) -> Vec<String> {
        let json = self.json();
        let errors = json["errors"]
            .as_array()
            .map(Vec::as_slice)
            .unwrap_or_default();
        let text = |error: &Value, field: &str| error[field].as_str().unwrap_or("?").to_owned();
        errors
            .iter()
            .map(|error| format!("{} {}", text(error, "pointer"), text(error, "detail")))
            .collect()
    }
}
