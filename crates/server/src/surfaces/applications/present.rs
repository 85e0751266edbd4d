//! Converts applications, their keys and their requests.

use jiff::Timestamp;
use tollkey_api::{Secret, applications as api};
use tollkey_core::{
    ApiKey, Application, ApplicationId, Catalogue, FieldErrors, Restrictions, metadata::Metadata,
    text,
};
use tollkey_service::api_keys::{CreatedKey, NewKey};

use crate::surfaces::members;

pub(super) fn shown(
    application: &Application,
    api_keys: Option<Vec<api::IncludedKey>>,
) -> api::Application {
    api::Application {
        id: application.id.to_string(),
        name: application.name.clone(),
        description: application.description.clone(),
        is_enabled: application.is_enabled,
        created_at: application.created_at.into(),
        api_keys,
    }
}

pub(super) fn included_key(key: &ApiKey, now: Timestamp) -> api::IncludedKey {
    api::IncludedKey {
        id: key.id.to_string(),
        key_prefix: key.prefix.clone(),
        description: key.name.clone(),
        status: key.status(now).into(),
    }
}

pub(super) fn created_key(CreatedKey { key, text }: &CreatedKey) -> api::CreatedKey {
    api::CreatedKey {
        id: key.id.to_string(),
        application_id: key
            .application_id
            .map_or_else(String::new, |id| id.to_string()),
        full_key: Secret::new(text.expose()),
        key_prefix: key.prefix.clone(),
        description: key.name.clone(),
        created_at: key.created_at.into(),
    }
}

pub(super) fn key(key: &ApiKey, application_id: ApplicationId, now: Timestamp) -> api::Key {
    let restrictions = &key.restrictions;
    api::Key {
        id: key.id.to_string(),
        key_prefix: key.prefix.clone(),
        description: key.name.clone(),
        status: key.status(now).into(),
        application_id: application_id.to_string(),
        last4: key.last4.clone(),
        mode: key.mode.into(),
        scopes: restrictions.scopes.clone(),
        allowed_ips: members::shown_networks(restrictions.allowed_ips.as_ref()),
        rate_limit: restrictions.rate_limit.map(members::shown_rate_limit),
        metadata: key.metadata.as_ref().map(Metadata::object),
        created_at: key.created_at.into(),
        expires_at: restrictions.expires_at.map(Into::into),
        last_used_at: key.last_used_at.map(Into::into),
        revoked_at: key.revocation().map(|revocation| revocation.at.into()),
        revoked_reason: key.revocation_reason().map(str::to_owned),
    }
}

pub(super) fn new_key(
    body: api::CreateKey,
    catalogue: &Catalogue,
    now: Timestamp,
    checks: &mut FieldErrors,
) -> Option<NewKey> {
    let name = checks.check("/description", text::required(&body.description, 255));
    let scopes = checks.check(
        "/scopes",
        members::scopes(body.scopes.as_deref(), catalogue),
    );
    let expires_at = checks.check("/expiresAt", members::end(body.expires_at, now));
    let allowed_ips = checks.check(
        "/allowedIps",
        members::networks(body.allowed_ips.as_deref()),
    );
    let rate_limit = members::camel_rate_limit(body.rate_limit, checks);
    let metadata = checks.check("/metadata", body.metadata.map(Metadata::new).transpose());
    let restrictions = Restrictions {
        scopes: scopes?,
        expires_at: expires_at?,
        allowed_ips: allowed_ips?,
        rate_limit: rate_limit?,
        ..Restrictions::default()
    };
    Some(NewKey {
        name: name?,
        mode: body.mode.unwrap_or_default(),
        restrictions,
        metadata: metadata?,
    })
}
