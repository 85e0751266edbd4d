//! Lists: a page at a time, or item by item.

use std::{
    collections::VecDeque,
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

/// A part of a list, and how it goes on.
///
/// ```no_run
/// # async fn example(merchant: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
/// let page = merchant.commerce().api_keys().list().limit(50).await?;
/// for key in &page {
///     println!("{}", key.name);
/// }
/// if let Some(cursor) = page.next_cursor {
///     let next = merchant.commerce().api_keys().list().limit(50).cursor(cursor).await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Page<T> {
    /// The items, newest first.
    pub items: Vec<T>,
    /// What to give as `cursor` for what comes next; `None` at the end.
    pub next_cursor: Option<String>,
}

impl<T> Page<T> {
    pub(crate) fn new(items: Vec<T>, next_cursor: Option<String>) -> Self {
        Self { items, next_cursor }
    }
}

impl<T: DeserializeOwned> Page<T> {
    /// A bare array with a `Link` header (RFC 8288) that leads on.
    pub(crate) fn read(reply: Reply) -> Result<Self, Error> {
        let next = reply
            .headers
            .get_all(LINK)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .find_map(next_link);
        let cursor = match next {
            None => None,
            // Only its cursor is taken: wherever it leads, the next call goes where this one went.
            Some(link) => Some(
                cursor(link)
                    .ok_or_else(|| reply.unreadable("the list's next link has no cursor"))?,
            ),
        };
        Ok(Self::new(reply.json()?, cursor))
    }
}

/// The target of the link whose relation is `next`.
fn next_link(header: &str) -> Option<&str> {
    // No target of ours has a comma or a semicolon: both are escaped in a query.
    header.split(',').find_map(|link| {
        let (target, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
        parameters.split(';').any(is_next).then_some(target)
    })
}

/// Whether a parameter of a link is its relation, and that is `next`, perhaps among others: `rel="next last"`.
fn is_next(parameter: &str) -> bool {
    let Some((name, value)) = parameter.split_once('=') else {
        return false;
    };
    let mut relations = value.trim().trim_matches('"').split_ascii_whitespace();
    name.trim().eq_ignore_ascii_case("rel")
        && relations.any(|relation| relation.eq_ignore_ascii_case("next"))
}

fn cursor(link: &str) -> Option<String> {
    let anywhere = Url::parse("http://localhost").ok()?;
    let link = anywhere.join(link).ok()?;
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

/// A list that is fetched as it is read: its items, or its pages. A [`Stream`] that ends at its first error.
///
/// ```no_run
/// # async fn example(merchant: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
/// let mut keys = merchant.commerce().api_keys().list().items();
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

    /// The next one; `None` at the end, and after an error.
    pub async fn next(&mut self) -> Option<Result<T, Error>> {
        self.0.next().await
    }

    /// All of them, up to `most`.
    ///
    /// # Errors
    /// The first one; what was fetched before it is lost.
    pub async fn collect_up_to(self, most: usize) -> Result<Vec<T>, Error> {
        self.0.take(most).try_collect().await
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

    /// The call that fetches it.
    #[cfg(feature = "blocking")]
    fn call_mut(&mut self) -> &mut Call;

    fn fetch(self) -> impl Future<Output = Result<Self::Page, Error>> + Send;

    /// The call for the page after this one, if there is one.
    fn after(self, page: &Self::Page) -> Result<Option<Self>, Error>;

    fn items_of(page: Self::Page) -> Vec<Self::Item>;
}

/// Page by page.
pub(crate) fn pages<L: Paged>(list: L) -> Listing<L::Page> {
    let pages = stream::try_unfold(Some(list), |list: Option<L>| async move {
        let Some(list) = list else { return Ok(None) };
        let page = list.clone().fetch().await?;
        let next = list.after(&page)?;
        Ok(Some((page, next)))
    });
    Listing(pages.boxed())
}

/// Item by item.
pub(crate) fn items<L: Paged>(list: L) -> Listing<L::Item> {
    let pages = pages(list);
    let items = stream::try_unfold(
        (pages, VecDeque::new()),
        |(mut pages, mut items): (Listing<L::Page>, VecDeque<L::Item>)| async move {
            loop {
                if let Some(item) = items.pop_front() {
                    return Ok(Some((item, (pages, items))));
                }
                match pages.next().await.transpose()? {
                    Some(page) => items = L::items_of(page).into(),
                    None => return Ok(None),
                }
            }
        },
    );
    Listing(items.boxed())
}

/// Where a list with cursors goes on. One that stays where it is would never end.
pub(crate) fn follow<T>(
    call: &Call,
    asked: Option<&UrlText>,
    page: &Page<T>,
) -> Result<Option<String>, Error> {
    let next = page.next_cursor.as_deref();
    if next.is_some() && next == asked.map(UrlText::as_str) {
        return Err(call
            .unreadable("the list does not go on: its next cursor is the one that was asked for"));
    }
    Ok(next.map(str::to_owned))
}

/// `items`, `pages` and their blocking sisters, for a builder that is [`Paged`].
macro_rules! lists {
    ($builder:ty: $item:ty, $page:ty) => {
        impl $builder {
            /// Every item of the list, fetched page by page as they are read.
            pub fn items(self) -> $crate::Listing<$item> {
                $crate::list::items(self)
            }

            /// Every page of the list, fetched as they are read.
            pub fn pages(self) -> $crate::Listing<$page> {
                $crate::list::pages(self)
            }

            /// Every item of the list, without an async runtime. Needs the feature `blocking`.
            ///
            /// # Panics
            /// When it is read inside an async runtime, whose worker it would hold up.
            #[cfg(feature = "blocking")]
            pub fn items_blocking(
                self,
            ) -> impl Iterator<Item = Result<$item, $crate::Error>> + Send {
                $crate::blocking::iterate(self, $crate::list::items)
            }

            /// Every page of the list, without an async runtime. Needs the feature `blocking`.
            ///
            /// # Panics
            /// When it is read inside an async runtime, whose worker it would hold up.
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

/// The most items a numbered page has.
pub(crate) const MOST: u32 = 100;

/// The page after this one. An empty one ends the list, whatever it says; one that was not asked for would come again and
/// again.
pub(crate) fn next_page<T>(
    call: &Call,
    asked: Option<u32>,
    page: &numbered::Page<T>,
) -> Result<Option<u32>, Error> {
    let asked = asked.unwrap_or(1);
    if page.page != asked {
        return Err(
            call.unreadable("the list does not go on: its page is not the one that was asked for")
        );
    }
    Ok((page.has_next_page && !page.items.is_empty()).then(|| asked.saturating_add(1)))
}

/// [`Paged`] for a builder with the fields `call`, `page` and `limit`, whose pages are numbered.
macro_rules! by_page {
    ($builder:ty: $item:ty) => {
        impl $crate::list::Paged for $builder {
            type Item = $item;
            type Page = $crate::applications::Page<$item>;

            #[cfg(feature = "blocking")]
            fn call_mut(&mut self) -> &mut $crate::request::Call {
                &mut self.call
            }

            async fn fetch(mut self) -> Result<Self::Page, $crate::Error> {
                self.limit.get_or_insert($crate::list::MOST);
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

/// [`Paged`] for a builder with the fields `call` and `cursor`, whose page is a [`Page`].
macro_rules! by_cursor {
    ($builder:ty: $item:ty) => {
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
