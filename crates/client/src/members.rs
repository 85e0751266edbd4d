//! Arguments that several calls share, so that they read the same everywhere.

use std::time::Duration;

use serde_json::{Map, Value};

/// Texts as a list of the body.
pub(crate) fn texts(items: impl IntoIterator<Item = impl ToString>) -> Vec<String> {
    items.into_iter().map(|item| item.to_string()).collect()
}

/// Pairs as an object of the body.
pub(crate) fn object(
    pairs: impl IntoIterator<Item = (impl Into<String>, impl Into<Value>)>,
) -> Map<String, Value> {
    pairs
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

/// A window in whole seconds, rounded up: never more uses than meant.
pub(crate) fn seconds(window: Duration) -> i64 {
    let seconds = window
        .as_secs()
        .saturating_add(u64::from(window.subsec_nanos() > 0));
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// The setter of creating calls.
macro_rules! idempotent {
    ($builder:ty) => {
        impl $builder {
            /// Makes it the same creation as another call with this key, within 24 hours: 16 to 255 printable ASCII
            /// characters. When not set, each call is one of its own, however often it is sent.
            pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
                self.idempotency_key = Some($crate::Secret::new(key));
                self
            }
        }
    };
}
pub(crate) use idempotent;

/// The setters of a new key that all surfaces have. `RateLimit` is that of the surface.
macro_rules! restrictions {
    ($builder:ty) => {
        impl $builder {
            /// When it ends, in the future. When not set: never, or with the key that makes it.
            pub fn expires_at(mut self, at: impl Into<$crate::Moment>) -> Self {
                self.body.expires_at = Some(at.into());
                self
            }

            /// The networks it may be used from, in CIDR form with host bits zero. When not set: any, or those of the
            /// key that makes it.
            pub fn allowed_ips(
                mut self,
                networks: impl IntoIterator<Item = impl ToString>,
            ) -> Self {
                self.body.allowed_ips = Some($crate::members::texts(networks));
                self
            }

            /// At most so many uses (1 to 1 000 000) in that time (1 s to a day; a part of a second counts as a whole
            /// one), counted by each verifier for itself. When not set: unlimited, or as the key that makes it.
            pub fn rate_limit(mut self, limit: u32, window: std::time::Duration) -> Self {
                self.body.rate_limit = Some(RateLimit::new(
                    limit.into(),
                    $crate::members::seconds(window),
                ));
                self
            }

            /// What to attach: at most 4 KiB of JSON, given back with the key.
            ///
            /// ```no_run
            /// # async fn example(merchant: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
            /// let created = merchant.commerce().api_keys().create("Web").metadata([("team", "checkout")]).await?;
            /// # Ok(())
            /// # }
            /// ```
            pub fn metadata(
                mut self,
                pairs: impl IntoIterator<Item = (impl Into<String>, impl Into<serde_json::Value>)>,
            ) -> Self {
                self.body.metadata = Some($crate::members::object(pairs));
                self
            }
        }
    };
}
pub(crate) use restrictions;
