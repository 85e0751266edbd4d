//! The server as a process: crashes, shutdown, start in development mode, migrations, metrics and logs.

use std::{
    fs,
    io::Write as _,
    net::{SocketAddr, TcpListener},
    os::unix::fs::PermissionsExt as _,
    process::Stdio,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use serde_json::{Value, json};
use tokio::{
    process::Command,
    time::{sleep, timeout},
};
use tollkey_core::{Digest, Seq, VerifierId};
use tollkey_store::{
    Backend,
    testing::{Database, Postgres, backends},
};

use crate::{
    binary::{Connection, Finished, Server, Tollkey, member, merchant, operator, service},
    support::{App, Call, Key, SECRET, each_backend},
};

/// How often the server is killed.
const KILLS: usize = 4;

/// What a client knows about a key it created.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Created,
    /// Its revocation was requested, but the response was lost: the key may be revoked or not.
    Revoking,
    Revoked,
}

/// Creates keys and revokes every third until the server is killed.
async fn burst(server: SocketAddr, application: &str, count: &AtomicUsize) -> Vec<(Key, Fate)> {
    let (token, path) = (
        merchant("acme"),
        format!("/api/v1/applications/{application}/api-keys"),
    );
    let body = json!({"description": "Checkout"}).to_string();
    let mut keys = Vec::new();
    while let Some(created) = request(server, "POST", &path, &token, &body, 201).await {
        let created: Value = serde_json::from_str(&created).expect("JSON");
        let text = |name: &str| created[name].as_str().expect("a string").to_owned();
        let key = Key {
            id: text("id"),
            text: text("fullKey"),
        };
        count.fetch_add(1, Ordering::Relaxed);
        let fate = if keys.len() % 3 == 2 {
            let path = format!("{path}/{}", key.id);
            request(server, "DELETE", &path, &token, "", 204)
                .await
                .map_or(Fate::Revoking, |_| Fate::Revoked)
        } else {
            Fate::Created
        };
        keys.push((key, fate));
    }
    keys
}

/// Returns the response's body, or `None` if the server was killed first. Panics on another status.
async fn request(
    server: SocketAddr,
    method: &str,
    path: &str,
    token: &str,
    body: &str,
    expected: u16,
) -> Option<String> {
    let mut connection = Connection::open(server).await?;
    connection.send(method, path, token, body).await.ok()?;
    let (status, body) = connection.answer().await?;
    assert_eq!(status, expected, "{body}");
    Some(body)
}

#[actix_web::test]
async fn acknowledged_changes_survive_crashes() {
    for database in backends() {
        let tollkey = Tollkey::on(&database).with("TOLLKEY_APPLICATION_KEY_LIMIT", "10000");
        tollkey.output_of(&["migrate"]).await;
        // After a kill, the next revocation waits until the killed server's lease expires, hence short leases.
        database.sql("UPDATE settings SET value = '300' WHERE name = 'lease_ms'");
        let mut keys: Vec<(Key, Fate)> = Vec::new();
        let mut application = None;
        let mut kept_heads: Vec<String> = Vec::new();
        for round in 0..=KILLS {
            let server = tollkey.serve().await;
            if application.is_none() {
                application = Some(server.application(&merchant("acme"), "Web Store").await);
            }
            let application = application.as_deref().expect("created in the first round");

            let texts: Vec<&str> = keys.iter().map(|(key, _)| key.text.as_str()).collect();
            for (code, (key, fate)) in server.codes(&texts).await.iter().zip(&keys) {
                let expected: &[&str] = match fate {
                    Fate::Created => &["valid"],
                    Fate::Revoking => &["valid", "revoked"],
                    Fate::Revoked => &["revoked"],
                };
                assert!(
                    expected.contains(&code.as_str()),
                    "round {round}, key {}: {fate:?}, yet {code}",
                    key.id
                );
            }
            let reply = server
                .get(&format!("/applications/{application}/api-keys"))
                .bearer(&merchant("acme"))
                .await;
            let stored = reply.json()["totalItems"].as_u64().expect("a count");
            assert!(stored >= keys.len() as u64);

            let mut verify = vec!["audit", "verify"];
            verify.extend(kept_heads.iter().flat_map(|head| ["--head", head.as_str()]));
            let report = tollkey.output_of(&verify).await;
            assert!(report.contains("\nthe audit log is intact ("), "{report}");
            let line = report.lines().next().expect("a line for the account");
            let words: Vec<&str> = line.split_whitespace().collect();
            let ["acme", entries, "entries", "head", head] = words[..] else {
                panic!("{line}")
            };
            kept_heads.push(head.to_owned());
            // A change and its audit entry are atomic: the application, each key, each revocation.
            let entries: u64 = entries.parse().expect("a count");
            let fates = |expected| keys.iter().filter(|(_, fate)| *fate == expected).count() as u64;
            let least = 1 + stored + fates(Fate::Revoked);
            assert!(
                (least..=least + fates(Fate::Revoking)).contains(&entries),
                "{entries} entries, at least {least}"
            );

            if round == KILLS {
                server.stop().await;
                break;
            }
            let (address, count) = (server.address, AtomicUsize::new(0));
            let enough = 10 + 13 * round;
            let kill = async {
                while count.load(Ordering::Relaxed) < enough {
                    sleep(Duration::from_millis(1)).await;
                }
                server.kill().await;
            };
            let bursts = join_all((0..4).map(|_| burst(address, application, &count)));
            keys.extend(tokio::join!(bursts, kill).0.into_iter().flatten());
        }
        assert!(keys.len() >= 10 * KILLS);
    }
}

/// All resources of an account.
async fn everything(server: &Server, application: &str) -> Vec<Value> {
    let mut all = Vec::new();
    for (path, token) in [
        ("/applications?include=apiKeys".to_owned(), merchant("acme")),
        (
            format!("/applications/{application}/api-keys"),
            merchant("acme"),
        ),
        ("/audit-log".to_owned(), merchant("acme")),
        ("/accounts/acme".to_owned(), operator()),
        ("/service-keys".to_owned(), operator()),
    ] {
        let reply = server.get(&path).bearer(&token).await;
        assert_eq!(reply.status, 200, "{path}: {reply}");
        all.push(reply.json());
    }
    all
}

#[actix_web::test]
async fn restart_keeps_all_resources() {
    for database in backends() {
        let tollkey = Tollkey::on(&database);
        let server = tollkey.serve().await;
        let token = merchant("acme");
        let application = server.application(&token, "Web Store").await;
        let disabled = server.application(&token, "Old Store").await;
        let mut keys = Vec::new();
        for _ in 0..3 {
            keys.push(server.key(&token, &application).await);
        }
        let sleeping = server.key(&token, &disabled).await;
        let revoke = server
            .delete(&format!(
                "/applications/{application}/api-keys/{}",
                keys[0].id
            ))
            .bearer(&token);
        assert_eq!(revoke.await.status, 204);
        let disable = server.patch(
            &format!("/applications/{disabled}/status"),
            json!({"isEnabled": false}),
        );
        assert_eq!(disable.bearer(&token).await.status, 200);
        let model = server
            .put("/accounts/acme", json!({"operating_model": "platform"}))
            .bearer(&operator());
        assert_eq!(model.await.status, 200);
        let (gateway, former) = (server.service_key().await, server.service_key().await);
        let revoke = server
            .delete(&format!("/service-keys/{}", former.id))
            .bearer(&operator());
        assert_eq!(revoke.await.status, 204);
        let before = everything(&server, &application).await;
        server.stop().await;

        let server = tollkey.serve().await;
        assert_eq!(everything(&server, &application).await, before);
        keys.push(sleeping);
        let texts: Vec<&str> = keys.iter().map(|key| key.text.as_str()).collect();
        assert_eq!(
            server.codes(&texts).await,
            ["revoked", "valid", "valid", "application_disabled"]
        );
        let verify = |credential: &str| {
            server
                .post("/verify", json!({"key": texts[1]}))
                .bearer(credential)
        };
        assert_eq!(verify(&gateway.text).await.status, 200);
        assert_eq!(verify(&former.text).await.status, 401);
        server.stop().await;
    }
}

#[actix_web::test]
async fn sigterm_and_sigint_shut_down_gracefully() {
    for database in backends() {
        for signal in ["TERM", "INT"] {
            let tollkey = Tollkey::on(&database);
            let server = tollkey.serve().await;
            let token = merchant("acme");
            let application = server
                .application(&token, &format!("Used until {signal}"))
                .await;
            let key = server.key(&token, &application).await;
            assert_eq!(server.code(&key.text).await, "valid"); // this use is still in memory

            let mut idle = Connection::open(server.address)
                .await
                .expect("a connection");
            idle.send("GET", "/readyz", "", "").await.expect("sent");
            assert_eq!(idle.answer().await, Some((200, "ok".to_owned())));
            let late = json!({"name": format!("In flight at {signal}")}).to_string();
            let mut in_flight = Connection::open(server.address)
                .await
                .expect("a connection");
            in_flight
                .begin("POST", "/api/v1/applications", &token, &late)
                .await;

            server.signal(signal).await;
            let stopping = Instant::now();
            while Connection::open(server.address).await.is_some() {
                assert!(
                    stopping.elapsed() < Duration::from_secs(30),
                    "the server still accepts connections after {signal}"
                );
                sleep(Duration::from_millis(5)).await;
            }
            // An idle connection is closed, or its next request gets a 503.
            if idle.send("GET", "/readyz", "", "").await.is_ok()
                && let Some((status, _)) = idle.answer().await
            {
                assert_eq!(status, 503);
            }
            in_flight.finish(&late).await;
            let (status, body) = in_flight
                .answer()
                .await
                .expect("the request in flight gets a response");
            assert_eq!(status, 201, "{body}");
            let finished = server.ended().await;
            assert_eq!(finished.code, Some(0), "{finished}");

            let server = tollkey.serve().await;
            let reply = server
                .get(&format!("/applications/{application}/api-keys"))
                .bearer(&token)
                .await;
            assert!(
                reply.json()["items"][0]["lastUsedAt"].is_string(),
                "{reply}"
            );
            let reply = server.get("/applications?limit=1").bearer(&token).await;
            assert_eq!(
                reply.json()["items"][0]["name"],
                format!("In flight at {signal}"),
                "{reply}"
            );
            server.stop().await;
        }
    }
}

#[actix_web::test]
async fn signal_right_after_start_is_handled() {
    for _ in 0..10 {
        let server = Tollkey::development().serve().await;
        server.stop().await;
    }
}

/// A supervisor may have closed its end of the pipe.
#[actix_web::test]
async fn server_runs_with_a_closed_stdout() {
    let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let tollkey = Tollkey::development().with("TOLLKEY_LISTEN", &address.to_string());
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut server = tollkey
        .command(&["serve"])
        .stdout(writer)
        .stderr(Stdio::null())
        .spawn()
        .expect("the server starts");
    while Connection::open(address).await.is_none() {
        assert!(
            server.try_wait().expect("the process status").is_none(),
            "the server exited"
        );
        sleep(Duration::from_millis(5)).await;
    }
    sleep(Duration::from_millis(200)).await; // until it has printed
    assert_eq!(Call::new(address, "GET", "/livez").await.status, 200);
    assert!(
        server.try_wait().expect("the process status").is_none(),
        "the server exited"
    );
}

#[actix_web::test]
async fn stopped_server_returns_its_lease() {
    for database in backends() {
        let tollkey = Tollkey::on(&database);
        let server = tollkey.serve().await;
        let (store, nobody) = (database.store(), VerifierId::from_bytes([0; 16]));
        let holders = async || {
            store
                .lagging_verifiers(Seq(i64::MAX), nobody)
                .await
                .expect("the leases")
                .len()
        };
        timeout(Duration::from_secs(30), async {
            while holders().await == 0 {
                sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("the server takes a lease");
        server.stop().await;
        assert_eq!(holders().await, 0, "the server returns its lease");
    }
}

#[actix_web::test]
async fn draining_server_is_alive_but_not_ready() {
    each_backend(async |app: &App| {
        assert_eq!(app.get("/readyz").await.status, 200);
        app.running()
            .state()
            .draining
            .store(true, Ordering::Release);
        assert_eq!(app.get("/readyz").await.status, 503);
        assert_eq!(app.get("/livez").await.status, 200);
    })
    .await;
}

/// The output of development mode.
struct Welcome {
    base: String,
    swagger: String,
    token: String,
    curl: String,
}

impl Welcome {
    async fn of(server: &Server) -> Self {
        // It is printed after the line that `serve` waits for.
        let mut stdout = server.stdout();
        while !stdout.contains("curl ") || !stdout.ends_with('\n') {
            sleep(Duration::from_millis(5)).await;
            stdout = server.stdout();
        }
        let line = |start: &str| {
            let line = stdout.lines().find_map(|line| line.strip_prefix(start));
            line.unwrap_or_else(|| panic!("no line begins with {start:?}: {stdout}"))
                .trim()
                .to_owned()
        };
        assert_eq!(line("listening on "), format!("http://{}", server.address));
        Self {
            base: line("API:"),
            swagger: line("Swagger UI:"),
            token: format!("ey{}", line("ey")),
            curl: format!("curl {}", line("curl ")),
        }
    }
}

#[actix_web::test]
async fn development_mode_prints_commands_that_work() {
    let tollkey = Tollkey::development();
    for start in 0..2 {
        let server = tollkey.serve().await;
        let welcome = Welcome::of(&server).await;
        assert_eq!(welcome.base, format!("http://{}/api/v1", server.address));
        assert_eq!(welcome.swagger, format!("http://{}/docs/", server.address));
        let docs = server.get("/docs/").await;
        assert_eq!(
            (docs.status, docs.header("content-type")),
            (200, Some("text/html")),
            "{docs}"
        );
        let list = server.get("/applications").bearer(&welcome.token).await;
        assert_eq!(list.status, 200, "{list}");
        let found = list.json()["totalItems"].as_u64();

        // Run by a shell as a user would paste it, in any directory.
        if curl_is_installed().await {
            assert_eq!(found, Some(start), "one application for each earlier start");
            let output = Command::new("sh")
                .args(["-c", &welcome.curl])
                .output()
                .await
                .expect("a shell");
            let stdout = String::from_utf8_lossy(&output.stdout);
            assert!(
                output.status.success() && output.stderr.is_empty(),
                "{output:?}"
            );
            let created: Value =
                serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"));
            assert!(created["id"].is_string(), "{created}");
        }
        // The log does not go to stdout, and does not contain the token.
        assert!(!server.stdout().contains("INFO"));
        assert!(!server.stderr().contains(&welcome.token));
        server.stop().await;

        let secret = tollkey.directory().join("tollkey.db.jwt-secret");
        let mode = fs::metadata(&secret)
            .expect("the secret is kept beside the database")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}

async fn curl_is_installed() -> bool {
    let installed = Command::new("curl").arg("--version").output().await.is_ok();
    if !installed {
        // Written directly to stderr, as the test harness captures `eprintln!`.
        let _ = writeln!(
            std::io::stderr(),
            "\nWARNING: curl is not installed: printed commands are NOT tested\n"
        );
    }
    installed
}

#[actix_web::test]
async fn development_mode_works_with_an_in_memory_database() {
    let tollkey = Tollkey::development().with("DATABASE_URL", "sqlite://:memory:");
    let server = tollkey.serve().await;
    let token = Welcome::of(&server).await.token;
    let application = server.application(&token, "Web Store").await;
    let key = server.key(&token, &application).await;
    assert_eq!(server.get("/whoami").bearer(&key.text).await.status, 200);
    let revoke = server
        .delete(&format!("/applications/{application}/api-keys/{}", key.id))
        .bearer(&token);
    assert_eq!(revoke.await.status, 204);
    assert_eq!(server.get("/whoami").bearer(&key.text).await.status, 401);
    server.stop().await;
    assert_eq!(
        fs::read_dir(tollkey.directory())
            .expect("the directory")
            .count(),
        0,
        "no file is written"
    );
    tollkey
        .run(&["token", "--account", "acme"])
        .await
        .assert_rejected(&["in memory", "TOLLKEY_JWT_HS256_SECRET"]);
}

#[actix_web::test]
async fn development_mode_is_only_for_the_local_user() {
    let tollkey = Tollkey::development();
    let refused = |started: Result<Server, Finished>, words: &[&str]| {
        started
            .err()
            .expect("the server does not start")
            .assert_rejected(words)
            .to_owned()
    };
    let hint = "TOLLKEY_JWT_HS256_SECRET";
    refused(
        tollkey.start(&["--listen", "0.0.0.0:0"]).await,
        &["not a loopback address", hint],
    );
    refused(
        tollkey.start(&["--listen", "[::]:0"]).await,
        &["not a loopback address", hint],
    );
    refused(
        tollkey
            .start(&["--database-url", "postgres:///tollkey"])
            .await,
        &["PostgreSQL needs a key source", hint],
    );
    assert_eq!(
        fs::read_dir(tollkey.directory())
            .expect("the directory")
            .count(),
        0,
        "a failed start writes no file"
    );

    let server = tollkey.serve().await;
    let token = Welcome::of(&server).await.token;
    let application = server.application(&token, "Web Store").await;
    let key = server.key(&token, &application).await;
    for (name, value) in [
        ("x-forwarded-for", "203.0.113.7"),
        ("x-forwarded-host", "keys.example.com"),
        ("forwarded", "for=203.0.113.7"),
    ] {
        let reply = server
            .get("/applications")
            .bearer(&token)
            .header(name, value)
            .await;
        assert_eq!(reply.status, 403, "{name}: {reply}");
        let reply = server
            .get("/authz/forward-auth")
            .bearer(&key.text)
            .header(name, value)
            .await;
        assert_eq!(
            reply.status, 200,
            "gateways may forward and verify keys: {name}: {reply}"
        );
        let reply = Call::to(server.address, "GET", "/dashboard/sign-in")
            .header(name, value)
            .await;
        assert_eq!(reply.status, 403, "{name}: {reply}");
    }
    server.stop().await;

    let secret = tollkey.directory().join("tollkey.db.jwt-secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).expect("the mode is changed");
    refused(
        tollkey.start(&[]).await,
        &["can be read by other users", "chmod 600"],
    );
}

/// A fresh PostgreSQL database, or `None` without PostgreSQL.
fn postgres() -> Option<Database> {
    Postgres::shared().map(Postgres::database)
}

#[actix_web::test]
async fn postgresql_is_migrated_only_on_request() {
    let Some(database) = postgres() else { return };
    let tollkey = Tollkey::on(&database).without("TOLLKEY_MIGRATE");
    let migrating = tollkey.clone().with("TOLLKEY_MIGRATE", "true");
    for arguments in [
        &["audit", "verify"][..],
        &["service-key", "list"],
        &["session", "end", "--all"],
    ] {
        migrating
            .run(arguments)
            .await
            .assert_rejected(&["schema is older", "tollkey migrate"]);
    }
    for arguments in [
        &[][..],
        &["serve"],
        &["audit", "verify"],
        &["service-key", "list"],
    ] {
        let finished = tollkey
            .start(arguments)
            .await
            .err()
            .expect("the server does not start");
        finished.assert_rejected(&["schema is older", "tollkey migrate", "serve --migrate"]);
        assert_eq!(finished.stdout, "");
    }
    assert_eq!(database.columns(), [""; 0], "the database is unchanged");
    let migrated = tollkey.output_of(&["migrate"]).await;
    assert!(
        migrated.starts_with("applied 2026") && migrated.ends_with("\nthe schema is up to date"),
        "{migrated}"
    );
    assert_eq!(
        tollkey.output_of(&["migrate"]).await,
        "the schema was already up to date"
    );
    tollkey.serve().await.stop().await;
    tollkey
        .serve_with(&["serve", "--migrate"])
        .await
        .stop()
        .await;
}

#[actix_web::test]
async fn newer_schema_is_rejected() {
    for database in backends() {
        let tollkey = Tollkey::on(&database);
        tollkey.output_of(&["migrate"]).await;
        database.sql("INSERT INTO __diesel_schema_migrations (version) VALUES ('29990101000000')");
        for arguments in [&["serve"][..], &["migrate"], &["audit", "verify"]] {
            let finished = tollkey
                .start(arguments)
                .await
                .err()
                .expect("the command fails");
            finished.assert_rejected(&["schema is newer"]);
        }
    }
}

#[actix_web::test]
async fn servers_that_start_together_do_not_race() {
    for database in backends() {
        let tollkey = Tollkey::on(&database).without("TOLLKEY_MIGRATE");
        let started = join_all((0..3).map(|_| tollkey.serve_with(&["serve", "--migrate"]))).await;
        let application = started[0].application(&merchant("acme"), "Web Store").await;
        let key = started[1].key(&merchant("acme"), &application).await;
        assert_eq!(started[2].code(&key.text).await, "valid");
        for server in started {
            server.stop().await;
        }
    }
    // The secret of development mode is also created only once.
    let tollkey = Tollkey::development();
    let started = join_all((0..3).map(|_| tollkey.serve())).await;
    let token = Welcome::of(&started[0]).await.token;
    for server in started {
        assert_eq!(server.get("/applications").bearer(&token).await.status, 200);
        server.stop().await;
    }
}

/// A free port.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("the address").port()
}

#[actix_web::test]
async fn metrics_have_their_own_listener() {
    for database in backends() {
        let metrics = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let server = Tollkey::on(&database)
            .with("TOLLKEY_METRICS_LISTEN", &metrics.to_string())
            .serve()
            .await;
        assert_eq!(
            server.get("/metrics").await.status,
            404,
            "not on the public listener"
        );
        let token = merchant("acme");
        let application = server.application(&token, "Web Store").await;
        let key = server.key(&token, &application).await;
        assert_eq!(server.code(&key.text).await, "valid");
        assert_eq!(
            server.code(&format!("ks_live_{}", "a".repeat(32))).await,
            "unknown_key"
        );
        assert_eq!(
            server.get(&format!("/nothing/{}", key.text)).await.status,
            404
        );
        let revoke = server
            .delete(&format!("/applications/{application}/api-keys/{}", key.id))
            .bearer(&token);
        assert_eq!(revoke.await.status, 204);

        // Verifications of known keys are counted when the usage is written, every few seconds.
        let text = timeout(Duration::from_secs(30), async {
            loop {
                let reply = Call::new(metrics, "GET", "/metrics").await;
                assert_eq!(reply.status, 200, "{reply}");
                assert!(
                    reply
                        .header("content-type")
                        .is_some_and(|of| of.starts_with("text/plain")),
                    "{reply}"
                );
                if reply
                    .body
                    .contains("tollkey_verifications_total{outcome=\"valid\"} 1")
                {
                    return reply.body;
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
        let text = text.await.expect("the verification is counted");

        for series in [
            "tollkey_http_requests_total{method=\"POST\",route=\"/api/v1/applications\",status=\"201\"} 1",
            "tollkey_http_requests_total{method=\"GET\",route=\"unmatched\",status=\"404\"} 2",
            "tollkey_verifications_total{outcome=\"unknown_key\"} 1",
            "tollkey_propagation_wait_seconds_count 1",
            "tollkey_change_seq 1",
            "tollkey_lease_left_seconds ",
            "tollkey_build_info{version=",
        ] {
            assert!(
                text.lines().any(|line| line.starts_with(series)),
                "no {series}:\n{text}"
            );
        }
        for line in text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            assert!(
                (name.starts_with("tollkey_") || name.starts_with("process_"))
                    && value.parse::<f64>().is_ok(),
                "{line}"
            );
        }
        for private in [key.id.as_str(), &application, &key.text, "acme", "ks_live_"] {
            assert!(!text.contains(private), "{private} in:\n{text}");
        }
        server.stop().await;
    }
}

#[actix_web::test]
async fn logs_are_json_lines_on_stderr() {
    let database = Database::sqlite();
    let server = Tollkey::on(&database)
        .with("TOLLKEY_LOG_FORMAT", "json")
        .with("TOLLKEY_LOG", "debug")
        .serve()
        .await;
    let reply = server.get("/applications").bearer(&merchant("acme")).await;
    let request_id = reply.header("x-request-id").expect("an ID").to_owned();
    let listening = format!("listening on http://{}\n", server.address);
    let finished = server.stop().await;
    assert_eq!(finished.stdout, listening, "only this line");

    let lines: Vec<Value> = finished
        .stderr
        .lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect();
    for line in &lines {
        assert!(
            line["timestamp"].is_string()
                && line["level"].is_string()
                && line["target"].is_string(),
            "{line}"
        );
    }
    let logged = lines
        .iter()
        .find(|line| line["request_id"] == request_id.as_str())
        .expect("the request is logged");
    assert_eq!(
        (
            &logged["level"],
            &logged["method"],
            &logged["route"],
            &logged["status"]
        ),
        (
            &json!("INFO"),
            &json!("GET"),
            &json!("/api/v1/applications"),
            &json!(200)
        )
    );
}

/// Secrets that must not occur in any output, with their names.
struct Canaries(Vec<(&'static str, String)>);

impl Canaries {
    fn add(&mut self, what: &'static str, secret: &str) {
        self.0.push((what, secret.to_owned()));
    }

    /// Adds the random part and the hash of a key.
    fn add_key(&mut self, what: &'static str, text: &str) {
        self.add(what, text.rsplit('_').next().expect("the random part"));
        let digest: String = Digest::of_key(text)
            .as_bytes()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        self.add("the hash of a key", &digest);
    }

    fn assert_absent(&self, place: &str, text: &str) {
        for (what, secret) in &self.0 {
            let line = text
                .lines()
                .find(|line| line.contains(secret))
                .map(|line| line.replace(secret, "(secret)"));
            assert!(
                line.is_none(),
                "{what} in {place}: {}",
                line.unwrap_or_default()
            );
        }
    }
}

#[actix_web::test]
async fn secrets_are_neither_logged_nor_stored() {
    for database in backends() {
        let mut canaries = Canaries(vec![("the signing secret", SECRET.to_owned())]);
        let mut tollkey = Tollkey::on(&database).with("TOLLKEY_LOG", "trace");
        if database.backend() == Backend::Postgres {
            let password = "canary-of-the-database";
            canaries.add("the database password", password);
            tollkey = tollkey.with(
                "DATABASE_URL",
                &format!("{}&password={password}", database.url()),
            );
        }
        let server = tollkey.serve().await;
        let (token, operator, service) = (merchant("acme"), operator(), service());
        for token in [&token, &operator, &service] {
            canaries.add(
                "a token's signature",
                token.rsplit('.').next().expect("a signature"),
            );
            canaries.add("a token's claims", token.split('.').nth(1).expect("claims"));
        }
        let application = server.application(&token, "Web Store").await;
        let key = server.key(&token, &application).await;
        let gateway = server.service_key().await;
        canaries.add_key("a key", &key.text);
        canaries.add_key("a service key", &gateway.text);
        let unknown = format!("sk_live_{}", "Zz9".repeat(11)[..32].to_owned());
        canaries.add_key("an unknown key", &unknown);

        let text = &key.text;
        let in_json = json!({"key": text}).to_string();
        let calls = [
            server
                .post("/verify", json!({"key": text, "scopes": ["links:read"]}))
                .bearer(&gateway.text),
            server
                .post("/verify", json!({"key": unknown}))
                .bearer(&service),
            server
                .post(
                    "/verify/batch",
                    json!({"requests": [{"key": text}, {"key": unknown}]}),
                )
                .bearer(&gateway.text),
            server
                .call("POST", "/introspect")
                .form(&format!("token={text}"))
                .bearer(&gateway.text),
            server.get("/whoami").bearer(text),
            server.get("/whoami").header("x-api-key", text),
            server.get("/whoami").header("x-commerce-api-key", text),
            server.get("/whoami").bearer(&unknown),
            server.get("/whoami").bearer(text).header("x-api-key", text),
            server
                .get("/whoami")
                .header("authorization", format!("Basic {text}")),
            server.get("/whoami").header("authorization", text),
            server
                .get("/whoami")
                .header("cookie", format!("key={text}")),
            server.get(&format!("/whoami?api_key={text}")),
            server
                .get(&format!("/applications?api_key={text}"))
                .bearer(&token),
            server.get(&format!("/applications/{text}")).bearer(&token),
            server.get(&format!("/nothing/{text}")),
            server
                .get("/authz/forward-auth")
                .bearer(text)
                .header("x-forwarded-uri", format!("/links?api_key={text}")),
            server
                .get("/authz/auth-request")
                .bearer(text)
                .header("x-original-uri", format!("/links/{text}")),
            server
                .get(&format!("/authz/ext-authz/-/links/{text}?key={text}"))
                .bearer(text),
            server
                .get(&format!("/authz/forward-auth?{text}=1&scope={text}"))
                .bearer(text),
            server.get("/authz/forward-auth").bearer(&unknown),
            // Requests with an invalid body.
            server
                .call("POST", "/verify")
                .json(json!({}))
                .body(format!("{{\"key\": \"{text}\" oops"))
                .bearer(&service),
            server
                .post("/verify", json!({"key": {"text": text}}))
                .bearer(&service),
            server
                .call("POST", "/verify")
                .header("content-type", "text/plain")
                .body(in_json)
                .bearer(&service),
            // Requests with a credential of the wrong kind.
            server.get("/applications").bearer(text),
            server.get("/applications").bearer(&gateway.text),
            server.get("/applications").bearer(&format!("{token}x")),
            server.delete("/whoami").bearer(text),
        ];
        for call in calls {
            let reply = call.await;
            assert!((200..500).contains(&reply.status), "{reply}");
            canaries.assert_absent("a response", &reply.body);
            for (name, value) in &reply.headers {
                canaries.assert_absent(name, value);
            }
        }
        // Error responses repeat unknown names and values to the client, but no log does.
        for call in [
            server
                .post("/verify", json!({"keys": text, text.as_str(): 1}))
                .bearer(&service),
            server
                .post("/verify", json!({"key": unknown, "scopes": [text]}))
                .bearer(&service),
            server
                .call("POST", "/introspect")
                .form(&format!("token={text}&{text}={text}"))
                .bearer(&service),
        ] {
            assert_eq!(call.await.status, 400);
        }
        let revoke = server
            .delete(&format!("/service-keys/{}", gateway.id))
            .bearer(&operator);
        assert_eq!(revoke.await.status, 204);
        let log = server.get("/audit-log").bearer(&token).await;
        assert_eq!(log.json().as_array().map(Vec::len), Some(3), "{log}");
        canaries.assert_absent("the audit log", &log.body);

        let finished = server.stop().await;
        assert!(finished.stderr.contains("TRACE"), "logging is at TRACE");
        canaries.assert_absent("the log", &finished.stderr);
        canaries.assert_absent("stdout", &finished.stdout);
        for file in database
            .directory()
            .iter()
            .flat_map(|directory| fs::read_dir(directory).expect("the directory"))
        {
            let bytes = fs::read(file.expect("an entry").path()).expect("a file");
            let mut stored = String::from_utf8_lossy(&bytes).into_owned();
            stored.retain(|character| character != '\0');
            canaries.assert_absent("the database", &stored);
        }
    }
}

/// Waits until the process has logged `words`.
async fn wait_for_log(process: &mut tokio::process::Child, stderr: &std::path::Path, words: &str) {
    timeout(Duration::from_secs(30), async {
        while !fs::read_to_string(stderr).expect("the log").contains(words) {
            assert!(
                process.try_wait().expect("the process status").is_none(),
                "the process exited"
            );
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("the process waits for the database");
}

#[actix_web::test]
async fn server_and_commands_wait_for_postgresql_to_start() {
    let Some(postgres) = Postgres::private("") else {
        return;
    };
    let database = postgres.database();
    let tollkey = Tollkey::on(&database);
    postgres.control("-m fast stop");
    let stderr = tollkey.directory().join("stderr");
    let start = |arguments: &[&str]| {
        let mut command = tollkey.command(arguments);
        command
            .stdout(Stdio::null())
            .stderr(fs::File::create(&stderr).expect("a file"));
        command.spawn().expect("the process starts")
    };
    let wait = "waiting for the database";

    let mut migrating = start(&["migrate"]);
    wait_for_log(&mut migrating, &stderr, wait).await;
    tokio::task::spawn_blocking(|| postgres.control("start"))
        .await
        .expect("PostgreSQL starts");
    assert!(
        migrating.wait().await.expect("the exit status").success(),
        "{}",
        fs::read_to_string(&stderr).expect("the log")
    );
    let log = fs::read_to_string(&stderr).expect("the log");
    assert!(
        log.contains("PostgreSQL database") && log.contains(".s.PGSQL.5432"),
        "{log}"
    );
    tollkey.serve().await.stop().await;

    // A signal ends the wait: the server exits with 0, a command with 128 plus the signal's number.
    tokio::task::spawn_blocking(|| postgres.control("-m fast stop"))
        .await
        .expect("PostgreSQL stops");
    for (arguments, signal, code) in [
        (&["serve"][..], "TERM", 0),
        (&["serve"], "INT", 0),
        (&["migrate"], "TERM", 143),
        (&["audit", "verify"], "INT", 130),
    ] {
        let mut process = start(arguments);
        wait_for_log(&mut process, &stderr, wait).await;
        let kill = format!(
            "kill -{signal} {}",
            process.id().expect("a running process")
        );
        assert!(
            Command::new("sh")
                .args(["-c", &kill])
                .status()
                .await
                .expect("a shell")
                .success()
        );
        let status = timeout(Duration::from_secs(30), process.wait())
            .await
            .expect("the signal ends the process");
        assert_eq!(
            status.expect("the exit status").code(),
            Some(code),
            "{arguments:?} {signal}"
        );
    }
    for arguments in [&["serve"][..], &["migrate"], &["account", "show", "acme"]] {
        let limited = tollkey.clone().with("TOLLKEY_DATABASE_WAIT_SECONDS", "1");
        limited
            .run(arguments)
            .await
            .assert_rejected(&["gave up after 1 seconds", "no socket"]);
        let finished = tollkey
            .clone()
            .with("TOLLKEY_DATABASE_WAIT_SECONDS", "0")
            .run(arguments)
            .await;
        finished.assert_rejected(&["cannot connect to the PostgreSQL database", "no socket"]);
        assert!(!finished.stderr.contains(wait), "{finished}");
    }
    tokio::task::spawn_blocking(|| postgres.control("start"))
        .await
        .expect("PostgreSQL starts");
}

#[actix_web::test]
async fn permanent_connection_errors_are_not_retried() {
    let Some(database) = postgres() else { return };
    let (base, query) = database.url().split_once('?').expect("a query");
    for (url, words) in [
        (
            format!("postgres:///nowhere?{query}"),
            "database \"nowhere\" does not exist",
        ),
        (
            format!("{base}?{}", query.replace("user=postgres", "user=nobody")),
            "role \"nobody\" does not exist",
        ),
        #[cfg(not(feature = "pg-tls"))]
        (format!("{base}?{query}&sslmode=require"), "pg-tls"),
    ] {
        let tollkey = Tollkey::on(&database).with("DATABASE_URL", &url);
        for arguments in [&["serve"][..], &["migrate"], &["audit", "verify"]] {
            let finished = tollkey.run(arguments).await;
            finished.assert_rejected(&[words]);
            assert!(!finished.stderr.contains("waiting"), "{finished}");
        }
    }
}

#[actix_web::test]
async fn address_in_use_is_reported_in_a_readable_message() {
    let tollkey = Tollkey::development();
    let server = tollkey.serve().await;
    let address = server.address.to_string();
    let finished = Tollkey::bare()
        .start(&["--listen", &address])
        .await
        .err()
        .expect("the server does not start");
    finished.assert_rejected(&["cannot listen on", &address]);
    assert_eq!(finished.stdout, "");
    assert_eq!(
        member(&server.get("/openapi.json").await, "openapi"),
        "3.1.0"
    );
}
