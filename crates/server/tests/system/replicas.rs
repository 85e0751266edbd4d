//! Replicas: a change holds on every replica after its response.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tollkey_core::{Seq, VerifierId};
use tollkey_store::testing::{Database, backends};

use crate::{
    binary::{LEASE, Server, Tollkey, merchant, operator},
    support::{Call, Key},
};

/// What a revocation may take in addition to a lease.
const BEYOND: Duration = Duration::from_millis(500);

impl Server {
    /// The code of a verification, or the status of another response.
    async fn code_of(&self, service: &str, key: &str) -> String {
        let need = json!({"key": key, "method": "GET", "path": "/tokens", "merchant": "m_1"});
        let reply = self.post("/verify", need).bearer(service).await;
        match reply.status {
            200 => reply.json()["code"].as_str().expect("a code").to_owned(),
            status => status.to_string(),
        }
    }
}

/// The tokens of the tests.
struct Tokens {
    merchant: String,
    operator: String,
    service: String,
}

impl Tokens {
    fn now() -> Self {
        Self {
            merchant: merchant("acme"),
            operator: operator(),
            service: crate::binary::service(),
        }
    }
}

async fn succeed(call: Call, status: u16) -> Value {
    let reply = call.await;
    assert_eq!(reply.status, status, "{reply}");
    if reply.body.is_empty() {
        Value::Null
    } else {
        reply.json()
    }
}

async fn application(at: &Server, tokens: &Tokens, name: &str) -> String {
    let created = succeed(
        at.post("/applications", json!({"name": name}))
            .bearer(&tokens.merchant),
        201,
    )
    .await;
    created["id"].as_str().expect("an ID").to_owned()
}

async fn key(at: &Server, tokens: &Tokens, application: &str) -> Key {
    let path = format!("/applications/{application}/api-keys");
    let created = succeed(
        at.post(&path, json!({"description": "Checkout"}))
            .bearer(&tokens.merchant),
        201,
    )
    .await;
    let text = |member: &str| created[member].as_str().expect("a string").to_owned();
    Key {
        id: text("id"),
        text: text("fullKey"),
    }
}

/// Changes on `one`, each of which must hold on `other` after its response. `changes.rs` tests all
/// changes; here the replicas are separate processes, and service keys change, too.
async fn assert_changes_hold(one: &Server, other: &Server, tokens: &Tokens, name: &str) {
    let Tokens {
        merchant,
        operator,
        service,
    } = tokens;
    let app = application(one, tokens, name).await;
    let path = format!("/applications/{app}");
    let (first, second, third) = (
        key(one, tokens, &app).await,
        key(one, tokens, &app).await,
        key(one, tokens, &app).await,
    );
    let assert_code = async |key: &Key, expected: &str, when: &str| {
        for repeat in 0..2 {
            assert_eq!(
                other.code_of(service, &key.text).await,
                expected,
                "{when}, other replica, repeat {repeat}"
            );
            assert_eq!(
                one.code_of(service, &key.text).await,
                expected,
                "{when}, same replica"
            );
        }
    };
    for key in [&first, &second, &third] {
        assert_code(key, "valid", "made").await;
    }

    succeed(
        one.call("DELETE", &format!("{path}/api-keys/{}", first.id))
            .bearer(merchant),
        204,
    )
    .await;
    assert_code(&first, "revoked", "revoked").await;
    assert_code(&second, "valid", "after another revocation").await;

    succeed(one.call("DELETE", "/whoami").bearer(&second.text), 204).await;
    assert_code(&second, "revoked", "after revoking itself").await;
    assert_eq!(
        other
            .call("GET", "/whoami")
            .bearer(&second.text)
            .await
            .status,
        401
    );
    assert_eq!(
        other
            .call("GET", "/authz/forward-auth")
            .bearer(&second.text)
            .await
            .status,
        401
    );

    for round in 0..2 {
        let enabled = |is: bool| {
            one.call("PATCH", &format!("{path}/status"))
                .json(json!({"isEnabled": is}))
                .bearer(merchant)
        };
        succeed(enabled(false), 200).await;
        assert_code(&third, "application_disabled", "disabled").await;
        assert_eq!(
            other
                .call("GET", "/authz/forward-auth")
                .bearer(&third.text)
                .await
                .status,
            403,
            "{round}"
        );
        succeed(enabled(true), 200).await;
        assert_code(&third, "valid", "enabled").await;
    }

    succeed(one.call("DELETE", &path).bearer(merchant), 204).await;
    assert_code(&third, "revoked", "after its application was deleted").await;

    let gateway = succeed(
        one.post("/service-keys", json!({"name": "gateway"}))
            .bearer(operator),
        201,
    )
    .await;
    let (id, text) = (
        gateway["id"].as_str().expect("an ID"),
        gateway["key"].as_str().expect("a string"),
    );
    assert_eq!(other.code_of(text, &third.text).await, "revoked");
    assert_eq!(other.code_of(text, &third.text).await, "revoked");
    succeed(
        one.call("DELETE", &format!("/service-keys/{id}"))
            .bearer(operator),
        204,
    )
    .await;
    assert_eq!(
        other.code_of(text, &third.text).await,
        "401",
        "the service key was revoked"
    );
    assert_eq!(
        one.code_of(text, &third.text).await,
        "401",
        "the service key was revoked"
    );
}

/// Makes leases short, as two processes on one SQLite file cannot notify each other, so each change
/// waits for a lease.
pub fn with_short_leases(database: &Database) {
    let _migrated = database.store();
    database.sql("UPDATE settings SET value = '300' WHERE name = 'lease_ms'");
}

#[actix_web::test]
async fn change_applies_in_another_process_after_its_response() {
    for database in backends() {
        let tollkey = Tollkey::on(&database);
        let (one, other) = tokio::join!(tollkey.serve(), tollkey.serve());
        let tokens = Tokens::now();
        assert_changes_hold(&one, &other, &tokens, "Web Store").await;
        assert_changes_hold(&other, &one, &tokens, "Web Store 2").await;
        one.stop().await;
        other.stop().await;
    }
}

/// Verifies a key without pause until `over`. Returns the start times of the requests that found it valid.
async fn verify_until(at: &Server, service: &str, key: &str, over: &AtomicBool) -> Vec<Instant> {
    let mut valid = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let start = Instant::now();
        if at.code_of(service, key).await == "valid" {
            valid.push(start);
        }
    }
    valid
}

#[actix_web::test]
async fn no_request_is_accepted_after_a_revocation_under_load() {
    for database in backends() {
        with_short_leases(&database);
        let tollkey = Tollkey::on(&database);
        let replicas = join_all((0..3).map(|_| tollkey.serve())).await;
        let tokens = Tokens::now();
        let app = application(&replicas[0], &tokens, "Web Store").await;
        for round in 0..5 {
            let key = key(&replicas[0], &tokens, &app).await;
            let over = AtomicBool::new(false);
            let verifications = join_all(
                replicas
                    .iter()
                    .map(|replica| verify_until(replica, &tokens.service, &key.text, &over)),
            );
            let revoking = async {
                sleep(Duration::from_millis(150)).await;
                let path = format!("/applications/{app}/api-keys/{}", key.id);
                succeed(
                    replicas[round % 3]
                        .call("DELETE", &path)
                        .bearer(&tokens.merchant),
                    204,
                )
                .await;
                let revoked = Instant::now();
                sleep(Duration::from_millis(100)).await;
                over.store(true, Ordering::Relaxed);
                revoked
            };
            let (valid, revoked) = tokio::join!(verifications, revoking);
            for (replica, valid) in valid.iter().enumerate() {
                assert!(
                    !valid.is_empty(),
                    "replica {replica} had no valid result before"
                );
                let late = valid.iter().filter(|start| **start > revoked).count();
                assert_eq!(
                    late, 0,
                    "round {round}: replica {replica} accepted requests after the revocation"
                );
            }
        }
        for replica in replicas {
            replica.stop().await;
        }
    }
}

/// Waits until this number of verifiers hold leases.
async fn holders(database: &Database, count: usize) {
    let (store, no_replica) = (database.store(), VerifierId::from_bytes([0; 16]));
    let leased = async {
        while store
            .lagging_verifiers(Seq(i64::MAX), no_replica)
            .await
            .expect("the leases")
            .len()
            != count
        {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), leased)
        .await
        .expect("that number of leases");
}

/// Revokes a key. Returns how long the response took.
async fn revoke(at: &Server, tokens: &Tokens, app: &str, key: &Key) -> Duration {
    let path = format!("/applications/{app}/api-keys/{}", key.id);
    let start = Instant::now();
    succeed(at.call("DELETE", &path).bearer(&tokens.merchant), 204).await;
    start.elapsed()
}

#[actix_web::test]
async fn crashed_replica_delays_one_revocation_by_a_lease() {
    for database in backends() {
        let tollkey = Tollkey::on(&database);
        let (one, other) = (tollkey.serve().await, tollkey.serve().await);
        let tokens = Tokens::now();
        let app = application(&one, &tokens, "Web Store").await;
        let (first, second) = (
            key(&one, &tokens, &app).await,
            key(&one, &tokens, &app).await,
        );
        holders(&database, 2).await;
        assert_eq!(other.code_of(&tokens.service, &first.text).await, "valid");
        other.kill().await;
        let took = revoke(&one, &tokens, &app, &first).await;
        assert!(took <= LEASE + BEYOND, "it took {took:?}");
        assert_eq!(one.code_of(&tokens.service, &first.text).await, "revoked");
        holders(&database, 1).await;
        let took = revoke(&one, &tokens, &app, &second).await;
        assert!(
            took < LEASE,
            "the crashed replica is removed, yet it took {took:?}"
        );
        one.stop().await;
    }
}

#[actix_web::test]
async fn paused_replica_rejects_a_key_revoked_during_the_pause() {
    for database in backends() {
        let tollkey = Tollkey::on(&database);
        let (one, paused) = (tollkey.serve().await, tollkey.serve().await);
        let tokens = Tokens::now();
        let app = application(&one, &tokens, "Web Store").await;
        let key = key(&one, &tokens, &app).await;
        holders(&database, 2).await;
        assert_eq!(paused.code_of(&tokens.service, &key.text).await, "valid");
        assert_eq!(paused.code_of(&tokens.service, &key.text).await, "valid");
        paused.signal("STOP").await;
        let took = revoke(&one, &tokens, &app, &key).await;
        assert!(took <= LEASE + BEYOND, "it took {took:?}");
        // Requests during the pause, which the replica processes first after it continues.
        let requests = join_all((0..4).map(|_| paused.code_of(&tokens.service, &key.text)));
        let (codes, ()) = tokio::join!(requests, async {
            sleep(Duration::from_millis(50)).await;
            paused.signal("CONT").await;
        });
        assert_eq!(codes, ["revoked"; 4]);
        // The replica finds its lease removed, and takes a new one.
        holders(&database, 2).await;
        one.stop().await;
        paused.stop().await;
    }
}
