//! A stolen key creates keys while it is revoked: one revocation rejects all of them, and no key exceeds the limits of
//! its ancestors. Subscribers of the previous release receive equivalent restrictions.

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
use tollkey_core::{
    AccessRequest, ApiKey, Clock as _, Denial, Digest, IpList, KeyId, RateLimit, Timestamp,
    VerifierId,
};
use tollkey_middleware::source::HttpSource;
use tollkey_store::{Backend, testing::backends};
use tollkey_verifier::{Settings, SystemClock, Verifier};

use crate::{
    binary::{Connection, Server, Tollkey, merchant},
    storlaunch::error_code,
    support::{
        App, Call, Key, Reply, TOKEN_SIGN_IN,
        account_keys::{KEYS, create_key, created_key, key_request},
        each_backend, each_backend_with, eventually, source,
    },
};

/// How often each attacker tries to create a key, and for how long.
const ATTEMPTS: usize = 400;
const ATTACK: Duration = Duration::from_secs(60);
/// How many keys the attackers hold, and every verifier has cached, at the start of the attack.
const HEAD_START: usize = 12;
/// The largest depth that a server can be configured with.
const LARGEST_DEPTH: usize = 8;
const DAY: Duration = Duration::from_secs(86_400);

/// The hyphenated form of a key's ID, which the audit log and the dashboard print.
fn hyphenated(key: &Key) -> String {
    key.id.parse::<KeyId>().expect("a key ID").to_string()
}

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
            let root_id = hyphenated(&tree.root);
            let request = &of_target[root_id.as_str()][0]["request_id"];
            for key in std::iter::once(&tree.root).chain(&tree.descendants) {
                let of_key = of_target
                    .get(hyphenated(key).as_str())
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

/// A root key with a daily limit, its child and grandchild with another one. All limits are unused.
async fn limited_family(app: &App, root: u32, child: u32) -> [Key; 3] {
    let limited = |limit: u32| {
        let mut body = key_request("live", "secret");
        body["rateLimit"] = json!({"limit": limit, "windowSeconds": DAY.as_secs()});
        body
    };
    let root = create_key(app, &app.management_token("acme"), limited(root)).await;
    let child_key = create_key(app, &root.text, limited(child)).await;
    let grandchild = create_key(app, &child_key.text, limited(child)).await;
    // Each creation used the limits of its creator and the creator's ancestors.
    app.clock.advance(2 * DAY);
    [root, child_key, grandchild]
}

#[actix_web::test]
async fn uses_of_a_child_count_against_its_parents_limit() {
    each_backend(async |app: &App| {
        let family = limited_family(app, 2, 2).await;
        for first in 0..family.len() {
            // A denial for another reason uses no limit.
            for key in family.iter().cycle().take(9) {
                assert_eq!(
                    app.verify(&key.text, json!({"mode": "test"})).await["code"],
                    "wrong_mode"
                );
            }
            let mut codes = Vec::new();
            for key in family.iter().cycle().skip(first).take(100) {
                codes.push(app.code(&key.text).await);
            }
            assert_eq!(codes[..2], ["valid", "valid"], "first key: {first}");
            assert!(
                codes[2..].iter().all(|code| code == "rate_limited"),
                "first key: {first}: {codes:?}"
            );
            app.clock.advance(2 * DAY);
        }

        // The same with parallel requests.
        let requests = family
            .iter()
            .cycle()
            .take(100)
            .map(|key| app.get("/whoami").bearer(&key.text).into_future());
        let replies = join_all(requests.collect::<Vec<_>>()).await;
        assert_eq!(
            replies.iter().filter(|reply| reply.status == 200).count(),
            2
        );
        assert!(
            replies
                .iter()
                .all(|reply| matches!(reply.status, 200 | 429))
        );
    })
    .await;
}

#[actix_web::test]
async fn use_denied_by_one_limit_does_not_use_the_others() {
    each_backend(async |app: &App| {
        let [root, child, grandchild] = limited_family(app, 5, 2).await;
        let codes = async |key: &Key, times: usize| {
            let mut codes = Vec::new();
            for _ in 0..times {
                codes.push(app.code(&key.text).await);
            }
            codes
        };
        assert_eq!(codes(&grandchild, 2).await, ["valid", "valid"]);
        // The child has no use remaining, its parent three.
        assert_eq!(codes(&child, 5).await, ["rate_limited"; 5]);
        assert_eq!(codes(&grandchild, 5).await, ["rate_limited"; 5]);
        assert_eq!(
            codes(&root, 4).await,
            ["valid", "valid", "valid", "rate_limited"]
        );
    })
    .await;
}

#[actix_web::test]
async fn reported_rate_limit_has_the_fewest_remaining_uses() {
    each_backend(async |app: &App| {
        let [root, child, grandchild] = limited_family(app, 4, 2).await;
        let reported = async |key: &Key| {
            let verdict = app.verify(&key.text, json!({})).await;
            assert_eq!(verdict["code"], "valid", "{verdict}");
            (
                verdict["rate_limit"]["limit"].clone(),
                verdict["rate_limit"]["remaining"].clone(),
            )
        };
        // Remaining: 3 for the root, 1 for the child.
        assert_eq!(reported(&child).await, (json!(2), json!(1)));
        // Remaining: 2 and 1, but this request is about the root.
        assert_eq!(reported(&root).await, (json!(4), json!(2)));
        assert_eq!(reported(&root).await, (json!(4), json!(1)));
        app.clock.advance(2 * DAY);
        for left in [3, 2, 1] {
            assert_eq!(reported(&root).await, (json!(4), json!(left)));
        }
        // Remaining: 0 for the root, 1 each for child and grandchild.
        assert_eq!(reported(&grandchild).await, (json!(4), json!(0)));
        let reply = app.get("/whoami").bearer(&grandchild.text).await;
        assert_eq!(reply.status, 429, "{reply}");
    })
    .await;
}

/// Signs in to the dashboard.
async fn sign_in(app: &App, account: &str) -> String {
    let token = app.management_token(account);
    let fields =
        serde_urlencoded::to_string([("token", token.as_str()), ("next", "/dashboard/keys")])
            .expect("a form");
    let reply = app
        .call("POST", "/dashboard/sign-in/token")
        .header("sec-fetch-site", "same-origin")
        .form(&fields)
        .await;
    assert_eq!(reply.status, 303, "{}", reply.status);
    reply
        .header("set-cookie")
        .and_then(|cookie| cookie.split(';').next())
        .expect("a cookie")
        .to_owned()
}

#[actix_web::test]
async fn effective_status_is_the_same_in_all_apis() {
    // The root, a chain below it, and children.
    const TREE: usize = 13;
    each_backend_with(
        &[TOKEN_SIGN_IN, ("TOLLKEY_ACCOUNT_KEY_LIMIT", "13")],
        async |app: &App| {
            let token = app.management_token("acme");
            let cookie = sign_in(app, "acme").await;
            let root = create_key(app, &token, key_request("live", "secret")).await;
            let child = create_key(app, &root.text, key_request("live", "secret")).await;
            let mut keys = vec![
                create_key(app, &child.text, key_request("live", "publishable")).await,
                child,
            ];
            while keys.len() < TREE - 1 {
                keys.push(create_key(app, &root.text, key_request("test", "publishable")).await);
            }
            let over = async || {
                let reply = app
                    .post(KEYS, key_request("live", "secret"))
                    .bearer(&token)
                    .await;
                (
                    error_code(app, &reply),
                    reply.json()["error"]["details"]["code"].clone(),
                )
            };
            let limit_reached = ((403, "FORBIDDEN".to_owned()), json!("key_limit_reached"));
            assert_eq!(over().await, limit_reached);

            let revoked = app
                .delete(&format!("{KEYS}/{}", root.id))
                .bearer(&token)
                .await;
            assert_eq!(revoked.status, 200, "{revoked}");
            keys.push(root);

            let list = app
                .get(&format!("{KEYS}?limit=100"))
                .bearer(&token)
                .await
                .json();
            let rows = list["data"].as_array().expect("an array");
            assert_eq!(rows.len(), TREE);
            assert!(
                rows.iter().all(|row| row["revokedAt"].is_string()),
                "{list}"
            );

            let page = async |status: &str| {
                let path = format!("/dashboard/keys?status={status}");
                let reply = app
                    .get(&path)
                    .header("cookie", &cookie)
                    .header("sec-fetch-site", "same-origin")
                    .await;
                assert_eq!(reply.status, 200, "{reply}");
                keys.iter()
                    .filter(|key| {
                        reply
                            .body
                            .contains(&format!("/dashboard/keys/{}", hyphenated(key)))
                    })
                    .count()
            };
            assert_eq!((page("revoked").await, page("active").await), (TREE, 0));

            for _ in 0..TREE {
                create_key(app, &token, key_request("live", "secret")).await;
            }
            assert_eq!(over().await, limit_reached);
        },
    )
    .await;
}

/// The status, the code in the envelope and the problem's code of a rejection.
fn rejection(app: &App, reply: &Reply) -> (u16, String, String) {
    let (status, code) = error_code(app, reply);
    let problem = reply.json()["error"]["details"]["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    (status, code, problem)
}

#[actix_web::test]
async fn key_at_the_depth_limit_cannot_create_keys() {
    for (settings, depth) in [
        (&[][..], 3),
        (&[("TOLLKEY_KEY_DEPTH_LIMIT", "1")][..], 1),
        (&[("TOLLKEY_KEY_DEPTH_LIMIT", "0")][..], 0),
    ] {
        each_backend_with(settings, async |app: &App| {
            let token = app.management_token("acme");
            let mut chain = vec![create_key(app, &token, key_request("live", "secret")).await];
            for _ in 0..depth {
                let creator = chain.last().expect("the root").text.clone();
                chain.push(create_key(app, &creator, key_request("live", "secret")).await);
            }
            let last = chain.last().expect("the root");
            let expected = (
                403,
                "FORBIDDEN".to_owned(),
                "key_depth_limit_reached".to_owned(),
            );
            for access in ["secret", "publishable"] {
                for environment in ["live", "test"] {
                    let reply = app
                        .post(KEYS, key_request(environment, access))
                        .bearer(&last.text)
                        .await;
                    assert_eq!(rejection(app, &reply), expected, "{depth}: {reply}");
                }
            }
            let list = app.get(KEYS).bearer(&token).await.json();
            assert_eq!(
                list["data"].as_array().map(Vec::len),
                Some(depth + 1),
                "no key was created"
            );
            assert_eq!(
                app.code(&last.text).await,
                "valid",
                "the key itself stays valid"
            );
            // A token creates keys at depth 0, regardless of the limit.
            create_key(app, &token, key_request("live", "secret")).await;
        })
        .await;
    }
}

/// Subscribers of the previous release know every field but the last, and authorize by these.
#[actix_web::test]
async fn lookup_merges_the_restrictions_of_ancestors() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let root = create_key(app, &token, key_request("live", "secret")).await;
        let mut body = key_request("live", "secret");
        body["allowedIps"] = json!(["203.0.113.0/24", "198.51.100.0/24"]);
        body["rateLimit"] = json!({"limit": 5, "windowSeconds": 60});
        let child = created_key(&app.post(KEYS, body).bearer(&root.text).await);
        let lookup = async || {
            let body = json!({"digest": Digest::of_key(&child.text).hex().to_string()});
            let reply = app.post("/sync/lookup", body).bearer(&app.service()).await;
            assert_eq!(reply.status, 200, "{reply}");
            reply.json()["key"].clone()
        };
        let fields = ["revoked_at", "suspended_at", "expires_at", "allowed_ips", "rate_limit", "ancestor_rate_limits"];
        let own = json!({"limit": 5, "window_seconds": 60});
        let both = json!(["203.0.113.0/24", "198.51.100.0/24"]);
        let shared = json!([{"key_id": hyphenated(&root), "rate_limit": {"limit": 9, "window_seconds": 60}}]);
        let at = app.clock.now();
        type Row = (fn(&mut ApiKey, Timestamp), [Value; 6]);
        let rows: [Row; 6] = [
            (|_, _| (), [json!(null), json!(null), json!(null), both.clone(), own.clone(), json!(null)]),
            (
                |root, _| root.restrictions.rate_limit = RateLimit::new(9, 60).ok(),
                [json!(null), json!(null), json!(null), both.clone(), own.clone(), shared.clone()],
            ),
            (
                |root, _| root.restrictions.allowed_ips = IpList::parse(["203.0.113.128/25"]).ok(),
                [json!(null), json!(null), json!(null), json!(["203.0.113.128/25"]), own.clone(), shared.clone()],
            ),
            (
                |root, at| root.restrictions.expires_at = Some(at),
                [
                    json!(null),
                    json!(null),
                    json!(at.as_second()),
                    json!(["203.0.113.128/25"]),
                    own.clone(),
                    shared.clone(),
                ],
            ),
            (
                |root, at| root.suspended_at = Some(at),
                [
                    json!(null),
                    json!(at.as_second()),
                    json!(at.as_second()),
                    json!(["203.0.113.128/25"]),
                    own.clone(),
                    shared.clone(),
                ],
            ),
            (
                |root, at| root.revoked_at = Some(at),
                [
                    json!(at.as_second()),
                    json!(at.as_second()),
                    json!(at.as_second()),
                    json!(["203.0.113.128/25"]),
                    own,
                    shared,
                ],
            ),
        ];
        for (edit, expected) in rows {
            app.edit_key("acme", &root.id, move |key| edit(key, at)).await;
            let key = lookup().await;
            assert_eq!(fields.map(|field| key[field].clone()), expected, "{key}");
        }
    })
    .await;
}

#[actix_web::test]
async fn deleting_an_application_skips_expired_keys() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let application = app.application(&token, "Web Store").await;
        let expired = app
            .key(
                &token,
                &application,
                json!({"expiresAt": app.in_seconds(10)}),
            )
            .await;
        app.clock.advance(Duration::from_secs(20));
        let usable = app.key(&token, &application, json!({})).await;
        assert_eq!(
            app.delete(&format!("/applications/{application}"))
                .bearer(&token)
                .await
                .status,
            204
        );
        for _ in 0..2 {
            assert_eq!(
                [app.code(&usable.text).await, app.code(&expired.text).await],
                ["revoked", "expired"]
            );
            app.revocations_recorded().await;
        }
        let log = app
            .get("/audit-log?action=api_key.revoked")
            .bearer(&token)
            .await
            .json();
        let targets: Vec<&Value> = log
            .as_array()
            .expect("an array")
            .iter()
            .map(|entry| &entry["target"]["id"])
            .collect();
        assert_eq!(targets, [&json!(usable.id)]);
    })
    .await;
}

/// Simulates a server of the previous release that was killed after it revoked the root, before its descendants.
#[actix_web::test]
async fn repeat_of_an_interrupted_revocation_rejects_every_descendant() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let root = create_key(app, &token, key_request("live", "secret")).await;
        let child = create_key(app, &root.text, key_request("live", "secret")).await;
        let grandchild = create_key(app, &child.text, key_request("live", "publishable")).await;
        let keys = [&root, &child, &grandchild];
        for key in keys {
            assert_eq!(
                app.code(&key.text).await,
                if key.id == grandchild.id {
                    "route_not_allowed"
                } else {
                    "valid"
                }
            );
        }
        let at = app.clock.now();
        let hex = root
            .id
            .parse::<KeyId>()
            .expect("a key ID")
            .as_bytes()
            .map(|byte| format!("{byte:02x}"))
            .concat();
        let id = match app.running().state().service.store.backend() {
            Backend::Sqlite => format!("x'{hex}'"),
            Backend::Postgres => format!("'\\x{hex}'"),
        };
        app.database.sql(&format!(
            "UPDATE api_keys SET revoked_at = {} WHERE id = {id}",
            at.as_microsecond()
        ));
        assert_eq!(app.code(&child.text).await, "valid", "the child is cached");

        let repeat = app
            .delete(&format!("{KEYS}/{}", root.id))
            .bearer(&token)
            .await;
        assert_eq!(repeat.status, 200, "{repeat}");
        for _ in 0..2 {
            for key in keys {
                assert_eq!(app.code(&key.text).await, "revoked");
            }
            app.revocations_recorded().await;
        }
        let log = app
            .get("/audit-log?action=api_key.revoked")
            .bearer(&token)
            .await
            .json();
        assert_eq!(
            log.as_array().map(Vec::len),
            Some(2),
            "one entry for each descendant: {log}"
        );
    })
    .await;
}
