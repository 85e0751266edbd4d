//! Tests of the dashboard's sign-in methods, of sessions and of sign-out.

pub mod provider;

use std::time::{Duration, Instant};

use reqwest::Url;
use serde_json::{Value, json};
use tollkey_core::{Clock as _, session::Session};
use tollkey_store::testing::{Database, backends};
use wiremock::ResponseTemplate;

use self::provider::{
    CLIENT, ClientAuth, Key, Provider, SECRET, eddsa, hs256, late_response, parameter, rs256, token,
};
use crate::support::{
    App, Call, Reply, TOKEN_SIGN_IN, each_backend_with, eventually,
    sign_in::{SESSION, SIGN_IN, StartedSignIn, cookie, keys_at, sign_in_at, started},
};

async fn sqlite(settings: &[(&str, &str)]) -> App {
    let database: Database = backends()
        .into_iter()
        .find(|it| it.url().starts_with("sqlite"))
        .expect("SQLite");
    App::start(database, settings).await
}

/// A form submission from a page of the same origin.
fn form(app: &App, path: &str, body: &str) -> Call {
    app.call("POST", path)
        .header("sec-fetch-site", "same-origin")
        .form(body)
}

async fn start_sign_in(app: &App, next: &str) -> StartedSignIn {
    let reply = app
        .get(&format!("/dashboard/sign-in/oidc?next={next}"))
        .await;
    started(&reply)
}

impl StartedSignIn {
    fn state(&self) -> String {
        parameter(&self.url, "state")
    }

    /// A request to the callback with that code, from the same browser.
    fn callback(&self, app: &App, code: &str) -> Call {
        let path = format!(
            "/dashboard/sign-in/callback?code={code}&state={}&session_state=x",
            self.state()
        );
        // The headers of a browser that is redirected across sites.
        app.get(&path)
            .header("sec-fetch-site", "cross-site")
            .header("cookie", &self.cookie)
    }
}

fn seconds(app: &App) -> i64 {
    app.clock.now().as_second()
}

/// Signs in at the provider, with an ID token whose claims `edit` changes. Returns the response of the callback.
async fn sign_in_with(app: &App, provider: &Provider, edit: impl FnOnce(&mut Value)) -> Reply {
    let started = start_sign_in(app, "/dashboard/keys").await;
    let mut claims = provider.claims(&started.url, seconds(app));
    edit(&mut claims);
    let code = provider.sign_in(&started.url, Some(provider.key.token(&claims)));
    started.callback(app, &code).await
}

/// Returns the session cookie of a successful sign-in.
fn session_of(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "{reply}");
    cookie(reply, SESSION).expect("a session")
}

/// Asserts that the sign-in failed, and opens the sign-in page with the message. Returns the page's status.
async fn assert_failed(app: &App, reply: &Reply, failure: &str) -> u16 {
    assert_eq!(reply.status, 303, "{failure}: {reply}");
    let location = reply.header("location").expect("a Location header");
    assert!(
        location.starts_with("/dashboard/sign-in?next=")
            && location.ends_with(&format!("&failed={failure}")),
        "{failure}: {location}"
    );
    assert_eq!(cookie(reply, SESSION), None, "{failure}");
    assert!(
        !location.contains("code") && !location.contains("state"),
        "{location}"
    );
    let sign_in_page = app.get(location).await;
    assert!(
        sign_in_page.body.contains("role=\"alert\""),
        "the failure is shown: {sign_in_page}"
    );
    assert!(
        sign_in_page
            .body
            .contains("href=\"/dashboard/sign-in/oidc?next="),
        "a link to try again: {sign_in_page}"
    );
    assert!(
        !sign_in_page.body.contains(SECRET) && !sign_in_page.body.contains("canary"),
        "{sign_in_page}"
    );
    sign_in_page.status
}

async fn page(app: &App, path: &str, cookie: &str) -> Reply {
    app.get(path).header("cookie", cookie).await
}

#[actix_web::test]
async fn provider_sign_in_creates_a_session() {
    let provider = Provider::start().await;
    each_backend_with(&provider.settings(), async |app| {
        let sign_in_page = app
            .get("/dashboard/sign-in?next=/dashboard/keys?mode%3Dtest")
            .await;
        assert!(
            sign_in_page
                .body
                .contains("href=\"/dashboard/sign-in/oidc?next=/dashboard/keys%3Fmode%3Dtest\""),
            "{sign_in_page}"
        );
        let started = start_sign_in(app, "/dashboard/keys%3Fmode%3Dtest").await;
        let token = provider
            .key
            .token(&provider.claims(&started.url, seconds(app)));
        let code = provider.sign_in(&started.url, Some(token));
        let back = started.callback(app, &code).await;
        assert!(
            back.body
                .contains("content=\"0;url=/dashboard/keys?mode=test\""),
            "{back}"
        );
        assert!(
            !back.body.contains(&code) && !back.body.contains(&started.state()),
            "{back}"
        );
        assert_eq!(back.header("referrer-policy"), Some("no-referrer"));
        assert_eq!(back.header("cache-control"), Some("no-store"));
        let session = session_of(&back);
        let keys = page(app, "/dashboard/keys?mode=test", &session).await;
        assert_eq!(keys.status, 200, "{keys}");
        assert!(
            keys.body.contains("<span class=\"account\">acme</span>"),
            "{keys}"
        );
        assert!(
            keys.body.contains("<span class=\"subject\">ada</span>"),
            "{keys}"
        );
        assert_eq!(keys.header("referrer-policy"), Some("same-origin"));
    })
    .await;
}

#[actix_web::test]
async fn cookies_have_restrictive_attributes() {
    let provider = Provider::start().await;
    let app = sqlite(&provider.settings()).await;
    let reply = app.get("/dashboard/sign-in/oidc").await;
    let [set] = reply.all("set-cookie")[..] else {
        panic!("one cookie: {reply}")
    };
    let (pair, attributes) = set.split_once("; ").unwrap();
    assert_eq!(
        attributes,
        "HttpOnly; SameSite=Lax; Secure; Path=/; Max-Age=600"
    );
    let started = started(&reply);
    assert_eq!(pair, started.cookie);
    assert!(pair.len() < 400);

    let code = provider.sign_in(
        &started.url,
        Some(
            provider
                .key
                .token(&provider.claims(&started.url, seconds(&app))),
        ),
    );
    let back = started.callback(&app, &code).await;
    let session = session_of(&back);
    assert_eq!(session.len(), SESSION.len() + 1 + 64);
    let mut set = back.all("set-cookie");
    set.sort_unstable();
    let is_cleared = |set: &[&str], name: &str, attributes: &str| {
        let removal =
            format!("{name}=; HttpOnly; SameSite={attributes}Path=/; Max-Age=0; Expires=");
        set.iter().any(|set| set.starts_with(&removal))
    };
    assert_eq!(set.len(), 3, "{set:?}");
    assert_eq!(
        set.iter()
            .filter(|set| **set == format!("{session}; HttpOnly; SameSite=Strict; Secure; Path=/"))
            .count(),
        1
    );
    assert!(is_cleared(&set, SIGN_IN, "Lax; Secure; "), "{set:?}");
    assert!(is_cleared(&set, "tollkey_sign_in", "Lax; "), "{set:?}");

    let out = form(&app, "/dashboard/sign-out", "")
        .header("cookie", &session)
        .await;
    assert_eq!(
        (out.status, out.header("location")),
        (303, Some("/dashboard/signed-out"))
    );
    let set = out.all("set-cookie");
    assert!(is_cleared(&set, SESSION, "Strict; Secure; "), "{set:?}");
    assert!(is_cleared(&set, "tollkey_session", "Strict; "), "{set:?}");
    app.stop().await;
}

#[actix_web::test]
async fn client_authenticates_with_the_providers_method() {
    for (auth, secret) in [
        (ClientAuth::Basic, SECRET),
        (ClientAuth::Body, SECRET),
        (ClientAuth::Public, ""),
    ] {
        let provider = Provider::start().await;
        provider.inner().client = auth;
        let mut settings = provider.settings();
        settings.push(("TOLLKEY_OIDC_CLIENT_SECRET", secret));
        settings.rotate_right(1); // the first setting of a name counts
        let app = sqlite(&settings).await;
        session_of(&sign_in_with(&app, &provider, |_| {}).await);
        app.stop().await;
    }
}

#[actix_web::test]
async fn foreign_or_malformed_id_tokens_are_rejected() {
    type BuildToken = fn(&Provider, Value) -> Option<String>;
    fn with(provider: &Provider, mut claims: Value, name: &str, value: Value) -> Option<String> {
        claims[name] = value;
        Some(provider.key.token(&claims))
    }
    fn with_header(provider: &Provider, header: Value, claims: &Value) -> Option<String> {
        Some(token(&header, claims, |message| provider.key.sign(message)))
    }
    let rows: &[(&str, Option<&str>, BuildToken)] = &[
        ("valid", None, |it, claims| Some(it.key.token(&claims))),
        ("signed with RSA", None, |_, claims| {
            Some(token(
                &json!({"alg": "RS256", "kid": "rsa"}),
                &claims,
                rs256,
            ))
        }),
        ("no key ID, but a single key", None, |it, claims| {
            with_header(it, json!({"alg": "ES256"}), &claims)
        }),
        ("a list with one audience", None, |it, claims| {
            with(it, claims, "aud", json!([CLIENT]))
        }),
        ("claims of other providers", None, |it, mut claims| {
            claims["email_verified"] = json!("true");
            claims["updated_at"] = json!("2026-01-01T00:00:00.000Z");
            claims["nbf"] = json!(0);
            claims["groups"] = json!(["a", {"b": 1}]);
            claims["acr"] = json!(1);
            claims["amr"] = json!("pwd");
            claims["address"] = json!("...");
            claims["phone_number"] = json!(4915);
            Some(it.key.token(&claims))
        }),
        ("no ID token", Some("no-id-token"), |_, _| None),
        ("another nonce", Some("nonce"), |it, claims| {
            with(it, claims, "nonce", json!("n".repeat(64)))
        }),
        ("no nonce", Some("nonce"), |it, claims| {
            with(it, claims, "nonce", json!(null))
        }),
        ("another audience", Some("audience"), |it, claims| {
            with(it, claims, "aud", json!("another"))
        }),
        ("a further audience", Some("audience"), |it, claims| {
            with(it, claims, "aud", json!([CLIENT, "another"]))
        }),
        ("no audience", Some("audience"), |it, claims| {
            with(it, claims, "aud", json!([]))
        }),
        ("another issuer", Some("issuer"), |it, claims| {
            with(it, claims, "iss", json!("https://i.example"))
        }),
        ("the issuer with a slash", Some("issuer"), |it, claims| {
            let issuer = format!("{}/", it.issuer);
            with(it, claims, "iss", json!(issuer))
        }),
        ("expired", Some("expired"), |it, claims| {
            let issued = claims["iat"].clone();
            with(it, claims, "exp", issued)
        }),
        ("not valid yet", Some("not-yet-valid"), |it, claims| {
            let later = claims["exp"].clone();
            with(it, claims, "nbf", later)
        }),
        ("an empty subject", Some("claim-sub"), |it, claims| {
            with(it, claims, "sub", json!(""))
        }),
        (
            "a subject that breaks lines",
            Some("claim-sub"),
            |it, claims| with(it, claims, "sub", json!("a\nb")),
        ),
        ("alg none", Some("unsigned"), |_, claims| {
            Some(token(&json!({"alg": "none"}), &claims, |_| Vec::new()))
        }),
        ("alg none, signed", Some("unsigned"), |it, claims| {
            with_header(it, json!({"alg": "none"}), &claims)
        }),
        (
            "HS256 with the client's secret",
            Some("algorithm"),
            |_, claims| {
                Some(token(&json!({"alg": "HS256"}), &claims, |message| {
                    hs256(SECRET.as_bytes(), message)
                }))
            },
        ),
        (
            "HS256 with the public key",
            Some("algorithm"),
            |it, claims| {
                let header = json!({"alg": "HS256", "kid": it.key.id});
                Some(token(&header, &claims, |message| {
                    hs256(&it.key.point(), message)
                }))
            },
        ),
        (
            "an algorithm the provider does not name",
            Some("algorithm"),
            |it, claims| {
                let (jwk, token) = eddsa(&claims);
                it.inner().keys.push(jwk);
                Some(token)
            },
        ),
        ("not signed", Some("signature"), |it, claims| {
            Some(token(
                &json!({"alg": "ES256", "kid": it.key.id}),
                &claims,
                |_| Vec::new(),
            ))
        }),
        (
            "another key with that ID",
            Some("signature"),
            |it, claims| Some(Key::new(it.key.id).token(&claims)),
        ),
        ("an unknown key", Some("unknown-key"), |_, claims| {
            Some(Key::new("two").token(&claims))
        }),
        ("a key in its header", Some("signature"), |_, claims| {
            let own = Key::new("own");
            let header = json!({"alg": "ES256", "jwk": own.jwk()});
            Some(token(&header, &claims, |message| own.sign(message)))
        }),
        (
            "the signature of other claims",
            Some("signature"),
            |it, claims| {
                let good = it.key.token(&claims);
                let changed = with(it, claims, "account_id", json!("victim"))?;
                let (message, _) = changed.rsplit_once('.')?;
                Some(format!("{message}.{}", good.rsplit_once('.')?.1))
            },
        ),
        ("critical extensions", Some("form"), |it, claims| {
            with_header(
                it,
                json!({"alg": "ES256", "kid": it.key.id, "crit": ["b64"]}),
                &claims,
            )
        }),
        ("an access token", Some("form"), |it, claims| {
            with_header(
                it,
                json!({"alg": "ES256", "kid": it.key.id, "typ": "at+jwt"}),
                &claims,
            )
        }),
        ("issued to this client", None, |it, claims| {
            with(it, claims, "azp", json!(CLIENT))
        }),
        (
            "issued to another client",
            Some("authorized-party"),
            |it, claims| with(it, claims, "azp", json!("another")),
        ),
        ("a number as azp", Some("claim-azp"), |it, claims| {
            with(it, claims, "azp", json!(7))
        }),
        (
            "several audiences, no authorized party",
            Some("authorized-party"),
            |it, claims| with(it, claims, "aud", json!([CLIENT, CLIENT])),
        ),
        (
            "several audiences, issued to this client",
            None,
            |it, mut claims| {
                claims["azp"] = json!(CLIENT);
                with(it, claims, "aud", json!([CLIENT, CLIENT]))
            },
        ),
        ("an array of issuers", Some("claim-iss"), |it, claims| {
            let issuers = json!([it.issuer]);
            with(it, claims, "iss", issuers)
        }),
        ("an account that is an integer", None, |it, claims| {
            with(it, claims, "account_id", json!(4711))
        }),
        (
            "an account that is a list",
            Some("account-type"),
            |it, claims| with(it, claims, "account_id", json!(["acme"])),
        ),
        ("no account", Some("no-account"), |it, claims| {
            with(it, claims, "account_id", json!(null))
        }),
        ("an invalid account", Some("account-form"), |it, claims| {
            with(it, claims, "account_id", json!("a b"))
        }),
        (
            "unknown and insufficient roles",
            Some("no-account"),
            |it, mut claims| {
                claims["account_id"] = json!(null);
                with(it, claims, "roles", json!(["admin", "service"]))
            },
        ),
        (
            "a nonce that is not a string",
            Some("claim-nonce"),
            |it, claims| with(it, claims, "nonce", json!(5)),
        ),
        ("an unknown algorithm", Some("algorithm"), |it, claims| {
            with_header(it, json!({"alg": "XX"}), &claims)
        }),
        ("not a JWT", Some("form"), |_, _| Some("canary".to_owned())),
        ("claims that are not an object", Some("form"), |it, _| {
            Some(it.key.token(&json!([1])))
        }),
        ("no subject", Some("claim-sub"), |it, claims| {
            with(it, claims, "sub", json!(null))
        }),
        ("no expiration", Some("claim-exp"), |it, claims| {
            with(it, claims, "exp", json!(null))
        }),
    ];
    let provider = Provider::start().await;
    let app = sqlite(&provider.settings()).await;
    for (name, failure, build) in rows {
        let started = start_sign_in(&app, "").await;
        let claims = provider.claims(&started.url, seconds(&app));
        let id_token = build(&provider, claims);
        let code = provider.sign_in(&started.url, id_token);
        let back = started.callback(&app, &code).await;
        match failure {
            None => assert!(cookie(&back, SESSION).is_some(), "{name}: {back}"),
            Some(failure) => {
                let status = assert_failed(&app, &back, failure).await;
                let expected = match *failure {
                    "unavailable" => 503,
                    "no-account" | "account-type" | "account-form" => 403,
                    _ => 401,
                };
                assert_eq!(status, expected, "{name}");
                let used = back
                    .all("set-cookie")
                    .into_iter()
                    .any(|set| set.starts_with("__Host-tollkey_sign_in=;"));
                assert!(used, "{name}: the cookie is cleared: {back}");
            }
        }
    }
    app.stop().await;
}

#[actix_web::test]
async fn mismatched_or_failed_callbacks_are_rejected() {
    let provider = Provider::start().await;
    let app = sqlite(&provider.settings()).await;
    let ready = async || {
        let started = start_sign_in(&app, "").await;
        let token = provider
            .key
            .token(&provider.claims(&started.url, seconds(&app)));
        let code = provider.sign_in(&started.url, Some(token));
        (started, code)
    };
    let call = |query: &str, cookie: Option<&str>| {
        let call = app.get(&format!("/dashboard/sign-in/callback?{query}"));
        match cookie {
            Some(cookie) => call.header("cookie", cookie),
            None => call,
        }
    };
    let (started, code) = ready().await;
    let (other, other_code) = ready().await;
    let (state, own) = (started.state(), Some(started.cookie.as_str()));
    let issuer = &provider.issuer;
    for (name, query, cookie, failure, status) in [
        (
            "no cookie",
            format!("code={code}&state={state}"),
            None,
            "unknown",
            403,
        ),
        (
            "cookie of another attempt",
            format!("code={code}&state={state}"),
            Some(other.cookie.as_str()),
            "unknown",
            403,
        ),
        ("no state", format!("code={code}"), own, "unknown", 403),
        (
            "an empty state",
            format!("code={code}&state="),
            own,
            "unknown",
            403,
        ),
        (
            "another state",
            format!("code={code}&state={}", "0".repeat(64)),
            own,
            "unknown",
            403,
        ),
        (
            "a repeated state",
            format!("code={code}&state={state}&state={state}"),
            own,
            "unknown",
            403,
        ),
        (
            "two codes",
            format!("code={code}&code={code}&state={state}"),
            own,
            "unknown",
            403,
        ),
        (
            "a cookie without a state",
            format!("code={code}&state="),
            Some("__Host-tollkey_sign_in=....1767225600."),
            "unknown",
            403,
        ),
        (
            "a malformed cookie",
            format!("code={code}&state={state}"),
            Some("__Host-tollkey_sign_in=x"),
            "unknown",
            403,
        ),
        // Outside development mode the `__Host-` prefix is required, because any subdomain can set a plain cookie.
        (
            "a plain cookie",
            format!("code={code}&state={state}"),
            Some(&started.cookie["__Host-".len()..]),
            "unknown",
            403,
        ),
        (
            "an error with an unknown state",
            format!("error=access_denied&state={}", "0".repeat(64)),
            own,
            "unknown",
            403,
        ),
        (
            "a response of another issuer",
            format!("code={code}&state={state}&iss=https%3A%2F%2Fi.example"),
            own,
            "response-issuer",
            401,
        ),
        (
            "neither code nor error",
            format!("state={state}"),
            own,
            "empty-response",
            401,
        ),
        (
            "declined",
            format!("error=access_denied&error_description=canary&state={state}"),
            own,
            "declined",
            403,
        ),
        (
            "an error and a code",
            format!("error=login_required&code={code}&state={state}"),
            own,
            "declined",
            403,
        ),
        (
            "an outage",
            format!("error=temporarily_unavailable&state={state}"),
            own,
            "unavailable",
            503,
        ),
        (
            "a code of another attempt",
            format!("code={other_code}&state={state}"),
            own,
            "invalid-grant",
            401,
        ),
        (
            "an unknown code",
            format!("code=canary&state={state}"),
            own,
            "invalid-grant",
            401,
        ),
    ] {
        let reply = call(&query, cookie).await;
        assert_eq!(assert_failed(&app, &reply, failure).await, status, "{name}");
        // A forged callback must not end a started sign-in, so it does not clear the cookie.
        assert_eq!(
            reply.all("set-cookie").is_empty(),
            failure == "unknown",
            "{name}: {reply}"
        );
    }
    // The sign-in still succeeds, once.
    let query = format!("code={code}&state={state}&iss={issuer}");
    session_of(&call(&query, own).await);
    assert_eq!(
        assert_failed(&app, &call(&query, own).await, "invalid-grant").await,
        401,
        "the code was used"
    );
    assert_eq!(
        assert_failed(&app, &call(&query, None).await, "unknown").await,
        403,
        "the browser no longer has the cookie"
    );

    let (late, code) = ready().await;
    app.clock.advance(Duration::from_secs(600));
    assert_eq!(
        assert_failed(&app, &late.callback(&app, &code).await, "unknown").await,
        403
    );
    app.stop().await;
}

#[actix_web::test]
async fn token_endpoint_failures_are_reported_as_an_outage() {
    let elsewhere = Provider::start().await;
    let provider = Provider::start().await;
    let app = sqlite(&provider.settings()).await;
    let json = |status: u16, body: Value| ResponseTemplate::new(status).set_body_json(body);
    let redirect = |status: u16| {
        ResponseTemplate::new(status)
            .insert_header("location", format!("{}/token", elsewhere.issuer).as_str())
    };
    for (name, response) in [
        (
            "500",
            ResponseTemplate::new(500).set_body_string("<h1>canary</h1>"),
        ),
        ("404", ResponseTemplate::new(404)),
        ("204", ResponseTemplate::new(204)),
        (
            "HTML",
            ResponseTemplate::new(200).set_body_raw("<h1>canary</h1>", "text/html"),
        ),
        ("nothing", ResponseTemplate::new(200)),
        ("no tokens", json(200, json!({"canary": 1}))),
        (
            "too large",
            json(
                200,
                json!({"access_token": "a".repeat(70_000), "token_type": "Bearer"}),
            ),
        ),
        (
            "another client",
            json(
                401,
                json!({"error": "invalid_client", "error_description": "canary"}),
            ),
        ),
        ("unknown error", json(400, json!({"error": "canary"}))),
        ("307", redirect(307)),
        ("302", redirect(302)),
        ("no response", late_response()),
    ] {
        let started = start_sign_in(&app, "").await;
        let token = provider
            .key
            .token(&provider.claims(&started.url, seconds(&app)));
        let code = provider.sign_in(&started.url, Some(token));
        provider.set_response("/token", response);
        let start = Instant::now();
        let reply = started.callback(&app, &code).await;
        assert_eq!(
            assert_failed(&app, &reply, "unavailable").await,
            503,
            "{name}"
        );
        assert!(
            start.elapsed() < Duration::from_secs(15),
            "{name}: {:?}",
            start.elapsed()
        );
    }
    assert_eq!(elsewhere.request_count("/token"), 0);
    provider.inner().replacements.clear();
    session_of(&sign_in_with(&app, &provider, |_| {}).await);
    app.stop().await;
}

#[actix_web::test]
async fn malformed_token_response_has_its_own_failure_code() {
    let provider = Provider::start().await;
    let app = sqlite(&provider.settings()).await;
    for (body, failure, status) in [
        (
            json!({"access_token": "canary", "token_type": "Bearer", "id_token": 5}),
            "form",
            401,
        ),
        (
            json!({"access_token": "canary", "id_token": "canary"}),
            "token-response",
            401,
        ),
        (
            json!({"error": "invalid_grant", "error_description": "canary"}),
            "invalid-grant",
            401,
        ),
        (json!({"error": "invalid_client"}), "unavailable", 503),
    ] {
        let started = start_sign_in(&app, "").await;
        let code = provider.sign_in(&started.url, None);
        provider.set_response("/token", ResponseTemplate::new(200).set_body_json(&body));
        let reply = started.callback(&app, &code).await;
        assert_eq!(assert_failed(&app, &reply, failure).await, status, "{body}");
    }
    app.stop().await;
}

#[actix_web::test]
async fn invalid_provider_metadata_is_reported_as_an_outage() {
    const DISCOVERY: &str = "/.well-known/openid-configuration";
    let provider = Provider::start().await;
    let app = sqlite(&provider.settings()).await;
    let elsewhere = Provider::start().await;
    let redirect = ResponseTemplate::new(302).insert_header(
        "location",
        format!("{}{DISCOVERY}", elsewhere.issuer).as_str(),
    );
    let large = ResponseTemplate::new(200).set_body_json(json!({"keys": ["k".repeat(70_000)]}));
    for (name, path, response) in [
        ("500", DISCOVERY, ResponseTemplate::new(500)),
        (
            "HTML",
            DISCOVERY,
            ResponseTemplate::new(200).set_body_raw("<h1>canary</h1>", "text/html"),
        ),
        (
            "no field",
            DISCOVERY,
            ResponseTemplate::new(200).set_body_json(json!({})),
        ),
        ("a redirect", DISCOVERY, redirect.clone()),
        ("too large", DISCOVERY, large.clone()),
        ("no response", DISCOVERY, late_response()),
        ("no keys", "/keys", ResponseTemplate::new(404)),
        ("keys elsewhere", "/keys", redirect),
        ("too many keys", "/keys", large),
        ("no response for the keys", "/keys", late_response()),
    ] {
        provider.inner().replacements.clear();
        provider.set_response(path, response);
        app.clock.advance(Duration::from_secs(10));
        let start = Instant::now();
        let reply = app.get("/dashboard/sign-in/oidc").await;
        assert_eq!(reply.status, 503, "{name}: {reply}");
        assert!(
            reply.body.contains("href=\"/dashboard/sign-in/oidc?next=")
                && !reply.body.contains("canary"),
            "{reply}"
        );
        assert!(reply.all("set-cookie").is_empty(), "{name}: {reply}");
        assert!(
            start.elapsed() < Duration::from_secs(12),
            "{name}: {:?}",
            start.elapsed()
        );
    }
    assert_eq!(elsewhere.request_count(DISCOVERY), 0);
    provider.inner().replacements.clear();
    for metadata in [
        json!({"issuer": format!("{}/", provider.issuer)}),
        json!({"issuer": "https://i.example"}),
        json!({"authorization_endpoint": "http://i.example/authorize"}),
        json!({"authorization_endpoint": "javascript:alert(1)"}),
    ] {
        provider.inner().metadata = metadata.clone();
        app.clock.advance(Duration::from_secs(10));
        let reply = app.get("/dashboard/sign-in/oidc").await;
        assert_eq!(reply.status, 503, "{metadata}: {reply}");
    }
    provider.inner().metadata = json!({});
    app.clock.advance(Duration::from_secs(10));
    session_of(&sign_in_with(&app, &provider, |_| {}).await);
    app.stop().await;
}

#[actix_web::test]
async fn concurrent_sign_ins_share_one_metadata_fetch() {
    const DISCOVERY: &str = "/.well-known/openid-configuration";
    let provider = Provider::start().await;
    let app = sqlite(&provider.settings()).await;
    assert_eq!(provider.request_count(DISCOVERY), 0, "no request at start");
    provider.set_response(DISCOVERY, late_response());
    let start = Instant::now();
    let status = || async { app.get("/dashboard/sign-in/oidc").await.status };
    let (a, b, c) = futures_util::join!(status(), status(), status());
    assert_eq!([a, b, c], [503; 3]);
    assert!(
        start.elapsed() < Duration::from_secs(8),
        "concurrent requests share one fetch: {:?}",
        start.elapsed()
    );
    assert_eq!(provider.request_count(DISCOVERY), 1);
    assert_eq!(status().await, 503);
    assert_eq!(provider.request_count(DISCOVERY), 1, "no fetch within 10 s");
    assert_eq!(app.get("/dashboard/sign-in").await.status, 200);
    provider.inner().replacements.clear();
    app.clock.advance(Duration::from_secs(10));
    assert_eq!(status().await, 303);
    app.stop().await;

    // A provider that refuses connections.
    let mut settings = provider.settings();
    settings.insert(0, ("TOLLKEY_OIDC_ISSUER", "http://127.0.0.1:1"));
    let app = sqlite(&settings).await;
    let reply = app.get("/dashboard/sign-in/oidc").await;
    assert_eq!(reply.status, 503, "{reply}");
    app.stop().await;
}

#[actix_web::test]
async fn provider_metadata_and_keys_are_cached() {
    const DISCOVERY: &str = "/.well-known/openid-configuration";
    let provider = Provider::start().await;
    let app = sqlite(&provider.settings()).await;
    for _ in 0..3 {
        session_of(&sign_in_with(&app, &provider, |_| {}).await);
    }
    assert_eq!(
        (
            provider.request_count(DISCOVERY),
            provider.request_count("/keys")
        ),
        (1, 1)
    );
    app.clock.advance(Duration::from_secs(599));
    session_of(&sign_in_with(&app, &provider, |_| {}).await);
    assert_eq!(provider.request_count(DISCOVERY), 1);
    app.clock.advance(Duration::from_secs(1));
    session_of(&sign_in_with(&app, &provider, |_| {}).await);
    eventually("a fetch in the background", async || {
        provider.request_count("/keys") == 2
    })
    .await;
    assert_eq!(provider.request_count(DISCOVERY), 2);

    // A token with an unknown key ID causes a fetch of the keys, but only one in 10 s.
    let new_key = Key::new("new");
    let by_new_key = async || {
        let started = start_sign_in(&app, "").await;
        let code = provider.sign_in(
            &started.url,
            Some(new_key.token(&provider.claims(&started.url, seconds(&app)))),
        );
        started.callback(&app, &code).await
    };
    provider.inner().keys = vec![new_key.jwk()];
    assert_eq!(
        assert_failed(&app, &by_new_key().await, "unknown-key").await,
        401
    );
    assert_eq!(provider.request_count("/keys"), 2, "no fetch within 10 s");
    app.clock.advance(Duration::from_secs(10));
    session_of(&by_new_key().await);
    assert_eq!(provider.request_count("/keys"), 3);
    // The old key is no longer in the provider's key set.
    for _ in 0..3 {
        assert_eq!(
            assert_failed(
                &app,
                &sign_in_with(&app, &provider, |_| {}).await,
                "unknown-key"
            )
            .await,
            401
        );
    }
    assert_eq!(provider.request_count("/keys"), 3);
    app.stop().await;
}

#[actix_web::test]
async fn sign_in_does_not_wait_for_a_metadata_refresh() {
    const DISCOVERY: &str = "/.well-known/openid-configuration";
    let provider = Provider::start().await;
    let app = sqlite(&provider.settings()).await;
    session_of(&sign_in_with(&app, &provider, |_| {}).await);
    provider.set_response(DISCOVERY, late_response());
    for minutes in [10, 11, 60] {
        app.clock.advance(Duration::from_secs(60 * minutes));
        // A sign-in that waited for the metadata would fail, because the provider does not respond.
        session_of(&sign_in_with(&app, &provider, |_| {}).await);
        eventually("a fetch in the background", async || {
            provider.request_count(DISCOVERY) >= 2
        })
        .await;
    }
    app.stop().await;
}

#[actix_web::test]
async fn operator_without_an_account_chooses_one() {
    let provider = Provider::start().await;
    each_backend_with(&provider.settings(), async |app| {
        let back = sign_in_with(app, &provider, |claims| {
            claims["account_id"] = json!(null);
            claims["roles"] = json!(["operator"]);
        })
        .await;
        let session = session_of(&back);
        let keys = page(app, "/dashboard/keys", &session).await;
        assert_eq!(
            (keys.status, keys.header("location")),
            (303, Some("/dashboard/account"))
        );
        let chosen = form(app, "/dashboard/account", "account=globex")
            .header("cookie", &session)
            .await;
        assert_eq!(chosen.status, 303, "{chosen}");
        let keys = page(app, "/dashboard/keys", &session).await;
        assert_eq!(keys.status, 200, "{keys}");
        assert!(keys.body.contains(">globex</a>"), "{keys}");
    })
    .await;
}

#[actix_web::test]
async fn roles_are_ignored_until_their_claim_is_configured() {
    let provider = Provider::start().await;
    let mut settings = provider.settings();
    settings.retain(|(name, _)| *name != "TOLLKEY_OIDC_ROLES_CLAIM");
    settings.push(("TOLLKEY_OIDC_ACCOUNT_CLAIM", "email"));
    let app = sqlite(&settings).await;
    let back = sign_in_with(&app, &provider, |claims| {
        claims["roles"] = json!(["operator"])
    })
    .await;
    assert_eq!(assert_failed(&app, &back, "no-account").await, 403);
    let back = sign_in_with(&app, &provider, |claims| {
        claims["roles"] = json!(["operator"]);
        claims["email"] = json!("ada@example.com");
    })
    .await;
    let session = session_of(&back);
    assert!(
        page(&app, "/dashboard/keys", &session)
            .await
            .body
            .contains("<span class=\"account\">ada@example.com</span>")
    );
    assert_eq!(page(&app, "/dashboard/account", &session).await.status, 403);
    app.stop().await;
}

#[actix_web::test]
async fn oidc_routes_are_404_without_a_provider() {
    let app = sqlite(&[]).await;
    for path in [
        "/dashboard/sign-in/oidc",
        "/dashboard/sign-in/callback?code=canary&state=x",
    ] {
        assert_eq!(app.get(path).await.status, 404);
    }
    assert!(
        !app.get("/dashboard/sign-in")
            .await
            .body
            .contains("sign-in/oidc")
    );
    app.stop().await;
}

#[actix_web::test]
async fn sign_in_redirects_only_to_dashboard_pages() {
    let provider = Provider::start().await;
    let app = sqlite(&provider.settings()).await;
    for (next, expected) in [
        (
            "/dashboard/audit?limit%3D5%26x%3Da.b",
            "/dashboard/audit?limit=5&amp;x=a.b",
        ),
        ("https://evil.example/dashboard", "/dashboard/keys"),
        ("//evil.example", "/dashboard/keys"),
        ("/dashboard/sign-in/oidc", "/dashboard/keys"),
        ("", "/dashboard/keys"),
    ] {
        let started = start_sign_in(&app, next).await;
        let code = provider.sign_in(
            &started.url,
            Some(
                provider
                    .key
                    .token(&provider.claims(&started.url, seconds(&app))),
            ),
        );
        let back = started.callback(&app, &code).await;
        let body = back.body.replace("&#38;", "&amp;");
        assert!(
            body.contains(&format!("content=\"0;url={expected}\"")),
            "{next}: {back}"
        );
    }
    app.stop().await;
}

#[actix_web::test]
async fn account_and_roles_claims_can_be_nested() {
    let provider = Provider::start().await;
    for (account, roles) in [
        ("shop.id", "realm_access.roles"),
        ("/shop/id", "/realm_access/roles"),
    ] {
        let mut settings = provider.settings();
        settings.retain(|(name, _)| *name != "TOLLKEY_OIDC_ROLES_CLAIM");
        settings.extend([
            ("TOLLKEY_OIDC_ACCOUNT_CLAIM", account),
            ("TOLLKEY_OIDC_ROLES_CLAIM", roles),
        ]);
        let app = sqlite(&settings).await;
        let back = sign_in_with(&app, &provider, |claims| {
            claims["shop"] = json!({"id": 4711});
            claims["realm_access"] = json!({"roles": ["operator"]});
        })
        .await;
        let session = session_of(&back);
        let keys = page(&app, "/dashboard/keys", &session).await;
        assert!(
            keys.body.contains(">4711</a>"),
            "an operator can switch the account: {keys}"
        );
        // The message names the claim.
        let back = sign_in_with(&app, &provider, |claims| {
            claims["shop"] = json!({"id": [1]})
        })
        .await;
        let sign_in = app
            .get(back.header("location").expect("a Location header"))
            .await;
        assert!(
            sign_in.body.contains(
                account
                    .trim_start_matches('/')
                    .split(['.', '/'])
                    .next()
                    .unwrap()
            ),
            "{sign_in}"
        );
        assert!(
            sign_in.body.contains("must be a string or an integer"),
            "{sign_in}"
        );
        app.stop().await;
    }
}

#[actix_web::test]
async fn sign_out_is_confirmed_on_a_page() {
    each_backend_with(&[TOKEN_SIGN_IN], async |app| {
        let session = sign_in_at(app.running().address(), &app.management_token("acme")).await;
        assert_eq!(
            page(app, "/dashboard/signed-out", &session).await.status,
            303,
            "while signed in"
        );
        let out = form(app, "/dashboard/sign-out", "")
            .header("cookie", &session)
            .await;
        assert_eq!(
            (out.status, out.header("location")),
            (303, Some("/dashboard/signed-out")),
            "{out}"
        );
        let seen = page(app, "/dashboard/signed-out?state=x", &session).await;
        assert!(
            seen.status == 200
                && seen.body.contains("You are signed out.")
                && seen.body.contains("name=\"token\"")
        );
        assert!(
            !app.get("/dashboard/sign-in")
                .await
                .body
                .contains("You are signed out.")
        );
    })
    .await;
}

#[actix_web::test]
async fn sign_out_continues_at_the_provider_of_the_session() {
    let provider = Provider::start().await;
    let settings: Vec<_> = provider
        .settings()
        .into_iter()
        .chain([TOKEN_SIGN_IN])
        .collect();
    let good = format!("{}/logout?realm=shop", provider.issuer);
    for (endpoint, expected) in [
        (json!(good), true),
        (json!(null), false),
        (json!("http://i.example/logout"), false),
        (json!("javascript:alert(1)"), false),
        (json!(7), false),
    ] {
        provider.inner().metadata = json!({"end_session_endpoint": endpoint});
        let app = sqlite(&settings).await;
        let session = session_of(&sign_in_with(&app, &provider, |_| {}).await);
        let out = form(&app, "/dashboard/sign-out", "")
            .header("cookie", &session)
            .await;
        if expected {
            assert_eq!(
                out.status, 200,
                "a page with a redirect, as form-action allows no other origin: {out}"
            );
            let body = out.body.replace("&#38;", "&").replace("&amp;", "&");
            let (_, rest) = body.split_once("content=\"0;url=").expect("a redirect URL");
            let url: Url = rest.split('"').next().unwrap().parse().expect("a URL");
            assert!(url.as_str().starts_with(&good), "{url}");
            assert_eq!(parameter(&url, "client_id"), CLIENT);
            assert_eq!(
                parameter(&url, "post_logout_redirect_uri"),
                "https://keys.example.com/dashboard/signed-out"
            );
            assert_eq!(
                url.query_pairs().count(),
                3,
                "no ID token and no user name: {url}"
            );
        } else {
            assert_eq!(
                (out.status, out.header("location")),
                (303, Some("/dashboard/signed-out")),
                "{endpoint}: {out}"
            );
        }
        assert_eq!(cookie(&out, SESSION), None);
        assert_eq!(
            page(&app, "/dashboard/keys", &session).await.status,
            303,
            "the session ended on the server"
        );
        // The session of a pasted token has no session at the provider.
        let session = sign_in_at(app.running().address(), &app.management_token("acme")).await;
        let out = form(&app, "/dashboard/sign-out", "")
            .header("cookie", &session)
            .await;
        assert_eq!(
            (out.status, out.header("location")),
            (303, Some("/dashboard/signed-out")),
            "{out}"
        );
        app.stop().await;
    }
}

#[actix_web::test]
async fn sign_out_ends_the_session_before_it_calls_the_provider() {
    const DISCOVERY: &str = "/.well-known/openid-configuration";
    let provider = Provider::start().await;
    let app = sqlite(&provider.settings()).await;
    let session = session_of(&sign_in_with(&app, &provider, |_| {}).await);
    // A replica that has not fetched the provider's metadata yet; the provider now hangs.
    let replica = app.replica().await;
    let fetched = provider.request_count(DISCOVERY);
    provider.set_response(DISCOVERY, late_response());
    let mut out = Box::pin(async {
        let call = Call::new(replica.address(), "POST", "/dashboard/sign-out");
        call.header("sec-fetch-site", "same-origin")
            .header("cookie", &session)
            .form("")
            .await
    });
    tokio::select! {
        out = &mut out => panic!("the replica does not wait for the provider: {out}"),
        () = eventually("a fetch", async || provider.request_count(DISCOVERY) > fetched) => {}
    }
    assert_eq!(
        page(&app, "/dashboard/keys", &session).await.status,
        303,
        "ended while the provider hangs"
    );
    let out = out.await;
    assert_eq!(
        (out.status, out.header("location")),
        (303, Some("/dashboard/signed-out")),
        "{out}"
    );
    replica.stop().await;
    app.stop().await;
}

// Sign-in links of development mode, and pasted tokens.

/// A server in development mode, and the code of the sign-in link that it prints.
async fn development() -> (App, String) {
    let app = sqlite(&[("TOLLKEY_JWT_HS256_SECRET", "")]).await;
    let message = app.message.clone().expect("development mode");
    let (_, rest) = message
        .split_once("/dashboard/sign-in/link?code=")
        .expect("a link");
    let code = rest.split_whitespace().next().expect("a code").to_owned();
    (app, code)
}

#[actix_web::test]
async fn development_link_signs_in_once() {
    let (app, code) = development().await;
    // A GET does not use the link up: mail clients and chat tools preview links.
    for _ in 0..3 {
        let seen = app
            .get(&format!("/dashboard/sign-in/link?code={code}"))
            .await;
        assert_eq!(seen.status, 200, "{seen}");
        assert_eq!(
            cookie(&seen, "tollkey_session").or(cookie(&seen, SESSION)),
            None
        );
    }
    for wrong in ["", "x", &code[1..]] {
        let reply = form(&app, "/dashboard/sign-in/link", &format!("code={wrong}")).await;
        assert_eq!(reply.status, 403, "{reply}");
    }
    let elsewhere = app
        .call("POST", "/dashboard/sign-in/link")
        .header("sec-fetch-site", "cross-site");
    assert_eq!(elsewhere.form(&format!("code={code}")).await.status, 403);
    let reply = form(&app, "/dashboard/sign-in/link", &format!("code={code}")).await;
    assert_eq!(
        (reply.status, reply.header("location")),
        (303, Some("/dashboard/keys")),
        "{reply}"
    );
    let [set] = reply.all("set-cookie")[..] else {
        panic!("one cookie: {reply}")
    };
    let (session, attributes) = set.split_once("; ").unwrap();
    assert_eq!(
        attributes, "HttpOnly; SameSite=Strict; Path=/",
        "the browser sent no probe cookie"
    );
    assert!(session.starts_with("tollkey_session="));
    assert_eq!(page(&app, "/dashboard/keys", session).await.status, 200);
    let seen = app
        .get(&format!("/dashboard/sign-in/link?code={code}"))
        .await;
    assert!(
        seen.status == 403 && seen.body.contains("tollkey dashboard-link"),
        "{seen}"
    );
    let again = form(&app, "/dashboard/sign-in/link", &format!("code={code}")).await;
    assert_eq!(again.status, 403, "{again}");
    assert!(cookie(&again, "tollkey_session").is_none());
    app.stop().await;
}

#[actix_web::test]
async fn development_link_expires_after_five_minutes() {
    for (waited, status) in [(299, 303), (300, 403)] {
        let (app, code) = development().await;
        app.clock.advance(Duration::from_secs(waited));
        let reply = form(&app, "/dashboard/sign-in/link", &format!("code={code}")).await;
        assert_eq!(reply.status, status, "after {waited} s: {reply}");
        app.stop().await;
    }
}

#[actix_web::test]
async fn browsers_that_accept_secure_cookies_get_them_in_development() {
    let provider = Provider::start().await;
    let mut settings = provider.settings();
    settings.push(("TOLLKEY_JWT_HS256_SECRET", ""));
    let app = sqlite(&settings).await;
    let sign_in_page = app.get("/dashboard/sign-in").await;
    assert_eq!(
        sign_in_page.all("set-cookie"),
        ["__Host-tollkey_probe=1; HttpOnly; SameSite=Strict; Secure; Path=/"]
    );
    for (probe, prefix) in [("__Host-tollkey_probe=1", "__Host-"), ("x=1", "")] {
        let reply = app
            .get("/dashboard/sign-in/oidc")
            .header("cookie", probe)
            .await;
        let own = cookie(&reply, &format!("{prefix}tollkey_sign_in")).expect("a cookie");
        assert_eq!(
            reply.all("set-cookie")[0].contains("; Secure;"),
            !prefix.is_empty(),
            "{reply}"
        );
        let url: Url = reply.header("location").unwrap().parse().unwrap();
        let code = provider.sign_in(
            &url,
            Some(provider.key.token(&provider.claims(&url, seconds(&app)))),
        );
        // Browsers do not send the `Strict` probe cookie on the redirect back from the provider.
        let path = format!(
            "/dashboard/sign-in/callback?code={code}&state={}",
            parameter(&url, "state")
        );
        let back = app.get(&path).header("cookie", &own).await;
        let session = cookie(&back, &format!("{prefix}tollkey_session"))
            .unwrap_or_else(|| panic!("{probe}: {back}"));
        assert_eq!(page(&app, "/dashboard/keys", &session).await.status, 200);
    }
    app.stop().await;
}

#[actix_web::test]
async fn pasted_token_signs_in_only_if_enabled() {
    let app = sqlite(&[]).await;
    let body = format!(
        "token={}&next=/dashboard/audit",
        app.management_token("acme")
    );
    assert_eq!(
        form(&app, "/dashboard/sign-in/token", &body).await.status,
        404
    );
    assert!(
        !app.get("/dashboard/sign-in")
            .await
            .body
            .contains("name=\"token\"")
    );
    app.stop().await;

    each_backend_with(&[TOKEN_SIGN_IN], async |app| {
        assert!(
            app.get("/dashboard/sign-in")
                .await
                .body
                .contains("name=\"token\"")
        );
        let good = app.management_token("acme");
        let body = format!("token={good}&next=/dashboard/audit");
        let reply = form(app, "/dashboard/sign-in/token", &body).await;
        assert_eq!(
            (reply.status, reply.header("location")),
            (303, Some("/dashboard/audit")),
            "{reply}"
        );
        let session = cookie(&reply, SESSION).expect("a session");
        let set = reply.all("set-cookie");
        assert_eq!(
            set,
            [format!(
                "{session}; HttpOnly; SameSite=Strict; Secure; Path=/"
            )]
        );
        assert_eq!(page(app, "/dashboard/audit", &session).await.status, 200);
        let cross = app
            .call("POST", "/dashboard/sign-in/token")
            .header("sec-fetch-site", "cross-site")
            .form(&body)
            .await;
        assert_eq!(cross.status, 403, "{cross}");

        for (wrong, status) in [
            ("canary-of-a-token", 401),
            (&format!("{good}canary"), 401),
            ("", 401),
            // A valid token whose role has no access to the dashboard.
            (&app.token(None, &["service"]), 403),
        ] {
            let reply = form(app, "/dashboard/sign-in/token", &format!("token={wrong}")).await;
            assert_eq!(reply.status, status, "{reply}");
            assert!(reply.all("set-cookie").is_empty(), "{reply}");
            assert!(
                wrong.is_empty() || !reply.body.contains(wrong),
                "the token must not be repeated: {reply}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn token_session_ends_when_the_token_expires() {
    let app = sqlite(&[TOKEN_SIGN_IN]).await;
    let short = tollkey_server::auth::jwt::NewToken {
        subject: "ada".to_owned(),
        account: Some("acme".parse().unwrap()),
        roles: Vec::new(),
        lifetime: jiff::SignedDuration::from_mins(10),
    };
    let rules = app.settings.tokens.claims.clone();
    let secret = tollkey_server::config::Secret::new(crate::support::SECRET);
    let token =
        tollkey_server::auth::jwt::create_token(&secret, &rules, &short, app.clock.now()).unwrap();
    let reply = form(&app, "/dashboard/sign-in/token", &format!("token={token}")).await;
    let session = cookie(&reply, SESSION).expect("a session");
    app.clock.advance(Duration::from_secs(599));
    assert_eq!(page(&app, "/dashboard/keys", &session).await.status, 200);
    app.clock.advance(Duration::from_secs(1));
    assert_eq!(page(&app, "/dashboard/keys", &session).await.status, 303);
    app.stop().await;
}

// Sessions of every sign-in method.

#[actix_web::test]
async fn sign_in_replaces_the_previous_session() {
    let provider = Provider::start().await;
    let mut settings = provider.settings();
    settings.push(TOKEN_SIGN_IN);
    let app = sqlite(&settings).await;
    let planted = format!("{SESSION}={}", "a".repeat(64));
    let body = format!("token={}", app.management_token("acme"));
    let reply = form(&app, "/dashboard/sign-in/token", &body)
        .header("cookie", &planted)
        .await;
    let first = cookie(&reply, SESSION).expect("a session");
    assert_ne!(first, planted);
    assert_eq!(page(&app, "/dashboard/keys", &planted).await.status, 303);
    // Another sign-in creates a new session and ends the previous one.
    let reply = form(&app, "/dashboard/sign-in/token", &body)
        .header("cookie", &first)
        .await;
    let second = cookie(&reply, SESSION).expect("a session");
    assert_ne!(first, second);
    assert_eq!(page(&app, "/dashboard/keys", &first).await.status, 303);
    assert_eq!(page(&app, "/dashboard/keys", &second).await.status, 200);

    // The previous session also ends if its `Strict` cookie is not sent on the redirect from the provider.
    let started = started(
        &app.get("/dashboard/sign-in/oidc")
            .header("cookie", &second)
            .await,
    );
    assert_eq!(
        page(&app, "/dashboard/keys", &second).await.status,
        200,
        "during the second sign-in"
    );
    let code = provider.sign_in(
        &started.url,
        Some(
            provider
                .key
                .token(&provider.claims(&started.url, seconds(&app))),
        ),
    );
    let with_planted = StartedSignIn {
        cookie: format!("{}; {planted}", started.cookie),
        url: started.url.clone(),
    };
    let third = session_of(&with_planted.callback(&app, &code).await);
    assert_ne!(third, planted);
    assert_eq!(page(&app, "/dashboard/keys", &planted).await.status, 303);
    assert_eq!(page(&app, "/dashboard/keys", &third).await.status, 200);
    assert_eq!(page(&app, "/dashboard/keys", &second).await.status, 303);
    app.stop().await;
}

#[actix_web::test]
async fn session_ends_after_one_idle_hour_or_twelve_hours() {
    let provider = Provider::start().await;
    each_backend_with(&provider.settings(), async |app| {
        let minute = Duration::from_secs(60);
        let session = session_of(&sign_in_with(app, &provider, |_| {}).await);
        // The session does not end with the ID token, which expires after five minutes.
        app.clock.advance(59 * minute);
        assert_eq!(page(app, "/dashboard/keys", &session).await.status, 200);
        app.clock.advance(60 * minute);
        assert_eq!(
            page(app, "/dashboard/keys", &session).await.status,
            303,
            "idle"
        );
        let session = session_of(&sign_in_with(app, &provider, |_| {}).await);
        assert_eq!(Session::MAX_AGE.as_mins(), 720);
        for at in (30..720).step_by(30) {
            app.clock.advance(30 * minute);
            assert_eq!(
                page(app, "/dashboard/keys", &session).await.status,
                200,
                "after {at} minutes"
            );
        }
        app.clock.advance(30 * minute);
        let over = page(app, "/dashboard/keys?mode=test", &session).await;
        assert_eq!(
            over.header("location"),
            Some("/dashboard/sign-in?next=%2Fdashboard%2Fkeys%3Fmode%3Dtest"),
            "{over}"
        );
    })
    .await;
}

#[actix_web::test]
async fn replicas_share_sessions_and_sign_outs() {
    each_backend_with(&[TOKEN_SIGN_IN], async |app| {
        let replica = app.replica().await;
        let session = sign_in_at(replica.address(), &app.management_token("acme")).await;
        assert_eq!(keys_at(replica.address(), &session).await, 200);
        assert_eq!(page(app, "/dashboard/keys", &session).await.status, 200);
        let out = form(app, "/dashboard/sign-out", "")
            .header("cookie", &session)
            .await;
        assert_eq!(out.status, 303, "{out}");
        assert_eq!(
            keys_at(replica.address(), &session).await,
            303,
            "the session ended on the server"
        );
        assert_eq!(page(app, "/dashboard/keys", &session).await.status, 303);
        replica.stop().await;
    })
    .await;
}

#[actix_web::test]
async fn session_ends_when_its_sign_in_settings_change() {
    let provider = Provider::start().await;
    let settings: Vec<_> = provider
        .settings()
        .into_iter()
        .chain([TOKEN_SIGN_IN])
        .collect();
    each_backend_with(&settings, async |app| {
        let by_token = sign_in_at(app.running().address(), &app.management_token("acme")).await;
        let by_provider = session_of(&sign_in_with(app, &provider, |_| {}).await);
        let other_secret = "EXAMPLE-another-secret-of-32-bytes-or-more";
        // The changed setting of a replica, and its statuses for the two sessions: of the token and of the provider.
        for (name, value, token, oidc) in [
            ("TOLLKEY_LISTEN", "127.0.0.1:0", 200, 200),
            ("TOLLKEY_ROUTE_BASE", "/other", 200, 200),
            ("TOLLKEY_DASHBOARD_TOKEN_SIGN_IN", "false", 303, 200),
            ("TOLLKEY_JWT_HS256_SECRET", other_secret, 303, 200),
            ("TOLLKEY_JWT_ISSUER", "https://other.example", 303, 200),
            ("TOLLKEY_JWT_AUDIENCE", "other", 303, 200),
            ("TOLLKEY_JWT_ACCOUNT_CLAIM", "other", 303, 200),
            ("TOLLKEY_JWT_ROLES_CLAIM", "other", 303, 200),
            ("TOLLKEY_OIDC_ISSUER", "https://other.example", 200, 303),
            ("TOLLKEY_OIDC_CLIENT_ID", "other", 200, 303),
            ("TOLLKEY_OIDC_CLIENT_SECRET", other_secret, 200, 303),
            ("TOLLKEY_OIDC_ACCOUNT_CLAIM", "other", 200, 303),
            ("TOLLKEY_OIDC_ROLES_CLAIM", "other", 200, 303),
        ] {
            let others = settings.iter().copied().filter(|(own, _)| *own != name);
            let changed: Vec<_> = others.chain([(name, value)]).collect();
            let replica = app
                .replica_with(&crate::support::settings(app.database.url(), &changed))
                .await;
            let address = replica.address();
            let seen = (
                keys_at(address, &by_token).await,
                keys_at(address, &by_provider).await,
            );
            assert_eq!(seen, (token, oidc), "{name}={value}");
            replica.stop().await;
        }
        // The sessions still exist, so that replicas can be reconfigured one after the other.
        assert_eq!(page(app, "/dashboard/keys", &by_token).await.status, 200);
        assert_eq!(page(app, "/dashboard/keys", &by_provider).await.status, 200);
    })
    .await;
}

#[actix_web::test]
async fn development_sessions_are_invalid_in_production() {
    let (app, code) = development().await;
    let reply = form(&app, "/dashboard/sign-in/link", &format!("code={code}")).await;
    let session = cookie(&reply, "tollkey_session")
        .expect("a session")
        .replace("tollkey_session", SESSION);
    assert_eq!(page(&app, "/dashboard/keys", &session).await.status, 200);
    let in_production = app
        .replica_with(&crate::support::settings(
            app.database.url(),
            &[TOKEN_SIGN_IN],
        ))
        .await;
    assert_eq!(keys_at(in_production.address(), &session).await, 303);
    in_production.stop().await;
    app.stop().await;
}

#[actix_web::test]
async fn sign_in_can_finish_on_another_replica() {
    let provider = Provider::start().await;
    each_backend_with(&provider.settings(), async |app| {
        let replica = app.replica().await;
        let started = start_sign_in(app, "").await;
        let code = provider.sign_in(
            &started.url,
            Some(
                provider
                    .key
                    .token(&provider.claims(&started.url, seconds(app))),
            ),
        );
        let path = format!(
            "/dashboard/sign-in/callback?code={code}&state={}",
            started.state()
        );
        let back = Call::new(replica.address(), "GET", &path)
            .header("cookie", &started.cookie)
            .await;
        let session = session_of(&back);
        assert_eq!(page(app, "/dashboard/keys", &session).await.status, 200);
        replica.stop().await;
    })
    .await;
}
