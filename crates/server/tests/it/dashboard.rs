//! The dashboard over plain HTTP: pages, forms and the cookie. The tests in a real browser are in `browser`.

use serde_json::{Value, json};

use crate::support::{App, Call, Reply, TOKEN_SIGN_IN, each_backend_with, without_secrets};

const TOKENS: &[(&str, &str)] = &[TOKEN_SIGN_IN];
/// A well-formed ID that does not exist.
const NOTHING: &str = "01a1fdf4-8ded-771c-a1fe-14ac36e62ac1";

type Fields<'a> = &'a [(&'a str, &'a str)];

/// A client that keeps the session cookie and sends `Sec-Fetch-Site` as a browser does.
struct Browser<'a> {
    app: &'a App,
    cookie: String,
}

impl<'a> Browser<'a> {
    async fn sign_in(app: &'a App, token: &str) -> Self {
        let reply = raw(app, "POST", "/dashboard/sign-in/token")
            .header("sec-fetch-site", "same-origin")
            .form(&form(&[("token", token), ("next", "/dashboard/keys")]))
            .await;
        assert_eq!(
            (reply.status, reply.header("location")),
            (303, Some("/dashboard/keys")),
            "{reply}"
        );
        let cookie = reply
            .header("set-cookie")
            .expect("a cookie")
            .split(';')
            .next()
            .expect("a pair")
            .to_owned();
        Self { app, cookie }
    }

    async fn merchant(app: &'a App, account: &str) -> Self {
        Self::sign_in(app, &app.management_token(account)).await
    }

    fn get(&self, path: &str) -> Call {
        raw(self.app, "GET", path)
            .header("cookie", &self.cookie)
            .header("sec-fetch-site", "same-origin")
    }

    fn post(&self, path: &str, fields: &[(&str, &str)]) -> Call {
        self.post_from(path, fields)
            .header("sec-fetch-site", "same-origin")
    }

    /// Sends a form without a header about its origin.
    fn post_from(&self, path: &str, fields: &[(&str, &str)]) -> Call {
        raw(self.app, "POST", path)
            .header("cookie", &self.cookie)
            .form(&form(fields))
    }

    /// Returns the page. Asserts status 200.
    async fn page(&self, path: &str) -> String {
        let reply = self.get(path).await;
        assert_eq!(reply.status, 200, "{path}: {reply}");
        reply.body
    }

    async fn hidden(&self, path: &str, name: &str) -> String {
        let page = self.page(path).await;
        let (_, rest) = page
            .split_once(&format!("name=\"{name}\" value=\""))
            .expect("that field");
        rest.split('"').next().expect("its value").to_owned()
    }

    /// Creates a key with the form. Returns its ID and the full key.
    async fn create_key(&self, fields: &[(&str, &str)]) -> (String, String) {
        let once = self.hidden("/dashboard/keys/new", "once").await;
        let mut all = vec![
            ("once", once.as_str()),
            ("mode", "test"),
            ("kind", "commerce"),
            ("expires", "never"),
        ];
        all.extend_from_slice(fields);
        let reply = self.post("/dashboard/keys/new", &all).await;
        assert_eq!(reply.status, 200, "{reply}");
        shown_key(&reply.body)
    }
}

fn raw(app: &App, method: &str, path: &str) -> Call {
    Call::to(app.running().address(), method, path)
}

fn form(fields: &[(&str, &str)]) -> String {
    serde_urlencoded::to_string(fields).expect("a form")
}

/// Reads the ID and the full key from the page that shows it.
fn shown_key(page: &str) -> (String, String) {
    let between = |before: &str, after: &str| {
        let (_, rest) = page
            .split_once(before)
            .unwrap_or_else(|| panic!("{before} on {}", without_secrets(page)));
        rest.split_once(after).expect("its end").0.to_owned()
    };
    (
        between("action=\"/dashboard/keys/", "\""),
        between("class=\"secret\" readonly value=\"", "\""),
    )
}

/// Returns the text of a page, without tags and repeated white space.
fn text_of(page: &str) -> String {
    let (_, main) = page.split_once("<main").expect("a main part");
    let mut text = String::new();
    for part in main.split('<') {
        text.push_str(part.split_once('>').map_or(part, |(_, text)| text));
        text.push(' ');
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Whether the response redirects to the sign-in page, with this return path.
fn redirects_to_sign_in(reply: &Reply, next: &str) -> bool {
    let sign_in = format!("/dashboard/sign-in?{}", form(&[("next", next)]));
    reply.status == 303 && reply.header("location") == Some(&sign_in)
}

/// All pages, with the placeholders `{key}`, `{application}` and `{service_key}` for IDs.
const PAGES: &[&str] = &[
    "/dashboard/keys",
    "/dashboard/keys/new",
    "/dashboard/keys/{key}",
    "/dashboard/keys/{key}/revoke",
    "/dashboard/keys/{key}/rotate",
    "/dashboard/applications",
    "/dashboard/applications/new",
    "/dashboard/applications/{application}",
    "/dashboard/applications/{application}/edit",
    "/dashboard/applications/{application}/disable",
    "/dashboard/applications/{application}/delete",
    "/dashboard/audit",
    "/dashboard/audit/export?format=csv",
    "/dashboard/audit/export?format=jsonl",
    "/dashboard/settings",
    "/dashboard/settings/service-keys/{service_key}/revoke",
    "/dashboard/account",
];

const FORMS: &[&str] = &[
    "/dashboard/keys/new",
    "/dashboard/keys/{key}/revoke",
    "/dashboard/keys/{key}/rotate",
    "/dashboard/keys/{key}/suspend",
    "/dashboard/keys/{key}/resume",
    "/dashboard/applications/new",
    "/dashboard/applications/{application}/edit",
    "/dashboard/applications/{application}/disable",
    "/dashboard/applications/{application}/enable",
    "/dashboard/applications/{application}/delete",
    "/dashboard/audit/verify",
    "/dashboard/settings/operating-model",
    "/dashboard/settings/service-keys",
    "/dashboard/settings/service-keys/{service_key}/revoke",
    "/dashboard/account",
    "/dashboard/sign-out",
];

struct Ids {
    key: String,
    application: String,
    service_key: String,
}

impl Ids {
    async fn of(app: &App, account: &str) -> Self {
        let token = app.management_token(account);
        Self {
            key: app.commerce_key(&token, json!({})).await.id,
            application: app.application(&token, "Production").await,
            service_key: app.service_key().await.id,
        }
    }

    fn fill(&self, path: &str) -> String {
        path.replace("{key}", &self.key)
            .replace("{application}", &self.application)
            .replace("{service_key}", &self.service_key)
    }
}

#[actix_web::test]
async fn request_without_session_redirects_to_sign_in_and_back() {
    each_backend_with(TOKENS, async |app: &App| {
        let ids = Ids::of(app, "acme").await;
        for path in PAGES {
            let path = ids.fill(path);
            let reply = raw(app, "GET", &path)
                .header("sec-fetch-site", "same-origin")
                .await;
            assert!(redirects_to_sign_in(&reply, &path), "{path}: {reply}");
            let reply = raw(app, "GET", &path).header("hx-request", "true").await;
            let sign_in = format!("/dashboard/sign-in?{}", form(&[("next", &path)]));
            assert_eq!(
                (reply.status, reply.header("hx-redirect")),
                (200, Some(sign_in.as_str())),
                "{path}"
            );
            // On a link from another site the browser withholds the cookie, so a page repeats the request.
            let reply = raw(app, "GET", &path)
                .header("sec-fetch-site", "cross-site")
                .await;
            let refresh = format!("http-equiv=\"refresh\" content=\"0;url={path}\"");
            assert!(
                reply.status == 200 && reply.body.contains(&refresh),
                "{path}: {reply}"
            );
        }
        for path in FORMS {
            let reply = raw(app, "POST", &ids.fill(path))
                .header("sec-fetch-site", "same-origin")
                .form("")
                .await;
            assert!(
                redirects_to_sign_in(&reply, "/dashboard"),
                "{path}: {reply}"
            );
        }
        // A form without a session redirects back to its own page after the sign-in.
        let own = format!("http://{}", app.running().address());
        for (from, next) in [
            (
                format!("{own}/dashboard/keys/new?application=x"),
                "/dashboard/keys/new?application=x",
            ),
            (format!("{own}/docs/"), "/dashboard"),
            (
                "http://evil.example/dashboard/keys/new".to_owned(),
                "/dashboard",
            ),
            ("/dashboard/keys/new".to_owned(), "/dashboard"),
            (own.clone(), "/dashboard"),
        ] {
            let sent = raw(app, "POST", "/dashboard/keys")
                .header("sec-fetch-site", "same-origin")
                .header("referer", &from);
            let reply = sent.form("").await;
            assert!(redirects_to_sign_in(&reply, next), "{from}: {reply}");
        }
        let made_up = raw(app, "GET", "/dashboard/keys")
            .header("cookie", "__Host-tollkey_session=0123456789abcdef");
        assert!(redirects_to_sign_in(&made_up.await, "/dashboard/keys"));
    })
    .await;
}

#[actix_web::test]
async fn pages_have_security_headers_and_no_inline_code() {
    each_backend_with(TOKENS, async |app: &App| {
        let ids = Ids::of(app, "acme").await;
        let browser = Browser::sign_in(app, &app.token(Some("acme"), &["operator"])).await;
        let mut pages: Vec<String> = PAGES.iter().map(|path| ids.fill(path)).collect();
        pages.extend(["/dashboard/sign-in", "/dashboard/nothing", "/dashboard/keys/nothing"].map(str::to_owned));
        for path in pages {
            let reply = browser.get(&path).await;
            let shown = ["content-security-policy", "x-frame-options", "referrer-policy", "cache-control"]
                .map(|name| reply.header(name).unwrap_or_default().to_owned());
            let policy = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; \
                          connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'";
            assert_eq!(shown, [policy, "DENY", "same-origin", "no-store"], "{path}");
            assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{path}");
            let page = reply.body;
            assert!(!page.contains(" style=") && !page.contains("<style") && !page.contains(" onclick="), "{path}");
        }
        let page = browser.page("/dashboard/keys").await;
        for name in ["style.css", "dashboard.js", "htmx.min.js", "icon.svg"] {
            let end = page.find(name).expect("a link to the file") + name.len();
            let start = page[..end].rfind('"').expect("the start of the URL") + 1;
            let reply = raw(app, "GET", &page[start..end]).await;
            assert_eq!(reply.status, 200, "{name}");
            assert_eq!(reply.header("cache-control"), Some("public, max-age=31536000, immutable"), "{name}");
            let other = raw(app, "GET", &format!("/dashboard/assets/000000000000/{name}")).await;
            assert_eq!((other.status, other.header("cache-control")), (200, Some("no-store")), "{name}");
        }
        assert_eq!(raw(app, "GET", "/dashboard/assets/000000000000/keys.html").await.status, 404);
    })
    .await;
}

/// The values of URL attributes of a page.
fn urls(page: &str) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    for (attribute, before) in [
        ("href", " href=\""),
        ("src", " src=\""),
        ("action", " action=\""),
        ("hx-get", " hx-get=\""),
        ("refresh", " content=\"0;url="),
    ] {
        for rest in page.split(before).skip(1) {
            let value = rest
                .split('"')
                .next()
                .expect("its end")
                .replace("&#38;", "&")
                .replace("&amp;", "&");
            found.push((attribute, value));
        }
    }
    found
}

#[actix_web::test]
async fn links_and_forms_stay_under_the_path_prefix() {
    let settings = [
        TOKEN_SIGN_IN,
        ("TOLLKEY_PUBLIC_URL", "https://example.com/keys"),
    ];
    each_backend_with(&settings, async |app: &App| {
        let ids = Ids::of(app, "acme").await;
        let token = app.management_token("acme");
        app.key(&token, &ids.application, json!({})).await;
        for number in 0..51 {
            app.commerce_key(&token, json!({"name": format!("Till {number}")}))
                .await;
            app.application(&token, &format!("Store {number}")).await;
        }
        // A proxy that forwards the prefix, and one that strips it.
        for proxy in ["/keys", ""] {
            let request = |method: &str, own: &str| raw(app, method, &format!("{proxy}{own}"));
            let own_form = |own: &str| request("POST", own).header("sec-fetch-site", "same-origin");
            let signed_in = app.token(Some("acme"), &["operator"]);
            let fields = [("token", signed_in.as_str()), ("next", "/dashboard/audit")];
            let reply = own_form("/dashboard/sign-in/token")
                .form(&form(&fields))
                .await;
            assert_eq!(
                (reply.status, reply.header("location")),
                (303, Some("/keys/dashboard/audit")),
                "{reply}"
            );
            let cookie = reply.header("set-cookie").expect("a cookie").to_owned();
            assert!(
                cookie.starts_with("__Host-") && cookie.ends_with("; Path=/"),
                "{cookie}"
            );
            let cookie = cookie.split(';').next().expect("a pair");
            let get = |own: &str| {
                request("GET", own)
                    .header("cookie", cookie)
                    .header("sec-fetch-site", "same-origin")
            };

            let mut pages: Vec<(String, String)> = Vec::new();
            let mut paths: Vec<String> = PAGES.iter().map(|path| ids.fill(path)).collect();
            paths.extend(
                [
                    "/dashboard/sign-in",
                    "/dashboard/sign-in?failed=unknown",
                    "/dashboard/nothing",
                ]
                .map(str::to_owned),
            );
            paths.push(format!("/dashboard/keys/{NOTHING}"));
            for path in paths {
                let page = get(&path).await.body;
                pages.push((path, page));
            }
            let crossing = request("GET", "/dashboard/keys")
                .header("sec-fetch-site", "cross-site")
                .await;
            pages.push(("a page that repeats the request".to_owned(), crossing.body));
            let hidden = |page: &str| {
                let (_, rest) = page.split_once("name=\"once\" value=\"").expect("a form");
                rest.split('"').next().expect("its value").to_owned()
            };
            let again = app.commerce_key(&token, json!({"name": "Again"})).await.id;
            for (path, fields) in [
                (
                    "/dashboard/keys/new",
                    &[
                        ("name", "New"),
                        ("mode", "test"),
                        ("kind", "commerce"),
                        ("expires", "never"),
                    ][..],
                ),
                ("/dashboard/keys/new", &[("name", "")]),
                (
                    &format!("/dashboard/keys/{again}/rotate"),
                    &[("overlap", "3600")],
                ),
                ("/dashboard/settings/service-keys", &[("name", "Gateway")]),
            ] {
                let page = get(&path.replace("/service-keys", "")).await.body;
                let once = hidden(&page);
                let mut fields = fields.to_vec();
                fields.push(("once", &once));
                let reply = own_form(path)
                    .header("cookie", cookie)
                    .form(&form(&fields))
                    .await;
                assert!([200, 400].contains(&reply.status), "{path}: {reply}");
                if reply.body.contains("curl -sS") {
                    let line = format!(
                        "curl -sS https://{}/keys/api/v1/whoami ",
                        app.running().address()
                    );
                    assert!(
                        reply.body.contains(&line),
                        "{}",
                        without_secrets(&reply.body)
                    );
                }
                pages.push((format!("POST {path}"), reply.body));
            }
            pages.push((
                "a rotated key".to_owned(),
                get(&format!("/dashboard/keys/{again}")).await.body,
            ));
            pages.push((
                "its form".to_owned(),
                get(&format!("/dashboard/keys/{again}/rotate")).await.body,
            ));
            let checked = own_form("/dashboard/audit/verify")
                .header("cookie", cookie)
                .form("")
                .await
                .body;
            pages.push(("the checked log".to_owned(), checked));

            let mut seen = std::collections::BTreeSet::new();
            for (path, page) in &pages {
                for (attribute, url) in urls(page) {
                    if url.starts_with('#') {
                        continue;
                    }
                    assert!(
                        url.starts_with("/keys/dashboard"),
                        "{attribute}={url} on {path}"
                    );
                    if !seen.insert((attribute, url.clone())) {
                        continue;
                    }
                    let own = url.strip_prefix("/keys").expect("the prefix");
                    if attribute == "action"
                        && !page.contains(&format!("method=\"get\" action=\"{url}\""))
                    {
                        let known = |form: &&str| {
                            let mut own = own.split('/');
                            let mut form = form.split('/');
                            form.by_ref()
                                .zip(own.by_ref())
                                .all(|(form, own)| form == own || form.starts_with('{'))
                                && form.next().is_none()
                                && own.next().is_none()
                        };
                        let sign_in = ["/dashboard/sign-in/token"];
                        assert!(FORMS.iter().chain(&sign_in).any(known), "{url} on {path}");
                        continue;
                    }
                    let reply = get(own).await;
                    assert_eq!(reply.status, 200, "{attribute}={url} on {path}: {reply}");
                }
            }
            assert!(seen.len() > 150, "{}", seen.len());
            let out = own_form("/dashboard/sign-out")
                .header("cookie", cookie)
                .form("")
                .await;
            assert_eq!(
                (
                    out.status,
                    out.header("location")
                        .is_some_and(|it| it.starts_with("/keys/dashboard/signed-out"))
                ),
                (303, true)
            );
            // The browser names the page of the form, with the prefix, in `Referer`.
            let from = format!(
                "http://{}/keys/dashboard/keys/new?application=x",
                app.running().address()
            );
            let rejected = own_form("/dashboard/keys/new")
                .header("referer", &from)
                .form("")
                .await;
            let sign_in =
                "/keys/dashboard/sign-in?next=%2Fdashboard%2Fkeys%2Fnew%3Fapplication%3Dx";
            assert_eq!(
                (rejected.status, rejected.header("location")),
                (303, Some(sign_in)),
                "{rejected}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn sign_in_never_redirects_to_another_host() {
    each_backend_with(TOKENS, async |app: &App| {
        for next in [
            "/dashboard/..//x",
            "/dashboard/%2e%2e//evil.example",
            "/dashboard/.%2E/%2e%2e//evil.example",
            "/dashboard//evil.example",
            "/dashboard/\\evil.example",
            "/dashboard@evil.example",
            "//evil.example/dashboard",
            "https://evil.example/dashboard/keys",
            "/dashboard/keys\r\nset-cookie: a=b",
            "/dashboard/nothing",
        ] {
            let fields = [("token", &*app.management_token("acme")), ("next", next)];
            let reply = raw(app, "POST", "/dashboard/sign-in/token")
                .header("sec-fetch-site", "same-origin");
            let reply = reply.form(&form(&fields)).await;
            assert_eq!(
                (reply.status, reply.header("location")),
                (303, Some("/dashboard/keys")),
                "{next:?}"
            );
            let page = raw(
                app,
                "GET",
                &format!("/dashboard/sign-in?{}", form(&[("next", next)])),
            )
            .await;
            assert!(
                page.body
                    .contains("name=\"next\" value=\"/dashboard/keys\""),
                "{next:?}: {page}"
            );
        }
        // The redirect to the sign-in page and the page for requests of other sites name no other host either.
        for path in [
            "/dashboard/..//evil.example",
            "/dashboard/%2e%2e//evil.example",
            "/dashboard//evil.example",
        ] {
            let reply = raw(app, "GET", path).await;
            assert!(
                redirects_to_sign_in(&reply, "/dashboard/keys") || reply.status == 404,
                "{path}: {reply}"
            );
            let reply = raw(app, "GET", path)
                .header("sec-fetch-site", "cross-site")
                .await;
            assert!(!reply.body.contains("evil"), "{path}: {reply}");
        }
    })
    .await;
}

#[actix_web::test]
async fn key_of_a_disabled_application_is_not_active() {
    each_backend_with(TOKENS, async |app: &App| {
        let browser = Browser::merchant(app, "acme").await;
        let token = app.management_token("acme");
        let (store, other) = (
            app.application(&token, "Store").await,
            app.application(&token, "Other").await,
        );
        let till = app.key(&token, &store, json!({})).await;
        let gone = app.key(&token, &store, json!({})).await;
        let path = format!("/applications/{store}/api-keys/{}", gone.id);
        assert_eq!(app.delete(&path).bearer(&token).await.status, 204);
        let elsewhere = app.key(&token, &other, json!({})).await;
        let commerce = app.commerce_key(&token, json!({})).await;
        let key_page = format!("/dashboard/keys/{}", till.id);
        let badge = "<span class=\"badge application_disabled\">Application disabled</span>";
        let listed = async |status: &str| {
            let page = browser
                .page(&format!("/dashboard/keys?status={status}"))
                .await;
            let keys = [&till, &gone, &elsewhere, &commerce]
                .map(|key| page.contains(&format!("/dashboard/keys/{}\"", key.id)));
            (keys, page.contains(badge))
        };
        assert_eq!(listed("active").await, ([true, false, true, true], false));
        assert_eq!(listed("application_disabled").await, ([false; 4], false));
        assert_eq!(
            browser
                .post(&format!("/dashboard/applications/{store}/disable"), &[])
                .await
                .status,
            303
        );
        for (status, expected) in [
            ("", ([true; 4], true)),
            ("active", ([false, false, true, true], false)),
            ("application_disabled", ([true, false, false, false], true)),
            ("revoked", ([false, true, false, false], false)),
            ("suspended", ([false; 4], false)),
            ("expired", ([false; 4], false)),
        ] {
            assert_eq!(listed(status).await, expected, "{status:?}");
        }
        let application = format!("/dashboard/applications/{store}");
        for path in [
            &key_page,
            &format!("{key_page}/revoke"),
            &application,
            &format!("{application}/delete"),
        ] {
            let page = browser.page(path).await;
            assert!(
                page.contains(badge) && !page.contains("class=\"badge active\""),
                "{path}: {page}"
            );
        }
        assert!(
            browser.page(&key_page).await.contains(">Revoke</a>"),
            "it can be revoked"
        );
        let page = text_of(&browser.page(&format!("{application}/delete")).await);
        assert!(
            page.contains(
                "1 key, already disabled with the application, will be permanently revoked"
            ),
            "{page}"
        );
        // The API returns the status of the key itself.
        let rows = app
            .get(&format!("/applications/{store}/api-keys"))
            .bearer(&token)
            .await
            .json();
        assert!(rows.to_string().contains("\"active\""), "{rows}");
        assert_eq!(
            browser
                .post(&format!("/dashboard/applications/{store}/enable"), &[])
                .await
                .status,
            303
        );
        assert_eq!(listed("active").await, ([true, false, true, true], false));
        assert_eq!(listed("application_disabled").await, ([false; 4], false));
    })
    .await;
}

#[actix_web::test]
async fn status_of_a_key_includes_its_ancestors() {
    each_backend_with(TOKENS, async |app: &App| {
        let browser = Browser::merchant(app, "acme").await;
        let create = async |name: &str, credential: &str| {
            let body = json!({"name": name, "environment": "test", "access": "secret"});
            let reply = app
                .call("POST", "/v1/account/api-keys")
                .json(body)
                .bearer(credential)
                .await;
            assert_eq!(reply.status, 201, "{reply}");
            let data = reply.json()["data"].clone();
            let id: tollkey_core::KeyId =
                data["id"].as_str().expect("an ID").parse().expect("an ID");
            (
                id.to_string(),
                data["value"].as_str().expect("a key").to_owned(),
            )
        };
        let (parent, parent_key) = create("Parent", &app.management_token("acme")).await;
        let (child, _) = create("Child", &parent_key).await;
        app.edit_key("acme", &parent, |key| {
            key.suspended_at = Some(key.created_at)
        })
        .await;
        let page = browser.page(&format!("/dashboard/keys/{child}")).await;
        assert!(
            page.contains("<span class=\"badge suspended\">suspended</span>"),
            "{page}"
        );
        let listed = browser.page("/dashboard/keys?status=suspended").await;
        assert!(
            listed.contains(&child) && listed.contains(&parent),
            "{listed}"
        );
        assert!(
            !browser
                .page("/dashboard/keys?status=active")
                .await
                .contains(&child)
        );
    })
    .await;
}

#[actix_web::test]
async fn successor_shows_the_rotation_that_created_it() {
    each_backend_with(TOKENS, async |app: &App| {
        let browser = Browser::merchant(app, "acme").await;
        let token = app.management_token("acme");
        let first = app.commerce_key(&token, json!({"name": "Till"})).await;
        let rotate = async |id: &str| {
            let reply = app
                .post(
                    &format!("/api-keys/{id}/rotate"),
                    json!({"overlap_seconds": 60}),
                )
                .bearer(&token)
                .await;
            assert_eq!(reply.status, 201, "{reply}");
            reply.json()["key_id"].as_str().expect("an ID").to_owned()
        };
        let second = rotate(&first.id).await;
        let third = rotate(&second).await;
        app.post(&format!("/api-keys/{third}/suspend"), json!({}))
            .bearer(&token)
            .await;
        let entries = async |id: &str| {
            let page = browser.page(&format!("/dashboard/keys/{id}")).await;
            let (_, table) = page
                .split_once("<h2 id=\"entries\">")
                .expect("the audit table");
            let actions = table
                .split("<code>api_key.")
                .skip(1)
                .map(|rest| rest.split('<').next().expect("an action").to_owned());
            (actions.collect::<Vec<_>>(), table.to_owned())
        };
        assert_eq!(entries(&first.id).await.0, ["rotated", "created"]);
        for (id, predecessor, expected) in [
            (&second, &first.id, &["rotated", "rotated"]),
            (&third, &second, &["suspended", "rotated"]),
        ] {
            let (actions, table) = entries(id).await;
            assert_eq!(actions, expected);
            let (_, last) = table.rsplit_once("<tr>").expect("a row");
            assert!(
                last.contains("Created by rotation of")
                    && last.contains(&format!("/dashboard/keys/{predecessor}\"")),
                "{last}"
            );
            assert_eq!(table.matches("Created by rotation of").count(), 1);
        }
        // The creation is not listed when newer entries fill the table.
        for _ in 0..10 {
            for step in ["resume", "suspend"] {
                app.post(&format!("/api-keys/{third}/{step}"), json!({}))
                    .bearer(&token)
                    .await;
            }
        }
        let (actions, table) = entries(&third).await;
        assert_eq!(
            (actions.len(), table.contains("Created by rotation of")),
            (20, false)
        );
    })
    .await;
}

#[actix_web::test]
async fn form_that_would_be_rejected_is_not_offered() {
    each_backend_with(TOKENS, async |app: &App| {
        let browser = Browser::sign_in(app, &app.token(Some("acme"), &["operator"])).await;
        let token = app.management_token("acme");
        let key = async |name: &str| app.commerce_key(&token, json!({"name": name})).await.id;
        let change = async |id: &str, step: &str, status: u16| {
            let reply = app
                .post(&format!("/api-keys/{id}/{step}"), json!({}))
                .bearer(&token)
                .await;
            assert_eq!(reply.status, status, "{reply}");
        };
        let (active, suspended, revoked) = (
            key("Active").await,
            key("Suspended").await,
            key("Revoked").await,
        );
        let rotated = key("Rotated").await;
        change(&suspended, "suspend", 200).await;
        change(&revoked, "revoke", 200).await;
        let reply = app
            .post(
                &format!("/api-keys/{rotated}/rotate"),
                json!({"overlap_seconds": 3600}),
            )
            .bearer(&token)
            .await;
        assert_eq!(reply.status, 201);
        let expired = app
            .commerce_key(
                &token,
                json!({"name": "Expired", "expires_at": app.in_seconds(60)}),
            )
            .await
            .id;
        let stale = browser
            .hidden(&format!("/dashboard/keys/{expired}/rotate"), "once")
            .await;
        app.clock.advance(std::time::Duration::from_secs(60));
        for (id, reason, offered) in [
            (&active, None, &["rotate", "suspend", "revoke"][..]),
            (
                &suspended,
                Some("The key is suspended."),
                &["resume", "revoke"],
            ),
            (&revoked, Some("The key is revoked."), &[]),
            (
                &rotated,
                Some("The key is already rotated."),
                &["suspend", "revoke"],
            ),
            (&expired, Some("The key has expired."), &[]),
        ] {
            let page = browser.page(&format!("/dashboard/keys/{id}")).await;
            for step in ["rotate", "suspend", "resume", "revoke"] {
                let is_offered = page.contains(&format!("/dashboard/keys/{id}/{step}\""));
                assert_eq!(is_offered, offered.contains(&step), "{step}: {page}");
            }
            let form = browser.page(&format!("/dashboard/keys/{id}/rotate")).await;
            assert_eq!(
                form.contains("name=\"overlap\""),
                reason.is_none(),
                "{form}"
            );
            assert!(reason.is_none_or(|reason| form.contains(reason)), "{form}");
        }
        // A form loaded before the expiration is rejected and not shown again.
        let late = browser
            .post(
                &format!("/dashboard/keys/{expired}/rotate"),
                &[("once", &stale), ("overlap", "0")],
            )
            .await;
        assert_eq!(late.status, 409, "{late}");
        assert!(
            late.body.contains("The key has expired.") && !late.body.contains("name=\"overlap\""),
            "{late}"
        );

        let page = browser
            .page(&format!("/dashboard/keys/{revoked}/revoke"))
            .await;
        assert!(
            page.contains("The key was revoked at") && !page.contains("name=\"confirm\""),
            "{page}"
        );
        let application = app.application(&token, "Store").await;
        assert_eq!(
            browser
                .post(
                    &format!("/dashboard/applications/{application}/disable"),
                    &[]
                )
                .await
                .status,
            303
        );
        let page = browser
            .page(&format!("/dashboard/applications/{application}/disable"))
            .await;
        assert!(
            page.contains("already disabled") && !page.contains("Disable application</button>"),
            "{page}"
        );
        let service_key = app.service_key().await.id;
        let path = format!("/dashboard/settings/service-keys/{service_key}/revoke");
        assert_eq!(browser.post(&path, &[]).await.status, 303);
        let page = browser.page(&path).await;
        assert!(
            page.contains("The service key was revoked at")
                && !page.contains("is rejected everywhere immediately"),
            "{page}"
        );
    })
    .await;
}

#[actix_web::test]
async fn exported_csv_has_no_formula_whatever_the_list_separator() {
    each_backend_with(TOKENS, async |app: &App| {
        let actor = "=1+1;=cmd()";
        let rules = app.settings.tokens.claims.clone();
        let token = tollkey_server::auth::jwt::NewToken {
            subject: actor.to_owned(),
            account: Some("acme".parse().expect("an account ID")),
            roles: Vec::new(),
            lifetime: jiff::SignedDuration::from_hours(1),
        };
        let secret = tollkey_server::config::Secret::new(crate::support::SECRET);
        let now = tollkey_core::Clock::now(&app.clock);
        let token =
            tollkey_server::auth::jwt::create_token(&secret, &rules, &token, now).expect("a token");
        for name in ["=1", "a;=HYPERLINK(1)", "a;\"=1\"", "a, +1", "-1", "@x"] {
            app.commerce_key(&token, json!({"name": name})).await;
        }
        let browser = Browser::merchant(app, "acme").await;
        let file = browser.get("/dashboard/audit/export?format=csv").await.body;
        for separator in [',', ';', '\t', '|'] {
            let mut reader = csv::ReaderBuilder::new();
            reader
                .has_headers(false)
                .flexible(true)
                .delimiter(u8::try_from(separator).expect("ASCII"));
            for row in reader.from_reader(file.as_bytes()).into_records() {
                for cell in &row.expect("a row") {
                    let shown = cell.trim_start_matches([' ', '"']);
                    assert!(
                        !shown.starts_with(['=', '+', '-', '@', '\t', '\r']),
                        "{cell:?} by {separator:?} in {file}"
                    );
                }
            }
        }
        let reader = csv::Reader::from_reader(file.as_bytes())
            .into_records()
            .collect::<Result<Vec<_>, _>>();
        let rows = reader.expect("RFC 4180");
        assert_eq!((rows.len(), &rows[0][4]), (6, "'=1+1;'=cmd()"));
        // JSON lines are not escaped.
        let lines = browser
            .get("/dashboard/audit/export?format=jsonl")
            .await
            .body;
        let first: Value =
            serde_json::from_str(lines.lines().next().expect("a line")).expect("JSON");
        assert_eq!(first["actor"]["id"], actor);
    })
    .await;
}

#[actix_web::test]
async fn form_of_another_site_is_rejected() {
    each_backend_with(TOKENS, async |app: &App| {
        let ids = Ids::of(app, "acme").await;
        let browser = Browser::sign_in(app, &app.token(Some("acme"), &["operator"])).await;
        let host = app.running().address().to_string();
        let before = browser.page("/dashboard/audit").await;
        let own = format!("http://{host}");
        for headers in [
            &[("sec-fetch-site", "cross-site")][..],
            &[("sec-fetch-site", "same-site")],
            &[("sec-fetch-site", "none")],
            &[("sec-fetch-site", "cross-site"), ("origin", own.as_str())],
            &[("origin", "https://evil.example")],
            &[("origin", "null")],
            &[("origin", "http://127.0.0.1")],
            &[],
        ] {
            for path in FORMS
                .iter()
                .chain(&["/dashboard/sign-in/token", "/dashboard/sign-in/link"])
            {
                let call = browser.post_from(
                    &ids.fill(path),
                    &[("confirm", "Commerce Server Key"), ("name", "x")],
                );
                let call = headers
                    .iter()
                    .fold(call, |call, (name, value)| call.header(name, value));
                let reply = call.await;
                assert_eq!(reply.status, 403, "{path} {headers:?}: {reply}");
                assert!(
                    reply
                        .body
                        .contains("The request was not sent by a page of this dashboard. Open the dashboard and send the form there."),
                    "{path}: {reply}"
                );
            }
        }
        assert_eq!(
            text_of(&browser.page("/dashboard/audit").await),
            text_of(&before),
            "nothing changed, and the session is intact"
        );
        // An older browser sends `Origin` only.
        let path = format!("/dashboard/keys/{}/suspend", ids.key);
        assert_eq!(
            browser
                .post_from(&path, &[])
                .header("origin", &own)
                .await
                .status,
            303
        );
    })
    .await;
}

#[actix_web::test]
async fn resources_of_another_account_are_not_found() {
    each_backend_with(TOKENS, async |app: &App| {
        let theirs = Ids::of(app, "globex").await;
        let browser = Browser::merchant(app, "acme").await;
        let ids = |id: &str| Ids {
            key: id.to_owned(),
            application: id.to_owned(),
            service_key: id.to_owned(),
        };
        let count = async || {
            app.get("/audit-log")
                .bearer(&app.management_token("globex"))
                .await
                .json()
        };
        let before = count().await;
        for ids in [&theirs, &ids(NOTHING), &ids("nonsense"), &ids("%2e%2e")] {
            for path in PAGES
                .iter()
                .filter(|path| path.contains("{key}") || path.contains("{application}"))
            {
                let reply = browser.get(&ids.fill(path)).await;
                assert_eq!(reply.status, 404, "{path}: {reply}");
                assert!(text_of(&reply.body).starts_with("Page not found"), "{path}");
            }
            let fields = [
                ("confirm", "Commerce Server Key"),
                ("name", "Mine now"),
                ("overlap", "0"),
            ];
            for path in FORMS
                .iter()
                .filter(|path| path.contains("{key}") || path.contains("{application}"))
            {
                let once = browser.hidden("/dashboard/keys/new", "once").await;
                let mut fields = fields.to_vec();
                fields.push(("once", &once));
                let reply = browser.post(&ids.fill(path), &fields).await;
                assert_eq!(reply.status, 404, "{path}: {reply}");
            }
        }
        assert_eq!(count().await, before, "nothing was changed");
        for path in [
            "/dashboard/keys",
            "/dashboard/applications",
            "/dashboard/audit",
        ] {
            let page = browser.page(path).await;
            assert!(
                !page.contains(&theirs.key) && !page.contains(&theirs.application),
                "{path}"
            );
        }
        let key = app
            .commerce_key(&app.management_token("acme"), json!({}))
            .await;
        assert!(
            !browser
                .page(&format!("/dashboard/audit?target_id={}", theirs.key))
                .await
                .contains("globex")
        );
        let filtered = browser
            .page(&format!(
                "/dashboard/keys?application={}",
                theirs.application
            ))
            .await;
        assert!(text_of(&filtered).contains("No matching keys") && !filtered.contains(&key.id));
    })
    .await;
}

#[actix_web::test]
async fn key_is_created_shown_once_and_revoked() {
    each_backend_with(TOKENS, async |app: &App| {
        let browser = Browser::merchant(app, "acme").await;
        assert!(text_of(&browser.page("/dashboard/keys").await).contains("No keys yet"));

        let once = browser.hidden("/dashboard/keys/new", "once").await;
        let fields = [
            ("once", once.as_str()),
            ("name", "Checkout server"),
            ("mode", "test"),
            ("kind", "commerce"),
            ("access", "chosen"),
            ("scope.links", "write"),
            ("scope.events", "read"),
            ("scope.sessions", "none"),
            ("expires", "30"),
            ("allowed_ips", "127.0.0.0/8, ::1\n203.0.113.7"),
        ];
        let created = browser.post("/dashboard/keys/new", &fields).await;
        assert_eq!(created.status, 200, "{created}");
        assert_eq!(created.header("cache-control"), Some("no-store"));
        let (id, text) = shown_key(&created.body);
        let line = format!("/api/v1/whoami -H 'Authorization: Bearer {text}'");
        assert!(created.body.contains(&line), "a command that uses the key");
        assert_eq!(app.code(&text).await, "ip_not_allowed");
        let verdict = app.verify(&text, json!({"client_ip": "203.0.113.7"})).await;
        assert_eq!(verdict["code"], "valid");
        assert_eq!(
            verdict["key"]["scopes"],
            json!(["links:read", "links:write", "events:read"])
        );
        assert_eq!(verdict["key"]["mode"], "test");

        // Sent again, the form creates no second key and shows no secret.
        let again = browser.post("/dashboard/keys/new", &fields).await;
        let key_page = format!("/dashboard/keys/{id}?done=once");
        assert_eq!(
            (again.status, again.header("location")),
            (303, Some(key_page.as_str()))
        );
        assert!(
            text_of(&browser.page(&key_page).await)
                .starts_with("id=\"content\" tabindex=\"-1\"> This form was sent twice.")
                || text_of(&browser.page(&key_page).await).contains("This form was sent twice.")
        );
        let keys = app
            .get("/api-keys")
            .bearer(&app.management_token("acme"))
            .await
            .json();
        assert_eq!(keys.as_array().map(Vec::len), Some(1));

        for path in [
            "/dashboard/keys",
            &key_page,
            "/dashboard/audit",
            &format!("/dashboard/keys/{id}/revoke"),
        ] {
            assert!(!browser.page(path).await.contains(&text), "{path}");
        }
        let page = text_of(&browser.page(&format!("/dashboard/keys/{id}")).await);
        for shown in [
            "Checkout server Test active",
            "links:read links:write events:read",
            "127.0.0.0/8, ::1/128",
        ] {
            assert!(page.contains(shown), "{shown} in {page}");
        }

        let page = text_of(
            &browser
                .page(&format!("/dashboard/keys/{id}?done=revoked"))
                .await,
        );
        assert!(
            !page.contains("Key revoked."),
            "a link cannot claim a change: {page}"
        );
        let path = format!("/dashboard/keys/{id}/revoke");
        for wrong in ["", "checkout server", "Checkout"] {
            let rejected = browser
                .post(&path, &[("confirm", wrong), ("reason", "lost <it>")])
                .await;
            assert_eq!(rejected.status, 400, "{wrong}: {rejected}");
            let page = rejected.body;
            assert!(
                page.contains("id=\"confirm-error\">is not the name of the key"),
                "{page}"
            );
            assert!(
                page.contains("name=\"reason\" value=\"lost &#60;it&#62;\""),
                "the input is kept: {page}"
            );
        }
        assert_eq!(
            app.verify(&text, json!({"client_ip": "::1"})).await["code"],
            "valid"
        );
        let revoked = browser
            .post(&path, &[("confirm", "Checkout server"), ("reason", "lost")])
            .await;
        assert_eq!(
            (revoked.status, revoked.header("location")),
            (
                303,
                Some(format!("/dashboard/keys/{id}?done=revoked").as_str())
            )
        );
        assert_eq!(
            app.verify(&text, json!({"client_ip": "::1"})).await["code"],
            "revoked"
        );
        let page = text_of(
            &browser
                .page(&format!("/dashboard/keys/{id}?done=revoked"))
                .await,
        );
        assert!(
            page.contains("Key revoked.") && page.contains(": lost"),
            "{page}"
        );
        assert!(
            !page.contains("Rotate") && !page.contains("Suspend"),
            "{page}"
        );
        let entries = app
            .get("/audit-log")
            .bearer(&app.management_token("acme"))
            .await
            .json();
        assert_eq!(entries[0]["action"], "api_key.revoked");
        assert_eq!(
            entries[0]["actor"],
            json!({"type": "merchant", "id": "user_1"})
        );
        assert_eq!(
            entries[0]["ip"],
            serde_json::Value::Null,
            "loopback is a trusted proxy, without a forwarded client IP"
        );
    })
    .await;
}

#[actix_web::test]
async fn form_creates_each_kind_of_key() {
    each_backend_with(TOKENS, async |app: &App| {
        let browser = Browser::merchant(app, "acme").await;
        let application = app
            .application(&app.management_token("acme"), "Store")
            .await;
        app.set_model("acme", "ecosystem").await;
        for (fields, prefix, expected) in [
            (
                vec![("kind", "secret"), ("name", "Backend"), ("mode", "live")],
                "sk_live_",
                json!(["live", null]),
            ),
            (
                vec![("kind", "publishable"), ("name", "Shop")],
                "pk_test_",
                json!(["test", null]),
            ),
            (
                vec![
                    ("kind", "application"),
                    ("name", "Till"),
                    ("application", application.as_str()),
                ],
                "ks_test_",
                json!(["test", null]),
            ),
            (
                vec![
                    ("kind", "commerce"),
                    ("name", "Scoped"),
                    ("merchants", "m-1, m-2"),
                    ("features", "tokens.list"),
                ],
                "ck_test_",
                json!(["test", ["m-1", "m-2"]]),
            ),
        ] {
            let once = browser.hidden("/dashboard/keys/new", "once").await;
            let mut all = vec![("once", once.as_str()), ("expires", "never")];
            all.extend(fields);
            if !all.iter().any(|(name, _)| *name == "mode") {
                all.push(("mode", "test"));
            }
            let reply = browser.post("/dashboard/keys/new", &all).await;
            assert_eq!(reply.status, 200, "{prefix}: {reply}");
            let (_, text) = shown_key(&reply.body);
            assert!(text.starts_with(prefix), "{prefix}");
            let state = app.running().state();
            let found = state
                .service
                .store
                .find_by_digest(tollkey_core::Digest::of_key(&text))
                .await
                .unwrap()
                .found
                .expect("the key");
            let key = found.key;
            assert_eq!(
                json!([key.mode.as_str(), key.restrictions.merchants]),
                expected,
                "{prefix}"
            );
        }
        let page = text_of(&browser.page("/dashboard/keys").await);
        for shown in [
            "Backend Secret",
            "Shop Publishable",
            "Till Application · Store",
            "Scoped Commerce",
        ] {
            assert!(page.contains(shown), "{shown} in {page}");
        }
    })
    .await;
}

#[actix_web::test]
async fn invalid_input_is_kept_and_the_field_named() {
    each_backend_with(TOKENS, async |app: &App| {
        let browser = Browser::merchant(app, "acme").await;
        let once = browser.hidden("/dashboard/keys/new", "once").await;
        let fields = [
            ("once", once.as_str()),
            ("name", ""),
            ("mode", "live"),
            ("kind", "application"),
            ("application", ""),
            ("access", "chosen"),
            ("expires", "on"),
            ("expires_on", "2001-01-01"),
            ("allowed_ips", "10.0.0.0/33 \"><script>"),
        ];
        let reply = browser.post("/dashboard/keys/new", &fields).await;
        assert_eq!(reply.status, 400);
        let page = reply.body;
        for field in ["name", "scopes", "expires", "allowed_ips"] {
            assert!(
                page.contains(&format!("id=\"{field}-error\"")),
                "{field} in {page}"
            );
        }
        for kept in [
            "name=\"mode\" value=\"live\" checked",
            "name=\"access\" value=\"chosen\" checked",
            "value=\"on\" selected",
            "value=\"2001-01-01\"",
            "10.0.0.0/33 &#34;&#62;&#60;script&#62;",
        ] {
            assert!(page.contains(kept), "{kept} in {page}");
        }
        assert!(
            page.contains(&format!("name=\"once\" value=\"{once}\"")),
            "the same form, so that it creates one key"
        );
        // The corrected form creates the key.
        let corrected = [
            ("once", once.as_str()),
            ("name", "n"),
            ("mode", "test"),
            ("kind", "commerce"),
            ("expires", "never"),
        ];
        assert_eq!(
            browser.post("/dashboard/keys/new", &corrected).await.status,
            200
        );
        for (path, fields) in [
            (
                "/dashboard/applications/new",
                vec![
                    ("once", once.as_str()),
                    ("name", " "),
                    ("description", "kept"),
                ],
            ),
            (
                "/dashboard/keys/new",
                vec![
                    ("once", "short"),
                    ("name", "kept"),
                    ("mode", "test"),
                    ("kind", "commerce"),
                    ("expires", "never"),
                ],
            ),
        ] {
            let reply = browser.post(path, &fields).await;
            assert!(
                reply.status == 400 && reply.body.contains("kept"),
                "{path}: {reply}"
            );
        }
        let large = raw(app, "POST", "/dashboard/keys/new").header("cookie", &browser.cookie);
        let large = large
            .header("sec-fetch-site", "same-origin")
            .form(&"x".repeat(65 * 1024))
            .await;
        assert_eq!(large.status, 413);
    })
    .await;
}

#[actix_web::test]
async fn markup_in_a_name_is_escaped() {
    each_backend_with(TOKENS, async |app: &App| {
        let markup = "<img src=x onerror=alert(1)>\"'</title></textarea>&amp;";
        let browser = Browser::sign_in(app, &app.token(Some("acme"), &["operator"])).await;
        let (id, _) = browser.create_key(&[("name", markup)]).await;
        let token = app.management_token("acme");
        let application = app.application(&token, markup).await;
        app.key(&token, &application, json!({})).await;
        let reply = app.post("/service-keys", json!({"name": markup})).bearer(&app.operator()).await;
        let service_key = reply.json()["id"].as_str().expect("an ID").to_owned();
        let ids = Ids { key: id, application, service_key };
        for path in PAGES.iter().filter(|path| !path.contains("export")) {
            let page = browser.page(&ids.fill(path)).await;
            assert!(!page.contains("<img src=x") && !page.contains("</title></textarea>"), "{path}: {page}");
        }
        for path in ["/dashboard/keys", "/dashboard/keys/{key}/revoke", "/dashboard/applications/{application}"] {
            let page = browser.page(&ids.fill(path)).await;
            let text = "&#60;img src=x onerror=alert(1)&#62;&#34;&#39;&#60;/title&#62;&#60;/textarea&#62;&#38;amp;";
            assert!(page.contains(text), "{path}: {page}");
        }
        let search = browser.page(&format!("/dashboard/keys?{}", form(&[("q", markup)]))).await;
        assert!(!search.contains("<img src=x") && search.contains(&ids.key), "{search}");
    })
    .await;
}

#[actix_web::test]
async fn key_list_is_filtered_and_paged_and_rejects_full_keys() {
    each_backend_with(TOKENS, async |app: &App| {
        let browser = Browser::merchant(app, "acme").await;
        let token = app.management_token("acme");
        for number in 0..60 {
            let mode = if number % 2 == 0 { "live" } else { "test" };
            app.clock.advance(std::time::Duration::from_secs(1));
            app.commerce_key(
                &token,
                json!({"name": format!("Till {number:02}"), "mode": mode}),
            )
            .await;
        }
        app.clock.advance(std::time::Duration::from_secs(1));
        let key = app.commerce_key(&token, json!({"name": "Gone"})).await;
        app.post(&format!("/api-keys/{}/revoke", key.id), json!({}))
            .bearer(&token)
            .await;
        let names = async |path: &str| {
            let page = browser.page(path).await;
            let name = |row: &str| {
                row.split_once('>')
                    .and_then(|(_, rest)| rest.split_once('<'))
                    .map(|(name, _)| name.to_owned())
            };
            let names = page
                .split("<th scope=\"row\"><a href=\"")
                .skip(1)
                .filter_map(name)
                .collect::<Vec<_>>();
            (names, page)
        };
        let (first, page) = names("/dashboard/keys").await;
        assert_eq!((first.len(), first[0].as_str()), (50, "Gone"));
        let (_, next) = page
            .split_once("<p class=\"more\"><a class=\"button\" href=\"")
            .expect("a link to the next page");
        let next = next
            .split('"')
            .next()
            .expect("its URL")
            .replace("&#38;", "&");
        let (second, page) = names(&next).await;
        assert_eq!((second.len(), second[10].as_str()), (11, "Till 00"));
        assert!(!page.contains("Older keys"));
        assert_eq!(
            names("/dashboard/keys?mode=test&q=till+0&status=&application=")
                .await
                .0
                .len(),
            5
        );
        assert_eq!(names("/dashboard/keys?status=revoked").await.0, ["Gone"]);
        assert_eq!(names("/dashboard/keys?q=no+such").await.0, [""; 0]);
        for wrong in [
            "mode=both",
            "status=gone",
            "application=x",
            "cursor=x",
            "page=2",
        ] {
            let reply = browser.get(&format!("/dashboard/keys?{wrong}")).await;
            let expected = if wrong == "page=2" { 200 } else { 400 };
            assert_eq!(reply.status, expected, "{wrong}: {reply}");
        }
        let pasted = browser
            .get(&format!("/dashboard/keys?q={}", key.text))
            .await;
        assert_eq!(
            (pasted.status, pasted.header("location")),
            (303, Some("/dashboard/keys?done=pasted"))
        );
        assert_eq!(
            names("/dashboard/keys?q=till_live_1").await.0,
            [""; 0],
            "a search by name is allowed"
        );
        for filter in ["target_id", "actor_id"] {
            let pasted = browser
                .get(&format!("/dashboard/audit?{filter}={}", key.text))
                .await;
            assert_eq!(
                (pasted.status, pasted.header("location")),
                (303, Some("/dashboard/audit?done=pasted"))
            );
        }
        // A script shows only a part of the page, so the response tells it to load the whole page.
        for (list, filter) in [("/dashboard/keys", "q"), ("/dashboard/audit", "target_id")] {
            let path = format!("{list}?{filter}={}", key.text);
            let pasted = browser.get(&path).header("hx-request", "true").await;
            let expected = format!("{list}?done=pasted");
            assert_eq!(
                (pasted.status, pasted.header("hx-redirect")),
                (200, Some(expected.as_str())),
                "{path}"
            );
        }
        assert!(
            browser
                .page("/dashboard/audit?done=pasted")
                .await
                .contains("Do not search for a full key")
        );
    })
    .await;
}

#[actix_web::test]
async fn notice_appears_only_on_the_page_of_its_change() {
    each_backend_with(TOKENS, async |app: &App| {
        let token = app.management_token("acme");
        let (key, application) = (
            app.commerce_key(&token, json!({})).await,
            app.application(&token, "Store").await,
        );
        let browser = Browser::sign_in(app, &app.token(Some("acme"), &["operator"])).await;
        let notices = [
            "account",
            "created",
            "deleted",
            "disabled",
            "enabled",
            "model",
            "once",
            "pasted",
            "resumed",
            "revoked",
            "service-key-revoked",
            "suspended",
            "updated",
        ];
        for (path, expected_notices) in [
            ("/dashboard/keys".to_owned(), &["account", "pasted"][..]),
            (format!("/dashboard/keys/{}", key.id), &["once", "resumed"]),
            ("/dashboard/applications".to_owned(), &["deleted"]),
            (
                format!("/dashboard/applications/{application}"),
                &["created", "enabled", "updated"],
            ),
            ("/dashboard/audit".to_owned(), &["pasted"]),
            (
                "/dashboard/settings".to_owned(),
                &["model", "once", "service-key-revoked"],
            ),
        ] {
            for notice in notices {
                let page = browser.page(&format!("{path}?done={notice}")).await;
                assert_eq!(
                    page.contains("class=\"notice good\""),
                    expected_notices.contains(&notice),
                    "{path}?done={notice}"
                );
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn old_application_is_named_and_preselected() {
    each_backend_with(TOKENS, async |app: &App| {
        let token = app.management_token("acme");
        let oldest = app.application(&token, "The oldest").await;
        let (key, other) = (
            app.key(&token, &oldest, json!({})).await,
            app.management_token("globex"),
        );
        for number in 0..100 {
            app.clock.advance(std::time::Duration::from_secs(1));
            app.application(&token, &format!("Newer {number}")).await;
        }
        let browser = Browser::sign_in(app, &token).await;
        let chosen = format!("<option value=\"{oldest}\" selected>The oldest</option>");
        for path in ["/dashboard/keys/new", "/dashboard/keys"] {
            assert!(
                browser
                    .page(&format!("{path}?application={oldest}"))
                    .await
                    .contains(&chosen),
                "{path}"
            );
        }
        for path in ["/dashboard/keys", &format!("/dashboard/keys/{}", key.id)] {
            assert!(
                text_of(&browser.page(path).await).contains("The oldest"),
                "{path}"
            );
        }
        // An application of another account is not named.
        let browser = Browser::sign_in(app, &other).await;
        assert!(
            !browser
                .page(&format!("/dashboard/keys/new?application={oldest}"))
                .await
                .contains("The oldest")
        );
    })
    .await;
}

#[actix_web::test]
async fn key_page_counts_usage_that_is_not_written_yet() {
    each_backend_with(TOKENS, async |app: &App| {
        let browser = Browser::merchant(app, "acme").await;
        let (id, text) = browser.create_key(&[("name", "Till")]).await;
        let service = &app.running().state().service;
        for uses in 1..4 {
            assert_eq!(app.code(&text).await, "valid");
            if uses == 1 {
                service.flush_usage().await;
            } else {
                let _ = service.verifier.collect_usage();
            }
            let page = text_of(&browser.page(&format!("/dashboard/keys/{id}")).await);
            assert!(
                page.contains(&format!("{uses} allowed, 0 denied")),
                "{page}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn key_is_suspended_resumed_and_rotated() {
    each_backend_with(TOKENS, async |app: &App| {
        let browser = Browser::merchant(app, "acme").await;
        let (id, text) = browser.create_key(&[("name", "Till")]).await;
        for (step, code) in [("suspend", "suspended"), ("resume", "valid")] {
            assert_eq!(
                browser
                    .post(&format!("/dashboard/keys/{id}/{step}"), &[])
                    .await
                    .status,
                303
            );
            assert_eq!(app.code(&text).await, code);
        }
        let path = format!("/dashboard/keys/{id}/rotate");
        let once = browser.hidden(&path, "once").await;
        let rejected = browser
            .post(&path, &[("once", &once), ("overlap", "-1")])
            .await;
        assert!(
            rejected.status == 400 && rejected.body.contains("overlap-error"),
            "{rejected}"
        );
        let fields = [("once", once.as_str()), ("overlap", "3600")];
        let created = browser.post(&path, &fields).await;
        assert_eq!(created.status, 200, "{created}");
        let (successor, new_text) = shown_key(&created.body);
        let again = browser.post(&path, &fields).await;
        assert_eq!(
            (again.status, again.header("location")),
            (
                303,
                Some(format!("/dashboard/keys/{successor}?done=once").as_str())
            )
        );
        assert_eq!(
            (app.code(&text).await, app.code(&new_text).await),
            ("valid".to_owned(), "valid".to_owned())
        );
        let page = text_of(&browser.page(&format!("/dashboard/keys/{id}")).await);
        assert!(page.contains("This key has not been used since."), "{page}");
        app.clock.advance(std::time::Duration::from_secs(60));
        assert_eq!(app.code(&text).await, "valid");
        app.running().state().service.flush_usage().await;
        let page = text_of(&browser.page(&format!("/dashboard/keys/{id}")).await);
        assert!(page.contains("This key is still in use"), "{page}");
        assert!(
            page.contains("allowed, 1 denied") || page.contains("allowed, 0 denied"),
            "{page}"
        );
        app.clock.advance(std::time::Duration::from_secs(3540));
        assert_eq!(app.code(&text).await, "expired");
        // Only commerce keys can be rotated.
        let sk = browser
            .create_key(&[("kind", "secret"), ("name", "Backend")])
            .await;
        let _ = sk;
    })
    .await;
}

#[actix_web::test]
async fn forms_manage_the_lifecycle_of_an_application() {
    each_backend_with(TOKENS, async |app: &App| {
        let browser = Browser::merchant(app, "acme").await;
        assert!(
            text_of(&browser.page("/dashboard/applications").await).contains("No applications yet")
        );
        let once = browser.hidden("/dashboard/applications/new", "once").await;
        let fields = [
            ("once", once.as_str()),
            ("name", "Store"),
            ("description", "What customers see"),
        ];
        let created = browser.post("/dashboard/applications/new", &fields).await;
        let location = created.header("location").expect("a page").to_owned();
        let again = browser.post("/dashboard/applications/new", &fields).await;
        assert_eq!(
            (created.status, again.header("location")),
            (303, Some(location.as_str()))
        );
        let other = browser.hidden("/dashboard/applications/new", "once").await;
        let taken = browser
            .post(
                "/dashboard/applications/new",
                &[("once", &other), ("name", "Store")],
            )
            .await;
        assert!(
            taken.status == 409 && taken.body.contains("role=\"alert\""),
            "{taken}"
        );
        assert!(
            taken.body.contains("aria-describedby=\"name-error\"")
                && taken.body.contains("id=\"name-error\""),
            "{taken}"
        );

        let path = location.split('?').next().expect("a path");
        let id = path.rsplit('/').next().expect("an ID");
        let key = app.key(&app.management_token("acme"), id, json!({})).await;
        let page = text_of(&browser.page(path).await);
        assert!(
            page.contains("Store enabled") && page.contains("Checkout"),
            "{page}"
        );
        let edited = browser
            .post(
                &format!("{path}/edit"),
                &[("name", "Shop"), ("description", "")],
            )
            .await;
        assert_eq!(edited.status, 303, "{edited}");
        let page = text_of(&browser.page(&format!("{path}/disable")).await);
        assert!(
            page.contains("Disable Shop ?") && page.contains("1 key will be rejected everywhere"),
            "{page}"
        );
        assert_eq!(
            browser.post(&format!("{path}/disable"), &[]).await.status,
            303
        );
        assert_eq!(app.code(&key.text).await, "application_disabled");
        assert_eq!(
            browser.post(&format!("{path}/enable"), &[]).await.status,
            303
        );
        assert_eq!(app.code(&key.text).await, "valid");
        let rejected = browser
            .post(&format!("{path}/delete"), &[("confirm", "Store")])
            .await;
        assert!(
            rejected.status == 400 && rejected.body.contains("confirm-error"),
            "{rejected}"
        );
        assert_eq!(app.code(&key.text).await, "valid");
        assert_eq!(
            browser
                .post(&format!("{path}/delete"), &[("confirm", "Shop")])
                .await
                .status,
            303
        );
        assert_eq!(app.code(&key.text).await, "revoked");
        assert_eq!(browser.get(path).await.status, 404);
    })
    .await;
}

#[actix_web::test]
async fn audit_log_is_filtered_verified_and_exported() {
    each_backend_with(TOKENS, async |app: &App| {
        let browser = Browser::sign_in(app, &app.token(Some("acme"), &[])).await;
        let token = app.management_token("acme");
        let key = app.commerce_key(&token, json!({"name": "=cmd()"})).await;
        app.post(&format!("/api-keys/{}/suspend", key.id), json!({}))
            .bearer(&token)
            .await;
        app.application(&token, "Store").await;
        app.commerce_key(&app.management_token("globex"), json!({}))
            .await;

        let all: Value = app.get("/audit-log").bearer(&token).await.json();
        let lines = browser.get("/dashboard/audit/export?format=jsonl").await;
        assert_eq!(
            lines.header("content-disposition"),
            Some("attachment; filename=\"audit-log.jsonl\"")
        );
        let read: Vec<Value> = lines
            .body
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        assert_eq!(Value::from(read), all);
        let csv = browser
            .get(&format!(
                "/dashboard/audit/export?format=csv&target_id={}",
                key.id
            ))
            .await;
        let csv = csv.body;
        let rows: Vec<&str> = csv.split("\r\n").collect();
        assert_eq!(rows.len(), 4, "{csv}");
        assert!(
            rows[0].starts_with("seq,occurred_at,action,actor_type,actor_id,target_type"),
            "{csv}"
        );
        assert!(
            rows[1]
                .starts_with("2,2026-01-01T00:00:00Z,api_key.suspended,merchant,user_1,api_key,"),
            "{csv}"
        );
        assert_eq!(
            browser
                .get("/dashboard/audit/export?format=xml")
                .await
                .status,
            400
        );

        let page = text_of(
            &browser
                .page(
                    "/dashboard/audit?action=application.created&since=2020-01-01&until=2999-01-01",
                )
                .await,
        );
        let (_, rows) = page.split_once("Details").expect("a table");
        assert!(
            rows.contains("application.created") && !rows.contains("api_key"),
            "{page}"
        );
        assert!(
            text_of(&browser.page("/dashboard/audit?until=2020-01-01").await)
                .contains("No matching entries")
        );
        assert_eq!(
            browser.get("/dashboard/audit?since=yesterday").await.status,
            400
        );

        let checked = text_of(&browser.post("/dashboard/audit/verify", &[]).await.body);
        assert!(
            checked.contains("The audit log is intact. It has 3 entries"),
            "{checked}"
        );
        app.database.sql(
            "UPDATE audit_log SET actor_id = 'somebody else' WHERE account_id = 'acme' AND seq = 2",
        );
        let checked = text_of(&browser.post("/dashboard/audit/verify", &[]).await.body);
        assert!(
            checked.contains("not intact. entry 2 of account acme was changed"),
            "{checked}"
        );
    })
    .await;
}

#[actix_web::test]
async fn only_operators_choose_accounts_and_change_settings() {
    each_backend_with(TOKENS, async |app: &App| {
        let operator = Browser::sign_in(app, &app.operator()).await;
        let sent = operator.get("/dashboard/keys").await;
        assert_eq!(
            (sent.status, sent.header("location")),
            (303, Some("/dashboard/account"))
        );
        let rejected = operator
            .post("/dashboard/account", &[("account", "a b")])
            .await;
        assert!(
            rejected.status == 400 && rejected.body.contains("value=\"a b\""),
            "{rejected}"
        );
        assert_eq!(
            operator
                .post("/dashboard/account", &[("account", "acme")])
                .await
                .status,
            303
        );
        assert!(operator.page("/dashboard/keys").await.contains(">acme</a>"));
        let set = operator
            .post(
                "/dashboard/settings/operating-model",
                &[("account", "acme"), ("operating_model", "ecosystem")],
            )
            .await;
        assert_eq!(set.status, 303, "{set}");
        let model = app
            .get("/accounts/acme")
            .bearer(&app.operator())
            .await
            .json();
        assert_eq!(model["operating_model"], "ecosystem");
        let wrong = operator
            .post(
                "/dashboard/settings/operating-model",
                &[("account", "acme"), ("operating_model", "x")],
            )
            .await;
        assert_eq!(wrong.status, 400);
        let once = operator.hidden("/dashboard/settings", "once").await;
        let nameless = operator
            .post(
                "/dashboard/settings/service-keys",
                &[("once", &once), ("name", "")],
            )
            .await;
        assert!(
            nameless.status == 400 && nameless.body.contains("name-error"),
            "{nameless}"
        );
        let fields = [("once", once.as_str()), ("name", "Gateway")];
        let created = operator
            .post("/dashboard/settings/service-keys", &fields)
            .await;
        let page = created.body;
        let (_, text) = page
            .split_once("readonly value=\"")
            .expect("the service key");
        let text = text.split('"').next().expect("the service key");
        assert!(text.starts_with("tks_"));
        assert_eq!(
            operator
                .post("/dashboard/settings/service-keys", &fields)
                .await
                .status,
            303
        );
        assert!(!operator.page("/dashboard/settings").await.contains(text));
        let verifies = async || {
            app.post("/verify", json!({"key": "x"}))
                .bearer(text)
                .await
                .status
        };
        assert_eq!(verifies().await, 200);
        let keys = app
            .get("/service-keys")
            .bearer(&app.operator())
            .await
            .json();
        assert_eq!(keys.as_array().map(Vec::len), Some(1));
        let path = format!(
            "/dashboard/settings/service-keys/{}/revoke",
            keys[0]["id"].as_str().expect("an ID")
        );
        assert!(text_of(&operator.page(&path).await).contains("Revoke the service key Gateway"));
        assert_eq!(operator.post(&path, &[]).await.status, 303);
        assert_eq!(verifies().await, 401);

        let merchant = Browser::merchant(app, "acme").await;
        assert!(
            !merchant
                .page("/dashboard/settings")
                .await
                .contains("Service keys")
        );
        for (path, fields) in [
            (
                "/dashboard/settings/operating-model",
                &[("operating_model", "platform")][..],
            ),
            (
                "/dashboard/settings/service-keys",
                &[("once", once.as_str()), ("name", "Mine")],
            ),
            (&path, &[]),
            ("/dashboard/account", &[("account", "globex")]),
        ] {
            assert_eq!(merchant.post(path, fields).await.status, 403, "{path}");
        }
        assert_eq!(merchant.get("/dashboard/account").await.status, 403);
        assert_eq!(merchant.get(&path).await.status, 403);
        let model = app
            .get("/accounts/acme")
            .bearer(&app.operator())
            .await
            .json();
        assert_eq!(model["operating_model"], "ecosystem");
        assert!(
            merchant
                .page("/dashboard/keys")
                .await
                .contains("<span class=\"account\">acme</span>")
        );
    })
    .await;
}

#[actix_web::test]
async fn form_applies_only_to_the_account_it_was_loaded_for() {
    each_backend_with(TOKENS, async |app: &App| {
        let operator = Browser::sign_in(app, &app.operator()).await;
        let manage = async |account: &str| {
            assert_eq!(
                operator
                    .post("/dashboard/account", &[("account", account)])
                    .await
                    .status,
                303
            );
        };
        let forms: [(&str, &str, Fields<'_>); 3] = [
            (
                "/dashboard/keys/new",
                "/dashboard/keys/new",
                &[
                    ("name", "Meant for acme"),
                    ("mode", "live"),
                    ("kind", "secret"),
                    ("expires", "never"),
                ],
            ),
            (
                "/dashboard/applications/new",
                "/dashboard/applications/new",
                &[("name", "Meant for acme")],
            ),
            (
                "/dashboard/settings",
                "/dashboard/settings/operating-model",
                &[("operating_model", "ecosystem")],
            ),
        ];
        for (page, action, fields) in forms {
            manage("acme").await;
            let name = if action.ends_with("model") {
                "account"
            } else {
                "once"
            };
            let hidden = operator.hidden(page, name).await;
            let mut fields = fields.to_vec();
            fields.push((name, &hidden));
            // The account is switched in another tab.
            manage("globex").await;
            let rejected = operator.post(action, &fields).await;
            assert_eq!(
                rejected.status,
                403,
                "{action}: {}",
                without_secrets(&rejected.body)
            );
            assert!(
                text_of(&rejected.body).contains("another account"),
                "{action}: {}",
                text_of(&rejected.body)
            );
            let log = app
                .get("/audit-log")
                .bearer(&app.management_token("globex"))
                .await
                .json();
            assert_eq!(log, json!([]), "{action}: the other account is unchanged");
            manage("acme").await;
            let done = operator.post(action, &fields).await;
            assert!(
                [200, 303].contains(&done.status),
                "{action}: {}",
                done.status
            );
        }
        let log = app
            .get("/audit-log")
            .bearer(&app.management_token("acme"))
            .await
            .json();
        assert_eq!(log.as_array().map(Vec::len), Some(3));
    })
    .await;
}

#[actix_web::test]
async fn application_forms_count_only_its_active_keys() {
    each_backend_with(TOKENS, async |app: &App| {
        let browser = Browser::merchant(app, "acme").await;
        let token = app.management_token("acme");
        let id = app.application(&token, "Store").await;
        let old = app.key(&token, &id, json!({})).await;
        for _ in 0..101 {
            let key = app.key(&token, &id, json!({})).await;
            let path = format!("/dashboard/keys/{}/revoke", key.id);
            assert_eq!(
                browser.post(&path, &[("confirm", "Checkout")]).await.status,
                303
            );
        }
        for what in ["disable", "delete"] {
            let page = text_of(
                &browser
                    .page(&format!("/dashboard/applications/{id}/{what}"))
                    .await,
            );
            assert!(
                page.contains("rejected everywhere immediately")
                    && page.contains(&old.text[old.text.len() - 4..]),
                "{page}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn reused_form_gets_a_new_idempotency_key() {
    each_backend_with(TOKENS, async |app: &App| {
        let browser = Browser::merchant(app, "acme").await;
        let once = browser.hidden("/dashboard/applications/new", "once").await;
        let path = "/dashboard/applications/new";
        assert_eq!(
            browser
                .post(path, &[("once", &once), ("name", "One")])
                .await
                .status,
            303
        );
        let other = browser
            .post(path, &[("once", &once), ("name", "Two")])
            .await;
        assert_eq!(other.status, 422, "{other}");
        assert!(
            other.body.contains("value=\"Two\"") && !other.body.contains(&once),
            "{other}"
        );
        assert!(!other.body.contains("Idempotency-Key"), "{other}");
    })
    .await;
}

#[actix_web::test]
async fn percent_encoded_cookie_name_is_ignored() {
    each_backend_with(TOKENS, async |app: &App| {
        let browser = Browser::merchant(app, "acme").await;
        let (_, value) = browser.cookie.split_once('=').expect("a pair");
        // Any sub-domain can set these cookies, because the names do not begin with `__Host-`.
        for name in [
            "%5F%5FHost-tollkey_session",
            "__Host-tollkey%5Fsession",
            "__Host%2Dtollkey_session",
        ] {
            let planted = raw(app, "GET", "/dashboard/keys")
                .header("cookie", format!("{name}={value}"))
                .await;
            assert!(
                redirects_to_sign_in(&planted, "/dashboard/keys"),
                "{name}: {}",
                planted.status
            );
            let both = format!("{name}=0123456789abcdef; {}; =; %ff", browser.cookie);
            assert_eq!(
                raw(app, "GET", "/dashboard/keys")
                    .header("cookie", &both)
                    .await
                    .status,
                200,
                "{name}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn nul_in_a_filter_causes_no_server_error() {
    each_backend_with(TOKENS, async |app: &App| {
        let browser = Browser::merchant(app, "acme").await;
        for path in [
            "/dashboard/keys?q=a%00b",
            "/dashboard/audit?target_id=a%00b",
            "/dashboard/audit?actor_id=a%00b",
            "/dashboard/audit/export?format=csv&actor_id=a%00b",
        ] {
            let status = browser.get(path).await.status;
            assert!([200, 400].contains(&status), "{path}: {status}");
        }
    })
    .await;
}

#[actix_web::test]
async fn sign_in_link_exists_in_development_mode_only() {
    each_backend_with(TOKENS, async |app: &App| {
        assert_eq!(
            raw(app, "GET", "/dashboard/sign-in/link?code=x")
                .await
                .status,
            404
        );
    })
    .await;
}
