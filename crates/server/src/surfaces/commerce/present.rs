//! Converts commerce keys and their requests.

use jiff::Timestamp;
use tollkey_api::{Patch, Secret, commerce as api};
use tollkey_core::{
    ApiKey, Catalogue, FieldErrors, Invalid, IpList, PlainKey, Problem, RateLimit, Restrictions,
    Scope, feature::Feature, metadata::Metadata, text,
};
use tollkey_service::api_keys::NewKey;

use crate::surfaces::members;

pub(super) fn created_key(key: &ApiKey, text: &PlainKey) -> api::CreatedKey {
    let restrictions = &key.restrictions;
    api::CreatedKey {
        key_id: key.id.to_string(),
        name: key.name.clone(),
        scope: api::KeyScope::Commerce.into(),
        api_key: Secret::new(text.expose()),
        expires_at: restrictions.expires_at.map(Into::into),
        mode: key.mode.into(),
        scopes: restrictions.scopes.clone(),
        prefix: key.prefix.clone(),
        merchants: restrictions.merchants.clone(),
        features: members::shown_features(restrictions),
        created_at: key.created_at.into(),
    }
}

pub(super) fn key(key: &ApiKey, now: Timestamp) -> api::Key {
    let restrictions = &key.restrictions;
    api::Key {
        key_id: key.id.to_string(),
        name: key.name.clone(),
        scope: api::KeyScope::Commerce.into(),
        status: key.status(now).into(),
        expires_at: restrictions.expires_at.map(Into::into),
        last_used_at: key.last_used_at.map(Into::into),
        created_at: key.created_at.into(),
        revoked_at: key.revocation().map(|revocation| revocation.at.into()),
        revoked_reason: key.revocation_reason().map(str::to_owned),
        mode: key.mode.into(),
        scopes: restrictions.scopes.clone(),
        prefix: key.prefix.clone(),
        last4: key.last4.clone(),
        merchants: restrictions.merchants.clone(),
        features: members::shown_features(restrictions),
        allowed_ips: members::shown_networks(restrictions.allowed_ips.as_ref()),
        rate_limit: restrictions.rate_limit.map(Into::into),
        metadata: key.metadata.as_ref().map(Metadata::object),
        rotated_from: key.rotated_from.map(|id| id.to_string()),
        rotated_to: key.rotated_to.map(|id| id.to_string()),
    }
}

fn name(name: &str) -> Result<String, Invalid> {
    text::required(name, 255)
}

fn merchants(list: &[String]) -> Result<Vec<String>, Invalid> {
    text::external_ids(list.iter().map(String::as_str))
}

fn features(list: &[String]) -> Result<Vec<Feature>, Invalid> {
    Feature::parse_list(list.iter().map(String::as_str))
}

const LIMIT: &str = "/rate_limit/limit";
const WINDOW_SECONDS: &str = "/rate_limit/window_seconds";

pub(super) fn new_key(
    body: api::CreateKey,
    catalogue: &Catalogue,
    now: Timestamp,
    checks: &mut FieldErrors,
) -> Option<NewKey> {
    let name = checks.check("/name", name(&body.name));
    let scopes = checks.check(
        "/scopes",
        members::scopes(body.scopes.as_deref(), catalogue),
    );
    let expires_at = checks.check("/expires_at", members::end(body.expires_at, now));
    let merchants = checks.check(
        "/merchants",
        body.merchants.as_deref().map(merchants).transpose(),
    );
    let features = checks.check(
        "/features",
        body.features.as_deref().map(features).transpose(),
    );
    let allowed_ips = checks.check(
        "/allowed_ips",
        members::networks(body.allowed_ips.as_deref()),
    );
    let rate_limit = body
        .rate_limit
        .map(|limit| (limit.limit, limit.window_seconds));
    let rate_limit = members::rate_limit(rate_limit, (LIMIT, WINDOW_SECONDS), checks);
    let metadata = checks.check("/metadata", body.metadata.map(Metadata::new).transpose());
    let restrictions = Restrictions {
        scopes: scopes?,
        merchants: merchants?,
        features: features?,
        allowed_ips: allowed_ips?,
        rate_limit: rate_limit?,
        expires_at: expires_at?,
    };
    Some(NewKey {
        name: name?,
        mode: body.mode.unwrap_or_default(),
        restrictions,
        metadata: metadata?,
    })
}

/// Null becomes `cleared`; an absent field becomes `None`.
fn patch_field<T, U>(
    patch: Patch<T>,
    cleared: Result<U, Invalid>,
    read: impl FnOnce(T) -> Result<U, Invalid>,
) -> Result<Option<U>, Invalid> {
    match patch {
        Patch::Absent => Ok(None),
        Patch::Null => cleared.map(Some),
        Patch::Value(value) => read(value).map(Some),
    }
}

fn cannot_be_cleared<T>() -> Result<T, Invalid> {
    Err(Invalid::new("cannot be cleared"))
}

/// Rules that depend on the key are checked when the change is applied, which can return a validation problem.
pub(super) fn edit(
    body: api::UpdateKey,
    catalogue: &Catalogue,
    now: Timestamp,
    checks: &mut FieldErrors,
) -> Option<impl FnOnce(&mut ApiKey) -> Result<(), Problem> + Clone + Send + use<> + 'static> {
    let name = checks.check(
        "/name",
        patch_field(body.name, cannot_be_cleared(), |text| name(&text)),
    );
    let mode = checks.check("/mode", patch_field(body.mode, cannot_be_cleared(), Ok));
    let scopes = checks.check(
        "/scopes",
        patch_field(body.scopes, Ok(vec![Scope::COMMERCE]), |names| {
            members::scopes(Some(&names), catalogue)
        }),
    );
    let expires_at = checks.check(
        "/expires_at",
        patch_field(body.expires_at, Ok(None), |end| {
            members::end(Some(end), now)
        }),
    );
    // Null has no effect on a key without merchants or features, which is known only when the change is applied.
    let merchants = checks.check(
        "/merchants",
        patch_field(body.merchants, Ok(None), |list| merchants(&list).map(Some)),
    );
    let features = checks.check(
        "/features",
        patch_field(body.features, Ok(None), |list| features(&list).map(Some)),
    );
    let allowed_ips: Option<Option<Option<IpList>>> = checks.check(
        "/allowed_ips",
        patch_field(body.allowed_ips, Ok(None), |list| {
            members::networks(Some(&list))
        }),
    );
    let (limit_patch, metadata_patch) = (body.rate_limit, body.metadata);
    if let Patch::Value(patch) = &limit_patch {
        checks.check(LIMIT, patched(&patch.limit, RateLimit::parse_limit));
        checks.check(
            WINDOW_SECONDS,
            patched(&patch.window_seconds, RateLimit::parse_window_seconds),
        );
    }
    if let Patch::Value(patch) = &metadata_patch {
        // A patch that breaks a rule alone also breaks it after the merge.
        checks.check("/metadata", Metadata::default().merged(patch.clone()));
    }
    let (name, mode, scopes, expires_at) = (name?, mode?, scopes?, expires_at?);
    let (merchants, features, allowed_ips) = (merchants?, features?, allowed_ips?);
    Some(move |key: &mut ApiKey| {
        let mut checks = FieldErrors::default();
        if mode.is_some_and(|mode| mode != key.mode) {
            checks.check::<()>(
                "/mode",
                Err(Invalid::new("cannot be changed after creation")),
            );
        }
        set_restriction(
            &mut key.restrictions.merchants,
            merchants,
            "/merchants",
            &mut checks,
        );
        set_restriction(
            &mut key.restrictions.features,
            features,
            "/features",
            &mut checks,
        );
        if let Some(end) = expires_at {
            checks.check("/expires_at", key.set_expiration(end));
        }
        let rate_limit = checks.check(
            "/rate_limit",
            merged_limit(key.restrictions.rate_limit, limit_patch),
        );
        let metadata = checks.check(
            "/metadata",
            merged_metadata(key.metadata.as_ref(), metadata_patch),
        );
        let (Some(rate_limit), Some(metadata), true) = (rate_limit, metadata, checks.is_empty())
        else {
            return Err(checks.into_problem());
        };
        key.restrictions.rate_limit = rate_limit;
        key.metadata = metadata;
        set(&mut key.name, name);
        set(&mut key.restrictions.scopes, scopes);
        set(&mut key.restrictions.allowed_ips, allowed_ips);
        Ok(())
    })
}

/// Validates a field of a rate limit in a merge patch, as far as that is possible without the key.
fn patched<T>(
    patch: &Patch<i64>,
    read: impl FnOnce(i64) -> Result<T, Invalid>,
) -> Result<(), Invalid> {
    match patch {
        Patch::Absent => Ok(()),
        Patch::Null => cannot_be_cleared(),
        Patch::Value(value) => read(*value).map(drop),
    }
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

/// Merchants and features cannot be cleared once they are set, because that would widen the key.
fn set_restriction<T>(
    field: &mut Option<T>,
    patch: Option<Option<T>>,
    pointer: &str,
    checks: &mut FieldErrors,
) {
    match patch {
        Some(None) if field.is_some() => {
            checks.check::<()>(pointer, cannot_be_cleared());
        }
        Some(value) => *field = value,
        None => {}
    }
}

fn merged_limit(
    own: Option<RateLimit>,
    patch: Patch<api::UpdateRateLimit>,
) -> Result<Option<RateLimit>, Invalid> {
    let patch = match patch {
        Patch::Absent => return Ok(own),
        Patch::Null => return Ok(None),
        Patch::Value(patch) => patch,
    };
    let merged = |patch: Patch<i64>, own: Option<i64>, name: &str| match patch {
        Patch::Value(value) => Ok(value),
        Patch::Absent | Patch::Null => {
            own.ok_or_else(|| Invalid::new(format!("requires `{name}`")))
        }
    };
    let limit = merged(
        patch.limit,
        own.map(|own| own.limit().get().into()),
        "limit",
    )?;
    let window = merged(
        patch.window_seconds,
        own.map(|own| own.window_seconds().get().into()),
        "window_seconds",
    )?;
    RateLimit::new(limit, window).map(Some)
}

fn merged_metadata(
    own: Option<&Metadata>,
    patch: Patch<serde_json::Map<String, serde_json::Value>>,
) -> Result<Option<Metadata>, Invalid> {
    match patch {
        Patch::Absent => Ok(own.cloned()),
        Patch::Null => Ok(None),
        Patch::Value(patch) => own.cloned().unwrap_or_default().merged(patch).map(Some),
    }
}
