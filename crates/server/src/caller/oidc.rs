//! An OpenID Connect provider: where people are sent to sign in, and what its word is worth when they come back.
//!
//! The authorization code flow with PKCE (S256), `state` and `nonce`, by the crate `openidconnect`. Of an ID token the signature,
//! `iss`, `aud` (this client and nobody else), `exp` and `nonce` are checked, then the same rules as for a management token. It is
//! signed with one of the asymmetric algorithms that the provider names: never `none`, and never an HMAC, whose key would be the
//! client's secret.
//!
//! The provider's metadata and keys are fetched when they are first needed, so that a provider that is down does not affect other ways to
//! sign in. Later versions are fetched in the background (`published`).

mod attempt;

use std::{fmt, sync::Arc, time::SystemTime};

use futures_util::future::{BoxFuture, FutureExt as _};
use jiff::{SignedDuration, Timestamp};
use openidconnect::{
    AdditionalClaims, AsyncHttpClient, AuthType, AuthenticationFlow, AuthorizationCode, ClaimsVerificationError,
    ClientId, ClientSecret, CsrfToken, DiscoveryError, EmptyExtraTokenFields, EndpointMaybeSet, EndpointNotSet,
    EndpointSet, HttpRequest, HttpResponse, IdToken, IdTokenFields, IdTokenVerifier, IssuerUrl, JsonWebKeySet,
    JwsSigningAlgorithm as _, Nonce, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, RequestTokenError, Scope,
    SignatureVerificationError, StandardErrorResponse, StandardTokenResponse, TokenResponse as _,
    core::{
        CoreAuthDisplay, CoreAuthPrompt, CoreClientAuthMethod, CoreErrorResponseType, CoreGenderClaim, CoreJsonWebKey,
        CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm, CoreProviderMetadata, CoreResponseType,
        CoreRevocableToken, CoreRevocationErrorResponse, CoreTokenIntrospectionResponse, CoreTokenType,
    },
    http,
};
use reqwest::{Client, Url, header};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tollkey_core::{Clock, Digest};

pub use self::attempt::Attempt;
use super::{
    jwks::{self, FetchError, RSA_MODULUS, trusted_url},
    jwt::{ClaimRules, Claims},
    published::Published,
};
use crate::{config::OidcSettings, random::Random};

/// Where the provider sends people back to, behind the public URL.
pub const CALLBACK: &str = "/dashboard/sign-in/callback";
/// The least time between the beginnings of two fetches of the provider's metadata. Longer than a fetch may take, so that a request that
/// waited for one that failed is not kept waiting by the next.
const FETCH_INTERVAL: SignedDuration = SignedDuration::from_secs(10);

/// The claims of an ID token that the standard does not name.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Others(Map<String, Value>);

impl AdditionalClaims for Others {}

type Token = IdToken<Others, CoreGenderClaim, CoreJweContentEncryptionAlgorithm, CoreJwsSigningAlgorithm>;
type TokenFields = IdTokenFields<
    Others,
    EmptyExtraTokenFields,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJwsSigningAlgorithm,
>;
type Registered = openidconnect::Client<
    Others,
    CoreAuthDisplay,
    CoreGenderClaim,
    CoreJweContentEncryptionAlgorithm,
    CoreJsonWebKey,
    CoreAuthPrompt,
    StandardErrorResponse<CoreErrorResponseType>,
    StandardTokenResponse<TokenFields, CoreTokenType>,
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

/// Why somebody is not signed in. Its text is for the log: it holds nothing that was sent or answered but an error's code.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// The provider cannot be asked, or what it answers is none of the protocol's answers.
    #[error("the provider {0}")]
    Unavailable(String),
    /// The provider's answer does not say who it is.
    #[error("{0}")]
    Refused(&'static str),
}

/// A provider cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ProviderSetupError {
    /// No HTTP client, as on a machine without CA certificates.
    #[error("cannot set up the client that asks the OpenID Connect provider")]
    Client(#[from] reqwest::Error),
    /// The settings' rules let through what is no URL.
    #[error("the address of the OpenID Connect provider, or of this server, is no URL")]
    Url,
}

/// The provider's metadata and keys.
struct Known {
    metadata: CoreProviderMetadata,
    algorithms: Vec<CoreJwsSigningAlgorithm>,
}

/// Where the provider is, and how to send requests to it.
#[derive(Clone)]
struct Endpoint {
    issuer: IssuerUrl,
    http: Client,
}

/// An OpenID Connect provider.
pub struct Provider {
    endpoint: Endpoint,
    client_id: ClientId,
    client_secret: Option<ClientSecret>,
    redirect: RedirectUrl,
    scopes: Vec<Scope>,
    rules: ClaimRules,
    grounds: Digest,
    published: Arc<Published<Known>>,
}

impl Provider {
    /// The provider of these settings. Nothing is asked yet.
    ///
    /// # Errors
    /// [`ProviderSetupError`].
    pub fn new(settings: &OidcSettings) -> Result<Self, ProviderSetupError> {
        let issuer = IssuerUrl::new(settings.issuer.clone()).map_err(|_| ProviderSetupError::Url)?;
        let redirect = format!("{}{CALLBACK}", settings.public_url);
        let rules = ClaimRules {
            issuer: Some(settings.issuer.clone()),
            audience: Some(settings.client_id.clone()),
            account_claim: settings.account_claim.clone(),
            roles_claim: settings.roles_claim.clone(),
        };
        let secret = settings.client_secret.as_ref().map_or("", |secret| secret.expose());
        Ok(Self {
            grounds: rules.grounds("oidc", &Digest::of(secret)),
            endpoint: Endpoint {
                http: jwks::client(&trusted_url(&issuer).map_err(|_| ProviderSetupError::Url)?)?,
                issuer,
            },
            client_id: ClientId::new(settings.client_id.clone()),
            client_secret: settings.client_secret.as_ref().map(|it| ClientSecret::new(it.expose().to_owned())),
            redirect: RedirectUrl::new(redirect).map_err(|_| ProviderSetupError::Url)?,
            scopes: settings.scopes.iter().cloned().map(Scope::new).collect(),
            rules,
            published: Published::new("the metadata of the OpenID Connect provider", FETCH_INTERVAL),
        })
    }

    /// Whether an answer that names its issuer (RFC 9207) names this one.
    #[must_use]
    pub fn is_issuer(&self, name: &str) -> bool {
        *self.endpoint.issuer == name
    }

    /// What a session rests on that began here.
    #[must_use]
    pub fn grounds(&self) -> Digest {
        self.grounds
    }

    /// Begins a sign-in, in a browser that has this session or none: what the browser has to keep, and where it is to go.
    ///
    /// # Errors
    /// [`OidcError::Unavailable`].
    pub async fn begin(
        &self,
        clock: &dyn Clock,
        random: &Random,
        next: &str,
        before: Option<Digest>,
    ) -> Result<(Attempt, Url), OidcError> {
        let known = self.known(clock.now()).await?;
        let attempt = Attempt::begin(next, before, random, clock.now());
        let (state, nonce) = (attempt.state.expose().to_owned(), attempt.nonce.expose().to_owned());
        let verifier = PkceCodeVerifier::new(attempt.verifier.expose().to_owned());
        let (url, ..) = self
            .registered(&known)
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

    /// Who it is that comes back with this code.
    ///
    /// # Errors
    /// [`OidcError`].
    pub async fn finish(&self, clock: &dyn Clock, attempt: &Attempt, code: &str) -> Result<Claims, OidcError> {
        let known = self.known(clock.now()).await?;
        let registered = self.registered(&known);
        let tokens = registered
            .exchange_code(AuthorizationCode::new(code.to_owned()))
            .map_err(|_| OidcError::Unavailable("has no token endpoint".to_owned()))?
            .set_pkce_verifier(PkceCodeVerifier::new(attempt.verifier.expose().to_owned()))
            .request_async(&self.endpoint)
            .await
            .map_err(of_exchange)?;
        let token = tokens.id_token().ok_or(OidcError::Refused("there is no ID token"))?;
        let nonce = Nonce::new(attempt.nonce.expose().to_owned());
        let mut judged = self.judge(token, &known, &nonce, clock.now());
        if let Err(ClaimsVerificationError::SignatureVerification(SignatureVerificationError::NoMatchingKey)) = judged {
            let newer = self.newer(clock.now()).await?;
            judged = self.judge(token, &newer, &nonce, clock.now());
        }
        let claims = judged.map_err(|error| OidcError::Refused(of_claims(&error)))?;
        self.rules.read(&claims, clock.now()).map_err(|_| OidcError::Refused("a claim is missing or malformed"))
    }

    /// The claims of an ID token, if it is one of this provider for this client and this attempt.
    fn judge(
        &self,
        token: &Token,
        known: &Known,
        nonce: &Nonce,
        now: Timestamp,
    ) -> Result<Map<String, Value>, ClaimsVerificationError> {
        let now = SystemTime::from(now);
        let keys = known.metadata.jwks().clone();
        // As if the client had no secret: nothing is checked with it.
        let verifier = IdTokenVerifier::new_public_client(self.client_id.clone(), self.endpoint.issuer.clone(), keys)
            .set_allowed_algs(known.algorithms.iter().cloned())
            .set_time_fn(move || now.into());
        let claims = token.claims(&verifier, nonce)?;
        match serde_json::to_value(claims) {
            Ok(Value::Object(claims)) => Ok(claims),
            _ => Err(ClaimsVerificationError::Other(String::new())),
        }
    }

    fn registered(&self, known: &Known) -> Registered {
        let metadata = known.metadata.clone();
        let methods = metadata.token_endpoint_auth_methods_supported();
        let has = |method| methods.is_some_and(|methods| methods.contains(&method));
        let in_body = has(CoreClientAuthMethod::ClientSecretPost) && !has(CoreClientAuthMethod::ClientSecretBasic);
        Registered::from_provider_metadata(metadata, self.client_id.clone(), self.client_secret.clone())
            .set_redirect_uri(self.redirect.clone())
            .set_auth_type(if in_body { AuthType::RequestBody } else { AuthType::BasicAuth })
    }

    /// The current metadata, without waiting for a newer version; waits only for the first.
    async fn known(&self, now: Timestamp) -> Result<Arc<Known>, OidcError> {
        match self.published.current() {
            Some(known) => {
                self.published.refresh(now, || self.endpoint.clone().fetch());
                Ok(known)
            }
            None => self.newer(now).await,
        }
    }

    /// The metadata after the next fetch, or the current one if it was fetched a moment ago or the fetch fails.
    async fn newer(&self, now: Timestamp) -> Result<Arc<Known>, OidcError> {
        let newer = self.published.newer(now, || self.endpoint.clone().fetch()).await;
        newer.ok_or_else(|| OidcError::Unavailable("does not respond with its metadata and keys".to_owned()))
    }

    /// Fetches the metadata again if it is outdated, and waits until no fetch is on its way. Before the first sign-in nothing is fetched.
    pub async fn refresh(&self, now: Timestamp) {
        self.published.refresh(now, || self.endpoint.clone().fetch());
        self.published.settled().await;
    }
}

impl Endpoint {
    /// What the provider publishes about itself now, and its keys.
    async fn fetch(self) -> Result<Known, OidcError> {
        let metadata = CoreProviderMetadata::discover_async(self.issuer.clone(), &self)
            .await
            .map_err(|error| of_discovery(&error))?;
        // A browser is sent there, and our own client does not see to it.
        if trusted_url(metadata.authorization_endpoint()).is_err() {
            return Err(OidcError::Unavailable("has an authorization endpoint that is not https".to_owned()));
        }
        let mut algorithms = metadata.id_token_signing_alg_values_supported().clone();
        algorithms.retain(|it| *it != CoreJwsSigningAlgorithm::None && !it.uses_shared_secret());
        let keys: Vec<_> = metadata.jwks().keys().iter().filter(|key| is_strong(key)).cloned().collect();
        tracing::info!(
            issuer = %*self.issuer, usable_keys = keys.len(), "fetched the metadata of the OpenID Connect provider"
        );
        Ok(Known { metadata: metadata.set_jwks(JsonWebKeySet::new(keys)), algorithms })
    }

    /// Our HTTP client as that crate wants it.
    async fn send(&self, request: HttpRequest) -> Result<HttpResponse, FetchError> {
        let mut request = reqwest::Request::try_from(request)?;
        if let Some(credentials) = request.headers_mut().get_mut(header::AUTHORIZATION) {
            credentials.set_sensitive(true);
        }
        let mut response = self.http.execute(request).await?;
        let mut whole = http::Response::new(jwks::body(&mut response).await?);
        *whole.status_mut() = response.status();
        *whole.headers_mut() = std::mem::take(response.headers_mut());
        Ok(whole)
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
        f.debug_struct("Provider").field("issuer", &*self.endpoint.issuer).finish_non_exhaustive()
    }
}

/// An RSA key of a few bits is a key of everybody's; the other types have one size each.
fn is_strong(key: &CoreJsonWebKey) -> bool {
    let Ok(key) = serde_json::to_value(key) else { return false };
    key.get("kty").and_then(Value::as_str) != Some("RSA")
        || key.get("n").and_then(Value::as_str).is_some_and(|n| RSA_MODULUS.contains(&(n.len() * 3 / 4)))
}

fn of_fetch(error: &FetchError) -> String {
    match error {
        FetchError::Http(error) => format!("cannot be reached: {error}"),
        other => format!("gives an answer that {other}"),
    }
}

fn of_discovery(error: &DiscoveryError<FetchError>) -> OidcError {
    OidcError::Unavailable(match error {
        DiscoveryError::Request(error) => of_fetch(error),
        DiscoveryError::Response(status, ..) if status.as_u16() != 200 => format!("answered {status}, not 200"),
        DiscoveryError::Validation(_) => "calls itself by another issuer than TOLLKEY_OIDC_ISSUER".to_owned(),
        _ => "does not describe itself as OpenID Connect Discovery has it".to_owned(),
    })
}

fn of_exchange(error: RequestTokenError<FetchError, StandardErrorResponse<CoreErrorResponseType>>) -> OidcError {
    let error = match error {
        RequestTokenError::ServerResponse(said) => match said.error() {
            CoreErrorResponseType::InvalidGrant => return OidcError::Refused("the provider does not take the code"),
            // Not its description, which may repeat what was sent.
            CoreErrorResponseType::InvalidClient => "does not accept our client: invalid_client".to_owned(),
            CoreErrorResponseType::UnauthorizedClient => "does not accept our client: unauthorized_client".to_owned(),
            _ => "refused to exchange a code".to_owned(),
        },
        RequestTokenError::Request(error) => of_fetch(&error),
        RequestTokenError::Parse(..) | RequestTokenError::Other(_) => "does not answer with tokens".to_owned(),
    };
    OidcError::Unavailable(error)
}

/// Without what the token says: that is for whom it is meant.
fn of_claims(error: &ClaimsVerificationError) -> &'static str {
    use SignatureVerificationError::{AmbiguousKeyId, DisallowedAlg, NoMatchingKey, NoSignature};
    match error {
        ClaimsVerificationError::Expired(_) => "the ID token has expired",
        ClaimsVerificationError::InvalidAudience(_) => "the ID token is not for this client alone",
        ClaimsVerificationError::InvalidIssuer(_) => "the ID token is another issuer's",
        ClaimsVerificationError::InvalidNonce(_) => "the ID token is another sign-in's",
        ClaimsVerificationError::SignatureVerification(DisallowedAlg(_)) => "the ID token's algorithm is not allowed",
        ClaimsVerificationError::SignatureVerification(NoSignature) => "the ID token is not signed",
        ClaimsVerificationError::SignatureVerification(NoMatchingKey) => "the provider has no key of the ID token's id",
        ClaimsVerificationError::SignatureVerification(AmbiguousKeyId(_)) => "several keys could be the ID token's",
        ClaimsVerificationError::SignatureVerification(_) => "the ID token's signature is wrong",
        _ => "the ID token is not one that can be judged",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn weak_rsa_keys_do_not_count() {
        let rsa = |letters: usize| json!({"kty": "RSA", "kid": "k", "n": "x".repeat(letters), "e": "AQAB"});
        for (key, strong) in [
            (rsa(342), true),
            (rsa(683), true),
            (rsa(171), false),
            (rsa(0), false),
            (json!({"kty": "RSA", "kid": "k", "e": "AQAB"}), false),
            (json!({"kty": "EC", "crv": "P-256", "x": "AAAA", "y": "AAAA"}), true),
        ] {
            let read: CoreJsonWebKey = serde_json::from_value(key.clone()).unwrap();
            assert_eq!(is_strong(&read), strong, "{key}");
        }
    }
}
