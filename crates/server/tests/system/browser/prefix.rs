//! The dashboard and Swagger UI behind nginx under a path prefix: one server strips it, the other passes it on. Where
//! nginx is not installed the test is skipped with a message; with `TOLLKEY_TEST_REQUIRE_GATEWAYS=1` that is a failure.

use std::{
    env, fs,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::Stdio,
};

use tempfile::TempDir;
use tokio::{
    net::TcpStream,
    process::{Child, Command},
};
use tollkey_store::testing::Database;

use super::driver::{Browser, wait_for};
use crate::{
    binary::{Tollkey, merchant},
    support::Call,
};

/// nginx with two servers: the first passes the prefix `/keys/` on, the second strips it. Killed when dropped.
struct Nginx {
    unstripped: SocketAddr,
    stripped: SocketAddr,
    _process: Child,
    _directory: TempDir,
}

fn free() -> SocketAddr {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .expect("a port")
}

fn program() -> Option<PathBuf> {
    let directories = env::var_os("PATH").unwrap_or_default();
    let mut directories = env::split_paths(&directories).chain([PathBuf::from("/usr/sbin")]);
    let found = directories
        .find_map(|directory| Some(directory.join("nginx")).filter(|program| program.is_file()));
    if found.is_none() {
        let required = env::var("TOLLKEY_TEST_REQUIRE_GATEWAYS").is_ok_and(|value| value == "1");
        assert!(
            !required,
            "no nginx found, but TOLLKEY_TEST_REQUIRE_GATEWAYS=1"
        );
        eprintln!("\n*** nginx is not installed: the path prefix is NOT tested behind it ***\n");
    }
    found
}

impl Nginx {
    async fn start(program: &PathBuf, unstripped: SocketAddr, tollkey: SocketAddr) -> Self {
        let (directory, stripped) = (tempfile::tempdir().expect("a temporary directory"), free());
        let configuration = format!(
            "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr warn;\nevents {{}}\nhttp {{\n\
             access_log off;\nclient_body_temp_path body;\nproxy_temp_path proxy;\nfastcgi_temp_path fastcgi;\n\
             uwsgi_temp_path uwsgi;\nscgi_temp_path scgi;\nproxy_set_header Host $http_host;\n\
             server {{ listen {unstripped}; location /keys {{ proxy_pass http://{tollkey}; }} }}\n\
             server {{ listen {stripped}; location /keys/ {{ proxy_pass http://{tollkey}/; }} }}\n}}\n"
        );
        fs::write(directory.path().join("nginx.conf"), configuration).expect("a file");
        let mut command = Command::new(program);
        command
            .args(["-e", "stderr", "-p"])
            .arg(directory.path())
            .args(["-c", "nginx.conf"]);
        command
            .env_clear()
            .current_dir(directory.path())
            .stdin(Stdio::null());
        let process = command
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .expect("nginx starts");
        for address in [unstripped, stripped] {
            let listens = wait_for(async || TcpStream::connect(address).await.ok()).await;
            assert!(listens.is_some(), "nginx does not listen on {address}");
        }
        Self {
            unstripped,
            stripped,
            _process: process,
            _directory: directory,
        }
    }
}

#[actix_web::test]
async fn dashboard_and_swagger_ui_work_under_a_prefix() {
    let Some(program) = program() else { return };
    let Some(browser) = Browser::start().await else {
        return;
    };
    let (database, public) = (Database::sqlite(), free());
    let tollkey = Tollkey::on(&database)
        .with("TOLLKEY_PUBLIC_URL", &format!("http://{public}/keys/"))
        .with("TOLLKEY_DASHBOARD_TOKEN_SIGN_IN", "true");
    let server = tollkey.serve().await;
    let nginx = Nginx::start(&program, public, server.address).await;
    let token = merchant("acme");
    for (name, address) in [
        ("Passed on", nginx.unstripped),
        ("Stripped", nginx.stripped),
    ] {
        let url = |path: &str| format!("http://{address}/keys{path}");
        browser.open(&url("/")).await;
        browser.arrives("/keys/dashboard/sign-in?next=").await;
        browser.fill("token", &token).await;
        browser.press("Sign in with a token").await;
        browser.arrives("/keys/dashboard/keys").await;
        let cookies = browser
            .driver()
            .get_all_cookies()
            .await
            .expect("the cookies");
        let session = cookies
            .iter()
            .find(|cookie| cookie.name == "__Host-tollkey_session")
            .expect("a session");
        assert_eq!(session.path.as_deref(), Some("/"));

        browser.press("Create key").await;
        browser.fill("name", name).await;
        browser.press("Create key").await;
        browser.reads("[data-secret] h1", name).await;
        let secret = browser.property("#secret", "value").await;
        let line = browser.property("#line", "value").await;
        assert!(
            line == format!(
                "curl -sS {} -H 'Authorization: Bearer {secret}'",
                url("/api/v1/whoami")
            )
        );
        assert_eq!(
            Call::to(address, "GET", "/keys/api/v1/whoami")
                .bearer(&secret)
                .await
                .status,
            200
        );
        browser.click("[data-acknowledge]").await;
        browser.press("Done").await;
        browser.arrives("/keys/dashboard/keys/").await;
        browser.press("Suspend").await;
        browser.reads(".notice", "Key suspended.").await;
        assert_eq!(
            Call::to(address, "GET", "/keys/api/v1/whoami")
                .bearer(&secret)
                .await
                .status,
            403
        );

        // A script sends the filter.
        browser.press("API keys").await;
        browser.arrives("/keys/dashboard/keys").await;
        browser.fill("q", "no such key").await;
        browser.reads("#results", "No matching keys").await;
        browser.fill("q", name).await;
        browser.reads("#results", name).await;
        browser.arrives("/keys/dashboard/keys?q=").await;
        browser.press(name).await;
        browser.reads("h1", name).await;
        browser.press("Show all entries of this key").await;
        browser.arrives("/keys/dashboard/audit?target_id=").await;
        browser.reads("#results", "api_key.suspended").await;

        browser.press("Sign out").await;
        browser.arrives("/keys/dashboard/signed-out").await;
        browser
            .open(&url("/dashboard/audit?action=api_key.created"))
            .await;
        browser.arrives("/keys/dashboard/sign-in?next=").await;
        browser.fill("token", &token).await;
        browser.press("Sign in with a token").await;
        browser
            .arrives("/keys/dashboard/audit?action=api_key.created")
            .await;

        browser.open(&url("/docs")).await;
        browser.arrives("/keys/docs/").await;
        tries_livez(&browser, &url("/livez")).await;
        browser.open(&url("/dashboard/keys")).await;
        browser.press("Sign out").await;
        browser.arrives("/keys/dashboard/signed-out").await;
    }
    browser.close().await;
    server.stop().await;
}

/// Sends a request with Swagger UI and opens other parts of it. Violations of its policy end up in the console.
pub(super) async fn tries_livez(browser: &Browser, url: &str) {
    browser.reads(".info .title", "Tollkey").await;
    // The dialog is larger than the window, so a script clicks.
    let click = async |selector: &str| {
        browser.css(selector).await;
        browser
            .run(
                "document.querySelector(arguments[0]).click()",
                vec![selector.into()],
            )
            .await;
    };
    click("button.authorize").await;
    browser.css(".modal-ux .auth-container").await;
    click(".close-modal").await;
    click("#operations-health-livez .opblock-summary-control").await;
    click("#operations-health-livez .try-out__btn").await;
    click("#operations-health-livez .execute").await;
    browser
        .reads("#operations-health-livez .request-url", url)
        .await;
    browser
        .reads(
            "#operations-health-livez .live-responses-table tbody",
            "200",
        )
        .await;
    click("#operations-applications-createApplication .opblock-summary-control").await;
    browser
        .reads(
            "#operations-applications-createApplication .opblock-body",
            "Request body",
        )
        .await;
}
