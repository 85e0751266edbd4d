//! Resource servers whose connections to their server go silent one by one, or whose server hangs: no verification that
//! began after a revocation was answered says that the key is valid, everybody recovers, and no use counts twice.

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
use tollkey_core::{Need, VerifierId};
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

/// How long everything that must happen in the end may take. A busy machine's time, no promise.
const IN_THE_END: Duration = Duration::from_secs(60);

/// A resource server.
struct Far {
    verifier: Verifier<HttpSource>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Far {
    /// Subscribes at this address.
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
        let far = Self {
            verifier,
            stop,
            task,
        };
        far.leased().await;
        far
    }

    async fn leased(&self) {
        let leased = async {
            while self.verifier.stats().lease_left.is_zero() {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(IN_THE_END, leased).await.expect("a lease");
    }

    /// Whether the key is valid; `None` without an answer.
    async fn is_valid(&self, key: &str) -> Option<bool> {
        let verdict = self.verifier.verify(key, &Need::default()).await.ok()?;
        Some(verdict.outcome.is_ok())
    }

    /// Ends it in good order.
    async fn shut_down(self) {
        self.stop.send(()).expect("it runs");
        timeout(IN_THE_END, self.task)
            .await
            .expect("an end")
            .expect("a good one");
    }
}

/// How often a key of `acme` was valid, by the usage that was written down.
async fn counted(database: &Database, id: &str) -> u64 {
    let (account, id) = (
        "acme".parse().expect("an account"),
        id.parse().expect("an id"),
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

/// Past the test harness, which shows nothing of a test that passes.
fn say(text: &str) {
    let _ = writeln!(io::stderr(), "\n{text}\n");
}

fn url(address: std::net::SocketAddr) -> String {
    format!("http://{address}")
}

/// Several servers on PostgreSQL, one on SQLite.
async fn servers(tollkey: &Tollkey, database: &Database) -> Vec<Server> {
    let count = if database.backend() == Backend::Postgres {
        3
    } else {
        1
    };
    join_all((0..count).map(|_| tollkey.serve())).await
}

#[actix_web::test]
async fn usage_in_flight_at_graceful_ends_is_written_once() {
    const GUARDS: u64 = 20;
    for database in backends() {
        let tollkey = Tollkey::on(&database);
        let servers = servers(&tollkey, &database).await;
        let application = servers[0].application(&merchant("acme"), "Web Store").await;
        let key = servers[0].key(&merchant("acme"), &application).await;
        let gateway = servers[0].service_key().await;
        let guards = (0..GUARDS).map(async |n| {
            let server = &servers[n as usize % servers.len()];
            let far = Far::start(&url(server.address), &gateway.text).await;
            let mut uses = 0;
            // Some of them end while a poll waits that has taken usage along, others with usage that no poll has.
            for _ in 0..40 + n * 3 {
                assert_eq!(far.is_valid(&key.text).await, Some(true));
                uses += 1;
                sleep(Duration::from_millis(30)).await;
            }
            far.shut_down().await;
            uses
        });
        let uses: u64 = join_all(guards).await.into_iter().sum();
        for server in servers {
            assert!(server.stop().await.success());
        }
        let counted = counted(&database, &key.id).await;
        say(&format!(
            "{GUARDS} graceful ends on {:?}: {uses} uses, {counted} counted",
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
            let far = Far::start(&url(wire.address), &gateway.text).await;
            // Look-ups at the same time, so that there are many connections.
            join_all(keys.iter().map(|key| far.is_valid(&key.text))).await;
            wire.silence_existing();
            let begun = Instant::now();
            let (mut failed, mut turn) = (0, 0);
            let (mut slowest, mut last_failure) = (Duration::ZERO, Duration::ZERO);
            while begun.elapsed() < last_failure + Duration::from_secs(6) {
                let asked = Instant::now();
                if far.is_valid(&keys[turn % keys.len()].text).await != Some(true) {
                    (failed, last_failure) = (failed + 1, begun.elapsed());
                    assert!(
                        last_failure < Duration::from_secs(15),
                        "each silent connection costs a request"
                    );
                }
                slowest = slowest.max(asked.elapsed());
                turn += 1;
                sleep(Duration::from_millis(10)).await;
            }
            assert!(!far.verifier.stats().lease_left.is_zero());
            far.shut_down().await;
            (last_failure, failed, slowest)
        });
        for (recovery, failed, slowest) in join_all(recoveries).await {
            say(&format!(
                "connections silent on {:?}: all is well after {recovery:.1?}, {failed} requests failed, the slowest took \
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
async fn requests_do_not_wait_for_a_server_that_hangs() {
    const REQUESTS: u32 = 30;
    let database = Database::sqlite();
    let server = Tollkey::on(&database).serve().await;
    let application = server.application(&merchant("acme"), "Web Store").await;
    let key = server.key(&merchant("acme"), &application).await;
    let gateway = server.service_key().await;
    let far = Far::start(&url(server.address), &gateway.text).await;
    assert_eq!(far.is_valid(&key.text).await, Some(true));
    server.signal("STOP").await;
    while !far.verifier.stats().lease_left.is_zero() {
        sleep(Duration::from_millis(5)).await;
    }
    let begun = Instant::now();
    for _ in 0..REQUESTS {
        assert_eq!(far.is_valid(&key.text).await, None);
    }
    let took = begun.elapsed();
    let grace = Duration::from_secs(600);
    let begun = Instant::now();
    for _ in 0..REQUESTS {
        let reserved = far
            .verifier
            .reserve_without_immediate_revocation(&key.text, &Need::default(), grace)
            .await;
        assert!(reserved.expect("by the cached key").is_ok());
    }
    let took_with_grace = begun.elapsed();
    server.signal("CONT").await;
    far.leased().await;
    assert_eq!(far.is_valid(&key.text).await, Some(true));
    let (each, each_with_grace) = (took / REQUESTS, took_with_grace / REQUESTS);
    say(&format!(
        "a server hangs: {each:.1?} a request, {each_with_grace:.1?} with a grace period"
    ));
    // Each would wait for two seconds.
    assert!(
        took.max(took_with_grace) < Duration::from_secs(20),
        "{took:?}, {took_with_grace:?}"
    );
    far.shut_down().await;
    server.stop().await;
}

/// A key, and what is known of it.
struct Subject {
    id: String,
    text: String,
    /// When its revocation was answered.
    answered: Cell<Option<Instant>>,
    /// How often it was valid for a resource server. A client that gets no response does not know whether the key was used;
    /// so clients use the keys with odd numbers, and resource servers the others.
    uses: Cell<u64>,
}

/// What happens while connections go silent.
struct Story {
    servers: Vec<Server>,
    wires: Vec<Wire>,
    application: String,
    subjects: Vec<Subject>,
    wrong: RefCell<Vec<String>>,
    clients_served: Cell<u64>,
    is_over: Cell<bool>,
}

impl Story {
    /// Notes what was said of a key for a request that began then.
    fn judge(&self, subject: &Subject, began: Instant, is_valid: bool, by: &str) {
        if is_valid
            && subject
                .answered
                .get()
                .is_some_and(|answered| began > answered)
        {
            let late = began - subject.answered.get().expect("it is there");
            self.wrong.borrow_mut().push(format!(
                "valid by {by}, {late:?} after the revocation was answered"
            ));
        }
    }

    fn pick(&self, rng: &mut StdRng, is_odd: bool) -> &Subject {
        &self.subjects[rng.random_range(0..self.subjects.len() / 2) * 2 + usize::from(is_odd)]
    }

    async fn resource_server(&self, far: &Far, mut rng: StdRng) {
        while !self.is_over.get() {
            let subject = self.pick(&mut rng, false);
            let began = Instant::now();
            if let Some(is_valid) = far.is_valid(&subject.text).await {
                self.judge(subject, began, is_valid, "a resource server");
                subject.uses.set(subject.uses.get() + u64::from(is_valid));
            }
            sleep(Duration::from_millis(rng.random_range(0..4))).await;
        }
    }

    async fn client(&self, client: &Client, mut rng: StdRng) {
        while !self.is_over.get() {
            let subject = self.pick(&mut rng, true);
            let began = Instant::now();
            if let Ok(verdict) = client.verify(subject.text.as_str()).await {
                self.clients_served.set(self.clients_served.get() + 1);
                self.judge(subject, began, verdict.is_valid(), "a client");
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

    /// Revokes most keys, one after the other. The slowest revocation.
    async fn revoke(&self, mut rng: StdRng) -> Duration {
        let mut slowest = Duration::ZERO;
        for subject in &self.subjects[self.subjects.len() / 4..] {
            sleep(Duration::from_millis(rng.random_range(100..500))).await;
            let server = &self.servers[rng.random_range(0..self.servers.len())];
            let path = format!("/applications/{}/api-keys/{}", self.application, subject.id);
            let asked = Instant::now();
            let reply = server.delete(&path).bearer(&merchant("acme")).await;
            assert_eq!(reply.status, 204, "{reply}");
            subject.answered.set(Some(Instant::now()));
            slowest = slowest.max(asked.elapsed());
        }
        sleep(Duration::from_secs(1)).await;
        self.is_over.set(true);
        slowest
    }
}

#[actix_web::test]
async fn revocations_hold_and_usage_counts_once_while_connections_go_silent() {
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
                answered: Cell::new(None),
                uses: Cell::new(0),
            });
        }
        let wires: Vec<_> = servers
            .iter()
            .map(|server| Wire::to_address(server.address))
            .collect();
        let story = Story {
            servers,
            wires,
            application,
            subjects,
            wrong: RefCell::default(),
            clients_served: Cell::new(0),
            is_over: Cell::new(false),
        };
        let bases: Vec<_> = story.wires.iter().map(|wire| url(wire.address)).collect();
        let far = join_all(
            bases
                .iter()
                .chain(&bases)
                .map(|base| Far::start(base, &gateway.text)),
        )
        .await;
        let clients: Vec<_> = bases
            .iter()
            .map(|base| {
                let client = Client::new(base)
                    .expect("a client")
                    .with_auth(Auth::service(gateway.text.as_str()));
                // A verification that is sent twice is two uses.
                client
                    .with_max_retries(0)
                    .with_timeout(Duration::from_secs(2))
            })
            .collect();
        let mut fork = || StdRng::from_rng(&mut rng);
        let callers = join_all(far.iter().map(|far| story.resource_server(far, fork())));
        let client_callers = join_all(clients.iter().map(|client| story.client(client, fork())));
        let silences = join_all(story.wires.iter().map(|wire| story.silences(wire, fork())));
        let revocations = story.revoke(fork());
        let (slowest, silences, ..) = tokio::join!(revocations, silences, callers, client_callers);
        let silences: u32 = silences.into_iter().sum();
        let wrong = story.wrong.borrow().join("\n");
        assert!(wrong.is_empty(), "seed {seed}: {wrong}");

        // Now that the faults are over, everybody verifies again.
        let begun = Instant::now();
        let of_far = join_all(far.iter().map(async |far| {
            while far.is_valid(&story.subjects[0].text).await != Some(true) {
                sleep(Duration::from_millis(10)).await;
            }
            story.subjects[0].uses.set(story.subjects[0].uses.get() + 1);
            far.leased().await;
        }));
        let of_clients = join_all(clients.iter().map(async |client| {
            while !client
                .verify(story.subjects[1].text.as_str())
                .await
                .is_ok_and(|verdict| verdict.is_valid())
            {
                sleep(Duration::from_millis(10)).await;
            }
        }));
        let recovered = timeout(IN_THE_END, async { tokio::join!(of_far, of_clients) }).await;
        assert!(recovered.is_ok(), "seed {seed}: somebody does not recover");
        let recovery = begun.elapsed();
        let hits: u64 = far.iter().map(|far| far.verifier.stats().hits).sum();
        for far in far {
            far.shut_down().await;
        }
        let Story {
            servers,
            subjects,
            clients_served,
            ..
        } = story;
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
        say(&format!(
            "{silences} silences between {} resource servers, {count} clients and {count} servers on {:?}: {uses} uses ({hits} \
             from the cache), {all_counted} counted; {} verifications of clients; the slowest revocation {slowest:.1?}, all \
             is well after {recovery:.1?}",
            2 * count,
            database.backend(),
            clients_served.get(),
        ));
        assert_eq!(
            all_counted, uses,
            "seed {seed}: none is lost either, since no server crashed"
        );
    }
}
