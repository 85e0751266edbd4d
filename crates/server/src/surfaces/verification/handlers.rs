//! Verification for resource servers.

use actix_web::{HttpResponse, post, web};
use tollkey_api::verification as api;
use tollkey_core::{AccessRequest, FieldErrors, Invalid, RequestPath, text::is_external_id};

use super::present;
use crate::{
    auth::{IntrospectionCaller, VerificationCaller},
    body::Body,
    rejection::HandlerResult,
    state::State,
};

const MAX_BATCH: usize = 100;
/// In characters.
const MAX_CLIENT_ID: usize = 2048;

/// Verify a key.
///
/// Returns whether a presented key is valid for a request. A denied key is not an error: the
/// response is 200 with `"valid": false` and the first reason that applies.
///
/// The key is denied if a restriction needs a field that is absent: an IP allowlist needs
/// `client_ip`, features and publishable keys need `method` and `path`, and merchants need
/// `merchant`.
///
/// A service key can verify all keys, and a secret key the keys of its account (a test key only
/// test keys). For any other key the result is `unknown_key`. Each valid result counts as one use
/// of the key's rate limit.
#[utoipa::path(
    tag = "verification",
    operation_id = "verify",
    security(("service_key" = []), ("secret_key" = []), ("management_token" = [])),
    request_body(content = api::VerifyRequest),
    responses((status = 200, description = "The result: the key is valid or denied.", body = api::VerifyResponse))
)]
#[post("/verify")]
pub async fn verify(
    state: web::Data<State>,
    caller: VerificationCaller,
    body: Body,
) -> HandlerResult {
    let request = body.read_json()?;
    let (key, access) =
        request.check_ref(|request, checks| read_request(&state, &caller, request, checks))?;
    let verdict = state
        .service
        .verify(|| caller.requester(), key, &access)
        .await?;
    Ok(HttpResponse::Ok().json(present::verdict(
        &verdict,
        access.scopes,
        &state.service.catalogue,
    )))
}

/// Verify up to 100 keys.
///
/// Returns the results in the order of the requests. Each verification is independent, as with
/// `POST /verify`. If one request is invalid, the whole batch is rejected.
#[utoipa::path(
    tag = "verification",
    operation_id = "verifyBatch",
    security(("service_key" = []), ("secret_key" = []), ("management_token" = [])),
    request_body(content = api::VerifyBatchRequest),
    responses((status = 200, description = "The results, in the order of the requests.", body = api::VerifyBatchResponse))
)]
#[post("/verify/batch")]
pub async fn verify_batch(
    state: web::Data<State>,
    caller: VerificationCaller,
    body: Body,
) -> HandlerResult {
    let batch = body.read_json()?;
    let requests = batch.check_ref(|batch: &api::VerifyBatchRequest, checks| {
        if !(1..=MAX_BATCH).contains(&batch.requests.len()) {
            checks.add("/requests", format!("must have 1 to {MAX_BATCH} items"));
            return None;
        }
        let mut requests = Vec::with_capacity(batch.requests.len());
        for (i, request) in batch.requests.iter().enumerate() {
            let mut own = FieldErrors::default();
            requests.extend(read_request(&state, &caller, request, &mut own));
            checks.append(&format!("/requests/{i}"), own);
        }
        Some(requests)
    })?;
    let mut results = Vec::with_capacity(requests.len());
    for (key, access) in &requests {
        let verdict = state
            .service
            .verify(|| caller.requester(), *key, access)
            .await?;
        results.push(present::verdict(
            &verdict,
            access.scopes,
            &state.service.catalogue,
        ));
    }
    Ok(HttpResponse::Ok().json(api::VerifyBatchResponse { results }))
}

/// Introspect a key.
///
/// Returns whether a presented key is valid for a request, in the format of RFC 7662, with the
/// optional fields of `POST /verify` as extensions. For a denied key the response is exactly
/// `{"active":false}`.
///
/// A service key or secret key can also be the password of HTTP Basic, with any user name, or
/// `client_secret` in the form. Exactly one credential is required.
#[utoipa::path(
    tag = "verification",
    operation_id = "introspect",
    security(("service_key" = []), ("client_secret_basic" = []), ("secret_key" = []), ("management_token" = [])),
    request_body(content = api::IntrospectRequest, content_type = "application/x-www-form-urlencoded"),
    responses((status = 200, description = "The state of the key.", body = api::IntrospectResponse))
)]
#[post("/introspect")]
pub async fn introspect(
    state: web::Data<State>,
    caller: IntrospectionCaller,
    body: Body,
) -> HandlerResult {
    let caller = caller.authenticate(&state, body.form_fields()).await?;
    let mut client_id = None;
    let request = body.read_form()?.map(|form: api::IntrospectRequest| {
        client_id = form.client_id;
        api::VerifyRequest {
            key: form.token,
            method: form.method,
            path: form.path,
            scopes: form
                .scopes
                .map(|scopes| scopes.split_ascii_whitespace().map(str::to_owned).collect()),
            mode: form.mode,
            merchant: form.merchant,
            client_ip: form.client_ip,
        }
    });
    let (key, access) = request.check_ref(|request, checks| {
        if client_id.is_some_and(|id| id.chars().count() > MAX_CLIENT_ID) {
            let rule = format!("must have at most {MAX_CLIENT_ID} characters");
            checks.add("/client_id", rule);
        }
        read_request(&state, &caller, request, checks)
    })?;
    let verdict = state
        .service
        .verify(|| caller.requester(), key, &access)
        .await?;
    Ok(HttpResponse::Ok().json(present::introspection(&verdict, &state.service.catalogue)))
}

fn read_request<'a>(
    state: &'a State,
    caller: &'a VerificationCaller,
    request: &'a api::VerifyRequest,
    checks: &mut FieldErrors,
) -> Option<(&'a str, AccessRequest<'a>)> {
    let at_most = |text: Option<&'a str>, max: usize| match text {
        Some(text) if text.len() > max => {
            Err(Invalid::new(format!("must have at most {max} bytes")))
        }
        text => Ok(text),
    };
    let names = request.scopes.as_deref().unwrap_or_default();
    let scopes = checks.check(
        "/scopes",
        state
            .service
            .catalogue
            .needed(names.iter().map(String::as_str)),
    );
    let method = checks.check("/method", at_most(request.method.as_deref(), 32));
    let path = checks.check("/path", at_most(request.path.as_deref(), 8192));
    let merchant = checks.check(
        "/merchant",
        match request.merchant.as_deref() {
            Some(merchant) if !is_external_id(merchant) => Err(Invalid::new(
                "must have 1 to 128 characters from A-Z a-z 0-9 . _ : @ -",
            )),
            merchant => Ok(merchant),
        },
    );
    let client_ip = checks.check(
        "/client_ip",
        match request.client_ip.as_deref().map(str::parse) {
            None => Ok(None),
            Some(Ok(address)) => Ok(Some(address)),
            Some(Err(_)) => Err(Invalid::new("must be an IPv4 or IPv6 address")),
        },
    );
    let access = AccessRequest {
        viewer: caller.viewer(),
        identity_only: false,
        scopes: scopes?,
        scope_expression: None,
        mode: request.mode,
        method: method?,
        path: path?.map(|path| RequestPath::new(path, &state.request_settings.route_base)),
        merchant: merchant?,
        client_ip: client_ip?,
        is_client_ip_unreadable: false,
    };
    Some((request.key.expose(), access))
}
