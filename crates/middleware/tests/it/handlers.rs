//! Requirements and rejections by handlers, and the application's own error format.

use tollkey_core::{Family, Mode, OperatingModel, RateLimit, Scope, feature::Feature};
use tollkey_middleware::{Denial, Guard, MerchantSource, testing::TestKeys};

use crate::apps::{AppResponse, Apps};

fn rejected(response: &AppResponse) -> (u16, String) {
    let body: serde_json::Value = serde_json::from_str(&response.body).expect("a problem");
    assert_eq!(response.header("cache-control"), Some("no-store"));
    (
        response.status,
        body["code"].as_str().expect("a code").to_owned(),
    )
}

fn bound_to(keys: &TestKeys, merchant: &str) -> String {
    keys.add(Family::Commerce, Mode::Test, |key| {
        key.restrictions.merchants = Some(vec![merchant.to_owned()])
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn handler_rejects_as_the_layer_does() {
    let keys = TestKeys::new();
    let writer = keys.add(Family::Commerce, Mode::Test, |key| {
        key.restrictions.scopes = vec![Scope::LINKS_WRITE]
    });
    let live = keys.add(Family::Commerce, Mode::Live, |key| {
        key.restrictions.scopes = vec![Scope::LINKS_WRITE]
    });
    let reader = keys.add(Family::Commerce, Mode::Test, |key| {
        key.restrictions.scopes = vec![Scope::LINKS_READ]
    });
    let apps = Apps::start(&keys.guard().await.expect("a guard"));
    let send = async |path: &str, key: &str| apps.send("GET", path, &[("x-api-key", key)]).await;
    assert_eq!(
        send("/handler/writes", &writer).await.body,
        "acme commerce test [links:write]"
    );
    let response = send("/handler/writes", &reader).await;
    assert_eq!(rejected(&response), (403, "insufficient_scope".to_owned()));
    assert_eq!(
        response.header("www-authenticate"),
        Some(
            "Bearer realm=\"tollkey\", error=\"insufficient_scope\", error_description=\"The key lacks a required scope. Use a key with all required scopes.\", scope=\"links:write\""
        )
    );
    assert_eq!(
        rejected(&send("/handler/writes", &live).await),
        (403, "wrong_mode".to_owned())
    );
    assert_eq!(send("/handler/for/m1", &writer).await.body, "m1 pays");
    assert_eq!(
        rejected(&send("/handler/for/no%20merchant", &writer).await),
        (403, "merchant_not_allowed".to_owned())
    );
    // `VerifiedKey::require` cannot read a merchant from a header, because it does not have the request.
    assert_eq!(
        rejected(&send("/handler/misconfigured", &writer).await),
        (403, "invalid_requirement".to_owned())
    );
    assert_eq!(
        rejected(&send("/handler/never", &writer).await),
        (403, "route_not_allowed".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn rejection_by_a_handler_takes_nothing_from_the_rate_limit() {
    for app in ["axum", "actix"] {
        let keys = TestKeys::new();
        let key = keys.add(Family::Commerce, Mode::Test, |key| {
            key.restrictions.rate_limit = RateLimit::new(1, 3600).ok();
            key.restrictions.scopes = vec![Scope::LINKS_READ];
        });
        let apps = Apps::start(&keys.guard().await.expect("a guard"));
        let send = async |path| apps.send_to(app, "GET", path, &[("x-api-key", &key)]).await;
        for path in [
            "/handler/writes",
            "/handler/never",
            "/handler/misconfigured",
        ] {
            let response = send(path).await;
            assert_eq!(
                (response.status, response.header("ratelimit")),
                (403, None),
                "{app} {path}"
            );
        }
        assert_eq!(
            send("/any").await.header("ratelimit"),
            Some("\"key\";r=0;t=3600"),
            "{app}"
        );
        assert_eq!(send("/any").await.status, 429, "{app}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn route_base_removes_the_merchant_from_the_path() {
    let keys = TestKeys::new();
    let m1 = bound_to(&keys, "m1");
    let builder = Guard::builder()
        .route_base("/of/{merchant}")
        .merchant(MerchantSource::path("/of/{merchant}"));
    let apps = Apps::start(&keys.guard_with(builder).await.expect("a guard"));
    let send = async |path: &str| apps.send("GET", path, &[("x-api-key", &m1)]).await;
    assert!(
        OperatingModel::Ecosystem
            .features()
            .contains(&Feature::TokensList)
    );
    assert_eq!(send("/of/m1/tokens").await.body, "m1 is m1");
    assert_eq!(
        rejected(&send("/of/m2/tokens").await),
        (403, "merchant_not_allowed".to_owned())
    );
    // With the default route base, the same path is not a route of the key.
    let apps = Apps::start(&keys.guard().await.expect("a guard"));
    let response = apps
        .send("GET", "/of/m1/tokens", &[("x-api-key", &m1)])
        .await;
    assert_eq!(rejected(&response), (403, "route_not_allowed".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_rejection_has_the_format_of_the_application() {
    let keys = TestKeys::new();
    let reader = keys.add(Family::Commerce, Mode::Test, |key| {
        key.restrictions.scopes = vec![Scope::LINKS_READ]
    });
    let builder = Guard::builder().on_rejection(|rejection, response| {
        response.status = if rejection.status() == 403 {
            404
        } else {
            rejection.status()
        };
        response.set_header("content-type", "application/vnd.acme.error+json");
        response.set_header("Not A Header", "is ignored");
        response.body = format!("{{\"code\":\"acme.{}\"}}", rejection.code());
    });
    let apps = Apps::start(&keys.guard_with(builder).await.expect("a guard"));
    for (path, key, status, code) in [
        ("/any", None, 401, "acme.missing_credentials"), // by the layer
        ("/needed", None, 401, "acme.missing_credentials"), // by the extractor
        ("/required", None, 401, "acme.missing_credentials"), // by `require`
        ("/live", Some(&*reader), 404, "acme.wrong_mode"), // by `require`
        (
            "/handler/writes",
            Some(&*reader),
            404,
            "acme.insufficient_scope",
        ), // by the handler
    ] {
        let headers: Vec<_> = key.map(|key| ("x-api-key", key)).into_iter().collect();
        let response = apps.send("GET", path, &headers).await;
        assert_eq!(rejected(&response), (status, code.to_owned()), "{path}");
        assert_eq!(
            response.header("content-type"),
            Some("application/vnd.acme.error+json"),
            "{path}"
        );
    }
}

#[tokio::test]
async fn handler_rejects_grpc_requests_with_a_grpc_status() {
    use axum::{
        Router,
        body::Body,
        http::{Request, Version},
        routing::post,
    };
    use tollkey_axum::{Rejection, TollkeyLayer, VerifiedKey};
    use tower::ServiceExt as _;
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Test, |key| {
        key.restrictions.scopes = vec![Scope::LINKS_READ]
    });
    let app = Router::new()
        .route(
            "/required",
            post(async |key: VerifiedKey| key.require("links:write")),
        )
        .route(
            "/rejected",
            post(async |key: VerifiedKey| Err::<(), Rejection>(key.reject(Denial::RateLimited))),
        )
        .layer(TollkeyLayer::new(keys.guard().await.expect("a guard")).grpc());
    for (path, status) in [("/required", "7"), ("/rejected", "8")] {
        let request = Request::post(path)
            .version(Version::HTTP_2)
            .header("content-type", "application/grpc");
        let request = request
            .header("x-api-key", &key)
            .body(Body::empty())
            .expect("a request");
        let response = app.clone().oneshot(request).await.expect("a response");
        assert_eq!(
            (
                response.status().as_u16(),
                &response.headers()["grpc-status"]
            ),
            (200, &status.parse().expect("a header"))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_limited_rejection_by_a_handler_has_retry_after() {
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Test, |_| {});
    let apps = Apps::start(&keys.guard().await.expect("a guard"));
    let response = apps
        .send("GET", "/handler/busy", &[("x-api-key", &key)])
        .await;
    assert_eq!(rejected(&response), (429, "rate_limited".to_owned()));
    assert_eq!(response.header("retry-after"), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn request_with_only_can_counts_as_a_use() {
    for app in ["axum", "actix"] {
        let keys = TestKeys::new();
        let key = keys.add(Family::Commerce, Mode::Test, |key| {
            key.restrictions.rate_limit = RateLimit::new(1, 3600).ok();
            key.restrictions.scopes = vec![Scope::LINKS_READ];
        });
        let apps = Apps::start(&keys.guard().await.expect("a guard"));
        let send = async || {
            apps.send_to(app, "GET", "/handler/can", &[("x-api-key", &key)])
                .await
        };
        assert_eq!(send().await.body, "reads: true, writes: false", "{app}");
        assert_eq!(send().await.status, 429, "{app}");
    }
}
