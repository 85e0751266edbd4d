#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod account;
pub mod applications;
pub mod audit;
mod auth;
#[cfg(feature = "blocking")]
mod blocking;
mod builder;
mod client;
pub mod commerce;
mod connections;
mod error;
mod list;
mod members;
pub mod operator;
mod request;
mod retry;
pub mod subscription;
mod transport;
mod url_text;
pub mod verification;

pub use reqwest;
pub use tollkey_api::{
    Open, Secret,
    problem::FieldError,
    time::{Moment, Rfc3339, UnixSeconds},
};
pub use tollkey_core::{
    Denial, Digest, Family, Mode, OperatingModel, Scope, Status, Timestamp, VerifierId,
    audit::{ActorKind, TargetKind},
    feature::Feature,
};

pub use auth::{Auth, BoxError};
pub use builder::ClientBuilder;
pub use client::Client;
pub use error::{Error, ErrorKind};
pub use list::{Listing, Page};
pub use request::Request;
