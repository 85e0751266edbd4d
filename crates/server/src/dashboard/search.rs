//! Search fields.

use actix_web::{HttpRequest, HttpResponse};
use tollkey_core::key_format::CredentialKind;

use super::page::redirect_whole_page;

pub(super) fn has_secret(text: &str) -> bool {
    text.split_whitespace()
        .any(|word| CredentialKind::parse(word).is_some())
}

/// Redirects to the list after a search for a full key, which must not stay in the address bar.
pub(super) fn redirect_key_search(request: &HttpRequest, place: &str) -> HttpResponse {
    redirect_whole_page(request.headers(), &format!("{place}?done=pasted"))
}
