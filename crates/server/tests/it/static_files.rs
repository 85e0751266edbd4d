//! Static files: compressed representations, entity tags and 304. Nothing else is compressed.

use std::io::Read as _;

use flate2::read::GzDecoder;
use reqwest::header::HeaderMap;
use serde_json::json;
use tollkey_core::{Family, Mode};

use crate::support::{App, TOKEN_SIGN_IN, each_backend, each_backend_with, http};

struct Fetched {
    status: u16,
    headers: HeaderMap,
    bytes: Vec<u8>,
}

impl Fetched {
    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    fn tag(&self) -> &str {
        self.header("etag").expect("an ETag")
    }
}

/// Like [`App::get`], with the bytes of the body.
async fn fetch(app: &App, path: &str, headers: &[(&str, &str)]) -> Fetched {
    let mut request = http::client(None).get(format!("http://{}{path}", app.running().address()));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let response = request.send().await.expect("a response");
    Fetched {
        status: response.status().as_u16(),
        headers: response.headers().clone(),
        bytes: response.bytes().await.expect("a whole body").to_vec(),
    }
}

/// A static file of each kind, and its `Cache-Control`.
async fn files(app: &App) -> Vec<(String, &'static str)> {
    let page = app.get("/dashboard/sign-in").await.body;
    let asset = |name: &str| {
        let end = page.find(name).expect(name) + name.len();
        let start = page[..end].rfind('"').expect("an attribute") + 1;
        page[start..end].to_owned()
    };
    let forever = "public, max-age=31536000, immutable";
    vec![
        ("/openapi.json".to_owned(), "no-cache"),
        ("/docs/".to_owned(), "no-cache"),
        ("/docs/swagger-ui.css".to_owned(), "no-cache"),
        ("/docs/swagger-initializer.js".to_owned(), "no-cache"),
        (asset("/style.css"), forever),
        (asset("/dashboard.js"), forever),
    ]
}

#[actix_web::test]
async fn static_file_is_compressed_for_clients_that_accept_gzip() {
    each_backend_with(&[TOKEN_SIGN_IN], async |app: &App| {
        for (path, kept) in files(app).await {
            let plain = fetch(app, &path, &[]).await;
            assert_eq!(
                (plain.status, plain.header("content-encoding")),
                (200, None),
                "{path}"
            );
            for accepted in ["gzip", "br, gzip;q=0.5, *;q=0.1", "GZIP"] {
                let zipped = fetch(app, &path, &[("accept-encoding", accepted)]).await;
                let found = (zipped.status, zipped.header("content-encoding"));
                assert_eq!(found, (200, Some("gzip")), "{path} {accepted}");
                let mut bytes = Vec::new();
                GzDecoder::new(&*zipped.bytes)
                    .read_to_end(&mut bytes)
                    .expect("a gzip stream");
                assert!(bytes == plain.bytes, "{path}");
                assert!(zipped.bytes.len() < plain.bytes.len(), "{path}");
                let length = zipped.bytes.len().to_string();
                assert_eq!(
                    zipped.header("content-length"),
                    Some(length.as_str()),
                    "{path}"
                );
                // The bytes differ, so the strong tags do.
                assert_ne!(zipped.tag(), plain.tag(), "{path}");
                for file in [&plain, &zipped] {
                    assert!(file.tag().starts_with('"'), "{path}: a strong tag");
                    assert_eq!(file.header("vary"), Some("Accept-Encoding"), "{path}");
                    assert_eq!(file.header("cache-control"), Some(kept), "{path}");
                    assert_eq!(
                        file.header("content-type"),
                        plain.header("content-type"),
                        "{path}"
                    );
                }
            }
            for accepted in [
                "",
                "identity",
                "br",
                "gzip;q=0",
                "*;q=0",
                "identity, gzip;q=0.5",
            ] {
                let own = fetch(app, &path, &[("accept-encoding", accepted)]).await;
                assert_eq!(own.header("content-encoding"), None, "{path} {accepted}");
                assert_eq!(own.tag(), plain.tag(), "{path} {accepted}");
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn client_that_has_a_static_file_gets_304() {
    each_backend_with(&[TOKEN_SIGN_IN], async |app: &App| {
        for (path, kept) in files(app).await {
            for encoding in ["identity", "gzip"] {
                let accepted = ("accept-encoding", encoding);
                let first = fetch(app, &path, &[accepted]).await;
                let tag = first.tag();
                for known in [
                    tag.to_owned(),
                    format!("W/{tag}"),
                    format!("\"other\", {tag}"),
                    "*".to_owned(),
                ] {
                    let again =
                        fetch(app, &path, &[accepted, ("if-none-match", known.as_str())]).await;
                    assert_eq!(
                        (again.status, again.bytes.len()),
                        (304, 0),
                        "{path} {known}"
                    );
                    assert_eq!(again.tag(), tag, "{path}");
                    assert_eq!(again.header("vary"), Some("Accept-Encoding"), "{path}");
                    assert_eq!(again.header("cache-control"), Some(kept), "{path}");
                    assert_eq!(again.header("content-encoding"), None, "{path}");
                    assert_eq!(again.header("content-type"), None, "{path}");
                }
                let other = fetch(app, &path, &[accepted, ("if-none-match", "\"other\"")]).await;
                assert_eq!(other.status, 200, "{path}");
                assert!(other.bytes == first.bytes, "{path}");
            }
            // The tag of another encoding is that of another representation.
            let plain = fetch(app, &path, &[]).await;
            let zipped = [("accept-encoding", "gzip"), ("if-none-match", plain.tag())];
            assert_eq!(fetch(app, &path, &zipped).await.status, 200, "{path}");
        }
    })
    .await;
}

#[actix_web::test]
async fn unknown_static_file_is_404_without_a_tag() {
    each_backend(async |app: &App| {
        for path in ["/docs/nothing", "/dashboard/assets/000000000000/nothing"] {
            let headers = [("accept-encoding", "gzip"), ("if-none-match", "*")];
            let reply = fetch(app, path, &headers).await;
            assert_eq!((reply.status, reply.header("etag")), (404, None), "{path}");
            assert_eq!(reply.header("content-encoding"), None, "{path}");
        }
    })
    .await;
}

/// The length of a compressed response could reveal a secret in it.
#[actix_web::test]
async fn responses_with_secrets_are_never_compressed() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let application = app.application(&token, "Web Store").await;
        let key = app.insert_key("acme", Family::Secret, Mode::Live).await;
        let metadata = json!({"text": "x".repeat(3000)});
        let body = json!({"name": "Till", "metadata": metadata});
        let account_key = json!({
            "name": "Till", "environment": "live", "access": "secret", "metadata": metadata,
        });
        let of_application = json!({"description": "Till", "metadata": metadata});
        for call in [
            app.post("/api-keys", body).bearer(&token),
            app.post(
                &format!("/applications/{application}/api-keys"),
                of_application,
            )
            .bearer(&token),
            app.post("/account/api-keys", account_key).bearer(&token),
            app.post("/service-keys", json!({"name": "gateway"}))
                .bearer(&app.operator()),
            app.get("/api-keys").bearer(&token),
            app.get("/account/api-keys").bearer(&key),
            app.get("/audit-log").bearer(&token),
            app.post("/verify", json!({"key": key})).bearer(&key),
            app.get("/whoami").bearer(&key),
            app.get("/dashboard/sign-in"),
        ] {
            let path = call.path.clone();
            let reply = call.header("accept-encoding", "gzip, br, deflate").await;
            assert!(
                reply.status < 300 || path.contains("sign-in"),
                "{path}: {reply}"
            );
            assert_eq!(reply.header("content-encoding"), None, "{path}: {reply}");
        }
    })
    .await;
}
