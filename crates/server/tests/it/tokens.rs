//! Management tokens over HTTP: invalid tokens are rejected, all with the same response. The unit tests of tokens
//! are in `auth::jwt`.

use std::fs;

use aws_lc_rs::{
    encoding::AsDer as _,
    hmac,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};
use tollkey_core::Clock as _;

use crate::{
    assert_response,
    support::{App, SECRET, each_backend, each_backend_with},
};

/// Creates a JWT with this header and these claims. `sign` returns the signature, whatever `alg` is in the header.
fn token(header: &Value, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
    let message = format!("{}.{}", part(header), part(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

fn hs256(secret: &[u8]) -> impl Fn(&[u8]) -> Vec<u8> + use<> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    move |message| hmac::sign(&key, message).as_ref().to_vec()
}

/// Returns valid claims with one claim replaced, or removed if the value is null.
fn claims(app: &App, name: &str, value: Value) -> Value {
    let mut claims =
        json!({"sub": "ann", "account_id": "acme", "exp": app.clock.now().as_second() + 60});
    claims[name] = value;
    claims
        .as_object_mut()
        .unwrap()
        .retain(|_, value| !value.is_null());
    claims
}

#[actix_web::test]
async fn invalid_tokens_are_401_without_a_reason() {
    each_backend(async |app: &App| {
        let now = app.clock.now().as_second();
        let header = json!({"alg": "HS256", "typ": "JWT"});
        let signed = |claims: &Value| token(&header, claims, hs256(SECRET.as_bytes()));
        let good = signed(&claims(app, "x", Value::Null));
        assert_eq!(app.get("/applications").bearer(&good).await.status, 200);
        let (message, signature) = good.rsplit_once('.').unwrap();
        let other = signed(&claims(app, "account_id", json!("globex")));
        let (other_message, _) = other.rsplit_once('.').unwrap();
        let sized = |size: usize| signed(&claims(app, "filler", json!("f".repeat(size))));
        assert_eq!(app.get("/applications").bearer(&sized(5_900)).await.status, 200);
        let bad = [
            ("expired", signed(&claims(app, "exp", json!(now - 30)))),
            ("expired long ago", signed(&claims(app, "exp", json!(0)))),
            ("not yet valid", signed(&claims(app, "nbf", json!(now + 31)))),
            ("no exp", signed(&claims(app, "exp", Value::Null))),
            ("exp as a string", signed(&claims(app, "exp", json!((now + 60).to_string())))),
            ("exp in milliseconds", signed(&claims(app, "exp", json!((now + 60) * 1000)))),
            ("no sub", signed(&claims(app, "sub", Value::Null))),
            ("empty sub", signed(&claims(app, "sub", json!("")))),
            ("another audience", signed(&claims(app, "aud", json!("another")))),
            ("oversized", sized(6_200)),
            ("another secret", token(&header, &claims(app, "x", Value::Null), hs256(&[b'o'; 32]))),
            ("claims of another token", format!("{other_message}.{signature}")),
            ("no signature", format!("{message}.")),
            ("a truncated signature", format!("{message}.{}", &signature[..20])),
            ("alg none", token(&json!({"alg": "none"}), &claims(app, "x", Value::Null), |_| Vec::new())),
            ("alg nOnE", token(&json!({"alg": "nOnE"}), &claims(app, "x", Value::Null), |_| Vec::new())),
            ("no alg", token(&json!({}), &claims(app, "x", Value::Null), hs256(SECRET.as_bytes()))),
            ("another alg", token(&json!({"alg": "HS512"}), &claims(app, "x", Value::Null), hs256(SECRET.as_bytes()))),
            (
                "critical",
                token(
                    &json!({"alg": "HS256", "crit": ["x"], "x": 1}),
                    &claims(app, "x", Value::Null),
                    hs256(SECRET.as_bytes()),
                ),
            ),
            ("no claims", token(&header, &json!(["acme"]), hs256(SECRET.as_bytes()))),
            ("not JSON", format!("{}.{}.{signature}", URL_SAFE_NO_PAD.encode("{ x"), URL_SAFE_NO_PAD.encode("y"))),
        ];
        let mut replies = std::collections::BTreeSet::new();
        for (name, bad) in &bad {
            for path in ["/applications", "/accounts/acme", "/whoami", "/authz/forward-auth"] {
                let reply = app.get(path).bearer(bad).header("x-request-id", "same").await;
                assert_eq!((reply.status, reply.code().as_str()), (401, "invalid_token"), "{name} {path}: {reply}");
                let challenge = reply.header("www-authenticate").unwrap_or_default().to_owned();
                assert!(challenge.contains("error=\"invalid_token\""), "{name}: {challenge}");
                // Gateways get fewer headers, but the same body.
                replies.insert(if path.starts_with("/authz") { reply.body } else { reply.to_string() });
            }
        }
        assert_eq!(replies.len(), 2, "{replies:?}");
        assert_response!(app.get("/applications").bearer("eyEXAMPLE.eyEXAMPLE.EXAMPLE").header("x-request-id", "same").await, @r#"
        401
        cache-control: no-store
        content-type: application/problem+json
        www-authenticate: Bearer realm="tollkey", error="invalid_token", error_description="The management token is invalid or has expired. Get a new token."
        x-content-type-options: nosniff
        x-request-id: same

        {
          "type": "urn:tollkey:problem:invalid_token",
          "title": "The management token is not valid",
          "status": 401,
          "detail": "The management token is invalid or has expired. Get a new token.",
          "code": "invalid_token",
          "request_id": "same"
        }
        "#);
        // A token stays valid for 30 s after its expiration, because clocks may differ.
        let late = signed(&claims(app, "exp", json!(now - 29)));
        assert_eq!(app.get("/applications").bearer(&late).await.status, 200);
        app.clock.advance(std::time::Duration::from_secs(1));
        assert_eq!(app.get("/applications").bearer(&late).await.status, 401);
    })
    .await;
}

#[actix_web::test]
async fn valid_token_without_an_account_is_403() {
    each_backend(async |app: &App| {
        app.application(&app.management_token("acme"), "Web Store")
            .await;
        let signed =
            |claims: &Value| token(&json!({"alg": "HS256"}), claims, hs256(SECRET.as_bytes()));
        for account in [
            Value::Null,
            json!(""),
            json!("a b"),
            json!(7.5),
            json!(["acme"]),
            json!("x".repeat(129)),
            json!("acme\u{0}"),
        ] {
            let reply = app
                .get("/applications")
                .bearer(&signed(&claims(app, "account_id", account.clone())))
                .await;
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (403, "forbidden"),
                "{account}"
            );
            assert!(
                reply.body.contains("its claim `account_id` "),
                "the detail has the claim's name: {reply}"
            );
        }
        // An integer is the account with this number as its ID.
        let reply = app
            .get("/applications")
            .bearer(&signed(&claims(app, "account_id", json!(7))))
            .await;
        assert_eq!(reply.status, 200, "{reply}");
        // Other claims are not used instead.
        let mut other = claims(app, "account_id", Value::Null);
        other["accountId"] = json!("acme");
        other["account"] = json!("acme");
        other["sub"] = json!("acme");
        assert_eq!(
            app.get("/applications")
                .bearer(&signed(&other))
                .await
                .status,
            403
        );
        // Account IDs are case-sensitive and compared exactly.
        for account in ["Acme", "acme.", "acme:1"] {
            let reply = app
                .get("/applications")
                .bearer(&signed(&claims(app, "account_id", json!(account))))
                .await;
            assert_eq!(reply.json()["totalItems"], 0, "{account}");
        }
        // Invalid roles.
        for roles in [
            json!("operators"),
            json!(["OPERATOR"]),
            json!({"operator": true}),
            json!(true),
            json!(["operator", 1]),
        ] {
            let reply = app
                .get("/accounts/acme")
                .bearer(&signed(&claims(app, "roles", roles.clone())))
                .await;
            assert_eq!(
                (reply.status, reply.code().as_str()),
                (403, "forbidden"),
                "{roles}"
            );
        }
        let reply = app
            .get("/accounts/acme")
            .bearer(&signed(&claims(app, "roles", json!("service operator"))))
            .await;
        assert_eq!(reply.status, 200);
    })
    .await;
}

#[actix_web::test]
async fn account_is_read_only_from_the_configured_claim() {
    each_backend_with(
        &[("TOLLKEY_JWT_ACCOUNT_CLAIM", "org")],
        async |app: &App| {
            let signed =
                |claims: &Value| token(&json!({"alg": "HS256"}), claims, hs256(SECRET.as_bytes()));
            app.application(&signed(&claims(app, "org", json!("initech"))), "Web Store")
                .await;
            assert_eq!(
                app.get("/applications")
                    .bearer(&app.management_token("initech"))
                    .await
                    .json()["totalItems"],
                1
            );
            let only_default = signed(&claims(app, "x", Value::Null));
            assert_eq!(
                app.get("/applications").bearer(&only_default).await.code(),
                "forbidden"
            );
        },
    )
    .await;
}

#[actix_web::test]
async fn public_key_requires_its_algorithm_issuer_and_audience() {
    let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let other_key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let der = key.public_key().as_der().unwrap();
    let pem = format!(
        "-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n",
        STANDARD.encode(der.as_ref())
    );
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key.pem");
    fs::write(&path, &pem).unwrap();
    let settings = [
        ("TOLLKEY_JWT_HS256_SECRET", ""),
        ("TOLLKEY_JWT_PUBLIC_KEY_FILE", path.to_str().unwrap()),
        ("TOLLKEY_JWT_ISSUER", "https://issuer.example"),
        ("TOLLKEY_JWT_AUDIENCE", "tollkey"),
    ];
    let es256 = |key: &EcdsaKeyPair, claims: &Value| {
        let sign = |message: &[u8]| {
            key.sign(&SystemRandom::new(), message)
                .unwrap()
                .as_ref()
                .to_vec()
        };
        token(&json!({"alg": "ES256"}), claims, sign)
    };
    let with = |app: &App, name: &str, value: Value| {
        let mut all = claims(app, "iss", json!("https://issuer.example"));
        all["aud"] = json!("tollkey");
        all[name] = value;
        all.as_object_mut()
            .unwrap()
            .retain(|_, value| !value.is_null());
        all
    };
    each_backend_with(&settings, async |app: &App| {
        let good = with(app, "roles", json!(["operator", "service"]));
        let valid = es256(&key, &good);
        assert_eq!(app.get("/applications").bearer(&valid).await.status, 200);
        // Tokens that are verified with a public key have no roles unless `TOLLKEY_JWT_ROLES_CLAIM` is set.
        assert_eq!(app.get("/accounts/acme").bearer(&valid).await.code(), "forbidden");
        assert_eq!(app.get("/applications?account=globex").bearer(&valid).await.code(), "forbidden");
        assert_eq!(app.post("/verify", json!({"key": "x"})).bearer(&valid).await.code(), "forbidden");

        let confused = |secret: &[u8]| token(&json!({"alg": "HS256"}), &good, hs256(secret));
        for (name, bad) in [
            ("another key", es256(&other_key, &good)),
            ("the public key's PEM as a secret", confused(pem.as_bytes())),
            ("the public key's DER as a secret", confused(der.as_ref())),
            ("the public key's point as a secret", confused(key.public_key().as_ref())),
            ("the secret of another server", confused(SECRET.as_bytes())),
            ("alg none", token(&json!({"alg": "none"}), &good, |_| Vec::new())),
            ("a key in the token's header", {
                let header = json!({"alg": "ES256", "jwk": {"kty": "EC"}, "jku": "https://evil.example/keys"});
                token(&header, &good, |message| other_key.sign(&SystemRandom::new(), message).unwrap().as_ref().to_vec())
            }),
            ("no issuer", es256(&key, &with(app, "iss", Value::Null))),
            ("another issuer", es256(&key, &with(app, "iss", json!("https://issuer.example.evil")))),
            ("no audience", es256(&key, &with(app, "aud", Value::Null))),
            ("another audience", es256(&key, &with(app, "aud", json!(["others"])))),
        ] {
            let reply = app.get("/applications").bearer(&bad).await;
            assert_eq!((reply.status, reply.code().as_str()), (401, "invalid_token"), "{name}");
        }
    })
    .await;
    // With `TOLLKEY_JWT_ROLES_CLAIM`.
    let mut settings = settings.to_vec();
    settings.push(("TOLLKEY_JWT_ROLES_CLAIM", "tollkey_roles"));
    each_backend_with(&settings, async |app: &App| {
        let operator = es256(&key, &with(app, "tollkey_roles", json!(["operator"])));
        assert_eq!(
            app.get("/accounts/acme").bearer(&operator).await.status,
            200
        );
        let merchant = es256(&key, &with(app, "roles", json!(["operator"])));
        assert_eq!(
            app.get("/accounts/acme").bearer(&merchant).await.code(),
            "forbidden"
        );
    })
    .await;
}
