use super::*;

const KEY: &str = "8e03978e-40d5-43dd-bc93-6894a57f9324";

fn parsed(text: &str) -> Option<String> {
    IdempotencyKey::parse(text)
        .ok()
        .map(|key| key.0.to_string())
}

#[test]
fn a_key_is_the_same_with_and_without_quotes() {
    assert_eq!(parsed(KEY).as_deref(), Some(KEY));
    assert_eq!(parsed(&format!("\"{KEY}\"")).as_deref(), Some(KEY));
    assert_eq!(
        parsed("sixteen letters!").as_deref(),
        Some("sixteen letters!")
    );
}

#[test]
fn a_key_has_16_to_255_printable_characters() {
    let of = |length: usize| "k".repeat(length);
    for (text, good) in [
        (of(15), false),
        (of(16), true),
        (of(255), true),
        (of(256), false),
        (format!("\"{}\"", of(15)), false),
        (format!("\"{}\"", of(16)), true),
        (format!("\"{}\"", of(255)), true),
        (format!("\"{}\"", of(256)), false),
        (String::new(), false),
        ("\"".to_owned(), false),
        (format!("\"{}", of(20)), false),
        (format!("{}\"", of(20)), false),
        (format!("\"\"{}\"\"", of(20)), false),
        (format!("{}\\", of(20)), false),
        (format!("{}\t", of(20)), false),
        (format!("{}\u{7f}", of(20)), false),
        (format!("{}é", of(20)), false),
    ] {
        assert_eq!(parsed(&text).is_some(), good, "{text:?}");
    }
}

#[test]
fn no_debug_output_holds_a_secret() {
    let text = format!("sk_live_{}", "a".repeat(32));
    let answered = Answered::created(&serde_json::json!({ "value": text })).at("/here".to_owned());
    let said = Said {
        answered: answered.clone(),
        replayed: true,
    };
    let key = IdempotencyKey::parse(KEY).unwrap();
    let sealer = Sealer::new(b"a secret of the server");
    let printed = format!(
        "{key:?} {key:#?} {answered:?} {said:?} {:?} {:?} {sealer:?} {:?}",
        Begun::Replay(Said {
            answered: answered.clone(),
            replayed: false
        }),
        Begun::Fresh(Creating(None)),
        Creating(Some(request().reserve(&sealer).unwrap())),
    );
    for hidden in [KEY, text.as_str(), "aaaa", "a secret", "[1, 1"] {
        assert!(!printed.contains(hidden), "{hidden}: {printed}");
    }
    assert!(
        printed.contains("201") && printed.contains("/here"),
        "{printed}"
    );
}

#[test]
fn parts_of_a_hash_do_not_run_into_each_other() {
    let hashes = [
        hash(&[b"ab", b"c"]),
        hash(&[b"a", b"bc"]),
        hash(&[b"abc"]),
        hash(&[b"abc", b""]),
        hash(&[b"", b"abc"]),
        hash(&[b"a", b"b", b"c"]),
    ];
    let different: HashSet<_> = hashes.iter().collect();
    assert_eq!(different.len(), hashes.len());
}

fn request() -> Repeatable {
    request_with([1; 32], [2; 32], [7; 32])
}

/// A request that came without a server around it.
fn request_with(id: [u8; 32], fingerprint: [u8; 32], key: [u8; 32]) -> Repeatable {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap());
    Repeatable {
        id,
        fingerprint,
        key,
        nonce: [3; NONCE_LEN],
        seals: AtomicU32::new(0),
        now: Timestamp::UNIX_EPOCH,
    }
}

fn answer(text: &str) -> Answered {
    Answered {
        status: 201,
        location: Some("/here".to_owned()),
        body: Secret::new(text),
    }
}

#[test]
fn what_was_sealed_is_opened_in_its_place_and_nowhere_else() {
    let here = request();
    let kept = here.seal(&answer("{\"a\":1}")).unwrap();
    let opened = here.open(&kept).unwrap();
    assert_eq!(
        (
            opened.status,
            opened.location.as_deref(),
            opened.body.expose()
        ),
        (201, Some("/here"), "{\"a\":1}")
    );
    assert!(!kept.sealed.windows(5).any(|window| window == b"\"a\":1"));

    let code = |request: &Repeatable, kept: &KeptAnswer| request.open(kept).unwrap_err().code;
    let other_key = request_with([1; 32], [2; 32], [9; 32]);
    assert_eq!(
        code(&other_key, &kept),
        ProblemCode::IdempotencyReplayUnavailable
    );
    let elsewhere = request_with([9; 32], [2; 32], [7; 32]);
    assert_eq!(
        code(&elsewhere, &kept),
        ProblemCode::IdempotencyReplayUnavailable
    );
    // Another body is told as such; a body's hash that somebody changed in the database opens nothing.
    let other_body = request_with([1; 32], [9; 32], [7; 32]);
    assert_eq!(code(&other_body, &kept), ProblemCode::IdempotencyMismatch);
    let changed = KeptAnswer {
        fingerprint: [9; 32],
        ..kept.clone()
    };
    assert_eq!(
        code(&other_body, &changed),
        ProblemCode::IdempotencyReplayUnavailable
    );
    let again = here.seal(&answer("{\"a\":2}")).unwrap();
    assert_ne!(
        again.sealed[..NONCE_LEN],
        kept.sealed[..NONCE_LEN],
        "no nonce seals twice"
    );
    assert_eq!(here.open(&again).unwrap().body.expose(), "{\"a\":2}");
    for at in 0..kept.sealed.len() {
        let mut changed = kept.clone();
        changed.sealed[at] ^= 1;
        assert_eq!(
            code(&here, &changed),
            ProblemCode::IdempotencyReplayUnavailable,
            "byte {at}"
        );
        changed.sealed.truncate(at);
        assert_eq!(
            code(&here, &changed),
            ProblemCode::IdempotencyReplayUnavailable,
            "{at} bytes"
        );
    }
}

#[test]
fn a_place_is_one_requests_at_a_time_and_free_again_when_that_goes() {
    let sealer = Sealer::new(b"a secret of the server");
    let reservation = request().reserve(&sealer).unwrap();
    assert_eq!(
        request().reserve(&sealer).unwrap_err().code,
        ProblemCode::IdempotencyInProgress
    );
    let elsewhere = request_with([9; 32], [2; 32], [7; 32]).reserve(&sealer);
    assert!(elsewhere.is_ok());
    drop((reservation, elsewhere));
    assert!(sealer.running.lock().unwrap().is_empty());
    assert!(request().reserve(&sealer).is_ok());
}
