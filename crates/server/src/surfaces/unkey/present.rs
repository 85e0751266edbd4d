//! Converts the results of verifications and problems.

use actix_web::{HttpResponse, HttpResponseBuilder, http::StatusCode};
use jiff::Timestamp;
use tollkey_api::{problem::MEDIA_TYPE, unkey as api};
use tollkey_core::{Catalogue, KeyContext, metadata::Metadata};
use tollkey_verifier::Verdict;

use crate::surface::Rendered;

pub(super) fn verification(
    verdict: &Verdict,
    catalogue: &Catalogue,
    now: Timestamp,
) -> api::Verification {
    let code = verdict
        .outcome
        .map_or_else(api::Code::from, |()| api::Code::Valid);
    match verdict.record.as_deref() {
        Some(record) if code != api::Code::NotFound => api::Verification {
            valid: verdict.outcome.is_ok(),
            code: code.into(),
            ratelimits: rate_limits(verdict, record, now),
            ..key(record, catalogue)
        },
        _ => api::Verification::not_found(),
    }
}

fn key(record: &KeyContext, catalogue: &Catalogue) -> api::Verification {
    let key = &record.key;
    let account_id = key.account_id.to_string();
    api::Verification {
        key_id: Some(key.id.to_string()),
        name: Some(key.name.clone()),
        meta: key.metadata.as_ref().map(Metadata::object),
        expires: key.restrictions.expires_at.map(Timestamp::as_millisecond),
        enabled: Some(key.suspension().is_none() && record.application_enabled),
        permissions: Some(catalogue.names(record.scopes).cloned().collect()),
        identity: Some(api::Identity {
            id: account_id.clone(),
            external_id: account_id,
        }),
        ..api::Verification::not_found()
    }
}

fn rate_limits(
    verdict: &Verdict,
    record: &KeyContext,
    now: Timestamp,
) -> Option<Vec<api::RateLimitState>> {
    let rate = verdict.rate?;
    let seconds = verdict.retry_after_seconds.unwrap_or(rate.reset_seconds);
    Some(vec![api::RateLimitState {
        exceeded: verdict.outcome.is_err(),
        id: record.key.id.to_string(),
        name: "key".to_owned(),
        limit: rate.limit,
        duration: u64::from(rate.window_seconds) * 1000,
        reset: now.as_millisecond() + i64::from(seconds) * 1000,
        remaining: rate.remaining,
        auto_apply: true,
    }])
}

pub(super) fn problem(mut response: HttpResponseBuilder, rendered: &Rendered<'_>) -> HttpResponse {
    let error = api::ErrorResponse::new(rendered.problem, rendered.request_id);
    // The SDKs expect another media type with this status.
    if error.error.status == StatusCode::TOO_MANY_REQUESTS.as_u16() {
        response.content_type(MEDIA_TYPE);
    }
    response.json(error)
}
