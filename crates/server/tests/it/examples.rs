//! The examples as processes of their own, to be frozen and killed. A test has the path of no other package's binary, so this test
//! binary is started again, to be the `main` of the example and nothing else.

use std::{env, net::SocketAddr, process::Stdio, sync::Arc};

use tokio::process::Command;

use crate::binary::{Process, Server, Tollkey};

#[path = "../../../../examples/checkout-axum/src/main.rs"]
mod checkout_axum_program;

/// Names the example that the process is.
const EXAMPLE: &str = "TOLLKEY_TEST_EXAMPLE";

/// An example.
#[derive(Clone, Copy, Debug)]
pub enum Example {
    CheckoutAxum,
}

impl Example {
    const ALL: [Self; 1] = [Self::CheckoutAxum];

    fn name(self) -> &'static str {
        match self {
            Self::CheckoutAxum => "checkout-axum",
        }
    }

    fn main(self) {
        let ended = match self {
            Self::CheckoutAxum => checkout_axum_program::main(),
        };
        ended.expect("it ends in good order");
    }

    /// Starts it with a Tollkey and a service key of it, until it listens on a port of its own.
    pub async fn start(self, tollkey: SocketAddr, service_key: &str) -> Server {
        let mut command = Command::new(env::current_exe().expect("this test binary"));
        command.args(["--exact", "examples::is_an_example", "--ignored", "--nocapture"]);
        command.env_clear().envs(Tollkey::bare().environment()).env(EXAMPLE, self.name());
        command.env("TOLLKEY_URL", format!("http://{tollkey}")).env("TOLLKEY_SERVICE_KEY", service_key);
        command.env("LISTEN", "127.0.0.1:0").stdin(Stdio::null()).kill_on_drop(true);
        let outputs = Arc::new(tempfile::tempdir().expect("a temporary directory"));
        let started = Process::spawn(command, &outputs, 0).listens().await;
        started.unwrap_or_else(|finished| panic!("{self:?} did not start: {finished}"))
    }
}

/// The process of an [`Example`].
#[test]
#[ignore = "other tests start it as a process of its own"]
fn is_an_example() {
    let Ok(name) = env::var(EXAMPLE) else { return };
    let example = Example::ALL.into_iter().find(|example| example.name() == name);
    example.expect("an example of that name").main();
}
