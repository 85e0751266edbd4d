//! `examples/checkout-axum` with the real server: access by scope, separation of accounts and modes, revocation.

use std::{io, net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle, time::timeout};
use tollkey_core::{Family, Mode, Scope};
use tollkey_middleware::Guard;

use crate::{
    binary::member,
    support::{App, Call, each_backend, eventually},
};

struct Checkout {
    address: SocketAddr,
    guard: Guard,
    stop: oneshot::Sender<()>,
    task: JoinHandle<io::Result<()>>,
}

impl Checkout {
    async fn start(app: &App) -> Self {
        let (url, service_key) = (
            format!("http://{}", app.running().address()),
            app.service_key().await,
        );
        let guard = checkout_axum::guard()
            .url(url)
            .service_key(service_key.text)
            .connect()
            .await
            .expect("a guard");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(checkout_axum::serve(listener, guard.clone(), async {
            // Ends when the sender does.
            let _ = stopped.await;
        }));
        Self {
            address,
            guard,
            stop,
            task,
        }
    }

    async fn stop(self) {
        drop(self.stop);
        self.task
            .await
            .expect("no panic")
            .expect("a clean shutdown");
        self.guard.shutdown().await;
    }

    fn call(&self, method: &str, path: &str, key: &str) -> Call {
        Call::new(self.address, method, path).bearer(key)
    }

    async fn status(&self, method: &str, path: &str, key: &str) -> u16 {
        self.call(method, path, key).await.status
    }

    /// Creates a resource of this kind. Returns its ID.
    async fn create(&self, kind: &str, key: &str) -> String {
        let reply = self
            .call("POST", &format!("/{kind}"), key)
            .json(new(kind))
            .await;
        assert_eq!(reply.status, 201, "{reply}");
        member(&reply, "id")
    }

    /// The IDs of all resources of this kind that a key can read.
    async fn ids(&self, kind: &str, key: &str) -> Vec<String> {
        let reply = self.call("GET", &format!("/{kind}"), key).await;
        assert_eq!(reply.status, 200, "{reply}");
        let json = reply.json();
        json.as_array()
            .expect("a list")
            .iter()
            .map(|item| item["id"].as_str().expect("an ID").to_owned())
            .collect()
    }
}

/// How long a test waits for an event stream: far less than the ten minutes after which it looks up its key itself.
const TIMEOUT: Duration = Duration::from_secs(20);

struct EventStream {
    response: reqwest::Response,
    text: String,
}

impl EventStream {
    /// Opens a stream. Returns the status of a rejection as `Err`.
    async fn open(checkout: &Checkout, key: &str) -> Result<Self, u16> {
        let url = format!("http://{}/api/v1/events/stream", checkout.address);
        let response = reqwest::Client::new()
            .get(url)
            .bearer_auth(key)
            .send()
            .await
            .expect("a response");
        if response.status() != 200 {
            return Err(response.status().as_u16());
        }
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Ok(Self {
            response,
            text: String::new(),
        })
    }

    /// Reads the next chunk. Returns `false` at the end.
    async fn read(&mut self) -> bool {
        let chunk = self.response.chunk().await.expect("a chunk or the end");
        self.text
            .push_str(std::str::from_utf8(chunk.as_deref().unwrap_or_default()).expect("UTF-8"));
        chunk.is_some()
    }

    async fn until(&mut self, part: &str) {
        let read = async {
            while !self.text.contains(part) {
                assert!(self.read().await, "{part:?} was not sent: {}", self.text);
            }
        };
        timeout(TIMEOUT, read).await.expect("the event is sent");
    }

    async fn read_to_end(mut self) -> String {
        let read = async { while self.read().await {} };
        timeout(TIMEOUT, read).await.expect("the stream ends");
        self.text
    }
}

/// The kinds of resources that can be created.
const CREATED: [&str; 4] = ["links", "sessions", "webhooks", "customers"];

/// The body that creates a resource of this kind.
fn new(kind: &str) -> Value {
    let amount = json!({"value": "49.99", "currency": "USD"});
    match kind {
        "links" => json!({"amount": amount, "description": "A shirt"}),
        "sessions" => json!({
            "amount": amount,
            "successUrl": "https://your-store.example/thank-you",
            "metadata": {"orderId": "order_789"},
        }),
        "webhooks" => json!({"url": "https://your-store.example/webhooks"}),
        "customers" => json!({"email": "ada@example.com"}),
        _ => panic!("{kind}"),
    }
}

/// Every route: method, kind, whether its path has an ID, its required scope, and the status with that scope.
const ROUTES: [(&str, &str, bool, &str, u16); 18] = [
    ("GET", "links", false, "links:read", 200),
    ("GET", "links", true, "links:read", 200),
    ("POST", "links", false, "links:write", 201),
    ("PATCH", "links", true, "links:write", 200),
    ("DELETE", "links", true, "links:write", 204),
    ("GET", "sessions", false, "sessions:read", 200),
    ("GET", "sessions", true, "sessions:read", 200),
    ("POST", "sessions", false, "sessions:write", 201),
    ("GET", "webhooks", false, "webhooks:read", 200),
    ("GET", "webhooks", true, "webhooks:read", 200),
    ("POST", "webhooks", false, "webhooks:write", 201),
    ("DELETE", "webhooks", true, "webhooks:write", 204),
    ("GET", "events", false, "events:read", 200),
    ("GET", "events", true, "events:read", 200),
    ("GET", "customers", false, "customers:read", 200),
    ("GET", "customers", true, "customers:read", 200),
    ("POST", "customers", false, "customers:write", 201),
    ("PATCH", "customers", true, "customers:write", 200),
];

/// The scopes that `commerce` implies.
fn scopes() -> Vec<&'static str> {
    static BUILT_IN: &[Scope] = &Scope::BUILT_IN;
    let implied = BUILT_IN.iter().filter(|scope| **scope != Scope::COMMERCE);
    implied.map(Scope::as_str).collect()
}

#[actix_web::test]
async fn route_requires_only_its_scope() {
    each_backend(async |app| {
        let (token, checkout) = (app.management_token("acme"), Checkout::start(app).await);
        let all_scopes = app
            .commerce_key(&token, json!({"scopes": ["commerce"]}))
            .await;
        for scopes in scopes()
            .into_iter()
            .map(|scope| vec![scope])
            .chain([scopes(), vec!["commerce"]])
        {
            let key = app.commerce_key(&token, json!({"scopes": scopes})).await;
            for kind in CREATED {
                checkout.create(kind, &all_scopes.text).await;
            }
            for (method, kind, has_id, scope, allowed) in ROUTES {
                let newest = checkout.ids(kind, &all_scopes.text).await.swap_remove(0);
                let path = if has_id {
                    format!("/{kind}/{newest}")
                } else {
                    format!("/{kind}")
                };
                let call = checkout.call(method, &path, &key.text);
                let before = checkout.ids("events", &all_scopes.text).await;
                let reply = match (method, kind) {
                    ("POST", _) => call.json(new(kind)).await,
                    ("PATCH", "links") => call.json(json!({"active": false})).await,
                    ("PATCH", _) => call.json(json!({"name": "Ada"})).await,
                    _ => call.await,
                };
                if scopes.contains(&scope) || scopes == ["commerce"] {
                    assert_eq!(
                        reply.status, allowed,
                        "{method} {path} with {scopes:?}: {reply}"
                    );
                    continue;
                }
                assert_eq!(
                    reply.status, 403,
                    "{method} {path} with {scopes:?}: {reply}"
                );
                assert_eq!(reply.code(), "insufficient_scope");
                let challenge = reply.header("www-authenticate").expect("a challenge");
                assert!(
                    challenge.ends_with(&format!(", scope=\"{scope}\"")),
                    "{challenge}"
                );
                let after = checkout.ids("events", &all_scopes.text).await;
                assert_eq!(
                    after, before,
                    "{method} {path} was rejected, but changed something"
                );
            }
        }
        checkout.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn request_without_key_gets_401_on_every_path() {
    each_backend(async |app| {
        let checkout = Checkout::start(app).await;
        let key = app
            .commerce_key(&app.management_token("acme"), json!({}))
            .await;
        let paths = ROUTES.map(|(method, kind, has_id, ..)| {
            (
                method,
                if has_id {
                    format!("/{kind}/any")
                } else {
                    format!("/{kind}")
                },
            )
        });
        for (method, path) in paths.iter().chain([
            &("GET", "/nowhere".to_owned()),
            &("PUT", "/links".to_owned()),
        ]) {
            let reply = Call::new(checkout.address, method, path).await;
            let challenge = reply.header("www-authenticate");
            assert_eq!(
                (reply.status, challenge),
                (401, Some("Bearer realm=\"checkout\"")),
                "{method} {path}: {reply}"
            );
        }
        // The document of the example has one header for keys.
        let elsewhere = Call::new(checkout.address, "GET", "/links")
            .header("x-api-key", &key.text)
            .await;
        assert_eq!(elsewhere.status, 401, "{elsewhere}");
        // Publishable keys are rejected.
        let publishable = app
            .insert_key("acme", Family::Publishable, Mode::Test)
            .await;
        for (method, path) in &paths {
            assert_eq!(
                checkout.status(method, path, &publishable).await,
                403,
                "{method} {path}"
            );
        }
        // Only a request with a key learns which routes exist.
        assert_eq!(checkout.status("GET", "/nowhere", &key.text).await, 404);
        assert_eq!(checkout.status("PUT", "/links", &key.text).await, 405);
        checkout.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn accounts_and_modes_are_separate() {
    each_backend(async |app| {
        let checkout = Checkout::start(app).await;
        let mut keys = Vec::new();
        for (account, mode) in [
            ("acme", "live"),
            ("acme", "test"),
            ("globex", "live"),
            ("globex", "test"),
        ] {
            let body = json!({"mode": mode, "scopes": scopes()});
            keys.push((
                app.commerce_key(&app.management_token(account), body)
                    .await
                    .text,
                mode,
            ));
        }
        for kind in CREATED {
            let mut created = Vec::new();
            for (key, mode) in &keys {
                let reply = checkout
                    .call("POST", &format!("/{kind}"), key)
                    .json(new(kind))
                    .await;
                assert_eq!(reply.json()["mode"], *mode, "{reply}");
                created.push(member(&reply, "id"));
            }
            for (own, (key, _)) in keys.iter().enumerate() {
                assert_eq!(checkout.ids(kind, key).await, created[own..=own]);
                for (other_index, id) in created.iter().enumerate() {
                    let path = format!("/{kind}/{id}");
                    if own == other_index {
                        assert_eq!(checkout.status("GET", &path, key).await, 200);
                        continue;
                    }
                    for (method, _, has_id, ..) in
                        ROUTES.into_iter().filter(|route| route.1 == kind)
                    {
                        if has_id {
                            let reply = checkout.call(method, &path, key).json(json!({})).await;
                            assert_eq!(reply.status, 404, "{method} {path}: {reply}");
                        }
                    }
                }
            }
        }
        // Each key sees the events of its own account and mode only.
        for (own, (key, _)) in keys.iter().enumerate() {
            let events = checkout.call("GET", "/events", key).await.json();
            let types: Vec<&str> = events
                .as_array()
                .expect("a list")
                .iter()
                .map(|event| event["type"].as_str().expect("a type"))
                .collect();
            assert_eq!(
                types,
                [
                    "customer.created",
                    "webhook.created",
                    "session.created",
                    "link.created"
                ]
            );
            for (other, _) in keys
                .iter()
                .enumerate()
                .filter(|(other_index, _)| *other_index != own)
                .map(|(_, key)| key)
            {
                let path = format!("/events/{}", events[0]["id"].as_str().expect("an ID"));
                assert_eq!(checkout.status("GET", &path, other).await, 404);
            }
        }
        // Another key of the same account and mode has the same resources.
        let second = app
            .commerce_key(&app.management_token("acme"), json!({"mode": "live"}))
            .await;
        assert_eq!(
            checkout.ids("links", &second.text).await,
            checkout.ids("links", &keys[0].0).await
        );
        checkout.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn invalid_bodies_and_full_storage_are_rejected() {
    each_backend(async |app| {
        let checkout = Checkout::start(app).await;
        let key = app
            .commerce_key(&app.management_token("acme"), json!({"scopes": scopes()}))
            .await
            .text;
        let amount =
            |value: &str, currency: &str| json!({"amount": {"value": value, "currency": currency}});
        for (method, path, body, status) in [
            ("POST", "/links", amount("49.9", "USD"), 422),
            ("POST", "/links", amount("-1.00", "USD"), 422),
            ("POST", "/links", amount("", "USD"), 422),
            ("POST", "/links", amount("49.99", "usd"), 422),
            ("POST", "/links", json!({}), 422),
            (
                "POST",
                "/webhooks",
                json!({"url": "http://your-store.example"}),
                422,
            ),
            (
                "POST",
                "/webhooks",
                json!({"url": "https://your-store.example", "mode": "live"}),
                422,
            ),
            ("POST", "/customers", json!({"email": "ada"}), 422),
            (
                "POST",
                "/customers",
                json!({"email": format!("{}@example.com", "a".repeat(5000))}),
                413,
            ),
        ] {
            let reply = checkout.call(method, path, &key).json(body.clone()).await;
            assert_eq!(reply.status, status, "{method} {path} {body}: {reply}");
        }
        assert_eq!(checkout.ids("events", &key).await.len(), 0);

        // Storage is limited: it keeps the newest events, and rejects further resources of other kinds.
        for _ in 0..100 {
            checkout.create("customers", &key).await;
        }
        let full = checkout
            .call("POST", "/customers", &key)
            .json(new("customers"))
            .await;
        assert_eq!(full.status, 507, "{full}");
        let link = checkout.create("links", &key).await;
        let events = checkout.call("GET", "/events", &key).await.json();
        assert_eq!(
            (events.as_array().map(Vec::len), &events[0]["objectId"]),
            (Some(100), &json!(link))
        );
        let update = checkout
            .call("PATCH", &format!("/links/{link}"), &key)
            .json(json!({"description": "Two shirts"}));
        let updated = update.await.json();
        assert_eq!(
            (&updated["description"], &updated["active"]),
            (&json!("Two shirts"), &json!(true))
        );
        assert_eq!(
            checkout
                .call("GET", &format!("/links/{link}"), &key)
                .await
                .json(),
            updated
        );
        assert_eq!(
            checkout
                .status("DELETE", &format!("/links/{link}"), &key)
                .await,
            204
        );
        assert_eq!(
            checkout
                .status("GET", &format!("/links/{link}"), &key)
                .await,
            404
        );
        checkout.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn revoked_key_is_rejected_by_the_next_request() {
    each_backend(async |app| {
        let (token, checkout) = (app.management_token("acme"), Checkout::start(app).await);
        let application = app.application(&token, "Web Store").await;
        for round in 0..20 {
            let (key, method, path) = if round % 2 == 0 {
                let key = app.commerce_key(&token, json!({})).await;
                let path = format!("/api-keys/{}/revoke", key.id);
                (key, "POST", path)
            } else {
                let key = app.key(&token, &application, json!({})).await;
                let path = format!("/applications/{application}/api-keys/{}", key.id);
                (key, "DELETE", path)
            };
            assert_eq!(checkout.status("GET", "/links", &key.text).await, 200);
            let misses = checkout.guard.stats().misses;
            assert_eq!(checkout.status("GET", "/links", &key.text).await, 200);
            assert_eq!(checkout.guard.stats().misses, misses, "the key is cached");
            let revoked = app.call(method, &path).bearer(&token).await;
            assert!(matches!(revoked.status, 200 | 204), "{revoked}");
            let rejected = checkout.call("GET", "/links", &key.text).await;
            assert_eq!(rejected.status, 401, "round {round}: {rejected}");
            let challenge = rejected.header("www-authenticate").expect("a challenge");
            assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
        }
        checkout.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn event_stream_ends_when_its_key_is_revoked() {
    each_backend(async |app| {
        let (token, checkout) = (app.management_token("acme"), Checkout::start(app).await);
        let writer = app.commerce_key(&token, json!({})).await.text;
        let elsewhere = app
            .commerce_key(&app.management_token("globex"), json!({}))
            .await
            .text;
        let kept = app
            .commerce_key(&token, json!({"scopes": ["events:read"]}))
            .await
            .text;
        let mut kept = EventStream::open(&checkout, &kept).await.expect("a stream");
        for (action, code) in [("revoke", "invalid_api_key"), ("suspend", "suspended")] {
            let key = app
                .commerce_key(&token, json!({"scopes": ["events:read"]}))
                .await;
            let mut stream = EventStream::open(&checkout, &key.text)
                .await
                .expect("a stream");
            let (foreign, own) = (
                checkout.create("links", &elsewhere).await,
                checkout.create("links", &writer).await,
            );
            stream.until(&own).await;
            assert!(
                stream.text.contains("\nevent: link.created\ndata: {"),
                "{}",
                stream.text
            );
            assert!(!stream.text.contains(&foreign), "{}", stream.text);

            let changed = app
                .post(&format!("/api-keys/{}/{action}", key.id), json!({}))
                .bearer(&token)
                .await;
            assert_eq!(changed.status, 200, "{changed}");
            let text = stream.read_to_end().await;
            let (_, end) = text
                .split_once("event: end\ndata: ")
                .unwrap_or_else(|| panic!("{action}: {text}"));
            let problem: Value = serde_json::from_str(end.trim_end()).expect("a problem");
            assert_eq!(problem["code"], code, "{text}");
            // The next request gets the same problem.
            let reply = checkout.call("GET", "/events/stream", &key.text).await;
            assert_eq!(
                (reply.json()["code"].clone(), problem["status"].clone()),
                (json!(code), json!(reply.status))
            );
        }
        // The stream of another key of the account stays open, and ends without a reason when the server stops.
        let last = checkout.create("links", &writer).await;
        kept.until(&last).await;
        checkout.stop().await;
        let text = kept.read_to_end().await;
        assert!(!text.contains("event: end"), "{text}");
    })
    .await;
}

#[actix_web::test]
async fn event_streams_per_account_are_limited() {
    each_backend(async |app| {
        let (token, checkout) = (app.management_token("acme"), Checkout::start(app).await);
        let key = app
            .commerce_key(&token, json!({"scopes": ["events:read"]}))
            .await
            .text;
        let other = app
            .commerce_key(&token, json!({"scopes": ["links:read"]}))
            .await
            .text;
        assert_eq!(EventStream::open(&checkout, &other).await.err(), Some(403));
        let mut streams = Vec::new();
        for _ in 0..10 {
            streams.push(EventStream::open(&checkout, &key).await.expect("a stream"));
        }
        assert_eq!(EventStream::open(&checkout, &key).await.err(), Some(429));
        let elsewhere = app
            .commerce_key(&app.management_token("globex"), json!({}))
            .await
            .text;
        assert!(EventStream::open(&checkout, &elsewhere).await.is_ok());
        // A client that disconnects makes way for another one.
        streams.pop();
        eventually("another stream can be opened", async || {
            EventStream::open(&checkout, &key).await.is_ok()
        })
        .await;
        checkout.stop().await;
    })
    .await;
}
