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
    /// The numbers of changes are the order of their commits.
    NumberedAsCommitted,
    /// A renewal waits for a change between its UPDATE and its commit (`FOR SHARE`), and compares and writes in one.
    ShareLock,
    /// A renewal is refused unless the counter is exactly what its verifier has finished evicting.
    OnlyAtTheNewest,

    // Leases and clocks.
    /// A lease counts from before it was asked for.
    CountedFromAsking,
    /// Who holds a lease subtracts the margin.
    HoldersSubtract,
    /// Who waits for the end of a lease adds the margin.
    WaitersAdd,
    /// The clock goes on while the machine sleeps.
    ClocksCountSleep,
    /// A verifier that has been stopped takes no lease that was still under way.
    StoppedStaysStopped,
    /// A report of what has been applied extends no lease.
    ReportsExtendNothing,
    /// A process that starts again is another verifier.
    FreshIds,

    // Memory.
    /// The lease is looked at before the entry.
    LeaseBeforeEntry,
    /// `applying` is raised before anything is evicted.
    ApplyingFirst,
    /// `evicted` is set only once everything has been evicted.
    EvictedLast,
    /// A record comes with a counter value read no later than itself.
    OneSnapshot,
    /// A record is remembered only if nothing beyond its counter value has begun to be applied.
    FillsLook,
    /// That look and the insertion are one step to those who evict.
    FillsLookUnderTheLock,
    /// That look comes before the entry is visible, not after.
    FillsLookBeforeVisible,

    // Waiting.
    /// Who makes a change reads the clock after the UPDATE.
    ClockAfterUpdate,
    /// Who makes a change waits until everybody has reported it or a lease and a margin are over.
    ChangesWait,
    /// Who makes a change applies it to the verifier of its own process, whose row it does not look at.
    OwnVerifierToo,
    /// "It is so already" waits, too.
    RepeatsWait,
    /// A row is removed only if it has not been renewed since it was looked at.
    OnlySilentRemoved,
    /// Silence counts from that look.
    SilenceFromLook,
    /// No two renewals of a verifier leave the same number in its row, not even if the row was removed in between.
    RenewalsNeverRepeat,
    /// A verifier stops answering before it deletes its row.
    StopBeforeUnregistering,

    // Subscribers.
    /// A verifier reports the least of what it and its subscribers have applied.
    ReportsLeast,
    /// Who makes a change waits for the subscribers of its own verifier, whose row it does not look at.
    OwnSubscribersToo,
    /// A subscriber is registered in the step that computes the reply to it.
    RegisteredWithReply,
    /// For a subscriber that holds a lease from here, only what it has acknowledged itself counts, not what it was told.
    AnswersAcknowledgeNothing,
    /// The changes in a reply and the lease that comes with them are of one moment.
    ReplyOfOneMoment,
    /// A subscriber's lease is no longer than what is left of its replica's.
    LeasesNest,
    /// A subscriber counts its lease from before it sent the poll.
    CountedFromPolling,
    /// A subscriber takes a lease only after applying the changes that came with it.
    AppliedBeforeTaken,
    /// A subscriber counts as alive until the end of the largest lease it was ever given.
    LargestLease,
    /// A replica does not delete its row while a subscriber's lease may live.
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
    /// Any replica resumes a marking that was interrupted.
    MarkingResumed,
    /// The end of a marking is a change that evicts the descendants, for servers of the previous release.
    MarkingAnnounced,
}

/// Which rules are kept.
#[derive(Debug, Clone, Copy)]
pub struct Rules(Option<Rule>);

impl Rules {
    /// All of them: the protocol.
    #[must_use]
    pub fn all() -> Self {
        Self(None)
    }

    /// All but one.
    #[must_use]
    pub fn without(rule: Rule) -> Self {
        Self(Some(rule))
    }

    /// Whether a rule is kept.
    #[must_use]
    pub fn keep(self, rule: Rule) -> bool {
        self.0 != Some(rule)
    }
}
