//! The subscription of verifiers: snake_case, Unix seconds.
//!
//! A process that verifies keys from its own memory polls `POST /sync`. Each poll says up to where it has forgotten
//! what was changed, waits a while for news, and brings a lease: for so long, counted from before the poll was sent, the
//! process may answer from memory, once it has applied the changes that came with it.
//!
//! A [`KeyRecord`] is read so that nobody is let through by what is not understood. What restricts a key has to be there:
//! absent it would read as no restriction. Its words are closed lists, its rate limit is read to the last member. Other
//! members that are not known are passed over, and that is safe because a new restriction never comes as a new member
//! alone: it comes with a route of its own, or with a word that older verifiers refuse.

use std::fmt;

use serde::{Deserialize, Serialize};
use tollkey_core::{Family, Mode, OperatingModel, feature::Feature, metadata::Metadata};

use crate::{commerce::RateLimit, object::from_objects, time::UnixSeconds};

/// The body of `POST /sync`.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SyncRequest {
    /// Who polls: 128 random bits as hexadecimal digits, made anew by every start of a process and told to nobody else.
    #[cfg_attr(
        feature = "openapi",
        schema(
            example = "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
            pattern = "^[0-9a-f]{32}$"
        )
    )]
    pub subscriber: String,
    /// Which poll this is: 64 random bits as hexadecimal digits, new for each poll, from a source of randomness that the
    /// clone of a machine does not share. A poll is repeated with the same ID and the same `usage` until it has a
    /// response. Absent in polls of release 0.1.0, whose usage counts as often as it arrives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(example = "9f86d081884c7d65", pattern = "^[0-9a-f]{16}$")
    )]
    pub poll_id: Option<String>,
    /// The `poll_id` of the polls of this subscriber that had a response within the last two leases, and at least of the
    /// last 16, the newest first, whichever replica responded. At most 512, so let two polls begin at least 7 ms apart.
    /// Not without `poll_id`. A poll that does not name the last poll that arrived comes from another process, and is
    /// rejected with 409 `subscriber_id_shared`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(
        feature = "openapi",
        schema(max_items = 512, example = json!(["60303ae22b998861"]))
    )]
    pub previous_poll_ids: Vec<String>,
    /// The `cursor` of the last answer, once everything that came with it has been applied: whatever was changed has
    /// been forgotten. Null or absent in the first poll of all and in no other, however little is remembered: without it
    /// nothing is acknowledged, and every change waits for the lease to end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(example = "42-1771848000000000"))]
    pub cursor: Option<String>,
    /// For how many milliseconds the answer may wait for news; what it waits is at most a third of a lease. Not to be
    /// used without a lease.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(example = 1000, maximum = 60_000))]
    pub wait_ms: u32,
    /// How keys were used since the last poll that had a response. With a `poll_id`, a replica counts it once, however
    /// often the poll is repeated, for 15 minutes. It counts twice if a response is lost and the repeat goes to another
    /// replica, to the same one after a restart, or under another `subscriber` after 409 `subscriber_id_shared`. Before the
    /// last poll of all (`leave`), wait for the response to the poll in flight, because another replica may get the last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[cfg_attr(feature = "openapi", schema(max_items = 400))]
    pub usage: Vec<Usage>,
    /// True with the last poll of all: nothing is answered from memory any more, and nobody has to wait for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub leave: bool,
}

/// Without the subscriber and the IDs of its polls: a caller that knew them could acknowledge in its name.
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

/// How often a key was verified with one outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = SyncUsage))]
pub struct Usage {
    /// The key.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000002")
    )]
    pub key_id: String,
    /// `valid`, or the code of the denial.
    #[cfg_attr(feature = "openapi", schema(example = "valid"))]
    pub outcome: String,
    /// How often, at least 1.
    #[cfg_attr(
        feature = "openapi",
        schema(example = 17, minimum = 1, maximum = 4_294_967_295_u64)
    )]
    pub count: u64,
    /// The last of them, with the outcome `valid`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_used_at: Option<UnixSeconds>,
}

/// The answer of `POST /sync`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct SyncResponse {
    /// The number of the last change that is in this answer or in one before: what a look-up has to show.
    #[cfg_attr(feature = "openapi", schema(example = 43))]
    pub seq: i64,
    /// Where the changes lead: to be sent with the next poll.
    #[cfg_attr(feature = "openapi", schema(example = "43-1771848001250000"))]
    pub cursor: String,
    /// What has changed since the cursor that was sent, oldest first; always there. Null when nobody knows: too much was
    /// missed, the replica that answers is behind the one before, or the database was restored. Then every lease held so
    /// far ends at once, everything remembered is forgotten, and look-ups under way are not remembered; only the lease in
    /// this answer counts.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub changes: Option<Vec<Change>>,
    /// For how many milliseconds, counted from before the poll was sent, keys may be answered from memory, once the
    /// changes are applied. Zero when the server holds no lease itself, or there are more changes than one answer holds:
    /// poll again. A shorter lease does not end a longer one from before, unless `changes` is null. Count it on a
    /// clock that goes on while the machine sleeps (`CLOCK_BOOTTIME` on Linux, not `CLOCK_MONOTONIC`), never on the wall
    /// clock. Clocks drift: keep a thousandth and a millisecond back.
    #[cfg_attr(feature = "openapi", schema(example = 2650))]
    pub lease_ms: u64,
}

/// As an answer is read.
#[derive(Deserialize)]
#[serde(remote = "SyncResponse")]
struct ReadSyncResponse {
    seq: i64,
    cursor: String,
    #[serde(deserialize_with = "crate::object::present")]
    changes: Option<Vec<Change>>,
    lease_ms: u64,
}

/// Something that is different from what may be remembered of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = SyncChange))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Change {
    /// `key`, `application` (all of its keys), `account` (all of its keys) or `service_key`. Whoever reads another
    /// word forgets everything.
    #[serde(rename = "type")]
    #[cfg_attr(feature = "openapi", schema(example = "key"))]
    pub kind: String,
    /// Its id.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000002")
    )]
    pub id: String,
}

/// The body of `POST /sync/lookup`.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LookupRequest {
    /// The SHA-256 of the whole text of the presented key, as hexadecimal digits.
    #[cfg_attr(
        feature = "openapi",
        schema(
            example = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            pattern = "^[0-9a-f]{64}$"
        )
    )]
    pub digest: String,
}

impl fmt::Debug for LookupRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LookupRequest(redacted)")
    }
}

/// The answer of `POST /sync/lookup`.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct LookupResponse {
    /// Every change up to this one shows in the key. It may be remembered only if no later one was ever applied: if this
    /// is at least the `seq` of every answer of `POST /sync` that was applied, or begun to be, by the time it is put into
    /// memory.
    #[cfg_attr(feature = "openapi", schema(example = 43))]
    pub seq: i64,
    /// The key, whatever its status; null when there is none.
    pub key: Option<KeyRecord>,
}

/// As an answer is read.
#[derive(Deserialize)]
#[serde(remote = "LookupResponse")]
struct ReadLookupResponse {
    seq: i64,
    #[serde(deserialize_with = "crate::object::option")]
    key: Option<KeyRecord>,
}

from_objects! {
    SyncResponse: "ReadSyncResponse",
    LookupResponse: "ReadLookupResponse",
}

/// Everything a verification judges a key by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct KeyRecord {
    /// Its id.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000002")
    )]
    pub id: String,
    /// Whose it is.
    #[cfg_attr(feature = "openapi", schema(example = "acme"))]
    pub account_id: String,
    /// Its application, for keys of applications.
    #[serde(deserialize_with = "crate::object::present")]
    pub application_id: Option<String>,
    /// Its label.
    #[cfg_attr(feature = "openapi", schema(example = "Primary checkout key"))]
    pub name: String,
    /// Which key system it belongs to.
    pub family: Family,
    /// Live or test.
    pub mode: Mode,
    /// Its shown beginning.
    #[cfg_attr(feature = "openapi", schema(example = "ks_live_9f3a"))]
    pub prefix: String,
    /// Its last four characters.
    #[cfg_attr(feature = "openapi", schema(example = "x7Qd"))]
    pub last4: String,
    /// All scopes it satisfies.
    #[cfg_attr(feature = "openapi", schema(example = json!(["sessions:write"])))]
    pub scopes: Vec<String>,
    /// The merchants it is bound to; null is any.
    #[serde(deserialize_with = "crate::object::present")]
    pub merchants: Option<Vec<String>>,
    /// The features it is bound to; null is any.
    #[serde(deserialize_with = "crate::object::present")]
    pub features: Option<Vec<Feature>>,
    /// The networks it may be used from; null is any.
    #[serde(deserialize_with = "crate::object::present")]
    #[cfg_attr(feature = "openapi", schema(example = json!(["203.0.113.0/24"])))]
    pub allowed_ips: Option<Vec<String>>,
    /// How often it may be used, counted by each verifier for itself; null is unlimited.
    // Read as strictly as in a request: a limit that is only half understood may let through what it should not.
    #[serde(deserialize_with = "crate::commerce::requested")]
    pub rate_limit: Option<RateLimit>,
    /// When it ends; null is never.
    #[serde(deserialize_with = "crate::object::present")]
    pub expires_at: Option<UnixSeconds>,
    /// What was attached to it.
    #[serde(deserialize_with = "crate::object::present")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub metadata: Option<Metadata>,
    /// When it was made.
    pub created_at: UnixSeconds,
    /// Since when it is suspended; null when it is not.
    #[serde(deserialize_with = "crate::object::present")]
    pub suspended_at: Option<UnixSeconds>,
    /// When it was revoked; null when it was not.
    #[serde(deserialize_with = "crate::object::present")]
    pub revoked_at: Option<UnixSeconds>,
    /// When it got its successor; null when it has none. A key that ends no later is over whatever the clock says.
    #[serde(deserialize_with = "crate::object::present")]
    pub rotated_at: Option<UnixSeconds>,
    /// False while its application is disabled.
    pub application_enabled: bool,
    /// How its account does business; bounds what its features allow.
    pub operating_model: OperatingModel,
    /// The rate limits of the keys above it, the root's first, which each use of it counts against as well; empty when
    /// there are none. Whatever else its ancestors restrict is in the fields above already: `revoked_at`,
    /// `suspended_at`, `expires_at` and `allowed_ips` are those that apply. A server of release 0.1.0 does not send it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ancestor_rate_limits: Vec<AncestorRateLimit>,
}

/// The rate limit of a key above another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(as = SyncAncestorRateLimit))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct AncestorRateLimit {
    /// The ID of the key that it belongs to. All descendants of that key share its uses.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000001")
    )]
    pub key_id: String,
    /// The limit.
    pub rate_limit: RateLimit,
}
