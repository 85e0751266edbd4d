//! The examples as separate processes: paused, resumed, and without their Tollkey. A test cannot find another package's
//! binary, so this test binary starts itself again and runs the `main` of the example.

use std::{
    cell::Cell,
    env,
    net::SocketAddr,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::{process::Command, time::sleep};
use tollkey_store::testing::backends;

use crate::{
    binary::{Connection, LEASE, Process, Server, Tollkey, member, merchant},
    support::{Call, Key, account_keys, eventually},
};

#[path = "../../../../examples/checkout-axum/src/main.rs"]
mod checkout_axum_program;
#[path = "../../../../examples/storefront-actix/src/main.rs"]
mod storefront_actix_program;
#[path = "../../../../examples/vault-axum/src/main.rs"]
mod vault_axum_program;

/// The name of the example that the process runs.
const EXAMPLE: &str = "TOLLKEY_TEST_EXAMPLE";

#[derive(Clone, Copy, Debug)]
enum Example {
    CheckoutAxum,
    StorefrontActix,
    VaultAxum,
}

impl Example {
    const ALL: [Self; 3] = [Self::CheckoutAxum, Self::StorefrontActix, Self::VaultAxum];

    fn name(self) -> &'static str {
        match self {
            Self::CheckoutAxum => "checkout-axum",
            Self::StorefrontActix => "storefront-actix",
            Self::VaultAxum => "vault-axum",
        }
    }

    fn main(self) {
        let ended = match self {
            Self::CheckoutAxum => checkout_axum_program::main(),
            Self::StorefrontActix => storefront_actix_program::main(),
            Self::VaultAxum => vault_axum_program::main(),
        };
        ended.expect("a clean exit");
    }

    /// A path that the example's kind of key may read.
    fn path(self) -> &'static str {
        match self {
            Self::CheckoutAxum => "/api/v1/links",
            Self::StorefrontActix => "/v1/account/products",
            Self::VaultAxum => "/tokens",
        }
    }

    fn header(self, key: &Key) -> (&'static str, String) {
        match self {
            Self::CheckoutAxum | Self::StorefrontActix => {
                ("authorization", format!("Bearer {}", key.text))
            }
            Self::VaultAxum => ("x-api-key", key.text.clone()),
        }
    }

    async fn key(self, server: &Server) -> Key {
        let creation = match self {
            Self::CheckoutAxum => server.post(
                "/api-keys",
                json!({"name": "Web", "scopes": ["links:read"]}),
            ),
            Self::StorefrontActix => server.post(
                account_keys::KEYS,
                account_keys::key_request("live", "secret"),
            ),
            Self::VaultAxum => server.post("/api-keys", json!({"name": "Vault"})),
        };
        let reply = creation.bearer(&merchant("acme")).await;
        assert_eq!(reply.status, 201, "{reply}");
        match self {
            Self::StorefrontActix => account_keys::created_key(&reply),
            _ => Key {
                id: member(&reply, "key_id"),
                text: member(&reply, "api_key"),
            },
        }
    }

    async fn revoke(self, server: &Server, key: &Key) {
        let revocation = match self {
            Self::StorefrontActix => server.delete(&format!("{}/{}", account_keys::KEYS, key.id)),
            _ => server.post(&format!("/api-keys/{}/revoke", key.id), json!({})),
        };
        let reply = revocation.bearer(&merchant("acme")).await;
        assert!(matches!(reply.status, 200 | 204), "{reply}");
    }

    /// Starts the example on a free port, with this Tollkey server, and waits until it listens.
    async fn start(self, tollkey: SocketAddr, service_key: &str) -> Server {
        let mut command = Command::new(env::current_exe().expect("this test binary"));
        command.args([
            "--exact",
            "examples::runs_an_example",
            "--ignored",
            "--nocapture",
        ]);
        command
            .env_clear()
            .envs(Tollkey::bare().environment())
            .env(EXAMPLE, self.name());
        command
            .env("TOLLKEY_URL", format!("http://{tollkey}"))
            .env("TOLLKEY_SERVICE_KEY", service_key);
        command
            .env("LISTEN", "127.0.0.1:0")
            .env("FORWARD_TO", "http://127.0.0.1:1/");
        command.stdin(Stdio::null()).kill_on_drop(true);
        let outputs = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        let started = Process::spawn(command, &outputs, 0).listens().await;
        started.unwrap_or_else(|finished| panic!("{self:?} did not start: {finished}"))
    }

    /// The status of a request with this key.
    async fn status(self, app: &Server, key: &Key) -> u16 {
        let (header, value) = self.header(key);
        Call::to(app.address, "GET", self.path())
            .header(header, value)
            .await
            .status
    }
}

#[test]
#[ignore = "other tests start it as a separate process"]
fn runs_an_example() {
    let Ok(name) = env::var(EXAMPLE) else { return };
    let example = Example::ALL
        .into_iter()
        .find(|example| example.name() == name);
    example.expect("an example with this name").main();
}

async fn check_revocation_with_paused_app(example: Example) {
    for database in backends() {
        let server = Tollkey::on(&database).serve().await;
        let app = example
            .start(server.address, &server.service_key().await.text)
            .await;
        let (revoked, active) = (example.key(&server).await, example.key(&server).await);
        for key in [&revoked, &active] {
            assert_eq!(example.status(&app, key).await, 200);
        }

        app.signal("STOP").await;
        let began = Instant::now();
        example.revoke(&server, &revoked).await;
        let took = began.elapsed();
        // The lease began some time before, which varies.
        assert!(
            took > LEASE / 6,
            "confirmed after {took:?}, while the app could still accept the key"
        );
        assert!(took < 2 * LEASE, "confirmed only after {took:?}");
        // These requests wait in the sockets of the app, which handles them first.
        let mut waiting = Vec::new();
        let (header, value) = example.header(&revoked);
        for _ in 0..8 {
            let mut connection = Connection::open(app.address)
                .await
                .expect("a listening socket");
            connection
                .get(example.path(), header, &value)
                .await
                .expect("sent");
            waiting.push(connection);
        }
        app.signal("CONT").await;
        let first = example.status(&app, &revoked).await;
        assert!(matches!(first, 401 | 503), "{first} after resuming");
        for mut connection in waiting {
            let (status, body) = connection.answer().await.expect("a response");
            assert!(
                matches!(status, 401 | 503),
                "{status} after resuming: {body}"
            );
        }

        eventually("the app reaches the server again", async || {
            example.status(&app, &active).await == 200
        })
        .await;
        assert_eq!(example.status(&app, &revoked).await, 401);
        app.stop().await;
        server.stop().await;
    }
}

async fn check_app_without_server(example: Example) {
    for database in backends() {
        let tollkey = Tollkey::on(&database);
        let (server, other) = (tollkey.serve().await, tollkey.serve().await);
        let address = server.address;
        let app = example
            .start(address, &server.service_key().await.text)
            .await;
        let (revoked, active, never_sent) = (
            example.key(&server).await,
            example.key(&server).await,
            example.key(&server).await,
        );
        for key in [&revoked, &active] {
            assert_eq!(example.status(&app, key).await, 200);
        }

        server.kill().await;
        let confirmed = Cell::new(None);
        let revocation = async {
            example.revoke(&other, &revoked).await;
            confirmed.set(Some(Instant::now()));
        };
        let requests = async {
            let mut seen = Vec::new();
            while confirmed
                .get()
                .is_none_or(|confirmed| confirmed.elapsed() < LEASE / 6)
            {
                for key in [&revoked, &active] {
                    let is_after = confirmed.get().is_some();
                    seen.push((is_after, example.status(&app, key).await));
                }
                sleep(Duration::from_millis(2)).await;
            }
            seen
        };
        let (seen, ()) = tokio::join!(requests, revocation);
        assert_eq!(
            seen[0],
            (false, 200),
            "a cached key is accepted for the rest of the lease"
        );
        let lease_end = seen
            .iter()
            .position(|(_, status)| *status != 200)
            .expect("a request after the lease");
        for (number, (is_after, status)) in seen.iter().enumerate() {
            let expected = if number < lease_end && !is_after {
                200
            } else {
                503
            };
            assert_eq!(
                *status, expected,
                "request {number}, the lease ended with {lease_end}, after the revocation: {is_after}"
            );
        }
        assert!(seen.iter().any(|(is_after, _)| *is_after));
        for key in [&revoked, &active, &never_sent] {
            assert_eq!(example.status(&app, key).await, 503);
        }

        let server = tollkey
            .clone()
            .with("TOLLKEY_LISTEN", &address.to_string())
            .serve()
            .await;
        eventually("the app reaches the server again", async || {
            example.status(&app, &active).await == 200
        })
        .await;
        assert_eq!(example.status(&app, &revoked).await, 401);
        // The example logs the warnings of the middleware.
        let log = app.stop().await.stderr;
        assert!(
            log.lines()
                .any(|line| line.contains("WARN") && line.contains("tollkey")),
            "{log}"
        );
        server.stop().await;
        other.stop().await;
    }
}

/// Both tests for each example as separate tests, so that their waits overlap.
macro_rules! for_each_example {
    ($($module:ident: $example:expr;)*) => {$(
        mod $module {
            use super::*;

            #[actix_web::test]
            async fn revocation_waits_for_the_lease_of_a_paused_app() {
                check_revocation_with_paused_app($example).await;
            }

            #[actix_web::test]
            async fn app_without_server_rejects_keys_after_its_lease() {
                check_app_without_server($example).await;
            }
        }
    )*};
}

for_each_example! {
    checkout_axum: Example::CheckoutAxum;
    storefront_actix: Example::StorefrontActix;
    vault_axum: Example::VaultAxum;
}
