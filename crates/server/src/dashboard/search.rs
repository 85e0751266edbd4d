//! Search fields.

use actix_web::{HttpRequest, HttpResponse};
use tollkey_core::key_text::Kind;

use super::page::whole_window;

/// Returns whether a search text contains a key.
pub(super) fn has_secret(text: &str) -> bool {
    text.split_whitespace().any(|word| Kind::of(word).is_some())
}

/// Redirects to the list after a search for a full key, which must not stay in the address bar.
pub(super) fn pasted(request: &HttpRequest, place: &str) -> HttpResponse {
    whole_window(request.headers(), &format!("{place}?done=pasted"))
}
