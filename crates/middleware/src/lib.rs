#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

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
pub use merchant::MerchantSource;
pub use rejection::{Rejection, RejectionForm, RejectionResponse};
pub use request::{Headers, RequestHead};
pub use requirement::Requirement;
pub use serde_json;
pub use tollkey_client::{Auth, Client, Error as ClientError, Secret};
pub use tollkey_core::{
    ApiKey, Denial, Family, Invalid, IpList, Mode, OperatingModel, RateLimit, Restrictions, Scope,
    Timestamp, feature::Feature, metadata::Metadata,
};
pub use tollkey_verifier::{Seq, Stats};
