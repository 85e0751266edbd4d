//! Converts the results of verifications to API responses.

use jiff::Timestamp;
use tollkey_api::verification as api;
use tollkey_core::{Catalogue, Denial, Family, KeyContext, ScopeSet, metadata::Metadata};
use tollkey_verifier::Verdict;

use crate::surfaces::members;

pub(super) fn verdict(
    verdict: &Verdict,
    needed: ScopeSet,
    catalogue: &Catalogue,
) -> api::VerifyResponse {
    let invalid = |code: Denial, missing_scopes| {
        api::VerifyResponse::Invalid(api::Invalid {
            valid: false,
            code: code.into(),
            missing_scopes,
        })
    };
    let record = match (verdict.outcome, verdict.record.as_deref()) {
        (Ok(()), Some(record)) => record,
        (Ok(()), None) => return invalid(Denial::UnknownKey, None),
        (Err(Denial::InsufficientScope), Some(record)) => {
            let missing = catalogue
                .names(needed.without(record.scopes))
                .cloned()
                .collect();
            return invalid(Denial::InsufficientScope, Some(missing));
        }
        (Err(denial), _) => return invalid(denial, None),
    };
    api::VerifyResponse::Valid(api::Valid {
        valid: true,
        code: "valid".to_owned(),
        key: verified_key(record, catalogue),
        rate_limit: verdict.rate.map(|rate| api::RateLimitState {
            limit: rate.limit,
            remaining: rate.remaining,
            reset_seconds: rate.reset_seconds.into(),
            window_seconds: rate.window_seconds,
        }),
    })
}

fn verified_key(record: &KeyContext, catalogue: &Catalogue) -> api::VerifiedKey {
    let key = &record.key;
    api::VerifiedKey {
        id: key.id.to_string(),
        account_id: key.account_id.to_string(),
        application_id: key.application_id.map(|id| id.to_string()),
        name: key.name.clone(),
        family: key.family.into(),
        mode: key.mode.into(),
        scopes: catalogue.names(record.scopes).cloned().collect(),
        merchants: key.restrictions.merchants.clone(),
        features: members::shown_features(&key.restrictions),
        expires_at: key.restrictions.expires_at.map(Into::into),
        metadata: key.metadata.as_ref().map(Metadata::object),
    }
}

pub(super) fn introspection(verdict: &Verdict, catalogue: &Catalogue) -> api::IntrospectResponse {
    let Some(record) = verdict.allowed() else {
        return api::IntrospectResponse::inactive();
    };
    let key = &record.key;
    api::IntrospectResponse {
        active: true,
        scope: Some(catalogue.joined(record.scopes)),
        client_id: key.application_id.map(|id| id.to_string()),
        sub: Some(key.account_id.to_string()),
        token_type: Some("Bearer".to_owned()),
        exp: key.restrictions.expires_at.map(Into::into),
        iat: Some(key.created_at.into()),
        jti: Some(key.id.to_string()),
        mode: Some(key.mode.into()),
    }
}

pub(super) fn whoami(record: &KeyContext, catalogue: &Catalogue, now: Timestamp) -> api::WhoAmI {
    let key = &record.key;
    let rest = (key.family != Family::Publishable).then(|| api::WhoAmIRest {
        account_id: key.account_id.to_string(),
        application_id: key.application_id.map(|id| id.to_string()),
        name: key.name.clone(),
        scopes: catalogue.names(record.scopes).cloned().collect(),
        merchants: key.restrictions.merchants.clone(),
        features: members::shown_features(&key.restrictions),
        created_at: key.created_at.into(),
        expires_at: key.restrictions.expires_at.map(Into::into),
    });
    api::WhoAmI {
        id: key.id.to_string(),
        family: key.family.into(),
        mode: key.mode.into(),
        status: key.status(now).into(),
        rest,
    }
}
