//! Several server processes on one database, under faults: processes are paused and killed, PostgreSQL is restarted,
//! and network links become slow, stop carrying data or break. Servers, subscribed resource servers and clients verify
//! keys all the time.
//!
//! Checks that no verification which began after the response to a revocation reports the key, or a descendant of it,
//! as valid. Both times come from this process's monotonic clock: just before the first byte of the request is
//! written, and after the response is read. Also checks that no key is rejected before its revocation was requested, that
//! every revocation succeeds eventually, and that every replica verifies keys again after the faults.
//!
//! `cargo test` runs the short form, `cargo xtask chaos` the long one. `TOLLKEY_CHAOS_SEED` repeats a schedule of
//! faults, `TOLLKEY_CHAOS_REVOCATIONS` and `TOLLKEY_CHAOS_SECONDS` set minimums.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    env,
    fmt::Write as _,
    io::{self, Write as _},
    net::SocketAddr,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use rand::{
    RngExt as _, SeedableRng as _, TryRng as _,
    rngs::{StdRng, SysRng},
    seq::{IndexedRandom as _, SliceRandom as _},
};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tollkey_client::{Auth, Client, verification::VerifyResponse};
use tollkey_core::{AccessRequest, RequestPath, RouteBase, VerifierId, usage::outcome_code};
use tollkey_store::testing::{Database, Postgres};
use tollkey_verifier::{Settings, SystemClock, Verifier};

use crate::{
    binary::{Connection, Server, Tollkey, member, merchant, service},
    replicas::with_short_leases,
    support::{Call, source, without_secrets},
    wire::{LinkState, Wire},
};

/// The length of a lease in this test ([`with_short_leases`]): many expire while it runs.
const LEASE: Duration = Duration::from_millis(300);
/// How long most callers wait for a verification. Short, so that requests begin while a process is paused, and so that
/// a replica without PostgreSQL still gets requests for the keys in its cache.
const SHORT_TIMEOUT: Duration = Duration::from_millis(60);
/// How long the other callers wait: longer than a replica needs to detect that PostgreSQL is unreachable.
const LONG_TIMEOUT: Duration = Duration::from_secs(5);
/// The timeout of one attempt of a client: it gives a connection up after a second of silence.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a new key is sent to a replica that does not respond.
const WARM_UP: Duration = Duration::from_millis(500);
/// How many milliseconds a client waits for the response to a change before it sends the request again, perhaps to
/// another replica. Some repeat the request while the first one is still running.
const ATTEMPT_TIMEOUTS: [u64; 4] = [30, 1000, 1000, 1000];
/// The longest a change may take, including all repeats.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// How soon every replica must verify keys again after the faults. Generous, for a busy machine.
const RECOVERY: Duration = Duration::from_secs(10);
/// How many milliseconds pass between two faults: keys must be cached before they are revoked.
const PAUSE_BETWEEN_FAULTS: Range<u64> = 100..1500;
/// How long verification continues after the last fault.
const CALM: Duration = Duration::from_millis(500);
/// The pause between two requests of a caller, so that replicas can still renew their leases.
const PAUSE: Duration = Duration::from_millis(3);
const ACCOUNT_KEYS: &str = "/account/api-keys";
/// How many keys of a tree are created before one of them is revoked.
const TREE: Range<usize> = 2..6;
/// The maximum depth of a tree: the root has depth 0. A key at the server's depth limit cannot create keys.
const DEPTH: usize = 3;
/// How many keys the attacker tries to create while a key of the tree is revoked.
const STOLEN: usize = 6;
/// The maximum number of keys in a batch.
const BATCH: usize = 100;
/// A request that keys of every family are allowed to send, publishable keys included.
const ROUTE: (&str, &str) = ("GET", "/v1/storefront/products");
/// How many of the most recently revoked keys are still verified.
const RECENTLY_REVOKED: usize = 16;
/// How many tasks create and revoke keys concurrently.
const REVOKERS: usize = 12;
/// The callers of each replica, which run concurrently.
const CALLERS: [CallerKind; 4] = [
    CallerKind::All,
    CallerKind::One,
    CallerKind::Suspect,
    CallerKind::Suspect,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    /// SIGSTOP, for less than a lease.
    FrozenBriefly,
    /// SIGSTOP, for more than a lease.
    FrozenForLong,
    /// SIGKILL, and a new process in its place.
    Killed,
    /// PostgreSQL is stopped in order and started.
    DatabaseRestarted,
    /// PostgreSQL crashes and is started.
    DatabaseCrashed,
    /// Traffic between a replica and PostgreSQL is delayed.
    Slow,
    /// Traffic from PostgreSQL to a replica, or in the other direction, stops arriving; connections stay open.
    Mute,
    /// A replica receives no notifications of changes. It sees them only when it polls.
    Unheard,
    /// A replica cannot reach PostgreSQL.
    Cut,
    /// Traffic stops on the existing connections of resource servers and clients to a replica; new connections work.
    SilentConnections,
}

impl Fault {
    const OF_PROCESSES: [Self; 4] = [
        Self::FrozenBriefly,
        Self::FrozenForLong,
        Self::Killed,
        Self::SilentConnections,
    ];
    const OF_THE_DATABASE: [Self; 6] = [
        Self::DatabaseRestarted,
        Self::DatabaseCrashed,
        Self::Slow,
        Self::Mute,
        Self::Unheard,
        Self::Cut,
    ];
}

/// The minimum size of a run.
struct Plan {
    seed: u64,
    replicas: usize,
    revocations: usize,
    time: Duration,
    /// How often each fault injector goes through all faults, at least.
    rounds: usize,
}

impl Plan {
    /// Uses these numbers unless the environment sets larger ones.
    fn at_least(replicas: usize, revocations: usize, rounds: usize) -> Self {
        let number = |name: &str| -> Option<u64> {
            let text = env::var(name).ok()?;
            Some(
                text.parse()
                    .unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")),
            )
        };
        let revocations =
            number("TOLLKEY_CHAOS_REVOCATIONS").map_or(revocations, |more| more as usize);
        Self {
            seed: number("TOLLKEY_CHAOS_SEED")
                .unwrap_or_else(|| SysRng.try_next_u32().expect("randomness").into()),
            replicas,
            revocations,
            time: Duration::from_secs(number("TOLLKEY_CHAOS_SECONDS").unwrap_or(0)),
            rounds,
        }
    }
}

/// A key and the times of its revocation.
struct Key {
    text: String,
    /// When its revocation was first requested.
    requested: Option<Instant>,
    /// When the response to the revocation arrived.
    confirmed: Option<Instant>,
}

/// A replica of the cluster. Its process is absent while it is being replaced.
struct Replica {
    tollkey: Tollkey,
    server: RefCell<Option<Server>>,
    /// The link to PostgreSQL.
    wire: Option<Wire>,
    /// The link to the users of the replica: subscribed resource servers and a client.
    front: Wire,
    client: Client,
}

impl Replica {
    fn address(&self) -> Option<SocketAddr> {
        self.server.borrow().as_ref().map(|server| server.address)
    }

    /// Waits until `take` returns a value: the other injector may be replacing the process.
    async fn wait_for_process<T>(&self, take: impl Fn(&mut Option<Server>) -> Option<T>) -> T {
        loop {
            if let Some(taken) = take(&mut self.server.borrow_mut()) {
                return taken;
            }
            sleep(PAUSE).await;
        }
    }
}

#[derive(Default)]
struct Counts {
    verifications: Cell<u64>,
    /// Those of them that were valid.
    valid: Cell<u64>,
    /// Verification requests with status 503.
    unavailable: Cell<u64>,
    /// Verification requests without a response in time.
    timed_out: Cell<u64>,
    /// Verifications by subscribed resource servers.
    by_subscribers: Cell<u64>,
    /// Those of them that came from the resource server's cache.
    subscriber_hits: Cell<u64>,
    /// Verifications by clients over links whose connections go silent.
    by_clients: Cell<u64>,
    /// Subscriptions that began, and those of them that were aborted.
    subscriptions: Cell<u64>,
    silent: Cell<u64>,
    /// Requests for a change that were repeated.
    repeated: Cell<u64>,
    revocations: Cell<usize>,
    /// Those of keys that every replica had verified from its cache.
    cached: Cell<usize>,
    slowest: Cell<Duration>,
    /// Revocations of keys with descendants, the descendants, and the descendants created during the revocation.
    trees: Cell<u64>,
    descendants: Cell<u64>,
    stolen: Cell<u64>,
    faults: RefCell<BTreeMap<Fault, u32>>,
}

fn add(counter: &Cell<u64>, count: u64) {
    counter.set(counter.get() + count);
}

/// Which keys a caller verifies.
#[derive(Clone, Copy)]
enum CallerKind {
    /// All current keys in one batch, with a short timeout.
    All,
    /// One key after the other, with a long timeout.
    One,
    /// One after the other of the keys whose revocation was requested recently, with a short timeout.
    Suspect,
}

/// The endpoint that revokes a key.
#[derive(Clone, Copy)]
enum Revocation {
    /// `POST /api-keys/{id}/revoke`: a repeat gets the first response.
    Repeatable,
    /// `DELETE /applications/{id}/api-keys/{keyId}`: a repeat gets `key_already_revoked`.
    Once,
}

#[derive(Clone)]
struct TreeKey {
    number: usize,
    id: String,
    text: String,
    /// The index of its parent in the tree; `None` for the root.
    parent: Option<usize>,
    depth: usize,
    is_secret: bool,
}

/// Returns the indexes of a key of a tree and of all its descendants.
fn subtree(tree: &[TreeKey], root: usize) -> Vec<usize> {
    let mut family = vec![root];
    // Parents come before their children.
    for (index, key) in tree.iter().enumerate() {
        if key.parent.is_some_and(|parent| family.contains(&parent)) {
            family.push(index);
        }
    }
    family
}

struct World {
    plan: Plan,
    begun: Instant,
    replicas: Vec<Replica>,
    postgres: Option<&'static Postgres>,
    /// Serializes stops and starts of PostgreSQL.
    restarting: tokio::sync::Mutex<()>,
    application: String,
    /// Tokens expire after an hour; a run must be shorter.
    merchant: String,
    service: String,
    keys: RefCell<Vec<Key>>,
    /// The active keys, and the most recently revoked ones.
    in_play: RefCell<VecDeque<usize>>,
    counts: Counts,
    failures: RefCell<Vec<String>>,
    faults_ended: Cell<bool>,
    ended: Cell<bool>,
}

impl World {
    async fn start(plan: Plan, database: &Database, postgres: Option<&'static Postgres>) -> Self {
        with_short_leases(database);
        let replica = async |_| {
            let wire = postgres
                .as_ref()
                .map(|postgres| Wire::to(postgres.socket()));
            let url = wire.as_ref().map_or_else(
                || database.url().to_owned(),
                |wire| database.url_at(wire.address),
            );
            let tollkey = Tollkey::on(database)
                .with("DATABASE_URL", &url)
                .with("TOLLKEY_DATABASE_POOL", "8")
                .with("TOLLKEY_LOG", "warn")
                .with("TOLLKEY_APPLICATION_KEY_LIMIT", "10000");
            let server = tollkey.serve().await;
            let front = Wire::to_address(server.address);
            let client = Client::new(format!("http://{}", front.address)).expect("a client");
            let client = client
                .with_auth(Auth::service(service()))
                .with_max_retries(0)
                .with_timeout(CLIENT_TIMEOUT);
            Replica {
                tollkey,
                server: RefCell::new(Some(server)),
                wire,
                front,
                client,
            }
        };
        let replicas = join_all((0..plan.replicas).map(replica)).await;
        let (merchant, service) = (merchant("acme"), service());
        let first = replicas[0].address().expect("a running server");
        let created = Call::new(first, "POST", "/applications")
            .json(json!({"name": "Web Store"}))
            .bearer(&merchant)
            .await;
        let application = member(&created, "id");
        Self {
            plan,
            begun: Instant::now(),
            replicas,
            postgres,
            restarting: tokio::sync::Mutex::default(),
            application,
            merchant,
            service,
            keys: RefCell::default(),
            in_play: RefCell::default(),
            counts: Counts::default(),
            failures: RefCell::default(),
            faults_ended: Cell::new(false),
            ended: Cell::new(false),
        }
    }

    /// Records a failure and stops the run.
    fn fail(&self, what: String) {
        self.failures
            .borrow_mut()
            .push(format!("after {:.1?}: {what}", self.begun.elapsed()));
        self.faults_ended.set(true);
        self.ended.set(true);
    }

    /// Sends a request. Returns when it began, the status and the body; `None` without a response in time.
    async fn exchange(
        &self,
        replica: usize,
        kept: &mut Option<Connection>,
        (method, path, token): (&str, &str, &str),
        body: &str,
        patience: Duration,
    ) -> Option<(Instant, u16, String)> {
        let exchange = async {
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => Connection::open(self.replicas[replica].address()?).await?,
            };
            let began = Instant::now();
            connection
                .send(method, &format!("/api/v1{path}"), token, body)
                .await
                .ok()?;
            let (status, body) = connection.answer().await?;
            *kept = Some(connection);
            Some((began, status, body))
        };
        timeout(patience, exchange).await.ok().flatten()
    }

    /// Sends a change to one replica after the other until `counts` accepts a response.
    async fn change<T>(
        &self,
        rng: &mut StdRng,
        (method, path, token): (&str, &str, &str),
        body: &str,
        counts: impl Fn(u16, &Value) -> Option<T>,
    ) -> Option<(Instant, T)> {
        let since = Instant::now();
        loop {
            let replica = rng.random_range(0..self.replicas.len());
            let request = (method, path, token);
            let patience = Duration::from_millis(
                ATTEMPT_TIMEOUTS[rng.random_range(0..ATTEMPT_TIMEOUTS.len())],
            );
            let reply = self
                .exchange(replica, &mut None, request, body, patience)
                .await;
            let confirmed = Instant::now();
            if let Some((_, status, body)) = reply {
                let json = serde_json::from_str(&body).unwrap_or_default();
                if let Some(value) = counts(status, &json) {
                    return Some((confirmed, value));
                }
                if status != 503 {
                    let body = without_secrets(&body);
                    self.fail(format!(
                        "replica {replica}: {method} {path} returned {status}: {body}"
                    ));
                }
            }
            if since.elapsed() > CHANGE_TIMEOUT {
                self.fail(format!(
                    "{method} {path} did not succeed within {CHANGE_TIMEOUT:?}"
                ));
            }
            if self.ended.get() {
                return None;
            }
            add(&self.counts.repeated, 1);
            sleep(Duration::from_millis(rng.random_range(1..20))).await;
        }
    }

    /// Creates a key. Returns its number and its ID.
    async fn create_key(&self, rng: &mut StdRng, how: Revocation) -> Option<(usize, String)> {
        let application = format!("/applications/{}/api-keys", self.application);
        let (path, body, names) = match how {
            Revocation::Repeatable => (
                "/api-keys",
                json!({"name": "Checkout"}),
                ("key_id", "api_key"),
            ),
            Revocation::Once => (
                application.as_str(),
                json!({"description": "Checkout"}),
                ("id", "fullKey"),
            ),
        };
        let created = |status: u16, json: &Value| {
            (status == 201).then(|| {
                [names.0, names.1].map(|name| json[name].as_str().expect("a string").to_owned())
            })
        };
        let (_, [id, text]) = self
            .change(
                rng,
                ("POST", path, &self.merchant),
                &body.to_string(),
                created,
            )
            .await?;
        self.keys.borrow_mut().push(Key {
            text,
            requested: None,
            confirmed: None,
        });
        Some((self.keys.borrow().len() - 1, id))
    }

    /// Verifies a key on every replica until it is cached there, for a limited time. Returns whether all cached it.
    async fn warm_up(&self, key: usize) -> bool {
        let per_replica = (0..self.replicas.len()).map(async |replica| {
            let (mut connection, since) = (None, Instant::now());
            while since.elapsed() < WARM_UP && !self.ended.get() {
                // The first result may come from the database; the second one comes from the cache if there is a lease.
                if self.verify(replica, &mut connection, &[key], WARM_UP).await == Some(1)
                    && self.verify(replica, &mut connection, &[key], WARM_UP).await == Some(1)
                {
                    return true;
                }
                sleep(Duration::from_millis(5)).await;
            }
            false
        });
        join_all(per_replica).await.into_iter().all(|yes| yes)
    }

    /// Verifies keys and checks each result. Returns how many are valid; `None` without results.
    async fn verify(
        &self,
        replica: usize,
        connection: &mut Option<Connection>,
        keys: &[usize],
        patience: Duration,
    ) -> Option<usize> {
        let requests: Vec<Value> = {
            let known = self.keys.borrow();
            let (method, path) = ROUTE;
            keys.iter()
                .map(|key| json!({"key": known[*key].text, "method": method, "path": path}))
                .collect()
        };
        let (path, body) = match &requests[..] {
            [one] => ("/verify", one.to_string()),
            several => ("/verify/batch", json!({"requests": several}).to_string()),
        };
        let request = ("POST", path, self.service.as_str());
        let Some((began, status, body)) = self
            .exchange(replica, connection, request, &body, patience)
            .await
        else {
            add(&self.counts.timed_out, 1);
            return None;
        };
        match status {
            200 => {
                let answer: Value = serde_json::from_str(&body).expect("JSON");
                let results = answer["results"]
                    .as_array()
                    .map_or(std::slice::from_ref(&answer), Vec::as_slice);
                assert_eq!(results.len(), keys.len(), "one result for each key");
                let codes = results
                    .iter()
                    .map(|result| result["code"].as_str().expect("a code"));
                Some(
                    keys.iter()
                        .zip(codes)
                        .filter(|(key, code)| self.check(**key, replica, began, code))
                        .count(),
                )
            }
            503 => {
                add(&self.counts.unavailable, 1);
                None
            }
            _ => {
                self.fail(format!(
                    "replica {replica}: {path} returned {status}: {}",
                    without_secrets(&body)
                ));
                None
            }
        }
    }

    /// Checks the code of a verification against the times of the revocation. Returns whether it is `valid`.
    fn check(&self, number: usize, replica: usize, began: Instant, code: &str) -> bool {
        add(&self.counts.verifications, 1);
        let keys = self.keys.borrow();
        let key = &keys[number];
        let failure = match (code, key.requested, key.confirmed) {
            ("valid", _, None) | ("revoked", Some(_), _) => None,
            // Revoked by now, perhaps while this verification was running.
            ("valid", _, Some(confirmed)) if began <= confirmed => None,
            ("valid", _, Some(confirmed)) => Some(format!(
                "key {number} was valid on replica {replica} for a verification that began {:?} after the response to its \
                 revocation",
                began - confirmed
            )),
            (_, None, _) => Some(format!(
                "key {number} was {code} on replica {replica} before its revocation was requested"
            )),
            _ => Some(format!("key {number} was {code} on replica {replica}")),
        };
        drop(keys);
        if let Some(failure) = failure {
            self.fail(failure);
        }
        if code == "valid" {
            add(&self.counts.valid, 1);
        }
        code == "valid"
    }

    /// A resource server that verifies current keys all the time.
    async fn caller(&self, replica: usize, how: CallerKind) {
        let mut connection = None;
        let mut turn = 0;
        while !self.ended.get() {
            let keys = self.choose(how, turn);
            turn += 1;
            if keys.is_empty() || self.replicas[replica].address().is_none() {
                sleep(PAUSE).await;
                continue;
            }
            let patience = if matches!(how, CallerKind::One) {
                LONG_TIMEOUT
            } else {
                SHORT_TIMEOUT
            };
            self.verify(replica, &mut connection, &keys, patience).await;
            sleep(PAUSE).await;
        }
    }

    /// A resource server with its own cache: one verifier after the other subscribes to the replica. A verifier is
    /// replaced with the replica's process. Most subscriptions are aborted after some time; the verifier then
    /// continues with the lease that it has, as if partitioned.
    async fn run_subscriber(&self, replica: usize, mut rng: StdRng) {
        while !self.ended.get() {
            let Some(address) = self.replicas[replica].address() else {
                sleep(PAUSE).await;
                continue;
            };
            let source = source(
                &format!("http://{}", self.replicas[replica].front.address),
                &self.service,
            );
            let id = VerifierId::from_bytes(rng.random());
            let verifier =
                Verifier::subscriber(id, source, Arc::new(SystemClock), Settings::default());
            let subscription = tokio::spawn(verifier.clone().subscribe(std::future::pending()));
            add(&self.counts.subscriptions, 1);
            let falls_silent = rng
                .random_bool(0.7)
                .then(|| LEASE.mul_f64(rng.random_range(1.0..10.0)));
            let begun = Instant::now();
            let mut turn = 0;
            while !self.ended.get() && self.replicas[replica].address() == Some(address) {
                if let Some(silent) = falls_silent
                    && begun.elapsed() > silent
                {
                    if !subscription.is_finished() {
                        add(&self.counts.silent, 1);
                        subscription.abort();
                    }
                    if begun.elapsed() > silent + 2 * LEASE {
                        break;
                    }
                }
                for number in self.choose(
                    if turn % 2 == 0 {
                        CallerKind::Suspect
                    } else {
                        CallerKind::One
                    },
                    turn,
                ) {
                    let text = self.keys.borrow()[number].text.clone();
                    let (began, hits) = (Instant::now(), verifier.stats().hits);
                    let need = AccessRequest {
                        method: Some(ROUTE.0),
                        path: Some(RequestPath::new(ROUTE.1, &RouteBase::none())),
                        ..AccessRequest::default()
                    };
                    let Ok(Ok(verdict)) =
                        timeout(LONG_TIMEOUT, verifier.verify(&text, &need)).await
                    else {
                        continue;
                    };
                    add(&self.counts.by_subscribers, 1);
                    add(&self.counts.subscriber_hits, verifier.stats().hits - hits);
                    self.check(number, replica, began, outcome_code(verdict.outcome.err()));
                }
                turn += 1;
                sleep(PAUSE).await;
            }
            subscription.abort();
        }
    }

    /// A client that verifies keys over a link whose connections go silent.
    async fn client_caller(&self, replica: usize) {
        let client = &self.replicas[replica].client;
        let mut turn = 0;
        while !self.ended.get() {
            for number in self.choose(
                if turn % 2 == 0 {
                    CallerKind::Suspect
                } else {
                    CallerKind::One
                },
                turn,
            ) {
                let text = self.keys.borrow()[number].text.clone();
                let (method, path) = ROUTE;
                let began = Instant::now();
                if let Ok(verification) = client.verify(text).method(method).path(path).await {
                    add(&self.counts.by_clients, 1);
                    let code = match &verification {
                        VerifyResponse::Valid(_) => "valid",
                        VerifyResponse::Invalid(invalid) => invalid.code.as_str(),
                    };
                    self.check(number, replica, began, code);
                }
            }
            turn += 1;
            sleep(PAUSE).await;
        }
    }

    /// Chooses the keys of this turn.
    fn choose(&self, how: CallerKind, turn: usize) -> Vec<usize> {
        let (in_play, keys) = (self.in_play.borrow(), self.keys.borrow());
        let suspect = |key: &&usize| {
            keys[**key]
                .requested
                .is_some_and(|requested| requested.elapsed() < 3 * LEASE)
        };
        let choice: Vec<usize> = match how {
            CallerKind::All => return in_play.iter().rev().take(BATCH).copied().collect(),
            CallerKind::One => in_play.iter().copied().collect(),
            CallerKind::Suspect => in_play.iter().filter(suspect).copied().collect(),
        };
        choice
            .get(turn % choice.len().max(1))
            .copied()
            .into_iter()
            .collect()
    }

    /// A client that creates keys and revokes them.
    async fn revoker(&self, mut rng: StdRng) {
        while !self.faults_ended.get() {
            let is_tree = rng.random_bool(0.3);
            let continues = if is_tree {
                self.revoke_tree(&mut rng).await
            } else {
                self.revoke_one(&mut rng).await
            };
            if continues.is_none() {
                return;
            }
        }
    }

    /// Creates an account key below the key with this index of the tree, or the root of a tree.
    async fn add_to_tree(
        &self,
        rng: &mut StdRng,
        tree: &mut Vec<TreeKey>,
        parent: Option<usize>,
    ) -> Option<()> {
        let is_secret = parent.is_none() || rng.random_bool(0.7);
        let (body, depth) = (
            account_key(is_secret),
            parent.map_or(0, |parent| tree[parent].depth + 1),
        );
        let token = parent.map_or(self.merchant.clone(), |parent| tree[parent].text.clone());
        let request = ("POST", ACCOUNT_KEYS, token.as_str());
        let (_, (id, text)) = self
            .change(rng, request, &body, created_account_key)
            .await?;
        let number = self.record_key(&text, None);
        tree.push(TreeKey {
            number,
            id,
            text,
            parent,
            depth,
            is_secret,
        });
        Some(())
    }

    /// Records a key whose revocation may already have been requested. Returns its number.
    fn record_key(&self, text: &str, requested: Option<Instant>) -> usize {
        self.keys.borrow_mut().push(Key {
            text: text.to_owned(),
            requested,
            confirmed: None,
        });
        let number = self.keys.borrow().len() - 1;
        self.in_play.borrow_mut().push_back(number);
        number
    }

    /// Creates a tree of keys, often revokes a key below the root, then the root. `None` when the run has ended.
    async fn revoke_tree(&self, rng: &mut StdRng) -> Option<()> {
        let mut tree: Vec<TreeKey> = Vec::new();
        self.add_to_tree(rng, &mut tree, None).await?;
        for _ in 1..rng.random_range(TREE) {
            let parents: Vec<usize> = (0..tree.len())
                .filter(|key| tree[*key].is_secret && tree[*key].depth < DEPTH)
                .collect();
            let parent = parents[rng.random_range(0..parents.len())];
            self.add_to_tree(rng, &mut tree, Some(parent)).await?;
        }
        let everywhere = rng.random_bool(0.6)
            && join_all(tree.iter().map(|key| self.warm_up(key.number)))
                .await
                .into_iter()
                .all(|yes| yes);
        sleep(Duration::from_millis(rng.random_range(0..30))).await;
        let middle = rng.random_range(0..tree.len());
        if middle > 0 {
            self.revoke_branch(rng, &tree, middle, everywhere).await?;
            // The rest of the tree is still valid, which the callers of this test check meanwhile.
            sleep(Duration::from_millis(rng.random_range(0..100))).await;
        }
        self.revoke_branch(rng, &tree, 0, everywhere).await
    }

    /// Revokes a key of a tree while an attacker creates more keys with it and its descendants.
    async fn revoke_branch(
        &self,
        rng: &mut StdRng,
        tree: &[TreeKey],
        target: usize,
        everywhere: bool,
    ) -> Option<()> {
        let mut numbers: Vec<usize> = subtree(tree, target)
            .into_iter()
            .map(|key| tree[key].number)
            .filter(|number| self.keys.borrow()[*number].requested.is_none())
            .collect();
        let requested = Instant::now();
        for number in &numbers {
            self.keys.borrow_mut()[*number].requested = Some(requested);
        }
        // A key may be revoked by its parent as well as by the account.
        let parent = tree[target].parent.filter(|_| rng.random());
        let token = parent
            .map_or(&self.merchant, |parent| &tree[parent].text)
            .clone();
        let stolen: Vec<&TreeKey> = subtree(tree, target)
            .into_iter()
            .map(|key| &tree[key])
            .filter(|key| key.is_secret)
            .collect();
        let attacker_key = rng
            .random_bool(0.5)
            .then(|| stolen.choose(rng).map(|key| key.text.clone()))
            .flatten();
        let (mut attacker_rng, path) = (
            StdRng::from_rng(rng),
            format!("{ACCOUNT_KEYS}/{}", tree[target].id),
        );
        let revoked = |status: u16, _: &Value| (status == 200).then_some(());
        let revocation = self.change(rng, ("DELETE", &path, &token), "", revoked);
        let (revocation, extended) = tokio::join!(
            revocation,
            self.attack(&mut attacker_rng, attacker_key, requested)
        );
        let (confirmed, ()) = revocation?;
        add(&self.counts.stolen, extended.len() as u64);
        numbers.extend(extended);
        for number in &numbers {
            self.keys.borrow_mut()[*number].confirmed = Some(confirmed);
        }
        if numbers.len() > 1 {
            add(&self.counts.trees, 1);
            add(&self.counts.descendants, numbers.len() as u64 - 1);
        }
        self.count_revocation(confirmed - requested, everywhere);
        Some(())
    }

    /// Creates a chain of keys with a stolen key that is being revoked. Returns their numbers.
    async fn attack(
        &self,
        rng: &mut StdRng,
        key: Option<String>,
        requested: Instant,
    ) -> Vec<usize> {
        let mut numbers = Vec::new();
        let Some(mut key) = key else { return numbers };
        let body = account_key(true);
        for _ in 0..STOLEN {
            let replica = rng.random_range(0..self.replicas.len());
            let request = ("POST", ACCOUNT_KEYS, key.as_str());
            let reply = self
                .exchange(replica, &mut None, request, &body, Duration::from_secs(1))
                .await;
            let Some((_, status, body)) = reply else {
                continue;
            };
            let json: Value = serde_json::from_str(&body).unwrap_or_default();
            if let Some((_, text)) = created_account_key(status, &json) {
                numbers.push(self.record_key(&text, Some(requested)));
                key = text;
            } else if !matches!(status, 401 | 403 | 503) {
                let body = without_secrets(&body);
                self.fail(format!(
                    "replica {replica}: creating a key with a stolen key returned {status}: {body}"
                ));
            }
        }
        numbers
    }

    /// Creates a key and revokes it. Returns `None` when the run has ended.
    async fn revoke_one(&self, rng: &mut StdRng) -> Option<()> {
        let how = if rng.random() {
            Revocation::Repeatable
        } else {
            Revocation::Once
        };
        let (number, id) = self.create_key(rng, how).await?;
        self.in_play.borrow_mut().push_back(number);
        // Most keys are cached everywhere when they are revoked; the others may be cache misses at that moment.
        let everywhere = rng.random_bool(0.6) && self.warm_up(number).await;
        sleep(Duration::from_millis(rng.random_range(0..30))).await;

        let requested = Instant::now();
        self.keys.borrow_mut()[number].requested = Some(requested);
        let (method, path) = match how {
            Revocation::Repeatable => ("POST", format!("/api-keys/{id}/revoke")),
            Revocation::Once => (
                "DELETE",
                format!("/applications/{}/api-keys/{id}", self.application),
            ),
        };
        let body = if method == "POST" { "{}" } else { "" };
        let revoked = |status: u16, json: &Value| {
            (matches!(status, 200 | 204) || status == 400 && json["code"] == "key_already_revoked")
                .then_some(())
        };
        let (confirmed, ()) = self
            .change(rng, (method, &path, &self.merchant), body, revoked)
            .await?;
        self.keys.borrow_mut()[number].confirmed = Some(confirmed);

        self.count_revocation(confirmed - requested, everywhere);
        Some(())
    }

    /// Counts a revocation, and stops verifying the keys that were revoked the longest ago.
    fn count_revocation(&self, took: Duration, everywhere: bool) {
        let counts = &self.counts;
        counts.revocations.set(counts.revocations.get() + 1);
        counts
            .cached
            .set(counts.cached.get() + usize::from(everywhere));
        counts.slowest.set(counts.slowest.get().max(took));
        let (mut in_play, keys) = (self.in_play.borrow_mut(), self.keys.borrow());
        while in_play.len() > REVOKERS + RECENTLY_REVOKED {
            let oldest = in_play
                .iter()
                .position(|number| keys[*number].confirmed.is_some());
            let Some(oldest) = oldest else { break };
            in_play.remove(oldest);
        }
    }

    /// Injects faults until the plan is fulfilled. Two injectors run at the same time, so that faults overlap.
    async fn inject_faults(&self, mut rng: StdRng) {
        let of_the_database = self.postgres.map_or(&[][..], |_| &Fault::OF_THE_DATABASE);
        let mut faults = [&Fault::OF_PROCESSES, of_the_database].concat();
        for round in 0.. {
            let (revocations, time) = (self.counts.revocations.get(), self.begun.elapsed());
            if round >= self.plan.rounds
                && revocations >= self.plan.revocations
                && time >= self.plan.time
            {
                return;
            }
            faults.shuffle(&mut rng);
            for fault in &faults {
                sleep(Duration::from_millis(
                    rng.random_range(PAUSE_BETWEEN_FAULTS),
                ))
                .await;
                if self.ended.get() {
                    return;
                }
                self.inject(*fault, &mut rng).await;
            }
        }
    }

    /// Injects one fault and repairs it. Always draws the same random numbers, independent of the other injector.
    async fn inject(&self, fault: Fault, rng: &mut StdRng) {
        let replica = &self.replicas[rng.random_range(0..self.replicas.len())];
        let (briefly, for_long) = (rng.random_range(0.1..0.8), rng.random_range(1.3..4.0));
        let (mut requests, answers): (bool, bool) = (rng.random(), rng.random());
        requests |= !answers;
        let later = Duration::from_millis(rng.random_range(1..40));
        let [briefly, for_long] = [briefly, for_long].map(|leases| LEASE.mul_f64(leases));

        let weather = async |weather| {
            let wire = replica.wire.as_ref().expect("a network");
            wire.set(weather);
            sleep(for_long).await;
            wire.set(LinkState::Clear);
        };
        match fault {
            Fault::FrozenBriefly => self.freeze(replica, briefly).await,
            Fault::FrozenForLong => self.freeze(replica, for_long).await,
            Fault::Killed => self.kill(replica, briefly).await,
            Fault::DatabaseRestarted => self.restart_database("-m fast stop", briefly).await,
            Fault::DatabaseCrashed => self.restart_database("-m immediate stop", briefly).await,
            Fault::Slow => weather(LinkState::Slow(later)).await,
            Fault::Mute => weather(LinkState::Mute { requests, answers }).await,
            Fault::Unheard => weather(LinkState::Unheard).await,
            Fault::Cut => weather(LinkState::Cut).await,
            Fault::SilentConnections => replica.front.silence_existing(),
        }
        *self.counts.faults.borrow_mut().entry(fault).or_default() += 1;
    }

    async fn freeze(&self, replica: &Replica, time: Duration) {
        let pid = replica
            .wait_for_process(|server| server.as_ref().map(Server::pid))
            .await;
        pid.signal("STOP").await;
        sleep(time).await;
        pid.signal("CONT").await; // unless the other injector has killed it
    }

    async fn kill(&self, replica: &Replica, time: Duration) {
        replica.wait_for_process(Option::take).await.kill().await;
        sleep(time).await;
        let since = Instant::now();
        loop {
            // PostgreSQL may be unreachable at this moment.
            match replica.tollkey.start(&[]).await {
                Ok(server) => {
                    replica.front.lead_to(server.address);
                    replica.server.replace(Some(server));
                    return;
                }
                Err(finished) => assert!(
                    since.elapsed() < CHANGE_TIMEOUT,
                    "the server does not start: {finished}"
                ),
            }
        }
    }

    async fn restart_database(&self, stop: &'static str, time: Duration) {
        let _alone = self.restarting.lock().await;
        let postgres = self.postgres.expect("PostgreSQL");
        let control = async |arguments| {
            tokio::task::spawn_blocking(move || postgres.control(arguments))
                .await
                .expect("pg_ctl succeeds");
        };
        control(stop).await;
        sleep(time).await;
        control("start").await;
    }

    async fn run(&self) {
        let mut rng = StdRng::seed_from_u64(self.plan.seed);
        let mut fork = || StdRng::from_rng(&mut rng);
        let injectors = [fork(), fork()];
        let faults = async {
            join_all(injectors.map(|rng| self.inject_faults(rng))).await;
            self.faults_ended.set(true);
        };
        let revokers = join_all((0..REVOKERS).map(|_| self.revoker(fork())));
        let callers = (0..self.replicas.len())
            .flat_map(|replica| CALLERS.map(|how| self.caller(replica, how)));
        let subscribers: Vec<_> = (0..self.replicas.len())
            .map(|replica| self.run_subscriber(replica, fork()))
            .collect();
        let clients: Vec<_> = (0..self.replicas.len())
            .map(|replica| self.client_caller(replica))
            .collect();
        let scenario = async {
            tokio::join!(faults, revokers);
            sleep(CALM).await;
            self.ended.set(true);
        };
        tokio::join!(
            scenario,
            join_all(callers),
            join_all(subscribers),
            join_all(clients)
        );
    }

    /// Checks after the faults that every replica accepts a new key and rejects all revoked ones. Returns how long it
    /// took until every replica accepted the new key.
    async fn recovered(&self) -> Duration {
        let since = Instant::now();
        let mut rng = StdRng::seed_from_u64(self.plan.seed);
        let (new, _) = self
            .create_key(&mut rng, Revocation::Repeatable)
            .await
            .expect("a new key");
        let keys = self.keys.borrow().len();
        let revoked: Vec<usize> = (0..keys)
            .filter(|key| self.keys.borrow()[*key].confirmed.is_some())
            .collect();
        let per_replica = (0..self.replicas.len()).map(async |replica| {
            let mut connection = None;
            self.retry_verify(replica, &mut connection, &[new], 1).await;
            self.client_recovers(replica, new).await;
            let took = since.elapsed();
            for keys in revoked.chunks(50) {
                self.retry_verify(replica, &mut connection, keys, 0).await;
            }
            took
        });
        join_all(per_replica)
            .await
            .into_iter()
            .max()
            .unwrap_or_default()
    }

    /// Verifies with the client that ran during the faults until the key is valid.
    async fn client_recovers(&self, replica: usize, key: usize) {
        let (since, text) = (Instant::now(), self.keys.borrow()[key].text.clone());
        let (method, path) = ROUTE;
        let client = &self.replicas[replica].client;
        while !client
            .verify(text.as_str())
            .method(method)
            .path(path)
            .await
            .is_ok_and(|response| response.is_valid())
        {
            assert!(
                since.elapsed() < RECOVERY,
                "the client of replica {replica} does not accept the key again"
            );
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Verifies keys until there is a result.
    async fn retry_verify(
        &self,
        replica: usize,
        connection: &mut Option<Connection>,
        keys: &[usize],
        valid: usize,
    ) {
        let since = Instant::now();
        loop {
            match self.verify(replica, connection, keys, LONG_TIMEOUT).await {
                Some(found) => return assert_eq!(found, valid, "valid keys on replica {replica}"),
                None => assert!(
                    since.elapsed() < RECOVERY,
                    "replica {replica} does not verify keys again"
                ),
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn report(&self) -> String {
        let Counts {
            verifications,
            valid,
            unavailable,
            timed_out,
            repeated,
            revocations,
            cached,
            ..
        } = &self.counts;
        let mut text = format!(
            "chaos: seed {}, {} replicas, {:.1?}\n  {} revocations, {} of them cached on every replica, the slowest {:.1?}; \
             {} requests for changes repeated\n  {} verifications, {} of them valid; of the requests {} with status 503, {} \
             timed out\n ",
            self.plan.seed,
            self.replicas.len(),
            self.begun.elapsed(),
            revocations.get(),
            cached.get(),
            self.counts.slowest.get(),
            repeated.get(),
            verifications.get(),
            valid.get(),
            unavailable.get(),
            timed_out.get(),
        );
        let Counts {
            by_subscribers,
            subscriber_hits,
            by_clients,
            subscriptions,
            silent,
            ..
        } = &self.counts;
        let _ = write!(
            text,
            " {} of the verifications by clients, {} by {} resource servers, {} from their own cache; {} subscriptions aborted\n ",
            by_clients.get(),
            by_subscribers.get(),
            subscriptions.get(),
            subscriber_hits.get(),
            silent.get(),
        );
        let Counts {
            trees,
            descendants,
            stolen,
            ..
        } = &self.counts;
        let _ = write!(
            text,
            " {} revocations of keys with descendants, {} descendants, {} of them created during the revocation\n ",
            trees.get(),
            descendants.get(),
            stolen.get(),
        );
        for (fault, count) in self.counts.faults.borrow().iter() {
            let _ = write!(text, " {fault:?} {count}");
        }
        text
    }
}

fn account_key(is_secret: bool) -> String {
    let access = if is_secret { "secret" } else { "publishable" };
    json!({"name": "Checkout", "environment": "live", "access": access}).to_string()
}

/// ID and full key of an account key that was created.
fn created_account_key(status: u16, json: &Value) -> Option<(String, String)> {
    let text = |name: &str| json["data"][name].as_str().expect("a string").to_owned();
    (status == 201).then(|| (text("id"), text("value")))
}

/// Writes to standard error directly: the test harness shows no captured output of a test that passes.
fn print(text: &str) {
    let _ = writeln!(io::stderr(), "\n{text}\n");
}

async fn revocations_hold(plan: Plan, database: &Database, postgres: Option<&'static Postgres>) {
    print(&format!(
        "chaos: TOLLKEY_CHAOS_SEED={} repeats this schedule of faults",
        plan.seed
    ));
    let world = World::start(plan, database, postgres).await;
    world.run().await;
    let right = |world: &World| {
        let failures = world.failures.borrow();
        assert!(
            failures.is_empty(),
            "{}\n{}",
            world.report(),
            failures.join("\n")
        );
    };
    right(&world);
    world.ended.set(false);
    let recovery = world.recovered().await;
    right(&world);
    print(&format!(
        "{}\n  recovered in {recovery:.1?}",
        world.report()
    ));
    for replica in &world.replicas {
        let server = replica.server.take().expect("a running server");
        server.stop().await;
    }
}

#[actix_web::test]
async fn revocations_hold_under_faults_on_postgresql() {
    let Some(postgres) = Postgres::private("") else {
        return;
    };
    let database = postgres.database();
    revocations_hold(Plan::at_least(3, 100, 1), &database, Some(postgres)).await;
}

#[actix_web::test]
async fn revocations_hold_under_faults_on_sqlite() {
    let database = Database::sqlite();
    revocations_hold(Plan::at_least(2, 50, 3), &database, None).await;
}
