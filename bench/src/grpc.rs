//! `cargo xtask bench grpc`: Envoy's `ext_authz` over gRPC, compared to `ext_authz` over HTTP/1.1.
//!
//! One server with one worker serves both, with the same keys and 32 requests in flight: over HTTP on a connection each,
//! over gRPC on one connection. They are measured in turn, as in `bench http`.

use std::{
    cell::Cell,
    net::{SocketAddr, TcpListener},
    time::Instant,
};

use anyhow::{Context as _, bail, ensure};
use envoy_types::pb::envoy::{
    config::core::v3::{Address, HeaderMap, HeaderValue, SocketAddress, address},
    service::auth::v3::{
        AttributeContext, CheckRequest,
        attribute_context::{HttpRequest, Peer, Request},
        authorization_client::AuthorizationClient,
    },
};
use futures_util::future::try_join_all;
use tonic::transport::{Channel, Endpoint};

use super::{
    http::{self, ROUNDS, TIME},
    load::{CONNECTIONS, Requests, Round, Until, cpu_time},
    servers::{self, Measured, Processors, SCOPE, Tollkey},
};

/// The path of the request that Envoy authorizes.
const PATH: &str = "/api/links?limit=10";
/// The headers that Envoy sends over both protocols, except the credential.
const FORWARDED: [(&str, &str); 2] = [
    ("x-forwarded-for", "203.0.113.7"),
    ("x-request-id", "0b6ff0a1-4a2f-4a3e-9d2a-1d9f3c6f8a10"),
];

pub(crate) fn run() -> anyhow::Result<()> {
    let program = servers::build_with(&["grpc"])?;
    let processors = Processors::divide()?;
    let directory = tempfile::tempdir()?;
    eprintln!("starting the server and creating keys ...");
    // The port was free. If another process takes it in the meantime, the server logs that and exits.
    let grpc = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
    let setting = ("TOLLKEY_GRPC_LISTEN", grpc.to_string());
    let tollkey = Tollkey::start_with(&program, directory.path(), &processors, Some(setting))?;
    let server = &tollkey.server;
    let texts: Vec<String> = tollkey.keys.iter().map(|key| key.text.clone()).collect();
    let over_http = Requests::new(texts.clone(), ext_authz)?;
    let over_grpc = Checks::new(&texts);

    let measure_http = |until| server.measure(&over_http, 200, until);
    let measure_grpc = |until| server.measure_load(|| over_grpc.load(grpc, until));
    // Caches every key and warms up both paths.
    measure_http(Until::AllSent)?;
    measure_grpc(Until::AllSent)?;
    let mut measured: [Vec<Measured>; 2] = Default::default();
    for _ in 0..ROUNDS {
        measured[0].push(measure_http(Until::Elapsed(TIME))?);
        measured[1].push(measure_grpc(Until::Elapsed(TIME))?);
    }
    let names = ["ext-authz, HTTP".to_owned(), "ext-authz, gRPC".to_owned()];
    http::print(&names, &measured);
    Ok(())
}

/// A request as Envoy sends it with `examples/gateways/envoy/envoy.yaml`.
fn ext_authz(key: &str) -> String {
    let forwarded = FORWARDED.map(|(name, value)| format!("{name}: {value}\r\n"));
    format!(
        "GET /api/v1/authz/ext-authz/scope={SCOPE};mode=live{PATH} HTTP/1.1\r\nhost: api.example.com\r\n\
         content-length: 0\r\nauthorization: Bearer {key}\r\n{}\r\n",
        forwarded.concat()
    )
}

/// The same requests over gRPC.
struct Checks {
    requests: Vec<CheckRequest>,
    /// The index of the next request.
    next: Cell<usize>,
}

impl Checks {
    fn new(keys: &[String]) -> Self {
        Self {
            requests: keys.iter().map(|key| check(key)).collect(),
            next: Cell::new(0),
        }
    }

    fn next(&self) -> CheckRequest {
        let next = self.next.get();
        self.next.set((next + 1) % self.requests.len());
        self.requests[next].clone()
    }

    /// Sends the requests in turn. Every response must allow its request.
    fn load(&self, to: SocketAddr, until: Until) -> anyhow::Result<Round> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(async {
            let channel = Endpoint::new(format!("http://{to}"))?.connect().await?;
            let sent = Cell::new(0);
            let (started, busy_before) = (Instant::now(), cpu_time());
            let may_send = || {
                let has_next = match until {
                    Until::Elapsed(time) => started.elapsed() < time,
                    Until::AllSent => sent.get() < self.requests.len(),
                };
                sent.set(sent.get() + 1);
                has_next
            };
            let senders = (0..CONNECTIONS).map(|_| self.send(channel.clone(), &may_send));
            let latencies = try_join_all(senders).await?;
            let (took, busy) = (started.elapsed(), cpu_time().saturating_sub(busy_before));
            Ok(Round::new(latencies.concat(), took, busy))
        })
    }

    /// Sends one request at a time while `may_send` returns `true`. Returns the latencies in nanoseconds.
    async fn send(
        &self,
        channel: Channel,
        may_send: &impl Fn() -> bool,
    ) -> anyhow::Result<Vec<u32>> {
        let mut client = AuthorizationClient::new(channel);
        let mut latencies = Vec::new();
        while may_send() {
            let request = self.next();
            let sent = Instant::now();
            let response = client.check(request).await.context("no decision")?;
            latencies.push(u32::try_from(sent.elapsed().as_nanos()).unwrap_or(u32::MAX));
            let Some(status) = response.into_inner().status else {
                bail!("a decision without a status");
            };
            ensure!(status.code == 0, "a request was denied");
        }
        Ok(latencies)
    }
}

/// A request as Envoy sends it with `examples/gateways/envoy/envoy-grpc.yaml`.
fn check(key: &str) -> CheckRequest {
    let credential = format!("Bearer {key}");
    let headers = [
        (":authority", "api.example.com"),
        (":path", PATH),
        (":method", "GET"),
        (":scheme", "http"),
        ("user-agent", "curl/8.11.0"),
        ("accept", "*/*"),
        ("authorization", credential.as_str()),
        ("x-forwarded-proto", "http"),
    ];
    let headers = headers.into_iter().chain(FORWARDED);
    let headers = headers.map(|(key, value)| HeaderValue {
        key: key.to_owned(),
        raw_value: value.as_bytes().to_vec(),
        ..HeaderValue::default()
    });
    let http = HttpRequest {
        method: "GET".to_owned(),
        path: PATH.to_owned(),
        host: "api.example.com".to_owned(),
        scheme: "http".to_owned(),
        protocol: "HTTP/1.1".to_owned(),
        header_map: Some(HeaderMap {
            headers: headers.collect(),
        }),
        ..HttpRequest::default()
    };
    let address = address::Address::SocketAddress(SocketAddress {
        address: "203.0.113.7".to_owned(),
        ..SocketAddress::default()
    });
    let extensions = [("scope", SCOPE), ("mode", "live")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(Peer {
                address: Some(Address {
                    address: Some(address),
                }),
                ..Peer::default()
            }),
            request: Some(Request {
                http: Some(http),
                ..Request::default()
            }),
            context_extensions: extensions.into(),
            ..AttributeContext::default()
        }),
    }
}
