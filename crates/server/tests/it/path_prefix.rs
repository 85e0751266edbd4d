//! The server behind a path prefix, `TOLLKEY_PUBLIC_URL=https://…/keys/`. Each request is sent with
//! the prefix and without it, as by a proxy that keeps it and by one that strips it.

use serde_json::{Value, json};
use tollkey_core::{Family, Mode};

use crate::{
    sign_in::provider::{Provider, UNDER_PREFIX, parameter},
    support::{App, Call, TOKEN_SIGN_IN, each_backend, each_backend_with},
};

const PREFIX: &str = "/keys";
const BEHIND: &[(&str, &str)] = &[
    ("TOLLKEY_PUBLIC_URL", "https://example.com/keys/"),
    TOKEN_SIGN_IN,
];
/// The prefixes of the paths in requests from a proxy: one keeps the prefix, the other strips it.
const PROXIES: [&str; 2] = [PREFIX, ""];

fn call(app: &App, method: &str, path: &str) -> Call {
    Call::to(app.running().address(), method, path)
}

/// Returns the path with which a request for a URL of a response arrives from the proxy.
fn arriving(proxy: &str, url: &str) -> String {
    let own = url
        .strip_prefix(PREFIX)
        .unwrap_or_else(|| panic!("{url} has no prefix"));
    format!("{proxy}{own}")
}

#[actix_web::test]
async fn paths_in_responses_begin_with_the_prefix() {
    each_backend_with(BEHIND, async |app: &App| {
        let token = app.management_token("acme");
        for proxy in PROXIES {
            let created = call(app, "POST", &format!("{proxy}/api/v1/applications"));
            let created = created
                .json(json!({"name": format!("Store{proxy}")}))
                .bearer(&token)
                .await;
            let location = format!(
                "/keys/api/v1/applications/{}",
                created.json()["id"].as_str().expect("an ID")
            );
            assert_eq!(
                (created.status, created.header("location")),
                (201, Some(location.as_str())),
                "{created}"
            );
            let found = call(app, "GET", &arriving(proxy, &location))
                .bearer(&token)
                .await;
            assert_eq!(found.json()["name"], format!("Store{proxy}"));

            for _ in 0..2 {
                let key = call(app, "POST", &format!("{proxy}/api/v1/api-keys"));
                let key = key.json(json!({"name": "Till"})).bearer(&token).await;
                let location = key
                    .header("location")
                    .expect("a Location header")
                    .to_owned();
                assert!(location.starts_with("/keys/api/v1/api-keys/"), "{location}");
                assert_eq!(
                    call(app, "GET", &arriving(proxy, &location))
                        .bearer(&token)
                        .await
                        .status,
                    200
                );
            }
            for list in ["/api/v1/api-keys?limit=1", "/api/v1/audit-log?limit=1"] {
                let first = call(app, "GET", &format!("{proxy}{list}"))
                    .bearer(&token)
                    .await;
                let link = first.header("link").expect("a next page");
                let next = link
                    .strip_prefix('<')
                    .and_then(|link| link.strip_suffix(">; rel=\"next\""))
                    .expect(link);
                let second = call(app, "GET", &arriving(proxy, next))
                    .bearer(&token)
                    .await;
                assert_eq!(
                    (second.status, second.json().as_array().map(Vec::len)),
                    (200, Some(1)),
                    "{link}"
                );
                assert!(second.json() != first.json(), "{link}");
            }

            for (path, status, location) in [
                ("/docs", 308, "/keys/docs/"),
                ("/", 303, "/keys/dashboard"),
                (
                    "/dashboard",
                    303,
                    "/keys/dashboard/sign-in?next=%2Fdashboard",
                ),
                (
                    "/dashboard/keys?mode=test",
                    303,
                    "/keys/dashboard/sign-in?next=%2Fdashboard%2Fkeys%3Fmode%3Dtest",
                ),
            ] {
                let reply = call(app, "GET", &format!("{proxy}{path}"))
                    .header("accept", "text/html,*/*;q=0.8")
                    .await;
                assert_eq!(
                    (reply.status, reply.header("location")),
                    (status, Some(location)),
                    "{proxy}{path}"
                );
            }
            let htmx = call(app, "GET", &format!("{proxy}/dashboard/keys"))
                .header("hx-request", "true")
                .await;
            assert_eq!(
                htmx.header("hx-redirect"),
                Some("/keys/dashboard/sign-in?next=%2Fdashboard%2Fkeys")
            );
            let cross_site = call(app, "GET", &format!("{proxy}/dashboard/audit"))
                .header("sec-fetch-site", "cross-site");
            assert!(
                cross_site
                    .await
                    .body
                    .contains("content=\"0;url=/keys/dashboard/audit\"")
            );

            let setup = call(app, "GET", &format!("{proxy}/docs/swagger-initializer.js"))
                .await
                .body;
            assert!(setup.contains("\"url\": \"/keys/openapi.json\""), "{setup}");
            let document = call(app, "GET", &format!("{proxy}/openapi.json"))
                .await
                .json();
            assert_eq!(document["servers"], json!([{"url": "/keys"}]));
            let mut own: Value =
                serde_json::from_str(tollkey_server::openapi::json()).expect("JSON");
            assert_eq!(own["servers"], json!([{"url": "/"}]));
            own["servers"] = document["servers"].clone();
            assert_eq!(document, own, "only the servers differ");
        }
        for root in ["/keys", "/keys/", "/keys?a=b", "/"] {
            let reply = call(app, "GET", root).header("accept", "text/html").await;
            assert_eq!(
                (reply.status, reply.header("location")),
                (303, Some("/keys/dashboard")),
                "{root}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn request_is_the_same_with_and_without_the_prefix() {
    each_backend_with(BEHIND, async |app: &App| {
        let token = app.management_token("acme");
        let create = |path: &str| {
            let call = call(app, "POST", path)
                .json(json!({"name": "Till"}))
                .bearer(&token);
            call.header("idempotency-key", "0123456789abcdef")
        };
        let first = create("/keys/api/v1/api-keys").await;
        let again = create("/api/v1/api-keys").await;
        assert_eq!((first.status, again.status), (201, 201), "{again}");
        assert_eq!(again.header("idempotent-replayed"), Some("true"));
        assert!(again.body == first.body && again.header("location") == first.header("location"));
        let keys = call(app, "GET", "/keys/api/v1/api-keys")
            .bearer(&token)
            .await
            .json();
        assert_eq!(keys.as_array().map(Vec::len), Some(1));

        // The account API keeps its envelope, the gateway API its headers.
        let unknown = call(app, "GET", "/keys/v1/nothing").await;
        assert_eq!(
            (unknown.status, unknown.json()["error"]["code"].as_str()),
            (404, Some("NOT_FOUND"))
        );
        let denied = call(app, "GET", "/keys/api/v1/authz/auth-request").await;
        assert_eq!(
            (denied.status, denied.header("x-content-type-options")),
            (401, None),
            "{denied}"
        );
        let wrong_method = call(app, "PUT", "/keys/livez").await;
        assert_eq!(
            (wrong_method.status, wrong_method.header("allow")),
            (405, Some("GET, HEAD"))
        );
    })
    .await;
}

#[actix_web::test]
async fn routes_of_a_key_do_not_depend_on_the_prefix() {
    each_backend_with(BEHIND, async |app: &App| {
        let key = app
            .insert_key("acme", Family::Publishable, Mode::Live)
            .await;
        for (uri, status) in [
            ("/api/v1/storefront/products", 200),
            ("/keys/api/v1/storefront/products", 403),
            ("/keys/v1/storefront/products", 403),
        ] {
            for proxy in PROXIES {
                let request = call(app, "GET", &format!("{proxy}/api/v1/authz/auth-request"));
                let request = request
                    .header("x-original-uri", uri)
                    .header("x-original-method", "GET")
                    .bearer(&key);
                assert_eq!(request.await.status, status, "auth-request {proxy} {uri}");
                let request = call(app, "GET", &format!("{proxy}/api/v1/authz/forward-auth"));
                let request = request
                    .header("x-forwarded-uri", uri)
                    .header("x-forwarded-method", "GET")
                    .bearer(&key);
                assert_eq!(request.await.status, status, "forward-auth {proxy} {uri}");
                let request = call(
                    app,
                    "GET",
                    &format!("{proxy}/api/v1/authz/ext-authz/-{uri}"),
                )
                .bearer(&key);
                assert_eq!(request.await.status, status, "ext-authz {proxy} {uri}");
            }
            let verdict = app
                .verify(&key, json!({"method": "GET", "path": uri}))
                .await;
            assert_eq!(verdict["valid"], status == 200, "{uri}");
        }
    })
    .await;
}

#[actix_web::test]
async fn path_that_only_resembles_the_prefix_is_404() {
    each_backend_with(BEHIND, async |app: &App| {
        for path in [
            "/keys/keys/livez",
            "/keyslivez",
            "/keys2/livez",
            "/KEYS/livez",
            "/%6Beys/livez",
            "/keys%2Flivez",
            "/keys//livez",
            "//keys/livez",
            "/keys/../livez",
        ] {
            assert_eq!(call(app, "GET", path).await.status, 404, "{path}");
        }
        for path in ["/keys/livez", "/livez"] {
            assert_eq!(call(app, "GET", path).await.status, 200, "{path}");
        }
    })
    .await;
}

#[actix_web::test]
async fn server_without_a_prefix_has_paths_from_the_root() {
    for settings in [&[][..], &[("TOLLKEY_PUBLIC_URL", "https://example.com")]] {
        each_backend_with(settings, async |app: &App| {
            assert_eq!(call(app, "GET", "/keys/livez").await.status, 404);
            let created = app
                .post("/applications", json!({"name": "Store"}))
                .bearer(&app.management_token("acme"))
                .await;
            assert!(
                created
                    .header("location")
                    .expect("a Location header")
                    .starts_with("/api/v1/applications/"),
                "{created}"
            );
            assert_eq!(
                app.get("/openapi.json").await.body,
                tollkey_server::openapi::json()
            );
            let dashboard = app.get("/dashboard").await;
            assert_eq!(
                dashboard.header("location"),
                Some("/dashboard/sign-in?next=%2Fdashboard")
            );
        })
        .await;
    }
}

#[actix_web::test]
async fn root_redirects_browsers_to_the_dashboard() {
    each_backend(async |app: &App| {
        for accept in [
            "text/html",
            "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
            "*/*, text/html",
        ] {
            for method in ["GET", "HEAD"] {
                let reply = call(app, method, "/").header("accept", accept).await;
                assert_eq!(
                    (reply.status, reply.header("location")),
                    (303, Some("/dashboard")),
                    "{method} {accept}"
                );
                assert_eq!(reply.header("vary"), Some("Accept"));
            }
        }
        // reqwest always sends `Accept`.
        let without_accept = call(app, "GET", "/").hold_body().await.send_body().await;
        assert_eq!(without_accept.status, 404, "{without_accept}");
        for request in [
            call(app, "GET", "/").header("accept", "*/*"),
            call(app, "GET", "/").header("accept", "application/json"),
            call(app, "GET", "/").header("accept", "text/html;q=0, */*"),
            call(app, "GET", "/").header("accept", "text/htmlx"),
            call(app, "POST", "/").header("accept", "text/html"),
            call(app, "DELETE", "/").header("accept", "text/html"),
        ] {
            let reply = request.await;
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (404, "not_found"),
                "{reply}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn provider_redirects_browsers_to_a_path_with_the_prefix() {
    let provider = Provider::start().await;
    let mut settings = vec![("TOLLKEY_PUBLIC_URL", UNDER_PREFIX)];
    settings.extend(provider.settings()); // the first setting of a name counts
    each_backend_with(&settings, async |app: &App| {
        for proxy in PROXIES {
            let started = call(
                app,
                "GET",
                &format!("{proxy}/dashboard/sign-in/oidc?next=/dashboard/audit"),
            )
            .await;
            let url: reqwest::Url = started
                .header("location")
                .expect("a Location header")
                .parse()
                .expect("a URL");
            assert_eq!(
                url.origin().ascii_serialization(),
                provider.issuer,
                "a URL of another server has no prefix"
            );
            let back = format!("{UNDER_PREFIX}/dashboard/sign-in/callback");
            assert_eq!(parameter(&url, "redirect_uri"), back);
            let cookie = started.header("set-cookie").expect("a cookie").to_owned();
            assert!(
                cookie.starts_with("__Host-") && cookie.contains("; Path=/;"),
                "{cookie}"
            );
            let now = tollkey_core::Clock::now(&app.clock).as_second();
            let code =
                provider.sign_in(&url, Some(provider.key.token(&provider.claims(&url, now))));
            let state = parameter(&url, "state");
            let returned = call(
                app,
                "GET",
                &format!("{proxy}/dashboard/sign-in/callback?code={code}&state={state}"),
            );
            let returned = returned
                .header("cookie", cookie.split(';').next().expect("a cookie"))
                .await;
            assert_eq!(returned.status, 200, "{returned}");
            assert!(
                returned
                    .body
                    .contains("content=\"0;url=/keys/dashboard/audit\""),
                "{returned}"
            );
            let exchanged = provider.inner().requests.iter().any(|(path, _, body)| {
                let form = url_form(body);
                path == "/token"
                    && form
                        .iter()
                        .any(|(name, value)| name == "redirect_uri" && *value == back)
            });
            assert!(exchanged, "the code is exchanged with the same URL");
            let failed = call(
                app,
                "GET",
                &format!("{proxy}/dashboard/sign-in/callback?code=x&state=x"),
            )
            .await;
            let location = "/keys/dashboard/sign-in?next=%2Fdashboard%2Fkeys&failed=unknown";
            assert_eq!(
                (failed.status, failed.header("location")),
                (303, Some(location))
            );
        }
    })
    .await;
}

fn url_form(body: &str) -> Vec<(String, String)> {
    serde_urlencoded::from_str(body).unwrap_or_default()
}
