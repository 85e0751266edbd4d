//! Tests each operation of the OpenAPI document: the request that its call sends, and the response that it parses.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::LazyLock,
    time::Duration,
};

use serde_json::{Map, Value, json};
use tollkey_client::{
    ActorKind, Client, Digest, Error, Family, Feature, Mode, OperatingModel, Rfc3339, Scope,
    Status, TargetKind, Timestamp, UnixSeconds, VerifierId, account::Access, commerce::KeyScope,
    subscription::Usage, verification::VerificationRequest,
};
use wiremock::{Request, ResponseTemplate};

use crate::{
    fixtures,
    support::{REQUEST_ID, Server, TOKEN, header, json_response, nothing, only_header, target},
};

/// The OpenAPI document of the server.
static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../../../openapi/tollkey.json")).expect("a JSON document")
});

/// The caller's Idempotency-Key.
const OWN_KEY: &str = "order 4711, first try";
/// The ID of a subscriber.
const SUBSCRIBER: &str = "000102030405060708090a0b0c0d0e0f";
/// The SHA-256 of `ck_test_EXAMPLE1`.
const DIGEST: &str = "e5c0bf22f8bffac840ab1f163b24ebab98a6a7a60951e51802de34aabde89925";

/// A call and the assertions about its response.
type Outcome = Pin<Box<dyn Future<Output = Result<(), Error>> + Send>>;

/// A call of the client.
pub struct Row {
    /// The operation ID in the document.
    pub operation: &'static str,
    /// Method, path and query.
    sends: &'static str,
    body: Body,
    idempotency_key: Option<KeySource>,
    pub answer: (u16, Option<Value>),
    /// Sends the call and checks the response.
    pub call: Box<dyn Fn(Client) -> Outcome + Send + Sync>,
}

enum Body {
    None,
    Json(Value),
    Form(&'static str),
}

/// The source of an Idempotency-Key.
enum KeySource {
    Random,
    Caller,
}

impl Row {
    fn new(operation: &'static str, sends: &'static str) -> Self {
        let call = Box::new(|_| -> Outcome { unreachable!("every row has a call") });
        Self {
            operation,
            sends,
            body: Body::None,
            idempotency_key: None,
            answer: (204, None),
            call,
        }
    }

    fn json(mut self, body: Value) -> Self {
        self.body = Body::Json(body);
        self
    }

    fn form(mut self, body: &'static str) -> Self {
        self.body = Body::Form(body);
        self
    }

    /// Expects a random Idempotency-Key.
    fn creates(mut self) -> Self {
        self.idempotency_key = Some(KeySource::Random);
        self
    }

    /// Expects [`OWN_KEY`] as the Idempotency-Key.
    fn creates_with_own_key(mut self) -> Self {
        self.idempotency_key = Some(KeySource::Caller);
        self
    }

    fn returns(mut self, status: u16, body: Value) -> Self {
        self.answer = (status, Some(body));
        self
    }

    fn by<Fut>(mut self, call: impl Fn(Client) -> Fut + Send + Sync + 'static) -> Self
    where
        Fut: Future<Output = Result<(), Error>> + Send + 'static,
    {
        self.call = Box::new(move |client| Box::pin(call(client)));
        self
    }

    pub fn response_with(&self) -> ResponseTemplate {
        match &self.answer {
            (status, Some(body)) => json_response(*status, body),
            (_, None) => nothing(),
        }
    }

    /// Method and path template in the document.
    pub fn route(&self) -> (&'static str, &'static str) {
        let (method, path, _) = operation(self.operation);
        (method, path)
    }

    /// Returns whether the operation belongs to the account surface, which wraps responses in an envelope.
    pub fn is_in_envelope(&self) -> bool {
        self.route().1.starts_with("/api/v1/account/")
    }
}

fn noon() -> Timestamp {
    fixtures::NOON_TEXT.parse().unwrap()
}

fn end() -> Timestamp {
    fixtures::END_TEXT.parse().unwrap()
}

/// `{"team": "checkout"}`.
fn metadata() -> Option<Map<String, Value>> {
    Some(Map::from_iter([("team".to_owned(), json!("checkout"))]))
}

/// The calls of all operations, each with all optional arguments and with none.
pub fn rows() -> Vec<Row> {
    let mut rows = applications();
    rows.extend(application_keys());
    rows.extend(commerce());
    rows.extend(account());
    rows.extend(verification());
    rows.extend(subscription());
    rows.extend(audit());
    rows.extend(operator());
    rows
}

fn applications() -> Vec<Row> {
    vec![
        Row::new("createApplication", "POST /api/v1/applications")
            .json(json!({"name": "Production Web Store", "description": "Primary e-commerce backend"}))
            .creates_with_own_key()
            .returns(201, fixtures::application())
            .by(|client| async move {
                let call = client.applications().create("Production Web Store");
                let application = call.description("Primary e-commerce backend").idempotency_key(OWN_KEY).await?;
                assert_eq!(application.id, fixtures::APPLICATION);
                assert_eq!(application.name, "Production Web Store");
                assert_eq!(application.description.as_deref(), Some("Primary e-commerce backend"));
                assert!(application.is_enabled);
                assert_eq!(application.created_at, Rfc3339::from(noon()));
                assert_eq!(application.api_keys, None);
                Ok(())
            }),
        Row::new("createApplication", "POST /api/v1/applications")
            .json(json!({"name": "Production Web Store"}))
            .creates()
            .returns(201, fixtures::application())
            .by(|client| async move { client.applications().create("Production Web Store").await.map(drop) }),
        Row::new("listApplications", "GET /api/v1/applications?include=apiKeys&page=2&limit=20")
            .returns(200, fixtures::applications())
            .by(|client| async move {
                let page = client.applications().list().include_api_keys().page(2).limit(20).await?;
                assert_eq!((page.page, page.limit, page.total_items, page.total_pages), (2, 20, 21, 2));
                assert!(page.has_previous_page && !page.has_next_page);
                let keys = page.items[0].api_keys.as_ref().expect("included keys");
                assert_eq!((keys[0].id.as_str(), keys[0].key_prefix.as_str()), (fixtures::KEY, "ks_live_a1b2"));
                assert_eq!(keys[0].description, "Primary checkout key");
                assert_eq!(keys[0].status, Status::Active);
                Ok(())
            }),
        Row::new("listApplications", "GET /api/v1/applications").returns(200, fixtures::numbered_page(&json!([]))).by(
            |client| async move {
                assert!(client.applications().list().await?.items.is_empty());
                Ok(())
            },
        ),
        Row::new("getApplication", "GET /api/v1/applications/0198c0de-0000-7000-8000-000000000001")
            .returns(200, fixtures::application())
            .by(|client| async move {
                assert_eq!(client.applications().get(fixtures::APPLICATION).await?.id, fixtures::APPLICATION);
                Ok(())
            }),
        Row::new("updateApplication", "PATCH /api/v1/applications/app")
            .json(json!({"name": "Web Store EU", "description": "Second backend"}))
            .returns(200, fixtures::application())
            .by(|client| async move {
                let call = client.applications().update("app").name("Web Store EU").description("Second backend");
                assert_eq!(call.await?.id, fixtures::APPLICATION);
                Ok(())
            }),
        Row::new("updateApplication", "PATCH /api/v1/applications/app")
            .json(json!({"description": null}))
            .returns(200, fixtures::application())
            .by(|client| async move { client.applications().update("app").clear_description().await.map(drop) }),
        Row::new("updateApplication", "PATCH /api/v1/applications/app")
            .json(json!({}))
            .returns(200, fixtures::application())
            .by(|client| async move { client.applications().update("app").await.map(drop) }),
        Row::new("setApplicationStatus", "PATCH /api/v1/applications/app/status")
            .json(json!({"isEnabled": true}))
            .returns(200, fixtures::application())
            .by(|client| async move {
                assert!(client.applications().enable("app").await?.is_enabled);
                Ok(())
            }),
        Row::new("setApplicationStatus", "PATCH /api/v1/applications/app/status")
            .json(json!({"isEnabled": false}))
            .returns(200, fixtures::application())
            .by(|client| async move { client.applications().disable("app").await.map(drop) }),
        Row::new("deleteApplication", "DELETE /api/v1/applications/app")
            .by(|client| async move { client.applications().delete("app").await }),
    ]
}

fn application_keys() -> Vec<Row> {
    vec![
        Row::new(
            "createApplicationKey",
            "POST /api/v1/applications/app/api-keys",
        )
        .json(json!({
            "description": "Primary checkout key",
            "mode": "test",
            "scopes": ["sessions:write", "links:read"],
            "expiresAt": fixtures::END_TEXT,
            "allowedIps": ["203.0.113.0/24", "2001:db8::/32"],
            "rateLimit": {"limit": 100, "windowSeconds": 60},
            "metadata": {"team": "checkout"},
        }))
        .creates_with_own_key()
        .returns(201, fixtures::created_application_key())
        .by(|client| async move {
            let created = client
                .applications()
                .api_keys("app")
                .create("Primary checkout key")
                .mode(Mode::Test)
                .scopes([Scope::SESSIONS_WRITE, Scope::LINKS_READ])
                .expires_at(end())
                .allowed_ips(["203.0.113.0/24", "2001:db8::/32"])
                .rate_limit(100, Duration::from_secs(60))
                .metadata([("team", "checkout")])
                .idempotency_key(OWN_KEY)
                .await?;
            assert_eq!(
                (created.id.as_str(), created.application_id.as_str()),
                (fixtures::KEY, fixtures::APPLICATION)
            );
            assert_eq!(created.full_key.expose(), "ks_test_EXAMPLE1");
            assert_eq!(created.key_prefix, "ks_test_EXAM");
            assert_eq!(created.description, "Primary checkout key");
            assert_eq!(created.created_at, Rfc3339::from(noon()));
            Ok(())
        }),
        Row::new(
            "createApplicationKey",
            "POST /api/v1/applications/app/api-keys",
        )
        .json(json!({"description": "Primary checkout key"}))
        .creates()
        .returns(201, fixtures::created_application_key())
        .by(|client| async move {
            client
                .applications()
                .api_keys("app")
                .create("Primary checkout key")
                .await
                .map(drop)
        }),
        Row::new(
            "listApplicationKeys",
            "GET /api/v1/applications/app/api-keys?page=2&limit=20",
        )
        .returns(
            200,
            fixtures::numbered_page(&json!([fixtures::application_key()])),
        )
        .by(|client| async move {
            let page = client
                .applications()
                .api_keys("app")
                .list()
                .page(2)
                .limit(20)
                .await?;
            assert_eq!(
                (page.page, page.limit, page.total_items, page.total_pages),
                (2, 20, 21, 2)
            );
            let key = &page.items[0];
            assert_eq!(
                (key.id.as_str(), key.application_id.as_str()),
                (fixtures::KEY, fixtures::APPLICATION)
            );
            assert_eq!(
                (key.key_prefix.as_str(), key.last4.as_str()),
                ("ks_live_a1b2", "9z8a")
            );
            assert_eq!(key.status, Status::Revoked);
            assert_eq!(key.mode, Mode::Live);
            assert_eq!(key.scopes, [Scope::SESSIONS_WRITE]);
            assert_eq!(
                key.allowed_ips.as_deref(),
                Some(&["203.0.113.0/24".to_owned()][..])
            );
            let limit = key.rate_limit.expect("a rate limit");
            assert_eq!((limit.limit, limit.window_seconds), (100, 60));
            assert_eq!(key.metadata, metadata());
            assert_eq!(key.expires_at, Some(Rfc3339::from(end())));
            assert_eq!(key.last_used_at, Some(Rfc3339::from(noon())));
            assert_eq!(key.revoked_at, Some(Rfc3339::from(noon())));
            assert_eq!(key.revoked_reason.as_deref(), Some("rotated"));
            Ok(())
        }),
        Row::new(
            "listApplicationKeys",
            "GET /api/v1/applications/app/api-keys",
        )
        .returns(200, fixtures::numbered_page(&json!([])))
        .by(|client| async move { client.applications().api_keys("app").list().await.map(drop) }),
        Row::new(
            "revokeApplicationKey",
            "DELETE /api/v1/applications/app/api-keys/key",
        )
        .by(|client| async move { client.applications().api_keys("app").revoke("key").await }),
    ]
}

fn commerce() -> Vec<Row> {
    vec![
        Row::new("createCommerceKey", "POST /api/v1/api-keys")
            .json(json!({
                "name": "Commerce Server Key",
                "scope": "commerce",
                "mode": "test",
                "scopes": ["links:read"],
                "expires_at": fixtures::END_TEXT,
                "merchants": ["merchant_42"],
                "features": ["tokens.list", "payment_data.forward"],
                "allowed_ips": ["203.0.113.0/24"],
                "rate_limit": {"limit": 100, "window_seconds": 60},
                "metadata": {"team": "checkout", "seats": 3},
            }))
            .creates_with_own_key()
            .returns(201, fixtures::created_commerce_key())
            .by(|client| async move {
                let created = client
                    .commerce()
                    .api_keys()
                    .create("Commerce Server Key")
                    .mode(Mode::Test)
                    .scopes([Scope::LINKS_READ])
                    .expires_at(end())
                    .merchants(["merchant_42"])
                    .features([Feature::TokensList, Feature::PaymentDataForward])
                    .allowed_ips(["203.0.113.0/24"])
                    // Rounded up, so that the limit is never higher than intended.
                    .rate_limit(100, Duration::from_millis(59_001))
                    .metadata([("team", json!("checkout")), ("seats", json!(3))])
                    .idempotency_key(OWN_KEY)
                    .await?;
                assert_eq!((created.key_id.as_str(), created.name.as_str()), (fixtures::KEY, "Commerce Server Key"));
                assert_eq!(created.scope, KeyScope::Commerce);
                assert_eq!(created.api_key.expose(), "ck_test_EXAMPLE1");
                assert_eq!(created.expires_at, Some(UnixSeconds::from(end())));
                assert_eq!(created.mode, Mode::Test);
                assert_eq!(created.scopes, [Scope::LINKS_READ]);
                assert_eq!(created.prefix, "ck_test_EXAMPL");
                assert_eq!(created.merchants.as_deref(), Some(&["merchant_42".to_owned()][..]));
                assert_eq!(created.features, Some(vec![Feature::TokensList.into()]));
                assert_eq!(created.created_at, UnixSeconds::from(noon()));
                Ok(())
            }),
        Row::new("createCommerceKey", "POST /api/v1/api-keys")
            .json(json!({"name": "Commerce Server Key", "scope": "commerce"}))
            .creates()
            .returns(201, fixtures::created_commerce_key())
            .by(|client| async move { client.commerce().api_keys().create("Commerce Server Key").await.map(drop) }),
        Row::new("listCommerceKeys", "GET /api/v1/api-keys?scope=commerce&limit=50&cursor=a%2Bb%2F%3D")
            .returns(200, json!([fixtures::commerce_key()]))
            .by(|client| async move {
                let page = client.commerce().api_keys().list().limit(50).cursor("a+b/=").await?;
                assert_eq!(page.next_cursor, None);
                let key = &page.items[0];
                assert_eq!((key.key_id.as_str(), key.name.as_str()), (fixtures::KEY, "Commerce Server Key"));
                assert_eq!(key.scope, KeyScope::Commerce);
                assert_eq!(key.status, Status::Active);
                assert_eq!(key.expires_at, Some(UnixSeconds::from(end())));
                assert_eq!(key.last_used_at, Some(UnixSeconds::from(noon())));
                assert_eq!(key.created_at, UnixSeconds::from(noon()));
                assert_eq!((key.revoked_at, key.revoked_reason.as_deref()), (None, None));
                assert_eq!(key.mode, Mode::Test);
                assert_eq!(key.scopes, [Scope::LINKS_READ]);
                assert_eq!((key.prefix.as_str(), key.last4.as_str()), ("ck_test_EXAMPL", "9z8a"));
                assert_eq!(key.merchants.as_deref(), Some(&["merchant_42".to_owned()][..]));
                assert_eq!(key.features, Some(vec![Feature::TokensList.into()]));
                assert_eq!(key.allowed_ips.as_deref(), Some(&["203.0.113.0/24".to_owned()][..]));
                let limit = key.rate_limit.expect("a rate limit");
                assert_eq!((limit.limit, limit.window_seconds), (100, 60));
                assert_eq!(key.metadata, metadata());
                assert_eq!((key.rotated_from.as_deref(), key.rotated_to.as_deref()), (Some(fixtures::OTHER_KEY), None));
                Ok(())
            }),
        Row::new("listCommerceKeys", "GET /api/v1/api-keys?scope=commerce")
            .returns(200, json!([]))
            .by(|client| async move { client.commerce().api_keys().list().await.map(drop) }),
        Row::new("getCommerceKey", "GET /api/v1/api-keys/key").returns(200, fixtures::commerce_key()).by(
            |client| async move {
                assert_eq!(client.commerce().api_keys().get("key").await?.key_id, fixtures::KEY);
                Ok(())
            },
        ),
        Row::new("updateCommerceKey", "PATCH /api/v1/api-keys/key")
            .json(json!({
                "name": "EU Server Key",
                "scopes": ["links:read"],
                "expires_at": fixtures::END_TEXT,
                "merchants": ["merchant_42"],
                "features": ["tokens.list"],
                "allowed_ips": ["203.0.113.0/24"],
                "rate_limit": {"limit": 100, "window_seconds": 60},
                "metadata": {"team": "checkout", "seats": null},
            }))
            .returns(200, fixtures::commerce_key())
            .by(|client| async move {
                let key = client
                    .commerce()
                    .api_keys()
                    .update("key")
                    .name("EU Server Key")
                    .scopes([Scope::LINKS_READ])
                    .expires_at(end())
                    .merchants(["merchant_42"])
                    .features([Feature::TokensList])
                    .allowed_ips(["203.0.113.0/24"])
                    .rate_limit(100, Duration::from_secs(60))
                    .metadata([("team", json!("checkout")), ("seats", Value::Null)])
                    .await?;
                assert_eq!(key.key_id, fixtures::KEY);
                Ok(())
            }),
        Row::new("updateCommerceKey", "PATCH /api/v1/api-keys/key")
            .json(
                json!({"scopes": null, "expires_at": null, "allowed_ips": null, "rate_limit": null, "metadata": null}),
            )
            .returns(200, fixtures::commerce_key())
            .by(|client| async move {
                let update = client.commerce().api_keys().update("key").clear_scopes().clear_expires_at();
                update.clear_allowed_ips().clear_rate_limit().clear_metadata().await.map(drop)
            }),
        Row::new("updateCommerceKey", "PATCH /api/v1/api-keys/key")
            .json(json!({}))
            .returns(200, fixtures::commerce_key())
            .by(|client| async move { client.commerce().api_keys().update("key").await.map(drop) }),
        Row::new("revokeCommerceKey", "POST /api/v1/api-keys/key/revoke")
            .json(json!({"reason": "rotated"}))
            .returns(200, fixtures::message())
            .by(|client| async move {
                let revoked = client.commerce().api_keys().revoke("key").reason("rotated").await?;
                assert_eq!(revoked.message, "API key revoked successfully");
                Ok(())
            }),
        Row::new("revokeCommerceKey", "POST /api/v1/api-keys/key/revoke")
            .json(json!({}))
            .returns(200, fixtures::message())
            .by(|client| async move { client.commerce().api_keys().revoke("key").await.map(drop) }),
        Row::new("suspendCommerceKey", "POST /api/v1/api-keys/key/suspend")
            .json(json!({}))
            .returns(200, fixtures::commerce_key())
            .by(|client| async move {
                assert_eq!(client.commerce().api_keys().suspend("key").await?.key_id, fixtures::KEY);
                Ok(())
            }),
        Row::new("resumeCommerceKey", "POST /api/v1/api-keys/key/resume")
            .json(json!({}))
            .returns(200, fixtures::commerce_key())
            .by(|client| async move {
                assert_eq!(client.commerce().api_keys().resume("key").await?.key_id, fixtures::KEY);
                Ok(())
            }),
        Row::new("rotateCommerceKey", "POST /api/v1/api-keys/key/rotate")
            .json(json!({"overlap_seconds": 86_400}))
            .creates_with_own_key()
            .returns(201, fixtures::created_commerce_key())
            .by(|client| async move {
                let rotate = client.commerce().api_keys().rotate("key").overlap(Duration::from_secs(86_400));
                assert_eq!(rotate.idempotency_key(OWN_KEY).await?.api_key.expose(), "ck_test_EXAMPLE1");
                Ok(())
            }),
        Row::new("rotateCommerceKey", "POST /api/v1/api-keys/key/rotate")
            .json(json!({}))
            .creates()
            .returns(201, fixtures::created_commerce_key())
            .by(|client| async move { client.commerce().api_keys().rotate("key").await.map(drop) }),
    ]
}

fn account() -> Vec<Row> {
    vec![
        Row::new("createAccountKey", "POST /api/v1/account/api-keys")
            .json(json!({
                "name": "Production CI",
                "environment": "test",
                "access": "secret",
                "expiresAt": fixtures::END_TEXT,
                "allowedIps": ["203.0.113.0/24"],
                "rateLimit": {"limit": 100, "windowSeconds": 60},
                "metadata": {"team": "checkout"},
            }))
            .creates_with_own_key()
            .returns(201, fixtures::envelope(&fixtures::created_account_key()))
            .by(|client| async move {
                let created = client
                    .account()
                    .api_keys()
                    .create("Production CI", Mode::Test, Access::Secret)
                    .expires_at(end())
                    .allowed_ips(["203.0.113.0/24"])
                    .rate_limit(100, Duration::from_secs(60))
                    .metadata([("team", "checkout")])
                    .idempotency_key(OWN_KEY)
                    .await?;
                assert_eq!(
                    (created.id.as_str(), created.name.as_str()),
                    (fixtures::ACCOUNT_KEY, "Production CI")
                );
                assert_eq!(created.environment, Mode::Test);
                assert_eq!(created.access, Access::Secret);
                assert_eq!(created.value.expose(), "sk_test_EXAMPLE1");
                assert_eq!(created.created_at, Rfc3339::from(noon()));
                assert_eq!(created.extras.expires_at, Some(Rfc3339::from(end())));
                assert_eq!(created.extras.metadata, metadata());
                Ok(())
            }),
        Row::new("createAccountKey", "POST /api/v1/account/api-keys")
            .json(json!({"name": "Web shop", "environment": "live", "access": "publishable"}))
            .creates()
            .returns(201, fixtures::envelope(&fixtures::created_account_key()))
            .by(|client| async move {
                client
                    .account()
                    .api_keys()
                    .create("Web shop", Mode::Live, Access::Publishable)
                    .await
                    .map(drop)
            }),
        Row::new(
            "listAccountKeys",
            "GET /api/v1/account/api-keys?limit=50&cursor=c1",
        )
        .returns(
            200,
            fixtures::list_envelope(&json!([fixtures::account_key()]), Some("c2")),
        )
        .by(|client| async move {
            let page = client
                .account()
                .api_keys()
                .list()
                .limit(50)
                .cursor("c1")
                .await?;
            assert_eq!(page.next_cursor.as_deref(), Some("c2"));
            let key = &page.items[0];
            assert_eq!(
                (key.id.as_str(), key.name.as_str()),
                (fixtures::ACCOUNT_KEY, "Production CI")
            );
            assert_eq!(
                (key.prefix.as_str(), key.last4.as_str()),
                ("sk_live_", "9z8a")
            );
            assert_eq!(key.environment, Mode::Live);
            assert_eq!(key.access, Access::Publishable);
            assert_eq!(
                (key.created_at, key.last_used_at),
                (Rfc3339::from(noon()), None)
            );
            assert_eq!(key.revoked_at, Some(Rfc3339::from(noon())));
            assert_eq!(
                key.extras.allowed_ips.as_deref(),
                Some(&["203.0.113.0/24".to_owned()][..])
            );
            let limit = key.extras.rate_limit.expect("a rate limit");
            assert_eq!((limit.limit, limit.window_seconds), (100, 60));
            Ok(())
        }),
        Row::new("listAccountKeys", "GET /api/v1/account/api-keys")
            .returns(200, fixtures::list_envelope(&json!([]), None))
            .by(|client| async move {
                assert_eq!(client.account().api_keys().list().await?.next_cursor, None);
                Ok(())
            }),
        Row::new(
            "revokeAccountKey",
            "POST /api/v1/account/api-keys/key/revoke",
        )
        .returns(200, fixtures::envelope(&fixtures::account_key()))
        .by(|client| async move {
            let key = client.account().api_keys().revoke("key").await?;
            assert_eq!(key.revoked_at, Some(Rfc3339::from(noon())));
            Ok(())
        }),
        Row::new("deleteAccountKey", "DELETE /api/v1/account/api-keys/key")
            .returns(200, fixtures::envelope(&fixtures::account_key()))
            .by(|client| async move {
                let key = client.account().api_keys().delete("key").await?;
                assert_eq!(key.revoked_at, Some(Rfc3339::from(noon())));
                Ok(())
            }),
        Row::new(
            "listAccountAuditLog",
            "GET /api/v1/account/audit-log?limit=50&cursor=c1&action=api_key.revoked&entityType=api_key\
             &from=2026-02-23T12%3A00%3A00Z&to=2027-01-01T00%3A00%3A00Z",
        )
        .returns(
            200,
            fixtures::list_envelope(&json!([fixtures::account_audit_entry()]), Some("c2")),
        )
        .by(|client| async move {
            let list = client
                .account()
                .audit_log()
                .list()
                .limit(50)
                .cursor("c1")
                .action("api_key.revoked")
                .entity_type(TargetKind::ApiKey)
                .from(noon())
                .to(end());
            let page = list.await?;
            assert_eq!(page.next_cursor.as_deref(), Some("c2"));
            let entry = &page.items[0];
            assert_eq!(entry.id, "aud_01K30DW000E008000000000003");
            assert_eq!(
                (entry.occurred_at, entry.action.as_str()),
                (Rfc3339::from(noon()), "api_key.revoked")
            );
            assert_eq!(entry.actor.r#type, ActorKind::ApiKey);
            assert_eq!(entry.target.r#type, TargetKind::ApiKey);
            assert_eq!(entry.target.id, fixtures::ACCOUNT_KEY);
            assert_eq!(
                (entry.request_id.as_deref(), entry.ip.as_deref()),
                (Some(REQUEST_ID), Some("203.0.113.7"))
            );
            assert_eq!(entry.changes, json!({"status": "revoked"}));
            assert_eq!(entry.hash, "00".repeat(32));
            Ok(())
        }),
        Row::new("listAccountAuditLog", "GET /api/v1/account/audit-log")
            .returns(200, fixtures::list_envelope(&json!([]), None))
            .by(|client| async move { client.account().audit_log().list().await.map(drop) }),
    ]
}

fn verification() -> Vec<Row> {
    vec![
        Row::new("verify", "POST /api/v1/verify")
            .json(json!({
                "key": "ks_test_EXAMPLE1",
                "method": "POST",
                "path": "/sessions",
                "scopes": ["sessions:write"],
                "mode": "test",
                "merchant": "merchant_42",
                "client_ip": "203.0.113.7",
            }))
            .returns(200, fixtures::valid())
            .by(|client| async move {
                let verify = client
                    .verify("ks_test_EXAMPLE1")
                    .scopes([Scope::SESSIONS_WRITE])
                    .method("POST")
                    .path("/sessions")
                    .mode(Mode::Test)
                    .merchant("merchant_42")
                    .client_ip([203, 0, 113, 7]);
                let valid = verify.await?.into_result().expect("a valid key");
                assert!(valid.valid);
                assert_eq!((valid.code.as_str(), valid.key.id.as_str()), ("valid", fixtures::KEY));
                assert_eq!(valid.key.account_id, "acme");
                assert_eq!(valid.key.application_id.as_deref(), Some(fixtures::APPLICATION));
                assert_eq!(valid.key.name, "Primary checkout key");
                assert_eq!(valid.key.family, Family::Application);
                assert_eq!(valid.key.mode, Mode::Test);
                assert_eq!(valid.key.scopes, [Scope::SESSIONS_WRITE]);
                assert_eq!(valid.key.merchants.as_deref(), Some(&["merchant_42".to_owned()][..]));
                assert_eq!(valid.key.features, Some(vec![Feature::TokensList.into()]));
                assert_eq!(valid.key.expires_at, Some(UnixSeconds::from(end())));
                assert_eq!(valid.key.metadata, metadata());
                let left = valid.rate_limit.expect("a rate limit");
                assert_eq!((left.limit, left.remaining, left.reset_seconds), (100, 42, 17));
                Ok(())
            }),
        Row::new("verify", "POST /api/v1/verify")
            .json(json!({"key": "ks_test_EXAMPLE1"}))
            .returns(200, fixtures::invalid("revoked"))
            .by(|client| async move {
                let verdict = client.verify("ks_test_EXAMPLE1").await?;
                assert!(!verdict.is_valid() && verdict.key().is_none());
                assert_eq!(verdict.code(), "revoked");
                Ok(())
            }),
        Row::new("verifyBatch", "POST /api/v1/verify/batch")
            .json(json!({"requests": [
                {"key": "ks_test_EXAMPLE1"},
                {
                    "key": "ck_test_EXAMPLE1",
                    "method": "GET",
                    "path": "/tokens",
                    "scopes": ["links:read"],
                    "mode": "live",
                    "merchant": "merchant_42",
                    "client_ip": "2001:db8::1",
                },
            ]}))
            .returns(200, json!({"results": [fixtures::valid(), fixtures::invalid("wrong_mode")]}))
            .by(|client| async move {
                let second = VerificationRequest::new("ck_test_EXAMPLE1")
                    .method("GET")
                    .path("/tokens")
                    .scopes([Scope::LINKS_READ])
                    .mode(Mode::Live)
                    .merchant("merchant_42")
                    .client_ip("2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap());
                let verdicts = client.verify_batch([VerificationRequest::new("ks_test_EXAMPLE1"), second]).await?;
                let codes: Vec<_> = verdicts.iter().map(|verdict| verdict.code()).collect();
                assert_eq!(codes, ["valid", "wrong_mode"]);
                Ok(())
            }),
        Row::new("introspect", "POST /api/v1/introspect")
            .form(
                "token=ks_test_EXAMPLE1&method=POST&path=%2Fsessions%3Fa%3D1%262&scopes=sessions%3Aread+sessions%3Awrite\
                 &mode=test&merchant=merchant+42&client_ip=203.0.113.7",
            )
            .returns(200, fixtures::introspected())
            .by(|client| async move {
                let token = client
                    .introspect("ks_test_EXAMPLE1")
                    .method("POST")
                    .path("/sessions?a=1&2")
                    .scopes([Scope::SESSIONS_READ, Scope::SESSIONS_WRITE])
                    .mode(Mode::Test)
                    .merchant("merchant 42")
                    .client_ip([203, 0, 113, 7])
                    .await?;
                assert!(token.active);
                assert_eq!(token.scope.as_deref(), Some("sessions:read sessions:write"));
                assert_eq!(token.client_id.as_deref(), Some(fixtures::APPLICATION));
                assert_eq!((token.sub.as_deref(), token.token_type.as_deref()), (Some("acme"), Some("Bearer")));
                assert_eq!(token.exp, Some(UnixSeconds::from(end())));
                assert_eq!(token.iat, Some(UnixSeconds::from(noon())));
                assert_eq!(token.jti.as_deref(), Some(fixtures::KEY));
                assert_eq!(token.mode, Some(Mode::Test.into()));
                Ok(())
            }),
        Row::new("introspect", "POST /api/v1/introspect")
            .form("token=ks_test_EXAMPLE1")
            .returns(200, json!({"active": false}))
            .by(|client| async move {
                let token = client.introspect("ks_test_EXAMPLE1").await?;
                assert!(!token.active && token.scope.is_none());
                Ok(())
            }),
        Row::new("whoami", "GET /api/v1/whoami").returns(200, fixtures::whoami()).by(|client| async move {
            let me = client.whoami().await?;
            assert_eq!(me.id, fixtures::KEY);
            assert_eq!(me.family, Family::Application);
            assert_eq!(me.mode, Mode::Live);
            assert_eq!(me.status, Status::Active);
            let rest = me.rest.expect("the fields of a key that is not publishable");
            assert_eq!((rest.account_id.as_str(), rest.name.as_str()), ("acme", "Primary checkout key"));
            assert_eq!(rest.application_id.as_deref(), Some(fixtures::APPLICATION));
            assert_eq!(rest.scopes, [Scope::SESSIONS_WRITE]);
            assert_eq!((rest.created_at, rest.expires_at), (UnixSeconds::from(noon()), None));
            Ok(())
        }),
        Row::new("revokeWhoami", "DELETE /api/v1/whoami").by(|client| async move { client.revoke_self().await }),
    ]
}

fn subscription() -> Vec<Row> {
    let subscriber: VerifierId = SUBSCRIBER.parse().unwrap();
    vec![
        Row::new("sync", "POST /api/v1/sync")
            .json(json!({
                "subscriber": SUBSCRIBER,
                "poll_id": "9f86d081884c7d65",
                "previous_poll_ids": ["60303ae22b998861"],
                "cursor": "a-6",
                "wait_ms": 1500,
                "usage": [{"key_id": fixtures::KEY, "outcome": "valid", "count": 3, "last_used_at": fixtures::NOON}],
                "leave": true,
            }))
            .returns(200, fixtures::news())
            .by(move |client| async move {
                let used: Usage = serde_json::from_value(json!({
                    "key_id": fixtures::KEY, "outcome": "valid", "count": 3, "last_used_at": fixtures::NOON,
                }))
                .unwrap();
                let poll = client.subscription().poll(subscriber).cursor("a-6").wait(Duration::from_millis(1500));
                let news = poll.ids("9f86d081884c7d65", ["60303ae22b998861"]).usage([used]).leave().await?;
                assert_eq!((news.seq, news.cursor.as_str(), news.lease_ms), (7, "a-7", 2500));
                let changes = news.changes.expect("known changes");
                assert_eq!((changes[0].kind.as_str(), changes[0].id.as_str()), ("key", fixtures::KEY));
                Ok(())
            }),
        Row::new("sync", "POST /api/v1/sync")
            .json(json!({"subscriber": SUBSCRIBER, "wait_ms": 0}))
            .returns(200, fixtures::news())
            .by(move |client| async move { client.subscription().poll(subscriber).await.map(drop) }),
        Row::new("syncLookup", "POST /api/v1/sync/lookup")
            .json(json!({"digest": DIGEST}))
            .returns(200, fixtures::found())
            .by(|client| async move {
                let found = client.subscription().lookup(Digest::of_key("ck_test_EXAMPLE1")).await?;
                let key = found.key.expect("a key");
                assert_eq!((found.seq, key.id.as_str()), (7, fixtures::KEY));
                assert_eq!((key.family, key.mode), (Family::Commerce, Mode::Test));
                assert_eq!(key.operating_model, OperatingModel::PrimaryMerchant);
                assert!(key.application_enabled);
                Ok(())
            }),
    ]
}

fn audit() -> Vec<Row> {
    vec![
        Row::new(
            "listAuditLog",
            "GET /api/v1/audit-log?limit=50&cursor=c1&action=api_key.revoked&target_id=key&actor_id=user_7\
             &since=2026-02-23T12%3A00%3A00Z&until=2027-01-01T00%3A00%3A00Z",
        )
        .returns(200, json!([fixtures::audit_entry()]))
        .by(|client| async move {
            let list = client.audit_log().list().limit(50).cursor("c1").action("api_key.revoked");
            let list = list.target_id("key").actor_id("user_7").since(noon()).until(end());
            let page = list.await?;
            assert_eq!(page.next_cursor, None);
            let entry = &page.items[0];
            assert_eq!(entry.id, "0198c0de-0000-7000-8000-000000000009");
            assert_eq!((entry.occurred_at, entry.action.as_str()), (UnixSeconds::from(noon()), "api_key.revoked"));
            assert_eq!(entry.actor.r#type, ActorKind::Merchant);
            assert_eq!(entry.actor.id, "user_7");
            assert_eq!(entry.target.r#type, TargetKind::ApiKey);
            assert_eq!(entry.target.id, fixtures::KEY);
            assert_eq!((entry.request_id.as_deref(), entry.ip.as_deref()), (Some(REQUEST_ID), None));
            assert_eq!(entry.changes, json!({"status": "revoked"}));
            Ok(())
        }),
        Row::new("listAuditLog", "GET /api/v1/audit-log")
            .returns(200, json!([]))
            .by(|client| async move { client.audit_log().list().await.map(drop) }),
    ]
}

fn operator() -> Vec<Row> {
    vec![
        Row::new("getAccount", "GET /api/v1/accounts/acme")
            .returns(200, fixtures::account())
            .by(|client| async move {
                let account = client.accounts().get("acme").await?;
                assert_eq!(account.id, "acme");
                assert_eq!(account.operating_model, OperatingModel::Ecosystem);
                Ok(())
            }),
        Row::new("putAccount", "PUT /api/v1/accounts/acme")
            .json(json!({"operating_model": "managed_ecosystem"}))
            .returns(200, fixtures::account())
            .by(|client| async move {
                client
                    .accounts()
                    .set_operating_model("acme", OperatingModel::ManagedEcosystem)
                    .await
                    .map(drop)
            }),
        Row::new("createServiceKey", "POST /api/v1/service-keys")
            .json(json!({"name": "checkout gateway"}))
            .creates_with_own_key()
            .returns(201, fixtures::created_service_key())
            .by(|client| async move {
                let created = client
                    .service_keys()
                    .create("checkout gateway")
                    .idempotency_key(OWN_KEY)
                    .await?;
                assert_eq!(
                    (created.id.as_str(), created.name.as_str()),
                    (fixtures::KEY, "checkout gateway")
                );
                assert_eq!(created.key.expose(), "tks_EXAMPLE1");
                assert_eq!(created.created_at, UnixSeconds::from(noon()));
                Ok(())
            }),
        Row::new("createServiceKey", "POST /api/v1/service-keys")
            .json(json!({"name": "checkout gateway"}))
            .creates()
            .returns(201, fixtures::created_service_key())
            .by(|client| async move {
                client
                    .service_keys()
                    .create("checkout gateway")
                    .await
                    .map(drop)
            }),
        Row::new("listServiceKeys", "GET /api/v1/service-keys")
            .returns(200, json!([fixtures::service_key()]))
            .by(|client| async move {
                let keys = client.service_keys().list().await?;
                assert_eq!(
                    (keys[0].id.as_str(), keys[0].last4.as_str()),
                    (fixtures::KEY, "9z8a")
                );
                assert_eq!(keys[0].revoked_at, Some(UnixSeconds::from(noon())));
                Ok(())
            }),
        Row::new("revokeServiceKey", "DELETE /api/v1/service-keys/key")
            .by(|client| async move { client.service_keys().revoke("key").await }),
    ]
}

/// Returns the method, path template and description of an operation.
fn operation(id: &str) -> (&'static str, &'static str, &'static Value) {
    let found = operations().find(|(_, _, operation)| operation["operationId"] == id);
    found.unwrap_or_else(|| panic!("the document has no operation {id}"))
}

fn operations() -> impl Iterator<Item = (&'static str, &'static str, &'static Value)> {
    let paths = DOCUMENT["paths"].as_object().unwrap();
    paths.iter().flat_map(|(path, methods)| {
        methods
            .as_object()
            .unwrap()
            .iter()
            .map(|(method, operation)| (method.as_str(), path.as_str(), operation))
    })
}

/// Returns the names of an operation's parameters in `location` (`query`, `header` or `path`).
fn parameters(operation: &'static Value, location: &str) -> BTreeSet<&'static str> {
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    parameters
        .filter(|parameter| parameter["in"] == location)
        .map(|parameter| parameter["name"].as_str().unwrap())
        .collect()
}

/// Returns the top-level fields of a schema.
fn schema_fields(schema: &'static Value) -> BTreeSet<&'static str> {
    if let Some(reference) = schema["$ref"].as_str() {
        return schema_fields(DOCUMENT.pointer(reference.trim_start_matches('#')).unwrap());
    }
    let parts = ["allOf", "oneOf"]
        .into_iter()
        .filter_map(|part| schema[part].as_array())
        .flatten();
    let own = schema["properties"]
        .as_object()
        .into_iter()
        .flat_map(Map::keys)
        .map(String::as_str);
    own.chain(parts.flat_map(schema_fields))
        .chain(schema.get("items").into_iter().flat_map(schema_fields))
        .collect()
}

/// Returns the schema of a body, which is the same for each of its media types.
fn only_schema(body: &'static Value) -> Option<&'static Value> {
    let mut schemas = body["content"]
        .as_object()?
        .values()
        .map(|content| &content["schema"]);
    let first = schemas.next()?;
    assert!(schemas.all(|other| other == first), "{body}");
    Some(first)
}

fn names(object: &Value) -> impl Iterator<Item = &str> {
    object
        .as_object()
        .into_iter()
        .flat_map(Map::keys)
        .map(String::as_str)
}

/// Returns whether a path matches a template.
fn matches_template(path: &str, template: &str) -> bool {
    let (path, template): (Vec<_>, Vec<_>) =
        (path.split('/').collect(), template.split('/').collect());
    path.len() == template.len()
        && path.iter().zip(template).all(|(part, expected)| {
            if expected.starts_with('{') {
                !part.is_empty()
            } else {
                *part == expected
            }
        })
}

#[test]
fn every_documented_operation_has_a_call() {
    let not_for_clients = |operation: &Value| {
        let tags: Vec<_> = operation["tags"].as_array().unwrap().iter().collect();
        // A client of Tollkey verifies keys with `verify`.
        tags == ["gateways"] || tags == ["health"] || tags == ["unkey"]
    };
    let documented: BTreeSet<_> = operations()
        .filter(|(_, _, operation)| !not_for_clients(operation))
        .map(|(_, _, operation)| operation["operationId"].as_str().unwrap())
        .collect();
    let called: BTreeSet<_> = rows().iter().map(|row| row.operation).collect();
    assert_eq!(called, documented);
    assert!(called.len() > 30, "{called:?}");
}

#[tokio::test]
async fn every_call_sends_its_request_and_reads_the_response() {
    for row in rows() {
        let server = Server::answering([row.response_with()]).await;
        (row.call)(server.client())
            .await
            .unwrap_or_else(|error| panic!("{}: {error}", row.sends));
        let request = server.only_request().await;

        assert_eq!(
            format!("{} {}", request.method, target(&request)),
            row.sends
        );
        let mut headers = BTreeMap::from([
            ("accept", "application/json".to_owned()),
            ("authorization", format!("Bearer {TOKEN}")),
            (
                "host",
                server.url().trim_start_matches("http://").to_owned(),
            ),
            (
                "user-agent",
                format!("tollkey-rust/{}", env!("CARGO_PKG_VERSION")),
            ),
        ]);
        match &row.body {
            Body::None => assert!(request.body.is_empty(), "{}", row.sends),
            Body::Json(body) => {
                assert_eq!(
                    request.body_json::<Value>().unwrap(),
                    *body,
                    "{}",
                    row.sends
                );
                headers.insert("content-type", "application/json".to_owned());
            }
            Body::Form(body) => {
                assert_eq!(
                    String::from_utf8_lossy(&request.body),
                    *body,
                    "{}",
                    row.sends
                );
                headers.insert(
                    "content-type",
                    "application/x-www-form-urlencoded".to_owned(),
                );
            }
        }
        if !request.body.is_empty() {
            headers.insert("content-length", request.body.len().to_string());
        }
        match row.idempotency_key {
            None => {}
            Some(KeySource::Caller) => drop(headers.insert("idempotency-key", OWN_KEY.to_owned())),
            Some(KeySource::Random) => {
                let key = only_header(&request, "idempotency-key");
                let version = key.parse::<uuid::Uuid>().map(|id| id.get_version_num());
                assert_eq!(version, Ok(4), "{}: {key}", row.sends);
                headers.insert("idempotency-key", key);
            }
        }
        assert_eq!(sent_headers(&request), headers, "{}", row.sends);
    }
}

/// Returns all headers except a `content-length` of 0.
fn sent_headers(request: &Request) -> BTreeMap<&str, String> {
    let mut headers: BTreeMap<_, _> = request
        .headers
        .keys()
        .map(|name| (name.as_str(), header(request, name.as_str()).join(" and ")))
        .collect();
    if headers
        .get("content-length")
        .is_some_and(|length| length == "0")
    {
        headers.remove("content-length");
    }
    headers
}

#[test]
fn requests_and_responses_match_the_document() {
    for row in rows() {
        let (method, template, described) = operation(row.operation);
        let (sent_method, sent) = row.sends.split_once(' ').unwrap();
        let path = sent.split('?').next().unwrap();
        assert_eq!(sent_method.to_lowercase(), method, "{}", row.operation);
        assert!(
            matches_template(path, template),
            "{}: {path} is not {template}",
            row.operation
        );
        let takes_key = parameters(described, "header").contains("Idempotency-Key");
        assert_eq!(
            row.idempotency_key.is_some(),
            takes_key,
            "{}",
            row.operation
        );
        // The mock responses must have documented fields only.
        let (status, answer) = &row.answer;
        let response = &described["responses"][status.to_string()];
        assert!(
            response.is_object(),
            "{}: {status} is not documented",
            row.operation
        );
        let Some(answer) = answer else { continue };
        let allowed = schema_fields(only_schema(response).unwrap());
        let items = answer
            .as_array()
            .map_or(std::slice::from_ref(answer), Vec::as_slice);
        for name in items.iter().flat_map(names) {
            assert!(
                allowed.contains(name),
                "{}: {name} is not documented",
                row.operation
            );
        }
    }
}

#[test]
fn every_documented_argument_is_set_by_a_call() {
    let mut set = BTreeMap::<_, BTreeSet<String>>::new();
    for row in rows() {
        let set = set.entry(row.operation).or_default();
        let query = row.sends.split_once('?').map_or("", |(_, query)| query);
        let form = if let Body::Form(form) = row.body {
            form
        } else {
            ""
        };
        let pairs = query
            .split('&')
            .chain(form.split('&'))
            .filter(|pair| !pair.is_empty());
        set.extend(pairs.map(|pair| pair.split('=').next().unwrap().to_owned()));
        if let Body::Json(body) = &row.body {
            set.extend(names(body).map(str::to_owned));
        }
    }
    for (id, set) in set {
        let (_, _, described) = operation(id);
        let query = parameters(described, "query");
        let body = only_schema(&described["requestBody"])
            .map(schema_fields)
            .unwrap_or_default();
        let mut settable: BTreeSet<String> =
            query.into_iter().chain(body).map(str::to_owned).collect();
        // `Client::for_account` is tested below.
        settable.remove("account");
        match id {
            // The mode is part of the key and cannot be changed.
            "updateCommerceKey" => assert!(settable.remove("mode")),
            // The server detects the type of a key by its prefix, and the client authenticates with a header.
            "introspect" => {
                for name in ["token_type_hint", "client_id", "client_secret"] {
                    assert!(settable.remove(name), "{name}");
                }
            }
            _ => {}
        }
        assert_eq!(set, settable, "{id}");
    }
}

#[tokio::test]
async fn account_is_sent_where_it_is_documented() {
    let mut named = 0;
    for row in rows() {
        let server = Server::answering([row.response_with()]).await;
        (row.call)(server.client().for_account("acme & co"))
            .await
            .unwrap();
        let request = server.only_request().await;
        let account: Vec<_> = request
            .url
            .query_pairs()
            .filter(|(name, _)| name == "account")
            .map(|(_, value)| value)
            .collect();
        if parameters(operation(row.operation).2, "query").contains("account") {
            assert_eq!(account, ["acme & co"], "{}", row.sends);
            named += 1;
        } else {
            assert!(account.is_empty(), "{}: {account:?}", row.sends);
        }
    }
    assert!(named > 0);
}
