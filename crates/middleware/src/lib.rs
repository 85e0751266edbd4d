//! Protects an API with Tollkey, whatever its framework.
//!
//! A [`Guard`] subscribes to a server and authorizes requests from its own cache: no network on a cached key, and yet a
//! revoked key is rejected from the moment the revocation is responded to. `tollkey-axum` and `tollkey-actix` pass it their
//! requests and send the responses it makes; neither decides anything. What both share is here, the extractor
//! [`VerifiedKey`] among it, so that a library can serve applications of both.
//!
//! [`Guard::check`] authorizes a request ([`RequestHead`]) by a [`Requirement`]: it gives an [`Admission`] or a [`Rejection`].
#![forbid(unsafe_code)]

#[cfg(feature = "actix")]
mod actix;
mod admission;
#[cfg(feature = "axum")]
mod axum;
mod background;
mod guard;
mod key;
mod merchant;
mod rejection;
mod request;
mod requirement;
pub mod source;
#[cfg(feature = "test-util")]
pub mod testing;

pub use admission::Admission;
pub use guard::{ConnectError, Guard, GuardBuilder, TrustedProxies};
pub use ipnet::IpNet;
pub use key::VerifiedKey;
pub use merchant::Merchant;
pub use rejection::{Rejection, RejectionForm, RejectionResponse};
pub use request::{Headers, RequestHead};
pub use requirement::Requirement;
pub use serde_json;
pub use tollkey_client::{Auth, Client, Error as ClientError, Secret};
pub use tollkey_core::{
    ApiKey, Denial, Family, Grants, Invalid, IpList, Mode, OperatingModel, RateLimit, Scope,
    Timestamp, feature::Feature, metadata::Metadata,
};
pub use tollkey_verifier::{Seq, Stats};
