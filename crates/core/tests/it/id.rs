//! IDs: 16 bytes with two printed forms, which are both parsed.

use proptest::prelude::*;
use tollkey_core::{ApplicationId, AuditId, KeyId, Timestamp};

use crate::support::rng;

proptest! {
    #[test]
    fn both_forms_of_every_id_are_parsed(bytes: [u8; 16]) {
        let id = KeyId::from_bytes(bytes);
        prop_assert_eq!(id.as_bytes(), &bytes);
        prop_assert_eq!(id.to_string().parse(), Ok(id));
        prop_assert_eq!(id.to_string().to_uppercase().parse(), Ok(id));
        let crockford = id.crockford();
        prop_assert_eq!(crockford.len(), "key_".len() + 26);
        prop_assert_eq!(crockford.parse(), Ok(id));
        prop_assert_eq!(crockford.to_lowercase().parse(), Ok(id));
        prop_assert!(crockford[4..].parse::<KeyId>().is_err(), "the prefix is required");
        prop_assert!(crockford.parse::<ApplicationId>().is_err(), "only keys have that form");
        prop_assert_eq!(ApplicationId::from_bytes(bytes).to_string(), id.to_string());
    }

    /// An ID has no other forms, except for upper and lower case.
    #[test]
    fn only_the_two_forms_of_an_id_are_parsed(text in prop_oneof![
        any::<String>(),
        "(key_)?[0-9A-Za-z]{24,28}",
        "key_[0-9a-tv-zA-TV-Z]{26}",
        "[0-9a-fA-F]{8}-?[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-fg]{12}",
        "key_\\PC{26}",
        "[0-9a-f{}-]{36}",
    ]) {
        if let Ok(id) = text.parse::<KeyId>() {
            let crockford = text.strip_prefix("key_").map(|rest| format!("key_{}", rest.to_ascii_uppercase()));
            prop_assert!(text.to_ascii_lowercase() == id.to_string() || crockford == Some(id.crockford()), "{text:?}");
        }
        let _ = text.parse::<AuditId>();
    }

    #[test]
    fn new_id_is_a_version_7_uuid_with_its_time(millis in 0_i64..253_402_000_000_000, seed: u64) {
        let at = Timestamp::from_millisecond(millis).unwrap();
        let id = KeyId::new(at, &mut rng(seed));
        let bytes = id.as_bytes();
        prop_assert_eq!(bytes[6] >> 4, 7);
        prop_assert_eq!(bytes[8] >> 6, 0b10);
        prop_assert_eq!(bytes[..6].iter().fold(0, |n, &b| n << 8 | i64::from(b)), millis);
        let later = KeyId::new(Timestamp::from_millisecond(millis + 1).unwrap(), &mut rng(seed.wrapping_add(1)));
        prop_assert!(id < later && id.to_string() < later.to_string() && id.crockford() < later.crockford());
    }
}

#[test]
fn clock_before_1970_does_not_panic() {
    let id = KeyId::new(Timestamp::from_second(-5).unwrap(), &mut rng(0));
    assert_eq!(id.as_bytes()[..6], [0; 6]);
}
