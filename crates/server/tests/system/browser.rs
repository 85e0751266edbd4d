//! The dashboard in a browser: user scenarios on a server in development mode. Where no Chromium is installed they are
//! skipped with a message; with `TOLLKEY_TEST_REQUIRE_BROWSER=1` that is a failure.

mod accessibility;
mod driver;
mod prefix;

use std::{fs, path::Path};

use actix_web::{App, HttpResponse, HttpServer, rt, web};
use serde_json::{Value, json};
use thirtyfour::prelude::*;
use tollkey_store::testing::Database;

use self::driver::{Browser, wait_for};
use crate::{
    binary::{Server, Tollkey, member},
    support::Key,
};

const ACCOUNT: &str = "acme";

struct World {
    browser: Browser,
    server: Server,
    tollkey: Tollkey,
    database: Database,
    token: String,
}

impl World {
    /// Starts a server and a browser. Returns `None` where no browser is installed.
    async fn begin() -> Option<Self> {
        let browser = Browser::start().await?;
        let database = Database::sqlite();
        let tollkey = Tollkey::development().with("DATABASE_URL", database.url());
        let server = tollkey.serve().await;
        let token = tollkey.output_of(&["token", "--account", ACCOUNT]).await;
        Some(Self {
            browser,
            server,
            tollkey,
            database,
            token,
        })
    }

    /// [`World::begin`], then signs in with the printed link.
    async fn signed_in() -> Option<Self> {
        let world = Self::begin().await?;
        world.browser.open(&world.link()).await;
        world.browser.arrives("/dashboard/keys").await;
        Some(world)
    }

    async fn end(self) {
        self.browser.close().await;
        self.server.stop().await;
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.server.address)
    }

    async fn open(&self, path: &str) {
        self.browser.open(&self.url(path)).await;
    }

    fn link(&self) -> String {
        let stdout = self.server.stdout();
        let line = stdout
            .lines()
            .find_map(|line| line.strip_prefix("Dashboard:"))
            .expect("the link is printed");
        line.trim().to_owned()
    }

    async fn sign_in_with(&self, token: &str) {
        self.browser.fill("token", token).await;
        self.browser.press("Sign in with a token").await;
    }

    async fn commerce_key(&self, name: &str) -> Key {
        let body = json!({"name": name, "mode": "test"});
        let reply = self
            .server
            .post("/api-keys", body)
            .bearer(&self.token)
            .await;
        assert_eq!(reply.status, 201, "{reply}");
        Key {
            id: member(&reply, "key_id"),
            text: member(&reply, "api_key"),
        }
    }

    async fn status_of(&self, key: &str) -> u16 {
        self.server.get("/whoami").bearer(key).await.status
    }

    async fn keys(&self) -> Vec<Value> {
        let reply = self
            .server
            .get("/api-keys?scope=commerce")
            .bearer(&self.token)
            .await;
        reply.json().as_array().expect("a list").clone()
    }

    /// Creates a key in the dashboard and stays on the page that shows it. Returns the full key.
    async fn create_key(&self, name: &str) -> String {
        let browser = &self.browser;
        self.open("/dashboard/keys/new").await;
        browser.fill("name", name).await;
        browser.press("Create key").await;
        browser.property("#secret", "value").await
    }

    /// Confirms that the key is stored and leaves its page. Returns the ID of the key.
    async fn store_secret(&self) -> String {
        let form = "form:has([data-acknowledge])";
        let action = self.browser.property(form, "action").await;
        let id = action.rsplit('/').next().unwrap_or_default();
        self.browser.click("[data-acknowledge]").await;
        self.browser.press("Done").await;
        // The form adds `?`. The path of the page with the secret can begin with that of the key, too.
        self.browser
            .arrives(&format!("/dashboard/keys/{id}?"))
            .await;
        id.to_owned()
    }
}

#[actix_web::test]
async fn first_key_is_created_used_and_revoked() {
    let Some(world) = World::begin().await else {
        return;
    };
    let browser = &world.browser;
    let link = world.link();
    browser.open(&link).await;
    browser.arrives("/dashboard/keys").await;
    assert_eq!(
        browser.place().await,
        "/dashboard/keys",
        "the code is removed from the URL"
    );
    assert_eq!(browser.title().await, "API keys · Tollkey");
    browser.reads("main", "No keys yet").await;
    let cookies = browser
        .driver()
        .get_all_cookies()
        .await
        .expect("the cookies");
    let session = cookies
        .iter()
        .find(|cookie| cookie.name == "__Host-tollkey_session")
        .expect("a session");
    assert_eq!(
        (session.http_only, session.secure, session.expiry),
        (Some(true), Some(true), None)
    );
    assert_eq!(session.same_site, Some(SameSite::Strict));

    browser.press("Create test key").await;
    browser.arrives("/dashboard/keys/new").await;
    assert_eq!(
        browser.property("[name=mode][value=test]", "checked").await,
        "true",
        "test is preselected"
    );
    browser.fill("name", "Checkout server").await;
    browser.press("Create key").await;
    let secret = browser.property("#secret", "value").await;
    assert!(
        secret.starts_with("ck_test_") && secret.len() == 40,
        "a test key"
    );
    let line = browser.property("#line", "value").await;
    assert!(
        line == format!(
            "curl -sS {} -H 'Authorization: Bearer {secret}'",
            world.url("/api/v1/whoami")
        )
    );
    assert_eq!(world.status_of(&secret).await, 200);

    let permissions = json!({"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]});
    browser
        .dev_tools("Browser.grantPermissions", permissions)
        .await;
    browser.press("Copy").await;
    browser.reads("[data-copy-status]", "Copied.").await;
    let read = "navigator.clipboard.readText().then(arguments[0], arguments[0])";
    assert!(
        browser.run_async(read, vec![]).await == json!(secret),
        "the clipboard has the key"
    );

    let here = browser.place().await;
    browser.press("Done").await;
    assert_eq!(
        browser.place().await,
        here,
        "the page stays until storing is confirmed"
    );
    assert!(browser.has("[data-acknowledge]:focus").await);
    world.store_secret().await;
    assert_eq!(browser.text("h1").await, "Checkout server Test Active");
    assert!(
        !browser
            .driver()
            .source()
            .await
            .expect("the page")
            .contains(&secret)
    );

    // A different name does not confirm the revocation.
    browser.press("Revoke").await;
    browser.reads("h1", "Checkout server").await;
    assert!(!browser.is_enabled("Revoke key").await);
    browser.fill("confirm", "checkout server").await;
    assert!(!browser.is_enabled("Revoke key").await);
    // The same name in another Unicode normalization form confirms it.
    let written = "const field = document.getElementById('confirm'); const name = field.dataset.mustBe; \
                   const enabled = () => !field.form.querySelector('[type=submit]').disabled; \
                   const type = (text) => { field.value = text; field.dispatchEvent(new Event('input')); }; \
                   field.dataset.mustBe = 'caf\\u00e9'; type('cafe\\u0301'); const same = enabled(); \
                   type('cafe'); const other = enabled(); field.dataset.mustBe = name; return [same, other]";
    assert_eq!(browser.run(written, vec![]).await, json!([true, false]));
    browser.fill("confirm", "Checkout server").await;
    browser.fill("reason", "Trying it out").await;
    let before = jiff::Timestamp::now().as_second();
    browser.press("Revoke key").await;
    browser.reads(".notice", "Key revoked.").await;
    assert_eq!(world.status_of(&secret).await, 401, "the very next request");
    let after = jiff::Timestamp::now().as_second();
    browser.reads(".notice", "Key revoked.").await;
    browser.reads("dl", "Trying it out").await;
    for gone in ["Rotate", "Revoke", "Suspend"] {
        let found = browser
            .driver()
            .find_all(By::LinkText(gone))
            .await
            .expect("links");
        assert!(found.is_empty(), "{gone}");
    }

    world.open("/dashboard/keys").await;
    browser.reads("tbody", "Checkout server").await;
    let status = browser.text("td[data-label=Status]").await;
    let shown = browser
        .css("td[data-label=Status] time")
        .await
        .attr("datetime")
        .await
        .expect("a time");
    let shown: jiff::Timestamp = shown.expect("a time").parse().expect("RFC 3339");
    assert!(status.starts_with("Revoked"), "{status}");
    assert!((before..=after).contains(&shown.as_second()), "{shown}");

    // The link works once.
    browser.open(&link).await;
    browser.arrives("/dashboard/sign-in/link").await;
    browser
        .reads(
            "main",
            "This link was used before, is older than five minutes,",
        )
        .await;
    world.end().await;
}

#[actix_web::test]
async fn swagger_ui_works_under_its_content_security_policy() {
    let Some(world) = World::begin().await else {
        return;
    };
    world.open("/docs/").await;
    prefix::tries_livez(&world.browser, &world.url("/livez")).await;
    // The one inline style that the policy allows colors the logo; without it every shape is black.
    let colored = "return [...document.querySelectorAll('.topbar svg *')].some(shape => getComputedStyle(shape).fill !== 'rgb(0, 0, 0)')";
    assert_eq!(world.browser.run(colored, vec![]).await, json!(true));
    world.end().await;
}

#[actix_web::test]
async fn rotated_key_is_valid_during_the_overlap() {
    let Some(world) = World::signed_in().await else {
        return;
    };
    let browser = &world.browser;
    let first = world.commerce_key("Webhooks").await;
    world.open(&format!("/dashboard/keys/{}", first.id)).await;
    browser.press("Rotate").await;
    browser.reads("h1", "Webhooks").await;
    assert_eq!(
        browser
            .property("[name=overlap][value='86400']", "checked")
            .await,
        "true",
        "a day is preselected"
    );
    browser.choose("overlap", "3600").await;
    browser.press("Rotate key").await;
    let second = browser.property("#secret", "value").await;
    assert!(second != first.text);
    let second_id = world.store_secret().await;
    browser.reads("main", "Rotated from").await;

    // The predecessor has not been used since the rotation; then it is used.
    browser.press("its predecessor").await;
    browser
        .reads(".notice", "This key has not been used since.")
        .await;
    assert_eq!(
        (
            world.status_of(&first.text).await,
            world.status_of(&second).await
        ),
        (200, 200)
    );
    let notice = wait_for(async || {
        browser.reload().await;
        browser
            .text(".notice")
            .await
            .contains("This key is still in use: last used ")
            .then_some(())
    });
    notice.await.expect("the notice of further use");
    assert!(
        !browser
            .has(&format!("a[href$='{}/rotate']", first.id))
            .await,
        "a key has one successor"
    );

    world
        .open(&format!("/dashboard/keys/{second_id}/rotate"))
        .await;
    browser.choose("overlap", "0").await;
    browser.press("Rotate key").await;
    let third = browser.property("#secret", "value").await;
    let all = [&first.text, &second, &third];
    let mut statuses = Vec::new();
    for key in all {
        statuses.push(world.status_of(key).await);
    }
    assert_eq!(
        statuses,
        [200, 403, 200],
        "the first is in its overlap, the second expired immediately"
    );
    world.end().await;
}

#[actix_web::test]
async fn disabling_an_application_disables_its_keys() {
    let Some(world) = World::signed_in().await else {
        return;
    };
    let browser = &world.browser;
    world.open("/dashboard/applications").await;
    browser.reads("main", "No applications yet").await;
    browser.press("Create application").await;
    browser.fill("name", "Web store").await;
    browser.fill("description", "The shop's checkout").await;
    browser.press("Create application").await;
    browser.reads(".notice", "Application created.").await;
    let place = browser.place().await;
    let application = place
        .trim_start_matches("/dashboard/applications/")
        .to_owned();

    browser.press("Create key").await;
    assert_eq!(
        browser.value("application").await,
        application,
        "the application is preselected"
    );
    browser.fill("name", "Till 1").await;
    browser.press("Create key").await;
    let first = browser.property("#secret", "value").await;
    assert!(first.starts_with("ks_test_"), "an application key");
    world.store_secret().await;
    let second = world.server.key(&world.token, &application).await;
    let statuses = async || {
        [
            world.status_of(&first).await,
            world.status_of(&second.text).await,
        ]
    };
    assert_eq!(statuses().await, [200, 200]);

    world
        .open(&format!("/dashboard/applications/{application}"))
        .await;
    browser.press("Disable").await;
    browser
        .reads(
            ".notice",
            "2 keys will be rejected everywhere immediately, until you enable",
        )
        .await;
    for name in ["Till 1", "Checkout"] {
        browser.reads("tbody", name).await;
    }
    assert_eq!(
        statuses().await,
        [200, 200],
        "the confirmation page changes nothing"
    );
    browser.press("Disable application").await;
    browser.reads(".notice", "Application disabled.").await;
    assert_eq!(statuses().await, [403, 403]);
    browser.reads("h1", "Disabled").await;
    browser.press("Enable").await;
    browser.reads(".notice", "Application enabled.").await;
    assert_eq!(statuses().await, [200, 200]);
    world.end().await;
}

#[actix_web::test]
async fn invalid_input_is_kept_and_explained() {
    let Some(world) = World::signed_in().await else {
        return;
    };
    let browser = &world.browser;
    world.open("/dashboard/keys/new").await;
    browser.fill("name", "x").await;
    browser.choose("mode", "live").await;
    browser.choose("access", "chosen").await;
    browser.choose("scope.links", "read").await;
    browser
        .fill("allowed_ips", "203.0.113.0/24, 10.0.0.1/8")
        .await;
    browser.click("#expires option[value=on]").await;
    browser
        .run(
            "document.getElementById('expires_on').value = '2020-02-03'",
            vec![],
        )
        .await;
    // White space only counts as an empty name.
    browser.fill("name", "   ").await;
    browser.press("Create key").await;
    browser.reads("[role=alert]", "Nothing was changed.").await;
    assert_eq!(browser.place().await, "/dashboard/keys/new");
    assert!(
        browser.has("[role=alert]:focus").await,
        "the summary has the focus"
    );
    for (field, rule) in [
        ("name", "must have 1 to 255 characters"),
        ("allowed_ips", "10.0.0.1/8"),
        ("expires", "must be in the future"),
    ] {
        assert_eq!(
            browser.property(&format!("#{field}"), "ariaInvalid").await,
            "true",
            "{field}"
        );
        let described = browser
            .css(&format!("#{field}"))
            .await
            .attr("aria-describedby")
            .await
            .expect("an attribute");
        assert_eq!(
            described.as_deref(),
            Some(format!("{field}-error").as_str())
        );
        browser.reads(&format!("#{field}-error"), rule).await;
    }
    assert_eq!(
        browser.value("allowed_ips").await,
        "203.0.113.0/24, 10.0.0.1/8"
    );
    assert_eq!(browser.value("expires_on").await, "2020-02-03");
    for chosen in [
        "[name=mode][value=live]",
        "[name=access][value=chosen]",
        "[name='scope.links'][value=read]",
    ] {
        assert_eq!(
            browser.property(chosen, "checked").await,
            "true",
            "{chosen}"
        );
    }
    assert!(world.keys().await.is_empty());

    // The corrected form creates one key.
    browser.fill("name", "Till").await;
    browser.fill("allowed_ips", "203.0.113.0/24").await;
    browser.click("#expires option[value='30']").await;
    browser.press("Create key").await;
    assert!(
        browser
            .property("#secret", "value")
            .await
            .starts_with("ck_live_")
    );
    browser
        .reads("main", "It can only be used from 203.0.113.0/24.")
        .await;
    let keys = world.keys().await;
    assert_eq!(
        (keys.len(), &keys[0]["scopes"], &keys[0]["allowed_ips"]),
        (1, &json!(["links:read"]), &json!(["203.0.113.0/24"]))
    );

    // A name that already exists.
    world.server.application(&world.token, "Web store").await;
    browser.click("[data-acknowledge]").await;
    world.open("/dashboard/applications/new").await;
    browser.fill("name", "Web store").await;
    browser.fill("description", "Another one").await;
    browser.press("Create application").await;
    browser.reads("[role=alert]", "Nothing was changed.").await;
    browser
        .reads(
            "#name-error",
            "The account already has an application with this name. Choose another name.",
        )
        .await;
    assert_eq!(browser.property("#name", "ariaInvalid").await, "true");
    assert!(browser.has("[role=alert]:focus").await);
    assert_eq!(
        (
            browser.value("name").await,
            browser.value("description").await
        ),
        ("Web store".to_owned(), "Another one".to_owned())
    );
    world.end().await;
}

#[actix_web::test]
async fn ended_session_redirects_to_sign_in_and_back() {
    let Some(world) = World::signed_in().await else {
        return;
    };
    let browser = &world.browser;
    let key = world.commerce_key("Checkout").await;

    // Deleted on the server, as an expired session is; the browser still has the cookie.
    world.open("/dashboard/applications").await;
    world.database.sql("DELETE FROM sessions");
    browser.press("Audit log").await;
    browser.arrives("/dashboard/sign-in?next=").await;
    world.sign_in_with(&world.token).await;
    browser.arrives("/dashboard/audit").await;
    browser.reads("tbody", "api_key.created").await;

    // When a script requests part of a page, the whole window goes to the sign-in page.
    world.open("/dashboard/keys").await;
    world.database.sql("DELETE FROM sessions");
    browser.fill("q", "Check").await;
    browser.arrives("/dashboard/sign-in?next=").await;
    world.sign_in_with("not a token").await;
    browser
        .reads(
            "[role=alert]",
            "The credential contains white space. Remove it.",
        )
        .await;
    assert!(
        browser.value("token").await.is_empty(),
        "the page does not repeat the credential"
    );
    world.sign_in_with(&world.token).await;
    browser.arrives("/dashboard/keys?q=Check").await;
    browser.reads("tbody", "Checkout").await;

    // A change sent without a session is not made, not even after the sign-in.
    world
        .open(&format!("/dashboard/keys/{}/revoke", key.id))
        .await;
    browser.fill("confirm", "Checkout").await;
    world.database.sql("DELETE FROM sessions");
    browser.press("Revoke key").await;
    browser.arrives("/dashboard/sign-in?next=").await;
    assert_eq!(world.status_of(&key.text).await, 200);
    world.sign_in_with(&world.token).await;
    browser.arrives("/dashboard/keys").await;
    assert_eq!(world.status_of(&key.text).await, 200);

    // Signed out in another window.
    let first = browser.driver().window().await.expect("a window");
    world.open(&format!("/dashboard/keys/{}", key.id)).await;
    let second = browser.driver().new_tab().await.expect("another window");
    browser
        .driver()
        .switch_to_window(second)
        .await
        .expect("another window");
    world.open("/dashboard/keys").await;
    browser.press("Sign out").await;
    browser.arrives("/dashboard/signed-out").await;
    browser.reads("main", "You are signed out.").await;
    browser.driver().close_window().await.expect("one window");
    browser
        .driver()
        .switch_to_window(first)
        .await
        .expect("the first window");
    browser.press("Settings").await;
    browser.arrives("/dashboard/sign-in?next=").await;
    world.sign_in_with(&world.token).await;
    browser.arrives("/dashboard/settings").await;

    // After signing out, going back does not show the earlier page.
    world.open(&format!("/dashboard/keys/{}", key.id)).await;
    browser.press("Sign out").await;
    browser.arrives("/dashboard/signed-out").await;
    assert!(
        browser
            .driver()
            .get_all_cookies()
            .await
            .expect("cookies")
            .iter()
            .all(|cookie| !cookie.name.contains("session"))
    );
    browser.back().await;
    browser.arrives("/dashboard/sign-in?next=").await;
    assert!(
        !browser
            .driver()
            .source()
            .await
            .expect("the page")
            .contains("Checkout")
    );
    world.end().await;
}

#[actix_web::test]
async fn resources_of_another_account_are_not_found() {
    let Some(world) = World::begin().await else {
        return;
    };
    let browser = &world.browser;
    let key = world.commerce_key("Their checkout").await;
    let application = world.server.application(&world.token, "Their store").await;
    let own = world
        .tollkey
        .output_of(&["token", "--account", "globex"])
        .await;
    world.open("/dashboard").await;
    world.sign_in_with(&own).await;
    browser.arrives("/dashboard/keys").await;
    browser.reads("main", "No keys yet").await;
    for page in [
        format!("/dashboard/keys/{}", key.id),
        format!("/dashboard/keys/{}/revoke", key.id),
        format!("/dashboard/keys/{}/rotate", key.id),
        format!("/dashboard/applications/{application}"),
        format!("/dashboard/applications/{application}/edit"),
        format!("/dashboard/applications/{application}/disable"),
        format!("/dashboard/applications/{application}/delete"),
        "/dashboard/keys/nothing".to_owned(),
    ] {
        world.open(&page).await;
        assert_eq!(browser.status().await, 404, "{page}");
        assert_eq!(browser.text("h1").await, "Page not found", "{page}");
        assert!(
            !browser
                .driver()
                .source()
                .await
                .expect("the page")
                .contains("Their"),
            "{page}"
        );
    }
    world.open("/dashboard/audit").await;
    browser.reads("main", "No entries yet").await;
    world.end().await;
}

/// Starts a server of another site on these hosts, with these pages: name and HTML.
async fn other_site(
    hosts: &[&str],
    pages: Vec<(String, String)>,
) -> (u16, actix_web::dev::ServerHandle) {
    let pages = web::Data::new(pages);
    let server = HttpServer::new(move || {
        let page = async |pages: web::Data<Vec<(String, String)>>, name: web::Path<String>| {
            let page = pages
                .iter()
                .find(|(own, _)| *own == *name)
                .map(|(_, html)| html.clone());
            HttpResponse::Ok()
                .content_type("text/html; charset=utf-8")
                .body(page.unwrap_or_default())
        };
        App::new()
            .app_data(pages.clone())
            .route("/{name}", web::get().to(page))
    });
    let mut server = server.workers(1).bind((hosts[0], 0)).expect("a port");
    let port = server.addrs()[0].port();
    for host in &hosts[1..] {
        server = server
            .bind((*host, port))
            .expect("the same port of another address");
    }
    let server = server.disable_signals().run();
    let handle = server.handle();
    rt::spawn(server);
    (port, handle)
}

#[actix_web::test]
async fn forms_of_other_sites_are_rejected() {
    let Some(world) = World::signed_in().await else {
        return;
    };
    let browser = &world.browser;
    let key = world.commerce_key("Checkout").await;
    let form = |path: &str, fields: &str| {
        let action = world.url(path);
        format!(
            "<!doctype html><title>Win</title><form method=post action='{action}'>{fields}<button>Claim</button></form>"
        )
    };
    let pages = [
        (
            "revoke",
            form(
                &format!("/dashboard/keys/{}/revoke", key.id),
                "<input name=confirm value=Checkout>",
            ),
        ),
        (
            "suspend",
            form(&format!("/dashboard/keys/{}/suspend", key.id), ""),
        ),
        (
            "create",
            form(
                "/dashboard/keys/new",
                "<input name=name value=Mine><input name=once value=0123456789abcdef>",
            ),
        ),
        ("out", form("/dashboard/sign-out", "")),
        (
            "in",
            form(
                "/dashboard/sign-in/token",
                &format!("<input name=token value='{}'>", world.token),
            ),
        ),
    ]
    .map(|(name, html)| (name.to_owned(), html));
    // A site is a host without its port: from the first host the browser sends even a `SameSite=Strict` cookie.
    let hosts = ["127.0.0.1", "127.0.0.2"];
    let (port, handle) = other_site(&hosts, pages.to_vec()).await;
    for host in ["127.0.0.1", "127.0.0.2", "localhost"] {
        for (page, _) in &pages {
            browser.open(&format!("http://{host}:{port}/{page}")).await;
            browser.press("Claim").await;
            browser.arrives("/dashboard/").await;
            assert_eq!(browser.status().await, 403, "{page} from {host}");
            browser
                .reads("main", "The request was not sent by a page of this dashboard. Open the dashboard and send the form there.")
                .await;
        }
        // A script of another site changes nothing either.
        browser.open(&format!("http://{host}:{port}/nothing")).await;
        let send = "const [url, done] = arguments; const body = new URLSearchParams({confirm: 'Checkout'}); \
                    fetch(url, {method: 'POST', mode: 'no-cors', credentials: 'include', body}).then(() => done(true), () => done(false))";
        let url = world.url(&format!("/dashboard/keys/{}/revoke", key.id));
        assert_eq!(
            browser.run_async(send, vec![json!(url)]).await,
            json!(true),
            "it was sent"
        );
    }
    assert_eq!(world.status_of(&key.text).await, 200);
    assert_eq!(world.keys().await.len(), 1);
    // A link from another site opens the dashboard in the session, which the forged sign-in did not replace.
    browser
        .open(&format!("http://localhost:{port}/nothing"))
        .await;
    browser
        .run(
            "location.href = arguments[0]",
            vec![json!(world.url(&format!("/dashboard/keys/{}", key.id)))],
        )
        .await;
    browser.reads("h1", "Checkout").await;
    assert!(
        browser.has("a.account").await,
        "still signed in as an operator"
    );
    browser.reads("h1", "Active").await;
    handle.stop(false).await;
    world.end().await;
}

#[actix_web::test]
async fn markup_in_a_name_is_shown_as_text() {
    // A name that ends an attribute, and contains markup, an entity, template braces, a right-to-left letter and two
    // spaces.
    const NAME: &str = "\u{5d0}x'\"><img src=x onerror=\"alert(1)\"><script>alert(2)</script>&lt;b&gt;{{7*7}}  two";
    let Some(world) = World::signed_in().await else {
        return;
    };
    let browser = &world.browser;
    world.server.application(&world.token, NAME).await;
    world.create_key(NAME).await;
    assert!(browser.text("h1").await.contains("<img src=x onerror="));
    let id = world.store_secret().await;
    let application = {
        let reply = world.server.get("/applications").bearer(&world.token).await;
        reply.json()["items"][0]["id"]
            .as_str()
            .unwrap_or_else(|| panic!("{reply}"))
            .to_owned()
    };
    let search: String = form_urlencoded::Serializer::new(String::new())
        .append_pair("q", NAME)
        .finish();
    for page in [
        "/dashboard/keys",
        "/dashboard/keys/new",
        "/dashboard/applications",
        "/dashboard/audit",
        &format!("/dashboard/keys/{id}"),
        &format!("/dashboard/keys/{id}/rotate"),
        &format!("/dashboard/keys/{id}/revoke"),
        &format!("/dashboard/applications/{application}"),
        &format!("/dashboard/applications/{application}/edit"),
        &format!("/dashboard/applications/{application}/disable"),
        &format!("/dashboard/applications/{application}/delete"),
        &format!("/dashboard/keys?{search}"),
    ] {
        world.open(page).await;
        // Unchanged wherever it is shown: in text, a field or the title. The audit log shows it as JSON.
        let text = "const fields = [...document.querySelectorAll('input')].map((field) => field.value); \
                    return document.body.textContent + document.title + fields.join(' ')";
        let text = browser.run(text, vec![]).await;
        let name = if page == "/dashboard/audit" {
            json!(NAME).to_string()
        } else {
            NAME.to_owned()
        };
        assert!(text.as_str().expect("a string").contains(&name), "{page}");
        assert!(
            !browser.has("img[src=x]").await && !browser.has("main script").await,
            "{page}"
        );
    }
    world.open(&format!("/dashboard/keys/{id}")).await;
    assert!(browser.title().await.contains("<script>alert(2)</script>"));

    // The name as shown is the name to type.
    world.open(&format!("/dashboard/keys/{id}/revoke")).await;
    let shown = browser
        .css("label[for=confirm] b")
        .await
        .text()
        .await
        .expect("the name");
    assert_eq!(shown, NAME);
    browser.fill("confirm", &shown).await;
    browser.press("Revoke key").await;
    browser.reads(".notice", "Key revoked.").await;
    world
        .open(&format!("/dashboard/applications/{application}/delete"))
        .await;
    let shown = browser
        .css("label[for=confirm] b")
        .await
        .text()
        .await
        .expect("the name");
    browser.fill("confirm", &shown).await;
    browser.press("Delete application").await;
    browser.reads(".notice", "Application deleted.").await;
    world.end().await;
}

#[actix_web::test]
async fn form_whose_request_fails_is_kept_and_can_be_sent_again() {
    let Some(world) = World::signed_in().await else {
        return;
    };
    let browser = &world.browser;
    world.open("/dashboard/keys/new").await;
    browser.fill("name", "Checkout").await;
    for (fetch, text) in [
        (
            "() => Promise.reject(new TypeError('no network'))",
            "No response arrived.",
        ),
        (
            "async () => new Response('<h1>Bad Gateway</h1>', {status: 502})",
            "The server responded with status 502.",
        ),
    ] {
        let replace = format!("window.realFetch ??= window.fetch; window.fetch = {fetch}");
        browser.run(&replace, vec![]).await;
        browser.press("Create key").await;
        browser.reads("[data-failed]", text).await;
        assert_eq!(browser.value("name").await, "Checkout");
    }
    browser.run("window.fetch = window.realFetch", vec![]).await;
    browser.press("Create key").await;
    browser.reads("[data-secret] h1", "Checkout").await;
    assert_eq!(world.keys().await.len(), 1);
    world.store_secret().await;
    world.end().await;
}

#[actix_web::test]
async fn full_key_is_shown_on_one_page_once() {
    let Some(world) = World::signed_in().await else {
        return;
    };
    let browser = &world.browser;
    let secret = world.create_key("Checkout").await;
    let shows_secret = async || {
        browser
            .driver()
            .source()
            .await
            .expect("the page")
            .contains(&secret)
    };
    assert!(shows_secret().await);

    // The page asks for confirmation before it is left. chromedriver closes that dialog itself, so the test dispatches
    // the event.
    let asks_before_leaving = "const leaving = new Event('beforeunload', {cancelable: true}); \
                   window.dispatchEvent(leaving); return leaving.defaultPrevented";
    assert_eq!(
        browser.run(asks_before_leaving, vec![]).await,
        json!(true),
        "the secret is not stored yet"
    );

    browser.click("[data-acknowledge]").await;
    assert_eq!(
        browser.run(asks_before_leaving, vec![]).await,
        json!(false),
        "now it is"
    );
    // Some browsers keep a page in memory and show it again on Back. This one does not, so the test dispatches the
    // event.
    let leave = "window.dispatchEvent(new Event('pagehide')); \
                return [...document.querySelectorAll('.secret')].map((field) => field.value)";
    assert!(
        browser.run(leave, vec![]).await == json!(["", ""]),
        "the page clears the secret"
    );
    assert!(!shows_secret().await, "the page still contains the secret");
    // The page with the key has no entry in the history: a reload leads to the form, and creates no other key.
    browser.reload().await;
    browser.css("form[data-in-place]").await;
    assert!(!shows_secret().await);
    assert_eq!(world.keys().await.len(), 1);

    // Back leads to the form, and forward to the page of the key.
    let secret = world.create_key("Second").await;
    let shows_secret = async || {
        browser
            .driver()
            .source()
            .await
            .expect("the page")
            .contains(&secret)
    };
    let id = world.store_secret().await;
    browser.back().await;
    browser.arrives("/dashboard/keys/new").await;
    assert_eq!(browser.status().await, 200);
    assert!(browser.has("form[data-in-place]").await);
    let fields = "return [...document.querySelectorAll('input, textarea')].map((field) => field.value).join()";
    assert!(!shows_secret().await, "{}", browser.place().await);
    assert!(
        !browser
            .run(fields, vec![])
            .await
            .as_str()
            .expect("a string")
            .contains(&secret)
    );
    browser.driver().forward().await.expect("forward");
    browser.arrives(&format!("/dashboard/keys/{id}")).await;
    assert!(!shows_secret().await);
    assert_eq!(world.keys().await.len(), 2);

    world.open("/dashboard/keys").await;
    let kept = "return JSON.stringify([{...localStorage}, {...sessionStorage}, history.state, document.cookie, location.href])";
    let kept = browser.run(kept, vec![]).await;
    assert!(
        !kept.as_str().expect("a string").contains(&secret[8..]),
        "in the page's storage"
    );
    let history = browser
        .dev_tools("Page.getNavigationHistory", json!({}))
        .await;
    assert!(
        !history.to_string().contains(&secret[8..]),
        "in the session history"
    );
    // A search for the key is rejected.
    browser.fill("q", &secret).await;
    browser
        .reads(".notice", "Do not search for a full key.")
        .await;
    assert_eq!(browser.place().await, "/dashboard/keys");

    // The browser has not written the key to disk: cache, history, session restore.
    let World {
        browser, server, ..
    } = world;
    let directory = browser.close().await;
    let written = |text: &str| {
        let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let mut found = Vec::new();
        for bytes in [text.as_bytes(), &wide] {
            search(directory.path(), bytes, &mut found);
        }
        found
    };
    assert!(
        !written("/dashboard/keys").is_empty(),
        "the history is on disk"
    );
    let found = written(&secret[8..]);
    assert!(found.is_empty(), "{found:?}");
    server.stop().await;
}

fn search(directory: &Path, text: &[u8], found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).expect("a directory").flatten() {
        let (path, kind) = (entry.path(), entry.file_type().expect("a kind"));
        if kind.is_dir() {
            search(&path, text, found);
        } else if kind.is_file() {
            let content = fs::read(&path).expect("a file");
            if content.windows(text.len()).any(|window| window == text) {
                found.push(path.display().to_string());
            }
        }
    }
}

#[actix_web::test]
async fn dashboard_works_without_scripts() {
    let Some(world) = World::begin().await else {
        return;
    };
    let browser = &world.browser;
    browser
        .dev_tools(
            "Emulation.setScriptExecutionDisabled",
            json!({"value": true}),
        )
        .await;
    browser.open(&world.link()).await;
    assert!(
        browser.place().await.starts_with("/dashboard/sign-in/link"),
        "nothing is sent automatically"
    );
    browser.press("Open the dashboard").await;
    browser.arrives("/dashboard/keys").await;
    assert!(!browser.has("html.scripted").await, "no script runs");

    let secret = world.create_key("Checkout").await;
    assert_eq!(world.status_of(&secret).await, 200);
    let copy = browser.css("[data-copy]").await;
    assert!(
        !copy.is_displayed().await.expect("a visibility"),
        "the button does nothing without scripts and is hidden"
    );
    let here = browser.place().await;
    browser.press("Done").await;
    assert_eq!(
        browser.place().await,
        here,
        "the page stays until storing is confirmed"
    );
    let id = world.store_secret().await;

    world.open("/dashboard/keys").await;
    browser.fill("q", "nothing like it").await;
    browser.press("Filter").await;
    browser.arrives("/dashboard/keys?q=nothing").await;
    browser.reads("main", "No matching keys").await;

    world.open(&format!("/dashboard/keys/{id}/rotate")).await;
    browser.choose("overlap", "3600").await;
    browser.press("Rotate key").await;
    let successor = browser.property("#secret", "value").await;
    assert_eq!(
        (
            world.status_of(&secret).await,
            world.status_of(&successor).await
        ),
        (200, 200)
    );

    world.open(&format!("/dashboard/keys/{id}")).await;
    browser.press("Suspend").await;
    browser.reads(".notice", "Key suspended.").await;
    assert_eq!(world.status_of(&secret).await, 403);
    browser.press("Resume").await;
    browser.reads(".notice", "Key resumed.").await;

    world.open(&format!("/dashboard/keys/{id}/revoke")).await;
    browser.fill("confirm", "Check").await;
    browser.fill("reason", "Moved").await;
    browser.press("Revoke key").await;
    browser
        .reads("#confirm-error", "s not the name of the key")
        .await;
    assert_eq!(
        (
            browser.value("confirm").await,
            browser.value("reason").await
        ),
        ("Check".to_owned(), "Moved".to_owned())
    );
    assert_eq!(world.status_of(&secret).await, 200);
    browser.fill("confirm", "Checkout").await;
    browser.press("Revoke key").await;
    browser.reads(".notice", "Key revoked.").await;
    assert_eq!(world.status_of(&secret).await, 401);

    browser.press("Sign out").await;
    browser.arrives("/dashboard/signed-out").await;
    world.sign_in_with(&world.token).await;
    browser.arrives("/dashboard/keys").await;
    world.end().await;
}

#[actix_web::test]
async fn times_are_local_and_filters_apply_automatically() {
    let Some(world) = World::signed_in().await else {
        return;
    };
    let browser = &world.browser;
    browser
        .dev_tools(
            "Emulation.setTimezoneOverride",
            json!({"timezoneId": "Asia/Kathmandu"}),
        )
        .await;
    for name in ["Checkout", "Webhooks"] {
        world.commerce_key(name).await;
    }
    world.open("/dashboard/keys").await;
    // Kathmandu is 5:45 ahead, so the minutes differ from UTC.
    let local = async || {
        let time = browser.css("td[data-label=Created] time").await;
        let at: jiff::Timestamp = time
            .attr("datetime")
            .await
            .expect("an attribute")
            .expect("a time")
            .parse()
            .expect("RFC 3339");
        let title = time
            .attr("title")
            .await
            .expect("an attribute")
            .expect("the exact time");
        let there = at.to_zoned(jiff::tz::TimeZone::fixed(
            jiff::tz::offset(5).saturating_add(jiff::SignedDuration::from_mins(45)),
        ));
        let utc = at
            .to_zoned(jiff::tz::TimeZone::UTC)
            .strftime("(%Y-%m-%d %H:%M UTC)")
            .to_string();
        assert!(
            title.ends_with(&utc) && title.contains(&there.strftime("%-I:%M").to_string()),
            "{title} is not {there}"
        );
        // In a narrow window the column is hidden.
        let shown = browser
            .property("td[data-label=Created] time", "textContent")
            .await;
        assert!(shown.contains("ago") || shown == "now", "{shown}");
    };
    local().await;
    browser.run("window.stays = true", vec![]).await;
    browser.fill("q", "Webh").await;
    browser.arrives("/dashboard/keys?q=Webh").await;
    let filtered = wait_for(async || {
        (browser
            .driver()
            .find_all(By::Css("tbody tr"))
            .await
            .ok()?
            .len()
            == 1)
            .then_some(())
    });
    filtered.await.expect("one matching key");
    browser.reads("tbody", "Webhooks").await;
    local().await;
    assert_eq!(
        browser.run("return window.stays === true", vec![]).await,
        json!(true),
        "the page is not reloaded"
    );
    browser.click("#status option[value=revoked]").await;
    browser.reads("#results", "No matching keys").await;
    browser.back().await;
    browser.reads("tbody", "Webhooks").await;
    world.end().await;
}
