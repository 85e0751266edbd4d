//! Converts account keys, their requests and audit entries, and creates envelopes.

use crate::{
    request_id::request_id,
    state::State,
    surface::Rendered,
    surfaces::{audit, members},
};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder};
use jiff::Timestamp;
use serde_json::value::RawValue;
use tollkey_api::{Secret, account as api, audit::ListAuditLog};
use tollkey_core::{
    ApiKey, Family, FieldErrors, KeyId, PlainKey, Problem, Restrictions,
    audit::{ActorKind, Entry, TargetKind},
    metadata::Metadata,
    text,
};
use tollkey_service::{api_keys::NewKey, audit::Filter};

pub(super) fn enveloped<T>(request: &HttpRequest, state: &State, data: T) -> api::Envelope<T> {
    let meta = api::Meta {
        request_id: request_id(request).to_string(),
        timestamp: state.service.clock.now().into(),
    };
    api::Envelope {
        data,
        error: (),
        meta,
    }
}

pub(super) fn enveloped_text(
    request: &HttpRequest,
    state: &State,
    json: &str,
) -> Result<String, Problem> {
    let data: Result<&RawValue, _> = serde_json::from_str(json);
    let whole = data.and_then(|data| serde_json::to_string(&enveloped(request, state, data)));
    whole.map_err(|_| Problem::internal())
}

pub(super) fn enveloped_problem(
    mut response: HttpResponseBuilder,
    rendered: &Rendered<'_>,
) -> HttpResponse {
    let meta = api::Meta {
        request_id: rendered.request_id.to_owned(),
        timestamp: rendered.now.into(),
    };
    let error = api::ErrorBody::new(rendered.problem);
    response.json(api::ErrorEnvelope {
        data: (),
        error,
        meta,
    })
}

pub(super) fn enveloped_list<T>(
    request: &HttpRequest,
    state: &State,
    data: Vec<T>,
    next_cursor: Option<String>,
) -> api::ListEnvelope<T> {
    let request_id = request_id(request).to_string();
    let meta = api::ListMeta {
        request_id,
        timestamp: state.service.clock.now().into(),
        next_cursor,
    };
    api::ListEnvelope {
        data,
        error: (),
        meta,
    }
}

fn access(key: &ApiKey) -> api::Access {
    if key.family == Family::Publishable {
        api::Access::Publishable
    } else {
        api::Access::Secret
    }
}

fn extras(key: &ApiKey) -> api::Extras {
    let restrictions = &key.restrictions;
    api::Extras {
        expires_at: restrictions.expires_at.map(Into::into),
        allowed_ips: members::shown_networks(restrictions.allowed_ips.as_ref()),
        rate_limit: restrictions.rate_limit.map(members::shown_rate_limit),
        metadata: key.metadata.as_ref().map(Metadata::object),
    }
}

pub(super) fn created_key(key: &ApiKey, text: &PlainKey) -> api::CreatedKey {
    api::CreatedKey {
        id: key.id.crockford(),
        name: key.name.clone(),
        environment: key.mode.into(),
        access: access(key).into(),
        value: Secret::new(text.expose()),
        created_at: key.created_at.into(),
        extras: extras(key),
    }
}

pub(super) fn key(key: &ApiKey) -> api::Key {
    api::Key {
        id: key.id.crockford(),
        name: key.name.clone(),
        prefix: key.prefix.clone(),
        last4: key.last4.clone(),
        environment: key.mode.into(),
        access: access(key).into(),
        created_at: key.created_at.into(),
        last_used_at: key.last_used_at.map(Into::into),
        revoked_at: key.revocation().map(|revocation| revocation.at.into()),
        extras: extras(key),
    }
}

/// The request has no scopes: a secret key has all of them, a publishable key none.
pub(super) fn new_key(
    body: api::CreateKey,
    now: Timestamp,
    checks: &mut FieldErrors,
) -> Option<(Family, NewKey)> {
    let name = checks.check("/name", text::required(&body.name, 100));
    let expires_at = checks.check("/expiresAt", members::end(body.expires_at, now));
    let allowed_ips = checks.check(
        "/allowedIps",
        members::networks(body.allowed_ips.as_deref()),
    );
    let rate_limit = members::camel_rate_limit(body.rate_limit, checks);
    let metadata = checks.check("/metadata", body.metadata.map(Metadata::new).transpose());
    let family = match body.access.or(body.environment.default_access()) {
        Some(api::Access::Secret) => Family::Secret,
        Some(api::Access::Publishable) => Family::Publishable,
        None => {
            // In place of an invalid environment, the body has a placeholder.
            if !checks.contains("/environment") {
                checks.add(
                    "/access",
                    "is required with the environment `live` or `test`",
                );
            }
            return None;
        }
    };
    let restrictions = Restrictions {
        allowed_ips: allowed_ips?,
        rate_limit: rate_limit?,
        expires_at: expires_at?,
        ..Restrictions::default()
    };
    Some((
        family,
        NewKey {
            name: name?,
            mode: body.environment.mode(),
            restrictions,
            metadata: metadata?,
        },
    ))
}

/// Returns `None` if the query is valid but no entry can match it.
pub(super) fn audit_filter(query: api::ListAuditLog) -> Result<Option<Filter>, Problem> {
    let api::ListAuditLog {
        limit,
        cursor,
        action,
        entity_type,
        from,
        to,
        account: _,
    } = query;
    let common = ListAuditLog {
        limit,
        cursor,
        action,
        since: from,
        until: to,
        ..ListAuditLog::default()
    };
    let filter = audit::filter_named(&common, ["from", "to"])?;
    Ok(match entity_type {
        None => Some(filter),
        Some(kind) => kind.parse().ok().map(|kind| Filter {
            target_kind: Some(kind),
            ..filter
        }),
    })
}

/// IDs of keys have the form of this surface.
pub(super) fn entry(entry: &Entry) -> api::AuditEntry {
    let draft = &entry.draft;
    let key_id = |id: &str| {
        id.parse::<KeyId>()
            .map_or_else(|_| id.to_owned(), |id| id.crockford())
    };
    let actor_id = match draft.actor.kind {
        ActorKind::ApiKey => key_id(&draft.actor.id),
        ActorKind::Merchant | ActorKind::Operator | ActorKind::Cli => draft.actor.id.clone(),
    };
    let target_id = match draft.target.kind {
        TargetKind::ApiKey => key_id(&draft.target.id),
        TargetKind::Application | TargetKind::Account => draft.target.id.clone(),
    };
    api::AuditEntry {
        id: draft.id.crockford(),
        occurred_at: draft.occurred_at.into(),
        action: draft.action.as_str().to_owned(),
        actor: api::Actor {
            r#type: draft.actor.kind.into(),
            id: actor_id,
        },
        target: api::Target {
            r#type: draft.target.kind.into(),
            id: target_id,
        },
        request_id: draft.request_id.clone(),
        ip: draft.ip.map(|ip| ip.to_string()),
        changes: draft.changes.clone(),
        hash: entry.hash.to_string(),
    }
}
