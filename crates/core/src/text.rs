//! Texts from callers: names, labels, descriptions, reasons and external IDs.

use crate::Invalid;

/// The maximum number of characters in a search text, such as an ID or a part of a name. No name or ID is longer, and
/// databases reject long patterns.
pub const MAX_SEARCH_TEXT: usize = 255;

/// Reads a search text of at most [`MAX_SEARCH_TEXT`] characters after trimming. An empty text becomes `None`.
///
/// # Errors
/// [`Invalid`] if it is longer or has a control character, which PostgreSQL rejects.
pub fn search(text: Option<&str>) -> Result<Option<String>, Invalid> {
    at_most(text.map(without_controls).transpose()?, MAX_SEARCH_TEXT)
}

/// Reads a text of 1 to `max` characters after trimming white space at both ends.
///
/// # Errors
/// [`Invalid`] if it is empty or longer than `max` characters (Unicode scalar values), if it has a control
/// character or one that changes the writing direction, or if it has no visible character.
///
/// ```
/// use tollkey_core::text::required;
/// assert_eq!(required("  Web store ", 100).unwrap(), "Web store");
/// assert_eq!(required("  ", 100).unwrap_err().to_string(), "must have 1 to 100 characters");
/// assert_eq!(required("\u{200b}", 100).unwrap_err().to_string(), "must contain a visible character");
/// ```
pub fn required(text: &str, max: usize) -> Result<String, Invalid> {
    let text = displayable(text)?;
    if text.is_empty() || text.chars().count() > max {
        return Err(Invalid::new(format!("must have 1 to {max} characters")));
    }
    Ok(text.to_owned())
}

/// Reads a text of at most `max` characters after trimming. An empty text becomes `None`.
///
/// # Errors
/// [`Invalid`] as for [`required`], except for the empty text.
pub fn optional(text: Option<&str>, max: usize) -> Result<Option<String>, Invalid> {
    at_most(text.map(displayable).transpose()?, max)
}

fn at_most(text: Option<&str>, max: usize) -> Result<Option<String>, Invalid> {
    match text {
        None | Some("") => Ok(None),
        Some(text) if text.chars().count() > max => {
            Err(Invalid::new(format!("must have at most {max} characters")))
        }
        Some(text) => Ok(Some(text.to_owned())),
    }
}

fn without_controls(text: &str) -> Result<&str, Invalid> {
    let text = text.trim();
    if text.chars().any(char::is_control) {
        return Err(Invalid::new("must not contain control characters"));
    }
    Ok(text)
}

/// Trims a text and checks that it can be displayed: it must not have control characters or characters that
/// change the writing direction, and it must be empty or have a visible character. Joiners are allowed,
/// because some scripts and emoji need them.
fn displayable(text: &str) -> Result<&str, Invalid> {
    let text = without_controls(text)?;
    if text.chars().any(changes_direction) {
        return Err(Invalid::new(
            "must not contain characters that change the text direction (U+202A to U+202E, U+2066 to U+2069)",
        ));
    }
    if !text.is_empty() && !text.chars().any(is_visible) {
        return Err(Invalid::new("must contain a visible character"));
    }
    Ok(text)
}

/// Whether a character embeds, overrides or isolates a writing direction (Unicode Standard Annex #9).
fn changes_direction(character: char) -> bool {
    matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Whether a character is visible. These are not: white space, control characters, default-ignorable code points
/// (joiners, variation selectors, Hangul fillers, tags), annotation and hieroglyph format characters, and the Braille
/// blank.
fn is_visible(character: char) -> bool {
    let invisible = character.is_whitespace()
        || character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{34f}'
                | '\u{61c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{17b4}'..='\u{17b5}'
                | '\u{180b}'..='\u{180f}'
                | '\u{200b}'..='\u{200f}'
                | '\u{202a}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{2800}'
                | '\u{3164}'
                | '\u{fe00}'..='\u{fe0f}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff0}'..='\u{fffb}'
                | '\u{13430}'..='\u{1343f}'
                | '\u{1bca0}'..='\u{1bca3}'
                | '\u{1d173}'..='\u{1d17a}'
                | '\u{e0000}'..='\u{e0fff}'
        );
    !invisible
}

/// Returns the candidate that is nearest to a misspelled name, or `None` if every candidate is more than two
/// edits away. For a candidate with up to four letters, the limit is one edit.
///
/// ```
/// use tollkey_core::text::nearest;
/// assert_eq!(nearest("descripton", ["name", "description"]), Some("description"));
/// assert_eq!(nearest("owner", ["name", "description"]), None);
/// ```
#[must_use]
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// The maximum length of a name: no candidate is longer, and the distance of a very long name is slow to compute.
    const MAX_LENGTH: usize = 64;
    if name.len() > MAX_LENGTH {
        return None;
    }
    let distances = candidates
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate));
    let (distance, candidate) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= if candidate.len() <= 4 { 1 } else { 2 }).then_some(candidate)
}

/// Returns the number of edits between two names: letters that are replaced, removed, added, or swapped with a
/// neighbor.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut rows = vec![(0..=to.len()).collect::<Vec<usize>>()];
    for (i, letter) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, target) in to.iter().enumerate() {
            let replaced = rows[i][j] + usize::from(letter != target);
            let mut least = replaced.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *letter == to[j - 1] && from[i - 1] == *target {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
}

/// Whether `text` is an external ID, such as that of an account or a merchant: `[A-Za-z0-9._:@-]{1,128}`.
#[must_use]
pub fn is_external_id(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b':' | b'@' | b'-'))
}

/// The maximum number of external IDs in one list.
pub const MAX_EXTERNAL_IDS: usize = 100;

/// Reads a list of external IDs (the merchants of a scoped key), in their order and without duplicates.
///
/// # Errors
/// [`Invalid`] for an empty list, for more than [`MAX_EXTERNAL_IDS`] IDs, and for an invalid ID.
pub fn external_ids<'a>(texts: impl IntoIterator<Item = &'a str>) -> Result<Vec<String>, Invalid> {
    let mut external_ids: Vec<String> = Vec::new();
    for text in texts {
        if !is_external_id(text) {
            return Err(Invalid::new(
                "each item must have 1 to 128 characters from A-Z a-z 0-9 . _ : @ -",
            ));
        }
        if !external_ids.iter().any(|known| known == text) {
            external_ids.push(text.to_owned());
        }
        if external_ids.len() > MAX_EXTERNAL_IDS {
            return Err(Invalid::new(format!(
                "must have at most {MAX_EXTERNAL_IDS} items"
            )));
        }
    }
    if external_ids.is_empty() {
        return Err(Invalid::new(
            "must not be empty; on creation, omit the field to set no restriction",
        ));
    }
    Ok(external_ids)
}

/// Returns the external ID in the values of one header, or `None` if the header is absent or empty. For a
/// header that is repeated or not UTF-8, it returns an invalid ID, so that the request is denied.
pub fn external_id_in<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> Option<String> {
    let texts: Vec<&str> = values
        .into_iter()
        .map(|value| std::str::from_utf8(value).unwrap_or("?"))
        .collect();
    match texts.as_slice() {
        [] | [""] => None,
        texts => Some(texts.join(",")),
    }
}
