//! Checks every page with axe-core and at every width.

use serde_json::{Value, json};

use super::{Browser, World};

/// The axe-core script, <https://github.com/dequelabs/axe-core>; see its README here.
fn axe() -> String {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/axe/axe.min.js");
    std::fs::read_to_string(path).expect("axe-core")
}

/// Runs axe-core on the current page. Returns the violations, each with its elements.
const FIND_VIOLATIONS: &str = "
    const done = arguments[0];
    axe.run(document, {resultTypes: ['violations'], rules: {'target-size': {enabled: true}}}).then(
      ({violations}) => done(violations.map(({id, help, nodes}) =>
        `${id}: ${help}\\n` + nodes.map(({html, failureSummary}) => `    ${html}\\n    ${failureSummary}`).join('\\n'))),
      (error) => done([String(error)]));
";

/// Returns how much wider the page is than its window, and the first elements that overflow.
const FIND_OVERFLOW: &str = "
    const root = document.documentElement, width = root.clientWidth;
    if (root.scrollWidth <= width) return null;
    const out = [...document.querySelectorAll('body *')].filter((element) => element.getBoundingClientRect().right > width + 0.5);
    return `${root.scrollWidth} of ${width}: ${out.slice(0, 3).map((element) => element.outerHTML.slice(0, 120)).join(' | ')}`;
";

const DESKTOP: u32 = 1280;
const PHONE: u32 = 390;
const WIDTHS: [u32; 4] = [DESKTOP, 1024, 768, PHONE];

struct PageChecker<'a> {
    browser: &'a Browser,
    axe: String,
    violations: Vec<String>,
}

impl PageChecker<'_> {
    /// Checks the current page and records its violations.
    async fn check(&mut self, page: &str) {
        self.browser.run(&self.axe, vec![]).await;
        for width in WIDTHS {
            let screen =
                json!({"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false});
            self.browser
                .dev_tools("Emulation.setDeviceMetricsOverride", screen)
                .await;
            if let Value::String(wide) = self.browser.run(FIND_OVERFLOW, vec![]).await {
                self.violations
                    .push(format!("{page} at {width} is too wide, {wide}"));
            }
            if width != DESKTOP && width != PHONE {
                continue;
            }
            for scheme in ["light", "dark"] {
                let features =
                    json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
                self.browser
                    .dev_tools("Emulation.setEmulatedMedia", features)
                    .await;
                let found = self.browser.run_async(FIND_VIOLATIONS, vec![]).await;
                for violation in found.as_array().expect("violations") {
                    self.violations.push(format!(
                        "{page} at {width}, {scheme}: {}",
                        violation.as_str().unwrap_or_default()
                    ));
                }
            }
        }
    }
}

#[actix_web::test]
async fn pages_are_accessible_and_fit_their_window() {
    let Some(world) = World::begin().await else {
        return;
    };
    let browser = &world.browser;
    let mut checker = PageChecker {
        browser,
        axe: axe(),
        violations: Vec::new(),
    };

    // The check finds planted mistakes.
    world.open("/dashboard").await;
    let spoil = "document.querySelector('h1').style.cssText = 'color: #ccc; width: 2000px'; \
                 document.querySelector('label').remove()";
    browser.run(spoil, vec![]).await;
    checker.check("a broken page").await;
    for (mistake, times) in [("too wide", 4), ("color-contrast: ", 2), ("label: ", 4)] {
        let found = checker
            .violations
            .iter()
            .filter(|violation| violation.contains(mistake))
            .count();
        assert!(found >= times, "{mistake}: {:?}", checker.violations);
    }
    checker.violations.clear();

    world.open("/dashboard").await;
    checker.check("the sign-in page").await;
    world.sign_in_with("no token").await;
    checker.check("the sign-in page, rejected").await;
    browser.open(&world.link()).await;
    browser.arrives("/dashboard/keys").await;
    checker.check("no keys").await;
    for page in [
        "/dashboard/applications",
        "/dashboard/audit",
        "/dashboard/settings",
        "/dashboard/account",
    ] {
        world.open(page).await;
        checker.check(&format!("{page}, empty")).await;
    }

    // The longest names, without a place to break; an application; scopes, IP ranges, metadata; usage.
    let long = "Checkout".repeat(12);
    let application = world.server.application(&world.token, &long).await;
    let application_key = world.server.key(&world.token, &application).await;
    let networks: Vec<String> = (0..20)
        .map(|at| format!("2001:db8:ffff:ffff:ffff:ffff:ffff:ff{at:02}/128"))
        .collect();
    let body = json!({
        "name": "Checkout".repeat(31), "mode": "live",
        "scopes": ["links:read", "links:write", "sessions:read", "sessions:write", "customers:read", "events:read"],
        "metadata": {"team": "payments".repeat(20)}, "rate_limit": {"limit": 100, "window_seconds": 60}, "expires_at": 4_000_000_000_u32,
    });
    let mut bound = body.clone();
    bound["allowed_ips"] = json!(networks);
    let mut created = Vec::new();
    for body in [
        body,
        bound,
        json!({"name": "Revoked"}),
        json!({"name": "Suspended"}),
        json!({"name": "Rotated"}),
    ] {
        let reply = world
            .server
            .post("/api-keys", body)
            .bearer(&world.token)
            .await;
        assert_eq!(reply.status, 201, "{reply}");
        let json = reply.json();
        created.push((
            json["key_id"].as_str().expect("an ID").to_owned(),
            json["api_key"].as_str().expect("a key").to_owned(),
        ));
    }
    let [
        (long_id, long_text),
        (bound_id, bound_text),
        (revoked, _),
        (suspended, _),
        (rotated, rotated_text),
    ] = &created[..]
    else {
        panic!("five keys were created");
    };
    for (id, change) in [
        (revoked, "revoke"),
        (suspended, "suspend"),
        (rotated, "rotate"),
    ] {
        let body = if change == "rotate" {
            json!({"overlap_seconds": 3600})
        } else {
            json!({})
        };
        let reply = world
            .server
            .post(&format!("/api-keys/{id}/{change}"), body)
            .bearer(&world.token)
            .await;
        assert!(matches!(reply.status, 200 | 201), "{reply}");
    }
    for key in [long_text, rotated_text, bound_text, &application_key.text] {
        world.status_of(key).await;
    }
    let used = super::wait_for(async || {
        world.open(&format!("/dashboard/keys/{rotated}")).await;
        browser.has(".notice.warn").await.then_some(())
    });
    used.await.expect("the usage is stored");
    checker.check("a rotated key that is still used").await;
    browser.click("summary").await;
    checker.check("the table of its usage").await;

    for page in [
        "/dashboard/keys".to_owned(),
        "/dashboard/keys?q=nothing-like-it".to_owned(),
        "/dashboard/keys?done=pasted".to_owned(),
        "/dashboard/keys/new".to_owned(),
        format!("/dashboard/keys/new?application={application}"),
        format!("/dashboard/keys/{long_id}"),
        format!("/dashboard/keys/{bound_id}"),
        format!("/dashboard/keys/{revoked}"),
        format!("/dashboard/keys/{suspended}"),
        format!("/dashboard/keys/{long_id}/revoke"),
        format!("/dashboard/keys/{long_id}/rotate"),
        "/dashboard/keys/nothing".to_owned(),
        "/dashboard/applications".to_owned(),
        "/dashboard/applications/new".to_owned(),
        format!("/dashboard/applications/{application}"),
        format!("/dashboard/applications/{application}/edit"),
        format!("/dashboard/applications/{application}/disable"),
        format!("/dashboard/applications/{application}/delete"),
        "/dashboard/audit".to_owned(),
        "/dashboard/audit?action=account.updated".to_owned(),
    ] {
        world.open(&page).await;
        checker
            .check(
                &page
                    .replace(&application, "APPLICATION")
                    .replace(long_id.as_str(), "LONG"),
            )
            .await;
    }
    world.open("/dashboard/audit").await;
    browser.click("tbody summary").await;
    checker.check("the audit log, with an entry open").await;
    browser.press("Verify log").await;
    browser
        .reads("[role=status]", "The audit log is intact.")
        .await;
    checker.check("the audit log, verified").await;

    world.open("/dashboard/keys/new").await;
    browser.choose("access", "chosen").await;
    checker.check("a new key, with the grid of scopes").await;
    browser.fill("allowed_ips", "nowhere").await;
    browser.press("Create key").await;
    browser.reads("[role=alert]", "Nothing was changed.").await;
    checker.check("a new key, rejected").await;
    world
        .open(&format!("/dashboard/keys/{long_id}/revoke"))
        .await;
    browser.fill("reason", "x").await;
    browser
        .run(
            "document.querySelector('button.danger').disabled = false",
            vec![],
        )
        .await;
    browser.press("Revoke key").await;
    browser.reads("#confirm-error", "s not the name").await;
    checker.check("a revocation, rejected").await;
    world.open("/dashboard/applications/new").await;
    browser.press("Create application").await;
    browser
        .reads("#name-error", "ust have 1 to 100 characters")
        .await;
    checker.check("a new application, rejected").await;
    world.create_key(&"Checkout".repeat(31)).await;
    checker.check("the secret of a key").await;
    world.store_secret().await;

    world.open("/dashboard/settings").await;
    browser.choose("operating_model", "ecosystem").await;
    browser.press("Set operating model").await;
    browser.reads(".notice", "Operating model set.").await;
    browser.fill("name", "Gateway".repeat(14).as_str()).await;
    browser.press("Create service key").await;
    browser.css("#secret").await;
    checker.check("the secret of a service key").await;
    browser.click("[data-acknowledge]").await;
    browser.press("Done").await;
    browser.arrives("/dashboard/settings").await;
    checker.check("the settings").await;
    browser.click("a[href$='/revoke']").await;
    browser.reads("h1", "Revoke the service key").await;
    checker.check("the revocation of a service key").await;
    world.open("/dashboard/keys/new").await;
    checker.check("a new key of an ecosystem").await;

    browser.press("Sign out").await;
    browser.arrives("/dashboard/signed-out").await;
    world.sign_in_with(&world.token).await;
    browser.arrives("/dashboard/keys").await;
    world.open("/dashboard/settings").await;
    checker
        .check("the settings, without the operator role")
        .await;

    assert!(
        checker.violations.is_empty(),
        "{} violations\n{}",
        checker.violations.len(),
        checker.violations.join("\n")
    );
    world.end().await;
}
