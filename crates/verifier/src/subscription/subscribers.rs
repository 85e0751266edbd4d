//! The subscribers of this verifier: verifiers in other processes that have no store of their own.
//!
//! Leases nest. A subscriber's lease ends no later than the lease it was granted from, and what this verifier reports as
//! applied is the least of what it and its subscribers have applied. So a process that waits for this verifier waits for its
//! subscribers too. All of this is under the lock of the cache, so that a subscriber is registered in the same critical
//! section that computes the response to it.
//!
//! A subscriber ID belongs to one process. The snapshot of a virtual machine copies the ID together with the lease, and
//! then one process could acknowledge changes that the other has not applied. Therefore each poll has a random ID, and
//! carries the IDs of the polls before it ([`PollIds`]):
//!
//! - A poll follows the last one if it names it among the polls before it. Then its acknowledgement counts.
//! - A poll with the ID of the last one repeats it. Its usage counts once.
//! - A poll with the ID of an earlier one arrives late, after its sender gave up on it. It has no effect.
//! - The first poll with an ID, and the first after one without, follows any.
//! - Any other poll comes from another process. From then on neither is granted a lease under this ID, both are told to
//!   take a new one, and nothing counts as acknowledged until the longest lease that was granted under the old ID has
//!   ended: the verifier cannot know which of the two acknowledged what.
//!
//! Two processes are found out when both have sent a new poll to the same replica. No protocol can tell two copies of one
//! process apart before both have spoken. Until then, and for one lease at most, one of them may accept a key whose
//! revocation the other has acknowledged. The model checker does not cover this rule for that reason: with copies, its
//! property does not hold before both have spoken, whatever the rules are.

use std::collections::HashMap;

use tollkey_core::{Seq, VerifierId};

use crate::source::{PollId, PollIds};

/// How many subscribers hold a lease from one verifier. Each is a process; more of them spread over replicas.
const MAX: usize = 1024;

/// How many subscribers are known, those without a lease included. Beyond that, the one that has been silent for the
/// longest time is removed. Each takes at most 4 KiB for the IDs of its polls ([`PollIds::PREVIOUS`]), all together 8 MiB.
const MAX_KNOWN: usize = 2 * MAX;

/// For how long the last poll of a subscriber without a lease is known, in nanoseconds: a subscriber that could not reach
/// the server for this long still repeats its last poll, whose usage may have been counted.
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
    /// The subscriber has sent a newer one since, and does not wait for the response.
    Late,
}

#[derive(Debug)]
struct Subscriber {
    /// The change up to which it has evicted what was changed.
    acknowledged: Seq,
    /// The end of the longest lease it was ever granted here, in nanoseconds of this verifier's clock; 0 for none.
    lease_end: u64,
    /// It has ended its subscription. Kept until its lease would have ended, because a poll of it may still be waiting that
    /// must not register it again.
    left: bool,
    /// Two processes use this ID.
    shared: bool,
    /// The newest poll; `None` if it has no ID.
    newest: Option<PollIds>,
    /// The poll whose usage was counted last.
    counted: Option<PollId>,
    /// When its newest poll arrived.
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

    /// Whether a lease that was granted here may be valid at `now`.
    fn may_hold_lease(&self, margin: u64, now: u64) -> bool {
        self.lease_end > 0 && now < self.lease_end.saturating_add(margin)
    }

    fn is_newest(&self, ids: &PollIds) -> bool {
        self.newest
            .as_ref()
            .is_some_and(|newest| newest.id == ids.id)
    }
}

/// The subscribers of one verifier.
#[derive(Debug)]
pub(crate) struct Subscribers {
    known: HashMap<VerifierId, Subscriber>,
    /// What is added to the end of a lease before it counts as over, in nanoseconds.
    margin: u64,
}

impl Subscribers {
    pub(crate) fn new(margin: u64) -> Self {
        Self {
            known: HashMap::new(),
            margin,
        }
    }

    /// Removes those whose leases have ended at `now` and whose polls were long ago.
    fn drop_lapsed(&mut self, now: u64) {
        let margin = self.margin;
        self.known.retain(|_, subscriber| {
            let may_repeat =
                subscriber.newest.is_some() && now < subscriber.heard_at.saturating_add(POLL_KNOWN);
            subscriber.may_hold_lease(margin, now) || may_repeat
        });
    }

    /// Makes room for one more.
    fn make_room(&mut self, now: u64) {
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

    /// Records that a poll has arrived; `leaves` for the end of a subscription. What it acknowledges counts only if this
    /// is [`Arrival::Newest`].
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
            // The subscriber may send any number of polls without IDs, to replicas of different releases behind a balancer
            // for example, so its next poll with IDs need not name the last one that had some.
            subscriber.newest = None;
            return if subscriber.shared {
                Err(SharedId)
            } else {
                Ok(Arrival::Newest)
            };
        };
        if !self.known.contains_key(&id) {
            self.make_room(now);
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
            // A process that has left polls no more.
            let follows = ids.previous.contains(&newest.id) && (leaves || !subscriber.left);
            if !follows && subscriber.may_hold_lease(self.margin, now) {
                subscriber.shared = true;
                subscriber.left = false;
                subscriber.acknowledged = Seq::default();
                return Err(SharedId);
            }
            if !follows {
                // No lease from here is valid, so no acknowledgement can be mistaken for another: it starts anew.
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

    /// How a poll that has arrived relates to the newest one by now.
    pub(crate) fn still(&self, id: VerifierId, ids: Option<&PollIds>) -> Result<Arrival, SharedId> {
        match (self.known.get(&id), ids) {
            (Some(subscriber), _) if subscriber.shared => Err(SharedId),
            (Some(subscriber), Some(ids)) if !subscriber.is_newest(ids) => Ok(Arrival::Late),
            _ => Ok(Arrival::Newest),
        }
    }

    /// Whether the usage that came with this poll has to be counted, now that the response says that it was. True once.
    pub(crate) fn counts(&mut self, id: VerifierId, ids: Option<&PollIds>) -> bool {
        let (Some(ids), Some(subscriber)) = (ids, self.known.get_mut(&id)) else {
            return true;
        };
        subscriber.is_newest(ids) && subscriber.counted.replace(ids.id) != Some(ids.id)
    }

    /// Records that a subscriber has evicted everything that was changed up to `seq`.
    pub(crate) fn acknowledge(&mut self, id: VerifierId, seq: Seq) {
        if let Some(subscriber) = self.known.get_mut(&id) {
            subscriber.acknowledged = subscriber.acknowledged.max(seq);
        }
    }

    /// Grants a lease until `lease_end` with a response that leads to change `sent`. A subscriber without a lease uses its
    /// cache only after applying that response; a subscriber with one may still use it as it was before. Returns `false`
    /// for a subscriber that has left.
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
            self.make_room(now);
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

    /// Ends a subscription: the subscriber has ended its lease for good.
    pub(crate) fn leave(&mut self, id: VerifierId) {
        if let Some(subscriber) = self.known.get_mut(&id) {
            subscriber.left = true;
        }
    }

    fn living(&self, now: u64) -> impl Iterator<Item = &Subscriber> {
        let margin = self.margin;
        self.known
            .values()
            .filter(move |subscriber| !subscriber.left && subscriber.may_hold_lease(margin, now))
    }

    /// Discards all acknowledgements: they are about another log.
    pub(crate) fn disown(&mut self) {
        for subscriber in self.known.values_mut() {
            subscriber.acknowledged = Seq::default();
        }
    }

    /// The change up to which everything is evicted by all whose leases are valid at `now`; `None` if there is no such
    /// subscriber.
    pub(crate) fn acknowledged(&mut self, now: u64) -> Option<Seq> {
        self.living(now)
            .map(|subscriber| subscriber.acknowledged)
            .min()
    }

    /// When the last of their leases ends.
    pub(crate) fn end(&self) -> Option<u64> {
        let with_lease = self
            .known
            .values()
            .filter(|subscriber| !subscriber.left && subscriber.lease_end > 0);
        with_lease
            .map(|subscriber| subscriber.lease_end.saturating_add(self.margin))
            .max()
    }

    /// How many hold a lease at `now`.
    pub(crate) fn len(&mut self, now: u64) -> usize {
        self.living(now).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> VerifierId {
        VerifierId::from_bytes([n; 16])
    }

    /// Poll `last` of a process that has sent `polls` before it, all numbered by the test.
    fn ids(last: u64, before: impl IntoIterator<Item = u64>) -> PollIds {
        let poll = |n: u64| format!("{n:016x}").parse().unwrap();
        PollIds {
            id: poll(last),
            previous: before.into_iter().map(poll).collect(),
        }
    }

    /// A process that takes a lease of 100 with poll 1 and acknowledges change 3 with poll 2.
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
        // 7 is a poll of the clone after poll 1; 8 is one after poll 2, which both have sent.
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
                    all.still(id(1), Some(ids)),
                    Err(SharedId),
                    "a poll that waits is told so"
                );
            }
            assert_eq!(all.arrive(id(1), None, false, 21), Err(SharedId));
            assert_eq!(
                all.acknowledged(104),
                Some(Seq(0)),
                "the longest lease is waited for"
            );
            assert_eq!(all.acknowledged(105), None);
        }
    }

    #[test]
    fn clone_that_polls_first_is_found_at_the_second_poll() {
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
    fn repeated_and_late_polls_are_no_clones() {
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
            assert_eq!(all.still(id(1), Some(&late)), Ok(Arrival::Late));
            assert!(
                !all.counts(id(1), Some(&late)),
                "its usage came with a poll that had a response"
            );
        }
        // Polls 4 and 5 went to another replica.
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
    fn polls_with_and_without_ids_in_turn_are_no_clone() {
        let mut all = polled();
        for n in 0..600_u64 {
            assert_eq!(all.arrive(id(1), None, false, 20), Ok(Arrival::Newest));
            all.grant(id(1), Seq(4), 120, 20).unwrap();
            // The polls that are named went to other replicas.
            let named = ids(2000 + 3 * n, [1999 + 3 * n, 1998 + 3 * n]);
            assert_eq!(
                all.arrive(id(1), Some(&named), false, 20),
                Ok(Arrival::Newest)
            );
        }
        assert_eq!(
            all.acknowledged(20),
            Some(Seq(3)),
            "nothing that was acknowledged is lost"
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
        // A quarter of an hour without a response, and a lease long ago.
        let later = 20 + POLL_KNOWN - 1;
        all.arrive(id(1), Some(&ids(3, [2])), false, later).unwrap();
        assert!(!all.counts(id(1), Some(&ids(3, [2]))));
        assert!(
            all.counts(id(2), None) && all.counts(id(2), None),
            "a poll without an ID"
        );
    }

    #[test]
    fn poll_after_the_end_of_a_subscription_is_of_a_clone() {
        let mut all = polled();
        all.arrive(id(1), Some(&ids(2, [1])), true, 20).unwrap();
        all.leave(id(1));
        assert_eq!(
            all.arrive(id(1), Some(&ids(3, [2, 1])), true, 20),
            Ok(Arrival::Newest),
            "more usage"
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
    fn polls_without_a_lease_are_remembered_within_a_bound() {
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
    fn who_holds_no_lease_is_not_waited_for() {
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
    fn the_slowest_living_one_counts_until_its_lease_and_the_margin_are_over() {
        let mut all = Subscribers::new(5);
        all.grant(id(1), Seq(3), 100, 0).unwrap();
        all.grant(id(2), Seq(4), 200, 0).unwrap();
        all.acknowledge(id(2), Seq(9));
        assert_eq!(all.acknowledged(104), Some(Seq(3)));
        assert_eq!(all.acknowledged(105), Some(Seq(9)));
        assert_eq!((all.end(), all.len(204), all.len(205)), (Some(205), 1, 0));
    }

    #[test]
    fn response_is_no_acknowledgement_of_a_lease_holder() {
        let mut all = Subscribers::new(5);
        all.grant(id(1), Seq(3), 100, 0).unwrap();
        all.grant(id(1), Seq(8), 150, 50).unwrap();
        assert_eq!(all.acknowledged(60), Some(Seq(3)));
        all.acknowledge(id(1), Seq(8));
        all.acknowledge(id(1), Seq(7));
        assert_eq!(
            all.acknowledged(60),
            Some(Seq(8)),
            "an older poll that comes late takes nothing back"
        );
    }

    #[test]
    fn the_longest_lease_ever_granted_counts() {
        let mut all = Subscribers::new(0);
        all.grant(id(1), Seq(3), 100, 0).unwrap();
        all.grant(id(1), Seq(3), 60, 50).unwrap();
        assert_eq!(all.acknowledged(99), Some(Seq(3)));
    }

    #[test]
    fn older_poll_does_not_bring_back_a_subscriber() {
        let mut all = Subscribers::new(0);
        all.grant(id(1), Seq(3), 100, 0).unwrap();
        all.leave(id(1));
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
    fn in_another_history_nothing_is_acknowledged() {
        let mut all = Subscribers::new(0);
        all.grant(id(1), Seq(30), 100, 0).unwrap();
        all.disown();
        assert_eq!(all.acknowledged(1), Some(Seq(0)));
    }

    #[test]
    fn their_number_is_bounded_and_the_lapsed_make_room() {
        let mut all = Subscribers::new(0);
        for n in 0..MAX {
            let id = VerifierId::from_bytes((n as u128).to_be_bytes());
            all.grant(id, Seq(1), 100, 0).unwrap();
        }
        assert_eq!(all.grant(id(9), Seq(1), 100, 99), Err(Full));
        assert_eq!(
            all.grant(VerifierId::from_bytes([0; 16]), Seq(1), 100, 99),
            Ok(true),
            "who is known is served"
        );
        assert_eq!(all.grant(id(9), Seq(1), 200, 100), Ok(true));
    }
}
