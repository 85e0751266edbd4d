//! The authorization table: every operation of the OpenAPI document and who may call it, walked as nobody, as each
//! wrong kind of caller, and as another account.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use tollkey_core::{Family, KeyText, Mode, key_text::Kind};

use crate::support::{App, Call, each_backend};

/// Who may call an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    /// Anybody.
    Public,
    /// A management token of the account; an operator with `?account=`.
    Merchant,
    /// A management token with the role `operator`.
    Operator,
    /// A service key, a token with the role `service`, a secret key.
    Verifying,
    /// An API key, about itself.
    Key,
}

use Who::{Key, Merchant, Operator, Public, Verifying};

/// One row per operation. A new operation without a row fails `every_operation_has_a_row`.
const TABLE: [(&str, &str, Who); 26] = [
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
    ("DELETE", "/api/v1/applications/{id}/api-keys/{keyId}", Merchant),
    ("POST", "/api/v1/verify", Verifying),
    ("POST", "/api/v1/verify/batch", Verifying),
    ("POST", "/api/v1/introspect", Verifying),
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

/// What each kind of caller presents. `own` is the account that the things in the paths belong to.
struct Callers {
    merchant: String,
    other_merchant: String,
    accountless: String,
    operator: String,
    service: String,
    service_key: String,
    application_key: String,
    secret_key: String,
}

/// Ids of things that are there, to fill into the templates.
struct Things {
    application: String,
    key: String,
    service_key: String,
}

async fn prepare(app: &App) -> (Callers, Things) {
    let merchant = app.merchant("acme");
    let application = app.application(&merchant, "Web Store").await;
    let key = app.key(&merchant, &application, json!({})).await;
    let service_key = app.service_key().await;
    let callers = Callers {
        other_merchant: app.merchant("globex"),
        accountless: app.token(None, &[]),
        operator: app.operator(),
        service: app.service(),
        service_key: service_key.text,
        application_key: key.text,
        secret_key: app.insert_key("acme", Family::Secret, Mode::Live).await,
        merchant,
    };
    (callers, Things { application, key: key.id, service_key: service_key.id })
}

fn call(app: &App, method: &str, template: &str, things: &Things) -> Call {
    let id = if template.contains("accounts") {
        "acme"
    } else if template.contains("service-keys") {
        &things.service_key
    } else {
        &things.application
    };
    let path = template
        .replace("{id}", id)
        .replace("{keyId}", &things.key)
        .replace("{requirements}", "-")
        .replace("{tail}", "links");
    let call = app.call(method, &path);
    match body(method, template) {
        Some(body) if template.ends_with("introspect") => call.form(body.as_str().unwrap_or_default()),
        Some(body) => call.json(body),
        None => call,
    }
}

/// A body that would be accepted.
fn body(method: &str, template: &str) -> Option<Value> {
    let body = match (method, template.trim_start_matches("/api/v1")) {
        ("POST", "/applications") => json!({"name": "Another"}),
        ("PATCH", "/applications/{id}") => json!({"description": "Changed"}),
        ("PATCH", "/applications/{id}/status") => json!({"isEnabled": false}),
        ("POST", "/applications/{id}/api-keys") => json!({"description": "Another"}),
        ("POST", "/verify") => json!({"key": "x"}),
        ("POST", "/verify/batch") => json!({"requests": [{"key": "x"}]}),
        ("POST", "/introspect") => json!("token=x"),
        ("PUT", "/accounts/{id}") => json!({"operating_model": "ecosystem"}),
        ("POST", "/service-keys") => json!({"name": "Another"}),
        _ => return None,
    };
    Some(body)
}

#[test]
fn every_operation_has_a_row() {
    let documented: BTreeSet<(String, String)> =
        tollkey_server::openapi::operations().map(|(path, method)| (method.to_string(), path)).collect();
    let listed: BTreeSet<(String, String)> =
        TABLE.into_iter().map(|(method, path, _)| (method.to_owned(), path.to_owned())).collect();
    assert_eq!(documented, listed);
}

#[actix_web::test]
async fn nobody_is_401_and_two_credentials_are_400_everywhere_but_on_public_routes() {
    each_backend(async |app: &App| {
        let (callers, things) = prepare(app).await;
        for (method, template, who) in TABLE.into_iter() {
            let nobody = call(app, method, template, &things).await;
            if who == Public {
                assert_eq!(nobody.status, 200, "{method} {template} {nobody}");
                continue;
            }
            assert_eq!((nobody.status, nobody.code().as_str()), (401, "missing_credentials"), "{method} {template}");
            assert_eq!(nobody.header("www-authenticate"), Some("Bearer realm=\"tollkey\""), "{method} {template}");
            let merchant = &callers.merchant;
            let twice = call(app, method, template, &things).bearer(merchant).bearer(merchant).await;
            assert_eq!((twice.status, twice.code().as_str()), (400, "multiple_credentials"), "{method} {template}");
            let both = call(app, method, template, &things)
                .bearer(merchant)
                .header("x-api-key", &callers.application_key)
                .await;
            assert_eq!((both.status, both.code().as_str()), (400, "multiple_credentials"), "{method} {template}");
        }
    })
    .await;
}

#[actix_web::test]
async fn an_invalid_credential_is_401_everywhere() {
    each_backend(async |app: &App| {
        let (_, things) = prepare(app).await;
        let unknown = |kind| {
            let mut rng = <rand::rngs::StdRng as rand::SeedableRng>::seed_from_u64(9);
            KeyText::mint(kind, &mut rng).expose().to_owned()
        };
        let invalid = [
            ("garbage".to_owned(), "invalid_api_key"),
            ("a.b.c".to_owned(), "invalid_token"),
            (unknown(Kind::Key(Family::Application, Mode::Live)), "invalid_api_key"),
            (unknown(Kind::Key(Family::Secret, Mode::Test)), "invalid_api_key"),
            (unknown(Kind::ServiceKey), "invalid_api_key"),
        ];
        for (method, template, who) in TABLE.into_iter() {
            for (credential, code) in invalid.iter().filter(|_| who != Public) {
                let reply = call(app, method, template, &things).bearer(credential).await;
                assert_eq!((reply.status, reply.code().as_str()), (401, *code), "{method} {template}");
            }
            if who != Public {
                let basic = call(app, method, template, &things).header("authorization", "Basic YTpi").await;
                assert_eq!((basic.status, basic.code().as_str()), (401, "invalid_api_key"), "{method} {template}");
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn a_valid_credential_of_the_wrong_kind_is_403_everywhere() {
    each_backend(async |app: &App| {
        let (callers, things) = prepare(app).await;
        let all = [
            ("merchant", &callers.merchant),
            ("accountless", &callers.accountless),
            ("operator", &callers.operator),
            ("service", &callers.service),
            ("service_key", &callers.service_key),
            ("application_key", &callers.application_key),
            ("secret_key", &callers.secret_key),
        ];
        for (method, template, who) in TABLE.into_iter() {
            let right: &[&str] = match who {
                Public => continue,
                Merchant => &["merchant", "operator"],
                Operator => &["operator"],
                Verifying => &["service", "service_key", "secret_key"],
                Key => &["application_key", "secret_key"],
            };
            for (name, credential) in all.iter().filter(|(name, _)| !right.contains(name)) {
                let reply = call(app, method, template, &things).bearer(credential).await;
                // To a gateway a service key is no API key, and so as good as unknown.
                let gateway_service = template.contains("/authz/") && *name == "service_key";
                let expected = if gateway_service { (401, "invalid_api_key") } else { (403, "forbidden") };
                assert_eq!((reply.status, reply.code().as_str()), expected, "{method} {template} as {name}: {reply}");
            }
        }
        // And nothing of all that did anything.
        let reply = app.get("/applications?include=apiKeys").bearer(&callers.merchant).await.json();
        assert_eq!(reply["totalItems"], 1);
        assert_eq!(reply["items"][0]["isEnabled"], true);
        assert_eq!(reply["items"][0]["apiKeys"][0]["status"], "active");
    })
    .await;
}

#[actix_web::test]
async fn another_accounts_things_are_404_as_unknown_ones_and_stay_as_they_are() {
    each_backend(async |app: &App| {
        let (callers, things) = prepare(app).await;
        let before = app.get("/applications?include=apiKeys").bearer(&callers.merchant).await.body;
        let unknown = Things {
            application: "0198c0de-0000-7000-8000-000000000001".to_owned(),
            key: "0198c0de-0000-7000-8000-000000000002".to_owned(),
            service_key: things.service_key.clone(),
        };
        let malformed =
            Things { application: "x".to_owned(), key: "y".to_owned(), service_key: things.service_key.clone() };
        for (method, template, _) in
            TABLE.into_iter().filter(|(_, path, who)| *who == Merchant && path.contains("{id}"))
        {
            let mut bodies = BTreeSet::new();
            for things in [&things, &unknown, &malformed] {
                let reply = call(app, method, template, things).bearer(&callers.other_merchant).await;
                assert_eq!(reply.status, 404, "{method} {template}");
                let mut body = reply.json();
                body.as_object_mut().expect("an object").remove("request_id");
                bodies.insert(body.to_string());
            }
            assert_eq!(bodies.len(), 1, "{method} {template} tells them apart: {bodies:?}");
        }
        assert_eq!(app.get("/applications").bearer(&callers.other_merchant).await.json()["totalItems"], 0);
        assert_eq!(app.get("/audit-log").bearer(&callers.other_merchant).await.body, "[]");
        assert_eq!(app.get("/applications?include=apiKeys").bearer(&callers.merchant).await.body, before);
    })
    .await;
}

#[actix_web::test]
async fn an_operator_manages_any_account_by_name_and_nobody_else_does() {
    each_backend(async |app: &App| {
        let (callers, things) = prepare(app).await;
        let operator = &callers.operator;
        let path = format!("/applications/{}", things.application);
        assert_eq!(app.get(&format!("{path}?account=acme")).bearer(operator).await.status, 200);
        assert_eq!(app.get(&format!("{path}?account=globex")).bearer(operator).await.status, 404);
        assert_eq!(app.get("/applications?account=acme&page=1").bearer(operator).await.json()["totalItems"], 1);
        assert_eq!(app.get("/audit-log?account=acme").bearer(operator).await.status, 200);
        for query in ["", "?account=", "?account=a%20b", "?account=acme&account=acme"] {
            let reply = app.get(&format!("{path}{query}")).bearer(operator).await;
            assert_eq!(
                (reply.status, reply.json()["errors"][0]["pointer"].as_str()),
                (400, Some("account")),
                "{query}"
            );
        }
        // Not even with one's own account's name.
        for token in [&callers.merchant, &callers.other_merchant] {
            for query in ["?account=acme", "?account=", "?account=acme&account=acme"] {
                let reply = app.get(&format!("{path}{query}")).bearer(token).await;
                assert_eq!((reply.status, reply.code().as_str()), (403, "forbidden"), "{query}");
            }
        }
    })
    .await;
}
