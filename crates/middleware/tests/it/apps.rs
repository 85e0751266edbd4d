//! One small API, twice.

use std::net::{SocketAddr, TcpListener};

use tollkey_client::reqwest::{self, Client, RequestBuilder, Response};
use tollkey_middleware::{
    Denial, Guard, Merchant, Mode, Rejection, Requirement, Scope, VerifiedKey,
};

/// What a handler says of the key it was called with.
fn said(key: &tollkey_middleware::VerifiedKey) -> String {
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
    Requirement::any().merchant(Merchant::path("/of/{merchant}/tokens"))
}

/// What handlers of both require of the key: the library that they share.
fn writes(key: &VerifiedKey) -> Result<String, Rejection> {
    key.require("links:write")?;
    key.require(Requirement::any().mode(Mode::Test))?;
    Ok(said(key))
}

fn for_merchant(key: &VerifiedKey, merchant: &str) -> Result<String, Rejection> {
    key.require(Requirement::any().merchant(Merchant::id(merchant)))?;
    Ok(format!("{merchant} pays"))
}

fn misconfigured(key: &VerifiedKey) -> Result<String, Rejection> {
    key.require(Requirement::any().merchant(Merchant::header("x-shop")))?;
    Ok("admitted".to_owned())
}

fn never(key: &VerifiedKey) -> Result<String, Rejection> {
    Err(key.reject(Denial::RouteNotAllowed))
}

fn busy(key: &VerifiedKey) -> Result<String, Rejection> {
    Err(key.reject(Denial::RateLimited))
}

fn asks(key: &VerifiedKey) -> String {
    format!(
        "reads: {}, writes: {}",
        key.can("links:read"),
        key.can(["links:write"])
    )
}

mod in_axum {
    use axum::{Router, extract::Path, handler::Handler as _, routing::get};
    use tollkey_axum::{Rejection, TollkeyLayer, VerifiedKey, require};

    use super::{Guard, Requirement, Scope, SocketAddr, live, of_merchant, said};

    async fn who(key: VerifiedKey) -> String {
        said(&key)
    }

    async fn maybe(key: Option<VerifiedKey>) -> String {
        key.map_or_else(|| "nobody".to_owned(), |key| said(&key))
    }

    async fn of_one(Path(merchant): Path<String>, key: VerifiedKey) -> String {
        format!("{merchant} is {}", key.merchant().unwrap_or("nobody"))
    }

    async fn for_merchant(
        Path(merchant): Path<String>,
        key: VerifiedKey,
    ) -> Result<String, Rejection> {
        super::for_merchant(&key, &merchant)
    }

    async fn anyone() -> &'static str {
        "no key was asked for"
    }

    pub fn app(guard: &Guard) -> Router {
        let layer = || TollkeyLayer::new(guard.clone());
        let guarded = Router::new()
            .route("/any", get(who))
            .route("/keyless", get(anyone))
            .route("/live", get(who.layer(require(live()))))
            .route(
                "/unheard",
                get(who.layer(require(Scope::named("unheard:of")))),
            )
            .route("/v1/storefront/products", get(who))
            .route(
                "/api/v1/links",
                get(who.layer(require(Scope::LINKS_READ)))
                    .post(who.layer(require([Scope::LINKS_WRITE, Scope::LINKS_READ]))),
            )
            .route(
                "/handler/writes",
                get(async |key: VerifiedKey| super::writes(&key)),
            )
            .route("/handler/for/{merchant}", get(for_merchant))
            .route(
                "/handler/misconfigured",
                get(async |key: VerifiedKey| super::misconfigured(&key)),
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
                "/handler/asks",
                get(async |key: VerifiedKey| super::asks(&key)),
            )
            .layer(layer());
        let optional = Router::new()
            .route("/optional", get(maybe))
            .route("/needed", get(who))
            .route("/required", get(maybe.layer(require(Scope::LINKS_READ))))
            .layer(layer().require(Requirement::any().optional()));
        let twice = Router::new()
            .route("/twice", get(who))
            .route(
                "/twice/unheard",
                get(who.layer(require(Scope::named("unheard:of")))),
            )
            .layer(layer())
            .layer(layer());
        let merchants = Router::new()
            .route("/of/{merchant}/tokens", get(of_one))
            .layer(layer().require(of_merchant()));
        let bare = Router::new()
            .route("/bare", get(who))
            .route("/bare/required", get(anyone.layer(require(live()))));
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

    use super::{Guard, Requirement, Scope, TcpListener, live, of_merchant, said};

    async fn who(key: VerifiedKey) -> String {
        said(&key)
    }

    async fn maybe(key: Option<VerifiedKey>) -> String {
        key.map_or_else(|| "nobody".to_owned(), |key| said(&key))
    }

    async fn of_one(merchant: web::Path<String>, key: VerifiedKey) -> String {
        format!("{merchant} is {}", key.merchant().unwrap_or("nobody"))
    }

    async fn for_merchant(
        merchant: web::Path<String>,
        key: VerifiedKey,
    ) -> Result<String, Rejection> {
        super::for_merchant(&key, &merchant)
    }

    async fn anyone() -> &'static str {
        "no key was asked for"
    }

    pub fn serve(guard: Guard, listener: TcpListener) {
        let app = move || {
            let layer = || Tollkey::new(guard.clone());
            let links = web::resource("/api/v1/links")
                .route(web::get().to(who).wrap(require(Scope::LINKS_READ)))
                .route(
                    web::post()
                        .to(who)
                        .wrap(require([Scope::LINKS_WRITE, Scope::LINKS_READ])),
                );
            App::new()
                .service(web::resource("/any").wrap(layer()).get(who))
                .service(web::resource("/keyless").wrap(layer()).get(anyone))
                .service(
                    web::resource("/live")
                        .wrap(require(live()))
                        .wrap(layer())
                        .get(who),
                )
                .service(
                    web::resource("/unheard")
                        .wrap(require(Scope::named("unheard:of")))
                        .wrap(layer())
                        .get(who),
                )
                .service(
                    web::resource("/v1/storefront/products")
                        .wrap(layer())
                        .get(who),
                )
                .service(links.wrap(layer()))
                .service(
                    web::scope("/twice")
                        .wrap(layer())
                        .wrap(layer())
                        .route("", web::get().to(who))
                        .route(
                            "/unheard",
                            web::get().to(who).wrap(require(Scope::named("unheard:of"))),
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
                            web::get().to(async |key: VerifiedKey| super::misconfigured(&key)),
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
                            "/asks",
                            web::get().to(async |key: VerifiedKey| super::asks(&key)),
                        ),
                )
                .service(web::resource("/bare").get(who))
                .service(
                    web::resource("/bare/required")
                        .wrap(require(live()))
                        .get(anyone),
                )
                .service(
                    web::resource("/of/{merchant}/tokens")
                        .wrap(layer().require(of_merchant()))
                        .get(of_one),
                )
                .service(
                    web::scope("")
                        .wrap(layer().require(Requirement::any().optional()))
                        .service(web::resource("/optional").get(maybe))
                        .service(web::resource("/needed").get(who))
                        .service(
                            web::resource("/required")
                                .wrap(require(Scope::LINKS_READ))
                                .get(maybe),
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

/// Both applications, over one guard each.
pub struct Apps {
    http: Client,
    addresses: [(&'static str, SocketAddr); 2],
}

impl Apps {
    /// Starts both. They end with the test's process.
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

    /// Asks both, one after the other, and gives their one answer. It is a mistake when they differ.
    pub async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)]) -> Told {
        let mut answers = Vec::new();
        for (name, _) in self.addresses {
            answers.push((name, self.ask_one(name, method, path, headers).await));
        }
        let [(_, axum), (_, actix)] = <[_; 2]>::try_from(answers).expect("two answers");
        assert_eq!(axum, actix, "{method} {path} {headers:?}");
        axum
    }

    /// Where one of them is.
    pub fn address(&self, name: &str) -> SocketAddr {
        self.addresses
            .into_iter()
            .find(|(other, _)| *other == name)
            .expect("one of the two")
            .1
    }

    /// Asks one of them.
    pub async fn ask_one(
        &self,
        name: &str,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
    ) -> Told {
        let address = self.address(name);
        let method = method.parse().expect("a method");
        let mut request: RequestBuilder =
            self.http.request(method, format!("http://{address}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Told::by(request.send().await.expect("an answer")).await
    }
}

/// An answer, as far as it is ours.
#[derive(Debug, PartialEq, Eq)]
pub struct Told {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl Told {
    async fn by(response: Response) -> Self {
        let ours = [
            "cache-control",
            "ratelimit",
            "ratelimit-policy",
            "retry-after",
            "www-authenticate",
        ];
        let refused = response.status().is_client_error() || response.status().is_server_error();
        let header = |name: &str| {
            let value = response.headers().get(name)?;
            Some((name.to_owned(), value.to_str().expect("a text").to_owned()))
        };
        // What a handler's own answer is, is the framework's.
        let kind = refused.then(|| header("content-type")).flatten();
        let headers = ours
            .iter()
            .filter_map(|name| header(name))
            .chain(kind)
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
