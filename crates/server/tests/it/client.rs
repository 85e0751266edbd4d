//! `tollkey-client` against the real server: every resource, on both backends.

use std::{
    fmt::{Debug, Write as _},
    net::Ipv4Addr,
    time::Duration,
};

use insta::{allow_duplicates, assert_snapshot};
use tollkey_client::{
    Auth, Client, Digest, Error, Family, Feature, Mode, OperatingModel, Scope, Status, VerifierId,
    account::Access, subscription::Usage, verification::VerificationRequest,
};
use tollkey_core::Clock as _;

use crate::support::{App, each_backend};

impl App {
    fn client(&self, credential: &str) -> Client {
        let client = Client::builder().base_url(format!("http://{}", self.running().address()));
        client
            .auth(Auth::bearer(credential))
            .build()
            .expect("a client")
    }
}

/// The values and errors that a client returned, line by line.
#[derive(Default)]
struct Transcript(String);

impl Transcript {
    fn add(&mut self, step: &str, value: impl Debug) {
        writeln!(self.0, "{step}: {value:?}").expect("a line");
    }

    fn add_error(&mut self, step: &str, error: &Error) {
        let id = error.request_id().expect("a request ID");
        writeln!(self.0, "{step}: {}", error.to_string().replace(id, "req")).expect("a line");
    }
}

#[actix_web::test]
async fn client_manages_applications_and_their_keys() {
    each_backend(async |app| {
        let mut transcript = Transcript::default();
        let applications = app.client(&app.management_token("acme")).applications();

        let shop = applications.create("Web Store").description("Backend").await.expect("an application");
        transcript.add("create", &shop);
        let error = applications.create("Web Store").await.expect_err("the name is already used");
        assert!(error.is_conflict());
        transcript.add_error("create again", &error);
        transcript.add("update", applications.update(&shop.id).name("Web Store EU").clear_description().await.expect("the application"));

        let keys = applications.api_keys(&shop.id);
        let created = keys
            .create("Checkout")
            .mode(Mode::Test)
            .scopes([Scope::SESSIONS_WRITE])
            .expires_at(app.clock.now() + jiff::SignedDuration::from_hours(1))
            .allowed_ips(["203.0.113.0/24"])
            .rate_limit(100, Duration::from_secs(60))
            .metadata([("team", "web")])
            .await
            .expect("a key");
        assert!(created.full_key.expose().starts_with("ks_test_"));
        transcript.add("create a key", &created);
        let second = keys.create("Second").await.expect("a key");
        keys.revoke(&second.id).await.expect("revoked");
        let error = keys.revoke(&second.id).await.expect_err("the key is already revoked");
        assert_eq!((error.code(), error.attempts()), (Some("key_already_revoked"), 1));
        transcript.add_error("revoke again", &error);
        transcript.add("keys", keys.list().await.expect("a page"));
        let each: Vec<_> = keys.list().limit(1).items().collect_up_to(10).await.expect("all");
        assert_eq!(each.iter().map(|key| &key.description).collect::<Vec<_>>(), ["Second", "Checkout"]);
        assert!(each[0].status == Status::Revoked);

        assert!(!applications.disable(&shop.id).await.expect("the application").is_enabled);
        assert!(applications.enable(&shop.id).await.expect("the application").is_enabled);
        transcript.add("list", applications.list().include_api_keys().await.expect("a page"));
        assert_eq!(applications.get(&shop.id).await.expect("the application").name, "Web Store EU");
        applications.delete(&shop.id).await.expect("deleted");
        let error = applications.get(&shop.id).await.expect_err("the application is deleted");
        assert!(error.is_not_found());
        transcript.add_error("get", &error);
        let error = applications.create(" ").await.expect_err("no name");
        assert!(error.is_validation());
        transcript.add("errors", error.errors());
        allow_duplicates! { assert_snapshot!(transcript.0, @r#"
        create: Application { id: "019b76da-a800-7122-adf6-eccfc4caa8cd", name: "Web Store", description: Some("Backend"), is_enabled: true, created_at: Rfc3339(2026-01-01T00:00:00Z), api_keys: None }
        create again: POST /api/v1/applications: 409 application_name_taken: The account already has an application with this name. Choose another name. (req)
        update: Application { id: "019b76da-a800-7122-adf6-eccfc4caa8cd", name: "Web Store EU", description: None, is_enabled: true, created_at: Rfc3339(2026-01-01T00:00:00Z), api_keys: None }
        create a key: CreatedKey { id: "019b76da-a800-73ae-8c3e-f99b8df24e81", application_id: "019b76da-a800-7122-adf6-eccfc4caa8cd", full_key: Secret(redacted), key_prefix: "ks_test_l9oC", description: "Checkout", created_at: Rfc3339(2026-01-01T00:00:00Z) }
        revoke again: DELETE /api/v1/applications/{id}/api-keys/{keyId}: 400 key_already_revoked: The key is already revoked. Nothing was changed. (req)
        keys: Page { items: [Key { id: "019b76da-a800-78ae-a01f-6497b461980e", key_prefix: "ks_live_34em", description: "Second", status: Known(Revoked), application_id: "019b76da-a800-7122-adf6-eccfc4caa8cd", last4: "Oi1y", mode: Known(Live), scopes: [Scope("commerce")], allowed_ips: None, rate_limit: None, metadata: None, created_at: Rfc3339(2026-01-01T00:00:00Z), expires_at: None, last_used_at: None, revoked_at: Some(Rfc3339(2026-01-01T00:00:00Z)), revoked_reason: None }, Key { id: "019b76da-a800-73ae-8c3e-f99b8df24e81", key_prefix: "ks_test_l9oC", description: "Checkout", status: Known(Active), application_id: "019b76da-a800-7122-adf6-eccfc4caa8cd", last4: "cMK1", mode: Known(Test), scopes: [Scope("sessions:write")], allowed_ips: Some(["203.0.113.0/24"]), rate_limit: Some(RateLimit { limit: 100, window_seconds: 60 }), metadata: Some({"team": String("web")}), created_at: Rfc3339(2026-01-01T00:00:00Z), expires_at: Some(Rfc3339(2026-01-01T01:00:00Z)), last_used_at: None, revoked_at: None, revoked_reason: None }], page: 1, limit: 10, total_items: 2, total_pages: 1, has_previous_page: false, has_next_page: false }
        list: Page { items: [Application { id: "019b76da-a800-7122-adf6-eccfc4caa8cd", name: "Web Store EU", description: None, is_enabled: true, created_at: Rfc3339(2026-01-01T00:00:00Z), api_keys: Some([IncludedKey { id: "019b76da-a800-78ae-a01f-6497b461980e", key_prefix: "ks_live_34em", description: "Second", status: Known(Revoked) }, IncludedKey { id: "019b76da-a800-73ae-8c3e-f99b8df24e81", key_prefix: "ks_test_l9oC", description: "Checkout", status: Known(Active) }]) }], page: 1, limit: 10, total_items: 1, total_pages: 1, has_previous_page: false, has_next_page: false }
        get: GET /api/v1/applications/{id}: 404 not_found: The resource does not exist or belongs to another account. Check the ID. (req)
        errors: [FieldError { pointer: "/name", detail: "must have 1 to 100 characters" }]
        "#) };
    })
    .await;
}

#[actix_web::test]
async fn client_manages_commerce_keys() {
    each_backend(async |app| {
        let mut transcript = Transcript::default();
        let operator = app.client(&app.operator());
        operator.accounts().set_operating_model("acme", OperatingModel::Ecosystem).await.expect("an account");
        let keys = app.client(&app.management_token("acme")).commerce().api_keys();

        let created = keys
            .create("Commerce Server Key")
            .mode(Mode::Test)
            .scopes([Scope::LINKS_READ, Scope::SESSIONS_WRITE])
            .merchants(["merchant-1"])
            .features([Feature::TokensList])
            .metadata([("team", "checkout")])
            .await
            .expect("a key");
        assert!(created.api_key.expose().starts_with("ck_test_"));
        transcript.add("create", &created);
        let error = keys.create("X").scopes([Scope::named("links:destroy")]).await.expect_err("an unknown scope");
        transcript.add_error("create with an unknown scope", &error);
        let changed = keys
            .update(&created.key_id)
            .name("Renamed")
            .allowed_ips(["203.0.113.0/24"])
            .rate_limit(5, Duration::from_millis(900))
            .metadata([("owner", "payments")])
            .await;
        transcript.add("update", changed.expect("the key"));
        assert_eq!(keys.suspend(&created.key_id).await.expect("the key").status, Status::Suspended);
        assert_eq!(keys.resume(&created.key_id).await.expect("the key").status, Status::Active);
        app.clock.advance(Duration::from_secs(1));
        let successor = keys.rotate(&created.key_id).overlap(Duration::from_secs(60)).await.expect("a successor");
        transcript.add("rotate", &successor);
        let error = keys.rotate(&created.key_id).await.expect_err("the key is already rotated");
        transcript.add_error("rotate again", &error);
        transcript.add("revoke", keys.revoke(&created.key_id).reason("rotated").await.expect("revoked"));
        keys.revoke(&created.key_id).await.expect("a repeat succeeds");
        transcript.add("get", keys.get(&created.key_id).await.expect("the key"));

        app.clock.advance(Duration::from_secs(1));
        let plain = keys.create("Plain").await.expect("a key");
        let names = async |limit: u32| {
            let all = keys.list().limit(limit).items().collect_up_to(10).await.expect("all");
            all.into_iter().map(|key| key.name).collect::<Vec<_>>()
        };
        assert_eq!(names(1).await, ["Plain", "Renamed", "Renamed"]);
        assert_eq!(names(3).await, names(1).await);
        let page = keys.list().limit(2).await.expect("a page");
        assert_eq!((page.items.len(), page.next_cursor.is_some()), (2, true));

        // The operator can read the account's keys; another account cannot.
        let seen = operator.for_account("acme").commerce().api_keys().get(&plain.key_id).await.expect("the key");
        assert_eq!(seen.name, "Plain");
        let others = app.client(&app.management_token("globex")).commerce().api_keys();
        assert!(others.get(&plain.key_id).await.expect_err("a key of another account").is_not_found());
        allow_duplicates! { assert_snapshot!(transcript.0, @r#"
        create: CreatedKey { key_id: "019b76da-a800-7a88-a527-a819b062c680", name: "Commerce Server Key", scope: Known(Commerce), api_key: Secret(redacted), expires_at: None, mode: Known(Test), scopes: [Scope("links:read"), Scope("sessions:write")], prefix: "ck_test_MaDz7z", merchants: Some(["merchant-1"]), features: Some([Known(TokensList)]), created_at: UnixSeconds(2026-01-01T00:00:00Z) }
        create with an unknown scope: POST /api/v1/api-keys: 400 validation_failed: /scopes: unknown scope `links:destroy`; valid scopes are commerce, links:read, links:write, sessions:read, sessions:write, webhooks:read, webhooks:write, events:read, customers:read, customers:write (req)
        update: Key { key_id: "019b76da-a800-7a88-a527-a819b062c680", name: "Renamed", scope: Known(Commerce), status: Known(Active), expires_at: None, last_used_at: None, created_at: UnixSeconds(2026-01-01T00:00:00Z), revoked_at: None, revoked_reason: None, mode: Known(Test), scopes: [Scope("links:read"), Scope("sessions:write")], prefix: "ck_test_MaDz7z", last4: "oCHX", merchants: Some(["merchant-1"]), features: Some([Known(TokensList)]), allowed_ips: Some(["203.0.113.0/24"]), rate_limit: Some(RateLimit { limit: 5, window_seconds: 1 }), metadata: Some({"team": String("checkout"), "owner": String("payments")}), rotated_from: None, rotated_to: None }
        rotate: CreatedKey { key_id: "019b76da-abe8-780e-b9da-c7e3c1dc2e13", name: "Renamed", scope: Known(Commerce), api_key: Secret(redacted), expires_at: None, mode: Known(Test), scopes: [Scope("links:read"), Scope("sessions:write")], prefix: "ck_test_emOD9s", merchants: Some(["merchant-1"]), features: Some([Known(TokensList)]), created_at: UnixSeconds(2026-01-01T00:00:01Z) }
        rotate again: POST /api/v1/api-keys/{id}/rotate: 409 key_already_rotated: The key is already rotated. Rotate its successor instead. (req)
        revoke: Message { message: "API key revoked successfully" }
        get: Key { key_id: "019b76da-a800-7a88-a527-a819b062c680", name: "Renamed", scope: Known(Commerce), status: Known(Revoked), expires_at: Some(UnixSeconds(2026-01-01T00:01:01Z)), last_used_at: None, created_at: UnixSeconds(2026-01-01T00:00:00Z), revoked_at: Some(UnixSeconds(2026-01-01T00:00:01Z)), revoked_reason: Some("rotated"), mode: Known(Test), scopes: [Scope("links:read"), Scope("sessions:write")], prefix: "ck_test_MaDz7z", last4: "oCHX", merchants: Some(["merchant-1"]), features: Some([Known(TokensList)]), allowed_ips: Some(["203.0.113.0/24"]), rate_limit: Some(RateLimit { limit: 5, window_seconds: 1 }), metadata: Some({"team": String("checkout"), "owner": String("payments")}), rotated_from: None, rotated_to: Some("019b76da-abe8-780e-b9da-c7e3c1dc2e13") }
        "#) };
    })
    .await;
}

#[actix_web::test]
async fn client_manages_account_keys() {
    each_backend(async |app| {
        let mut transcript = Transcript::default();
        let merchant = app.client(&app.management_token("acme"));
        let first = merchant.account().api_keys().create("CI", Mode::Live, Access::Secret).await.expect("a key");
        let account = merchant.with_auth(Auth::key(first.value.expose())).account();
        let created = account
            .api_keys()
            .create("Web shop", Mode::Test, Access::Publishable)
            .allowed_ips(["127.0.0.0/8"])
            .rate_limit(10, Duration::from_secs(1))
            .metadata([("shop", 7)])
            .await
            .expect("a key");
        transcript.add("create", &created);
        transcript.add("list", account.api_keys().list().await.expect("a page"));
        let ids: Vec<_> = account.api_keys().list().limit(1).items().collect_up_to(5).await.expect("all");
        assert_eq!(ids.iter().map(|key| &key.id).collect::<Vec<_>>(), [&created.id, &first.id]);
        transcript.add("revoke", account.api_keys().revoke(&created.id).await.expect("revoked"));
        let again = account.api_keys().delete(&created.id).await.expect("a repeat succeeds");
        assert!(again.revoked_at.is_some());

        let error = account.api_keys().create("", Mode::Live, Access::Secret).await.expect_err("no name");
        assert_eq!((error.status(), error.code(), error.errors().len()), (Some(400), Some("validation_failed"), 1));
        transcript.add_error("create without a name", &error);
        let error = account.api_keys().revoke("key_00000000000000000000000000").await.expect_err("an unknown key");
        transcript.add_error("revoke an unknown key", &error);
        let unknown = merchant.with_auth(Auth::key("sk_live_EXAMPLE0EXAMPLE0EXAMPLE0EXAMPLE0"));
        let error = unknown.account().api_keys().list().await.expect_err("an unknown key");
        assert!(error.is_unauthorized());
        transcript.add_error("list with an unknown key", &error);

        let log = account.audit_log().list().limit(1).action("api_key.revoked").items().collect_up_to(5).await;
        let log = log.expect("the log");
        assert_eq!(log.len(), 1);
        assert_eq!((log[0].target.id.as_str(), log[0].actor.id.as_str()), (&*created.id, &*first.id));
        assert_eq!(account.audit_log().list().limit(2).pages().collect_up_to(5).await.expect("pages").len(), 2);
        allow_duplicates! { assert_snapshot!(transcript.0, @r#"
        create: CreatedKey { id: "key_01KDVDNA00ES8B57BYCX0Q0PP1", name: "Web shop", environment: Known(Test), access: Known(Publishable), value: Secret(redacted), created_at: Rfc3339(2026-01-01T00:00:00Z), extras: Extras { expires_at: None, allowed_ips: Some(["127.0.0.0/8"]), rate_limit: Some(RateLimit { limit: 10, window_seconds: 1 }), metadata: Some({"shop": Number(7)}) } }
        list: Page { items: [Key { id: "key_01KDVDNA00ES8B57BYCX0Q0PP1", name: "Web shop", prefix: "pk_test_", last4: "HY23", environment: Known(Test), access: Known(Publishable), created_at: Rfc3339(2026-01-01T00:00:00Z), last_used_at: None, revoked_at: None, extras: Extras { expires_at: None, allowed_ips: Some(["127.0.0.0/8"]), rate_limit: Some(RateLimit { limit: 10, window_seconds: 1 }), metadata: Some({"shop": Number(7)}) } }, Key { id: "key_01KDVDNA00E4HAVXQCSZ2CNA6D", name: "CI", prefix: "sk_live_", last4: "QP8n", environment: Known(Live), access: Known(Secret), created_at: Rfc3339(2026-01-01T00:00:00Z), last_used_at: None, revoked_at: None, extras: Extras { expires_at: None, allowed_ips: None, rate_limit: None, metadata: None } }], next_cursor: None }
        revoke: Key { id: "key_01KDVDNA00ES8B57BYCX0Q0PP1", name: "Web shop", prefix: "pk_test_", last4: "HY23", environment: Known(Test), access: Known(Publishable), created_at: Rfc3339(2026-01-01T00:00:00Z), last_used_at: None, revoked_at: Some(Rfc3339(2026-01-01T00:00:00Z)), extras: Extras { expires_at: None, allowed_ips: Some(["127.0.0.0/8"]), rate_limit: Some(RateLimit { limit: 10, window_seconds: 1 }), metadata: Some({"shop": Number(7)}) } }
        create without a name: POST /api/v1/account/api-keys: 400 validation_failed: /name: must have 1 to 100 characters (req)
        revoke an unknown key: POST /api/v1/account/api-keys/{id}/revoke: 404 not_found: The resource does not exist or belongs to another account. Check the ID. (req)
        list with an unknown key: GET /api/v1/account/api-keys: 401 invalid_api_key: The API key is unknown or revoked. Check the key, or use another one. (req)
        "#) };
    })
    .await;
}

#[actix_web::test]
async fn client_verifies_keys_and_calls_as_a_key() {
    each_backend(async |app| {
        let mut transcript = Transcript::default();
        let merchant = app.client(&app.management_token("acme"));
        let created = merchant
            .commerce()
            .api_keys()
            .create("Restricted")
            .scopes([Scope::SESSIONS_WRITE])
            .allowed_ips(["203.0.113.0/24", "127.0.0.1/32"])
            .rate_limit(10, Duration::from_secs(60))
            .await
            .expect("a key");
        let presented = created.api_key.expose();
        let service_key = app.client(&app.operator()).service_keys().create("gateway").await.expect("a service key");
        let service = merchant.with_auth(Auth::service(service_key.key.expose()));

        let request = service
            .verify(presented)
            .scopes([Scope::SESSIONS_WRITE])
            .method("POST")
            .path("/api/v1/sessions")
            .mode(Mode::Live)
            .merchant("merchant-1")
            .client_ip(Ipv4Addr::new(203, 0, 113, 7));
        transcript.add("verify", request.await.expect("a response"));
        let denied = service.verify(presented).await.expect("a response");
        assert_eq!((denied.is_valid(), denied.code(), denied.key()), (false, "ip_not_allowed", None));
        let at = VerificationRequest::new(presented).client_ip(Ipv4Addr::LOCALHOST);
        let batch = [at.clone(), at.scopes([Scope::LINKS_READ]), VerificationRequest::new("ck_live_EXAMPLE")];
        let codes = service.verify_batch(batch).await.expect("responses");
        assert_eq!(
            codes.iter().map(|code| code.code()).collect::<Vec<_>>(),
            ["valid", "insufficient_scope", "unknown_key"]
        );
        let introspected = service.introspect(presented).client_ip(Ipv4Addr::LOCALHOST);
        transcript.add("introspect", introspected.scopes([Scope::SESSIONS_WRITE]).await.expect("a response"));
        assert!(!service.introspect(presented).mode(Mode::Test).await.expect("a response").active);
        let error = service.verify_batch([]).await.expect_err("an empty batch");
        transcript.add_error("verify nothing", &error);
        let error = merchant.verify(presented).await.expect_err("a management token of an account cannot verify keys");
        assert!(error.is_forbidden());

        // The IP allowlist denies this request: loopback is a trusted proxy, so the client IP is unknown.
        let own = merchant.with_auth(Auth::key(presented));
        let error = own.whoami().await.expect_err("the client IP is unknown");
        assert_eq!(error.code(), Some("ip_not_allowed"));
        let update = merchant.commerce().api_keys().update(&created.key_id).clear_allowed_ips();
        update.await.expect("updated");
        transcript.add("whoami", own.whoami().await.expect("the key"));
        let publishable = app.insert_key("acme", Family::Publishable, Mode::Test).await;
        transcript.add("whoami of a pk_", merchant.with_auth(Auth::key(&publishable)).whoami().await.expect("the key"));
        own.revoke_self().await.expect("revoked");
        let error = own.whoami().await.expect_err("the key is revoked");
        transcript.add_error("whoami", &error);
        assert_eq!(service.verify(presented).await.expect("a response").code(), "revoked");
        allow_duplicates! { assert_snapshot!(transcript.0, @r#"
        verify: Valid(Valid { valid: true, code: "valid", key: VerifiedKey { id: "019b76da-a800-7122-adf6-eccfc4caa8cd", account_id: "acme", application_id: None, name: "Restricted", family: Known(Commerce), mode: Known(Live), scopes: [Scope("sessions:write")], merchants: None, features: None, expires_at: None, metadata: None }, rate_limit: Some(RateLimitState { limit: 10, remaining: 9, reset_seconds: 6, window_seconds: 60 }) })
        introspect: IntrospectResponse { active: true, scope: Some("sessions:write"), client_id: None, sub: Some("acme"), token_type: Some("Bearer"), exp: None, iat: Some(UnixSeconds(2026-01-01T00:00:00Z)), jti: Some("019b76da-a800-7122-adf6-eccfc4caa8cd"), mode: Some(Known(Live)) }
        verify nothing: POST /api/v1/verify/batch: 400 validation_failed: /requests: must have 1 to 100 items (req)
        whoami: WhoAmI { id: "019b76da-a800-7122-adf6-eccfc4caa8cd", family: Known(Commerce), mode: Known(Live), status: Known(Active), rest: Some(WhoAmIRest { account_id: "acme", application_id: None, name: "Restricted", scopes: [Scope("sessions:write")], merchants: None, features: None, created_at: UnixSeconds(2026-01-01T00:00:00Z), expires_at: None }) }
        whoami of a pk_: WhoAmI { id: "019b76da-a800-74f1-afaa-6dd8be71867a", family: Known(Publishable), mode: Known(Test), status: Known(Active), rest: None }
        whoami: GET /api/v1/whoami: 401 invalid_api_key: The API key is unknown or revoked. Check the key, or use another one. (req)
        "#) };
    })
    .await;
}

#[actix_web::test]
async fn client_covers_audit_log_accounts_and_subscription() {
    each_backend(async |app| {
        let mut transcript = Transcript::default();
        let merchant = app.client(&app.management_token("acme"));
        let operator = app.client(&app.operator());
        let key = merchant.commerce().api_keys().create("Key").await.expect("a key");
        merchant.commerce().api_keys().suspend(&key.key_id).await.expect("suspended");
        app.clock.advance(Duration::from_secs(60));
        merchant.commerce().api_keys().resume(&key.key_id).await.expect("resumed");

        let log = merchant.audit_log();
        let actions = async |list: tollkey_client::audit::ListAuditLog| {
            let entries = list.limit(1).items().collect_up_to(10).await.expect("entries");
            entries.into_iter().map(|entry| entry.action).collect::<Vec<_>>()
        };
        assert_eq!(actions(log.list()).await, ["api_key.resumed", "api_key.suspended", "api_key.created"]);
        let now = app.clock.now();
        assert_eq!(actions(log.list().since(now)).await, ["api_key.resumed"]);
        assert_eq!(
            actions(log.list().until(now).target_id(&key.key_id)).await,
            ["api_key.suspended", "api_key.created"]
        );
        assert_eq!(actions(log.list().actor_id("user_1").action("api_key.created")).await, ["api_key.created"]);
        assert_eq!(actions(log.list().actor_id("nobody")).await, [""; 0]);
        let entry = log.list().limit(1).await.expect("a page").items.remove(0);
        transcript.add("entry", (entry.action, entry.actor, entry.changes, entry.occurred_at));

        transcript.add("account", operator.accounts().get("acme").await.expect("an account"));
        transcript.add("put", operator.accounts().set_operating_model("acme", OperatingModel::Platform).await.expect("an account"));
        let service_keys = operator.service_keys();
        let created = service_keys.create("gateway").await.expect("a service key");
        assert!(created.key.expose().starts_with("tks_"));
        transcript.add("service key", &created);

        let service = merchant.with_auth(Auth::service(created.key.expose()));
        let me: VerifierId = "0f1e2d3c4b5a69788796a5b4c3d2e1f0".parse().expect("an ID");
        let poll = service.subscription().poll(me).await.expect("a response");
        let usage = Usage {
            key_id: key.key_id.clone(),
            outcome: "valid".to_owned(),
            count: 3,
            last_used_at: Some(app.clock.now().into()),
        };
        let next = service.subscription().poll(me).cursor(poll.cursor).wait(Duration::from_millis(1)).usage([usage]);
        assert!(next.await.expect("a response").changes.is_some_and(|changes| changes.is_empty()));
        let found = service.subscription().lookup(Digest::of_key(key.api_key.expose())).await.expect("a response");
        assert_eq!(found.key.expect("the key").id, key.key_id);
        service.subscription().poll(me).leave().await.expect("a response");

        service_keys.revoke(&created.id).await.expect("revoked");
        service_keys.revoke(&created.id).await.expect("a repeat succeeds");
        transcript.add("service keys", service_keys.list().await.expect("a list"));
        assert!(service.verify("ck_live_EXAMPLE").await.expect_err("the service key is revoked").is_unauthorized());
        allow_duplicates! { assert_snapshot!(transcript.0, @r#"
        entry: ("api_key.resumed", AuditActor { type: Known(Merchant), id: "user_1" }, Object {"status": String("active")}, UnixSeconds(2026-01-01T00:01:00Z))
        account: Account { id: "acme", operating_model: Known(PrimaryMerchant) }
        put: Account { id: "acme", operating_model: Known(Platform) }
        service key: CreatedServiceKey { id: "019b76db-9260-7823-8b2a-e000550e0be5", name: "gateway", key: Secret(redacted), created_at: UnixSeconds(2026-01-01T00:01:00Z) }
        service keys: [ServiceKey { id: "019b76db-9260-7823-8b2a-e000550e0be5", name: "gateway", last4: "SbiF", created_at: UnixSeconds(2026-01-01T00:01:00Z), revoked_at: Some(UnixSeconds(2026-01-01T00:01:00Z)) }]
        "#) };
    })
    .await;
}

#[actix_web::test]
async fn repeated_idempotency_key_returns_the_same_key() {
    each_backend(async |app| {
        let keys = app
            .client(&app.management_token("acme"))
            .commerce()
            .api_keys();
        let create = || keys.create("Once").idempotency_key("order 4711, first try");
        let (first, second) = (
            create().await.expect("a key"),
            create().await.expect("the same"),
        );
        assert_eq!(
            (first.key_id, first.api_key),
            (second.key_id, second.api_key)
        );
        let error = keys
            .create("Other")
            .idempotency_key("order 4711, first try")
            .await
            .expect_err("another body");
        assert_eq!(
            (error.status(), error.code()),
            (Some(422), Some("idempotency_mismatch"))
        );
        // Without an Idempotency-Key from the caller, each call creates another resource.
        let call = keys.create("Twice");
        assert_ne!(
            call.clone().await.expect("a key").key_id,
            call.await.expect("another").key_id
        );
    })
    .await;
}
