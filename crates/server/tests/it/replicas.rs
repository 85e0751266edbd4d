//! Replicas: what one answers holds on every other one for each request that starts afterwards.

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

/// What a change may take beyond a lease.
const BEYOND: Duration = Duration::from_millis(500);

impl Server {
    /// What it says of a key, from memory if it remembers it.
    async fn says(&self, service: &str, key: &str) -> String {
        let need = json!({"key": key, "method": "GET", "path": "/tokens", "merchant": "m_1"});
        let reply = self.post("/verify", need).bearer(service).await;
        match reply.status {
            200 => reply.json()["code"].as_str().expect("a code").to_owned(),
            status => status.to_string(),
        }
    }
}

/// Who may do what in the stories below.
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

async fn done(call: Call, status: u16) -> Value {
    let reply = call.await;
    assert_eq!(reply.status, status, "{reply}");
    if reply.body.is_empty() {
        Value::Null
    } else {
        reply.json()
    }
}

async fn application(at: &Server, tokens: &Tokens, name: &str) -> String {
    let made = done(
        at.post("/applications", json!({"name": name}))
            .bearer(&tokens.merchant),
        201,
    )
    .await;
    made["id"].as_str().expect("an id").to_owned()
}

async fn key(at: &Server, tokens: &Tokens, application: &str) -> Key {
    let path = format!("/applications/{application}/api-keys");
    let made = done(
        at.post(&path, json!({"description": "Checkout"}))
            .bearer(&tokens.merchant),
        201,
    )
    .await;
    let text = |member: &str| made[member].as_str().expect("a text").to_owned();
    Key {
        id: text("id"),
        text: text("fullKey"),
    }
}

/// A story of changes: made at `one`, each holds at the other the moment it is answered. `changes.rs` has every change
/// there is; here the replicas are processes, and service keys are among what changes.
async fn changes_hold(one: &Server, other: &Server, tokens: &Tokens, name: &str) {
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
    let says = async |key: &Key, expected: &str, when: &str| {
        for asked in 0..2 {
            assert_eq!(
                other.says(service, &key.text).await,
                expected,
                "{when}, asked {asked} times before"
            );
            assert_eq!(
                one.says(service, &key.text).await,
                expected,
                "{when}, where it was done"
            );
        }
    };
    for key in [&first, &second, &third] {
        says(key, "valid", "made").await;
    }

    done(
        one.call("DELETE", &format!("{path}/api-keys/{}", first.id))
            .bearer(merchant),
        204,
    )
    .await;
    says(&first, "revoked", "revoked").await;
    says(&second, "valid", "another key was revoked").await;

    done(one.call("DELETE", "/whoami").bearer(&second.text), 204).await;
    says(&second, "revoked", "revoked by itself").await;
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
        done(enabled(false), 200).await;
        says(&third, "application_disabled", "disabled").await;
        assert_eq!(
            other
                .call("GET", "/authz/forward-auth")
                .bearer(&third.text)
                .await
                .status,
            403,
            "{round}"
        );
        done(enabled(true), 200).await;
        says(&third, "valid", "enabled").await;
    }

    done(one.call("DELETE", &path).bearer(merchant), 204).await;
    says(&third, "revoked", "its application was deleted").await;

    let gateway = done(
        one.post("/service-keys", json!({"name": "gateway"}))
            .bearer(operator),
        201,
    )
    .await;
    let (id, text) = (
        gateway["id"].as_str().expect("an id"),
        gateway["key"].as_str().expect("a text"),
    );
    assert_eq!(other.says(text, &third.text).await, "revoked");
    assert_eq!(other.says(text, &third.text).await, "revoked");
    done(
        one.call("DELETE", &format!("/service-keys/{id}"))
            .bearer(operator),
        204,
    )
    .await;
    assert_eq!(
        other.says(text, &third.text).await,
        "401",
        "the service key was revoked"
    );
    assert_eq!(
        one.says(text, &third.text).await,
        "401",
        "the service key was revoked"
    );
}

/// Makes leases short, so that two processes on one SQLite file, which cannot wake each other, are quick. The clock
/// of the servers in this process stands still: no lease of theirs ends by itself, so nothing but forgetting helps.
pub fn with_short_leases(database: &Database) {
    let _migrated = database.store();
    database.sql("UPDATE settings SET value = '300' WHERE name = 'lease_ms'");
}

#[actix_web::test]
async fn a_change_holds_in_the_other_process_once_answered() {
    for database in backends() {
        let tollkey = Tollkey::on(&database);
        let (one, other) = tokio::join!(tollkey.serve(), tollkey.serve());
        let tokens = Tokens::now();
        changes_hold(&one, &other, &tokens, "Web Store").await;
        changes_hold(&other, &one, &tokens, "Web Store 2").await;
        one.stop().await;
        other.stop().await;
    }
}

/// Asks about a key without pause; gives when each `valid` was asked for.
async fn hammer(at: &Server, service: &str, key: &str, over: &AtomicBool) -> Vec<Instant> {
    let mut valid = Vec::new();
    while !over.load(Ordering::Relaxed) {
        let asked = Instant::now();
        if at.says(service, key).await == "valid" {
            valid.push(asked);
        }
    }
    valid
}

#[actix_web::test]
async fn under_load_no_request_that_starts_after_a_revocation_is_let_through() {
    for database in backends() {
        with_short_leases(&database);
        let tollkey = Tollkey::on(&database);
        let replicas = join_all((0..3).map(|_| tollkey.serve())).await;
        let tokens = Tokens::now();
        let app = application(&replicas[0], &tokens, "Web Store").await;
        for round in 0..5 {
            let key = key(&replicas[0], &tokens, &app).await;
            let over = AtomicBool::new(false);
            let hammers = join_all(
                replicas
                    .iter()
                    .map(|replica| hammer(replica, &tokens.service, &key.text, &over)),
            );
            let revoking = async {
                sleep(Duration::from_millis(150)).await;
                let path = format!("/applications/{app}/api-keys/{}", key.id);
                done(
                    replicas[round % 3]
                        .call("DELETE", &path)
                        .bearer(&tokens.merchant),
                    204,
                )
                .await;
                let answered = Instant::now();
                sleep(Duration::from_millis(100)).await;
                over.store(true, Ordering::Relaxed);
                answered
            };
            let (valid, answered) = tokio::join!(hammers, revoking);
            for (replica, valid) in valid.iter().enumerate() {
                assert!(!valid.is_empty(), "replica {replica} let it through before");
                let late = valid.iter().filter(|asked| **asked > answered).count();
                assert_eq!(
                    late, 0,
                    "round {round}: replica {replica} said yes to requests that started afterwards"
                );
            }
        }
        for replica in replicas {
            replica.stop().await;
        }
    }
}

/// Waits until so many verifiers hold leases.
async fn holders(database: &Database, count: usize) {
    let (store, nobody) = (database.store(), VerifierId::from_bytes([0; 16]));
    let there = async {
        while store
            .behind(Seq(i64::MAX), nobody)
            .await
            .expect("an answer")
            .len()
            != count
        {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(30), there)
        .await
        .expect("their leases");
}

/// Revokes a key; gives how long that took.
async fn revoke(at: &Server, tokens: &Tokens, app: &str, key: &Key) -> Duration {
    let path = format!("/applications/{app}/api-keys/{}", key.id);
    let begun = Instant::now();
    done(at.call("DELETE", &path).bearer(&tokens.merchant), 204).await;
    begun.elapsed()
}

#[actix_web::test]
async fn a_killed_replica_costs_one_lease_once() {
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
        assert_eq!(other.says(&tokens.service, &first.text).await, "valid");
        other.kill().await;
        let took = revoke(&one, &tokens, &app, &first).await;
        assert!(took <= LEASE + BEYOND, "it took {took:?}");
        assert_eq!(one.says(&tokens.service, &first.text).await, "revoked");
        holders(&database, 1).await;
        let took = revoke(&one, &tokens, &app, &second).await;
        assert!(
            took < LEASE,
            "nobody waits for it any more, yet it took {took:?}"
        );
        one.stop().await;
    }
}

#[actix_web::test]
async fn a_frozen_replica_refuses_when_it_wakes() {
    for database in backends() {
        let tollkey = Tollkey::on(&database);
        let (one, frozen) = (tollkey.serve().await, tollkey.serve().await);
        let tokens = Tokens::now();
        let app = application(&one, &tokens, "Web Store").await;
        let key = key(&one, &tokens, &app).await;
        holders(&database, 2).await;
        assert_eq!(frozen.says(&tokens.service, &key.text).await, "valid");
        assert_eq!(frozen.says(&tokens.service, &key.text).await, "valid");
        frozen.signal("STOP").await;
        let took = revoke(&one, &tokens, &app, &key).await;
        assert!(took <= LEASE + BEYOND, "it took {took:?}");
        // Asked while it is frozen: the first thing it sees when it wakes.
        let asked = join_all((0..4).map(|_| frozen.says(&tokens.service, &key.text)));
        let (answers, ()) = tokio::join!(asked, async {
            sleep(Duration::from_millis(50)).await;
            frozen.signal("CONT").await;
        });
        assert_eq!(answers, ["revoked"; 4]);
        // It finds its row gone, and takes part again.
        holders(&database, 2).await;
        one.stop().await;
        frozen.stop().await;
    }
}
