//! A source in memory and clocks that stand still, for tests of whatever verifies.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedRwLockWriteGuard, RwLock},
    time::Instant,
};
use tollkey_core::{
    AccountId, ApiKey, Catalogue, ChangeLog, Changed, Clock, Digest, Grants, KeyId, KeyText,
    OperatingModel, Position, Record, Scope, Seq, ServiceKeyId, Timestamp, VerifierId,
    key_text::Kind,
};

use crate::source::{Primary, ServiceSnapshot, Snapshot, Source, SourceError, Unavailable};

/// The start of every test clock: 2026-01-01T00:00:00Z.
pub const START: i64 = 1_767_225_600;

/// A clock that moves only when it is told to. Clones are the same clock.
#[derive(Debug, Clone)]
pub struct ManualClock(Arc<Mutex<(Timestamp, Duration)>>);

impl Default for ManualClock {
    /// At [`START`], a day after boot.
    fn default() -> Self {
        Self::new(Timestamp::from_second(START).unwrap_or(Timestamp::UNIX_EPOCH))
    }
}

impl ManualClock {
    /// A clock at that time, a day after boot.
    #[must_use]
    pub fn new(now: Timestamp) -> Self {
        Self(Arc::new(Mutex::new((now, Duration::from_secs(86_400)))))
    }

    fn times(&self) -> MutexGuard<'_, (Timestamp, Duration)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets time pass, on the wall clock too.
    pub fn advance(&self, by: Duration) {
        let mut times = self.times();
        times.0 = times.0.saturating_add(by).unwrap_or(Timestamp::MAX);
        times.1 += by;
    }

    /// Sets the wall clock alone, as an operator or NTP would.
    pub fn set(&self, now: Timestamp) {
        self.times().0 = now;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> Timestamp {
        self.times().0
    }

    fn elapsed(&self) -> Duration {
        self.times().1
    }
}

/// A clock that follows tokio's, which a test can pause: time then passes only while everybody waits.
#[derive(Debug, Clone, Copy)]
pub struct TokioClock(Instant);

impl TokioClock {
    /// A clock that begins at [`START`].
    #[must_use]
    pub fn start() -> Self {
        Self(Instant::now())
    }
}

impl Clock for TokioClock {
    fn now(&self) -> Timestamp {
        let start = Timestamp::from_second(START).unwrap_or(Timestamp::UNIX_EPOCH);
        tollkey_core::time::to_micros(
            start
                .saturating_add(self.0.elapsed())
                .unwrap_or(Timestamp::MAX),
        )
    }

    fn elapsed(&self) -> Duration {
        Duration::from_secs(86_400) + self.0.elapsed()
    }
}

/// An active key of account `acme` with that text: no restrictions, scope `commerce`. Its id follows from the text.
///
/// # Panics
/// When the text is not shaped like an API key.
#[must_use]
pub fn record(text: &str) -> Record {
    let (Some(Kind::Key(family, mode)), Some(text)) = (Kind::of(text), KeyText::parse(text)) else {
        panic!("not shaped like an API key")
    };
    let mut id = [0; 16];
    id.copy_from_slice(&text.digest().as_bytes()[..16]);
    let key = ApiKey {
        name: "a key".to_owned(),
        grants: Grants {
            scopes: vec![Scope::COMMERCE],
            ..Grants::default()
        },
        ..ApiKey::new(
            KeyId::from_bytes(id),
            account("acme"),
            &text,
            (family, mode),
            Timestamp::UNIX_EPOCH,
        )
    };
    Record::new(key, None, OperatingModel::default(), &Catalogue::default())
}

/// The account of that name.
///
/// # Panics
/// When it is no account id.
#[must_use]
pub fn account(name: &str) -> AccountId {
    match name.parse() {
        Ok(id) => id,
        Err(error) => panic!("{name:?}: {error}"),
    }
}

/// A source that is nothing but memory. Clones are the same source.
#[derive(Debug, Clone)]
pub struct MemorySource(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Held by a test to let answers be read but not delivered.
    gate: Arc<RwLock<()>>,
    /// The same for reports.
    report_gate: Arc<RwLock<()>>,
}

#[derive(Debug)]
struct State {
    lease: Duration,
    down: bool,
    rejects_look_ups: bool,
    position: Position,
    /// Counts all changes ever made, those of a history that was left too, in the place of time.
    ever: i64,
    changes: Vec<(Position, Changed)>,
    keys: HashMap<Digest, Record>,
    unreadable: HashSet<Digest>,
    service_keys: HashMap<Digest, ServiceKeyId>,
    verifiers: HashMap<VerifierId, (Seq, u64)>,
    /// How many renewals there have been, of all verifiers.
    renewals: u64,
    finds: u64,
}

impl Default for MemorySource {
    /// An empty source with leases of three seconds.
    fn default() -> Self {
        Self::with_lease(Duration::from_secs(3))
    }
}

impl MemorySource {
    /// Returns an empty source with leases of that length.
    #[must_use]
    pub fn with_lease(lease: Duration) -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                lease,
                down: false,
                rejects_look_ups: false,
                position: Position::default(),
                ever: 0,
                changes: Vec::new(),
                keys: HashMap::new(),
                unreadable: HashSet::new(),
                service_keys: HashMap::new(),
                verifiers: HashMap::new(),
                renewals: 0,
                finds: 0,
            }),
            gate: Arc::default(),
            report_gate: Arc::default(),
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self) -> Result<MutexGuard<'_, State>, Unavailable> {
        let state = self.state();
        if state.down {
            Err(Unavailable)
        } else {
            Ok(state)
        }
    }

    /// Creates a key, or overwrites one without saying so to anybody.
    pub fn put(&self, text: &str, record: Record) {
        self.state().keys.insert(Digest::of(text), record);
    }

    /// Makes the key with that text one that this release cannot read.
    pub fn make_unreadable(&self, text: &str) {
        self.state().unreadable.insert(Digest::of(text));
    }

    /// Whether every look-up of a key is rejected, as by a server that has revoked the service key of the verifier.
    pub fn reject_look_ups(&self, rejects: bool) {
        self.state().rejects_look_ups = rejects;
    }

    /// Creates a service key.
    pub fn put_service_key(&self, text: &str, id: ServiceKeyId) {
        self.state().service_keys.insert(Digest::of(text), id);
    }

    /// Changes the key with that text, as one transaction. Answers the change.
    pub fn change(&self, text: &str, change: impl FnOnce(&mut Record)) -> Seq {
        let mut state = self.state();
        let Some(record) = state.keys.get_mut(&Digest::of(text)) else {
            return state.position.seq;
        };
        change(record);
        let changed = Changed::Key(record.key.id);
        state.changed(changed)
    }

    /// Changes every key, and says that `changed` is what changed. Answers the change.
    pub fn change_all(&self, changed: Changed, mut change: impl FnMut(&mut Record)) -> Seq {
        let mut state = self.state();
        state.keys.values_mut().for_each(&mut change);
        state.changed(changed)
    }

    /// Removes a service key. Answers the change.
    pub fn revoke_service_key(&self, id: ServiceKeyId) -> Seq {
        let mut state = self.state();
        state.service_keys.retain(|_, kept| *kept != id);
        state.changed(Changed::ServiceKey(id))
    }

    /// Whether nothing is answered.
    pub fn set_down(&self, down: bool) {
        self.state().down = down;
    }

    /// Forgets the log of changes up to `seq`, as a store that keeps only the newest does.
    pub fn prune(&self, seq: Seq) {
        self.state().changes.retain(|(at, _)| at.seq > seq);
    }

    /// Sets the counter back, as a restored database does.
    pub fn restore(&self, seq: Seq) {
        let mut state = self.state();
        state.changes.retain(|(at, _)| at.seq <= seq);
        state.position = state
            .changes
            .last()
            .map_or(Position { seq, at: 0 }, |(at, _)| *at);
        state.verifiers.clear();
    }

    /// Keeps answers to `find`, `find_service_key` and `renew` back, once they have been made, until this is dropped.
    pub async fn hold(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.0.gate).write_owned().await
    }

    /// Delays responses to `report`, which is done nevertheless, until this is dropped.
    pub async fn hold_reports(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.0.report_gate).write_owned().await
    }

    /// Where the change counter stands.
    #[must_use]
    pub fn position(&self) -> Position {
        self.state().position
    }

    /// How often a key or a service key was looked for.
    #[must_use]
    pub fn finds(&self) -> u64 {
        self.state().finds
    }

    /// The registered verifiers: what they have reported, and the number of their last renewal among those of all.
    #[must_use]
    pub fn verifiers(&self) -> HashMap<VerifierId, (Seq, u64)> {
        self.state().verifiers.clone()
    }
}

impl State {
    fn changed(&mut self, changed: Changed) -> Seq {
        self.ever += 1;
        self.position = Position {
            seq: Seq(self.position.seq.0 + 1),
            at: self.ever,
        };
        self.changes.push((self.position, changed));
        self.position.seq
    }
}

impl Source for MemorySource {
    async fn find(&self, digest: &Digest) -> Result<Snapshot, SourceError> {
        let snapshot = {
            let mut state = self.answer()?;
            state.finds += 1;
            if state.unreadable.contains(digest) {
                return Err(SourceError::Unreadable);
            }
            let snapshot = Snapshot {
                seq: state.position.seq,
                record: state.keys.get(digest).cloned(),
            };
            if state.rejects_look_ups {
                Err(SourceError::Rejected)
            } else {
                Ok(snapshot)
            }
        };
        let _delivered = self.0.gate.read().await;
        snapshot
    }
}

impl Primary for MemorySource {
    async fn find_service_key(&self, digest: &Digest) -> Result<ServiceSnapshot, SourceError> {
        let snapshot = {
            let mut state = self.answer()?;
            state.finds += 1;
            ServiceSnapshot {
                seq: state.position.seq,
                id: state.service_keys.get(digest).copied(),
            }
        };
        let _delivered = self.0.gate.read().await;
        Ok(snapshot)
    }

    async fn changes_after(
        &self,
        position: Position,
        limit: usize,
    ) -> Result<ChangeLog, Unavailable> {
        let state = self.answer()?;
        let after = |at: &Position| at.seq > position.seq;
        let known = position == state.position
            || position == Position::default()
            || state.changes.iter().any(|(at, _)| *at == position);
        let whole = state.changes.iter().filter(|(at, _)| after(at)).count() as i64
            == state.position.seq.0 - position.seq.0;
        let changes = || {
            state
                .changes
                .iter()
                .filter(|(at, _)| after(at))
                .take(limit)
                .cloned()
                .collect()
        };
        Ok(ChangeLog {
            current: state.position,
            changes: (known && whole).then(changes),
        })
    }

    async fn lease_length(&self) -> Result<Duration, Unavailable> {
        Ok(self.answer()?.lease)
    }

    async fn renew(
        &self,
        id: VerifierId,
        reported: Seq,
        evicted: Position,
    ) -> Result<bool, Unavailable> {
        let current = {
            let mut state = self.answer()?;
            let current = state.position == evicted;
            if current {
                state.renewals += 1; // of all together, so that no number comes back
                let renewals = state.renewals;
                let row = state.verifiers.entry(id).or_default();
                *row = (reported, renewals);
            }
            current
        };
        let _delivered = self.0.gate.read().await;
        Ok(current)
    }

    async fn report(&self, id: VerifierId, applied: Seq) -> Result<(), Unavailable> {
        if let Some(row) = self.answer()?.verifiers.get_mut(&id) {
            row.0 = applied;
        }
        let _delivered = self.0.report_gate.read().await;
        Ok(())
    }

    async fn unregister(&self, id: VerifierId) -> Result<(), Unavailable> {
        self.answer()?.verifiers.remove(&id);
        Ok(())
    }

    async fn behind(
        &self,
        seq: Seq,
        except: VerifierId,
    ) -> Result<Vec<(VerifierId, u64)>, Unavailable> {
        let state = self.answer()?;
        let behind = state
            .verifiers
            .iter()
            .filter(|(id, (applied, _))| *applied < seq && **id != except);
        Ok(behind.map(|(id, (_, renewals))| (*id, *renewals)).collect())
    }

    async fn remove_if_not_renewed(
        &self,
        id: VerifierId,
        renewals: u64,
    ) -> Result<(), Unavailable> {
        let mut state = self.answer()?;
        if state
            .verifiers
            .get(&id)
            .is_some_and(|(_, now)| *now == renewals)
        {
            state.verifiers.remove(&id);
        }
        Ok(())
    }
}
