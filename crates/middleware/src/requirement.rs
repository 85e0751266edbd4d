//! What a route needs of a key.

use std::{fmt, sync::Arc, time::Duration};

use tollkey_core::{Mode, Scope};

use crate::RequestHead;

/// What a route needs of the key it is called with. The default: any key that may call it at all, as its own restrictions have it.
///
/// Publishable keys can call the routes that the storefront publishes, and only where no scope is required.
///
/// ```
/// use tollkey_middleware::{Mode, Requirement, Scope};
/// let requirement = Requirement::scopes([Scope::LINKS_WRITE]).mode(Mode::Live);
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Requirement {
    pub(crate) scopes: Vec<Scope>,
    pub(crate) mode: Option<Mode>,
    pub(crate) merchant: Option<Merchant>,
    pub(crate) optional: bool,
    pub(crate) grace: Duration,
}

impl Requirement {
    /// Any key.
    pub fn any() -> Self {
        Self::default()
    }

    /// All of these scopes.
    pub fn scopes(scopes: impl IntoIterator<Item = impl Into<Scope>>) -> Self {
        Self { scopes: scopes.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    /// This mode.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Where the merchant stands that the request is about, instead of where the guard looks for it. At a layer it is also the
    /// merchant that a handler is told ([`VerifiedKey::merchant`](crate::VerifiedKey::merchant)); at a `require` further in it is
    /// judged, and the handler goes on being told the layer's.
    pub fn merchant(mut self, merchant: Merchant) -> Self {
        self.merchant = Some(merchant);
        self
    }

    /// Lets requests without any credential pass, without a key. One with a credential that is refused is refused.
    pub fn optional(mut self) -> Self {
        self.optional = true;
        self
    }

    /// When the server cannot be asked, goes on with keys that are remembered, for that long after the lease has ended.
    ///
    /// **A key that was revoked meanwhile is let in for that long.** Without this, requests are refused with 503 once the
    /// lease has ended, which is three seconds at most.
    pub fn remembered_without_immediate_revocation(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }
}

impl From<Scope> for Requirement {
    fn from(scope: Scope) -> Self {
        Self::scopes([scope])
    }
}

impl<const N: usize> From<[Scope; N]> for Requirement {
    fn from(scopes: [Scope; N]) -> Self {
        Self::scopes(scopes)
    }
}

/// Where the merchant stands that a request is about.
#[derive(Clone)]
pub struct Merchant(pub(crate) Source);

type Find = dyn Fn(&RequestHead<'_>) -> Option<String> + Send + Sync;

#[derive(Clone)]
pub(crate) enum Source {
    Header(Arc<str>),
    Segment(Arc<[Segment]>),
    Asked(Arc<Find>),
}

/// A segment of a path template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Segment {
    Literal(String),
    Any,
    Merchant,
}

impl Merchant {
    /// In a header; `x-merchant-id` is where the guard looks when nothing is said. A repeated one denies.
    #[must_use]
    pub fn header(name: &str) -> Self {
        Self(Source::Header(name.to_ascii_lowercase().into()))
    }

    /// In the path: `/merchants/{merchant}/tokens` takes what stands at `{merchant}`, `{}` is any other segment, and what
    /// follows the template does not matter. A path that does not fit names no merchant.
    #[must_use]
    pub fn path(template: &str) -> Self {
        let segment = |part: &str| match part {
            "{merchant}" => Segment::Merchant,
            "{}" => Segment::Any,
            literal => Segment::Literal(literal.to_owned()),
        };
        Self(Source::Segment(template.trim_start_matches('/').split('/').map(segment).collect()))
    }

    /// Wherever the closure finds it.
    #[must_use]
    pub fn from_fn(find: impl Fn(&RequestHead<'_>) -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Source::Asked(Arc::new(find)))
    }

    /// The merchant of a request. What cannot be read as one reads as something no merchant is called, so that it denies.
    pub(crate) fn of(&self, request: &RequestHead<'_>) -> Option<String> {
        match &self.0 {
            Source::Header(name) => tollkey_core::text::reference_in(request.all(name)),
            Source::Segment(template) => {
                let mut parts = request.path().trim_start_matches('/').split('/');
                let mut merchant = None;
                for segment in template.iter() {
                    let part = parts.next()?;
                    match segment {
                        // A router that decodes what it matches may take this for the literal.
                        Segment::Literal(literal) if literal != part => {
                            return part.contains('%').then(|| part.to_owned());
                        }
                        Segment::Merchant => merchant = Some(part.to_owned()),
                        Segment::Literal(_) | Segment::Any => {}
                    }
                }
                merchant
            }
            Source::Asked(find) => find(request),
        }
    }
}

impl fmt::Debug for Merchant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Source::Header(name) => f.debug_tuple("Header").field(name).finish(),
            Source::Segment(template) => f.debug_tuple("Path").field(template).finish(),
            Source::Asked(_) => f.write_str("FromFn"),
        }
    }
}
