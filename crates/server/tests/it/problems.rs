//! All problems in one table, so that their texts can be reviewed together.

use std::fmt::Write as _;

use serde_json::json;
use tollkey_core::{
    Denial, OperatingModel, Problem, ProblemCode, Restrictions,
    api_key::TransitionError,
    ceiling::CeilingError,
    credential::{Credential, CredentialHeaders, Expected},
};

use crate::support::{App, Call, Reply, each_backend_with, settings};

/// Returns the problem after this one in the table. The match has no wildcard, so a new code does not compile until it
/// has a row.
fn next(code: ProblemCode) -> Option<ProblemCode> {
    use ProblemCode as Code;
    Some(match code {
        Code::ValidationFailed => Code::MalformedJson,
        Code::MalformedJson => Code::MultipleCredentials,
        Code::MultipleCredentials => Code::ApplicationKeyLimitReached,
        Code::ApplicationKeyLimitReached => Code::KeyAlreadyRevoked,
        Code::KeyAlreadyRevoked => Code::MissingCredentials,
        Code::MissingCredentials => Code::InvalidToken,
        Code::InvalidToken => Code::InvalidApiKey,
        Code::InvalidApiKey => Code::Forbidden,
        Code::Forbidden => Code::ScopedKeysUnavailable,
        Code::ScopedKeysUnavailable => Code::FeatureUnavailable,
        Code::FeatureUnavailable => Code::KeyLimitReached,
        Code::KeyLimitReached => Code::KeyDepthLimitReached,
        Code::KeyDepthLimitReached => Code::InvalidRequirement,
        Code::InvalidRequirement => Code::Denied(Denial::Expired),
        Code::Denied(denial) => match denial {
            Denial::UnknownKey | Denial::Revoked | Denial::Expired => {
                Code::Denied(Denial::Suspended)
            }
            Denial::Suspended => Code::Denied(Denial::ApplicationDisabled),
            Denial::ApplicationDisabled => Code::Denied(Denial::WrongMode),
            Denial::WrongMode => Code::Denied(Denial::IpNotAllowed),
            Denial::IpNotAllowed => Code::Denied(Denial::RouteNotAllowed),
            Denial::RouteNotAllowed => Code::Denied(Denial::MerchantNotAllowed),
            Denial::MerchantNotAllowed => Code::Denied(Denial::InsufficientScope),
            Denial::InsufficientScope | Denial::RateLimited => Code::NotFound,
        },
        Code::NotFound => Code::MethodNotAllowed,
        Code::MethodNotAllowed => Code::RequestTimeout,
        Code::RequestTimeout => Code::ApplicationNameTaken,
        Code::ApplicationNameTaken => Code::KeyUnchangeable(TransitionError::Revoked),
        Code::KeyUnchangeable(TransitionError::Revoked) => {
            Code::KeyUnchangeable(TransitionError::Expired)
        }
        Code::KeyUnchangeable(TransitionError::Expired) => {
            Code::KeyUnchangeable(TransitionError::Suspended)
        }
        Code::KeyUnchangeable(TransitionError::Suspended) => {
            Code::KeyUnchangeable(TransitionError::AlreadyRotated)
        }
        Code::KeyUnchangeable(TransitionError::AlreadyRotated) => Code::IdempotencyInProgress,
        Code::IdempotencyInProgress => Code::IdempotencyReplayUnavailable,
        Code::IdempotencyReplayUnavailable => Code::SubscriberIdShared,
        Code::SubscriberIdShared => Code::PreconditionFailed,
        Code::PreconditionFailed => Code::PayloadTooLarge,
        Code::PayloadTooLarge => Code::UnsupportedMediaType,
        Code::UnsupportedMediaType => Code::IdempotencyMismatch,
        Code::IdempotencyMismatch => Code::RateLimited,
        Code::RateLimited => Code::InternalError,
        Code::InternalError => Code::Unavailable,
        Code::Unavailable => return None,
    })
}

/// A row of the table: code, status, title and detail.
type Row = (String, u64, String, String);

fn of_reply(reply: &Reply) -> Row {
    let json = reply.json();
    let text = |name: &str| json[name].as_str().expect(name).to_owned();
    let status = json["status"].as_u64().expect("a status");
    assert_eq!(status, u64::from(reply.status));
    (text("code"), status, text("title"), text("detail"))
}

fn of_problem(problem: &Problem) -> Row {
    let (code, status, title) = problem.code.row();
    (
        code.to_owned(),
        status.into(),
        title.to_owned(),
        problem.detail.clone(),
    )
}

/// The problems of the core crate.
fn of_core() -> Vec<Row> {
    let headers = CredentialHeaders::default();
    let presented = |credential: Credential<'_>, expected| {
        let problem = credential.one(headers, expected).map(|_| ());
        problem.expect_err("a problem")
    };
    let scoped = |features: Vec<_>| Restrictions {
        features: Some(features),
        ..Restrictions::default()
    };
    let list = vec![tollkey_core::feature::Feature::TokensList];
    let denied = Denial::ALL.into_iter().map(Problem::denied);
    [
        presented(Credential::Several, Expected::Any),
        presented(Credential::None, Expected::Any),
        presented(Credential::None, Expected::ApiKey),
        Expected::ApiKey.problem("$TOKEN"),
        OperatingModel::Platform
            .check(&scoped(list.clone()))
            .expect_err("no scoped keys"),
        OperatingModel::ManagedEcosystem
            .check(&scoped(list))
            .expect_err("another feature"),
        CeilingError::Mode.into(),
        CeilingError::AllowedIps.into(),
        CeilingError::Expiration.into(),
        CeilingError::RateLimit.into(),
        CeilingError::Depth(3).into(),
        Problem::not_found(),
        Problem::request_timeout(),
        TransitionError::Revoked.into(),
        TransitionError::Expired.into(),
        TransitionError::Suspended.into(),
        TransitionError::AlreadyRotated.into(),
        Problem::idempotency_in_progress(),
        Problem::precondition_failed(),
        Problem::internal(),
        Problem::unavailable(),
    ]
    .into_iter()
    .chain(denied)
    .map(|problem| of_problem(&problem))
    .collect()
}

/// The problems of the server.
async fn of_server(app: &App) -> Vec<Row> {
    let (token, service) = (app.management_token("acme"), app.service());
    let application = app.application(&token, "Web Store").await;
    let keys = format!("/applications/{application}/api-keys");
    let key = app.key(&token, &application, json!({})).await;
    let other = app.application(&token, "Other store").await;
    let revoked = app.key(&token, &other, json!({})).await;
    let revoke = format!("/applications/{other}/api-keys/{}", revoked.id);
    assert_eq!(app.delete(&revoke).bearer(&token).await.status, 204);
    app.commerce_key(&token, json!({})).await;
    let create = |path: &str, body| app.post(path, body).bearer(&token);

    let again = || create("/applications", json!({"name": "Third"}));
    let repeated = again()
        .header("idempotency-key", "EXAMPLE of a value")
        .await;
    assert_eq!(repeated.status, 201, "{repeated}");
    let mismatch = create("/applications", json!({"name": "Fourth"}));
    let sealing = ("TOLLKEY_SEALING_SECRET", "EXAMPLE0EXAMPLE0EXAMPLE0EXAMPLE0");
    let replica = app
        .replica_with(&settings(app.database.url(), &[sealing]))
        .await;
    let undecryptable = Call::new(replica.address(), "POST", "/applications")
        .json(json!({"name": "Third"}))
        .bearer(&token)
        .header("idempotency-key", "EXAMPLE of a value")
        .await;
    replica.stop().await;

    let poll = |id: &str, previous: &[&str]| {
        let subscriber = "0f1e2d3c4b5a69788796a5b4c3d2e1f0";
        let body = json!({"subscriber": subscriber, "poll_id": id, "previous_poll_ids": previous});
        app.post("/sync", body).bearer(&service)
    };
    let (first, second) = ("00000000000000a1", "00000000000000a2");
    assert_eq!(poll(first, &[]).await.status, 200);
    assert_eq!(poll(second, &[first]).await.status, 200);

    let several = json!({"name": "", "scopes": ["link:read"], "rate_limit": {"limit": 0}});
    let replies = [
        create("/applications", json!({"name": ""})).await,
        create("/applications", json!({"nmae": "Web Store", "name": "x"})).await,
        create("/api-keys", json!({"name": "n", "scopes": ["link:read"]})).await,
        create("/api-keys", several).await,
        app.get("/api-keys?limit=0").bearer(&token).await,
        app.get("/api-keys").bearer(&app.operator()).await,
        app.call("POST", "/applications")
            .bearer(&token)
            .header("content-type", "application/json")
            .body("{\"name\": oops}")
            .await,
        create(&keys, json!({"description": "d"})).await,
        app.delete(&revoke).bearer(&token).await,
        app.get("/applications")
            .bearer("eyEXAMPLE.eyEXAMPLE.EXAMPLE")
            .await,
        app.get("/applications").bearer(&key.text).await,
        app.get("/service-keys").bearer(&token).await,
        app.get("/whoami").bearer(&token).await,
        create("/verify", json!({"key": "x"})).await,
        app.get("/applications?account=globex").bearer(&token).await,
        app.get("/applications").bearer(&app.token(None, &[])).await,
        create("/api-keys", json!({"name": "n"})).await,
        app.get("/authz/forward-auth?scope=nothing:read")
            .bearer(&key.text)
            .await,
        app.get("/nothing").bearer(&token).await,
        app.call("PUT", "/applications").bearer(&token).await,
        create("/applications", json!({"name": "Web Store"})).await,
        undecryptable,
        poll("00000000000000b1", &[first]).await,
        create("/applications", json!({"name": "x".repeat(65_536)})).await,
        app.call("POST", "/applications")
            .bearer(&token)
            .body("name=x")
            .await,
        mismatch
            .header("idempotency-key", "EXAMPLE of a value")
            .await,
    ];
    replies.iter().map(of_reply).collect()
}

#[actix_web::test]
async fn all_problems_are_in_this_table() {
    let limits = [
        ("TOLLKEY_APPLICATION_KEY_LIMIT", "1"),
        ("TOLLKEY_ACCOUNT_KEY_LIMIT", "1"),
    ];
    each_backend_with(&limits, async |app: &App| {
        let mut rows = of_core();
        rows.extend(of_server(app).await);
        let mut table = String::new();
        let mut code = Some(ProblemCode::ValidationFailed);
        while let Some(of) = code {
            let (name, status, title) = of.row();
            let own: Vec<&Row> = rows.iter().filter(|row| row.0 == name).collect();
            assert!(!own.is_empty(), "no row of {name}");
            writeln!(table, "{name} | {status} | {title}").unwrap();
            let mut details: Vec<&str> = Vec::new();
            for (_, own_status, own_title, detail) in own {
                assert_eq!((*own_status, own_title.as_str()), (status.into(), title));
                if !details.contains(&detail.as_str()) {
                    writeln!(table, "    {detail}").unwrap();
                    details.push(detail);
                }
            }
            code = next(of);
        }
        insta::allow_duplicates! { insta::assert_snapshot!(table, @r#"
        validation_failed | 400 | The request is not valid
            /name: must have 1 to 100 characters
            /nmae: is unknown; did you mean `name`?
            /scopes: unknown scope `link:read`; did you mean `links:read`? valid scopes are commerce, links:read, links:write, sessions:read, sessions:write, webhooks:read, webhooks:write, events:read, customers:read, customers:write
            4 fields are invalid: /rate_limit/window_seconds, /name, /scopes, /rate_limit/limit
            limit: must be between 1 and 1000
            account: is required when an operator calls this operation
        malformed_json | 400 | The body is not valid JSON
            The body is not valid JSON at line 1, column 10: expected value.
        multiple_credentials | 400 | More than one credential
            The request has more than one credential. Send exactly one, in one header.
        application_key_limit_reached | 400 | Maximum number of API keys reached
            The application already has its maximum number of keys that are neither revoked nor expired (1). Revoke a key first.
        key_already_revoked | 400 | The key is already revoked
            The key is already revoked. Nothing was changed.
        missing_credentials | 401 | A credential is required
            Send a credential in the Authorization header with the scheme Bearer.
            Send an API key in the Authorization header with the scheme Bearer.
        invalid_token | 401 | The management token is not valid
            The management token is invalid or has expired. Get a new token.
        invalid_api_key | 401 | The API key is not valid
            A placeholder was sent. Replace a variable such as $TOKEN with the credential.
            The API key is unknown or revoked. Check the key, or use another one.
        forbidden | 403 | Access denied
            A test key cannot create live keys. Create a test key, or use a live key.
            A key cannot create a key with a wider IP allowlist than its own. Use IP ranges within its own.
            A key cannot create a key that expires later than itself. Choose an earlier expiration.
            A key cannot create a key with a higher rate limit than its own. Choose a lower rate limit.
            This operation requires a management token. Send a management token instead of a key.
            This operation requires a management token with the role `operator`.
            This operation requires an API key. Send an API key instead of a management token.
            This operation requires a service key, a management token with the role `service`, or a secret key.
            Only operators can use the query parameter `account`. Remove it.
            The management token does not identify an account: its claim `account_id` is missing. Get a token with this claim.
        scoped_keys_unavailable | 403 | Scoped keys are not available
            Scoped keys are not available with the operating model `platform`. Remove the merchants and features of the key.
        feature_unavailable | 403 | The feature is not available
            The feature `tokens.list` is not available with the operating model `managed_ecosystem`. Remove it from the key.
        key_limit_reached | 403 | Maximum number of API keys reached
            The account already has its maximum number of keys of this kind that are neither revoked nor expired (1). Revoke a key first.
        key_depth_limit_reached | 403 | Maximum key depth reached
            A key with 3 ancestors cannot create keys. Create the key with a management token, or with an ancestor of this key.
        invalid_requirement | 403 | The access requirement is not valid
            The gateway's requirement is not valid. The log of the Tollkey server has the reason.
        expired | 403 | Key expired
            The key has expired. Use another key.
        suspended | 403 | Key suspended
            The key is suspended. Resume it, or use another key.
        application_disabled | 403 | Application disabled
            The key's application is disabled. Enable it, or use another key.
        wrong_mode | 403 | Wrong mode
            The key has the wrong mode. Use a live key for live requests and a test key for test requests.
        ip_not_allowed | 403 | IP address not allowed
            The client's IP address is not in the key's IP allowlist. Send the request from an allowed IP address.
        route_not_allowed | 403 | Route not allowed
            The key does not allow this method and path. Use a key that does.
        merchant_not_allowed | 403 | Merchant not allowed
            The key does not allow the merchant of this request. Check the merchant, or use another key.
        insufficient_scope | 403 | Insufficient scope
            The key lacks a required scope. Use a key with all required scopes.
        not_found | 404 | Not found
            The resource does not exist or belongs to another account. Check the ID.
            No resource exists at this path. Check the URL.
        method_not_allowed | 405 | Method not allowed
            This path does not support the method of the request. Use one of GET, POST, HEAD.
        request_timeout | 408 | The request timed out
            The body did not arrive in time. Send the request again.
        application_name_taken | 409 | The application name is already used
            The account already has an application with this name. Choose another name.
        key_revoked | 409 | The key is revoked
            The key is revoked. Revocation is final; create another key.
        key_expired | 409 | The key has expired
            The key has expired. Create another key.
        key_suspended | 409 | The key is suspended
            The key is suspended. Resume it first.
        key_already_rotated | 409 | The key is already rotated
            The key is already rotated. Rotate its successor instead.
        idempotency_in_progress | 409 | The first request is still running
            The first request with this Idempotency-Key is still running. Try again later.
        idempotency_replay_unavailable | 409 | The first response cannot be replayed
            The first request succeeded, but its response cannot be decrypted: the sealing secret of the server was changed, or a newer release stored the response. Look up what the request created before you send another Idempotency-Key.
        subscriber_id_shared | 409 | Another process uses this subscriber ID
            Another process polls with this subscriber ID. Evict every cached key and continue with a new random ID.
        precondition_failed | 412 | The resource was changed
            The current ETag of the resource is not in If-Match, so nothing was changed. Get the resource again, and repeat the change with its ETag.
        payload_too_large | 413 | The body is too large
            The body must have at most 65536 bytes.
        unsupported_media_type | 415 | Unsupported media type
            The Content-Type header must be application/json.
        idempotency_mismatch | 422 | The Idempotency-Key was already used
            This Idempotency-Key was already used with a different body. Send the same body, or another Idempotency-Key.
        rate_limited | 429 | Too many requests
            The key's rate limit is exceeded. Try again after the time in Retry-After.
        internal_error | 500 | Internal server error
            The server could not process the request. Try again; report the error to the operator if it persists.
        unavailable | 503 | Temporarily unavailable
            The service is temporarily unavailable. Try again later.
        "#); }
    })
    .await;
}
