//! CORS around a Tollkey layer, as in the documentation of both crates: the preflight request of a browser succeeds, and
//! scripts can read rejections.

use tollkey_middleware::{Family, Guard, Mode, RateLimit, Scope, testing::TestKeys};

const ORIGIN: &str = "https://shop.example";
const PATH: &str = "/api/v1/links";
/// The headers of a rejection that scripts can read in addition to those that CORS always exposes.
const EXPOSED: [&str; 4] = [
    "www-authenticate",
    "retry-after",
    "ratelimit",
    "ratelimit-policy",
];

/// The position of the CORS layer relative to the Tollkey layer.
#[derive(Debug, Clone, Copy)]
enum Cors {
    Outside,
    Inside,
}

#[derive(Debug, Clone)]
struct BrowserRequest {
    method: &'static str,
    headers: Vec<(&'static str, String)>,
}

impl BrowserRequest {
    /// The preflight request before a script's `GET` with a key. It has no key.
    fn preflight() -> Self {
        Self::new("OPTIONS")
            .with("access-control-request-method", "GET")
            .with("access-control-request-headers", "authorization")
    }

    fn get(key: Option<&str>) -> Self {
        key.into_iter().fold(Self::new("GET"), |request, key| {
            request.with("authorization", &format!("Bearer {key}"))
        })
    }

    fn new(method: &'static str) -> Self {
        Self {
            method,
            headers: vec![("origin", ORIGIN.to_owned())],
        }
    }

    fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }
}

#[derive(Debug)]
struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
}

impl Reply {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(own, _)| own == name)
            .map(|(_, value)| value.as_str())
    }

    /// Returns the sorted names in a header that is a list.
    fn names(&self, header: &str) -> Vec<String> {
        let list = self.header(header).unwrap_or_default();
        let mut names: Vec<_> = list
            .split(',')
            .map(|name| name.trim().to_ascii_lowercase())
            .collect();
        names.sort();
        names
    }

    /// Whether a script of the origin can read the response and the exposed headers.
    fn is_readable(&self) -> bool {
        let mut exposed = EXPOSED.map(str::to_owned);
        exposed.sort();
        self.header("access-control-allow-origin") == Some(ORIGIN)
            && self.names("access-control-expose-headers") == exposed
    }
}

mod in_axum {
    use axum::{
        Router,
        body::Body,
        handler::Handler as _,
        http::{HeaderName, HeaderValue, Method, Request, header},
        routing::get,
    };
    use tollkey_axum::{TollkeyLayer, VerifiedKey, require};
    use tower::ServiceExt as _;
    use tower_http::cors::CorsLayer;

    use super::{BrowserRequest, Cors, EXPOSED, Guard, ORIGIN, PATH, Reply};

    async fn list(key: VerifiedKey) -> String {
        key.account_id().to_owned()
    }

    pub async fn reply(guard: Guard, cors: Cors, sent: BrowserRequest) -> Reply {
        let layer = CorsLayer::new()
            .allow_origin(HeaderValue::from_static(ORIGIN))
            .allow_methods([Method::GET])
            .allow_headers([header::AUTHORIZATION])
            .expose_headers(EXPOSED.map(HeaderName::from_static));
        let routes = Router::new().route(PATH, get(list.layer(require("links:read"))));
        let app = match cors {
            Cors::Outside => routes.layer(TollkeyLayer::new(guard)).layer(layer),
            Cors::Inside => routes.layer(layer).layer(TollkeyLayer::new(guard)),
        };
        let request = Request::builder().method(sent.method).uri(PATH);
        let request = sent
            .headers
            .into_iter()
            .fold(request, |request, (name, value)| {
                request.header(name, value)
            });
        let response = app
            .oneshot(request.body(Body::empty()).expect("a request"))
            .await
            .expect("a response");
        let header = |(name, value): (&HeaderName, &HeaderValue)| {
            (
                name.as_str().to_owned(),
                value.to_str().expect("a text").to_owned(),
            )
        };
        Reply {
            status: response.status().as_u16(),
            headers: response.headers().iter().map(header).collect(),
        }
    }
}

mod in_actix {
    use actix_web::{App, http::header, test, web};
    use tollkey_actix::{Tollkey, VerifiedKey, require};

    use super::{BrowserRequest, Cors, EXPOSED, Guard, ORIGIN, PATH, Reply};

    async fn list(key: VerifiedKey) -> String {
        key.account_id().to_owned()
    }

    pub async fn reply(guard: Guard, cors: Cors, sent: BrowserRequest) -> Reply {
        let layer = actix_cors::Cors::default()
            .allowed_origin(ORIGIN)
            .allowed_methods(["GET"])
            .allowed_header(header::AUTHORIZATION)
            .expose_headers(EXPOSED);
        let links = web::resource(PATH).route(web::get().to(list).wrap(require("links:read")));
        let request =
            test::TestRequest::with_uri(PATH).method(sent.method.parse().expect("a method"));
        let request = sent
            .headers
            .into_iter()
            .fold(request, test::TestRequest::insert_header)
            .to_request();
        let response = match cors {
            Cors::Outside => {
                let app = App::new()
                    .wrap(Tollkey::new(guard))
                    .wrap(layer)
                    .service(links);
                test::call_service(&test::init_service(app).await, request)
                    .await
                    .map_into_boxed_body()
            }
            Cors::Inside => {
                let app = App::new()
                    .wrap(layer)
                    .wrap(Tollkey::new(guard))
                    .service(links);
                test::call_service(&test::init_service(app).await, request)
                    .await
                    .map_into_boxed_body()
            }
        };
        let header = |(name, value): (&header::HeaderName, &header::HeaderValue)| {
            (
                name.as_str().to_owned(),
                value.to_str().expect("a text").to_owned(),
            )
        };
        Reply {
            status: response.status().as_u16(),
            headers: response.headers().iter().map(header).collect(),
        }
    }
}

/// Sends the request to both applications. Returns the name of each framework with the response.
async fn replies(
    guard: &Guard,
    cors: Cors,
    request: &BrowserRequest,
) -> [(&'static str, Reply); 2] {
    [
        (
            "axum",
            in_axum::reply(guard.clone(), cors, request.clone()).await,
        ),
        (
            "actix",
            in_actix::reply(guard.clone(), cors, request.clone()).await,
        ),
    ]
}

#[actix_web::test]
async fn preflight_without_a_key_gets_its_cors_response() {
    let guard = TestKeys::new().guard().await.expect("a guard");
    for (name, reply) in replies(&guard, Cors::Outside, &BrowserRequest::preflight()).await {
        assert!((200..300).contains(&reply.status), "{name}: {reply:?}");
        assert_eq!(
            reply.header("access-control-allow-origin"),
            Some(ORIGIN),
            "{name}"
        );
        assert_eq!(
            reply.names("access-control-allow-methods"),
            ["get"],
            "{name}"
        );
        assert_eq!(
            reply.names("access-control-allow-headers"),
            ["authorization"],
            "{name}"
        );
    }
}

#[actix_web::test]
async fn scripts_can_read_rejections() {
    let keys = TestKeys::new();
    let reads = keys.add(Family::Commerce, Mode::Test, |_| {});
    let writes = keys.add(Family::Commerce, Mode::Test, |key| {
        key.restrictions.scopes = vec![Scope::LINKS_WRITE]
    });
    let expired = keys.add(Family::Commerce, Mode::Test, |key| {
        key.restrictions.expires_at = Some(tollkey_middleware::Timestamp::UNIX_EPOCH);
    });
    // Each application takes one use.
    let limited = keys.add(Family::Commerce, Mode::Test, |key| {
        key.restrictions.rate_limit = RateLimit::new(2, 60).ok()
    });
    let guard = keys.guard().await.expect("a guard");
    for (key, status, with) in [
        (None, 401, Some("www-authenticate")),
        (
            Some("ck_test_EXAMPLE0EXAMPLE0EXAMPLE0EXAMPLE0"),
            401,
            Some("www-authenticate"),
        ),
        (Some(&*expired), 403, None),
        // Rejected by `require` inside of the layer.
        (Some(&*writes), 403, Some("www-authenticate")),
        (Some(&*reads), 200, None),
        (Some(&*limited), 200, Some("ratelimit")),
        (Some(&*limited), 429, Some("retry-after")),
    ] {
        for (name, reply) in replies(&guard, Cors::Outside, &BrowserRequest::get(key)).await {
            assert_eq!(reply.status, status, "{name} {key:?}: {reply:?}");
            assert!(reply.is_readable(), "{name} {key:?}: {reply:?}");
            assert!(
                with.is_none_or(|header| reply.header(header).is_some()),
                "{name} {key:?}: {reply:?}"
            );
        }
    }
    keys.set_unreachable(true);
    for (name, reply) in replies(&guard, Cors::Outside, &BrowserRequest::get(Some(&reads))).await {
        assert_eq!(
            (reply.status, reply.is_readable()),
            (503, true),
            "{name}: {reply:?}"
        );
    }
}

/// This is why the CORS layer must be outside: the preflight request has no key, and scripts could not read rejections.
#[actix_web::test]
async fn cors_inside_of_the_layer_fails_the_preflight() {
    let keys = TestKeys::new();
    let guard = keys.guard().await.expect("a guard");
    for (name, reply) in replies(&guard, Cors::Inside, &BrowserRequest::preflight()).await {
        assert_eq!(
            (reply.status, reply.header("access-control-allow-origin")),
            (401, None),
            "{name}: {reply:?}"
        );
    }
    for (name, reply) in replies(&guard, Cors::Inside, &BrowserRequest::get(None)).await {
        assert_eq!(
            (reply.status, reply.header("access-control-allow-origin")),
            (401, None),
            "{name}: {reply:?}"
        );
    }
}
