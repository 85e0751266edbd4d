//! The rules of the protocol, each of which can be left out.

use std::fmt;

macro_rules! rules {
    ($($(#[doc = $says:literal])+ $rule:ident,)+) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Rule {
            $($(#[doc = $says])+ $rule,)+
        }

        impl Rule {
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
    /// A renewal is rejected unless its verifier has evicted everything up to exactly the counter.
    OnlyUpToDateRenews,

    // Leases and clocks.
    /// A lease starts when its renewal is sent, not when the result arrives.
    LeaseStartsAtRenewal,
    /// The holder of a lease subtracts the margin.
    HoldersSubtract,
    /// A caller that waits for the end of a lease adds the margin.
    WaitersAdd,
    /// Clocks count the time in which the machine is suspended.
    ClocksCountSleep,
    /// A stopped verifier ignores the result of a renewal that was in flight.
    StoppedStaysStopped,
    /// A report of applied changes does not extend the lease.
    ReportsExtendNothing,
    /// A restarted process is another verifier.
    FreshIds,

    // Cache.
    /// A verification checks the lease before it looks up the entry.
    LeaseBeforeEntry,
    /// `applying` is raised before anything is evicted.
    ApplyingFirst,
    /// `evicted` is raised only after everything has been evicted.
    EvictedLast,
    /// A record comes with a counter value read no later than itself.
    OneSnapshot,
    /// A record is cached only if no change later than its counter value has been applied or is being applied.
    FillsCheck,
    /// That check and the insertion are atomic with respect to evictions.
    FillsCheckAtomically,
    /// That check comes before the entry is visible, not after.
    FillsCheckBeforeVisible,

    // Waiting.
    /// A change reads the clock after its UPDATE.
    ClockAfterUpdate,
    /// A change waits until every verifier has reported it, or until a lease and a margin have passed.
    ChangesWait,
    /// A change applies itself to the verifier of the same process, whose row it does not check.
    OwnVerifierToo,
    /// A revocation of a key that is already revoked waits, too.
    RepeatsWait,
    /// A row is removed only if it has not been renewed since it was checked.
    OnlySilentRemoved,
    /// A row must stay silent for a lease and a margin after that check, not after the change.
    SilenceFromCheck,
    /// No two renewals of a verifier write the same number to its row, even if the row was removed in between.
    RenewalsNeverRepeat,
    /// A verifier stops accepting keys before it deletes its row.
    StopBeforeUnregistering,

    // Subscribers.
    /// A verifier reports the minimum of what it and its subscribers have applied.
    ReportsMinimum,
    /// A change waits for the subscribers of the verifier of the same process, whose row it does not check.
    OwnSubscribersToo,
    /// A subscriber is registered in the step that computes the reply to it.
    RegisteredWithReply,
    /// For a subscriber with a lease of this replica, a change counts as applied when it is acknowledged, not
    /// when it is sent.
    RepliesAcknowledgeNothing,
    /// The changes and the lease in a reply are read in the same step.
    ReplyInOneStep,
    /// A subscriber's lease is no longer than the remaining lease of its replica.
    LeasesNest,
    /// A subscriber's lease starts when its poll is sent, not when the reply arrives.
    LeaseStartsAtPoll,
    /// A subscriber takes a lease only after it has applied the changes in the same reply.
    AppliedBeforeTaken,
    /// A subscriber counts as a lease holder until the end of the longest lease that it was granted.
    LargestLease,
    /// A replica does not delete its row while a subscriber may hold a lease.
    SubscribersOutlived,

    // Keys that create keys.
    /// A decision evaluates the status of every ancestor.
    AncestorsDecide,
    /// The status of the ancestors comes with a counter value read no later than itself.
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
    /// The end of a marking is a change that evicts the descendants, for servers of the previous release.
    MarkingAnnounced,
}

#[derive(Debug, Clone, Copy)]
pub struct Rules(Option<Rule>);

impl Rules {
    #[must_use]
    pub fn all() -> Self {
        Self(None)
    }

    #[must_use]
    pub fn without(rule: Rule) -> Self {
        Self(Some(rule))
    }

    #[must_use]
    pub fn keep(self, rule: Rule) -> bool {
        self.0 != Some(rule)
    }
}
