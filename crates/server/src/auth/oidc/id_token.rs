//! Verifies ID tokens: the signature, and the claims that this server uses.
//!
//! `alg` must be one of the asymmetric algorithms that the provider lists: never `none`, and never an HMAC, whose key
//! would be the client secret. The crate `openidconnect` only verifies the signature. Its own parser rejects a token if
//! any standard claim, such as `acr` or `phone_number`, has another type than it expects, without naming the claim.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use openidconnect::{
    JsonWebKey as _, JsonWebKeyAlgorithm, JsonWebKeyUse as _, JwsSigningAlgorithm as _,
    core::{CoreJsonWebKey, CoreJwsSigningAlgorithm},
};
use serde::Deserialize;
use serde_json::{Map, Value};
use tollkey_core::Digest;

use super::{super::jwt, Rejection};

pub(super) struct Expected<'a> {
    pub(super) issuer: &'a str,
    pub(super) client_id: &'a str,
    pub(super) nonce: &'a str,
    /// The algorithms that the provider lists and this server accepts.
    pub(super) algorithms: &'a [CoreJwsSigningAlgorithm],
    pub(super) keys: &'a [CoreJsonWebKey],
}

/// A parsed ID token. Nothing of it is verified.
pub(super) struct IdToken<'a> {
    header: Header,
    claims: Map<String, Value>,
    /// The part that is signed: the header and the claims as they were sent.
    message: &'a str,
    signature: Vec<u8>,
}

/// The parameters of a JOSE header (RFC 7515, section 4.1) that this server understands.
#[derive(Deserialize)]
struct Header {
    alg: Value,
    kid: Option<String>,
    typ: Option<String>,
    cty: Option<Value>,
    crit: Option<Value>,
}

impl<'a> IdToken<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, Rejection> {
        let mut parts = text.split('.');
        let (Some(header), Some(claims), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(Rejection::Form);
        };
        let message = text
            .get(..header.len() + 1 + claims.len())
            .ok_or(Rejection::Form)?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| Rejection::Form);
        let json = |part: &str| {
            serde_json::from_slice::<Map<String, Value>>(&decode(part)?)
                .map_err(|_| Rejection::Form)
        };
        let header =
            serde_json::from_value(Value::Object(json(header)?)).map_err(|_| Rejection::Form)?;
        Ok(Self {
            header,
            claims: json(claims)?,
            message,
            signature: decode(signature)?,
        })
    }

    /// Verifies the token by the rules of OpenID Connect Core 1.0, section 3.1.3.7, and returns its claims.
    /// [`Rejection::UnknownKey`] may mean that the provider has newer keys.
    pub(super) fn verify(
        &self,
        expected: &Expected<'_>,
        now: Timestamp,
    ) -> Result<&Map<String, Value>, Rejection> {
        self.check_header()?;
        self.check_issuer_and_audience(expected)?;
        self.check_signature(expected)?;
        self.check_authorized_party(expected.client_id)?;
        self.check_times(now)?;
        match self.claim("nonce") {
            None => Err(Rejection::Nonce),
            Some(Value::String(nonce))
                if Digest::of_key(nonce) == Digest::of_key(expected.nonce) =>
            {
                Ok(&self.claims)
            }
            Some(Value::String(_)) => Err(Rejection::Nonce),
            Some(_) => Err(Rejection::Claim("nonce")),
        }
    }

    fn claim(&self, name: &str) -> Option<&Value> {
        self.claims.get(name).filter(|claim| !claim.is_null())
    }

    /// Rejects tokens for another purpose, nested or encrypted tokens, and tokens with critical extensions.
    fn check_header(&self) -> Result<(), Rejection> {
        let Header { typ, cty, crit, .. } = &self.header;
        let is_jwt = typ.as_ref().is_none_or(|typ| {
            let typ = typ.to_ascii_lowercase();
            matches!(
                typ.strip_prefix("application/").unwrap_or(&typ),
                "jwt" | "jose"
            )
        });
        if is_jwt && cty.is_none() && crit.is_none() {
            Ok(())
        } else {
            Err(Rejection::Form)
        }
    }

    /// Rules 2 and 3.
    fn check_issuer_and_audience(&self, expected: &Expected<'_>) -> Result<(), Rejection> {
        let issuer = self
            .claim("iss")
            .and_then(Value::as_str)
            .ok_or(Rejection::Claim("iss"))?;
        if issuer != expected.issuer {
            return Err(Rejection::Issuer);
        }
        let audiences = match self.claim("aud") {
            Some(Value::Array(audiences)) => audiences.as_slice(),
            Some(audience) => std::slice::from_ref(audience),
            None => return Err(Rejection::Claim("aud")),
        };
        if audiences.iter().any(|audience| !audience.is_string()) {
            return Err(Rejection::Claim("aud"));
        }
        let is_own = |audience: &Value| audience.as_str() == Some(expected.client_id);
        if audiences.is_empty() || !audiences.iter().all(is_own) {
            Err(Rejection::Audience)
        } else {
            Ok(())
        }
    }

    /// Rules 4 and 5.
    fn check_authorized_party(&self, client_id: &str) -> Result<(), Rejection> {
        let several = self
            .claim("aud")
            .and_then(Value::as_array)
            .is_some_and(|audiences| audiences.len() > 1);
        match self.claim("azp") {
            Some(Value::String(azp)) if azp == client_id => Ok(()),
            Some(Value::String(_)) => Err(Rejection::AuthorizedParty),
            Some(_) => Err(Rejection::Claim("azp")),
            None if several => Err(Rejection::AuthorizedParty),
            None => Ok(()),
        }
    }

    /// Rules 6 to 8: with the only key of the provider that has the token's key ID and is for its algorithm. The
    /// provider's metadata, not the token, determines the accepted algorithms.
    fn check_signature(&self, expected: &Expected<'_>) -> Result<(), Rejection> {
        let algorithm: CoreJwsSigningAlgorithm =
            serde_json::from_value(self.header.alg.clone()).map_err(|_| Rejection::Algorithm)?;
        if algorithm == CoreJwsSigningAlgorithm::None {
            return Err(Rejection::Unsigned);
        }
        if algorithm.uses_shared_secret() || !expected.algorithms.contains(&algorithm) {
            return Err(Rejection::Algorithm);
        }
        let has_id = |key: &&CoreJsonWebKey| {
            self.header
                .kid
                .as_ref()
                .is_none_or(|id| key.key_id().is_some_and(|own| **own == *id))
        };
        let mut keys = expected
            .keys
            .iter()
            .filter(|key| is_for(key, &algorithm))
            .filter(has_id);
        let key = keys.next().ok_or(Rejection::UnknownKey)?;
        if keys.next().is_some() {
            return Err(Rejection::AmbiguousKey);
        }
        key.verify_signature(&algorithm, self.message.as_bytes(), &self.signature)
            .map_err(|_| Rejection::Signature)
    }

    /// Rules 9 and 10. `iat` is required, but can be any time.
    fn check_times(&self, now: Timestamp) -> Result<(), Rejection> {
        let expires_at = jwt::time(&self.claims, "exp")
            .ok()
            .flatten()
            .ok_or(Rejection::Claim("exp"))?;
        if expires_at <= now {
            return Err(Rejection::Expired);
        }
        if !self.claim("iat").is_some_and(Value::is_number) {
            return Err(Rejection::Claim("iat"));
        }
        Ok(())
    }
}

fn is_for(key: &CoreJsonWebKey, algorithm: &CoreJwsSigningAlgorithm) -> bool {
    let is_own_algorithm = match key.signing_alg() {
        JsonWebKeyAlgorithm::Algorithm(own) => own == algorithm,
        JsonWebKeyAlgorithm::Unspecified => true,
        JsonWebKeyAlgorithm::Unsupported => false,
    };
    is_own_algorithm
        && key
            .key_use()
            .is_none_or(|purpose| purpose.allows_signature())
        && algorithm.key_type().as_ref() == Some(key.key_type())
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
    };
    use serde_json::json;

    use super::*;

    const NOW: i64 = 1_767_225_600;
    const ISSUER: &str = "https://id.example";

    struct Provider {
        pair: EcdsaKeyPair,
        keys: Vec<CoreJsonWebKey>,
    }

    fn encode(bytes: impl AsRef<[u8]>) -> String {
        URL_SAFE_NO_PAD.encode(bytes)
    }

    impl Provider {
        fn new() -> Self {
            let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
            let point = pair.public_key().as_ref();
            let key = |id: &str, purpose: &str| {
                let (x, y) = (encode(&point[1..33]), encode(&point[33..]));
                serde_json::from_value(
                    json!({"kty": "EC", "crv": "P-256", "kid": id, "use": purpose, "x": x, "y": y}),
                )
                .unwrap()
            };
            let keys = vec![key("one", "sig"), key("encrypts", "enc")];
            Self { pair, keys }
        }

        /// Returns a token of this JSON, signed with the provider's key whatever `alg` is.
        fn token(&self, header: &Value, claims: &str) -> String {
            let message = format!("{}.{}", encode(header.to_string()), encode(claims));
            let signature = self
                .pair
                .sign(&SystemRandom::new(), message.as_bytes())
                .unwrap();
            format!("{message}.{}", encode(signature))
        }

        fn verify(&self, text: &str) -> Result<Map<String, Value>, Rejection> {
            let expected = Expected {
                issuer: ISSUER,
                client_id: "dashboard",
                nonce: "EXAMPLE-nonce",
                algorithms: &[CoreJwsSigningAlgorithm::EcdsaP256Sha256],
                keys: &self.keys,
            };
            IdToken::parse(text)?
                .verify(&expected, Timestamp::from_second(NOW).unwrap())
                .cloned()
        }
    }

    fn header() -> Value {
        json!({"alg": "ES256", "kid": "one", "typ": "JWT"})
    }

    fn claims() -> Value {
        json!({
            "iss": ISSUER, "sub": "ada", "aud": "dashboard", "exp": NOW + 300, "iat": NOW, "nonce": "EXAMPLE-nonce",
            "account_id": "acme",
        })
    }

    #[test]
    fn claims_that_are_not_used_can_have_any_type() {
        let provider = Provider::new();
        for (name, value) in [
            ("auth_time", json!("123")),
            ("amr", json!("pwd")),
            ("acr", json!(1)),
            ("email", json!(5)),
            ("email_verified", json!("maybe")),
            ("preferred_username", json!(5)),
            ("phone_number", json!(4915)),
            ("address", json!("...")),
            ("name", json!({})),
            ("locale", json!(5)),
            ("picture", json!("no URL")),
            ("updated_at", json!("yesterday")),
            ("at_hash", json!([])),
            ("azp", json!(null)),
        ] {
            let mut claims = claims();
            claims[name] = value.clone();
            let read = provider.verify(&provider.token(&header(), &claims.to_string()));
            assert_eq!(read.as_ref().map(|read| &read[name]), Ok(&value), "{name}");
        }
    }

    #[test]
    fn claim_with_a_wrong_type_is_named() {
        let provider = Provider::new();
        for (name, value) in [
            ("iss", json!([ISSUER])),
            ("iss", json!(null)),
            ("aud", json!(5)),
            ("aud", json!(["dashboard", 5])),
            ("aud", json!(null)),
            ("azp", json!(5)),
            ("azp", json!(["dashboard"])),
            ("exp", json!("1")),
            ("exp", json!(1e300)),
            ("exp", json!(null)),
            ("iat", json!("now")),
            ("iat", json!(null)),
            ("nonce", json!(5)),
            ("nonce", json!(["EXAMPLE-nonce"])),
        ] {
            let mut claims = claims();
            claims[name] = value.clone();
            let rejection = provider
                .verify(&provider.token(&header(), &claims.to_string()))
                .unwrap_err();
            assert_eq!(rejection, Rejection::Claim(name), "{value}");
            assert!(
                Rejection::ALL.contains(&rejection) && rejection.code() == format!("claim-{name}"),
                "{rejection:?}"
            );
        }
    }

    #[test]
    fn claim_with_another_value_is_rejected() {
        let provider = Provider::new();
        for (name, value, expected) in [
            ("iss", json!("https://id.example/"), Err(Rejection::Issuer)),
            ("aud", json!([]), Err(Rejection::Audience)),
            ("aud", json!("other"), Err(Rejection::Audience)),
            (
                "aud",
                json!(["dashboard", "other"]),
                Err(Rejection::Audience),
            ),
            ("aud", json!(["dashboard"]), Ok(())),
            (
                "aud",
                json!(["dashboard", "dashboard"]),
                Err(Rejection::AuthorizedParty),
            ),
            ("azp", json!("other"), Err(Rejection::AuthorizedParty)),
            ("azp", json!(""), Err(Rejection::AuthorizedParty)),
            ("azp", json!("dashboard"), Ok(())),
            ("exp", json!(NOW), Err(Rejection::Expired)),
            ("exp", json!(-1), Err(Rejection::Expired)),
            ("exp", json!(NOW as f64 + 1.5), Ok(())),
            ("nonce", json!("other"), Err(Rejection::Nonce)),
            ("nonce", json!(null), Err(Rejection::Nonce)),
        ] {
            let mut claims = claims();
            claims[name] = value.clone();
            let read = provider.verify(&provider.token(&header(), &claims.to_string()));
            assert_eq!(read.map(drop), expected, "{name}: {value}");
        }
    }

    #[test]
    fn header_of_another_kind_of_token_is_rejected() {
        let provider = Provider::new();
        for (changes, expected) in [
            (json!({}), Ok(())),
            (json!({"typ": "application/JWT"}), Ok(())),
            (json!({"typ": "JOSE"}), Ok(())),
            (json!({"typ": "at+jwt"}), Err(Rejection::Form)),
            (json!({"cty": "JWT"}), Err(Rejection::Form)),
            (json!({"crit": ["b64"]}), Err(Rejection::Form)),
            (json!({"alg": "none"}), Err(Rejection::Unsigned)),
            (json!({"alg": "HS256"}), Err(Rejection::Algorithm)),
            (json!({"alg": "ES384"}), Err(Rejection::Algorithm)),
            (json!({"alg": "XX"}), Err(Rejection::Algorithm)),
            (json!({"alg": 5}), Err(Rejection::Algorithm)),
            (json!({"kid": "two"}), Err(Rejection::UnknownKey)),
            (json!({"kid": "encrypts"}), Err(Rejection::UnknownKey)),
            (json!({"kid": 5}), Err(Rejection::Form)),
        ] {
            let mut header = header();
            header
                .as_object_mut()
                .unwrap()
                .extend(changes.as_object().unwrap().clone());
            let read = provider.verify(&provider.token(&header, &claims().to_string()));
            assert_eq!(read.map(drop), expected, "{changes}");
        }
        let without_id = provider.token(&json!({"alg": "ES256"}), &claims().to_string());
        assert!(provider.verify(&without_id).is_ok());
        let several = Provider {
            keys: [provider.keys.clone(), provider.keys.clone()].concat(),
            ..provider
        };
        assert_eq!(several.verify(&without_id), Err(Rejection::AmbiguousKey));
    }

    #[test]
    fn malformed_jwt_is_rejected() {
        let provider = Provider::new();
        let good = provider.token(&header(), &claims().to_string());
        let parts: Vec<_> = good.split('.').collect();
        let rows = [
            String::new(),
            "EXAMPLE".to_owned(),
            "a.b".to_owned(),
            "..".to_owned(),
            format!("{good}."),
            format!("{good}.a.b"),
            format!("{}.{}=.{}", parts[0], parts[1], parts[2]),
            provider.token(&json!([1]), &claims().to_string()),
            provider.token(&json!({"kid": "one"}), &claims().to_string()),
            provider.token(&header(), "[1]"),
            provider.token(&header(), "no JSON"),
            provider.token(
                &header(),
                &claims()
                    .to_string()
                    .replace(&(NOW + 300).to_string(), "1e999"),
            ),
        ];
        for text in &rows {
            assert_eq!(provider.verify(text), Err(Rejection::Form), "{text}");
        }
        for signature in [encode([0; 64]), encode([1; 65]), String::new()] {
            let text = format!("{}.{}.{signature}", parts[0], parts[1]);
            assert_eq!(provider.verify(&text), Err(Rejection::Signature), "{text}");
        }
        let changed = claims().to_string().replace("acme", "mail");
        let text = format!("{}.{}.{}", parts[0], encode(changed), parts[2]);
        assert_eq!(provider.verify(&text), Err(Rejection::Signature));
    }
}
