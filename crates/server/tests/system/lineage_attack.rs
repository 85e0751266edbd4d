//! A stolen key creates keys while it is revoked: one revocation rejects all of them.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::time::timeout;
use tollkey_core::{AccessRequest, Denial, VerifierId};
use tollkey_middleware::source::HttpSource;
use tollkey_store::testing::backends;
use tollkey_verifier::{Settings, SystemClock, Verifier};

use crate::{
    binary::{Connection, Server, Tollkey, merchant},
    support::{
        Call, Key,
        account_keys::{KEYS, created_key, key_request},
        eventually, source,
    },
};

/// How often each attacker tries to create a key, and for how long.
const ATTEMPTS: usize = 400;
const ATTACK: Duration = Duration::from_secs(60);
/// How many keys the attackers hold, and every verifier has cached, at the start of the attack.
const HEAD_START: usize = 12;
/// The largest depth that a server can be configured with.
const LARGEST_DEPTH: usize = 8;

/// Requests a secret key.
fn create(address: SocketAddr, creator: &str) -> Call {
    Call::new(address, "POST", KEYS)
        .json(key_request("live", "secret"))
        .bearer(creator)
}

/// Creates keys with every stolen key, newest first, until the server rejects all of them or `enough` exist.
async fn extend_tree(address: SocketAddr, stolen: &RefCell<Vec<String>>, enough: usize) {
    let start = Instant::now();
    let mut creators = stolen.borrow().clone();
    let mut at = creators.len() - 1;
    for _ in 0..ATTEMPTS {
        let Some(creator) = creators.get(at) else {
            return;
        };
        if start.elapsed() > ATTACK || stolen.borrow().len() >= enough {
            return;
        }
        let reply = create(address, creator).await;
        match reply.status {
            201 => {
                let key = created_key(&reply).text;
                stolen.borrow_mut().push(key.clone());
                creators.push(key);
                at = creators.len() - 1;
                continue;
            }
            401 => drop(creators.remove(at)),
            // The depth limit, the key limit or a busy server. Another key may succeed, and this one later.
            403 | 503 => {}
            _ => panic!("{reply}"),
        }
        at = at
            .checked_sub(1)
            .unwrap_or(creators.len().saturating_sub(1));
    }
}

/// All verifiers of keys: two replicas, and a resource server that subscribes to the second one.
struct Verifiers {
    server: Server,
    replica: Server,
    subscriber: Verifier<HttpSource>,
}

impl Verifiers {
    /// Asserts that each of them returns this code for each of these keys.
    async fn assert_code(&self, keys: &[String], code: &str, when: &str) {
        let texts: Vec<&str> = keys.iter().map(String::as_str).collect();
        for (name, server) in [("server", &self.server), ("replica", &self.replica)] {
            for (at, actual) in server.codes(&texts).await.iter().enumerate() {
                assert_eq!(actual, code, "key {at} of {}, {name}, {when}", keys.len());
            }
        }
        for (at, key) in keys.iter().enumerate() {
            let verdict = timeout(
                Duration::from_secs(20),
                self.subscriber.verify(key, &AccessRequest::default()),
            )
            .await;
            let outcome = verdict
                .expect("a response within 20 s")
                .expect("a decision")
                .outcome;
            let actual = outcome.map_or_else(Denial::code, |()| "valid");
            assert_eq!(
                actual,
                code,
                "key {at} of {}, subscriber, {when}",
                keys.len()
            );
        }
    }
}

/// Revokes a root key while three attackers extend its tree through two replicas.
async fn revoke_during_attack(settings: &[(&str, &str)]) {
    for database in backends() {
        let tollkey = settings
            .iter()
            .fold(Tollkey::on(&database), |tollkey, (name, value)| {
                tollkey.with(name, value)
            });
        tollkey.output_of(&["migrate"]).await;
        // Two processes cannot notify each other through one SQLite file, so leases are short.
        database.sql("UPDATE settings SET value = '300' WHERE name = 'lease_ms'");
        let (server, replica) = (tollkey.serve().await, tollkey.serve().await);
        let gateway = server.service_key().await;
        let upstream = source(&format!("http://{}", replica.address), &gateway.text);
        let id = VerifierId::from_bytes([7; 16]);
        let subscriber =
            Verifier::subscriber(id, upstream, Arc::new(SystemClock), Settings::default());
        let subscription = tokio::spawn(subscriber.clone().subscribe(std::future::pending()));
        eventually("the subscriber has a lease", async || {
            !subscriber.stats().lease_left.is_zero()
        })
        .await;
        let verifiers = Verifiers {
            server,
            replica,
            subscriber,
        };
        let Verifiers {
            server, replica, ..
        } = &verifiers;

        let token = merchant("acme");
        let root = created_key(&create(server.address, &token).await);
        let stolen = RefCell::new(vec![root.text.clone()]);
        extend_tree(server.address, &stolen, HEAD_START).await;
        let cached = stolen.borrow().clone();
        assert_eq!(cached.len(), HEAD_START);
        verifiers
            .assert_code(&cached, "valid", "before the revocation")
            .await;

        let attackers = [server.address, replica.address, server.address];
        let attack = join_all(attackers.map(|address| extend_tree(address, &stolen, usize::MAX)));
        let revocation = async {
            eventually("the attack has begun", async || {
                stolen.borrow().len() > HEAD_START
            })
            .await;
            // Fails if the response takes longer than the timeout of `Call`.
            let revoked = server
                .delete(&format!("{KEYS}/{}", root.id))
                .bearer(&token)
                .await;
            let held = stolen.borrow().clone();
            assert_eq!(revoked.status, 200, "{revoked}");
            verifiers
                .assert_code(&held, "revoked", "after the response to the revocation")
                .await;
        };
        tokio::join!(attack, revocation);
        verifiers
            .assert_code(&stolen.into_inner(), "revoked", "after the attack")
            .await;

        subscription.abort();
        verifiers.replica.stop().await;
        verifiers.server.stop().await;
        assert!(
            tollkey.run(&["audit", "verify"]).await.success(),
            "the audit log is intact"
        );
    }
}

#[actix_web::test]
async fn revocation_rejects_keys_created_during_it() {
    revoke_during_attack(&[]).await;
}

#[actix_web::test]
async fn revocation_rejects_keys_created_on_freed_quota() {
    revoke_during_attack(&[("TOLLKEY_ACCOUNT_KEY_LIMIT", "20")]).await;
}

/// A root key and all its descendants.
struct Tree {
    root: Key,
    descendants: Vec<Key>,
}

impl Tree {
    /// Creates a chain down to the depth limit, and this number of children of the root.
    async fn grow(server: &Server, token: &str, children: usize) -> Self {
        let root = created_key(&create(server.address, token).await);
        let mut descendants: Vec<Key> = Vec::new();
        for _ in 0..LARGEST_DEPTH {
            let creator = descendants.last().map_or(&root.text, |key| &key.text);
            let reply = create(server.address, creator).await;
            if reply.status == 403 {
                break;
            }
            descendants.push(created_key(&reply));
        }
        let requests: Vec<_> = (0..children)
            .map(|_| create(server.address, &root.text))
            .collect();
        let mut requests = requests.into_iter();
        while requests.len() > 0 {
            let replies = join_all(requests.by_ref().take(10).map(IntoFuture::into_future)).await;
            descendants.extend(replies.iter().map(created_key));
        }
        Self { root, descendants }
    }

    /// All keys, root first.
    fn keys(&self) -> Vec<&str> {
        std::iter::once(&self.root)
            .chain(&self.descendants)
            .map(|key| key.text.as_str())
            .collect()
    }
}

/// Revokes a key with itself, and kills the server after the response, or after `patience`. Returns
/// whether there was a response.
async fn revoke_and_kill(server: Server, key: &str, patience: Duration) -> bool {
    let mut connection = Connection::open(server.address)
        .await
        .expect("a connection");
    connection
        .send("DELETE", "/api/v1/whoami", key, "")
        .await
        .expect("the request is sent");
    let response = timeout(patience, connection.answer()).await.ok().flatten();
    server.kill().await;
    if let Some((status, body)) = &response {
        assert_eq!(*status, 204, "{body}");
    }
    response.is_some()
}

/// All entries of the account's audit log about revocations.
async fn revocations(server: &Server, token: &str) -> Vec<Value> {
    let mut entries = Vec::new();
    let mut path = "/api/v1/audit-log?action=api_key.revoked&limit=100".to_owned();
    for _ in 0..50 {
        let page = server.get(&path).bearer(token).await;
        assert_eq!(page.status, 200, "{page}");
        entries.extend(page.json().as_array().expect("an array").iter().cloned());
        let next = page
            .header("link")
            .and_then(|link| link.strip_prefix('<')?.split_once(">; rel=\"next\""));
        match next {
            Some((next, _)) => path = next.to_owned(),
            None => return entries,
        }
    }
    panic!("more than 50 pages");
}

#[actix_web::test]
async fn interrupted_revocation_is_resumed_by_a_replica() {
    for database in backends() {
        let tollkey = Tollkey::on(&database);
        tollkey.output_of(&["migrate"]).await;
        // The next revocation waits until the lease of the killed server expires.
        database.sql("UPDATE settings SET value = '300' WHERE name = 'lease_ms'");
        let token = merchant("acme");
        let mut revoked = 0;
        for (patience, has_replica) in [
            (Duration::from_millis(20), false),
            (Duration::from_secs(30), true),
        ] {
            let server = tollkey.serve().await;
            let tree = Tree::grow(&server, &token, 300).await;
            let replica = if has_replica {
                Some(tollkey.serve().await)
            } else {
                None
            };
            let responded = revoke_and_kill(server, &tree.root.text, patience).await;
            let server = match replica {
                Some(replica) => replica,
                None => tollkey.serve().await,
            };

            let codes = server.codes(&tree.keys()).await;
            let expected = if responded {
                "revoked"
            } else {
                codes[0].as_str()
            };
            assert!(["valid", "revoked"].contains(&expected), "{expected}");
            assert!(
                codes.iter().all(|code| code == expected),
                "responded: {responded}, the root is {expected}: {codes:?}"
            );
            if expected == "valid" {
                // The server was killed before it committed the revocation.
                let reply = server.delete("/whoami").bearer(&tree.root.text).await;
                assert_eq!(reply.status, 204, "{reply}");
                let codes = server.codes(&tree.keys()).await;
                assert!(codes.iter().all(|code| code == "revoked"), "{codes:?}");
            }

            let all = revoked + 1 + tree.descendants.len();
            eventually(
                "the revocation is recorded on every descendant",
                async || revocations(&server, &token).await.len() >= all,
            )
            .await;
            let entries = revocations(&server, &token).await;
            assert_eq!(entries.len(), all, "one entry for each key");
            revoked = all;
            let mut of_target: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
            for entry in &entries {
                of_target
                    .entry(entry["target"]["id"].as_str().expect("an ID"))
                    .or_default()
                    .push(entry);
            }
            let root_id = tree.root.hyphenated_id();
            let request = &of_target[root_id.as_str()][0]["request_id"];
            for key in std::iter::once(&tree.root).chain(&tree.descendants) {
                let of_key = of_target
                    .get(key.hyphenated_id().as_str())
                    .map(Vec::as_slice)
                    .unwrap_or_default();
                let [entry] = of_key else {
                    panic!("{} entries for {}", of_key.len(), key.id)
                };
                assert_eq!(
                    entry["actor"],
                    json!({"type": "api_key", "id": root_id}),
                    "{entry}"
                );
                assert_eq!(
                    &entry["request_id"], request,
                    "the request ID of the revocation: {entry}"
                );
            }
            server.stop().await;
            assert!(
                tollkey.run(&["audit", "verify"]).await.success(),
                "the audit log is intact"
            );
        }
    }
}
