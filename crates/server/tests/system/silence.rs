//! Resource servers whose connections go silent or whose server hangs: after a revocation's response no verification
//! reports the key as valid, every resource server recovers, and no use is counted twice.

use std::{
    cell::{Cell, RefCell},
    io::{self, Write as _},
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use rand::{
    RngExt as _, SeedableRng as _, TryRng as _,
    rngs::{StdRng, SysRng},
};
use tokio::{
    sync::oneshot,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tollkey_client::{Auth, Client};
use tollkey_core::{AccessRequest, VerifierId};
use tollkey_middleware::source::HttpSource;
use tollkey_store::{
    Backend,
    testing::{Database, backends},
};
use tollkey_verifier::{Settings, SystemClock, Verifier};

use crate::{
    binary::{Server, Tollkey, merchant},
    replicas::with_short_leases,
    support::source,
    wire::Wire,
};

/// The time limit of every wait; generous, for a busy machine.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// A resource server with a subscription.
struct Guard {
    verifier: Verifier<HttpSource>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Guard {
    /// Starts a subscription at this URL.
    async fn start(base: &str, service_key: &str) -> Self {
        let mut id = [0; 16];
        SysRng.try_fill_bytes(&mut id).expect("randomness");
        let source = source(base, service_key);
        let verifier = Verifier::subscriber(
            VerifierId::from_bytes(id),
            source,
            Arc::new(SystemClock),
            Settings::default(),
        );
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(verifier.clone().subscribe(async {
            let _ = stopped.await;
        }));
        let guard = Self {
            verifier,
            stop,
            task,
        };
        guard.leased().await;
        guard
    }

    async fn leased(&self) {
        let leased = async {
            while self.verifier.stats().lease_left.is_zero() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(TIME_LIMIT, leased).await.expect("a lease");
    }

    /// Whether the key is valid, or `None` if that is unavailable.
    async fn is_valid(&self, key: &str) -> Option<bool> {
        let verdict = self
            .verifier
            .verify(key, &AccessRequest::default())
            .await
            .ok()?;
        Some(verdict.outcome.is_ok())
    }

    /// Stops the subscription gracefully.
    async fn shut_down(self) {
        self.stop.send(()).expect("a running subscription");
        timeout(TIME_LIMIT, self.task)
            .await
            .expect("the subscription ends")
            .expect("no panic");
    }
}

/// The number of successful uses of a key of `acme`, according to the stored usage.
async fn counted(database: &Database, id: &str) -> u64 {
    let (account, id) = (
        "acme".parse().expect("an account ID"),
        id.parse().expect("a key ID"),
    );
    let rows = database
        .store()
        .read(move |db| db.account(&account).usage(&id, 0))
        .await
        .expect("usage");
    rows.iter()
        .filter(|row| row.outcome.is_none())
        .map(|row| row.count)
        .sum()
}

/// Writes directly to stderr, as the test harness hides the output of a passing test.
fn print(text: &str) {
    let _ = writeln!(io::stderr(), "\n{text}\n");
}

fn url(address: std::net::SocketAddr) -> String {
    format!("http://{address}")
}

/// Three servers on PostgreSQL, one on SQLite.
async fn servers(tollkey: &Tollkey, database: &Database) -> Vec<Server> {
    let count = if database.backend() == Backend::Postgres {
        3
    } else {
        1
    };
    join_all((0..count).map(|_| tollkey.serve())).await
}

#[actix_web::test]
async fn usage_in_flight_at_a_graceful_stop_is_written_once() {
    const GUARDS: u64 = 20;
    for database in backends() {
        let tollkey = Tollkey::on(&database);
        let servers = servers(&tollkey, &database).await;
        let application = servers[0].application(&merchant("acme"), "Web Store").await;
        let key = servers[0].key(&merchant("acme"), &application).await;
        let gateway = servers[0].service_key().await;
        let guards = (0..GUARDS).map(async |n| {
            let server = &servers[n as usize % servers.len()];
            let guard = Guard::start(&url(server.address), &gateway.text).await;
            let mut uses = 0;
            // Some stop during a poll that reports usage, others with usage that no poll has reported yet.
            for _ in 0..40 + n * 3 {
                assert_eq!(guard.is_valid(&key.text).await, Some(true));
                uses += 1;
                sleep(Duration::from_millis(30)).await;
            }
            guard.shut_down().await;
            uses
        });
        let uses: u64 = join_all(guards).await.into_iter().sum();
        for server in servers {
            assert!(server.stop().await.success());
        }
        let counted = counted(&database, &key.id).await;
        print(&format!(
            "{GUARDS} graceful stops on {:?}: {uses} uses, {counted} counted",
            database.backend()
        ));
        assert_eq!(counted, uses, "on {:?}", database.backend());
    }
}

#[actix_web::test]
async fn resource_server_recovers_when_its_connections_go_silent() {
    for database in backends() {
        let tollkey = Tollkey::on(&database);
        let servers = servers(&tollkey, &database).await;
        let application = servers[0].application(&merchant("acme"), "Web Store").await;
        let keys =
            join_all((0..16).map(async |_| servers[0].key(&merchant("acme"), &application).await))
                .await;
        let gateway = servers[0].service_key().await;
        let recoveries = servers.iter().map(async |server| {
            let wire = Wire::to_address(server.address);
            let guard = Guard::start(&url(wire.address), &gateway.text).await;
            // Parallel lookups open many connections.
            join_all(keys.iter().map(|key| guard.is_valid(&key.text))).await;
            wire.silence_existing();
            let start = Instant::now();
            let (mut failed, mut turn) = (0, 0);
            let (mut slowest, mut last_failure) = (Duration::ZERO, Duration::ZERO);
            while start.elapsed() < last_failure + Duration::from_secs(6) {
                let sent = Instant::now();
                if guard.is_valid(&keys[turn % keys.len()].text).await != Some(true) {
                    (failed, last_failure) = (failed + 1, start.elapsed());
                    assert!(
                        last_failure < Duration::from_secs(15),
                        "the requests fail for too long"
                    );
                }
                slowest = slowest.max(sent.elapsed());
                turn += 1;
                sleep(Duration::from_millis(10)).await;
            }
            assert!(!guard.verifier.stats().lease_left.is_zero());
            guard.shut_down().await;
            (last_failure, failed, slowest)
        });
        for (recovery, failed, slowest) in join_all(recoveries).await {
            print(&format!(
                "connections silent on {:?}: recovered after {recovery:.1?}, {failed} requests failed, the slowest took \
                 {slowest:.1?}",
                database.backend()
            ));
        }
        for server in servers {
            server.stop().await;
        }
    }
}

#[actix_web::test]
async fn requests_do_not_wait_for_a_hanging_server() {
    const REQUESTS: u32 = 30;
    let database = Database::sqlite();
    let server = Tollkey::on(&database).serve().await;
    let application = server.application(&merchant("acme"), "Web Store").await;
    let key = server.key(&merchant("acme"), &application).await;
    let gateway = server.service_key().await;
    let guard = Guard::start(&url(server.address), &gateway.text).await;
    assert_eq!(guard.is_valid(&key.text).await, Some(true));
    server.signal("STOP").await;
    while !guard.verifier.stats().lease_left.is_zero() {
        sleep(Duration::from_millis(5)).await;
    }
    let start = Instant::now();
    for _ in 0..REQUESTS {
        assert_eq!(guard.is_valid(&key.text).await, None);
    }
    let took = start.elapsed();
    let grace = Duration::from_secs(600);
    let start = Instant::now();
    for _ in 0..REQUESTS {
        let reserved = guard
            .verifier
            .reserve_without_immediate_revocation(&key.text, &AccessRequest::default(), grace)
            .await;
        assert!(reserved.expect("by the cached key").is_ok());
    }
    let took_with_grace = start.elapsed();
    server.signal("CONT").await;
    guard.leased().await;
    assert_eq!(guard.is_valid(&key.text).await, Some(true));
    let (each, each_with_grace) = (took / REQUESTS, took_with_grace / REQUESTS);
    print(&format!(
        "a server hangs: {each:.1?} a request, {each_with_grace:.1?} with a grace period"
    ));
    // A request that waits for the server would take two seconds.
    assert!(
        took.max(took_with_grace) < Duration::from_secs(20),
        "{took:?}, {took_with_grace:?}"
    );
    guard.shut_down().await;
    server.stop().await;
}

/// A key, its revocation and its uses.
struct Subject {
    id: String,
    text: String,
    /// When the response to its revocation arrived.
    revoked: Cell<Option<Instant>>,
    /// Successful uses by resource servers. A client that gets no response cannot know whether the key was used, so
    /// clients only use the keys with odd numbers, and resource servers the others.
    uses: Cell<u64>,
}

/// The state of the test, in which connections go silent.
struct Run {
    servers: Vec<Server>,
    wires: Vec<Wire>,
    application: String,
    subjects: Vec<Subject>,
    violations: RefCell<Vec<String>>,
    clients_served: Cell<u64>,
    is_over: Cell<bool>,
}

impl Run {
    /// Records a violation if a request that began after the revocation's response found the key valid.
    fn check(&self, subject: &Subject, start: Instant, is_valid: bool, by: &str) {
        if is_valid && subject.revoked.get().is_some_and(|revoked| start > revoked) {
            let late = start - subject.revoked.get().expect("a revocation");
            self.violations.borrow_mut().push(format!(
                "valid by {by}, {late:?} after the response to its revocation"
            ));
        }
    }

    fn pick(&self, rng: &mut StdRng, is_odd: bool) -> &Subject {
        &self.subjects[rng.random_range(0..self.subjects.len() / 2) * 2 + usize::from(is_odd)]
    }

    async fn resource_server(&self, guard: &Guard, mut rng: StdRng) {
        while !self.is_over.get() {
            let subject = self.pick(&mut rng, false);
            let start = Instant::now();
            if let Some(is_valid) = guard.is_valid(&subject.text).await {
                self.check(subject, start, is_valid, "a resource server");
                subject.uses.set(subject.uses.get() + u64::from(is_valid));
            }
            sleep(Duration::from_millis(rng.random_range(0..4))).await;
        }
    }

    async fn client(&self, client: &Client, mut rng: StdRng) {
        while !self.is_over.get() {
            let subject = self.pick(&mut rng, true);
            let start = Instant::now();
            if let Ok(verdict) = client.verify(subject.text.as_str()).await {
                self.clients_served.set(self.clients_served.get() + 1);
                self.check(subject, start, verdict.is_valid(), "a client");
            }
            sleep(Duration::from_millis(rng.random_range(0..10))).await;
        }
    }

    async fn silences(&self, wire: &Wire, mut rng: StdRng) -> u32 {
        let mut count = 0;
        while !self.is_over.get() {
            sleep(Duration::from_millis(rng.random_range(300..1500))).await;
            wire.silence_existing();
            count += 1;
        }
        count
    }

    /// Revokes most keys, one after the other. Returns the duration of the slowest revocation.
    async fn revoke(&self, mut rng: StdRng) -> Duration {
        let mut slowest = Duration::ZERO;
        for subject in &self.subjects[self.subjects.len() / 4..] {
            sleep(Duration::from_millis(rng.random_range(100..500))).await;
            let server = &self.servers[rng.random_range(0..self.servers.len())];
            let path = format!("/applications/{}/api-keys/{}", self.application, subject.id);
            let sent = Instant::now();
            let reply = server.delete(&path).bearer(&merchant("acme")).await;
            assert_eq!(reply.status, 204, "{reply}");
            subject.revoked.set(Some(Instant::now()));
            slowest = slowest.max(sent.elapsed());
        }
        sleep(Duration::from_secs(1)).await;
        self.is_over.set(true);
        slowest
    }
}

#[actix_web::test]
async fn silent_connections_delay_no_revocation_or_usage() {
    let seed = SysRng.try_next_u64().expect("randomness");
    let mut rng = StdRng::seed_from_u64(seed);
    for database in backends() {
        with_short_leases(&database);
        let tollkey = Tollkey::on(&database);
        let servers = servers(&tollkey, &database).await;
        let application = servers[0].application(&merchant("acme"), "Web Store").await;
        let gateway = servers[0].service_key().await;
        let mut subjects = Vec::new();
        for _ in 0..20 {
            let key = servers[0].key(&merchant("acme"), &application).await;
            subjects.push(Subject {
                id: key.id,
                text: key.text,
                revoked: Cell::new(None),
                uses: Cell::new(0),
            });
        }
        let wires: Vec<_> = servers
            .iter()
            .map(|server| Wire::to_address(server.address))
            .collect();
        let run = Run {
            servers,
            wires,
            application,
            subjects,
            violations: RefCell::default(),
            clients_served: Cell::new(0),
            is_over: Cell::new(false),
        };
        let bases: Vec<_> = run.wires.iter().map(|wire| url(wire.address)).collect();
        let guards = join_all(
            bases
                .iter()
                .chain(&bases)
                .map(|base| Guard::start(base, &gateway.text)),
        )
        .await;
        let clients: Vec<_> = bases
            .iter()
            .map(|base| {
                let client = Client::new(base)
                    .expect("a client")
                    .with_auth(Auth::service(gateway.text.as_str()));
                // No retries, as a repeated verification is a second use.
                client
                    .with_max_retries(0)
                    .with_timeout(Duration::from_secs(2))
            })
            .collect();
        let mut fork = || StdRng::from_rng(&mut rng);
        let callers = join_all(
            guards
                .iter()
                .map(|guard| run.resource_server(guard, fork())),
        );
        let client_callers = join_all(clients.iter().map(|client| run.client(client, fork())));
        let silences = join_all(run.wires.iter().map(|wire| run.silences(wire, fork())));
        let revocations = run.revoke(fork());
        let (slowest, silences, ..) = tokio::join!(revocations, silences, callers, client_callers);
        let silences: u32 = silences.into_iter().sum();
        let violations = run.violations.borrow().join("\n");
        assert!(violations.is_empty(), "seed {seed}: {violations}");

        // After the faults, every caller verifies keys again.
        let start = Instant::now();
        let guards_recover = join_all(guards.iter().map(async |guard| {
            while guard.is_valid(&run.subjects[0].text).await != Some(true) {
                sleep(Duration::from_millis(10)).await;
            }
            run.subjects[0].uses.set(run.subjects[0].uses.get() + 1);
            guard.leased().await;
        }));
        let clients_recover = join_all(clients.iter().map(async |client| {
            while !client
                .verify(run.subjects[1].text.as_str())
                .await
                .is_ok_and(|verdict| verdict.is_valid())
            {
                sleep(Duration::from_millis(10)).await;
            }
        }));
        let recovered = timeout(TIME_LIMIT, async {
            tokio::join!(guards_recover, clients_recover)
        })
        .await;
        assert!(recovered.is_ok(), "seed {seed}: a caller does not recover");
        let recovery = start.elapsed();
        let hits: u64 = guards.iter().map(|guard| guard.verifier.stats().hits).sum();
        for guard in guards {
            guard.shut_down().await;
        }
        let Run {
            servers,
            subjects,
            clients_served,
            ..
        } = run;
        let count = servers.len();
        for server in servers {
            assert!(server.stop().await.success());
        }
        let (mut uses, mut all_counted) = (0, 0);
        for subject in subjects.iter().step_by(2) {
            let counted = counted(&database, &subject.id).await;
            let used = subject.uses.get();
            assert!(
                counted <= used,
                "seed {seed}: {used} uses of a key were counted as {counted}"
            );
            (uses, all_counted) = (uses + used, all_counted + counted);
        }
        print(&format!(
            "{silences} silences between {} resource servers, {count} clients and {count} servers on {:?}: {uses} uses ({hits} \
             from the cache), {all_counted} counted; {} verifications of clients; the slowest revocation {slowest:.1?}, \
             recovered after {recovery:.1?}",
            2 * count,
            database.backend(),
            clients_served.get(),
        ));
        assert_eq!(
            all_counted, uses,
            "seed {seed}: no use is lost, as no server crashed"
        );
    }
}
