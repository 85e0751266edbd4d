//! The fields of a form: the submitted values, and their errors.

use std::fmt;

use tollkey_core::{FieldError, Problem, ProblemCode};

use crate::body::Body;

#[derive(Clone, Default)]
pub struct Fields {
    pairs: Vec<(String, String)>,
    errors: Vec<FieldError>,
}

impl Fields {
    pub fn read(body: &Body) -> Result<Self, Problem> {
        Ok(Self {
            pairs: body.pairs()?,
            errors: Vec::new(),
        })
    }

    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.pairs.push((name.to_owned(), value.into()));
        self
    }

    #[must_use]
    pub fn replaced(mut self, name: &str, value: impl Into<String>) -> Self {
        self.pairs.retain(|(field, _)| field != name);
        self.with(name, value)
    }

    /// Returns the trimmed value of a field; an absent field counts as empty.
    #[must_use]
    pub fn get(&self, name: &str) -> &str {
        self.pairs
            .iter()
            .find(|(field, _)| field == name)
            .map_or("", |(_, value)| value.trim())
    }

    #[must_use]
    pub fn filled(&self, name: &str) -> Option<&str> {
        Some(self.get(name)).filter(|value| !value.is_empty())
    }

    pub fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a str> {
        self.pairs
            .iter()
            .filter(move |(field, _)| field == name)
            .map(|(_, value)| value.trim())
    }

    #[must_use]
    pub fn has(&self, name: &str, value: &str) -> bool {
        self.all(name).any(|chosen| chosen == value)
    }

    /// Compared in NFC (Unicode Standard Annex 15), because keyboards can enter the same letter in different ways.
    #[must_use]
    pub fn confirms(&self, field: &str, name: &str) -> bool {
        let nfc = icu_normalizer::ComposingNormalizerBorrowed::new_nfc();
        nfc.normalize(self.get(field)) == nfc.normalize(name)
    }

    /// Returns the entries of a list separated by commas, white space or lines; `None` if it has none.
    #[must_use]
    pub fn list(&self, name: &str) -> Option<Vec<String>> {
        let entries = self
            .get(name)
            .split([',', ' ', '\n', '\r', '\t'])
            .filter(|entry| !entry.is_empty());
        Some(entries.map(str::to_owned).collect::<Vec<_>>()).filter(|entries| !entries.is_empty())
    }

    #[must_use]
    pub fn with_errors(mut self, problem: &Problem) -> Self {
        self.errors.clone_from(&problem.errors);
        if self.errors.is_empty() {
            let pointer = if problem.code == ProblemCode::ApplicationNameTaken {
                "/name"
            } else {
                ""
            };
            let error = FieldError {
                pointer: pointer.to_owned(),
                detail: problem.detail.to_string(),
            };
            self.errors.push(error);
        }
        self
    }

    /// Returns the first error of a field or of an item in it: `/merchants/0` belongs to the field `merchants`.
    #[must_use]
    pub fn error(&self, name: &str) -> Option<&str> {
        self.errors
            .iter()
            .find(|error| field_of(&error.pointer) == name)
            .map(|error| error.detail.as_str())
    }

    /// Returns the errors that belong to none of these fields, whose names are separated by spaces.
    #[must_use]
    pub fn errors_except(&self, names: &str) -> Vec<&str> {
        let is_other = |error: &&FieldError| {
            !names
                .split(' ')
                .any(|name| name == field_of(&error.pointer))
        };
        self.errors
            .iter()
            .filter(is_other)
            .map(|error| error.detail.as_str())
            .collect()
    }

    #[must_use]
    pub fn has_errors(&self) -> bool {
        !self.errors.is_empty()
    }
}

/// Omits the values, because one may be a management token.
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
    fn confirmation_ignores_the_unicode_normalization_form() {
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
