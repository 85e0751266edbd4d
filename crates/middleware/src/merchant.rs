//! Where the guard reads the merchant of a request.

use std::{fmt, sync::Arc};

use crate::RequestHead;

/// Where the guard reads the merchant of a request. If a key is restricted to merchants, a request for any
/// other merchant is denied.
#[derive(Clone)]
pub struct MerchantSource(MerchantInput);

type Find = dyn Fn(&RequestHead<'_>) -> Option<String> + Send + Sync;

#[derive(Clone)]
enum MerchantInput {
    Header(Arc<str>),
    Path(Arc<[Segment]>),
    Function(Arc<Find>),
    Id(Arc<str>),
}

/// A segment of a path template.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Literal(String),
    Any,
    Merchant,
}

impl MerchantSource {
    /// Reads the merchant from a header. A request that repeats the header is denied. By default, a guard reads
    /// `x-merchant-id`.
    #[must_use]
    pub fn header(name: &str) -> Self {
        Self(MerchantInput::Header(name.to_ascii_lowercase().into()))
    }

    /// Reads the merchant from the path. In the template, `{merchant}` is the segment with the merchant, and
    /// any other `{name}` matches one segment. The path may continue after the template. A path that does not
    /// match names no merchant. A path with an escape in the place of a literal segment is denied, because a
    /// router that decodes the path may match it.
    ///
    /// Keys that are restricted to merchants are also restricted to routes such as `GET /tokens`. The guard
    /// compares these with the whole path after the [route base](crate::GuardBuilder::route_base). If the
    /// merchant comes before these routes in the path, include it in the route base:
    ///
    /// ```
    /// use tollkey_middleware::{Guard, MerchantSource};
    /// // GET /merchants/m_1/tokens is the route GET /tokens of the merchant m_1.
    /// let builder = Guard::builder()
    ///     .route_base("/merchants/{merchant}")
    ///     .merchant(MerchantSource::path("/merchants/{merchant}"));
    /// ```
    ///
    /// # Panics
    /// If the template does not begin with `/`, or does not have `{merchant}` exactly once.
    #[must_use]
    pub fn path(template: &str) -> Self {
        let segment = |part: &str| match part {
            "{merchant}" => Segment::Merchant,
            name if name.starts_with('{') && name.ends_with('}') => Segment::Any,
            literal => Segment::Literal(literal.to_owned()),
        };
        let segments: Option<Vec<_>> = template
            .strip_prefix('/')
            .map(|path| path.split('/').map(segment).collect());
        let segments = segments.unwrap_or_default();
        let merchants = segments
            .iter()
            .filter(|segment| **segment == Segment::Merchant)
            .count();
        assert!(
            merchants == 1,
            "{template:?} must begin with a slash and have {{merchant}} as one of its segments, once"
        );
        Self(MerchantInput::Path(segments.into()))
    }

    /// Reads the merchant with a closure, which returns `None` if the request names no merchant.
    #[must_use]
    pub fn from_fn(
        find: impl Fn(&RequestHead<'_>) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        Self(MerchantInput::Function(Arc::new(find)))
    }

    /// Uses this merchant. For [`VerifiedKey::require`](crate::VerifiedKey::require) in a handler that has
    /// the merchant ID from the body or the database.
    #[must_use]
    pub fn id(id: impl Into<String>) -> Self {
        Self(MerchantInput::Id(id.into().into()))
    }

    /// Returns the merchant of a request. A value that cannot be read is returned as a string that is not a
    /// valid merchant ID, so that the request is denied.
    pub(crate) fn of(&self, request: &RequestHead<'_>) -> Option<String> {
        match &self.0 {
            MerchantInput::Header(name) => tollkey_core::text::external_id_in(request.all(name)),
            MerchantInput::Path(template) => in_path(template, request.path()),
            MerchantInput::Function(find) => find(request),
            MerchantInput::Id(id) => Some(id.as_ref().to_owned()),
        }
    }

    /// Returns the merchant of [`MerchantSource::id`], or `None` if it is read from the request.
    pub(crate) fn without_request(&self) -> Option<&str> {
        match &self.0 {
            MerchantInput::Id(id) => Some(id),
            _ => None,
        }
    }
}

fn in_path(template: &[Segment], path: &str) -> Option<String> {
    let mut parts = path.strip_prefix('/')?.split('/');
    let mut merchant = None;
    for segment in template {
        let part = parts.next()?;
        match segment {
            // A router that decodes the path may match this part with the literal. So the request must not pass as one
            // without a merchant; an escaped text is an invalid merchant, and is denied.
            Segment::Literal(literal) if literal != part => {
                return part.contains('%').then(|| part.to_owned());
            }
            Segment::Merchant => merchant = Some(part.to_owned()),
            Segment::Literal(_) | Segment::Any => {}
        }
    }
    merchant
}

impl fmt::Debug for MerchantSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            MerchantInput::Header(name) => f.debug_tuple("Header").field(name).finish(),
            MerchantInput::Path(template) => f.debug_tuple("Path").field(template).finish(),
            MerchantInput::Function(_) => f.write_str("Function"),
            MerchantInput::Id(id) => f.debug_tuple("Id").field(id).finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn template_without_one_merchant_is_rejected() {
        for template in [
            "",
            "/",
            "merchants/{merchant}",
            "/merchants/{id}",
            "/{merchant}/{merchant}",
        ] {
            let built = std::panic::catch_unwind(|| MerchantSource::path(template));
            assert!(built.is_err(), "{template}");
        }
    }
}
