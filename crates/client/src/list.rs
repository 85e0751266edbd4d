//! Lists: page by page, or item by item.

use std::{
    fmt,
    pin::Pin,
    slice,
    task::{Context, Poll},
    vec,
};

use futures_util::{
    Stream, StreamExt as _, TryStreamExt as _,
    stream::{self, BoxStream},
};
use reqwest::{Url, header::LINK};
use serde::de::DeserializeOwned;
use tollkey_api::applications as numbered;

use crate::{
    Error,
    request::{Call, Reply},
    url_text::UrlText,
};

/// A page of a list, and the cursor of the next.
///
/// ```no_run
/// # async fn example(management: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
/// let page = management.commerce().api_keys().list().limit(50).await?;
/// for key in &page {
///     println!("{}", key.name);
/// }
/// if let Some(cursor) = page.next_cursor {
///     let next = management.commerce().api_keys().list().limit(50).cursor(cursor).await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Page<T> {
    /// The items, newest first.
    pub items: Vec<T>,
    /// The `cursor` of the next page; `None` on the last.
    pub next_cursor: Option<String>,
}

impl<T> Page<T> {
    pub(crate) fn new(items: Vec<T>, next_cursor: Option<String>) -> Self {
        Self { items, next_cursor }
    }
}

impl<T: DeserializeOwned> Page<T> {
    /// Reads an array with a `Link` header (RFC 8288) to the next page.
    pub(crate) fn read(reply: Reply) -> Result<Self, Error> {
        let next = reply
            .headers
            .get_all(LINK)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .find_map(next_link);
        let cursor = match next {
            None => None,
            // Only the cursor of the link is used, so that the next call has the same URL as this one.
            Some(link) => Some(
                cursor(link)
                    .ok_or_else(|| reply.unreadable("the list's next link has no cursor"))?,
            ),
        };
        Ok(Self::new(reply.json()?, cursor))
    }
}

/// Returns the target of the link whose relation is `next`.
fn next_link(header: &str) -> Option<&str> {
    // The server escapes commas and semicolons in a link's query.
    header.split(',').find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        parameters.split(';').any(is_next).then_some(target)
    })
}

/// Returns whether a link parameter is a relation that includes `next`, such as `rel="next last"`.
fn is_next(parameter: &str) -> bool {
    let Some((name, value)) = parameter.split_once('=') else {
        return false;
    };
    let mut relations = value.trim().trim_matches('"').split_ascii_whitespace();
    name.trim().eq_ignore_ascii_case("rel")
        && relations.any(|relation| relation.eq_ignore_ascii_case("next"))
}

fn cursor(link: &str) -> Option<String> {
    let base = Url::parse("http://localhost").ok()?;
    let link = base.join(link).ok()?;
    link.query_pairs()
        .find(|(name, _)| name == "cursor")
        .map(|(_, value)| value.into_owned())
}

impl<T> IntoIterator for Page<T> {
    type Item = T;
    type IntoIter = vec::IntoIter<T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.into_iter()
    }
}

impl<'a, T> IntoIterator for &'a Page<T> {
    type Item = &'a T;
    type IntoIter = slice::Iter<'a, T>;

    fn into_iter(self) -> Self::IntoIter {
        self.items.iter()
    }
}

/// The items or pages of a list, fetched as they are read. A [`Stream`] that ends after its first error.
///
/// ```no_run
/// # async fn example(management: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
/// let mut keys = management.commerce().api_keys().list().items();
/// while let Some(key) = keys.next().await.transpose()? {
///     println!("{}", key.name);
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "nothing is fetched until it is read"]
pub struct Listing<T>(BoxStream<'static, Result<T, Error>>);

impl<T> Listing<T> {
    #[cfg(feature = "blocking")]
    pub(crate) fn empty() -> Self
    where
        T: Send + 'static,
    {
        Self(stream::empty().boxed())
    }

    /// Returns the next item or page; `None` at the end and after an error.
    pub async fn next(&mut self) -> Option<Result<T, Error>> {
        self.0.next().await
    }

    /// Returns up to `max` items or pages.
    ///
    /// # Errors
    /// The first error. The items or pages before it are discarded.
    pub async fn collect_up_to(self, max: usize) -> Result<Vec<T>, Error> {
        self.0.take(max).try_collect().await
    }
}

impl<T> Stream for Listing<T> {
    type Item = Result<T, Error>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_next_unpin(context)
    }
}

impl<T> fmt::Debug for Listing<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listing")
    }
}

/// A list that can be fetched page by page.
pub(crate) trait Paged: Clone + Send + Sized + 'static {
    type Item: Send + 'static;
    type Page: Send + 'static;

    /// The call that fetches the next page.
    #[cfg(feature = "blocking")]
    fn call_mut(&mut self) -> &mut Call;

    fn fetch(self) -> impl Future<Output = Result<Self::Page, Error>> + Send;

    /// Returns the call for the next page, if any.
    fn after(self, page: &Self::Page) -> Result<Option<Self>, Error>;

    fn items_of(page: Self::Page) -> Vec<Self::Item>;
}

/// Fetches page by page.
pub(crate) fn pages<L: Paged>(list: L) -> Listing<L::Page> {
    let pages = stream::try_unfold(Some(list), |list: Option<L>| async move {
        let Some(list) = list else { return Ok(None) };
        let page = list.clone().fetch().await?;
        let next = list.after(&page)?;
        Ok(Some((page, next)))
    });
    Listing(pages.boxed())
}

/// Fetches item by item.
pub(crate) fn items<L: Paged>(list: L) -> Listing<L::Item> {
    let pages = pages(list).map_ok(|page| stream::iter(L::items_of(page).into_iter().map(Ok)));
    Listing(pages.try_flatten().boxed())
}

/// Returns the cursor of the next page, or an error if it is the cursor of this page: the list would never end.
pub(crate) fn follow<T>(
    call: &Call,
    requested: Option<&UrlText>,
    page: &Page<T>,
) -> Result<Option<String>, Error> {
    let next = page.next_cursor.as_deref();
    if next.is_some() && next == requested.map(UrlText::as_str) {
        return Err(call.unreadable("the next cursor is the cursor of this page"));
    }
    Ok(next.map(str::to_owned))
}

/// Adds `items`, `pages` and their blocking variants to a builder that is [`Paged`]. Used by the macros below.
macro_rules! lists {
    ($builder:ty: $item:ty, $page:ty) => {
        impl $builder {
            /// Returns all items of the list. Each page is fetched when its first item is read.
            pub fn items(self) -> $crate::Listing<$item> {
                $crate::list::items(self)
            }

            /// Returns all pages of the list. Each page is fetched when it is read.
            pub fn pages(self) -> $crate::Listing<$page> {
                $crate::list::pages(self)
            }

            /// Like `items`, without an async runtime. Needs the feature `blocking`.
            ///
            /// # Panics
            /// If the iterator is read on a worker of an async runtime, which it would block.
            #[cfg(feature = "blocking")]
            pub fn items_blocking(
                self,
            ) -> impl Iterator<Item = Result<$item, $crate::Error>> + Send {
                $crate::blocking::iterate(self, $crate::list::items)
            }

            /// Like `pages`, without an async runtime. Needs the feature `blocking`.
            ///
            /// # Panics
            /// If the iterator is read on a worker of an async runtime, which it would block.
            #[cfg(feature = "blocking")]
            pub fn pages_blocking(
                self,
            ) -> impl Iterator<Item = Result<$page, $crate::Error>> + Send {
                $crate::blocking::iterate(self, $crate::list::pages)
            }
        }
    };
}
pub(crate) use lists;

/// The maximum size of a numbered page.
pub(crate) const MAX_PAGE_SIZE: u32 = 100;

/// Returns the number of the next page. An empty page is the last one, even if `has_next_page` is true. Returns an
/// error if the page is not the requested one: the list might never end.
pub(crate) fn next_page<T>(
    call: &Call,
    requested: Option<u32>,
    page: &numbered::Page<T>,
) -> Result<Option<u32>, Error> {
    let requested = requested.unwrap_or(1);
    if page.page != requested {
        return Err(call.unreadable("the response is not the requested page"));
    }
    Ok((page.has_next_page && !page.items.is_empty()).then(|| requested.saturating_add(1)))
}

/// Implements [`Paged`] for a builder with the fields `call`, `page` and `limit`, whose pages are numbered. Adds the setters
/// of these fields, `items` and `pages`.
macro_rules! by_page {
    ($builder:ty: $item:ty) => {
        $crate::list::lists!($builder: $item, $crate::applications::Page<$item>);

        impl $builder {
            /// The page number, from 1.
            pub fn page(mut self, page: u32) -> Self {
                self.page = Some(page);
                self
            }

            /// The page size, 1 to 100; 10 when not set, 100 for `items` and `pages`.
            pub fn limit(mut self, limit: u32) -> Self {
                self.limit = Some(limit);
                self
            }
        }

        impl $crate::list::Paged for $builder {
            type Item = $item;
            type Page = $crate::applications::Page<$item>;

            #[cfg(feature = "blocking")]
            fn call_mut(&mut self) -> &mut $crate::request::Call {
                &mut self.call
            }

            async fn fetch(mut self) -> Result<Self::Page, $crate::Error> {
                self.limit.get_or_insert($crate::list::MAX_PAGE_SIZE);
                self.send().await
            }

            fn after(self, page: &Self::Page) -> Result<Option<Self>, $crate::Error> {
                let next = $crate::list::next_page(&self.call, self.page, page)?;
                Ok(next.map(|page| Self {
                    page: Some(page),
                    ..self
                }))
            }

            fn items_of(page: Self::Page) -> Vec<$item> {
                page.items
            }
        }
    };
}
pub(crate) use by_page;

/// Implements [`Paged`] for a builder with the fields `call` and `cursor`, whose page is a [`Page`]. Adds the setter of
/// `cursor`, `items` and `pages`.
macro_rules! by_cursor {
    ($builder:ty: $item:ty) => {
        $crate::list::lists!($builder: $item, $crate::Page<$item>);

        impl $builder {
            /// The [`next_cursor`](crate::Page::next_cursor) of the previous page.
            pub fn cursor(mut self, cursor: impl Into<String>) -> Self {
                self.cursor = Some($crate::url_text::UrlText::new(cursor));
                self
            }
        }

        impl $crate::list::Paged for $builder {
            type Item = $item;
            type Page = $crate::Page<$item>;

            #[cfg(feature = "blocking")]
            fn call_mut(&mut self) -> &mut $crate::request::Call {
                &mut self.call
            }

            async fn fetch(self) -> Result<Self::Page, $crate::Error> {
                self.send().await
            }

            fn after(self, page: &Self::Page) -> Result<Option<Self>, $crate::Error> {
                let next = $crate::list::follow(&self.call, self.cursor.as_ref(), page)?;
                Ok(next.map(|cursor| self.cursor(cursor)))
            }

            fn items_of(page: Self::Page) -> Vec<$item> {
                page.items
            }
        }
    };
}
pub(crate) use by_cursor;
