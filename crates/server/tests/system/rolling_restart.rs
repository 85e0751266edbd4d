//! Three replicas on PostgreSQL, restarted one after the other under load behind the shipped nginx configuration.

use std::{
    env, fs,
    net::SocketAddr,
    path::Path,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use futures_util::future::join_all;
use serde_json::json;
use tollkey_store::testing::Postgres;

use crate::{
    binary::{Connection, Tollkey, merchant, service},
    gateway_examples::{Gateway, RunningGateway, free},
    support::eventually,
};

/// The addresses of the replicas in the shipped configuration.
const REPLICAS: [&str; 3] = ["127.0.0.1:8080", "127.0.0.1:8082", "127.0.0.1:8083"];
/// The addresses in this test; nothing else uses ports of these loopback addresses.
const REPLICA_HOST: &str = "127.0.0.3";
const NGINX_HOST: &str = "127.0.0.2";
const CLIENTS: usize = 12;

/// Starts nginx with the shipped configuration.
async fn nginx(program: &Path, replicas: &[SocketAddr; 3]) -> RunningGateway {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../examples/gateways/nginx-replicas/nginx.conf");
    let mut shipped = fs::read_to_string(&path).expect("the configuration");
    let address = free(NGINX_HOST);
    let listen = ("listen 80;".to_owned(), format!("listen {address};"));
    let servers = REPLICAS
        .iter()
        .zip(replicas)
        .map(|(from, to)| (format!("server {from} "), format!("server {to} ")));
    for (from, to) in servers.chain([listen]) {
        assert!(
            shipped.contains(&from),
            "the configuration no longer has {from:?}"
        );
        shipped = shipped.replace(&from, &to);
    }
    let directory = tempfile::tempdir().expect("a temporary directory");
    let write =
        |name: &str, text: &str| fs::write(directory.path().join(name), text).expect("a file");
    write("replicas.conf", &shipped);
    write(
        "nginx.conf",
        "daemon off;\nmaster_process off;\npid nginx.pid;\nerror_log stderr warn;\nevents {}\nhttp {\naccess_log off;\n\
         client_body_temp_path body;\nproxy_temp_path proxy;\nfastcgi_temp_path fastcgi;\nuwsgi_temp_path uwsgi;\n\
         scgi_temp_path scgi;\nkeepalive_requests 1000000;\ninclude replicas.conf;\n}\n",
    );
    let path = |name: &str| {
        directory
            .path()
            .join(name)
            .to_str()
            .expect("a UTF-8 path")
            .to_owned()
    };
    let arguments = ["-e", "stderr", "-p", &path(""), "-c", &path("nginx.conf")].map(str::to_owned);
    RunningGateway::launch(Gateway::Nginx, program, address, directory, &arguments).await
}

#[actix_web::test]
async fn rolling_restart_behind_nginx_fails_no_request() {
    let Some(postgres) = Postgres::shared() else {
        return;
    };
    let Some(program) = Gateway::Nginx.program() else {
        let required = env::var("TOLLKEY_TEST_REQUIRE_GATEWAYS").is_ok_and(|value| value == "1");
        assert!(
            !required,
            "no nginx found, but TOLLKEY_TEST_REQUIRE_GATEWAYS=1"
        );
        eprintln!("\n*** nginx is not installed: the rolling restart is NOT tested ***\n");
        return;
    };
    let database = postgres.database();
    let tollkeys = [(); 3].map(|()| {
        Tollkey::on(&database)
            .with("TOLLKEY_LISTEN", &free(REPLICA_HOST).to_string())
            .with("TOLLKEY_DRAIN_SECONDS", "1")
            .with("TOLLKEY_WORKERS", "1")
    });
    let mut replicas = Vec::new();
    for tollkey in &tollkeys {
        replicas.push(tollkey.serve().await);
    }
    let addresses = [&replicas[0], &replicas[1], &replicas[2]].map(|replica| replica.address);
    let nginx = nginx(&program, &addresses).await;
    let (token, service) = (merchant("acme"), service());
    let application = replicas[0].application(&token, "Web Store").await;
    let key = replicas[0].key(&token, &application).await.text;

    let (is_over, sent) = (AtomicBool::new(false), AtomicUsize::new(0));
    let verify = json!({"key": key}).to_string();
    let client = async |number: usize| {
        let mut failed = Vec::new();
        let mut connection = Connection::open(nginx.address)
            .await
            .expect("nginx listens");
        for turn in 0_usize.. {
            if is_over.load(Ordering::Relaxed) {
                break;
            }
            let kind = turn % 8;
            let name = json!({"name": format!("{number}-{turn}")}).to_string();
            let (method, path, credential, body, expected) = match kind {
                0 => ("POST", "/api/v1/applications", &token, name.as_str(), 201),
                1 => ("GET", "/api/v1/applications?limit=1", &token, "", 200),
                2 | 3 => ("GET", "/api/v1/authz/forward-auth", &key, "", 200),
                _ => ("POST", "/api/v1/verify", &service, verify.as_str(), 200),
            };
            let response = match connection.send(method, path, credential, body).await {
                Ok(()) => connection.answer().await,
                Err(_) => None,
            };
            sent.fetch_add(1, Ordering::Relaxed);
            if response
                .as_ref()
                .is_none_or(|(status, _)| *status != expected)
            {
                failed.push(format!("{method} {path}: {response:?}"));
                connection = Connection::open(nginx.address)
                    .await
                    .expect("nginx listens");
            }
        }
        failed
    };
    let mut restarted = Vec::new();
    let restarts = async {
        for (tollkey, replica) in tollkeys.iter().zip(replicas) {
            let before = sent.load(Ordering::Relaxed);
            eventually("50 more requests are sent", async || {
                sent.load(Ordering::Relaxed) > before + 50
            })
            .await;
            replica.stop().await;
            let replica = tollkey.serve().await;
            eventually("the new replica is ready", async || {
                replica.get("/readyz").await.status == 200
            })
            .await;
            restarted.push(replica);
        }
        is_over.store(true, Ordering::Relaxed);
    };
    let (failed, ()) = tokio::join!(join_all((0..CLIENTS).map(client)), restarts);
    let failed: Vec<String> = failed.into_iter().flatten().collect();
    let sent = sent.load(Ordering::Relaxed);
    assert!(
        failed.is_empty(),
        "{} of {sent} requests failed, first {:?}: {}",
        failed.len(),
        &failed[..failed.len().min(5)],
        nginx.log()
    );
    eprintln!("{sent} requests, none failed");
}
