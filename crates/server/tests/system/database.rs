//! What the server requires of its database, and readiness when the database rejects changes.

use std::{
    fs,
    sync::mpsc,
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::time::sleep;
use tollkey_store::{
    Backend,
    testing::{Database, PgBouncer, Postgres, backends, hold},
};

use crate::binary::{LEASE, Server, Tollkey, merchant, service};

/// Time limit of each step, with a margin for a busy machine.
const STEP_TIMEOUT: Duration = Duration::from_secs(30);

async fn wait_for_readyz(server: &Server, status: u16) {
    let since = Instant::now();
    while server.get("/readyz").await.status != status {
        assert!(
            since.elapsed() < STEP_TIMEOUT,
            "readiness does not become {status}: {}",
            server.stderr()
        );
        sleep(Duration::from_millis(50)).await;
    }
}

async fn create_verify_revoke(server: &Server, name: &str) {
    let token = merchant("acme");
    let application = server.application(&token, name).await;
    let key = server.key(&token, &application).await;
    assert_eq!(server.code(&key.text).await, "valid");
    let path = format!("/applications/{application}/api-keys/{}", key.id);
    assert_eq!(server.delete(&path).bearer(&token).await.status, 204);
    assert_eq!(server.code(&key.text).await, "revoked");
}

#[actix_web::test]
async fn pooler_in_transaction_mode_is_rejected_by_every_command() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let database = postgres.database();
    let Some(pooler) = PgBouncer::before(&database, "pool_mode = transaction") else {
        return;
    };
    let pooled = Tollkey::on(&database).with("DATABASE_URL", pooler.url());
    for arguments in [&["migrate"][..], &["serve"], &["audit", "verify"]] {
        let finished = pooled.run(arguments).await;
        finished.assert_rejected(&[
            "connection pooler in transaction or statement mode",
            "pool_mode = session",
        ]);
    }
    let server = Tollkey::on(&database).serve().await;
    create_verify_revoke(&server, "Web Store").await;
    server.stop().await;
}

#[actix_web::test]
async fn server_works_with_a_pooler_in_session_mode() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let database = postgres.database();
    let Some(pooler) = PgBouncer::before(&database, "pool_mode = session\ndefault_pool_size = 40")
    else {
        return;
    };
    let tollkey = Tollkey::on(&database).with("DATABASE_URL", pooler.url());
    for name in ["Web Store", "Web Store 2"] {
        tollkey.output_of(&["migrate"]).await;
        let server = tollkey.serve().await;
        wait_for_readyz(&server, 200).await;
        create_verify_revoke(&server, name).await;
        server.stop().await;
    }
}

#[actix_web::test]
async fn database_in_another_encoding_is_rejected_at_start() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let database = postgres
        .database_with("ENCODING 'LATIN1' LOCALE 'C' LOCALE_PROVIDER libc TEMPLATE template0");
    for command in ["serve", "migrate"] {
        let finished = Tollkey::on(&database).run(&[command]).await;
        finished.assert_rejected(&[
            "LATIN1",
            "CREATE DATABASE tollkey ENCODING 'UTF8' TEMPLATE template0",
        ]);
    }
}

/// Returns the GRANT statements of `docs/deploying.md` for this role.
fn documented_grants(role: &str) -> String {
    let page = include_str!("../../../../docs/deploying.md");
    let lines: Vec<_> = page
        .lines()
        .filter(|line| line.starts_with("GRANT "))
        .collect();
    assert!(!lines.is_empty(), "docs/deploying.md, \"Database roles\"");
    lines.join("\n").replace("tollkey_server", role)
}

#[actix_web::test]
async fn documented_database_rights_are_sufficient() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let database = postgres.database();
    let owner = Tollkey::on(&database).without("TOLLKEY_MIGRATE");
    owner.output_of(&["migrate"]).await;
    database.sql("CREATE ROLE tollkey_server LOGIN; REVOKE ALL ON SCHEMA public FROM PUBLIC");
    database.sql(&documented_grants("tollkey_server"));
    let limited = owner.with("DATABASE_URL", &database.url_as("tollkey_server"));
    let server = limited.serve().await;
    wait_for_readyz(&server, 200).await;
    create_verify_revoke(&server, "Web Store").await;
    let gateway = server.service_key().await;
    assert_eq!(
        server
            .post("/verify", json!({"key": gateway.text}))
            .bearer(&gateway.text)
            .await
            .status,
        200
    );
    let model = server.put("/accounts/acme", json!({"operating_model": "platform"}));
    assert_eq!(model.bearer(&crate::binary::operator()).await.status, 200);
    let idempotent = server
        .post("/applications", json!({"name": "Kept"}))
        .header("idempotency-key", "k".repeat(16));
    assert_eq!(idempotent.bearer(&merchant("acme")).await.status, 201);
    server.signal("TERM").await;
    let finished = server.ended().await;
    assert!(
        finished.success() && !finished.stderr.contains("permission denied"),
        "{finished}"
    );

    // Missing rights are reported at start, and later by readiness and in the log.
    let server = limited.serve().await;
    wait_for_readyz(&server, 200).await;
    database.sql("REVOKE INSERT ON audit_log FROM tollkey_server");
    wait_for_readyz(&server, 503).await;
    let lacking = "the database role tollkey_server lacks INSERT on audit_log; the GRANT lines are in docs/deploying.md";
    assert!(server.stderr().contains(lacking), "{}", server.stderr());
    assert_eq!(server.stderr().matches(lacking).count(), 1, "logged once");
    assert!(
        !server
            .get("/readyz")
            .await
            .to_string()
            .contains("audit_log")
    );
    limited.run(&["serve"]).await.assert_rejected(&[lacking]);
    database.sql("GRANT INSERT ON audit_log TO tollkey_server");
    wait_for_readyz(&server, 200).await;
    server.stop().await;
}

#[actix_web::test]
async fn write_lock_of_another_process_ends_readiness() {
    for database in backends() {
        let server = Tollkey::on(&database).serve().await;
        wait_for_readyz(&server, 200).await;
        let (url, (held, is_held)) = (database.url().to_owned(), mpsc::channel());
        let (release, released) = mpsc::channel::<()>();
        let sql = match database.backend() {
            Backend::Sqlite => "UPDATE settings SET name = name",
            Backend::Postgres => "LOCK TABLE audit_log IN EXCLUSIVE MODE",
        };
        let holder = std::thread::spawn(move || {
            hold(&url, sql, || {
                held.send(()).unwrap();
                let _ = released.recv_timeout(STEP_TIMEOUT);
            });
        });
        is_held.recv().unwrap();
        wait_for_readyz(&server, 503).await;
        assert_eq!(server.get("/livez").await.status, 200);
        release.send(()).unwrap();
        holder.join().unwrap();
        wait_for_readyz(&server, 200).await;
        create_verify_revoke(&server, "Web Store").await;
        server.stop().await;
    }
}

#[actix_web::test]
async fn deleted_database_file_ends_readiness_and_fails_changes() {
    let database = Database::sqlite();
    let server = Tollkey::on(&database).serve().await;
    let token = merchant("acme");
    let application = server.application(&token, "Web Store").await;
    let key = server.key(&token, &application).await;
    assert_eq!(server.code(&key.text).await, "valid");
    assert_eq!(server.get("/readyz").await.status, 200);
    let verify = || {
        server
            .post("/verify", json!({"key": key.text}))
            .bearer(&service())
    };
    let create = || {
        server
            .post("/applications", json!({"name": "Lost"}))
            .bearer(&token)
    };

    let path = database.directory().unwrap().join("tollkey.db");
    let aside = path.with_file_name("aside.db");
    fs::rename(&path, &aside).unwrap();
    assert_eq!(server.get("/readyz").await.status, 503, "immediately");
    let reply = create().await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (503, "unavailable"),
        "{reply}"
    );
    // Another process may use another file at this path. So the lease is not renewed, and verification ends with it.
    let renamed_at = Instant::now();
    while verify().await.status == 200 {
        assert!(
            renamed_at.elapsed() < 2 * LEASE,
            "verification continues without a lease"
        );
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(verify().await.status, 503);
    assert!(!path.exists(), "no empty database is created");
    assert!(
        server.stderr().contains("was deleted"),
        "{}",
        server.stderr()
    );

    fs::rename(&aside, &path).unwrap();
    wait_for_readyz(&server, 200).await;
    assert_eq!(server.code(&key.text).await, "valid");
    assert_eq!(
        create().await.status,
        201,
        "the failed change was not written"
    );
    server.stop().await;
}

/// Without the index of the write-ahead log (`tollkey.db-shm`), the server would miss the changes of other
/// processes in the log, and delete the log when it stops.
#[actix_web::test]
async fn deleted_wal_index_loses_no_change() {
    let database = Database::sqlite();
    let tollkey = Tollkey::on(&database);
    let server = tollkey.serve().await;
    let token = merchant("acme");
    server.application(&token, "Web Store").await;
    fs::remove_file(database.directory().unwrap().join("tollkey.db-shm")).expect("the index");
    let create = || {
        server
            .post("/applications", json!({"name": "Lost"}))
            .bearer(&token)
    };
    assert_eq!(create().await.status, 503);
    wait_for_readyz(&server, 503).await;
    let key = tollkey
        .output_of(&["service-key", "create", "gateway"])
        .await;
    assert_eq!(
        create().await.status,
        503,
        "the server cannot see the change of the other process"
    );
    server.stop().await;

    let server = tollkey.serve().await;
    wait_for_readyz(&server, 200).await;
    let reply = server
        .post("/verify", json!({"key": key.trim()}))
        .bearer(key.trim())
        .await;
    assert_eq!(reply.status, 200, "{reply}");
    server.application(&token, "Lost").await; // the failed changes were not written, so the name is free
    server.stop().await;
}

/// Simulates a full disk with a limit on file sizes, which makes every write beyond it fail.
#[cfg(target_os = "linux")]
#[actix_web::test]
async fn full_disk_ends_readiness_until_space_is_free() {
    use rustix::process::{Resource, Rlimit, getrlimit, prlimit};

    const LIMIT: u64 = 64 * 1024;
    let database = Database::sqlite();
    let server = Tollkey::on(&database).serve_after("trap '' XFSZ").await;
    let token = merchant("acme");
    let log = database.directory().unwrap().join("tollkey.db-wal");
    for number in 0.. {
        server
            .application(&token, &format!("Application {number}"))
            .await;
        if fs::metadata(&log).is_ok_and(|log| log.len() > LIMIT) {
            break;
        }
    }
    assert_eq!(server.get("/readyz").await.status, 200);
    let (pid, maximum) = (server.pid().rustix(), getrlimit(Resource::Fsize).maximum);
    let limit = |current| {
        prlimit(Some(pid), Resource::Fsize, Rlimit { current, maximum }).expect("a limit")
    };
    let create = |name: &'static str| {
        server
            .post("/applications", json!({"name": name}))
            .bearer(&token)
    };

    // A failed large change leaves allocated space at the end of the log. One page or a lease renewal fits
    // into it, so their success does not prove that another large change fits.
    limit(Some(fs::metadata(&log).expect("a log").len()));
    let mut number = 0;
    while server.get("/readyz").await.status == 200 {
        number += 1;
        let reply = server
            .post("/applications", json!({"name": format!("Last {number}")}))
            .bearer(&token)
            .await;
        assert_eq!(
            reply.status, 201,
            "a change fails while the server is ready: {reply}"
        );
        sleep(Duration::from_millis(1_050)).await; // the result of a readiness check is reused for a second
    }
    assert!(number < 100, "the server stays ready");

    limit(Some(LIMIT));
    wait_for_readyz(&server, 503).await;
    let reply = create("Lost").await;
    assert_eq!(
        (reply.status, reply.code().as_str()),
        (503, "unavailable"),
        "{reply}"
    );
    assert_eq!(
        server.get("/applications").bearer(&token).await.status,
        200,
        "reads still succeed"
    );
    assert_eq!(server.get("/livez").await.status, 200);

    limit(maximum);
    wait_for_readyz(&server, 200).await;
    assert_eq!(
        create("Lost").await.status,
        201,
        "the failed change was not written"
    );
    create_verify_revoke(&server, "Web Store").await;
    server.stop().await;
}
