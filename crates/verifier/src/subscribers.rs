//! Who holds a lease from this verifier: other verifiers, which have no store of their own and subscribe to this one.
//!
//! Leases nest. A subscriber's ends no later than the one it was granted from, and what this verifier reports as
//! applied is what its slowest living subscriber has acknowledged. So whoever waits for this verifier waits for the
//! leaves too. Kept under the lock of the memory's books, so that a subscriber is registered in the same moment as
//! what it is answered.

use std::collections::HashMap;

use tollkey_core::{Seq, VerifierId};

/// How many subscribers one verifier serves. Each is a process; more of them spread over replicas.
const MAX: usize = 1024;

/// There are too many subscribers already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Full;

#[derive(Debug)]
struct Subscriber {
    /// Up to which change it has forgotten what was changed.
    acknowledged: Seq,
    /// The end of the longest lease it was ever granted here, in nanoseconds of this verifier's clock.
    lease_end: u64,
    /// It answers nothing from memory any more. Kept as long as its lease would have lasted, because a poll of its may
    /// still be hanging that must not list it again.
    left: bool,
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
        Self { known: HashMap::new(), margin }
    }

    /// Forgets those whose leases are over at `now`.
    fn drop_lapsed(&mut self, now: u64) {
        let margin = self.margin;
        self.known.retain(|_, subscriber| now < subscriber.lease_end.saturating_add(margin));
    }

    /// Takes down that a subscriber has forgotten everything that was changed up to `seq`.
    pub(crate) fn acknowledge(&mut self, id: VerifierId, seq: Seq) {
        if let Some(subscriber) = self.known.get_mut(&id) {
            subscriber.acknowledged = subscriber.acknowledged.max(seq);
        }
    }

    /// Grants a lease until `lease_end` with an answer that leads to `answered`. One that holds no lease from here
    /// can answer from memory only after applying that answer; one that does may still answer from before it. False
    /// for one that has left.
    pub(crate) fn grant(&mut self, id: VerifierId, answered: Seq, lease_end: u64, now: u64) -> Result<bool, Full> {
        self.drop_lapsed(now);
        if self.known.len() >= MAX && !self.known.contains_key(&id) {
            return Err(Full);
        }
        let new = Subscriber { acknowledged: answered, lease_end, left: false };
        let subscriber = self.known.entry(id).or_insert(new);
        if !subscriber.left {
            subscriber.lease_end = subscriber.lease_end.max(lease_end);
        }
        Ok(!subscriber.left)
    }

    /// Takes one off that has stopped answering from memory for good.
    pub(crate) fn leave(&mut self, id: VerifierId) {
        if let Some(subscriber) = self.known.get_mut(&id) {
            subscriber.left = true;
        }
    }

    fn living(&self) -> impl Iterator<Item = &Subscriber> {
        self.known.values().filter(|subscriber| !subscriber.left)
    }

    /// From here on nobody has acknowledged anything: the log is another one than theirs.
    pub(crate) fn disown(&mut self) {
        for subscriber in self.known.values_mut() {
            subscriber.acknowledged = Seq::default();
        }
    }

    /// Up to which change everything is forgotten by all whose leases last at `now`; `None` without any.
    pub(crate) fn acknowledged(&mut self, now: u64) -> Option<Seq> {
        self.drop_lapsed(now);
        self.living().map(|subscriber| subscriber.acknowledged).min()
    }

    /// When the last of their leases will be over.
    pub(crate) fn end(&self) -> Option<u64> {
        self.living().map(|subscriber| subscriber.lease_end.saturating_add(self.margin)).max()
    }

    /// How many hold a lease at `now`.
    pub(crate) fn len(&mut self, now: u64) -> usize {
        self.drop_lapsed(now);
        self.living().count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> VerifierId {
        VerifierId::from_bytes([n; 16])
    }

    #[test]
    fn who_holds_no_lease_is_not_waited_for() {
        let mut all = Subscribers::new(5);
        assert_eq!(all.acknowledged(0), None);
        all.acknowledge(id(1), Seq(3));
        assert_eq!(all.acknowledged(0), None, "acknowledging registers nobody");
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
    fn an_answer_is_no_acknowledgement_for_one_that_holds_a_lease() {
        let mut all = Subscribers::new(5);
        all.grant(id(1), Seq(3), 100, 0).unwrap();
        all.grant(id(1), Seq(8), 150, 50).unwrap();
        assert_eq!(all.acknowledged(60), Some(Seq(3)));
        all.acknowledge(id(1), Seq(8));
        all.acknowledge(id(1), Seq(7));
        assert_eq!(all.acknowledged(60), Some(Seq(8)), "an older poll that comes late takes nothing back");
    }

    #[test]
    fn the_longest_lease_ever_granted_counts() {
        let mut all = Subscribers::new(0);
        all.grant(id(1), Seq(3), 100, 0).unwrap();
        all.grant(id(1), Seq(3), 60, 50).unwrap();
        assert_eq!(all.acknowledged(99), Some(Seq(3)));
    }

    #[test]
    fn who_has_left_stays_away_even_when_an_older_poll_of_its_is_answered_afterwards() {
        let mut all = Subscribers::new(0);
        all.grant(id(1), Seq(3), 100, 0).unwrap();
        all.leave(id(1));
        assert_eq!((all.acknowledged(50), all.end(), all.len(50)), (None, None, 0));
        assert_eq!(all.grant(id(1), Seq(3), 150, 50), Ok(false));
        assert_eq!((all.acknowledged(60), all.end(), all.len(60)), (None, None, 0));
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
        assert_eq!(all.grant(VerifierId::from_bytes([0; 16]), Seq(1), 100, 99), Ok(true), "who is known is served");
        assert_eq!(all.grant(id(9), Seq(1), 200, 100), Ok(true));
    }
}
