//! Texts from callers, and external IDs.

use proptest::prelude::*;
use tollkey_core::{AccountId, text};

proptest! {
    #[test]
    fn accepted_text_is_trimmed_displayable_and_short_enough(input: String, max in 1..12_usize) {
        let expected = input.trim();
        let displayable = !input.chars().any(|c| c.is_control() || DIRECTIONS.contains(&c));
        let fits = expected.chars().count() <= max;
        let visible = expected.chars().any(|c| c.is_alphanumeric() || c.is_ascii_graphic());
        // `names_without_a_visible_character_are_rejected` covers the other characters.
        prop_assume!(expected.is_empty() || visible);
        let required = text::required(&input, max).ok();
        prop_assert_eq!(required.as_deref(), (displayable && fits && !expected.is_empty()).then_some(expected));
        let optional = text::optional(Some(&input), max).ok();
        prop_assert_eq!(optional.is_some(), displayable && fits);
        prop_assert_eq!(optional.flatten(), required);
        prop_assert_eq!(text::optional(None, max), Ok(None));
    }

    #[test]
    fn external_id_has_only_allowed_characters(input in prop_oneof![any::<String>(), "[A-Za-z0-9._:@-]{0,130}"]) {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "._:@-".contains(c);
        let expected = !input.is_empty() && input.len() <= 128 && input.chars().all(allowed);
        prop_assert_eq!(text::is_external_id(&input), expected);
        prop_assert_eq!(input.parse::<AccountId>().is_ok(), expected && input != "." && input != "..");
    }
}

/// The characters that embed, override or isolate a writing direction.
const DIRECTIONS: [char; 9] = [
    '\u{202a}', '\u{202b}', '\u{202c}', '\u{202d}', '\u{202e}', '\u{2066}', '\u{2067}', '\u{2068}',
    '\u{2069}',
];

#[test]
fn names_that_change_the_writing_direction_are_rejected() {
    for character in DIRECTIONS {
        for name in [
            format!("a{character}b"),
            format!("{character}ab"),
            character.to_string(),
        ] {
            let rule = "must not contain characters that change the text direction (U+202A to U+202E, U+2066 to U+2069)";
            assert_eq!(
                text::required(&name, 100).unwrap_err().to_string(),
                rule,
                "{character:?}"
            );
            assert_eq!(
                text::optional(Some(&name), 100).unwrap_err().to_string(),
                rule,
                "{character:?}"
            );
            // A search text can have these characters, to find names that were stored before this rule existed.
            assert_eq!(text::search(Some(&name)), Ok(Some(name.clone())));
        }
    }
    // Names in right-to-left scripts do not need these characters.
    for name in [
        "\u{5d7}\u{5e0}\u{5d5}\u{5ea}",
        "\u{645}\u{62a}\u{62c}\u{631} Web 2",
        "a\u{200f}b",
    ] {
        assert_eq!(text::required(name, 100).as_deref(), Ok(name));
    }
}

#[test]
fn names_without_a_visible_character_are_rejected() {
    for name in [
        "\u{200b}",
        "\u{200c}\u{200d}",
        "\u{ad}",
        "\u{34f}",
        "\u{61c}",
        "\u{115f}",
        "\u{1160}",
        "\u{180e}",
        "\u{2060}\u{2064}",
        "\u{2800}",
        "\u{2800} \u{2800}",
        "\u{3164}",
        "\u{ffa0}",
        "\u{fe0f}",
        "\u{feff}",
        "\u{fffb}",
        "\u{e0001}\u{e0061}",
        "\u{e0100}",
    ] {
        for read in [
            text::required(name, 100).map(Some),
            text::optional(Some(name), 100),
        ] {
            assert_eq!(
                read.unwrap_err().to_string(),
                "must contain a visible character",
                "{name:?}"
            );
        }
    }
    for blank in ["", " ", "\u{a0}", "\u{2003}\u{3000}"] {
        assert_eq!(
            text::required(blank, 100).unwrap_err().to_string(),
            "must have 1 to 100 characters",
            "{blank:?}"
        );
        assert_eq!(text::optional(Some(blank), 100), Ok(None), "{blank:?}");
    }
    for controls in ["a\u{0}", "a\u{1b}[2J", "a\u{7f}", "a\u{85}b", "a\u{9b}b"] {
        assert_eq!(
            text::required(controls, 100).unwrap_err().to_string(),
            "must not contain control characters"
        );
    }
}

#[test]
fn joiners_in_names_are_accepted() {
    for name in [
        "\u{1f468}\u{200d}\u{1f469}\u{200d}\u{1f467}",
        "\u{645}\u{6cc}\u{200c}\u{62e}\u{648}\u{627}\u{647}\u{645}",
        "\u{915}\u{94d}\u{200d}\u{937}",
        "\u{2764}\u{fe0f}",
        "\u{1f3f4}\u{e0067}\u{e0062}\u{e007f}",
        "-",
        "\u{301}",
    ] {
        assert_eq!(text::required(name, 100).as_deref(), Ok(name), "{name:?}");
    }
}

#[test]
fn dot_segments_are_rejected_as_account_ids() {
    for id in [".", ".."] {
        let rule = id.parse::<AccountId>().unwrap_err().to_string();
        assert_eq!(
            rule,
            "must not be . or .., because URLs drop these segments"
        );
        assert_eq!(
            AccountId::stored(id).map(|id| id.to_string()).as_deref(),
            Ok(id)
        );
    }
    for id in ["...", ".a", "a.", "..a", "-", "a@b.example"] {
        assert_eq!(
            id.parse::<AccountId>().map(|id| id.to_string()).as_deref(),
            Ok(id)
        );
    }
}

#[test]
fn nearest_name_is_at_most_two_edits_away() {
    let names = [
        "name",
        "scope",
        "scopes",
        "expires_at",
        "allowed_ips",
        "mode",
    ];
    for (name, expected) in [
        ("nmae", Some("name")),
        ("expire_at", Some("expires_at")),
        ("expires_ta", Some("expires_at")),
        ("scops", Some("scope")),
        ("allowedips", Some("allowed_ips")),
        ("mod", Some("mode")),
        ("owner", None),
        ("na", None),
        ("", None),
        (&"n".repeat(1000), None),
    ] {
        assert_eq!(text::nearest(name, names), expected, "{name}");
    }
}
