//! What a remembered key costs inside each framework, next to the verifier's own floor, to the same app
//! without a layer, and to one whose layer does nothing: the framework's own price of a layer.
//!
//! `cargo bench -p tollkey-middleware`; what is aimed at: the layer costs at most twice the floor.

use std::{hint::black_box, time::Duration};

use actix_web::{App, test, web};
use axum::{Router, body::Body, http::Request, routing::get};
use criterion::{Criterion, criterion_group, criterion_main};
use tollkey_core::{Catalogue, Family, Mode, Need, RequestPath, Scope};
use tollkey_middleware::{Guard, Headers, RequestHead, Requirement, testing::TestKeys};
use tower_service::Service as _;

const PATH: &str = "/api/v1/links";

struct Presenting(String);

impl Headers for Presenting {
    fn nth(&self, name: &str, n: usize) -> Option<&[u8]> {
        (name == "authorization" && n == 0).then_some(self.0.as_bytes())
    }
}

/// A guard that remembers that key.
async fn warm(keys: &TestKeys, key: &str) -> Guard {
    let guard = keys.remembering_guard().await.expect("a guard");
    while guard.stats().lease_left.is_zero() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let headers = Presenting(format!("Bearer {key}"));
    let request = RequestHead { method: "GET", target: PATH, peer: None, headers: &headers };
    drop(guard.check(&request, &Requirement::any()).await);
    guard
}

fn frameworks(criterion: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let keys = TestKeys::new();
    let key = keys.add(Family::Commerce, Mode::Live, |key| key.grants.scopes = vec![Scope::LINKS_READ]);
    let bearer = format!("Bearer {key}");
    let guard = runtime.block_on(warm(&keys, &key));

    // The floor: the verifier alone, asked for the same.
    let verifier = runtime.block_on(async {
        let verifier = keys.verifier().await.expect("a verifier");
        tokio::spawn(verifier.clone().run(std::future::pending()));
        while verifier.stats().lease_left.is_zero() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        verifier
    });
    let scopes = Catalogue::default().needed(["links:read"]).expect("a scope");
    let need = Need { scopes, method: Some("GET"), path: Some(RequestPath::new(PATH, "/api")), ..Need::default() };
    criterion.bench_function("floor: verifier", |bencher| {
        bencher.to_async(&runtime).iter(async || black_box(verifier.verify(&key, &need).await));
    });

    let headers = Presenting(bearer.clone());
    let requirement = Requirement::from(Scope::LINKS_READ);
    criterion.bench_function("guard", |bencher| {
        bencher.to_async(&runtime).iter(async || {
            let request = RequestHead { method: "GET", target: PATH, peer: None, headers: &headers };
            black_box(guard.check(&request, &requirement).await.map(|admission| admission.conclude()).is_ok())
        });
    });

    let bare = Router::new().route(PATH, get(async || "links"));
    let layer = tollkey_axum::TollkeyLayer::new(guard.clone()).require(Scope::LINKS_READ);
    // What any layer costs there: a future in a box, a clone of what is inside.
    let idle = bare
        .clone()
        .layer(axum::middleware::from_fn(async |request, next: axum::middleware::Next| next.run(request).await));
    let apps =
        [("axum without", bare.clone()), ("axum with an idle layer", idle), ("axum with the layer", bare.layer(layer))];
    for (name, app) in apps {
        criterion.bench_function(name, |bencher| {
            bencher.to_async(&runtime).iter(async || {
                let request =
                    Request::get(PATH).header("authorization", &bearer).body(Body::empty()).expect("a request");
                let answer = app.clone().call(request).await.expect("an answer");
                assert_eq!(answer.status(), 200);
            });
        });
    }

    let local = actix_web::rt::System::new();
    let links = || web::resource(PATH).get(async || "links");
    let bare = local.block_on(test::init_service(App::new().service(links())));
    criterion.bench_function("actix without", |bencher| {
        bencher.iter(|| {
            let request = test::TestRequest::get().uri(PATH).insert_header(("authorization", bearer.as_str()));
            assert_eq!(local.block_on(test::call_service(&bare, request.to_request())).status(), 200);
        });
    });
    let idle =
        actix_web::middleware::from_fn(async |request, next: actix_web::middleware::Next<_>| next.call(request).await);
    let idle = local.block_on(test::init_service(App::new().service(links().wrap(idle))));
    criterion.bench_function("actix with an idle layer", |bencher| {
        bencher.iter(|| {
            let request = test::TestRequest::get().uri(PATH).insert_header(("authorization", bearer.as_str()));
            assert_eq!(local.block_on(test::call_service(&idle, request.to_request())).status(), 200);
        });
    });
    let layer = tollkey_actix::Tollkey::new(guard).require(Scope::LINKS_READ);
    let guarded = local.block_on(test::init_service(App::new().service(links().wrap(layer))));
    criterion.bench_function("actix with the layer", |bencher| {
        bencher.iter(|| {
            let request = test::TestRequest::get().uri(PATH).insert_header(("authorization", bearer.as_str()));
            assert_eq!(local.block_on(test::call_service(&guarded, request.to_request())).status(), 200);
        });
    });
}

criterion_group!(benches, frameworks);
criterion_main!(benches);
