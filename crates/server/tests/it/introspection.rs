//! How clients of RFC 7662 authenticate at `/introspect`: Bearer, HTTP Basic, or `client_secret` in the form.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;
use tollkey_core::{Family, Mode};

use crate::{
    assert_response,
    support::{
        App, Call, Reply, each_backend,
        raw::{connect, read_response, send},
    },
};

const BEARER: &str = "Bearer realm=\"tollkey\"";
const BASIC: &str = "Basic realm=\"tollkey\", charset=\"UTF-8\"";

fn introspect(app: &App, form: &str) -> Call {
    app.call("POST", "/introspect").form(form)
}

fn basic(user_and_password: &str) -> String {
    format!("Basic {}", STANDARD.encode(user_and_password))
}

/// Asserts a 401 that offers Bearer, whose challenge begins like this, and Basic.
fn assert_challenged(reply: &Reply, code: &str, bearer: &str) {
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (401, code),
        "{reply}"
    );
    let challenges = reply.all("www-authenticate");
    assert_eq!(challenges.len(), 2, "{reply}");
    assert_eq!(challenges[0], BASIC, "{reply}");
    assert!(challenges[1].starts_with(bearer), "{reply}");
}

#[actix_web::test]
async fn client_authenticates_with_basic_or_client_secret() {
    each_backend(async |app: &App| {
        let service = app.service_key().await.text;
        let secret = app.insert_key("acme", Family::Secret, Mode::Live).await;
        let own = app.insert_key("acme", Family::Commerce, Mode::Live).await;
        let other = app.insert_key("globex", Family::Commerce, Mode::Live).await;
        for (key, sees_other) in [(&service, true), (&secret, false)] {
            let form = |token: &str, more: &str| introspect(app, &format!("token={token}{more}"));
            let scheme = format!("secret-token%3A{key}");
            let with_basic =
                |token: &str, pair: String| form(token, "").header("authorization", basic(&pair));
            for (name, active, of_other) in [
                (
                    "Basic",
                    with_basic(&own, format!("client:{key}")),
                    with_basic(&other, format!("client:{key}")),
                ),
                (
                    "Basic without a user name",
                    with_basic(&own, format!(":{key}")),
                    with_basic(&other, format!(":{key}")),
                ),
                (
                    "Basic, percent-encoded",
                    with_basic(&own, format!("a%3Ab:{scheme}")),
                    with_basic(&other, format!("a%3Ab:{scheme}")),
                ),
                (
                    "form",
                    form(&own, &format!("&client_id=any&client_secret={key}")),
                    form(&other, &format!("&client_secret={key}")),
                ),
                (
                    "form, with an empty header",
                    form(&own, &format!("&client_secret={key}")).header("authorization", ""),
                    form(&other, &format!("&client_secret={key}")).header("x-api-key", " "),
                ),
                (
                    "form, with Basic without a password",
                    form(&own, &format!("&client_secret={key}")).header("authorization", "Basic"),
                    form(&other, &format!("&client_secret={key}"))
                        .header("authorization", basic("client:")),
                ),
                (
                    "x-api-key, with Basic without a password",
                    form(&own, "")
                        .header("authorization", basic(":"))
                        .header("x-api-key", key),
                    form(&other, "")
                        .header("authorization", "basic ")
                        .header("x-api-key", key),
                ),
                (
                    "Bearer, with an empty secret and an ignored ID",
                    form(&own, "&client_id=any&client_secret=").bearer(key),
                    form(&other, "&client_secret=").bearer(key),
                ),
            ] {
                let active = active.await;
                assert_eq!(
                    (active.status, &active.json()["active"]),
                    (200, &json!(true)),
                    "{name}: {active}"
                );
                assert_eq!(of_other.await.json()["active"], sees_other, "{name}");
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn missing_client_credentials_are_401_with_two_challenges() {
    each_backend(async |app: &App| {
        assert_response!(introspect(app, "token=x").await, @r#"
        401
        cache-control: no-store
        content-type: application/problem+json
        www-authenticate: Basic realm="tollkey", charset="UTF-8"
        www-authenticate: Bearer realm="tollkey"
        x-content-type-options: nosniff
        x-request-id: req_01KDVDNA00HXPX69B46WBKBWSC

        {
          "type": "urn:tollkey:problem:missing_credentials",
          "title": "A credential is required",
          "status": 401,
          "detail": "Send a service key or a secret key: in the Authorization header with the scheme Bearer or Basic, or in the form field client_secret.",
          "code": "missing_credentials",
          "request_id": "req_01KDVDNA00HXPX69B46WBKBWSC"
        }
        "#);
        // The form is not examined for other errors before the caller is authenticated.
        for call in [
            introspect(app, "nonsense=x&client_secret="),
            app.post("/introspect", json!({"token": "x", "client_secret": "x"})),
            app.call("POST", "/introspect"),
            introspect(app, "token=x").header("authorization", "Basic"),
            introspect(app, "token=x").header("authorization", basic("client:")),
            introspect(app, "token=x").header("authorization", "Digest YTpi"),
        ] {
            assert_challenged(&call.await, "missing_credentials", BEARER);
        }
    })
    .await;
}

#[actix_web::test]
async fn wrong_client_secrets_are_401_with_two_challenges() {
    each_backend(async |app: &App| {
        let unknown = app
            .generate_key(Family::Secret, Mode::Live)
            .expose()
            .to_owned();
        let revoked = app.service_key().await;
        let path = format!("/service-keys/{}", revoked.id);
        assert_eq!(app.delete(&path).bearer(&app.operator()).await.status, 204);
        let service_token = app.service();
        let invalid = "Bearer realm=\"tollkey\", error=\"invalid_token\"";
        for secret in [unknown.as_str(), &revoked.text, &service_token, "canary"] {
            for call in [
                introspect(app, "token=x").header("authorization", basic(&format!("c:{secret}"))),
                introspect(app, &format!("token=x&client_secret={secret}")),
            ] {
                let reply = call.await;
                assert_challenged(&reply, "invalid_api_key", invalid);
                assert!(!reply.body.contains(secret), "{reply}");
            }
        }
        let malformed: [&[u8]; 3] = [b"Basic canary", b"Basic Y2FuYXJ5", b"Basic canary\xe9"];
        for value in malformed {
            let reply = introspect(app, "token=x")
                .header("authorization", value)
                .await;
            assert_challenged(&reply, "invalid_api_key", invalid);
            assert!(!reply.body.contains("anary"), "{reply}");
        }
        let bearer = introspect(app, "token=x").bearer(&unknown).await;
        assert_challenged(&bearer, "invalid_api_key", invalid);
        // The kind of a valid key is checked as with Bearer.
        let commerce = app.insert_key("acme", Family::Commerce, Mode::Live).await;
        let wrong = introspect(app, &format!("token=x&client_secret={commerce}")).await;
        assert_eq!((wrong.status, wrong.code().as_str()), (403, "forbidden"));
        assert_eq!(wrong.header("www-authenticate"), None);
    })
    .await;
}

#[actix_web::test]
async fn more_than_one_client_credential_is_400() {
    each_backend(async |app: &App| {
        let key = app.service_key().await.text;
        let with_secret = || introspect(app, &format!("token=x&client_secret={key}"));
        for (name, call) in [
            ("Bearer and form", with_secret().bearer(&key)),
            (
                "x-api-key and form",
                with_secret().header("x-api-key", &key),
            ),
            (
                "Basic and form",
                with_secret().header("authorization", basic(&format!("c:{key}"))),
            ),
            (
                "wrong Basic and form",
                with_secret().header("authorization", basic("c:wrong")),
            ),
            (
                "two in the form",
                introspect(
                    app,
                    &format!("token=x&client_secret={key}&client_secret={key}"),
                ),
            ),
            (
                "Basic twice",
                introspect(app, "token=x")
                    .header("authorization", basic(&format!("c:{key}")))
                    .header("authorization", basic(&format!("c:{key}"))),
            ),
            (
                "Basic twice, joined by a proxy",
                introspect(app, "token=x").header(
                    "authorization",
                    format!("{0}, {0}", basic(&format!("c:{key}"))),
                ),
            ),
            (
                "Basic without a password and Basic, joined by a proxy",
                introspect(app, "token=x").header(
                    "authorization",
                    format!("{}, {}", basic("c:"), basic(&format!("c:{key}"))),
                ),
            ),
            (
                "Basic and x-api-key",
                introspect(app, "token=x")
                    .header("authorization", basic(&format!("c:{key}")))
                    .header("x-api-key", &key),
            ),
        ] {
            let reply = call.await;
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (400, "multiple_credentials"),
                "{name}: {reply}"
            );
        }
    })
    .await;
}

/// With a 401, the client would look for the mistake in its secret.
#[actix_web::test]
async fn form_that_cannot_be_read_has_its_own_error() {
    each_backend(async |app: &App| {
        const FORM: &str = "application/x-www-form-urlencoded";
        let key = app.service_key().await.text;
        let form = format!("token=x&client_secret={key}");
        let empty = |content_type: &str| {
            app.call("POST", "/introspect")
                .header("content-type", content_type)
        };
        let with_type = |content_type: &str| empty(content_type).body(form.as_str());
        let latin = format!("{FORM}; charset=iso-8859-1");
        let large = format!("{form}&path={}", "x".repeat(64 * 1024));
        for (name, call, status, code) in [
            ("charset", with_type(&latin), 415, "unsupported_media_type"),
            (
                "charset, with Basic without a password",
                with_type(&latin).header("authorization", "Basic"),
                415,
                "unsupported_media_type",
            ),
            (
                "encoding",
                with_type(FORM).header("content-encoding", "gzip"),
                415,
                "unsupported_media_type",
            ),
            ("size", introspect(app, &large), 413, "payload_too_large"),
        ] {
            let reply = call.await;
            let found = (reply.status, reply.code());
            assert_eq!(found, (status, code.to_owned()), "{name}: {reply}");
            assert_eq!(reply.header("www-authenticate"), None, "{name}: {reply}");
            assert!(!reply.body.contains(&key), "{name}: {reply}");
        }
        let accepted = with_type(&latin).await;
        assert_eq!(accepted.header("accept"), Some(FORM), "{accepted}");
        // A body of another type has no client secret, and neither has an empty one.
        for call in [
            with_type("text/plain"),
            with_type("application/json; charset=iso-8859-1"),
            with_type("text/plain").header("content-encoding", "gzip"),
            empty("text/plain").body(large.as_str()),
            empty(FORM),
            empty(&latin),
        ] {
            assert_challenged(&call.await, "missing_credentials", BEARER);
        }
        // A rejected credential in a header has precedence over the body.
        let unknown = app.generate_key(Family::Secret, Mode::Live);
        let reply = with_type(&latin).bearer(unknown.expose()).await;
        let invalid = "Bearer realm=\"tollkey\", error=\"invalid_token\"";
        assert_challenged(&reply, "invalid_api_key", invalid);
    })
    .await;
}

#[actix_web::test]
async fn client_assertion_is_rejected_by_name() {
    each_backend(async |app: &App| {
        let key = app.service_key().await.text;
        let kind = "urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer";
        for field in ["client_assertion", "client_assertion_type"] {
            let rule = "is not supported; authenticate with HTTP Basic or `client_secret`";
            for call in [
                introspect(app, &format!("token=x&{field}={kind}")),
                introspect(app, &format!("token=x&{field}={kind}")).bearer(&key),
                introspect(app, &format!("token=x&client_secret={key}&{field}={kind}")),
            ] {
                let reply = call.await;
                let expected = (400, vec![format!("/{field} {rule}")]);
                assert_eq!((reply.status, reply.errors()), expected, "{reply}");
            }
        }
        let long = format!("token=x&client_id={}", "x".repeat(2049));
        let reply = introspect(app, &long).bearer(&key).await;
        let expected = vec!["/client_id must have at most 2048 characters".to_owned()];
        assert_eq!((reply.status, reply.errors()), (400, expected));
    })
    .await;
}

#[actix_web::test]
async fn other_routes_do_not_read_basic_or_forms() {
    each_backend(async |app: &App| {
        let service = app.service_key().await.text;
        let secret = app.insert_key("acme", Family::Secret, Mode::Live).await;
        for key in [&service, &secret] {
            let authorization = basic(&format!("client:{key}"));
            for call in [
                app.post("/verify", json!({"key": "x"})),
                app.post("/verify/batch", json!({"requests": [{"key": "x"}]})),
                app.post("/sync/lookup", json!({"digest": "00".repeat(32)})),
                app.get("/whoami"),
                app.get("/account/api-keys"),
                app.get("/authz/forward-auth"),
            ] {
                let reply = call.header("authorization", &authorization).await;
                assert_eq!(reply.status, 401, "{reply}");
                assert_eq!(reply.all("www-authenticate"), [BEARER], "{reply}");
            }
            let form = app
                .call("POST", "/verify")
                .form(&format!("key=x&client_secret={key}"));
            assert_eq!(form.await.status, 401);
        }
    })
    .await;
}

/// A client that waits for `100 Continue` sends the form only if its headers can be valid.
#[actix_web::test]
async fn rejected_client_is_not_told_to_send_the_form() {
    each_backend(async |app: &App| {
        let unknown = app.generate_key(Family::Secret, Mode::Live);
        let service = app.service_key().await.text;
        let form = "token=x";
        for (key, first) in [
            (unknown.expose(), "http/1.1 401"),
            (service.as_str(), "http/1.1 100"),
        ] {
            let authorization = basic(&format!("client:{key}"));
            let length = form.len();
            let head = format!(
                "POST /api/v1/introspect HTTP/1.1\r\nhost: x\r\nauthorization: {authorization}\r\n\
                 content-type: application/x-www-form-urlencoded\r\ncontent-length: {length}\r\n\
                 expect: 100-continue\r\n\r\n"
            );
            let mut stream = connect(app.running().address()).await;
            send(&mut stream, head).await;
            let (received, _) = read_response(&mut stream).await.expect("a response");
            assert!(received.starts_with(first), "{received}");
            if first.ends_with("100") {
                send(&mut stream, form).await;
                let (received, body) = read_response(&mut stream).await.expect("a response");
                assert!(received.starts_with("http/1.1 200"), "{received}");
                assert_eq!(body, r#"{"active":false}"#);
            }
        }
    })
    .await;
}
