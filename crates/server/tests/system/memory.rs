//! The memory of a server and of a subscribed resource server with thousands of the largest keys:
//! both run as separate processes, and stay within the limit of their cache.

use std::{env, fs, process::Stdio, sync::Arc, time::Duration};

use serde_json::json;
use tokio::process::Command;
use tollkey_client::{Auth, Client};
use tollkey_core::{
    AccessRequest, ApiKey, Catalogue, Digest, IpList, KeyContext, OperatingModel, VerifierId,
    metadata::Metadata,
};
use tollkey_middleware::source::HttpSource;
use tollkey_store::testing::Database;
use tollkey_verifier::{Settings, SystemClock, Verifier, testing};

use crate::{
    binary::{Tollkey, service},
    support::eventually,
};

/// As many keys as a tenant creates in five seconds. One takes 27 KB, or 200 KB with parsed metadata.
const KEYS: usize = 5000;
/// The cache limit of the server and of the guard.
const CACHE_BYTES: usize = 16 * 1024 * 1024;
/// The limit of all other memory: connections, buffers, unused memory of the allocator, and SQLite pages.
const OTHER_BYTES: usize = 24 * 1024 * 1024;

/// The variable with the URL of the server that [`guard_process`] subscribes to.
const SERVER: &str = "TOLLKEY_TEST_GUARD_SERVER";
const SERVICE_KEY: &str = "TOLLKEY_TEST_GUARD_SERVICE_KEY";

fn text(n: usize) -> String {
    format!("ck_live_{n:032}")
}

/// A key with the largest metadata, the longest list of the longest merchants, and the longest IP allowlist.
fn largest_key(n: usize) -> (ApiKey, Digest) {
    let mut key = testing::record(&text(n)).key;
    key.account_id = testing::account(&format!("acme-{}", n % 5));
    key.metadata = Metadata::parse(&format!("{{\"a\":[0{}]}}", ",0".repeat(2039))).ok();
    key.restrictions.merchants = Some((0..100).map(|i| format!("{n:064}{i:064}")).collect());
    let networks: Vec<String> = (0..100)
        .map(|i| format!("10.{}.{i}.0/24", n % 200))
        .collect();
    key.restrictions.allowed_ips = IpList::parse(networks.iter().map(String::as_str)).ok();
    (key, Digest::of_key(&text(n)))
}

/// The resident memory of a process, in bytes.
fn resident(pid: &str) -> usize {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process");
    let kilobytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
    kilobytes
        .and_then(|number| number.trim().parse::<usize>().ok())
        .expect("the memory")
        * 1024
}

#[actix_web::test]
async fn memory_stays_bounded_with_the_largest_keys() {
    let weight: usize = (0..KEYS).map(|n| record(n).heap_bytes()).sum();
    assert!(
        weight > 2 * (CACHE_BYTES + OTHER_BYTES),
        "{weight} bytes of keys do not exceed the limits"
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
    let assert_bounded = |when: &str| {
        let after = resident(&pid);
        eprintln!(
            "server, {when}: {} kB before, {} kB after",
            before / 1024,
            after / 1024
        );
        assert!(
            after.saturating_sub(before) < CACHE_BYTES + OTHER_BYTES,
            "{before} bytes before, {after} bytes after"
        );
    };

    // The guard looks up each key, so that both the server and the guard cache it.
    let mut guard = Command::new(env::current_exe().expect("this test binary"));
    guard.args([
        "--exact",
        "memory::guard_process",
        "--ignored",
        "--nocapture",
    ]);
    guard.env_clear().envs(Tollkey::bare().environment());
    guard
        .env(SERVER, format!("http://{}", server.address))
        .env(SERVICE_KEY, service_key);
    let output = guard
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("the guard ends");
    let printed = String::from_utf8_lossy(&output.stderr);
    eprintln!("{printed}");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    assert_bounded("looked up by a guard");

    // More keys than fit into the cache, verified by the server itself.
    let keys: Vec<usize> = (0..1000).collect();
    for keys in keys.chunks(50) {
        verify(keys).await;
    }
    assert_bounded("verified");
    server.stop().await;
}

fn record(n: usize) -> KeyContext {
    KeyContext::new(
        largest_key(n).0,
        None,
        OperatingModel::default(),
        &Catalogue::default(),
    )
    .compacted()
}

/// The process of a resource server, which verifies all keys with its own cache.
#[test]
#[ignore = "another test starts it as a separate process"]
fn guard_process() {
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
                .verify(&text(n), &AccessRequest::default())
                .await
                .expect("a verdict");
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
            after.saturating_sub(before) < CACHE_BYTES + OTHER_BYTES,
            "{before} bytes before, {after} bytes after"
        );
        assert!(
            stats.bytes <= CACHE_BYTES && stats.entries > 300,
            "{stats:?}"
        );
        subscription.abort();
        tokio::time::timeout(Duration::from_secs(5), subscription)
            .await
            .expect("the subscription ends")
            .expect_err("aborted");
    });
}
