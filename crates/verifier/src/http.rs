//! A server of Tollkey as the source: `POST /sync` and `POST /sync/lookup`, through `tollkey-client`.
//!
//! ```no_run
//! # use std::sync::Arc;
//! # use tollkey_client::{Auth, Client};
//! # use tollkey_core::{Catalogue, Need, VerifierId};
//! # use tollkey_verifier::{Settings, SystemClock, Verifier, http::HttpSource};
//! # async fn example(service_key: &str, presented: &str, id: VerifierId) -> Result<(), Box<dyn std::error::Error>> {
//! let tollkey = Client::new("https://keys.example.com")?.with_auth(Auth::service(service_key));
//! let source = HttpSource::new(&tollkey, Arc::new(Catalogue::default()));
//! let verifier = Verifier::subscriber(id, source, Arc::new(SystemClock), Settings::default());
//! tokio::spawn(verifier.clone().subscribe(std::future::pending()));
//! let verdict = verifier.verify(presented, &Need::default()).await?;
//! # Ok(())
//! # }
//! ```

use std::{sync::Arc, time::Duration};

use tollkey_api::sync as api;
use tollkey_client::{Client, Error, subscription::Subscription};
use tollkey_core::{
    ApiKey, Catalogue, Changed, Digest, Grants, Invalid, IpList, KeyId, Position, RateLimit, Record, Scope, Seq, Usage,
    VerifierId, lineage::Inherited, usage::outcome_code,
};

use crate::source::{News, Poll, Snapshot, Source, Unavailable, Upstream};

/// How long an answer may take that nobody was asked to wait for.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A server that is subscribed to over HTTP.
#[derive(Debug)]
pub struct HttpSource {
    subscription: Subscription,
    catalogue: Arc<Catalogue>,
}

impl HttpSource {
    /// The server of that client, which presents a service key. `catalogue` has the scopes that will be asked for; others
    /// that a key has are of no use here. The client's limits of time are replaced: an answer may take two seconds.
    #[must_use]
    pub fn new(client: &Client, catalogue: Arc<Catalogue>) -> Self {
        Self { subscription: client.with_timeout(TIMEOUT).subscription(), catalogue }
    }
}

/// Why there is no answer, for the log: a refused credential is no passing trouble.
fn unavailable(error: Error) -> Unavailable {
    match error.status() {
        Some(400..500) => tracing::warn!(%error, "the server refuses to be asked"),
        Some(200..300) => tracing::warn!(%error, "the server's answer cannot be read"),
        _ => tracing::debug!(%error, "the server cannot be asked"),
    }
    Unavailable
}

fn unreadable(_: impl std::fmt::Debug) -> Unavailable {
    tracing::warn!("the server's answer cannot be understood");
    Unavailable
}

impl Source for HttpSource {
    async fn find(&self, digest: &Digest) -> Result<Snapshot, Unavailable> {
        let found = self.subscription.lookup(*digest).await.map_err(unavailable)?;
        let record = found.key.map(|key| record(key, &self.catalogue)).transpose();
        Ok(Snapshot { seq: Seq(found.seq), record: record.map_err(unreadable)? })
    }
}

impl Upstream for HttpSource {
    async fn poll(&self, poll: Poll) -> Result<News, Unavailable> {
        let mut call = self.subscription.poll(poll.subscriber).wait(poll.wait).usage(poll.usage.iter().map(usage));
        if poll.position != Position::default() {
            call = call.cursor(poll.position.to_string());
        }
        let answer = call.await.map_err(unavailable)?;
        let change = |change: &api::Change| Changed::from_parts(&change.kind, &change.id);
        Ok(News {
            position: answer.cursor.parse().map_err(unreadable)?,
            // What a newer server calls by a word we do not know may be about anything.
            changes: answer.changes.and_then(|changes| changes.iter().map(change).collect::<Result<_, _>>().ok()),
            lease: Duration::from_millis(answer.lease_ms),
        })
    }

    async fn leave(&self, subscriber: VerifierId, counted: Vec<Usage>) -> Result<(), Unavailable> {
        self.subscription.poll(subscriber).usage(counted.iter().map(usage)).leave().await.map_err(unavailable)?;
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
    let rate_limits = key.ancestor_rate_limits.into_iter();
    let rate_limits = rate_limits
        .map(|limit| Ok((limit.key_id.parse()?, limit.rate_limit.try_into()?)))
        .collect::<Result<Vec<(KeyId, RateLimit)>, Invalid>>()?;
    let networks = key.allowed_ips.as_deref().map(|list| IpList::parse_common(list.iter().map(String::as_str)));
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
            // The server has resolved what the ancestors restrict; what a use is counted against comes by itself.
            inherited: (!rate_limits.is_empty()).then(|| Box::new(Inherited { rate_limits, ..Inherited::default() })),
        },
    })
}
