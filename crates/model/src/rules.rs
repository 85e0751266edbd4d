//! The rules of the protocol, each of which can be left out.

use std::fmt;

macro_rules! rules {
    ($($(#[doc = $says:literal])+ $rule:ident,)+) => {
        /// A rule of the protocol.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Rule {
            $($(#[doc = $says])+ $rule,)+
        }

        impl Rule {
            /// Every rule.
            pub const ALL: &[Self] = &[$(Self::$rule),+];
        }

        impl fmt::Display for Rule {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$rule => concat!($($says),+),)+
                }.trim_start())
            }
        }
    };
}

rules! {
    // The change and its counter.
    /// A change and the rise of the counter become visible together.
    ChangeWithCounter,
    /// Changes are numbered in the order of their commits.
    NumberedAsCommitted,
    /// A renewal waits for a change between its UPDATE and its commit (`FOR SHARE`), and compares and writes
    /// in one step.
    ShareLock,
    /// A renewal is rejected unless its verifier has applied exactly the changes up to the counter.
    OnlyAtTheNewest,

    // Leases and clocks.
    /// The time of a lease counts from before its renewal was sent.
    CountedFromAsking,
    /// The holder of a lease subtracts the margin.
    HoldersSubtract,
    /// A caller that waits for the end of a lease adds the margin.
    WaitersAdd,
    /// The clock continues while the machine sleeps.
    ClocksCountSleep,
    /// A stopped verifier ignores the result of a renewal that was in flight.
    StoppedStaysStopped,
    /// A report of applied changes does not extend the lease.
    ReportsExtendNothing,
    /// A restarted process is another verifier, with a new ID.
    FreshIds,

    // Cache.
    /// A verification checks the lease before it looks up the entry.
    LeaseBeforeEntry,
    /// `applying` is raised before anything is evicted.
    ApplyingFirst,
    /// `evicted` is raised only after everything has been evicted.
    EvictedLast,
    /// A fetched record comes with a counter value that was read no later than the record.
    OneSnapshot,
    /// A record is cached only if no change after its counter value has begun to be applied.
    FillsLook,
    /// That check and the insertion are atomic with respect to evictions.
    FillsLookUnderTheLock,
    /// That check comes before the entry is visible, not after.
    FillsLookBeforeVisible,

    // Waiting.
    /// A change reads the clock after its UPDATE.
    ClockAfterUpdate,
    /// A change waits until every verifier has reported it, or until a lease and a margin have passed.
    ChangesWait,
    /// A change also waits until the verifier of its own process, whose row it does not check, has applied it.
    OwnVerifierToo,
    /// A revocation of a key that is already revoked waits, too.
    RepeatsWait,
    /// A row is removed only if it has not been renewed since it was checked.
    OnlySilentRemoved,
    /// The time without a renewal counts from that check.
    SilenceFromLook,
    /// No two renewals of a verifier write the same number to its row, even if the row was removed in between.
    RenewalsNeverRepeat,
    /// A verifier stops accepting keys before it deletes its row.
    StopBeforeUnregistering,

    // Subscribers.
    /// A verifier reports the minimum of what it and its subscribers have applied.
    ReportsLeast,
    /// A change also waits for the subscribers of the verifier of its own process, whose row it does not check.
    OwnSubscribersToo,
    /// A subscriber is registered in the step that computes the reply to it.
    RegisteredWithReply,
    /// A reply does not count as acknowledged by a subscriber that already holds a lease of the replica.
    AnswersAcknowledgeNothing,
    /// The changes and the lease in a reply are read at the same moment.
    ReplyOfOneMoment,
    /// A subscriber's lease is no longer than the remaining lease of its replica.
    LeasesNest,
    /// A subscriber counts its lease from before it sent the poll.
    CountedFromPolling,
    /// A subscriber takes a lease only after applying the changes that came with it.
    AppliedBeforeTaken,
    /// A subscriber counts as alive until the end of the longest lease that it was granted.
    LargestLease,
    /// A replica does not delete its row while a subscriber may hold a lease.
    SubscribersOutlived,

    // Keys that create keys.
    /// A decision evaluates the status of every ancestor.
    AncestorsDecide,
    /// The status of the ancestors comes with a counter value that was read no later than the status.
    AncestorsInSnapshot,
    /// The revocation of a key with descendants also evicts its cached descendants.
    DescendantsEvicted,
    /// A revocation looks for descendants of the key while it holds the lock on the key's row.
    DescendantsReadUnderLock,
    /// The creation of a key by a key checks that every ancestor is active.
    CreationChecksAncestors,
    /// The creation of a key by a key locks every ancestor before that check, and keeps the locks until it commits.
    CreationLocksAncestors,
    /// The pending row of a marking is written in the transaction of the revocation.
    PendingWithRevocation,
    /// Any replica resumes an interrupted marking.
    MarkingResumed,
    /// A marking ends with a change that evicts the descendants from servers of the previous release.
    MarkingAnnounced,
}

/// All rules, or all but one.
#[derive(Debug, Clone, Copy)]
pub struct Rules(Option<Rule>);

impl Rules {
    /// Returns all rules: the protocol.
    #[must_use]
    pub fn all() -> Self {
        Self(None)
    }

    /// Returns all rules but one.
    #[must_use]
    pub fn without(rule: Rule) -> Self {
        Self(Some(rule))
    }

    /// Returns whether a rule is kept.
    #[must_use]
    pub fn keep(self, rule: Rule) -> bool {
        self.0 != Some(rule)
    }
}
