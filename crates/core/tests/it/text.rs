//! Texts people give to things, and references to things of theirs.

use proptest::prelude::*;
use tollkey_core::{AccountId, text};

proptest! {
    #[test]
    fn what_is_kept_is_trimmed_printable_and_short_enough(given: String, max in 1..12_usize) {
        let expected = given.trim();
        let printable = !given.chars().any(char::is_control);
        let fits = expected.chars().count() <= max;
        let required = text::required(&given, max).ok();
        prop_assert_eq!(required.as_deref(), (printable && fits && !expected.is_empty()).then_some(expected));
        let optional = text::optional(Some(&given), max).ok();
        prop_assert_eq!(optional.is_some(), printable && fits);
        prop_assert_eq!(optional.flatten(), required);
        prop_assert_eq!(text::optional(None, max), Ok(None));
    }

    #[test]
    fn a_reference_is_safe_in_a_header_and_in_a_path(given in prop_oneof![any::<String>(), "[A-Za-z0-9._:@-]{0,130}"]) {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._:@-".contains(c);
        let expected = !given.is_empty() && given.len() <= 128 && given.chars().all(allowed);
        prop_assert_eq!(text::is_reference(&given), expected);
        prop_assert_eq!(given.parse::<AccountId>().is_ok(), expected);
    }
}
