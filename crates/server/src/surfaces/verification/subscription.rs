//! The subscription of resource servers that verify keys from their own cache.

use std::time::Duration;

use actix_web::{HttpResponse, post, web};
use tollkey_api::sync as api;
use tollkey_core::{
    Catalogue, Digest, FieldErrors, Invalid, KeyContext, KeyId, Problem, ProblemCode, Timestamp,
    Usage, time::day, usage::parse_outcome,
};
use tollkey_verifier::{
    EndSubscription, Poll, PollError, PollId, PollIds, PollResponse, SourceError, Upstream as _,
};

use crate::{
    auth::Service,
    body::Body,
    rejection::HandlerResult,
    state::State,
    surfaces::{members, parameters::within},
};

/// Maximum of `wait_ms`, in milliseconds. The server waits for at most a third of a lease.
const MAX_WAIT: u32 = 60_000;

/// Subscribe to changes.
///
/// For processes that verify keys from their own cache. A poll acknowledges the changes whose keys
/// were evicted (`cursor`), waits for further changes, and returns them with a lease. The process
/// may use its cache for `lease_ms`, counted from before the poll was sent, once it has applied the
/// changes of the response.
///
/// The server responds to the caller that makes a change only when every subscriber has
/// acknowledged the change with its next poll, or its lease has ended. Therefore send the next poll
/// immediately, and never use the cache without a lease. The first poll has neither `cursor` nor
/// `wait_ms`. `POST /sync/lookup` returns a key that is not cached.
///
/// For each verification: check that the lease has not ended, then look the key up in the cache.
/// For each poll: apply the changes, start the lease, then acknowledge. Send one poll at a time.
/// Discard a response that arrives after its timeout, and repeat the poll unchanged, with the same
/// `poll_id`.
///
/// If two processes poll with the same `subscriber`, for example a machine and its clone, each of
/// them gets 409 `subscriber_id_shared`. A process that gets it must end its lease and evict every
/// cached key immediately, and continue with a new `subscriber` and a first poll.
#[utoipa::path(
    tag = "verification",
    operation_id = "sync",
    security(("service_key" = []), ("management_token" = [])),
    request_body(content = api::SyncRequest),
    responses(
        (status = 200, description = "The changes and a lease.", body = api::SyncResponse),
        (status = 409, description = "`subscriber_id_shared`: another process polls with the same `subscriber`.", body = tollkey_api::problem::Problem, content_type = "application/problem+json"),
    )
)]
#[post("/sync")]
pub async fn sync(state: web::Data<State>, _: Service, body: Body) -> HandlerResult {
    let now = state.service.clock.now();
    let (leave, poll) = body
        .read_json()?
        .check(|request: api::SyncRequest, checks| {
            let leave = request.leave;
            read(request, now, checks).map(|poll| (leave, poll))
        })?;
    if leave {
        // The response has no changes and no lease.
        let (seq, cursor) = (poll.position.seq.0, poll.position.to_string());
        let Poll {
            subscriber,
            ids,
            usage,
            ..
        } = poll;
        state
            .service
            .verifier
            .end_subscription(EndSubscription {
                subscriber,
                ids,
                usage,
            })
            .await
            .map_err(poll_problem)?;
        return Ok(HttpResponse::Ok().json(api::SyncResponse {
            seq,
            cursor,
            changes: Some(Vec::new()),
            lease_ms: 0,
        }));
    }
    let news = state
        .service
        .verifier
        .poll(poll)
        .await
        .map_err(poll_problem)?;
    Ok(HttpResponse::Ok().json(sync_response(news)))
}

/// Look up a key for a cache.
///
/// Returns all data about a key that a verification needs, whatever the status of the key. The key
/// is found by the SHA-256 of the presented key. This operation does not verify the key and does
/// not count as a use.
///
/// The replica that responds can lag behind the replica of the last poll. Cache the key only if
/// `seq` is at least the `seq` of every response of `POST /sync` that was applied or is being
/// applied, and if no response with `changes` null has arrived since this request was sent. Check
/// this under the lock under which changes are applied. Otherwise use the key for this one request
/// only.
///
/// 500 `internal_error` concerns only this key: the server cannot read its data.
#[utoipa::path(
    tag = "verification",
    operation_id = "syncLookup",
    security(("service_key" = []), ("management_token" = [])),
    request_body(content = api::LookupRequest),
    responses((status = 200, description = "The key, or null.", body = api::LookupResponse))
)]
#[post("/sync/lookup")]
pub async fn sync_lookup(state: web::Data<State>, caller: Service, body: Body) -> HandlerResult {
    let digest: Digest = body
        .read_json()?
        .check(|request: api::LookupRequest, checks| {
            checks.check("/digest", request.digest.parse())
        })?;
    let found = state.service.verifier.find_for(caller.requester(), &digest);
    let snapshot = found.await.map_err(|error| match error {
        // The error concerns only this key: the subscriber continues with lookups of other keys.
        SourceError::Unreadable => Problem::internal(),
        SourceError::Unavailable | SourceError::Rejected => Problem::unavailable(),
    })?;
    let key = snapshot
        .record
        .as_ref()
        .map(|record| key_record(record, &state.service.catalogue));
    Ok(HttpResponse::Ok().json(api::LookupResponse {
        seq: snapshot.seq.0,
        key,
    }))
}

fn poll_problem(error: PollError) -> Problem {
    match error {
        PollError::SharedId => Problem::new(
            ProblemCode::SubscriberIdShared,
            "Another process polls with this subscriber ID. Evict every cached key and continue with a new random ID.",
        ),
        PollError::Unavailable | PollError::Rejected => Problem::unavailable(),
    }
}

fn read_ids(checks: &mut FieldErrors, id: Option<&str>, previous: &[String]) -> Option<PollIds> {
    let id: Option<PollId> = id.and_then(|id| checks.check("/poll_id", id.parse()));
    let rule = match (previous.len(), id) {
        (1.., None) => Some(Invalid::new("requires `/poll_id`")),
        (len, _) if len > PollIds::PREVIOUS => Some(Invalid::new(format!(
            "must have at most {} items",
            PollIds::PREVIOUS
        ))),
        _ => None,
    };
    if let Some(rule) = rule {
        checks.check::<()>("/previous_poll_ids", Err(rule));
    }
    let mut read = |(i, id): (usize, &String)| match id.parse() {
        Ok(id) => Some(id),
        Err(rule) => checks.check(&format!("/previous_poll_ids/{i}"), Err(rule)),
    };
    let previous = previous
        .iter()
        .take(PollIds::PREVIOUS)
        .enumerate()
        .filter_map(&mut read)
        .collect();
    Some(PollIds { id: id?, previous })
}

fn read(request: api::SyncRequest, now: Timestamp, checks: &mut FieldErrors) -> Option<Poll> {
    let subscriber = checks.check("/subscriber", request.subscriber.parse());
    let ids = read_ids(
        checks,
        request.poll_id.as_deref(),
        &request.previous_poll_ids,
    );
    let position = checks.check(
        "/cursor",
        request
            .cursor
            .map_or_else(|| Ok(Default::default()), |text| text.parse()),
    );
    let wait = checks.check("/wait_ms", within(Some(request.wait_ms), 0, 0..=MAX_WAIT));
    if request.usage.len() > Poll::USAGE {
        let rule = Invalid::new(format!("must have at most {} items", Poll::USAGE));
        checks.check::<()>("/usage", Err(rule));
    }
    let mut usage = Vec::with_capacity(request.usage.len().min(Poll::USAGE));
    for (i, row) in request.usage.iter().take(Poll::USAGE).enumerate() {
        let key_id = checks.check(
            &format!("/usage/{i}/key_id"),
            row.key_id.parse::<KeyId>().map_err(Invalid::from),
        );
        let outcome = checks.check(&format!("/usage/{i}/outcome"), parse_outcome(&row.outcome));
        let count = match row.count {
            0 => Err(Invalid::new("must be at least 1")),
            count => u32::try_from(count).map_err(|_| Invalid::new("must be at most 4294967295")),
        };
        let count = checks.check(&format!("/usage/{i}/count"), count);
        let (Some(key_id), Some(outcome), Some(count)) = (key_id, outcome, count) else {
            continue;
        };
        // The clock of the subscriber can be ahead, and a use must not be in the future.
        let last_used_at = row
            .last_used_at
            .map(|at| Timestamp::from(at).min(now))
            .filter(|_| outcome.is_none());
        usage.push(Usage {
            key_id,
            day: day(now),
            outcome,
            count: count.into(),
            last_used_at,
        });
    }
    let wait = Duration::from_millis(wait?.into());
    Some(Poll {
        subscriber: subscriber?,
        ids,
        position: position?,
        wait,
        usage,
    })
}

fn sync_response(news: PollResponse) -> api::SyncResponse {
    let change = |changed: &tollkey_core::Changed| {
        let (kind, id) = changed.to_parts();
        api::Change {
            kind: kind.to_owned(),
            id,
        }
    };
    api::SyncResponse {
        seq: news.position.seq.0,
        cursor: news.position.to_string(),
        changes: news
            .changes
            .map(|changes| changes.iter().map(change).collect()),
        // Truncated, not rounded, because a rounded lease could be longer.
        lease_ms: u64::try_from(news.lease.as_millis()).unwrap_or(u64::MAX),
    }
}

/// The restrictions of the ancestors are included in fields that every release knows, so that a subscriber
/// of the previous release also rejects descendants. It does not know their rate limits.
fn key_record(record: &KeyContext, catalogue: &Catalogue) -> api::KeyRecord {
    let (key, restrictions) = (&record.key, &record.key.restrictions);
    api::KeyRecord {
        id: key.id.to_string(),
        account_id: key.account_id.to_string(),
        application_id: key.application_id.map(|id| id.to_string()),
        name: key.name.clone(),
        family: key.family,
        mode: key.mode,
        prefix: key.prefix.clone(),
        last4: key.last4.clone(),
        scopes: catalogue
            .names(record.scopes)
            .map(|scope| scope.as_str().to_owned())
            .collect(),
        merchants: restrictions.merchants.clone(),
        features: restrictions.features.clone(),
        allowed_ips: members::shown_networks(key.effective_allowlist().as_ref()),
        rate_limit: restrictions.rate_limit.map(Into::into),
        expires_at: key.expiration().map(Into::into),
        metadata: key.metadata.clone(),
        created_at: key.created_at.into(),
        suspended_at: key.suspension().map(Into::into),
        revoked_at: key.revocation().map(|revocation| revocation.at.into()),
        rotated_at: key.rotated_at.map(Into::into),
        application_enabled: record.application_enabled,
        operating_model: record.operating_model,
        ancestor_rate_limits: key
            .inherited
            .iter()
            .flat_map(|inherited| &inherited.rate_limits)
            .map(|(id, limit)| api::AncestorRateLimit {
                key_id: id.to_string(),
                rate_limit: (*limit).into(),
            })
            .collect(),
    }
}
