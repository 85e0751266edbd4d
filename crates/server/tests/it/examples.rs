//! The examples as processes of their own, frozen and thawed, and left without their Tollkey. A test has the path of no other
//! package's binary, so this test binary is started again, to be the `main` of the example and nothing else.

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
    storlaunch,
    support::{Call, Key, eventually},
};

#[path = "../../../../examples/checkout-axum/src/main.rs"]
mod checkout_axum_program;
#[path = "../../../../examples/storefront-actix/src/main.rs"]
mod storefront_actix_program;
#[path = "../../../../examples/vault-axum/src/main.rs"]
mod vault_axum_program;

/// Names the example that the process is.
const EXAMPLE: &str = "TOLLKEY_TEST_EXAMPLE";

/// An example.
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
        ended.expect("it ends in good order");
    }

    /// A path that its own kind of key may read,
    fn path(self) -> &'static str {
        match self {
            Self::CheckoutAxum => "/api/v1/links",
            Self::StorefrontActix => "/v1/account/products",
            Self::VaultAxum => "/tokens",
        }
    }

    /// and the header in which that stands.
    fn header(self, key: &Key) -> (&'static str, String) {
        match self {
            Self::CheckoutAxum | Self::StorefrontActix => {
                ("authorization", format!("Bearer {}", key.text))
            }
            Self::VaultAxum => ("x-api-key", key.text.clone()),
        }
    }

    /// Makes a key of that kind.
    async fn key(self, server: &Server) -> Key {
        let made = match self {
            Self::CheckoutAxum => server.post(
                "/api-keys",
                json!({"name": "Web", "scopes": ["links:read"]}),
            ),
            Self::StorefrontActix => {
                server.post(storlaunch::KEYS, storlaunch::wanted("live", "secret"))
            }
            Self::VaultAxum => server.post("/api-keys", json!({"name": "Vault"})),
        };
        let reply = made.bearer(&merchant("acme")).await;
        assert_eq!(reply.status, 201, "{reply}");
        match self {
            Self::StorefrontActix => storlaunch::made(&reply),
            _ => Key {
                id: member(&reply, "key_id"),
                text: member(&reply, "api_key"),
            },
        }
    }

    /// Revokes one.
    async fn revoke(self, server: &Server, key: &Key) {
        let revocation = match self {
            Self::StorefrontActix => server.delete(&format!("{}/{}", storlaunch::KEYS, key.id)),
            _ => server.post(&format!("/api-keys/{}/revoke", key.id), json!({})),
        };
        let reply = revocation.bearer(&merchant("acme")).await;
        assert!(matches!(reply.status, 200 | 204), "{reply}");
    }

    /// Starts it with a Tollkey and a service key of it, until it listens on a port of its own.
    async fn start(self, tollkey: SocketAddr, service_key: &str) -> Server {
        let mut command = Command::new(env::current_exe().expect("this test binary"));
        command.args([
            "--exact",
            "examples::is_an_example",
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

    /// What it says to a key.
    async fn status(self, app: &Server, key: &Key) -> u16 {
        let (header, value) = self.header(key);
        Call::to(app.address, "GET", self.path())
            .header(header, value)
            .await
            .status
    }
}

/// The process of an [`Example`].
#[test]
#[ignore = "other tests start it as a process of its own"]
fn is_an_example() {
    let Ok(name) = env::var(EXAMPLE) else { return };
    let example = Example::ALL
        .into_iter()
        .find(|example| example.name() == name);
    example.expect("an example of that name").main();
}

async fn a_frozen_app_is_waited_for(example: Example) {
    for database in backends() {
        let server = Tollkey::on(&database).serve().await;
        let app = example
            .start(server.address, &server.service_key().await.text)
            .await;
        let (gone, kept) = (example.key(&server).await, example.key(&server).await);
        for key in [&gone, &kept] {
            assert_eq!(example.status(&app, key).await, 200);
        }

        app.signal("STOP").await;
        let asked = Instant::now();
        example.revoke(&server, &gone).await;
        let took = asked.elapsed();
        // The lease had begun a while before, and how long, is chance.
        assert!(
            took > LEASE / 6,
            "answered after {took:?}, while the app could still say yes"
        );
        assert!(took < 2 * LEASE, "answered only after {took:?}");
        // These wait in its sockets, and are the first that it does.
        let mut waiting = Vec::new();
        let (header, value) = example.header(&gone);
        for _ in 0..8 {
            let mut connection = Connection::open(app.address)
                .await
                .expect("it still listens");
            connection
                .get(example.path(), header, &value)
                .await
                .expect("sent");
            waiting.push(connection);
        }
        app.signal("CONT").await;
        let first = example.status(&app, &gone).await;
        assert!(matches!(first, 401 | 503), "{first} after thawing");
        for mut connection in waiting {
            let (status, body) = connection.answer().await.expect("an answer");
            assert!(
                matches!(status, 401 | 503),
                "{status} after thawing: {body}"
            );
        }

        eventually("it has found the server again", async || {
            example.status(&app, &kept).await == 200
        })
        .await;
        assert_eq!(example.status(&app, &gone).await, 401);
        app.stop().await;
        server.stop().await;
    }
}

async fn an_app_without_its_server_refuses_everything(example: Example) {
    for database in backends() {
        let tollkey = Tollkey::on(&database);
        let (server, other) = (tollkey.serve().await, tollkey.serve().await);
        let address = server.address;
        let app = example
            .start(address, &server.service_key().await.text)
            .await;
        let (gone, kept, never_shown) = (
            example.key(&server).await,
            example.key(&server).await,
            example.key(&server).await,
        );
        for key in [&gone, &kept] {
            assert_eq!(example.status(&app, key).await, 200);
        }

        server.kill().await;
        let answered = Cell::new(None);
        let revocation = async {
            example.revoke(&other, &gone).await;
            answered.set(Some(Instant::now()));
        };
        let requests = async {
            let mut seen = Vec::new();
            while answered
                .get()
                .is_none_or(|answered| answered.elapsed() < LEASE / 6)
            {
                for key in [&gone, &kept] {
                    let is_after = answered.get().is_some();
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
            "what is remembered is answered for the rest of the lease"
        );
        let is_over = seen
            .iter()
            .position(|(_, status)| *status != 200)
            .expect("the lease ends");
        for (number, (is_after, status)) in seen.iter().enumerate() {
            let expected = if number < is_over && !is_after {
                200
            } else {
                503
            };
            assert_eq!(
                *status, expected,
                "request {number}, the lease ended with {is_over}, after: {is_after}"
            );
        }
        assert!(seen.iter().any(|(is_after, _)| *is_after));
        for key in [&gone, &kept, &never_shown] {
            assert_eq!(example.status(&app, key).await, 503);
        }

        let server = tollkey
            .clone()
            .with("TOLLKEY_LISTEN", &address.to_string())
            .serve()
            .await;
        eventually("it has found the server again", async || {
            example.status(&app, &kept).await == 200
        })
        .await;
        assert_eq!(example.status(&app, &gone).await, 401);
        // The example has a log, so that what the middleware warns of is seen.
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

/// A test of each of the two for each example: they wait much, so they wait side by side.
macro_rules! shown_with {
    ($($module:ident: $example:expr;)*) => {$(
        mod $module {
            use super::*;

            #[actix_web::test]
            async fn a_revocation_waits_for_a_frozen_app_and_the_thawed_app_refuses_the_key() {
                a_frozen_app_is_waited_for($example).await;
            }

            #[actix_web::test]
            async fn without_its_server_the_app_refuses_everything_once_the_lease_has_ended() {
                an_app_without_its_server_refuses_everything($example).await;
            }
        }
    )*};
}

shown_with! {
    checkout_axum: Example::CheckoutAxum;
    storefront_actix: Example::StorefrontActix;
    vault_axum: Example::VaultAxum;
}
