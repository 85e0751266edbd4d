//! The subscribers of this verifier: verifiers without a store in other processes.
//!
//! A subscriber's lease ends no later than this verifier's lease, and a change is reported as applied only if
//! all subscribers with a lease have applied it. All of this is under the lock of the cache, so that a
//! subscriber is registered in the same critical section that computes its response.
//!
//! A subscriber ID belongs to one process. If a snapshot of a virtual machine copies it together with the
//! lease, one process could acknowledge changes that the other has not applied. Therefore each poll has a
//! random ID, and names the polls before it ([`PollIds`]):
//!
//! - A poll that names the last poll follows it. Its acknowledgement counts.
//! - A poll with the ID of the last poll repeats it. Its usage counts once.
//! - A poll with the ID of an earlier poll arrives late, after its sender gave up on it. It has no effect.
//! - The first poll with an ID, and the first one after a poll without an ID, is accepted.
//! - Any other poll comes from another process. From then on, no lease is granted under this ID, both
//!   processes are told to take a new one, and nothing counts as acknowledged until the longest lease under
//!   the old ID has ended.
//!
//! Two processes are detected when both have sent a new poll to the same replica; no protocol can distinguish
//! them earlier. Until then, for one lease at most, one may accept a key whose revocation the other has
//! acknowledged. Therefore the model checker does not cover this rule.

use std::collections::HashMap;

use tollkey_core::{Seq, VerifierId};

use crate::source::{PollId, PollIds};

/// The maximum number of subscribers with a lease from one verifier. Each is a process; more of them need
/// more replicas.
const MAX: usize = 1024;

/// The maximum number of known subscribers, including those without a lease. Beyond it, the one that has been
/// silent for the longest time is removed. Each takes at most 4 KiB for the IDs of its polls
/// ([`PollIds::PREVIOUS`]), all together 8 MiB.
const MAX_KNOWN: usize = 2 * MAX;

/// For how long the last poll of a subscriber without a lease is known, in nanoseconds. When a subscriber
/// reaches the server again within this time and repeats its last poll, usage that was counted already does
/// not count twice.
const POLL_KNOWN: u64 = 15 * 60 * 1_000_000_000;

/// There are too many subscribers already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

/// Two processes use this subscriber ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SharedId;

/// Why a subscriber gets no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoLease {
    /// There are too many subscribers.
    Full,
    /// Two processes use its ID.
    SharedId,
}

impl From<Full> for NoLease {
    fn from(_: Full) -> Self {
        Self::Full
    }
}

impl From<SharedId> for NoLease {
    fn from(_: SharedId) -> Self {
        Self::SharedId
    }
}

/// How a poll relates to the last one of the same subscriber.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// It is the newest poll, or repeats it.
    Newest,
    /// The subscriber has sent a newer poll since, and does not wait for the response.
    Late,
}

#[derive(Debug)]
struct Subscriber {
    /// The change up to which it has applied all changes.
    acknowledged: Seq,
    /// The latest end of its leases from this verifier, in nanoseconds of this verifier's clock; 0 for none.
    lease_end: u64,
    /// It has ended its subscription. Kept until its lease would have ended, so that a poll that is still
    /// waiting does not register it again.
    left: bool,
    /// Two processes use this ID.
    shared: bool,
    /// The newest poll; `None` if it has no ID.
    newest: Option<PollIds>,
    /// The poll whose usage was counted last.
    counted: Option<PollId>,
    heard_at: u64,
}

impl Subscriber {
    fn new(now: u64) -> Self {
        Self {
            acknowledged: Seq::default(),
            lease_end: 0,
            left: false,
            shared: false,
            newest: None,
            counted: None,
            heard_at: now,
        }
    }

    /// Whether a lease from this verifier may be valid at `now`.
    fn may_hold_lease(&self, margin: u64, now: u64) -> bool {
        self.lease_end > 0 && now < self.lease_end.saturating_add(margin)
    }

    fn is_newest(&self, ids: &PollIds) -> bool {
        self.newest
            .as_ref()
            .is_some_and(|newest| newest.id == ids.id)
    }
}

#[derive(Debug)]
pub(crate) struct Subscribers {
    known: HashMap<VerifierId, Subscriber>,
    /// Added to the end of a lease before it counts as ended, in nanoseconds.
    margin: u64,
}

impl Subscribers {
    pub(crate) fn new(margin: u64) -> Self {
        Self {
            known: HashMap::new(),
            margin,
        }
    }

    /// Removes subscribers whose leases have ended at `now` and whose last poll was longer ago than [`POLL_KNOWN`].
    fn drop_lapsed(&mut self, now: u64) {
        let margin = self.margin;
        self.known.retain(|_, subscriber| {
            let may_repeat =
                subscriber.newest.is_some() && now < subscriber.heard_at.saturating_add(POLL_KNOWN);
            subscriber.may_hold_lease(margin, now) || may_repeat
        });
    }

    /// Removes a subscriber without a lease if there are [`MAX_KNOWN`] already.
    fn evict_silent(&mut self, now: u64) {
        if self.known.len() < MAX_KNOWN {
            return;
        }
        let without_lease = self
            .known
            .iter()
            .filter(|(_, subscriber)| !subscriber.may_hold_lease(self.margin, now));
        let silent = without_lease
            .min_by_key(|(_, subscriber)| subscriber.heard_at)
            .map(|(id, _)| *id);
        if let Some(id) = silent {
            self.known.remove(&id);
        }
    }

    /// Records that a poll has arrived; `leaves` for the end of a subscription. Its acknowledgement counts only if this
    /// returns [`Arrival::Newest`].
    pub(crate) fn arrive(
        &mut self,
        id: VerifierId,
        ids: Option<&PollIds>,
        leaves: bool,
        now: u64,
    ) -> Result<Arrival, SharedId> {
        self.drop_lapsed(now);
        let Some(ids) = ids else {
            let Some(subscriber) = self.known.get_mut(&id) else {
                return Ok(Arrival::Newest);
            };
            // The subscriber may send polls without IDs, for example to replicas of different releases behind a load
            // balancer, so its next poll with an ID need not name the last one with an ID.
            subscriber.newest = None;
            return if subscriber.shared {
                Err(SharedId)
            } else {
                Ok(Arrival::Newest)
            };
        };
        if !self.known.contains_key(&id) {
            self.evict_silent(now);
        }
        let subscriber = self.known.entry(id).or_insert_with(|| Subscriber::new(now));
        if subscriber.shared {
            return Err(SharedId);
        }
        if let Some(newest) = subscriber
            .newest
            .as_ref()
            .filter(|newest| newest.id != ids.id)
        {
            if newest.previous.contains(&ids.id) {
                return Ok(Arrival::Late);
            }
            // A process that has ended its subscription sends no more polls.
            let follows = ids.previous.contains(&newest.id) && (leaves || !subscriber.left);
            if !follows && subscriber.may_hold_lease(self.margin, now) {
                subscriber.shared = true;
                subscriber.left = false;
                subscriber.acknowledged = Seq::default();
                return Err(SharedId);
            }
            if !follows {
                // No lease from this verifier is valid, so the subscriber can start anew.
                *subscriber = Subscriber::new(now);
            }
        }
        let previous = ids
            .previous
            .iter()
            .take(PollIds::PREVIOUS)
            .copied()
            .collect();
        subscriber.newest = Some(PollIds {
            id: ids.id,
            previous,
        });
        subscriber.heard_at = now;
        Ok(Arrival::Newest)
    }

    /// Returns how a poll that has arrived relates to the newest poll now, for example after its wait.
    pub(crate) fn arrival_now(
        &self,
        id: VerifierId,
        ids: Option<&PollIds>,
    ) -> Result<Arrival, SharedId> {
        match (self.known.get(&id), ids) {
            (Some(subscriber), _) if subscriber.shared => Err(SharedId),
            (Some(subscriber), Some(ids)) if !subscriber.is_newest(ids) => Ok(Arrival::Late),
            _ => Ok(Arrival::Newest),
        }
    }

    /// Returns whether the usage of this poll has to be counted, and marks it as counted. Call it only if the
    /// response is sent.
    pub(crate) fn counts(&mut self, id: VerifierId, ids: Option<&PollIds>) -> bool {
        let (Some(ids), Some(subscriber)) = (ids, self.known.get_mut(&id)) else {
            return true;
        };
        subscriber.is_newest(ids) && subscriber.counted.replace(ids.id) != Some(ids.id)
    }

    /// Records that a subscriber has applied all changes up to `seq`.
    pub(crate) fn acknowledge(&mut self, id: VerifierId, seq: Seq) {
        if let Some(subscriber) = self.known.get_mut(&id) {
            subscriber.acknowledged = subscriber.acknowledged.max(seq);
        }
    }

    /// Grants a lease until `lease_end` with a response that has all changes up to `sent`. A subscriber
    /// without a lease uses its cache only after applying that response, so it counts as acknowledged; a
    /// subscriber with a lease may still use its cache without these changes. Returns `false` for a
    /// subscriber that has left.
    pub(crate) fn grant(
        &mut self,
        id: VerifierId,
        sent: Seq,
        lease_end: u64,
        now: u64,
    ) -> Result<bool, Full> {
        self.drop_lapsed(now);
        let margin = self.margin;
        let may_hold_lease = self
            .known
            .get(&id)
            .is_some_and(|subscriber| subscriber.may_hold_lease(margin, now));
        if !may_hold_lease
            && self
                .known
                .values()
                .filter(|other| other.may_hold_lease(margin, now))
                .count()
                >= MAX
        {
            return Err(Full);
        }
        if !self.known.contains_key(&id) {
            self.evict_silent(now);
        }
        let subscriber = self.known.entry(id).or_insert_with(|| Subscriber::new(now));
        if subscriber.left {
            return Ok(false);
        }
        if !may_hold_lease {
            subscriber.acknowledged = sent;
        }
        subscriber.lease_end = subscriber.lease_end.max(lease_end);
        Ok(true)
    }

    /// Ends the subscription of a subscriber that has ended its lease.
    pub(crate) fn end_subscription(&mut self, id: VerifierId) {
        if let Some(subscriber) = self.known.get_mut(&id) {
            subscriber.left = true;
        }
    }

    /// The subscribers whose lease may be valid at `now`.
    fn with_lease(&self, now: u64) -> impl Iterator<Item = &Subscriber> {
        let margin = self.margin;
        self.known
            .values()
            .filter(move |subscriber| !subscriber.left && subscriber.may_hold_lease(margin, now))
    }

    /// Discards all acknowledgements, because they belong to another log.
    pub(crate) fn clear_acknowledgements(&mut self) {
        for subscriber in self.known.values_mut() {
            subscriber.acknowledged = Seq::default();
        }
    }

    /// Returns the change up to which all subscribers with a lease at `now` have applied everything, or `None` if no
    /// subscriber has a lease.
    pub(crate) fn acknowledged(&mut self, now: u64) -> Option<Seq> {
        self.with_lease(now)
            .map(|subscriber| subscriber.acknowledged)
            .min()
    }

    pub(crate) fn end(&self) -> Option<u64> {
        let subscribed = self
            .known
            .values()
            .filter(|subscriber| !subscriber.left && subscriber.lease_end > 0);
        subscribed
            .map(|subscriber| subscriber.lease_end.saturating_add(self.margin))
            .max()
    }

    pub(crate) fn len(&mut self, now: u64) -> usize {
        self.with_lease(now).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> VerifierId {
        VerifierId::from_bytes([n; 16])
    }

    /// The IDs of poll `last`, which names the polls `before`.
    fn ids(last: u64, before: impl IntoIterator<Item = u64>) -> PollIds {
        let poll = |n: u64| format!("{n:016x}").parse().unwrap();
        PollIds {
            id: poll(last),
            previous: before.into_iter().map(poll).collect(),
        }
    }

    /// A subscriber that takes a lease of 100 with poll 1 and acknowledges change 3 with poll 2.
    fn polled() -> Subscribers {
        let mut all = Subscribers::new(5);
        assert_eq!(
            all.arrive(id(1), Some(&ids(1, [])), false, 0),
            Ok(Arrival::Newest)
        );
        all.grant(id(1), Seq(3), 100, 0).unwrap();
        assert_eq!(
            all.arrive(id(1), Some(&ids(2, [1])), false, 10),
            Ok(Arrival::Newest)
        );
        all.acknowledge(id(1), Seq(3));
        all
    }

    #[test]
    fn acknowledgement_of_a_clone_counts_for_neither_process() {
        // Poll 7 of the clone follows poll 1. Poll 8 of another clone follows poll 2, which both processes have sent.
        for (clone, sent) in [
            (ids(7, [1]), vec![ids(2, [1])]),
            (ids(8, [2, 1]), vec![ids(3, [2, 1])]),
        ] {
            let mut all = polled();
            for ids in &sent {
                all.arrive(id(1), Some(ids), false, 20).unwrap();
            }
            assert_eq!(all.acknowledged(20), Some(Seq(3)));
            assert_eq!(all.arrive(id(1), Some(&clone), false, 20), Err(SharedId));
            for ids in sent.iter().chain([&clone, &ids(9, [])]) {
                assert_eq!(
                    all.arrive(id(1), Some(ids), false, 21),
                    Err(SharedId),
                    "both need a new ID"
                );
                assert_eq!(
                    all.arrival_now(id(1), Some(ids)),
                    Err(SharedId),
                    "a waiting poll is rejected too"
                );
            }
            assert_eq!(all.arrive(id(1), None, false, 21), Err(SharedId));
            assert_eq!(
                all.acknowledged(104),
                Some(Seq(0)),
                "no acknowledgement counts until the longest lease has ended"
            );
            assert_eq!(all.acknowledged(105), None);
        }
    }

    #[test]
    fn clone_that_polls_first_is_detected_at_the_second_poll() {
        let mut all = polled();
        assert_eq!(
            all.arrive(id(1), Some(&ids(7, [2, 1])), false, 20),
            Ok(Arrival::Newest)
        );
        assert_eq!(
            all.arrive(id(1), Some(&ids(3, [2, 1])), false, 20),
            Err(SharedId)
        );
    }

    #[test]
    fn repeated_and_late_polls_are_not_taken_for_clones() {
        let mut all = polled();
        for _ in 0..3 {
            assert_eq!(
                all.arrive(id(1), Some(&ids(2, [1])), false, 20),
                Ok(Arrival::Newest),
                "repeated"
            );
        }
        assert_eq!(
            all.arrive(id(1), Some(&ids(3, [2, 1])), false, 20),
            Ok(Arrival::Newest)
        );
        for late in [ids(2, [1]), ids(1, [])] {
            assert_eq!(all.arrive(id(1), Some(&late), false, 20), Ok(Arrival::Late));
            assert_eq!(all.arrival_now(id(1), Some(&late)), Ok(Arrival::Late));
            assert!(
                !all.counts(id(1), Some(&late)),
                "the usage of a late poll was counted already"
            );
        }
        // Polls 4 and 5 were sent to another replica.
        assert_eq!(
            all.arrive(id(1), Some(&ids(6, [5, 4, 3, 2, 1])), false, 20),
            Ok(Arrival::Newest)
        );
        assert_eq!(
            all.arrive(id(1), Some(&ids(5, [4, 3])), false, 20),
            Ok(Arrival::Late)
        );
    }

    #[test]
    fn polls_with_and_without_ids_are_not_taken_for_clones() {
        let mut all = polled();
        for n in 0..600_u64 {
            assert_eq!(all.arrive(id(1), None, false, 20), Ok(Arrival::Newest));
            all.grant(id(1), Seq(4), 120, 20).unwrap();
            // The previous polls that it names were sent to other replicas.
            let named = ids(2000 + 3 * n, [1999 + 3 * n, 1998 + 3 * n]);
            assert_eq!(
                all.arrive(id(1), Some(&named), false, 20),
                Ok(Arrival::Newest)
            );
        }
        assert_eq!(
            all.acknowledged(20),
            Some(Seq(3)),
            "acknowledgements are kept"
        );
        let clone = ids(7, [2, 1]);
        assert_eq!(all.arrive(id(1), Some(&clone), false, 20), Err(SharedId));
    }

    #[test]
    fn usage_of_a_repeated_poll_counts_once() {
        let mut all = polled();
        assert!(all.counts(id(1), Some(&ids(2, [1]))));
        all.arrive(id(1), Some(&ids(2, [1])), false, 20).unwrap();
        assert!(!all.counts(id(1), Some(&ids(2, [1]))));
        all.arrive(id(1), Some(&ids(3, [2])), false, 20).unwrap();
        assert!(all.counts(id(1), Some(&ids(3, [2]))));
        // After almost a quarter of an hour without a response, and long after the end of the lease.
        let later = 20 + POLL_KNOWN - 1;
        all.arrive(id(1), Some(&ids(3, [2])), false, later).unwrap();
        assert!(!all.counts(id(1), Some(&ids(3, [2]))));
        assert!(
            all.counts(id(2), None) && all.counts(id(2), None),
            "a poll without an ID"
        );
    }

    #[test]
    fn poll_after_the_end_of_a_subscription_is_from_a_clone() {
        let mut all = polled();
        all.arrive(id(1), Some(&ids(2, [1])), true, 20).unwrap();
        all.end_subscription(id(1));
        assert_eq!(
            all.arrive(id(1), Some(&ids(3, [2, 1])), true, 20),
            Ok(Arrival::Newest),
            "it sends more usage"
        );
        assert_eq!(all.acknowledged(20), None);
        assert_eq!(
            all.arrive(id(1), Some(&ids(4, [3, 2, 1])), false, 20),
            Err(SharedId)
        );
        assert_eq!(
            all.acknowledged(20),
            Some(Seq(0)),
            "it may still hold the lease"
        );
    }

    #[test]
    fn unknown_polls_are_accepted_when_no_lease_is_valid() {
        let mut all = polled();
        assert_eq!(
            all.arrive(id(1), Some(&ids(40, [39, 38])), false, 105),
            Ok(Arrival::Newest)
        );
        assert_eq!(all.grant(id(1), Seq(9), 300, 105), Ok(true));
        assert_eq!(all.acknowledged(106), Some(Seq(9)));
    }

    #[test]
    fn number_of_known_subscribers_without_a_lease_is_bounded() {
        let mut all = polled();
        for n in 0..2 * MAX_KNOWN as u64 {
            let id = VerifierId::from_bytes(u128::from(n + 1000).to_be_bytes());
            all.arrive(id, Some(&ids(1, [])), false, 20).unwrap();
            assert!(all.known.len() <= MAX_KNOWN);
        }
        assert_eq!(
            all.acknowledged(20),
            Some(Seq(3)),
            "a subscriber with a lease is never removed"
        );
        let last = VerifierId::from_bytes(u128::from(999 + 2 * MAX_KNOWN as u64).to_be_bytes());
        assert!(all.known.contains_key(&last));
        all.arrive(id(1), Some(&ids(3, [2])), false, 20 + POLL_KNOWN)
            .unwrap();
        assert_eq!(all.known.len(), 1, "after a quarter of an hour");
    }

    #[test]
    fn subscriber_without_a_lease_is_not_waited_for() {
        let mut all = Subscribers::new(5);
        assert_eq!(all.acknowledged(0), None);
        all.acknowledge(id(1), Seq(3));
        assert_eq!(
            all.acknowledged(0),
            None,
            "acknowledging registers no subscriber"
        );
    }

    #[test]
    fn slowest_subscriber_counts_until_its_lease_and_margin_end() {
        let mut all = Subscribers::new(5);
        all.grant(id(1), Seq(3), 100, 0).unwrap();
        all.grant(id(2), Seq(4), 200, 0).unwrap();
        all.acknowledge(id(2), Seq(9));
        assert_eq!(all.acknowledged(104), Some(Seq(3)));
        assert_eq!(all.acknowledged(105), Some(Seq(9)));
        assert_eq!((all.end(), all.len(204), all.len(205)), (Some(205), 1, 0));
    }

    #[test]
    fn response_to_a_lease_holder_acknowledges_nothing() {
        let mut all = Subscribers::new(5);
        all.grant(id(1), Seq(3), 100, 0).unwrap();
        all.grant(id(1), Seq(8), 150, 50).unwrap();
        assert_eq!(all.acknowledged(60), Some(Seq(3)));
        all.acknowledge(id(1), Seq(8));
        all.acknowledge(id(1), Seq(7));
        assert_eq!(
            all.acknowledged(60),
            Some(Seq(8)),
            "an older poll that arrives late does not reduce it"
        );
    }

    #[test]
    fn longest_granted_lease_counts() {
        let mut all = Subscribers::new(0);
        all.grant(id(1), Seq(3), 100, 0).unwrap();
        all.grant(id(1), Seq(3), 60, 50).unwrap();
        assert_eq!(all.acknowledged(99), Some(Seq(3)));
    }

    #[test]
    fn older_poll_does_not_register_a_subscriber_again() {
        let mut all = Subscribers::new(0);
        all.grant(id(1), Seq(3), 100, 0).unwrap();
        all.end_subscription(id(1));
        assert_eq!(
            (all.acknowledged(50), all.end(), all.len(50)),
            (None, None, 0)
        );
        assert_eq!(all.grant(id(1), Seq(3), 150, 50), Ok(false));
        assert_eq!(
            (all.acknowledged(60), all.end(), all.len(60)),
            (None, None, 0)
        );
    }

    #[test]
    fn acknowledgements_do_not_count_in_another_history() {
        let mut all = Subscribers::new(0);
        all.grant(id(1), Seq(30), 100, 0).unwrap();
        all.clear_acknowledgements();
        assert_eq!(all.acknowledged(1), Some(Seq(0)));
    }

    #[test]
    fn number_of_subscribers_with_a_lease_is_bounded() {
        let mut all = Subscribers::new(0);
        for n in 0..MAX {
            let id = VerifierId::from_bytes((n as u128).to_be_bytes());
            all.grant(id, Seq(1), 100, 0).unwrap();
        }
        assert_eq!(all.grant(id(9), Seq(1), 100, 99), Err(Full));
        assert_eq!(
            all.grant(VerifierId::from_bytes([0; 16]), Seq(1), 100, 99),
            Ok(true),
            "a known subscriber still gets a lease"
        );
        assert_eq!(all.grant(id(9), Seq(1), 200, 100), Ok(true));
    }
}
