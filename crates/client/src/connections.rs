//! The connections of a [`Client`](crate::Client): how they are opened, kept alive and replaced when they go silent.
//!
//! A connection whose peer disappears without closing it (a failed host, a firewall that lost its state) looks like one whose
//! server is slow. Three things keep calls from using such a connection repeatedly:
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

/// How long an idle connection is kept: shorter than on the server, so that none is used while the server closes it.
const IDLE: Duration = Duration::from_secs(30);
/// How often an HTTP/2 connection on which nothing arrives sends a PING.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// How long the acknowledgment of a PING may take.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// The idle time before TCP's first probe, and the interval between probes.
const TCP_KEEPALIVE: Duration = Duration::from_secs(2);
/// After how many unacknowledged probes an idle connection ends.
const TCP_KEEPALIVE_PROBES: u32 = 3;
/// How long sent data may be unacknowledged. On Linux it bounds the probes too.
#[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(8);
/// The minimum time between replacements: otherwise each response of a slow server would cost a handshake.
const REPLACEMENT_INTERVAL: Duration = Duration::from_secs(2);
/// An attempt that its caller drops before this time is no sign of a silent connection.
const SILENCE: Duration = Duration::from_secs(1);

/// The settings of an HTTP client that this crate builds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HttpSettings {
    pub(crate) connect_timeout: Duration,
    /// Whether the server's URL is `https://`, which needs CA certificates.
    pub(crate) needs_tls: bool,
}

/// The HTTP client that attempts use, and the means to replace it.
pub(crate) struct Connections {
    /// `None` for the caller's own HTTP client, which cannot be built again.
    settings: Option<HttpSettings>,
    state: Mutex<State>,
}

struct State {
    pool: Pool,
    replaced_at: Option<Instant>,
}

/// An HTTP client with its connection pool, and the number of pools before it.
#[derive(Clone)]
pub(crate) struct Pool {
    pub(crate) client: reqwest::Client,
    generation: u64,
}

impl Connections {
    /// Creates an empty pool with these settings.
    pub(crate) fn open(settings: HttpSettings) -> Result<Self, Error> {
        Ok(Self::new(Some(settings), http_client(settings)?))
    }

    /// Wraps the caller's own HTTP client.
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

    /// Returns a separate pool with the same settings, or `None` for the caller's own HTTP client.
    pub(crate) fn separate(&self) -> Option<Result<Self, Error>> {
        self.settings.map(Self::open)
    }

    /// Returns the pool for the next attempt.
    pub(crate) fn pool(&self) -> Pool {
        self.state().pool.clone()
    }

    /// Makes later attempts open new connections instead of those of `silent`, unless these were replaced already or the last
    /// replacement was less than [`REPLACEMENT_INTERVAL`] ago. Running attempts continue.
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
        // Not under the lock, because this reads the system's certificates.
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

/// A running attempt. Dropping it before [`finish`](Self::finish) replaces the connections if it waited long enough.
pub(crate) struct Pending {
    connections: Option<Arc<Connections>>,
    pool: Pool,
    started: Instant,
    patience: Duration,
}

impl Pending {
    /// Begins an attempt on this pool. Without a response for `limit`, its connection counts as silent.
    pub(crate) fn new(connections: &Arc<Connections>, pool: Pool, limit: Duration) -> Self {
        let patience = limit.min(SILENCE);
        Self {
            connections: Some(connections.clone()),
            pool,
            started: Instant::now(),
            patience,
        }
    }

    /// Ends the attempt: a response arrived, or an error ended the connection.
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

/// Builds an HTTP client with the settings of this crate.
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

/// Returns an error message about missing CA certificates and the remedy, without the values of the variables.
fn no_ca_certificates(is_set: impl Fn(&str) -> bool) -> String {
    let (location, remedy) = match (is_set("SSL_CERT_FILE"), is_set("SSL_CERT_DIR")) {
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
        "base_url is https://, and no CA certificates to check the server's certificate with were found {location}: {remedy}, \
         or pass an HTTP client with its own certificates (ClientBuilder::http_client)"
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
    fn concurrent_silent_attempts_replace_connections_once() {
        let connections = connections();
        let (silent, now) = (connections.pool(), Instant::now());
        for _ in 0..10 {
            connections.replace(&silent, now);
        }
        assert_eq!(connections.pool().generation, 1);
        // Not later either: the pool is already another one.
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
    fn http_client_of_the_caller_is_never_replaced() {
        let connections = Connections::of(reqwest::Client::new());
        connections.replace(&connections.pool(), Instant::now());
        assert_eq!(connections.pool().generation, 0);
        assert!(connections.separate().is_none());
    }

    #[test]
    fn connections_are_replaced_only_after_a_wait() {
        let connections = Arc::new(connections());
        let generation = || connections.pool().generation;
        let pending = |limit| Pending::new(&connections, connections.pool(), limit);
        drop(pending(Duration::from_secs(10)));
        assert_eq!(generation(), 0, "dropped as soon as it began");
        pending(Duration::ZERO).finish();
        assert_eq!(generation(), 0, "there was a response");
        drop(pending(Duration::ZERO));
        assert_eq!(generation(), 1);
    }

    #[test]
    fn error_for_missing_ca_certificates_names_the_remedy() {
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
                text.contains(&format!(" were found {expected}, or pass an HTTP client")),
                "{text}"
            );
        }
    }
}
