//! Finds the credential in the headers of an actix request.

use actix_web::http::header::{self, HeaderMap, HeaderName};
use tollkey_core::credential::{Credential, CredentialHeaders};

/// [`tollkey_core::credential::HEADERS`] as header names.
static HEADERS: [HeaderName; 3] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-commerce-api-key"),
];

/// Finds the credential in these headers. The query is never read.
pub fn credential(headers: &HeaderMap, from: CredentialHeaders) -> Credential<'_> {
    let read = HEADERS
        .iter()
        .enumerate()
        .filter(|(index, _)| from.has(*index));
    let found = read.flat_map(|(_, name)| {
        headers
            .get_all(name)
            .map(|value| (name.as_str(), value.as_bytes()))
    });
    Credential::read(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_those_of_core() {
        assert_eq!(
            HEADERS.each_ref().map(HeaderName::as_str),
            tollkey_core::credential::HEADERS
        );
    }
}
