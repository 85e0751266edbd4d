//! Keys: generation is unbiased, parsing accepts exactly the generated form, and `Debug` shows no secret.

use std::collections::HashSet;

use proptest::prelude::*;
use tollkey_core::{
    Digest, Family, Mode, PlainKey,
    key_format::{CredentialKind, RANDOM_LEN, without_scheme},
};

use crate::support::{one_of, rng};

const SYMBOLS: &[u8; 62] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";

/// The prefix of every kind of credential, as the documents define it.
const KINDS: [(&str, CredentialKind); 9] = [
    (
        "ck_live_",
        CredentialKind::Key(Family::Commerce, Mode::Live),
    ),
    (
        "ck_test_",
        CredentialKind::Key(Family::Commerce, Mode::Test),
    ),
    (
        "ks_live_",
        CredentialKind::Key(Family::Application, Mode::Live),
    ),
    (
        "ks_test_",
        CredentialKind::Key(Family::Application, Mode::Test),
    ),
    ("sk_live_", CredentialKind::Key(Family::Secret, Mode::Live)),
    ("sk_test_", CredentialKind::Key(Family::Secret, Mode::Test)),
    (
        "pk_live_",
        CredentialKind::Key(Family::Publishable, Mode::Live),
    ),
    (
        "pk_test_",
        CredentialKind::Key(Family::Publishable, Mode::Test),
    ),
    ("tks_", CredentialKind::ServiceKey),
];

/// A second implementation of [`CredentialKind::parse`].
fn expected(text: &str) -> Option<CredentialKind> {
    KINDS.into_iter().find_map(|(prefix, kind)| {
        let random = text.strip_prefix(prefix)?;
        (random.len() == 32 && random.bytes().all(|b| SYMBOLS.contains(&b))).then_some(kind)
    })
}

fn generated_key() -> impl Strategy<Value = String> {
    (one_of(KINDS), any::<u64>())
        .prop_map(|((_, kind), seed)| PlainKey::generate(kind, &mut rng(seed)).expose().to_owned())
}

proptest! {
    #[test]
    fn generated_key_is_parsed(seed: u64, (prefix, kind) in one_of(KINDS)) {
        let key = PlainKey::generate(kind, &mut rng(seed));
        let text = key.expose();
        prop_assert_eq!(text.len(), prefix.len() + RANDOM_LEN);
        prop_assert_eq!(RANDOM_LEN, 32);
        prop_assert_eq!(expected(text), Some(kind));
        prop_assert_eq!(CredentialKind::parse(text), Some(kind));
        let shown = match &prefix[..3] { "ck_" => 6, "ks_" => 4, _ => 0 };
        prop_assert_eq!(key.shown_prefix(), &text[..prefix.len() + shown]);
        prop_assert_eq!(key.last4(), &text[text.len() - 4..]);
        prop_assert_eq!(key.digest(), Digest::of_key(text));
        let with_scheme = format!("secret-token:{text}");
        prop_assert_eq!(without_scheme(&with_scheme), text);
        prop_assert_eq!(without_scheme(text), text);
    }

    #[test]
    fn key_without_one_character_is_rejected(text in generated_key(), at: prop::sample::Index) {
        let mut text = text;
        text.remove(at.index(text.len()));
        prop_assert_eq!(CredentialKind::parse(&text), None);
    }

    #[test]
    fn key_with_an_additional_character_is_rejected(text in generated_key(), at: prop::sample::Index, c: char) {
        let mut text = text;
        text.insert(at.index(text.len() + 1), c);
        prop_assert_eq!(CredentialKind::parse(&text), None);
    }

    #[test]
    fn replaced_character_makes_another_key_or_an_invalid_one(text in generated_key(), at: prop::sample::Index, c: char) {
        let mut changed: Vec<char> = text.chars().collect();
        let at = at.index(changed.len());
        changed[at] = c;
        let changed: String = changed.into_iter().collect();
        prop_assert_eq!(CredentialKind::parse(&changed), expected(&changed));
        if !c.is_ascii_alphanumeric() && changed != text {
            prop_assert_eq!(CredentialKind::parse(&changed), None);
        }
    }

    #[test]
    fn arbitrary_text_is_parsed_without_panic(text in prop_oneof![
        any::<String>(), "\\PC{0,80}", "[ckstp_]{0,6}(_|live|test|LIVE){0,3}_[0-9A-Za-z_é]{28,36}",
    ]) {
        prop_assert_eq!(CredentialKind::parse(&text), expected(&text));
        let _ = without_scheme(&text);
        let _ = Digest::of_key(&text);
    }

    #[test]
    fn different_keys_have_different_hashes(a in generated_key(), b in generated_key()) {
        prop_assert_eq!(a == b, Digest::of_key(&a) == Digest::of_key(&b));
    }
}

#[test]
fn debug_output_hides_the_key_and_its_hash() {
    let key = PlainKey::generate(CredentialKind::Key(Family::Secret, Mode::Live), &mut rng(1));
    let hex: String = key
        .digest()
        .as_bytes()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    for shown in [
        format!("{key:?}"),
        format!("{key:#?}"),
        format!("{:?}", Some(&key)),
        format!("{:?}", key.digest()),
        format!("{:#?}", [key.digest()]),
    ] {
        assert!(
            !shown.contains(key.expose()) && !shown.contains(&key.last4()),
            "{shown}"
        );
        assert!(
            !shown.contains(&hex[..8]) && !shown.contains(char::is_numeric),
            "{shown}"
        );
    }
}

/// Pearson's chi-squared statistic of 62 counts for an even distribution, with 61 degrees of freedom.
fn chi_square(counts: [u32; 62]) -> f64 {
    let mean = f64::from(counts.iter().sum::<u32>()) / 62.0;
    counts
        .iter()
        .map(|&count| (f64::from(count) - mean).powi(2) / mean)
        .sum()
}

fn index(symbol: u8) -> usize {
    SYMBOLS
        .iter()
        .position(|&s| s == symbol)
        .expect("one of the 62 symbols")
}

/// Counts of an even distribution exceed this value once in a million.
const BOUND: f64 = 130.0;

#[test]
fn every_symbol_is_equally_likely_at_every_position() {
    let mut rng = rng(2026);
    let mut positions = [[0_u32; 62]; RANDOM_LEN];
    let mut seen = HashSet::new();
    for _ in 0..20_000 {
        let key = PlainKey::generate(CredentialKind::ServiceKey, &mut rng);
        let random = key.expose().strip_prefix("tks_").unwrap().to_owned();
        for (position, symbol) in random.bytes().enumerate() {
            positions[position][index(symbol)] += 1;
        }
        assert!(seen.insert(random), "the same key twice");
    }
    for (position, counts) in positions.into_iter().enumerate() {
        let statistic = chi_square(counts);
        assert!(statistic < BOUND, "position {position}: {statistic}");
    }
    let all: [u32; 62] =
        std::array::from_fn(|symbol| positions.iter().map(|counts| counts[symbol]).sum());
    assert!(chi_square(all) < BOUND, "{}", chi_square(all));
}

/// A common mistake, a byte modulo 62, does not pass the test above.
#[test]
fn chi_squared_test_detects_a_biased_choice() {
    use rand::Rng as _;
    let mut rng = rng(2026);
    let mut counts = [0; 62];
    for _ in 0..20_000 {
        counts[usize::from(rng.next_u32() as u8) % 62] += 1;
    }
    assert!(chi_square(counts) > BOUND, "{}", chi_square(counts));
}

#[test]
fn key_depends_only_on_the_randomness() {
    let kind = CredentialKind::Key(Family::Commerce, Mode::Test);
    let mint = |seed| PlainKey::generate(kind, &mut rng(seed)).expose().to_owned();
    assert_eq!(mint(1), mint(1));
    assert_ne!(mint(1), mint(2));
}
