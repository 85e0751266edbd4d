//! The subscription of verifiers: snake_case, Unix seconds.
//!
//! A process that verifies keys from its own cache polls `POST /sync`. A poll acknowledges the
//! changes that the process has applied, waits for further changes, and returns them with a lease.
//! During the lease, which begins when the poll is sent, the process may use its cache, once it has
//! applied the returned changes.
//!
//! A [`KeyRecord`] is read strictly. A restriction that is absent is an error, because it would
//! read as no restriction; so is an unknown enum value or an unknown field of a rate limit. Other
//! unknown fields are ignored. That is safe because a new restriction comes with a new route, or
//! with an enum value that older verifiers reject.

use std::fmt;

use serde::{Deserialize, Serialize};
use tollkey_core::{Family, Mode, OperatingModel, feature::Feature, metadata::Metadata};

use crate::{commerce::RateLimit, object::from_objects, time::UnixSeconds};

/// The body of `POST /sync`.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SyncRequest {
    /// The ID of the subscriber: 128 random bits as 32 hexadecimal digits. Each process creates a
    /// new ID when it starts, and keeps it secret.
    #[cfg_attr(
        feature = "openapi",
        schema(
            example = "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
            pattern = "^[0-9A-Fa-f]{32}$"
        )
    )]
    pub subscriber: String,
    /// The ID of the poll: 64 random bits as 16 hexadecimal digits, new for each poll. A clone of
    /// the machine must not generate the same random bits. Until a poll gets a response, repeat it
    /// with the same ID and the same `usage`. A subscriber of release 0.1.0 does not send this
    /// field; the server then counts the usage of a repeated poll again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(example = "9f86d081884c7d65", pattern = "^[0-9a-f]{16}$")
    )]
    pub poll_id: Option<String>,
    /// The `poll_id` of each earlier poll of this subscriber that got a response from any replica
    /// within the last two leases, and of at least the last 16 polls, newest first. At most 512
    /// items, so leave at least 7 ms between the starts of two polls. Requires `poll_id`. If the
    /// last poll that the replica received is not in this list, another process uses the same
    /// `subscriber`, and the replica responds with 409 `subscriber_id_shared`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "openapi",
        schema(max_items = 512, pattern = "^[0-9a-f]{16}$", example = json!(["60303ae22b998861"]))
    )]
    pub previous_poll_ids: Vec<String>,
    /// The `cursor` of the last response whose changes were all applied, that is, every changed key
    /// was evicted. Null or absent only in the first poll of the process, even if the cache is
    /// empty: a poll without a cursor acknowledges nothing, so every change waits until the lease
    /// ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(example = "42-1771848000000000", pattern = "^[0-9]+-[0-9]+$")
    )]
    pub cursor: Option<String>,
    /// The maximum time that the server waits for changes, in milliseconds: 0 to 60,000. The server
    /// waits for at most a third of a lease. Must be 0 while the subscriber has no lease. Default:
    /// 0.
    #[serde(default)]
    #[cfg_attr(
        feature = "openapi",
        schema(example = 1000, minimum = 0, maximum = 60_000)
    )]
    pub wait_ms: u32,
    /// The uses of keys since the last poll that got a response: at most 400 items. With a
    /// `poll_id`, a replica does not count them again if the poll is repeated within 15 minutes.
    /// They are counted twice if a response is lost and the poll is repeated at another replica, at
    /// the same replica after a restart, or under another `subscriber` after 409
    /// `subscriber_id_shared`. Before the last poll (`leave`), wait for the response to the current
    /// poll, because another replica may receive the last poll.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(max_items = 400))]
    pub usage: Vec<Usage>,
    /// Whether this is the last poll. The process no longer uses its cache, and the server no
    /// longer waits for it. Default: false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leave: bool,
}

/// Hides the IDs of the subscriber and of its polls: another process that knew them could acknowledge changes for it.
impl fmt::Debug for SyncRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            subscriber: _,
            poll_id: _,
            previous_poll_ids: _,
            cursor,
            wait_ms,
            usage,
            leave,
        } = self;
        f.debug_struct("SyncRequest")
            .field("cursor", cursor)
            .field("wait_ms", wait_ms)
            .field("usage", usage)
            .field("leave", leave)
            .finish_non_exhaustive()
    }
}

/// The number of verifications of a key with one outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = SyncUsage))]
pub struct Usage {
    /// The ID of the key.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::key_id))]
    pub key_id: String,
    /// `valid`, or the code of a denial other than `unknown_key`.
    #[cfg_attr(feature = "openapi", schema(schema_with = outcome))]
    pub outcome: String,
    /// The number of verifications: 1 to 4,294,967,295.
    #[cfg_attr(
        feature = "openapi",
        schema(example = 17, minimum = 1, maximum = 4_294_967_295_u64)
    )]
    pub count: u64,
    /// With the outcome `valid`: the time of the last verification.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<UnixSeconds>,
}

/// `valid` or a denial that is counted.
#[cfg(feature = "openapi")]
fn outcome() -> utoipa::openapi::Object {
    use tollkey_core::{Denial, usage::outcome_code};

    let denials = Denial::ALL
        .into_iter()
        .filter(|denial| *denial != Denial::UnknownKey);
    let codes = [None]
        .into_iter()
        .chain(denials.map(Some))
        .map(outcome_code);
    utoipa::openapi::ObjectBuilder::new()
        .schema_type(utoipa::openapi::Type::String)
        .description(Some(
            "`valid`, or the code of a denial other than `unknown_key`.",
        ))
        .enum_values(Some(codes))
        .build()
}

/// The response of `POST /sync`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct SyncResponse {
    /// The sequence number of the last change in this or an earlier response. The response to a
    /// lookup must have at least this number.
    #[cfg_attr(feature = "openapi", schema(example = 43))]
    pub seq: i64,
    /// The cursor after these changes. Send it with the next poll once the changes are applied.
    #[cfg_attr(feature = "openapi", schema(example = "43-1771848001250000"))]
    pub cursor: String,
    /// The changes since the `cursor` of the request, oldest first. Always present. Null if the
    /// server does not know them: the subscriber missed too many, this replica lags behind the
    /// previous one, or the database was restored. Then the subscriber must end every earlier lease
    /// and evict every cached key immediately, and must not cache the results of lookups in
    /// progress. Only the lease in this response counts.
    #[serde(deserialize_with = "crate::object::present")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub changes: Option<Vec<Change>>,
    /// The length of the lease in milliseconds, counted from before the poll was sent. The
    /// subscriber may use its cache during the lease, once the changes are applied. 0 if the server
    /// has no lease itself, or if there are more changes than fit in one response: poll again. A
    /// shorter lease does not end an earlier, longer one, unless `changes` is null. Measure it with
    /// a clock that continues while the machine sleeps (`CLOCK_BOOTTIME` on Linux, not
    /// `CLOCK_MONOTONIC`), never with the wall clock. Because clocks drift, shorten the lease by a
    /// thousandth and one millisecond.
    #[cfg_attr(feature = "openapi", schema(example = 2650))]
    pub lease_ms: u64,
}

/// A resource that was changed. The subscriber evicts the keys that it affects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = SyncChange))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Change {
    /// The type of the resource: `key`, `application` (affects all of its keys), `account` (affects
    /// all of its keys) or `service_key`. For any other value, the subscriber evicts every cached
    /// key.
    #[serde(rename = "type")]
    #[cfg_attr(feature = "openapi", schema(example = "key"))]
    pub kind: String,
    /// The ID of the resource.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::key_id))]
    pub id: String,
}

/// The body of `POST /sync/lookup`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = SyncLookupRequest))]
pub struct LookupRequest {
    /// The SHA-256 of the full key, as 64 hexadecimal digits.
    #[cfg_attr(
        feature = "openapi",
        schema(
            example = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            pattern = "^[0-9A-Fa-f]{64}$"
        )
    )]
    pub digest: String,
}

impl fmt::Debug for LookupRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LookupRequest(redacted)")
    }
}

/// The response of `POST /sync/lookup`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(remote = "Self")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = SyncLookupResponse))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct LookupResponse {
    /// The sequence number of a change: this response reflects that change and every earlier one.
    /// Cache the key only if this number is at least the `seq` of every response of `POST /sync`
    /// whose changes were applied, or were being applied, by the time the key is put into the
    /// cache.
    #[cfg_attr(feature = "openapi", schema(example = 43))]
    pub seq: i64,
    /// The key, with any status. Null if it does not exist.
    #[serde(deserialize_with = "crate::object::option")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub key: Option<KeyRecord>,
}

from_objects!(SyncResponse: "SyncResponse::deserialize", LookupResponse: "LookupResponse::deserialize");

/// All data about a key that a verification needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = SyncKeyRecord))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct KeyRecord {
    /// The ID of the key.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::key_id))]
    pub id: String,
    /// The ID of the account.
    #[cfg_attr(feature = "openapi", schema(example = "acme"))]
    pub account_id: String,
    /// The ID of the application. Null for a key that is not an application key.
    #[serde(deserialize_with = "crate::object::present")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub application_id: Option<String>,
    /// The label of the key.
    #[cfg_attr(feature = "openapi", schema(example = "Primary checkout key"))]
    pub name: String,
    /// The family of the key.
    pub family: Family,
    /// The mode of the key.
    pub mode: Mode,
    /// The first characters of the key.
    #[cfg_attr(feature = "openapi", schema(example = "ks_live_9f3a"))]
    pub prefix: String,
    /// The last four characters of the key.
    #[cfg_attr(feature = "openapi", schema(example = "x7Qd"))]
    pub last4: String,
    /// All scopes that the key has, including those that `commerce` implies.
    #[cfg_attr(feature = "openapi", schema(example = json!(["sessions:write"])))]
    pub scopes: Vec<String>,
    /// The merchants that the key is limited to. Null allows every merchant.
    #[serde(deserialize_with = "crate::object::present")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub merchants: Option<Vec<String>>,
    /// The features that the key is limited to. Null means that the key is not limited to features.
    #[serde(deserialize_with = "crate::object::present")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub features: Option<Vec<Feature>>,
    /// The IP ranges that the key can be used from. Null allows every IP address.
    #[serde(deserialize_with = "crate::object::present")]
    #[cfg_attr(feature = "openapi", schema(required, example = json!(["203.0.113.0/24"])))]
    pub allowed_ips: Option<Vec<String>>,
    // An unknown field is an error, as in a request: a verifier that ignored it could allow too many uses.
    /// The rate limit of the key, which each verifier counts for itself, or null.
    #[serde(deserialize_with = "crate::commerce::requested")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub rate_limit: Option<RateLimit>,
    /// The time when the key expires, or null.
    #[serde(deserialize_with = "crate::object::present")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub expires_at: Option<UnixSeconds>,
    /// The metadata of the key, or null.
    #[serde(deserialize_with = "crate::object::present")]
    #[cfg_attr(feature = "openapi", schema(required, value_type = Option<Object>))]
    pub metadata: Option<Metadata>,
    /// The time when the key was created.
    pub created_at: UnixSeconds,
    /// The time when the key was suspended. Null if it is not suspended.
    #[serde(deserialize_with = "crate::object::present")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub suspended_at: Option<UnixSeconds>,
    /// The time when the key was revoked. Null if it is not revoked.
    #[serde(deserialize_with = "crate::object::present")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub revoked_at: Option<UnixSeconds>,
    /// The time when the key was rotated. Null if it was not rotated. A key whose `expires_at` is
    /// not later than this time is expired, whatever the verifier's clock shows.
    #[serde(deserialize_with = "crate::object::present")]
    #[cfg_attr(feature = "openapi", schema(required))]
    pub rotated_at: Option<UnixSeconds>,
    /// False while the application of the key is disabled.
    pub application_enabled: bool,
    /// The operating model of the account. It limits the features of the key.
    pub operating_model: OperatingModel,
    /// The rate limits of the ancestors of the key, the root first. Each use of the key counts
    /// against all of them. Can be empty. The other restrictions of the ancestors are
    /// already included in `revoked_at`, `suspended_at`, `expires_at` and `allowed_ips`. A server
    /// of release 0.1.0 does not send this field.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ancestor_rate_limits: Vec<AncestorRateLimit>,
}

/// The rate limit of an ancestor of a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = SyncAncestorRateLimit))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct AncestorRateLimit {
    /// The ID of the ancestor. All descendants of the ancestor share its rate limit.
    #[cfg_attr(feature = "openapi", schema(example = crate::examples::application_id))]
    pub key_id: String,
    /// The rate limit of the ancestor.
    pub rate_limit: RateLimit,
}
