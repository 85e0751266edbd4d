//! Search fields.

use actix_web::{HttpRequest, HttpResponse};
use tollkey_core::key_text::Kind;

use super::page::whole_window;

/// Whether a text that is looked for has a key in it.
pub(super) fn has_secret(text: &str) -> bool {
    text.split_whitespace().any(|word| Kind::of(word).is_some())
}

/// To the list, where somebody looked for a key by its text: that must not stay in the address bar.
pub(super) fn pasted(request: &HttpRequest, place: &str) -> HttpResponse {
    whole_window(request.headers(), &format!("{place}?done=pasted"))
}
