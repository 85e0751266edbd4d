//! Tests of management tokens. The keys are created when the tests run.

use std::{fs, sync::LazyLock};

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    hmac,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
        Ed25519KeyPair, KeyPair as _, RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PSS_SHA256,
        RsaEncoding, RsaKeyPair,
    },
};
use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::json;

use super::*;
use crate::config::PublicKeyFile;

/// One RSA key for all tests, because creating one is slow.
pub(in crate::auth) static RSA: LazyLock<RsaKeyPair> =
    LazyLock::new(|| RsaKeyPair::generate(KeySize::Rsa2048).unwrap());

pub(in crate::auth) fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

pub(in crate::auth) fn secret() -> Secret {
    Secret::new("s".repeat(HS256_SECRET_MIN))
}

pub(in crate::auth) fn rules() -> ClaimRules {
    ClaimRules {
        issuer: None,
        audience: None,
        account_claim: "account_id".to_owned(),
        roles_claim: Some("roles".to_owned()),
    }
}

pub(in crate::auth) fn base64url(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Returns a token of these parts, signed by `sign` whatever `alg` is.
pub(in crate::auth) fn token(
    header: &Value,
    claims: &Value,
    sign: impl FnOnce(&[u8]) -> Vec<u8>,
) -> String {
    let message = format!(
        "{}.{}",
        base64url(header.to_string()),
        base64url(claims.to_string())
    );
    let signature = sign(message.as_bytes());
    format!("{message}.{}", base64url(signature))
}

pub(in crate::auth) fn sign_hs256(secret: &[u8]) -> impl Fn(&[u8]) -> Vec<u8> + use<> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
    move |message| hmac::sign(&key, message).as_ref().to_vec()
}

pub(in crate::auth) fn sign_rsa(padding: &'static dyn RsaEncoding) -> impl Fn(&[u8]) -> Vec<u8> {
    move |message| {
        let mut signature = vec![0; RSA.public_modulus_len()];
        let signed = RSA.sign(padding, &SystemRandom::new(), message, &mut signature);
        signed.unwrap();
        signature
    }
}

pub(in crate::auth) fn sign_ec(key: &EcdsaKeyPair) -> impl Fn(&[u8]) -> Vec<u8> {
    |message| {
        let signature = key.sign(&SystemRandom::new(), message).unwrap();
        signature.as_ref().to_vec()
    }
}

fn pem(label: &str, der: &[u8]) -> Vec<u8> {
    let mut text = STANDARD.encode(der);
    for at in (64..text.len()).step_by(64).rev() {
        text.insert(at, '\n');
    }
    format!("-----BEGIN {label}-----\n{text}\n-----END {label}-----\n").into_bytes()
}

fn public_pem(key: &impl AsDer<PublicKeyX509Der<'static>>) -> Vec<u8> {
    pem("PUBLIC KEY", key.as_der().unwrap().as_ref())
}

fn rsa_pem() -> Vec<u8> {
    public_pem(RSA.public_key())
}

fn rs256() -> String {
    let header = json!({"alg": "RS256"});
    token(&header, &claims(), sign_rsa(&RSA_PKCS1_SHA256))
}

fn claims() -> Value {
    json!({"sub": "ann", "account_id": "acme", "exp": now().as_second() + 60})
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

/// Returns a token of these claims that is signed with [`secret`].
fn hs256(header: &Value, claims: &Value) -> String {
    token(header, claims, sign_hs256(secret().expose().as_bytes()))
}

/// Returns a verifier of tokens that are signed with [`secret`].
fn verifier(rules: ClaimRules) -> TokenVerifier {
    TokenVerifier::hs256(&secret(), rules).unwrap()
}

async fn verified_with(rules: ClaimRules, claims: &Value) -> Result<Claims, TokenError> {
    let token = hs256(&json!({"alg": "HS256", "typ": "JWT"}), claims);
    verifier(rules).verify(&token, now()).await
}

async fn verified(claims: &Value) -> Result<Claims, TokenError> {
    verified_with(rules(), claims).await
}

#[tokio::test]
async fn valid_token_returns_its_claims() {
    let expires_at = Timestamp::from_second(now().as_second() + 60).unwrap();
    let expected = Claims {
        subject: "ann".to_owned(),
        account: Ok("acme".parse().unwrap()),
        roles: vec!["operator".to_owned()],
        expires_at,
    };
    let claims = verified(&with("roles", json!(["operator"]))).await.unwrap();
    assert_eq!(claims, expected);
    assert!(claims.has_role("operator") && !claims.has_role("service"));
}

#[tokio::test]
async fn invalid_claims_are_rejected() {
    let at = now().as_second();
    for (name, value, expected) in [
        ("exp", json!(null), TokenError::Claim("exp")),
        ("exp", json!("1900000000"), TokenError::Claim("exp")),
        ("exp", json!(-1), TokenError::Claim("exp")),
        // Milliseconds: as seconds, they would be thousands of years away.
        ("exp", json!((at + 60) * 1000), TokenError::Claim("exp")),
        ("exp", json!(1e300), TokenError::Claim("exp")),
        ("exp", json!(at - 30), TokenError::Expired),
        ("exp", json!(0), TokenError::Expired),
        ("nbf", json!(at + 31), TokenError::NotYetValid),
        ("nbf", json!("soon"), TokenError::Claim("nbf")),
        ("sub", json!(null), TokenError::Claim("sub")),
        ("sub", json!(""), TokenError::Claim("sub")),
        ("sub", json!(7), TokenError::Claim("sub")),
        ("sub", json!("a\nb"), TokenError::Claim("sub")),
        ("sub", json!("a".repeat(256)), TokenError::Claim("sub")),
        // No audience is configured (RFC 7519, section 4.1.3).
        ("aud", json!("another"), TokenError::Audience),
        ("aud", json!(["another"]), TokenError::Audience),
        ("aud", json!(7), TokenError::Audience),
    ] {
        let error = verified(&with(name, value.clone())).await.unwrap_err();
        assert_eq!(error, expected, "{name} {value}");
    }
}

#[tokio::test]
async fn valid_claims_are_accepted() {
    let at = now().as_second();
    for (name, value) in [
        ("exp", json!(at - 29)),
        ("exp", json!(at as f64 + 60.5)),
        ("nbf", json!(at + 30)),
        ("nbf", json!(null)),
        ("iat", json!(at + 1000)),
        ("iss", json!("any issuer")),
        ("aud", json!(null)),
        ("sub", json!("a".repeat(255))),
    ] {
        let result = verified(&with(name, value.clone())).await;
        assert!(result.is_ok(), "{name} {value}");
    }
}

#[tokio::test]
async fn issuer_and_audience_are_required_when_configured() {
    let rules = ClaimRules {
        issuer: Some("https://i.example".into()),
        audience: Some("tollkey".into()),
        ..rules()
    };
    let own = "https://i.example";
    let invalid = |name| Some(TokenError::Claim(name));
    for (issuer, audience, expected) in [
        (json!(own), json!("tollkey"), None),
        (json!(own), json!(["other", "tollkey"]), None),
        (
            json!("https://i.example/"),
            json!("tollkey"),
            Some(TokenError::Issuer),
        ),
        (json!(own), json!("Tollkey"), Some(TokenError::Audience)),
        (json!(own), json!([]), Some(TokenError::Audience)),
        (json!(own), json!(["tollkey", 7]), invalid("aud")),
        (json!(null), json!("tollkey"), invalid("iss")),
        (json!(own), json!(null), invalid("aud")),
    ] {
        let mut claims = claims();
        claims["iss"] = issuer.clone();
        claims["aud"] = audience.clone();
        let error = verified_with(rules.clone(), &claims).await.err();
        assert_eq!(error, expected, "{issuer} {audience}");
    }
}

#[tokio::test]
async fn account_claim_is_a_string_or_an_integer() {
    for (claim, expected) in [
        (json!("acme"), Ok("acme")),
        (json!(7), Ok("7")),
        (json!(-7), Ok("-7")),
        (json!(0), Ok("0")),
        (json!(u64::MAX), Ok("18446744073709551615")),
        (json!(null), Err(ClaimFault::Missing)),
        (json!(7.5), Err(ClaimFault::Type)),
        (json!(1e300), Err(ClaimFault::Type)),
        (json!(true), Err(ClaimFault::Type)),
        (json!(["acme"]), Err(ClaimFault::Type)),
        (json!({"id": "acme"}), Err(ClaimFault::Type)),
        (json!(""), Err(ClaimFault::Form)),
        (json!("a b"), Err(ClaimFault::Form)),
        (json!("a".repeat(129)), Err(ClaimFault::Form)),
    ] {
        let claims = verified(&with("account_id", claim.clone())).await.unwrap();
        let account = claims.account.as_ref().map(AccountId::as_str);
        assert_eq!(account, expected.as_ref().copied(), "{claim}");
    }
    let rules = ClaimRules {
        account_claim: "org".into(),
        ..rules()
    };
    let read = verified_with(rules.clone(), &claims()).await.unwrap();
    assert_eq!(read.account, Err(ClaimFault::Missing), "no fallback");
    let read = verified_with(rules, &with("org", json!("b")))
        .await
        .unwrap();
    assert_eq!(read.account.unwrap().as_str(), "b");
}

#[test]
fn claim_is_found_by_name_or_path() {
    let claims = json!({
        "account_id": "plain",
        "realm_access": {"roles": ["operator"], "a/b": {"~": "escaped"}, "a.b": "dotted"},
        "https://example.com/account": "url",
        "shop.id": "literal",
        "shop": {"id": "nested", "list": ["first", {"id": "second"}]},
        "/pointer/like": "literal",
        "pointer": {"like": "nested"},
        "": {"": "empty"},
    });
    let claims = claims.as_object().unwrap();
    for (path, expected) in [
        ("account_id", Some(json!("plain"))),
        ("/account_id", Some(json!("plain"))),
        ("/realm_access/roles", Some(json!(["operator"]))),
        ("realm_access.roles", Some(json!(["operator"]))),
        ("/realm_access/roles/0", Some(json!("operator"))),
        ("realm_access.roles.0", None),
        ("/realm_access/a~1b/~0", Some(json!("escaped"))),
        ("/realm_access/a.b", Some(json!("dotted"))),
        ("realm_access.a.b", None),
        ("https://example.com/account", Some(json!("url"))),
        // A claim with this name takes precedence over a path.
        ("shop.id", Some(json!("literal"))),
        ("/shop/id", Some(json!("nested"))),
        ("/shop/list/1/id", Some(json!("second"))),
        ("/pointer/like", Some(json!("literal"))),
        ("pointer.like", Some(json!("nested"))),
        ("//", Some(json!("empty"))),
        ("missing", None),
        ("realm_access.missing", None),
        ("account_id.x", None),
        ("/account_id/x", None),
        ("/", Some(json!({"": "empty"}))),
        (".", Some(json!("empty"))),
    ] {
        assert_eq!(find(claims, path), expected.as_ref(), "{path}");
    }
}

#[tokio::test]
async fn nested_account_and_roles_are_read() {
    let mut claims = with("account", json!({"id": 42}));
    claims["realm_access"] = json!({"roles": ["operator"]});
    for (account, roles) in [
        ("account.id", "realm_access.roles"),
        ("/account/id", "/realm_access/roles"),
    ] {
        let rules = ClaimRules {
            account_claim: account.into(),
            roles_claim: Some(roles.into()),
            ..rules()
        };
        let read = verified_with(rules.clone(), &claims).await.unwrap();
        assert_eq!(read.account.as_ref().map(AccountId::as_str), Ok("42"));
        assert_eq!(read.roles, ["operator"]);
        let token = create_token(&secret(), &rules, &new_token(), now()).unwrap();
        let read = verifier(rules).verify(&token, now()).await.unwrap();
        assert_eq!(read.account.unwrap().as_str(), "acme");
        assert_eq!(read.roles, new_token().roles);
    }
}

#[tokio::test]
async fn issuer_that_is_not_a_string_is_rejected() {
    let configured = ClaimRules {
        issuer: Some("https://i.example".into()),
        ..rules()
    };
    for issuer in [json!(["https://i.example"]), json!([]), json!({}), json!(7)] {
        for rules in [rules(), configured.clone()] {
            let result = verified_with(rules, &with("iss", issuer.clone())).await;
            let error = result.unwrap_err();
            assert!(
                matches!(error, TokenError::Claim("iss") | TokenError::Issuer),
                "{issuer}: {error}"
            );
        }
    }
    let valid = with("iss", json!("https://i.example"));
    assert!(verified_with(configured, &valid).await.is_ok());
}

#[tokio::test]
async fn public_key_on_one_line_is_accepted() {
    let escaped = String::from_utf8(rsa_pem()).unwrap().replace('\n', "\\n");
    for pem in [escaped.clone(), format!("{escaped}\n")] {
        let verifier = TokenVerifier::public_key(pem.as_bytes(), rules()).unwrap();
        assert!(verifier.verify(&rs256(), now()).await.is_ok());
    }
    let with_mark = ["\u{feff}".as_bytes(), &rsa_pem()].concat();
    let error = TokenVerifier::public_key(&with_mark, rules()).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("TOLLKEY_JWT_PUBLIC_KEY_FILE: "), "{text}");
    assert!(text.contains("byte order mark"), "{text}");
}

#[tokio::test]
async fn roles_are_strings_in_an_array_or_in_one_string() {
    for (value, expected) in [
        (json!(["operator", "service"]), vec!["operator", "service"]),
        (json!("operator  service"), vec!["operator", "service"]),
        (json!(["operator service"]), vec!["operator service"]),
        (json!(""), vec![]),
        (json!(["operator", 7]), vec![]),
        (json!({"operator": true}), vec![]),
        (json!(true), vec![]),
        (json!(null), vec![]),
    ] {
        let read = verified(&with("roles", value.clone())).await.unwrap();
        assert_eq!(read.roles, expected, "{value}");
    }
    let off = ClaimRules {
        roles_claim: None,
        ..rules()
    };
    let claims = with("roles", json!(["operator"]));
    let read = verified_with(off, &claims).await.unwrap();
    assert!(read.roles.is_empty());
}

#[tokio::test]
async fn invalid_headers_are_rejected() {
    let verifier = verifier(rules());
    let b64 = json!({"alg": "HS256", "crit": ["b64"], "b64": false});
    for (header, expected) in [
        (json!({"alg": "none"}), TokenError::Malformed),
        (json!({"alg": "None"}), TokenError::Malformed),
        (json!({"alg": ""}), TokenError::Malformed),
        (json!({"typ": "JWT"}), TokenError::Malformed),
        (json!([]), TokenError::Malformed),
        (json!({"alg": "HS512"}), TokenError::Algorithm),
        (json!({"alg": "RS256"}), TokenError::Algorithm),
        (json!({"alg": "ES256"}), TokenError::Algorithm),
        (
            json!({"alg": "HS256", "crit": ["exp"]}),
            TokenError::Critical,
        ),
        (json!({"alg": "HS256", "crit": []}), TokenError::Critical),
        (b64, TokenError::Critical),
    ] {
        let token = hs256(&header, &claims());
        let error = verifier.verify(&token, now()).await.unwrap_err();
        assert_eq!(error, expected, "{header}");
    }
    for (algorithm, expected) in [
        ("none", TokenError::Malformed),
        ("HS256", TokenError::Signature),
    ] {
        let unsigned = token(&json!({"alg": algorithm}), &claims(), |_| Vec::new());
        let error = verifier.verify(&unsigned, now()).await.unwrap_err();
        assert_eq!(error, expected, "{algorithm}");
    }
}

#[tokio::test]
async fn keys_in_the_token_header_are_ignored() {
    let verifier = verifier(rules());
    let embedded_key = [b'x'; 32];
    let embedded = json!({
        "alg": "HS256",
        "jku": "https://evil.example/jwks",
        "x5u": "https://evil.example/x5u",
        "jwk": {"kty": "oct", "k": base64url(embedded_key)},
    });
    let forged = token(&embedded, &claims(), sign_hs256(&embedded_key));
    let error = verifier.verify(&forged, now()).await.unwrap_err();
    assert_eq!(error, TokenError::Signature);
    let valid = hs256(&embedded, &claims());
    assert!(verifier.verify(&valid, now()).await.is_ok());
}

#[tokio::test]
async fn malformed_and_forged_tokens_are_rejected() {
    let verifier = verifier(rules());
    let good = hs256(&json!({"alg": "HS256"}), &claims());
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (header, payload) = message.split_once('.').unwrap();
    let changed = base64url(with("account_id", json!("victim")).to_string());
    for text in [
        String::new(),
        "..".to_owned(),
        "a.b".to_owned(),
        message.to_owned(),
        format!("{good}.x"),
        format!(" {good}"),
        format!("{good}="),
        format!("{header}.{changed}.{signature}"),
        format!("{header}.{payload}."),
        format!("{header}.{payload}.{}", base64url("another")),
        format!("ck_live_{}", "a".repeat(32)),
    ] {
        let error = verifier.verify(&text, now()).await.unwrap_err();
        assert!(
            matches!(error, TokenError::Malformed | TokenError::Signature),
            "{text}: {error}"
        );
    }
    assert!(verifier.verify(&good, now()).await.is_ok());
    let array = hs256(&json!({"alg": "HS256"}), &json!([1]));
    let error = verifier.verify(&array, now()).await.unwrap_err();
    assert_eq!(error, TokenError::Malformed);
}

#[tokio::test]
async fn long_token_is_rejected() {
    let sized = |size: usize| {
        let filler = with("filler", json!("f".repeat(size)));
        hs256(&json!({"alg": "HS256"}), &filler)
    };
    let verifier = verifier(rules());
    assert!(verifier.verify(&sized(5_900), now()).await.is_ok());
    let error = verifier.verify(&sized(6_200), now()).await.unwrap_err();
    assert_eq!(error, TokenError::TooLarge);
}

#[tokio::test]
async fn public_key_accepts_only_its_own_algorithms() {
    let p256 = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
    let p384 = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
    let ed = Ed25519KeyPair::generate().unwrap();
    let (p256_key, p384_key, ed_key) = (p256.public_key(), p384.public_key(), ed.public_key());
    // Each public key as a PEM file and as its bytes.
    let keys = [
        ("RSA", rsa_pem(), RSA.public_key().as_ref()),
        ("P-256", public_pem(p256_key), p256_key.as_ref()),
        ("P-384", public_pem(p384_key), p384_key.as_ref()),
        ("Ed25519", public_pem(ed_key), ed_key.as_ref()),
    ];
    let signed = |algorithm: &str, sign: &dyn Fn(&[u8]) -> Vec<u8>| {
        token(&json!({"alg": algorithm}), &claims(), sign)
    };
    let sign_ed = |message: &[u8]| ed.sign(message).as_ref().to_vec();
    let tokens = [
        ("RSA", signed("RS256", &sign_rsa(&RSA_PKCS1_SHA256))),
        ("RSA", signed("PS256", &sign_rsa(&RSA_PSS_SHA256))),
        ("none", signed("RS384", &sign_rsa(&RSA_PKCS1_SHA384))),
        ("P-256", signed("ES256", &sign_ec(&p256))),
        ("P-384", signed("ES384", &sign_ec(&p384))),
        ("none", signed("ES256", &sign_ec(&p384))),
        ("Ed25519", signed("EdDSA", &sign_ed)),
        ("none", signed("none", &|_| Vec::new())),
    ];
    for (key, pem, bytes) in &keys {
        let verifier = TokenVerifier::public_key(pem, rules()).unwrap();
        for (signer, token) in &tokens {
            let accepted = verifier.verify(token, now()).await.is_ok();
            assert_eq!(accepted, key == signer, "{key}: {token}");
        }
        // Key confusion: an HS256 token signed with the public key as the secret.
        for secret in [pem.as_slice(), bytes] {
            let forged = signed("HS256", &sign_hs256(secret));
            let error = verifier.verify(&forged, now()).await.unwrap_err();
            assert_eq!(error, TokenError::Algorithm, "{key}");
        }
    }
}

#[test]
fn file_without_a_usable_public_key_is_rejected() {
    let private = RSA.as_der().unwrap();
    let weak = base64_weak_rsa();
    for (file, expected) in [
        (pem("PRIVATE KEY", private.as_ref()), "is a private key"),
        (pem("CERTIFICATE", rsa_pem().as_slice()), "is a certificate"),
        (pem("PUBLIC KEY", b"nonsense"), "must hold a public key"),
        (weak, "must hold a public key"),
        (b"nonsense".to_vec(), "must hold a public key"),
        (Vec::new(), "must hold a public key"),
    ] {
        let error = TokenVerifier::public_key(&file, rules()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

/// An RSA public key of 1024 bits (PKCS #1): a sequence of two integers.
fn base64_weak_rsa() -> Vec<u8> {
    let mut der = vec![0x30, 0x81, 0x89, 0x02, 0x81, 0x81, 0x00];
    der.extend([0xc5; 128]);
    der.extend([0x02, 0x03, 0x01, 0x00, 0x01]);
    pem("RSA PUBLIC KEY", &der)
}

#[test]
fn short_secret_is_rejected() {
    let short = Secret::new("s".repeat(31));
    let error = TokenVerifier::hs256(&short, rules()).unwrap_err();
    assert!(matches!(error, KeySetupError::WeakSecret));
}

#[tokio::test]
async fn verifier_uses_the_configured_key_source() {
    let open = |source, development: Option<&Secret>| {
        let claims = rules();
        TokenVerifier::open(&TokenSettings { source, claims }, development)
    };
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("key.pem");
    fs::write(&path, rsa_pem()).unwrap();
    let hs256 = hs256(&json!({"alg": "HS256"}), &claims());

    let verifier = open(TokenSource::Hs256(secret()), None).unwrap();
    assert!(verifier.verify(&hs256, now()).await.is_ok());
    let file = TokenSource::PublicKeyFile(PublicKeyFile::read(path));
    let verifier = open(file, None).unwrap();
    assert!(verifier.verify(&rs256(), now()).await.is_ok());
    assert_eq!(verifier.warm_up(now()).await, Ok(()));
    let verifier = open(TokenSource::Development, Some(&secret())).unwrap();
    assert!(verifier.verify(&hs256, now()).await.is_ok());

    let error = open(TokenSource::Development, None).unwrap_err();
    assert!(matches!(error, KeySetupError::NoSource));
    let missing = TokenSource::PublicKeyFile(PublicKeyFile::read("missing.pem".into()));
    let error = open(missing, None).unwrap_err().to_string();
    let rule = "TOLLKEY_JWT_PUBLIC_KEY_FILE: cannot read the file";
    assert!(error.starts_with(rule), "{error}");
}

fn new_token() -> NewToken {
    NewToken {
        subject: "ann".into(),
        account: Some("acme".parse().unwrap()),
        roles: vec!["operator".into(), "service".into()],
        lifetime: DEFAULT_LIFETIME,
    }
}

#[tokio::test]
async fn created_token_is_accepted_until_it_expires() {
    let rules = ClaimRules {
        issuer: Some("me".into()),
        audience: Some("us".into()),
        ..rules()
    };
    let verifier = verifier(rules.clone());
    let token = create_token(&secret(), &rules, &new_token(), now()).unwrap();
    let claims = verifier.verify(&token, now()).await.unwrap();
    assert_eq!(claims.account.ok(), new_token().account);
    assert_eq!(claims.roles, new_token().roles);
    assert_eq!(claims.expires_at, now() + DEFAULT_LIFETIME);
    let later = claims.expires_at + LEEWAY;
    let error = verifier.verify(&token, later).await.unwrap_err();
    assert_eq!(error, TokenError::Expired);
    let other = TokenVerifier::hs256(&Secret::new("o".repeat(32)), rules).unwrap();
    let error = other.verify(&token, now()).await.unwrap_err();
    assert_eq!(error, TokenError::Signature);
}

#[test]
fn invalid_token_is_not_created() {
    let sub_is_account = ClaimRules {
        account_claim: "sub".into(),
        ..rules()
    };
    let no_roles = ClaimRules {
        roles_claim: None,
        ..rules()
    };
    let error = |rules: &ClaimRules, token: NewToken| {
        create_token(&secret(), rules, &token, now()).unwrap_err()
    };
    let clash = error(&sub_is_account, new_token());
    assert!(matches!(clash, CreateTokenError::Clash));
    let no_claim = error(&no_roles, new_token());
    assert!(matches!(no_claim, CreateTokenError::NoRolesClaim));
    let no_subject = NewToken {
        subject: String::new(),
        ..new_token()
    };
    let refused = error(&rules(), no_subject);
    assert!(matches!(
        refused,
        CreateTokenError::Refused(TokenError::Claim("sub"))
    ));
    for lifetime in [
        SignedDuration::ZERO,
        SignedDuration::from_secs(-5),
        SignedDuration::MAX,
    ] {
        let token = NewToken {
            lifetime,
            ..new_token()
        };
        let error = error(&rules(), token);
        assert!(matches!(error, CreateTokenError::Lifetime));
    }
}

#[test]
fn debug_output_hides_the_secret() {
    let shown = format!("{:?}", verifier(rules()));
    assert!(!shown.contains("sss"), "{shown}");
}
