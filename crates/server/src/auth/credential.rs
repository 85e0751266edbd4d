//! Finds the credential in the headers of a request.

use actix_web::http::header::{self, HeaderName};
use tollkey_core::credential::{AUTHORIZATION, Credential, CredentialHeaders, client};

use super::request_parts::RequestParts;

/// [`tollkey_core::credential::HEADERS`] as header names.
static HEADERS: [HeaderName; 3] = [
    header::AUTHORIZATION,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-commerce-api-key"),
];

/// Finds the credential in these headers of a request. The query is never read.
pub fn credential(request: &impl RequestParts, from: CredentialHeaders) -> Credential<'_> {
    Credential::read(values(request, from))
}

/// Finds the credential of a client of introspection in all headers. HTTP Basic without a password counts as absent.
pub(super) fn client_credential(request: &impl RequestParts) -> Credential<'_> {
    let values = values(request, CredentialHeaders::default());
    Credential::read(values.filter(|(name, value)| {
        *name != AUTHORIZATION || !client::is_basic_without_password(value)
    }))
}

/// Returns the values of these headers, each with its name in lower case.
fn values(
    request: &impl RequestParts,
    from: CredentialHeaders,
) -> impl Iterator<Item = (&str, &[u8])> {
    let read = HEADERS
        .iter()
        .enumerate()
        .filter(move |(index, _)| from.has(*index));
    read.flat_map(move |(_, name)| {
        request
            .values(name)
            .map(move |value| (name.as_str(), value))
    })
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
