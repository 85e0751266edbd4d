//! The steps of the protocol: when each is possible, and what it does.

use stateright::{Model, Property};
use strum::Display;

use crate::{
    rules::{Rule, Rules},
    state::{
        Cache, Creation, Fetch, Key, Log, Marking, Poll, Renewal, Reply, Request, Row, Stage, State,
    },
};

pub const SAFE: &str =
    "no verification that began after the response to the revocation accepts the key";

/// A second property: a marking also covers descendants that are created at the same time.
pub const COMPLETE: &str = "when a marking has ended, the own row of every descendant is marked";

pub const FINISHABLE: &str =
    "the marking after a revocation can still be finished, whichever process has crashed";

/// The drift of a clock during a lease, and the margin for it, in ticks.
const MARGIN: u8 = 1;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CallerTask {
    Revoke,
    /// Changes something else.
    Change,
    /// Revokes the key, which is already revoked.
    Repeat,
    /// Marks the descendants of the revoked key. This is a background task of a replica; the first one runs
    /// in the process that revokes the key.
    Mark,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SubscriberKind {
    None,
    /// Polls verifier 0, and verifies nothing.
    Quiet,
    /// Polls verifier 0, and verifies.
    One,
    /// Polls any verifier, and verifies.
    Any,
}

impl SubscriberKind {
    fn verifies(self) -> bool {
        matches!(self, Self::One | Self::Any)
    }
}

#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// The length of leases, in ticks.
    pub lease: u8,
    pub verifiers: u8,
    /// The tasks of the callers, each with the number of the verifier in its process; `None` for a process whose
    /// verifier does nothing.
    pub callers: &'static [(CallerTask, Option<u8>)],
    pub subscriber: SubscriberKind,
    /// Whether applying takes three steps instead of one, and reports may arrive late.
    pub fine: bool,
    /// Whether verifiers stop gracefully.
    pub stops: bool,
    /// How many renewals each verifier may send, which bounds the numbers in rows. Silent rows are removed
    /// only if this is set.
    pub max_renewals: Option<u8>,
    /// The keys that are verified, one in each run.
    pub keys: &'static [Key],
    /// Whether the verifiers are servers of the previous release, which read only a key's own row. They must reject a
    /// descendant of the revoked key once the end of the marking has propagated.
    pub previous_release: bool,
}

/// The protocol, with all rules or without one.
#[derive(Debug, Clone, Copy)]
pub struct Protocol {
    pub rules: Rules,
    pub bounds: Bounds,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Display)]
pub enum CacheOwner {
    #[strum(to_string = "verifier {0}")]
    Verifier(u8),
    #[strum(to_string = "subscriber")]
    Subscriber,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Display)]
pub enum Action {
    #[strum(to_string = "            a tick passes")]
    Tick,
    #[strum(to_string = "            a tick passes, while the verifiers' machines sleep")]
    TickAsleep,

    #[strum(to_string = "verifier {0}: reads its clock and sends a renewal")]
    SendRenewal(u8),
    #[strum(to_string = "verifier {0}: its renewal compares the counter")]
    Compare(u8),
    #[strum(to_string = "verifier {0}: its renewal is executed")]
    Renew(u8),
    #[strum(to_string = "verifier {0}: receives its renewed lease")]
    Grant(u8),
    #[strum(to_string = "verifier {0}: never receives its renewed lease")]
    LoseRenewal(u8),
    #[strum(to_string = "verifier {0}: reads the changes")]
    ReadChanges(u8),
    #[strum(to_string = "verifier {0}: sends a report of what it has applied")]
    SendReport(u8),
    #[strum(to_string = "verifier {0}: its report is executed")]
    Report(u8),
    #[strum(to_string = "verifier {0}: stops accepting keys from its cache")]
    Stop(u8),
    #[strum(to_string = "verifier {0}: deletes its row")]
    Unregister(u8),

    #[strum(to_string = "{0}: applies the changes, or a third of that")]
    Apply(CacheOwner),
    #[strum(to_string = "{0}: fetches the key, which is valid")]
    Fetch(CacheOwner),
    #[strum(to_string = "{0}: reads the counter for the fetched key")]
    FetchCounter(CacheOwner),
    #[strum(to_string = "{0}: caches the fetched key, or a step of that")]
    InsertFetched(CacheOwner),
    #[strum(to_string = "{0}: a verification checks the lease")]
    SeeLease(CacheOwner),
    #[strum(to_string = "{0}: a verification looks up the key")]
    FindEntry(CacheOwner),

    #[strum(to_string = "caller {0}: reads the clock")]
    ReadClock(u8),
    #[strum(to_string = "caller {0}: raises the counter and reads the clock")]
    Update(u8),
    #[strum(to_string = "caller {0}: commits")]
    Commit(u8),
    #[strum(to_string = "caller {0}: commits the change itself")]
    CommitRest(u8),
    #[strum(to_string = "caller {0}: finds the key already revoked")]
    FindRevoked(u8),
    #[strum(to_string = "caller {0}: reads whether the key has descendants")]
    ReadDescendants(u8),
    #[strum(to_string = "caller {0}: commits the pending row")]
    WritePending(u8),
    #[strum(to_string = "caller {0}: marks the descendant")]
    Mark(u8),
    #[strum(to_string = "caller {0}: ends the marking without a change")]
    EndUnannounced(u8),
    #[strum(to_string = "            the process that revoked the key crashes")]
    Crash,
    #[strum(to_string = "   creation: checks the ancestors")]
    CheckAncestors,
    #[strum(to_string = "   creation: commits")]
    InsertKey,
    #[strum(to_string = "caller {0}: checks for lagging rows")]
    CheckRows(u8),
    #[strum(to_string = "caller {0}: checks for silent rows")]
    CheckSilentRows(u8),
    #[strum(to_string = "caller {0}: removes the row of verifier {1}, if not renewed")]
    Remove(u8, u8),
    #[strum(to_string = "caller {0}: receives the response")]
    Respond(u8),

    #[strum(to_string = "subscriber: reads its clock and polls")]
    Poll,
    #[strum(to_string = "verifier {0}: computes the reply to the subscriber")]
    Compute(u8),
    #[strum(to_string = "          : completes the reply")]
    Complete,
    #[strum(to_string = "subscriber: receives the reply")]
    TakeReply,
    #[strum(to_string = "subscriber: takes the lease of the reply")]
    TakeLease,
    #[strum(to_string = "subscriber: ends this poll")]
    LosePoll,
}

impl Protocol {
    fn keep(&self, rule: Rule) -> bool {
        self.rules.keep(rule)
    }

    /// Returns the first value if the rule is kept, and the second if it is left out.
    fn choose<T>(&self, rule: Rule, kept: T, left_out: T) -> T {
        if self.keep(rule) { kept } else { left_out }
    }

    /// Returns for how many ticks, at most, the holder of a lease of `length` considers it valid.
    fn held(&self, length: u8) -> u8 {
        let subtracted = self.choose(Rule::HoldersSubtract, MARGIN, 0);
        (length + MARGIN).saturating_sub(subtracted)
    }

    /// Returns for how many ticks, at least, a caller waits for the end of a lease of `length`.
    fn awaited(&self, length: u8) -> u8 {
        let margin = self.choose(Rule::WaitersAdd, MARGIN, 0);
        (length + margin).saturating_sub(MARGIN)
    }

    fn row(&self, verifier: u8) -> usize {
        self.choose(Rule::FreshIds, verifier.into(), 0)
    }

    fn reported(&self, state: &State, verifier: u8) -> u8 {
        let own = state.verifiers[usize::from(verifier)].cache.evicted;
        let subscriber = &state.subscriber.known[usize::from(verifier)];
        if subscriber.lives > 0 && self.keep(Rule::ReportsMinimum) {
            own.min(subscriber.acknowledged)
        } else {
            own
        }
    }

    /// Returns the rows that lag behind the change of a caller, without that of the verifier in its own process.
    fn lagging_rows(
        &self,
        state: &State,
        caller: u8,
    ) -> impl Iterator<Item = (usize, Row)> + use<> {
        let own = self.bounds.callers[usize::from(caller)]
            .1
            .map(|verifier| self.row(verifier));
        let (rows, seq) = (state.rows, state.callers[usize::from(caller)].seq);
        rows.into_iter()
            .enumerate()
            .filter_map(|(at, row)| Some((at, row?)))
            .filter(move |(at, row)| Some(*at) != own && row.applied < seq)
    }

    /// Returns whether the verified key exists in the database.
    fn exists(state: &State) -> bool {
        !state.verified.is_created() || state.creation == Creation::Committed
    }

    /// Returns whether a descendant of the revoked key exists whose own row is not marked.
    fn is_unmarked(state: &State) -> bool {
        state.verified != Key::Parent && Self::exists(state) && !state.marked
    }

    fn has_descendants(state: &State) -> bool {
        match state.verified {
            Key::Parent => false, // no run that verifies the revoked key depends on its descendants
            Key::Child | Key::Grandchild => true,
            Key::OnlyChild => state.creation == Creation::Committed,
        }
    }

    fn ancestors_are_active(&self, state: &State) -> bool {
        !state.revoked || self.bounds.previous_release || !self.keep(Rule::AncestorsDecide)
    }

    fn own_row_is_active(state: &State) -> bool {
        let revoked = if state.verified == Key::Parent {
            state.revoked
        } else {
            state.marked
        };
        Self::exists(state) && !revoked
    }

    /// Returns whether a verification that begins now must reject the key.
    fn must_reject(&self, state: &State) -> bool {
        if self.bounds.previous_release && state.verified != Key::Parent {
            state.marking == Marking::Propagated
        } else {
            state.responded
        }
    }

    fn markers(&self) -> impl Iterator<Item = u8> {
        (0..)
            .zip(self.bounds.callers)
            .filter(|(_, (task, _))| *task == CallerTask::Mark)
            .map(|(at, _)| at)
    }

    fn marks(&self, state: &State, caller: u8) -> bool {
        let in_revoking_process = self.markers().next() == Some(caller);
        let runs = if in_revoking_process {
            !state.crashed
        } else {
            self.keep(Rule::MarkingResumed)
        };
        self.task(caller) == CallerTask::Mark && runs && state.marking == Marking::Pending
    }

    /// Returns whether that caller can delete the pending row now.
    fn can_end_marking(&self, state: &State, caller: u8) -> bool {
        self.marks(state, caller) && !Self::is_unmarked(state)
    }

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

    /// Returns `None` if the step is not possible now.
    fn take(&self, state: &mut State, action: Action) -> Option<()> {
        let allowed = |condition: bool| condition.then_some(());
        match action {
            Action::Tick => allowed(self.tick(state, true))?,
            Action::TickAsleep => {
                allowed(!self.keep(Rule::ClocksCountSleep))?;
                allowed(self.tick(state, false))?;
            }

            Action::SendRenewal(at) => {
                let reported = self.reported(state, at);
                let verifier = &mut state.verifiers[usize::from(at)];
                allowed(!verifier.stopped && verifier.renewal == Renewal::None)?;
                if let Some(most) = self.bounds.max_renewals {
                    allowed(verifier.renewals_sent < most)?;
                    verifier.renewals_sent += 1;
                }
                verifier.renewal = Renewal::Sent {
                    age: 0,
                    evicted: verifier.cache.evicted,
                    reported,
                };
            }
            Action::Compare(at) => {
                allowed(!self.keep(Rule::ShareLock))?;
                let verifier = &mut state.verifiers[usize::from(at)];
                let Renewal::Sent {
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
                    Renewal::Sent {
                        age,
                        evicted,
                        reported,
                    } if self.keep(Rule::ShareLock) => {
                        allowed(state.locked_by.is_none())?;
                        if evicted != state.counter && self.keep(Rule::OnlyUpToDateRenews) {
                            verifier.renewal = Renewal::None;
                            return Some(());
                        }
                        (age, reported)
                    }
                    Renewal::Compared { age, reported } => (age, reported),
                    _ => return None,
                };
                verifier.renewal = Renewal::Written { age };
                let renewals_sent = verifier.renewals_sent;
                let row = &mut state.rows[self.row(at)];
                let renewals = match (self.bounds.max_renewals, &row) {
                    (None, _) => 0,
                    (Some(_), _) if self.keep(Rule::RenewalsNeverRepeat) => renewals_sent,
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
                let age = self.choose(Rule::LeaseStartsAtRenewal, age, 0);
                if !verifier.stopped || !self.keep(Rule::StoppedStaysStopped) {
                    let end = self.held(self.bounds.lease).saturating_sub(age);
                    verifier.cache.lease = verifier.cache.lease.max(end);
                }
            }
            Action::LoseRenewal(at) => {
                let verifier = &mut state.verifiers[usize::from(at)];
                allowed(verifier.renewal != Renewal::None)?;
                verifier.renewal = Renewal::None;
            }
            Action::ReadChanges(at) => {
                let cache = &mut state.verifiers[usize::from(at)].cache;
                allowed(cache.log == Log::None && cache.evicted < state.counter)?;
                let ours = are_among(state.changes, cache.evicted, state.counter);
                cache.log = Log::Read {
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
                verifier.cache.lease = 0;
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

            Action::Apply(owner) => {
                self.apply(state, owner)?;
                if !self.bounds.fine {
                    while self.apply(state, owner).is_some() {}
                }
            }
            Action::Fetch(owner) => {
                // A record of a revoked key does no harm in a cache, so it is not fetched.
                allowed(self.ancestors_are_active(state))?;
                let read = if !self.keep(Rule::AncestorsInSnapshot) && state.verified != Key::Parent
                {
                    Fetch::AncestorsRead
                } else {
                    allowed(Self::own_row_is_active(state))?;
                    let read = Fetch::Read(state.counter);
                    self.choose(Rule::OneSnapshot, read, Fetch::WithoutCounter)
                };
                let cache = cache(state, owner);
                allowed(cache.fetch == Fetch::None)?;
                cache.fetch = read;
            }
            Action::FetchCounter(owner) => {
                let (counter, is_active) = (state.counter, Self::own_row_is_active(state));
                let cache = cache(state, owner);
                cache.fetch = match cache.fetch {
                    Fetch::AncestorsRead if !is_active => Fetch::None,
                    Fetch::AncestorsRead | Fetch::WithoutCounter => Fetch::Read(counter),
                    _ => return None,
                };
            }
            Action::InsertFetched(owner) => {
                if let CacheOwner::Verifier(at) = owner {
                    allowed(!state.verifiers[usize::from(at)].stopped)?;
                }
                self.insert_fetched(cache(state, owner))?;
            }
            Action::SeeLease(owner) => {
                let must_reject = self.must_reject(state);
                let cache = cache(state, owner);
                if self.keep(Rule::LeaseBeforeEntry) {
                    allowed(must_reject && cache.request == Request::None && cache.lease > 0)?;
                    cache.request = Request::LeaseSeen;
                } else {
                    allowed(cache.request == Request::EntrySeen)?;
                    cache.request = Request::None;
                    state.accepted = cache.lease > 0;
                }
            }
            Action::FindEntry(owner) => {
                let must_reject = self.must_reject(state);
                let cache = cache(state, owner);
                if self.keep(Rule::LeaseBeforeEntry) {
                    allowed(cache.request == Request::LeaseSeen)?;
                    cache.request = Request::None;
                    state.accepted = cache.cached;
                } else {
                    allowed(must_reject && cache.request == Request::None && cache.cached)?;
                    cache.request = Request::EntrySeen;
                }
            }

            Action::ReadClock(at) => {
                allowed(!self.keep(Rule::ClockAfterUpdate) && self.task(at) != CallerTask::Repeat)?;
                let caller = &mut state.callers[usize::from(at)];
                allowed(caller.stage == Stage::Idle)?;
                caller.stage = Stage::ClockRead;
                caller.wait = self.awaited(self.bounds.lease);
            }
            Action::Update(at) => {
                allowed(state.locked_by.is_none() || !self.keep(Rule::NumberedAsCommitted))?;
                match self.task(at) {
                    CallerTask::Change => {}
                    // A revocation waits for a creation that holds the lock on the key's row.
                    CallerTask::Revoke => allowed(!self.creation_holds_locks(state))?,
                    CallerTask::Repeat => return None,
                    CallerTask::Mark => allowed(
                        self.keep(Rule::MarkingAnnounced) && self.can_end_marking(state, at),
                    )?,
                }
                // Of two identical callers, the first always goes first: the order makes no difference.
                // Callers that mark are not identical, because one of them runs in the revoking process.
                let twin = (0..at)
                    .rfind(|other| {
                        self.bounds.callers[usize::from(*other)]
                            == self.bounds.callers[usize::from(at)]
                    })
                    .filter(|_| self.task(at) != CallerTask::Mark);
                allowed(
                    twin.is_none_or(|twin| state.callers[usize::from(twin)].stage != Stage::Idle),
                )?;
                let caller = &mut state.callers[usize::from(at)];
                if self.task(at) == CallerTask::Revoke && !self.keep(Rule::DescendantsReadUnderLock)
                {
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
                match self.task(at) {
                    CallerTask::Change | CallerTask::Repeat => {
                        if !self.removes(at) {
                            caller.finish(); // no property depends on when this change has propagated
                        } else if self.keep(Rule::SilenceFromCheck) {
                            caller.wait = 0;
                        }
                    }
                    CallerTask::Revoke => {
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
                    CallerTask::Mark => {
                        state.marking = Marking::Finished;
                        state.changes |= 1 << seq;
                        if !self.bounds.previous_release {
                            caller.finish(); // no property depends on the propagation of this change
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
            Action::FindRevoked(at) => {
                allowed(state.revoked && self.task(at) == CallerTask::Repeat)?;
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
                    !self.keep(Rule::DescendantsReadUnderLock)
                        && self.task(at) == CallerTask::Revoke,
                )?;
                let descendants = Self::has_descendants(state);
                let caller = &mut state.callers[usize::from(at)];
                allowed(caller.stage == Stage::Idle && caller.descendants.is_none())?;
                caller.descendants = Some(descendants);
            }
            Action::WritePending(at) => {
                allowed(
                    !self.keep(Rule::PendingWithRevocation) && self.task(at) == CallerTask::Revoke,
                )?;
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
                    if self.task(at) != CallerTask::Revoke && Some(at) != marker {
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
                    let revoking = |at: u8| self.task(at) == CallerTask::Revoke;
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
            Action::CheckRows(at) => {
                let rows: Vec<_> = self.lagging_rows(state, at).collect();
                let caller = &mut state.callers[usize::from(at)];
                allowed(caller.stage == Stage::Waiting && !caller.clear)?;
                if rows.is_empty() && self.task(at) == CallerTask::Change {
                    caller.finish();
                } else if rows.is_empty() {
                    caller.clear = true;
                } else {
                    allowed(self.removes(at) && !caller.has_recorded && !caller.searched)?;
                    caller.has_recorded = true;
                    let whole = self.awaited(self.bounds.lease);
                    caller.silence = self.choose(Rule::SilenceFromCheck, whole, caller.wait);
                    for (row, Row { renewals, .. }) in rows {
                        caller.seen[row] = renewals;
                    }
                }
            }
            Action::CheckSilentRows(at) => {
                let rows: Vec<_> = self.lagging_rows(state, at).collect();
                let caller = &mut state.callers[usize::from(at)];
                allowed(caller.has_recorded && caller.silence == 0)?;
                for (row, Row { renewals, .. }) in rows {
                    if caller.seen[row] > 0
                        && (caller.seen[row] == renewals || !self.keep(Rule::OnlySilentRemoved))
                    {
                        caller.silent |= 1 << row;
                    }
                }
                (caller.has_recorded, caller.searched) = (false, true);
                for row in 0..caller.seen.len() {
                    if caller.silent & (1 << row) == 0 {
                        caller.seen[row] = 0;
                    }
                }
                if caller.silent == 0 && self.task(at) == CallerTask::Change {
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
                if caller.silent == 0 && self.task(at) == CallerTask::Change {
                    caller.finish();
                }
            }
            Action::Respond(at) => {
                let (task, own_verifier) = self.bounds.callers[usize::from(at)];
                let caller = &mut state.callers[usize::from(at)];
                allowed(caller.stage == Stage::Waiting && task != CallerTask::Change)?;
                let has_expired = caller.wait == 0;
                allowed(caller.clear || has_expired || !self.keep(Rule::ChangesWait))?;
                let waits = task != CallerTask::Repeat || self.keep(Rule::RepeatsWait);
                if let Some(own_verifier) = own_verifier
                    && waits
                    && !has_expired
                {
                    let evicted = state.verifiers[usize::from(own_verifier)].cache.evicted;
                    allowed(evicted >= caller.seq || !self.keep(Rule::OwnVerifierToo))?;
                    let known = state.subscriber.known[usize::from(own_verifier)];
                    let applied = known.lives == 0 || known.acknowledged >= caller.seq;
                    allowed(applied || !self.keep(Rule::OwnSubscribersToo))?;
                }
                if caller.clear || !self.removes(at) {
                    caller.finish();
                }
                caller.stage = Stage::Responded;
                if task == CallerTask::Mark {
                    state.marking = Marking::Propagated;
                } else {
                    state.responded = true;
                }
            }

            Action::Poll => {
                let subscriber = &mut state.subscriber;
                allowed(subscriber.poll == Poll::None)?;
                subscriber.poll = Poll::Sent {
                    age: 0,
                    acknowledges: subscriber.cache.evicted,
                };
            }
            Action::Compute(at) => {
                let Poll::Sent { age, acknowledges } = state.subscriber.poll else {
                    return None;
                };
                let replica = &state.verifiers[usize::from(at)].cache;
                let reply = Reply {
                    age,
                    upto: replica.evicted,
                    ours: are_among(state.changes, acknowledges, replica.evicted),
                    left: replica.lease,
                };
                if self.keep(Rule::RegisteredWithReply) && self.keep(Rule::ReplyInOneStep) {
                    self.register(state, at, acknowledges, reply);
                    state.subscriber.poll = Poll::Replied(reply);
                } else {
                    state.subscriber.poll = Poll::Begun {
                        at,
                        acknowledges,
                        reply,
                    };
                }
            }
            Action::Complete => {
                let Poll::Begun {
                    at,
                    acknowledges,
                    mut reply,
                } = state.subscriber.poll
                else {
                    return None;
                };
                if !self.keep(Rule::ReplyInOneStep) {
                    reply.left = state.verifiers[usize::from(at)].cache.lease;
                }
                self.register(state, at, acknowledges, reply);
                state.subscriber.poll = Poll::Replied(reply);
            }
            Action::TakeReply => {
                let subscriber = &mut state.subscriber;
                let Poll::Replied(reply) = subscriber.poll else {
                    return None;
                };
                let Reply {
                    age,
                    upto,
                    ours,
                    left,
                } = reply;
                if upto > subscriber.cache.evicted {
                    subscriber.cache.log = Log::Read {
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
                let applied = subscriber.cache.log == Log::None;
                allowed(left > 0 && (applied || !self.keep(Rule::AppliedBeforeTaken)))?;
                let length = self.choose(Rule::LeasesNest, left, self.bounds.lease);
                let age = self.choose(Rule::LeaseStartsAtPoll, age, 0);
                let end = self.held(length).saturating_sub(age);
                subscriber.cache.lease = subscriber.cache.lease.max(end);
                subscriber.poll = Poll::Applying { age: 0, left: 0 };
            }
            Action::LosePoll => {
                let subscriber = &mut state.subscriber;
                let is_done = match subscriber.poll {
                    Poll::None | Poll::Begun { .. } => false,
                    Poll::Applying { .. } => subscriber.cache.log == Log::None,
                    Poll::Sent { .. } | Poll::Replied(_) => true,
                };
                allowed(is_done)?;
                subscriber.poll = Poll::None;
            }
        }
        Some(())
    }

    /// Advances the time by one tick. Returns whether the state changed.
    fn tick(&self, state: &mut State, awake: bool) -> bool {
        let before = *state;
        // A lease that is granted at this age has expired already.
        let oldest = self.held(self.bounds.lease);
        let older = |age: &mut u8| *age = (*age + 1).min(oldest);
        let less = |left: &mut u8| *left = left.saturating_sub(1);
        if awake {
            for verifier in &mut state.verifiers {
                less(&mut verifier.cache.lease);
                match &mut verifier.renewal {
                    Renewal::None => {}
                    Renewal::Sent { age, .. }
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
        less(&mut subscriber.cache.lease);
        subscriber
            .known
            .iter_mut()
            .for_each(|known| less(&mut known.lives));
        match &mut subscriber.poll {
            Poll::None | Poll::Applying { left: 0, .. } => {}
            Poll::Sent { age, .. }
            | Poll::Begun {
                reply: Reply { age, .. },
                ..
            }
            | Poll::Replied(Reply { age, .. })
            | Poll::Applying { age, .. } => older(age),
        }
        *state != before
    }

    fn report(&self, state: &mut State, at: u8) {
        let verifier = &mut state.verifiers[usize::from(at)];
        if let Some(row) = &mut state.rows[self.row(at)]
            && let Some(reported) = verifier.report
        {
            row.applied = reported;
            if !self.keep(Rule::ReportsExtendNothing) && !verifier.stopped {
                verifier.cache.lease = self.held(self.bounds.lease);
            }
        }
        verifier.report = None;
    }

    /// Executes one of the three steps of applying changes.
    fn apply(&self, state: &mut State, owner: CacheOwner) -> Option<()> {
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
        let cache = cache(state, owner);
        let Log::Read { upto, ours, steps } = cache.log else {
            return None;
        };
        match order[usize::from(steps)] {
            Begin => cache.applying = upto,
            Evict => cache.cached &= !ours,
            Finish => cache.evicted = upto,
        }
        cache.log = if steps < 2 {
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

    /// Executes a step of caching a record that was fetched as valid.
    fn insert_fetched(&self, cache: &mut Cache) -> Option<()> {
        cache.fetch = match cache.fetch {
            Fetch::Read(counter) => {
                let fresh = counter >= cache.applying;
                if !self.keep(Rule::FillsCheckBeforeVisible) {
                    cache.cached = true;
                    Fetch::Inserted(counter)
                } else if !self.keep(Rule::FillsCheckAtomically) {
                    if fresh { Fetch::Fit } else { Fetch::None }
                } else {
                    if fresh || !self.keep(Rule::FillsCheck) {
                        cache.cached = true;
                    }
                    Fetch::None
                }
            }
            Fetch::Fit => {
                cache.cached = true;
                Fetch::None
            }
            Fetch::Inserted(counter) => {
                if counter < cache.applying {
                    cache.cached = false;
                }
                Fetch::None
            }
            Fetch::None | Fetch::WithoutCounter | Fetch::AncestorsRead => return None,
        };
        Some(())
    }

    fn register(&self, state: &mut State, at: u8, acknowledges: u8, reply: Reply) {
        let known = &mut state.subscriber.known[usize::from(at)];
        let given = match reply.left {
            0 => 0,
            left => self.awaited(left),
        };
        // A subscriber without a lease of this replica accepts no key before it has applied the reply. One
        // with a lease may still accept keys from its cache, so only what it has acknowledged counts.
        let lives = known.lives > 0 && self.keep(Rule::RepliesAcknowledgeNothing);
        known.acknowledged = match lives {
            true => known.acknowledged.max(acknowledges),
            false => reply.upto,
        };
        known.lives = self.choose(Rule::LargestLease, known.lives.max(given), given);
    }

    fn creation_holds_locks(&self, state: &State) -> bool {
        let locks =
            self.keep(Rule::CreationChecksAncestors) && self.keep(Rule::CreationLocksAncestors);
        state.creation == Creation::Checked && locks
    }

    /// Returns whether a caller removes silent rows. A removal affects only later callers. After a
    /// revocation, these are the callers that repeat it.
    fn removes(&self, caller: u8) -> bool {
        let repeated = self
            .bounds
            .callers
            .iter()
            .any(|(task, _)| *task == CallerTask::Repeat);
        self.bounds.max_renewals.is_some() && (self.task(caller) == CallerTask::Change || repeated)
    }

    fn task(&self, caller: u8) -> CallerTask {
        self.bounds.callers[usize::from(caller)].0
    }
}

/// Returns whether one of the changes (one bit each) is after `after` and at most `upto`.
fn are_among(changes: u8, after: u8, upto: u8) -> bool {
    (after + 1..=upto).any(|seq| changes & (1 << seq) != 0)
}

fn cache(state: &mut State, owner: CacheOwner) -> &mut Cache {
    match owner {
        CacheOwner::Verifier(at) => &mut state.verifiers[usize::from(at)].cache,
        CacheOwner::Subscriber => &mut state.subscriber.cache,
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
        let mut caches = Vec::with_capacity(4);
        for at in 0..self.bounds.verifiers {
            caches.push(CacheOwner::Verifier(at));
            actions.extend([
                Action::Apply(CacheOwner::Verifier(at)),
                Action::SendRenewal(at),
                Action::Compare(at),
                Action::Renew(at),
                Action::Grant(at),
                Action::LoseRenewal(at),
                Action::ReadChanges(at),
                Action::SendReport(at),
                Action::Report(at),
                Action::Stop(at),
                Action::Unregister(at),
            ]);
        }
        let polled = match self.bounds.subscriber {
            SubscriberKind::None => 0,
            SubscriberKind::Quiet | SubscriberKind::One => 1,
            SubscriberKind::Any => self.bounds.verifiers,
        };
        if polled > 0 {
            actions.extend([
                Action::Poll,
                Action::Complete,
                Action::TakeReply,
                Action::TakeLease,
                Action::LosePoll,
            ]);
            actions.extend((0..polled).map(Action::Compute));
            actions.push(Action::Apply(CacheOwner::Subscriber));
        }
        if self.bounds.subscriber.verifies() {
            caches.push(CacheOwner::Subscriber);
        }
        for owner in caches {
            actions.extend([
                Action::Fetch(owner),
                Action::FetchCounter(owner),
                Action::InsertFetched(owner),
                Action::SeeLease(owner),
                Action::FindEntry(owner),
            ]);
        }
        for at in (0..).take(self.bounds.callers.len()) {
            actions.extend([
                Action::ReadClock(at),
                Action::Update(at),
                Action::Commit(at),
                Action::CommitRest(at),
                Action::FindRevoked(at),
                Action::CheckRows(at),
                Action::CheckSilentRows(at),
                Action::Respond(at),
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
            Property::sometimes("a key is accepted from a cache", |_, state: &State| {
                !state.revoked && would_accept(&state.verifiers[0].cache)
            }),
        ];
        if self.other_caches(&State::default()).next().is_some() {
            properties.push(Property::sometimes(
                "the revocation has a response, and another verifier holds a lease",
                |model: &Self, state: &State| {
                    state.responded && model.other_caches(state).any(|cache| cache.lease > 0)
                },
            ));
            properties.push(Property::sometimes(
                "the revocation has a response, and another verifier still caches the key",
                |model: &Self, state: &State| {
                    state.responded && model.other_caches(state).any(|cache| cache.cached)
                },
            ));
        }
        if self.bounds.subscriber.verifies() {
            properties.push(Property::sometimes(
                "a subscriber accepts a key from its cache",
                |_, state: &State| !state.revoked && would_accept(&state.subscriber.cache),
            ));
            properties.push(Property::sometimes(
                "the revocation has a response, and a subscriber holds a lease",
                |_, state: &State| state.responded && state.subscriber.cache.lease > 0,
            ));
        }
        if self.bounds.keys.iter().any(|key| key.is_created()) {
            properties.push(Property::sometimes(
                "a key that was created by a key is cached",
                |_, state: &State| {
                    state.verified.is_created() && would_accept(&state.verifiers[0].cache)
                },
            ));
        }
        if self.markers().next().is_some() {
            properties.push(Property::always(COMPLETE, |_, state: &State| {
                state.marking < Marking::Finished || !Self::is_unmarked(state)
            }));
            properties.push(Property::sometimes(
                "the revocation has a response before a descendant is marked",
                |_, state: &State| state.responded && Self::is_unmarked(state),
            ));
        }
        if self.markers().count() > 1 {
            properties.push(Property::always(
                FINISHABLE,
                |model: &Self, state: &State| model.can_be_finished(state),
            ));
            properties.push(Property::sometimes(
                "another replica finishes a marking after a crash",
                |_, state: &State| state.crashed && state.marking >= Marking::Finished,
            ));
        }
        properties
    }
}

fn would_accept(cache: &Cache) -> bool {
    cache.lease > 0 && cache.cached
}

impl Protocol {
    /// Returns the caches of verifiers outside the process of the revoking caller.
    fn other_caches<'a>(&'a self, state: &'a State) -> impl Iterator<Item = &'a Cache> {
        let own_verifier = self
            .bounds
            .callers
            .iter()
            .find(|(task, _)| *task == CallerTask::Revoke)
            .and_then(|(_, own_verifier)| *own_verifier);
        (0..self.bounds.verifiers)
            .filter(move |at| Some(*at) != own_verifier)
            .map(|at| &state.verifiers[usize::from(at)].cache)
    }
}
