//! Every change × a remembered key × every verifier: what is changed at one replica holds, once that is answered, there,
//! at the other replica, and at resource servers that subscribe to either.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{sync::oneshot, task::JoinHandle};
use tollkey_core::{
    Catalogue, Denial, Need, RequestPath, RouteBase, VerifierId, usage::outcome_code,
};
use tollkey_middleware::source::HttpSource;
use tollkey_server::server::Running;
use tollkey_verifier::{Settings, Stats, Verifier};

use crate::support::{App, Call, Key, each_backend_with_replica, source};

/// What kind of key a row is about.
#[derive(Clone, Copy)]
enum Of {
    /// A key of an application of its own.
    Application,
    /// A commerce key, from this body.
    Commerce(fn() -> Value),
    /// A secret account key.
    Account,
    /// A publishable account key.
    Publishable,
    /// A secret account key that a secret account key made.
    Made,
}

/// Who makes a change.
#[derive(Clone, Copy)]
enum By {
    Merchant,
    Operator,
    /// The key itself.
    Key,
}

/// A request; `{id}`, `{app}` and `{maker}` stand for the row's own.
type Request = (By, &'static str, &'static str, fn() -> Value);

struct Row {
    what: &'static str,
    of: Of,
    /// What is so already when the key is remembered.
    before: &'static [Request],
    change: Request,
    /// What is different afterwards; of a key that is denied, only its code is told.
    expected: fn() -> Value,
}

fn nothing() -> Value {
    Value::Null
}

fn plain() -> Value {
    json!({"mode": "test", "scopes": ["links:read", "links:write"]})
}

fn scoped() -> Value {
    json!({"mode": "test", "merchants": ["m_1"], "features": ["tokens.list", "payment_data.list"]})
}

const DISABLE: Request = (
    By::Merchant,
    "PATCH",
    "/applications/{app}/status",
    || json!({"isEnabled": false}),
);
const SUSPEND: Request = (By::Merchant, "POST", "/api-keys/{id}/suspend", || json!({}));
const FENCE: Request = (
    By::Merchant,
    "PATCH",
    "/api-keys/{id}",
    || json!({"allowed_ips": ["198.51.100.0/24"]}),
);
const MANAGE: Request = (
    By::Operator,
    "PUT",
    "/accounts/acme",
    || json!({"operating_model": "managed_ecosystem"}),
);
const RESTORE: Request = (
    By::Operator,
    "PUT",
    "/accounts/acme",
    || json!({"operating_model": "ecosystem"}),
);

macro_rules! row {
    ($what:literal, $of:expr, $before:expr, $change:expr => $expected:tt) => {
        Row {
            what: $what,
            of: $of,
            before: $before,
            change: $change,
            expected: || json!($expected),
        }
    };
}
macro_rules! patch {
    ($body:tt) => {
        (By::Merchant, "PATCH", "/api-keys/{id}", || json!($body))
    };
}

/// A change that is not here is not proven to reach everybody: see `every_changing_operation_is_in_the_table`.
const TABLE: &[Row] = &[
    row!("revoked", Of::Application, &[],
        (By::Merchant, "DELETE", "/applications/{app}/api-keys/{id}", nothing) => {"code": "revoked"}),
    row!("revoked by itself", Of::Application, &[], (By::Key, "DELETE", "/whoami", nothing) => {"code": "revoked"}),
    row!("its application disabled", Of::Application, &[], DISABLE => {"code": "application_disabled"}),
    row!("its application enabled", Of::Application, &[DISABLE],
        (By::Merchant, "PATCH", "/applications/{app}/status", || json!({"isEnabled": true})) => {"code": "valid"}),
    row!("its application deleted", Of::Application, &[],
        (By::Merchant, "DELETE", "/applications/{app}", nothing) => {"code": "revoked"}),
    row!("revoked", Of::Commerce(plain), &[],
        (By::Merchant, "POST", "/api-keys/{id}/revoke", || json!({})) => {"code": "revoked"}),
    row!("suspended", Of::Commerce(plain), &[], SUSPEND => {"code": "suspended"}),
    row!("resumed", Of::Commerce(plain), &[SUSPEND],
        (By::Merchant, "POST", "/api-keys/{id}/resume", || json!({})) => {"code": "valid"}),
    row!("renamed", Of::Commerce(plain), &[], patch!({"name": "Another"}) => {"name": "Another"}),
    row!("fewer scopes", Of::Commerce(plain), &[], patch!({"scopes": ["links:read"]}) => {"scopes": ["links:read"]}),
    row!("more scopes", Of::Commerce(plain), &[],
        patch!({"scopes": ["links:read", "links:write", "events:read"]}) =>
        {"scopes": ["links:read", "links:write", "events:read"]}),
    row!("an end", Of::Commerce(plain), &[], patch!({"expires_at": 1_800_000_000}) => {"expires_at": 1_800_000_000}),
    row!("an end no more", Of::Commerce(plain), &[patch!({"expires_at": 1_800_000_000})],
        patch!({"expires_at": null}) => {"expires_at": null}),
    row!("networks", Of::Commerce(plain), &[], FENCE => {"code": "ip_not_allowed"}),
    row!("networks no more", Of::Commerce(plain), &[FENCE], patch!({"allowed_ips": null}) => {"code": "valid"}),
    row!("a rate limit", Of::Commerce(plain), &[],
        patch!({"rate_limit": {"limit": 5000, "window_seconds": 60}}) => {"rate_limit": 5000}),
    row!("a rate limit no more", Of::Commerce(plain), &[patch!({"rate_limit": {"limit": 500, "window_seconds": 60}})],
        patch!({"rate_limit": null}) => {"rate_limit": null}),
    row!("metadata", Of::Commerce(plain), &[], patch!({"metadata": {"owner": "till"}}) => {"metadata": {"owner": "till"}}),
    row!("other merchants", Of::Commerce(scoped), &[], patch!({"merchants": ["m_2"]}) => {"code": "merchant_not_allowed"}),
    row!("other features", Of::Commerce(scoped), &[],
        patch!({"features": ["payment_data.list"]}) => {"code": "route_not_allowed"}),
    row!("rotated at once", Of::Commerce(plain), &[],
        (By::Merchant, "POST", "/api-keys/{id}/rotate", || json!({})) => {"code": "expired"}),
    row!("rotated with an overlap", Of::Commerce(plain), &[],
        (By::Merchant, "POST", "/api-keys/{id}/rotate", || json!({"overlap_seconds": 3600})) =>
        {"expires_at": 1_767_229_200}),
    row!("another operating model", Of::Commerce(scoped), &[], MANAGE => {"code": "route_not_allowed"}),
    row!("the operating model again", Of::Commerce(scoped), &[MANAGE], RESTORE => {"code": "valid"}),
    row!("deleted", Of::Account, &[],
        (By::Merchant, "DELETE", "/account/api-keys/{id}", nothing) => {"code": "revoked"}),
    row!("revoked", Of::Account, &[],
        (By::Merchant, "POST", "/account/api-keys/{id}/revoke", || json!({})) => {"code": "revoked"}),
    row!("revoked", Of::Publishable, &[],
        (By::Merchant, "DELETE", "/account/api-keys/{id}", nothing) => {"code": "revoked"}),
    row!("its maker revoked", Of::Made, &[],
        (By::Merchant, "DELETE", "/account/api-keys/{maker}", nothing) => {"code": "revoked"}),
];

/// Changes that no API key is different by: creations, and service keys, which `replicas.rs` has.
const ELSEWHERE: [&str; 5] = [
    "POST /api/v1/applications",
    "POST /api/v1/applications/{id}/api-keys",
    "POST /api/v1/api-keys",
    "POST /api/v1/account/api-keys",
    "POST /api/v1/service-keys",
];
/// What changes nothing that a verification tells, or is in `replicas.rs`.
const NO_CHANGE: [&str; 7] = [
    "PATCH /api/v1/applications/{id}",
    "POST /api/v1/verify",
    "POST /api/v1/verify/batch",
    "POST /api/v1/introspect",
    "POST /api/v1/sync",
    "POST /api/v1/sync/lookup",
    "DELETE /api/v1/service-keys/{id}",
];

#[test]
fn every_changing_operation_is_in_the_table() {
    let of = |(_, method, path, _): &Request| {
        let path = path
            .replace("{app}/api-keys/{id}", "{id}/api-keys/{keyId}")
            .replace("accounts/acme", "accounts/{id}");
        format!(
            "{method} /api/v1{}",
            path.replace("{app}", "{id}").replace("{maker}", "{id}")
        )
    };
    let told: Vec<String> = TABLE.iter().map(|row| of(&row.change)).collect();
    for (path, method) in tollkey_server::openapi::operations() {
        let operation = format!("{method} {path}");
        let exempt = method == "GET"
            || ELSEWHERE.contains(&operation.as_str())
            || NO_CHANGE.contains(&operation.as_str());
        assert_eq!(told.contains(&operation), !exempt, "{operation}");
    }
}

/// A resource server that subscribes to a replica over HTTP.
struct Subscriber {
    verifier: Verifier<HttpSource>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Subscriber {
    async fn of(replica: &Running, app: &App, service_key: &str, id: u8) -> Self {
        let base = format!("http://{}", replica.address());
        let source = source(&base, service_key);
        let id = VerifierId::from_bytes([id; 16]);
        let verifier =
            Verifier::subscriber(id, source, Arc::new(app.clock.clone()), Settings::default());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(verifier.clone().subscribe(async {
            let _ = stopped.await;
        }));
        while verifier.stats().lease_left.is_zero() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Self {
            verifier,
            stop,
            task,
        }
    }

    async fn stop(self) {
        self.stop.send(()).expect("it runs");
        self.task.await.expect("a good end");
    }
}

/// Somebody who verifies keys.
enum Observer<'a> {
    Replica(&'a Running, String),
    Subscriber(&'a Verifier<HttpSource>),
}

impl Observer<'_> {
    fn stats(&self) -> Stats {
        match self {
            Self::Replica(replica, _) => replica.state().service.verifier.stats(),
            Self::Subscriber(verifier) => verifier.stats(),
        }
    }

    /// What it says of a key: everything that a change can change.
    async fn says(&self, key: &str) -> Value {
        // What a publishable key may call, and what the feature `tokens.list` is.
        let path = if key.starts_with("pk_") {
            "/v1/storefront/products"
        } else {
            "/tokens"
        };
        match self {
            Self::Replica(replica, service) => {
                let need = json!({"key": key, "method": "GET", "path": path, "merchant": "m_1", "client_ip": "203.0.113.7"});
                let reply = Call::new(replica.address(), "POST", "/verify")
                    .json(need)
                    .bearer(service)
                    .await;
                assert_eq!(reply.status, 200, "{reply}");
                let said = reply.json();
                if said["valid"] == false {
                    return json!({"code": said["code"]});
                }
                let key = &said["key"];
                json!({
                    "code": said["code"], "name": key["name"], "scopes": key["scopes"], "merchants": key["merchants"],
                    "features": key["features"], "expires_at": key["expires_at"], "metadata": key["metadata"],
                    "rate_limit": said["rate_limit"]["limit"],
                })
            }
            Self::Subscriber(verifier) => {
                let need = Need {
                    method: Some("GET"),
                    path: Some(RequestPath::new(path, &RouteBase::default())),
                    merchant: Some("m_1"),
                    client_ip: Some([203, 0, 113, 7].into()),
                    ..Need::default()
                };
                let verdict = verifier.verify(key, &need).await.expect("a verdict");
                if verdict.outcome.is_err() {
                    return json!({"code": verdict.outcome.map_or_else(Denial::code, |()| "valid")});
                }
                let record = verdict.record.expect("a record");
                let (catalogue, grants) = (Catalogue::default(), &record.key.grants);
                json!({
                    "code": outcome_code(None), "name": record.key.name,
                    "scopes": catalogue.names(record.scopes).collect::<Vec<_>>(), "merchants": grants.merchants,
                    "features": grants.features, "expires_at": grants.expires_at.map(|at| at.as_second()),
                    "metadata": record.key.metadata.as_ref().map(tollkey_core::metadata::Metadata::object),
                    "rate_limit": verdict.rate.map(|rate| rate.limit),
                })
            }
        }
    }

    /// What it says, asked until it answers from memory.
    async fn remembers(&self, key: &str) -> Value {
        let said = self.says(key).await;
        let misses = self.stats().misses;
        assert_eq!(self.says(key).await, said);
        assert_eq!(self.stats().misses, misses, "it was remembered");
        said
    }
}

/// What a row's requests are about.
struct Subject {
    key: Key,
    application: String,
    maker: String,
}

async fn make(app: &App, of: Of, name: &str) -> Subject {
    let merchant = app.merchant("acme");
    let (mut application, mut maker) = (String::new(), String::new());
    let account_key = async |token: &str, access: &str| {
        let body = json!({"name": "Account key", "environment": "test", "access": access});
        let reply = app.post("/account/api-keys", body).bearer(token).await;
        assert_eq!(reply.status, 201, "{reply}");
        let data = &reply.json()["data"];
        let text = |member: &str| data[member].as_str().expect("a text").to_owned();
        Key {
            id: text("id"),
            text: text("value"),
        }
    };
    let key = match of {
        Of::Application => {
            application = app.application(&merchant, name).await;
            app.key(&merchant, &application, json!({"mode": "test"}))
                .await
        }
        Of::Commerce(body) => app.commerce_key(&merchant, body()).await,
        Of::Account => account_key(&merchant, "secret").await,
        Of::Publishable => account_key(&merchant, "publishable").await,
        Of::Made => {
            let by = account_key(&merchant, "secret").await;
            maker = by.id;
            account_key(&by.text, "secret").await
        }
    };
    Subject {
        key,
        application,
        maker,
    }
}

async fn send(app: &App, at: &Running, (by, method, path, body): &Request, subject: &Subject) {
    let credential = match by {
        By::Merchant => app.merchant("acme"),
        By::Operator => app.operator(),
        By::Key => subject.key.text.clone(),
    };
    let path = path
        .replace("{id}", &subject.key.id)
        .replace("{app}", &subject.application)
        .replace("{maker}", &subject.maker);
    let call = Call::new(at.address(), method, &path).bearer(&credential);
    let call = match body() {
        Value::Null => call,
        body => call.json(body),
    };
    let reply = call.await;
    assert!(
        (200..300).contains(&reply.status),
        "{method} {path}: {reply}"
    );
}

/// What is said after a change, going by what was said before.
fn afterwards(before: &Value, expected: &Value) -> Value {
    match expected.get("code") {
        Some(code) if code != "valid" => json!({"code": code}),
        _ => {
            let mut after = before.clone();
            for (member, value) in expected.as_object().expect("an object") {
                after[member] = value.clone();
            }
            after
        }
    }
}

#[actix_web::test]
async fn every_change_holds_everywhere_once_answered() {
    each_backend_with_replica(None, async |app, replica| {
        let one = app.running();
        app.set_model("acme", "ecosystem").await;
        let gateway = app.service_key().await;
        let (near, far) = (
            Subscriber::of(one, app, &gateway.text, 7).await,
            Subscriber::of(replica, app, &gateway.text, 8).await,
        );
        let service = app.service();
        let observers = [
            (
                "where it was changed",
                Observer::Replica(one, service.clone()),
            ),
            (
                "the other replica",
                Observer::Replica(replica, service.clone()),
            ),
            (
                "a subscriber of the one",
                Observer::Subscriber(&near.verifier),
            ),
            (
                "a subscriber of the other",
                Observer::Subscriber(&far.verifier),
            ),
        ];
        for (direction, at) in [("here", one), ("there", replica)] {
            for (number, row) in TABLE.iter().enumerate() {
                let subject = make(app, row.of, &format!("Store {number} {direction}")).await;
                for request in row.before {
                    send(app, one, request, &subject).await;
                }
                let key = &subject.key.text;
                let before = observers[0].1.remembers(key).await;
                for (who, observer) in &observers {
                    assert_eq!(
                        observer.remembers(key).await,
                        before,
                        "{}: {who}, before",
                        row.what
                    );
                }
                send(app, at, &row.change, &subject).await;
                let mut after = Vec::new();
                for (who, observer) in &observers {
                    after.push((who, observer.says(key).await));
                }
                let expected = (row.expected)();
                for (who, said) in after {
                    if before["code"] == "valid" {
                        assert_eq!(
                            said,
                            afterwards(&before, &expected),
                            "{} {direction}: {who}",
                            row.what
                        );
                        assert_ne!(said, before, "{}", row.what);
                    } else {
                        assert_eq!(
                            said["code"], expected["code"],
                            "{} {direction}: {who}",
                            row.what
                        );
                        assert_ne!(said["code"], before["code"], "{}", row.what);
                    }
                }
                send(app, one, &RESTORE, &subject).await;
            }
        }
        near.stop().await;
        far.stop().await;
        for replica in [one, replica] {
            assert_eq!(
                replica
                    .state()
                    .service
                    .verifier
                    .stats()
                    .propagations_over_a_lease,
                0,
                "nobody waited for a lease to end"
            );
        }
    })
    .await;
}
