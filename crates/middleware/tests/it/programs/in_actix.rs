use std::fmt;

use actix_http::Request;
use actix_web::{
    App, Error, FromRequest, HttpMessage as _, HttpRequest, HttpResponse, Responder, ResponseError,
    body::{MessageBody, to_bytes},
    dev::{Payload, Service, ServiceRequest, ServiceResponse},
    get,
    http::{
        StatusCode,
        header::{HeaderName, HeaderValue},
    },
    middleware::{Next, from_fn},
    test::{TestRequest, call_service, init_service},
    web,
};
use tollkey_actix::{
    Denial, Family, Feature, Guard, IpList, IpNet, MerchantSource, Metadata, Mode, RateLimit,
    Rejection, RequestHead, Requirement, Scope, Timestamp, Tollkey, VerifiedKey, require,
    serde_json::{self, Value, json},
    testing::TestKeys,
};

use super::library;

async fn account(key: VerifiedKey) -> String {
    key.account_id().to_owned()
}

/// A response, and its body as text.
struct Reply {
    response: HttpResponse<()>,
    body: String,
}

impl Reply {
    fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.response
            .headers()
            .get(name)
            .map(|value| value.to_str().expect("a text"))
    }
}

async fn send_request<S, B>(app: &S, request: TestRequest) -> Reply
where
    S: Service<Request, Response = ServiceResponse<B>, Error = Error>,
    B: MessageBody,
{
    let (_, response) = call_service(app, request.to_request()).await.into_parts();
    let (response, body) = response.into_parts();
    let Ok(body) = to_bytes(body).await else {
        panic!("a body")
    };
    Reply {
        response,
        body: String::from_utf8(body.into()).expect("a text"),
    }
}

async fn send<S, B>(app: &S, path: &str, headers: &[(&'static str, &str)]) -> Reply
where
    S: Service<Request, Response = ServiceResponse<B>, Error = Error>,
    B: MessageBody,
{
    let request = headers
        .iter()
        .fold(TestRequest::with_uri(path), |request, header| {
            request.insert_header(*header)
        });
    send_request(app, request).await
}

async fn status<S, B>(app: &S, path: &str, key: &str) -> u16
where
    S: Service<Request, Response = ServiceResponse<B>, Error = Error>,
    B: MessageBody,
{
    send(app, path, &[("x-api-key", key)]).await.status()
}

#[actix_web::test]
async fn require_accepts_every_scope_type() {
    let keys = TestKeys::new();
    let (reads, both) = (
        vec!["links:read"],
        vec![Scope::LINKS_READ, Scope::LINKS_WRITE],
    );
    let array = [Scope::LINKS_READ, Scope::LINKS_WRITE];
    let configured: Vec<String> = vec!["links:read".to_owned(), "links:write".to_owned()];
    let get = || web::get().to(account);
    let app = App::new()
        .wrap(Tollkey::new(keys.guard().await.expect("a guard")))
        .route("/read/1", get().wrap(require("links:read")))
        .route("/read/2", get().wrap(require(Scope::LINKS_READ)))
        .route("/read/3", get().wrap(require(reads)))
        .route("/read/4", get().wrap(require(String::from("links:read"))))
        .route(
            "/read/5",
            get().wrap(require(
                Requirement::scopes(["links:read"]).mode(Mode::Test),
            )),
        )
        .service(
            web::resource("/both/1")
                .wrap(require(["links:read", "links:write"]))
                .to(account),
        )
        .service(
            web::resource("/both/2")
                .wrap(require(&both[..]))
                .to(account),
        )
        .service(web::resource("/both/3").wrap(require(&both)).to(account))
        .service(web::scope("/both/4").wrap(require(both)).route("", get()))
        .service(web::scope("/both/5").wrap(require(&array)).route("", get()))
        .route(
            "/both/6",
            get().wrap(require(vec!["links:read", "links:write"])),
        )
        .route("/both/7", get().wrap(require(&configured)))
        .route("/both/8", get().wrap(require(configured)))
        .route("/both/9", get().wrap(require(array)));
    let app = init_service(app).await;
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

#[get("/links", wrap = "require(\"links:read\")")]
async fn list_links(key: VerifiedKey) -> impl Responder {
    HttpResponse::Ok().json(json!({"account": key.account_id()}))
}

#[get("/events")]
async fn list_events(key: VerifiedKey) -> Result<web::Json<Value>, Rejection> {
    key.require("events:read")?;
    Ok(web::Json(json!([])))
}

#[actix_web::test]
async fn scope_is_required_by_an_attribute() {
    fn routes(config: &mut web::ServiceConfig) {
        config.service(list_links).service(list_events);
    }
    let keys = TestKeys::new();
    let key = keys.add(Family::Application, Mode::Live, |key| {
        key.restrictions.scopes = vec!["events:read".into()]
    });
    let guard = keys.guard().await.expect("a guard");
    let app = init_service(
        App::new().service(
            web::scope("/v1")
                .wrap(Tollkey::new(guard))
                .configure(routes),
        ),
    )
    .await;
    assert_eq!(
        (
            status(&app, "/v1/links", &key).await,
            status(&app, "/v1/events", &key).await
        ),
        (403, 200)
    );
}

#[actix_web::test]
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
        let guard = keys.guard_with(builder).await.expect("a guard");
        let app = init_service(
            App::new()
                .wrap(Tollkey::new(guard))
                .route("/any", web::get().to(account)),
        )
        .await;
        let request = TestRequest::with_uri("/any").peer_addr(([10, 0, 0, 1], 443).into());
        let request = request
            .insert_header(("x-api-key", &*key))
            .insert_header(("x-forwarded-for", "203.0.113.9"));
        assert_eq!(send_request(&app, request).await.status(), expected);
    }
}

#[actix_web::test]
async fn library_describes_the_key_of_a_handler() {
    async fn handler(key: VerifiedKey) -> String {
        library::describe(&key)
    }
    let keys = TestKeys::new();
    let end: Timestamp = "2100-01-01T00:00:00Z".parse().expect("a time");
    let key = keys.add(Family::Application, Mode::Live, |key| {
        key.restrictions.expires_at = Some(end)
    });
    let guard = keys.guard().await.expect("a guard");
    let app = init_service(
        App::new()
            .wrap(Tollkey::new(guard))
            .route("/any", web::get().to(handler)),
    )
    .await;
    let reply = send(&app, "/any", &[("authorization", &format!("Bearer {key}"))]).await;
    assert_eq!(
        reply.body,
        "acme application live expires 2100-01-01T00:00:00Z"
    );
}

#[actix_web::test]
async fn handler_rejects_as_the_layer_does() {
    async fn pay(
        merchant: web::Path<String>,
        key: VerifiedKey,
    ) -> Result<impl Responder, Rejection> {
        key.require("sessions:write")?;
        key.require(Requirement::any().merchant(MerchantSource::id(&**merchant)))?;
        if *merchant == "closed" {
            return Err(key.reject(Denial::MerchantNotAllowed));
        }
        Ok(web::Json(json!({"merchant": *merchant})))
    }
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Test, |key| {
        key.restrictions.rate_limit = RateLimit::new(1, 60).ok()
    });
    let reader = keys.add(Family::Commerce, Mode::Test, |key| {
        key.restrictions.scopes = vec![Scope::LINKS_READ]
    });
    let guard = keys.guard().await.expect("a guard");
    let app = App::new()
        .wrap(Tollkey::new(guard))
        .service(web::resource("/pay/{merchant}").get(pay));
    let app = init_service(app).await;
    let reply = send(&app, "/pay/m1", &[("x-api-key", &reader)]).await;
    let challenge = reply.header("www-authenticate").expect("a challenge");
    assert!(
        challenge.ends_with("scope=\"sessions:write\""),
        "{challenge}"
    );
    let problem: Value = serde_json::from_str(&reply.body).expect("a problem");
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
#[derive(Debug)]
enum AppError {
    Rejected(Rejection),
    SoldOut,
}

impl fmt::Display for AppError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(rejection) => rejection.fmt(f),
            Self::SoldOut => f.write_str("sold out"),
        }
    }
}

impl From<Rejection> for AppError {
    fn from(rejection: Rejection) -> Self {
        Self::Rejected(rejection)
    }
}

impl ResponseError for AppError {
    fn status_code(&self) -> StatusCode {
        match self {
            Self::Rejected(rejection) => rejection.status_code(),
            Self::SoldOut => StatusCode::CONFLICT,
        }
    }

    fn error_response(&self) -> HttpResponse {
        match self {
            Self::Rejected(rejection) => rejection.error_response(),
            Self::SoldOut => HttpResponse::Conflict().body("sold out"),
        }
    }
}

#[actix_web::test]
async fn rejection_converts_into_an_application_error() {
    async fn buy(key: VerifiedKey) -> Result<String, AppError> {
        key.require(Requirement::scopes([Scope::SESSIONS_WRITE]).mode(Mode::Live))?;
        Err(AppError::SoldOut)
    }
    let keys = TestKeys::new();
    let [live, test] =
        [Mode::Live, Mode::Test].map(|mode| keys.add(Family::Commerce, mode, |_| {}));
    let guard = keys.guard().await.expect("a guard");
    let app = init_service(
        App::new()
            .wrap(Tollkey::new(guard))
            .route("/buy", web::get().to(buy)),
    )
    .await;
    assert_eq!(
        (
            status(&app, "/buy", &live).await,
            status(&app, "/buy", &test).await
        ),
        (409, 403)
    );
}

#[actix_web::test]
async fn key_is_optional_in_an_optional_layer() {
    async fn home(key: Option<VerifiedKey>) -> String {
        key.map_or_else(
            || "welcome".to_owned(),
            |key| format!("welcome, {}", key.account_id()),
        )
    }
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |_| {});
    let layer =
        Tollkey::new(keys.guard().await.expect("a guard")).require(Requirement::any().optional());
    let app = init_service(App::new().wrap(layer).route("/", web::get().to(home))).await;
    assert_eq!(send(&app, "/", &[]).await.body, "welcome");
    assert_eq!(
        send(&app, "/", &[("x-api-key", &key)]).await.body,
        "welcome, acme"
    );
    keys.revoke(&key);
    assert_eq!(status(&app, "/", &key).await, 401);
}

#[actix_web::test]
async fn merchant_is_read_by_a_closure() {
    async fn tokens(key: VerifiedKey) -> String {
        key.merchant().unwrap_or("none").to_owned()
    }
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |key| {
        key.restrictions.merchants = Some(vec!["m1".to_owned()]);
        key.restrictions.features = Some(vec![Feature::TokensList]);
    });
    let guard = Guard::builder().merchant(MerchantSource::from_fn(|request: &RequestHead<'_>| {
        let host = request.header("host")?;
        host.strip_suffix(".api.example.com").map(str::to_owned)
    }));
    let guard = keys.guard_with(guard).await.expect("a guard");
    let app = init_service(
        App::new()
            .wrap(Tollkey::new(guard))
            .route("/api/tokens", web::get().to(tokens)),
    )
    .await;
    for (host, expected) in [
        ("m1.api.example.com", 200),
        ("m2.api.example.com", 403),
        ("api.example.com", 403),
    ] {
        let reply = send(&app, "/api/tokens", &[("x-api-key", &key), ("host", host)]).await;
        assert_eq!(reply.status(), expected, "{host}");
    }
}

#[actix_web::test]
async fn scoped_key_calls_its_features_in_nested_scopes() {
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |key| {
        key.restrictions.merchants = Some(vec!["m1".to_owned()]);
        key.restrictions.features = Some(vec![Feature::TokensList, Feature::TokensRetrieve]);
    });
    let guard = Guard::builder()
        .route_base("/merchants/{merchant}")
        .merchant(MerchantSource::path("/merchants/{merchant}"));
    let guard = keys.guard_with(guard).await.expect("a guard");
    let get = || web::get().to(account);
    let tokens = || {
        web::scope("/tokens")
            .route("", get())
            .route("/{token}", get())
            .route("/{token}/payment-data", get())
    };
    let layer = || Tollkey::new(guard.clone());
    let scope = || web::scope("/merchants/{merchant}");
    let inside = init_service(App::new().service(scope().service(tokens().wrap(layer())))).await;
    let outside = init_service(App::new().wrap(layer()).service(scope().service(tokens()))).await;
    for (path, expected) in [
        ("/merchants/m1/tokens", 200),
        ("/merchants/m1/tokens/tok_1", 200),
        ("/merchants/m1/tokens/tok_1/payment-data", 403),
        ("/merchants/m2/tokens", 403),
    ] {
        let statuses = (
            status(&inside, path, &key).await,
            status(&outside, path, &key).await,
        );
        assert_eq!(statuses, (expected, expected), "{path}");
    }
}

#[actix_web::test]
async fn guard_is_part_of_the_state() {
    async fn health(guard: web::Data<Guard>, name: web::Data<String>) -> String {
        let stats = guard.stats();
        format!(
            "{} {} {}",
            **name,
            stats.lease_left.is_zero(),
            stats.hits + stats.misses
        )
    }
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |_| {});
    let guard = keys.guard().await.expect("a guard");
    let app = App::new()
        .app_data(web::Data::new(guard.clone()))
        .app_data(web::Data::new("shop".to_owned()))
        .route("/health", web::get().to(health))
        .service(
            web::scope("/v1")
                .wrap(Tollkey::new(guard))
                .route("/any", web::get().to(account)),
        );
    let app = init_service(app).await;
    assert_eq!(status(&app, "/v1/any", &key).await, 200);
    // A guard of TestKeys has no lease: it looks up each key.
    assert_eq!(send(&app, "/health", &[]).await.body, "shop true 1");
}

#[actix_web::test]
async fn middleware_is_stored_and_shared_by_workers() {
    #[derive(Debug, Clone)]
    struct Protection {
        middleware: Tollkey,
        writes: Requirement,
    }
    fn is_shared<T: Clone + Send + Sync>(_: &T) {}
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |key| {
        key.restrictions.scopes = vec![Scope::LINKS_READ]
    });
    let middleware = Tollkey::new(keys.guard().await.expect("a guard"));
    let protection = Protection {
        middleware,
        writes: "links:write".into(),
    };
    is_shared(&protection);
    let app = App::new().wrap(protection.middleware.clone()).service(
        web::resource("/links").route(
            web::post()
                .to(account)
                .wrap(require(protection.writes.clone())),
        ),
    );
    let app = init_service(app).await;
    let request = TestRequest::post()
        .uri("/links")
        .insert_header(("x-api-key", key));
    assert_eq!(send_request(&app, request).await.status(), 403);
}

#[actix_web::test]
async fn application_formats_rejections_itself() {
    async fn own(key: VerifiedKey) -> Result<&'static str, Rejection> {
        key.require("links:write").map(|()| "done")
    }
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
    let app = App::new()
        .wrap(Tollkey::new(
            keys.guard_with(builder).await.expect("a guard"),
        ))
        .route(
            "/layer",
            web::get().to(account).wrap(require("links:write")),
        )
        .route("/handler", web::get().to(own));
    let app = init_service(app).await;
    for path in ["/layer", "/handler"] {
        let reply = send(&app, path, &[("x-api-key", &key)]).await;
        assert_eq!(
            (reply.status(), reply.header("content-type")),
            (404, Some("application/json")),
            "{path}"
        );
        let expected = r#"{"error":{"code":"insufficient_scope","message":"The key lacks a required scope. Use a key with all required scopes."}}"#;
        assert_eq!(reply.body, expected, "{path}");
    }
    let reply = send(&app, "/layer", &[]).await;
    assert_eq!(
        reply.header("www-authenticate"),
        Some("Bearer realm=\"shop\"")
    );
}

#[actix_web::test]
async fn outer_middleware_reads_the_rejection() {
    fn label<B>(mut response: ServiceResponse<B>) -> ServiceResponse<B> {
        let label = response
            .response()
            .extensions()
            .get::<Rejection>()
            .map(library::label);
        if let Some(label) = label {
            let label = HeaderValue::from_static(label);
            response
                .headers_mut()
                .insert(HeaderName::from_static("x-rejected"), label);
        }
        response
    }
    async fn label_in_from_fn(
        request: ServiceRequest,
        next: Next<impl MessageBody>,
    ) -> Result<ServiceResponse<impl MessageBody>, Error> {
        next.call(request).await.map(label)
    }
    async fn own(key: VerifiedKey) -> Result<&'static str, Rejection> {
        key.require("events:read").map(|()| "done")
    }
    fn routes(config: &mut web::ServiceConfig) {
        let live = Requirement::any().mode(Mode::Live);
        config
            .route(
                "/route",
                web::get().to(account).wrap(require("links:write")),
            )
            .route("/live", web::get().to(account).wrap(require(live)))
            .route("/handler", web::get().to(own))
            .route("/any", web::get().to(account));
    }
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |key| {
        key.restrictions.scopes = vec![Scope::LINKS_READ]
    });
    let [test, revoked] = [(); 2].map(|()| keys.add(Family::Commerce, Mode::Test, |_| {}));
    keys.revoke(&revoked);
    let guard = keys.guard().await.expect("a guard");
    let app = || {
        App::new()
            .wrap(Tollkey::new(guard.clone()))
            .configure(routes)
    };
    let in_wrap_fn = init_service(app().wrap_fn(|request, service| {
        let response = service.call(request);
        async move { response.await.map(label) }
    }))
    .await;
    let in_from_fn = init_service(app().wrap(from_fn(label_in_from_fn))).await;
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
        let headers = [("x-api-key", key)];
        let (first, second) = (
            send(&in_wrap_fn, path, &headers).await,
            send(&in_from_fn, path, &headers).await,
        );
        assert_eq!(
            [first.header("x-rejected"), second.header("x-rejected")],
            [expected, expected],
            "{path}"
        );
    }
}

#[actix_web::test]
async fn inner_middleware_reads_the_key() {
    struct Tenant(String);
    async fn tenant(
        key: VerifiedKey,
        request: ServiceRequest,
        next: Next<impl MessageBody>,
    ) -> Result<ServiceResponse<impl MessageBody>, Error> {
        request
            .extensions_mut()
            .insert(Tenant(format!("tenant of {}", key.account_id())));
        next.call(request).await
    }
    async fn handler(request: HttpRequest) -> Option<String> {
        request
            .extensions()
            .get::<Tenant>()
            .map(|tenant| tenant.0.clone())
    }
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |_| {});
    let guard = keys.guard().await.expect("a guard");
    let app = App::new()
        .wrap(from_fn(tenant))
        .wrap(Tollkey::new(guard))
        .route("/any", web::get().to(handler));
    assert_eq!(
        send(&init_service(app).await, "/any", &[("x-api-key", &key)])
            .await
            .body,
        "tenant of acme"
    );
}

#[actix_web::test]
async fn application_extractor_uses_the_verified_key() {
    struct Tenant(String);
    impl FromRequest for Tenant {
        type Error = Rejection;
        type Future = std::future::Ready<Result<Self, Rejection>>;

        fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
            let key = VerifiedKey::from_request(request, payload).into_inner();
            std::future::ready(key.and_then(|key| {
                key.require("links:read")?;
                Ok(Self(key.account_id().to_owned()))
            }))
        }
    }
    async fn handler(tenant: Tenant) -> String {
        tenant.0
    }
    let keys = TestKeys::new();
    let reader = keys.add(Family::Commerce, Mode::Live, |_| {});
    let other = keys.add(Family::Commerce, Mode::Live, |key| {
        key.restrictions.scopes = vec![Scope::EVENTS_READ]
    });
    let guard = keys.guard().await.expect("a guard");
    let app = init_service(
        App::new()
            .wrap(Tollkey::new(guard))
            .route("/any", web::get().to(handler)),
    )
    .await;
    assert_eq!(
        (
            status(&app, "/any", &reader).await,
            status(&app, "/any", &other).await
        ),
        (200, 403)
    );
}

#[actix_web::test]
async fn task_waits_until_the_key_is_revoked() {
    type Ended = tokio::sync::mpsc::Sender<Denial>;
    async fn open(ended: web::Data<Ended>, key: VerifiedKey) -> &'static str {
        actix_web::rt::spawn(async move { ended.send(key.revoked().await).await });
        "open"
    }
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |_| {});
    let guard = keys.caching_guard().await.expect("a guard");
    let (ended, mut denials) = tokio::sync::mpsc::channel(1);
    let app = App::new()
        .app_data(web::Data::new(ended))
        .wrap(Tollkey::new(guard))
        .route("/open", web::get().to(open));
    assert_eq!(status(&init_service(app).await, "/open", &key).await, 200);
    keys.revoke(&key);
    assert_eq!(denials.recv().await, Some(Denial::Revoked));
}

#[actix_web::test]
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
        key.metadata = Metadata::new(object).ok();
    });
    let guard = keys.guard().await.expect("a guard");
    let app = init_service(
        App::new()
            .wrap(Tollkey::new(guard))
            .route("/plan", web::get().to(plan)),
    )
    .await;
    assert_eq!(
        send(&app, "/plan", &[("x-api-key", &free)]).await.body,
        "free"
    );
    assert_eq!(
        send(&app, "/plan", &[("x-api-key", &paid)]).await.body,
        "gold"
    );
}
