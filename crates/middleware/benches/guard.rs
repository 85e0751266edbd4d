//! Measures a request with a cached key in each framework, compared with the verifier alone (the baseline),
//! with the same app without a layer, and with a layer that does nothing.
//!
//! Run it with `cargo bench -p tollkey-middleware --bench guard`. The goal is that the layer costs at most
//! twice the baseline. The last lines print the ratio from interleaved runs, because criterion runs one
//! benchmark after another, and the speed of a shared machine varies by a factor of two.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use actix_web::{App, test, web};
use axum::{Router, body::Body, http::Request, routing::get};
use criterion::Criterion;
use tollkey_core::{AccessRequest, Catalogue, Family, Mode, RequestPath, RouteBase, Scope};
use tollkey_middleware::{
    Guard, Headers, RejectionForm, RequestHead, Requirement, testing::TestKeys,
};
use tower_service::Service as _;

const PATH: &str = "/api/v1/links";

struct Presenting(String);

impl Headers for Presenting {
    fn for_each<'a>(&'a self, show: &mut dyn FnMut(&'a str, &'a [u8])) {
        show("authorization", self.0.as_bytes());
    }
}

async fn warm(keys: &TestKeys, key: &str) -> Guard {
    let guard = keys.caching_guard().await.expect("a guard");
    while guard.stats().lease_left.is_zero() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let headers = Presenting(format!("Bearer {key}"));
    let request = RequestHead {
        method: "GET",
        target: PATH,
        peer: None,
        headers: &headers,
        form: RejectionForm::Problem,
    };
    drop(guard.check(&request, &Requirement::any()).await);
    guard
}

/// Runs an operation this many times, and returns the elapsed time.
type Run<'a> = Box<dyn FnMut(u64) -> Duration + 'a>;

async fn time(times: u64, mut once: impl AsyncFnMut()) -> Duration {
    let started = Instant::now();
    for _ in 0..times {
        once().await;
    }
    started.elapsed()
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let local = actix_web::rt::System::new();
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |key| {
        key.restrictions.scopes = vec![Scope::LINKS_READ]
    });
    let bearer = format!("Bearer {key}");
    let guard = runtime.block_on(warm(&keys, &key));

    // The baseline: the verifier alone, with the same requirement.
    let verifier = runtime.block_on(async {
        let verifier = keys.verifier().await.expect("a verifier");
        tokio::spawn(verifier.clone().run(std::future::pending()));
        while verifier.stats().lease_left.is_zero() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        verifier
    });
    let scopes = Catalogue::default()
        .needed(["links:read"])
        .expect("a scope");
    let access = AccessRequest {
        scopes,
        method: Some("GET"),
        path: Some(RequestPath::new(PATH, &RouteBase::default())),
        ..AccessRequest::default()
    };
    let headers = Presenting(bearer.clone());
    let requirement = Requirement::from(Scope::LINKS_READ);
    let mut runs: Vec<(&str, Run<'_>)> = Vec::new();
    runs.push((
        "baseline: verifier",
        Box::new(|times| {
            runtime.block_on(time(times, async || {
                let _ = black_box(verifier.verify(&key, &access).await);
            }))
        }),
    ));
    runs.push((
        "guard",
        Box::new(|times| {
            runtime.block_on(time(times, async || {
                let request = RequestHead {
                    method: "GET",
                    target: PATH,
                    peer: None,
                    headers: &headers,
                    form: RejectionForm::Problem,
                };
                black_box(
                    guard
                        .check(&request, &requirement)
                        .await
                        .map(|admission| admission.commit())
                        .is_ok(),
                );
            }))
        }),
    ));

    let bare = Router::new().route(PATH, get(async || "links"));
    // The cost of any layer: a boxed future and a clone of the inner service.
    let idle = bare.clone().layer(axum::middleware::from_fn(
        async |request, next: axum::middleware::Next| next.run(request).await,
    ));
    let layer = tollkey_axum::TollkeyLayer::new(guard.clone()).require(Scope::LINKS_READ);
    let guarded = bare.clone().layer(layer);
    for (name, app) in [
        ("axum without", bare),
        ("axum with an idle layer", idle),
        ("axum with the layer", guarded),
    ] {
        let (runtime, bearer) = (&runtime, &bearer);
        runs.push((
            name,
            Box::new(move |times| {
                runtime.block_on(time(times, async || {
                    let request = Request::get(PATH)
                        .header("authorization", bearer)
                        .body(Body::empty());
                    let response = app
                        .clone()
                        .call(request.expect("a request"))
                        .await
                        .expect("a response");
                    assert_eq!(response.status(), 200);
                }))
            }),
        ));
    }

    macro_rules! actix {
        ($name:literal, $links:expr) => {
            let app = local.block_on(test::init_service(App::new().service($links)));
            let (local, bearer) = (&local, &bearer);
            runs.push((
                $name,
                Box::new(move |times| {
                    local.block_on(time(times, async || {
                        let request = test::TestRequest::get().uri(PATH);
                        let request = request
                            .insert_header(("authorization", bearer.as_str()))
                            .to_request();
                        assert_eq!(test::call_service(&app, request).await.status(), 200);
                    }))
                }),
            ));
        };
    }
    let links = || web::resource(PATH).get(async || "links");
    let idle =
        actix_web::middleware::from_fn(async |request, next: actix_web::middleware::Next<_>| {
            next.call(request).await
        });
    let layer = tollkey_actix::Tollkey::new(guard.clone()).require(Scope::LINKS_READ);
    actix!("actix without", links());
    actix!("actix with an idle layer", links().wrap(idle));
    actix!("actix with the layer", links().wrap(layer));

    let mut criterion = Criterion::default().configure_from_args();
    for (name, run) in &mut runs {
        criterion.bench_function(name, |bencher| bencher.iter_custom(&mut *run));
    }
    criterion.final_summary();
    ratios(&mut runs);
}

/// Prints the cost that the layer adds to an app, as a multiple of the baseline. Runs all operations in turn for a
/// millisecond each, so that a slow phase of the machine affects all of them.
#[expect(clippy::print_stdout, reason = "a benchmark prints its results")]
fn ratios(runs: &mut [(&str, Run<'_>)]) {
    const ROUNDS: usize = 400;
    const TIMES: u64 = 500;
    let rounds: Vec<Vec<f64>> = (0..ROUNDS)
        .map(|_| {
            runs.iter_mut()
                .map(|(_, run)| run(TIMES).as_secs_f64())
                .collect()
        })
        .collect();
    let at = |name: &str| {
        runs.iter()
            .position(|(own, _)| *own == name)
            .expect("a run of that name")
    };
    let baseline = at("baseline: verifier");
    for framework in ["axum", "actix"] {
        let with = at(&format!("{framework} with the layer"));
        for other in ["without", "with an idle layer"] {
            let other_at = at(&format!("{framework} {other}"));
            let mut ratios: Vec<f64> = rounds
                .iter()
                .map(|round| (round[with] - round[other_at]) / round[baseline])
                .collect();
            ratios.sort_by(f64::total_cmp);
            let [low, middle, high] = [1, 2, 3].map(|quarter| ratios[ROUNDS * quarter / 4]);
            println!(
                "{framework}: the layer, compared with the app {other}: {middle:.2} baselines (half of {ROUNDS} rounds within {low:.2}–{high:.2})"
            );
        }
    }
}
