//! The authorization table: every operation of the OpenAPI document with its allowed callers. Each is called without a
//! credential, as each wrong kind of caller, and as another account.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tollkey_core::{Family, Mode, PlainKey, key_format::CredentialKind};

use crate::support::{App, Call, Reply, each_backend};

/// The callers that an operation allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AllowedCaller {
    /// Every caller, without a credential.
    Public,
    /// A management token of the account; an operator with `?account=`.
    Merchant,
    /// A management token as in `Merchant`, or a secret key of the account.
    Account,
    /// A management token with the role `operator`.
    Operator,
    /// A service key, a token with the role `service`, a secret key.
    Verifying,
    /// A service key, a token with the role `service`.
    Service,
    /// An API key, for itself.
    Key,
}

use AllowedCaller::{Account, Key, Merchant, Operator, Public, Service, Verifying};

/// One row per operation. A new operation without a row fails `every_operation_has_a_row`.
const TABLE: [(&str, &str, AllowedCaller); 42] = [
    ("GET", "/livez", Public),
    ("GET", "/readyz", Public),
    ("GET", "/openapi.json", Public),
    ("POST", "/api/v1/applications", Merchant),
    ("GET", "/api/v1/applications", Merchant),
    ("GET", "/api/v1/applications/{id}", Merchant),
    ("PATCH", "/api/v1/applications/{id}", Merchant),
    ("DELETE", "/api/v1/applications/{id}", Merchant),
    ("PATCH", "/api/v1/applications/{id}/status", Merchant),
    ("POST", "/api/v1/applications/{id}/api-keys", Merchant),
    ("GET", "/api/v1/applications/{id}/api-keys", Merchant),
    (
        "DELETE",
        "/api/v1/applications/{id}/api-keys/{keyId}",
        Merchant,
    ),
    ("POST", "/api/v1/api-keys", Merchant),
    ("GET", "/api/v1/api-keys", Merchant),
    ("GET", "/api/v1/api-keys/{id}", Merchant),
    ("PATCH", "/api/v1/api-keys/{id}", Merchant),
    ("POST", "/api/v1/api-keys/{id}/revoke", Merchant),
    ("POST", "/api/v1/api-keys/{id}/suspend", Merchant),
    ("POST", "/api/v1/api-keys/{id}/resume", Merchant),
    ("POST", "/api/v1/api-keys/{id}/rotate", Merchant),
    ("POST", "/api/v1/account/api-keys", Account),
    ("GET", "/api/v1/account/api-keys", Account),
    ("DELETE", "/api/v1/account/api-keys/{id}", Account),
    ("POST", "/api/v1/account/api-keys/{id}/revoke", Account),
    ("GET", "/api/v1/account/audit-log", Account),
    ("POST", "/api/v1/verify", Verifying),
    ("POST", "/api/v1/verify/batch", Verifying),
    ("POST", "/api/v1/introspect", Verifying),
    ("POST", "/v2/keys.verifyKey", Verifying),
    ("POST", "/api/v1/sync", Service),
    ("POST", "/api/v1/sync/lookup", Service),
    ("GET", "/api/v1/whoami", Key),
    ("DELETE", "/api/v1/whoami", Key),
    ("GET", "/api/v1/authz/forward-auth", Key),
    ("GET", "/api/v1/authz/auth-request", Key),
    ("GET", "/api/v1/authz/ext-authz/{requirements}/{tail}", Key),
    ("GET", "/api/v1/audit-log", Merchant),
    ("GET", "/api/v1/accounts/{id}", Operator),
    ("PUT", "/api/v1/accounts/{id}", Operator),
    ("POST", "/api/v1/service-keys", Operator),
    ("GET", "/api/v1/service-keys", Operator),
    ("DELETE", "/api/v1/service-keys/{id}", Operator),
];

/// The table, with the operations that have a second path: the account operations under the path of their document.
fn rows() -> impl Iterator<Item = (&'static str, &'static str, AllowedCaller)> {
    let again = TABLE
        .into_iter()
        .filter(|(_, _, allowed)| *allowed == Account);
    TABLE
        .into_iter()
        .chain(
            again.map(|(method, path, allowed)| (method, path.trim_start_matches("/api"), allowed)),
        )
        .chain([("POST", "/api/v2/keys.verifyKey", Verifying)])
}

/// The code of a rejection, in the form of the operation's API.
fn code(reply: &Reply, template: &str) -> String {
    if template.contains("/v2/") {
        let json = reply.json();
        let kind = json["error"]["type"].as_str().unwrap_or_default();
        return kind.trim_start_matches("urn:tollkey:problem:").to_owned();
    }
    if !template.contains("/account/") {
        return reply.code();
    }
    let json = reply.json();
    assert!(json["data"].is_null(), "{reply}");
    assert_eq!(
        json["meta"]["requestId"].as_str(),
        reply.header("x-request-id"),
        "{reply}"
    );
    json["error"]["code"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn expected<'a>(template: &str, status: u16, code: &'a str) -> (u16, &'a str) {
    match (template.contains("/account/"), status) {
        (true, 400) => (status, "VALIDATION_ERROR"),
        (true, 401) => (status, "INVALID_API_KEY"),
        (true, 403) => (status, "FORBIDDEN"),
        _ => (status, code),
    }
}

/// The credential of each kind of caller. `merchant` and `secret_key` belong to the account of the resources.
struct Callers {
    merchant: String,
    other_merchant: String,
    accountless: String,
    operator: String,
    service: String,
    service_key: String,
    application_key: String,
    commerce_key: String,
    publishable_key: String,
    secret_key: String,
    other_secret_keys: [String; 2],
}

/// IDs of existing resources, to fill into the templates.
struct Resources {
    application: String,
    key: String,
    commerce_key: String,
    account_key: String,
    service_key: String,
}

async fn prepare(app: &App) -> (Callers, Resources) {
    let merchant = app.management_token("acme");
    let application = app.application(&merchant, "Web Store").await;
    let key = app.key(&merchant, &application, json!({})).await;
    let service_key = app.service_key().await;
    let insert = async |family| {
        app.insert("acme", &app.generate_key(family, Mode::Live), |_| ())
            .await
    };
    let commerce_key = insert(Family::Commerce).await;
    let account_key = insert(Family::Secret).await;
    let callers = Callers {
        other_merchant: app.management_token("globex"),
        accountless: app.token(None, &[]),
        operator: app.operator(),
        service: app.service(),
        service_key: service_key.text,
        application_key: key.text,
        commerce_key: commerce_key.text,
        publishable_key: app
            .insert_key("acme", Family::Publishable, Mode::Live)
            .await,
        secret_key: app.insert_key("acme", Family::Secret, Mode::Live).await,
        other_secret_keys: [
            app.insert_key("globex", Family::Secret, Mode::Live).await,
            app.insert_key("globex", Family::Secret, Mode::Test).await,
        ],
        merchant,
    };
    let resources = Resources {
        application,
        key: key.id,
        commerce_key: commerce_key.id,
        account_key: account_key.id,
        service_key: service_key.id,
    };
    (callers, resources)
}

fn call(app: &App, method: &str, template: &str, resources: &Resources) -> Call {
    let id = if template.contains("accounts") {
        "acme"
    } else if template.contains("service-keys") {
        &resources.service_key
    } else if template.contains("account/") {
        &resources.account_key
    } else if template.starts_with("/api/v1/api-keys") {
        &resources.commerce_key
    } else {
        &resources.application
    };
    let path = template
        .replace("{id}", id)
        .replace("{keyId}", &resources.key)
        .replace("{requirements}", "-")
        .replace("{tail}", "links");
    let call = app.call(method, &path);
    match body(method, template) {
        Some(body) if template.ends_with("introspect") => {
            call.form(body.as_str().unwrap_or_default())
        }
        Some(body) => call.json(body),
        None => call,
    }
}

fn body(method: &str, template: &str) -> Option<Value> {
    let body = match (
        method,
        template
            .trim_start_matches("/api")
            .trim_start_matches("/v1"),
    ) {
        ("POST", "/applications") => json!({"name": "Another"}),
        ("PATCH", "/applications/{id}") => json!({"description": "Changed"}),
        ("PATCH", "/applications/{id}/status") => json!({"isEnabled": false}),
        ("POST", "/applications/{id}/api-keys") => json!({"description": "Another"}),
        ("POST", "/api-keys") => json!({"name": "Another"}),
        ("PATCH", "/api-keys/{id}") => json!({"name": "Changed"}),
        ("POST", "/account/api-keys") => {
            json!({"name": "Another", "environment": "test", "access": "secret"})
        }
        ("POST", "/verify" | "/v2/keys.verifyKey") => json!({"key": "x"}),
        ("POST", "/verify/batch") => json!({"requests": [{"key": "x"}]}),
        ("POST", "/sync") => json!({"subscriber": "0f1e2d3c4b5a69788796a5b4c3d2e1f0"}),
        ("POST", "/sync/lookup") => json!({"digest": "00".repeat(32)}),
        ("POST", "/introspect") => json!("token=x"),
        ("PUT", "/accounts/{id}") => json!({"operating_model": "ecosystem"}),
        ("POST", "/service-keys") => json!({"name": "Another"}),
        _ => return None,
    };
    Some(body)
}

#[test]
fn every_operation_has_a_row() {
    let documented: BTreeSet<(String, String)> = tollkey_server::openapi::operations()
        .map(|(path, method)| (method.to_string(), path))
        .collect();
    let listed: BTreeSet<(String, String)> = TABLE
        .into_iter()
        .map(|(method, path, _)| (method.to_owned(), path.to_owned()))
        .collect();
    assert_eq!(documented, listed);
}

#[actix_web::test]
async fn protected_routes_require_exactly_one_credential() {
    each_backend(async |app: &App| {
        let (callers, resources) = prepare(app).await;
        for (method, template, allowed) in rows() {
            let anonymous = call(app, method, template, &resources).await;
            if allowed == Public {
                assert_eq!(anonymous.status, 200, "{method} {template} {anonymous}");
                continue;
            }
            let assert_rejected = |reply: &Reply, status, word| {
                let found = (reply.status, &*code(reply, template));
                assert_eq!(
                    found,
                    expected(template, status, word),
                    "{method} {template} {reply}"
                );
            };
            assert_rejected(&anonymous, 401, "missing_credentials");
            let mut challenges = vec!["Bearer realm=\"tollkey\""];
            if template.ends_with("/introspect") {
                challenges.insert(0, "Basic realm=\"tollkey\", charset=\"UTF-8\"");
            }
            assert_eq!(
                anonymous.all("www-authenticate"),
                challenges,
                "{method} {template}"
            );
            let merchant = &callers.merchant;
            let twice = call(app, method, template, &resources)
                .bearer(merchant)
                .bearer(merchant)
                .await;
            assert_rejected(&twice, 400, "multiple_credentials");
            let both = call(app, method, template, &resources)
                .bearer(merchant)
                .header("x-api-key", &callers.application_key)
                .await;
            assert_rejected(&both, 400, "multiple_credentials");
        }
    })
    .await;
}

#[actix_web::test]
async fn invalid_credential_is_401_everywhere() {
    each_backend(async |app: &App| {
        let (_, resources) = prepare(app).await;
        let unknown = |kind| {
            let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(9);
            PlainKey::generate(kind, &mut rng).expose().to_owned()
        };
        let invalid = [
            ("garbage".to_owned(), "invalid_api_key"),
            ("eyEXAMPLE.eyEXAMPLE.EXAMPLE".to_owned(), "invalid_token"),
            (
                unknown(CredentialKind::Key(Family::Application, Mode::Live)),
                "invalid_api_key",
            ),
            (
                unknown(CredentialKind::Key(Family::Secret, Mode::Test)),
                "invalid_api_key",
            ),
            (unknown(CredentialKind::ServiceKey), "invalid_api_key"),
        ];
        for (method, template, allowed) in rows() {
            for (credential, code) in invalid.iter().filter(|_| allowed != Public) {
                let reply = call(app, method, template, &resources)
                    .bearer(credential)
                    .await;
                let found = (reply.status, &*self::code(&reply, template));
                assert_eq!(found, expected(template, 401, code), "{method} {template}");
            }
            // Introspection accepts HTTP Basic; `introspection.rs` tests it.
            if allowed != Public && !template.ends_with("/introspect") {
                let basic = call(app, method, template, &resources)
                    .header("authorization", "Basic YTpi")
                    .await;
                let found = (basic.status, &*code(&basic, template));
                assert_eq!(
                    found,
                    expected(template, 401, "missing_credentials"),
                    "{method} {template}"
                );
                // RFC 6750, section 3.1: no error code for a request without Bearer credentials.
                assert_eq!(
                    basic.header("www-authenticate"),
                    Some("Bearer realm=\"tollkey\""),
                    "{method} {template}"
                );
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn wrong_kind_of_credential_is_403_everywhere() {
    each_backend(async |app: &App| {
        let (callers, resources) = prepare(app).await;
        let all = [
            ("merchant", &callers.merchant),
            ("accountless", &callers.accountless),
            ("operator", &callers.operator),
            ("service", &callers.service),
            ("service_key", &callers.service_key),
            ("application_key", &callers.application_key),
            ("commerce_key", &callers.commerce_key),
            ("publishable_key", &callers.publishable_key),
            ("secret_key", &callers.secret_key),
        ];
        for (method, template, allowed) in rows() {
            let allowed_names: &[&str] = match allowed {
                Public => continue,
                Merchant => &["merchant", "operator"],
                Account => &["merchant", "operator", "secret_key"],
                Operator => &["operator"],
                Verifying => &["service", "service_key", "secret_key"],
                Service => &["service", "service_key"],
                Key => &[
                    "application_key",
                    "commerce_key",
                    "publishable_key",
                    "secret_key",
                ],
            };
            for (name, credential) in all.iter().filter(|(name, _)| !allowed_names.contains(name)) {
                let reply = call(app, method, template, &resources)
                    .bearer(credential)
                    .await;
                // The gateway routes treat a service key as an unknown API key.
                let gateway_service = template.contains("/authz/") && *name == "service_key";
                let (status, word) = if gateway_service {
                    (401, "invalid_api_key")
                } else {
                    (403, "forbidden")
                };
                let found = (reply.status, &*code(&reply, template));
                assert_eq!(
                    found,
                    expected(template, status, word),
                    "{method} {template} as {name}: {reply}"
                );
            }
        }
        // No request changed anything.
        let reply = app
            .get("/applications?include=apiKeys")
            .bearer(&callers.merchant)
            .await
            .json();
        assert_eq!(reply["totalItems"], 1);
        assert_eq!(reply["items"][0]["isEnabled"], true);
        assert_eq!(reply["items"][0]["apiKeys"][0]["status"], "active");
    })
    .await;
}

async fn everything(app: &App, merchant: &str) -> Vec<String> {
    let mut all = Vec::new();
    for path in ["/applications?include=apiKeys", "/api-keys", "/audit-log"] {
        all.push(app.get(path).bearer(merchant).await.body);
    }
    all.push(app.get("/account/api-keys").bearer(merchant).await.json()["data"].to_string());
    all
}

#[actix_web::test]
async fn resources_of_other_accounts_are_404() {
    each_backend(async |app: &App| {
        let (callers, resources) = prepare(app).await;
        // The last use of the keys is written before the comparison: the server writes it every few seconds.
        for key in callers
            .other_secret_keys
            .iter()
            .chain([&callers.secret_key])
        {
            assert_eq!(app.get("/whoami").bearer(key).await.status, 200);
        }
        app.running().state().service.flush_usage().await;
        let before = everything(app, &callers.merchant).await;
        let others = everything(app, &callers.other_merchant).await;
        let like = |key: &str| Resources {
            application: key.to_owned(),
            key: key.to_owned(),
            commerce_key: key.to_owned(),
            account_key: key.to_owned(),
            service_key: resources.service_key.clone(),
        };
        // Resources of another API are not found either, not even those of the same account.
        let unknown = like("0198c0de-0000-7000-8000-000000000001");
        let malformed = like("x");
        let of_another_surface = Resources {
            application: resources.commerce_key.clone(),
            key: resources.account_key.clone(),
            commerce_key: resources.key.clone(),
            account_key: resources.commerce_key.clone(),
            service_key: resources.service_key.clone(),
        };
        let mut requests = 0;
        for (method, template, allowed) in rows().filter(|(_, path, _)| path.contains("{id}")) {
            let callers: &[&String] = match allowed {
                Merchant => &[&callers.other_merchant],
                Account => &[
                    &callers.other_merchant,
                    &callers.other_secret_keys[0],
                    &callers.other_secret_keys[1],
                ],
                _ => continue,
            };
            let mut bodies = BTreeSet::new();
            for caller in callers {
                for resources in [&resources, &unknown, &malformed, &of_another_surface] {
                    let reply = call(app, method, template, resources).bearer(caller).await;
                    assert_eq!(reply.status, 404, "{method} {template}");
                    let id = reply.header("x-request-id").unwrap_or_default();
                    bodies.insert(reply.body.replace(id, "(id)"));
                    requests += 1;
                }
            }
            assert_eq!(
                bodies.len(),
                1,
                "{method} {template} has different responses: {bodies:?}"
            );
        }
        assert!(requests > 80, "{requests}");
        let mut own = [&callers.merchant, &callers.secret_key].into_iter().cycle();
        for (method, template, allowed) in rows().filter(|(_, path, _)| path.contains("{id}")) {
            if matches!(allowed, Merchant | Account) {
                let caller = if allowed == Merchant {
                    &callers.merchant
                } else {
                    own.next().expect("a caller")
                };
                let reply = call(app, method, template, &of_another_surface)
                    .bearer(caller)
                    .await;
                assert_eq!(reply.status, 404, "{method} {template}: {reply}");
            }
        }
        assert_eq!(everything(app, &callers.other_merchant).await, others);
        assert_eq!(everything(app, &callers.merchant).await, before);
    })
    .await;
}

#[actix_web::test]
async fn only_operators_may_name_an_account() {
    each_backend(async |app: &App| {
        let (callers, resources) = prepare(app).await;
        let operator = &callers.operator;
        let path = format!("/applications/{}", resources.application);
        assert_eq!(
            app.get(&format!("{path}?account=acme"))
                .bearer(operator)
                .await
                .status,
            200
        );
        assert_eq!(
            app.get(&format!("{path}?account=globex"))
                .bearer(operator)
                .await
                .status,
            404
        );
        assert_eq!(
            app.get("/applications?account=acme&page=1")
                .bearer(operator)
                .await
                .json()["totalItems"],
            1
        );
        assert_eq!(
            app.get("/audit-log?account=acme")
                .bearer(operator)
                .await
                .status,
            200
        );
        for query in [
            "",
            "?account=",
            "?account=a%20b",
            "?account=.",
            "?account=..",
            "?account=acme&account=acme",
        ] {
            let reply = app.get(&format!("{path}{query}")).bearer(operator).await;
            assert_eq!(
                (reply.status, reply.json()["errors"][0]["pointer"].as_str()),
                (400, Some("account")),
                "{query}"
            );
        }
        // Only operators may name an account, even if it is the caller's own.
        for token in [&callers.merchant, &callers.other_merchant] {
            for query in ["?account=acme", "?account=", "?account=acme&account=acme"] {
                let reply = app.get(&format!("{path}{query}")).bearer(token).await;
                assert_eq!(
                    (reply.status, reply.code().as_str()),
                    (403, "forbidden"),
                    "{query}"
                );
            }
        }
    })
    .await;
}
