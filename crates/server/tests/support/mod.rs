//! A server for a test: real HTTP on a loopback port, a real store, a clock set by the test and seeded randomness.

use std::{ffi::OsString, path::Path, sync::Arc, time::Duration};

use rand::{SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use tollkey_client::{Auth, Client};
use tollkey_core::{
    AccountId, ApiKey, Clock as _, Family, KeyId, Mode, PlainKey, Restrictions, Scope,
    key_format::CredentialKind,
};
use tollkey_middleware::source::HttpSource;
use tollkey_server::{
    assembly,
    auth::jwt::{NewToken, create_token},
    config::{Options, Secret, Settings},
    server::{self, RunningServer},
};
use tollkey_service::Random;
use tollkey_store::testing::{Database, backends};
use tollkey_verifier::testing::ManualClock;

pub use http::{Call, Reply, without_secrets};

pub mod account_keys;
pub mod http;
pub mod raw;
pub mod resource_server;
pub mod sign_in;

/// Signs the management tokens of tests.
pub const SECRET: &str = "an example secret for tests, 32+ bytes";

pub struct App {
    pub database: Database,
    pub clock: ManualClock,
    pub settings: Settings,
    /// The message of development mode, which the binary prints at start.
    #[allow(dead_code)] // only `it` reads it
    pub message: Option<String>,
    running: RunningServer,
}

/// The setting that allows sign-in with a management token.
pub const TOKEN_SIGN_IN: (&str, &str) = ("TOLLKEY_DASHBOARD_TOKEN_SIGN_IN", "true");

/// Runs a test on each backend.
pub async fn each_backend(test: impl AsyncFn(&App)) {
    each_backend_with(&[], test).await;
}

/// Runs a test on each backend, with these settings in addition to the usual ones.
pub async fn each_backend_with(settings: &[(&str, &str)], test: impl AsyncFn(&App)) {
    for database in backends() {
        let app = App::start(database, settings).await;
        test(&app).await;
        app.stop().await;
    }
}

/// The settings of a test server.
pub fn settings(database_url: &str, extra: &[(&str, &str)]) -> Settings {
    let env = |name: &str| -> Option<OsString> {
        if let Some((_, value)) = extra.iter().find(|(key, _)| *key == name) {
            return (!value.is_empty()).then(|| value.into()); // "" removes one of the usual settings
        }
        let value = match name {
            "TOLLKEY_LISTEN" => "127.0.0.1:0",
            "TOLLKEY_WORKERS" => "1",
            "TOLLKEY_DATABASE_POOL" => "2",
            "TOLLKEY_MIGRATE" => "true",
            "TOLLKEY_JWT_HS256_SECRET" => SECRET,
            "DATABASE_URL" => database_url,
            _ => return None,
        };
        Some(value.into())
    };
    Settings::resolve(&Options::default(), &env, Path::new("no such file")).expect("valid settings")
}

impl App {
    /// Starts a server on a fresh database.
    pub async fn start(database: Database, extra: &[(&str, &str)]) -> Self {
        Self::start_with(
            database,
            extra,
            ManualClock::default(),
            Random::new(StdRng::seed_from_u64(1)),
        )
        .await
    }

    /// Starts a server with this clock and this randomness.
    pub async fn start_with(
        database: Database,
        extra: &[(&str, &str)],
        clock: ManualClock,
        random: Random,
    ) -> Self {
        let settings = settings(database.url(), extra);
        let opened = assembly::open(&settings, Arc::new(clock.clone()), random.clone())
            .await
            .expect("the server opens");
        let running = server::start(&settings, opened.state, None).expect("the server starts");
        let base = format!("http://{}", running.address());
        let message = opened.development.map(|mode| {
            mode.message(&base, clock.now(), &random)
                .expect("a message")
        });
        Self {
            database,
            clock,
            settings,
            message,
            running,
        }
    }

    /// A second replica on the same database.
    pub async fn replica(&self) -> RunningServer {
        self.replica_like(&self.settings, &self.clock).await
    }

    /// A replica with its own settings and clock.
    pub async fn replica_like(&self, settings: &Settings, clock: &ManualClock) -> RunningServer {
        let random = Random::new(StdRng::seed_from_u64(2));
        let opened = assembly::open(settings, Arc::new(clock.clone()), random)
            .await
            .expect("the replica opens");
        server::start(settings, opened.state, None).expect("the replica starts")
    }

    /// Stops the server. Returns its database, which is deleted when the value is dropped.
    pub async fn stop(self) -> Database {
        self.running.stop().await;
        self.database
    }

    pub fn running(&self) -> &RunningServer {
        &self.running
    }

    /// A management token of an account.
    pub fn management_token(&self, account: &str) -> String {
        self.token(Some(account), &[])
    }

    /// A management token with the role `operator`.
    pub fn operator(&self) -> String {
        self.token(None, &["operator"])
    }

    /// A management token with the role `service`.
    pub fn service(&self) -> String {
        self.token(None, &["service"])
    }

    pub fn token(&self, account: Option<&str>, roles: &[&str]) -> String {
        let token = NewToken {
            subject: "user_1".to_owned(),
            account: account.map(|account| account.parse().expect("an account ID")),
            roles: roles.iter().map(ToString::to_string).collect(),
            lifetime: jiff::SignedDuration::from_hours(24 * 365),
        };
        let rules = &self.settings.tokens.claims;
        create_token(&Secret::new(SECRET), rules, &token, self.clock.now()).expect("a token")
    }

    pub fn get(&self, path: &str) -> Call {
        self.call("GET", path)
    }

    pub fn post(&self, path: &str, body: Value) -> Call {
        self.call("POST", path).json(body)
    }

    pub fn patch(&self, path: &str, body: Value) -> Call {
        self.call("PATCH", path).json(body)
    }

    pub fn put(&self, path: &str, body: Value) -> Call {
        self.call("PUT", path).json(body)
    }

    pub fn delete(&self, path: &str) -> Call {
        self.call("DELETE", path)
    }

    /// A request. `/api/v1` is prepended unless the path begins with one of the prefixes listed in [`Call::new`].
    pub fn call(&self, method: &str, path: &str) -> Call {
        Call::new(self.running.address(), method, path)
    }

    /// The time that many seconds from now, as RFC 3339.
    pub fn in_seconds(&self, seconds: i64) -> String {
        (self.clock.now() + jiff::SignedDuration::from_secs(seconds)).to_string()
    }

    /// Creates an application. Returns its ID.
    pub async fn application(&self, token: &str, name: &str) -> String {
        let reply = self
            .post("/applications", json!({"name": name}))
            .bearer(token)
            .await;
        assert_eq!(reply.status, 201, "{reply}");
        reply.json()["id"].as_str().expect("an ID").to_owned()
    }

    /// Creates a key of an application; the `description` is filled in.
    pub async fn key(&self, token: &str, application: &str, mut body: Value) -> Key {
        body["description"] = json!("Checkout");
        let reply = self
            .post(&format!("/applications/{application}/api-keys"), body)
            .bearer(token)
            .await;
        assert_eq!(reply.status, 201, "{reply}");
        let json = reply.json();
        let text = |field: &str| json[field].as_str().expect("a string").to_owned();
        Key {
            id: text("id"),
            text: text("fullKey"),
        }
    }

    /// Creates a commerce key, with a default `name`.
    pub async fn commerce_key(&self, token: &str, mut body: Value) -> Key {
        if body.get("name").is_none() {
            body["name"] = json!("Commerce Server Key");
        }
        let reply = self.post("/api-keys", body).bearer(token).await;
        assert_eq!(reply.status, 201, "{reply}");
        let json = reply.json();
        let text = |field: &str| json[field].as_str().expect("a string").to_owned();
        Key {
            id: text("key_id"),
            text: text("api_key"),
        }
    }

    /// Sets the operating model of an account.
    pub async fn set_model(&self, account: &str, model: &str) {
        let path = format!("/accounts/{account}");
        let reply = self
            .put(&path, json!({"operating_model": model}))
            .bearer(&self.operator())
            .await;
        assert_eq!(reply.status, 200, "{reply}");
    }

    /// Creates a service key.
    pub async fn service_key(&self) -> Key {
        let reply = self
            .post("/service-keys", json!({"name": "gateway"}))
            .bearer(&self.operator())
            .await;
        assert_eq!(reply.status, 201, "{reply}");
        let json = reply.json();
        let text = |field: &str| json[field].as_str().expect("a string").to_owned();
        Key {
            id: text("id"),
            text: text("key"),
        }
    }

    /// Inserts a key with these grants into the store, including grants that no API can give.
    pub async fn insert_key_with(
        &self,
        account: &str,
        family: Family,
        mode: Mode,
        restrictions: Restrictions,
    ) -> String {
        self.insert(account, &self.generate_key(family, mode), |key| {
            key.restrictions = restrictions
        })
        .await
        .text
    }

    /// Generates a key that is not in the store.
    pub fn generate_key(&self, family: Family, mode: Mode) -> PlainKey {
        self.running
            .state()
            .service
            .random
            .with(|rng| PlainKey::generate(CredentialKind::Key(family, mode), rng))
    }

    /// Inserts that key into the store: with the scope `commerce` and no restriction, unless `edit` changes it.
    pub async fn insert(
        &self,
        account: &str,
        text: &PlainKey,
        edit: impl FnOnce(&mut ApiKey),
    ) -> Key {
        let Some(CredentialKind::Key(family, mode)) = CredentialKind::parse(text.expose()) else {
            panic!("not an API key")
        };
        let now = self.clock.now();
        let state = self.running.state();
        let id = state.service.random.with(|rng| KeyId::new(now, rng));
        let account_id: AccountId = account.parse().expect("an account ID");
        let mut key = ApiKey {
            name: "Example".to_owned(),
            restrictions: Restrictions {
                scopes: vec![Scope::COMMERCE],
                ..Restrictions::default()
            },
            ..ApiKey::new(id, account_id.clone(), text, (family, mode), now)
        };
        edit(&mut key);
        let digest = text.digest();
        let inserted = state
            .service
            .store
            .write(move |tx| tx.account(&account_id).insert_key(&key, &digest))
            .await;
        let _ = inserted.expect("a key in the store");
        Key {
            id: id.to_string(),
            text: text.expose().to_owned(),
        }
    }

    /// Inserts a key without restrictions. See [`Self::insert_key_with`].
    pub async fn insert_key(&self, account: &str, family: Family, mode: Mode) -> String {
        let restrictions = Restrictions {
            scopes: vec![Scope::COMMERCE],
            ..Restrictions::default()
        };
        self.insert_key_with(account, family, mode, restrictions)
            .await
    }

    /// The response of `POST /verify` to the role `service`.
    pub async fn verify(&self, key: &str, mut need: Value) -> Value {
        need["key"] = json!(key);
        let reply = self.post("/verify", need).bearer(&self.service()).await;
        assert_eq!(reply.status, 200, "{reply}");
        reply.json()
    }

    /// The `code` of a verification without requirements.
    pub async fn code(&self, key: &str) -> String {
        self.verify(key, json!({})).await["code"]
            .as_str()
            .expect("a code")
            .to_owned()
    }
}

/// A source that is subscribed to this server with that service key.
pub fn source(base: &str, service_key: &str) -> HttpSource {
    let client = Client::new(base)
        .expect("a client")
        .with_auth(Auth::service(service_key));
    HttpSource::new(&client, Arc::default())
}

/// Waits up to 20 s for a condition that the test cannot trigger, such as a reconnecting pool.
pub async fn eventually(what: &str, is_so: impl AsyncFn() -> bool) {
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while !is_so().await {
        assert!(
            std::time::Instant::now() < deadline,
            "not within 20 s: {what}"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A created key.
pub struct Key {
    pub id: String,
    pub text: String,
}

impl Key {
    /// The hyphenated form of its ID, which the audit log and the dashboard print.
    pub fn hyphenated_id(&self) -> String {
        self.id.parse::<KeyId>().expect("a key ID").to_string()
    }
}
