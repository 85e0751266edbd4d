//! Several real processes on one database, while processes are frozen and killed, PostgreSQL is restarted and the
//! network between them is slow, mute or gone; and somebody asks about keys all the time, the servers and resource
//! servers that subscribe to them. Resource servers and clients reach a server over a network whose connections go silent
//! while new ones work.
//!
//! One promise is checked: no verification that began after a revocation was answered says that the key is valid, or a descendant of it.
//! Some keys are trees of account keys, and while one is revoked, a thief who has the keys creates more with them.
//! "Began" and "answered" are read from the one monotonic clock of this process: the one before the first byte of the
//! request is written, the other once the answer is read. Besides: nothing is refused before its revocation was asked
//! for, every revocation is answered in the end, and when the faults are over everybody verifies again.
//!
//! `cargo test` runs the short form. `cargo xtask chaos` runs the long one, which is the same with other numbers:
//!
//! | variable | |
//! |---|---|
//! | `TOLLKEY_CHAOS_SEED` | repeats a schedule of faults; otherwise it is random, and printed |
//! | `TOLLKEY_CHAOS_REVOCATIONS` | how many revocations at least |
//! | `TOLLKEY_CHAOS_SECONDS` | for how long at least |

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
use tollkey_core::{Need, RequestPath, RouteBase, VerifierId, usage::outcome_code};
use tollkey_store::testing::{Database, Postgres};
use tollkey_verifier::{Settings, SystemClock, Verifier};

use crate::{
    binary::{Connection, Server, Tollkey, member, merchant, service},
    replicas::with_short_leases,
    support::{Call, source, without_secrets},
    wire::{Weather, Wire},
};

/// How long a lease is here ([`with_short_leases`]): many pass while the test runs.
const LEASE: Duration = Duration::from_millis(300);
/// How long most clients wait for a verification. Short, so that what waits at a frozen process has begun while it was
/// frozen, and that a replica without PostgreSQL is asked for what it still remembers.
const IMPATIENCE: Duration = Duration::from_millis(60);
/// How long the others wait: longer than it takes to find out that PostgreSQL is gone.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long one attempt of a client takes: a connection has to be silent for a second before the client gives it up.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(2);
/// For how long a new key is shown to a replica that does not answer.
const INTRODUCTION: Duration = Duration::from_millis(500);
/// How many milliseconds a client waits for a change before it repeats the request, perhaps elsewhere. Some repeat at once, while the
/// first request is still under way.
const CHANGE_PATIENCE: [u64; 4] = [30, 1000, 1000, 1000];
/// How long a change may take in the end, whatever happens meanwhile.
const IN_THE_END: Duration = Duration::from_secs(60);
/// Within which time everybody must verify again when the faults are over. A busy machine's time, no promise.
const RECOVERY: Duration = Duration::from_secs(10);
/// How many milliseconds of calm a lane lets pass between two faults: keys have to be remembered to be revoked.
const CALM_BETWEEN: Range<u64> = 100..1500;
/// For how long it is asked on after the last fault.
const CALM: Duration = Duration::from_millis(500);
/// Between two questions of a caller. The servers are to be asked all the time, not to be kept from renewing leases.
const PAUSE: Duration = Duration::from_millis(3);
/// The path of account keys.
const ACCOUNT_KEYS: &str = "/account/api-keys";
/// How many keys of a tree are created before one of them is revoked.
const TREE: Range<usize> = 2..6;
/// How deep a tree is at most: the root has depth 0. A key at the depth limit of the server creates none.
const DEPTH: usize = 3;
/// How many keys the thief tries to create while a key of the tree is revoked.
const STOLEN: usize = 6;
/// The most keys that a batch may have.
const BATCH: usize = 100;
/// A request that publishable keys may be used for, as keys of every other family may.
const ROUTE: (&str, &str) = ("GET", "/v1/storefront/products");
/// How many keys that were revoked last are asked about.
const REMEMBERED: usize = 16;
/// Who revokes, at the same time.
const REVOKERS: usize = 12;
/// Who asks each replica, at the same time.
const CALLERS: [Asking; 4] = [Asking::All, Asking::One, Asking::Suspect, Asking::Suspect];

/// What goes wrong.
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
    /// Everything between a replica and PostgreSQL takes longer.
    Slow,
    /// A replica hears nothing from PostgreSQL, or PostgreSQL nothing from it, while connections stay.
    Mute,
    /// A replica hears nothing of what others change, unless it looks.
    Unheard,
    /// A replica cannot reach PostgreSQL.
    Cut,
    /// Nothing arrives any more on the connections that resource servers and clients have to a replica; new ones work.
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

/// How much is to happen.
struct Plan {
    seed: u64,
    replicas: usize,
    revocations: usize,
    time: Duration,
    /// How often each lane goes through all faults, at least.
    rounds: usize,
}

impl Plan {
    /// These numbers, unless the environment says more.
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

/// A key, and all that matters of what was heard about it.
struct Key {
    text: String,
    /// When its revocation was asked for the first time.
    asked: Option<Instant>,
    /// When that was answered.
    answered: Option<Instant>,
}

/// A place of the cluster: a process, or none for a moment.
struct Replica {
    tollkey: Tollkey,
    server: RefCell<Option<Server>>,
    /// Between it and PostgreSQL.
    wire: Option<Wire>,
    /// Between it and those who use it: resource servers that subscribe, and a client.
    front: Wire,
    client: Client,
}

impl Replica {
    fn address(&self) -> Option<SocketAddr> {
        self.server.borrow().as_ref().map(|server| server.address)
    }

    /// Something of its process, once there is one: the other lane may be replacing it.
    async fn present<T>(&self, take: impl Fn(&mut Option<Server>) -> Option<T>) -> T {
        loop {
            if let Some(taken) = take(&mut self.server.borrow_mut()) {
                return taken;
            }
            sleep(PAUSE).await;
        }
    }
}

/// What is counted.
#[derive(Default)]
struct Counts {
    verifications: Cell<u64>,
    /// Of these, yes.
    valid: Cell<u64>,
    /// Requests for verification that were answered 503.
    unavailable: Cell<u64>,
    /// Requests for verification without an answer in time.
    unanswered: Cell<u64>,
    /// Verifications by resource servers that subscribe.
    far: Cell<u64>,
    /// Of these, from their own memory.
    far_hits: Cell<u64>,
    /// Verifications by clients behind a network whose connections go silent.
    by_clients: Cell<u64>,
    /// Subscriptions begun, and those of them that ended without a word.
    subscriptions: Cell<u64>,
    silent: Cell<u64>,
    /// Requests for a change that had to be repeated.
    repeated: Cell<u64>,
    revocations: Cell<usize>,
    /// Of these, keys that every replica had said yes to.
    known_everywhere: Cell<usize>,
    slowest: Cell<Duration>,
    /// Revocations of a key with descendants, the descendants, and those of them that were created during the revocation.
    trees: Cell<u64>,
    descendants: Cell<u64>,
    stolen: Cell<u64>,
    faults: RefCell<BTreeMap<Fault, u32>>,
}

fn add(counter: &Cell<u64>, count: u64) {
    counter.set(counter.get() + count);
}

/// What a caller asks about.
#[derive(Clone, Copy)]
enum Asking {
    /// All keys in play at once, and again if there is no answer soon.
    All,
    /// One after the other, with patience.
    One,
    /// One after the other of those that are being revoked or have just been, and again if there is no answer soon.
    Suspect,
}

/// How a key is revoked.
#[derive(Clone, Copy)]
enum Revocation {
    /// `POST /api-keys/{id}/revoke`: a repeat is answered as the first.
    Repeatable,
    /// `DELETE /applications/{id}/api-keys/{keyId}`: a repeat is told that it is one.
    Once,
}

/// A key of a tree.
#[derive(Clone)]
struct Branch {
    number: usize,
    id: String,
    text: String,
    /// The index of its parent in the tree; `None` for the root.
    parent: Option<usize>,
    depth: usize,
    is_secret: bool,
}

/// The indexes of a key of a tree and of all its descendants.
fn family_of(tree: &[Branch], root: usize) -> Vec<usize> {
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
    /// One at a time stops and starts PostgreSQL.
    restarting: tokio::sync::Mutex<()>,
    application: String,
    /// Tokens last an hour; a run has to be shorter.
    merchant: String,
    service: String,
    keys: RefCell<Vec<Key>>,
    /// Keys that are not revoked, and those that were last.
    in_play: RefCell<VecDeque<usize>>,
    counts: Counts,
    wrong: RefCell<Vec<String>>,
    faults_are_over: Cell<bool>,
    is_over: Cell<bool>,
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
        let first = replicas[0].address().expect("it runs");
        let made = Call::new(first, "POST", "/applications")
            .json(json!({"name": "Web Store"}))
            .bearer(&merchant)
            .await;
        let application = member(&made, "id");
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
            wrong: RefCell::default(),
            faults_are_over: Cell::new(false),
            is_over: Cell::new(false),
        }
    }

    /// Notes what must not be; everything ends soon afterwards.
    fn wrong(&self, what: String) {
        self.wrong
            .borrow_mut()
            .push(format!("after {:.1?}: {what}", self.begun.elapsed()));
        self.faults_are_over.set(true);
        self.is_over.set(true);
    }

    /// Sends a request; gives when it began, the status and the body. `None` without an answer in time.
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

    /// Repeats a change, at one replica after the other, until an answer counts.
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
            let patience =
                Duration::from_millis(CHANGE_PATIENCE[rng.random_range(0..CHANGE_PATIENCE.len())]);
            let reply = self
                .exchange(replica, &mut None, request, body, patience)
                .await;
            let answered = Instant::now();
            if let Some((_, status, body)) = reply {
                let json = serde_json::from_str(&body).unwrap_or_default();
                if let Some(value) = counts(status, &json) {
                    return Some((answered, value));
                }
                if status != 503 {
                    let body = without_secrets(&body);
                    self.wrong(format!(
                        "replica {replica}: {method} {path} was answered {status}: {body}"
                    ));
                }
            }
            if since.elapsed() > IN_THE_END {
                self.wrong(format!(
                    "{method} {path} was not answered within {IN_THE_END:?}"
                ));
            }
            if self.is_over.get() {
                return None;
            }
            add(&self.counts.repeated, 1);
            sleep(Duration::from_millis(rng.random_range(1..20))).await;
        }
    }

    /// Makes a key; gives its number and its id.
    async fn make_key(&self, rng: &mut StdRng, how: Revocation) -> Option<(usize, String)> {
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
        let made = |status: u16, json: &Value| {
            (status == 201).then(|| {
                [names.0, names.1].map(|name| json[name].as_str().expect("a text").to_owned())
            })
        };
        let (_, [id, text]) = self
            .change(rng, ("POST", path, &self.merchant), &body.to_string(), made)
            .await?;
        self.keys.borrow_mut().push(Key {
            text,
            asked: None,
            answered: None,
        });
        Some((self.keys.borrow().len() - 1, id))
    }

    /// Asks every replica until it says yes from memory, but none for long. Whether all did.
    async fn introduce(&self, key: usize) -> bool {
        let everybody = (0..self.replicas.len()).map(async |replica| {
            let (mut connection, since) = (None, Instant::now());
            while since.elapsed() < INTRODUCTION && !self.is_over.get() {
                // The first answer may be the database's; the second is given from memory if there is a lease.
                if self
                    .ask(replica, &mut connection, &[key], INTRODUCTION)
                    .await
                    == Some(1)
                    && self
                        .ask(replica, &mut connection, &[key], INTRODUCTION)
                        .await
                        == Some(1)
                {
                    return true;
                }
                sleep(Duration::from_millis(5)).await;
            }
            false
        });
        join_all(everybody).await.into_iter().all(|yes| yes)
    }

    /// Asks about keys, and judges each answer. How many are valid; `None` when that was not said.
    async fn ask(
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
            add(&self.counts.unanswered, 1);
            return None;
        };
        match status {
            200 => {
                let answer: Value = serde_json::from_str(&body).expect("JSON");
                let results = answer["results"]
                    .as_array()
                    .map_or(std::slice::from_ref(&answer), Vec::as_slice);
                assert_eq!(results.len(), keys.len(), "an answer for each");
                let codes = results
                    .iter()
                    .map(|result| result["code"].as_str().expect("a code"));
                Some(
                    keys.iter()
                        .zip(codes)
                        .filter(|(key, code)| self.judge(**key, replica, began, code))
                        .count(),
                )
            }
            503 => {
                add(&self.counts.unavailable, 1);
                None
            }
            _ => {
                self.wrong(format!(
                    "replica {replica}: {path} was answered {status}: {}",
                    without_secrets(&body)
                ));
                None
            }
        }
    }

    /// Compares what was said of a key with what must be said. Whether it is valid.
    fn judge(&self, number: usize, replica: usize, began: Instant, code: &str) -> bool {
        add(&self.counts.verifications, 1);
        let keys = self.keys.borrow();
        let key = &keys[number];
        let wrong = match (code, key.asked, key.answered) {
            ("valid", _, None) | ("revoked", Some(_), _) => None,
            // Answered by now, perhaps while this verification was under way.
            ("valid", _, Some(answered)) if began <= answered => None,
            ("valid", _, Some(answered)) => Some(format!(
                "key {number} was valid on replica {replica} for a verification that began {:?} after its revocation \
                 was answered",
                began - answered
            )),
            (_, None, _) => Some(format!(
                "key {number} was {code} on replica {replica} before anybody revoked it"
            )),
            _ => Some(format!("key {number} was {code} on replica {replica}")),
        };
        drop(keys);
        if let Some(wrong) = wrong {
            self.wrong(wrong);
        }
        if code == "valid" {
            add(&self.counts.valid, 1);
        }
        code == "valid"
    }

    /// A resource server: asks about what is in play without pause.
    async fn caller(&self, replica: usize, how: Asking) {
        let mut connection = None;
        let mut turn = 0;
        while !self.is_over.get() {
            let keys = self.choose(how, turn);
            turn += 1;
            if keys.is_empty() || self.replicas[replica].address().is_none() {
                sleep(PAUSE).await;
                continue;
            }
            let patience = if matches!(how, Asking::One) {
                PATIENCE
            } else {
                IMPATIENCE
            };
            self.ask(replica, &mut connection, &keys, patience).await;
            sleep(PAUSE).await;
        }
    }

    /// A resource server with a memory of its own: one after the other subscribes to the replica and judges keys by itself.
    /// Each ends when the replica is another process; in the middle, most fall silent and go on judging by the lease they
    /// have, as if they were cut off.
    async fn far_caller(&self, replica: usize, mut rng: StdRng) {
        while !self.is_over.get() {
            let Some(address) = self.replicas[replica].address() else {
                sleep(PAUSE).await;
                continue;
            };
            let source = source(
                &format!("http://{}", self.replicas[replica].front.address),
                &self.service,
            );
            let id = VerifierId::from_bytes(rng.random());
            let far = Verifier::subscriber(id, source, Arc::new(SystemClock), Settings::default());
            let subscription = tokio::spawn(far.clone().subscribe(std::future::pending()));
            add(&self.counts.subscriptions, 1);
            let falls_silent = rng
                .random_bool(0.7)
                .then(|| LEASE.mul_f64(rng.random_range(1.0..10.0)));
            let begun = Instant::now();
            let mut turn = 0;
            while !self.is_over.get() && self.replicas[replica].address() == Some(address) {
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
                        Asking::Suspect
                    } else {
                        Asking::One
                    },
                    turn,
                ) {
                    let text = self.keys.borrow()[number].text.clone();
                    let (began, hits) = (Instant::now(), far.stats().hits);
                    let need = Need {
                        method: Some(ROUTE.0),
                        path: Some(RequestPath::new(ROUTE.1, &RouteBase::none())),
                        ..Need::default()
                    };
                    let Ok(Ok(verdict)) = timeout(PATIENCE, far.verify(&text, &need)).await else {
                        continue;
                    };
                    add(&self.counts.far, 1);
                    add(&self.counts.far_hits, far.stats().hits - hits);
                    self.judge(number, replica, began, outcome_code(verdict.outcome.err()));
                }
                turn += 1;
                sleep(PAUSE).await;
            }
            subscription.abort();
        }
    }

    /// A client that asks the replica over a network whose connections go silent.
    async fn client_caller(&self, replica: usize) {
        let client = &self.replicas[replica].client;
        let mut turn = 0;
        while !self.is_over.get() {
            for number in self.choose(
                if turn % 2 == 0 {
                    Asking::Suspect
                } else {
                    Asking::One
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
                    self.judge(number, replica, began, code);
                }
            }
            turn += 1;
            sleep(PAUSE).await;
        }
    }

    /// What to ask about in that turn.
    fn choose(&self, how: Asking, turn: usize) -> Vec<usize> {
        let (in_play, keys) = (self.in_play.borrow(), self.keys.borrow());
        let suspect = |key: &&usize| {
            keys[**key]
                .asked
                .is_some_and(|asked| asked.elapsed() < 3 * LEASE)
        };
        let choice: Vec<usize> = match how {
            Asking::All => return in_play.iter().rev().take(BATCH).copied().collect(),
            Asking::One => in_play.iter().copied().collect(),
            Asking::Suspect => in_play.iter().filter(suspect).copied().collect(),
        };
        choice
            .get(turn % choice.len().max(1))
            .copied()
            .into_iter()
            .collect()
    }

    /// A merchant: creates keys and revokes them.
    async fn revoker(&self, mut rng: StdRng) {
        while !self.faults_are_over.get() {
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
    async fn grow(
        &self,
        rng: &mut StdRng,
        tree: &mut Vec<Branch>,
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
        let number = self.note(&text, None);
        tree.push(Branch {
            number,
            id,
            text,
            parent,
            depth,
            is_secret,
        });
        Some(())
    }

    /// Notes a key that exists, whose revocation may have been requested before; gives its number.
    fn note(&self, text: &str, asked: Option<Instant>) -> usize {
        self.keys.borrow_mut().push(Key {
            text: text.to_owned(),
            asked,
            answered: None,
        });
        let number = self.keys.borrow().len() - 1;
        self.in_play.borrow_mut().push_back(number);
        number
    }

    /// The life of a tree of keys: one of its keys is revoked, often in the middle, and then the root. `None` when everything is over.
    async fn revoke_tree(&self, rng: &mut StdRng) -> Option<()> {
        let mut tree: Vec<Branch> = Vec::new();
        self.grow(rng, &mut tree, None).await?;
        for _ in 1..rng.random_range(TREE) {
            let parents: Vec<usize> = (0..tree.len())
                .filter(|key| tree[*key].is_secret && tree[*key].depth < DEPTH)
                .collect();
            let parent = parents[rng.random_range(0..parents.len())];
            self.grow(rng, &mut tree, Some(parent)).await?;
        }
        let everywhere = rng.random_bool(0.6)
            && join_all(tree.iter().map(|key| self.introduce(key.number)))
                .await
                .into_iter()
                .all(|yes| yes);
        sleep(Duration::from_millis(rng.random_range(0..30))).await;
        let middle = rng.random_range(0..tree.len());
        if middle > 0 {
            self.revoke_branch(rng, &tree, middle, everywhere).await?;
            // The rest of the tree is still valid, which the verifiers of this test check meanwhile.
            sleep(Duration::from_millis(rng.random_range(0..100))).await;
        }
        self.revoke_branch(rng, &tree, 0, everywhere).await
    }

    /// Revokes a key of a tree while a thief creates more keys with it and its descendants.
    async fn revoke_branch(
        &self,
        rng: &mut StdRng,
        tree: &[Branch],
        target: usize,
        everywhere: bool,
    ) -> Option<()> {
        let mut numbers: Vec<usize> = family_of(tree, target)
            .into_iter()
            .map(|key| tree[key].number)
            .filter(|number| self.keys.borrow()[*number].asked.is_none())
            .collect();
        let asked = Instant::now();
        for number in &numbers {
            self.keys.borrow_mut()[*number].asked = Some(asked);
        }
        // Its parent may revoke a key, as the account may.
        let parent = tree[target].parent.filter(|_| rng.random());
        let token = parent
            .map_or(&self.merchant, |parent| &tree[parent].text)
            .clone();
        let stolen: Vec<&Branch> = family_of(tree, target)
            .into_iter()
            .map(|key| &tree[key])
            .filter(|key| key.is_secret)
            .collect();
        let thief = rng
            .random_bool(0.5)
            .then(|| stolen.choose(rng).map(|key| key.text.clone()))
            .flatten();
        let (mut rng_of_thief, path) = (
            StdRng::from_rng(rng),
            format!("{ACCOUNT_KEYS}/{}", tree[target].id),
        );
        let revoked = |status: u16, _: &Value| (status == 200).then_some(());
        let revocation = self.change(rng, ("DELETE", &path, &token), "", revoked);
        let (revocation, extended) =
            tokio::join!(revocation, self.steal(&mut rng_of_thief, thief, asked));
        let (answered, ()) = revocation?;
        add(&self.counts.stolen, extended.len() as u64);
        numbers.extend(extended);
        for number in &numbers {
            self.keys.borrow_mut()[*number].answered = Some(answered);
        }
        if numbers.len() > 1 {
            add(&self.counts.trees, 1);
            add(&self.counts.descendants, numbers.len() as u64 - 1);
        }
        self.count_revocation(answered - asked, everywhere);
        Some(())
    }

    /// A thief who has this key: creates keys in a chain, each with the one before, while they are being revoked. Gives their numbers.
    async fn steal(&self, rng: &mut StdRng, key: Option<String>, asked: Instant) -> Vec<usize> {
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
                numbers.push(self.note(&text, Some(asked)));
                key = text;
            } else if !matches!(status, 401 | 403 | 503) {
                let body = without_secrets(&body);
                self.wrong(format!(
                    "replica {replica}: creating a key with a key was answered {status}: {body}"
                ));
            }
        }
        numbers
    }

    /// The life of a key; `None` when everything is over.
    async fn revoke_one(&self, rng: &mut StdRng) -> Option<()> {
        let how = if rng.random() {
            Revocation::Repeatable
        } else {
            Revocation::Once
        };
        let (number, id) = self.make_key(rng, how).await?;
        self.in_play.borrow_mut().push_back(number);
        // Most keys are remembered everywhere when they are revoked; the others are just being asked for.
        let everywhere = rng.random_bool(0.6) && self.introduce(number).await;
        sleep(Duration::from_millis(rng.random_range(0..30))).await;

        let asked = Instant::now();
        self.keys.borrow_mut()[number].asked = Some(asked);
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
        let (answered, ()) = self
            .change(rng, (method, &path, &self.merchant), body, revoked)
            .await?;
        self.keys.borrow_mut()[number].answered = Some(answered);

        self.count_revocation(answered - asked, everywhere);
        Some(())
    }

    /// Counts a revocation that took this long, and stops asking about those that were the longest ago.
    fn count_revocation(&self, took: Duration, everywhere: bool) {
        let counts = &self.counts;
        counts.revocations.set(counts.revocations.get() + 1);
        counts
            .known_everywhere
            .set(counts.known_everywhere.get() + usize::from(everywhere));
        counts.slowest.set(counts.slowest.get().max(took));
        let (mut in_play, keys) = (self.in_play.borrow_mut(), self.keys.borrow());
        while in_play.len() > REVOKERS + REMEMBERED {
            let oldest = in_play
                .iter()
                .position(|number| keys[*number].answered.is_some());
            let Some(oldest) = oldest else { break };
            in_play.remove(oldest);
        }
    }

    /// Lets faults happen one after the other until there has been enough of everything. Two lanes make them overlap.
    async fn lane(&self, mut rng: StdRng) {
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
                sleep(Duration::from_millis(rng.random_range(CALM_BETWEEN))).await;
                if self.is_over.get() {
                    return;
                }
                self.inflict(*fault, &mut rng).await;
            }
        }
    }

    /// Lets one fault happen and repairs it. Whatever the other lane does, the same random numbers are drawn.
    async fn inflict(&self, fault: Fault, rng: &mut StdRng) {
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
            wire.set(Weather::Clear);
        };
        match fault {
            Fault::FrozenBriefly => self.freeze(replica, briefly).await,
            Fault::FrozenForLong => self.freeze(replica, for_long).await,
            Fault::Killed => self.kill(replica, briefly).await,
            Fault::DatabaseRestarted => self.restart_database("-m fast stop", briefly).await,
            Fault::DatabaseCrashed => self.restart_database("-m immediate stop", briefly).await,
            Fault::Slow => weather(Weather::Slow(later)).await,
            Fault::Mute => weather(Weather::Mute { requests, answers }).await,
            Fault::Unheard => weather(Weather::Unheard).await,
            Fault::Cut => weather(Weather::Cut).await,
            Fault::SilentConnections => replica.front.silence_existing(),
        }
        *self.counts.faults.borrow_mut().entry(fault).or_default() += 1;
    }

    async fn freeze(&self, replica: &Replica, time: Duration) {
        let pid = replica
            .present(|server| server.as_ref().map(Server::pid))
            .await;
        pid.signal("STOP").await;
        sleep(time).await;
        pid.signal("CONT").await; // unless the other lane has killed it
    }

    async fn kill(&self, replica: &Replica, time: Duration) {
        replica.present(Option::take).await.kill().await;
        sleep(time).await;
        let since = Instant::now();
        loop {
            // PostgreSQL may be out of its reach at this moment.
            match replica.tollkey.start(&[]).await {
                Ok(server) => {
                    replica.front.lead_to(server.address);
                    replica.server.replace(Some(server));
                    return;
                }
                Err(finished) => assert!(
                    since.elapsed() < IN_THE_END,
                    "it does not start: {finished}"
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
                .expect("PostgreSQL obeys");
        };
        control(stop).await;
        sleep(time).await;
        control("start").await;
    }

    /// All that happens.
    async fn run(&self) {
        let mut rng = StdRng::seed_from_u64(self.plan.seed);
        let mut fork = || StdRng::from_rng(&mut rng);
        let lanes = [fork(), fork()];
        let faults = async {
            join_all(lanes.map(|rng| self.lane(rng))).await;
            self.faults_are_over.set(true);
        };
        let revokers = join_all((0..REVOKERS).map(|_| self.revoker(fork())));
        let callers = (0..self.replicas.len())
            .flat_map(|replica| CALLERS.map(|how| self.caller(replica, how)));
        let far_callers: Vec<_> = (0..self.replicas.len())
            .map(|replica| self.far_caller(replica, fork()))
            .collect();
        let clients: Vec<_> = (0..self.replicas.len())
            .map(|replica| self.client_caller(replica))
            .collect();
        let story = async {
            tokio::join!(faults, revokers);
            sleep(CALM).await;
            self.is_over.set(true);
        };
        tokio::join!(
            story,
            join_all(callers),
            join_all(far_callers),
            join_all(clients)
        );
    }

    /// When the faults are over, everybody says yes to a new key and no to all that were revoked. How long it took
    /// until everybody said yes.
    async fn recovered(&self) -> Duration {
        let since = Instant::now();
        let mut rng = StdRng::seed_from_u64(self.plan.seed);
        let (new, _) = self
            .make_key(&mut rng, Revocation::Repeatable)
            .await
            .expect("a new key");
        let keys = self.keys.borrow().len();
        let revoked: Vec<usize> = (0..keys)
            .filter(|key| self.keys.borrow()[*key].answered.is_some())
            .collect();
        let everybody = (0..self.replicas.len()).map(async |replica| {
            let mut connection = None;
            self.insist(replica, &mut connection, &[new], 1).await;
            self.client_recovers(replica, new).await;
            let took = since.elapsed();
            for keys in revoked.chunks(50) {
                self.insist(replica, &mut connection, keys, 0).await;
            }
            took
        });
        join_all(everybody)
            .await
            .into_iter()
            .max()
            .unwrap_or_default()
    }

    /// The client that has been there all the time asks until the key is valid.
    async fn client_recovers(&self, replica: usize, key: usize) {
        let (since, text) = (Instant::now(), self.keys.borrow()[key].text.clone());
        let (method, path) = ROUTE;
        let client = &self.replicas[replica].client;
        while !client
            .verify(text.as_str())
            .method(method)
            .path(path)
            .await
            .is_ok_and(|said| said.is_valid())
        {
            assert!(
                since.elapsed() < RECOVERY,
                "the client of replica {replica} does not verify again"
            );
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Asks until there is an answer.
    async fn insist(
        &self,
        replica: usize,
        connection: &mut Option<Connection>,
        keys: &[usize],
        valid: usize,
    ) {
        let since = Instant::now();
        loop {
            match self.ask(replica, connection, keys, PATIENCE).await {
                Some(found) => return assert_eq!(found, valid, "valid keys on replica {replica}"),
                None => assert!(
                    since.elapsed() < RECOVERY,
                    "replica {replica} does not verify again"
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
            unanswered,
            repeated,
            revocations,
            known_everywhere,
            ..
        } = &self.counts;
        let mut text = format!(
            "chaos: seed {}, {} replicas, {:.1?}\n  {} revocations, {} of them known to every replica, the slowest {:.1?}; \
             {} requests for changes repeated\n  {} verifications, {} of them valid; of the requests {} answered 503, {} \
             not in time\n ",
            self.plan.seed,
            self.replicas.len(),
            self.begun.elapsed(),
            revocations.get(),
            known_everywhere.get(),
            self.counts.slowest.get(),
            repeated.get(),
            verifications.get(),
            valid.get(),
            unavailable.get(),
            unanswered.get(),
        );
        let Counts {
            far,
            far_hits,
            by_clients,
            subscriptions,
            silent,
            ..
        } = &self.counts;
        let _ = write!(
            text,
            " {} of the verifications by clients, {} by {} resource servers, {} from their own memory; {} of them fell silent\n ",
            by_clients.get(),
            far.get(),
            subscriptions.get(),
            far_hits.get(),
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

/// The body of a request for an account key.
fn account_key(is_secret: bool) -> String {
    let access = if is_secret { "secret" } else { "publishable" };
    json!({"name": "Checkout", "environment": "live", "access": access}).to_string()
}

/// ID and full key of an account key that was created.
fn created_account_key(status: u16, json: &Value) -> Option<(String, String)> {
    let text = |name: &str| json["data"][name].as_str().expect("a text").to_owned();
    (status == 201).then(|| (text("id"), text("value")))
}

/// Past the test harness, which shows nothing of a test that passes.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "\n{text}\n");
}

async fn revocations_hold(plan: Plan, database: &Database, postgres: Option<&'static Postgres>) {
    say(&format!(
        "chaos: TOLLKEY_CHAOS_SEED={} repeats this schedule of faults",
        plan.seed
    ));
    let world = World::start(plan, database, postgres).await;
    world.run().await;
    let right = |world: &World| {
        let wrong = world.wrong.borrow();
        assert!(wrong.is_empty(), "{}\n{}", world.report(), wrong.join("\n"));
    };
    right(&world);
    world.is_over.set(false);
    let recovery = world.recovered().await;
    right(&world);
    say(&format!(
        "{}\n  recovered in {recovery:.1?}",
        world.report()
    ));
    for replica in &world.replicas {
        let server = replica.server.take().expect("it runs");
        server.stop().await;
    }
}

#[actix_web::test]
async fn revocations_hold_whatever_happens_on_postgresql() {
    let Some(postgres) = Postgres::private("") else {
        return;
    };
    let database = postgres.database();
    revocations_hold(Plan::at_least(3, 100, 1), &database, Some(postgres)).await;
}

#[actix_web::test]
async fn revocations_hold_whatever_happens_on_one_sqlite_file() {
    let database = Database::sqlite();
    revocations_hold(Plan::at_least(2, 50, 3), &database, None).await;
}
