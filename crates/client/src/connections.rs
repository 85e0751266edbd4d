//! The connections under a [`Client`](crate::Client): how they are opened, kept alive, and left behind when they go silent.
//!
//! A connection whose other end disappears without closing it (a failed host, a firewall that lost its state) looks like one whose
//! server is slow. Three things keep calls from using such a connection again and again:
//! - HTTP/2 connections send a PING every two seconds, also while idle, and end when it is not acknowledged.
//! - TCP ends a connection whose packets are not acknowledged.
//! - An attempt that ends without a response makes later attempts open new connections ([`Connections::replace`]). HTTP/1.1
//!   needs this: it has no PING, and the pool may hold many connections that fail one call each.

use std::{
    env,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use reqwest::redirect::Policy;

use crate::{Error, error::Kind};

/// For how long an idle connection is kept: shorter than the server does, so that none is used that the server is closing.
const IDLE: Duration = Duration::from_secs(30);
/// How often an HTTP/2 connection on which nothing arrives sends a PING.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// How long the acknowledgment of a PING may take.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// When TCP probes an idle connection, and then how often.
const TCP_KEEPALIVE: Duration = Duration::from_secs(2);
/// After how many unacknowledged probes an idle connection ends.
const TCP_KEEPALIVE_PROBES: u32 = 3;
/// How long sent data may be unacknowledged. On Linux it bounds the probes too.
#[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(8);
/// How often connections are replaced at most: a server that is only slow must not cost a handshake for each slow response.
const REPLACEMENT_INTERVAL: Duration = Duration::from_secs(2);
/// An attempt that its caller drops sooner says nothing about its connection.
const SILENCE: Duration = Duration::from_secs(1);

/// What a client of ours is built with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HttpSettings {
    pub(crate) connect_timeout: Duration,
    /// Whether the server is at an `https://` URL, which takes CA certificates.
    pub(crate) needs_tls: bool,
}

/// The HTTP client that attempts use, and the means to replace it.
pub(crate) struct Connections {
    /// `None` for an HTTP client of the caller's, which cannot be built again.
    settings: Option<HttpSettings>,
    state: Mutex<State>,
}

struct State {
    pool: Pool,
    replaced_at: Option<Instant>,
}

/// An HTTP client with its connection pool, and how many came before it.
#[derive(Clone)]
pub(crate) struct Pool {
    pub(crate) client: reqwest::Client,
    generation: u64,
}

impl Connections {
    /// No connection yet, with these settings.
    pub(crate) fn open(settings: HttpSettings) -> Result<Self, Error> {
        Ok(Self::new(Some(settings), http_client(settings)?))
    }

    /// The pool of the caller's own HTTP client.
    pub(crate) fn of(client: reqwest::Client) -> Self {
        Self::new(None, client)
    }

    fn new(settings: Option<HttpSettings>, client: reqwest::Client) -> Self {
        Self {
            settings,
            state: Mutex::new(State {
                pool: Pool {
                    client,
                    generation: 0,
                },
                replaced_at: None,
            }),
        }
    }

    /// A pool of its own with the same settings. `None` for an HTTP client of the caller's.
    pub(crate) fn separate(&self) -> Option<Result<Self, Error>> {
        self.settings.map(Self::open)
    }

    /// What the next attempt uses.
    pub(crate) fn pool(&self) -> Pool {
        self.state().pool.clone()
    }

    /// Makes later attempts open new connections instead of those of `silent`, unless these were replaced already or others
    /// were a moment ago. Attempts under way go on.
    fn replace(&self, silent: &Pool, now: Instant) {
        let Some(settings) = self.settings else {
            return;
        };
        {
            let mut state = self.state();
            let too_soon = state
                .replaced_at
                .is_some_and(|at| now.saturating_duration_since(at) < REPLACEMENT_INTERVAL);
            if state.pool.generation != silent.generation || too_soon {
                return;
            }
            state.replaced_at = Some(now);
        }
        // Outside the lock: it reads the system's certificates.
        match http_client(settings) {
            Ok(client) => {
                let generation = silent.generation + 1;
                tracing::debug!(
                    generation,
                    "an attempt had no response: later attempts open new connections"
                );
                self.state().pool = Pool { client, generation };
            }
            Err(error) => tracing::warn!(%error, "connections that may be dead cannot be replaced"),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An attempt under way. Dropped before [`finish`](Self::finish), it replaces the connections: its time ran out.
pub(crate) struct Pending {
    connections: Option<Arc<Connections>>,
    pool: Pool,
    started: Instant,
    patience: Duration,
}

impl Pending {
    /// An attempt on this pool that begins now. Without a response for `limit`, its connection counts as silent.
    pub(crate) fn new(connections: &Arc<Connections>, pool: Pool, limit: Duration) -> Self {
        let patience = limit.min(SILENCE);
        Self {
            connections: Some(connections.clone()),
            pool,
            started: Instant::now(),
            patience,
        }
    }

    /// There is a response, or an error that ended the connection.
    pub(crate) fn finish(mut self) {
        self.connections = None;
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let now = Instant::now();
        if let Some(connections) = self.connections.take()
            && now.saturating_duration_since(self.started) >= self.patience
        {
            connections.replace(&self.pool, now);
        }
    }
}

/// An HTTP client with the settings that every client of ours has.
///
/// On a machine without CA certificates it trusts none, which is enough for `http://`.
fn http_client(settings: HttpSettings) -> Result<reqwest::Client, Error> {
    let failure = match builder(settings).build() {
        Ok(client) => return Ok(client),
        Err(failure) => failure,
    };
    let without_ca = builder(settings).tls_certs_only([]).build();
    let rule = match without_ca {
        Ok(client) if !settings.needs_tls => return Ok(client),
        Ok(_) => {
            no_ca_certificates(|name| env::var_os(name).is_some_and(|value| !value.is_empty()))
        }
        Err(_) => "the HTTP client cannot be built".to_owned(),
    };
    Err(Error::with_source(
        Kind::Settings(rule),
        failure.without_url(),
    ))
}

fn builder(settings: HttpSettings) -> reqwest::ClientBuilder {
    let builder = reqwest::Client::builder()
        .connect_timeout(settings.connect_timeout)
        .pool_idle_timeout(IDLE)
        .http2_keep_alive_interval(PING_INTERVAL)
        .http2_keep_alive_timeout(PING_TIMEOUT)
        .http2_keep_alive_while_idle(true)
        .tcp_keepalive(TCP_KEEPALIVE)
        .tcp_keepalive_interval(TCP_KEEPALIVE)
        .tcp_keepalive_retries(TCP_KEEPALIVE_PROBES)
        .redirect(Policy::none());
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    let builder = builder.tcp_user_timeout(TCP_USER_TIMEOUT);
    builder
}

/// Says which certificates are missing, and what to do. The values of the variables are not repeated.
fn no_ca_certificates(is_set: impl Fn(&str) -> bool) -> String {
    let (place, remedy) = match (is_set("SSL_CERT_FILE"), is_set("SSL_CERT_DIR")) {
        (false, false) => {
            let remedy = "install the package ca-certificates, set SSL_CERT_FILE or SSL_CERT_DIR";
            ("in the certificate store of this machine", remedy)
        }
        (true, false) => (
            "in the file that SSL_CERT_FILE names",
            "correct or unset SSL_CERT_FILE",
        ),
        (false, true) => (
            "in the directories that SSL_CERT_DIR names",
            "correct or unset SSL_CERT_DIR",
        ),
        (true, true) => (
            "where SSL_CERT_FILE and SSL_CERT_DIR point to",
            "correct or unset SSL_CERT_FILE and SSL_CERT_DIR",
        ),
    };
    format!(
        "base_url is https://, and no CA certificates to check the server's certificate with were found {place}: {remedy}, \
         or give an HTTP client with certificates of its own (ClientBuilder::http_client)"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connections() -> Connections {
        let settings = HttpSettings {
            connect_timeout: Duration::from_secs(3),
            needs_tls: false,
        };
        Connections::open(settings).unwrap()
    }

    #[test]
    fn connections_are_replaced_once_for_attempts_at_once() {
        let connections = connections();
        let (silent, now) = (connections.pool(), Instant::now());
        for _ in 0..10 {
            connections.replace(&silent, now);
        }
        assert_eq!(connections.pool().generation, 1);
        // Not even later: others have taken their place.
        connections.replace(&silent, now + 10 * REPLACEMENT_INTERVAL);
        assert_eq!(connections.pool().generation, 1);
    }

    #[test]
    fn connections_are_replaced_at_most_every_two_seconds() {
        let connections = connections();
        let now = Instant::now();
        let mut replaced = Vec::new();
        for tenth in 0..=100 {
            let before = connections.pool();
            connections.replace(&before, now + Duration::from_millis(100) * tenth);
            if connections.pool().generation != before.generation {
                replaced.push(tenth);
            }
        }
        assert_eq!(replaced, [0, 20, 40, 60, 80, 100]);
    }

    #[test]
    fn client_of_the_caller_is_never_replaced() {
        let connections = Connections::of(reqwest::Client::new());
        connections.replace(&connections.pool(), Instant::now());
        assert_eq!(connections.pool().generation, 0);
        assert!(connections.separate().is_none());
    }

    #[test]
    fn only_an_attempt_that_waited_replaces_connections() {
        let connections = Arc::new(connections());
        let generation = || connections.pool().generation;
        drop(Pending::new(
            &connections,
            connections.pool(),
            Duration::from_secs(10),
        ));
        assert_eq!(generation(), 0, "dropped as soon as it began");
        Pending::new(&connections, connections.pool(), Duration::ZERO).finish();
        assert_eq!(generation(), 0, "there was a response");
        drop(Pending::new(
            &connections,
            connections.pool(),
            Duration::ZERO,
        ));
        assert_eq!(generation(), 1);
    }

    #[test]
    fn missing_ca_certificates_are_named_with_the_remedy() {
        let rows: [(&[&str], &str); 4] = [
            (
                &[],
                "in the certificate store of this machine: install the package ca-certificates, set SSL_CERT_FILE or \
                 SSL_CERT_DIR",
            ),
            (
                &["SSL_CERT_FILE"],
                "in the file that SSL_CERT_FILE names: correct or unset SSL_CERT_FILE",
            ),
            (
                &["SSL_CERT_DIR"],
                "in the directories that SSL_CERT_DIR names: correct or unset SSL_CERT_DIR",
            ),
            (
                &["SSL_CERT_FILE", "SSL_CERT_DIR"],
                "where SSL_CERT_FILE and SSL_CERT_DIR point to: correct or unset SSL_CERT_FILE and SSL_CERT_DIR",
            ),
        ];
        for (set, expected) in rows {
            let text = no_ca_certificates(|name| set.contains(&name));
            assert!(
                text.contains(&format!(" were found {expected}, or give an HTTP client")),
                "{text}"
            );
        }
    }
}
