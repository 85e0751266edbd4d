//! Setters that several calls share.

use std::time::Duration;

use serde_json::{Map, Value};

/// Converts values to a JSON array of strings.
pub(crate) fn texts(items: impl IntoIterator<Item = impl ToString>) -> Vec<String> {
    items.into_iter().map(|item| item.to_string()).collect()
}

/// Converts pairs to a JSON object.
pub(crate) fn object(
    pairs: impl IntoIterator<Item = (impl Into<String>, impl Into<Value>)>,
) -> Map<String, Value> {
    pairs
        .into_iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

/// Returns a window in whole seconds, rounded up, so that the limit is never higher than intended.
pub(crate) fn seconds(window: Duration) -> i64 {
    let seconds = window
        .as_secs()
        .saturating_add(u64::from(window.subsec_nanos() > 0));
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

/// Adds `idempotency_key` to a builder.
macro_rules! idempotent {
    ($builder:ty) => {
        impl $builder {
            /// The idempotency key: 16 to 255 printable ASCII characters, without `"` and `\`. Calls with the same
            /// key within 24 hours create only one resource. When not set, each call creates its own.
            pub fn idempotency_key(mut self, key: impl Into<String>) -> Self {
                self.call = self.call.with_idempotency_key(key);
                self
            }
        }
    };
}
pub(crate) use idempotent;

/// Adds the restrictions of a new key to a builder. `RateLimit` is the type of the surface.
macro_rules! restrictions {
    ($builder:ty) => {
        impl $builder {
            /// The time when the key expires, in the future. When not set, it never expires, or expires with its
            /// parent key.
            pub fn expires_at(mut self, at: impl Into<$crate::Moment>) -> Self {
                self.body.expires_at = Some(at.into());
                self
            }

            /// The IP allowlist: CIDR ranges with host bits zero. When not set: none, or that of the parent key.
            pub fn allowed_ips(mut self, ranges: impl IntoIterator<Item = impl ToString>) -> Self {
                self.body.allowed_ips = Some($crate::members::texts(ranges));
                self
            }

            /// The rate limit: at most `limit` uses (1 to 1,000,000) per `window` (1 s to a day, rounded up to
            /// whole seconds). Each verifier counts separately. When not set: none, or that of the parent key.
            pub fn rate_limit(mut self, limit: u32, window: std::time::Duration) -> Self {
                self.body.rate_limit = Some(RateLimit::new(
                    limit.into(),
                    $crate::members::seconds(window),
                ));
                self
            }

            /// Metadata: at most 4 KiB of JSON, returned with the key.
            ///
            /// ```no_run
            /// # async fn example(management: tollkey_client::Client) -> Result<(), tollkey_client::Error> {
            /// let created = management.commerce().api_keys().create("Web").metadata([("team", "checkout")]).await?;
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
