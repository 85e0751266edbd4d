//! Every change × a cached key × every verifier. Once the response to a change is sent, the change applies at that
//! replica, at the other one, and at resource servers that subscribe to either.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tokio::{sync::oneshot, task::JoinHandle};
use tollkey_core::{
    AccessRequest, Catalogue, Denial, RequestPath, RouteBase, VerifierId, usage::outcome_code,
};
use tollkey_middleware::source::HttpSource;
use tollkey_server::server::RunningServer;
use tollkey_verifier::{Settings, Stats, Verifier};

use crate::{
    app::each_backend_with_replica,
    support::{App, Call, Key, source},
};

/// The kind of key that a row changes.
#[derive(Clone, Copy)]
enum KeyKind {
    /// A key of a new application.
    Application,
    /// A commerce key with these fields.
    Commerce(fn() -> Value),
    /// A secret account key.
    Account,
    /// A publishable account key.
    Publishable,
    /// A secret account key that was created by a secret account key.
    CreatedByKey,
}

#[derive(Clone, Copy)]
enum Caller {
    Merchant,
    Operator,
    /// The key itself.
    Key,
}

/// A request; `{id}`, `{app}` and `{creator}` stand for the IDs of the row's key, application and creator.
type Request = (Caller, &'static str, &'static str, fn() -> Value);

struct Row {
    what: &'static str,
    kind: KeyKind,
    /// Changes before the key is cached.
    before: &'static [Request],
    change: Request,
    /// The differences after the change; of a denied key only the code is compared.
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
    Caller::Merchant,
    "PATCH",
    "/applications/{app}/status",
    || json!({"isEnabled": false}),
);
const SUSPEND: Request = (Caller::Merchant, "POST", "/api-keys/{id}/suspend", || {
    json!({})
});
const SET_IP_ALLOWLIST: Request = (
    Caller::Merchant,
    "PATCH",
    "/api-keys/{id}",
    || json!({"allowed_ips": ["198.51.100.0/24"]}),
);
const MANAGE: Request = (
    Caller::Operator,
    "PUT",
    "/accounts/acme",
    || json!({"operating_model": "managed_ecosystem"}),
);
const RESTORE: Request = (
    Caller::Operator,
    "PUT",
    "/accounts/acme",
    || json!({"operating_model": "ecosystem"}),
);

macro_rules! row {
    ($what:literal, $of:expr, $before:expr, $change:expr => $expected:tt) => {
        Row {
            what: $what,
            kind: $of,
            before: $before,
            change: $change,
            expected: || json!($expected),
        }
    };
}
macro_rules! patch {
    ($body:tt) => {
        (Caller::Merchant, "PATCH", "/api-keys/{id}", || json!($body))
    };
}

/// The changes under test: `every_changing_operation_is_in_the_table` checks that none is missing.
const TABLE: &[Row] = &[
    row!("revoked", KeyKind::Application, &[],
        (Caller::Merchant, "DELETE", "/applications/{app}/api-keys/{id}", nothing) => {"code": "revoked"}),
    row!("revoked by itself", KeyKind::Application, &[], (Caller::Key, "DELETE", "/whoami", nothing) => {"code": "revoked"}),
    row!("its application disabled", KeyKind::Application, &[], DISABLE => {"code": "application_disabled"}),
    row!("its application enabled", KeyKind::Application, &[DISABLE],
        (Caller::Merchant, "PATCH", "/applications/{app}/status", || json!({"isEnabled": true})) => {"code": "valid"}),
    row!("its application deleted", KeyKind::Application, &[],
        (Caller::Merchant, "DELETE", "/applications/{app}", nothing) => {"code": "revoked"}),
    row!("revoked", KeyKind::Commerce(plain), &[],
        (Caller::Merchant, "POST", "/api-keys/{id}/revoke", || json!({})) => {"code": "revoked"}),
    row!("suspended", KeyKind::Commerce(plain), &[], SUSPEND => {"code": "suspended"}),
    row!("resumed", KeyKind::Commerce(plain), &[SUSPEND],
        (Caller::Merchant, "POST", "/api-keys/{id}/resume", || json!({})) => {"code": "valid"}),
    row!("renamed", KeyKind::Commerce(plain), &[], patch!({"name": "Another"}) => {"name": "Another"}),
    row!("fewer scopes", KeyKind::Commerce(plain), &[], patch!({"scopes": ["links:read"]}) => {"scopes": ["links:read"]}),
    row!("more scopes", KeyKind::Commerce(plain), &[],
        patch!({"scopes": ["links:read", "links:write", "events:read"]}) =>
        {"scopes": ["links:read", "links:write", "events:read"]}),
    row!("an expiration", KeyKind::Commerce(plain), &[], patch!({"expires_at": 1_800_000_000}) => {"expires_at": 1_800_000_000}),
    row!("no expiration", KeyKind::Commerce(plain), &[patch!({"expires_at": 1_800_000_000})],
        patch!({"expires_at": null}) => {"expires_at": null}),
    row!("an IP allowlist", KeyKind::Commerce(plain), &[], SET_IP_ALLOWLIST => {"code": "ip_not_allowed"}),
    row!("no IP allowlist", KeyKind::Commerce(plain), &[SET_IP_ALLOWLIST], patch!({"allowed_ips": null}) => {"code": "valid"}),
    row!("a rate limit", KeyKind::Commerce(plain), &[],
        patch!({"rate_limit": {"limit": 5000, "window_seconds": 60}}) => {"rate_limit": 5000}),
    row!("no rate limit", KeyKind::Commerce(plain), &[patch!({"rate_limit": {"limit": 500, "window_seconds": 60}})],
        patch!({"rate_limit": null}) => {"rate_limit": null}),
    row!("metadata", KeyKind::Commerce(plain), &[], patch!({"metadata": {"owner": "till"}}) => {"metadata": {"owner": "till"}}),
    row!("other merchants", KeyKind::Commerce(scoped), &[], patch!({"merchants": ["m_2"]}) => {"code": "merchant_not_allowed"}),
    row!("other features", KeyKind::Commerce(scoped), &[],
        patch!({"features": ["payment_data.list"]}) => {"code": "route_not_allowed"}),
    row!("rotated without an overlap", KeyKind::Commerce(plain), &[],
        (Caller::Merchant, "POST", "/api-keys/{id}/rotate", || json!({})) => {"code": "expired"}),
    row!("rotated with an overlap", KeyKind::Commerce(plain), &[],
        (Caller::Merchant, "POST", "/api-keys/{id}/rotate", || json!({"overlap_seconds": 3600})) =>
        {"expires_at": 1_767_229_200}),
    row!("another operating model", KeyKind::Commerce(scoped), &[], MANAGE => {"code": "route_not_allowed"}),
    row!("the operating model again", KeyKind::Commerce(scoped), &[MANAGE], RESTORE => {"code": "valid"}),
    row!("deleted", KeyKind::Account, &[],
        (Caller::Merchant, "DELETE", "/account/api-keys/{id}", nothing) => {"code": "revoked"}),
    row!("revoked", KeyKind::Account, &[],
        (Caller::Merchant, "POST", "/account/api-keys/{id}/revoke", || json!({})) => {"code": "revoked"}),
    row!("revoked", KeyKind::Publishable, &[],
        (Caller::Merchant, "DELETE", "/account/api-keys/{id}", nothing) => {"code": "revoked"}),
    row!("its creator revoked", KeyKind::CreatedByKey, &[],
        (Caller::Merchant, "DELETE", "/account/api-keys/{creator}", nothing) => {"code": "revoked"}),
];

/// Creations, which change no existing API key. `replicas.rs` tests service keys.
const CREATIONS: [&str; 5] = [
    "POST /api/v1/applications",
    "POST /api/v1/applications/{id}/api-keys",
    "POST /api/v1/api-keys",
    "POST /api/v1/account/api-keys",
    "POST /api/v1/service-keys",
];
/// Operations that change nothing in a verification, or that `replicas.rs` tests.
const NO_CHANGE: [&str; 8] = [
    "PATCH /api/v1/applications/{id}",
    "POST /api/v1/verify",
    "POST /api/v1/verify/batch",
    "POST /api/v1/introspect",
    "POST /v2/keys.verifyKey",
    "POST /api/v1/sync",
    "POST /api/v1/sync/lookup",
    "DELETE /api/v1/service-keys/{id}",
];

#[test]
fn every_changing_operation_is_in_the_table() {
    let operation_of = |(_, method, path, _): &Request| {
        let path = path
            .replace("{app}/api-keys/{id}", "{id}/api-keys/{keyId}")
            .replace("accounts/acme", "accounts/{id}");
        format!(
            "{method} /api/v1{}",
            path.replace("{app}", "{id}").replace("{creator}", "{id}")
        )
    };
    let listed: Vec<String> = TABLE.iter().map(|row| operation_of(&row.change)).collect();
    for (path, method) in tollkey_server::openapi::operations() {
        let operation = format!("{method} {path}");
        let exempt = method == "GET"
            || CREATIONS.contains(&operation.as_str())
            || NO_CHANGE.contains(&operation.as_str());
        assert_eq!(listed.contains(&operation), !exempt, "{operation}");
    }
}

/// A resource server that subscribes to a replica over HTTP.
struct Subscriber {
    verifier: Verifier<HttpSource>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Subscriber {
    async fn connect(replica: &RunningServer, app: &App, service_key: &str, id: u8) -> Self {
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
        self.stop.send(()).expect("a running subscription");
        self.task.await.expect("an end without a panic");
    }
}

enum Observer<'a> {
    Replica(&'a RunningServer, String),
    Subscriber(&'a Verifier<HttpSource>),
}

impl Observer<'_> {
    fn stats(&self) -> Stats {
        match self {
            Self::Replica(replica, _) => replica.state().service.verifier.stats(),
            Self::Subscriber(verifier) => verifier.stats(),
        }
    }

    /// Verifies a key. Returns everything that a change can affect.
    async fn result_of(&self, key: &str) -> Value {
        // A route of publishable keys; a route of the feature `tokens.list`.
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
                let result = reply.json();
                if result["valid"] == false {
                    return json!({"code": result["code"]});
                }
                let key = &result["key"];
                json!({
                    "code": result["code"], "name": key["name"], "scopes": key["scopes"], "merchants": key["merchants"],
                    "features": key["features"], "expires_at": key["expires_at"], "metadata": key["metadata"],
                    "rate_limit": result["rate_limit"]["limit"],
                })
            }
            Self::Subscriber(verifier) => {
                let need = AccessRequest {
                    method: Some("GET"),
                    path: Some(RequestPath::new(path, &RouteBase::default())),
                    merchant: Some("m_1"),
                    client_ip: Some([203, 0, 113, 7].into()),
                    ..AccessRequest::default()
                };
                let verdict = verifier.verify(key, &need).await.expect("a verdict");
                if verdict.outcome.is_err() {
                    return json!({"code": verdict.outcome.map_or_else(Denial::code, |()| "valid")});
                }
                let record = verdict.record.expect("a record");
                let (catalogue, restrictions) = (Catalogue::default(), &record.key.restrictions);
                json!({
                    "code": outcome_code(None), "name": record.key.name,
                    "scopes": catalogue.names(record.scopes).collect::<Vec<_>>(), "merchants": restrictions.merchants,
                    "features": restrictions.features, "expires_at": restrictions.expires_at.map(|at| at.as_second()),
                    "metadata": record.key.metadata.as_ref().map(tollkey_core::metadata::Metadata::object),
                    "rate_limit": verdict.rate.map(|rate| rate.limit),
                })
            }
        }
    }

    /// Verifies a key twice. Asserts that the second result comes from the cache.
    async fn cached_result_of(&self, key: &str) -> Value {
        let result = self.result_of(key).await;
        let misses = self.stats().misses;
        assert_eq!(self.result_of(key).await, result);
        assert_eq!(self.stats().misses, misses, "the key is cached");
        result
    }
}

/// The IDs that the requests of a row need.
struct Subject {
    key: Key,
    application: String,
    creator: String,
}

async fn create(app: &App, kind: KeyKind, name: &str) -> Subject {
    let merchant = app.management_token("acme");
    let (mut application, mut creator) = (String::new(), String::new());
    let account_key = async |token: &str, access: &str| {
        let body = json!({"name": "Account key", "environment": "test", "access": access});
        let reply = app.post("/account/api-keys", body).bearer(token).await;
        assert_eq!(reply.status, 201, "{reply}");
        let data = &reply.json()["data"];
        let text = |field: &str| data[field].as_str().expect("a string").to_owned();
        Key {
            id: text("id"),
            text: text("value"),
        }
    };
    let key = match kind {
        KeyKind::Application => {
            application = app.application(&merchant, name).await;
            app.key(&merchant, &application, json!({"mode": "test"}))
                .await
        }
        KeyKind::Commerce(body) => app.commerce_key(&merchant, body()).await,
        KeyKind::Account => account_key(&merchant, "secret").await,
        KeyKind::Publishable => account_key(&merchant, "publishable").await,
        KeyKind::CreatedByKey => {
            let parent = account_key(&merchant, "secret").await;
            creator = parent.id;
            account_key(&parent.text, "secret").await
        }
    };
    Subject {
        key,
        application,
        creator,
    }
}

async fn send(
    app: &App,
    at: &RunningServer,
    (caller, method, path, body): &Request,
    subject: &Subject,
) {
    let credential = match caller {
        Caller::Merchant => app.management_token("acme"),
        Caller::Operator => app.operator(),
        Caller::Key => subject.key.text.clone(),
    };
    let path = path
        .replace("{id}", &subject.key.id)
        .replace("{app}", &subject.application)
        .replace("{creator}", &subject.creator);
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

fn expected_after(before: &Value, expected: &Value) -> Value {
    match expected.get("code") {
        Some(code) if code != "valid" => json!({"code": code}),
        _ => {
            let mut after = before.clone();
            for (field, value) in expected.as_object().expect("an object") {
                after[field] = value.clone();
            }
            after
        }
    }
}

#[actix_web::test]
async fn changes_apply_everywhere_once_the_response_is_sent() {
    each_backend_with_replica(None, async |app, replica| {
        let first = app.running();
        app.set_model("acme", "ecosystem").await;
        let gateway = app.service_key().await;
        let (near, far) = (
            Subscriber::connect(first, app, &gateway.text, 7).await,
            Subscriber::connect(replica, app, &gateway.text, 8).await,
        );
        let service = app.service();
        let observers = [
            (
                "the changed replica",
                Observer::Replica(first, service.clone()),
            ),
            (
                "the other replica",
                Observer::Replica(replica, service.clone()),
            ),
            (
                "a subscriber of the first replica",
                Observer::Subscriber(&near.verifier),
            ),
            (
                "a subscriber of the other replica",
                Observer::Subscriber(&far.verifier),
            ),
        ];
        for (direction, at) in [("here", first), ("there", replica)] {
            for (number, row) in TABLE.iter().enumerate() {
                let subject = create(app, row.kind, &format!("Store {number} {direction}")).await;
                for request in row.before {
                    send(app, first, request, &subject).await;
                }
                let key = &subject.key.text;
                let before = observers[0].1.cached_result_of(key).await;
                for (who, observer) in &observers {
                    assert_eq!(
                        observer.cached_result_of(key).await,
                        before,
                        "{}: {who}, before",
                        row.what
                    );
                }
                send(app, at, &row.change, &subject).await;
                let mut after = Vec::new();
                for (who, observer) in &observers {
                    after.push((who, observer.result_of(key).await));
                }
                let expected = (row.expected)();
                for (who, result) in after {
                    if before["code"] == "valid" {
                        assert_eq!(
                            result,
                            expected_after(&before, &expected),
                            "{} {direction}: {who}",
                            row.what
                        );
                        assert_ne!(result, before, "{}", row.what);
                    } else {
                        assert_eq!(
                            result["code"], expected["code"],
                            "{} {direction}: {who}",
                            row.what
                        );
                        assert_ne!(result["code"], before["code"], "{}", row.what);
                    }
                }
                send(app, first, &RESTORE, &subject).await;
            }
        }
        near.stop().await;
        far.stop().await;
        for replica in [first, replica] {
            assert_eq!(
                replica
                    .state()
                    .service
                    .verifier
                    .stats()
                    .propagations_over_a_lease,
                0,
                "no change waited for a lease to expire"
            );
        }
    })
    .await;
}
