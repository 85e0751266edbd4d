//! What a value must look like. Each rule reads text and says what is wrong with it.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    str::FromStr,
};

use tollkey_core::{Invalid, IpList, ceiling::DepthLimit};
use tracing_subscriber::EnvFilter;

use super::LogFormat;
use crate::{caller::jwks::trusted_url, public_path::PublicPath};

/// Headers that already say something else; a merchant named in one of them would be nonsense or a leak.
const TAKEN_HEADERS: [&str; 16] = [
    "x-forwarded-method",
    "x-forwarded-uri",
    "x-original-method",
    "x-original-uri",
    "transfer-encoding",
    "content-length",
    "connection",
    "authorization",
    "x-api-key",
    "x-commerce-api-key",
    "cookie",
    "host",
    "forwarded",
    "x-forwarded-for",
    "x-request-id",
    "content-length",
];

pub(super) fn number<T: FromStr + PartialOrd + fmt::Display>(text: &str, least: T, most: T) -> Result<T, Invalid> {
    match text.parse() {
        Ok(number) if (&least..=&most).contains(&&number) => Ok(number),
        _ => Err(Invalid::new(format!("must be a whole number from {least} to {most}"))),
    }
}

pub(super) fn key_depth_limit(text: &str) -> Result<DepthLimit, Invalid> {
    DepthLimit::new(number(text, 0, DepthLimit::MAX)?)
}

pub(super) fn switch(text: &str) -> Result<bool, Invalid> {
    text.parse().map_err(|_| Invalid::new("must be true or false"))
}

pub(super) fn socket_address(text: &str) -> Result<SocketAddr, Invalid> {
    if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse().ok()) {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    text.parse().map_err(|_| Invalid::new("must be an address and a port, such as 127.0.0.1:8080 or [::]:8080"))
}

pub(super) fn list(text: &str) -> Result<Vec<&str>, Invalid> {
    let entries: Vec<&str> = text.split(',').map(str::trim).collect();
    if entries.contains(&"") {
        return Err(Invalid::new("must not have an empty entry"));
    }
    Ok(entries)
}

pub(super) fn trusted_proxies(text: &str) -> Result<Option<IpList>, Invalid> {
    match text {
        "none" => Ok(None),
        _ => IpList::parse(list(text)?).map(Some),
    }
}

pub(super) fn header_name(text: &str) -> Result<String, Invalid> {
    // RFC 9110, section 5.6.2: a token.
    let well_formed =
        text.len() <= 64 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
    let name = text.to_ascii_lowercase();
    if !well_formed {
        return Err(Invalid::new("must be the name of a header"));
    }
    if TAKEN_HEADERS.contains(&name.as_str()) || name.starts_with("x-auth-") {
        return Err(Invalid::new(format!("must be a header of its own; {name} already says something else")));
    }
    Ok(name)
}

pub(super) fn log_filter(text: &str) -> Result<String, Invalid> {
    match EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(error) => Err(Invalid::new(format!("must be log directives: {error}"))),
    }
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, Invalid> {
    match text {
        "pretty" => Ok(LogFormat::Pretty),
        "json" => Ok(LogFormat::Json),
        _ => Err(Invalid::new("must be pretty or json")),
    }
}

pub(super) fn text(text: &str) -> Result<String, Invalid> {
    Ok(text.to_owned())
}

/// OpenID Connect Discovery 1.0, section 3. Kept as it is written: `iss` has to be the same text.
pub(super) fn issuer(text: &str) -> Result<String, Invalid> {
    let url = trusted_url(text)?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Invalid::new("must not have a query or fragment"));
    }
    Ok(text.to_owned())
}

/// The origin, and the path prefix, if there is one. The path is read as it is written: a URL parser would resolve dot segments.
pub(super) fn public_url(text: &str) -> Result<(String, PublicPath), Invalid> {
    let url = trusted_url(text)?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Invalid::new("must not have a query or fragment"));
    }
    let behind_scheme = text.split_once("://").map_or("", |(_, rest)| rest);
    let path = behind_scheme.find(['/', '\\']).map_or("/", |at| &behind_scheme[at..]);
    let prefix = PublicPath::parse(path)?;
    if path != url.path() {
        return Err(Invalid::new("must be written in full, such as https://keys.example.com"));
    }
    Ok((url.origin().ascii_serialization(), prefix))
}

/// RFC 6749, section 3.3. `openid` is always asked for.
pub(super) fn oidc_scopes(text: &str) -> Result<Vec<String>, Invalid> {
    let is_scope = |entry: &&str| entry.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
    let scopes = list(text)?;
    match scopes.iter().find(|entry| !is_scope(entry)) {
        Some(entry) => Err(Invalid::new(format!("{entry:?} is no scope"))),
        None => Ok(scopes.into_iter().filter(|scope| *scope != "openid").map(str::to_owned).collect()),
    }
}
