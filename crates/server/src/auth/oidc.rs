//! Sign-in with an OpenID Connect provider: the authorization code flow with PKCE (S256), `state` and `nonce`.
//!
//! The submodule `id_token` verifies ID tokens; their claims then follow the rules for management tokens.
//!
//! Sign-out is OpenID Connect RP-Initiated Logout 1.0, if the provider has an `end_session_endpoint`. The ID token is
//! not stored, so the request names the client and not the session (`client_id` without `id_token_hint`).
//!
//! The provider's metadata and keys are fetched when they are first needed, so that a provider that is down does not
//! affect other sign-in methods. Later versions are fetched in the background (`published`).

mod attempt;
mod id_token;

use std::{fmt, sync::Arc, time::Duration};

use futures_util::future::{BoxFuture, FutureExt as _};
use jiff::{SignedDuration, Timestamp};
use openidconnect::{
    AdditionalClaims, AdditionalProviderMetadata, AsyncHttpClient, AuthType, AuthenticationFlow,
    AuthorizationCode, ClientId, ClientSecret, CsrfToken, DiscoveryError, EndpointMaybeSet,
    EndpointNotSet, EndpointSet, ExtraTokenFields, HttpRequest, HttpResponse, IdToken, IssuerUrl,
    JsonWebKeySet, JwsSigningAlgorithm as _, Nonce, PkceCodeChallenge, PkceCodeVerifier,
    ProviderMetadata, RedirectUrl, RequestTokenError, Scope, StandardErrorResponse,
    StandardTokenResponse, TokenResponse,
    core::{
        CoreAuthDisplay, CoreAuthPrompt, CoreClaimName, CoreClaimType, CoreClientAuthMethod,
        CoreErrorResponseType, CoreGenderClaim, CoreGrantType, CoreJsonWebKey,
        CoreJweContentEncryptionAlgorithm, CoreJweKeyManagementAlgorithm, CoreJwsSigningAlgorithm,
        CoreResponseMode, CoreResponseType, CoreRevocableToken, CoreRevocationErrorResponse,
        CoreSubjectIdentifierType, CoreTokenIntrospectionResponse, CoreTokenType,
    },
    http,
};
use reqwest::{Client, Url, header};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tollkey_core::{Clock, Digest, session::SignInSettingsHash};
use tollkey_service::Random;

pub use self::attempt::Attempt;
use super::{
    jwks::{self, FetchError, RSA_MODULUS},
    jwt::{ClaimRules, Claims, TokenError},
    published::{FETCH_TIMEOUT, Published},
};
use crate::{config::OidcSettings, issuer_url::trusted_url};

/// The path below the public URL to which the provider redirects after a sign-in.
pub const CALLBACK_PATH: &str = "/dashboard/sign-in/callback";
pub const SIGNED_OUT_PATH: &str = "/dashboard/signed-out";
/// The minimum time between the starts of two fetches of the provider's metadata. Longer than [`FETCH_TIMEOUT`], so
/// that a request that waited for a failed fetch does not wait for another one.
const FETCH_INTERVAL: SignedDuration = SignedDuration::from_secs(10);
/// How long a sign-out waits for metadata that was never fetched.
const SIGN_OUT_WAIT: Duration = Duration::from_secs(2);

/// The fields of a token response in addition to those of OAuth 2.0.
#[derive(Debug, Serialize, Deserialize)]
struct OtherTokens {
    /// Any JSON: [`id_token`] parses it, and reports what is wrong with it.
    #[serde(default)]
    id_token: Value,
}

impl ExtraTokenFields for OtherTokens {}

/// A placeholder for the claims of the crate's ID token, which is not used. A local type is required to implement the
/// crate's trait for [`Tokens`].
#[derive(Debug, Serialize, Deserialize)]
struct UnreadClaims {}

impl AdditionalClaims for UnreadClaims {}

type Tokens = StandardTokenResponse<OtherTokens, CoreTokenType>;

impl
    TokenResponse<
        UnreadClaims,
        CoreGenderClaim,
        CoreJweContentEncryptionAlgorithm,
        CoreJwsSigningAlgorithm,
    > for Tokens
{
    /// Always returns `None`: [`id_token`] is used instead of the crate's ID token.
    fn id_token(
        &self,
    ) -> Option<
        &IdToken<
            UnreadClaims,
            CoreGenderClaim,
            CoreJweContentEncryptionAlgorithm,
            CoreJwsSigningAlgorithm,
        >,
    > {
        None
    }
}

/// Provider metadata in addition to Discovery 1.0.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct OtherMetadata {
    /// RP-Initiated Logout 1.0, section 2.1. Any JSON: a malformed value must not prevent a sign-in.
    end_session_endpoint: Option<Value>,
}

impl AdditionalProviderMetadata for OtherMetadata {}

type Metadata = ProviderMetadata<
    OtherMetadata,
    CoreAuthDisplay,
    CoreClientAuthMethod,
    CoreClaimName,
    CoreClaimType,
    CoreGrantType,
    CoreJweContentEncryptionAlgorithm,
    CoreJweKeyManagementAlgorithm,
    CoreJsonWebKey,
    CoreResponseMode,
    CoreResponseType,
    CoreSubjectIdentifierType,
>;
type Registered = openidconnect::Client<
    UnreadClaims,
    CoreAuthDisplay,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJsonWebKey,
    CoreAuthPrompt,
    StandardErrorResponse<CoreErrorResponseType>,
    Tokens,
    CoreTokenIntrospectionResponse,
    CoreRevocableToken,
    CoreRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointMaybeSet,
    EndpointMaybeSet,
>;

/// Why a sign-in fails. For the log: the only part of a request or response in its text is an error code.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OidcError {
    /// The provider does not respond, or its response violates the protocol.
    #[error("the provider {0}")]
    Unavailable(String),
    #[error("{0}")]
    Rejected(Rejection),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejection {
    /// The response names another issuer (RFC 9207).
    ResponseIssuer,
    NoCode,
    Code,
    NoIdToken,
    TokenResponse,
    Claim(&'static str),
    Issuer,
    /// `aud` does not contain this client, or contains others.
    Audience,
    /// `azp` is another client, or is missing although `aud` has several entries.
    AuthorizedParty,
    Expired,
    NotYetValid,
    Nonce,
    /// The provider does not list the algorithm, or this server does not accept it.
    Algorithm,
    Unsigned,
    UnknownKey,
    AmbiguousKey,
    Signature,
    /// Anything else, such as a critical extension or a malformed JWT.
    Form,
}

impl Rejection {
    /// All rejections, with every claim that can be missing or malformed.
    pub const ALL: [Self; 25] = [
        Self::ResponseIssuer,
        Self::NoCode,
        Self::Code,
        Self::NoIdToken,
        Self::TokenResponse,
        Self::Claim("iss"),
        Self::Claim("sub"),
        Self::Claim("aud"),
        Self::Claim("azp"),
        Self::Claim("exp"),
        Self::Claim("iat"),
        Self::Claim("nbf"),
        Self::Claim("nonce"),
        Self::Issuer,
        Self::Audience,
        Self::AuthorizedParty,
        Self::Expired,
        Self::NotYetValid,
        Self::Nonce,
        Self::Algorithm,
        Self::Unsigned,
        Self::UnknownKey,
        Self::AmbiguousKey,
        Self::Signature,
        Self::Form,
    ];

    #[must_use]
    pub fn claim(self) -> Option<&'static str> {
        match self {
            Self::Claim(claim) => Some(claim),
            Self::Issuer => Some("iss"),
            Self::Audience => Some("aud"),
            Self::AuthorizedParty => Some("azp"),
            Self::Expired => Some("exp"),
            Self::NotYetValid => Some("nbf"),
            Self::Nonce => Some("nonce"),
            _ => None,
        }
    }

    /// Returns its code in the URL of the sign-in page: lower-case letters and hyphens.
    #[must_use]
    pub fn code(self) -> &'static str {
        match self {
            Self::ResponseIssuer => "response-issuer",
            Self::NoCode => "empty-response",
            Self::Code => "invalid-grant",
            Self::NoIdToken => "no-id-token",
            Self::TokenResponse => "token-response",
            Self::Claim("iss") => "claim-iss",
            Self::Claim("sub") => "claim-sub",
            Self::Claim("aud") => "claim-aud",
            Self::Claim("azp") => "claim-azp",
            Self::Claim("exp") => "claim-exp",
            Self::Claim("iat") => "claim-iat",
            Self::Claim("nbf") => "claim-nbf",
            Self::Claim("nonce") => "claim-nonce",
            Self::Claim(_) | Self::Form => "form",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::AuthorizedParty => "authorized-party",
            Self::Expired => "expired",
            Self::NotYetValid => "not-yet-valid",
            Self::Nonce => "nonce",
            Self::Algorithm => "algorithm",
            Self::Unsigned => "unsigned",
            Self::UnknownKey => "unknown-key",
            Self::AmbiguousKey => "ambiguous-key",
            Self::Signature => "signature",
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ResponseIssuer => "the response comes from another issuer",
            Self::NoCode => "the response has neither a code nor an error",
            Self::Code => "the provider does not accept its own code, which may have been used before or have expired",
            Self::NoIdToken => "the provider returned no ID token",
            Self::TokenResponse => {
                "the provider's token response is malformed: `access_token` or `token_type` is missing, or a field has the \
                 wrong type"
            }
            Self::Claim(claim) => return write!(f, "the claim `{claim}` of the ID token is missing or malformed"),
            Self::Issuer => "the ID token comes from another issuer than TOLLKEY_OIDC_ISSUER",
            Self::Audience => "the ID token is not for this client alone",
            Self::AuthorizedParty => "the ID token was issued to another client",
            Self::Expired => "the ID token has expired; the clocks of the provider and of this server may differ",
            Self::NotYetValid => {
                "the ID token is not valid yet; the clocks of the provider and of this server may differ"
            }
            Self::Nonce => "the ID token is not from this sign-in",
            Self::Algorithm => "the algorithm of the ID token is not accepted",
            Self::Unsigned => "the ID token is not signed",
            Self::UnknownKey => "the provider has no key with the ID that the ID token names",
            Self::AmbiguousKey => "several keys of the provider could be the one that signed the ID token",
            Self::Signature => "the signature of the ID token is wrong",
            Self::Form => "the ID token is not one that this server accepts",
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ProviderSetupError {
    /// The HTTP client cannot be created, for example because the machine has no CA certificates.
    #[error("cannot set up the HTTP client for the OpenID Connect provider")]
    Client(#[from] reqwest::Error),
    #[error("the URL of the OpenID Connect provider or of this server is invalid")]
    Url,
}

struct Discovered {
    metadata: Metadata,
    algorithms: Vec<CoreJwsSigningAlgorithm>,
    end_session: Option<Url>,
}

#[derive(Clone)]
struct Endpoint {
    issuer: IssuerUrl,
    http: Client,
}

pub struct Provider {
    endpoint: Endpoint,
    client_id: ClientId,
    client_secret: Option<ClientSecret>,
    redirect: RedirectUrl,
    signed_out: String,
    scopes: Vec<Scope>,
    rules: ClaimRules,
    sign_in_settings: SignInSettingsHash,
    published: Arc<Published<Discovered>>,
}

impl Provider {
    pub fn new(settings: &OidcSettings) -> Result<Self, ProviderSetupError> {
        let issuer =
            IssuerUrl::new(settings.issuer.clone()).map_err(|_| ProviderSetupError::Url)?;
        let redirect = format!("{}{CALLBACK_PATH}", settings.public_url);
        let rules = ClaimRules {
            issuer: Some(settings.issuer.clone()),
            audience: Some(settings.client_id.clone()),
            account_claim: settings.account_claim.clone(),
            roles_claim: settings.roles_claim.clone(),
        };
        let secret = settings
            .client_secret
            .as_ref()
            .map_or("", |secret| secret.expose());
        Ok(Self {
            sign_in_settings: rules.sign_in_settings("oidc", &Digest::of_key(secret)),
            endpoint: Endpoint {
                http: jwks::client(&trusted_url(&issuer).map_err(|_| ProviderSetupError::Url)?)?,
                issuer,
            },
            client_id: ClientId::new(settings.client_id.clone()),
            client_secret: settings
                .client_secret
                .as_ref()
                .map(|it| ClientSecret::new(it.expose().to_owned())),
            signed_out: format!("{}{SIGNED_OUT_PATH}", settings.public_url),
            redirect: RedirectUrl::new(redirect).map_err(|_| ProviderSetupError::Url)?,
            scopes: settings.scopes.iter().cloned().map(Scope::new).collect(),
            rules,
            published: Published::new(
                "the metadata of the OpenID Connect provider",
                FETCH_INTERVAL,
            ),
        })
    }

    #[must_use]
    pub fn account_claim(&self) -> &str {
        &self.rules.account_claim
    }

    /// Fetches the metadata and keys without caching them, and returns how many keys can be used.
    pub async fn fetch_key_count(&self) -> Result<usize, OidcError> {
        let fetched = tokio::time::timeout(FETCH_TIMEOUT, self.endpoint.clone().fetch()).await;
        let discovered = fetched
            .map_err(|_| OidcError::Unavailable("does not respond in time".to_owned()))??;
        Ok(discovered.metadata.jwks().keys().len())
    }

    /// Returns the URL where a browser ends its session at the provider, which then redirects to [`SIGNED_OUT_PATH`]. `None`
    /// if the provider has no such endpoint, or if its metadata was never fetched and does not arrive within two
    /// seconds. The URL has no `state`, because the page at [`SIGNED_OUT_PATH`] changes nothing.
    pub async fn end_session_url(&self, clock: &dyn Clock) -> Option<Url> {
        let discovered = tokio::time::timeout(SIGN_OUT_WAIT, self.discovered(clock.now()))
            .await
            .ok()?
            .ok()?;
        let mut url = discovered.end_session.clone()?;
        let parameters = [
            ("client_id", self.client_id.as_str()),
            ("post_logout_redirect_uri", &self.signed_out),
        ];
        url.query_pairs_mut().extend_pairs(parameters);
        Some(url)
    }

    /// A response can name its issuer (RFC 9207).
    #[must_use]
    pub fn is_issuer(&self, name: &str) -> bool {
        *self.endpoint.issuer == name
    }

    #[must_use]
    pub fn sign_in_settings(&self) -> SignInSettingsHash {
        self.sign_in_settings
    }

    /// Begins a sign-in. `before` is the session of the browser, if any. Returns the attempt, which the browser has to
    /// store, and the URL to redirect it to.
    pub async fn begin(
        &self,
        clock: &dyn Clock,
        random: &Random,
        next: &str,
        before: Option<Digest>,
    ) -> Result<(Attempt, Url), OidcError> {
        let discovered = self.discovered(clock.now()).await?;
        let attempt = Attempt::begin(next, before, random, clock.now());
        let (state, nonce) = (
            attempt.state.expose().to_owned(),
            attempt.nonce.expose().to_owned(),
        );
        let verifier = PkceCodeVerifier::new(attempt.verifier.expose().to_owned());
        let (url, ..) = self
            .registered(&discovered)
            .authorize_url(
                AuthenticationFlow::<CoreResponseType>::AuthorizationCode,
                || CsrfToken::new(state),
                || Nonce::new(nonce),
            )
            .add_scopes(self.scopes.iter().cloned())
            .set_pkce_challenge(PkceCodeChallenge::from_code_verifier_sha256(&verifier))
            .url();
        Ok((attempt, url))
    }

    /// Exchanges the code of a redirect, and returns the claims of the verified ID token.
    pub async fn finish(
        &self,
        clock: &dyn Clock,
        attempt: &Attempt,
        code: &str,
    ) -> Result<Claims, OidcError> {
        let discovered = self.discovered(clock.now()).await?;
        let registered = self.registered(&discovered);
        let tokens = registered
            .exchange_code(AuthorizationCode::new(code.to_owned()))
            .map_err(|_| OidcError::Unavailable("has no token endpoint".to_owned()))?
            .set_pkce_verifier(PkceCodeVerifier::new(attempt.verifier.expose().to_owned()))
            .request_async(&self.endpoint)
            .await
            .map_err(from_exchange_error)?;
        let token = match &tokens.extra_fields().id_token {
            Value::Null => return Err(OidcError::Rejected(Rejection::NoIdToken)),
            Value::String(token) => token,
            _ => return Err(OidcError::Rejected(Rejection::Form)),
        };
        let token = id_token::IdToken::parse(token).map_err(OidcError::Rejected)?;
        let mut verified = token.verify(&self.expected(&discovered, attempt), clock.now());
        if verified == Err(Rejection::UnknownKey) {
            let newer = self.newer(clock.now()).await?;
            verified = token.verify(&self.expected(&newer, attempt), clock.now());
        }
        let claims = verified.map_err(OidcError::Rejected)?;
        self.rules
            .read(claims, clock.now())
            .map_err(|error| OidcError::Rejected(from_token_error(&error)))
    }

    fn expected<'a>(
        &'a self,
        discovered: &'a Discovered,
        attempt: &'a Attempt,
    ) -> id_token::Expected<'a> {
        id_token::Expected {
            issuer: &self.endpoint.issuer,
            client_id: &self.client_id,
            nonce: attempt.nonce.expose(),
            algorithms: &discovered.algorithms,
            keys: discovered.metadata.jwks().keys(),
        }
    }

    fn registered(&self, discovered: &Discovered) -> Registered {
        let metadata = discovered.metadata.clone();
        let methods = metadata.token_endpoint_auth_methods_supported();
        let has = |method| methods.is_some_and(|methods| methods.contains(&method));
        let in_body = has(CoreClientAuthMethod::ClientSecretPost)
            && !has(CoreClientAuthMethod::ClientSecretBasic);
        Registered::from_provider_metadata(
            metadata,
            self.client_id.clone(),
            self.client_secret.clone(),
        )
        .set_redirect_uri(self.redirect.clone())
        .set_auth_type(if in_body {
            AuthType::RequestBody
        } else {
            AuthType::BasicAuth
        })
    }

    /// Returns the current metadata; waits only for the first version.
    async fn discovered(&self, now: Timestamp) -> Result<Arc<Discovered>, OidcError> {
        match self.published.current() {
            Some(discovered) => {
                self.published
                    .refresh(now, || self.endpoint.clone().fetch());
                Ok(discovered)
            }
            None => self.newer(now).await,
        }
    }

    /// Returns the metadata after the next fetch, or the current one if it was just fetched or the fetch fails.
    async fn newer(&self, now: Timestamp) -> Result<Arc<Discovered>, OidcError> {
        let newer = self
            .published
            .newer(now, || self.endpoint.clone().fetch())
            .await;
        newer.ok_or_else(|| {
            OidcError::Unavailable("does not respond with its metadata and keys".to_owned())
        })
    }

    /// Fetches nothing before the first sign-in. Waits until no fetch is running.
    pub async fn refresh(&self, now: Timestamp) {
        self.published
            .refresh(now, || self.endpoint.clone().fetch());
        self.published.settled().await;
    }
}

impl Endpoint {
    async fn fetch(self) -> Result<Discovered, OidcError> {
        let metadata = Metadata::discover_async(self.issuer.clone(), &self)
            .await
            .map_err(|error| from_discovery_error(&error))?;
        // Browsers are redirected there, so the rules of `jwks::client` do not apply to it.
        if trusted_url(metadata.authorization_endpoint()).is_err() {
            return Err(OidcError::Unavailable(
                "has an authorization endpoint that is not https".to_owned(),
            ));
        }
        let mut algorithms = metadata.id_token_signing_alg_values_supported().clone();
        algorithms.retain(|it| *it != CoreJwsSigningAlgorithm::None && !it.uses_shared_secret());
        let keys: Vec<_> = metadata
            .jwks()
            .keys()
            .iter()
            .filter(|key| is_strong(key))
            .cloned()
            .collect();
        tracing::info!(
            issuer = %*self.issuer, usable_keys = keys.len(), "fetched the metadata of the OpenID Connect provider"
        );
        let end_session = metadata
            .additional_metadata()
            .end_session_endpoint
            .as_ref()
            .and_then(Value::as_str);
        let end_session = end_session.and_then(|url| trusted_url(url).ok());
        Ok(Discovered {
            metadata: metadata.set_jwks(JsonWebKeySet::new(keys)),
            algorithms,
            end_session,
        })
    }

    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, FetchError> {
        let mut request = reqwest::Request::try_from(request)?;
        if let Some(credentials) = request.headers_mut().get_mut(header::AUTHORIZATION) {
            credentials.set_sensitive(true);
        }
        let mut response = self.http.execute(request).await?;
        let mut with_body = http::Response::new(jwks::body(&mut response).await?);
        *with_body.status_mut() = response.status();
        *with_body.headers_mut() = std::mem::take(response.headers_mut());
        Ok(with_body)
    }
}

impl<'c> AsyncHttpClient<'c> for Endpoint {
    type Error = FetchError;
    type Future = BoxFuture<'c, Result<HttpResponse, FetchError>>;

    fn call(&'c self, request: HttpRequest) -> Self::Future {
        self.send(request).boxed()
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider")
            .field("issuer", &*self.endpoint.issuer)
            .finish_non_exhaustive()
    }
}

/// Only RSA keys can be too small: the other types have a fixed size.
fn is_strong(key: &CoreJsonWebKey) -> bool {
    let Ok(key) = serde_json::to_value(key) else {
        return false;
    };
    key.get("kty").and_then(Value::as_str) != Some("RSA")
        || key
            .get("n")
            .and_then(Value::as_str)
            .is_some_and(|n| RSA_MODULUS.contains(&(n.len() * 3 / 4)))
}

fn describe_fetch_error(error: &FetchError) -> String {
    match error {
        FetchError::Http(error) => format!("cannot be reached: {error}"),
        other => format!("sends a response that {other}"),
    }
}

fn from_discovery_error(error: &DiscoveryError<FetchError>) -> OidcError {
    OidcError::Unavailable(match error {
        DiscoveryError::Request(error) => describe_fetch_error(error),
        DiscoveryError::Response(status, ..) if status.as_u16() != 200 => format!("responded with {status}, not 200"),
        DiscoveryError::Validation(_) => {
            "publishes another issuer than TOLLKEY_OIDC_ISSUER; set it exactly as published, with or without a slash at \
             its end"
                .to_owned()
        }
        _ => "does not publish its metadata and keys as OpenID Connect Discovery requires".to_owned(),
    })
}

fn from_exchange_error(
    error: RequestTokenError<FetchError, StandardErrorResponse<CoreErrorResponseType>>,
) -> OidcError {
    match error {
        RequestTokenError::ServerResponse(response) => from_error_code(response.error()),
        RequestTokenError::Request(error) => OidcError::Unavailable(describe_fetch_error(&error)),
        RequestTokenError::Parse(_, body) => from_malformed_response(&body),
        RequestTokenError::Other(_) => {
            OidcError::Unavailable("does not respond with tokens".to_owned())
        }
    }
}

/// Omits the description of the error, which may repeat what was sent.
fn from_error_code(code: &CoreErrorResponseType) -> OidcError {
    OidcError::Unavailable(match code {
        CoreErrorResponseType::InvalidGrant => return OidcError::Rejected(Rejection::Code),
        CoreErrorResponseType::InvalidClient => {
            "does not accept this client: invalid_client".to_owned()
        }
        CoreErrorResponseType::UnauthorizedClient => {
            "does not accept this client: unauthorized_client".to_owned()
        }
        _ => "rejected the exchange of a code".to_owned(),
    })
}

/// Some providers send an error with status 200.
fn from_malformed_response(body: &[u8]) -> OidcError {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let code = body
        .get("error")
        .and_then(|code| serde_json::from_value(code.clone()).ok());
    match code {
        Some(code) => from_error_code(&code),
        None if body.get("id_token").is_some_and(|token| !token.is_null()) => {
            OidcError::Rejected(Rejection::TokenResponse)
        }
        None => OidcError::Unavailable("does not respond with tokens".to_owned()),
    }
}

fn from_token_error(error: &TokenError) -> Rejection {
    match error {
        TokenError::Expired => Rejection::Expired,
        TokenError::NotYetValid => Rejection::NotYetValid,
        TokenError::Claim(claim) => Rejection::Claim(claim),
        _ => Rejection::Form,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn weak_rsa_keys_are_ignored() {
        let rsa = |letters: usize| json!({"kty": "RSA", "kid": "k", "n": "x".repeat(letters), "e": "AQAB"});
        for (key, strong) in [
            (rsa(342), true),
            (rsa(683), true),
            (rsa(171), false),
            (rsa(0), false),
            (json!({"kty": "RSA", "kid": "k", "e": "AQAB"}), false),
            (
                json!({"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"}),
                true,
            ),
        ] {
            let read: CoreJsonWebKey = serde_json::from_value(key.clone()).unwrap();
            assert_eq!(is_strong(&read), strong, "{key}");
        }
    }

    #[test]
    fn malformed_token_response_is_mapped_to_an_error() {
        let unavailable = |reason: &str| OidcError::Unavailable(reason.to_owned());
        for (body, expected) in [
            (
                r#"{"error": "invalid_grant"}"#,
                OidcError::Rejected(Rejection::Code),
            ),
            (
                r#"{"error": "invalid_client"}"#,
                unavailable("does not accept this client: invalid_client"),
            ),
            (
                r#"{"error": "EXAMPLE"}"#,
                unavailable("rejected the exchange of a code"),
            ),
            (
                r#"{"access_token": "a", "id_token": "a.b.c"}"#,
                OidcError::Rejected(Rejection::TokenResponse),
            ),
            (
                r#"{"id_token": null}"#,
                unavailable("does not respond with tokens"),
            ),
            ("[1]", unavailable("does not respond with tokens")),
            ("<html>", unavailable("does not respond with tokens")),
        ] {
            assert_eq!(from_malformed_response(body.as_bytes()), expected, "{body}");
        }
    }

    #[test]
    fn token_response_can_hold_any_id_token() {
        for id_token in [json!("a.b.c"), json!(5), json!(null)] {
            let body = json!({"access_token": "a", "token_type": "Bearer", "id_token": id_token});
            let tokens: Tokens = serde_json::from_value(body).unwrap();
            assert_eq!(tokens.extra_fields().id_token, id_token);
        }
        let tokens: Tokens =
            serde_json::from_value(json!({"access_token": "a", "token_type": "Bearer"})).unwrap();
        assert!(tokens.extra_fields().id_token.is_null());
    }
}
