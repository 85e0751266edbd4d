//! The metrics that the alerts, the dashboard and the documentation name are those of the server.

use std::{
    collections::BTreeSet,
    fs,
    net::{SocketAddr, TcpListener},
    path::Path,
};

use serde_json::json;
use tollkey_store::testing::{Database, backends};

use crate::{
    binary::{Tollkey, merchant},
    support::Call,
};

/// The labels whose values the alerts and the dashboard select.
const LABELS: [&str; 4] = ["outcome", "pool", "reason", "route"];

fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The rules and the dashboard, whose expressions are JSON strings.
fn rules_and_dashboard() -> String {
    let dashboard = read("deploy/monitoring/grafana-dashboard.json").replace("\\\"", "\"");
    read("deploy/monitoring/tollkey.rules.yml") + dashboard.as_str()
}

/// Returns the metrics that a text names. A name with a colon is that of a recording rule.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != ':')
        .filter(|word| word.starts_with("tollkey_") || word.starts_with("process_"))
        .filter(|word| !word.contains(':'))
        .collect()
}

/// Returns the values of a label that the text selects: `b` and `c` in `a{label!~"b|c"}`.
fn selected<'t>(text: &'t str, label: &str) -> BTreeSet<&'t str> {
    ["=\"", "=~\"", "!=\"", "!~\""]
        .iter()
        .flat_map(|operator| {
            text.split(&format!("{label}{operator}"))
                .skip(1)
                .collect::<Vec<_>>()
        })
        .filter_map(|rest| rest.split('"').next())
        .flat_map(|values| values.split('|'))
        .collect()
}

/// Starts a server, sends requests to all routes that the files name, and returns its metrics.
async fn metrics_of(database: &Database) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let metrics: SocketAddr = listener.local_addr().expect("the address");
    drop(listener);
    let server = Tollkey::on(database)
        .with("TOLLKEY_METRICS_LISTEN", &metrics.to_string())
        .serve()
        .await;
    let listed = server.get("/applications").bearer(&merchant("acme")).await;
    assert_eq!(listed.status, 200, "{listed}");
    let poll = server.post("/sync", json!({})).await;
    assert_eq!(poll.status, 401, "{poll}");
    for path in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(Call::new(metrics, "GET", path).await.status, 200, "{path}");
    }
    let reply = Call::new(metrics, "GET", "/metrics").await;
    assert_eq!(reply.status, 200, "{reply}");
    server.stop().await;
    reply.body
}

#[actix_web::test]
async fn metrics_of_alerts_and_dashboard_exist() {
    let files = rules_and_dashboard();
    for database in backends() {
        let text = metrics_of(&database).await;
        let samples: BTreeSet<_> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split(['{', ' ']).next())
            .collect();
        let named = metrics_in(&files);
        assert!(named.len() > 30, "{named:?}");
        let unknown: Vec<_> = named.difference(&samples).collect();
        assert!(unknown.is_empty(), "{unknown:?} not in:\n{text}");
        for label in LABELS {
            for value in selected(&files, label) {
                let series = format!("{label}=\"{value}\"");
                assert!(text.contains(&series), "no {series} in:\n{text}");
            }
        }
    }
}

#[actix_web::test]
async fn metrics_are_documented() {
    let page = read("docs/operating.md");
    let section = page
        .split_once("## Metrics\n")
        .and_then(|(_, rest)| rest.split_once("\n## "))
        .expect("a section")
        .0;
    let documented = metrics_in(section);
    for database in backends() {
        let text = metrics_of(&database).await;
        let exported: BTreeSet<_> = text
            .lines()
            .filter_map(|line| line.strip_prefix("# TYPE "))
            .filter_map(|line| line.split(' ').next())
            .collect();
        assert_eq!(documented, exported);
    }
}
