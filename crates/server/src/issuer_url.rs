//! URLs of token issuers, and of this machine.

use std::{fmt, net::IpAddr, str::FromStr};

use reqwest::Url;
use tollkey_core::Invalid;

/// A [`trusted_url`] of a key set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JwksUrl(Url);

/// Parses a URL that can be trusted: https, or http on this machine only, without a user name or password.
pub fn trusted_url(text: &str) -> Result<Url, Invalid> {
    let url: Url = text.parse().map_err(|_| Invalid::new("must be a URL"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err(Invalid::new("must not have a user name or password"));
    }
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_local(&url) => Ok(url),
        _ => Err(Invalid::new("must be https, or http on this machine")),
    }
}

/// Returns whether a URL leads to this machine.
pub fn is_local(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(is_loopback)
}

impl JwksUrl {
    #[must_use]
    pub fn as_url(&self) -> &Url {
        &self.0
    }
}

impl FromStr for JwksUrl {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        trusted_url(text).map(Self)
    }
}

impl fmt::Display for JwksUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

#[must_use]
pub fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}
