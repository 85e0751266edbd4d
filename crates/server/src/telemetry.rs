//! Logs and metrics.
//!
//! Logs go to stderr; stdout belongs to what a person or a script waits for. A metric's name carries its unit, and
//! no label is taken from what a caller sends: the number of series is bounded by the program itself.

use std::{
    cell::RefCell,
    collections::HashMap,
    io::{self, IsTerminal as _},
    time::Duration,
};

use metrics::{
    Counter, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use tollkey_service::measures::{SETTLE_WAIT, VERIFICATIONS};
use tollkey_verifier::Stats;
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, filter::ParseError, fmt, layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::config::{LogFormat, LogSettings};

/// Requests answered, by `method`, `route` (the template, or `unmatched`) and `status`.
pub const HTTP_REQUESTS: &str = "tollkey_http_requests_total";
/// How long answers took, by `method` and `route`.
pub const HTTP_REQUEST_DURATION: &str = "tollkey_http_request_duration_seconds";
/// Verifications answered from memory.
pub const VERIFICATION_HITS: &str = "tollkey_verification_hits_total";
/// Verifications that had to ask the store.
pub const VERIFICATION_MISSES: &str = "tollkey_verification_misses_total";
/// Cached keys.
pub const CACHED_KEYS: &str = "tollkey_cached_keys";
/// Bytes that cached keys, their rate limits and the usage counts that are not written yet take, as estimated.
pub const CACHE_BYTES: &str = "tollkey_cache_bytes";
/// Keys forgotten to make room, or because they changed.
pub const EVICTIONS: &str = "tollkey_evictions_total";
/// How much longer this replica may answer from memory.
pub const LEASE_LEFT: &str = "tollkey_lease_left_seconds";
/// The change up to which this replica has forgotten what it remembered.
pub const CHANGE_SEQ: &str = "tollkey_change_seq";
/// Changes that had to wait for another verifier's lease to end.
pub const SETTLE_LAPSES: &str = "tollkey_settle_lapsed_leases_total";
/// Changes that had to wait for somebody, by `for`: `replica`, or `subscriber` of this one.
pub const SETTLES_WAITED: &str = "tollkey_settles_waited_total";
/// Resource servers that hold a lease from this replica.
pub const SUBSCRIBERS: &str = "tollkey_subscribers";
/// How often everything remembered was forgotten, because the log of changes did not go on.
pub const FORGOTTEN: &str = "tollkey_forgotten_total";
/// Open connections to the listener.
pub const CONNECTIONS: &str = "tollkey_connections";
/// Connections that the server closed or did not admit, by `reason`: `idle`, `limit`, `memory` or `write_timeout`.
pub const CONNECTIONS_CLOSED: &str = "tollkey_connections_closed_total";
/// Bytes of responses that wait for their clients.
pub const PENDING_RESPONSE_BYTES: &str = "tollkey_pending_response_bytes";
/// Which version runs; always 1.
pub const BUILD_INFO: &str = "tollkey_build_info";

/// Answers: from well below a verification in memory to a change that waits for a lease.
const REQUEST_BUCKETS: [f64; 13] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];
/// Waits: from the same process to a lease and its margin.
const SETTLE_BUCKETS: [f64; 10] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 3.0, 5.0];

/// Logging cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter cannot be read. Settings have been through the same test, so this is for other callers.
    #[error("cannot read the log filter")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// There is a subscriber already.
    #[error("logging has begun already")]
    LogsTwice(#[from] tracing_subscriber::util::TryInitError),
    /// There is a recorder already, or it cannot be built.
    #[error("cannot collect metrics")]
    Metrics(#[from] BuildError),
}

/// Sends the logs of this process to stderr.
///
/// # Errors
/// [`TelemetryError`] when the filter is no filter, or when called twice.
pub fn init_logs(settings: &LogSettings) -> Result<(), TelemetryError> {
    let filter = filter(&settings.filter)?;
    let lines = fmt::layer().with_writer(io::stderr);
    let layer = match settings.format {
        LogFormat::Pretty => lines.with_ansi(io::stderr().is_terminal()).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    Registry::default().with(layer).with(filter).try_init()?;
    Ok(())
}

/// Modules of libraries that log at `error` what any client can cause, as often as it likes: malformed requests. The server
/// logs the end of such a connection at `debug` itself.
const NOISY: [&str; 2] = ["actix_http::h1::dispatcher", "actix_http::h1::decoder"];

/// Reads a filter, and turns off what clients can cause in libraries unless the filter has a directive of its own for that.
fn filter(directives: &str) -> Result<EnvFilter, ParseError> {
    let is_named = |target: &str| {
        directives.split(',').any(|directive| {
            let name = directive
                .trim()
                .split(['=', '['])
                .next()
                .unwrap_or_default();
            name.starts_with("actix_http") && target.starts_with(name)
        })
    };
    let mut filter = EnvFilter::try_new(directives)?;
    for target in NOISY.into_iter().filter(|target| !is_named(target)) {
        filter = filter.add_directive(format!("{target}=off").parse()?);
    }
    Ok(filter)
}

/// The metrics of this process, as Prometheus reads them.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Makes this process collect metrics.
    ///
    /// # Errors
    /// [`TelemetryError::Metrics`] when it does so already.
    pub fn install() -> Result<Self, TelemetryError> {
        let handle = builder()?.install_recorder()?;
        describe();
        gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        Ok(Self(handle))
    }

    /// All metrics in Prometheus' text format.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.run_upkeep();
        self.0.render()
    }

    /// Folds what was measured since the last time into its buckets. To be called every few seconds: until then each
    /// measured duration is kept by itself, and without anybody asking for metrics that would have no end.
    pub fn upkeep(&self) {
        self.0.run_upkeep();
    }
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(
            Matcher::Full(HTTP_REQUEST_DURATION.into()),
            &REQUEST_BUCKETS,
        )?
        .set_buckets_for_metric(Matcher::Full(SETTLE_WAIT.into()), &SETTLE_BUCKETS)
}

/// The help lines.
fn describe() {
    describe_counter!(
        HTTP_REQUESTS,
        Unit::Count,
        "Requests answered, by method, route template and status."
    );
    describe_histogram!(
        HTTP_REQUEST_DURATION,
        Unit::Seconds,
        "How long answers took, by method and route template."
    );
    describe_counter!(VERIFICATIONS, Unit::Count, "Verifications, by outcome.");
    describe_counter!(
        VERIFICATION_HITS,
        Unit::Count,
        "Verifications answered from memory."
    );
    describe_counter!(
        VERIFICATION_MISSES,
        Unit::Count,
        "Verifications that asked the database."
    );
    describe_gauge!(CACHED_KEYS, Unit::Count, "Cached keys.");
    describe_gauge!(
        CACHE_BYTES,
        Unit::Bytes,
        "Bytes of cached keys and of usage counts not written yet, as estimated."
    );
    describe_counter!(
        EVICTIONS,
        Unit::Count,
        "Keys forgotten, to make room or because they changed."
    );
    describe_gauge!(
        LEASE_LEFT,
        Unit::Seconds,
        "How much longer this replica may answer from memory."
    );
    describe_gauge!(
        CHANGE_SEQ,
        Unit::Count,
        "The change up to which this replica is up to date."
    );
    describe_histogram!(
        SETTLE_WAIT,
        Unit::Seconds,
        "How long changes waited until they held on every verifier."
    );
    describe_counter!(
        SETTLE_LAPSES,
        Unit::Count,
        "Changes that waited for another verifier's lease to end."
    );
    describe_counter!(
        SETTLES_WAITED,
        Unit::Count,
        "Changes that waited for another replica or for a subscriber."
    );
    describe_gauge!(
        SUBSCRIBERS,
        Unit::Count,
        "Resource servers that hold a lease from this replica."
    );
    describe_counter!(
        FORGOTTEN,
        Unit::Count,
        "How often everything remembered was forgotten at once."
    );
    describe_gauge!(
        CONNECTIONS,
        Unit::Count,
        "Open connections to the listener."
    );
    describe_counter!(
        CONNECTIONS_CLOSED,
        Unit::Count,
        "Connections that the server closed or did not admit, by reason."
    );
    describe_gauge!(
        PENDING_RESPONSE_BYTES,
        Unit::Bytes,
        "Bytes of responses that wait for their clients."
    );
    describe_gauge!(BUILD_INFO, Unit::Count, "The version that runs.");
}

/// A method's name, or `other` for one that somebody made up: that could be anything.
#[must_use]
pub fn known_method(method: &str) -> &'static str {
    const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    METHODS
        .into_iter()
        .find(|known| *known == method)
        .unwrap_or("other")
}

/// Counts answered requests. Each worker has one of its own, which keeps the series it has met: to find a series by its
/// labels takes longer than to count in it. There are no more of them than routes, methods and statuses allow.
#[derive(Default)]
pub struct Requests(RefCell<HashMap<Box<str>, Vec<Series>>>);

/// The series of one route, method and status.
struct Series {
    method: &'static str,
    status: u16,
    requests: Counter,
    duration: Histogram,
}

impl Requests {
    /// Counts an answered request. `route` is the template it matched, `None` when it matched none: a path that
    /// somebody made up is no label.
    pub fn record(&self, method: &str, route: Option<&str>, status: u16, took: Duration) {
        let (method, route) = (known_method(method), route.unwrap_or("unmatched"));
        let mut routes = self.0.borrow_mut();
        if !routes.contains_key(route) {
            routes.insert(route.into(), Vec::new());
        }
        let Some(known) = routes.get_mut(route) else {
            return;
        };
        let place = known
            .iter()
            .position(|series| series.method == method && series.status == status);
        let place = place.unwrap_or_else(|| {
            known.push(Series::new(method, route, status));
            known.len() - 1
        });
        let Series {
            requests, duration, ..
        } = &known[place];
        requests.increment(1);
        duration.record(took);
    }
}

impl Series {
    fn new(method: &'static str, route: &str, status: u16) -> Self {
        let (route, code) = (route.to_owned(), status.to_string());
        Self {
            method,
            status,
            requests: counter!(HTTP_REQUESTS, "method" => method, "route" => route.clone(), "status" => code),
            duration: histogram!(HTTP_REQUEST_DURATION, "method" => method, "route" => route),
        }
    }
}

/// Takes over what the verifier says about itself.
pub fn record_verifier(stats: &Stats) {
    counter!(VERIFICATION_HITS).absolute(stats.hits);
    counter!(VERIFICATION_MISSES).absolute(stats.misses);
    counter!(EVICTIONS).absolute(stats.evictions + stats.changed);
    counter!(SETTLE_LAPSES).absolute(stats.propagations_over_a_lease);
    counter!(SETTLES_WAITED, "for" => "replica").absolute(stats.propagations_for_verifiers);
    counter!(SETTLES_WAITED, "for" => "subscriber").absolute(stats.propagations_for_subscribers);
    counter!(FORGOTTEN).absolute(stats.resets);
    gauge!(SUBSCRIBERS).set(stats.subscribers as f64);
    gauge!(CACHED_KEYS).set(stats.entries as f64);
    gauge!(CACHE_BYTES).set(stats.bytes as f64);
    gauge!(LEASE_LEFT).set(stats.lease_left.as_secs_f64());
    gauge!(CHANGE_SEQ).set(stats.seq.0 as f64);
}

/// Records how many connections to the listener are open, and how many bytes of responses wait for clients.
pub fn record_connections(open: usize, pending_bytes: usize) {
    gauge!(CONNECTIONS).set(open as f64);
    gauge!(PENDING_RESPONSE_BYTES).set(pending_bytes as f64);
}

#[cfg(test)]
mod tests {
    use tollkey_service::measures::record_verifications;

    use super::*;

    /// The recorder is global and can be installed once, so the tests use one of their own.
    fn rendered(record: impl FnOnce()) -> String {
        let recorder = builder().unwrap().build_recorder();
        let metrics = Metrics(recorder.handle());
        metrics::with_local_recorder(&recorder, || {
            describe();
            record();
        });
        metrics.render()
    }

    #[test]
    fn requests_are_counted_by_template() {
        let text = rendered(|| {
            let requests = Requests::default();
            requests.record(
                "GET",
                Some("/api/v1/applications/{id}"),
                200,
                Duration::from_millis(3),
            );
            requests.record(
                "GET",
                Some("/api/v1/applications/{id}"),
                200,
                Duration::from_millis(30),
            );
            requests.record(
                "GET",
                Some("/api/v1/applications/{id}"),
                404,
                Duration::from_millis(3),
            );
        });
        let labels = r#"method="GET",route="/api/v1/applications/{id}""#;
        assert!(
            text.contains(&format!(
                "tollkey_http_requests_total{{{labels},status=\"200\"}} 2"
            )),
            "{text}"
        );
        assert!(
            text.contains(&format!(
                "duration_seconds_bucket{{{labels},le=\"0.005\"}} 2"
            )),
            "{text}"
        );
        assert!(
            text.contains(&format!("duration_seconds_count{{{labels}}} 3")),
            "{text}"
        );
        assert!(
            text.contains("# HELP tollkey_http_requests_total Requests answered"),
            "{text}"
        );
    }

    #[test]
    fn what_a_caller_makes_up_is_no_label() {
        let text = rendered(|| Requests::default().record("BREW", None, 404, Duration::ZERO));
        assert!(
            text.contains(r#"method="other",route="unmatched",status="404""#),
            "{text}"
        );
        assert!(!text.contains("BREW"));
    }

    #[test]
    fn verifications_are_counted_by_outcome() {
        let text = rendered(|| {
            record_verifications("valid", 3);
            record_verifications("revoked", 1);
        });
        assert!(
            text.contains("tollkey_verifications_total{outcome=\"valid\"} 3"),
            "{text}"
        );
        assert!(
            text.contains("tollkey_verifications_total{outcome=\"revoked\"} 1"),
            "{text}"
        );
    }
}
