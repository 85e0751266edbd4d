//! Path and query parameters that several surfaces share.

use tollkey_core::{FieldErrors, Id, Invalid, Problem, id::Entity};

/// A malformed ID gets the same response as an unknown one.
pub fn path_id<Of: Entity>(text: &str) -> Result<Id<Of>, Problem> {
    text.parse().map_err(|_| Problem::not_found())
}

pub fn within(
    value: Option<u32>,
    default: u32,
    range: std::ops::RangeInclusive<u32>,
) -> Result<u32, Invalid> {
    match value {
        None => Ok(default),
        Some(value) if range.contains(&value) => Ok(value),
        Some(_) if *range.end() == u32::MAX => {
            Err(Invalid::new(format!("must be at least {}", range.start())))
        }
        Some(_) => Err(Invalid::new(format!(
            "must be between {} and {}",
            range.start(),
            range.end()
        ))),
    }
}

pub fn paging(page: Option<u32>, limit: Option<u32>) -> Result<(u32, u32), Problem> {
    let mut checks = FieldErrors::default();
    let page = checks.check("page", within(page, 1, 1..=u32::MAX));
    let limit = checks.check("limit", within(limit, 10, 1..=100));
    match (page, limit) {
        (Some(page), Some(limit)) => Ok((page, limit)),
        _ => Err(checks.into_problem()),
    }
}
