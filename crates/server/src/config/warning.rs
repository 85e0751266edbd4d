//! Warnings about settings that are valid, but probably a mistake.

use std::{fmt, path::PathBuf};

use super::unknown::UnknownVariable;

/// A secret with fewer different characters is reported as weak. 32 random hexadecimal digits have fewer in one of
/// 28 million cases.
const DIFFERENT_CHARACTERS_MIN: usize = 8;

/// A warning about a setting that is valid, but probably a mistake. Never shows the value of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Warning {
    Renamed {
        former: &'static str,
        setting: &'static str,
    },
    Unknown(UnknownVariable),
    /// Every user of the machine can read a file that holds a secret.
    ReadableSecret {
        setting: &'static str,
        path: PathBuf,
        mode: u32,
    },
    WeakSecret {
        setting: &'static str,
        reason: &'static str,
    },
    /// A PEM file has the characters `\n` instead of line breaks.
    EscapedLineBreaks {
        setting: &'static str,
    },
}

impl Warning {
    pub fn log(&self) {
        match self {
            Self::Renamed { former, setting } => {
                tracing::warn!(
                    former,
                    setting,
                    "setting was renamed; its former name is accepted in this release only"
                );
            }
            Self::Unknown(UnknownVariable { name, nearest }) => {
                tracing::warn!(
                    variable = name,
                    nearest,
                    "unknown environment variable has no effect"
                );
            }
            Self::ReadableSecret {
                setting,
                path,
                mode,
            } => {
                let (path, mode) = (path.display(), format!("{mode:o}"));
                tracing::warn!(setting, %path, mode, "every user of this machine can read a secret; use chmod 600");
            }
            Self::WeakSecret { setting, reason } => {
                tracing::warn!(
                    setting,
                    reason,
                    "secret can be guessed; create one with `openssl rand -hex 32`"
                );
            }
            Self::EscapedLineBreaks { setting } => {
                tracing::warn!(
                    setting,
                    "PEM file has the characters \\n instead of line breaks; write line breaks"
                );
            }
        }
    }
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Renamed { former, setting } => {
                write!(
                    f,
                    "{former} was renamed to {setting}; the former name is accepted in this release only"
                )
            }
            Self::Unknown(UnknownVariable { name, nearest }) => {
                write!(
                    f,
                    "{name} is an unknown variable and has no effect; did you mean {nearest}?"
                )
            }
            Self::ReadableSecret {
                setting,
                path,
                mode,
            } => write!(
                f,
                "{setting}: every user of this machine can read {} (mode {mode:o}); use chmod 600",
                path.display()
            ),
            Self::WeakSecret { setting, reason } => {
                write!(
                    f,
                    "{setting} {reason} and can be guessed; create one with `openssl rand -hex 32`"
                )
            }
            Self::EscapedLineBreaks { setting } => {
                write!(
                    f,
                    "{setting}: the file has the characters \\n instead of line breaks; write line breaks"
                )
            }
        }
    }
}

/// Returns why a secret is weak, or `None` if it may be random.
pub(super) fn weakness(secret: &str) -> Option<&'static str> {
    // The comparison is quadratic, so only the beginning of a long secret is checked.
    let mut characters: Vec<char> = secret.chars().take(1024).collect();
    let repeats = |period: usize| {
        characters
            .iter()
            .skip(period)
            .zip(&characters)
            .all(|(later, first)| later == first)
    };
    if (1..=characters.len() / 2).any(repeats) {
        return Some(if repeats(1) {
            "is one repeated character"
        } else {
            "is one repeated word"
        });
    }
    characters.sort_unstable();
    characters.dedup();
    (characters.len() < DIFFERENT_CHARACTERS_MIN).then_some("has few different characters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_secret_is_detected_and_random_one_is_not() {
        for (secret, weak) in [
            ("a".repeat(32), Some("is one repeated character")),
            ("0".repeat(64), Some("is one repeated character")),
            ("changeme".repeat(4), Some("is one repeated word")),
            ("ab".repeat(20), Some("is one repeated word")),
            ("changeme-".repeat(4), Some("is one repeated word")),
            (
                format!("{}b", "a".repeat(40)),
                Some("has few different characters"),
            ),
            (
                "0110100110010110100101100110100110".to_owned(),
                Some("has few different characters"),
            ),
            ("0123456789abcdef0123456789abcde9".to_owned(), None),
            ("f3a1c27b9d04e86512fa77c0b9d3e158".to_owned(), None),
            ("correct horse battery staple and more".to_owned(), None),
        ] {
            assert_eq!(weakness(&secret), weak, "{secret}");
        }
    }
}
