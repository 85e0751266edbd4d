//! Chromium, driven through chromedriver.
//!
//! Each browser has an empty profile and is driven over a pipe. Chromium ends with the pipe, so killing chromedriver
//! leaves no process behind, however a test ends.

use std::{
    env,
    fmt::Display,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Once, OnceLock},
    time::{Duration, Instant},
};

use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;
use thirtyfour::{
    Capabilities, RequestData, SessionId, common::command::FormatRequestData,
    error::WebDriverResult, prelude::*,
};
use tokio::{
    process::{Child, Command},
    sync::{Semaphore, SemaphorePermit},
    time::sleep,
};

use crate::support::without_secrets;

/// The longest a page may take on a busy machine.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Limits the number of concurrent browsers: each takes about 300 MB.
static SLOTS: Semaphore = Semaphore::const_new(2);

const ARGUMENTS: [&str; 10] = [
    "--headless=new",
    "--no-sandbox", // root cannot use the sandbox; the pages are our own
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
];

/// Returns the paths of the two programs. Warns where one is missing; with `TOLLKEY_TEST_REQUIRE_BROWSER=1` that is a
/// failure.
fn programs() -> Option<&'static (PathBuf, PathBuf)> {
    static FOUND: OnceLock<Option<(PathBuf, PathBuf)>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let path = env::var_os("PATH").unwrap_or_default();
        let find = |name: &str| {
            env::split_paths(&path)
                .map(|directory| directory.join(name))
                .find(|file| file.is_file())
        };
        Some((find("chromium")?, find("chromedriver")?))
    });
    if found.is_none() {
        let required = env::var("TOLLKEY_TEST_REQUIRE_BROWSER").is_ok_and(|value| value == "1");
        assert!(
            !required,
            "chromium or chromedriver is not installed, but TOLLKEY_TEST_REQUIRE_BROWSER=1"
        );
        static WARNING: Once = Once::new();
        WARNING.call_once(|| {
            // Past the test harness, which would swallow it.
            let _ = writeln!(
                std::io::stderr(),
                "\nWARNING: chromium or chromedriver is not installed: the dashboard is NOT tried in a browser\n"
            );
        });
    }
    found.as_ref()
}

pub struct Browser {
    driver: WebDriver,
    chromedriver: Child,
    directory: TempDir,
    _slot: SemaphorePermit<'static>,
}

/// A DevTools command, <https://chromedevtools.github.io/devtools-protocol/>.
#[derive(Debug)]
struct DevTools<'a>(&'a str, Value);

impl FormatRequestData for DevTools<'_> {
    fn format_request(&self, session: &SessionId) -> RequestData {
        let Self(command, parameters) = self;
        RequestData::new(Method::POST, format!("/session/{session}/goog/cdp/execute"))
            .add_body(json!({"cmd": command, "params": parameters}))
    }
}

impl Browser {
    /// Starts a browser. Returns `None` where none is installed.
    pub async fn start() -> Option<Self> {
        let (chromium, chromedriver) = programs()?;
        let slot = SLOTS.acquire().await.expect("an open semaphore");
        let directory = tempfile::tempdir().expect("a temporary directory");
        let profile = directory.path().join("profile");
        let out = directory.path().join("out");
        let mut command = Command::new(chromedriver);
        // A fixed language, and no settings of the user who runs the tests.
        command
            .arg("--port=0")
            .env("HOME", directory.path())
            .env("LANG", "C.UTF-8");
        command
            .stdin(Stdio::null())
            .stdout(fs::File::create(&out).expect("a file"))
            .stderr(Stdio::null());
        let chromedriver = command
            .kill_on_drop(true)
            .spawn()
            .expect("chromedriver starts");
        let port = port(&out).await;

        let mut arguments = ARGUMENTS.map(str::to_owned).to_vec();
        arguments.push(format!("--user-data-dir={}", profile.display()));
        let capabilities = json!({
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": chromium, "args": arguments},
            "goog:loggingPrefs": {"browser": "ALL"},
            // An open dialog fails the next command, except for the one about leaving a page: chromedriver accepts it.
            "unhandledPromptBehavior": "ignore",
        });
        let Value::Object(capabilities) = capabilities else {
            unreachable!("the value above is an object")
        };
        let driver = WebDriver::new(
            format!("http://127.0.0.1:{port}"),
            Capabilities::from(capabilities),
        )
        .await;
        let driver = driver.unwrap_or_else(|error| panic!("Chromium does not start: {error}"));
        Some(Self {
            driver,
            chromedriver,
            directory,
            _slot: slot,
        })
    }

    pub fn profile(&self) -> PathBuf {
        self.directory.path().join("profile")
    }

    /// Closes the browser. Asserts that the console has no message. Returns the browser's directory.
    pub async fn close(mut self) -> TempDir {
        let messages = self.console_messages().await;
        assert!(messages.is_empty(), "console messages: {messages:#?}");
        self.done("quit", self.driver.clone().quit().await);
        self.chromedriver.kill().await.expect("chromedriver ends");
        #[cfg(target_os = "linux")]
        wait_for(async || running_in(&self.profile()).is_empty().then_some(()))
            .await
            .unwrap_or_else(|| {
                panic!("still running: {:?}", running_in(&self.profile()));
            });
        std::mem::replace(
            &mut self.directory,
            tempfile::tempdir().expect("a temporary directory"),
        )
    }

    /// Returns the console messages since the last call, except those about responses with an error status, and the hint
    /// about Swagger UI's dialog for HTTP Basic, whose fields Tollkey cannot change.
    pub async fn console_messages(&self) -> Vec<String> {
        let log = self.done("the console", self.driver.browser_log().await);
        let said = log.into_iter().filter(|entry| {
            let message = &entry.message;
            !(message.contains("the server responded with a status of")
                || message.contains("/docs/ - [DOM] Input elements should have autocomplete"))
        });
        said.map(|entry| format!("{} {}", entry.level, without_secrets(&entry.message)))
            .collect()
    }

    fn done<T>(&self, what: &str, result: WebDriverResult<T>) -> T {
        result.unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    async fn fail(&self, what: &dyn Display) -> ! {
        let url = self
            .driver
            .current_url()
            .await
            .map_or_else(|error| error.to_string(), |url| url.to_string());
        let text = match self.driver.find(By::Tag("body")).await {
            Ok(body) => body.text().await.unwrap_or_default(),
            Err(error) => error.to_string(),
        };
        panic!("{what}\n--- {url}\n{}", without_secrets(&text));
    }

    pub async fn dev_tools(&self, command: &str, parameters: Value) -> Value {
        let response = self.driver.cmd(DevTools(command, parameters)).await;
        self.done(command, response.and_then(|response| response.value_json()))
    }

    pub async fn open(&self, url: &str) {
        self.done(url, self.driver.goto(url).await);
    }

    /// The path and query of the page.
    pub async fn place(&self) -> String {
        let url = self.done("the URL", self.driver.current_url().await);
        url.query().map_or_else(
            || url.path().to_owned(),
            |query| format!("{}?{query}", url.path()),
        )
    }

    /// Waits until the path and query of the page begin with this.
    pub async fn arrives(&self, place: &str) {
        let there = wait_for(async || self.place().await.starts_with(place).then_some(())).await;
        if there.is_none() {
            self.fail(&format_args!("not at {place}")).await;
        }
        self.loaded().await;
    }

    /// Waits until the page is loaded and its script has run.
    async fn loaded(&self) {
        let script = "return document.readyState === 'complete'";
        let loaded =
            wait_for(async || (self.run(script, vec![]).await == json!(true)).then_some(())).await;
        assert!(loaded.is_some(), "the page does not load");
    }

    pub async fn run(&self, script: &str, arguments: Vec<Value>) -> Value {
        self.done(script, self.driver.execute(script, arguments).await)
            .json()
            .clone()
    }

    /// [`Browser::run`] for a script that calls its last argument when it is done.
    pub async fn run_async(&self, script: &str, arguments: Vec<Value>) -> Value {
        self.done(script, self.driver.execute_async(script, arguments).await)
            .json()
            .clone()
    }

    pub async fn find(&self, by: By) -> WebElement {
        match wait_for(async || self.driver.find(by.clone()).await.ok()).await {
            Some(element) => element,
            None => self.fail(&format_args!("no {by}")).await,
        }
    }

    /// Waits for an element that matches a CSS selector.
    pub async fn css(&self, selector: &str) -> WebElement {
        self.find(By::Css(selector)).await
    }

    pub async fn has(&self, selector: &str) -> bool {
        let found = self.driver.find_all(By::Css(selector)).await;
        !self.done(selector, found).is_empty()
    }

    /// The visible text of an element.
    pub async fn text(&self, selector: &str) -> String {
        let element = self.css(selector).await;
        self.done(selector, element.text().await)
    }

    /// Waits until the visible text of an element contains this.
    pub async fn reads(&self, selector: &str, text: &str) {
        let there = wait_for(async || {
            // The element may be replaced between the two calls.
            let element = self.driver.find(By::Css(selector)).await.ok()?;
            element.text().await.ok()?.contains(text).then_some(())
        });
        if there.await.is_none() {
            self.fail(&format_args!("no {text:?} in {selector}")).await;
        }
    }

    pub async fn property(&self, selector: &str, name: &str) -> String {
        let element = self.css(selector).await;
        self.done(selector, element.prop(name).await)
            .unwrap_or_default()
    }

    pub async fn click(&self, selector: &str) {
        let element = self.css(selector).await;
        self.done(selector, element.click().await);
    }

    pub async fn press(&self, name: &str) {
        let pressed = wait_for(async || {
            let element = self.driver.find(Self::named(name)).await.ok()?;
            match element.click().await {
                // A script replaced the element between the two calls.
                Err(error) if error.to_string().contains("stale element") => None,
                result => Some(result),
            }
        });
        match pressed.await {
            Some(result) => self.done(name, result),
            None => self.fail(&format_args!("no {name:?} to press")).await,
        }
    }

    pub async fn is_enabled(&self, name: &str) -> bool {
        let element = self.find(Self::named(name)).await;
        self.done(name, element.is_enabled().await)
    }

    fn named(name: &str) -> By {
        By::XPath(format!(
            "//*[self::a or self::button][normalize-space()=\"{name}\"]"
        ))
    }

    /// Selects a radio button or checkbox by its name and value.
    pub async fn choose(&self, name: &str, value: &str) {
        self.click(&format!("input[name='{name}'][value='{value}']"))
            .await;
    }

    pub async fn fill(&self, name: &str, text: &str) {
        let selector = format!("[name='{name}']");
        let field = self.css(&selector).await;
        self.done(&selector, field.clear().await);
        self.done(&selector, field.send_keys(text).await);
    }

    pub async fn value(&self, name: &str) -> String {
        self.property(&format!("[name='{name}']"), "value").await
    }

    pub async fn status(&self) -> u64 {
        let script = "return performance.getEntriesByType('navigation')[0].responseStatus";
        self.run(script, vec![]).await.as_u64().expect("a status")
    }

    pub async fn title(&self) -> String {
        self.done("the title", self.driver.title().await)
    }

    pub async fn back(&self) {
        self.done("back", self.driver.back().await);
    }

    pub async fn reload(&self) {
        self.done("reload", self.driver.refresh().await);
    }

    /// The session, for commands that only one test needs.
    pub fn driver(&self) -> &WebDriver {
        &self.driver
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ending the session would block in a failing test, so chromedriver is killed.
        let _ = self.driver.clone().leak();
        let _ = self.chromedriver.start_kill();
        // A running process could still write into the directory while it is removed.
        #[cfg(target_os = "linux")]
        for _ in 0..100 {
            if running_in(&self.profile()).is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Reads the port that chromedriver listens on.
async fn port(out: &Path) -> u16 {
    let port = wait_for(async || {
        let out = fs::read_to_string(out).ok()?;
        let (_, rest) = out.split_once("started successfully on port ")?;
        rest.split_once('.')?.0.parse().ok()
    });
    port.await.expect("the port of chromedriver")
}

/// Polls until `poll` returns a value. Returns `None` after 30 seconds.
pub async fn wait_for<T>(poll: impl AsyncFn() -> Option<T>) -> Option<T> {
    let begun = Instant::now();
    loop {
        if let Some(value) = poll().await {
            return Some(value);
        }
        if begun.elapsed() > TIMEOUT {
            return None;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

#[cfg(target_os = "linux")]
fn running_in(directory: &Path) -> Vec<String> {
    let directory = directory.to_str().expect("a UTF-8 path");
    let processes = fs::read_dir("/proc").expect("the processes").flatten();
    let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    lines
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(directory))
        .collect()
}
