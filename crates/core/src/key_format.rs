//! Full keys, `<family>_<mode>_<32 base-62 characters>`, and their hashes.
//!
//! The 32 characters have 190 bits of entropy from the operating system's generator. So a plain SHA-256 is enough to
//! store and look up a key, and the key cannot be computed from it. A full key is a [`PlainKey`] until the response to
//! its creation is sent.

use std::{fmt, str::FromStr};

use rand::{CryptoRng, RngExt as _, distr::Alphanumeric};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use strum::{AsRefStr, Display, EnumString, IntoStaticStr, VariantArray};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{
    Invalid, hex,
    spelling::{spelled, unknown_value},
};

/// The number of random characters at the end of a key.
pub const RANDOM_LEN: usize = 32;

/// The family of a key: `commerce` (`ck_`), `application` (`ks_`), `secret` (`sk_`) or `publishable` (`pk_`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(AsRefStr, Display, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case", parse_err_ty = Invalid, parse_err_fn = unknown_value::<Self>)]
pub enum Family {
    /// `ck_`, commerce keys (pepay, crypto-checkout, hellgate).
    Commerce,
    /// `ks_`, keys of applications (kadosei).
    Application,
    /// `sk_`, secret account keys (storlaunch).
    Secret,
    /// `pk_`, publishable account keys (storlaunch).
    Publishable,
}

spelled!(Family, "All families.");

impl Family {
    /// Returns the first two characters of a key of this family: `ck`, `ks`, `sk` or `pk`.
    #[must_use]
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Commerce => "ck",
            Self::Application => "ks",
            Self::Secret => "sk",
            Self::Publishable => "pk",
        }
    }

    /// Returns how many of the random characters [`PlainKey::shown_prefix`] contains.
    #[must_use]
    pub fn shown(self) -> usize {
        match self {
            Self::Commerce => 6,
            Self::Application => 4,
            Self::Secret | Self::Publishable => 0,
        }
    }
}

/// The mode of a key: `live` for real payments, `test` for development.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(AsRefStr, Display, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case", parse_err_ty = Invalid, parse_err_fn = unknown_value::<Self>)]
pub enum Mode {
    /// Real payments.
    #[default]
    Live,
    /// Development and staging.
    Test,
}

spelled!(Mode, "Both modes.");

/// The kind of a credential, which follows from its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CredentialKind {
    /// An API key.
    Key(Family, Mode),
    /// A service key, `tks_` and 32 characters: the credential of a resource server. It is not an API key.
    ServiceKey,
}

impl CredentialKind {
    /// Reads the form of a credential. `None` if no key has this form, so that the text is unknown without a lookup.
    ///
    /// ```
    /// use tollkey_core::key_format::{CredentialKind, Family, Mode};
    /// let example = format!("ck_test_{}", "a".repeat(32));
    /// assert_eq!(CredentialKind::parse(&example), Some(CredentialKind::Key(Family::Commerce, Mode::Test)));
    /// assert_eq!(CredentialKind::parse("ck_test_tooshort"), None);
    /// ```
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (prefix, random) = text
            .as_bytes()
            .split_at_checked(text.len().checked_sub(RANDOM_LEN)?)?;
        // No early exit, so that the compiler can vectorize the loop.
        if !random
            .iter()
            .fold(true, |all, byte| all & byte.is_ascii_alphanumeric())
        {
            return None;
        }
        let prefix = prefix.strip_suffix(b"_")?;
        if prefix == b"tks" {
            return Some(Self::ServiceKey);
        }
        let [first, second, b'_', mode @ ..] = prefix else {
            return None;
        };
        let family = Family::ALL
            .into_iter()
            .find(|family| family.prefix().as_bytes() == [*first, *second])?;
        let mode = Mode::ALL
            .into_iter()
            .find(|known| known.as_str().as_bytes() == mode)?;
        Some(Self::Key(family, mode))
    }

    pub(crate) fn prefix(self) -> String {
        match self {
            Self::Key(family, mode) => format!("{}_{}_", family.prefix(), mode.as_str()),
            Self::ServiceKey => "tks_".to_owned(),
        }
    }
}

/// A presented credential with the form of a key. `Debug` hides it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ParsedKey<'a> {
    text: &'a str,
    kind: CredentialKind,
}

impl<'a> ParsedKey<'a> {
    /// Reads a presented credential, with or without `secret-token:` (RFC 8959). `None` if it does not have the form of
    /// a key.
    #[must_use]
    pub fn parse(presented: &'a str) -> Option<Self> {
        let text = without_scheme(presented);
        CredentialKind::parse(text).map(|kind| Self { text, kind })
    }

    /// The kind of the key.
    #[must_use]
    pub fn kind(self) -> CredentialKind {
        self.kind
    }

    /// Returns the SHA-256 by which the key is looked up.
    #[must_use]
    pub fn digest(self) -> Digest {
        Digest::of_key(self.text)
    }
}

impl fmt::Debug for ParsedKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParsedKey")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// Removes the optional `secret-token:` of RFC 8959 from a presented credential.
#[must_use]
pub fn without_scheme(presented: &str) -> &str {
    presented.strip_prefix("secret-token:").unwrap_or(presented)
}

/// A full key. `Debug` hides it, dropping it wipes it, and only [`PlainKey::expose`] returns it.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct PlainKey(String);

impl PlainKey {
    /// Generates a new key of this kind.
    pub fn generate(kind: CredentialKind, rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        let mut text = kind.prefix();
        text.reserve_exact(RANDOM_LEN); // growing later would leave a copy in memory
        for _ in 0..RANDOM_LEN {
            text.push(char::from(rng.sample(Alphanumeric)));
        }
        Self(text)
    }

    /// Reads a full key. `None` if the text does not have the form of a key.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        CredentialKind::parse(text).map(|_| Self(text.to_owned()))
    }

    /// Returns the key, for the response to its creation.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Returns the SHA-256 of the key, which is stored instead of it.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of_key(&self.0)
    }

    /// Returns the beginning of the key that is shown later: family, mode and [`Family::shown`] random characters.
    #[must_use]
    pub fn shown_prefix(&self) -> String {
        let shown = match CredentialKind::parse(&self.0) {
            Some(CredentialKind::Key(family, _)) => family.shown(),
            Some(CredentialKind::ServiceKey) | None => 0,
        };
        self.0[..self.0.len() - RANDOM_LEN + shown].to_owned()
    }

    /// Returns the last four characters, which are shown later.
    #[must_use]
    pub fn last4(&self) -> String {
        self.0[self.0.len() - 4..].to_owned()
    }
}

impl fmt::Debug for PlainKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PlainKey(redacted)")
    }
}

/// The SHA-256 of a secret, which is stored and looked up instead of it. `Debug` hides it, because a leaked hash
/// confirms a guessed key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Returns the SHA-256 of a text.
    #[must_use]
    pub fn of_key(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Creates the digest with these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the 64 hexadecimal digits that [`FromStr`] reads. The digest itself is not `Display`, so that it does
    /// not get into a log by accident.
    pub fn hex(&self) -> impl fmt::Display {
        fmt::from_fn(|f| hex::write(&self.0, f))
    }
}

impl FromStr for Digest {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        hex::read(text).map(Self)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(redacted)")
    }
}
