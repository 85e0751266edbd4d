//! Behavior of every API: request IDs, caching, security headers, readiness, logs without secrets.

use std::{
    io,
    sync::{
        Arc, Mutex, Once, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rand::{SeedableRng as _, rngs::StdRng};
use serde_json::json;
use tollkey_core::{Clock as _, Digest, Family, Mode};
use tollkey_server::{
    assembly,
    auth::jwt::{NewToken, create_token},
    server,
};
use tollkey_service::Random;
use tollkey_store::{Backend, testing::Database};
use tollkey_verifier::testing::ManualClock;
use tracing_subscriber::{
    Layer as _,
    filter::dynamic_filter_fn,
    fmt::{self, format::FmtSpan},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::support::{App, Call, SECRET, each_backend, eventually, settings};

/// Whether the server generated the request ID: `req_` and a ULID.
fn is_generated(id: &str) -> bool {
    let crockford = |b: u8| b.is_ascii_digit() || (b.is_ascii_uppercase() && !b"ILOU".contains(&b));
    id.strip_prefix("req_")
        .is_some_and(|ulid| ulid.len() == 26 && ulid.bytes().all(crockford))
}

#[actix_web::test]
async fn well_formed_request_id_is_kept_others_are_replaced() {
    each_backend(async |app: &App| {
        let key = app.insert_key("acme", Family::Commerce, Mode::Live).await;
        let longest = "x".repeat(128);
        for id in [
            "a",
            "req_01KDVDNA00HXPX69B46WBKBWSC",
            "0af76519-16cd.43dd:8448_Z",
            longest.as_str(),
        ] {
            for call in [
                app.get("/nothing"),
                app.get("/livez"),
                app.get("/whoami"),
                app.get("/authz/forward-auth").bearer(&key),
            ] {
                let reply = call.header("x-request-id", id).await;
                assert_eq!(reply.header("x-request-id"), Some(id), "{reply}");
                assert!(
                    reply.status == 200 || reply.json()["request_id"] == id,
                    "{reply}"
                );
            }
        }
        let too_long = "x".repeat(129);
        let mut created = std::collections::BTreeSet::new();
        for id in [
            "",
            "a b",
            "a,b",
            "é",
            "<script>",
            "a/b",
            "a\"b",
            "a;b",
            "a%0d%0ab",
            too_long.as_str(),
        ] {
            let reply = app.get("/nothing").header("x-request-id", id).await;
            let own = reply.header("x-request-id").unwrap().to_owned();
            assert!(is_generated(&own), "{id:?}: {own}");
            assert_eq!(reply.json()["request_id"], own);
            created.insert(own);
        }
        let twice = app
            .get("/nothing")
            .header("x-request-id", "a")
            .header("x-request-id", "a")
            .await;
        assert!(
            twice.header("x-request-id").is_some_and(is_generated),
            "{twice}"
        );
        for path in [
            "/livez",
            "/whoami",
            "/authz/forward-auth",
            "/docs/",
            "/docs",
            "/openapi.json",
        ] {
            let reply = app.get(path).await;
            assert_eq!(
                reply
                    .headers
                    .iter()
                    .filter(|(name, _)| name == "x-request-id")
                    .count(),
                1,
                "{path}"
            );
            let own = reply.header("x-request-id").unwrap().to_owned();
            assert!(is_generated(&own), "{path}: {own}");
            created.insert(own);
        }
        assert_eq!(created.len(), 16, "each ID is unique: {created:?}");
    })
    .await;
}

#[actix_web::test]
async fn api_responses_and_errors_are_not_cacheable() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let key = app.insert_key("acme", Family::Secret, Mode::Live).await;
        for call in [
            app.get("/applications").bearer(&token),
            app.post("/applications", json!({"name": "Web Store"}))
                .bearer(&token),
            app.get("/applications"),
            app.get("/applications/x").bearer(&token),
            app.post("/verify", json!({"key": key})).bearer(&key),
            app.post("/verify", json!({})).bearer(&key),
            app.call("POST", "/introspect").form("token=x").bearer(&key),
            app.get("/whoami").bearer(&key),
            app.get("/audit-log").bearer(&token),
            app.get("/service-keys").bearer(&app.operator()),
            app.get("/nothing"),
            app.get("/docs/nothing"),
            app.call("PUT", "/livez"),
        ] {
            let reply = call.await;
            assert_eq!(reply.header("cache-control"), Some("no-store"), "{reply}");
            assert_eq!(
                reply.header("x-content-type-options"),
                Some("nosniff"),
                "{reply}"
            );
            for name in ["server", "x-powered-by", "set-cookie"] {
                assert_eq!(reply.header(name), None, "{reply}");
            }
            if reply.status >= 400 {
                assert_eq!(
                    reply.header("content-type"),
                    Some("application/problem+json"),
                    "{reply}"
                );
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn html_has_security_headers_and_no_inline_code() {
    each_backend(async |app: &App| {
        for path in [
            "/docs/",
            "/docs/index.html",
            "/docs/oauth2-redirect.html",
            "/docs/swagger-ui-bundle.js",
            "/docs",
            "/docs/x",
        ] {
            let reply = app.get(path).await;
            let policy = reply.header("content-security-policy").expect("a policy");
            for directive in [
                "default-src 'self'",
                "frame-ancestors 'none'",
                "base-uri 'none'",
                "form-action 'self'",
            ] {
                assert!(
                    policy.split(';').any(|own| own.trim() == directive),
                    "{path}: {directive} in {policy}"
                );
            }
            assert!(!policy.contains("unsafe"), "{path}: {policy}");
            let shown = [
                "x-frame-options",
                "x-content-type-options",
                "referrer-policy",
                "cross-origin-opener-policy",
            ];
            let shown = shown.map(|name| reply.header(name).unwrap_or_default());
            assert_eq!(
                shown,
                ["DENY", "nosniff", "same-origin", "same-origin"],
                "{path}"
            );
        }
        // The policy would block inline scripts and styles.
        let page = app.get("/docs/").await.body;
        assert!(
            !page.contains("<style") && !page.contains(" style=") && !page.contains("<script>"),
            "{page}"
        );
        for path in ["/livez", "/openapi.json", "/nothing", "/api/v1/whoami", "/"] {
            assert_eq!(
                Call::to(app.running().address(), "GET", path)
                    .await
                    .header("content-security-policy"),
                None,
                "{path}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn stopping_server_is_alive_and_not_ready() {
    each_backend(async |app: &App| {
        let ready = app.get("/readyz").await;
        assert_eq!((ready.status, ready.body.as_str()), (200, "ok"));
        app.running()
            .state()
            .draining
            .store(true, Ordering::Release);
        let draining = app.get("/readyz").await;
        assert_eq!(
            (draining.status, draining.code().as_str()),
            (503, "unavailable")
        );
        assert_eq!(
            draining.header("content-type"),
            Some("application/problem+json")
        );
        assert_eq!(app.get("/livez").await.status, 200);
        // Requests are still served.
        assert_eq!(
            app.get("/applications")
                .bearer(&app.management_token("acme"))
                .await
                .status,
            200
        );
        app.running()
            .state()
            .draining
            .store(false, Ordering::Release);
        assert_eq!(app.get("/readyz").await.status, 200);
        // The next release has migrated. Servers of this release stay ready until they are replaced.
        app.database
            .sql("INSERT INTO __diesel_schema_migrations (version) VALUES ('29990101000000')");
        assert_eq!(app.get("/readyz").await.status, 200);
        app.database
            .sql("DELETE FROM __diesel_schema_migrations WHERE version = '29990101000000'");
        app.database
            .sql("DELETE FROM __diesel_schema_migrations WHERE version = '20261121200000'");
        // A check is cached for a second.
        let becomes = async |status| app.get("/readyz").await.status == status;
        eventually("an older schema ends readiness", async || {
            becomes(503).await
        })
        .await;
        app.database
            .sql("INSERT INTO __diesel_schema_migrations (version) VALUES ('20261121200000')");
        eventually("the current schema restores readiness", async || {
            becomes(200).await
        })
        .await;
        if app.database.backend() == Backend::Postgres {
            app.database.refuse_connections(true);
            eventually("readiness without the database", async || {
                becomes(503).await
            })
            .await;
            assert_eq!(app.get("/livez").await.status, 200);
            app.database.refuse_connections(false);
            eventually("readiness with the database", async || {
                app.get("/readyz").await.status == 200
            })
            .await;
        }
    })
    .await;
}

/// Development mode exists on SQLite only.
#[actix_web::test]
async fn development_mode_rejects_management_through_a_proxy() {
    let database = Database::sqlite();
    let settings = settings(database.url(), &[("TOLLKEY_JWT_HS256_SECRET", "")]);
    let clock = ManualClock::default();
    let random = Random::new(StdRng::seed_from_u64(1));
    let opened = assembly::open(&settings, Arc::new(clock.clone()), random)
        .await
        .unwrap();
    let new = NewToken {
        subject: "developer".to_owned(),
        account: "acme".parse().ok(),
        roles: vec!["operator".to_owned(), "service".to_owned()],
        lifetime: jiff::SignedDuration::from_hours(1),
    };
    let secret = opened.development.as_ref().unwrap().secret().clone();
    let token = create_token(&secret, &settings.tokens.claims, &new, clock.now()).unwrap();
    let running = server::start(&settings, opened.state, None).unwrap();
    let call = |method: &str, path: &str| Call::new(running.address(), method, path);
    let created = call("POST", "/service-keys")
        .bearer(&token)
        .json(json!({"name": "gateway"}))
        .await;
    assert_eq!(created.status, 201, "{created}");
    let service_key = created.json()["key"].as_str().unwrap().to_owned();
    assert_eq!(
        call("GET", "/applications?account=acme")
            .bearer(&token)
            .await
            .status,
        200
    );
    let body = json!({"name": "secret", "environment": "live", "access": "secret"});
    let created = call("POST", "/account/api-keys?account=acme")
        .bearer(&token)
        .json(body.clone())
        .await;
    assert_eq!(created.status, 201, "{created}");
    let secret_key = created.json()["data"]["value"].as_str().unwrap().to_owned();
    assert_eq!(
        call("GET", "/account/api-keys")
            .bearer(&secret_key)
            .await
            .status,
        200
    );
    for (name, value) in [
        ("forwarded", "for=203.0.113.7"),
        ("Forwarded", ""),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "https"),
        ("X-Forwarded-Host", "api.example"),
        ("x-forwarded-anything", "x"),
    ] {
        for path in [
            "/applications?account=acme",
            "/audit-log?account=acme",
            "/accounts/acme",
            "/service-keys",
        ] {
            let reply = call("GET", path).bearer(&token).header(name, value).await;
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (403, "forbidden"),
                "{path} {name}"
            );
        }
        // A secret key may manage its account as well.
        for managed in [
            call("GET", "/account/api-keys"),
            call("POST", "/account/api-keys").json(body.clone()),
            call("GET", "/account/audit-log"),
        ] {
            let reply = managed.bearer(&secret_key).header(name, value).await;
            assert_eq!(
                (reply.status, reply.json()["error"]["code"].as_str()),
                (403, Some("FORBIDDEN")),
                "{name}: {reply}"
            );
        }
        // Requests of resource servers and gateways are still accepted.
        let verify = call("POST", "/verify")
            .bearer(&secret_key)
            .json(json!({"key": "x"}));
        assert_eq!(verify.header(name, value).await.status, 200, "{name}");
        let verify = call("POST", "/verify")
            .bearer(&service_key)
            .json(json!({"key": "x"}));
        assert_eq!(verify.header(name, value).await.status, 200, "{name}");
        let gateway = call("GET", "/authz/forward-auth")
            .header("x-api-key", "x")
            .header(name, value);
        assert_eq!(gateway.await.code(), "invalid_api_key", "{name}");
    }
    // A caller without a valid token does not learn about development mode.
    let reply = call("GET", "/applications")
        .header("x-forwarded-for", "203.0.113.7")
        .bearer("eyEXAMPLE.eyEXAMPLE.EXAMPLE")
        .await;
    assert_eq!(reply.code(), "invalid_token");
    running.stop().await;
}

/// The log output of all tests while [`LISTENING`] is set.
static CAPTURED: Mutex<Vec<u8>> = Mutex::new(Vec::new());
static LISTENING: AtomicBool = AtomicBool::new(false);

struct Captured;

impl io::Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        CAPTURED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Captures every event and span at TRACE while [`LISTENING`] is set. Global, because the server has its own threads.
fn install_subscriber() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let layer = fmt::layer()
            .with_writer(|| Captured)
            .with_ansi(false)
            .with_span_events(FmtSpan::FULL);
        let while_listening = dynamic_filter_fn(|_, _| LISTENING.load(Ordering::Relaxed));
        tracing_subscriber::registry()
            .with(layer.with_filter(while_listening))
            .init();
    });
}

#[actix_web::test]
async fn secrets_are_never_logged_even_at_trace() {
    install_subscriber();
    LISTENING.store(true, Ordering::Relaxed);
    let mut secrets = vec![SECRET.to_owned()];
    // A different seed from the other tests, whose keys may appear in the same log.
    let mut rng = StdRng::seed_from_u64(0xCA_9A_57);
    for database in tollkey_store::testing::backends() {
        let settings = settings(database.url(), &[]);
        let clock = ManualClock::default();
        let random = Random::new(StdRng::from_rng(&mut rng));
        let opened = assembly::open(&settings, Arc::new(clock.clone()), random)
            .await
            .unwrap();
        let running = server::start(&settings, opened.state, None).unwrap();
        secrets.extend(send_secrets_everywhere(&running, &clock, &settings).await);
        if database.backend() == Backend::Postgres {
            database.refuse_connections(true);
            for secret in &secrets[1..3] {
                let reply = Call::new(running.address(), "POST", "/verify")
                    .bearer(secret)
                    .json(json!({"key": secret}))
                    .await;
                assert!(reply.status >= 400, "{reply}");
            }
            database.refuse_connections(false);
        }
        running.stop().await;
    }
    tracing::trace!("the end of the scenario");
    LISTENING.store(false, Ordering::Relaxed);
    let log = String::from_utf8_lossy(&CAPTURED.lock().unwrap_or_else(PoisonError::into_inner))
        .into_owned();
    for expected in [
        "the end of the scenario",
        "request completed",
        "route=\"/api/v1/applications/{id}/api-keys\"",
        "service key created",
        "management token rejected",
        "service key authenticated",
    ] {
        assert!(
            log.contains(expected),
            "{expected} is not captured, so a secret would not be either"
        );
    }
    assert!(secrets.len() > 10);
    for secret in &secrets {
        // The random part alone would disclose the secret.
        let random = secret.rsplit(['_', '.']).next().unwrap_or(secret);
        if let Some(at) = log.find(random) {
            let line = log[..at].rfind('\n').map_or(0, |at| at + 1);
            panic!("a secret was logged after: {}", &log[line..at]);
        }
        let digest: String = Digest::of_key(secret)
            .as_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert!(
            !log.to_ascii_lowercase().contains(&digest),
            "the hash of a secret was logged"
        );
    }
}

/// Sends secrets in every place of a request. Returns all secrets.
async fn send_secrets_everywhere(
    running: &server::RunningServer,
    clock: &ManualClock,
    settings: &tollkey_server::config::Settings,
) -> Vec<String> {
    let call = |method: &str, path: &str| Call::new(running.address(), method, path);
    let token = |account: Option<&str>, roles: &[&str], hours: i64| {
        let new = NewToken {
            subject: "user_1".to_owned(),
            account: account.map(|account| account.parse().unwrap()),
            roles: roles.iter().map(ToString::to_string).collect(),
            lifetime: jiff::SignedDuration::from_hours(hours),
        };
        create_token(
            &tollkey_server::config::Secret::new(SECRET),
            &settings.tokens.claims,
            &new,
            clock.now(),
        )
        .unwrap()
    };
    let merchant = token(Some("canary"), &[], 24);
    let operator = token(None, &["operator"], 24);
    let service = token(None, &["service"], 24);
    let expired = token(Some("canary"), &[], 1);
    clock.advance(std::time::Duration::from_secs(3700));
    let forged = format!("{}x", &merchant[..merchant.len() - 2]);

    // Responses that may contain a secret, once.
    let application = call("POST", "/applications")
        .bearer(&merchant)
        .json(json!({"name": "Canary"}))
        .await;
    let application = application.json()["id"].as_str().unwrap().to_owned();
    let keys = format!("/applications/{application}/api-keys");
    let mut created = Vec::new();
    for body in [
        json!({"description": "d"}),
        json!({"description": "d", "mode": "test"}),
    ] {
        let reply = call("POST", &keys)
            .bearer(&merchant)
            .json(body)
            .await
            .json();
        created.push((
            reply["id"].as_str().unwrap().to_owned(),
            reply["fullKey"].as_str().unwrap().to_owned(),
        ));
    }
    // Idempotency-Keys are secrets too: the stored response can be decrypted with one and the server's secret.
    let retry = |number: usize| format!("canary-{number}-{}", "r".repeat(20 + number));
    let commerce = call("POST", "/api-keys")
        .bearer(&merchant)
        .header("idempotency-key", retry(1));
    let commerce = commerce.json(json!({"name": "Canary"})).await.json();
    let rotate = format!("/api-keys/{}/rotate", commerce["key_id"].as_str().unwrap());
    let secret = json!({"name": "Canary", "environment": "live", "access": "secret"});
    for (path, member, id, body) in [
        (
            rotate.as_str(),
            "/api_key",
            "/key_id",
            json!({"overlap_seconds": 60}),
        ),
        (
            "/v1/account/api-keys",
            "/data/value",
            "/data/id",
            secret.clone(),
        ),
        ("/account/api-keys", "/data/value", "/data/id", secret),
    ] {
        let again = async || {
            let reply = call("POST", path)
                .bearer(&merchant)
                .header("idempotency-key", retry(created.len()));
            reply.json(body.clone()).await.json()
        };
        let (first, second) = (again().await, again().await);
        let text = |of: &serde_json::Value, pointer| {
            of.pointer(pointer).unwrap().as_str().unwrap().to_owned()
        };
        assert_eq!(text(&first, member), text(&second, member));
        created.push((text(&first, id), text(&first, member)));
    }
    created.push((
        commerce["key_id"].as_str().unwrap().to_owned(),
        commerce["api_key"].as_str().unwrap().to_owned(),
    ));
    let reply = call("POST", "/service-keys")
        .bearer(&operator)
        .json(json!({"name": "canary"}))
        .await
        .json();
    let (service_id, service_key) = (
        reply["id"].as_str().unwrap(),
        reply["key"].as_str().unwrap().to_owned(),
    );
    let unknown = running.state().service.random.with(|rng| {
        let kind = tollkey_core::key_format::CredentialKind::Key(Family::Secret, Mode::Live);
        tollkey_core::PlainKey::generate(kind, rng)
            .expose()
            .to_owned()
    });

    let mut calls = Vec::new();
    let retries: Vec<String> = (1..6).map(retry).collect();
    let presented = created.iter().map(|(_, text)| text).chain([
        &service_key,
        &unknown,
        &merchant,
        &expired,
        &forged,
    ]);
    for key in presented {
        for (name, value) in [
            ("authorization", format!("Bearer {key}")),
            ("authorization", format!("Basic {key}")),
            ("authorization", key.to_string()),
            ("x-api-key", key.to_string()),
            ("x-commerce-api-key", format!("{key}, {key}")),
            ("cookie", format!("key={key}")),
            ("x-merchant-id", key.to_string()),
            ("x-forwarded-for", key.to_string()),
            ("x-forwarded-uri", format!("/x?api_key={key}")),
            ("x-request-id", key.to_string()),
            ("idempotency-key", key.to_string()),
        ] {
            for path in [
                "/whoami",
                "/authz/forward-auth",
                "/authz/ext-authz/-/x",
                "/applications",
                "/service-keys",
            ] {
                calls.push(call("GET", path).header(name, &value));
            }
            calls.push(
                call("POST", "/verify")
                    .header(name, &value)
                    .json(json!({"key": key})),
            );
        }
        for path in [
            format!("/whoami?key={key}"),
            format!("/nothing/{key}"),
            format!("/authz/auth-request?api_key={key}"),
            format!("/authz/ext-authz/-/{key}?key={key}"),
        ] {
            calls.push(call("GET", &path).bearer(&created[0].1));
        }
        calls.push(call("GET", &format!("/applications/{key}")).bearer(&merchant));
        calls.push(call("GET", &format!("/api-keys/{key}")).bearer(&merchant));
        calls.push(call("GET", &format!("/api-keys?cursor={key}")).bearer(&merchant));
        calls.push(call("DELETE", &format!("/v1/account/api-keys/{key}")).bearer(&merchant));
        calls.push(call("GET", &format!("/v1/{key}")).bearer(&merchant));
        calls.push(
            call("POST", "/api-keys")
                .bearer(&merchant)
                .json(json!({"name": "n", "scopes": [key]})),
        );
        calls.push(
            call("POST", "/v1/account/api-keys")
                .bearer(&merchant)
                .json(json!({"name": "n", "access": key})),
        );
        calls.push(call(key, "/whoami").bearer(&merchant));
        calls.push(call("DELETE", &format!("/service-keys/{key}")).bearer(&operator));
        calls.push(
            call("POST", "/applications")
                .bearer(&merchant)
                .json(json!({"name": 7, "description": key})),
        );
        calls.push(
            call("POST", "/applications")
                .bearer(&merchant)
                .json(json!({ key.as_str(): key })),
        );
        calls.push(
            call("POST", "/applications")
                .bearer(&merchant)
                .header("content-type", key)
                .body(key.as_bytes()),
        );
        for credential in [&service, &service_key] {
            calls.push(
                call("POST", "/verify")
                    .bearer(credential)
                    .json(json!({"key": key})),
            );
            calls.push(
                call("POST", "/verify")
                    .bearer(credential)
                    .json(json!({"key": key, "path": key, "merchant": key})),
            );
            calls.push(
                call("POST", "/verify/batch")
                    .bearer(credential)
                    .json(json!({"requests": [{"key": key}]})),
            );
            calls.push(
                call("POST", "/introspect")
                    .bearer(credential)
                    .form(&format!("token={key}&client_ip={key}")),
            );
            calls.push(
                call("POST", "/introspect")
                    .bearer(credential)
                    .form(&format!("token={key}")),
            );
            calls.push(
                call("POST", "/introspect")
                    .form(&format!("token={key}&client_secret={credential}")),
            );
            let basic = STANDARD.encode(format!("client:{credential}"));
            calls.push(
                call("POST", "/introspect")
                    .header("authorization", format!("Basic {basic}"))
                    .form(&format!("token={key}")),
            );
        }
    }
    for path in [
        keys.as_str(),
        "/applications?include=apiKeys",
        "/audit-log",
        "/api-keys",
        "/v1/account/api-keys",
        "/v1/account/audit-log",
    ] {
        calls.push(call("GET", path).bearer(&merchant));
    }
    calls.push(call("GET", "/service-keys").bearer(&operator));
    calls.push(call("DELETE", &format!("/service-keys/{service_id}")).bearer(&operator));
    calls.push(call("DELETE", &format!("{keys}/{}", created[0].0)).bearer(&merchant));
    calls.push(call("DELETE", "/whoami").bearer(&created[1].1));
    for call in calls {
        let reply = call.await;
        // No later response contains a secret, except as the name of an unknown field that the caller sent.
        let echoes_field_names = reply.status == 400 && reply.body.contains("validation_failed");
        for secret in [&created[0].1, &created[1].1, &service_key, &merchant] {
            assert!(
                echoes_field_names || !reply.body.contains(secret.as_str()),
                "{reply}"
            );
        }
    }
    running.state().service.flush_usage().await;
    let mut secrets = vec![service_key, unknown, merchant, operator, service, expired];
    secrets.extend(retries);
    secrets.extend(created.into_iter().map(|(_, text)| text));
    secrets
}
