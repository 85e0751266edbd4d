//! Who is let in, and how the others are answered.

use std::time::Duration;

use tollkey_core::{ApiKey, Family, IpList, Mode, RateLimit, Scope, Timestamp};
use tollkey_middleware::{Guard, testing::TestKeys};

use crate::apps::{Apps, Told};

async fn started(keys: &TestKeys) -> Apps {
    Apps::start(&keys.guard().await.expect("a guard"))
}

fn commerce(keys: &TestKeys, edit: impl FnOnce(&mut ApiKey)) -> String {
    keys.add(Family::Commerce, Mode::Test, edit)
}

fn bearer(key: &str) -> String {
    format!("Bearer {key}")
}

fn limited(limit: i64) -> Option<RateLimit> {
    RateLimit::new(limit, 60).ok()
}

/// Status and code of a refusal.
fn refused(told: &Told) -> (u16, String) {
    let body: serde_json::Value = serde_json::from_str(&told.body).expect("a problem");
    assert_eq!(body["status"], told.status);
    assert_eq!(
        told.header("content-type"),
        Some("application/problem+json")
    );
    assert_eq!(told.header("cache-control"), Some("no-store"));
    (
        told.status,
        body["code"].as_str().expect("a code").to_owned(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_read_from_each_of_its_headers_and_from_nowhere_else() {
    let keys = TestKeys::new();
    let key = commerce(&keys, |_| {});
    let apps = started(&keys).await;
    for (name, value) in [
        ("authorization", bearer(&key)),
        ("authorization", format!("bearer {key}")),
        ("x-api-key", key.clone()),
        ("x-commerce-api-key", key.clone()),
    ] {
        let told = apps.ask("GET", "/any", &[(name, &value)]).await;
        assert_eq!(
            (told.status, &*told.body),
            (
                200,
                "acme commerce test [commerce links:read links:write sessions:read sessions:write webhooks:read webhooks:write events:read customers:read customers:write]"
            )
        );
    }
    for (headers, status, code) in [
        (vec![], 401, "missing_credentials"),
        (
            vec![("authorization", "Basic a2V5")],
            401,
            "missing_credentials",
        ),
        (
            vec![("authorization", "Bearer")],
            401,
            "missing_credentials",
        ),
        (
            vec![("x-api-key", &*key), ("x-commerce-api-key", &*key)],
            400,
            "multiple_credentials",
        ),
        (
            vec![("x-api-key", &*key), ("x-api-key", &*key)],
            400,
            "multiple_credentials",
        ),
        (
            vec![("x-api-key", "ck_test_EXAMPLE0EXAMPLE0EXAMPLE0EXAMPLE0")],
            401,
            "invalid_api_key",
        ),
        (vec![("cookie", &*key)], 401, "missing_credentials"),
    ] {
        assert_eq!(
            refused(&apps.ask("GET", "/any", &headers).await),
            (status, code.to_owned()),
            "{headers:?}"
        );
    }
    let in_the_query = apps.ask("GET", &format!("/any?api_key={key}"), &[]).await;
    assert_eq!(
        refused(&in_the_query),
        (401, "missing_credentials".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_headers_that_were_named_are_looked_at() {
    let keys = TestKeys::new();
    let key = commerce(&keys, |_| {});
    let guard = keys
        .guard_with(Guard::builder().credential_headers(["X-API-Key"]))
        .await
        .expect("a guard");
    let apps = Apps::start(&guard);
    assert_eq!(
        apps.ask("GET", "/any", &[("x-api-key", &key)]).await.status,
        200
    );
    let told = apps
        .ask("GET", "/any", &[("authorization", &bearer(&key))])
        .await;
    assert_eq!(refused(&told), (401, "missing_credentials".to_owned()));
    assert!(
        told.body
            .contains("Send an API key in the header x-api-key."),
        "{}",
        told.body
    );
    assert_eq!(
        apps.ask(
            "GET",
            "/any",
            &[("authorization", "x"), ("x-api-key", &key)]
        )
        .await
        .status,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn each_denial_has_its_status_and_the_challenge_of_rfc_6750() {
    let keys = TestKeys::new();
    let reads = |key: &mut ApiKey| key.grants.scopes = vec![Scope::LINKS_READ];
    let rows = [
        (
            "/api/v1/links",
            commerce(&keys, |key| key.grants.scopes = vec![Scope::EVENTS_READ]),
            403,
            "insufficient_scope",
        ),
        ("/live", commerce(&keys, |_| {}), 403, "wrong_mode"),
        (
            "/any",
            commerce(&keys, |key| {
                key.grants.expires_at = Some(Timestamp::UNIX_EPOCH)
            }),
            403,
            "expired",
        ),
        (
            "/any",
            commerce(&keys, |key| key.suspended_at = Some(Timestamp::UNIX_EPOCH)),
            403,
            "suspended",
        ),
        (
            "/any",
            commerce(&keys, |key| key.revoked_at = Some(Timestamp::UNIX_EPOCH)),
            401,
            "invalid_api_key",
        ),
        (
            "/any",
            commerce(&keys, |key| {
                key.grants.allowed_ips = IpList::parse(["203.0.113.0/24"]).ok()
            }),
            403,
            "ip_not_allowed",
        ),
        (
            "/any",
            commerce(&keys, |key| key.grants.features = Some(vec![])),
            403,
            "route_not_allowed",
        ),
        (
            "/any",
            keys.add(Family::Publishable, Mode::Test, |_| {}),
            403,
            "route_not_allowed",
        ),
        (
            "/unheard",
            commerce(&keys, reads),
            403,
            "invalid_requirement",
        ),
    ];
    let apps = started(&keys).await;
    for (path, key, status, code) in rows {
        let told = apps.ask("GET", path, &[("x-api-key", &key)]).await;
        assert_eq!(refused(&told), (status, code.to_owned()));
        let challenge = match code {
            "invalid_api_key" => Some(
                "Bearer realm=\"tollkey\", error=\"invalid_token\", error_description=\"The API key is unknown or revoked. Check the key, or use another one.\"",
            ),
            "insufficient_scope" => Some(
                "Bearer realm=\"tollkey\", error=\"insufficient_scope\", error_description=\"The key lacks a required scope. Use a key with all required scopes.\", scope=\"links:read\"",
            ),
            _ => None,
        };
        assert_eq!(told.header("www-authenticate"), challenge, "{code}");
    }
    let told = apps.ask("GET", "/any", &[]).await;
    assert_eq!(
        told.header("www-authenticate"),
        Some("Bearer realm=\"tollkey\"")
    );
    assert_eq!(
        told.body,
        r#"{"type":"urn:tollkey:problem:missing_credentials","title":"A credential is required","status":401,"detail":"Send an API key in the Authorization header with the scheme Bearer.","code":"missing_credentials"}"#
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_asks_for_what_it_needs_by_its_method() {
    let keys = TestKeys::new();
    let reads = commerce(&keys, |key| key.grants.scopes = vec![Scope::LINKS_READ]);
    let writes = commerce(&keys, |key| {
        key.grants.scopes = vec![Scope::LINKS_WRITE, Scope::LINKS_READ]
    });
    let live = keys.add(Family::Commerce, Mode::Live, |_| {});
    let shop = keys.add(Family::Publishable, Mode::Test, |_| {});
    let apps = started(&keys).await;
    for (method, path, key, status) in [
        ("GET", "/api/v1/links", &reads, 200),
        ("GET", "/api/v1/links?page=2", &reads, 200),
        ("POST", "/api/v1/links", &reads, 403),
        ("POST", "/api/v1/links", &writes, 200),
        ("GET", "/live", &live, 200),
        ("GET", "/keyless", &reads, 200),
        ("GET", "/v1/storefront/products", &shop, 200),
    ] {
        assert_eq!(
            apps.ask(method, path, &[("x-api-key", key)]).await.status,
            status,
            "{method} {path}"
        );
    }
    assert_eq!(apps.ask("GET", "/keyless", &[]).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_of_ones_own_can_be_required() {
    let keys = TestKeys::new();
    let heard = |key: &mut ApiKey| key.grants.scopes = vec![Scope::named("unheard:of")];
    let (first, all) = (commerce(&keys, heard), commerce(&keys, |_| {}));
    let guard = keys
        .guard_with(Guard::builder().scopes(["other:one", "unheard:of"]))
        .await
        .expect("a guard");
    let later = commerce(&keys, heard);
    let apps = Apps::start(&guard);
    for key in [&first, &later] {
        let told = apps.ask("GET", "/unheard", &[("x-api-key", key)]).await;
        assert_eq!(
            (told.status, &*told.body),
            (200, "acme commerce test [unheard:of]")
        );
    }
    let told = apps.ask("GET", "/unheard", &[("x-api-key", &all)]).await;
    assert_eq!(refused(&told), (403, "insufficient_scope".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_can_be_optional_and_a_bad_one_is_still_refused() {
    let keys = TestKeys::new();
    let (key, other) = (
        commerce(&keys, |_| {}),
        commerce(&keys, |key| key.grants.scopes = vec![Scope::EVENTS_READ]),
    );
    let apps = started(&keys).await;
    assert_eq!(apps.ask("GET", "/optional", &[]).await.body, "nobody");
    assert!(
        apps.ask("GET", "/optional", &[("x-api-key", &key)])
            .await
            .body
            .starts_with("acme commerce")
    );
    assert_eq!(
        apps.ask("GET", "/optional", &[("x-api-key", "no key")])
            .await
            .status,
        401
    );
    // What is required further in, is.
    assert_eq!(
        refused(&apps.ask("GET", "/needed", &[]).await),
        (401, "missing_credentials".to_owned())
    );
    assert_eq!(
        refused(&apps.ask("GET", "/required", &[]).await),
        (401, "missing_credentials".to_owned())
    );
    assert_eq!(
        apps.ask("GET", "/required", &[("x-api-key", &other)])
            .await
            .status,
        403
    );
    assert_eq!(
        apps.ask("GET", "/required", &[("x-api-key", &key)])
            .await
            .status,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_without_a_layer_lets_nobody_in() {
    let keys = TestKeys::new();
    let key = commerce(&keys, |_| {});
    let apps = started(&keys).await;
    for path in ["/bare", "/bare/required"] {
        let told = apps.ask("GET", path, &[("x-api-key", &key)]).await;
        assert_eq!(refused(&told), (500, "internal_error".to_owned()), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_address_is_the_one_a_trusted_proxy_tells_of() {
    let keys = TestKeys::new();
    let key = commerce(&keys, |key| {
        key.grants.allowed_ips = IpList::parse(["203.0.113.0/24"]).ok()
    });
    let apps = started(&keys).await;
    for (forwarded, status) in [
        ("203.0.113.7", 200),
        ("6.6.6.6, 203.0.113.7", 200),
        ("203.0.113.7, 6.6.6.6", 403),
        ("203.0.113.7, 127.0.0.1", 200),
        ("203.0.113.7:4711", 200),
        ("\"203.0.113.7:4711\", \"[::1]:4711\"", 200),
        ("nonsense", 403),
        ("203.0.113.7\u{a0}", 403),
    ] {
        let told = apps
            .ask(
                "GET",
                "/any",
                &[("x-api-key", &key), ("x-forwarded-for", forwarded)],
            )
            .await;
        assert_eq!(told.status, status, "{forwarded}");
    }
    let told = apps
        .ask(
            "GET",
            "/any",
            &[
                ("x-api-key", &key),
                ("x-forwarded-for", "203.0.113.7"),
                ("x-forwarded-for", "6.6.6.6"),
            ],
        )
        .await;
    assert_eq!(told.status, 403);
    let free = commerce(&keys, |_| {});
    for (forwarded, status) in [
        ("nonsense", 403),
        ("nonsense, 203.0.113.7", 200),
        ("127.0.0.1", 200),
    ] {
        let told = apps
            .ask(
                "GET",
                "/any",
                &[("x-api-key", &free), ("x-forwarded-for", forwarded)],
            )
            .await;
        assert_eq!(told.status, status, "{forwarded}");
    }
    let strict = keys
        .guard_with(Guard::builder().trusted_proxies(["10.0.0.0/8"]))
        .await
        .expect("a guard");
    let apps = Apps::start(&strict);
    let told = apps
        .ask(
            "GET",
            "/any",
            &[("x-api-key", &key), ("x-forwarded-for", "203.0.113.7")],
        )
        .await;
    assert_eq!(refused(&told), (403, "ip_not_allowed".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_merchant_is_in_a_header_or_in_the_path() {
    let keys = TestKeys::new();
    let key = commerce(&keys, |key| {
        key.grants.merchants = Some(vec!["m1".to_owned()]);
        key.grants.features = Some(vec![tollkey_core::feature::Feature::TokensList]);
    });
    let any = commerce(&keys, |_| {});
    let apps = started(&keys).await;
    assert_eq!(
        apps.ask("GET", "/of/m1/tokens", &[("x-api-key", &any)])
            .await
            .body,
        "m1 is m1"
    );
    assert_eq!(
        apps.ask("GET", "/of/m2/tokens", &[("x-api-key", &any)])
            .await
            .body,
        "m2 is m2"
    );
    // A merchant nobody can be called denies, whoever asks.
    assert_eq!(
        refused(
            &apps
                .ask("GET", "/of/m%201/tokens", &[("x-api-key", &any)])
                .await
        )
        .1,
        "merchant_not_allowed"
    );
    let told = apps
        .ask(
            "GET",
            "/any",
            &[
                ("x-api-key", &any),
                ("x-merchant-id", "m1"),
                ("x-merchant-id", "m2"),
            ],
        )
        .await;
    assert_eq!(refused(&told).1, "merchant_not_allowed");
    assert_eq!(
        refused(
            &apps
                .ask(
                    "GET",
                    "/any",
                    &[("x-api-key", &key), ("x-merchant-id", "m1")]
                )
                .await
        )
        .1,
        "route_not_allowed"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rate_limit_is_told_and_only_what_is_let_in_uses_it_up() {
    for app in ["axum", "actix"] {
        let keys = TestKeys::new();
        let key = commerce(&keys, |key| {
            key.grants.rate_limit = limited(2);
            key.grants.scopes = vec![Scope::EVENTS_READ];
        });
        let apps = started(&keys).await;
        let ask = async |path| apps.ask_one(app, "GET", path, &[("x-api-key", &key)]).await;
        // Refused at the layer, and refused further in: neither costs anything.
        for _ in 0..5 {
            assert_eq!(
                refused(&ask("/api/v1/links").await),
                (403, "insufficient_scope".to_owned()),
                "{app}"
            );
            assert_eq!(
                refused(&ask("/live").await),
                (403, "wrong_mode".to_owned()),
                "{app}"
            );
        }
        let first = ask("/any").await;
        assert_eq!(
            first.header("ratelimit-policy"),
            Some("\"key\";q=2;w=60"),
            "{app}"
        );
        assert_eq!(first.header("ratelimit"), Some("\"key\";r=1;t=30"), "{app}");
        assert_eq!(ask("/any").await.status, 200);
        let told = ask("/any").await;
        assert_eq!(refused(&told), (429, "rate_limited".to_owned()), "{app}");
        let wait: u64 = told
            .header("retry-after")
            .expect("a time")
            .parse()
            .expect("seconds");
        assert!((1..=30).contains(&wait), "{wait}");
        assert_eq!(
            told.header("ratelimit"),
            Some(&*format!("\"key\";r=0;t={wait}")),
            "{app}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_inside_of_a_layer_counts_once() {
    for app in ["axum", "actix"] {
        let keys = TestKeys::new();
        let key = commerce(&keys, |key| key.grants.rate_limit = limited(2));
        let apps = started(&keys).await;
        let ask = async |path| apps.ask_one(app, "GET", path, &[("x-api-key", &key)]).await;
        // What requires something unknown lets nobody in, and is no use either.
        for _ in 0..5 {
            let told = ask("/twice/unheard").await;
            assert_eq!(
                refused(&told),
                (403, "invalid_requirement".to_owned()),
                "{app}"
            );
            assert_eq!(told.header("ratelimit"), None, "{app}: nothing was used");
        }
        for left in ["\"key\";r=1;t=30", "\"key\";r=0;t=60"] {
            let told = ask("/twice").await;
            assert_eq!(
                (told.status, told.header("ratelimit")),
                (200, Some(left)),
                "{app}"
            );
        }
        assert_eq!(
            refused(&ask("/twice").await),
            (429, "rate_limited".to_owned()),
            "{app}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_is_refused_at_once_and_nobody_is_let_in_unheard() {
    let keys = TestKeys::new();
    let key = commerce(&keys, |_| {});
    let apps = started(&keys).await;
    assert_eq!(
        apps.ask("GET", "/any", &[("x-api-key", &key)]).await.status,
        200
    );
    keys.set_unreachable(true);
    let told = apps.ask("GET", "/any", &[("x-api-key", &key)]).await;
    assert_eq!(refused(&told), (503, "unavailable".to_owned()));
    assert_eq!(told.header("retry-after"), Some("1"));
    keys.set_unreachable(false);
    // After some questions without an answer one at a time finds out.
    while apps.ask("GET", "/any", &[("x-api-key", &key)]).await.status != 200 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    keys.revoke(&key);
    assert_eq!(
        refused(&apps.ask("GET", "/any", &[("x-api-key", &key)]).await),
        (401, "invalid_api_key".to_owned())
    );
}

#[test]
fn a_builder_shows_no_secret() {
    let builder = Guard::builder()
        .url("https://me:canary@keys.example.com")
        .service_key("tks_canary");
    assert!(!format!("{builder:?}").contains("canary"));
}

#[tokio::test]
async fn a_setting_that_cannot_be_used_is_refused_before_anybody_is_asked() {
    let builder = || {
        // Nobody answers there, however long one waits.
        let builder = Guard::builder()
            .url("http://127.0.0.1:1")
            .service_key("tks_EXAMPLE");
        builder.connect_limit(std::time::Duration::MAX)
    };
    for (builder, expected) in [
        (
            Guard::builder(),
            "set either url and service_key, or client",
        ),
        (
            Guard::builder().url("http://127.0.0.1:1"),
            "set either url and service_key, or client",
        ),
        (
            builder().credential_headers([""; 0]),
            "credential_headers: must list one or more of authorization, x-api-key, x-commerce-api-key",
        ),
        (
            builder().credential_headers(["cookie"]),
            "credential_headers: must list one or more of authorization, x-api-key, x-commerce-api-key",
        ),
        (
            Guard::builder()
                .url("http://127.0.0.1:1")
                .service_key("tks_EXAMPLE\n"),
            "the HTTP client cannot be built: auth: the service key ends with a line break",
        ),
        (
            builder().trusted_proxies(["10.0.0.1/99"]),
            "trusted_proxies: ",
        ),
        (
            builder().cache_bytes(1024),
            "cache_bytes: must be at least 4194304 (4 MiB)",
        ),
        (
            builder().route_base("api"),
            "route_base: must begin with a slash, such as /api or /merchants/{merchant}",
        ),
        (
            builder().route_base("/a/../b"),
            "route_base: must be a path such as /api",
        ),
        (
            builder().realm("a \"quoted\" one"),
            "realm: must be printable ASCII without quote and backslash",
        ),
        (builder().scopes(["no scope"]), "scopes: "),
    ] {
        let refused =
            tokio::time::timeout(std::time::Duration::from_secs(60), builder.connect()).await;
        let error = refused.expect("at once").expect_err(expected).to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}
