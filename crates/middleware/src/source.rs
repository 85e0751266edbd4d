//! A Tollkey server as the source of a [verifier](tollkey_verifier): `POST /sync` and `POST /sync/lookup`, through
//! `tollkey-client`. A [`Guard`](crate::Guard) uses it; use it directly for a verifier without a guard.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use tollkey_client::{Auth, Client};
//! # use tollkey_core::{AccessRequest, Catalogue, VerifierId};
//! # use tollkey_middleware::source::HttpSource;
//! # use tollkey_verifier::{Settings, SystemClock, Verifier};
//! # async fn example(service_key: &str, presented: &str, id: VerifierId) -> Result<(), Box<dyn std::error::Error>> {
//! let tollkey = Client::new("https://keys.example.com")?.with_auth(Auth::service(service_key));
//! let source = HttpSource::new(&tollkey, Arc::new(Catalogue::default()));
//! let verifier = Verifier::subscriber(id, source, Arc::new(SystemClock), Settings::default());
//! tokio::spawn(verifier.clone().subscribe(std::future::pending()));
//! let verdict = verifier.verify(presented, &AccessRequest::default()).await?;
//! # Ok(())
//! # }
//! ```

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;
use tollkey_api::sync as api;
use tollkey_client::{
    Client, Error, ErrorKind,
    subscription::{self, Subscription},
};
use tollkey_core::{
    AccountId, ApiKey, Catalogue, Changed, Digest, Invalid, IpList, KeyContext, KeyId, Position,
    ProblemCode, RateLimit, Restrictions, Scope, Seq, Usage, lineage::Inherited,
    usage::outcome_code,
};
use tollkey_verifier::{
    EndSubscription, LogLimit, Poll, PollError, PollIds, PollResponse, Snapshot, Source,
    SourceError, Upstream,
};

/// The time limit for a response, in addition to the time that a poll waits for changes.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A subscription to a server over HTTP.
///
/// The client opens a new connection if the current one no longer responds.
#[derive(Debug)]
pub struct HttpSource {
    subscription: Subscription,
    catalogue: Arc<Catalogue>,
    /// The number of polls that will still be sent without IDs, because the server is of a release that rejects IDs.
    without_ids: AtomicU32,
    log: Log,
}

/// The number of polls without IDs before IDs are sent again, because the server may have been upgraded
/// without a failed poll. They take about a minute if nothing changes.
const WITHOUT_IDS: u32 = 60;

/// Logs at most one line per 30 s for each kind of failure.
#[derive(Debug)]
struct Log {
    started: Instant,
    rejected_key: LogLimit,
    rejected_request: LogLimit,
    unreadable: LogLimit,
    older_release: LogLimit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    NoResponse,
    Rejected,
    /// The server, or a proxy in front of it, responds that it is unavailable.
    Unavailable,
    /// This release cannot read the response, or the server cannot read its data.
    Unreadable,
    SharedId,
}

impl From<Failure> for SourceError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NoResponse | Failure::Unavailable => Self::Unavailable,
            Failure::Rejected | Failure::SharedId => Self::Rejected,
            Failure::Unreadable => Self::Unreadable,
        }
    }
}

impl From<Failure> for PollError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NoResponse => Self::Unavailable,
            Failure::Rejected | Failure::Unavailable | Failure::Unreadable => Self::Rejected,
            Failure::SharedId => Self::SharedId,
        }
    }
}

impl Log {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            rejected_key: LogLimit::default(),
            rejected_request: LogLimit::default(),
            unreadable: LogLimit::default(),
            older_release: LogLimit::default(),
        }
    }

    fn allows(&self, limit: &LogLimit) -> bool {
        limit.allows(self.started.elapsed())
    }

    fn failure(&self, error: &Error) -> Failure {
        match (error.kind(), error.status()) {
            (ErrorKind::Rejected, Some(401 | 403)) => {
                if self.allows(&self.rejected_key) {
                    tracing::error!(
                        status = error.status(),
                        code = error.code(),
                        "the server rejects the service key of this process, so it verifies no keys; create a service \
                         key with `tollkey service-key create` and start this process with it"
                    );
                }
                Failure::Rejected
            }
            (ErrorKind::Rejected, _)
                if error.code() == Some(ProblemCode::SubscriberIdShared.as_str()) =>
            {
                Failure::SharedId
            }
            (ErrorKind::Rejected, Some(400..500)) | (ErrorKind::Redirect, _) => {
                if self.allows(&self.rejected_request) {
                    tracing::warn!(%error, "the server rejects requests of this verifier");
                }
                Failure::Rejected
            }
            // Proxies do not send this code: the server is available, but cannot carry out this request.
            (ErrorKind::Rejected, _)
                if error.code() == Some(ProblemCode::InternalError.as_str()) =>
            {
                if self.allows(&self.unreadable) {
                    tracing::warn!(%error, "the server fails with a request of this verifier; see its log");
                }
                Failure::Unreadable
            }
            (ErrorKind::Rejected, _) => {
                tracing::debug!(%error, "the server is unavailable");
                Failure::Unavailable
            }
            (ErrorKind::Unreadable, _) => self.unreadable(error),
            (ErrorKind::Settings | ErrorKind::Argument | ErrorKind::Auth, _) => {
                if self.allows(&self.rejected_request) {
                    tracing::warn!(%error, "the client cannot send requests to the server");
                }
                Failure::NoResponse
            }
            _ => {
                tracing::debug!(%error, "the server does not respond");
                Failure::NoResponse
            }
        }
    }

    /// Logs a response that cannot be read. `error` must not contain values of the response.
    fn unreadable(&self, error: &dyn std::fmt::Display) -> Failure {
        if self.allows(&self.unreadable) {
            tracing::warn!(%error, "cannot read a response of the server, which may be of a newer release");
        }
        Failure::Unreadable
    }
}

impl HttpSource {
    /// Creates a source from a client with a service key. `catalogue` has the scopes that requests can
    /// require; other scopes of a key are ignored. The client's timeout is replaced by two seconds.
    #[must_use]
    pub fn new(client: &Client, catalogue: Arc<Catalogue>) -> Self {
        Self {
            subscription: client.with_timeout(TIMEOUT).subscription(),
            catalogue,
            without_ids: AtomicU32::new(0),
            log: Log::new(),
        }
    }

    /// Sends a poll with its IDs, or without them to a server of an older release.
    async fn send(
        &self,
        poll: subscription::Poll,
        ids: Option<PollIds>,
    ) -> Result<api::SyncResponse, Failure> {
        let decrement = |left: u32| left.checked_sub(1);
        let is_without = self
            .without_ids
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, decrement)
            .is_ok();
        let Some(PollIds { id, previous }) = ids.filter(|_| !is_without) else {
            return poll.await.map_err(|error| self.without_ids(&error));
        };
        let previous = previous.iter().map(ToString::to_string);
        match poll.clone().ids(id.to_string(), previous).await {
            Err(error) if rejects_poll_ids(&error) => {
                self.without_ids.store(WITHOUT_IDS, Ordering::Relaxed);
                if self.log.allows(&self.log.older_release) {
                    tracing::info!(
                        "the server is of an older release; usage may count twice when a response is lost"
                    );
                }
                poll.await.map_err(|error| self.without_ids(&error))
            }
            response => response.map_err(|error| self.log.failure(&error)),
        }
    }

    /// Returns the failure of a poll without IDs. The next poll has IDs again, because the server may have
    /// been upgraded, except after a response that cannot be read.
    fn without_ids(&self, error: &Error) -> Failure {
        let failure = self.log.failure(error);
        if failure != Failure::Unreadable {
            self.without_ids.store(0, Ordering::Relaxed);
        }
        failure
    }
}

fn rejects_poll_ids(error: &Error) -> bool {
    let is_about_ids = |pointer: &str| matches!(pointer, "/poll_id" | "/previous_poll_ids");
    error.is_validation()
        && error
            .errors()
            .iter()
            .any(|field| is_about_ids(&field.pointer))
}

impl Source for HttpSource {
    async fn find(&self, digest: &Digest) -> Result<Snapshot, SourceError> {
        let found = self
            .subscription
            .lookup(*digest)
            .await
            .map_err(|error| self.log.failure(&error))?;
        let record = found
            .key
            .map(|key| record(key, &self.catalogue))
            .transpose();
        Ok(Snapshot {
            seq: Seq(found.seq),
            record: record.map_err(|rule| self.log.unreadable(&rule))?,
        })
    }
}

impl Upstream for HttpSource {
    async fn poll(&self, poll: Poll) -> Result<PollResponse, PollError> {
        let mut call = self
            .subscription
            .poll(poll.subscriber)
            .wait(poll.wait)
            .usage(poll.usage.iter().map(usage));
        if poll.position != Position::default() {
            call = call.cursor(poll.position.to_string());
        }
        let response = self.send(call, poll.ids).await?;
        let change = |change: &api::Change| Changed::from_parts(&change.kind, &change.id);
        Ok(PollResponse {
            position: response
                .cursor
                .parse()
                .map_err(|rule: Invalid| self.log.unreadable(&rule))?,
            // An unknown kind of change, from a newer server, may affect any key, so the cache is cleared.
            changes: response
                .changes
                .and_then(|changes| changes.iter().map(change).collect::<Result<_, _>>().ok()),
            lease: Duration::from_millis(response.lease_ms),
        })
    }

    async fn end_subscription(&self, leave: EndSubscription) -> Result<(), PollError> {
        let call = self
            .subscription
            .poll(leave.subscriber)
            .usage(leave.usage.iter().map(usage))
            .leave();
        self.send(call, leave.ids).await?;
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

/// Converts the key of a response. Leaves out scopes that are not in the catalogue, because no request can
/// require them.
fn record(key: api::KeyRecord, catalogue: &Catalogue) -> Result<KeyContext, Invalid> {
    let scopes: Vec<Scope> = key
        .scopes
        .iter()
        .filter_map(|name| catalogue.parse(name).ok())
        .collect();
    let rate_limits = key.ancestor_rate_limits.into_iter();
    let rate_limits = rate_limits
        .map(|limit| Ok((limit.key_id.parse()?, limit.rate_limit.try_into()?)))
        .collect::<Result<Vec<(KeyId, RateLimit)>, Invalid>>()?;
    let allowed_ips = key
        .allowed_ips
        .as_deref()
        .map(|list| IpList::parse_common(list.iter().map(String::as_str)));
    Ok(KeyContext {
        // The server has expanded the scopes.
        scopes: catalogue.needed(scopes.iter().map(Scope::as_str))?,
        application_enabled: key.application_enabled,
        operating_model: key.operating_model,
        key: ApiKey {
            id: key.id.parse()?,
            // Parsed as a stored ID, because the rules for new IDs may be stricter.
            account_id: AccountId::stored(&key.account_id)?,
            application_id: key.application_id.map(|id| id.parse()).transpose()?,
            name: key.name,
            family: key.family,
            mode: key.mode,
            prefix: key.prefix,
            last4: key.last4,
            restrictions: Restrictions {
                scopes,
                merchants: key.merchants,
                features: key.features,
                allowed_ips: allowed_ips.transpose()?,
                rate_limit: key.rate_limit.map(RateLimit::try_from).transpose()?,
                expires_at: key.expires_at.map(Into::into),
            },
            metadata: key.metadata,
            created_at: key.created_at.into(),
            created_by: None,
            last_used_at: None,
            suspended_at: key.suspended_at.map(Into::into),
            revoked_at: key.revoked_at.map(Into::into),
            revoked_reason: None,
            rotated_from: None,
            rotated_to: None,
            rotated_at: key.rotated_at.map(Into::into),
            // The server has applied the restrictions of the ancestors, except their rate limits.
            inherited: (!rate_limits.is_empty()).then(|| {
                Box::new(Inherited {
                    rate_limits,
                    ..Inherited::default()
                })
            }),
        },
    })
}
