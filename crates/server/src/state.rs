//! What a request may use. Passed, never global.

use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use actix_web::{http::header::HeaderName, web::Bytes};
use ipnet::IpNet;
use tollkey_core::{RouteBase, credential::CredentialHeaders};
use tollkey_service::Service;
use tollkey_verifier::LogLimit;

use crate::{auth::jwt::TokenVerifier, public_path::PublicPath, sign_in::SignInMethods};

/// What a request may use.
pub struct State {
    /// The use-cases.
    pub service: Service,
    /// Verifies management tokens.
    pub tokens: TokenVerifier,
    /// The methods to sign in to the dashboard.
    pub sign_in: SignInMethods,
    /// What the operator set about requests.
    pub policy: Policy,
    /// The path prefix under which clients reach the server.
    pub public_path: PublicPath,
    /// The OpenAPI document, for clients under that prefix.
    pub document: OnceLock<Bytes>,
    /// Set while the server stops: it is no longer ready.
    pub draining: AtomicBool,
    /// How often is logged what any request can cause.
    pub log_limits: LogLimits,
}

/// Limits of log lines that any request can cause.
#[derive(Debug)]
pub struct LogLimits {
    /// A trusted proxy sends a client address that cannot be read.
    pub unreadable_hop: LogLimit,
    /// A gateway requires something unknown. Several lines, because each can be about another route.
    pub gateway_requirement: LogLimit,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            unreadable_hop: LogLimit::default(),
            gateway_requirement: LogLimit::new(20),
        }
    }
}

/// What the operator decided, as far as requests are judged by it.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// The header in which gateways pass the merchant a request is about.
    pub merchant_header: HeaderName,
    /// The headers that the gateway routes read a credential from.
    pub credential_headers: CredentialHeaders,
    /// Cut once from the path of a request before routes are matched.
    pub route_base: RouteBase,
    /// Whether this is development mode, which takes no management requests through a proxy.
    pub development: bool,
}

impl State {
    /// The server stops soon: it is no longer ready, and polls of subscribers wait no longer, so that they move to another
    /// replica.
    pub fn begin_drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.service.verifier.release_polls();
    }

    /// Whether the server stops soon.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Whether requests can be answered: the store answers and takes changes, its schema is not older than this build's,
    /// and the server is not stopping. A newer one works for the release before it: while servers are replaced one after
    /// the other, those that are left are ready.
    pub async fn is_ready(&self) -> bool {
        !self.is_draining() && self.service.store.ready().await.is_ok()
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}
