//! Finds the credential in the headers of a request.

use actix_web::http::header::{self, HeaderName};
use tollkey_core::credential::{Credential, CredentialHeaders};

use super::RequestParts;

/// [`tollkey_core::credential::HEADERS`] as header names.
static HEADERS: [HeaderName; 3] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-commerce-api-key"),
];

/// Finds the credential in these headers of a request. The query is never read.
pub fn credential(request: &impl RequestParts, from: CredentialHeaders) -> Credential<'_> {
    let read = HEADERS
        .iter()
        .enumerate()
        .filter(|(index, _)| from.has(*index));
    let found = read.flat_map(|(_, name)| request.values(name).map(|value| (name.as_str(), value)));
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
