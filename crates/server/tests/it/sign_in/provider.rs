//! An OpenID Connect provider for tests: discovery, keys and a strict token endpoint.
//! [`Provider::sign_in`] replaces the page where users enter their password.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, MutexGuard},
    time::Duration,
};

use aws_lc_rs::{
    digest, hmac,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
        RSA_PKCS1_SHA256, RsaKeyPair,
    },
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use reqwest::Url;
use serde_json::{Value, json};
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate, matchers::any};

pub const CLIENT: &str = "tollkey dashboard";
pub const SECRET: &str = "canary:secret/of the client";
pub const PUBLIC: &str = "https://keys.example.com";
/// [`PUBLIC`] of a server behind a path prefix.
pub const UNDER_PREFIX: &str = "https://example.com/keys";

/// One RSA key for all tests, as generating it is slow.
static RSA: LazyLock<RsaKeyPair> =
    LazyLock::new(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap());

pub fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Creates a JWT with this header and these claims. `sign` returns the signature, whatever `alg` is in the header.
pub fn token(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let message = format!(
        "{}.{}",
        base64url(header.to_string()),
        base64url(claims.to_string())
    );
    let signature = sign(message.as_bytes());
    format!("{message}.{}", base64url(signature))
}

pub fn hs256(secret: &[u8], message: &[u8]) -> Vec<u8> {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message)
        .as_ref()
        .to_vec()
}

pub fn rs256(message: &[u8]) -> Vec<u8> {
    let mut signature = vec![0; RSA.public_modulus_len()];
    RSA.sign(
        &RSA_PKCS1_SHA256,
        &SystemRandom::new(),
        message,
        &mut signature,
    )
    .unwrap();
    signature
}

pub fn rsa_jwk(id: &str) -> Value {
    let n = RSA.public_key().modulus().big_endian_without_leading_zero();
    json!({"kty": "RSA", "use": "sig", "kid": id, "n": base64url(n), "e": "AQAB"})
}

/// A signing key of the provider, or of an attacker.
#[derive(Clone)]
pub struct Key {
    pub id: &'static str,
    pair: Arc<EcdsaKeyPair>,
}

impl Key {
    pub fn new(id: &'static str) -> Self {
        Self {
            id,
            pair: Arc::new(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()),
        }
    }

    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair
            .sign(&SystemRandom::new(), message)
            .unwrap()
            .as_ref()
            .to_vec()
    }

    pub fn point(&self) -> Vec<u8> {
        self.pair.public_key().as_ref().to_vec()
    }

    pub fn jwk(&self) -> Value {
        let point = self.point();
        json!({"kty": "EC", "crv": "P-256", "kid": self.id, "x": base64url(&point[1..33]), "y": base64url(&point[33..])})
    }

    pub fn token(&self, claims: &Value) -> String {
        token(
            &json!({"alg": "ES256", "kid": self.id, "typ": "JWT"}),
            claims,
            |message| self.sign(message),
        )
    }
}

/// An Ed25519 key as JWK, and a token signed with it.
pub fn eddsa(claims: &Value) -> (Value, String) {
    let pair = Ed25519KeyPair::generate().unwrap();
    let jwk =
        json!({"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": base64url(pair.public_key())});
    let header = json!({"alg": "EdDSA", "kid": "ed"});
    (
        jwk,
        token(&header, claims, |message| {
            pair.sign(message).as_ref().to_vec()
        }),
    )
}

/// The data of an authorization code, which can be exchanged once.
struct Grant {
    challenge: String,
    redirect: String,
    id_token: Option<String>,
}

pub struct Inner {
    issuer: String,
    /// Fields of the discovery document that replace the default ones.
    pub metadata: Value,
    pub keys: Vec<Value>,
    grants: HashMap<String, Grant>,
    codes: u32,
    /// Responses that replace the default ones, by path.
    pub replacements: HashMap<&'static str, ResponseTemplate>,
    /// The received requests: path, `Authorization` header and body.
    pub requests: Vec<(String, String, String)>,
    /// How the client authenticates.
    pub client: ClientAuth,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    Basic,
    Body,
    Public,
}

#[derive(Clone)]
struct Responder(Arc<Mutex<Inner>>);

pub struct Provider {
    pub issuer: String,
    pub key: Key,
    responder: Responder,
    _server: MockServer,
}

impl Provider {
    pub async fn start() -> Self {
        let server = MockServer::start().await;
        let key = Key::new("one");
        let inner = Inner {
            issuer: server.uri(),
            metadata: json!({}),
            keys: vec![key.jwk(), rsa_jwk("rsa")],
            grants: HashMap::new(),
            codes: 0,
            replacements: HashMap::new(),
            requests: Vec::new(),
            client: ClientAuth::Basic,
        };
        let responder = Responder(Arc::new(Mutex::new(inner)));
        Mock::given(any())
            .respond_with(responder.clone())
            .mount(&server)
            .await;
        Self {
            issuer: server.uri(),
            key,
            responder,
            _server: server,
        }
    }

    pub fn inner(&self) -> MutexGuard<'_, Inner> {
        self.responder.0.lock().unwrap()
    }

    /// Returns the number of requests to this path.
    pub fn request_count(&self, path: &str) -> usize {
        self.inner()
            .requests
            .iter()
            .filter(|(own, ..)| own == path)
            .count()
    }

    /// Replaces all responses of this path.
    pub fn set_response(&self, path: &'static str, response: ResponseTemplate) {
        self.inner().replacements.insert(path, response);
    }

    /// The server's settings for this provider.
    pub fn settings(&self) -> Vec<(&str, &str)> {
        vec![
            ("TOLLKEY_OIDC_ISSUER", &self.issuer),
            ("TOLLKEY_OIDC_CLIENT_ID", CLIENT),
            ("TOLLKEY_OIDC_CLIENT_SECRET", SECRET),
            ("TOLLKEY_PUBLIC_URL", PUBLIC),
            ("TOLLKEY_OIDC_SCOPES", "profile,keys:manage"),
            ("TOLLKEY_OIDC_ROLES_CLAIM", "roles"),
        ]
    }

    /// Returns the claims of the ID token for the sign-in that this authorization URL started.
    pub fn claims(&self, authorization_url: &Url, now: i64) -> Value {
        json!({
            "iss": self.issuer, "sub": "ada", "aud": CLIENT, "exp": now + 300, "iat": now,
            "nonce": parameter(authorization_url, "nonce"), "account_id": "acme",
        })
    }

    /// Signs the user in at the provider, after the redirect to this authorization URL. Returns the code for the
    /// callback.
    pub fn sign_in(&self, authorization_url: &Url, id_token: Option<String>) -> String {
        assert_eq!(
            authorization_url.as_str().split('?').next(),
            Some(format!("{}/authorize", self.issuer).as_str())
        );
        for (name, expected) in [
            ("response_type", "code"),
            ("client_id", CLIENT),
            ("code_challenge_method", "S256"),
            ("scope", "openid profile keys:manage"),
        ] {
            assert_eq!(parameter(authorization_url, name), expected, "{name}");
        }
        // With and without a path prefix.
        let redirects = [
            format!("{PUBLIC}/dashboard/sign-in/callback"),
            format!("{UNDER_PREFIX}/dashboard/sign-in/callback"),
        ];
        assert!(
            redirects.contains(&parameter(authorization_url, "redirect_uri")),
            "{authorization_url}"
        );
        for name in ["state", "nonce", "code_challenge"] {
            assert!(parameter(authorization_url, name).len() >= 43, "{name}");
        }
        let grant = Grant {
            challenge: parameter(authorization_url, "code_challenge"),
            redirect: parameter(authorization_url, "redirect_uri"),
            id_token,
        };
        let mut inner = self.inner();
        inner.codes += 1;
        let code = format!("canary-code-{}", inner.codes);
        inner.grants.insert(code.clone(), grant);
        code
    }
}

/// The value of a URL's parameter, which must occur once.
pub fn parameter(url: &Url, name: &str) -> String {
    let values: Vec<_> = url.query_pairs().filter(|(own, _)| own == name).collect();
    assert_eq!(values.len(), 1, "{name} in {url}");
    values[0].1.clone().into_owned()
}

impl Respond for Responder {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let mut inner = self.0.lock().unwrap();
        let path = request.url.path().to_owned();
        let header = |name: &str| {
            request
                .headers
                .get(name)
                .and_then(|it| it.to_str().ok())
                .unwrap_or("")
                .to_owned()
        };
        let body = String::from_utf8_lossy(&request.body).into_owned();
        inner
            .requests
            .push((path.clone(), header("authorization"), body.clone()));
        if let Some(response) = inner.replacements.get(path.as_str()) {
            return response.clone();
        }
        match path.as_str() {
            "/.well-known/openid-configuration" => {
                ResponseTemplate::new(200).set_body_json(inner.discovery())
            }
            "/keys" => ResponseTemplate::new(200).set_body_json(json!({"keys": inner.keys})),
            "/token" => inner.exchange(&header("authorization"), &body),
            _ => ResponseTemplate::new(404),
        }
    }
}

impl Inner {
    fn discovery(&self) -> Value {
        let issuer = &self.issuer;
        let method = match self.client {
            ClientAuth::Basic => "client_secret_basic",
            ClientAuth::Body => "client_secret_post",
            ClientAuth::Public => "none",
        };
        let mut metadata = json!({
            "issuer": issuer,
            "authorization_endpoint": format!("{issuer}/authorize"),
            "token_endpoint": format!("{issuer}/token"),
            "jwks_uri": format!("{issuer}/keys"),
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256", "ES256", "HS256", "none", "XX99"],
            "token_endpoint_auth_methods_supported": [method],
        });
        for (name, value) in self.metadata.as_object().unwrap() {
            metadata[name] = value.clone();
        }
        metadata
    }

    fn exchange(&mut self, credentials: &str, body: &str) -> ResponseTemplate {
        let reject = |error: &str| {
            // Some providers repeat the request in the error description.
            let response =
                json!({"error": error, "error_description": format!("{credentials} {body}")});
            ResponseTemplate::new(if error == "invalid_client" { 401 } else { 400 })
                .set_body_json(response)
        };
        let sent: HashMap<String, String> = Url::parse(&format!("http://x/?{body}"))
            .unwrap()
            .query_pairs()
            .into_owned()
            .collect();
        let has = |name: &str, value: &str| sent.get(name).is_some_and(|own| own == value);
        // RFC 6749, section 2.3.1: the client ID and the secret are form-encoded before they are joined.
        let basic = format!(
            "Basic {}",
            STANDARD.encode("tollkey+dashboard:canary%3Asecret%2Fof+the+client")
        );
        let is_authenticated = match self.client {
            ClientAuth::Basic => credentials == basic && !body.contains("secret"),
            ClientAuth::Body => {
                credentials.is_empty() && has("client_id", CLIENT) && has("client_secret", SECRET)
            }
            ClientAuth::Public => {
                credentials.is_empty() && has("client_id", CLIENT) && !body.contains("secret")
            }
        };
        if !is_authenticated {
            return reject("invalid_client");
        }
        let Some(grant) = sent.get("code").and_then(|code| self.grants.remove(code)) else {
            return reject("invalid_grant");
        };
        let verifier = sent
            .get("code_verifier")
            .map(String::as_str)
            .unwrap_or_default();
        let challenge = base64url(digest::digest(&digest::SHA256, verifier.as_bytes()));
        if !has("grant_type", "authorization_code")
            || !has("redirect_uri", &grant.redirect)
            || verifier.len() < 43
            || challenge != grant.challenge
        {
            return reject("invalid_grant");
        }
        let mut tokens = json!({"access_token": "canary-access-token", "token_type": "Bearer", "expires_in": 300});
        if let Some(id_token) = grant.id_token {
            tokens["id_token"] = json!(id_token);
        }
        ResponseTemplate::new(200).set_body_json(tokens)
    }
}

/// A response that arrives after the timeout of every client.
pub fn late_response() -> ResponseTemplate {
    ResponseTemplate::new(200).set_delay(Duration::from_secs(120))
}
