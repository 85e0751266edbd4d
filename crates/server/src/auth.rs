//! Authentication. The extractor in a handler's signature determines which callers it accepts.
//!
//! | extractor | caller |
//! |---|---|
//! | [`ManagementCaller`] | a management token of an account, or an operator's with `?account=` |
//! | [`AccountHolder`] | a [`ManagementCaller`], or an `sk_` key for its own account |
//! | [`Operator`] | a management token with the role `operator` |
//! | [`VerificationCaller`] | a [`Service`], or an `sk_` key for keys of its own account |
//! | [`IntrospectionCaller`] | a [`VerificationCaller`], also with HTTP Basic or in the form |
//! | [`Service`] | a service key, or a management token with the role `service` |
//! | [`PresentedKey`] | an API key of any family, for operations on the key itself |
//!
//! A request with a valid credential of the wrong kind gets 403, one with an invalid credential or without a credential
//! 401, and one with several credentials 400.

mod authenticate;
mod client_ip;
mod credential;
mod extractors;
mod introspection;
pub mod jwks;
pub mod jwt;
pub mod oidc;
pub(crate) mod published;
mod request_parts;
pub mod sign_in_links;

#[cfg(feature = "grpc")]
pub(crate) use self::request_parts::{FORWARDED_FOR, is_forwarding_header};
pub(crate) use self::request_parts::{is_forwarded, values};
pub use self::{
    authenticate::{KeyRateLimit, authorize_presented, not_forwarded, peek_presented},
    client_ip::{client_ip, forwarded_ip},
    extractors::{
        AccountHolder, CallerAuthenticated, ManagementCaller, Operator, PresentedKey, Service,
        VerificationCaller,
    },
    introspection::IntrospectionCaller,
    request_parts::{PeerAddress, RequestParts},
};

/// Names the API in challenges.
pub(crate) const REALM: &str = "tollkey";
