//! PostgreSQL goes away under running servers, and comes back.

use std::{
    cell::Cell,
    fmt,
    io::{self, Write as _},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::json;
use tokio::time::{sleep, timeout};
use tollkey_store::testing::Postgres;

use crate::{
    binary::{LEASE, Server, Tollkey, merchant, service},
    support::{Call, Key},
    wire::Wire,
};

/// The longest that a request waits for a database that is gone: its turn, and a connection.
const WAIT: Duration = Duration::from_secs(5);
/// For how long the database is still gone after the leases have ended.
const LONGER: Duration = Duration::from_millis(2500);
/// Within which time keys must be verified again. A second is what is aimed at; this is a busy machine's.
const RECOVERY: Duration = Duration::from_secs(3);

/// A question about a key, and its answer.
struct Asked {
    began: Instant,
    answered: Instant,
    status: u16,
}

/// Asks the same again and again.
async fn ask_until(over: &Cell<bool>, call: impl Fn() -> Call) -> Vec<Asked> {
    let mut all = Vec::new();
    while !over.get() {
        let began = Instant::now();
        let status = call().await.status;
        all.push(Asked {
            began,
            answered: Instant::now(),
            status,
        });
        sleep(Duration::from_millis(10)).await;
    }
    all
}

/// When PostgreSQL was told what, and had done it.
struct Story {
    stopping: Instant,
    gone: Instant,
    starting: Instant,
    back: Instant,
}

impl Story {
    /// What one caller has seen, in the order in which it must be.
    fn check(&self, who: &str, asked: &[Asked]) -> Seen {
        let leases_end = self.gone + LEASE;
        for Asked {
            began,
            answered,
            status,
        } in asked
        {
            let yes_is_possible = *began <= leases_end || *answered >= self.starting;
            assert!(
                *status == 503 || (*status == 200 && yes_is_possible),
                "{who}: {status} at the wrong time"
            );
        }
        let valid = || asked.iter().filter(|asked| asked.status == 200);
        assert!(
            valid().any(|asked| asked.answered < self.stopping),
            "{who}: it answers before"
        );
        let from_memory = valid()
            .filter(|asked| asked.began > self.gone && asked.began <= leases_end)
            .count();
        assert!(
            from_memory > 0,
            "{who}: memory answers while PostgreSQL is gone"
        );
        let last_valid = valid()
            .filter(|asked| asked.began <= leases_end)
            .map(|asked| asked.began)
            .max();
        let refused: Vec<&Asked> = asked
            .iter()
            .filter(|asked| asked.began > self.stopping && asked.status == 503)
            .collect();
        assert!(
            !refused.is_empty(),
            "{who}: without a lease nothing is answered"
        );
        let recovered = valid()
            .map(|asked| asked.answered)
            .find(|answered| *answered >= self.back);
        Seen {
            from_memory,
            last_valid: last_valid.map_or(Duration::ZERO, |last| {
                last.saturating_duration_since(self.gone)
            }),
            refused: refused.len(),
            longest_refusal: refused
                .iter()
                .map(|asked| asked.answered - asked.began)
                .max()
                .unwrap_or_default(),
            recovered: recovered.expect("asked until it recovered") - self.back,
        }
    }
}

struct Seen {
    from_memory: usize,
    last_valid: Duration,
    refused: usize,
    longest_refusal: Duration,
    recovered: Duration,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            from_memory,
            last_valid,
            refused,
            longest_refusal,
            recovered,
        } = self;
        write!(
            f,
            "{from_memory} valid from memory, the last {last_valid:.1?} after the stop; {refused} refused, the slowest in \
             {longest_refusal:.1?}; valid again {recovered:.1?} after the start"
        )
    }
}

/// What must be refused at once or after a bounded wait, whatever is remembered.
async fn needs_the_database(server: &Server, token: &str, application: &str, keys: &[&Key; 2]) {
    let [remembered, other] = keys;
    let verify = |text: &str| {
        server
            .post("/verify", json!({"key": text}))
            .bearer(&service())
    };
    let unknown = format!("ks_live_{}", "a".repeat(32));
    let calls = [
        verify(&other.text),
        verify(&unknown),
        server.get("/authz/forward-auth").bearer(&other.text),
        server.get("/whoami").bearer(&other.text),
        server.get("/applications").bearer(token),
        server
            .post("/applications", json!({"name": "Web Store 2"}))
            .bearer(token),
        server
            .delete(&format!(
                "/applications/{application}/api-keys/{}",
                remembered.id
            ))
            .bearer(token),
        server.get("/readyz"),
    ];
    let begun = Instant::now();
    for (number, reply) in join_all(calls.map(Call::into_future))
        .await
        .into_iter()
        .enumerate()
    {
        assert_eq!(reply.status, 503, "call {number}: {reply}");
    }
    let took = begun.elapsed();
    assert!(took < 2 * WAIT, "503 took {took:?}"); // twice: the machine may be busy
    let alive = timeout(WAIT, server.get("/livez").into_future())
        .await
        .expect("it depends on nothing");
    assert_eq!(alive.status, 200);
    let nonsense = verify("no key at all").await;
    assert_eq!(
        (nonsense.status, nonsense.code().as_str()),
        (200, "unknown_key"),
        "nobody has to be asked"
    );
}

#[actix_web::test]
async fn verification_while_postgresql_is_down() {
    let Some(postgres) = Postgres::private("") else {
        return;
    };
    let database = postgres.database();
    let tollkey = Tollkey::on(&database);
    let servers = [tollkey.serve().await, tollkey.serve().await];
    let token = merchant("acme");
    let application = servers[0].application(&token, "Web Store").await;
    let (remembered, other) = (
        servers[0].key(&token, &application).await,
        servers[0].key(&token, &application).await,
    );
    for server in &servers {
        assert_eq!(server.code(&remembered.text).await, "valid");
    }

    let control = async |arguments: &'static str| {
        tokio::task::spawn_blocking(move || postgres.control(arguments))
            .await
            .expect("PostgreSQL obeys");
    };
    let (over, service) = (Cell::new(false), service());
    let callers = join_all(servers.iter().flat_map(|server| {
        let verify = || {
            server
                .post("/verify", json!({"key": remembered.text}))
                .bearer(&service)
        };
        let forward = || server.get("/authz/forward-auth").bearer(&remembered.text);
        let asked: [std::pin::Pin<Box<dyn Future<Output = Vec<Asked>>>>; 2] = [
            Box::pin(ask_until(&over, verify)),
            Box::pin(ask_until(&over, forward)),
        ];
        asked
    }));
    let story = async {
        sleep(LEASE / 2).await; // leases are held
        let stopping = Instant::now();
        control("-m immediate stop").await;
        let gone = Instant::now();
        let keys = [&remembered, &other];
        join_all(
            servers
                .iter()
                .map(|server| needs_the_database(server, &token, &application, &keys)),
        )
        .await;
        sleep((LEASE + LONGER).saturating_sub(gone.elapsed())).await;
        for server in &servers {
            assert_eq!(server.get("/livez").await.status, 200);
        }
        let starting = Instant::now();
        control("start").await;
        let back = Instant::now();
        sleep(RECOVERY).await;
        over.set(true);
        Story {
            stopping,
            gone,
            starting,
            back,
        }
    };
    let (asked, story) = tokio::join!(callers, story);

    let mut report = String::from("verification while PostgreSQL is down:");
    let who = ["/verify", "forward-auth"];
    for (number, asked) in asked.iter().enumerate() {
        let who = format!("server {}, {}", number / who.len(), who[number % who.len()]);
        let seen = story.check(&who, asked);
        report.push_str(&format!("\n  {who}: {seen}"));
        assert!(seen.recovered < RECOVERY, "{report}");
        assert!(seen.longest_refusal < 2 * WAIT, "{report}");
    }
    // Past the test harness, which shows nothing of a test that passes.
    let _ = writeln!(io::stderr(), "\n{report}\n");

    // Everything is as before: changes too.
    for server in &servers {
        assert_eq!(server.get("/readyz").await.status, 200);
        assert_eq!(server.code(&other.text).await, "valid");
    }
    let path = format!("/applications/{application}/api-keys/{}", remembered.id);
    assert!([204, 400].contains(&servers[1].delete(&path).bearer(&token).await.status));
    for server in servers {
        assert_eq!(server.code(&remembered.text).await, "revoked");
        server.stop().await;
    }
}

/// The longest that a request waits for a connection that fell silent: its turn, a sign of life that does not come, and a
/// statement that is not answered.
const SILENCE: Duration = Duration::from_secs(15);
/// Within which time everything is as before. It takes 9 s, but for the listener, who asks for a sign of life after 30 s.
const RETURN: Duration = Duration::from_secs(60);

/// What a proxy does whose far side has died: existing connections are acknowledged each byte and get no answer, and only
/// new ones work.
#[actix_web::test]
async fn connections_that_fall_silent_cost_some_seconds() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let database = postgres.database();
    let wire = Wire::to(postgres.socket());
    let tollkey = Tollkey::on(&database)
        .with("DATABASE_URL", &database.url_at(wire.address))
        .with("TOLLKEY_APPLICATION_KEY_LIMIT", "10000");
    let server = tollkey.serve().await;
    let token = merchant("acme");
    let application = server.application(&token, "Web Store").await;
    let key = server.key(&token, &application).await;
    assert_eq!(server.code(&key.text).await, "valid");
    let service = service();
    let verify = || {
        server
            .post("/verify", json!({"key": key.text}))
            .bearer(&service)
    };
    let create = || {
        let path = format!("/applications/{application}/api-keys");
        server
            .post(&path, json!({"description": "Checkout"}))
            .bearer(&token)
    };
    let ready = || server.get("/readyz");
    let warm = join_all((0..12).map(|_| create().into_future())).await; // as many connections as there may be
    assert!(warm.iter().all(|reply| reply.status == 201));
    sleep(LEASE / 2).await; // a lease is held, and connections have rested

    wire.silence_existing();
    let begun = Instant::now();
    let over = Cell::new(false);
    let story = async {
        while !server.stderr().contains("listening for changes again") {
            assert!(
                begun.elapsed() < RETURN,
                "nobody listens: {}",
                server.stderr()
            );
            sleep(Duration::from_millis(50)).await;
        }
        over.set(true);
        begun.elapsed()
    };
    let (verified, created, asked, listening) = tokio::join!(
        ask_until(&over, verify),
        ask_until(&over, create),
        ask_until(&over, ready),
        story
    );

    let mut report = format!("connections that fell silent: listening again {listening:.1?} later");
    for (who, asked) in [
        ("/verify", verified),
        ("creation", created),
        ("/readyz", asked),
    ] {
        let refused: Vec<&Asked> = asked.iter().filter(|asked| asked.status == 503).collect();
        let other = asked
            .iter()
            .find(|asked| ![200, 201, 503].contains(&asked.status));
        assert!(
            other.is_none(),
            "{who}: {:?}",
            other.map(|asked| asked.status)
        );
        assert!(!refused.is_empty(), "{who}: the silence is noticed");
        let longest = asked
            .iter()
            .map(|asked| asked.answered - asked.began)
            .max()
            .unwrap_or_default();
        assert!(longest < SILENCE, "{who} took {longest:?}");
        let last = refused
            .iter()
            .map(|asked| asked.answered - begun)
            .max()
            .unwrap_or_default();
        assert!(
            asked
                .iter()
                .any(|asked| asked.status < 300 && asked.began > begun + last),
            "{who}: it is back"
        );
        assert!(last < RETURN / 2, "{who}: the last 503 after {last:?}");
        report.push_str(&format!(
            "\n  {who}: {} refused, the slowest answer in {longest:.1?}, the last 503 after {last:.1?}",
            refused.len()
        ));
    }

    // It ends in good order, too, with connections that are silent.
    wire.silence_existing();
    let begun = Instant::now();
    let (reply, ended) = tokio::join!(timeout(RETURN, create().into_future()), async {
        sleep(Duration::from_millis(100)).await;
        server.signal("TERM").await;
    });
    let () = ended;
    assert!(reply.is_ok_and(|reply| reply.status == 503));
    let finished = server.ended().await;
    assert_eq!(finished.code, Some(0), "{finished}");
    let took = begun.elapsed();
    assert!(took < RETURN / 2, "ending took {took:?}");
    let _ = writeln!(
        io::stderr(),
        "\n{report}\n  it ended {took:.1?} after the next silence\n"
    );
}
