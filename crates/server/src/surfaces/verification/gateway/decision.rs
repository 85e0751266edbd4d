//! The decision about a request that a gateway describes, in any protocol. It knows no web framework.

use std::borrow::Cow;

use tollkey_core::{
    AccessRequest, Catalogue, Denial, Invalid, Mode, Problem, ProblemCode, RequestPath, Scope,
    ScopeSet, text::external_id_in,
};
use tollkey_verifier::CachedKey;

use crate::{
    auth::{RequestParts, authorize_presented, forwarded_ip, peek_presented},
    state::State,
    surface::is_like_credential,
};

/// The requirements that the operator configured for a route.
#[derive(Debug, Default)]
pub(crate) struct Requirement {
    scopes: ScopeSet,
    names: Vec<Scope>,
    mode: Option<Mode>,
}

impl Requirement {
    /// Reads `scope` (repeatable) and `mode` (at most once).
    pub(crate) fn read<T: AsRef<str>>(
        state: &State,
        pairs: impl IntoIterator<Item = (T, T)>,
    ) -> Result<Self, Invalid> {
        let mut requirement = Self::default();
        for (name, value) in pairs {
            let value = value.as_ref();
            match name.as_ref() {
                "scope" => {
                    let scope = state
                        .service
                        .catalogue
                        .parse(value)
                        .map_err(|_| unknown_scope(value))?;
                    requirement.scopes = requirement
                        .scopes
                        .union(state.service.catalogue.needed([scope.as_str()])?);
                    requirement.names.push(scope);
                }
                "mode" if requirement.mode.is_none() => {
                    requirement.mode = Some(
                        value
                            .parse()
                            .map_err(|_| Invalid::new("mode must be `live` or `test`"))?,
                    );
                }
                "mode" => return Err(Invalid::new("mode must not be repeated")),
                _ => {
                    return Err(Invalid::new(
                        "the requirements can only have `scope` and `mode`",
                    ));
                }
            }
        }
        Ok(requirement)
    }
}

/// Longest part of an unknown scope that is logged. Parts of scopes are short; keys and tokens are not.
const LONGEST_WORD: usize = 24;

/// The error contains the scope only if that cannot be a credential: the gateway may pass on a client's text.
fn unknown_scope(scope: &str) -> Invalid {
    let is_scope = (1..=64).contains(&scope.len())
        && scope.bytes().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'_' | b'.' | b':' | b'-')
        });
    let is_short = scope
        .split(['_', '.', ':', '-'])
        .all(|word| word.len() <= LONGEST_WORD);
    if is_scope && is_short && !is_like_credential(scope) {
        Invalid::new(format!("scope {scope:?} is unknown"))
    } else {
        Invalid::new("the requirements have an unknown scope")
    }
}

/// A request that a gateway describes.
pub(crate) struct Authorization<'a> {
    /// `None` if the gateway does not name it exactly once.
    pub(crate) method: Option<&'a str>,
    /// The path and query, as they were sent. `None` if the gateway does not name them exactly once.
    pub(crate) uri: Option<&'a str>,
    /// The path leads out of the gateway's part of the URL, so it denies every key.
    pub(crate) leads_out: bool,
    pub(crate) requirement: Result<&'a Requirement, &'a Invalid>,
}

/// The caller of an allowed request.
pub(crate) struct Identity {
    record: CachedKey,
    /// The merchant of the request.
    merchant: Option<String>,
}

impl Identity {
    /// Returns the IDs of the key, the account and the application, the mode, the scopes and the merchant, as the headers
    /// `X-Auth-*` name them. An absent value is empty.
    pub(crate) fn into_values(self, catalogue: &Catalogue) -> [Cow<'static, str>; 6] {
        let key = &self.record.key;
        let or_empty = |text: Option<String>| text.map_or(Cow::Borrowed(""), Cow::Owned);
        [
            Cow::Owned(key.id.to_string()),
            Cow::Owned(key.account_id.to_string()),
            or_empty(key.application_id.map(|id| id.to_string())),
            Cow::Borrowed(key.mode.as_str()),
            Cow::Owned(catalogue.joined(self.record.scopes)),
            or_empty(self.merchant),
        ]
    }
}

/// Decides about a request, and counts it as a use of the key if it is allowed.
///
/// `request` has the headers of the client's request, and the addresses from which it came.
pub(crate) async fn decide(
    request: &impl RequestParts,
    state: &State,
    authorization: Authorization<'_>,
) -> Result<Identity, Problem> {
    let merchant = external_id_in(request.values(&state.request_settings.merchant_header));
    let client_ip = forwarded_ip(request, state);
    let is_client_ip_unreadable = client_ip.is_err();
    let client_ip = client_ip.unwrap_or_default();
    // The credential is verified first, so that a client without a key learns nothing about the configuration.
    let verify_identity = async || {
        let identity = AccessRequest {
            identity_only: true,
            client_ip,
            is_client_ip_unreadable,
            ..AccessRequest::default()
        };
        peek_presented(request, state, &identity).await
    };
    let requirement = match authorization.requirement {
        Ok(requirement) => requirement,
        Err(rule) => {
            verify_identity().await?;
            return Err(invalid_requirement(request, state, rule));
        }
    };
    if authorization.leads_out {
        verify_identity().await?;
        return Err(Problem::denied(Denial::RouteNotAllowed));
    }
    let access = AccessRequest {
        viewer: None,
        identity_only: false,
        scope_expression: None,
        scopes: requirement.scopes,
        mode: requirement.mode,
        method: authorization.method,
        path: authorization
            .uri
            .map(|uri| RequestPath::new(uri, &state.request_settings.route_base)),
        merchant: merchant.as_deref(),
        client_ip,
        is_client_ip_unreadable,
    };
    let record = authorize_presented(request, state, &access)
        .await
        .map_err(|mut problem| {
            if problem.code == ProblemCode::Denied(Denial::InsufficientScope) {
                problem.needed_scopes = requirement.names.as_slice().into();
            }
            problem
        })?;
    Ok(Identity { record, merchant })
}

/// Logs what is wrong with the configuration of the gateway, which the problem does not reveal.
pub(crate) fn invalid_requirement(
    request: &impl RequestParts,
    state: &State,
    rule: &Invalid,
) -> Problem {
    if state
        .log_limits
        .gateway_requirement
        .allows(state.service.clock.elapsed())
    {
        tracing::warn!(
            request_id = %request.request_id(), %rule,
            "gateway route has invalid requirements; its requests are denied"
        );
    }
    let detail =
        "The gateway's requirement is not valid. The log of the Tollkey server has the reason.";
    Problem::new(ProblemCode::InvalidRequirement, detail)
}
