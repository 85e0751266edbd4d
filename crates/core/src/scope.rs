//! Scopes: what a key may do, and the catalogue of those that exist.
//!
//! A [`Scope`] is a name; a [`Catalogue`] knows all valid ones and what `commerce` implies; a [`ScopeSet`] is
//! a set of them as bits, so that a check on the hot path is one `&`.

use std::{borrow::Cow, fmt};

use crate::{Family, Invalid, heap, text::nearest};

/// The name of a scope, such as `links:read`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(transparent)
)]
pub struct Scope(Cow<'static, str>);

impl Scope {
    /// Everything commerce: implies the nine below, not the reverse.
    pub const COMMERCE: Self = Self::known("commerce");
    /// List and retrieve payment links.
    pub const LINKS_READ: Self = Self::known("links:read");
    /// Create, update, and delete payment links.
    pub const LINKS_WRITE: Self = Self::known("links:write");
    /// List and retrieve checkout sessions.
    pub const SESSIONS_READ: Self = Self::known("sessions:read");
    /// Create checkout sessions.
    pub const SESSIONS_WRITE: Self = Self::known("sessions:write");
    /// List and retrieve webhook endpoints.
    pub const WEBHOOKS_READ: Self = Self::known("webhooks:read");
    /// Create and delete webhook endpoints.
    pub const WEBHOOKS_WRITE: Self = Self::known("webhooks:write");
    /// List and retrieve events.
    pub const EVENTS_READ: Self = Self::known("events:read");
    /// List and retrieve customers.
    pub const CUSTOMERS_READ: Self = Self::known("customers:read");
    /// Create and update customers.
    pub const CUSTOMERS_WRITE: Self = Self::known("customers:write");

    /// The ten scopes every catalogue begins with.
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

    const fn known(name: &'static str) -> Self {
        Self(Cow::Borrowed(name))
    }

    /// A scope of that name, whether or not a catalogue knows it. For what is read back from the store and for
    /// clients; input goes through [`Catalogue::parse`].
    #[must_use]
    pub fn named(name: impl Into<Cow<'static, str>>) -> Self {
        Self(name.into())
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Estimates the heap it takes, in bytes; none for a name of the program's own.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        match &self.0 {
            Cow::Borrowed(_) => 0,
            Cow::Owned(name) => heap::string(name),
        }
    }

    /// Replaces the name of a built-in scope by the program's own, which takes no memory, and gives up spare capacity.
    pub(crate) fn compact(&mut self) {
        if let Some(known) = Self::BUILT_IN.into_iter().find(|known| known == self) {
            *self = known;
        } else if let Cow::Owned(name) = &mut self.0 {
            name.shrink_to_fit();
        }
    }
}

/// As [`Scope::named`]: whether or not a catalogue knows it.
impl From<&'static str> for Scope {
    fn from(name: &'static str) -> Self {
        Self::named(name)
    }
}
/// As [`Scope::named`]: whether or not a catalogue knows it.
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
    /// No scope at all.
    pub const EMPTY: Self = Self(0);

    /// Whether every scope of `needed` is in this set.
    #[must_use]
    pub fn contains_all(self, needed: Self) -> bool {
        needed.0 & !self.0 == 0
    }

    /// This set and that one.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The scopes of this set that are not in that one.
    #[must_use]
    pub fn without(self, held: Self) -> Self {
        Self(self.0 & !held.0)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// All scopes there are: the ten built-in ones and those the operator added.
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
    /// How many scopes a catalogue can hold.
    pub const MAX: usize = 128;

    /// Adds a scope. `commerce` implies it only when `in_commerce` says so.
    ///
    /// # Errors
    /// [`Invalid`] when the name is not 1 to 64 characters out of `a-z 0-9 . _ - :` beginning with a letter, is
    /// there already, or the catalogue is full.
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
                "must add at most {} scopes",
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

    /// The scope of that name.
    ///
    /// # Errors
    /// [`Invalid`] naming the unknown one and listing the valid ones.
    pub fn parse(&self, name: &str) -> Result<Scope, Invalid> {
        self.index(name)
            .map(|i| self.scopes[i].clone())
            .ok_or_else(|| self.unknown(name))
    }

    /// Reads a list of scopes in the order given, a repeated one once.
    ///
    /// # Errors
    /// [`Invalid`] for an unknown name and for an empty list: a key without any scope could do nothing.
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
                "must not be empty; omit it for the default, [\"commerce\"]",
            ));
        }
        Ok(scopes)
    }

    /// The set of needed scopes of these names, without what they imply.
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

    /// What a key of that family with these scopes satisfies: `sk` every known scope, `pk` none, the others
    /// what they hold and what `commerce` implies. A stored scope the catalogue no longer has grants nothing.
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
        let meant = nearest(name, valid.iter().copied())
            .map(|scope| format!("did you mean `{scope}`? "))
            .unwrap_or_default();
        let valid = valid.join(", ");
        Invalid::new(format!(
            "unknown scope `{shown}`; {meant}valid scopes are {valid}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_taken_for_a_scope() {
        assert_eq!(Scope::from("links:read"), Scope::LINKS_READ);
        assert_eq!(
            Scope::from("orders:read".to_owned()).as_str(),
            "orders:read"
        );
    }

    #[test]
    fn commerce_implies_the_nine_and_not_the_reverse() {
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
    fn an_added_scope_is_implied_only_if_it_says_so() {
        let mut catalogue = Catalogue::default();
        catalogue.add("orders:read", true).unwrap();
        catalogue.add("orders:write", false).unwrap();
        let commerce = catalogue.expand(Family::Commerce, &[Scope::COMMERCE]);
        assert!(commerce.contains_all(catalogue.needed(["orders:read"]).unwrap()));
        assert!(!commerce.contains_all(catalogue.needed(["orders:write"]).unwrap()));
    }

    #[test]
    fn sk_satisfies_every_known_scope_and_pk_none() {
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
    fn a_catalogue_holds_128_scopes_and_no_more() {
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
    fn an_unknown_scope_is_named_and_the_valid_ones_are_listed() {
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
