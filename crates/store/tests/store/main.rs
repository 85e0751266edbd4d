//! Tests of the store on both backends. Each test runs on a new SQLite file and, if PostgreSQL is installed, on a new
//! database of a private cluster.

mod applications;
mod audit;
mod fairness;
mod idempotency_records;
mod keys;
mod leases;
mod lineage;
mod opening;
mod pooler;
mod ready;
mod retries;
mod roles;
mod server_settings;
mod service_keys;
mod sessions;
#[cfg(feature = "pg-tls")]
mod tls;
mod transactions;
mod usage;
mod verification;
mod wake;

use tollkey_core::{
    AccountId, ApiKey, Application, ApplicationId, Changed, Digest, Family, Id, KeyId, Mode,
    PlainKey, Position, Restrictions, Scope, Seq, Timestamp,
    audit::{Action, Actor, ActorKind, Draft, Target},
};
use tollkey_store::{
    Committed, Error, Store,
    testing::{Database, backends},
};

/// Runs a test on every installed backend.
fn each(test: impl AsyncFn(&Database)) {
    for database in backends() {
        eprintln!("on {}", database.backend().as_str());
        on(&database, &test);
    }
}

fn on(database: &Database, test: impl AsyncFn(&Database)) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test(database));
}

/// Returns the position of the change counter.
async fn position(store: &Store) -> Position {
    store
        .changes_after(Position::default(), 1)
        .await
        .unwrap()
        .current
}

/// Returns all changes without their times.
async fn changes(store: &Store) -> Vec<(Seq, Changed)> {
    let log = store
        .changes_after(Position::default(), 1000)
        .await
        .unwrap();
    let changes: Vec<_> = log
        .changes
        .expect("a log without a gap")
        .into_iter()
        .map(|(at, what)| (at.seq, what))
        .collect();
    assert_eq!(
        changes.last().map_or(Seq(0), |(seq, _)| *seq),
        log.current.seq
    );
    changes
}

fn account(name: &str) -> AccountId {
    name.parse().unwrap()
}

fn acme() -> AccountId {
    account("acme")
}

fn other() -> AccountId {
    account("other")
}

/// Returns a time that many seconds after a fixed one.
fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

/// Returns an ID that sorts by its number.
fn id<Of>(number: u64) -> Id<Of> {
    let mut bytes = [0; 16];
    bytes[8..].copy_from_slice(&number.to_be_bytes());
    Id::from_bytes(bytes)
}

fn application(number: u64, account: &AccountId) -> Application {
    Application {
        id: id(number),
        account_id: account.clone(),
        name: format!("application {number}"),
        description: None,
        is_enabled: true,
        created_at: at(i64::try_from(number).unwrap()),
    }
}

fn key(number: u64, account: &AccountId) -> ApiKey {
    let text = PlainKey::parse("ck_live_abcdefEXAMPLEEXAMPLEEXAMPLEEwxyz").unwrap();
    let created_at = at(i64::try_from(number).unwrap());
    let kind = (Family::Commerce, Mode::Live);
    ApiKey {
        name: format!("key {number}"),
        restrictions: Restrictions {
            scopes: vec![Scope::COMMERCE],
            ..Restrictions::default()
        },
        ..ApiKey::new(id(number), account.clone(), &text, kind, created_at)
    }
}

fn application_key(number: u64, account: &AccountId, application: ApplicationId) -> ApiKey {
    ApiKey {
        family: Family::Application,
        application_id: Some(application),
        ..key(number, account)
    }
}

fn digest(number: u64) -> Digest {
    Digest::of_key(&number.to_string())
}

fn draft(number: u64, account: &AccountId) -> Draft {
    let key: KeyId = id(number);
    Draft {
        id: id(number),
        account_id: account.clone(),
        occurred_at: at(i64::try_from(number).unwrap()),
        action: Action::ApiKeyCreated,
        actor: Actor {
            kind: ActorKind::Merchant,
            id: "user-1".into(),
        },
        target: Target::key(key, Mode::Live),
        request_id: Some("req_1".into()),
        ip: Some("2001:db8::1".parse().unwrap()),
        changes: serde_json::json!({"z": 1, "name": "ü \u{0} \"", "a": [0.1, 1e300, -0.0, 123_456_789.123_456_78]}),
    }
}

/// Operations that many tests need.
trait Actions {
    async fn add_application(&self, application: &Application) -> Result<(), Error>;
    async fn add_key(&self, key: &ApiKey) -> Result<(), Error>;
    async fn save_key(&self, key: &ApiKey) -> Result<Committed<()>, Error>;
    async fn key(&self, account: &AccountId, id: KeyId) -> Option<ApiKey>;
}

impl Actions for Store {
    async fn add_application(&self, application: &Application) -> Result<(), Error> {
        let application = application.clone();
        let written = self
            .write(move |tx| {
                tx.account(&application.account_id)
                    .insert_application(&application)
            })
            .await?;
        assert_eq!(
            written.change, None,
            "a new application is not cached anywhere"
        );
        Ok(())
    }

    /// The hash is that of the ID's number.
    async fn add_key(&self, key: &ApiKey) -> Result<(), Error> {
        let key = key.clone();
        let number = u64::from_be_bytes(key.id.as_bytes()[8..].try_into().unwrap());
        let written = self
            .write(move |tx| {
                tx.account(&key.account_id)
                    .insert_key(&key, &digest(number))
            })
            .await?;
        assert_eq!(written.change, None, "a new key is not cached anywhere");
        Ok(())
    }

    async fn save_key(&self, key: &ApiKey) -> Result<Committed<()>, Error> {
        let key = key.clone();
        self.write(move |tx| tx.account(&key.account_id).save_key(&key))
            .await
    }

    async fn key(&self, account: &AccountId, id: KeyId) -> Option<ApiKey> {
        let account = account.clone();
        self.read(move |db| db.account(&account).key(&Family::ALL, &id))
            .await
            .unwrap()
    }
}
