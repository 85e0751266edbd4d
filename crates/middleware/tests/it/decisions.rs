//! Which requests are admitted, and the responses to rejected ones.

use std::time::Duration;

use tollkey_core::{ApiKey, Family, IpList, Mode, RateLimit, Scope, Timestamp};
use tollkey_middleware::{Guard, testing::TestKeys};

use crate::apps::{AppResponse, Apps};

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

fn rejected(response: &AppResponse) -> (u16, String) {
    let body: serde_json::Value = serde_json::from_str(&response.body).expect("a problem");
    assert_eq!(body["status"], response.status);
    assert_eq!(
        response.header("content-type"),
        Some("application/problem+json")
    );
    assert_eq!(response.header("cache-control"), Some("no-store"));
    (
        response.status,
        body["code"].as_str().expect("a code").to_owned(),
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn key_is_read_only_from_the_credential_headers() {
    let keys = TestKeys::new();
    let key = commerce(&keys, |_| {});
    let apps = started(&keys).await;
    let all = Scope::BUILT_IN.map(|scope| scope.to_string()).join(" ");
    for (name, value) in [
        ("authorization", bearer(&key)),
        ("authorization", format!("bearer {key}")),
        ("x-api-key", key.clone()),
        ("x-commerce-api-key", key.clone()),
    ] {
        let response = apps.send("GET", "/any", &[(name, &value)]).await;
        assert_eq!(
            (response.status, &*response.body),
            (200, &*format!("acme commerce test [{all}]"))
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
            rejected(&apps.send("GET", "/any", &headers).await),
            (status, code.to_owned()),
            "{headers:?}"
        );
    }
    let in_the_query = apps.send("GET", &format!("/any?api_key={key}"), &[]).await;
    assert_eq!(
        rejected(&in_the_query),
        (401, "missing_credentials".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn only_configured_credential_headers_are_read() {
    let keys = TestKeys::new();
    let key = commerce(&keys, |_| {});
    let guard = keys
        .guard_with(Guard::builder().credential_headers(["X-API-Key"]))
        .await
        .expect("a guard");
    let apps = Apps::start(&guard);
    assert_eq!(
        apps.send("GET", "/any", &[("x-api-key", &key)])
            .await
            .status,
        200
    );
    let response = apps
        .send("GET", "/any", &[("authorization", &bearer(&key))])
        .await;
    assert_eq!(rejected(&response), (401, "missing_credentials".to_owned()));
    assert!(
        response
            .body
            .contains("Send an API key in the header x-api-key."),
        "{}",
        response.body
    );
    assert_eq!(
        apps.send(
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
async fn denials_have_a_status_and_a_challenge_of_rfc_6750() {
    let keys = TestKeys::new();
    let reads = |key: &mut ApiKey| key.restrictions.scopes = vec![Scope::LINKS_READ];
    let rows = [
        (
            "/api/v1/links",
            commerce(&keys, |key| {
                key.restrictions.scopes = vec![Scope::EVENTS_READ]
            }),
            403,
            "insufficient_scope",
        ),
        ("/live", commerce(&keys, |_| {}), 403, "wrong_mode"),
        (
            "/any",
            commerce(&keys, |key| {
                key.restrictions.expires_at = Some(Timestamp::UNIX_EPOCH)
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
                key.restrictions.allowed_ips = IpList::parse(["203.0.113.0/24"]).ok()
            }),
            403,
            "ip_not_allowed",
        ),
        (
            "/any",
            commerce(&keys, |key| key.restrictions.features = Some(vec![])),
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
        let response = apps.send("GET", path, &[("x-api-key", &key)]).await;
        assert_eq!(rejected(&response), (status, code.to_owned()));
        let challenge = match code {
            "invalid_api_key" => Some(
                "Bearer realm=\"tollkey\", error=\"invalid_token\", error_description=\"The API key is unknown or revoked. Check the key, or use another one.\"",
            ),
            "insufficient_scope" => Some(
                "Bearer realm=\"tollkey\", error=\"insufficient_scope\", error_description=\"The key lacks a required scope. Use a key with all required scopes.\", scope=\"links:read\"",
            ),
            _ => None,
        };
        assert_eq!(response.header("www-authenticate"), challenge, "{code}");
    }
    let response = apps.send("GET", "/any", &[]).await;
    assert_eq!(
        response.header("www-authenticate"),
        Some("Bearer realm=\"tollkey\"")
    );
    assert_eq!(
        response.body,
        r#"{"type":"urn:tollkey:problem:missing_credentials","title":"A credential is required","status":401,"detail":"Send an API key in the Authorization header with the scheme Bearer.","code":"missing_credentials"}"#
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn requirements_depend_on_the_method_of_a_route() {
    let keys = TestKeys::new();
    let reads = commerce(&keys, |key| {
        key.restrictions.scopes = vec![Scope::LINKS_READ]
    });
    let writes = commerce(&keys, |key| {
        key.restrictions.scopes = vec![Scope::LINKS_WRITE, Scope::LINKS_READ]
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
            apps.send(method, path, &[("x-api-key", key)]).await.status,
            status,
            "{method} {path}"
        );
    }
    assert_eq!(apps.send("GET", "/keyless", &[]).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn configured_scope_can_be_required() {
    let keys = TestKeys::new();
    let with_scope = |key: &mut ApiKey| key.restrictions.scopes = vec![Scope::named("unheard:of")];
    let (first, all) = (commerce(&keys, with_scope), commerce(&keys, |_| {}));
    let guard = keys
        .guard_with(Guard::builder().scopes(["other:one", "unheard:of"]))
        .await
        .expect("a guard");
    let later = commerce(&keys, with_scope);
    let apps = Apps::start(&guard);
    for key in [&first, &later] {
        let response = apps.send("GET", "/unheard", &[("x-api-key", key)]).await;
        assert_eq!(
            (response.status, &*response.body),
            (200, "acme commerce test [unheard:of]")
        );
    }
    let response = apps.send("GET", "/unheard", &[("x-api-key", &all)]).await;
    assert_eq!(rejected(&response), (403, "insufficient_scope".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn invalid_key_is_rejected_where_a_key_is_optional() {
    let keys = TestKeys::new();
    let (key, other) = (
        commerce(&keys, |_| {}),
        commerce(&keys, |key| {
            key.restrictions.scopes = vec![Scope::EVENTS_READ]
        }),
    );
    let apps = started(&keys).await;
    assert_eq!(apps.send("GET", "/optional", &[]).await.body, "no key");
    assert!(
        apps.send("GET", "/optional", &[("x-api-key", &key)])
            .await
            .body
            .starts_with("acme commerce")
    );
    assert_eq!(
        apps.send("GET", "/optional", &[("x-api-key", "no key")])
            .await
            .status,
        401
    );
    // An inner requirement still applies.
    assert_eq!(
        rejected(&apps.send("GET", "/needed", &[]).await),
        (401, "missing_credentials".to_owned())
    );
    assert_eq!(
        rejected(&apps.send("GET", "/required", &[]).await),
        (401, "missing_credentials".to_owned())
    );
    assert_eq!(
        apps.send("GET", "/required", &[("x-api-key", &other)])
            .await
            .status,
        403
    );
    assert_eq!(
        apps.send("GET", "/required", &[("x-api-key", &key)])
            .await
            .status,
        200
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn route_without_a_layer_rejects_every_request() {
    let keys = TestKeys::new();
    let key = commerce(&keys, |_| {});
    let apps = started(&keys).await;
    for path in ["/bare", "/bare/required"] {
        let response = apps.send("GET", path, &[("x-api-key", &key)]).await;
        assert_eq!(
            rejected(&response),
            (500, "internal_error".to_owned()),
            "{path}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn client_address_comes_from_a_trusted_proxy() {
    let keys = TestKeys::new();
    let key = commerce(&keys, |key| {
        key.restrictions.allowed_ips = IpList::parse(["203.0.113.0/24"]).ok()
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
        let response = apps
            .send(
                "GET",
                "/any",
                &[("x-api-key", &key), ("x-forwarded-for", forwarded)],
            )
            .await;
        assert_eq!(response.status, status, "{forwarded}");
    }
    let response = apps
        .send(
            "GET",
            "/any",
            &[
                ("x-api-key", &key),
                ("x-forwarded-for", "203.0.113.7"),
                ("x-forwarded-for", "6.6.6.6"),
            ],
        )
        .await;
    assert_eq!(response.status, 403);
    let unrestricted = commerce(&keys, |_| {});
    for (forwarded, status) in [
        ("nonsense", 403),
        ("nonsense, 203.0.113.7", 200),
        ("127.0.0.1", 200),
    ] {
        let response = apps
            .send(
                "GET",
                "/any",
                &[("x-api-key", &unrestricted), ("x-forwarded-for", forwarded)],
            )
            .await;
        assert_eq!(response.status, status, "{forwarded}");
    }
    let strict = keys
        .guard_with(Guard::builder().trusted_proxies(["10.0.0.0/8"]))
        .await
        .expect("a guard");
    let apps = Apps::start(&strict);
    let response = apps
        .send(
            "GET",
            "/any",
            &[("x-api-key", &key), ("x-forwarded-for", "203.0.113.7")],
        )
        .await;
    assert_eq!(rejected(&response), (403, "ip_not_allowed".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn merchant_is_read_from_a_header_or_the_path() {
    let keys = TestKeys::new();
    let key = commerce(&keys, |key| {
        key.restrictions.merchants = Some(vec!["m1".to_owned()]);
        key.restrictions.features = Some(vec![tollkey_core::feature::Feature::TokensList]);
    });
    let any = commerce(&keys, |_| {});
    let apps = started(&keys).await;
    assert_eq!(
        apps.send("GET", "/of/m1/tokens", &[("x-api-key", &any)])
            .await
            .body,
        "m1 is m1"
    );
    assert_eq!(
        apps.send("GET", "/of/m2/tokens", &[("x-api-key", &any)])
            .await
            .body,
        "m2 is m2"
    );
    // A value that cannot be a merchant ID is denied for any key.
    assert_eq!(
        rejected(
            &apps
                .send("GET", "/of/m%201/tokens", &[("x-api-key", &any)])
                .await
        )
        .1,
        "merchant_not_allowed"
    );
    let response = apps
        .send(
            "GET",
            "/any",
            &[
                ("x-api-key", &any),
                ("x-merchant-id", "m1"),
                ("x-merchant-id", "m2"),
            ],
        )
        .await;
    assert_eq!(rejected(&response).1, "merchant_not_allowed");
    assert_eq!(
        rejected(
            &apps
                .send(
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
async fn only_admitted_requests_take_from_the_rate_limit() {
    for app in ["axum", "actix"] {
        let keys = TestKeys::new();
        let key = commerce(&keys, |key| {
            key.restrictions.rate_limit = limited(2);
            key.restrictions.scopes = vec![Scope::EVENTS_READ];
        });
        let apps = started(&keys).await;
        let send = async |path| apps.send_to(app, "GET", path, &[("x-api-key", &key)]).await;
        // Neither a rejection by the layer nor an inner one takes a use.
        for _ in 0..5 {
            assert_eq!(
                rejected(&send("/api/v1/links").await),
                (403, "insufficient_scope".to_owned()),
                "{app}"
            );
            assert_eq!(
                rejected(&send("/live").await),
                (403, "wrong_mode".to_owned()),
                "{app}"
            );
        }
        let first = send("/any").await;
        assert_eq!(
            first.header("ratelimit-policy"),
            Some("\"key\";q=2;w=60"),
            "{app}"
        );
        assert_eq!(first.header("ratelimit"), Some("\"key\";r=1;t=30"), "{app}");
        assert_eq!(send("/any").await.status, 200);
        let response = send("/any").await;
        assert_eq!(
            rejected(&response),
            (429, "rate_limited".to_owned()),
            "{app}"
        );
        let wait: u64 = response
            .header("retry-after")
            .expect("a time")
            .parse()
            .expect("seconds");
        assert!((1..=30).contains(&wait), "{wait}");
        assert_eq!(
            response.header("ratelimit"),
            Some(&*format!("\"key\";r=0;t={wait}")),
            "{app}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nested_layers_take_one_use() {
    for app in ["axum", "actix"] {
        let keys = TestKeys::new();
        let key = commerce(&keys, |key| key.restrictions.rate_limit = limited(2));
        let apps = started(&keys).await;
        let send = async |path| apps.send_to(app, "GET", path, &[("x-api-key", &key)]).await;
        // A rejection because of an unknown scope takes no use.
        for _ in 0..5 {
            let response = send("/twice/unheard").await;
            assert_eq!(
                rejected(&response),
                (403, "invalid_requirement".to_owned()),
                "{app}"
            );
            assert_eq!(response.header("ratelimit"), None, "{app}");
        }
        for left in ["\"key\";r=1;t=30", "\"key\";r=0;t=60"] {
            let response = send("/twice").await;
            assert_eq!(
                (response.status, response.header("ratelimit")),
                (200, Some(left)),
                "{app}"
            );
        }
        assert_eq!(
            rejected(&send("/twice").await),
            (429, "rate_limited".to_owned()),
            "{app}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_are_rejected_after_revocation_or_without_server() {
    let keys = TestKeys::new();
    let key = commerce(&keys, |_| {});
    let apps = started(&keys).await;
    assert_eq!(
        apps.send("GET", "/any", &[("x-api-key", &key)])
            .await
            .status,
        200
    );
    keys.set_unreachable(true);
    let response = apps.send("GET", "/any", &[("x-api-key", &key)]).await;
    assert_eq!(rejected(&response), (503, "unavailable".to_owned()));
    assert_eq!(response.header("retry-after"), Some("1"));
    keys.set_unreachable(false);
    // After several failed look-ups, one at a time probes the server.
    while apps
        .send("GET", "/any", &[("x-api-key", &key)])
        .await
        .status
        != 200
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    keys.revoke(&key);
    assert_eq!(
        rejected(&apps.send("GET", "/any", &[("x-api-key", &key)]).await),
        (401, "invalid_api_key".to_owned())
    );
}

#[test]
fn debug_output_of_a_builder_contains_no_secret() {
    let builder = Guard::builder()
        .url("https://me:canary@keys.example.com")
        .service_key("tks_canary");
    assert!(!format!("{builder:?}").contains("canary"));
}

#[tokio::test]
async fn invalid_settings_are_rejected_before_a_request() {
    let builder = || {
        // No server listens there, and the time limit is the longest possible.
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
        let result =
            tokio::time::timeout(std::time::Duration::from_secs(60), builder.connect()).await;
        let error = result
            .expect("an error before the time limit")
            .expect_err(expected)
            .to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}
