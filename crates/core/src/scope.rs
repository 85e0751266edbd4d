//! Scopes, the permissions of a key, and the catalogue of available scopes.
//!
//! A [`Scope`] is a name. A [`Catalogue`] contains all valid scopes, and records which of them `commerce` implies. A
//! [`ScopeSet`] is a bit set, so checking a request is one bitwise operation. A [`ScopeExpression`] is a condition on
//! such a set.

mod expression;

pub use expression::ScopeExpression;

use std::{borrow::Cow, fmt};

use serde::{Deserialize, Serialize};

use crate::{Family, Invalid, heap, text::nearest};

/// The name of a scope, such as `links:read`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Scope(Cow<'static, str>);

impl Scope {
    /// All commerce operations. It implies the nine scopes below; together they do not imply it.
    pub const COMMERCE: Self = Self::built_in("commerce");
    /// List and retrieve payment links.
    pub const LINKS_READ: Self = Self::built_in("links:read");
    /// Create, update, and delete payment links.
    pub const LINKS_WRITE: Self = Self::built_in("links:write");
    /// List and retrieve checkout sessions.
    pub const SESSIONS_READ: Self = Self::built_in("sessions:read");
    /// Create checkout sessions.
    pub const SESSIONS_WRITE: Self = Self::built_in("sessions:write");
    /// List and retrieve webhook endpoints.
    pub const WEBHOOKS_READ: Self = Self::built_in("webhooks:read");
    /// Create and delete webhook endpoints.
    pub const WEBHOOKS_WRITE: Self = Self::built_in("webhooks:write");
    /// List and retrieve events.
    pub const EVENTS_READ: Self = Self::built_in("events:read");
    /// List and retrieve customers.
    pub const CUSTOMERS_READ: Self = Self::built_in("customers:read");
    /// Create and update customers.
    pub const CUSTOMERS_WRITE: Self = Self::built_in("customers:write");

    /// The ten scopes that every catalogue begins with.
    pub const BUILT_IN: [Self; 10] = [
        Self::COMMERCE,
        Self::LINKS_READ,
        Self::LINKS_WRITE,
        Self::SESSIONS_READ,
        Self::SESSIONS_WRITE,
        Self::WEBHOOKS_READ,
        Self::WEBHOOKS_WRITE,
        Self::EVENTS_READ,
        Self::CUSTOMERS_READ,
        Self::CUSTOMERS_WRITE,
    ];

    const fn built_in(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }

    /// Creates a scope without checking that a catalogue contains it, for stored scopes and for clients. For
    /// input, use [`Catalogue::parse`].
    #[must_use]
    pub fn named(name: impl Into<Cow<'static, str>>) -> Self {
        Self(name.into())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Estimates its heap memory in bytes; 0 for a static name.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        match &self.0 {
            Cow::Borrowed(_) => 0,
            Cow::Owned(name) => heap::string(name),
        }
    }

    /// Replaces the name of a built-in scope with a static string, which takes no heap memory, and drops the spare
    /// capacity of other names.
    pub(crate) fn compact(&mut self) {
        if let Some(built_in) = Self::BUILT_IN.into_iter().find(|built_in| built_in == self) {
            *self = built_in;
        } else if let Cow::Owned(name) = &mut self.0 {
            name.shrink_to_fit();
        }
    }
}

/// Does not check that a catalogue contains the scope, like [`Scope::named`].
impl From<&'static str> for Scope {
    fn from(name: &'static str) -> Self {
        Self::named(name)
    }
}
/// Does not check that a catalogue contains the scope, like [`Scope::named`].
impl From<String> for Scope {
    fn from(name: String) -> Self {
        Self::named(name)
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A set of scopes of one [`Catalogue`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScopeSet(u128);

impl ScopeSet {
    /// The empty set.
    pub const EMPTY: Self = Self(0);

    /// Whether every scope of `needed` is in this set.
    #[must_use]
    pub fn contains_all(self, needed: Self) -> bool {
        needed.0 & !self.0 == 0
    }

    /// Returns the scopes of both sets.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns the scopes of this set that are not in the other one.
    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// The available scopes: the ten built-in ones and those that the operator added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Catalogue {
    scopes: Vec<Scope>,
    commerce: ScopeSet,
}

impl Default for Catalogue {
    fn default() -> Self {
        Self {
            scopes: Scope::BUILT_IN.into(),
            commerce: ScopeSet((1 << Scope::BUILT_IN.len()) - 1),
        }
    }
}

impl Catalogue {
    /// The maximum number of scopes.
    pub const MAX: usize = 128;

    /// Adds a scope. `commerce` implies it if `in_commerce` is true.
    ///
    /// # Errors
    /// [`Invalid`] unless the name has 1 to 64 characters from `a-z 0-9 . _ - :` and begins with a letter, if it
    /// already exists, or if the catalogue is full.
    pub fn add(&mut self, name: &str, in_commerce: bool) -> Result<(), Invalid> {
        let well_formed = (1..=64).contains(&name.len())
            && name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.bytes().all(|b| {
                b.is_ascii_lowercase()
                    || b.is_ascii_digit()
                    || matches!(b, b'.' | b'_' | b'-' | b':')
            });
        if !well_formed {
            return Err(Invalid::new(format!(
                "scope {name:?} must have 1 to 64 characters from a-z 0-9 . _ - : and begin with a letter"
            )));
        }
        if self.index(name).is_some() {
            return Err(Invalid::new(format!("scope {name} already exists")));
        }
        if self.scopes.len() == Self::MAX {
            return Err(Invalid::new(format!(
                "at most {} scopes can be added",
                Self::MAX - Scope::BUILT_IN.len()
            )));
        }
        if in_commerce {
            self.commerce.0 |= 1 << self.scopes.len();
        }
        self.scopes.push(Scope::named(name.to_owned()));
        Ok(())
    }

    /// All scopes, the built-in ones first.
    #[must_use]
    pub fn scopes(&self) -> &[Scope] {
        &self.scopes
    }

    /// Returns the scope with this name.
    ///
    /// # Errors
    /// [`Invalid`] for an unknown name. The message lists the valid names.
    pub fn parse(&self, name: &str) -> Result<Scope, Invalid> {
        self.index(name)
            .map(|i| self.scopes[i].clone())
            .ok_or_else(|| self.unknown(name))
    }

    /// Reads a list of scopes, in their order and without duplicates.
    ///
    /// # Errors
    /// [`Invalid`] for an unknown name, and for an empty list, because a key without scopes would be useless.
    pub fn parse_list<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<Vec<Scope>, Invalid> {
        let mut scopes: Vec<Scope> = Vec::new();
        for name in names {
            let scope = self.parse(name)?;
            if !scopes.contains(&scope) {
                scopes.push(scope);
            }
        }
        if scopes.is_empty() {
            return Err(Invalid::new(
                "must not be empty; on creation, omit the field for the default, [\"commerce\"]",
            ));
        }
        Ok(scopes)
    }

    /// Returns the set of the scopes with these names, without the scopes that they imply.
    ///
    /// # Errors
    /// [`Invalid`] for an unknown name.
    pub fn needed<'a>(
        &self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<ScopeSet, Invalid> {
        let mut set = ScopeSet::EMPTY;
        for name in names {
            set.0 |= 1 << self.index(name).ok_or_else(|| self.unknown(name))?;
        }
        Ok(set)
    }

    /// Returns all scopes that a key has. An `sk_` key has every scope, and a `pk_` key has none. Other keys
    /// have their stored scopes and, with `commerce`, those that it implies. A stored scope that is no longer
    /// in the catalogue is ignored.
    #[must_use]
    pub fn expand(&self, family: Family, scopes: &[Scope]) -> ScopeSet {
        match family {
            Family::Secret => ScopeSet(u128::MAX >> (Self::MAX - self.scopes.len())),
            Family::Publishable => ScopeSet::EMPTY,
            Family::Commerce | Family::Application => {
                scopes.iter().fold(ScopeSet::EMPTY, |set, scope| {
                    let own = self
                        .index(scope.as_str())
                        .map_or(ScopeSet::EMPTY, |i| ScopeSet(1 << i));
                    set.union(if *scope == Scope::COMMERCE {
                        self.commerce
                    } else {
                        own
                    })
                })
            }
        }
    }

    /// The scopes of a set, in the catalogue's order.
    pub fn names(&self, set: ScopeSet) -> impl Iterator<Item = &Scope> {
        self.scopes
            .iter()
            .enumerate()
            .filter(move |(i, _)| set.0 & (1 << i) != 0)
            .map(|(_, scope)| scope)
    }

    /// The scopes of a set, separated by spaces (RFC 6749, section 3.3).
    #[must_use]
    pub fn joined(&self, set: ScopeSet) -> String {
        self.names(set)
            .map(Scope::as_str)
            .collect::<Vec<_>>()
            .join(" ")
    }

    fn index(&self, name: &str) -> Option<usize> {
        self.scopes.iter().position(|scope| scope.as_str() == name)
    }

    fn unknown(&self, name: &str) -> Invalid {
        let shown: String = name.chars().take(64).flat_map(char::escape_debug).collect();
        let valid: Vec<&str> = self.scopes.iter().map(Scope::as_str).collect();
        let suggestion = nearest(name, valid.iter().copied())
            .map(|scope| format!("did you mean `{scope}`? "))
            .unwrap_or_default();
        let valid = valid.join(", ");
        Invalid::new(format!(
            "unknown scope `{shown}`; {suggestion}valid scopes are {valid}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scope_is_created_from_a_string() {
        assert_eq!(Scope::from("links:read"), Scope::LINKS_READ);
        assert_eq!(
            Scope::from("orders:read".to_owned()).as_str(),
            "orders:read"
        );
    }

    #[test]
    fn commerce_implies_the_nine_scopes_but_not_the_reverse() {
        let catalogue = Catalogue::default();
        let commerce = catalogue.expand(Family::Commerce, &[Scope::COMMERCE]);
        for scope in &Scope::BUILT_IN {
            assert!(
                commerce.contains_all(catalogue.needed([scope.as_str()]).unwrap()),
                "{scope}"
            );
        }
        let nine = catalogue.expand(Family::Commerce, &Scope::BUILT_IN[1..]);
        assert!(!nine.contains_all(catalogue.needed(["commerce"]).unwrap()));
    }

    #[test]
    fn write_does_not_imply_read() {
        let catalogue = Catalogue::default();
        let write = catalogue.expand(Family::Application, &[Scope::LINKS_WRITE]);
        assert!(!write.contains_all(catalogue.needed(["links:read"]).unwrap()));
    }

    #[test]
    fn commerce_implies_an_added_scope_only_if_configured() {
        let mut catalogue = Catalogue::default();
        catalogue.add("orders:read", true).unwrap();
        catalogue.add("orders:write", false).unwrap();
        let commerce = catalogue.expand(Family::Commerce, &[Scope::COMMERCE]);
        assert!(commerce.contains_all(catalogue.needed(["orders:read"]).unwrap()));
        assert!(!commerce.contains_all(catalogue.needed(["orders:write"]).unwrap()));
    }

    #[test]
    fn secret_key_has_every_scope_and_publishable_key_none() {
        let mut catalogue = Catalogue::default();
        catalogue.add("orders:write", false).unwrap();
        let all = catalogue
            .needed(catalogue.scopes().iter().map(Scope::as_str))
            .unwrap();
        assert_eq!(catalogue.expand(Family::Secret, &[]), all);
        assert!(
            catalogue
                .expand(Family::Publishable, &[Scope::COMMERCE])
                .is_empty()
        );
    }

    #[test]
    fn catalogue_has_at_most_128_scopes() {
        let mut catalogue = Catalogue::default();
        for i in 10..Catalogue::MAX {
            catalogue.add(&format!("s{i}"), i % 2 == 0).unwrap();
        }
        assert!(catalogue.add("one-more", false).is_err());
        let last = catalogue.needed(["s127"]).unwrap();
        assert!(catalogue.expand(Family::Secret, &[]).contains_all(last));
        assert!(
            !catalogue
                .expand(Family::Commerce, &[Scope::COMMERCE])
                .contains_all(last)
        );
    }

    #[test]
    fn unknown_scope_is_named_and_valid_scopes_are_listed() {
        let error = Catalogue::default()
            .parse("link:read")
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "unknown scope `link:read`; did you mean `links:read`? valid scopes are commerce, links:read, links:write, sessions:read, \
             sessions:write, webhooks:read, webhooks:write, events:read, customers:read, customers:write"
        );
    }
}
