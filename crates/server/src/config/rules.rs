//! The rules for values. Each rule parses a text, or returns what is wrong with it.

use std::{fmt, net::SocketAddr, str::FromStr, time::Duration};

use reqwest::Url;
use tollkey_core::{
    Invalid, IpList, ceiling::AncestorLimit, credential::CredentialHeaders, network::parse_network,
};
use tracing_subscriber::EnvFilter;

use crate::{
    issuer_url::trusted_url,
    listen_address::{SocketGroup, is_unix, parse_tcp},
    public_path::PublicPath,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Pretty,
    /// One JSON object per line.
    Json,
}

/// Headers that have another meaning and so cannot name the merchant.
const TAKEN_HEADERS: [&str; 15] = [
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
];

pub(super) fn number<T>(least: T, most: T) -> impl Fn(&str) -> Result<T, Invalid> + Clone
where
    T: FromStr + PartialOrd + fmt::Display + Copy,
{
    move |text| match text.parse() {
        Ok(number) if (least..=most).contains(&number) => Ok(number),
        _ => Err(Invalid::new(format!(
            "must be a whole number from {least} to {most}"
        ))),
    }
}

pub(super) fn seconds(least: u64, most: u64) -> impl Fn(&str) -> Result<Duration, Invalid> + Clone {
    move |text| number(least, most)(text).map(Duration::from_secs)
}

pub(super) fn key_depth_limit(text: &str) -> Result<AncestorLimit, Invalid> {
    AncestorLimit::new(number(0, AncestorLimit::MAX)(text)?)
}

pub(super) fn switch(text: &str) -> Result<bool, Invalid> {
    text.parse()
        .map_err(|_| Invalid::new("must be true or false"))
}

pub(super) fn socket_address(text: &str) -> Result<SocketAddr, Invalid> {
    parse_tcp(text).ok_or_else(|| {
        Invalid::new(if is_unix(text) {
            "must be an address and a port; only TOLLKEY_LISTEN can name a Unix socket"
        } else {
            "must be an address and a port, such as 127.0.0.1:8080 or [::]:8080"
        })
    })
}

pub(super) fn socket_mode(text: &str) -> Result<u32, Invalid> {
    let digits = match text.len() {
        3 => Some(text),
        4 => text.strip_prefix('0'),
        _ => None,
    };
    digits
        .filter(|digits| digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit)))
        .and_then(|digits| u32::from_str_radix(digits, 8).ok())
        // Without it, `tollkey healthcheck` could not connect.
        .filter(|mode| mode & 0o600 == 0o600)
        .ok_or_else(|| {
            Invalid::new(
                "must be three octal digits after an optional 0, with read and write permission for the owner, such as \
                 0660",
            )
        })
}

/// A number is a group ID, as for chown(1).
pub(super) fn socket_group(text: &str) -> Result<SocketGroup, Invalid> {
    clean(text)?;
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(SocketGroup::Name(text.to_owned()));
    }
    match text.parse() {
        // The highest number means "no change" to the operating system.
        Ok(id) if id != u32::MAX => Ok(SocketGroup::Id(id)),
        _ => Err(Invalid::new("must be the name or the number of a group")),
    }
}

pub(super) fn list(text: &str) -> Result<Vec<String>, Invalid> {
    let entries: Vec<_> = text
        .split(',')
        .map(|entry| entry.trim().to_owned())
        .collect();
    if entries.iter().any(String::is_empty) {
        return Err(Invalid::new("must not have an empty entry"));
    }
    Ok(entries)
}

/// Reads a list whose entries follow a rule. The error has the number of the first other entry, but not its text.
fn list_of(
    text: &str,
    rule: &str,
    is_valid: impl Fn(&str) -> bool,
) -> Result<Vec<String>, Invalid> {
    let entries = list(text)?;
    match entries.iter().position(|entry| !is_valid(entry)) {
        Some(at) => Err(Invalid::new(format!("entry {} {rule}", at + 1))),
        None => Ok(entries),
    }
}

pub(super) fn credential_headers(text: &str) -> Result<CredentialHeaders, Invalid> {
    CredentialHeaders::parse(list(text)?.iter().map(String::as_str))
}

pub(super) fn trusted_proxies(text: &str) -> Result<Option<IpList>, Invalid> {
    if text == "none" {
        return Ok(None);
    }
    let rule = "must be a CIDR with host bits of zero, such as 10.0.0.0/8 or 192.0.2.7/32";
    let entries = list_of(text, rule, |entry| parse_network(entry).is_ok())?;
    IpList::parse(entries.iter().map(String::as_str)).map(Some)
}

pub(super) fn header_name(text: &str) -> Result<String, Invalid> {
    // RFC 9110, section 5.6.2: a token.
    let well_formed = text.len() <= 64
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b));
    let name = text.to_ascii_lowercase();
    if !well_formed {
        return Err(Invalid::new("must be the name of a header"));
    }
    if TAKEN_HEADERS.contains(&name.as_str()) || name.starts_with("x-auth-") {
        return Err(Invalid::new(
            "must not be a header that already has a meaning; choose another name",
        ));
    }
    Ok(name)
}

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Rejects an unknown level, which `EnvFilter` would take for the name of a module and log all of its events.
pub(super) fn log_filter(text: &str) -> Result<String, Invalid> {
    let directives = list(text)?;
    for (at, directive) in directives.iter().enumerate() {
        let level = match (directive.rsplit_once(']'), directive.split_once('=')) {
            // After a span, whose fields may contain `=`, the level is optional.
            (Some((_, rest)), _) => rest.strip_prefix('=').unwrap_or("trace"),
            (None, Some((_, level))) => level,
            (None, None) => directive.as_str(),
        };
        let is_level = LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level));
        if !is_level || EnvFilter::try_new(directive).is_err() {
            let number = if directives.len() > 1 {
                format!("directive {}: ", at + 1)
            } else {
                String::new()
            };
            let levels = LEVELS.join(", ");
            return Err(Invalid::new(if is_level {
                format!("{number}must be LEVEL, TARGET=LEVEL or TARGET[SPAN{{FIELD=VALUE}}]=LEVEL")
            } else {
                format!(
                    "{number}unknown level; the levels are {levels}, alone or as MODULE=LEVEL, such as tollkey_server=debug"
                )
            }));
        }
    }
    Ok(directives.join(","))
}

pub(super) fn log_format(text: &str) -> Result<LogFormat, Invalid> {
    match text {
        "pretty" => Ok(LogFormat::Pretty),
        "json" => Ok(LogFormat::Json),
        _ => Err(Invalid::new("must be pretty or json")),
    }
}

/// Checks a text that is compared with another one, which an invisible character would prevent from matching.
pub(super) fn text(text: &str) -> Result<String, Invalid> {
    clean(text)?;
    Ok(text.to_owned())
}

/// Rejects characters that an editor, a shell or an environment file adds by mistake.
pub(super) fn clean(text: &str) -> Result<(), Invalid> {
    Err(Invalid::new(if text.contains('\u{feff}') {
        "must not have a byte order mark; save it as UTF-8 without one"
    } else if text.trim() != text {
        "must not begin or end with white space; remove it (one line break at the end of a file is fine)"
    } else if text.chars().any(|c| c.is_control() || is_invisible(c)) {
        "must not have control or invisible characters, such as line breaks; remove them"
    } else if text.starts_with(is_quote) || text.ends_with(is_quote) {
        "must not begin or end with a quotation mark; remove the quotation marks"
    } else {
        return Ok(());
    }))
}

/// Returns whether a character is invisible: Unicode's default ignorable code points, which text copied from web pages
/// and documents may contain, the separators of lines and paragraphs, and the blank Braille pattern.
fn is_invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{2800}' | '\u{3164}'
        | '\u{fe00}'..='\u{fe0f}' | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{1bca0}'..='\u{1bca3}'
        | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}

fn is_quote(c: char) -> bool {
    matches!(
        c,
        '"' | '\'' | '`' | '´' | '«' | '»' | '\u{2018}'..='\u{201f}' | '‹' | '›' | '「'..='』' | '＂' | '＇'
    )
}

pub(super) fn claim(text: &str) -> Result<String, Invalid> {
    clean(text)?;
    // RFC 6901, section 3.
    let escapes = text
        .split('~')
        .skip(1)
        .all(|rest| rest.starts_with(['0', '1']));
    if text.starts_with('/') && !escapes {
        return Err(Invalid::new(
            "must be a JSON pointer, in which ~0 stands for ~ and ~1 for /",
        ));
    }
    Ok(text.to_owned())
}

/// Checks an issuer (OpenID Connect Discovery 1.0, section 3). Does not change it, because `iss` must be identical.
pub(super) fn issuer(text: &str) -> Result<String, Invalid> {
    url_without_query(text)?;
    Ok(text.to_owned())
}

fn url_without_query(text: &str) -> Result<Url, Invalid> {
    let url = trusted_url(text)?;
    if url.query().is_some() || url.fragment().is_some() {
        return Err(Invalid::new("must not have a query or fragment"));
    }
    Ok(url)
}

#[derive(Debug, Clone)]
pub(super) struct PublicUrl {
    /// Scheme, host, port and path, without a slash at the end.
    pub(super) url: String,
    pub(super) path: PublicPath,
}

/// Takes the path from the text, because a URL parser would resolve dot segments.
pub(super) fn public_url(text: &str) -> Result<PublicUrl, Invalid> {
    let url = url_without_query(text)?;
    let behind_scheme = text.split_once("://").map_or("", |(_, rest)| rest);
    let path = behind_scheme
        .find(['/', '\\'])
        .map_or("/", |at| &behind_scheme[at..]);
    let prefix = PublicPath::parse(path)?;
    let origin = url.origin().ascii_serialization();
    if path != url.path() {
        return Err(Invalid::new(
            "must be written in full, such as https://keys.example.com",
        ));
    }
    Ok(PublicUrl {
        url: format!("{origin}{prefix}"),
        path: prefix,
    })
}

/// Parses scopes (RFC 6749, section 3.3). Drops `openid`, which is always requested.
pub(super) fn oidc_scopes(text: &str) -> Result<Vec<String>, Invalid> {
    let is_scope = |entry: &str| {
        let mut bytes = entry.bytes();
        bytes.all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
    };
    let rule = "is not a scope: it has white space, a quotation mark, a backslash or a character outside ASCII; \
                put commas between scopes";
    let mut scopes = list_of(text, rule, is_scope)?;
    scopes.retain(|scope| scope != "openid");
    Ok(scopes)
}

/// A secret with fewer different characters is reported as weak. 32 random hexadecimal digits have fewer in one of
/// 28 million cases.
const DIFFERENT_CHARACTERS_MIN: usize = 8;

/// Returns why a secret is weak, or `None` if it may be random.
pub(super) fn weakness(secret: &str) -> Option<&'static str> {
    // The comparison is quadratic, so only the beginning of a long secret is checked.
    let mut characters: Vec<char> = secret.chars().take(1024).collect();
    let repeats = |period: usize| {
        characters
            .iter()
            .skip(period)
            .zip(&characters)
            .all(|(later, first)| later == first)
    };
    if (1..=characters.len() / 2).any(repeats) {
        return Some(if repeats(1) {
            "is one repeated character"
        } else {
            "is one repeated word"
        });
    }
    characters.sort_unstable();
    characters.dedup();
    (characters.len() < DIFFERENT_CHARACTERS_MIN).then_some("has few different characters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weak_secret_is_detected_and_random_one_is_not() {
        for (secret, weak) in [
            ("a".repeat(32), Some("is one repeated character")),
            ("0".repeat(64), Some("is one repeated character")),
            ("changeme".repeat(4), Some("is one repeated word")),
            ("ab".repeat(20), Some("is one repeated word")),
            ("changeme-".repeat(4), Some("is one repeated word")),
            (
                format!("{}b", "a".repeat(40)),
                Some("has few different characters"),
            ),
            (
                "0110100110010110100101100110100110".to_owned(),
                Some("has few different characters"),
            ),
            ("0123456789abcdef0123456789abcde9".to_owned(), None),
            ("f3a1c27b9d04e86512fa77c0b9d3e158".to_owned(), None),
            ("correct horse battery staple and more".to_owned(), None),
        ] {
            assert_eq!(weakness(&secret), weak, "{secret}");
        }
    }
}
