//! The text of a key: `<family>_<mode>_<32 base-62 characters>`.
//!
//! The characters come unbiased from the operating system's generator, 190 bits of them, so a plain SHA-256
//! of the whole text is enough to look a key up and nothing can be computed back from it. The text exists
//! from its making to its one response, in [`KeyText`].

use std::{fmt, str::FromStr};

use rand::{CryptoRng, RngExt as _, distr::Alphanumeric};
use sha2::{Digest as _, Sha256};
use strum::{AsRefStr, Display, EnumString, IntoStaticStr, VariantArray};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::{
    Invalid, hex,
    spelling::{array, unknown_value},
};

/// How many random characters end a key.
pub const RANDOM_LEN: usize = 32;

/// The family of a key: `commerce` (`ck_`), `application` (`ks_`), `secret` (`sk_`) or `publishable` (`pk_`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
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

impl Family {
    /// All families.
    pub const ALL: [Self; Self::VARIANTS.len()] = array(Self::VARIANTS);

    /// What a key of this family starts with: `ck`, `ks`, `sk`, `pk`.
    #[must_use]
    pub fn prefix(self) -> &'static str {
        match self {
            Self::Commerce => "ck",
            Self::Application => "ks",
            Self::Secret => "sk",
            Self::Publishable => "pk",
        }
    }

    /// The spelling that is stored and sent.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// How many of the random characters are shown later, behind family and mode.
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "snake_case")
)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(AsRefStr, Display, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case", parse_err_ty = Invalid, parse_err_fn = unknown_value::<Self>)]
pub enum Mode {
    /// Real payments, real funds.
    #[default]
    Live,
    /// Development and staging.
    Test,
}

impl Mode {
    /// Both modes.
    pub const ALL: [Self; Self::VARIANTS.len()] = array(Self::VARIANTS);

    /// The spelling in keys, in JSON and in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

/// What sort of credential a text is, by its shape alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An API key.
    Key(Family, Mode),
    /// `tks_` + 32: the credential of a resource server, no API key.
    ServiceKey,
}

impl Kind {
    /// Reads the shape of a credential. `None` for everything that was never made here: such a text needs no
    /// look-up to be unknown.
    ///
    /// ```
    /// use tollkey_core::key_text::{Family, Kind, Mode};
    /// let example = format!("ck_test_{}", "a".repeat(32));
    /// assert_eq!(Kind::of(&example), Some(Kind::Key(Family::Commerce, Mode::Test)));
    /// assert_eq!(Kind::of("ck_test_tooshort"), None);
    /// ```
    #[must_use]
    pub fn of(text: &str) -> Option<Self> {
        let (prefix, random) = text
            .as_bytes()
            .split_at_checked(text.len().checked_sub(RANDOM_LEN)?)?;
        // No early end: all 32 are looked at in a few vector instructions.
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
            .find(|it| it.as_str().as_bytes() == mode)?;
        Some(Self::Key(family, mode))
    }

    pub(crate) fn prefix(self) -> String {
        match self {
            Self::Key(family, mode) => format!("{}_{}_", family.prefix(), mode.as_str()),
            Self::ServiceKey => "tks_".to_owned(),
        }
    }
}

/// A presented credential with the form of a key, parsed once. Hidden by `Debug`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ParsedKey<'a> {
    text: &'a str,
    kind: Kind,
}

impl<'a> ParsedKey<'a> {
    /// Reads a presented credential, with or without `secret-token:` (RFC 8959). `None` if it does not have the form of a key.
    #[must_use]
    pub fn parse(presented: &'a str) -> Option<Self> {
        let text = without_scheme(presented);
        Kind::of(text).map(|kind| Self { text, kind })
    }

    /// The kind of the key.
    #[must_use]
    pub fn kind(self) -> Kind {
        self.kind
    }

    /// The hash under which the key is found.
    #[must_use]
    pub fn digest(self) -> Digest {
        Digest::of(self.text)
    }
}

impl fmt::Debug for ParsedKey<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ParsedKey")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// Cuts the optional `secret-token:` of RFC 8959 from a presented credential.
#[must_use]
pub fn without_scheme(presented: &str) -> &str {
    presented.strip_prefix("secret-token:").unwrap_or(presented)
}

/// The whole text of a key: a secret. Hidden by `Debug`, wiped when dropped, shown only by [`KeyText::expose`].
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct KeyText(String);

impl KeyText {
    /// Makes a new credential of that kind.
    pub fn mint(kind: Kind, rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        let mut text = kind.prefix();
        text.reserve_exact(RANDOM_LEN); // so that growing leaves no copy behind
        for _ in 0..RANDOM_LEN {
            text.push(char::from(rng.sample(Alphanumeric)));
        }
        Self(text)
    }

    /// Reads the text of a key that was minted before. `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Kind::of(text).map(|_| Self(text.to_owned()))
    }

    /// The text itself, for the one response that carries it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// What is stored instead.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.0)
    }

    /// What is shown later: family, mode and the family's number of characters.
    #[must_use]
    pub fn shown_prefix(&self) -> String {
        let shown = match Kind::of(&self.0) {
            Some(Kind::Key(family, _)) => family.shown(),
            Some(Kind::ServiceKey) | None => 0,
        };
        self.0[..self.0.len() - RANDOM_LEN + shown].to_owned()
    }

    /// The last four characters, shown later to tell keys apart.
    #[must_use]
    pub fn last4(&self) -> String {
        self.0[self.0.len() - 4..].to_owned()
    }
}

impl fmt::Debug for KeyText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyText(redacted)")
    }
}

/// SHA-256 of the whole text of a credential: how it is stored and found. Hidden by `Debug`, because a leaked
/// digest tells that a guessed key exists.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of a presented text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        Self(Sha256::digest(text.as_bytes()).into())
    }

    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digest with these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Prints it as 64 hexadecimal digits, which [`FromStr`] reads. There is no `Display`, so that no log shows one by
    /// accident.
    pub fn hex(&self) -> impl fmt::Display {
        struct Hex([u8; 32]);
        impl fmt::Display for Hex {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                hex::write(&self.0, f)
            }
        }
        Hex(self.0)
    }
}

impl FromStr for Digest {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        hex::read(text)
            .map(Self)
            .ok_or_else(|| Invalid::new("must be 64 hex digits"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digest(redacted)")
    }
}
