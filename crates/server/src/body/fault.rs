//! Errors of deserializing a value, without the value and without the names of Rust types.

use std::fmt;

use serde::de;
use tollkey_core::text::nearest;

/// Serde creates it directly, so that no message has to be parsed.
#[derive(Debug)]
pub(super) enum Fault {
    Missing(&'static str),
    /// An unknown field, and the known ones.
    Unknown(String, &'static [&'static str]),
    /// A string that is not one of these values.
    NoVariant(&'static [&'static str]),
    Rule(String),
}

impl Fault {
    fn must_be(expected: &dyn de::Expected) -> Self {
        Self::Rule(format!("must be {}", in_our_words(&expected.to_string())))
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing(_) => f.write_str("is required"),
            Self::Unknown(name, known) => f.write_str(&unknown(name, known)),
            Self::NoVariant([only]) => write!(f, "must be {only}"),
            Self::NoVariant(variants) => write!(f, "must be one of {}", variants.join(", ")),
            Self::Rule(rule) => f.write_str(rule),
        }
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(rule: T) -> Self {
        Self::Rule(rule.to_string())
    }

    fn invalid_type(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::must_be(expected)
    }

    fn invalid_value(_: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::must_be(expected)
    }

    fn invalid_length(_: usize, expected: &dyn de::Expected) -> Self {
        Self::must_be(expected)
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::NoVariant(expected)
    }

    fn unknown_field(name: &str, expected: &'static [&'static str]) -> Self {
        Self::Unknown(name.to_owned(), expected)
    }

    fn missing_field(name: &'static str) -> Self {
        Self::Missing(name)
    }

    fn duplicate_field(_: &'static str) -> Self {
        Self::Rule("must not be repeated".to_owned())
    }
}

fn in_our_words(expected: &str) -> &str {
    match expected {
        "i64" | "u64" | "i32" | "u32" => "a whole number within its range",
        "a sequence" => "an array",
        "a map" => "an object",
        expected if expected.starts_with("struct ") => "an object",
        expected => expected,
    }
}

/// Describes an unknown field, and names the field in this API's case or the most similar field.
pub(super) fn unknown(name: &str, known: &[&str]) -> String {
    let letters = |name: &str| {
        name.chars()
            .filter(|c| !matches!(c, '_' | '-'))
            .flat_map(char::to_lowercase)
            .take(64)
            .collect::<String>()
    };
    let own = letters(name);
    if let Some(known) = known.iter().find(|known| letters(known) == own) {
        return format!("is unknown; use `{known}`");
    }
    match nearest(name, known.iter().copied()) {
        Some(known) => format!("is unknown; did you mean `{known}`?"),
        None => "is unknown".to_owned(),
    }
}
