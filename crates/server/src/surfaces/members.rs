//! Members that new keys have on every surface, whatever they are called there: how they are read, and how printed.

use jiff::Timestamp;
use tollkey_api::{Open, applications, time::Moment};
use tollkey_core::{
    Catalogue, Checks, Grants, Invalid, IpList, Problem, RateLimit, Scope, feature::Feature,
    time::from_micros,
};
use tollkey_store::KeyCursor;

use super::parameters::within;

/// How many keys a list has, at most and when nobody says.
const LISTED: u32 = 1000;

fn strs(texts: &[String]) -> impl Iterator<Item = &str> {
    texts.iter().map(String::as_str)
}

/// Exactly these scopes; the default when none are given.
pub fn scopes(names: Option<&[String]>, catalogue: &Catalogue) -> Result<Vec<Scope>, Invalid> {
    match names {
        None => Ok(vec![Scope::COMMERCE]),
        Some(names) => catalogue.parse_list(strs(names)),
    }
}

/// When a key ends: in the future, or never.
pub fn end(end: Option<Moment>, now: Timestamp) -> Result<Option<Timestamp>, Invalid> {
    Grants::parse_end(end.map(Timestamp::from), now)
}

/// The networks a key may be used from.
pub fn networks(cidrs: Option<&[String]>) -> Result<Option<IpList>, Invalid> {
    cidrs.map(|cidrs| IpList::parse(strs(cidrs))).transpose()
}

/// The networks, printed.
pub fn shown_networks(list: Option<&IpList>) -> Option<Vec<String>> {
    list.map(|list| list.networks().iter().map(ToString::to_string).collect())
}

/// A rate limit: its limit and its window in seconds. `None` when one of them is invalid, which `checks` then says under the
/// pointers of both.
pub fn rate_limit(
    limit: Option<(i64, i64)>,
    (limit_pointer, window_pointer): (&str, &str),
    checks: &mut Checks,
) -> Option<Option<RateLimit>> {
    let Some((limit, window)) = limit else {
        return Some(None);
    };
    checks.member(limit_pointer, RateLimit::parse_limit(limit));
    checks.member(window_pointer, RateLimit::parse_window_seconds(window));
    RateLimit::new(limit, window).ok().map(Some)
}

/// [`rate_limit`] in camelCase.
pub fn camel_rate_limit(
    limit: Option<applications::RateLimit>,
    checks: &mut Checks,
) -> Option<Option<RateLimit>> {
    let limit = limit.map(|limit| (limit.limit, limit.window_seconds));
    rate_limit(
        limit,
        ("/rateLimit/limit", "/rateLimit/windowSeconds"),
        checks,
    )
}

/// A rate limit, printed in camelCase.
pub fn shown_rate_limit(limit: RateLimit) -> applications::RateLimit {
    applications::RateLimit::new(
        limit.limit().get().into(),
        limit.window_seconds().get().into(),
    )
}

/// The features of a key, printed.
pub fn shown_features(features: &[Feature]) -> Vec<Open<Feature>> {
    features.iter().copied().map(Open::from).collect()
}

/// How many keys are listed, and behind which.
pub fn listing(
    limit: Option<u32>,
    after: Option<&str>,
) -> Result<(u32, Option<KeyCursor>), Problem> {
    let mut checks = Checks::default();
    let limit = checks.member("limit", within(limit, LISTED, 1..=LISTED));
    let after = checks.member("cursor", cursor(after));
    match (limit, after) {
        (Some(limit), Some(after)) => Ok((limit, after)),
        _ => Err(checks.into_problem()),
    }
}

/// A place in a list of keys, as a caller gives it back.
fn cursor(text: Option<&str>) -> Result<Option<KeyCursor>, Invalid> {
    let Some(text) = text else { return Ok(None) };
    let read = || {
        let (micros, id) = text.split_once('.')?;
        let created_at = from_micros(micros.parse().ok()?)?;
        Some(KeyCursor {
            created_at,
            id: id.parse().ok()?,
        })
    };
    read()
        .map(Some)
        .ok_or_else(|| Invalid::new("must be one that an earlier answer gave"))
}

/// A place in a list of keys, for a caller to give back.
pub fn shown_cursor(cursor: KeyCursor) -> String {
    format!("{}.{}", cursor.created_at.as_microsecond(), cursor.id)
}
