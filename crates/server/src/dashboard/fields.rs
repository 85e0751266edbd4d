//! The fields of a form: what was typed, and what is wrong with it.

use std::fmt;

use tollkey_core::{FieldError, Problem, ProblemCode};

use crate::body::Body;

/// What a form brought; empty for one that nobody has filled in yet.
#[derive(Clone, Default)]
pub struct Fields {
    pairs: Vec<(String, String)>,
    errors: Vec<FieldError>,
}

impl Fields {
    /// Reads the body of a form.
    ///
    /// # Errors
    /// 408, 413, 415.
    pub fn read(body: &Body) -> Result<Self, Problem> {
        Ok(Self {
            pairs: body.pairs()?,
            errors: Vec::new(),
        })
    }

    /// With this in a field that nobody has filled in yet.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.pairs.push((name.to_owned(), value.into()));
        self
    }

    /// With this in a field, whatever stood there.
    #[must_use]
    pub fn replaced(mut self, name: &str, value: impl Into<String>) -> Self {
        self.pairs.retain(|(field, _)| field != name);
        self.with(name, value)
    }

    /// What stands in a field; nothing counts as an empty text.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        self.pairs
            .iter()
            .find(|(field, _)| field == name)
            .map_or("", |(_, value)| value.trim())
    }

    /// What stands in a field, unless it is empty.
    #[must_use]
    pub fn filled(&self, name: &str) -> Option<&str> {
        Some(self.get(name)).filter(|value| !value.is_empty())
    }

    /// All values of fields of one name: ticked boxes.
    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.pairs
            .iter()
            .filter(move |(field, _)| field == name)
            .map(|(_, value)| value.trim())
    }

    /// Whether a box was ticked, or an option chosen.
    #[must_use]
    pub fn has(&self, name: &str, value: &str) -> bool {
        self.all(name).any(|chosen| chosen == value)
    }

    /// Whether a name was typed into this field, to confirm what is done to its bearer. Both are compared in NFC (Unicode Standard
    /// Annex #15): keyboards type the same letter in different ways.
    #[must_use]
    pub fn confirms(&self, field: &str, name: &str) -> bool {
        let nfc = icu_normalizer::ComposingNormalizerBorrowed::new_nfc();
        nfc.normalize(self.get(field)) == nfc.normalize(name)
    }

    /// The entries of a list that was typed with commas, spaces or lines between; `None` when there are none.
    #[must_use]
    pub fn list(&self, name: &str) -> Option<Vec<String>> {
        let entries = self
            .get(name)
            .split([',', ' ', '\n', '\r', '\t'])
            .filter(|entry| !entry.is_empty());
        Some(entries.map(str::to_owned).collect::<Vec<_>>()).filter(|entries| !entries.is_empty())
    }

    /// With what is wrong with them.
    #[must_use]
    pub fn refused(mut self, problem: &Problem) -> Self {
        self.errors.clone_from(&problem.errors);
        if self.errors.is_empty() {
            let about = if problem.code == ProblemCode::ApplicationNameTaken {
                "/name"
            } else {
                ""
            };
            let error = FieldError {
                pointer: about.to_owned(),
                detail: problem.detail.to_string(),
            };
            self.errors.push(error);
        }
        self
    }

    /// What is wrong with a field. Rules name members by pointers: `/merchants/0` is about the field `merchants`.
    #[must_use]
    pub fn error(&self, name: &str) -> Option<&str> {
        self.errors
            .iter()
            .find(|error| field_of(&error.pointer) == name)
            .map(|error| error.detail.as_str())
    }

    /// What is wrong, and with none of the fields that say so themselves: their names, with spaces between.
    #[must_use]
    pub fn errors_beside(&self, names: &str) -> Vec<&str> {
        let beside = |error: &&FieldError| {
            !names
                .split(' ')
                .any(|name| name == field_of(&error.pointer))
        };
        self.errors
            .iter()
            .filter(beside)
            .map(|error| error.detail.as_str())
            .collect()
    }

    /// Whether anything is wrong.
    #[must_use]
    pub fn is_refused(&self) -> bool {
        !self.errors.is_empty()
    }
}

/// Not what was typed: that may be a management token.
impl fmt::Debug for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fields")
            .field("errors", &self.errors)
            .finish_non_exhaustive()
    }
}

fn field_of(pointer: &str) -> &str {
    pointer
        .trim_start_matches('/')
        .split('/')
        .next()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confirmations_compare_in_normalization_form_c() {
        let typed = |text: &str| Fields::default().with("confirm", text);
        // U+00E9, and U+0065 with U+0301.
        for (own, text) in [
            ("caf\u{e9}", "cafe\u{301}"),
            ("cafe\u{301}", " caf\u{e9} "),
            ("\u{ac00}", "\u{1100}\u{1161}"),
        ] {
            assert!(typed(text).confirms("confirm", own), "{own} {text}");
        }
        for (own, text) in [
            ("caf\u{e9}", "cafe"),
            ("a", "A"),
            ("\u{fb01}", "fi"),
            ("a", ""),
        ] {
            assert!(!typed(text).confirms("confirm", own), "{own} {text}");
        }
    }
}
