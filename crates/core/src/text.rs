//! Texts that people give to things: names, labels, descriptions, reasons.

use crate::Invalid;

/// The most characters in a text that a list is filtered by, such as part of a name or an ID. No name and no ID is longer,
/// and databases reject long patterns.
pub const MAX_SEARCH_TEXT: usize = 255;

/// Reads a text that a list is filtered by, as [`optional`] with at most [`MAX_SEARCH_TEXT`] characters.
///
/// # Errors
/// [`Invalid`] when it is longer or has a control character, which PostgreSQL rejects.
pub fn search(text: Option<&str>) -> Result<Option<String>, Invalid> {
    optional(text, MAX_SEARCH_TEXT)
}

/// Reads a text of 1 to `max` characters after trimming white space at both ends.
///
/// # Errors
/// [`Invalid`] when it is empty, longer than `max` characters (Unicode scalar values) or has a control character.
///
/// ```
/// use tollkey_core::text::required;
/// assert_eq!(required("  Web store ", 100).unwrap(), "Web store");
/// assert_eq!(required("  ", 100).unwrap_err().to_string(), "must have 1 to 100 characters");
/// ```
pub fn required(text: &str, max: usize) -> Result<String, Invalid> {
    let text = printable(text)?;
    if text.is_empty() || text.chars().count() > max {
        return Err(Invalid::new(format!("must have 1 to {max} characters")));
    }
    Ok(text.to_owned())
}

/// Reads a text of at most `max` characters; an empty one counts as none.
///
/// # Errors
/// [`Invalid`] as for [`required`], but for the empty text.
pub fn optional(text: Option<&str>, max: usize) -> Result<Option<String>, Invalid> {
    match text.map(printable).transpose()? {
        None | Some("") => Ok(None),
        Some(text) if text.chars().count() > max => Err(Invalid::new(format!("must have at most {max} characters"))),
        Some(text) => Ok(Some(text.to_owned())),
    }
}

fn printable(text: &str) -> Result<&str, Invalid> {
    let text = text.trim();
    if text.chars().any(char::is_control) {
        return Err(Invalid::new("must not have control characters"));
    }
    Ok(text)
}

/// Whether `text` is an identifier of somebody else's making that we keep and compare: an account, a
/// merchant. `[A-Za-z0-9._:@-]{1,128}`.
#[must_use]
pub fn is_reference(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'@' | b'-'))
}

/// The most references in one list.
pub const MAX_REFERENCES: usize = 100;

/// Reads a list of references (the merchants of a scoped key) in the order given, a repeated one once.
///
/// # Errors
/// [`Invalid`] for an empty list, one of more than [`MAX_REFERENCES`], and for what is no reference.
pub fn references<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<String>, Invalid> {
    let mut references: Vec<String> = Vec::new();
    for text in texts {
        if !is_reference(text) {
            return Err(Invalid::new("each must be 1 to 128 characters out of A-Z a-z 0-9 . _ : @ -"));
        }
        if !references.iter().any(|known| known == text) {
            references.push(text.to_owned());
        }
        if references.len() > MAX_REFERENCES {
            return Err(Invalid::new(format!("must have at most {MAX_REFERENCES} items")));
        }
    }
    if references.is_empty() {
        return Err(Invalid::new("must not be empty; leave it out to have no such restriction"));
    }
    Ok(references)
}

/// The reference that stands in the values of one header, none when there is none or it is empty. A repeated or unreadable
/// header reads as something nothing is called, so that it denies.
pub fn reference_in<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Option<String> {
    let texts: Vec<&str> = values.into_iter().map(|value| std::str::from_utf8(value).unwrap_or("?")).collect();
    match texts.as_slice() {
        [] | [""] => None,
        texts => Some(texts.join(",")),
    }
}
