//! Management tokens: whose signature counts, what they must say, and what we take from them.
//!
//! The rules are those of RFC 8725: algorithms fixed by the key ([`super::jwks`]), `exp` and `sub` always required,
//! `iss` and `aud` where they are configured, `nbf` honoured, nothing fetched or trusted that a token's own header
//! points at (`jku`, `x5u`, `jwk`), nothing critical that we do not know. Why a token is refused goes to the log;
//! its caller learns only that it is not valid.

use std::{fmt, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{
    EncodingKey, Header, Validation, decode, decode_header, encode, errors::ErrorKind,
};
use serde_json::{Map, Value};
use tollkey_core::{AccountId, Digest, Problem, ProblemCode, session::SignInSettingsHash};

use super::jwks::{KeySet, VerifyingKey};
use crate::{
    config::{HS256_SECRET_MIN, Secret, TokenSettings, TokenSource, has_escaped_line_breaks},
    issuer_url::JwksUrl,
};

/// The longest token that is looked at, in bytes.
pub const TOKEN_MAX: usize = 8 * 1024;
/// How far an issuer's clock may be off from ours.
pub const LEEWAY: SignedDuration = SignedDuration::from_secs(30);
/// The longest subject, in bytes (OpenID Connect Core, section 2). It is written to the audit log.
const SUBJECT_MAX: usize = 255;

/// What a valid management token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// `sub`: who it is. 1 to 255 bytes without control characters.
    pub subject: String,
    /// The account claim: a string that is an account ID, or an integer, in decimal. Else why there is no account.
    pub account: Result<AccountId, ClaimFault>,
    /// The roles claim: an array of strings, or one string with spaces between. Anything else is no role at all.
    pub roles: Vec<String>,
    /// `exp`: it is refused from [`LEEWAY`] after this moment.
    pub expires_at: Timestamp,
}

/// Why a claim cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ClaimFault {
    /// There is none, or it is null.
    #[error("is missing")]
    Missing,
    /// It has a type that the claim cannot have.
    #[error("must be a string or an integer")]
    Type,
    /// It is no account ID.
    #[error("must have 1 to 128 characters from A-Z a-z 0-9 . _ : @ - and must not be . or ..")]
    Form,
}

impl Claims {
    /// Whether one of the roles is that one.
    #[must_use]
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|own| own == role)
    }
}

/// Why a token is refused. For the log: it holds no part of the token but its key id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Longer than [`TOKEN_MAX`].
    #[error("it is longer than {TOKEN_MAX} bytes")]
    TooLarge,
    /// Not three parts of base 64, a header that is none, `alg` unknown or `none`, or claims that are no object.
    #[error("it is not a signed JWT of a known algorithm")]
    Malformed,
    /// The header lists extensions that must be understood.
    #[error("its header has crit")]
    Critical,
    /// The algorithm is none that the key is good for.
    #[error("its algorithm is not one of its key's")]
    Algorithm,
    /// The set has no key of that id, or the token names none and there are several.
    #[error("no key with its id {0}")]
    UnknownKey(KeyIdShown),
    /// The key set has never been fetched. Not the caller's fault: 503.
    #[error("the issuer's keys could not be fetched yet")]
    KeysUnavailable,
    /// Signed by somebody else, or changed.
    #[error("its signature is wrong")]
    Signature,
    /// Past `exp`.
    #[error("it has expired")]
    Expired,
    /// Before `nbf`.
    #[error("it is not valid yet")]
    NotYetValid,
    /// Issued by somebody else.
    #[error("its issuer is another one")]
    Issuer,
    /// Meant for somebody else, or for somebody where no audience is configured.
    #[error("its audience is another one, or has one where none is configured")]
    Audience,
    /// A claim that must be there and be well-formed.
    #[error("its claim {0} is missing or malformed")]
    Claim(&'static str),
}

impl TokenError {
    /// Whether the token may be fine and it is we who cannot tell: an answer of 503, not 401.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        *self == Self::KeysUnavailable
    }
}

/// The problem does not say why a token is not valid.
impl From<TokenError> for Problem {
    fn from(error: TokenError) -> Self {
        if error.is_unavailable() {
            return Self::unavailable();
        }
        let detail = "The management token is invalid or has expired. Get a new token.";
        Self::new(ProblemCode::InvalidToken, detail)
    }
}

/// The beginning of a key id out of a token, quoted: it is whatever a stranger wrote.
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
            None => f.write_str("(none given)"),
        }
    }
}
impl fmt::Debug for KeyIdShown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The keys for management tokens cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum KeySetupError {
    /// The secret is too short.
    #[error("the secret of management tokens must have at least {HS256_SECRET_MIN} bytes")]
    WeakSecret,
    /// The file cannot be read.
    #[error("TOLLKEY_JWT_PUBLIC_KEY_FILE: cannot read the file that it names: {0}")]
    File(String),
    /// The file holds something else.
    #[error("TOLLKEY_JWT_PUBLIC_KEY_FILE: the file that it names {0}")]
    PublicKey(&'static str),
    /// No HTTP client, as on a machine without CA certificates.
    #[error("cannot set up the client that fetches the keys of management tokens")]
    Client(#[from] reqwest::Error),
    /// There is no key source; in development mode the secret comes from [`crate::dev_mode`].
    #[error("no key for management tokens is set")]
    NoSource,
}

/// What a token must say beyond being signed, and where it says the rest.
#[derive(Debug, Clone)]
pub struct ClaimRules {
    /// The `iss` it must have; `None` accepts any or none.
    pub issuer: Option<String>,
    /// What its `aud` must be or hold; `None` refuses a token that has one (RFC 7519, section 4.1.3).
    pub audience: Option<String>,
    /// The claim that names the account: its name, or the path of a nested claim ([`find`]).
    pub account_claim: String,
    /// The claim that holds roles, named the same way; `None` gives no token a role.
    pub roles_claim: Option<String>,
}

impl From<&TokenSettings> for ClaimRules {
    fn from(settings: &TokenSettings) -> Self {
        Self {
            issuer: settings.issuer.clone(),
            audience: settings.audience.clone(),
            account_claim: settings.account_claim.clone(),
            roles_claim: settings.roles_claim.clone(),
        }
    }
}

impl ClaimRules {
    /// Returns the settings of a sign-in by this method with what these keys sign.
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

    /// The part of the rules that the library checks. It would read the system's clock for `exp` and `nbf`, so
    /// these two are ours.
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

    /// Reads the claims of a token whose signature, issuer and audience are right.
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
        // RFC 7519, section 4.1.1: one string. The library also accepts an array of which each entry is right.
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

/// Finds a claim by its name or, when no claim has that name, by the path of a nested one: a JSON pointer
/// (`/realm_access/roles`, RFC 6901) or names with dots between (`realm_access.roles`). A name comes first because it
/// can have dots and slashes of its own, as in `https://example.com/roles`.
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

/// The account that a claim names.
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

/// A `NumericDate` (RFC 7519, section 2): seconds since 1970, whole or not.
pub(super) fn time(
    claims: &Map<String, Value>,
    name: &'static str,
) -> Result<Option<Timestamp>, TokenError> {
    let Some(value) = claims.get(name).filter(|value| !value.is_null()) else {
        return Ok(None);
    };
    // `as` saturates a float beyond the range, and no timestamp can hold that either.
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

/// Tells a valid management token from any other. A clone is the same verifier.
#[derive(Clone)]
pub struct TokenVerifier {
    keys: KeySource,
    rules: Arc<ClaimRules>,
    validation: Arc<Validation>,
    sign_in_settings: SignInSettingsHash,
}

#[derive(Clone)]
enum KeySource {
    One(Arc<VerifyingKey>),
    Set(Arc<KeySet>),
}

impl TokenVerifier {
    /// The verifier that these settings ask for; in development mode with that mode's secret.
    ///
    /// # Errors
    /// [`KeySetupError`] when the secret, the file or the HTTP client is no good, or in development mode without a
    /// secret.
    pub fn open(
        settings: &TokenSettings,
        development: Option<&Secret>,
    ) -> Result<Self, KeySetupError> {
        let rules = ClaimRules::from(settings);
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

    /// Accepts HS256 tokens signed with this secret.
    ///
    /// # Errors
    /// [`KeySetupError::WeakSecret`] below [`HS256_SECRET_MIN`] bytes.
    pub fn hs256(secret: &Secret, rules: ClaimRules) -> Result<Self, KeySetupError> {
        let secret = secret.expose();
        if secret.len() < HS256_SECRET_MIN {
            return Err(KeySetupError::WeakSecret);
        }
        let key = VerifyingKey::hs256(secret.as_bytes());
        Ok(Self::new(
            KeySource::One(Arc::new(key)),
            &Digest::of(secret),
            rules,
        ))
    }

    /// Accepts tokens signed with the private half of this public key in PEM form: RS256 and PS256 for RSA keys of
    /// 2048 bits or more, ES256 for P-256, ES384 for P-384, `EdDSA` for Ed25519. A key id in the token is ignored.
    ///
    /// # Errors
    /// [`KeySetupError::PublicKey`] for anything else, a private key and a certificate among it.
    pub fn public_key(pem: &[u8], rules: ClaimRules) -> Result<Self, KeySetupError> {
        // As environment files and JSON write a PEM text on one line.
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
                "is a private key; give its public half only",
            ));
        }
        if holds("BEGIN CERTIFICATE-----") {
            return Err(KeySetupError::PublicKey(
                "is a certificate; take the key out of it with `openssl x509 -pubkey -noout`",
            ));
        }
        let key = VerifyingKey::from_pem(pem).ok_or(KeySetupError::PublicKey(
            "must hold a public key in PEM form: RSA (2048 to 8192 bits), P-256, P-384 or Ed25519",
        ))?;
        let source = Digest::of(&String::from_utf8_lossy(pem));
        Ok(Self::new(KeySource::One(Arc::new(key)), &source, rules))
    }

    /// Accepts tokens signed with a key of the set at this URL. The set is fetched when it is first needed, again every ten minutes in the
    /// background, and when a token names a key that it lacks, but at most every [`super::jwks::FETCH_INTERVAL`]. Only tokens of unknown
    /// keys wait for a fetch. A set that cannot be fetched again stays in use.
    ///
    /// # Errors
    /// [`KeySetupError::Client`] when there can be no HTTP client.
    pub fn jwks(url: JwksUrl, rules: ClaimRules) -> Result<Self, KeySetupError> {
        // Its keys come and go while it stays whose it is.
        let source = Digest::of(&url.to_string());
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

    /// The claim that names the account.
    #[must_use]
    pub fn account_claim(&self) -> &str {
        &self.rules.account_claim
    }

    /// Returns the settings of a sign-in with a token.
    #[must_use]
    pub fn sign_in_settings(&self) -> SignInSettingsHash {
        self.sign_in_settings
    }

    /// Fetches the key set, if there is one, so that a wrong address shows when the server starts and not when
    /// somebody first calls.
    ///
    /// # Errors
    /// [`TokenError::KeysUnavailable`] when it cannot be fetched. The server can go on: it tries again when needed.
    pub async fn warm_up(&self, now: Timestamp) -> Result<(), TokenError> {
        match &self.keys {
            KeySource::One(_) => Ok(()),
            KeySource::Set(set) => set.keys(None, now).await.map(drop),
        }
    }

    /// Fetches the key set, if there is one, and returns how many of its keys can be used.
    ///
    /// # Errors
    /// Why it cannot be fetched, in words.
    pub async fn fetch_key_count(&self) -> Result<Option<usize>, String> {
        match &self.keys {
            KeySource::One(_) => Ok(None),
            KeySource::Set(set) => set
                .count()
                .await
                .map(Some)
                .map_err(|error| error.to_string()),
        }
    }

    /// Fetches the key set again if it is outdated, and waits until no fetch is on its way.
    pub async fn refresh(&self, now: Timestamp) {
        if let KeySource::Set(set) = &self.keys {
            set.refresh(now).await;
        }
    }

    /// What this token says, if it is valid at `now`.
    ///
    /// # Errors
    /// [`TokenError`] for the first rule it breaks, or when the keys to judge it by are not there.
    pub async fn verify(&self, token: &str, now: Timestamp) -> Result<Claims, TokenError> {
        if token.len() > TOKEN_MAX {
            return Err(TokenError::TooLarge);
        }
        let header = decode_header(token).map_err(|_| TokenError::Malformed)?;
        if header.crit.is_some() {
            return Err(TokenError::Critical);
        }
        let claims = match &self.keys {
            KeySource::One(key) => self.check(token, &header, key)?,
            KeySource::Set(set) => {
                let id = header.kid.as_deref();
                let keys = set.keys(id, now).await?;
                // Two keys of one id are legal when they are of different types (RFC 7517, section 4.5).
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

    /// Checks signature, issuer and audience with that key.
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

/// A token to be made.
#[derive(Debug, Clone)]
pub struct NewToken {
    /// `sub`.
    pub subject: String,
    /// The account it is for, if any.
    pub account: Option<AccountId>,
    /// Its roles, such as `operator`.
    pub roles: Vec<String>,
    /// How long it is valid.
    pub lifetime: SignedDuration,
}

/// How long a token is valid unless somebody asks for another time.
pub const DEFAULT_LIFETIME: SignedDuration = SignedDuration::from_hours(12);

/// Signs a management token with a secret (HS256), such that a [`TokenVerifier::hs256`] with the same secret and
/// rules accepts it: issuer and audience are set where the rules ask for them.
///
/// # Errors
/// [`MintError`] when there would be no valid token.
pub fn mint(
    secret: &Secret,
    rules: &ClaimRules,
    token: &NewToken,
    now: Timestamp,
) -> Result<String, MintError> {
    let expires_at = now
        .checked_add(token.lifetime)
        .map_err(|_| MintError::Lifetime)?;
    if token.lifetime < SignedDuration::from_secs(1) {
        return Err(MintError::Lifetime);
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
        None if !token.roles.is_empty() => return Err(MintError::NoRolesClaim),
        _ => {}
    }
    if let Some(issuer) = &rules.issuer {
        set("iss", issuer.as_str().into());
    }
    if let Some(audience) = &rules.audience {
        set("aud", audience.as_str().into());
    }
    // Last, so that no configured claim of the same name takes their place.
    set("sub", token.subject.as_str().into());
    set("iat", now.as_second().into());
    set("exp", expires_at.as_second().into());
    let read = rules.read(&claims, now).map_err(MintError::Refused)?;
    if read.account.ok() != token.account || read.roles != token.roles {
        return Err(MintError::Clash);
    }
    let key = EncodingKey::from_secret(secret.expose().as_bytes());
    encode(&Header::default(), &claims, &key).map_err(|_| MintError::Signing)
}

/// No token was made.
#[derive(Debug, thiserror::Error)]
pub enum MintError {
    /// It would be over before it began, or never.
    #[error("a token must be valid for at least a second, and end before the year 10000")]
    Lifetime,
    /// Roles were asked for, and no claim is set that holds them.
    #[error("TOLLKEY_JWT_ROLES_CLAIM is not set, so a token cannot carry roles")]
    NoRolesClaim,
    /// Account or roles would not be read back as asked for: the claim configured for them is another one's, or a
    /// role is no single word.
    #[error("the claims configured for account and roles cannot hold what was asked for")]
    Clash,
    /// The token would not be accepted.
    #[error("the token would be refused: {0}")]
    Refused(TokenError),
    /// The cryptographic library failed.
    #[error("the token could not be signed")]
    Signing,
}

#[cfg(test)]
pub(super) mod tests;
