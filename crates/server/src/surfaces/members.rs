//! Parses and formats the fields that keys have on every surface, under different names.

use jiff::Timestamp;
use tollkey_api::{Open, applications, time::Moment};
use tollkey_core::{
    Catalogue, FieldErrors, Invalid, IpList, Problem, RateLimit, Restrictions, Scope,
    feature::Feature, time::from_micros,
};
use tollkey_store::KeyCursor;

use super::parameters::within;

/// The maximum and the default number of keys on a page.
const LISTED: u32 = 1000;

fn strs(texts: &[String]) -> impl Iterator<Item = &str> {
    texts.iter().map(String::as_str)
}

/// Without a list they are the default.
pub fn scopes(names: Option<&[String]>, catalogue: &Catalogue) -> Result<Vec<Scope>, Invalid> {
    match names {
        None => Ok(vec![Scope::COMMERCE]),
        Some(names) => catalogue.parse_list(strs(names)),
    }
}

pub fn end(end: Option<Moment>, now: Timestamp) -> Result<Option<Timestamp>, Invalid> {
    Restrictions::parse_expiration(end.map(Timestamp::from), now)
}

pub fn networks(cidrs: Option<&[String]>) -> Result<Option<IpList>, Invalid> {
    cidrs.map(|cidrs| IpList::parse(strs(cidrs))).transpose()
}

pub fn shown_networks(list: Option<&IpList>) -> Option<Vec<String>> {
    list.map(|list| list.networks().iter().map(ToString::to_string).collect())
}

/// The window is in seconds. An invalid limit or window adds errors under both pointers.
pub fn rate_limit(
    limit: Option<(i64, i64)>,
    (limit_pointer, window_pointer): (&str, &str),
    checks: &mut FieldErrors,
) -> Option<Option<RateLimit>> {
    let Some((limit, window)) = limit else {
        return Some(None);
    };
    checks.check(limit_pointer, RateLimit::parse_limit(limit));
    checks.check(window_pointer, RateLimit::parse_window_seconds(window));
    RateLimit::new(limit, window).ok().map(Some)
}

pub fn camel_rate_limit(
    limit: Option<applications::RateLimit>,
    checks: &mut FieldErrors,
) -> Option<Option<RateLimit>> {
    let limit = limit.map(|limit| (limit.limit, limit.window_seconds));
    rate_limit(
        limit,
        ("/rateLimit/limit", "/rateLimit/windowSeconds"),
        checks,
    )
}

pub fn shown_rate_limit(limit: RateLimit) -> applications::RateLimit {
    applications::RateLimit::new(
        limit.limit().get().into(),
        limit.window_seconds().get().into(),
    )
}

pub fn shown_features(restrictions: &Restrictions) -> Option<Vec<Open<Feature>>> {
    let features = restrictions.features.as_ref();
    features.map(|features| features.iter().copied().map(Open::from).collect())
}

pub fn listing(
    limit: Option<u32>,
    after: Option<&str>,
) -> Result<(u32, Option<KeyCursor>), Problem> {
    let mut checks = FieldErrors::default();
    let limit = checks.check("limit", within(limit, LISTED, 1..=LISTED));
    let after = checks.check("cursor", cursor(after));
    match (limit, after) {
        (Some(limit), Some(after)) => Ok((limit, after)),
        _ => Err(checks.into_problem()),
    }
}

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
        .ok_or_else(|| Invalid::new("must be a cursor from an earlier response"))
}

pub fn shown_cursor(cursor: KeyCursor) -> String {
    format!("{}.{}", cursor.created_at.as_microsecond(), cursor.id)
}
