//! Verifies and creates management tokens.
//!
//! The rules are those of RFC 8725. The key determines the algorithms ([`super::jwks`]). `exp` and `sub` are required,
//! `iss` and `aud` only if they are configured, and `nbf` is checked. Keys that the token's header contains or links to
//! (`jwk`, `jku`, `x5u`) are ignored, and a token with `crit` is rejected. Only the log says why a token is rejected.

use std::{fmt, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{
    EncodingKey, Header, Validation, decode, decode_header, encode, errors::ErrorKind,
};
use serde_json::{Map, Value};
use tollkey_core::{AccountId, Digest, Problem, ProblemCode, session::SignInSettingsHash};

use super::jwks::{KeySet, VerifyingKey};
pub use crate::config::ClaimRules;
use crate::{
    config::{HS256_SECRET_MIN, Secret, TokenSettings, TokenSource, has_escaped_line_breaks},
    issuer_url::JwksUrl,
};

pub const TOKEN_MAX: usize = 8 * 1024;
/// The tolerated difference between the clocks of the issuer and of this server.
pub const LEEWAY: SignedDuration = SignedDuration::from_secs(30);
/// The maximum length of a subject, in bytes (OpenID Connect Core, section 2). It is written to the audit log.
const SUBJECT_MAX: usize = 255;

/// The claims of a valid token that this server uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// `sub`: 1 to 255 bytes without control characters.
    pub subject: String,
    /// The account claim: a string that is an account ID, or an integer in decimal.
    pub account: Result<AccountId, ClaimFault>,
    /// The roles claim: an array of strings, or one string separated by spaces. Empty if the claim is anything else.
    pub roles: Vec<String>,
    /// `exp`. The token is rejected from [`LEEWAY`] after this time.
    pub expires_at: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClaimFault {
    #[error("is missing")]
    Missing,
    #[error("must be a string or an integer")]
    Type,
    #[error("must have 1 to 128 characters from A-Z a-z 0-9 . _ : @ - and must not be . or ..")]
    Form,
}

impl Claims {
    #[must_use]
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|it| it == role)
    }
}

/// Why a token is rejected. For the log: the only part of the token in its text is the key ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    #[error("it is longer than {TOKEN_MAX} bytes")]
    TooLarge,
    /// Not three base64url parts, an invalid header, `alg` unknown or `none`, or claims that are not an object.
    #[error("it is not a signed JWT of a known algorithm")]
    Malformed,
    /// The header has `crit`, the list of extensions that must be understood.
    #[error("its header has crit")]
    Critical,
    #[error("its algorithm does not match its key")]
    Algorithm,
    /// The set has no key with this ID, or the token has no key ID and the set does not have exactly one key.
    #[error("its key ID is unknown: {0}")]
    UnknownKey(KeyIdShown),
    #[error("the issuer's keys could not be fetched yet")]
    KeysUnavailable,
    #[error("its signature is wrong")]
    Signature,
    #[error("it has expired")]
    Expired,
    #[error("it is not valid yet")]
    NotYetValid,
    #[error("its issuer is not the configured one")]
    Issuer,
    #[error("its audience is not the configured one, or it has one and none is configured")]
    Audience,
    #[error("its claim {0} is missing or malformed")]
    Claim(&'static str),
}

impl TokenError {
    /// Returns whether the token may be valid but cannot be verified now. The response is 503, not 401.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        *self == Self::KeysUnavailable
    }
}

/// The problem does not say why the token is invalid.
impl From<TokenError> for Problem {
    fn from(error: TokenError) -> Self {
        if error.is_unavailable() {
            return Self::unavailable();
        }
        let detail = "The management token is invalid or has expired. Get a new token.";
        Self::new(ProblemCode::InvalidToken, detail)
    }
}

/// The first 64 characters of a token's key ID, quoted because the token is not trusted.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyIdShown(Option<String>);

impl KeyIdShown {
    fn new(id: Option<&str>) -> Self {
        Self(id.map(|id| id.chars().take(64).collect()))
    }
}
impl fmt::Display for KeyIdShown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(id) => write!(f, "{id:?}"),
            None => f.write_str("(none)"),
        }
    }
}
impl fmt::Debug for KeyIdShown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum KeySetupError {
    #[error("the secret of management tokens must have at least {HS256_SECRET_MIN} bytes")]
    WeakSecret,
    #[error("TOLLKEY_JWT_PUBLIC_KEY_FILE: cannot read the file that it names: {0}")]
    File(String),
    #[error("TOLLKEY_JWT_PUBLIC_KEY_FILE: the file that it names {0}")]
    PublicKey(&'static str),
    /// The HTTP client cannot be created, for example because the machine has no CA certificates.
    #[error("cannot set up the client that fetches the keys of management tokens")]
    Client(#[from] reqwest::Error),
    /// No key source is set, and the secret of development mode ([`crate::dev_mode`]) was not passed.
    #[error("no key for management tokens is set")]
    NoSource,
}

impl ClaimRules {
    /// Returns the hash of the settings that a sign-in with this method and these keys depends on.
    pub(super) fn sign_in_settings(&self, method: &str, keys: &Digest) -> SignInSettingsHash {
        let keys = keys.hex().to_string();
        let claims = [
            Some(self.account_claim.as_str()),
            self.roles_claim.as_deref(),
        ];
        SignInSettingsHash::new(
            method,
            &[
                Some(&keys),
                self.issuer.as_deref(),
                self.audience.as_deref(),
                claims[0],
                claims[1],
            ],
        )
    }

    /// The library would read the system clock for `exp` and `nbf`, so [`Self::read`] checks these two.
    fn validation(&self) -> Validation {
        let mut validation = Validation {
            validate_exp: false,
            validate_nbf: false,
            ..Validation::default()
        };
        let mut required = vec!["exp", "sub"];
        if let Some(issuer) = &self.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        if let Some(audience) = &self.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        validation.set_required_spec_claims(&required);
        validation
    }

    /// Reads the claims of a token whose signature, issuer and audience were verified.
    pub(super) fn read(
        &self,
        claims: &Map<String, Value>,
        now: Timestamp,
    ) -> Result<Claims, TokenError> {
        let subject = claims
            .get("sub")
            .and_then(Value::as_str)
            .unwrap_or_default();
        if !(1..=SUBJECT_MAX).contains(&subject.len()) || subject.chars().any(char::is_control) {
            return Err(TokenError::Claim("sub"));
        }
        let expires_at = time(claims, "exp")?.ok_or(TokenError::Claim("exp"))?;
        if now.duration_since(expires_at) >= LEEWAY {
            return Err(TokenError::Expired);
        }
        if time(claims, "nbf")?.is_some_and(|not_before| not_before.duration_since(now) > LEEWAY) {
            return Err(TokenError::NotYetValid);
        }
        // RFC 7519, section 4.1.1: `iss` is one string. The library also accepts an array of accepted issuers.
        if claims
            .get("iss")
            .is_some_and(|issuer| !issuer.is_string() && !issuer.is_null())
        {
            return Err(TokenError::Claim("iss"));
        }
        if self.audience.is_none()
            && claims
                .get("aud")
                .is_some_and(|audience| !audience.is_null())
        {
            return Err(TokenError::Audience);
        }
        Ok(Claims {
            subject: subject.to_owned(),
            account: account(find(claims, &self.account_claim)),
            roles: self
                .roles_claim
                .as_ref()
                .and_then(|name| find(claims, name))
                .map(roles)
                .unwrap_or_default(),
            expires_at,
        })
    }
}

/// Finds a claim by its name or, if no claim has that name, by the path of a nested claim: a JSON pointer
/// (`/realm_access/roles`, RFC 6901) or names separated by dots (`realm_access.roles`). The name takes precedence
/// because it can contain dots and slashes, as in `https://example.com/roles`.
#[must_use]
pub fn find<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    if let Some(claim) = claims.get(path) {
        return Some(claim);
    }
    if let Some(pointer) = path.strip_prefix('/') {
        let (first, rest) = pointer.split_at(pointer.find('/').unwrap_or(pointer.len()));
        return claims
            .get(&first.replace("~1", "/").replace("~0", "~"))?
            .pointer(rest);
    }
    let (first, rest) = path.split_once('.')?;
    rest.split('.').try_fold(claims.get(first)?, |outer, name| {
        outer.as_object()?.get(name)
    })
}

fn account(claim: Option<&Value>) -> Result<AccountId, ClaimFault> {
    let id = match claim {
        None | Some(Value::Null) => return Err(ClaimFault::Missing),
        Some(Value::String(id)) => id.parse(),
        // Not a float: `1.0` and `1e3` have several decimal forms.
        Some(Value::Number(number)) if number.is_i64() || number.is_u64() => {
            number.to_string().parse()
        }
        Some(_) => return Err(ClaimFault::Type),
    };
    id.map_err(|_| ClaimFault::Form)
}

/// Returns a `NumericDate` claim (RFC 7519, section 2), rounded down to a second; `None` if it is absent or null.
pub(super) fn time(
    claims: &Map<String, Value>,
    name: &'static str,
) -> Result<Option<Timestamp>, TokenError> {
    let Some(value) = claims.get(name).filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    // `as` saturates a float outside the range of `i64`, which is also outside the range of timestamps.
    let seconds = value
        .as_i64()
        .or_else(|| value.as_f64().map(|seconds| seconds.floor() as i64));
    let at = seconds.and_then(|seconds| Timestamp::from_second(seconds).ok());
    at.map(Some).ok_or(TokenError::Claim(name))
}

fn roles(claim: &Value) -> Vec<String> {
    match claim {
        Value::String(text) => text.split_whitespace().map(str::to_owned).collect(),
        Value::Array(values) => values
            .iter()
            .map(|value| value.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .unwrap_or_default(),
        _ => Vec::new(),
    }
}

/// Clones share the keys.
#[derive(Clone)]
pub struct TokenVerifier {
    keys: KeySource,
    rules: Arc<ClaimRules>,
    validation: Arc<Validation>,
    sign_in_settings: SignInSettingsHash,
}

#[derive(Clone)]
enum KeySource {
    Single(Arc<VerifyingKey>),
    Set(Arc<KeySet>),
}

impl TokenVerifier {
    /// `development` is the secret of development mode, which requires it.
    pub fn open(
        settings: &TokenSettings,
        development: Option<&Secret>,
    ) -> Result<Self, KeySetupError> {
        let rules = settings.claims.clone();
        match &settings.source {
            TokenSource::Hs256(secret) => Self::hs256(secret, rules),
            TokenSource::PublicKeyFile(file) => {
                let pem = file
                    .pem()
                    .map_err(|error| KeySetupError::File(error.to_owned()))?;
                Self::public_key(pem, rules)
            }
            TokenSource::Jwks(url) => Self::jwks(url.clone(), rules),
            TokenSource::Development => {
                Self::hs256(development.ok_or(KeySetupError::NoSource)?, rules)
            }
        }
    }

    pub fn hs256(secret: &Secret, rules: ClaimRules) -> Result<Self, KeySetupError> {
        let secret = secret.expose();
        if secret.len() < HS256_SECRET_MIN {
            return Err(KeySetupError::WeakSecret);
        }
        let key = VerifyingKey::hs256(secret.as_bytes());
        Ok(Self::new(
            KeySource::Single(Arc::new(key)),
            &Digest::of_key(secret),
            rules,
        ))
    }

    /// Accepts tokens whose signature this public key (PEM) verifies: RS256 and PS256 for RSA keys of 2048 to 8192
    /// bits, ES256 for P-256, ES384 for P-384, `EdDSA` for Ed25519. Ignores a key ID in the token. Rejects any other
    /// file, such as a private key or a certificate.
    pub fn public_key(pem: &[u8], rules: ClaimRules) -> Result<Self, KeySetupError> {
        // Environment files and JSON hold a PEM text on one line, with `\n` for each line break.
        let unescaped =
            has_escaped_line_breaks(pem).then(|| String::from_utf8_lossy(pem).replace("\\n", "\n"));
        let pem = unescaped.as_ref().map_or(pem, |pem| pem.as_bytes());
        if pem.starts_with("\u{feff}".as_bytes()) {
            return Err(KeySetupError::PublicKey(
                "begins with a byte order mark; save it without one",
            ));
        }
        let holds = |label: &str| {
            pem.windows(label.len())
                .any(|window| window == label.as_bytes())
        };
        if holds("PRIVATE KEY-----") {
            return Err(KeySetupError::PublicKey(
                "is a private key; use its public key instead",
            ));
        }
        if holds("BEGIN CERTIFICATE-----") {
            return Err(KeySetupError::PublicKey(
                "is a certificate; extract its public key with `openssl x509 -pubkey -noout`",
            ));
        }
        let key = VerifyingKey::from_pem(pem).ok_or(KeySetupError::PublicKey(
            "must hold a public key in PEM form: RSA (2048 to 8192 bits), P-256, P-384 or Ed25519",
        ))?;
        let source = Digest::of_key(&String::from_utf8_lossy(pem));
        Ok(Self::new(KeySource::Single(Arc::new(key)), &source, rules))
    }

    /// Creates a verifier that accepts tokens signed with a key of the set at this URL. The set is fetched when it is
    /// first needed, every ten minutes in the background, and when a token names an unknown key, but at most once per
    /// [`super::jwks::FETCH_INTERVAL`]. Only tokens with unknown keys wait for a fetch. If it fails, the current set
    /// stays in use.
    pub fn jwks(url: JwksUrl, rules: ClaimRules) -> Result<Self, KeySetupError> {
        // The URL identifies the source: sessions continue when the issuer rotates its keys.
        let source = Digest::of_key(&url.to_string());
        Ok(Self::new(KeySource::Set(KeySet::new(url)?), &source, rules))
    }

    fn new(keys: KeySource, source: &Digest, rules: ClaimRules) -> Self {
        let sign_in_settings = rules.sign_in_settings("token", source);
        Self {
            keys,
            validation: Arc::new(rules.validation()),
            rules: Arc::new(rules),
            sign_in_settings,
        }
    }

    #[must_use]
    pub fn account_claim(&self) -> &str {
        &self.rules.account_claim
    }

    #[must_use]
    pub fn sign_in_settings(&self) -> SignInSettingsHash {
        self.sign_in_settings
    }

    /// Fetches the key set, if one is configured, so that a wrong URL is noticed when the server starts. After an error
    /// the server can run nevertheless: it fetches the set when a token needs it.
    pub async fn warm_up(&self, now: Timestamp) -> Result<(), TokenError> {
        match &self.keys {
            KeySource::Single(_) => Ok(()),
            KeySource::Set(set) => set.keys(None, now).await.map(drop),
        }
    }

    /// Returns `None` if no key set is configured. The error is for the operator.
    pub async fn fetch_key_count(&self) -> Result<Option<usize>, String> {
        match &self.keys {
            KeySource::Single(_) => Ok(None),
            KeySource::Set(set) => set
                .count()
                .await
                .map(Some)
                .map_err(|error| error.to_string()),
        }
    }

    /// Fetches the key set again if it is outdated, and waits until no fetch is running.
    pub async fn refresh(&self, now: Timestamp) {
        if let KeySource::Set(set) = &self.keys {
            set.refresh(now).await;
        }
    }

    pub async fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, TokenError> {
        if token.len() > TOKEN_MAX {
            return Err(TokenError::TooLarge);
        }
        let header = decode_header(token).map_err(|_| TokenError::Malformed)?;
        if header.crit.is_some() {
            return Err(TokenError::Critical);
        }
        let claims = match &self.keys {
            KeySource::Single(key) => self.check(token, &header, key)?,
            KeySource::Set(set) => {
                let id = header.kid.as_deref();
                let keys = set.keys(id, now).await?;
                // Keys of different types can have the same ID (RFC 7517, section 4.5).
                let mut outcome = Err(TokenError::UnknownKey(KeyIdShown::new(id)));
                for key in keys.for_id(id) {
                    outcome = self.check(token, &header, key);
                    if outcome.is_ok() {
                        break;
                    }
                }
                outcome?
            }
        };
        self.rules.read(&claims, now)
    }

    /// Checks the signature, issuer and audience with this key.
    fn check(
        &self,
        token: &str,
        header: &Header,
        key: &VerifyingKey,
    ) -> Result<Map<String, Value>, TokenError> {
        if !key.algorithms.contains(&header.alg) {
            return Err(TokenError::Algorithm);
        }
        let validation = Validation {
            algorithms: key.algorithms.clone(),
            ..(*self.validation).clone()
        };
        let decoded = decode(token, &key.key, &validation).map_err(|error| match error.kind() {
            ErrorKind::InvalidSignature => TokenError::Signature,
            ErrorKind::InvalidAlgorithm => TokenError::Algorithm,
            ErrorKind::InvalidIssuer => TokenError::Issuer,
            ErrorKind::InvalidAudience => TokenError::Audience,
            ErrorKind::MissingRequiredClaim(name) => TokenError::Claim(
                ["exp", "sub", "iss", "aud"]
                    .into_iter()
                    .find(|known| known == name)
                    .unwrap_or("?"),
            ),
            _ => TokenError::Malformed,
        })?;
        Ok(decoded.claims)
    }
}

impl fmt::Debug for TokenVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenVerifier")
            .field("rules", &self.rules)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone)]
pub struct NewToken {
    pub subject: String,
    pub account: Option<AccountId>,
    pub roles: Vec<String>,
    pub lifetime: SignedDuration,
}

pub const DEFAULT_LIFETIME: SignedDuration = SignedDuration::from_hours(12);

/// Creates a management token signed with a secret (HS256). A [`TokenVerifier::hs256`] with the same secret and rules
/// accepts it: issuer and audience are set if the rules require them.
pub fn create_token(
    secret: &Secret,
    rules: &ClaimRules,
    token: &NewToken,
    now: Timestamp,
) -> Result<String, CreateTokenError> {
    let expires_at = now
        .checked_add(token.lifetime)
        .map_err(|_| CreateTokenError::Lifetime)?;
    if token.lifetime < SignedDuration::from_secs(1) {
        return Err(CreateTokenError::Lifetime);
    }
    let mut claims = Map::new();
    let mut set = |name: &str, value: Value| claims.insert(name.to_owned(), value);
    if let Some(account) = &token.account {
        set(&rules.account_claim, account.as_str().into());
    }
    match &rules.roles_claim {
        Some(name) if !token.roles.is_empty() => {
            set(name, token.roles.clone().into());
        }
        None if !token.roles.is_empty() => return Err(CreateTokenError::NoRolesClaim),
        _ => {}
    }
    if let Some(issuer) = &rules.issuer {
        set("iss", issuer.as_str().into());
    }
    if let Some(audience) = &rules.audience {
        set("aud", audience.as_str().into());
    }
    // Last, so that a configured claim with the same name does not replace them.
    set("sub", token.subject.as_str().into());
    set("iat", now.as_second().into());
    set("exp", expires_at.as_second().into());
    let read = rules
        .read(&claims, now)
        .map_err(CreateTokenError::Refused)?;
    if read.account.ok() != token.account || read.roles != token.roles {
        return Err(CreateTokenError::Clash);
    }
    let key = EncodingKey::from_secret(secret.expose().as_bytes());
    encode(&Header::default(), &claims, &key).map_err(|_| CreateTokenError::Signing)
}

#[derive(Debug, thiserror::Error)]
pub enum CreateTokenError {
    #[error("a token must be valid for at least a second, and expire before the year 10000")]
    Lifetime,
    #[error("TOLLKEY_JWT_ROLES_CLAIM is not set, so a token cannot carry roles")]
    NoRolesClaim,
    /// The token would not have the requested account or roles, because a claim configured for them has another value.
    #[error("the claims configured for account and roles cannot hold the requested values")]
    Clash,
    #[error("the token would be rejected: {0}")]
    Refused(TokenError),
    #[error("the token could not be signed")]
    Signing,
}

#[cfg(test)]
pub(super) mod tests;
