//! The same small API in axum and in actix-web.

use std::net::{SocketAddr, TcpListener};

use tollkey_client::reqwest::{self, Client, RequestBuilder, Response};
use tollkey_middleware::{
    Denial, Guard, MerchantSource, Mode, Rejection, Requirement, Scope, VerifiedKey,
};

fn describe(key: &tollkey_middleware::VerifiedKey) -> String {
    let scopes: Vec<_> = key.scopes().map(Scope::as_str).collect();
    format!(
        "{} {} {} [{}]",
        key.account_id(),
        key.family(),
        key.mode(),
        scopes.join(" ")
    )
}

fn live() -> Requirement {
    Requirement::any().mode(Mode::Live)
}

fn of_merchant() -> Requirement {
    Requirement::any().merchant(MerchantSource::path("/of/{merchant}/tokens"))
}

fn writes(key: &VerifiedKey) -> Result<String, Rejection> {
    key.require("links:write")?;
    key.require(Requirement::any().mode(Mode::Test))?;
    Ok(describe(key))
}

fn for_merchant(key: &VerifiedKey, merchant: &str) -> Result<String, Rejection> {
    key.require(Requirement::any().merchant(MerchantSource::id(merchant)))?;
    Ok(format!("{merchant} pays"))
}

fn invalid_requirement(key: &VerifiedKey) -> Result<String, Rejection> {
    key.require(Requirement::any().merchant(MerchantSource::header("x-shop")))?;
    Ok("admitted".to_owned())
}

fn never(key: &VerifiedKey) -> Result<String, Rejection> {
    Err(key.reject(Denial::RouteNotAllowed))
}

fn busy(key: &VerifiedKey) -> Result<String, Rejection> {
    Err(key.reject(Denial::RateLimited))
}

fn can(key: &VerifiedKey) -> String {
    format!(
        "reads: {}, writes: {}",
        key.can("links:read"),
        key.can(["links:write"])
    )
}

mod in_axum {
    use axum::{Router, extract::Path, handler::Handler as _, routing::get};
    use tollkey_axum::{Rejection, TollkeyLayer, VerifiedKey, require};

    use super::{Guard, Requirement, Scope, SocketAddr, describe, live, of_merchant};

    async fn show_key(key: VerifiedKey) -> String {
        describe(&key)
    }

    async fn show_optional_key(key: Option<VerifiedKey>) -> String {
        key.map_or_else(|| "no key".to_owned(), |key| describe(&key))
    }

    async fn show_merchant(Path(merchant): Path<String>, key: VerifiedKey) -> String {
        format!("{merchant} is {}", key.merchant().unwrap_or("none"))
    }

    async fn for_merchant(
        Path(merchant): Path<String>,
        key: VerifiedKey,
    ) -> Result<String, Rejection> {
        super::for_merchant(&key, &merchant)
    }

    async fn without_extractor() -> &'static str {
        "no key is extracted"
    }

    pub fn app(guard: &Guard) -> Router {
        let layer = || TollkeyLayer::new(guard.clone());
        let guarded = Router::new()
            .route("/any", get(show_key))
            .route("/keyless", get(without_extractor))
            .route("/live", get(show_key.layer(require(live()))))
            .route(
                "/unheard",
                get(show_key.layer(require(Scope::named("unheard:of")))),
            )
            .route("/v1/storefront/products", get(show_key))
            .route(
                "/api/v1/links",
                get(show_key.layer(require(Scope::LINKS_READ)))
                    .post(show_key.layer(require([Scope::LINKS_WRITE, Scope::LINKS_READ]))),
            )
            .route(
                "/handler/writes",
                get(async |key: VerifiedKey| super::writes(&key)),
            )
            .route("/handler/for/{merchant}", get(for_merchant))
            .route(
                "/handler/misconfigured",
                get(async |key: VerifiedKey| super::invalid_requirement(&key)),
            )
            .route(
                "/handler/never",
                get(async |key: VerifiedKey| super::never(&key)),
            )
            .route(
                "/handler/busy",
                get(async |key: VerifiedKey| super::busy(&key)),
            )
            .route(
                "/handler/can",
                get(async |key: VerifiedKey| super::can(&key)),
            )
            .layer(layer());
        let optional = Router::new()
            .route("/optional", get(show_optional_key))
            .route("/needed", get(show_key))
            .route(
                "/required",
                get(show_optional_key.layer(require(Scope::LINKS_READ))),
            )
            .layer(layer().require(Requirement::any().optional()));
        let twice = Router::new()
            .route("/twice", get(show_key))
            .route(
                "/twice/unheard",
                get(show_key.layer(require(Scope::named("unheard:of")))),
            )
            .layer(layer())
            .layer(layer());
        let merchants = Router::new()
            .route("/of/{merchant}/tokens", get(show_merchant))
            .layer(layer().require(of_merchant()));
        let bare = Router::new().route("/bare", get(show_key)).route(
            "/bare/required",
            get(without_extractor.layer(require(live()))),
        );
        guarded
            .merge(optional)
            .merge(twice)
            .merge(merchants)
            .merge(bare)
    }

    pub async fn serve(guard: Guard, listener: std::net::TcpListener) {
        listener.set_nonblocking(true).expect("a listener");
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        let app = app(&guard).into_make_service_with_connect_info::<SocketAddr>();
        axum::serve(listener, app).await.expect("it serves");
    }
}

mod in_actix {
    use actix_web::{App, HttpServer, web};
    use tollkey_actix::{Rejection, Tollkey, VerifiedKey, require};

    use super::{Guard, Requirement, Scope, TcpListener, describe, live, of_merchant};

    async fn show_key(key: VerifiedKey) -> String {
        describe(&key)
    }

    async fn show_optional_key(key: Option<VerifiedKey>) -> String {
        key.map_or_else(|| "no key".to_owned(), |key| describe(&key))
    }

    async fn show_merchant(merchant: web::Path<String>, key: VerifiedKey) -> String {
        format!("{merchant} is {}", key.merchant().unwrap_or("none"))
    }

    async fn for_merchant(
        merchant: web::Path<String>,
        key: VerifiedKey,
    ) -> Result<String, Rejection> {
        super::for_merchant(&key, &merchant)
    }

    async fn without_extractor() -> &'static str {
        "no key is extracted"
    }

    pub fn serve(guard: Guard, listener: TcpListener) {
        let app = move || {
            let layer = || Tollkey::new(guard.clone());
            let links = web::resource("/api/v1/links")
                .route(web::get().to(show_key).wrap(require(Scope::LINKS_READ)))
                .route(
                    web::post()
                        .to(show_key)
                        .wrap(require([Scope::LINKS_WRITE, Scope::LINKS_READ])),
                );
            App::new()
                .service(web::resource("/any").wrap(layer()).get(show_key))
                .service(
                    web::resource("/keyless")
                        .wrap(layer())
                        .get(without_extractor),
                )
                .service(
                    web::resource("/live")
                        .wrap(require(live()))
                        .wrap(layer())
                        .get(show_key),
                )
                .service(
                    web::resource("/unheard")
                        .wrap(require(Scope::named("unheard:of")))
                        .wrap(layer())
                        .get(show_key),
                )
                .service(
                    web::resource("/v1/storefront/products")
                        .wrap(layer())
                        .get(show_key),
                )
                .service(links.wrap(layer()))
                .service(
                    web::scope("/twice")
                        .wrap(layer())
                        .wrap(layer())
                        .route("", web::get().to(show_key))
                        .route(
                            "/unheard",
                            web::get()
                                .to(show_key)
                                .wrap(require(Scope::named("unheard:of"))),
                        ),
                )
                .service(
                    web::scope("/handler")
                        .wrap(layer())
                        .route(
                            "/writes",
                            web::get().to(async |key: VerifiedKey| super::writes(&key)),
                        )
                        .route("/for/{merchant}", web::get().to(for_merchant))
                        .route(
                            "/misconfigured",
                            web::get()
                                .to(async |key: VerifiedKey| super::invalid_requirement(&key)),
                        )
                        .route(
                            "/never",
                            web::get().to(async |key: VerifiedKey| super::never(&key)),
                        )
                        .route(
                            "/busy",
                            web::get().to(async |key: VerifiedKey| super::busy(&key)),
                        )
                        .route(
                            "/can",
                            web::get().to(async |key: VerifiedKey| super::can(&key)),
                        ),
                )
                .service(web::resource("/bare").get(show_key))
                .service(
                    web::resource("/bare/required")
                        .wrap(require(live()))
                        .get(without_extractor),
                )
                .service(
                    web::resource("/of/{merchant}/tokens")
                        .wrap(layer().require(of_merchant()))
                        .get(show_merchant),
                )
                .service(
                    web::scope("")
                        .wrap(layer().require(Requirement::any().optional()))
                        .service(web::resource("/optional").get(show_optional_key))
                        .service(web::resource("/needed").get(show_key))
                        .service(
                            web::resource("/required")
                                .wrap(require(Scope::LINKS_READ))
                                .get(show_optional_key),
                        ),
                )
        };
        let server = HttpServer::new(app)
            .workers(1)
            .disable_signals()
            .listen(listener)
            .expect("a listener");
        actix_web::rt::System::new()
            .block_on(server.run())
            .expect("it serves");
    }
}

pub struct Apps {
    http: Client,
    addresses: [(&'static str, SocketAddr); 2],
}

impl Apps {
    /// Starts both applications. They end with the test process.
    pub fn start(guard: &Guard) -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a port");
        let (axum, actix) = (listen(), listen());
        let addresses = [("axum", &axum), ("actix", &actix)]
            .map(|(name, on)| (name, on.local_addr().expect("an address")));
        tokio::spawn(in_axum::serve(guard.clone(), axum));
        let guard = guard.clone();
        std::thread::spawn(move || in_actix::serve(guard, actix));
        let http = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .expect("a client");
        Self { http, addresses }
    }

    /// Sends a request to both applications and returns their response, which must be the same.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> AppResponse {
        let mut responses = Vec::new();
        for (name, _) in self.addresses {
            responses.push((name, self.send_to(name, method, path, headers).await));
        }
        let [(_, axum), (_, actix)] = <[_; 2]>::try_from(responses).expect("two responses");
        assert_eq!(axum, actix, "{method} {path} {headers:?}");
        axum
    }

    pub fn address(&self, name: &str) -> SocketAddr {
        self.addresses
            .into_iter()
            .find(|(other, _)| *other == name)
            .expect("axum or actix")
            .1
    }

    /// Sends a request to one application.
    pub async fn send_to(
        &self,
        name: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> AppResponse {
        let address = self.address(name);
        let method = method.parse().expect("a method");
        let mut request: RequestBuilder =
            self.http.request(method, format!("http://{address}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        AppResponse::read(request.send().await.expect("a response")).await
    }
}

/// The parts of a response that the guard determines.
#[derive(Debug, PartialEq, Eq)]
pub struct AppResponse {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl AppResponse {
    async fn read(response: Response) -> Self {
        let names = [
            "cache-control",
            "ratelimit",
            "ratelimit-policy",
            "retry-after",
            "www-authenticate",
        ];
        let is_rejected =
            response.status().is_client_error() || response.status().is_server_error();
        let header = |name: &str| {
            let value = response.headers().get(name)?;
            Some((name.to_owned(), value.to_str().expect("a text").to_owned()))
        };
        // The framework sets the content type of a handler's response.
        let content_type = is_rejected.then(|| header("content-type")).flatten();
        let headers = names
            .iter()
            .filter_map(|name| header(name))
            .chain(content_type)
            .collect();
        Self {
            status: response.status().as_u16(),
            headers,
            body: response.text().await.expect("a body"),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(other, _)| other == name)
            .map(|(_, value)| value.as_str())
    }
}
