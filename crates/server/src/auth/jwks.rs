//! The keys that verify management tokens, and key sets fetched from their issuer.
//!
//! The key determines its algorithms, never the token: a token with another algorithm is rejected, so that a public key
//! cannot be used as an HMAC secret. Symmetric keys in a set are ignored.

use std::{error::Error as _, ops::RangeInclusive, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse},
};
use reqwest::{Client, Response, StatusCode, Url, header, redirect};

use super::{
    jwt::TokenError,
    published::{FETCH_TIMEOUT, Published},
};
use crate::issuer_url::{JwksUrl, is_local};

/// The minimum time between two fetches of a set, because a caller can invent any number of key IDs.
pub const FETCH_INTERVAL: SignedDuration = SignedDuration::from_secs(30);
const BODY_MAX: usize = 64 * 1024;
/// The accepted lengths of an RSA modulus, in bytes: 2048 to 8192 bits, and an optional leading zero byte.
pub(super) const RSA_MODULUS: RangeInclusive<usize> = 256..=1025;

/// The client sends plain `http` requests only if this URL is `http`.
pub(super) fn client(url: &Url) -> Result<Client, reqwest::Error> {
    let mut client = Client::builder()
        .user_agent(concat!("tollkey/", env!("CARGO_PKG_VERSION")))
        .timeout(FETCH_TIMEOUT)
        // Fetches are minutes apart: an idle connection would be stale.
        .pool_max_idle_per_host(0)
        // A redirect could replace the keys by those of another host.
        .redirect(redirect::Policy::none())
        .https_only(url.scheme() == "https");
    if is_local(url) {
        client = client.no_proxy();
    }
    client.build()
}

pub(super) async fn body(response: &mut Response) -> Result<Vec<u8>, FetchError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > BODY_MAX {
            return Err(FetchError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// A key and the algorithms that it can be used with, all of one family.
#[derive(Debug, Clone)]
pub(super) struct VerifyingKey {
    pub(super) id: Option<String>,
    pub(super) key: DecodingKey,
    pub(super) algorithms: Vec<Algorithm>,
}

impl VerifyingKey {
    pub(super) fn hs256(secret: &[u8]) -> Self {
        Self {
            id: None,
            key: DecodingKey::from_secret(secret),
            algorithms: vec![Algorithm::HS256],
        }
    }

    /// The key has the same algorithms as in a key set.
    pub(super) fn from_pem(pem: &[u8]) -> Option<Self> {
        let key = DecodingKey::from_rsa_pem(pem)
            .or_else(|_| DecodingKey::from_ec_pem(pem))
            .or_else(|_| DecodingKey::from_ed_pem(pem))
            .ok()?;
        Self::from_jwk(&Jwk::from_decoding_key(&key, None).ok()?)
    }

    /// Parses a public key of a set. `None` if it is not for signatures, or is symmetric, weak or of an unknown type.
    /// An RSA key without `alg` is for RS256 and PS256, which differ only in padding. With `alg`, it is for that only.
    fn from_jwk(jwk: &Jwk) -> Option<Self> {
        let meant_for_signatures = jwk
            .common
            .public_key_use
            .as_ref()
            .is_none_or(|purpose| *purpose == PublicKeyUse::Signature)
            && jwk
                .common
                .key_operations
                .as_ref()
                .is_none_or(|operations| operations.contains(&KeyOperations::Verify));
        if !meant_for_signatures {
            return None;
        }
        let possible: &[Algorithm] = match &jwk.algorithm {
            AlgorithmParameters::RSA(rsa) if RSA_MODULUS.contains(&(rsa.n.len() * 3 / 4)) => &[
                Algorithm::RS256,
                Algorithm::PS256,
                Algorithm::RS384,
                Algorithm::PS384,
                Algorithm::RS512,
                Algorithm::PS512,
            ],
            AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => {
                &[Algorithm::ES256]
            }
            AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P384 => {
                &[Algorithm::ES384]
            }
            AlgorithmParameters::OctetKeyPair(okp) if okp.curve == EllipticCurve::Ed25519 => {
                &[Algorithm::EdDSA]
            }
            _ => return None,
        };
        let algorithms = match jwk.common.key_algorithm {
            None => possible.iter().copied().take(2).collect(),
            Some(named) => vec![
                *possible
                    .iter()
                    .find(|algorithm| KeyAlgorithm::from(**algorithm) == named)?,
            ],
        };
        let key = DecodingKey::from_jwk(jwk).ok()?;
        let well_sized = match possible[0] {
            // An uncompressed point: a byte and two coordinates.
            Algorithm::ES256 => key.try_get_as_bytes().is_ok_and(|point| point.len() == 65),
            Algorithm::ES384 => key.try_get_as_bytes().is_ok_and(|point| point.len() == 97),
            Algorithm::EdDSA => key.try_get_as_bytes().is_ok_and(|point| point.len() == 32),
            _ => true,
        };
        well_sized.then(|| Self {
            id: jwk.common.key_id.clone(),
            key,
            algorithms,
        })
    }
}

#[derive(Debug)]
pub(super) struct Keys(Vec<VerifyingKey>);

impl Keys {
    /// A token without a key ID is verified only if the set has a single key.
    pub(super) fn for_id<'a>(
        &'a self,
        id: Option<&'a str>,
    ) -> impl Iterator<Item = &'a VerifyingKey> {
        let only = self.0.len() == 1;
        self.0.iter().filter(move |key| match id {
            Some(_) => key.id.as_deref() == id,
            None => only,
        })
    }
}

pub(super) struct KeySet {
    url: JwksUrl,
    client: Client,
    keys: Arc<Published<Keys>>,
}

impl KeySet {
    pub(super) fn new(url: JwksUrl) -> Result<Arc<Self>, reqwest::Error> {
        let client = client(url.as_url())?;
        let keys = Published::new("the key set of management tokens", FETCH_INTERVAL);
        Ok(Arc::new(Self { url, client, keys }))
    }

    /// Never waits if the current set has a key with this ID: an outdated set is fetched again in the background.
    /// Otherwise waits for a fetch. [`TokenError::KeysUnavailable`] means that no fetch has succeeded so far.
    pub(super) async fn keys(
        self: &Arc<Self>,
        id: Option<&str>,
        now: Timestamp,
    ) -> Result<Arc<Keys>, TokenError> {
        if let Some(keys) = self.keys.current()
            // A missing ID does not show that the set is outdated.
            && (id.is_none() || keys.for_id(id).next().is_some())
        {
            self.keys.refresh(now, || self.fetch());
            return Ok(keys);
        }
        self.keys
            .newer(now, || self.fetch())
            .await
            .ok_or(TokenError::KeysUnavailable)
    }

    pub(super) async fn refresh(self: &Arc<Self>, now: Timestamp) {
        self.keys.refresh(now, || self.fetch());
        self.keys.settled().await;
    }

    /// Fetches the set without caching it, and returns how many of its keys can be used.
    pub(super) async fn count(&self) -> Result<usize, FetchError> {
        Ok(self.request().await?.len())
    }

    /// The future borrows nothing, because the fetch outlives the caller that started it.
    fn fetch(self: &Arc<Self>) -> impl Future<Output = Result<Keys, FetchError>> + Send + 'static {
        let set = Arc::clone(self);
        async move {
            let keys = set.request().await?;
            tracing::info!(url = %set.url, usable_keys = keys.len(), "fetched the keys of management tokens");
            Ok(Keys(keys))
        }
    }

    async fn request(&self) -> Result<Vec<VerifyingKey>, FetchError> {
        let request = self
            .client
            .get(self.url.as_url().clone())
            .header(header::ACCEPT, "application/json");
        let mut response = request.send().await?;
        if response.status() != StatusCode::OK {
            return Err(FetchError::Status(response.status()));
        }
        let body = body(&mut response).await?;
        let set: serde_json::Value =
            serde_json::from_slice(&body).map_err(|_| FetchError::NotASet)?;
        let keys = set
            .get("keys")
            .and_then(serde_json::Value::as_array)
            .ok_or(FetchError::NotASet)?;
        // Each key is parsed separately, because unknown ones are ignored (RFC 7517, section 5).
        let jwks = keys
            .iter()
            .filter_map(|key| serde_json::from_value::<Jwk>(key.clone()).ok());
        Ok(jwks
            .filter_map(|jwk| VerifyingKey::from_jwk(&jwk))
            .collect())
    }
}

/// Why a fetch failed. For the log: the text holds neither the URL nor any part of the response body.
#[derive(Debug, thiserror::Error)]
pub(super) enum FetchError {
    #[error("{0}")]
    Http(String),
    #[error("responded with {0}, not 200")]
    Status(StatusCode),
    #[error("is larger than {BODY_MAX} bytes")]
    TooLarge,
    #[error("is not a JSON Web Key Set")]
    NotASet,
}

impl From<reqwest::Error> for FetchError {
    fn from(error: reqwest::Error) -> Self {
        let error = error.without_url();
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        Self::Http(text.chars().take(300).collect())
    }
}

#[cfg(test)]
mod tests;
