//! The IDs in the examples of the OpenAPI document.

/// A key, except in the responses of the account surface.
pub(crate) fn key_id() -> &'static str {
    "0198c0de-0000-7000-8000-000000000002"
}

/// The same key in the responses of the account surface.
pub(crate) fn account_key_id() -> &'static str {
    "key_01K30DW000E008000000000002"
}

pub(crate) fn application_id() -> &'static str {
    "0198c0de-0000-7000-8000-000000000001"
}

/// The SHA-256 of `abc`.
pub(crate) fn hash() -> &'static str {
    "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
}

pub(crate) fn request_id() -> &'static str {
    "req_01K30DW000E008000000000001"
}
