//! Tests of key sets: which keys are used, and when a set is fetched. The issuer is a local socket.

use std::{
    sync::{
        Mutex as StdMutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256,
    RSA_PSS_SHA256,
};
use futures_util::FutureExt as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::watch,
    time::timeout,
};

use super::*;
use crate::auth::jwt::{
    Claims, TokenVerifier,
    tests::{RSA, base64url, now, rules, sign_ec, sign_hs256, sign_rsa, token},
};

/// An issuer that sends the same response to every request, and counts the requests.
struct Issuer {
    url: String,
    response: Arc<StdMutex<String>>,
    requests: Arc<AtomicUsize>,
    /// While it is true, the issuer reads requests and does not respond.
    hangs: watch::Sender<bool>,
}

impl Issuer {
    async fn start(keys: &[Value]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks", listener.local_addr().unwrap());
        let response = Arc::new(StdMutex::new(String::new()));
        let requests = Arc::new(AtomicUsize::new(0));
        let (hangs, hanging) = watch::channel(false);
        let issuer = Self {
            url,
            response: Arc::clone(&response),
            requests: Arc::clone(&requests),
            hangs,
        };
        issuer.serve(keys);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                requests.fetch_add(1, Ordering::SeqCst);
                let (response, mut hanging) = (Arc::clone(&response), hanging.clone());
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        match stream.read_u8().await {
                            Ok(byte) => request.push(byte),
                            Err(_) => return,
                        }
                    }
                    if hanging.wait_for(|hangs| !hangs).await.is_err() {
                        return;
                    }
                    let response = response.lock().unwrap().clone();
                    // The client closes the connection if the response is too large.
                    let _ = stream.write_all(response.as_bytes()).await;
                });
            }
        });
        issuer
    }

    fn respond_with(&self, status: &str, headers: &str, body: &str) {
        let length = body.len();
        *self.response.lock().unwrap() = format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        );
    }

    fn serve(&self, keys: &[Value]) {
        self.respond_with("200 OK", "", &json!({ "keys": keys }).to_string());
    }

    fn hang(&self, hangs: bool) {
        self.hangs.send_replace(hangs);
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// The timeout is for a broken test only.
    async fn receives(&self, requests: usize) {
        let received = async {
            while self.requests() < requests {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), received)
            .await
            .expect("a request to the issuer within 20 seconds");
    }

    fn verifier(&self) -> TokenVerifier {
        TokenVerifier::jwks(self.url.parse().unwrap(), rules()).unwrap()
    }
}

fn ec_key() -> EcdsaKeyPair {
    EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap()
}

fn ec_jwk(id: &str, key: &EcdsaKeyPair) -> Value {
    let point = key.public_key().as_ref();
    json!({"kty": "EC", "crv": "P-256", "kid": id, "x": base64url(&point[1..33]), "y": base64url(&point[33..])})
}

fn rsa_jwk(id: &str) -> Value {
    let n = RSA.public_key().modulus().big_endian_without_leading_zero();
    json!({"kty": "RSA", "kid": id, "n": base64url(n), "e": "AQAB"})
}

fn claims() -> Value {
    json!({"sub": "ann", "account_id": "acme", "exp": now().as_second() + 86_400})
}

fn signed_by(id: Option<&str>, key: &EcdsaKeyPair) -> String {
    token(&json!({"alg": "ES256", "kid": id}), &claims(), sign_ec(key))
}

/// Returns a token with the key ID `k`.
fn signed(algorithm: &str, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    token(&json!({"alg": algorithm, "kid": "k"}), &claims(), sign)
}

fn after(seconds: i64) -> Timestamp {
    Timestamp::from_second(now().as_second() + seconds).unwrap()
}

async fn rejection(verifier: &TokenVerifier, token: &str, at: Timestamp) -> TokenError {
    verifier.verify(token, at).await.unwrap_err()
}

#[tokio::test]
async fn key_is_selected_by_its_id() {
    let (one, two) = (ec_key(), ec_key());
    let issuer = Issuer::start(&[ec_jwk("one", &one), ec_jwk("two", &two)]).await;
    let verifier = issuer.verifier();
    let by_one = signed_by(Some("one"), &one);
    let claims: Claims = verifier.verify(&by_one, now()).await.unwrap();
    assert_eq!(claims.account.unwrap().as_str(), "acme");
    let by_two = signed_by(Some("two"), &two);
    assert!(verifier.verify(&by_two, now()).await.is_ok());
    let error = rejection(&verifier, &signed_by(Some("one"), &two), now()).await;
    assert_eq!(error, TokenError::Signature);
    let error = rejection(&verifier, &signed_by(None, &one), now()).await;
    assert_eq!(error.to_string(), "its key ID is unknown: (none)");
    assert_eq!(issuer.requests(), 1);
}

#[tokio::test]
async fn token_without_key_id_is_verified_with_the_only_key() {
    let key = ec_key();
    let unused = json!({"kty": "oct", "kid": "hmac", "k": "AAAA"});
    let issuer = Issuer::start(&[ec_jwk("one", &key), unused]).await;
    let verifier = issuer.verifier();
    assert!(verifier.verify(&signed_by(None, &key), now()).await.is_ok());
    let error = rejection(&verifier, &signed_by(None, &ec_key()), now()).await;
    assert_eq!(error, TokenError::Signature);
}

#[tokio::test]
async fn two_keys_can_have_the_same_id() {
    let key = ec_key();
    let issuer = Issuer::start(&[rsa_jwk("k"), ec_jwk("k", &key)]).await;
    let verifier = issuer.verifier();
    let rs256 = signed("RS256", sign_rsa(&RSA_PKCS1_SHA256));
    for token in [rs256, signed_by(Some("k"), &key)] {
        assert!(verifier.verify(&token, now()).await.is_ok());
    }
}

#[tokio::test]
async fn keys_for_other_uses_are_ignored() {
    let secret = [7; 32];
    let ec = ec_key();
    let ed = Ed25519KeyPair::generate().unwrap();
    let altered = |mut jwk: Value, name: &str, value: Value| {
        jwk[name] = value;
        jwk
    };
    let changed_ec = |name, value| altered(ec_jwk("k", &ec), name, value);
    let changed_rsa = |algorithm: &str| altered(rsa_jwk("k"), "alg", json!(algorithm));
    let es256 = signed_by(Some("k"), &ec);
    let rs256 = signed("RS256", sign_rsa(&RSA_PKCS1_SHA256));
    let ps256 = signed("PS256", sign_rsa(&RSA_PSS_SHA256));
    let hs256 = signed("HS256", sign_hs256(&secret));
    let eddsa = signed("EdDSA", |message: &[u8]| ed.sign(message).as_ref().to_vec());
    let confused = signed("HS256", sign_hs256(ec.public_key().as_ref()));
    let weak = json!({"kty": "RSA", "kid": "k", "n": base64url([0xc5; 128]), "e": "AQAB"});
    let okp = json!({"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": base64url(ed.public_key())});
    let oct = json!({"kty": "oct", "kid": "k", "k": base64url(secret)});
    let akp = json!({"kty": "AKP", "kid": "k", "alg": "ML-DSA-44", "pub": "AAAA"});

    for (jwk, token, accepted) in [
        (ec_jwk("k", &ec), &es256, true),
        (changed_ec("use", json!("sig")), &es256, true),
        (changed_ec("use", json!("enc")), &es256, false),
        (changed_ec("key_ops", json!(["verify"])), &es256, true),
        (changed_ec("key_ops", json!(["sign"])), &es256, false),
        (changed_ec("alg", json!("ES256")), &es256, true),
        (changed_ec("alg", json!("ES384")), &es256, false),
        (changed_ec("alg", json!("HS256")), &confused, false),
        (changed_ec("crv", json!("P-384")), &es256, false),
        (changed_ec("crv", json!("secp256k1")), &es256, false),
        (changed_ec("x", json!("AAAA")), &es256, false),
        (ec_jwk("k", &ec), &confused, false),
        (rsa_jwk("k"), &rs256, true),
        (rsa_jwk("k"), &ps256, true),
        (changed_rsa("RS256"), &rs256, true),
        (changed_rsa("RS256"), &ps256, false),
        (changed_rsa("PS256"), &ps256, true),
        (changed_rsa("RSA-OAEP"), &rs256, false),
        (weak, &rs256, false),
        (okp.clone(), &eddsa, true),
        (altered(okp, "crv", json!("X25519")), &eddsa, false),
        (oct.clone(), &hs256, false),
        (altered(oct, "alg", json!("HS256")), &hs256, false),
        (akp, &es256, false),
        (json!("nonsense"), &es256, false),
    ] {
        // The set also has a malformed key and an unused one, because each key is parsed separately.
        let keys = [json!({"kty": 7}), jwk.clone(), ec_jwk("other", &ec_key())];
        let issuer = Issuer::start(&keys).await;
        let result = issuer.verifier().verify(token, now()).await;
        assert_eq!(result.is_ok(), accepted, "{jwk}: {result:?}");
    }
}

#[tokio::test]
async fn unknown_key_id_causes_a_fetch_every_30_s_at_most() {
    let (old, new) = (ec_key(), ec_key());
    let issuer = Issuer::start(&[ec_jwk("old", &old)]).await;
    let verifier = issuer.verifier();
    verifier.warm_up(now()).await.unwrap();
    issuer.serve(&[ec_jwk("new", &new)]);
    let rotated = signed_by(Some("new"), &new);
    let error = rejection(&verifier, &rotated, after(29)).await;
    assert_eq!(error.to_string(), "its key ID is unknown: \"new\"");
    assert_eq!(issuer.requests(), 1);
    assert!(verifier.verify(&rotated, after(30)).await.is_ok());
    assert_eq!(issuer.requests(), 2);
    // The new set does not have the old key.
    let withdrawn = signed_by(Some("old"), &old);
    for _ in 0..5 {
        let error = rejection(&verifier, &withdrawn, after(59)).await;
        assert!(matches!(error, TokenError::UnknownKey(_)));
    }
    assert_eq!(issuer.requests(), 2);
    let _ = rejection(&verifier, &withdrawn, after(60)).await;
    assert_eq!(issuer.requests(), 3);
    // Nothing waits until a clock that was set back has caught up.
    let _ = rejection(&verifier, &withdrawn, after(-1000)).await;
    assert_eq!(issuer.requests(), 4);
}

#[tokio::test]
async fn concurrent_verifications_share_one_fetch() {
    let key = ec_key();
    let issuer = Issuer::start(&[ec_jwk("k", &key)]).await;
    let verifier = issuer.verifier();
    let token = signed_by(Some("k"), &key);
    let verifications = (0..50).map(|_| {
        let (verifier, token) = (verifier.clone(), token.clone());
        tokio::spawn(async move { verifier.verify(&token, now()).await.is_ok() })
    });
    for outcome in verifications.collect::<Vec<_>>() {
        assert!(outcome.await.unwrap());
    }
    assert_eq!(issuer.requests(), 1);
}

#[tokio::test]
async fn fetch_continues_when_its_caller_is_dropped() {
    let key = ec_key();
    let issuer = Issuer::start(&[ec_jwk("k", &key)]).await;
    let verifier = issuer.verifier();
    let token = signed_by(Some("k"), &key);
    assert!(verifier.verify(&token, now()).now_or_never().is_none());
    assert!(verifier.verify(&token, now()).await.is_ok());
    assert_eq!(issuer.requests(), 1);
}

/// Verifies a token, which must not wait for the issuer.
fn immediately(verifier: &TokenVerifier, token: &str, at: Timestamp) -> Result<Claims, TokenError> {
    verifier
        .verify(token, at)
        .now_or_never()
        .expect("a verification that does not wait for the issuer")
}

#[tokio::test]
async fn outdated_set_is_fetched_again() {
    let (kept, withdrawn) = (ec_key(), ec_key());
    let issuer = Issuer::start(&[ec_jwk("kept", &kept), ec_jwk("withdrawn", &withdrawn)]).await;
    let verifier = issuer.verifier();
    verifier.warm_up(now()).await.unwrap();
    issuer.serve(&[ec_jwk("kept", &kept)]);
    let token = signed_by(Some("withdrawn"), &withdrawn);
    verifier.refresh(after(599)).await;
    assert!(verifier.verify(&token, after(599)).await.is_ok());
    assert_eq!(issuer.requests(), 1);
    // The server does this every 30 s, so that a withdrawn key is removed even without requests.
    verifier.refresh(after(600)).await;
    assert_eq!(issuer.requests(), 2);
    let withdrawn = immediately(&verifier, &token, after(600));
    assert!(matches!(withdrawn, Err(TokenError::UnknownKey(_))));
    assert!(immediately(&verifier, &signed_by(Some("kept"), &kept), after(600)).is_ok());
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test]
async fn request_refreshes_an_outdated_set_in_the_background() {
    let (kept, withdrawn) = (ec_key(), ec_key());
    let issuer = Issuer::start(&[ec_jwk("kept", &kept), ec_jwk("withdrawn", &withdrawn)]).await;
    let verifier = issuer.verifier();
    verifier.warm_up(now()).await.unwrap();
    issuer.serve(&[ec_jwk("kept", &kept)]);
    assert!(immediately(&verifier, &signed_by(Some("kept"), &kept), after(600)).is_ok());
    verifier.refresh(after(600)).await; // waits for the fetch that the request started
    assert_eq!(issuer.requests(), 2);
    let token = signed_by(Some("withdrawn"), &withdrawn);
    let withdrawn = immediately(&verifier, &token, after(600));
    assert!(matches!(withdrawn, Err(TokenError::UnknownKey(_))));
}

#[tokio::test]
async fn known_key_never_waits_for_a_hanging_issuer() {
    let key = ec_key();
    let issuer = Issuer::start(&[ec_jwk("k", &key)]).await;
    let verifier = issuer.verifier();
    verifier.warm_up(now()).await.unwrap();
    issuer.hang(true);
    let token = signed_by(Some("k"), &key);
    for second in [600, 601, 630, 660, 80_000] {
        for _ in 0..10 {
            let result = immediately(&verifier, &token, after(second));
            assert!(result.is_ok(), "{second}");
        }
        issuer.receives(2).await;
    }
    // Not even while other requests wait for unknown keys.
    let unknown = signed_by(Some("unknown"), &ec_key());
    for _ in 0..20 {
        let result = verifier.verify(&unknown, after(80_001)).now_or_never();
        assert!(result.is_none(), "a newer set may have the key");
    }
    assert!(immediately(&verifier, &token, after(80_001)).is_ok());
    assert_eq!(issuer.requests(), 2, "one fetch at a time");
}

#[tokio::test]
async fn unknown_key_id_joins_the_background_fetch() {
    let (old, new) = (ec_key(), ec_key());
    let issuer = Issuer::start(&[ec_jwk("old", &old)]).await;
    let verifier = issuer.verifier();
    verifier.warm_up(now()).await.unwrap();
    issuer.serve(&[ec_jwk("new", &new)]);
    issuer.hang(true);
    assert!(immediately(&verifier, &signed_by(Some("old"), &old), after(600)).is_ok());
    issuer.receives(2).await;
    let rotated = (0..20).map(|_| {
        let (verifier, token) = (verifier.clone(), signed_by(Some("new"), &new));
        tokio::spawn(async move { verifier.verify(&token, after(601)).await.is_ok() })
    });
    let rotated: Vec<_> = rotated.collect();
    tokio::task::yield_now().await;
    issuer.hang(false);
    for outcome in rotated {
        assert!(outcome.await.unwrap());
    }
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test]
async fn unknown_key_id_waits_for_a_hanging_issuer_only_once() {
    let issuer = Issuer::start(&[ec_jwk("k", &ec_key())]).await;
    let verifier = issuer.verifier();
    verifier.warm_up(now()).await.unwrap();
    issuer.hang(true);
    let unknown = signed_by(Some("unknown"), &ec_key());
    let error = rejection(&verifier, &unknown, after(30)).await;
    assert!(matches!(error, TokenError::UnknownKey(_)));
    assert_eq!(issuer.requests(), 2);
    for second in [30, 45, 59] {
        let result = immediately(&verifier, &unknown, after(second));
        assert!(matches!(result, Err(TokenError::UnknownKey(_))), "{second}");
    }
    assert_eq!(issuer.requests(), 2);
    issuer.hang(false);
    let _ = rejection(&verifier, &unknown, after(60)).await;
    assert_eq!(issuer.requests(), 3);
}

#[tokio::test]
async fn current_set_stays_when_a_fetch_fails() {
    let key = ec_key();
    let issuer = Issuer::start(&[ec_jwk("k", &key)]).await;
    let verifier = issuer.verifier();
    verifier.warm_up(now()).await.unwrap();
    let token = signed_by(Some("k"), &key);
    let mut at = 600;
    let redirect = "location: http://127.0.0.1:1/jwks\r\n";
    let large = json!({"keys": [], "filler": "f".repeat(BODY_MAX)}).to_string();
    for (status, headers, body) in [
        ("500 Internal Server Error", "", "{\"keys\":[]}"),
        ("204 No Content", "", ""),
        ("302 Found", redirect, "{\"keys\":[]}"),
        ("200 OK", "", "<html>"),
        ("200 OK", "", "[]"),
        ("200 OK", "", "{\"keys\":{}}"),
        ("200 OK", "", &large),
    ] {
        issuer.respond_with(status, headers, body);
        let before = issuer.requests();
        for second in [at, at + 29] {
            verifier.refresh(after(second)).await;
            let result = verifier.verify(&token, after(second)).await;
            assert!(result.is_ok(), "{status} {body:.40}");
        }
        assert_eq!(issuer.requests(), before + 1, "{status}");
        at += 30;
    }
    // An empty set is a valid response: the issuer withdrew its keys.
    issuer.serve(&[]);
    verifier.refresh(after(at)).await;
    let error = rejection(&verifier, &token, after(at)).await;
    assert!(matches!(error, TokenError::UnknownKey(_)));
}

#[tokio::test]
async fn keys_are_unavailable_before_the_first_fetch() {
    let key = ec_key();
    let issuer = Issuer::start(&[]).await;
    issuer.respond_with("503 Service Unavailable", "", "");
    let verifier = issuer.verifier();
    let token = signed_by(Some("k"), &key);
    let failed = verifier.warm_up(now()).await;
    assert_eq!(failed, Err(TokenError::KeysUnavailable));
    let error = rejection(&verifier, &token, after(1)).await;
    assert!(error.is_unavailable());
    assert_eq!(issuer.requests(), 1);
    issuer.serve(&[ec_jwk("k", &key)]);
    assert!(verifier.verify(&token, after(30)).await.is_ok());
}

#[tokio::test]
async fn malformed_token_causes_no_fetch() {
    let issuer = Issuer::start(&[]).await;
    let verifier = issuer.verifier();
    let error = rejection(&verifier, "a.b.c", now()).await;
    assert_eq!(error, TokenError::Malformed);
    let error = rejection(&verifier, &"a".repeat(9000), now()).await;
    assert_eq!(error, TokenError::TooLarge);
    assert_eq!(issuer.requests(), 0);
}

#[test]
fn jwks_url_must_be_https_or_local() {
    for (text, accepted) in [
        ("https://issuer.example/.well-known/jwks.json", true),
        ("http://localhost:8080/jwks", true),
        ("http://127.0.0.2/jwks", true),
        ("http://[::1]:1/jwks", true),
        ("http://issuer.example/jwks", false),
        ("http://localhost.example/jwks", false),
        ("http://10.0.0.1/jwks", false),
        ("https://user@issuer.example/jwks", false),
        ("https://:password@issuer.example/jwks", false),
        ("file:///jwks", false),
        ("jwks", false),
    ] {
        assert_eq!(text.parse::<JwksUrl>().is_ok(), accepted, "{text}");
    }
}
