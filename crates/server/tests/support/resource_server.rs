//! Resource servers of tests: a verifier that subscribes, and a guard.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;
use tollkey_core::{AccessRequest, Denial, VerifierId};
use tollkey_middleware::{
    Guard, Headers, RejectionForm, RequestHead, Requirement, source::HttpSource,
};
use tollkey_verifier::{Settings, SystemClock, Unavailable, Verifier};

use super::source;

/// A verifier that subscribes to this server with that service key.
pub fn subscriber(base: &str, service_key: &str) -> Verifier<HttpSource> {
    let source = source(base, service_key);
    Verifier::subscriber(
        VerifierId::from_bytes([7; 16]),
        source,
        Arc::new(SystemClock),
        Settings::default(),
    )
}

/// The outcome of a verification within 20 s.
pub async fn outcome(
    guard: &Verifier<HttpSource>,
    key: &str,
) -> Result<Result<(), Denial>, Unavailable> {
    let verdict = timeout(
        Duration::from_secs(20),
        guard.verify(key, &AccessRequest::default()),
    )
    .await;
    verdict
        .expect("a verdict within 20 s")
        .map(|verdict| verdict.outcome)
}

/// A request's key.
pub struct PresentedKey<'a>(pub &'a str);

impl Headers for PresentedKey<'_> {
    fn for_each<'a>(&'a self, show: &mut dyn FnMut(&'a str, &'a [u8])) {
        show("x-api-key", self.0.as_bytes());
    }
}

/// Returns 200 if the guard allows `GET /api/v1/links` with this key, or the status of the rejection.
pub async fn status(guard: &Guard, key: &str, requirement: &Requirement) -> u16 {
    let headers = PresentedKey(key);
    let request = RequestHead {
        method: "GET",
        target: "/api/v1/links",
        peer: None,
        headers: &headers,
        form: RejectionForm::Problem,
    };
    match guard.check(&request, requirement).await {
        Ok(admission) => {
            admission.commit();
            200
        }
        Err(rejection) => rejection.status(),
    }
}
