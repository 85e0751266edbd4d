//! Key sets: what is taken from them, and when they are fetched. The issuer is a socket on this machine.

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

/// An issuer that answers every request with the same text and counts them.
struct Issuer {
    url: String,
    answer: Arc<StdMutex<String>>,
    requests: Arc<AtomicUsize>,
    /// While true, requests are read and get no response.
    hangs: watch::Sender<bool>,
}

impl Issuer {
    async fn start(keys: &[Value]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/jwks", listener.local_addr().unwrap());
        let answer = Arc::new(StdMutex::new(String::new()));
        let requests = Arc::new(AtomicUsize::new(0));
        let (hangs, hanging) = watch::channel(false);
        let issuer = Self {
            url,
            answer: Arc::clone(&answer),
            requests: Arc::clone(&requests),
            hangs,
        };
        issuer.serve(keys);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                requests.fetch_add(1, Ordering::SeqCst);
                let (answer, mut hanging) = (Arc::clone(&answer), hanging.clone());
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
                    let answer = answer.lock().unwrap().clone();
                    // A reader that has had enough hangs up.
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        issuer
    }

    fn say(&self, status: &str, headers: &str, body: &str) {
        let length = body.len();
        *self.answer.lock().unwrap() = format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
        );
    }

    fn serve(&self, keys: &[Value]) {
        self.say("200 OK", "", &json!({ "keys": keys }).to_string());
    }

    fn hang(&self, hangs: bool) {
        self.hangs.send_replace(hangs);
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    /// Waits for the request with this number. The deadline only bounds a broken test.
    async fn receives(&self, requests: usize) {
        let received = async {
            while self.requests() < requests {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(20), received)
            .await
            .expect("the issuer receives a request");
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

fn after(seconds: i64) -> Timestamp {
    Timestamp::from_second(now().as_second() + seconds).unwrap()
}

async fn refused(verifier: &TokenVerifier, token: &str, at: Timestamp) -> TokenError {
    verifier.verify(token, at).await.unwrap_err()
}

#[tokio::test]
async fn the_key_is_chosen_by_its_id() {
    let (one, two) = (ec_key(), ec_key());
    let issuer = Issuer::start(&[ec_jwk("one", &one), ec_jwk("two", &two)]).await;
    let verifier = issuer.verifier();
    let claims: Claims = verifier
        .verify(&signed_by(Some("one"), &one), now())
        .await
        .unwrap();
    assert_eq!(claims.account.unwrap().as_str(), "acme");
    assert!(
        verifier
            .verify(&signed_by(Some("two"), &two), now())
            .await
            .is_ok()
    );
    assert_eq!(
        refused(&verifier, &signed_by(Some("one"), &two), now()).await,
        TokenError::Signature
    );
    let guess = refused(&verifier, &signed_by(None, &one), now()).await;
    assert_eq!(guess.to_string(), "no key with its id (none given)");
    assert_eq!(issuer.requests(), 1);
}

#[tokio::test]
async fn without_an_id_the_only_key_counts() {
    let key = ec_key();
    let issuer = Issuer::start(&[
        ec_jwk("one", &key),
        json!({"kty": "oct", "kid": "hmac", "k": "AAAA"}),
    ])
    .await;
    let verifier = issuer.verifier();
    assert!(verifier.verify(&signed_by(None, &key), now()).await.is_ok());
    assert_eq!(
        refused(&verifier, &signed_by(None, &ec_key()), now()).await,
        TokenError::Signature
    );
}

#[tokio::test]
async fn two_keys_may_have_one_id() {
    let key = ec_key();
    let issuer = Issuer::start(&[rsa_jwk("k"), ec_jwk("k", &key)]).await;
    let verifier = issuer.verifier();
    let rs256 = token(
        &json!({"alg": "RS256", "kid": "k"}),
        &claims(),
        sign_rsa(&RSA_PKCS1_SHA256),
    );
    assert!(verifier.verify(&rs256, now()).await.is_ok());
    assert!(
        verifier
            .verify(&signed_by(Some("k"), &key), now())
            .await
            .is_ok()
    );
}

#[tokio::test]
async fn keys_not_meant_for_this_are_not_used() {
    let secret = [7; 32];
    let ec = ec_key();
    let ed = Ed25519KeyPair::generate().unwrap();
    let altered = |mut jwk: Value, name: &str, value: Value| {
        jwk[name] = value;
        jwk
    };
    let weak = json!({"kty": "RSA", "kid": "k", "n": base64url([0xc5; 128]), "e": "AQAB"});
    let es256 = signed_by(Some("k"), &ec);
    let rs256 = token(
        &json!({"alg": "RS256", "kid": "k"}),
        &claims(),
        sign_rsa(&RSA_PKCS1_SHA256),
    );
    let ps256 = token(
        &json!({"alg": "PS256", "kid": "k"}),
        &claims(),
        sign_rsa(&RSA_PSS_SHA256),
    );
    let hs256 = token(
        &json!({"alg": "HS256", "kid": "k"}),
        &claims(),
        sign_hs256(&secret),
    );
    let eddsa = token(&json!({"alg": "EdDSA", "kid": "k"}), &claims(), |message| {
        ed.sign(message).as_ref().to_vec()
    });
    let okp = json!({"kty": "OKP", "crv": "Ed25519", "kid": "k", "x": base64url(ed.public_key())});
    let public = ec.public_key().as_ref().to_vec();
    let confused = token(
        &json!({"alg": "HS256", "kid": "k"}),
        &claims(),
        sign_hs256(&public),
    );

    for (jwk, token, accepted) in [
        (ec_jwk("k", &ec), &es256, true),
        (altered(ec_jwk("k", &ec), "use", json!("sig")), &es256, true),
        (
            altered(ec_jwk("k", &ec), "use", json!("enc")),
            &es256,
            false,
        ),
        (
            altered(ec_jwk("k", &ec), "key_ops", json!(["verify"])),
            &es256,
            true,
        ),
        (
            altered(ec_jwk("k", &ec), "key_ops", json!(["sign"])),
            &es256,
            false,
        ),
        (
            altered(ec_jwk("k", &ec), "alg", json!("ES256")),
            &es256,
            true,
        ),
        (
            altered(ec_jwk("k", &ec), "alg", json!("ES384")),
            &es256,
            false,
        ),
        (
            altered(ec_jwk("k", &ec), "alg", json!("HS256")),
            &confused,
            false,
        ),
        (
            altered(ec_jwk("k", &ec), "crv", json!("P-384")),
            &es256,
            false,
        ),
        (
            altered(ec_jwk("k", &ec), "crv", json!("secp256k1")),
            &es256,
            false,
        ),
        (altered(ec_jwk("k", &ec), "x", json!("AAAA")), &es256, false),
        (ec_jwk("k", &ec), &confused, false),
        (rsa_jwk("k"), &rs256, true),
        (rsa_jwk("k"), &ps256, true),
        (altered(rsa_jwk("k"), "alg", json!("RS256")), &rs256, true),
        (altered(rsa_jwk("k"), "alg", json!("RS256")), &ps256, false),
        (altered(rsa_jwk("k"), "alg", json!("PS256")), &ps256, true),
        (
            altered(rsa_jwk("k"), "alg", json!("RSA-OAEP")),
            &rs256,
            false,
        ),
        (weak, &rs256, false),
        (okp.clone(), &eddsa, true),
        (altered(okp, "crv", json!("X25519")), &eddsa, false),
        (
            json!({"kty": "oct", "kid": "k", "k": base64url(secret)}),
            &hs256,
            false,
        ),
        (
            json!({"kty": "oct", "kid": "k", "alg": "HS256", "k": base64url(secret)}),
            &hs256,
            false,
        ),
        (
            json!({"kty": "AKP", "kid": "k", "alg": "ML-DSA-44", "pub": "AAAA"}),
            &es256,
            false,
        ),
        (json!("nonsense"), &es256, false),
    ] {
        // One key nobody asks for stands beside it: a set is read key by key.
        let issuer =
            Issuer::start(&[json!({"kty": 7}), jwk.clone(), ec_jwk("other", &ec_key())]).await;
        let judged = issuer.verifier().verify(token, now()).await;
        assert_eq!(judged.is_ok(), accepted, "{jwk}: {judged:?}");
    }
}

#[tokio::test]
async fn an_unknown_id_fetches_again_but_not_all_the_time() {
    let (old, new) = (ec_key(), ec_key());
    let issuer = Issuer::start(&[ec_jwk("old", &old)]).await;
    let verifier = issuer.verifier();
    verifier.warm_up(now()).await.unwrap();
    issuer.serve(&[ec_jwk("new", &new)]);
    let rotated = signed_by(Some("new"), &new);
    assert_eq!(
        refused(&verifier, &rotated, after(29)).await.to_string(),
        "no key with its id \"new\""
    );
    assert_eq!(issuer.requests(), 1);
    assert!(verifier.verify(&rotated, after(30)).await.is_ok());
    assert_eq!(issuer.requests(), 2);
    // The old key went with the old set.
    for _ in 0..5 {
        assert!(matches!(
            refused(&verifier, &signed_by(Some("old"), &old), after(59)).await,
            TokenError::UnknownKey(_)
        ));
    }
    assert_eq!(issuer.requests(), 2);
    let _ = refused(&verifier, &signed_by(Some("old"), &old), after(60)).await;
    assert_eq!(issuer.requests(), 3);
    // A clock that was set back makes nobody wait for it.
    let _ = refused(&verifier, &signed_by(Some("old"), &old), after(-1000)).await;
    assert_eq!(issuer.requests(), 4);
}

#[tokio::test]
async fn many_at_once_fetch_once() {
    let key = ec_key();
    let issuer = Issuer::start(&[ec_jwk("k", &key)]).await;
    let verifier = issuer.verifier();
    let token = signed_by(Some("k"), &key);
    let judged = (0..50).map(|_| {
        let (verifier, token) = (verifier.clone(), token.clone());
        tokio::spawn(async move { verifier.verify(&token, now()).await.is_ok() })
    });
    for outcome in judged.collect::<Vec<_>>() {
        assert!(outcome.await.unwrap());
    }
    assert_eq!(issuer.requests(), 1);
}

#[tokio::test]
async fn a_fetch_survives_the_caller_that_began_it() {
    let key = ec_key();
    let issuer = Issuer::start(&[ec_jwk("k", &key)]).await;
    let verifier = issuer.verifier();
    let token = signed_by(Some("k"), &key);
    {
        let mut first = std::pin::pin!(verifier.verify(&token, now()));
        let polled =
            std::future::poll_fn(|context| std::task::Poll::Ready(first.as_mut().poll(context)))
                .await;
        assert!(polled.is_pending());
    }
    assert!(verifier.verify(&token, now()).await.is_ok());
    assert_eq!(issuer.requests(), 1);
}

/// What a verification returns that must not wait for anything.
fn immediately(verifier: &TokenVerifier, token: &str, at: Timestamp) -> Result<Claims, TokenError> {
    verifier
        .verify(token, at)
        .now_or_never()
        .expect("the verification does not wait for the issuer")
}

#[tokio::test]
async fn an_outdated_set_is_fetched_again() {
    let (kept, withdrawn) = (ec_key(), ec_key());
    let issuer = Issuer::start(&[ec_jwk("kept", &kept), ec_jwk("withdrawn", &withdrawn)]).await;
    let verifier = issuer.verifier();
    verifier.warm_up(now()).await.unwrap();
    issuer.serve(&[ec_jwk("kept", &kept)]);
    let token = signed_by(Some("withdrawn"), &withdrawn);
    verifier.refresh(after(599)).await;
    assert!(verifier.verify(&token, after(599)).await.is_ok());
    assert_eq!(issuer.requests(), 1);
    // As the server does it every 30 s, so that no idle hour keeps a withdrawn key.
    verifier.refresh(after(600)).await;
    assert_eq!(issuer.requests(), 2);
    assert!(matches!(
        immediately(&verifier, &token, after(600)),
        Err(TokenError::UnknownKey(_))
    ));
    assert!(immediately(&verifier, &signed_by(Some("kept"), &kept), after(600)).is_ok());
    assert_eq!(issuer.requests(), 2);
}

#[tokio::test]
async fn a_request_refreshes_an_outdated_set_in_the_background() {
    let (kept, withdrawn) = (ec_key(), ec_key());
    let issuer = Issuer::start(&[ec_jwk("kept", &kept), ec_jwk("withdrawn", &withdrawn)]).await;
    let verifier = issuer.verifier();
    verifier.warm_up(now()).await.unwrap();
    issuer.serve(&[ec_jwk("kept", &kept)]);
    assert!(immediately(&verifier, &signed_by(Some("kept"), &kept), after(600)).is_ok());
    verifier.refresh(after(600)).await; // waits for the fetch that the request started
    assert_eq!(issuer.requests(), 2);
    let token = signed_by(Some("withdrawn"), &withdrawn);
    assert!(matches!(
        immediately(&verifier, &token, after(600)),
        Err(TokenError::UnknownKey(_))
    ));
}

#[tokio::test]
async fn a_known_key_never_waits_for_a_hanging_issuer() {
    let key = ec_key();
    let issuer = Issuer::start(&[ec_jwk("k", &key)]).await;
    let verifier = issuer.verifier();
    verifier.warm_up(now()).await.unwrap();
    issuer.hang(true);
    let token = signed_by(Some("k"), &key);
    for second in [600, 601, 630, 660, 80_000] {
        for _ in 0..10 {
            assert!(
                immediately(&verifier, &token, after(second)).is_ok(),
                "{second}"
            );
        }
        issuer.receives(2).await;
    }
    // Also while other requests wait for unknown keys.
    let unknown = signed_by(Some("unknown"), &ec_key());
    let waiting: Vec<_> = (0..20)
        .map(|_| verifier.verify(&unknown, after(80_001)).now_or_never())
        .collect();
    assert!(
        waiting.iter().all(Option::is_none),
        "a newer set may have the key"
    );
    assert!(immediately(&verifier, &token, after(80_001)).is_ok());
    assert_eq!(issuer.requests(), 2, "one fetch at a time");
}

#[tokio::test]
async fn an_unknown_id_joins_the_fetch_in_the_background() {
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
async fn an_unknown_id_waits_for_a_hanging_issuer_only_once() {
    let issuer = Issuer::start(&[ec_jwk("k", &ec_key())]).await;
    let verifier = issuer.verifier();
    verifier.warm_up(now()).await.unwrap();
    issuer.hang(true);
    let unknown = signed_by(Some("unknown"), &ec_key());
    assert!(matches!(
        refused(&verifier, &unknown, after(30)).await,
        TokenError::UnknownKey(_)
    ));
    assert_eq!(issuer.requests(), 2);
    for second in [30, 45, 59] {
        assert!(
            matches!(
                immediately(&verifier, &unknown, after(second)),
                Err(TokenError::UnknownKey(_))
            ),
            "{second}"
        );
    }
    assert_eq!(issuer.requests(), 2);
    issuer.hang(false);
    let _ = refused(&verifier, &unknown, after(60)).await;
    assert_eq!(issuer.requests(), 3);
}

#[tokio::test]
async fn the_old_set_stays_when_a_fetch_fails() {
    let key = ec_key();
    let issuer = Issuer::start(&[ec_jwk("k", &key)]).await;
    let verifier = issuer.verifier();
    verifier.warm_up(now()).await.unwrap();
    let mut at = 600;
    for (status, headers, body) in [
        ("500 Internal Server Error", "", "{\"keys\":[]}".to_owned()),
        ("204 No Content", "", String::new()),
        (
            "302 Found",
            "location: http://127.0.0.1:1/jwks\r\n",
            "{\"keys\":[]}".to_owned(),
        ),
        ("200 OK", "", "<html>".to_owned()),
        ("200 OK", "", "[]".to_owned()),
        ("200 OK", "", "{\"keys\":{}}".to_owned()),
        (
            "200 OK",
            "",
            format!("{{\"keys\":[],\"filler\":\"{}\"}}", "f".repeat(BODY_MAX)),
        ),
    ] {
        issuer.say(status, headers, &body);
        let before = issuer.requests();
        verifier.refresh(after(at)).await;
        assert!(
            verifier
                .verify(&signed_by(Some("k"), &key), after(at))
                .await
                .is_ok(),
            "{status} {body:.40}"
        );
        verifier.refresh(after(at + 29)).await;
        assert!(
            verifier
                .verify(&signed_by(Some("k"), &key), after(at + 29))
                .await
                .is_ok()
        );
        assert_eq!(issuer.requests(), before + 1, "{status}");
        at += 30;
    }
    // An empty set is a valid response: the issuer withdrew its keys.
    issuer.serve(&[]);
    verifier.refresh(after(at)).await;
    assert!(matches!(
        refused(&verifier, &signed_by(Some("k"), &key), after(at)).await,
        TokenError::UnknownKey(_)
    ));
}

#[tokio::test]
async fn before_the_first_fetch_nobody_can_tell() {
    let key = ec_key();
    let issuer = Issuer::start(&[]).await;
    issuer.say("503 Service Unavailable", "", "");
    let verifier = issuer.verifier();
    let token = signed_by(Some("k"), &key);
    assert_eq!(
        verifier.warm_up(now()).await,
        Err(TokenError::KeysUnavailable)
    );
    let error = refused(&verifier, &token, after(1)).await;
    assert!(error.is_unavailable());
    assert_eq!(issuer.requests(), 1);
    issuer.serve(&[ec_jwk("k", &key)]);
    assert!(verifier.verify(&token, after(30)).await.is_ok());
}

#[tokio::test]
async fn rubbish_costs_no_fetch() {
    let issuer = Issuer::start(&[]).await;
    let verifier = issuer.verifier();
    assert_eq!(
        refused(&verifier, "a.b.c", now()).await,
        TokenError::Malformed
    );
    assert_eq!(
        refused(&verifier, &"a".repeat(9000), now()).await,
        TokenError::TooLarge
    );
    assert_eq!(issuer.requests(), 0);
}

#[test]
fn addresses() {
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
