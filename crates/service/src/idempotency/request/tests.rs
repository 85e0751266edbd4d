use super::{
    super::{BeginOutcome, CreationPermit, Secret, StoredResponse},
    *,
};

const KEY: &str = "8e03978e-40d5-43dd-bc93-6894a57f9324";

fn parsed(text: &str) -> Option<String> {
    IdempotencyKey::parse(text)
        .ok()
        .map(|key| key.0.to_string())
}

#[test]
fn idempotency_key_may_be_quoted() {
    assert_eq!(parsed(KEY).as_deref(), Some(KEY));
    assert_eq!(parsed(&format!("\"{KEY}\"")).as_deref(), Some(KEY));
    assert_eq!(
        parsed("sixteen letters!").as_deref(),
        Some("sixteen letters!")
    );
}

#[test]
fn idempotency_key_has_16_to_255_printable_characters() {
    let letters = |length: usize| "k".repeat(length);
    for (text, is_valid) in [
        (letters(15), false),
        (letters(16), true),
        (letters(255), true),
        (letters(256), false),
        (format!("\"{}\"", letters(15)), false),
        (format!("\"{}\"", letters(16)), true),
        (format!("\"{}\"", letters(255)), true),
        (format!("\"{}\"", letters(256)), false),
        (String::new(), false),
        ("\"".to_owned(), false),
        (format!("\"{}", letters(20)), false),
        (format!("{}\"", letters(20)), false),
        (format!("\"\"{}\"\"", letters(20)), false),
        (format!("{}\\", letters(20)), false),
        (format!("{}\t", letters(20)), false),
        (format!("{}\u{7f}", letters(20)), false),
        (format!("{}é", letters(20)), false),
    ] {
        assert_eq!(parsed(&text).is_some(), is_valid, "{text:?}");
    }
}

#[derive(Debug, PartialEq)]
struct Note(String);

impl Recorded<Self> for Note {
    type Snapshot = String;

    fn snapshot(created: &Self) -> String {
        created.0.clone()
    }

    fn restore(snapshot: String) -> Option<Self> {
        (snapshot != "unreadable").then_some(Self(snapshot))
    }
}

fn open(request: &IdempotentRequest, record: &IdempotencyRecord) -> Result<Outcome<Note>, Problem> {
    request.open(record)
}

fn seal(request: &IdempotentRequest, note: &str) -> IdempotencyRecord {
    request.seal::<Note, Note>(&Note(note.to_owned())).unwrap()
}

#[test]
fn debug_output_contains_no_secret() {
    let text = format!("sk_live_{}", "a".repeat(32));
    let stored = StoredResponse {
        status: 201,
        location: Some("/here".to_owned()),
        body: Secret::new(text.clone()),
    };
    let key = IdempotencyKey::parse(KEY).unwrap();
    let sealer = Sealer::new(b"a secret of the server");
    let printed = format!(
        "{key:?} {key:#?} {sealer:?} {:?} {:?}",
        BeginOutcome::<Note>::Replay(Outcome::ReplayedResponse(stored)),
        CreationPermit::<Note>::new(Some(request().reserve(&sealer).unwrap())),
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
fn hash_depends_on_the_boundaries_of_its_parts() {
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

fn request() -> IdempotentRequest {
    request_with([1; 32], [2; 32], [7; 32])
}

fn request_with(id: [u8; 32], fingerprint: [u8; 32], key: [u8; 32]) -> IdempotentRequest {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &key).unwrap());
    IdempotentRequest {
        id,
        fingerprint,
        key,
        nonce: [3; NONCE_LEN],
        seals: AtomicU32::new(0),
        now: Timestamp::UNIX_EPOCH,
    }
}

#[test]
fn record_opens_only_for_its_own_request() {
    let original = request();
    let record = seal(&original, "a note");
    assert!(
        matches!(open(&original, &record), Ok(Outcome::Replayed(Note(note))) if note == "a note")
    );
    assert!(!record.sealed.windows(6).any(|window| window == b"a note"));

    let code = |request: &IdempotentRequest, record: &IdempotencyRecord| {
        open(request, record).unwrap_err().code
    };
    let unavailable = ProblemCode::IdempotencyReplayUnavailable;
    let other_key = request_with([1; 32], [2; 32], [9; 32]);
    assert_eq!(code(&other_key, &record), unavailable);
    let other_request = request_with([9; 32], [2; 32], [7; 32]);
    assert_eq!(code(&other_request, &record), unavailable);
    // A request with another body has its own problem code. A record whose fingerprint was changed in the
    // database cannot be opened, not even by a request with that fingerprint.
    let other_body = request_with([1; 32], [9; 32], [7; 32]);
    assert_eq!(code(&other_body, &record), ProblemCode::IdempotencyMismatch);
    let changed = IdempotencyRecord {
        fingerprint: [9; 32],
        ..record.clone()
    };
    assert_eq!(code(&other_body, &changed), unavailable);
    let again = seal(&original, "another");
    assert_ne!(
        again.sealed[..NONCE_LEN],
        record.sealed[..NONCE_LEN],
        "each record has its own nonce"
    );
    assert!(
        matches!(open(&original, &again), Ok(Outcome::Replayed(Note(note))) if note == "another")
    );
    for at in 0..record.sealed.len() {
        let mut changed = record.clone();
        changed.sealed[at] ^= 1;
        assert_eq!(code(&original, &changed), unavailable, "byte {at}");
        changed.sealed.truncate(at);
        assert_eq!(code(&original, &changed), unavailable, "{at} bytes");
    }
    assert_eq!(code(&original, &seal(&original, "unreadable")), unavailable);
}

/// Encrypts these bytes as the content of a record, without the format byte that `seal` puts before them.
fn seal_bytes(request: &IdempotentRequest, bytes: &[u8]) -> IdempotencyRecord {
    let mut sealed = bytes.to_vec();
    let nonce = Nonce::assume_unique_for_key(request.nonce);
    let tag = request
        .key
        .seal_in_place_separate_tag(nonce, request.aad(), &mut sealed)
        .unwrap();
    let sealed = [request.nonce.as_slice(), sealed.as_slice(), tag.as_ref()].concat();
    IdempotencyRecord {
        id: request.id,
        fingerprint: request.fingerprint,
        sealed,
        created_at: request.now,
    }
}

#[test]
fn record_of_release_0_1_0_is_replayed_as_a_response() {
    let stored = br#"{"status":201,"location":"/api/v1/api-keys/1","body":"{\"a\":1}"}"#;
    let Ok(Outcome::ReplayedResponse(stored)) = open(&request(), &seal_bytes(&request(), stored))
    else {
        panic!("a stored response");
    };
    assert_eq!(
        (
            stored.status,
            stored.location.as_deref(),
            stored.body.expose()
        ),
        (201, Some("/api/v1/api-keys/1"), r#"{"a":1}"#)
    );
}

#[test]
fn record_in_an_unknown_format_is_not_replayed() {
    for bytes in [
        &b""[..],
        b"\x02\"a note\"",
        b"\x01",
        b"\x01{",
        b"{",
        b"{}",
        b"[]",
    ] {
        let problem = open(&request(), &seal_bytes(&request(), bytes)).unwrap_err();
        assert_eq!(
            problem.code,
            ProblemCode::IdempotencyReplayUnavailable,
            "{bytes:?}"
        );
    }
}

#[test]
fn reservation_is_exclusive_until_it_is_dropped() {
    let sealer = Sealer::new(b"a secret of the server");
    let reservation = request().reserve(&sealer).unwrap();
    assert_eq!(
        request().reserve(&sealer).unwrap_err().code,
        ProblemCode::IdempotencyInProgress
    );
    let other_request = request_with([9; 32], [2; 32], [7; 32]).reserve(&sealer);
    assert!(other_request.is_ok());
    drop((reservation, other_request));
    assert!(sealer.running.lock().unwrap().is_empty());
    assert!(request().reserve(&sealer).is_ok());
}
