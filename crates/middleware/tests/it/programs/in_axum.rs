use std::{net::SocketAddr, sync::Arc};

use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{FromRequestParts, Path, Request, State, connect_info::MockConnectInfo},
    handler::Handler as _,
    http::{StatusCode, request::Parts},
    middleware::{Next, from_fn, map_response},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http_body_util::BodyExt as _;
use tollkey_axum::{
    Denial, Family, Feature, Guard, IpList, IpNet, MerchantSource, Mode, RateLimit, Rejection,
    RequestHead, Requirement, Scope, Timestamp, TollkeyLayer, VerifiedKey, require,
    serde_json::{Value, json},
    testing::TestKeys,
};
use tower::{ServiceBuilder, ServiceExt as _, limit::ConcurrencyLimitLayer};

use super::library;

async fn account(key: VerifiedKey) -> String {
    key.account_id().to_owned()
}

async fn send(app: &Router, path: &str, headers: &[(&str, &str)]) -> Response {
    let request = Request::builder().uri(path);
    let request = headers.iter().fold(request, |request, (name, value)| {
        request.header(*name, *value)
    });
    app.clone()
        .oneshot(request.body(Body::empty()).expect("a request"))
        .await
        .expect("a response")
}

async fn status(app: &Router, path: &str, key: &str) -> u16 {
    send(app, path, &[("x-api-key", key)])
        .await
        .status()
        .as_u16()
}

async fn text(response: Response) -> String {
    let body = response.into_body().collect().await.expect("a body");
    String::from_utf8(body.to_bytes().into()).expect("a text")
}

#[tokio::test]
async fn require_accepts_every_scope_type() {
    let keys = TestKeys::new();
    let (reads, both) = (
        vec!["links:read"],
        vec![Scope::LINKS_READ, Scope::LINKS_WRITE],
    );
    let array = [Scope::LINKS_READ, Scope::LINKS_WRITE];
    let configured: Vec<String> = vec!["links:read".to_owned(), "links:write".to_owned()];
    let app = Router::new()
        .route("/read/1", get(account.layer(require("links:read"))))
        .route("/read/2", get(account).layer(require(Scope::LINKS_READ)))
        .route("/read/3", get(account).layer(require(reads)))
        .route(
            "/read/4",
            get(account).layer(require(String::from("links:read"))),
        )
        .route(
            "/read/5",
            get(account).layer(require(
                Requirement::scopes(["links:read"]).mode(Mode::Test),
            )),
        )
        .route(
            "/both/1",
            get(account.layer(require(["links:read", "links:write"]))),
        )
        .route("/both/2", get(account).layer(require(&both[..])))
        .route("/both/3", get(account).layer(require(&both)))
        .route("/both/4", get(account).layer(require(both)))
        .route("/both/5", get(account).layer(require(&array)))
        .route(
            "/both/6",
            get(account).layer(require(vec!["links:read", "links:write"])),
        )
        .route("/both/7", get(account).layer(require(&configured)))
        .route("/both/8", get(account).layer(require(configured)))
        .route("/both/9", get(account).layer(require(array)))
        .layer(TollkeyLayer::new(keys.guard().await.expect("a guard")));
    let with = |scopes: &[&'static str]| {
        let scopes = scopes.iter().map(|scope| Scope::from(*scope)).collect();
        keys.add(Family::Commerce, Mode::Test, |key| {
            key.restrictions.scopes = scopes
        })
    };
    let (reader, writer) = (with(&["links:read"]), with(&["links:write", "links:read"]));
    for path in (1..=5).map(|number| format!("/read/{number}")) {
        assert_eq!(
            (
                status(&app, &path, &reader).await,
                status(&app, &path, &writer).await
            ),
            (200, 200),
            "{path}"
        );
    }
    for path in (1..=9).map(|number| format!("/both/{number}")) {
        assert_eq!(
            (
                status(&app, &path, &reader).await,
                status(&app, &path, &writer).await
            ),
            (403, 200),
            "{path}"
        );
    }
}

#[tokio::test]
async fn scope_is_required_for_a_whole_router() {
    let keys = TestKeys::new();
    let guard = keys.guard().await.expect("a guard");
    let key = keys.add(Family::Application, Mode::Live, |key| {
        key.restrictions.scopes = vec!["events:read".into()]
    });
    let links = Router::new()
        .route("/links", get(account))
        .route_layer(require("links:read"));
    let events = Router::new()
        .route("/events", get(account))
        .route_layer(require("events:read"));
    let app = links.merge(events).layer(TollkeyLayer::new(guard.clone()));
    assert_eq!(
        (
            status(&app, "/links", &key).await,
            status(&app, "/events", &key).await
        ),
        (403, 200)
    );
    // Alternatively, at the layer.
    let app = Router::new()
        .route("/links", get(account))
        .layer(TollkeyLayer::new(guard).require("links:read"));
    assert_eq!(status(&app, "/links", &key).await, 403);
}

#[tokio::test]
async fn trusted_proxies_accepts_every_type() {
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Test, |key| {
        key.restrictions.allowed_ips = IpList::parse(["203.0.113.0/24"]).ok();
    });
    let parsed: Vec<IpNet> = vec!["10.0.0.0/8".parse().expect("a range")];
    let configured: Vec<String> = vec!["10.0.0.0/8".to_owned(), "fd00::/8".to_owned()];
    for (builder, expected) in [
        (Guard::builder(), 403),
        (Guard::builder().trusted_proxies([]), 403),
        (Guard::builder().trusted_proxies(["192.0.2.0/24"]), 403),
        (
            Guard::builder().trusted_proxies(["10.0.0.0/8", "fd00::/8"]),
            200,
        ),
        (Guard::builder().trusted_proxies(&configured), 200),
        (Guard::builder().trusted_proxies(configured), 200),
        (Guard::builder().trusted_proxies(&parsed[..]), 200),
        (Guard::builder().trusted_proxies(parsed), 200),
    ] {
        let app = Router::new()
            .route("/any", get(account))
            .layer(TollkeyLayer::new(
                keys.guard_with(builder.clone()).await.expect("a guard"),
            ))
            .layer(MockConnectInfo(SocketAddr::from(([10, 0, 0, 1], 443))));
        let headers = [("x-api-key", &*key), ("x-forwarded-for", "203.0.113.9")];
        assert_eq!(send(&app, "/any", &headers).await.status(), expected);
    }
}

#[tokio::test]
async fn library_describes_the_key_of_a_handler() {
    async fn handler(key: VerifiedKey) -> String {
        library::describe(&key)
    }
    let keys = TestKeys::new();
    let end: Timestamp = "2100-01-01T00:00:00Z".parse().expect("a time");
    let key = keys.add(Family::Application, Mode::Live, |key| {
        key.restrictions.expires_at = Some(end)
    });
    let app = Router::new()
        .route("/any", get(handler))
        .layer(TollkeyLayer::new(keys.guard().await.expect("a guard")));
    let response = send(&app, "/any", &[("authorization", &format!("Bearer {key}"))]).await;
    assert_eq!(
        text(response).await,
        "acme application live expires 2100-01-01T00:00:00Z"
    );
}

#[tokio::test]
async fn handler_rejects_as_the_layer_does() {
    async fn pay(Path(merchant): Path<String>, key: VerifiedKey) -> Result<Json<Value>, Rejection> {
        key.require("sessions:write")?;
        key.require(Requirement::any().merchant(MerchantSource::id(&*merchant)))?;
        if merchant == "closed" {
            return Err(key.reject(Denial::MerchantNotAllowed));
        }
        Ok(Json(json!({"merchant": merchant})))
    }
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Test, |key| {
        key.restrictions.rate_limit = RateLimit::new(1, 60).ok()
    });
    let reader = keys.add(Family::Commerce, Mode::Test, |key| {
        key.restrictions.scopes = vec![Scope::LINKS_READ]
    });
    let guard = keys.guard().await.expect("a guard");
    let app = Router::new()
        .route("/pay/{merchant}", get(pay))
        .layer(TollkeyLayer::new(guard));
    let response = send(&app, "/pay/m1", &[("x-api-key", &reader)]).await;
    let challenge = response.headers()["www-authenticate"]
        .to_str()
        .expect("a text")
        .to_owned();
    assert!(
        challenge.ends_with("scope=\"sessions:write\""),
        "{challenge}"
    );
    let problem: Value =
        tollkey_axum::serde_json::from_str(&text(response).await).expect("a problem");
    assert_eq!(
        (&problem["status"], &problem["code"]),
        (&json!(403), &json!("insufficient_scope"))
    );
    // A rejection takes nothing from the rate limit.
    for (merchant, expected) in [("closed", 403), ("closed", 403), ("m1", 200), ("m1", 429)] {
        assert_eq!(
            status(&app, &format!("/pay/{merchant}"), &key).await,
            expected
        );
    }
}

/// The errors of an application.
enum AppError {
    Rejected(Rejection),
    SoldOut,
}

impl From<Rejection> for AppError {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl IntoResponse for AppError {
    fn into_response(self) -> Response {
        match self {
            Self::Rejected(rejection) => rejection.into_response(),
            Self::SoldOut => (StatusCode::CONFLICT, "sold out").into_response(),
        }
    }
}

#[tokio::test]
async fn rejection_converts_into_an_application_error() {
    async fn buy(key: VerifiedKey) -> Result<String, AppError> {
        key.require(Requirement::scopes([Scope::SESSIONS_WRITE]).mode(Mode::Live))?;
        Err(AppError::SoldOut)
    }
    let keys = TestKeys::new();
    let [live, test] =
        [Mode::Live, Mode::Test].map(|mode| keys.add(Family::Commerce, mode, |_| {}));
    let app = Router::new()
        .route("/buy", get(buy))
        .layer(TollkeyLayer::new(keys.guard().await.expect("a guard")));
    assert_eq!(
        (
            status(&app, "/buy", &live).await,
            status(&app, "/buy", &test).await
        ),
        (409, 403)
    );
}

#[tokio::test]
async fn key_is_optional_in_an_optional_layer() {
    async fn home(key: Option<VerifiedKey>) -> String {
        key.map_or_else(
            || "welcome".to_owned(),
            |key| format!("welcome, {}", key.account_id()),
        )
    }
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |_| {});
    let layer = TollkeyLayer::new(keys.guard().await.expect("a guard"))
        .require(Requirement::any().optional());
    let app = Router::new().route("/", get(home)).layer(layer);
    assert_eq!(text(send(&app, "/", &[]).await).await, "welcome");
    assert_eq!(
        text(send(&app, "/", &[("x-api-key", &key)]).await).await,
        "welcome, acme"
    );
    keys.revoke(&key);
    assert_eq!(status(&app, "/", &key).await, 401);
}

#[tokio::test]
async fn merchant_is_read_by_a_closure() {
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |key| {
        key.restrictions.merchants = Some(vec!["m1".to_owned()]);
        key.restrictions.features = Some(vec![Feature::TokensList]);
    });
    let guard = Guard::builder().merchant(MerchantSource::from_fn(|request: &RequestHead<'_>| {
        let host = request.header("host")?;
        host.strip_suffix(".api.example.com").map(str::to_owned)
    }));
    async fn tokens(key: VerifiedKey) -> String {
        key.merchant().unwrap_or("none").to_owned()
    }
    let guard = keys.guard_with(guard).await.expect("a guard");
    let app = Router::new()
        .route("/api/tokens", get(tokens))
        .layer(TollkeyLayer::new(guard));
    for (host, expected) in [
        ("m1.api.example.com", 200),
        ("m2.api.example.com", 403),
        ("api.example.com", 403),
    ] {
        assert_eq!(
            send(&app, "/api/tokens", &[("x-api-key", &key), ("host", host)])
                .await
                .status(),
            expected
        );
    }
}

#[tokio::test]
async fn scoped_key_calls_its_features_in_nested_routers() {
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |key| {
        key.restrictions.merchants = Some(vec!["m1".to_owned()]);
        key.restrictions.features = Some(vec![Feature::TokensList, Feature::TokensRetrieve]);
    });
    let guard = Guard::builder()
        .route_base("/merchants/{merchant}")
        .merchant(MerchantSource::path("/merchants/{merchant}"));
    let guard = keys.guard_with(guard).await.expect("a guard");
    let tokens = || {
        Router::new()
            .route("/", get(account))
            .route("/{token}", get(account))
            .route("/{token}/payment-data", get(account))
    };
    let inside = Router::new()
        .nest("/tokens", tokens())
        .layer(TollkeyLayer::new(guard.clone()));
    let inside = Router::new().nest("/merchants/{merchant}", inside);
    let outside = Router::new().nest(
        "/merchants/{merchant}",
        Router::new().nest("/tokens", tokens()),
    );
    let outside = outside.layer(TollkeyLayer::new(guard));
    for app in [inside, outside] {
        for (path, expected) in [
            ("/merchants/m1/tokens", 200),
            ("/merchants/m1/tokens/tok_1", 200),
            ("/merchants/m1/tokens/tok_1/payment-data", 403),
            ("/merchants/m2/tokens", 403),
        ] {
            assert_eq!(status(&app, path, &key).await, expected, "{path}");
        }
    }
}

#[tokio::test]
async fn guard_is_part_of_the_state() {
    #[derive(Clone)]
    struct AppState {
        guard: Guard,
        name: Arc<str>,
    }
    async fn health(State(state): State<AppState>) -> String {
        let stats = state.guard.stats();
        format!(
            "{} {} {}",
            state.name,
            stats.lease_left.is_zero(),
            stats.hits + stats.misses
        )
    }
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |_| {});
    let state = AppState {
        guard: keys.guard().await.expect("a guard"),
        name: "shop".into(),
    };
    let app = Router::new()
        .route("/any", get(account))
        .layer(TollkeyLayer::new(state.guard.clone()))
        .route("/health", get(health))
        .with_state(state);
    assert_eq!(status(&app, "/any", &key).await, 200);
    // A guard of TestKeys has no lease: it looks up each key.
    assert_eq!(text(send(&app, "/health", &[]).await).await, "shop true 1");
}

#[tokio::test]
async fn layer_can_be_stored_and_cloned() {
    #[derive(Debug, Clone)]
    struct Protection {
        layer: TollkeyLayer,
        writes: Requirement,
    }
    impl Protection {
        fn around(&self, routes: Router) -> Router {
            routes
                .route_layer(require(self.writes.clone()))
                .layer(self.layer.clone())
        }
    }
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |key| {
        key.restrictions.scopes = vec![Scope::LINKS_READ]
    });
    let protection = Protection {
        layer: TollkeyLayer::new(keys.guard().await.expect("a guard")),
        writes: "links:write".into(),
    };
    let app = protection.around(Router::new().route("/links", get(account)));
    assert_eq!(status(&app, "/links", &key).await, 403);
}

#[tokio::test]
async fn application_formats_rejections_itself() {
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |key| {
        key.restrictions.scopes = vec![Scope::LINKS_READ]
    });
    let builder = Guard::builder()
        .realm("shop")
        .on_rejection(|rejection, response| {
            response.set_header("content-type", "application/json");
            response.body =
                json!({"error": {"code": rejection.code(), "message": rejection.detail()}})
                    .to_string();
            if rejection.denial() == Some(Denial::InsufficientScope) {
                response.status = 404;
            }
        });
    async fn own(key: VerifiedKey) -> Result<(), Rejection> {
        key.require("links:write")
    }
    let app = Router::new()
        .route("/layer", get(account).layer(require("links:write")))
        .route("/handler", get(own))
        .layer(TollkeyLayer::new(
            keys.guard_with(builder).await.expect("a guard"),
        ));
    for path in ["/layer", "/handler"] {
        let response = send(&app, path, &[("x-api-key", &key)]).await;
        assert_eq!(
            (
                response.status(),
                &response.headers()["content-type"] == "application/json"
            ),
            (StatusCode::NOT_FOUND, true)
        );
        let body = text(response).await;
        assert_eq!(
            body,
            r#"{"error":{"code":"insufficient_scope","message":"The key lacks a required scope. Use a key with all required scopes."}}"#
        );
    }
    assert_eq!(
        send(&app, "/layer", &[]).await.headers()["www-authenticate"],
        "Bearer realm=\"shop\""
    );
}

#[tokio::test]
async fn outer_middleware_reads_the_rejection() {
    async fn label(mut response: Response) -> Response {
        if let Some(rejection) = response.extensions().get::<Rejection>() {
            let label = library::label(rejection).parse().expect("a header");
            response.headers_mut().insert("x-rejected", label);
        }
        response
    }
    async fn label_in_from_fn(request: Request, next: Next) -> Response {
        label(next.run(request).await).await
    }
    async fn own(key: VerifiedKey) -> Result<(), Rejection> {
        key.require("events:read")
    }
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |key| {
        key.restrictions.scopes = vec![Scope::LINKS_READ]
    });
    let [test, revoked] = [(); 2].map(|()| keys.add(Family::Commerce, Mode::Test, |_| {}));
    keys.revoke(&revoked);
    let guard = keys.guard().await.expect("a guard");
    let routes = Router::new()
        .route("/route", get(account.layer(require("links:write"))))
        .route(
            "/live",
            get(account.layer(require(Requirement::any().mode(Mode::Live)))),
        )
        .route("/handler", get(own))
        .route("/any", get(account))
        .layer(TollkeyLayer::new(guard));
    for app in [
        routes.clone().layer(map_response(label)),
        routes.layer(from_fn(label_in_from_fn)),
    ] {
        for (path, key, expected) in [
            (
                "/any",
                "ck_test_EXAMPLE0EXAMPLE0EXAMPLE0EXAMPLE0",
                Some("unknown_key"),
            ),
            ("/any", &*revoked, Some("revoked")),
            ("/any", &*key, None),
            ("/route", &*key, Some("scope")),
            ("/handler", &*key, Some("scope")),
            ("/live", &*test, Some("wrong_mode")),
        ] {
            let response = send(&app, path, &[("x-api-key", key)]).await;
            let rejected = response
                .headers()
                .get("x-rejected")
                .map(|value| value.to_str().expect("a text"));
            assert_eq!(rejected, expected, "{path}");
        }
    }
}

#[tokio::test]
async fn inner_middleware_reads_the_key() {
    async fn tenant(key: VerifiedKey, mut request: Request, next: Next) -> Response {
        request
            .extensions_mut()
            .insert(format!("tenant of {}", key.account_id()));
        next.run(request).await
    }
    async fn handler(Extension(tenant): Extension<String>) -> String {
        tenant
    }
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |_| {});
    let app = Router::new()
        .route("/any", get(handler))
        .layer(from_fn(tenant))
        .layer(TollkeyLayer::new(keys.guard().await.expect("a guard")));
    assert_eq!(
        text(send(&app, "/any", &[("x-api-key", &key)]).await).await,
        "tenant of acme"
    );
}

#[tokio::test]
async fn application_extractor_uses_the_verified_key() {
    struct Tenant(String);
    impl<S: Send + Sync> FromRequestParts<S> for Tenant {
        type Rejection = Rejection;

        async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Rejection> {
            let key = VerifiedKey::from_request_parts(parts, state).await?;
            key.require("links:read")?;
            Ok(Self(key.account_id().to_owned()))
        }
    }
    async fn handler(Tenant(tenant): Tenant) -> String {
        tenant
    }
    let keys = TestKeys::new();
    let reader = keys.add(Family::Commerce, Mode::Live, |_| {});
    let other = keys.add(Family::Commerce, Mode::Live, |key| {
        key.restrictions.scopes = vec![Scope::EVENTS_READ]
    });
    let app = Router::new()
        .route("/any", get(handler))
        .layer(TollkeyLayer::new(keys.guard().await.expect("a guard")));
    assert_eq!(
        (
            status(&app, "/any", &reader).await,
            status(&app, "/any", &other).await
        ),
        (200, 403)
    );
}

#[tokio::test]
async fn layers_are_composed_with_tower() {
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |_| {});
    // In a `ServiceBuilder`, the first layer is the outermost.
    let layers = ServiceBuilder::new()
        .map_response(|response: Response| response)
        .layer(TollkeyLayer::new(keys.guard().await.expect("a guard")).require("links:read"))
        .layer(ConcurrencyLimitLayer::new(1));
    let app = Router::new()
        .route("/any", post(account).get(account))
        .layer(layers);
    for _ in 0..3 {
        assert_eq!(
            (
                send(&app, "/any", &[]).await.status().as_u16(),
                status(&app, "/any", &key).await
            ),
            (401, 200)
        );
    }
}

#[tokio::test]
async fn task_waits_until_the_key_is_revoked() {
    async fn open(State(ended): State<tokio::sync::mpsc::Sender<Denial>>, key: VerifiedKey) {
        tokio::spawn(async move { ended.send(key.revoked().await).await });
    }
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |_| {});
    let guard = keys.caching_guard().await.expect("a guard");
    let (ended, mut denials) = tokio::sync::mpsc::channel(1);
    let app = Router::new()
        .route("/open", get(open))
        .layer(TollkeyLayer::new(guard))
        .with_state(ended);
    assert_eq!(status(&app, "/open", &key).await, 200);
    keys.revoke(&key);
    assert_eq!(denials.recv().await, Some(Denial::Revoked));
}

#[tokio::test]
async fn metadata_of_a_key_is_read_in_a_handler() {
    async fn plan(key: VerifiedKey) -> String {
        let plan = key.metadata().and_then(|metadata| {
            metadata
                .get("plan")
                .and_then(Value::as_str)
                .map(str::to_owned)
        });
        plan.unwrap_or_else(|| "free".to_owned())
    }
    let keys = TestKeys::new();
    let free = keys.add(Family::Commerce, Mode::Live, |_| {});
    let paid = keys.add(Family::Commerce, Mode::Live, |key| {
        let Value::Object(object) = json!({"plan": "gold"}) else {
            return;
        };
        key.metadata = tollkey_axum::Metadata::new(object).ok();
    });
    let app = Router::new()
        .route("/plan", get(plan))
        .layer(TollkeyLayer::new(keys.guard().await.expect("a guard")));
    assert_eq!(
        text(send(&app, "/plan", &[("x-api-key", &free)]).await).await,
        "free"
    );
    assert_eq!(
        text(send(&app, "/plan", &[("x-api-key", &paid)]).await).await,
        "gold"
    );
}
