//! Authorization requests of gateways, in each of their protocols.

use std::time::Duration;

use serde_json::json;
use tollkey_core::{Family, IpList, Mode, RateLimit, Restrictions, Scope, feature::Feature};
use tollkey_store::Backend;

use crate::{
    assert_response,
    support::{self, App, Call, Reply, eventually},
};

#[derive(Debug, Clone, Copy)]
enum Dialect {
    ForwardAuth,
    AuthRequest,
    ExtAuthz,
    /// Envoy's protocol over gRPC.
    #[cfg(feature = "grpc")]
    Grpc,
}

use Dialect::{AuthRequest, ExtAuthz, ForwardAuth};

const DIALECTS: &[Dialect] = &[
    ForwardAuth,
    AuthRequest,
    ExtAuthz,
    #[cfg(feature = "grpc")]
    Dialect::Grpc,
];

const ENVOY: &[Dialect] = &[
    ExtAuthz,
    #[cfg(feature = "grpc")]
    Dialect::Grpc,
];

async fn each_backend(test: impl AsyncFn(&App)) {
    each_backend_with(&[], test).await;
}

/// Runs a test on each backend, with these settings and with every protocol.
async fn each_backend_with(settings: &[(&str, &str)], test: impl AsyncFn(&App)) {
    let grpc = cfg!(feature = "grpc").then_some(("TOLLKEY_GRPC_LISTEN", "127.0.0.1:0"));
    let settings: Vec<_> = settings.iter().copied().chain(grpc).collect();
    support::each_backend_with(&settings, test).await;
}

impl Dialect {
    /// The authorization request for a request, with requirements such as `scope=links:read;mode=live`.
    fn authz(self, app: &App, required: &str, method: &str, uri: &str) -> Call {
        let query = if required.is_empty() {
            String::new()
        } else {
            format!("?{}", required.replace(';', "&"))
        };
        match self {
            ForwardAuth => app
                .get(&format!("/authz/forward-auth{query}"))
                .header("x-forwarded-method", method)
                .header("x-forwarded-uri", uri),
            AuthRequest => app
                .get(&format!("/authz/auth-request{query}"))
                .header("x-original-method", method)
                .header("x-original-uri", uri),
            ExtAuthz => {
                let segment = if required.is_empty() { "-" } else { required };
                app.call(method, &format!("/authz/ext-authz/{segment}{uri}"))
            }
            #[cfg(feature = "grpc")]
            Self::Grpc => crate::envoy::call(app, required, method, uri),
        }
    }
}

fn scoped(merchants: Option<&[&str]>, features: Option<&[Feature]>) -> Restrictions {
    Restrictions {
        scopes: vec![Scope::COMMERCE],
        merchants: merchants.map(|all| all.iter().map(ToString::to_string).collect()),
        features: features.map(<[Feature]>::to_vec),
        ..Restrictions::default()
    }
}

async fn ecosystem(app: &App) {
    let model = json!({"operating_model": "ecosystem"});
    assert_eq!(
        app.put("/accounts/acme", model)
            .bearer(&app.operator())
            .await
            .status,
        200
    );
}

async fn commerce_key(app: &App, restrictions: Restrictions) -> String {
    app.insert_key_with("acme", Family::Commerce, Mode::Live, restrictions)
        .await
}

/// The status and, for a problem, its code.
fn outcome(reply: &Reply) -> (u16, String) {
    (
        reply.status,
        if reply.status == 200 {
            String::new()
        } else {
            reply.code()
        },
    )
}

fn denied(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

const ALLOWED: (u16, String) = (200, String::new());

/// The headers of a response, without those of HTTP itself.
fn headers(reply: &Reply) -> Vec<(&str, &str)> {
    let http = ["connection", "content-length", "date"];
    let own = reply
        .headers
        .iter()
        .filter(|(name, _)| !http.contains(&name.as_str()));
    own.map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}

/// The same requirements have another meaning in a query than in a path segment.
#[actix_web::test]
async fn requirements_of_one_syntax_are_invalid_in_the_other() {
    each_backend(async |app: &App| {
        let key = commerce_key(app, scoped(None, None)).await;
        let outcomes = async |path: &str| {
            let mut outcomes = Vec::new();
            // More often than there are workers, because each worker caches its own requirements.
            for _ in 0..8 {
                outcomes.push(outcome(&app.get(path).bearer(&key).await));
            }
            outcomes.dedup();
            outcomes
        };
        for (good, bad) in [
            ("/authz/forward-auth", "/authz/ext-authz/"),
            ("/authz/forward-auth", "/authz/ext-authz/mode=live"),
            ("/authz/ext-authz/-/x", "/authz/forward-auth?-"),
            (
                "/authz/forward-auth?scope=links%3Aread",
                "/authz/ext-authz/scope=links%3Aread/x",
            ),
            (
                "/authz/ext-authz/mode=live;scope=links:read/x",
                "/authz/auth-request?mode=live;scope=links:read",
            ),
        ] {
            assert_eq!(outcomes(good).await, [ALLOWED], "{good}");
            let denial = denied(403, "invalid_requirement");
            assert_eq!(outcomes(bad).await, [denial], "{bad}");
        }
    })
    .await;
}

/// A path that must be decoded is handled by the router, which has the same routes.
#[actix_web::test]
async fn direct_and_routed_requests_have_the_same_response() {
    each_backend(async |app: &App| {
        ecosystem(app).await;
        let limited = async || {
            let rate_limit = RateLimit::new(1, 60).ok();
            let restrictions = Restrictions {
                rate_limit,
                ..scoped(Some(&["m_1"]), Some(&[Feature::TokensList]))
            };
            commerce_key(app, restrictions).await
        };
        let free = commerce_key(app, scoped(None, None)).await;
        let secret = app
            .insert(
                "acme",
                &app.generate_key(Family::Secret, Mode::Live),
                |_| (),
            )
            .await
            .text;
        let unknown = app
            .generate_key(Family::Commerce, Mode::Live)
            .expose()
            .to_owned();
        let token = app.management_token("acme");
        for (dialect, direct, routed) in [
            (ForwardAuth, "/authz/forward-auth", "/authz/forward%2Dauth"),
            (AuthRequest, "/authz/auth-request", "/authz/auth%2Drequest"),
        ] {
            let (one, other) = (limited().await, limited().await);
            // Each pair of keys, the query and the method. The first request uses up the limited keys' rate limit.
            for (number, (direct_key, routed_key, query, method)) in [
                (&free, &free, "", "GET"),
                (&free, &free, "?scope=links:read&mode=live", "POST"),
                (&free, &free, "?scope=links:read&mode=live", "HEAD"),
                (&free, &free, "?mode=test", "GET"),
                (&free, &free, "?scope=key_families:manage", "GET"),
                (&free, &free, "?scope=nothing:read", "GET"),
                (&free, &free, "?mode=live&mode=live", "HEAD"),
                (&secret, &secret, "?scope=links:read", "DELETE"),
                (&unknown, &unknown, "", "GET"),
                (&token, &token, "", "GET"),
                (&one, &other, "", "GET"),
                (&one, &other, "", "GET"),
                (&one, &other, "", "PROPFIND"),
            ]
            .into_iter()
            .enumerate()
            {
                for merchant in [None, Some("m_1"), Some("m_2")] {
                    let send = async |path: &str, key: &str| {
                        let uri = "/api/tokens?a=b";
                        let mut call = app
                            .call(method, &format!("{path}{query}"))
                            .bearer(key)
                            .header("x-forwarded-method", "GET")
                            .header("x-forwarded-uri", uri)
                            .header("x-original-method", "GET")
                            .header("x-original-uri", uri)
                            .header("x-request-id", format!("request-{number}"));
                        if let Some(merchant) = merchant {
                            call = call.header("x-merchant-id", merchant);
                        }
                        let mut reply = call.await;
                        let differs = ["date", "x-auth-key-id"];
                        let is_compared =
                            |(name, _): &(String, String)| !differs.contains(&name.as_str());
                        reply.headers.retain(is_compared);
                        (reply.status, reply.headers, reply.body)
                    };
                    assert_eq!(
                        send(direct, direct_key).await,
                        send(routed, routed_key).await,
                        "{dialect:?} {number} {merchant:?}"
                    );
                }
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn allowed_response_has_exactly_the_identity_headers() {
    each_backend(async |app: &App| {
        let token = app.management_token("acme");
        let application = app.application(&token, "Web Store").await;
        let key = app
            .key(
                &token,
                &application,
                json!({"mode": "test", "scopes": ["links:read", "links:write"]}),
            )
            .await;
        let secret = app
            .insert(
                "acme",
                &app.generate_key(Family::Secret, Mode::Live),
                |_| (),
            )
            .await;
        for &dialect in DIALECTS {
            for method in ["GET", "POST", "DELETE"] {
                let reply = dialect
                    .authz(
                        app,
                        "scope=links:read;mode=test",
                        method,
                        "/api/links/1?a=b",
                    )
                    .bearer(&key.text)
                    .header("x-merchant-id", "m_1")
                    .header("x-request-id", "from-the-gateway")
                    .header("cookie", "session=1")
                    .await;
                assert_eq!(
                    (reply.status, reply.body.as_str()),
                    (200, ""),
                    "{dialect:?} {reply}"
                );
                let expected = [
                    ("x-auth-account-id", "acme"),
                    ("x-auth-application-id", application.as_str()),
                    ("x-auth-key-id", key.id.as_str()),
                    ("x-auth-merchant-id", "m_1"),
                    ("x-auth-mode", "test"),
                    ("x-auth-scopes", "links:read links:write"),
                    ("x-request-id", "from-the-gateway"),
                ];
                assert_eq!(headers(&reply), expected, "{dialect:?}");
            }
            // All of them are sent even when they are empty, and the client's headers with these names are not used.
            let reply = dialect
                .authz(app, "", "GET", "/")
                .bearer(&secret.text)
                .header("x-auth-application-id", "forged")
                .header("x-auth-merchant-id", "forged")
                .await;
            let own: Vec<_> = headers(&reply)
                .into_iter()
                .filter(|(name, _)| *name != "x-request-id")
                .collect();
            let ten = Scope::BUILT_IN
                .iter()
                .map(Scope::as_str)
                .collect::<Vec<_>>()
                .join(" ");
            let expected = [
                ("x-auth-account-id", "acme"),
                ("x-auth-application-id", ""),
                ("x-auth-key-id", secret.id.as_str()),
                ("x-auth-merchant-id", ""),
                ("x-auth-mode", "live"),
                ("x-auth-scopes", ten.as_str()),
            ];
            assert_eq!(own, expected, "{dialect:?}");
        }
    })
    .await;
}

#[actix_web::test]
async fn denials_have_their_status_and_code_in_every_protocol() {
    each_backend(async |app: &App| {
        ecosystem(app).await;
        let token = app.management_token("acme");
        let application = app.application(&token, "Web Store").await;
        let disabled = app.key(&token, &application, json!({})).await.text;
        let path = format!("/applications/{application}/status");
        assert_eq!(
            app.patch(&path, json!({"isEnabled": false}))
                .bearer(&token)
                .await
                .status,
            200
        );
        let good = commerce_key(app, scoped(None, None)).await;
        let one = commerce_key(
            app,
            Restrictions {
                scopes: vec![Scope::LINKS_READ],
                ..Restrictions::default()
            },
        )
        .await;
        let bound = commerce_key(app, scoped(Some(&["m_1"]), Some(&[Feature::TokensList]))).await;
        let allowed_ips = IpList::parse(["203.0.113.0/24"]).ok();
        let listed = commerce_key(
            app,
            Restrictions {
                allowed_ips,
                ..scoped(None, None)
            },
        )
        .await;
        let now = tollkey_core::Clock::now(&app.clock);
        let ended = commerce_key(
            app,
            Restrictions {
                expires_at: Some(now),
                ..scoped(None, None)
            },
        )
        .await;
        let live = || app.generate_key(Family::Commerce, Mode::Live);
        let revoked = app
            .insert("acme", &live(), |key| key.revoked_at = Some(now))
            .await
            .text;
        let suspended = app
            .insert("acme", &live(), |key| key.suspended_at = Some(now))
            .await
            .text;
        let unknown = live().expose().to_owned();
        let service_key = app.service_key().await.text;
        for &dialect in DIALECTS {
            let authz = |required, uri| dialect.authz(app, required, "GET", uri);
            for (call, expected) in [
                (authz("", "/x"), denied(401, "missing_credentials")),
                (
                    authz("", "/x").bearer(&good).header("x-api-key", &good),
                    denied(400, "multiple_credentials"),
                ),
                (
                    authz("", "/x").bearer(&good).bearer(&good),
                    denied(400, "multiple_credentials"),
                ),
                (
                    authz("", "/x").bearer(&unknown),
                    denied(401, "invalid_api_key"),
                ),
                (
                    authz("", "/x").bearer("nonsense"),
                    denied(401, "invalid_api_key"),
                ),
                (
                    authz("", "/x").bearer(&revoked),
                    denied(401, "invalid_api_key"),
                ),
                (
                    authz("", "/x").bearer(&service_key),
                    denied(401, "invalid_api_key"),
                ),
                (
                    authz("", "/x").header("authorization", "Basic YTpi"),
                    denied(401, "missing_credentials"),
                ),
                (
                    authz("", "/x").bearer("eyEXAMPLE.eyEXAMPLE.EXAMPLE"),
                    denied(401, "invalid_token"),
                ),
                (authz("", "/x").bearer(&token), denied(403, "forbidden")),
                (authz("", "/x").bearer(&ended), denied(403, "expired")),
                (authz("", "/x").bearer(&suspended), denied(403, "suspended")),
                (
                    authz("", "/x").bearer(&disabled),
                    denied(403, "application_disabled"),
                ),
                (
                    authz("mode=test", "/x").bearer(&good),
                    denied(403, "wrong_mode"),
                ),
                (
                    authz("", "/x").bearer(&listed),
                    denied(403, "ip_not_allowed"),
                ),
                (
                    authz("", "/x").bearer(&bound),
                    denied(403, "route_not_allowed"),
                ),
                (
                    authz("", "/tokens").bearer(&bound),
                    denied(403, "merchant_not_allowed"),
                ),
                (
                    authz("", "/tokens")
                        .bearer(&bound)
                        .header("x-merchant-id", "m_2"),
                    denied(403, "merchant_not_allowed"),
                ),
                (
                    authz("", "/tokens")
                        .bearer(&bound)
                        .header("x-merchant-id", "m_1"),
                    ALLOWED,
                ),
                (
                    authz("scope=links:write", "/x").bearer(&one),
                    denied(403, "insufficient_scope"),
                ),
                (authz("scope=links:read", "/x").bearer(&one), ALLOWED),
                (
                    authz("scope=links:read;scope=links:write", "/x").bearer(&one),
                    denied(403, "insufficient_scope"),
                ),
                (
                    authz("scope=links:read;scope=links:write;mode=live", "/x").bearer(&good),
                    ALLOWED,
                ),
                (authz("", "/x").header("x-api-key", &good), ALLOWED),
                (authz("", "/x").header("x-commerce-api-key", &good), ALLOWED),
                (
                    authz("", "/x").header("authorization", format!("bearer secret-token:{good}")),
                    ALLOWED,
                ),
            ] {
                let reply = call.await;
                assert_eq!(outcome(&reply), expected, "{dialect:?} {reply}");
                if reply.status != 200 {
                    // A gateway may forward all of these headers.
                    let forwardable = ["content-type", "www-authenticate", "x-request-id"];
                    let names = headers(&reply).into_iter().map(|(name, _)| name);
                    assert!(
                        names.filter(|name| !forwardable.contains(name)).count() == 0,
                        "{dialect:?} {reply}"
                    );
                    assert_eq!(reply.header("www-authenticate").is_some(), {
                        [400, 401].contains(&reply.status) || reply.code() == "insufficient_scope"
                    });
                }
            }
            // Unknown and revoked keys get the same response.
            let response = async |key: &str| {
                authz("", "/x")
                    .bearer(key)
                    .header("x-request-id", "same")
                    .await
                    .to_string()
            };
            assert_eq!(
                response(&unknown).await,
                response(&revoked).await,
                "{dialect:?}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn rejections_have_the_challenge_of_rfc_6750() {
    each_backend(async |app: &App| {
        let one = commerce_key(app, Restrictions { scopes: vec![Scope::LINKS_READ], ..Restrictions::default() }).await;
        let authz = |required| ForwardAuth.authz(app, required, "GET", "/x").header("x-request-id", "r");
        assert_response!(authz("").await, @r#"
        401
        content-type: application/problem+json
        www-authenticate: Bearer realm="tollkey"
        x-request-id: r

        {
          "type": "urn:tollkey:problem:missing_credentials",
          "title": "A credential is required",
          "status": 401,
          "detail": "Send an API key in the Authorization header with the scheme Bearer.",
          "code": "missing_credentials",
          "request_id": "r"
        }
        "#);
        assert_response!(authz("").bearer(app.generate_key(Family::Commerce, Mode::Live).expose()).await, @r#"
        401
        content-type: application/problem+json
        www-authenticate: Bearer realm="tollkey", error="invalid_token", error_description="The API key is unknown or revoked. Check the key, or use another one."
        x-request-id: r

        {
          "type": "urn:tollkey:problem:invalid_api_key",
          "title": "The API key is not valid",
          "status": 401,
          "detail": "The API key is unknown or revoked. Check the key, or use another one.",
          "code": "invalid_api_key",
          "request_id": "r"
        }
        "#);
        assert_response!(authz("scope=links:write;scope=links:read").bearer(&one).await, @r#"
        403
        content-type: application/problem+json
        www-authenticate: Bearer realm="tollkey", error="insufficient_scope", error_description="The key lacks a required scope. Use a key with all required scopes.", scope="links:write links:read"
        x-request-id: r

        {
          "type": "urn:tollkey:problem:insufficient_scope",
          "title": "Insufficient scope",
          "status": 403,
          "detail": "The key lacks a required scope. Use a key with all required scopes.",
          "code": "insufficient_scope",
          "request_id": "r",
          "missing_scopes": [
            "links:write"
          ]
        }
        "#);
        assert_response!(authz("").bearer(&one).bearer(&one).await, @r#"
        400
        content-type: application/problem+json
        www-authenticate: Bearer realm="tollkey", error="invalid_request", error_description="The request has more than one credential. Send exactly one, in one header."
        x-request-id: r

        {
          "type": "urn:tollkey:problem:multiple_credentials",
          "title": "More than one credential",
          "status": 400,
          "detail": "The request has more than one credential. Send exactly one, in one header.",
          "code": "multiple_credentials",
          "request_id": "r"
        }
        "#);
    })
    .await;
}

#[actix_web::test]
async fn exceeded_rate_limit_is_429_with_retry_after() {
    each_backend(async |app: &App| {
        let rate_limit = RateLimit::new(2, 60).ok();
        for &dialect in DIALECTS {
            let key = commerce_key(
                app,
                Restrictions {
                    rate_limit,
                    ..scoped(None, None)
                },
            )
            .await;
            let authz = |required| dialect.authz(app, required, "GET", "/x").bearer(&key);
            assert_eq!(authz("mode=test").await.status, 403); // costs nothing
            assert_eq!([authz("").await.status, authz("").await.status], [200, 200]);
            app.clock.advance(Duration::from_secs(1));
            let denial = authz("").await;
            assert_eq!(outcome(&denial), denied(429, "rate_limited"), "{dialect:?}");
            assert_eq!(denial.header("retry-after"), Some("29"));
            assert_eq!(
                denial.json()["type"],
                "https://iana.org/assignments/http-problem-types#quota-exceeded"
            );
            app.clock.advance(Duration::from_secs(29));
            assert_eq!(authz("").await.status, 200);
        }
    })
    .await;
}

#[actix_web::test]
async fn protocol_reads_only_its_own_headers() {
    each_backend(async |app: &App| {
        ecosystem(app).await;
        let key = commerce_key(app, scoped(None, Some(&[Feature::TokensList]))).await;
        let forwarded = |call: Call, uri| {
            call.header("x-forwarded-method", "GET")
                .header("x-forwarded-uri", uri)
        };
        let original = |call: Call, uri| {
            call.header("x-original-method", "GET")
                .header("x-original-uri", uri)
        };
        let forward_auth = || app.get("/authz/forward-auth").bearer(&key);
        let auth_request = || app.get("/authz/auth-request").bearer(&key);
        let ext_authz = |uri| app.get(&format!("/authz/ext-authz/-{uri}")).bearer(&key);
        let denial = denied(403, "route_not_allowed");
        for (call, expected) in [
            (forward_auth(), &denial),
            (original(forward_auth(), "/tokens"), &denial),
            (
                original(forwarded(forward_auth(), "/tokens"), "/forward"),
                &ALLOWED,
            ),
            (
                original(forwarded(forward_auth(), "/forward"), "/tokens"),
                &denial,
            ),
            (auth_request(), &denial),
            (forwarded(auth_request(), "/tokens"), &denial),
            (
                forwarded(original(auth_request(), "/tokens"), "/forward"),
                &ALLOWED,
            ),
            (
                forwarded(original(auth_request(), "/forward"), "/tokens"),
                &denial,
            ),
            (
                original(forwarded(ext_authz("/forward"), "/tokens"), "/tokens"),
                &denial,
            ),
            (
                original(forwarded(ext_authz("/tokens"), "/forward"), "/forward"),
                &ALLOWED,
            ),
            // Headers of other gateways and method overrides have no effect.
            (
                ext_authz("/forward")
                    .header("x-original-url", "/tokens")
                    .header("x-rewrite-url", "/tokens"),
                &denial,
            ),
            (
                forwarded(forward_auth(), "/tokens").header("x-http-method-override", "POST"),
                &ALLOWED,
            ),
            // A repeated header denies: it is unclear which one the gateway wrote.
            (
                forwarded(forward_auth(), "/tokens").header("x-forwarded-uri", "/tokens"),
                &denial,
            ),
            (
                forwarded(forward_auth(), "/tokens").header("x-forwarded-method", "GET"),
                &denial,
            ),
            (
                original(auth_request(), "/tokens").header("x-original-uri", "/tokens"),
                &denial,
            ),
            (
                original(auth_request(), "/tokens").header("x-original-method", "GET"),
                &denial,
            ),
            // A value that is not valid UTF-8.
            (
                forward_auth()
                    .header("x-forwarded-method", "GET")
                    .header("x-forwarded-uri", b"/tok\xffens"),
                &denial,
            ),
        ] {
            let reply = call.await;
            assert_eq!(outcome(&reply), *expected, "{reply}");
        }
        // The method of the subrequest itself does not matter.
        for method in ["POST", "PUT", "OPTIONS", "BREW"] {
            let reply = forwarded(
                app.call(method, "/authz/forward-auth").bearer(&key),
                "/tokens",
            )
            .await;
            assert_eq!(reply.status, 200, "{method}");
            let reply = original(
                app.call(method, "/authz/auth-request").bearer(&key),
                "/tokens",
            )
            .await;
            assert_eq!(reply.status, 200, "{method}");
        }
        // HAProxy sends HEAD, whose response has no body.
        let reply = forwarded(
            app.call("HEAD", "/authz/forward-auth").bearer(&key),
            "/tokens",
        )
        .await;
        assert_eq!(reply.status, 200);
        let reply = forwarded(
            app.call("HEAD", "/authz/forward-auth").bearer(&key),
            "/forward",
        )
        .await;
        assert_eq!((reply.status, reply.body.as_str()), (403, ""));
    })
    .await;
}

#[actix_web::test]
async fn invalid_requirement_is_reported_only_with_a_valid_key() {
    each_backend(async |app: &App| {
        let key = commerce_key(app, scoped(None, None)).await;
        let revoked = app
            .insert(
                "acme",
                &app.generate_key(Family::Commerce, Mode::Live),
                |key| key.revoked_at = Some(key.created_at),
            )
            .await
            .text;
        for &dialect in DIALECTS {
            for required in [
                "scope=links:delete",
                "scope=",
                "scope=links:read;scope=x",
                "scope=links:read,links:write",
                "mode=prod",
                "mode=",
                "mode=LIVE",
                "mode=live;mode=live",
                "scopes=links:read",
                "Scope=links:read",
                "method=GET",
                "api_key=x",
                "scope",
                "=",
            ] {
                let authz = || dialect.authz(app, required, "GET", "/x");
                assert_eq!(
                    outcome(&authz().await),
                    denied(401, "missing_credentials"),
                    "{dialect:?} {required}"
                );
                for unknown in ["nonsense", &revoked] {
                    let reply = authz().bearer(unknown).await;
                    assert_eq!(
                        outcome(&reply),
                        denied(401, "invalid_api_key"),
                        "{dialect:?} {required}"
                    );
                }
                let reply = authz().bearer(&key).await;
                assert_eq!(
                    outcome(&reply),
                    denied(403, "invalid_requirement"),
                    "{dialect:?} {required}"
                );
                assert!(
                    !reply.body.contains(required) || required == "=" || required == "scope",
                    "{required} {reply}"
                );
            }
        }
        // Envoy's segment is not decoded, and empty pairs are invalid.
        for segment in [
            "scope=links%3Aread",
            "%2d",
            "--",
            "scope=links:read;",
            ";",
            "-;mode=live",
            "mode=live&mode=test",
        ] {
            let reply = app
                .get(&format!("/authz/ext-authz/{segment}/x"))
                .bearer(&key)
                .await;
            assert_eq!(
                outcome(&reply),
                denied(403, "invalid_requirement"),
                "{segment}"
            );
        }
        // The requirements of the other two are an ordinary query.
        for query in [
            "scope=links%3Aread",
            "scope=links:read&scope=links:read&mode=live",
            "",
        ] {
            let reply = app
                .get(&format!("/authz/forward-auth?{query}"))
                .bearer(&key)
                .await;
            assert_eq!(outcome(&reply), ALLOWED, "{query}");
        }
    })
    .await;
}

#[actix_web::test]
async fn envoy_requests_are_authorized_by_raw_path_and_method() {
    each_backend(async |app: &App| {
        ecosystem(app).await;
        let retrieve = commerce_key(app, scoped(None, Some(&[Feature::TokensRetrieve]))).await;
        let list = commerce_key(app, scoped(None, Some(&[Feature::TokensList]))).await;
        let forward =
            commerce_key(app, scoped(None, Some(&[Feature::CardholderDataForward]))).await;
        let free = commerce_key(app, scoped(None, None)).await;
        for (key, method, uri, allowed) in [
            (&retrieve, "GET", "/tokens/t_1", true),
            (&retrieve, "HEAD", "/tokens/t_1", true),
            (&retrieve, "GET", "/tokens/t_1?x=/../..", true),
            (&retrieve, "GET", "/api/tokens/t_1", true),
            (&retrieve, "GET", "/api/api/tokens/t_1", false),
            (&retrieve, "GET", "/tokens/a%20b", true),
            (&retrieve, "GET", "/tokens/a%2fb", false),
            (&retrieve, "GET", "/tokens%2fa", false),
            (&retrieve, "GET", "/tokens/a%2Fpayment-data", false),
            (&retrieve, "GET", "/tokens/a%252fb", false),
            (&retrieve, "GET", "/tokens/%2e%2e", false),
            (&retrieve, "GET", "/tokens/..", false),
            (&retrieve, "GET", "/tokens/../tokens/t_1", false),
            (&retrieve, "GET", "//tokens/t_1", false),
            (&retrieve, "GET", "/tokens//t_1", false),
            (&retrieve, "GET", "/tokens/t_1/", false),
            (&retrieve, "GET", "/tokens/t_1;v=1", false),
            (&retrieve, "GET", "/tokens/t_1%5c", false),
            (&retrieve, "POST", "/tokens/t_1", false),
            (&retrieve, "BREW", "/tokens/t_1", false),
            (&retrieve, "get", "/tokens/t_1", false),
            (&list, "GET", "/tokens", true),
            (&list, "HEAD", "/tokens", true),
            (&list, "OPTIONS", "/tokens", false),
            (&list, "PUT", "/tokens", false),
            (&forward, "POST", "/forward", true),
            (&forward, "PATCH", "/forward", false),
            (&free, "BREW", "/anything", true),
            (&free, "OPTIONS", "/", true),
            (&free, "HEAD", "/a/../b//c;d%2f", true),
        ] {
            for dialect in ENVOY {
                let reply = dialect.authz(app, "", method, uri).bearer(key).await;
                assert_eq!(
                    reply.status,
                    if allowed { 200 } else { 403 },
                    "{dialect:?} {method} {uri}"
                );
                if !allowed && method != "HEAD" {
                    let code = reply.code();
                    assert_eq!(code, "route_not_allowed", "{dialect:?} {method} {uri}");
                }
            }
        }
        // Dot segments are part of the checked path. A path that they lead out of denies every key.
        let not_allowed = denied(403, "route_not_allowed");
        for path in [
            "/authz/ext-authz/-/../../forward-auth",
            "/authz/ext-authz/-/a/..%2f..%2fb",
            "/authz/ext-authz/-/%2E%2e/b",
        ] {
            for key in [&retrieve, &free] {
                assert_eq!(
                    outcome(&app.get(path).bearer(key).await),
                    not_allowed,
                    "{path}"
                );
            }
            let anonymous = outcome(&app.get(path).await);
            assert_eq!(anonymous, denied(401, "missing_credentials"), "{path}");
        }
        let inside = app.get("/authz/ext-authz/-/a/../b");
        assert_eq!(outcome(&inside.bearer(&retrieve).await), not_allowed);
        let inside = app.get("/authz/ext-authz/-/a/../b");
        assert_eq!(inside.bearer(&free).await.status, 200);
        // A missing requirement denies every key, and is reported only with a valid key.
        for path in [
            "/authz/ext-authz/-",
            "/authz/ext-authz//x",
            "/authz/ext-authz/",
            "/authz/ext-authz",
        ] {
            assert_eq!(
                outcome(&app.get(path).bearer(&free).await),
                denied(403, "invalid_requirement"),
                "{path}"
            );
            assert_eq!(
                outcome(&app.get(path).await),
                denied(401, "missing_credentials"),
                "{path}"
            );
        }
        for path in ["/authz/", "/authz/other", "/authz/ext-authzx/-/a"] {
            assert_eq!(
                outcome(&app.get(path).bearer(&free).await),
                denied(404, "not_found"),
                "{path}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn merchant_comes_from_the_configured_header_sent_once() {
    each_backend_with(
        &[("TOLLKEY_MERCHANT_HEADER", "X-Shop")],
        async |app: &App| {
            ecosystem(app).await;
            let bound = commerce_key(app, scoped(Some(&["m_1", "m_2"]), None)).await;
            let free = commerce_key(app, scoped(None, None)).await;
            let denial = denied(403, "merchant_not_allowed");
            for &dialect in DIALECTS {
                let authz = |key| dialect.authz(app, "", "GET", "/tokens").bearer(key);
                for (call, expected, merchant) in [
                    (authz(&bound).header("x-shop", "m_1"), &ALLOWED, "m_1"),
                    (authz(&bound).header("X-SHOP", " m_2 "), &ALLOWED, "m_2"),
                    (authz(&bound).header("x-shop", "m_3"), &denial, ""),
                    (authz(&bound).header("x-shop", ""), &denial, ""),
                    (authz(&bound).header("x-merchant-id", "m_1"), &denial, ""), // the default header
                    (
                        authz(&bound)
                            .header("x-shop", "m_1")
                            .header("x-shop", "m_1"),
                        &denial,
                        "",
                    ),
                    (
                        authz(&bound).header("x-shop", "m_1").header("x-shop", ""),
                        &denial,
                        "",
                    ),
                    (authz(&bound).header("x-shop", "m_1,m_1"), &denial, ""),
                    (authz(&bound).header("x-shop", b"m_1\xff"), &denial, ""),
                    (
                        authz(&free).header("x-shop", "anybody"),
                        &ALLOWED,
                        "anybody",
                    ),
                    (authz(&free).header("x-shop", ""), &ALLOWED, ""),
                    (authz(&free), &ALLOWED, ""),
                    (
                        authz(&free).header("x-shop", "m_1").header("x-shop", "m_2"),
                        &denial,
                        "",
                    ),
                    (authz(&free).header("x-shop", "a b"), &denial, ""),
                    (authz(&free).header("x-shop", "x".repeat(129)), &denial, ""),
                ] {
                    let reply = call.await;
                    assert_eq!(outcome(&reply), *expected, "{dialect:?} {reply}");
                    if reply.status == 200 {
                        assert_eq!(
                            reply.header("x-auth-merchant-id"),
                            Some(merchant),
                            "{dialect:?}"
                        );
                    }
                }
            }
        },
    )
    .await;
}

#[actix_web::test]
async fn unreadable_hop_denies_every_key() {
    each_backend_with(
        &[("TOLLKEY_TRUSTED_PROXIES", "127.0.0.0/8,10.0.0.0/8")],
        async |app: &App| {
            let key = commerce_key(app, scoped(None, None)).await;
            let unknown = app.generate_key(Family::Commerce, Mode::Live);
            for &dialect in DIALECTS {
                for hop in [
                    &b"unknown"[..],
                    b"203.0.113.9, _hidden",
                    b"203.0.113.9,",
                    b"203.0.113.9\xa0",
                    b"203.0.113.9\xc2\xa0",
                ] {
                    let authz = |key: &str| {
                        dialect
                            .authz(app, "", "GET", "/x")
                            .bearer(key)
                            .header("x-forwarded-for", hop)
                    };
                    assert_eq!(
                        outcome(&authz(&key).await),
                        denied(403, "ip_not_allowed"),
                        "{dialect:?} {hop:?}"
                    );
                    assert_eq!(
                        outcome(&authz(unknown.expose()).await),
                        denied(401, "invalid_api_key"),
                        "the credential is checked first"
                    );
                }
                for hops in [&[][..], &[""], &["10.0.0.7"], &["unknown, 198.51.100.1"]] {
                    assert_eq!(
                        from(app, &key, dialect, hops).await,
                        ALLOWED,
                        "{dialect:?} {hops:?}"
                    );
                }
            }
            // On other routes the client IP is unknown.
            let reply = app
                .get("/whoami")
                .bearer(&key)
                .header("x-forwarded-for", "unknown")
                .await;
            assert_eq!(reply.status, 200, "{reply}");
        },
    )
    .await;
}

/// The outcome for a key with these values of `X-Forwarded-For`.
async fn from(app: &App, key: &str, dialect: Dialect, hops: &[&str]) -> (u16, String) {
    let call = dialect.authz(app, "", "GET", "/x").bearer(key);
    let reply = hops
        .iter()
        .fold(call, |call, hop| call.header("x-forwarded-for", hop))
        .await;
    outcome(&reply)
}

#[actix_web::test]
async fn client_ip_is_the_rightmost_untrusted_hop() {
    each_backend_with(
        &[("TOLLKEY_TRUSTED_PROXIES", "127.0.0.0/8,10.0.0.0/8")],
        async |app: &App| {
            let allowed_ips = IpList::parse(["203.0.113.0/24"]).ok();
            let key = commerce_key(
                app,
                Restrictions {
                    allowed_ips,
                    ..scoped(None, None)
                },
            )
            .await;
            let denial = denied(403, "ip_not_allowed");
            for &dialect in DIALECTS {
                for (hops, expected) in [
                    (&["203.0.113.9"][..], &ALLOWED),
                    (&["198.51.100.1, 203.0.113.9"], &ALLOWED),
                    (&["203.0.113.9, 10.0.0.7, 127.0.0.2"], &ALLOWED),
                    (&["198.51.100.1", "203.0.113.9 ,10.0.0.7"], &ALLOWED),
                    (&["::ffff:203.0.113.9"], &ALLOWED),
                    (&["203.0.113.9:4711"], &ALLOWED),
                    (&["\"203.0.113.9:4711\""], &ALLOWED),
                    (&["\t203.0.113.9 , \"[::ffff:10.0.0.7]:4711\" "], &ALLOWED),
                    (&["nonsense, 203.0.113.9"], &ALLOWED), // the client may have written everything to the left
                    // The proxy appends to what the client sent.
                    (&["203.0.113.9, 198.51.100.1"], &denial),
                    (&["203.0.113.9", "198.51.100.1"], &denial),
                    (&["203.0.113.9, 10.0.0.7, 198.51.100.1"], &denial),
                    // The client IP is unknown.
                    (&[], &denial),
                    (&[""], &denial),
                    (&["10.0.0.7"], &denial),
                    (&["203.0.113.9, nonsense"], &denial),
                    (&["203.0.113.9, unknown, 10.0.0.7"], &denial),
                    (&["203.0.113.9:"], &denial),
                    (&["203.0.113.9\u{a0}"], &denial),
                    (&["203.0.113.9,"], &denial),
                ] {
                    assert_eq!(
                        from(app, &key, dialect, hops).await,
                        *expected,
                        "{dialect:?} {hops:?}"
                    );
                }
                // No other header is read.
                let call = dialect.authz(app, "", "GET", "/x").bearer(&key);
                let reply = call
                    .header("forwarded", "for=203.0.113.9")
                    .header("x-real-ip", "203.0.113.9")
                    .await;
                assert_eq!(outcome(&reply), denial, "{dialect:?}");
            }
        },
    )
    .await;
}

#[actix_web::test]
async fn client_ip_is_the_peer_without_trusted_proxies() {
    each_backend_with(&[("TOLLKEY_TRUSTED_PROXIES", "none")], async |app: &App| {
        let allowed_ips = IpList::parse(["203.0.113.0/24"]).ok();
        let elsewhere = commerce_key(
            app,
            Restrictions {
                allowed_ips,
                ..scoped(None, None)
            },
        )
        .await;
        let allowed_ips = IpList::parse(["127.0.0.0/8"]).ok();
        let here = commerce_key(
            app,
            Restrictions {
                allowed_ips,
                ..scoped(None, None)
            },
        )
        .await;
        for &dialect in DIALECTS {
            for hops in [&[][..], &["203.0.113.9"], &["nonsense"]] {
                assert_eq!(
                    from(app, &elsewhere, dialect, hops).await,
                    denied(403, "ip_not_allowed"),
                    "{hops:?}"
                );
                assert_eq!(from(app, &here, dialect, hops).await, ALLOWED, "{hops:?}");
            }
        }
    })
    .await;
}

#[actix_web::test]
async fn credential_in_a_query_is_not_read() {
    each_backend(async |app: &App| {
        let key = commerce_key(app, scoped(None, None)).await;
        for name in [
            "key",
            "api_key",
            "access_token",
            "x-api-key",
            "authorization",
        ] {
            let query = format!("?{name}={key}");
            for &dialect in DIALECTS {
                let reply = dialect.authz(app, "", "GET", &format!("/x{query}")).await;
                assert_eq!(
                    outcome(&reply),
                    denied(401, "missing_credentials"),
                    "{dialect:?} {name}"
                );
            }
            for path in [
                "/authz/forward-auth",
                "/authz/auth-request",
                "/whoami",
                "/applications",
            ] {
                let reply = app.get(&format!("{path}{query}")).await;
                assert_eq!(
                    outcome(&reply),
                    denied(401, "missing_credentials"),
                    "{path} {name}"
                );
                assert!(!reply.body.contains(&key));
            }
        }
        let cookie = app
            .get("/authz/forward-auth")
            .header("cookie", format!("x-api-key={key}"))
            .await;
        assert_eq!(outcome(&cookie), denied(401, "missing_credentials"));
    })
    .await;
}

#[actix_web::test]
async fn request_body_is_not_read() {
    each_backend(async |app: &App| {
        let key = commerce_key(app, scoped(None, None)).await;
        for &dialect in DIALECTS {
            // The announced body is never sent, so waiting for it would time out.
            let call = dialect
                .authz(app, "", "POST", "/x")
                .bearer(&key)
                .header("content-length", "100000000");
            assert_eq!(outcome(&call.await), ALLOWED, "{dialect:?}");
            let call = dialect
                .authz(app, "", "POST", "/x")
                .bearer(&key)
                .header("content-encoding", "gzip");
            assert_eq!(
                outcome(&call.chunked(&[0; 10_000]).await),
                ALLOWED,
                "{dialect:?}"
            );
        }
    })
    .await;
}

#[actix_web::test]
async fn only_cached_keys_are_authorized_without_the_database() {
    each_backend(async |app: &App| {
        if app.database.backend() != Backend::Postgres {
            return; // SQLite has no connections to refuse
        }
        let known = commerce_key(app, scoped(None, None)).await;
        let other = commerce_key(app, scoped(None, None)).await;
        assert_eq!(from(app, &known, ForwardAuth, &[]).await, ALLOWED);
        app.database.refuse_connections(true);
        for &dialect in DIALECTS {
            assert_eq!(
                from(app, &known, dialect, &[]).await,
                ALLOWED,
                "{dialect:?}"
            );
        }
        let reply = ForwardAuth.authz(app, "", "GET", "/x").bearer(&other).await;
        assert_eq!(outcome(&reply), denied(503, "unavailable"));
        assert_eq!(reply.header("retry-after"), Some("1"));
        app.clock.advance(Duration::from_secs(60)); // after the lease
        let reply = ForwardAuth.authz(app, "", "GET", "/x").bearer(&known).await;
        assert_eq!(outcome(&reply), denied(503, "unavailable"));
        assert!(
            !reply.body.contains("postgres") && !reply.body.contains("sql"),
            "{reply}"
        );
        app.database.refuse_connections(false);
        eventually("the database is reachable", async || {
            from(app, &other, ForwardAuth, &[]).await == ALLOWED
        })
        .await;
    })
    .await;
}
