//! An in-memory source and test clocks, for tests of code that verifies keys.

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
    AccountId, ApiKey, Catalogue, ChangeLog, Changed, Clock, Digest, KeyContext, KeyId,
    OperatingModel, PlainKey, Position, Restrictions, Scope, Seq, ServiceKeyId, Timestamp,
    VerifierId, key_format::CredentialKind,
};

use crate::source::{Primary, ServiceSnapshot, Snapshot, Source, SourceError, Unavailable};

/// The start of every test clock: 2026-01-01T00:00:00Z.
pub const START: i64 = 1_767_225_600;

/// A clock that moves only when a test moves it. Clones are the same clock.
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

    /// Moves both the wall clock and the elapsed time forward.
    pub fn advance(&self, by: Duration) {
        let mut times = self.times();
        times.0 = times.0.saturating_add(by).unwrap_or(Timestamp::MAX);
        times.1 += by;
    }

    /// Sets only the wall clock, as an operator or NTP would.
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

/// A clock that follows tokio's. If a test pauses that, time passes only while all tasks wait. Its coarse time is ten
/// milliseconds behind.
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

    fn coarse_now(&self) -> Timestamp {
        self.now() - Duration::from_millis(10)
    }

    fn elapsed(&self) -> Duration {
        Duration::from_secs(86_400) + self.0.elapsed()
    }
}

/// Returns the record of an active key of account `acme` without restrictions, with scope `commerce`. Its ID is derived
/// from the key.
#[must_use]
pub fn record(text: &str) -> KeyContext {
    let (Some(CredentialKind::Key(family, mode)), Some(text)) =
        (CredentialKind::parse(text), PlainKey::parse(text))
    else {
        panic!("not the form of an API key")
    };
    let mut id = [0; 16];
    id.copy_from_slice(&text.digest().as_bytes()[..16]);
    let key = ApiKey {
        name: "a key".to_owned(),
        restrictions: Restrictions {
            scopes: vec![Scope::COMMERCE],
            ..Restrictions::default()
        },
        ..ApiKey::new(
            KeyId::from_bytes(id),
            account("acme"),
            &text,
            (family, mode),
            Timestamp::UNIX_EPOCH,
        )
    };
    KeyContext::new(key, None, OperatingModel::default(), &Catalogue::default())
}

/// Parses an account ID.
#[must_use]
pub fn account(name: &str) -> AccountId {
    match name.parse() {
        Ok(id) => id,
        Err(error) => panic!("{name:?}: {error}"),
    }
}

/// An in-memory source. Clones are the same source.
#[derive(Debug, Clone)]
pub struct MemorySource(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Held by a test to delay responses that have already been read.
    gate: Arc<RwLock<()>>,
    /// Held by a test to delay responses to `report`.
    report_gate: Arc<RwLock<()>>,
}

#[derive(Debug)]
struct State {
    lease: Duration,
    down: bool,
    rejects_look_ups: bool,
    position: Position,
    /// The number of all changes, including those lost by a restore. Used as the time of a change.
    ever: i64,
    changes: Vec<(Position, Changed)>,
    keys: HashMap<Digest, KeyContext>,
    unreadable: HashSet<Digest>,
    service_keys: HashMap<Digest, ServiceKeyId>,
    verifiers: HashMap<VerifierId, (Seq, u64)>,
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

    fn available_state(&self) -> Result<MutexGuard<'_, State>, Unavailable> {
        let state = self.state();
        if state.down {
            Err(Unavailable)
        } else {
            Ok(state)
        }
    }

    /// Creates a key, or overwrites one without an entry in the log of changes.
    pub fn put(&self, text: &str, record: KeyContext) {
        self.state().keys.insert(Digest::of_key(text), record);
    }

    /// Makes look-ups of this key fail with [`SourceError::Unreadable`].
    pub fn make_unreadable(&self, text: &str) {
        self.state().unreadable.insert(Digest::of_key(text));
    }

    /// Sets whether every look-up of a key is rejected, as by a server that has revoked the verifier's service key.
    pub fn reject_look_ups(&self, rejects: bool) {
        self.state().rejects_look_ups = rejects;
    }

    /// Creates a service key.
    pub fn put_service_key(&self, text: &str, id: ServiceKeyId) {
        self.state().service_keys.insert(Digest::of_key(text), id);
    }

    /// Changes a key in one transaction. Returns the number of the change.
    pub fn change(&self, text: &str, change: impl FnOnce(&mut KeyContext)) -> Seq {
        let mut state = self.state();
        let Some(record) = state.keys.get_mut(&Digest::of_key(text)) else {
            return state.position.seq;
        };
        change(record);
        let changed = Changed::Key(record.key.id);
        state.changed(changed)
    }

    /// Changes every key, with `changed` as the entry in the log of changes. Returns the number of the change.
    pub fn change_all(&self, changed: Changed, mut change: impl FnMut(&mut KeyContext)) -> Seq {
        let mut state = self.state();
        state.keys.values_mut().for_each(&mut change);
        state.changed(changed)
    }

    /// Removes a service key. Returns the number of the change.
    pub fn revoke_service_key(&self, id: ServiceKeyId) -> Seq {
        let mut state = self.state();
        state.service_keys.retain(|_, stored| *stored != id);
        state.changed(Changed::ServiceKey(id))
    }

    /// Sets whether all requests fail with [`Unavailable`].
    pub fn set_down(&self, down: bool) {
        self.state().down = down;
    }

    /// Removes the log of changes up to `seq`, as a store does that keeps only the newest changes.
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

    /// Delays responses to `find`, `find_service_key` and `renew`, which are processed before, until the guard is dropped.
    pub async fn hold(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.0.gate).write_owned().await
    }

    /// Delays responses to `report`, which is processed before, until the guard is dropped.
    pub async fn hold_reports(&self) -> OwnedRwLockWriteGuard<()> {
        Arc::clone(&self.0.report_gate).write_owned().await
    }

    /// The position of the change counter.
    #[must_use]
    pub fn position(&self) -> Position {
        self.state().position
    }

    /// How often a key or a service key was looked up.
    #[must_use]
    pub fn finds(&self) -> u64 {
        self.state().finds
    }

    /// The registered verifiers: the change that each has reported, and the number of its last renewal.
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
            let mut state = self.available_state()?;
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
            let mut state = self.available_state()?;
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
        let state = self.available_state()?;
        let after = |at: &Position| at.seq > position.seq;
        let known = position == state.position
            || position == Position::default()
            || state.changes.iter().any(|(at, _)| *at == position);
        let is_gapless = state.changes.iter().filter(|(at, _)| after(at)).count() as i64
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
            changes: (known && is_gapless).then(changes),
        })
    }

    async fn lease_length(&self) -> Result<Duration, Unavailable> {
        Ok(self.available_state()?.lease)
    }

    async fn renew(
        &self,
        id: VerifierId,
        reported: Seq,
        evicted: Position,
    ) -> Result<bool, Unavailable> {
        let current = {
            let mut state = self.available_state()?;
            let current = state.position == evicted;
            if current {
                state.renewals += 1; // counted for all verifiers, so that no number repeats
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
        if let Some(row) = self.available_state()?.verifiers.get_mut(&id) {
            row.0 = applied;
        }
        let _delivered = self.0.report_gate.read().await;
        Ok(())
    }

    async fn unregister(&self, id: VerifierId) -> Result<(), Unavailable> {
        self.available_state()?.verifiers.remove(&id);
        Ok(())
    }

    async fn lagging_verifiers(
        &self,
        seq: Seq,
        except: VerifierId,
    ) -> Result<Vec<(VerifierId, u64)>, Unavailable> {
        let state = self.available_state()?;
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
        let mut state = self.available_state()?;
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
