//! A server of Tollkey as the source: `POST /sync` and `POST /sync/lookup`.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use tollkey_core::{Catalogue, Need, VerifierId};
//! # use tollkey_verifier::{Settings, SystemClock, Verifier, http::HttpSource};
//! # async fn example(service_key: &str, presented: &str, id: VerifierId) -> Result<(), Box<dyn std::error::Error>> {
//! let source = HttpSource::new("https://keys.example.com", service_key, Arc::new(Catalogue::default()))?;
//! let verifier = Verifier::subscriber(id, source, Arc::new(SystemClock), Settings::default());
//! tokio::spawn(verifier.clone().subscribe(std::future::pending()));
//! let verdict = verifier.verify(presented, &Need::default()).await?;
//! # Ok(())
//! # }
//! ```

use std::{fmt, sync::Arc, time::Duration};

use reqwest::{
    Client, StatusCode, Url,
    header::{AUTHORIZATION, HeaderMap, HeaderValue, InvalidHeaderValue},
    redirect::Policy,
};
use serde::{Serialize, de::DeserializeOwned};
use tollkey_api::sync as api;
use tollkey_core::{
    ApiKey, Catalogue, Changed, Digest, Grants, Invalid, IpList, Position, RateLimit, Record, Scope, Seq, Usage,
    VerifierId, metadata::Metadata, usage::outcome_code,
};

use crate::source::{News, Poll, Snapshot, Source, Unavailable, Upstream};

/// How long a connection may take,
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// and an answer that nobody was asked to wait for.
const TIMEOUT: Duration = Duration::from_secs(2);
/// For how long an idle connection is kept: not as long as the server does, so that none is used that it is closing.
const IDLE: Duration = Duration::from_secs(30);
/// The longest answer that is read: 500 changes, or one key with its metadata, are well below.
const MAX_ANSWER: usize = 1024 * 1024;

/// The source cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The base URL.
    #[error("the URL of the server must be http:// or https:// without query: {0:?}")]
    Url(String),
    /// The service key.
    #[error("the service key has characters that no header takes")]
    ServiceKey(#[from] InvalidHeaderValue),
    /// The HTTP client, for lack of certificate authorities for instance.
    #[error("no HTTP client: {0}")]
    Client(#[from] reqwest::Error),
}

/// A server that is subscribed to over HTTP.
pub struct HttpSource {
    client: Client,
    sync: Url,
    lookup: Url,
    catalogue: Arc<Catalogue>,
}

impl fmt::Debug for HttpSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpSource").field("sync", &self.sync.as_str()).finish_non_exhaustive()
    }
}

impl HttpSource {
    /// The server at `base`, asked with that service key. `catalogue` has the scopes that will be asked for; others
    /// that a key has are of no use here.
    ///
    /// # Errors
    /// [`SetupError`]. Nothing is sent yet.
    pub fn new(base: &str, service_key: &str, catalogue: Arc<Catalogue>) -> Result<Self, SetupError> {
        let mut bearer = HeaderValue::from_str(&format!("Bearer {service_key}"))?;
        bearer.set_sensitive(true);
        let client = Client::builder()
            .default_headers(HeaderMap::from_iter([(AUTHORIZATION, bearer)]))
            .user_agent(concat!("tollkey-rust/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE)
            .redirect(Policy::none())
            .build()?;
        let bad = || SetupError::Url(base.to_owned());
        let url = |path: &str| {
            let url = Url::parse(&format!("{}/api/v1/{path}", base.trim_end_matches('/'))).map_err(|_| bad())?;
            let whole = matches!(url.scheme(), "http" | "https")
                && url.query().is_none()
                && url.fragment().is_none()
                && url.username().is_empty()
                && url.password().is_none();
            if whole { Ok(url) } else { Err(bad()) }
        };
        Ok(Self { sync: url("sync")?, lookup: url("sync/lookup")?, client, catalogue })
    }

    async fn post<T: DeserializeOwned>(
        &self,
        url: &Url,
        body: &impl Serialize,
        timeout: Duration,
    ) -> Result<T, Unavailable> {
        let answer = async {
            let mut response = self.client.post(url.clone()).json(body).timeout(timeout).send().await?;
            let status = response.status();
            let mut bytes = Vec::new();
            while let Some(chunk) = response.chunk().await? {
                if bytes.len() + chunk.len() > MAX_ANSWER {
                    return Ok((status, None));
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok::<_, reqwest::Error>((status, Some(bytes)))
        };
        let (status, bytes) = answer.await.map_err(|error| {
            tracing::debug!(%url, %error, "the server cannot be asked");
            Unavailable
        })?;
        if status != StatusCode::OK {
            // A refused credential is no passing trouble.
            if status.is_client_error() {
                tracing::warn!(%url, %status, "the server refuses to be asked");
            } else {
                tracing::debug!(%url, %status, "the server does not answer");
            }
            return Err(Unavailable);
        }
        let answer = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        answer.ok_or_else(|| unreadable(url))
    }
}

fn unreadable(url: &Url) -> Unavailable {
    tracing::warn!(%url, "the server's answer cannot be read");
    Unavailable
}

impl Source for HttpSource {
    async fn find(&self, digest: &Digest) -> Result<Snapshot, Unavailable> {
        let body = api::LookupRequest { digest: digest.hex().to_string() };
        let found: api::LookupResponse = self.post(&self.lookup, &body, TIMEOUT).await?;
        let record = found.key.map(|key| record(key, &self.catalogue)).transpose();
        Ok(Snapshot { seq: Seq(found.seq), record: record.map_err(|_| unreadable(&self.lookup))? })
    }
}

impl Upstream for HttpSource {
    async fn poll(&self, poll: Poll) -> Result<News, Unavailable> {
        let body = api::SyncRequest {
            subscriber: poll.subscriber.to_string(),
            cursor: (poll.position != Position::default()).then(|| poll.position.to_string()),
            wait_ms: u32::try_from(poll.wait.as_millis()).unwrap_or(u32::MAX),
            usage: poll.usage.iter().map(usage).collect(),
            leave: false,
        };
        let answer: api::SyncResponse = self.post(&self.sync, &body, poll.wait + TIMEOUT).await?;
        let change = |change: &api::Change| Changed::from_parts(&change.kind, &change.id);
        Ok(News {
            position: answer.cursor.parse().map_err(|_| unreadable(&self.sync))?,
            // What a newer server calls by a word we do not know may be about anything.
            changes: answer.changes.and_then(|changes| changes.iter().map(change).collect::<Result<_, _>>().ok()),
            lease: Duration::from_millis(answer.lease_ms),
        })
    }

    async fn leave(&self, subscriber: VerifierId, counted: Vec<Usage>) -> Result<(), Unavailable> {
        let body = api::SyncRequest {
            subscriber: subscriber.to_string(),
            usage: counted.iter().map(usage).collect(),
            leave: true,
            ..api::SyncRequest::default()
        };
        let _: api::SyncResponse = self.post(&self.sync, &body, TIMEOUT).await?;
        Ok(())
    }
}

fn usage(usage: &Usage) -> api::Usage {
    api::Usage {
        key_id: usage.key_id.to_string(),
        outcome: outcome_code(usage.outcome).to_owned(),
        count: usage.count.min(u32::MAX.into()),
        last_used_at: usage.last_used_at.map(Into::into),
    }
}

/// A key as the server has it. Scopes that are not in the catalogue cannot be asked for here.
fn record(key: api::KeyRecord, catalogue: &Catalogue) -> Result<Record, Invalid> {
    let scopes: Vec<Scope> = key.scopes.iter().filter_map(|name| catalogue.parse(name).ok()).collect();
    let networks = key.allowed_ips.as_deref().map(|list| IpList::parse(list.iter().map(String::as_str)));
    Ok(Record {
        // Expanded by the server; nothing is implied by anything here.
        scopes: catalogue.needed(scopes.iter().map(Scope::as_str))?,
        application_enabled: key.application_enabled,
        operating_model: key.operating_model,
        key: ApiKey {
            id: key.id.parse()?,
            account_id: key.account_id.parse()?,
            application_id: key.application_id.map(|id| id.parse()).transpose()?,
            name: key.name,
            family: key.family,
            mode: key.mode,
            prefix: key.prefix,
            last4: key.last4,
            grants: Grants {
                scopes,
                merchants: key.merchants,
                features: key.features,
                allowed_ips: networks.transpose()?,
                rate_limit: key.rate_limit.map(RateLimit::try_from).transpose()?,
                expires_at: key.expires_at.map(Into::into),
            },
            metadata: key.metadata.map(Metadata::new).transpose()?,
            created_at: key.created_at.into(),
            created_by: None,
            last_used_at: None,
            suspended_at: key.suspended_at.map(Into::into),
            revoked_at: key.revoked_at.map(Into::into),
            revoked_reason: None,
            rotated_from: None,
            rotated_to: None,
            rotated_at: key.rotated_at.map(Into::into),
        },
    })
}
