//! Logs and metrics.
//!
//! Logs go to stderr; stdout is for the output of commands. A metric's name contains its unit. No label has a value
//! that a caller can choose, so the program itself limits the number of series.

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
use metrics_process::Collector;
use tollkey_core::Timestamp;
use tollkey_service::measures::{self, PROPAGATION_WAIT, VERIFICATIONS};
use tollkey_store::PoolStats;
use tollkey_verifier::Stats;
use tracing_subscriber::{
    EnvFilter, Layer as _, Registry, filter::ParseError, fmt, layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use crate::{
    config::{LogFormat, LogSettings},
    transport::Connections,
};

pub const HTTP_REQUESTS: &str = "tollkey_http_requests_total";
pub const HTTP_REQUEST_DURATION: &str = "tollkey_http_request_duration_seconds";
pub const VERIFICATION_HITS: &str = "tollkey_verification_hits_total";
pub const VERIFICATION_MISSES: &str = "tollkey_verification_misses_total";
pub const CACHED_KEYS: &str = "tollkey_cached_keys";
pub const CACHE_BYTES: &str = "tollkey_cache_bytes";
pub const EVICTIONS: &str = "tollkey_evictions_total";
pub const LEASE_LENGTH: &str = "tollkey_lease_length_seconds";
pub const LEASE_LEFT: &str = "tollkey_lease_left_seconds";
pub const CHANGE_SEQ: &str = "tollkey_change_seq";
pub const PROPAGATION_LAPSES: &str = "tollkey_propagation_lapsed_leases_total";
/// Changes that waited for propagation, by `for`: to another `replica`, or to a `subscriber` of this one.
pub const PROPAGATION_WAITS: &str = "tollkey_propagation_waits_total";
pub const SUBSCRIBERS: &str = "tollkey_subscribers";
pub const CACHE_RESETS: &str = "tollkey_cache_resets_total";
pub const CONNECTIONS: &str = "tollkey_connections";
pub const MAX_CONNECTIONS: &str = "tollkey_max_connections";
pub const CONNECTIONS_ACCEPTED: &str = "tollkey_connections_accepted_total";
/// Connections that the server closed or did not admit, by `reason`: one of `CLOSE_REASONS`.
pub const CONNECTIONS_CLOSED: &str = "tollkey_connections_closed_total";
pub const PENDING_RESPONSE_BYTES: &str = "tollkey_pending_response_bytes";
pub const POOL_SIZE: &str = "tollkey_database_pool_size";
pub const POOL_IN_USE: &str = "tollkey_database_pool_in_use";
pub const POOL_WAITING: &str = "tollkey_database_pool_waiting";
pub const POOL_REJECTED: &str = "tollkey_database_pool_rejected_total";
pub const READY: &str = "tollkey_ready";
pub const TIME: &str = "tollkey_time_seconds";
const PROCESS_START_TIME: &str = "process_start_time_seconds";
pub const BUILD_INFO: &str = "tollkey_build_info";

const CLOSE_REASONS: [&str; 4] = ["idle", "limit", "memory", "write_timeout"];

/// From well below the verification of a cached key to a change that waits for a lease.
const REQUEST_BUCKETS: [f64; 13] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];
/// From propagation within the process to a lease and its margin.
const PROPAGATION_BUCKETS: [f64; 10] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 3.0, 5.0];

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is invalid. The settings are validated by the same rule, so only other callers see this.
    #[error("cannot read the log filter")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    #[error("logging was already set up")]
    LogsTwice(#[from] tracing_subscriber::util::TryInitError),
    #[error("cannot collect metrics")]
    Metrics(#[from] BuildError),
}

/// Sends the logs of this process to stderr.
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

/// Modules of libraries that log malformed requests at `error`, which any client can cause as often as it likes. The
/// server itself logs the end of such a connection at `debug`.
const NOISY: [&str; 2] = ["actix_http::h1::dispatcher", "actix_http::h1::decoder"];

/// Parses a filter, and turns off the [`NOISY`] modules unless the filter names them.
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

#[derive(Clone)]
pub struct Metrics {
    exporter: PrometheusHandle,
    process: Collector,
    /// In Unix seconds. The collector has no start time if `/proc` has only processes, as in `deploy/debian`.
    started: f64,
}

impl Metrics {
    /// Fails on a second call.
    pub fn install() -> Result<Self, TelemetryError> {
        let metrics = Self::of(builder()?.install_recorder()?);
        metrics.begin();
        Ok(metrics)
    }

    fn of(exporter: PrometheusHandle) -> Self {
        Self {
            exporter,
            process: Collector::default(),
            started: Timestamp::now().as_duration().as_secs_f64(),
        }
    }

    /// Describes all metrics, and creates the series that are known. Prometheus does not see the first count of a
    /// series as an increase.
    fn begin(&self) {
        describe();
        self.process.describe();
        measures::register();
        for reason in CLOSE_REASONS {
            counter!(CONNECTIONS_CLOSED, "reason" => reason).increment(0);
        }
        gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    }

    /// Returns all metrics in the text format of Prometheus, those of the process as of now.
    #[must_use]
    pub fn render(&self) -> String {
        self.process.collect();
        gauge!(PROCESS_START_TIME).set(self.started);
        self.exporter.run_upkeep();
        self.exporter.render()
    }

    /// Aggregates recent measurements into buckets. Must be called every few seconds: until then each measured
    /// duration is stored separately, and memory would grow without limit if nothing scrapes the metrics.
    pub fn upkeep(&self) {
        self.exporter.run_upkeep();
    }
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    PrometheusBuilder::new()
        .set_buckets_for_metric(
            Matcher::Full(HTTP_REQUEST_DURATION.into()),
            &REQUEST_BUCKETS,
        )?
        .set_buckets_for_metric(Matcher::Full(PROPAGATION_WAIT.into()), &PROPAGATION_BUCKETS)
}

fn describe() {
    describe_counter!(
        HTTP_REQUESTS,
        Unit::Count,
        "HTTP requests, by method, route template and status."
    );
    describe_histogram!(
        HTTP_REQUEST_DURATION,
        Unit::Seconds,
        "Time to respond to HTTP requests, by method and route template."
    );
    describe_counter!(VERIFICATIONS, Unit::Count, "Verifications, by outcome.");
    describe_counter!(
        VERIFICATION_HITS,
        Unit::Count,
        "Verifications of cached keys."
    );
    describe_counter!(
        VERIFICATION_MISSES,
        Unit::Count,
        "Verifications of keys that were not cached."
    );
    describe_gauge!(CACHED_KEYS, Unit::Count, "Cached keys.");
    describe_gauge!(
        CACHE_BYTES,
        Unit::Bytes,
        "Estimated bytes of cached keys, their rate limits and the usage counts that are not stored yet."
    );
    describe_counter!(
        EVICTIONS,
        Unit::Count,
        "Keys evicted from the cache, for space or because they changed."
    );
    describe_gauge!(
        LEASE_LENGTH,
        Unit::Seconds,
        "Length of a lease. It is renewed every third of this time."
    );
    describe_gauge!(
        LEASE_LEFT,
        Unit::Seconds,
        "Time for which this replica can still verify keys from its cache."
    );
    describe_gauge!(
        CHANGE_SEQ,
        Unit::Count,
        "Last change that was applied to the cache of this replica."
    );
    describe_histogram!(
        PROPAGATION_WAIT,
        Unit::Seconds,
        "Time that changes waited for propagation to every replica and subscriber."
    );
    describe_counter!(
        PROPAGATION_LAPSES,
        Unit::Count,
        "Changes that waited until the lease of another replica or subscriber expired."
    );
    describe_counter!(
        PROPAGATION_WAITS,
        Unit::Count,
        "Changes that waited for propagation to another replica or to a subscriber."
    );
    describe_gauge!(
        SUBSCRIBERS,
        Unit::Count,
        "Subscribers that have a lease from this replica."
    );
    describe_counter!(
        CACHE_RESETS,
        Unit::Count,
        "How often the whole cache was cleared because changes were missed."
    );
    describe_gauge!(
        CONNECTIONS,
        Unit::Count,
        "Open connections to the main listener and the gRPC listener."
    );
    describe_gauge!(
        MAX_CONNECTIONS,
        Unit::Count,
        "Maximum number of open connections to the main listener and the gRPC listener."
    );
    describe_counter!(
        CONNECTIONS_ACCEPTED,
        Unit::Count,
        "Connections that were accepted, including those that were closed because of the limit."
    );
    describe_counter!(
        CONNECTIONS_CLOSED,
        Unit::Count,
        "Connections that the server closed or did not accept, by reason."
    );
    describe_gauge!(
        PENDING_RESPONSE_BYTES,
        Unit::Bytes,
        "Bytes of responses that clients have not read yet."
    );
    describe_gauge!(
        POOL_SIZE,
        Unit::Count,
        "Maximum number of database connections in use at the same time, by pool."
    );
    describe_gauge!(
        POOL_IN_USE,
        Unit::Count,
        "Database connections in use, by pool."
    );
    describe_gauge!(
        POOL_WAITING,
        Unit::Count,
        "Operations that wait for a database connection, by pool."
    );
    describe_counter!(
        POOL_REJECTED,
        Unit::Count,
        "Operations that failed because no database connection became free in time, or because too many were waiting, by pool."
    );
    describe_gauge!(
        READY,
        Unit::Count,
        "1 if the server is ready, as /readyz says; otherwise 0."
    );
    describe_gauge!(
        TIME,
        Unit::Seconds,
        "Wall-clock time of the server since the Unix epoch."
    );
    describe_gauge!(BUILD_INFO, Unit::Count, "Version of the server.");
}

/// Returns a method's name, or `other` for an unknown one, which could be any text.
#[must_use]
pub fn known_method(method: &str) -> &'static str {
    const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    METHODS
        .into_iter()
        .find(|known| *known == method)
        .unwrap_or("other")
}

/// Counts requests. Each worker has its own instance, which caches the series it has used, because looking up a series
/// by its labels takes longer than counting. The number of series is limited by routes, methods and statuses.
#[derive(Default)]
pub struct Requests(RefCell<HashMap<Box<str>, Vec<Series>>>);

struct Series {
    method: &'static str,
    status: u16,
    requests: Counter,
    duration: Histogram,
}

impl Requests {
    /// Counts a request. `route` is the matched template, never the path, because a client can choose that.
    pub fn record(&self, method: &str, route: Option<&str>, status: u16, took: Duration) {
        let (method, route) = (known_method(method), route.unwrap_or("unmatched"));
        let mut routes = self.0.borrow_mut();
        let known = match routes.get_mut(route) {
            Some(known) => known,
            None => routes.entry(route.into()).or_default(),
        };
        let index = known
            .iter()
            .position(|series| series.method == method && series.status == status);
        let index = index.unwrap_or_else(|| {
            known.push(Series::new(method, route, status));
            known.len() - 1
        });
        let Series {
            requests, duration, ..
        } = &known[index];
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

pub fn record_verifier(stats: &Stats) {
    counter!(VERIFICATION_HITS).absolute(stats.hits);
    counter!(VERIFICATION_MISSES).absolute(stats.misses);
    counter!(EVICTIONS).absolute(stats.evictions + stats.changed);
    counter!(PROPAGATION_LAPSES).absolute(stats.propagations_over_a_lease);
    counter!(PROPAGATION_WAITS, "for" => "replica").absolute(stats.propagations_for_verifiers);
    counter!(PROPAGATION_WAITS, "for" => "subscriber").absolute(stats.propagations_for_subscribers);
    counter!(CACHE_RESETS).absolute(stats.resets);
    gauge!(SUBSCRIBERS).set(stats.subscribers as f64);
    gauge!(CACHED_KEYS).set(stats.entries as f64);
    gauge!(CACHE_BYTES).set(stats.bytes as f64);
    gauge!(LEASE_LENGTH).set(stats.lease_length.as_secs_f64());
    gauge!(LEASE_LEFT).set(stats.lease_left.as_secs_f64());
    gauge!(CHANGE_SEQ).set(stats.seq.0 as f64);
}

pub fn record_connections(connections: &Connections) {
    gauge!(CONNECTIONS).set(connections.open() as f64);
    gauge!(MAX_CONNECTIONS).set(connections.limit() as f64);
    counter!(CONNECTIONS_ACCEPTED).absolute(connections.accepted());
    gauge!(PENDING_RESPONSE_BYTES).set(connections.pending_bytes() as f64);
}

/// Records the database connections. The store chooses the names of the pools.
pub fn record_pools(pools: &[PoolStats]) {
    for pool in pools {
        gauge!(POOL_SIZE, "pool" => pool.name).set(pool.size as f64);
        gauge!(POOL_IN_USE, "pool" => pool.name).set(pool.in_use as f64);
        gauge!(POOL_WAITING, "pool" => pool.name).set(pool.waiting as f64);
        counter!(POOL_REJECTED, "pool" => pool.name).absolute(pool.rejected);
    }
}

/// Records whether the server is ready, and its wall-clock time.
pub fn record_server(is_ready: bool, now: Timestamp) {
    gauge!(READY).set(f64::from(u8::from(is_ready)));
    gauge!(TIME).set(now.as_microsecond() as f64 / 1e6);
}

#[cfg(test)]
mod tests {
    use tollkey_service::measures::record_verifications;

    use super::*;

    /// Renders with a local recorder, because the global one can be installed only once.
    fn rendered(record: impl FnOnce()) -> String {
        let recorder = builder().unwrap().build_recorder();
        let metrics = Metrics::of(recorder.handle());
        metrics::with_local_recorder(&recorder, || {
            metrics.begin();
            record();
            metrics.render()
        })
    }

    #[test]
    fn requests_are_counted_by_template() {
        let route = "/api/v1/applications/{id}";
        let text = rendered(|| {
            let requests = Requests::default();
            for (status, milliseconds) in [(200, 3), (200, 30), (404, 3)] {
                let took = Duration::from_millis(milliseconds);
                requests.record("GET", Some(route), status, took);
            }
        });
        let labels = format!("method=\"GET\",route=\"{route}\"");
        for line in [
            format!("tollkey_http_requests_total{{{labels},status=\"200\"}} 2"),
            format!("duration_seconds_bucket{{{labels},le=\"0.005\"}} 2"),
            format!("duration_seconds_count{{{labels}}} 3"),
            "# HELP tollkey_http_requests_total HTTP requests".to_owned(),
        ] {
            assert!(text.contains(&line), "{line}: {text}");
        }
    }

    #[test]
    fn unknown_method_and_path_are_not_used_as_labels() {
        let text = rendered(|| Requests::default().record("BREW", None, 404, Duration::ZERO));
        let labels = r#"method="other",route="unmatched",status="404""#;
        assert!(text.contains(labels), "{text}");
        assert!(!text.contains("BREW"));
    }

    #[test]
    fn verifications_are_counted_by_outcome() {
        let text = rendered(|| {
            record_verifications("valid", 3);
            record_verifications("revoked", 1);
        });
        for (outcome, count) in [("valid", 3), ("revoked", 1)] {
            let line = format!("tollkey_verifications_total{{outcome=\"{outcome}\"}} {count}");
            assert!(text.contains(&line), "{line}: {text}");
        }
    }
}
