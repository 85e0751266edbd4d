//! The steps: which there are, when each may be taken, what each does.

use std::fmt;

use stateright::{Model, Property};

use crate::{
    rules::{Rule, Rules},
    state::{
        Creation, Fetch, Key, Log, Marking, Memory, Poll, Renewal, Request, Row, Stage, State,
    },
};

/// The property that must hold.
pub const SAFE: &str =
    "no verification that began after the answer to the revocation is answered yes";

/// A second property: the creation of a key never outruns the marking.
pub const COMPLETE: &str = "when a marking has ended, the own row of every descendant is marked";

/// A third property: no crash leaves a marking that no replica can finish.
pub const FINISHABLE: &str =
    "the marking after a revocation can still be finished, whichever process has crashed";

/// How much a clock may be off over a lease, and the margin for that, in ticks.
const MARGIN: u8 = 1;

/// What a caller wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    /// To revoke our key.
    Revoke,
    /// To change something else.
    Change,
    /// To revoke our key, which is revoked already.
    Repeat,
    /// To mark the descendants of our key, which is revoked. A background task of a replica wants this; the first one
    /// runs in the process that revokes the key.
    Mark,
}

/// Who subscribes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Following {
    /// Nobody.
    Nobody,
    /// Somebody who polls verifier 0, but verifies nothing.
    Quiet,
    /// Somebody who polls verifier 0, and verifies.
    One,
    /// Somebody who polls any verifier, and verifies.
    Any,
}

/// How much there is.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// How long leases are, in ticks.
    pub lease: u8,
    /// How many verifiers there are.
    pub verifiers: u8,
    /// What callers want, each with the number of the verifier in the process that serves it; `None` for a process
    /// whose verifier does nothing.
    pub callers: &'static [(Wish, Option<u8>)],
    /// Who subscribes.
    pub subscriber: Following,
    /// Whether applying takes three steps, not one, and reports may arrive late.
    pub fine: bool,
    /// Whether verifiers stop in good order.
    pub stops: bool,
    /// How often each verifier may ask for a lease, so that there is an end to the numbers in rows. Only if this is given are silent
    /// rows removed.
    pub asks: Option<u8>,
    /// The keys that are verified, one in each run.
    pub keys: &'static [Key],
    /// Whether the verifiers are servers of the previous release, which read the own row of a key only. They must reject
    /// a descendant of the revoked key once the end of the marking has propagated.
    pub previous_release: bool,
}

/// The protocol, or what would be left of it without one of its rules.
#[derive(Debug, Clone, Copy)]
pub struct Protocol {
    /// Which rules are kept.
    pub rules: Rules,
    /// How much there is.
    pub bounds: Bounds,
}

/// Whose memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// That of a verifier.
    Verifier(u8),
    /// That of the subscriber.
    Subscriber,
}

/// A step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "`Display` says what each is")]
pub enum Action {
    Tick,
    TickAsleep,

    Ask(u8),
    Compare(u8),
    Renew(u8),
    Grant(u8),
    Lose(u8),
    ReadChanges(u8),
    SendReport(u8),
    Report(u8),
    Stop(u8),
    Unregister(u8),

    Apply(Who),
    Fetch(Who),
    FetchCounter(Who),
    Learn(Who),
    SeeLease(Who),
    FindEntry(Who),

    ReadClock(u8),
    Update(u8),
    Commit(u8),
    CommitRest(u8),
    FindItSo(u8),
    ReadDescendants(u8),
    WritePending(u8),
    Mark(u8),
    EndUnannounced(u8),
    Crash,
    CheckAncestors,
    InsertKey,
    Look(u8),
    LookForSilent(u8),
    Remove(u8, u8),
    Answer(u8),

    Poll,
    Compute(u8),
    Complete,
    TakeReply,
    TakeLease,
    LosePoll,
}

impl Protocol {
    fn keep(&self, rule: Rule) -> bool {
        self.rules.keep(rule)
    }

    /// For how long, at worst, the holder of a lease of `length` believes to have it.
    fn held(&self, length: u8) -> u8 {
        let drifting = length + MARGIN;
        if self.keep(Rule::HoldersSubtract) {
            drifting.saturating_sub(MARGIN)
        } else {
            drifting
        }
    }

    /// For how long, at worst, the end of a lease of `length` is waited for.
    fn awaited(&self, length: u8) -> u8 {
        let margin = if self.keep(Rule::WaitersAdd) {
            MARGIN
        } else {
            0
        };
        (length + margin).saturating_sub(MARGIN)
    }

    /// The row of a verifier.
    fn row(&self, verifier: u8) -> usize {
        if self.keep(Rule::FreshIds) {
            verifier.into()
        } else {
            0
        }
    }

    /// What a verifier reports.
    fn reported(&self, state: &State, verifier: u8) -> u8 {
        let own = state.verifiers[usize::from(verifier)].memory.evicted;
        let subscriber = &state.subscriber.known[usize::from(verifier)];
        if subscriber.lives > 0 && self.keep(Rule::ReportsLeast) {
            own.min(subscriber.acknowledged)
        } else {
            own
        }
    }

    /// The rows that are behind the change of a caller, but for that of the verifier in its own process.
    fn behind(&self, state: &State, caller: u8) -> impl Iterator<Item = (usize, Row)> + use<> {
        let own = self.bounds.callers[usize::from(caller)]
            .1
            .map(|verifier| self.row(verifier));
        let (rows, seq) = (state.rows, state.callers[usize::from(caller)].seq);
        rows.into_iter()
            .enumerate()
            .filter_map(|(at, row)| Some((at, row?)))
            .filter(move |(at, row)| Some(*at) != own && row.applied < seq)
    }

    /// Whether the verified key exists in the database.
    fn exists(state: &State) -> bool {
        !state.verified.is_created() || state.creation == Creation::Committed
    }

    /// Whether a descendant of the revoked key exists whose own row is not marked.
    fn is_unmarked(state: &State) -> bool {
        state.verified != Key::Parent && Self::exists(state) && !state.marked
    }

    /// Whether the revoked key has descendants.
    fn has_descendants(state: &State) -> bool {
        match state.verified {
            Key::Parent => false, // no run that verifies the revoked key depends on its descendants
            Key::Child | Key::Grandchild => true,
            Key::OnlyChild => state.creation == Creation::Committed,
        }
    }

    /// Whether the status of the ancestors lets the verified key be valid.
    fn ancestors_are_active(&self, state: &State) -> bool {
        !state.revoked || self.bounds.previous_release || !self.keep(Rule::AncestorsDecide)
    }

    /// Whether the own row of the verified key lets it be valid.
    fn own_row_is_active(state: &State) -> bool {
        let revoked = if state.verified == Key::Parent {
            state.revoked
        } else {
            state.marked
        };
        Self::exists(state) && !revoked
    }

    /// Whether a verification that begins now must be rejected.
    fn must_reject(&self, state: &State) -> bool {
        if self.bounds.previous_release && state.verified != Key::Parent {
            state.marking == Marking::Propagated
        } else {
            state.answered
        }
    }

    /// The callers that mark descendants.
    fn markers(&self) -> impl Iterator<Item = u8> {
        (0..)
            .zip(self.bounds.callers)
            .filter(|(_, (wish, _))| *wish == Wish::Mark)
            .map(|(at, _)| at)
    }

    /// Whether that caller marks descendants now.
    fn marks(&self, state: &State, caller: u8) -> bool {
        let in_revoking_process = self.markers().next() == Some(caller);
        let runs = if in_revoking_process {
            !state.crashed
        } else {
            self.keep(Rule::MarkingResumed)
        };
        self.wish(caller) == Wish::Mark && runs && state.marking == Marking::Pending
    }

    /// Whether that caller can delete the pending row now.
    fn can_end_marking(&self, state: &State, caller: u8) -> bool {
        self.marks(state, caller) && !Self::is_unmarked(state)
    }

    /// Whether an unfinished marking can still be finished.
    fn can_be_finished(&self, state: &State) -> bool {
        if !state.revoked || !Self::has_descendants(state) {
            return true;
        }
        let mut reachable = vec![*state];
        let mut at = 0;
        while let Some(state) = reachable.get(at).copied() {
            if state.marking >= Marking::Finished {
                return true;
            }
            let mut steps = vec![Action::InsertKey];
            for caller in (0..).take(self.bounds.callers.len()) {
                steps.extend([
                    Action::Commit(caller),
                    Action::WritePending(caller),
                    Action::Mark(caller),
                ]);
            }
            steps.extend(self.markers().map(Action::Update));
            for next in steps
                .into_iter()
                .filter_map(|step| self.next_state(&state, step))
            {
                if !reachable.contains(&next) {
                    reachable.push(next);
                }
            }
            at += 1;
        }
        false
    }

    /// Takes a step, if it may be taken now and changes something.
    fn take(&self, state: &mut State, action: Action) -> Option<()> {
        let allowed = |condition: bool| condition.then_some(());
        match action {
            Action::Tick => allowed(self.tick(state, true))?,
            Action::TickAsleep => {
                allowed(!self.keep(Rule::ClocksCountSleep))?;
                allowed(self.tick(state, false))?;
            }

            Action::Ask(at) => {
                let reported = self.reported(state, at);
                let verifier = &mut state.verifiers[usize::from(at)];
                allowed(!verifier.stopped && verifier.renewal == Renewal::None)?;
                if let Some(most) = self.bounds.asks {
                    allowed(verifier.asked < most)?;
                    verifier.asked += 1;
                }
                verifier.renewal = Renewal::Asked {
                    age: 0,
                    evicted: verifier.memory.evicted,
                    reported,
                };
            }
            Action::Compare(at) => {
                allowed(!self.keep(Rule::ShareLock))?;
                let verifier = &mut state.verifiers[usize::from(at)];
                let Renewal::Asked {
                    age,
                    evicted,
                    reported,
                } = verifier.renewal
                else {
                    return None;
                };
                verifier.renewal = if evicted == state.counter {
                    Renewal::Compared { age, reported }
                } else {
                    Renewal::None
                };
            }
            Action::Renew(at) => {
                let verifier = &mut state.verifiers[usize::from(at)];
                let (age, reported) = match verifier.renewal {
                    Renewal::Asked {
                        age,
                        evicted,
                        reported,
                    } if self.keep(Rule::ShareLock) => {
                        allowed(state.locked_by.is_none())?;
                        if evicted != state.counter && self.keep(Rule::OnlyAtTheNewest) {
                            verifier.renewal = Renewal::None;
                            return Some(());
                        }
                        (age, reported)
                    }
                    Renewal::Compared { age, reported } => (age, reported),
                    _ => return None,
                };
                verifier.renewal = Renewal::Written { age };
                let asked = verifier.asked;
                let row = &mut state.rows[self.row(at)];
                let renewals = match (self.bounds.asks, &row) {
                    (None, _) => 0,
                    (Some(_), _) if self.keep(Rule::RenewalsNeverRepeat) => asked,
                    (Some(_), row) => row.map_or(1, |row| row.renewals + 1),
                };
                *row = Some(Row {
                    applied: reported,
                    renewals,
                });
            }
            Action::Grant(at) => {
                let verifier = &mut state.verifiers[usize::from(at)];
                let Renewal::Written { age } = verifier.renewal else {
                    return None;
                };
                verifier.renewal = Renewal::None;
                let age = if self.keep(Rule::CountedFromAsking) {
                    age
                } else {
                    0
                };
                if !verifier.stopped || !self.keep(Rule::StoppedStaysStopped) {
                    let end = self.held(self.bounds.lease).saturating_sub(age);
                    verifier.memory.lease = verifier.memory.lease.max(end);
                }
            }
            Action::Lose(at) => {
                let verifier = &mut state.verifiers[usize::from(at)];
                allowed(verifier.renewal != Renewal::None)?;
                verifier.renewal = Renewal::None;
            }
            Action::ReadChanges(at) => {
                let memory = &mut state.verifiers[usize::from(at)].memory;
                allowed(memory.log == Log::None && memory.evicted < state.counter)?;
                let ours = are_among(state.changes, memory.evicted, state.counter);
                memory.log = Log::Read {
                    upto: state.counter,
                    ours,
                    steps: 0,
                };
            }
            Action::SendReport(at) => {
                let reported = self.reported(state, at);
                allowed(state.rows[self.row(at)].is_some_and(|row| row.applied != reported))?;
                let verifier = &mut state.verifiers[usize::from(at)];
                allowed(!verifier.stopped && verifier.report.is_none())?;
                verifier.report = Some(reported);
                if !self.bounds.fine {
                    self.report(state, at);
                }
            }
            Action::Report(at) => {
                allowed(state.verifiers[usize::from(at)].report.is_some())?;
                self.report(state, at);
            }
            Action::Stop(at) => {
                let verifier = &mut state.verifiers[usize::from(at)];
                allowed(self.bounds.stops && !verifier.stopped)?;
                allowed(verifier.unregistered || self.keep(Rule::StopBeforeUnregistering))?;
                verifier.stopped = true;
                verifier.memory.lease = 0;
            }
            Action::Unregister(at) => {
                let verifier = &mut state.verifiers[usize::from(at)];
                allowed(self.bounds.stops && !verifier.unregistered)?;
                allowed(verifier.stopped || !self.keep(Rule::StopBeforeUnregistering))?;
                allowed(
                    state.subscriber.known[usize::from(at)].lives == 0
                        || !self.keep(Rule::SubscribersOutlived),
                )?;
                verifier.unregistered = true;
                state.rows[self.row(at)] = None;
            }

            Action::Apply(who) => {
                self.apply(state, who)?;
                if !self.bounds.fine {
                    while self.apply(state, who).is_some() {}
                }
            }
            Action::Fetch(who) => {
                // A cached record that says "revoked" does no harm, so it is not fetched.
                allowed(self.ancestors_are_active(state))?;
                let read = if !self.keep(Rule::AncestorsInSnapshot) && state.verified != Key::Parent
                {
                    Fetch::AncestorsRead
                } else {
                    allowed(Self::own_row_is_active(state))?;
                    if self.keep(Rule::OneSnapshot) {
                        Fetch::Read(state.counter)
                    } else {
                        Fetch::WithoutCounter
                    }
                };
                let memory = memory(state, who);
                allowed(memory.fetch == Fetch::None)?;
                memory.fetch = read;
            }
            Action::FetchCounter(who) => {
                let (counter, is_active) = (state.counter, Self::own_row_is_active(state));
                let memory = memory(state, who);
                memory.fetch = match memory.fetch {
                    Fetch::AncestorsRead if !is_active => Fetch::None,
                    Fetch::AncestorsRead | Fetch::WithoutCounter => Fetch::Read(counter),
                    _ => return None,
                };
            }
            Action::Learn(who) => {
                if let Who::Verifier(at) = who {
                    allowed(!state.verifiers[usize::from(at)].stopped)?;
                }
                self.learn(memory(state, who))?;
            }
            Action::SeeLease(who) => {
                let must_reject = self.must_reject(state);
                let memory = memory(state, who);
                if self.keep(Rule::LeaseBeforeEntry) {
                    allowed(must_reject && memory.request == Request::None && memory.lease > 0)?;
                    memory.request = Request::LeaseSeen;
                } else {
                    allowed(memory.request == Request::EntrySeen)?;
                    memory.request = Request::None;
                    state.accepted = memory.lease > 0;
                }
            }
            Action::FindEntry(who) => {
                let must_reject = self.must_reject(state);
                let memory = memory(state, who);
                if self.keep(Rule::LeaseBeforeEntry) {
                    allowed(memory.request == Request::LeaseSeen)?;
                    memory.request = Request::None;
                    state.accepted = memory.remembered;
                } else {
                    allowed(must_reject && memory.request == Request::None && memory.remembered)?;
                    memory.request = Request::EntrySeen;
                }
            }

            Action::ReadClock(at) => {
                allowed(!self.keep(Rule::ClockAfterUpdate) && self.wish(at) != Wish::Repeat)?;
                let caller = &mut state.callers[usize::from(at)];
                allowed(caller.stage == Stage::Idle)?;
                caller.stage = Stage::ClockRead;
                caller.wait = self.awaited(self.bounds.lease);
            }
            Action::Update(at) => {
                allowed(state.locked_by.is_none() || !self.keep(Rule::NumberedAsCommitted))?;
                match self.wish(at) {
                    Wish::Change => {}
                    // It waits for a creation that holds the lock on the key's row.
                    Wish::Revoke => allowed(!self.creation_holds_locks(state))?,
                    Wish::Repeat => return None,
                    Wish::Mark => allowed(
                        self.keep(Rule::MarkingAnnounced) && self.can_end_marking(state, at),
                    )?,
                }
                // If two callers are the same, the result does not depend on which one is first. Callers that mark are not:
                // one of them runs in the revoking process.
                let twin = (0..at)
                    .rfind(|other| {
                        self.bounds.callers[usize::from(*other)]
                            == self.bounds.callers[usize::from(at)]
                    })
                    .filter(|_| self.wish(at) != Wish::Mark);
                allowed(
                    twin.is_none_or(|twin| state.callers[usize::from(twin)].stage != Stage::Idle),
                )?;
                let caller = &mut state.callers[usize::from(at)];
                if self.wish(at) == Wish::Revoke && !self.keep(Rule::DescendantsReadUnderLock) {
                    allowed(caller.descendants.is_some())?;
                }
                if self.keep(Rule::ClockAfterUpdate) {
                    allowed(caller.stage == Stage::Idle)?;
                    caller.wait = self.awaited(self.bounds.lease);
                } else {
                    allowed(caller.stage == Stage::ClockRead)?;
                }
                caller.stage = Stage::Updated;
                state.numbered += 1;
                caller.seq = state.numbered;
                state.locked_by = Some(at);
            }
            Action::Commit(at) => {
                let has_descendants = Self::has_descendants(state);
                let caller = &mut state.callers[usize::from(at)];
                allowed(caller.stage == Stage::Updated)?;
                state.locked_by = None;
                state.counter = state.counter.max(caller.seq);
                let seq = caller.seq;
                caller.stage = Stage::Waiting;
                match self.wish(at) {
                    Wish::Change | Wish::Repeat => {
                        if !self.removes(at) {
                            caller.finish(); // no property depends on when this change has propagated
                        } else if self.keep(Rule::SilenceFromLook) {
                            caller.wait = 0;
                        }
                    }
                    Wish::Revoke => {
                        let descendants = caller.descendants.take().unwrap_or(has_descendants);
                        if state.verified == Key::Parent
                            || (descendants && self.keep(Rule::DescendantsEvicted))
                        {
                            state.changes |= 1 << seq;
                        }
                        if descendants && self.keep(Rule::PendingWithRevocation) {
                            state.marking = Marking::Pending;
                        }
                        if self.keep(Rule::ChangeWithCounter) {
                            state.revoked = true;
                        } else {
                            caller.stage = Stage::CounterCommitted;
                        }
                    }
                    Wish::Mark => {
                        state.marking = Marking::Finished;
                        state.changes |= 1 << seq;
                        if !self.bounds.previous_release {
                            caller.finish(); // no property depends on when this change has propagated
                        }
                    }
                }
            }
            Action::CommitRest(at) => {
                let caller = &mut state.callers[usize::from(at)];
                allowed(caller.stage == Stage::CounterCommitted)?;
                caller.stage = Stage::Waiting;
                state.revoked = true;
            }
            Action::FindItSo(at) => {
                allowed(state.revoked && self.wish(at) == Wish::Repeat)?;
                let caller = &mut state.callers[usize::from(at)];
                allowed(caller.stage == Stage::Idle)?;
                caller.stage = Stage::Waiting;
                caller.seq = state.counter;
                if self.keep(Rule::RepeatsWait) {
                    caller.wait = self.awaited(self.bounds.lease);
                } else {
                    caller.clear = true;
                }
            }
            Action::ReadDescendants(at) => {
                allowed(
                    !self.keep(Rule::DescendantsReadUnderLock) && self.wish(at) == Wish::Revoke,
                )?;
                let descendants = Self::has_descendants(state);
                let caller = &mut state.callers[usize::from(at)];
                allowed(caller.stage == Stage::Idle && caller.descendants.is_none())?;
                caller.descendants = Some(descendants);
            }
            Action::WritePending(at) => {
                allowed(!self.keep(Rule::PendingWithRevocation) && self.wish(at) == Wish::Revoke)?;
                allowed(state.revoked && Self::has_descendants(state) && !state.crashed)?;
                allowed(state.marking == Marking::None)?;
                state.marking = Marking::Pending;
            }
            Action::Mark(at) => {
                allowed(self.marks(state, at) && Self::is_unmarked(state))?;
                state.marked = true;
            }
            Action::EndUnannounced(at) => {
                allowed(!self.keep(Rule::MarkingAnnounced) && self.can_end_marking(state, at))?;
                state.marking = Marking::Propagated;
            }
            Action::Crash => {
                allowed(self.markers().count() > 1 && state.revoked && !state.crashed)?;
                state.crashed = true;
                let marker = self.markers().next();
                for at in (0..).take(self.bounds.callers.len()) {
                    if self.wish(at) != Wish::Revoke && Some(at) != marker {
                        continue;
                    }
                    if state.locked_by == Some(at) {
                        // The database rolls the transaction back.
                        state.locked_by = None;
                        state.numbered -= 1;
                    }
                    state.callers[usize::from(at)].finish();
                }
            }
            Action::CheckAncestors => {
                allowed(state.verified.is_created() && state.creation == Creation::None)?;
                if self.keep(Rule::CreationChecksAncestors) {
                    let revoking = |at: u8| self.wish(at) == Wish::Revoke;
                    let waits = self.keep(Rule::CreationLocksAncestors)
                        && state.locked_by.is_some_and(revoking);
                    allowed(!waits && !state.revoked)?;
                }
                state.creation = Creation::Checked;
            }
            Action::InsertKey => {
                allowed(state.creation == Creation::Checked)?;
                state.creation = Creation::Committed;
            }
            Action::Look(at) => {
                let rows: Vec<_> = self.behind(state, at).collect();
                let caller = &mut state.callers[usize::from(at)];
                allowed(caller.stage == Stage::Waiting && !caller.clear)?;
                if rows.is_empty() && self.wish(at) == Wish::Change {
                    caller.finish();
                } else if rows.is_empty() {
                    caller.clear = true;
                } else {
                    allowed(self.removes(at) && !caller.looked && !caller.searched)?;
                    caller.looked = true;
                    caller.silence = if self.keep(Rule::SilenceFromLook) {
                        self.awaited(self.bounds.lease)
                    } else {
                        caller.wait
                    };
                    for (row, Row { renewals, .. }) in rows {
                        caller.seen[row] = renewals;
                    }
                }
            }
            Action::LookForSilent(at) => {
                let rows: Vec<_> = self.behind(state, at).collect();
                let caller = &mut state.callers[usize::from(at)];
                allowed(caller.looked && caller.silence == 0)?;
                for (row, Row { renewals, .. }) in rows {
                    if caller.seen[row] > 0
                        && (caller.seen[row] == renewals || !self.keep(Rule::OnlySilentRemoved))
                    {
                        caller.silent |= 1 << row;
                    }
                }
                (caller.looked, caller.searched) = (false, true);
                for row in 0..caller.seen.len() {
                    if caller.silent & (1 << row) == 0 {
                        caller.seen[row] = 0;
                    }
                }
                if caller.silent == 0 && self.wish(at) == Wish::Change {
                    caller.finish();
                }
            }
            Action::Remove(at, row) => {
                let caller = &mut state.callers[usize::from(at)];
                allowed(caller.silent & (1 << row) != 0)?;
                caller.silent &= !(1 << row);
                let seen = std::mem::take(&mut caller.seen[usize::from(row)]);
                let row = &mut state.rows[usize::from(row)];
                if row.is_some_and(|row| row.renewals == seen)
                    || !self.keep(Rule::OnlySilentRemoved)
                {
                    *row = None;
                }
                if caller.silent == 0 && self.wish(at) == Wish::Change {
                    caller.finish();
                }
            }
            Action::Answer(at) => {
                let (wish, home) = self.bounds.callers[usize::from(at)];
                let caller = &mut state.callers[usize::from(at)];
                allowed(caller.stage == Stage::Waiting && wish != Wish::Change)?;
                let over = caller.wait == 0;
                allowed(caller.clear || over || !self.keep(Rule::ChangesWait))?;
                let waits = wish != Wish::Repeat || self.keep(Rule::RepeatsWait);
                if let Some(home) = home
                    && waits
                    && !over
                {
                    let evicted = state.verifiers[usize::from(home)].memory.evicted;
                    allowed(evicted >= caller.seq || !self.keep(Rule::OwnVerifierToo))?;
                    let known = state.subscriber.known[usize::from(home)];
                    let applied = known.lives == 0 || known.acknowledged >= caller.seq;
                    allowed(applied || !self.keep(Rule::OwnSubscribersToo))?;
                }
                if caller.clear || !self.removes(at) {
                    caller.finish();
                }
                caller.stage = Stage::Answered;
                if wish == Wish::Mark {
                    state.marking = Marking::Propagated;
                } else {
                    state.answered = true;
                }
            }

            Action::Poll => {
                let subscriber = &mut state.subscriber;
                allowed(subscriber.poll == Poll::None)?;
                subscriber.poll = Poll::Sent {
                    age: 0,
                    acknowledges: subscriber.memory.evicted,
                };
            }
            Action::Compute(at) => {
                let Poll::Sent { age, acknowledges } = state.subscriber.poll else {
                    return None;
                };
                let replica = &state.verifiers[usize::from(at)].memory;
                let (upto, left) = (replica.evicted, replica.lease);
                let ours = are_among(state.changes, acknowledges, upto);
                if self.keep(Rule::RegisteredWithReply) && self.keep(Rule::ReplyOfOneMoment) {
                    self.register(state, at, acknowledges, upto, left);
                    state.subscriber.poll = Poll::Replied {
                        age,
                        upto,
                        ours,
                        left,
                    };
                } else {
                    state.subscriber.poll = Poll::Begun {
                        at,
                        age,
                        acknowledges,
                        upto,
                        ours,
                        left,
                    };
                }
            }
            Action::Complete => {
                let Poll::Begun {
                    at,
                    age,
                    acknowledges,
                    upto,
                    ours,
                    mut left,
                } = state.subscriber.poll
                else {
                    return None;
                };
                if !self.keep(Rule::ReplyOfOneMoment) {
                    left = state.verifiers[usize::from(at)].memory.lease;
                }
                self.register(state, at, acknowledges, upto, left);
                state.subscriber.poll = Poll::Replied {
                    age,
                    upto,
                    ours,
                    left,
                };
            }
            Action::TakeReply => {
                let subscriber = &mut state.subscriber;
                let Poll::Replied {
                    age,
                    upto,
                    ours,
                    left,
                } = subscriber.poll
                else {
                    return None;
                };
                if upto > subscriber.memory.evicted {
                    subscriber.memory.log = Log::Read {
                        upto,
                        ours,
                        steps: 0,
                    };
                }
                subscriber.poll = Poll::Applying { age, left };
            }
            Action::TakeLease => {
                let subscriber = &mut state.subscriber;
                let Poll::Applying { age, left } = subscriber.poll else {
                    return None;
                };
                let applied = subscriber.memory.log == Log::None;
                allowed(left > 0 && (applied || !self.keep(Rule::AppliedBeforeTaken)))?;
                let length = if self.keep(Rule::LeasesNest) {
                    left
                } else {
                    self.bounds.lease
                };
                let age = if self.keep(Rule::CountedFromPolling) {
                    age
                } else {
                    0
                };
                let end = self.held(length).saturating_sub(age);
                subscriber.memory.lease = subscriber.memory.lease.max(end);
                subscriber.poll = Poll::Applying { age: 0, left: 0 };
            }
            Action::LosePoll => {
                let subscriber = &mut state.subscriber;
                let over = match subscriber.poll {
                    Poll::None | Poll::Begun { .. } => false,
                    Poll::Applying { .. } => subscriber.memory.log == Log::None,
                    Poll::Sent { .. } | Poll::Replied { .. } => true,
                };
                allowed(over)?;
                subscriber.poll = Poll::None;
            }
        }
        Some(())
    }

    /// Lets a tick of time pass. Whether that changes anything.
    fn tick(&self, state: &mut State, awake: bool) -> bool {
        let before = *state;
        // An age beyond this leaves nothing of any lease.
        let oldest = self.held(self.bounds.lease);
        let older = |age: &mut u8| *age = (*age + 1).min(oldest);
        let less = |left: &mut u8| *left = left.saturating_sub(1);
        if awake {
            for verifier in &mut state.verifiers {
                less(&mut verifier.memory.lease);
                match &mut verifier.renewal {
                    Renewal::None => {}
                    Renewal::Asked { age, .. }
                    | Renewal::Compared { age, .. }
                    | Renewal::Written { age } => older(age),
                }
            }
        }
        for caller in &mut state.callers {
            less(&mut caller.wait);
            less(&mut caller.silence);
        }
        let subscriber = &mut state.subscriber;
        less(&mut subscriber.memory.lease);
        subscriber
            .known
            .iter_mut()
            .for_each(|known| less(&mut known.lives));
        match &mut subscriber.poll {
            Poll::None | Poll::Applying { left: 0, .. } => {}
            Poll::Sent { age, .. }
            | Poll::Begun { age, .. }
            | Poll::Replied { age, .. }
            | Poll::Applying { age, .. } => older(age),
        }
        *state != before
    }

    /// Executes the report of a verifier.
    fn report(&self, state: &mut State, at: u8) {
        let verifier = &mut state.verifiers[usize::from(at)];
        if let Some(row) = &mut state.rows[self.row(at)]
            && let Some(reported) = verifier.report
        {
            row.applied = reported;
            if !self.keep(Rule::ReportsExtendNothing) && !verifier.stopped {
                verifier.memory.lease = self.held(self.bounds.lease);
            }
        }
        verifier.report = None;
    }

    /// One of the three steps of applying changes.
    fn apply(&self, state: &mut State, who: Who) -> Option<()> {
        enum Step {
            Begin,
            Evict,
            Finish,
        }
        use Step::{Begin, Evict, Finish};
        let order = if !self.keep(Rule::ApplyingFirst) {
            [Evict, Begin, Finish]
        } else if !self.keep(Rule::EvictedLast) {
            [Begin, Finish, Evict]
        } else {
            [Begin, Evict, Finish]
        };
        let memory = memory(state, who);
        let Log::Read { upto, ours, steps } = memory.log else {
            return None;
        };
        match order[usize::from(steps)] {
            Begin => memory.applying = upto,
            Evict => memory.remembered &= !ours,
            Finish => memory.evicted = upto,
        }
        memory.log = if steps < 2 {
            Log::Read {
                upto,
                ours,
                steps: steps + 1,
            }
        } else {
            Log::None
        };
        Some(())
    }

    /// What becomes of a record that was fetched, as valid.
    fn learn(&self, memory: &mut Memory) -> Option<()> {
        memory.fetch = match memory.fetch {
            Fetch::Read(counter) => {
                let fresh = counter >= memory.applying;
                if !self.keep(Rule::FillsLookBeforeVisible) {
                    memory.remembered = true;
                    Fetch::Inserted(counter)
                } else if !self.keep(Rule::FillsLookUnderTheLock) {
                    if fresh { Fetch::Fit } else { Fetch::None }
                } else {
                    if fresh || !self.keep(Rule::FillsLook) {
                        memory.remembered = true;
                    }
                    Fetch::None
                }
            }
            Fetch::Fit => {
                memory.remembered = true;
                Fetch::None
            }
            Fetch::Inserted(counter) => {
                if counter < memory.applying {
                    memory.remembered = false;
                }
                Fetch::None
            }
            Fetch::None | Fetch::WithoutCounter | Fetch::AncestorsRead => return None,
        };
        Some(())
    }

    fn register(&self, state: &mut State, at: u8, acknowledges: u8, upto: u8, left: u8) {
        let known = &mut state.subscriber.known[usize::from(at)];
        let given = if left > 0 { self.awaited(left) } else { 0 };
        // One that holds no lease from here can answer nothing before it has applied the reply. One that does may still
        // answer from before; what it once acknowledged stays so.
        let lives = known.lives > 0 && self.keep(Rule::AnswersAcknowledgeNothing);
        known.acknowledged = if lives {
            known.acknowledged.max(acknowledges)
        } else {
            upto
        };
        known.lives = if self.keep(Rule::LargestLease) {
            known.lives.max(given)
        } else {
            given
        };
    }

    /// Whether a creation holds the locks on the rows of its ancestors.
    fn creation_holds_locks(&self, state: &State) -> bool {
        let locks =
            self.keep(Rule::CreationChecksAncestors) && self.keep(Rule::CreationLocksAncestors);
        state.creation == Creation::Checked && locks
    }

    /// Whether a caller removes silent rows. What it removes matters to those who come after it: after a revocation only to
    /// those who repeat it.
    fn removes(&self, caller: u8) -> bool {
        let repeated = self
            .bounds
            .callers
            .iter()
            .any(|(wish, _)| *wish == Wish::Repeat);
        self.bounds.asks.is_some() && (self.wish(caller) == Wish::Change || repeated)
    }

    fn wish(&self, caller: u8) -> Wish {
        self.bounds.callers[usize::from(caller)].0
    }
}

/// Whether one of these changes, one bit each, is later than `after` and no later than `upto`.
fn are_among(changes: u8, after: u8, upto: u8) -> bool {
    (after + 1..=upto).any(|seq| changes & (1 << seq) != 0)
}

fn memory(state: &mut State, who: Who) -> &mut Memory {
    match who {
        Who::Verifier(at) => &mut state.verifiers[usize::from(at)].memory,
        Who::Subscriber => &mut state.subscriber.memory,
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        self.bounds
            .keys
            .iter()
            .map(|&verified| State {
                verified,
                ..State::default()
            })
            .collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.accepted {
            return;
        }
        actions.extend([Action::Tick, Action::TickAsleep]);
        let mut memories = Vec::with_capacity(4);
        for at in 0..self.bounds.verifiers {
            memories.push(Who::Verifier(at));
            actions.extend([
                Action::Apply(Who::Verifier(at)),
                Action::Ask(at),
                Action::Compare(at),
                Action::Renew(at),
                Action::Grant(at),
                Action::Lose(at),
                Action::ReadChanges(at),
                Action::SendReport(at),
                Action::Report(at),
                Action::Stop(at),
                Action::Unregister(at),
            ]);
        }
        let follows = match self.bounds.subscriber {
            Following::Nobody => 0,
            Following::Quiet | Following::One => 1,
            Following::Any => self.bounds.verifiers,
        };
        if follows > 0 {
            actions.extend([
                Action::Poll,
                Action::Complete,
                Action::TakeReply,
                Action::TakeLease,
                Action::LosePoll,
            ]);
            actions.extend((0..follows).map(Action::Compute));
            actions.push(Action::Apply(Who::Subscriber));
        }
        if matches!(self.bounds.subscriber, Following::One | Following::Any) {
            memories.push(Who::Subscriber);
        }
        for who in memories {
            actions.extend([
                Action::Fetch(who),
                Action::FetchCounter(who),
                Action::Learn(who),
                Action::SeeLease(who),
                Action::FindEntry(who),
            ]);
        }
        for at in (0..).take(self.bounds.callers.len()) {
            actions.extend([
                Action::ReadClock(at),
                Action::Update(at),
                Action::Commit(at),
                Action::CommitRest(at),
                Action::FindItSo(at),
                Action::Look(at),
                Action::LookForSilent(at),
                Action::Answer(at),
            ]);
            actions.extend((0..self.bounds.verifiers).map(|row| Action::Remove(at, row)));
            if state.verified != Key::Parent {
                actions.extend([
                    Action::ReadDescendants(at),
                    Action::WritePending(at),
                    Action::Mark(at),
                    Action::EndUnannounced(at),
                ]);
            }
        }
        if state.verified != Key::Parent {
            actions.extend([Action::Crash, Action::CheckAncestors, Action::InsertKey]);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = *state;
        self.take(&mut next, action)?;
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(SAFE, |_, state: &State| !state.accepted),
            Property::sometimes("a key is answered from memory", |_, state: &State| {
                !state.revoked && answers(&state.verifiers[0].memory)
            }),
        ];
        if self.others(&State::default()).next().is_some() {
            properties.push(Property::sometimes(
                "the revocation is answered, and another verifier holds a lease",
                |model: &Self, state: &State| {
                    state.answered && model.others(state).any(|memory| memory.lease > 0)
                },
            ));
            properties.push(Property::sometimes(
                "the revocation is answered, and another verifier knows nothing of it",
                |model: &Self, state: &State| {
                    state.answered && model.others(state).any(|memory| memory.remembered)
                },
            ));
        }
        if matches!(self.bounds.subscriber, Following::One | Following::Any) {
            properties.push(Property::sometimes(
                "a subscriber answers from memory",
                |_, state: &State| !state.revoked && answers(&state.subscriber.memory),
            ));
            properties.push(Property::sometimes(
                "the revocation is answered, and a subscriber holds a lease",
                |_, state: &State| state.answered && state.subscriber.memory.lease > 0,
            ));
        }
        if self.bounds.keys.iter().any(|key| key.is_created()) {
            properties.push(Property::sometimes(
                "a key that a key has created is cached",
                |_, state: &State| {
                    state.verified.is_created() && answers(&state.verifiers[0].memory)
                },
            ));
        }
        if self.markers().next().is_some() {
            properties.push(Property::always(COMPLETE, |_, state: &State| {
                state.marking < Marking::Finished || !Self::is_unmarked(state)
            }));
            properties.push(Property::sometimes(
                "the revocation is answered before a descendant is marked",
                |_, state: &State| state.answered && Self::is_unmarked(state),
            ));
        }
        if self.markers().count() > 1 {
            properties.push(Property::always(
                FINISHABLE,
                |model: &Self, state: &State| model.can_be_finished(state),
            ));
            properties.push(Property::sometimes(
                "another replica finishes a marking that a crash has interrupted",
                |_, state: &State| state.crashed && state.marking >= Marking::Finished,
            ));
        }
        properties
    }
}

/// Whether a memory would answer yes.
fn answers(memory: &Memory) -> bool {
    memory.lease > 0 && memory.remembered
}

impl Protocol {
    /// The memories of verifiers in other processes than that of the revoking caller.
    fn others<'a>(&'a self, state: &'a State) -> impl Iterator<Item = &'a Memory> {
        let home = self
            .bounds
            .callers
            .iter()
            .find(|(wish, _)| *wish == Wish::Revoke)
            .and_then(|(_, home)| *home);
        (0..self.bounds.verifiers)
            .filter(move |at| Some(*at) != home)
            .map(|at| &state.verifiers[usize::from(at)].memory)
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Verifier(at) => write!(f, "verifier {at}"),
            Self::Subscriber => f.write_str("subscriber"),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tick => f.write_str("            a tick passes"),
            Self::TickAsleep => {
                f.write_str("            a tick passes, while the verifiers' machines sleep")
            }
            Self::Ask(at) => write!(f, "verifier {at}: reads its clock and asks for a lease"),
            Self::Compare(at) => write!(f, "verifier {at}: its renewal compares the counter"),
            Self::Renew(at) => write!(f, "verifier {at}: its renewal is executed"),
            Self::Grant(at) => write!(f, "verifier {at}: hears that it was renewed"),
            Self::Lose(at) => write!(f, "verifier {at}: never hears of its renewal"),
            Self::ReadChanges(at) => write!(f, "verifier {at}: reads what has changed"),
            Self::SendReport(at) => {
                write!(f, "verifier {at}: sends a report of what it has applied")
            }
            Self::Report(at) => write!(f, "verifier {at}: its report is executed"),
            Self::Stop(at) => write!(f, "verifier {at}: stops answering from memory"),
            Self::Unregister(at) => write!(f, "verifier {at}: deletes its row"),
            Self::Apply(who) => write!(f, "{who}: applies what has changed, or a third of it"),
            Self::Fetch(who) => write!(f, "{who}: reads the key, which is valid"),
            Self::FetchCounter(who) => write!(f, "{who}: reads the counter for it"),
            Self::Learn(who) => write!(f, "{who}: takes in the key it has read"),
            Self::SeeLease(who) => write!(f, "{who}: a verification looks at the lease"),
            Self::FindEntry(who) => write!(f, "{who}: a verification looks the key up"),
            Self::ReadClock(at) => write!(f, "caller {at}: reads the clock"),
            Self::Update(at) => write!(f, "caller {at}: raises the counter and reads the clock"),
            Self::Commit(at) => write!(f, "caller {at}: commits"),
            Self::CommitRest(at) => write!(f, "caller {at}: commits the change itself"),
            Self::FindItSo(at) => write!(f, "caller {at}: finds the key revoked already"),
            Self::ReadDescendants(at) => {
                write!(f, "caller {at}: reads whether the key has descendants")
            }
            Self::WritePending(at) => write!(f, "caller {at}: commits the pending row"),
            Self::Mark(at) => write!(f, "caller {at}: marks the descendant"),
            Self::EndUnannounced(at) => write!(f, "caller {at}: ends the marking without a change"),
            Self::Crash => f.write_str("            the process that revoked the key crashes"),
            Self::CheckAncestors => f.write_str("   creation: checks the ancestors"),
            Self::InsertKey => f.write_str("   creation: commits"),
            Self::Look(at) => write!(f, "caller {at}: looks who is behind"),
            Self::LookForSilent(at) => write!(f, "caller {at}: looks who has been silent"),
            Self::Remove(at, row) => write!(
                f,
                "caller {at}: removes the row of verifier {row}, if not renewed"
            ),
            Self::Answer(at) => write!(f, "caller {at}: is answered"),
            Self::Poll => f.write_str("subscriber: reads its clock and polls"),
            Self::Compute(at) => write!(f, "verifier {at}: computes the reply to the subscriber"),
            Self::Complete => f.write_str("          : and the rest of it"),
            Self::TakeReply => f.write_str("subscriber: receives the reply"),
            Self::TakeLease => f.write_str("subscriber: takes the lease that came with it"),
            Self::LosePoll => f.write_str("subscriber: is done with this poll"),
        }
    }
}
