//! Fills a database of this release on each backend and writes it to `fixtures/`. This is done once per release: see
//! `fixtures/README.md`.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    fs,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use rand::{Rng as _, SeedableRng as _, TryCryptoRng, TryRng, rngs::StdRng};
use serde_json::{Value, json};
use tollkey_core::{
    AccountId, AuditId, Clock as _, Family, KeyId,
    audit::{Action, Actor, ActorKind, Draft, Target},
    lineage::PARENT_REVOKED,
};
use tollkey_service::Random;
use tollkey_store::Owner;
use tollkey_store::testing::{Postgres, backends};
use tollkey_verifier::testing::{ManualClock, START};

use super::{
    Fixture, FixtureAccount, FixtureKey, FixtureRecord, FixtureServiceKey, FixtureSession,
    directory, row, rows, verify,
};
use crate::support::{App, Call, Reply, SECRET, TOKEN_SIGN_IN};

/// When the expected responses are recorded, in seconds after [`START`]. Short-lived keys have expired by then, sessions
/// have not.
const OPENED_AFTER: i64 = 1800;
const ACCOUNT_KEYS: &str = "/v1/account/api-keys";
const COMMERCE_KEYS: &str = "/api-keys";
const SERVICE_KEYS: &str = "/service-keys";
const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// A random number generator that repeats one letter in a key and one byte in a session secret. So the
/// fixture contains only the letter and the byte. IDs are random.
struct ExampleRandom {
    next: Next,
    ids: StdRng,
}

/// The letter of the next key and the byte of the next session.
#[derive(Clone, Default)]
struct Next {
    letter: Arc<AtomicU8>,
    /// 0 means random bytes.
    byte: Arc<AtomicU8>,
}

impl Next {
    fn set_letter(&self, letter: char) {
        self.letter
            .store(u8::try_from(letter).expect("a letter"), Ordering::Relaxed);
    }
}

impl TryRng for ExampleRandom {
    type Error = Infallible;

    /// Returns a number whose upper six bits select the letter.
    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        let letter = self.next.letter.load(Ordering::Relaxed);
        let index = ALPHABET
            .iter()
            .position(|it| *it == letter)
            .expect("a letter was set");
        Ok(u32::try_from(index).expect("a small number") << 26)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(self.ids.next_u64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        match self.next.byte.load(Ordering::Relaxed) {
            0 => self.ids.fill_bytes(bytes),
            byte => bytes.fill(byte),
        }
        Ok(())
    }
}

impl TryCryptoRng for ExampleRandom {}

/// A key to be created.
struct KeySpec<'a> {
    name: &'a str,
    /// Family and mode: `ck_live`.
    kind: &'a str,
    body: Value,
    /// The body of its verification, without the key.
    verify: Value,
}

fn spec<'a>(name: &'a str, kind: &'a str) -> KeySpec<'a> {
    KeySpec {
        name,
        kind,
        body: json!({}),
        verify: json!({}),
    }
}

impl KeySpec<'_> {
    fn with(mut self, body: Value) -> Self {
        self.body = body;
        self
    }

    fn verified_with(mut self, verify: Value) -> Self {
        self.verify = verify;
        self
    }

    fn mode(&self) -> &str {
        self.kind.split_once('_').expect("a family and a mode").1
    }
}

struct Filler<'a> {
    app: &'a App,
    next: Next,
    keys: Vec<FixtureKey>,
    /// The number of keys of each kind.
    counts: BTreeMap<String, usize>,
}

impl Filler<'_> {
    /// Advances the clock by one second and sends a request, which must succeed.
    async fn call(&self, call: Call, bearer: &str) -> Reply {
        self.app.clock.advance(Duration::from_secs(1));
        let reply = call.bearer(bearer).await;
        assert!((200..300).contains(&reply.status), "{reply}");
        reply
    }

    async fn post(&self, path: &str, body: Value, bearer: &str) -> Reply {
        self.call(self.app.post(path, body), bearer).await
    }

    /// Returns the letter of the next key of a kind.
    fn next_letter(&mut self, kind: &str) -> char {
        let count = self.counts.entry(kind.to_owned()).or_default();
        // Lower-case letters first, as they look like examples.
        let letter = char::from(ALPHABET[(26 + *count) % ALPHABET.len()]);
        *count += 1;
        self.next.set_letter(letter);
        letter
    }

    /// Records a created key and asserts that the response has the expected full key.
    fn record(
        &mut self,
        account: &str,
        spec: &KeySpec<'_>,
        letter: char,
        list: &str,
        created: &Value,
    ) -> String {
        let text = ["fullKey", "api_key", "value"]
            .into_iter()
            .find_map(|field| created[field].as_str());
        let id = ["key_id", "id"]
            .into_iter()
            .find_map(|field| created[field].as_str())
            .expect("an ID")
            .to_owned();
        let key = FixtureKey {
            name: spec.name.to_owned(),
            account: account.to_owned(),
            kind: spec.kind.to_owned(),
            letter,
            id: id.clone(),
            parent: None,
            verify: spec.verify.clone(),
            code: String::new(),
            code_by_ancestors: None,
            verified: None,
            listed: Some((list.to_owned(), Value::Null)),
        };
        assert_eq!(text, Some(key.text().as_str()), "{}", spec.name);
        self.keys.push(key);
        id
    }

    async fn application(&self, account: &str, name: &str) -> String {
        let body = json!({"name": name, "description": format!("{name} of {account}")});
        let reply = self
            .post("/applications", body, &self.app.management_token(account))
            .await;
        reply.json()["id"].as_str().expect("an ID").to_owned()
    }

    async fn application_key(
        &mut self,
        account: &str,
        application: &str,
        spec: KeySpec<'_>,
    ) -> String {
        let letter = self.next_letter(spec.kind);
        let path = format!("/applications/{application}/api-keys");
        let mut body = spec.body.clone();
        (body["description"], body["mode"]) = (json!(spec.name), json!(spec.mode()));
        let reply = self
            .post(&path, body, &self.app.management_token(account))
            .await;
        self.record(
            account,
            &spec,
            letter,
            &format!("{path}?limit=100"),
            &reply.json(),
        )
    }

    async fn commerce_key(&mut self, account: &str, spec: KeySpec<'_>) -> String {
        let letter = self.next_letter(spec.kind);
        let mut body = spec.body.clone();
        (body["name"], body["mode"]) = (json!(spec.name), json!(spec.mode()));
        let reply = self
            .post(COMMERCE_KEYS, body, &self.app.management_token(account))
            .await;
        self.record(account, &spec, letter, COMMERCE_KEYS, &reply.json())
    }

    /// Creates an account key with a management token, or with the parent key of this name.
    async fn account_key(
        &mut self,
        account: &str,
        parent: Option<&str>,
        mut spec: KeySpec<'_>,
    ) -> String {
        let letter = self.next_letter(spec.kind);
        let access = if spec.kind.starts_with("sk") {
            "secret"
        } else {
            "publishable"
        };
        if access == "publishable" {
            (spec.verify["method"], spec.verify["path"]) =
                (json!("GET"), json!("/v1/storefront/products"));
        }
        let mut body = spec.body.clone();
        (body["name"], body["environment"], body["access"]) =
            (json!(spec.name), json!(spec.mode()), json!(access));
        let bearer = parent.map_or_else(
            || self.app.management_token(account),
            |name| self.key(name).text(),
        );
        let reply = self.post(ACCOUNT_KEYS, body, &bearer).await;
        let id = self.record(account, &spec, letter, ACCOUNT_KEYS, &reply.json()["data"]);
        self.keys.last_mut().expect("the key was recorded").parent = parent.map(str::to_owned);
        id
    }

    fn key(&self, name: &str) -> &FixtureKey {
        self.keys
            .iter()
            .find(|key| key.name == name)
            .unwrap_or_else(|| panic!("no key {name}"))
    }

    async fn act_on_commerce_key(&self, account: &str, id: &str, action: &str, body: Value) {
        self.post(
            &format!("{COMMERCE_KEYS}/{id}/{action}"),
            body,
            &self.app.management_token(account),
        )
        .await;
    }

    async fn rotate(&mut self, account: &str, id: &str, spec: KeySpec<'_>) {
        let letter = self.next_letter(spec.kind);
        let path = format!("{COMMERCE_KEYS}/{id}/rotate");
        let reply = self
            .post(
                &path,
                spec.body.clone(),
                &self.app.management_token(account),
            )
            .await;
        self.record(account, &spec, letter, COMMERCE_KEYS, &reply.json());
    }

    async fn applications(&mut self) {
        let (token, soon) = (self.app.management_token("acme"), self.app.in_seconds(600));
        let shop = self.application("acme", "Web Store").await;
        self.application_key("acme", &shop, spec("Application live", "ks_live"))
            .await;
        self.application_key("acme", &shop, spec("Application test", "ks_test"))
            .await;
        let restricted = spec("Application restricted", "ks_live").with(json!({
            "scopes": ["links:read", "sessions:write"], "expiresAt": "2100-01-01T00:00:00Z",
            "allowedIps": ["203.0.113.0/24", "2001:db8::/32"], "rateLimit": {"limit": 1000, "windowSeconds": 60},
            "metadata": {"owner": "checkout", "n": 1.5}
        }));
        let presented = json!({"client_ip": "203.0.113.7", "scopes": ["links:read"]});
        self.application_key("acme", &shop, restricted.verified_with(presented))
            .await;
        let expiring = spec("Application expired", "ks_test").with(json!({"expiresAt": soon}));
        self.application_key("acme", &shop, expiring).await;
        let revoked = self
            .application_key("acme", &shop, spec("Application revoked", "ks_live"))
            .await;
        self.call(
            self.app
                .delete(&format!("/applications/{shop}/api-keys/{revoked}")),
            &token,
        )
        .await;

        let disabled = self.application("acme", "Disabled Store").await;
        self.application_key("acme", &disabled, spec("Application disabled", "ks_live"))
            .await;
        let status = self.app.patch(
            &format!("/applications/{disabled}/status"),
            json!({"isEnabled": false}),
        );
        self.call(status, &token).await;

        let deleted = self.application("acme", "Deleted Store").await;
        self.application_key("acme", &deleted, spec("Application deleted", "ks_live"))
            .await;
        self.call(self.app.delete(&format!("/applications/{deleted}")), &token)
            .await;
        self.keys.last_mut().expect("the key was recorded").listed = None;
        self.call(
            self.app.patch(
                &format!("/applications/{shop}"),
                json!({"description": "Renewed"}),
            ),
            &token,
        )
        .await;

        let other = self.application("globex", "Web Store").await;
        self.application_key(
            "globex",
            &other,
            spec("Application of another account", "ks_live"),
        )
        .await;
    }

    async fn commerce(&mut self) {
        let (token, soon) = (self.app.management_token("acme"), self.app.in_seconds(600));
        self.commerce_key("acme", spec("Commerce live", "ck_live"))
            .await;
        self.commerce_key("acme", spec("Commerce test", "ck_test"))
            .await;
        let scopes = spec("Commerce scopes", "ck_live")
            .with(json!({"scopes": ["links:read", "customers:write"]}));
        self.commerce_key(
            "acme",
            scopes.verified_with(json!({"scopes": ["customers:write"]})),
        )
        .await;
        let scopes =
            spec("Commerce insufficient scope", "ck_live").with(json!({"scopes": ["links:write"]}));
        self.commerce_key(
            "acme",
            scopes.verified_with(json!({"scopes": ["links:read"]})),
        )
        .await;
        let network = || json!({"allowed_ips": ["203.0.113.0/24"]});
        let inside = spec("Commerce inside its networks", "ck_test").with(network());
        self.commerce_key(
            "acme",
            inside.verified_with(json!({"client_ip": "203.0.113.255"})),
        )
        .await;
        let outside = spec("Commerce outside its networks", "ck_test").with(network());
        self.commerce_key(
            "acme",
            outside.verified_with(json!({"client_ip": "203.0.114.0"})),
        )
        .await;
        let limited = json!({"rate_limit": {"limit": 5000, "window_seconds": 3600}, "metadata": {"team": "payments"}});
        self.commerce_key("acme", spec("Commerce rate limit", "ck_live").with(limited))
            .await;
        let far = json!({"expires_at": 4_102_444_800_i64});
        self.commerce_key("acme", spec("Commerce far expiration", "ck_live").with(far))
            .await;
        self.commerce_key(
            "acme",
            spec("Commerce expired", "ck_test").with(json!({"expires_at": soon})),
        )
        .await;
        let id = self
            .commerce_key("acme", spec("Commerce suspended", "ck_live"))
            .await;
        self.act_on_commerce_key("acme", &id, "suspend", json!({}))
            .await;
        let id = self
            .commerce_key("acme", spec("Commerce resumed", "ck_live"))
            .await;
        self.act_on_commerce_key("acme", &id, "suspend", json!({}))
            .await;
        self.act_on_commerce_key("acme", &id, "resume", json!({}))
            .await;
        let id = self
            .commerce_key("acme", spec("Commerce revoked", "ck_live"))
            .await;
        self.act_on_commerce_key("acme", &id, "revoke", json!({"reason": "leaked"}))
            .await;
        let id = self
            .commerce_key("acme", spec("Commerce revoked and suspended", "ck_test"))
            .await;
        self.act_on_commerce_key("acme", &id, "suspend", json!({}))
            .await;
        self.act_on_commerce_key("acme", &id, "revoke", json!({}))
            .await;
        let changed = self
            .commerce_key("acme", spec("Commerce updated", "ck_live"))
            .await;
        let change = json!({"scopes": ["events:read"], "metadata": {"changed": true}});
        self.call(
            self.app
                .patch(&format!("{COMMERCE_KEYS}/{changed}"), change),
            &token,
        )
        .await;
        // A successor has the name of its predecessor. The name of its spec is only for the fixture.
        let id = self
            .commerce_key("acme", spec("Commerce rotated with overlap", "ck_live"))
            .await;
        let successor = spec("Commerce successor within overlap", "ck_live")
            .with(json!({"overlap_seconds": 604_800}));
        self.rotate("acme", &id, successor).await;
        let id = self
            .commerce_key("acme", spec("Commerce rotated without overlap", "ck_test"))
            .await;
        self.rotate(
            "acme",
            &id,
            spec("Commerce successor without overlap", "ck_test"),
        )
        .await;
    }

    async fn scoped_keys(&mut self) {
        self.app.set_model("globex", "ecosystem").await;
        let listed = json!({"method": "GET", "path": "/tokens", "merchant": "merchant_1"});
        let scoped = |merchants: Value, features: Value| json!({"merchants": merchants, "features": features});
        let both = || {
            scoped(
                json!(["merchant_1", "merchant_2"]),
                json!(["tokens.list", "payment_data.forward"]),
            )
        };
        let key = spec("Scoped valid", "ck_live")
            .with(both())
            .verified_with(listed.clone());
        self.commerce_key("globex", key).await;
        let key = spec("Scoped other route", "ck_live").with(both());
        let presented = json!({"method": "GET", "path": "/tokens/tok_1", "merchant": "merchant_1"});
        self.commerce_key("globex", key.verified_with(presented))
            .await;
        let key = spec("Scoped other merchant", "ck_live").with(both());
        let presented = json!({"method": "GET", "path": "/tokens", "merchant": "merchant_3"});
        self.commerce_key("globex", key.verified_with(presented))
            .await;
        let key = spec("Scoped merchants alone", "ck_test")
            .with(scoped(json!(["merchant_1"]), Value::Null));
        self.commerce_key("globex", key.verified_with(listed.clone()))
            .await;
        let key = spec("Scoped features alone", "ck_test")
            .with(scoped(Value::Null, json!(["tokens.list"])));
        self.commerce_key("globex", key.verified_with(listed.clone()))
            .await;

        // Scoped keys stay valid after the operating model of their account changes.
        self.app.set_model("umbrella", "managed_ecosystem").await;
        let key = spec("Scoped by an earlier model", "ck_live");
        let key = key.with(scoped(
            json!(["merchant_1"]),
            json!(["cardholder_data.forward"]),
        ));
        let presented = json!({"method": "POST", "path": "/forward", "merchant": "merchant_1"});
        self.commerce_key("umbrella", key.verified_with(presented))
            .await;
        self.app.set_model("umbrella", "primary_merchant").await;
    }

    async fn trees(&mut self) {
        let soon = self.app.in_seconds(600);
        let mut parent = None;
        for name in [
            "Chain 1", "Chain 2", "Chain 3", "Chain 4", "Chain 5", "Chain 6",
        ] {
            self.account_key("initech", parent, spec(name, "sk_live"))
                .await;
            parent = Some(name);
        }
        self.account_key(
            "initech",
            Some("Chain 6"),
            spec("Chain 6 publishable", "pk_live"),
        )
        .await;
        self.account_key("initech", Some("Chain 2"), spec("Chain 2 test", "sk_test"))
            .await;
        self.account_key(
            "initech",
            Some("Chain 2 test"),
            spec("Chain 2 test publishable", "pk_test"),
        )
        .await;

        let token = self.app.management_token("initech");
        self.account_key("initech", None, spec("Middle revoked, root", "sk_live"))
            .await;
        let root = Some("Middle revoked, root");
        let middle = self
            .account_key("initech", root, spec("Middle revoked, middle", "sk_live"))
            .await;
        self.account_key(
            "initech",
            Some("Middle revoked, middle"),
            spec("Middle revoked, leaf", "sk_live"),
        )
        .await;
        let publishable = spec("Middle revoked, publishable leaf", "pk_live");
        self.account_key("initech", Some("Middle revoked, leaf"), publishable)
            .await;
        self.account_key("initech", root, spec("Middle revoked, sibling", "sk_live"))
            .await;
        self.account_key(
            "initech",
            Some("Middle revoked, sibling"),
            spec("Middle revoked, nephew", "pk_test"),
        )
        .await;
        self.call(self.app.delete(&format!("{ACCOUNT_KEYS}/{middle}")), &token)
            .await;

        let limits = json!({
            "expiresAt": "2100-01-01T00:00:00Z", "allowedIps": ["127.0.0.0/8", "203.0.113.0/24"],
            "rateLimit": {"limit": 1000, "windowSeconds": 60}, "metadata": {"owner": "webhooks"}
        });
        let inside = json!({"client_ip": "203.0.113.7"});
        let key = spec("Restricted, root", "sk_live")
            .with(limits)
            .verified_with(inside.clone());
        self.account_key("initech", None, key).await;
        let key = spec("Restricted, child", "sk_test").verified_with(inside);
        self.account_key("initech", Some("Restricted, root"), key)
            .await;
        let key = spec("Restricted, outside its networks", "pk_live")
            .verified_with(json!({"client_ip": "10.0.0.1"}));
        self.account_key("initech", Some("Restricted, root"), key)
            .await;
        self.account_key(
            "initech",
            None,
            spec("Expired, root", "sk_test").with(json!({"expiresAt": soon})),
        )
        .await;
        self.account_key(
            "initech",
            Some("Expired, root"),
            spec("Expired, child", "sk_test"),
        )
        .await;

        self.account_key(
            "hooli:eu@example.com",
            None,
            spec("Secret of another account", "sk_live"),
        )
        .await;
        let child = spec("Publishable of another account", "pk_live");
        self.account_key(
            "hooli:eu@example.com",
            Some("Secret of another account"),
            child,
        )
        .await;
    }

    /// Trees that release 0.1.0 had only partly revoked when it crashed: it revoked the requested
    /// key in one transaction, and its descendants in further transactions, level by level.
    async fn interrupted_revocations(&mut self) {
        for (tree, levels_revoked) in [("Crashed at once", 1), ("Crashed later", 2)] {
            let name = |part: &str| format!("{tree}, {part}");
            let (root, child, twin) = (name("root"), name("child"), name("second child"));
            let (grandchild, leaf) = (name("grandchild"), name("leaf"));
            let mut levels = vec![vec![
                self.account_key("initech", None, spec(&root, "sk_live"))
                    .await,
            ]];
            let first = self
                .account_key("initech", Some(&root), spec(&child, "sk_live"))
                .await;
            levels.push(vec![
                first,
                self.account_key("initech", Some(&root), spec(&twin, "pk_live"))
                    .await,
            ]);
            self.account_key("initech", Some(&child), spec(&grandchild, "sk_test"))
                .await;
            self.account_key("initech", Some(&grandchild), spec(&leaf, "pk_test"))
                .await;

            levels.truncate(levels_revoked);
            for (depth, ids) in levels.into_iter().enumerate() {
                self.revoke_rows("initech", ids, (depth > 0).then_some(PARENT_REVOKED))
                    .await;
            }
        }
    }

    /// Revokes only the rows of these keys, with their audit entries.
    async fn revoke_rows(&self, account: &str, ids: Vec<String>, reason: Option<&'static str>) {
        self.app.clock.advance(Duration::from_secs(1));
        let (state, now) = (self.app.running().state(), self.app.clock.now());
        let (account, random): (AccountId, Random) = (
            account.parse().expect("an account ID"),
            state.service.random.clone(),
        );
        let revoked = state
            .service
            .change(Owner::from(&account.clone()), move |tx| {
                let mut writer = tx.account(&account);
                for id in &ids {
                    let id: KeyId = id.parse().expect("a key ID");
                    let mut key = writer.lock_key(&Family::ALL, &id)?.expect("the key exists");
                    (key.revoked_at, key.revoked_reason) = (Some(now), reason.map(str::to_owned));
                    writer.save_key(&key)?;
                    writer.append(Draft {
                        id: random.with(|rng| AuditId::new(now, rng)),
                        account_id: account.clone(),
                        occurred_at: now,
                        action: Action::ApiKeyRevoked,
                        actor: Actor {
                            kind: ActorKind::Merchant,
                            id: "user_1".to_owned(),
                        },
                        target: Target::key(key.id, key.mode),
                        request_id: Some("req_interrupted".to_owned()),
                        ip: None,
                        changes: json!({"status": "revoked", "reason": reason}),
                    })?;
                }
                Ok(())
            });
        revoked.await.expect("the rows are revoked");
    }

    async fn service_keys(&mut self) -> Vec<FixtureServiceKey> {
        let mut keys = Vec::new();
        for revoked in [false, true] {
            let letter = self.next_letter("tks");
            let name = if revoked { "former gateway" } else { "gateway" };
            let json = self
                .post(SERVICE_KEYS, json!({"name": name}), &self.app.operator())
                .await
                .json();
            assert_eq!(
                json["key"],
                format!("tks_{}", letter.to_string().repeat(32))
            );
            let id = json["id"].as_str().expect("an ID").to_owned();
            if revoked {
                self.call(
                    self.app.delete(&format!("{SERVICE_KEYS}/{id}")),
                    &self.app.operator(),
                )
                .await;
            }
            keys.push(FixtureServiceKey {
                id,
                letter,
                revoked,
            });
        }
        keys
    }

    async fn idempotency_record(&mut self) -> FixtureRecord {
        let spec = spec("Commerce by a repeatable request", "ck_live");
        let letter = self.next_letter(spec.kind);
        let record = FixtureRecord {
            account: "acme".to_owned(),
            idempotency_key: "an example of an Idempotency-Key".to_owned(),
            body: json!({"name": spec.name}),
            created: spec.name.to_owned(),
        };
        let call = self.app.post(COMMERCE_KEYS, record.body.clone());
        let call = call.header("idempotency-key", &record.idempotency_key);
        let reply = self.call(call, &self.app.management_token("acme")).await;
        self.record("acme", &spec, letter, COMMERCE_KEYS, &reply.json());
        record
    }

    async fn sessions(&self) -> Vec<FixtureSession> {
        let mut sessions = Vec::new();
        for (byte, account) in [(1, Some("acme")), (2, None)] {
            self.app.clock.advance(Duration::from_secs(1));
            let token = account.map_or_else(
                || self.app.operator(),
                |account| self.app.management_token(account),
            );
            let form = serde_urlencoded::to_string([
                ("token", token.as_str()),
                ("next", "/dashboard/keys"),
            ]);
            let sign_in = self
                .app
                .call("POST", "/dashboard/sign-in/token")
                .header("sec-fetch-site", "same-origin");
            self.next.byte.store(byte, Ordering::Relaxed);
            let reply = sign_in.form(&form.expect("a form")).await;
            self.next.byte.store(0, Ordering::Relaxed);
            assert_eq!(reply.status, 303, "{reply}");
            sessions.push(FixtureSession {
                byte,
                account: account.map(str::to_owned),
            });
        }
        sessions
    }

    /// Records the expected response of this release for every key.
    async fn record_expectations(&mut self) {
        let service = self.app.service();
        let request = |key: &FixtureKey| {
            let mut request = key.verify.clone();
            request["key"] = json!(key.text());
            request
        };
        let requests: Vec<Value> = self.keys.iter().map(request).collect();
        let results = verify(|path| self.app.call("POST", path), &service, &requests).await;
        self.app.running().state().service.flush_usage().await;
        let mut revoked: Vec<String> = Vec::new();
        for (key, (code, verified)) in self.keys.iter_mut().zip(results) {
            (key.code, key.verified) = (code, verified);
            // A parent precedes its children in the list.
            if key
                .parent
                .as_ref()
                .is_some_and(|parent| revoked.contains(parent))
            {
                key.code_by_ancestors = Some("revoked".to_owned());
            }
            if key.code == "revoked" || key.code_by_ancestors.is_some() {
                revoked.push(key.name.clone());
            }
            if let Some((list, shown)) = &mut key.listed {
                let reply = self
                    .app
                    .get(list)
                    .bearer(&self.app.management_token(&key.account))
                    .await;
                *shown = row(&reply.json(), &key.id)
                    .unwrap_or_else(|| panic!("{} is listed", key.name))
                    .clone();
            }
        }
    }

    async fn accounts(&self) -> Vec<FixtureAccount> {
        let mut accounts: Vec<&str> = self.keys.iter().map(|key| key.account.as_str()).collect();
        accounts.sort_unstable();
        accounts.dedup();
        let mut recorded = Vec::new();
        for account in accounts {
            let token = self.app.management_token(account);
            let mut lists = Vec::new();
            for list in ["/applications?limit=100", COMMERCE_KEYS, ACCOUNT_KEYS] {
                let reply = self.app.get(list).bearer(&token).await;
                assert_eq!(reply.status, 200, "{reply}");
                lists.push((list.to_owned(), rows(&reply.json()).len()));
            }
            let newest = self
                .app
                .get("/audit-log?limit=1")
                .bearer(&token)
                .await
                .json();
            let audit_head = newest[0]["hash"].as_str().expect("a hash").to_owned();
            recorded.push(FixtureAccount {
                id: account.to_owned(),
                lists,
                audit_head,
            });
        }
        recorded
    }
}

async fn fill(app: &App, next: Next) -> Fixture {
    let mut filler = Filler {
        app,
        next,
        keys: Vec::new(),
        counts: BTreeMap::new(),
    };
    filler.applications().await;
    filler.commerce().await;
    filler.scoped_keys().await;
    filler.trees().await;
    filler.interrupted_revocations().await;
    let service_keys = filler.service_keys().await;
    let idempotency_record = filler.idempotency_record().await;
    let sessions = filler.sessions().await;
    let opened_at = jiff::Timestamp::from_second(START + OPENED_AFTER).expect("a time");
    assert!(
        app.clock.now() < opened_at - jiff::SignedDuration::from_mins(20),
        "the requests advanced the clock too far"
    );
    app.clock.set(opened_at);
    filler.record_expectations().await;
    let accounts = filler.accounts().await;
    Fixture {
        release: env!("CARGO_PKG_VERSION").to_owned(),
        opened_at,
        jwt_secret: SECRET.to_owned(),
        accounts,
        keys: filler.keys,
        service_keys,
        idempotency_record,
        sessions,
    }
}

/// Returns the JSON of a fixture with one line per field and per item of a list, for readable diffs.
fn to_json(fixture: &Fixture) -> String {
    let fields = serde_json::to_value(fixture).expect("JSON");
    let fields = fields
        .as_object()
        .expect("an object")
        .iter()
        .map(|(name, value)| {
            let items = value.as_array().map(|items| {
                items
                    .iter()
                    .map(|item| format!("    {item}"))
                    .collect::<Vec<_>>()
            });
            let value = items.map_or_else(
                || value.to_string(),
                |items| format!("[\n{}\n  ]", items.join(",\n")),
            );
            format!("  \"{name}\": {value}")
        });
    format!("{{\n{}\n}}\n", fields.collect::<Vec<_>>().join(",\n"))
}

#[actix_web::test]
#[ignore = "writes to fixtures/, once per release"]
async fn fill_a_database_of_this_release() {
    let directory = directory("fixtures").join(env!("CARGO_PKG_VERSION"));
    assert!(
        !directory.exists(),
        "{} exists: a fixture is never changed",
        directory.display()
    );
    assert!(
        Postgres::shared().is_some(),
        "a fixture has a database of each backend"
    );
    let mut written: Option<String> = None;
    let mut scripts = Vec::new();
    for database in backends() {
        let next = Next::default();
        let random = Random::new(ExampleRandom {
            next: next.clone(),
            ids: StdRng::seed_from_u64(1),
        });
        let settings = [TOKEN_SIGN_IN, ("TOLLKEY_DATABASE_POOL", "4")];
        let app = App::start_with(database, &settings, ManualClock::default(), random).await;
        let fixture = fill(&app, next).await;
        let json = to_json(&fixture);
        let database = app.stop().await;
        scripts.push((
            format!("{}.sql", database.backend().as_str()),
            database.script(),
        ));
        let before = written.get_or_insert_with(|| json.clone());
        assert_eq!(*before, json, "both backends have the same keys");
    }
    fs::create_dir_all(&directory).expect("the directory is created");
    fs::write(directory.join("keys.json"), written.expect("keys")).expect("keys.json is written");
    for (file, script) in scripts {
        fs::write(directory.join(file), script).expect("the script is written");
    }
}
