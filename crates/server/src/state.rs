//! The state that requests use.

use std::{
    fmt,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use actix_web::http::header::HeaderName;
use ipnet::IpNet;
use tollkey_core::{RouteBase, credential::CredentialHeaders};
use tollkey_service::Service;
use tollkey_verifier::LogLimit;

use crate::{
    auth::jwt::TokenVerifier, public_path::PublicPath, sign_in::SignInMethods,
    static_file::StaticFile,
};

pub struct State {
    pub service: Service,
    pub tokens: TokenVerifier,
    pub sign_in: SignInMethods,
    pub request_settings: RequestSettings,
    pub public_path: PublicPath,
    /// The OpenAPI document for clients under `public_path`.
    pub document: OnceLock<StaticFile>,
    pub draining: AtomicBool,
    pub log_limits: LogLimits,
}

/// Limits of log lines that any request can cause.
#[derive(Debug)]
pub struct LogLimits {
    /// A trusted proxy sent an unreadable client address.
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

#[derive(Debug, Clone)]
pub struct RequestSettings {
    pub trusted_proxies: Vec<IpNet>,
    pub merchant_header: HeaderName,
    pub credential_headers: CredentialHeaders,
    pub route_base: RouteBase,
    /// Whether this is development mode, which rejects management requests through a proxy.
    pub development: bool,
}

impl State {
    /// Begins the drain: the server is no longer ready, and polls of subscribers return immediately.
    pub fn begin_drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.service.verifier.release_polls();
    }

    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// Returns whether the server can process requests: the store can be read and written, its schema is not older
    /// than this build's, and the server is not draining. A newer schema works with the previous release, so during a
    /// rolling update the remaining servers stay ready.
    pub async fn is_ready(&self) -> bool {
        !self.is_draining() && self.service.store.ready().await.is_ok()
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("request_settings", &self.request_settings)
            .finish_non_exhaustive()
    }
}
