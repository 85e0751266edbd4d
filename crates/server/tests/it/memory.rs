//! The memory of a server, and of a resource server that subscribes to it, with thousands of the largest keys: both are
//! processes of their own, and stay within the bound on what they cache.

use std::{env, fs, process::Stdio, sync::Arc, time::Duration};

use serde_json::json;
use tokio::process::Command;
use tollkey_client::{Auth, Client};
use tollkey_core::{
    ApiKey, Catalogue, Digest, IpList, Need, OperatingModel, Record, VerifierId, metadata::Metadata,
};
use tollkey_middleware::source::HttpSource;
use tollkey_store::testing::Database;
use tollkey_verifier::{Settings, SystemClock, Verifier, testing};

use crate::{
    binary::{Tollkey, service},
    support::eventually,
};

/// As many keys as a tenant creates in five seconds. One takes 27 KB, and took 200 KB with its metadata parsed.
const KEYS: usize = 5000;
/// What the server and the guard may cache.
const CACHE_BYTES: usize = 16 * 1024 * 1024;
/// What else a process may need meanwhile: connections, buffers, what an allocator keeps, and with SQLite pages of the file.
const ELSE: usize = 24 * 1024 * 1024;

/// Names the server that the process of [`is_a_guard`] subscribes to.
const SERVER: &str = "TOLLKEY_TEST_GUARD_SERVER";
const SERVICE_KEY: &str = "TOLLKEY_TEST_GUARD_SERVICE_KEY";

fn text(n: usize) -> String {
    format!("ck_live_{n:032}")
}

/// A key with the largest metadata, as many and as long merchants as can be, and the longest IP allowlist.
fn largest_key(n: usize) -> (ApiKey, Digest) {
    let mut key = testing::record(&text(n)).key;
    key.account_id = testing::account(&format!("acme-{}", n % 5));
    key.metadata = Metadata::parse(&format!("{{\"a\":[0{}]}}", ",0".repeat(2039))).ok();
    key.grants.merchants = Some((0..100).map(|i| format!("{n:064}{i:064}")).collect());
    let networks: Vec<String> = (0..100)
        .map(|i| format!("10.{}.{i}.0/24", n % 200))
        .collect();
    key.grants.allowed_ips = IpList::parse(networks.iter().map(String::as_str)).ok();
    (key, Digest::of(&text(n)))
}

/// How many bytes of memory a process has.
fn resident(pid: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process");
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    kilobytes
        .and_then(|number| number.trim().parse::<usize>().ok())
        .expect("its memory")
        * 1024
}

#[actix_web::test]
async fn memory_stays_bounded_with_the_largest_keys() {
    let weight: usize = (0..KEYS).map(|n| record(n).heap_bytes()).sum();
    assert!(
        weight > 2 * (CACHE_BYTES + ELSE),
        "{weight} bytes have to be more than what is allowed"
    );
    let database = Database::sqlite();
    database
        .store()
        .fill(std::iter::empty(), (0..KEYS).map(largest_key), |_| ())
        .expect("the keys are written");
    let server = Tollkey::on(&database)
        .with("TOLLKEY_CACHE_BYTES", &CACHE_BYTES.to_string())
        .serve()
        .await;
    let pid = server.pid().to_string();
    let service_key = server.service_key().await.text;
    let verify = async |keys: &[usize]| {
        let requests: Vec<_> = keys.iter().map(|n| json!({"key": text(*n)})).collect();
        let reply = server
            .post("/verify/batch", json!({"requests": requests}))
            .bearer(&service())
            .await;
        assert_eq!(
            reply.body.matches("ip_not_allowed").count(),
            keys.len(),
            "{reply}"
        );
    };
    verify(&[0, 1, 2]).await;
    let before = resident(&pid);
    let bounded = |when: &str| {
        let after = resident(&pid);
        eprintln!(
            "server, {when}: {} kB before, {} kB after",
            before / 1024,
            after / 1024
        );
        assert!(
            after.saturating_sub(before) < CACHE_BYTES + ELSE,
            "{before} bytes before, {after} bytes after"
        );
    };

    // The guard looks each key up in the server, so that both cache it.
    let mut guard = Command::new(env::current_exe().expect("this test binary"));
    guard.args(["--exact", "memory::is_a_guard", "--ignored", "--nocapture"]);
    guard.env_clear().envs(Tollkey::bare().environment());
    guard
        .env(SERVER, format!("http://{}", server.address))
        .env(SERVICE_KEY, service_key);
    let output = guard
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("it ends");
    let printed = String::from_utf8_lossy(&output.stderr);
    eprintln!("{printed}");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    bounded("looked up by a guard");

    // More keys than fit, by the server's own verification.
    let keys: Vec<usize> = (0..1000).collect();
    for keys in keys.chunks(50) {
        verify(keys).await;
    }
    bounded("verified");
    server.stop().await;
}

fn record(n: usize) -> Record {
    Record::new(
        largest_key(n).0,
        None,
        OperatingModel::default(),
        &Catalogue::default(),
    )
    .compacted()
}

/// The process of a resource server that verifies all keys by its own cache.
#[test]
#[ignore = "another test starts it as a process of its own"]
fn is_a_guard() {
    let (Ok(server), Ok(service_key)) = (env::var(SERVER), env::var(SERVICE_KEY)) else {
        return;
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    runtime.block_on(async {
        let client = Client::new(server)
            .expect("a client")
            .with_auth(Auth::service(service_key));
        let source = HttpSource::new(&client, Arc::new(Catalogue::default()));
        let settings = Settings {
            max_bytes: CACHE_BYTES,
            ..Settings::default()
        };
        let id = VerifierId::from_bytes([7; 16]);
        let verifier = Verifier::subscriber(id, source, Arc::new(SystemClock), settings);
        let subscription = tokio::spawn(verifier.clone().subscribe(std::future::pending()));
        eventually("a lease", async || !verifier.stats().lease_left.is_zero()).await;
        let verify = async |n: usize| {
            let verdict = verifier
                .verify(&text(n), &Need::default())
                .await
                .expect("an answer");
            assert_eq!(verdict.outcome, Err(tollkey_core::Denial::IpNotAllowed));
        };
        for n in 0..3 {
            verify(n).await;
        }
        let before = resident("self");
        for n in 0..KEYS {
            verify(n).await;
        }
        let after = resident("self");
        let stats = verifier.stats();
        eprintln!(
            "guard: {} kB before, {} kB after, {} keys cached",
            before / 1024,
            after / 1024,
            stats.entries
        );
        assert!(
            after.saturating_sub(before) < CACHE_BYTES + ELSE,
            "{before} bytes before, {after} bytes after"
        );
        assert!(
            stats.bytes <= CACHE_BYTES && stats.entries > 300,
            "{stats:?}"
        );
        subscription.abort();
        tokio::time::timeout(Duration::from_secs(5), subscription)
            .await
            .expect("it ends")
            .expect_err("aborted");
    });
}
