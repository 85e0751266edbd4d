//! One request: what it presents, what it needs, and the verdict.

use std::sync::Arc;

use tollkey_core::{
    Denial, Need, Problem, ProblemCode, RequestPath,
    credential::{self, Credential},
    network::client_address,
};
#[cfg(feature = "test-util")]
use tollkey_verifier::testing::MemorySource;
use tollkey_verifier::{Stats, Unavailable, Verdict, Verifier, http::HttpSource};

use crate::{Guard, Refusal, RequestHead, Requirement, VerifiedKey};

/// Where verdicts come from.
pub(crate) enum Verifiers {
    /// A server, subscribed to.
    Server(Verifier<HttpSource>),
    /// Keys declared in code.
    #[cfg(feature = "test-util")]
    Memory(Verifier<MemorySource>),
}

/// The same expression for whichever there is.
macro_rules! each {
    ($verifiers:expr, $verifier:ident => $expression:expr) => {
        match $verifiers {
            Verifiers::Server($verifier) => $expression,
            #[cfg(feature = "test-util")]
            Verifiers::Memory($verifier) => $expression,
        }
    };
}

impl Verifiers {
    fn hold_remembered(&self, key: &str, need: &Need<'_>) -> Option<Verdict> {
        each!(self, verifier => verifier.hold_remembered(key, need))
    }

    async fn hold(&self, key: &str, need: &Need<'_>, requirement: &Requirement) -> Result<Verdict, Unavailable> {
        each!(self, verifier => if requirement.grace.is_zero() {
            verifier.hold(key, need).await
        } else {
            verifier.hold_without_immediate_revocation(key, need, requirement.grace).await
        })
    }

    pub(crate) fn judge_held(&self, held: &Verdict, need: &Need<'_>) -> Result<(), Denial> {
        each!(self, verifier => verifier.judge_held(held, need))
    }

    /// Ends a verdict that is held; without an outcome as if it had not been.
    pub(crate) fn end(&self, held: &Verdict, outcome: Option<Result<(), Denial>>) {
        each!(self, verifier => match outcome {
            Some(outcome) => verifier.conclude(held, outcome),
            None => verifier.release(held),
        });
    }

    pub(crate) fn stats(&self) -> Stats {
        each!(self, verifier => verifier.stats())
    }
}

/// A request that was let in: by whom it was judged, and with which key.
#[derive(Debug, Clone)]
pub struct Admission(Admitted);

#[derive(Debug, Clone)]
enum Admitted {
    With(VerifiedKey),
    /// Where none is needed and none was there.
    WithoutKey(Guard),
}

impl Admission {
    /// The key; none where none is needed and none was there.
    #[must_use]
    pub fn key(&self) -> Option<&VerifiedKey> {
        match &self.0 {
            Admitted::With(key) => Some(key),
            Admitted::WithoutKey(_) => None,
        }
    }

    /// The key, where the request may not do without.
    ///
    /// # Errors
    /// The [`Refusal`] to answer with.
    pub fn needed_key(&self) -> Result<&VerifiedKey, Refusal> {
        match &self.0 {
            Admitted::With(key) => Ok(key),
            Admitted::WithoutKey(guard) => Err(guard.missing()),
        }
    }

    /// Requires more, further in. A refusal costs the key nothing of its allowance, and is no use of it.
    ///
    /// # Errors
    /// The [`Refusal`] to answer with.
    pub fn require(&self, request: &RequestHead<'_>, requirement: &Requirement) -> Result<(), Refusal> {
        match &self.0 {
            Admitted::WithoutKey(_) if requirement.optional => Ok(()),
            Admitted::WithoutKey(guard) => Err(guard.missing()),
            Admitted::With(key) => key.require(request, requirement),
        }
    }

    /// Ends the request: it was a use of the key, unless it was refused further in. Gives the fields that belong into the answer
    /// to a use, lower-case names and values.
    pub fn conclude(&self) -> Vec<(&'static str, String)> {
        match &self.0 {
            Admitted::With(key) if key.conclude() => key.rate_limit_fields().collect(),
            _ => Vec::new(),
        }
    }

    /// Makes way for another admission of the same request by that guard, a layer inside of a layer: only that one counts.
    pub fn give_way_to(&self, guard: &Guard) {
        match &self.0 {
            Admitted::With(key) if Arc::ptr_eq(&key.guard().0, &guard.0) => key.release(),
            _ => {}
        }
    }
}

impl Guard {
    /// Judges a request.
    ///
    /// # Errors
    /// The [`Refusal`] to answer with.
    pub async fn check(&self, request: &RequestHead<'_>, requirement: &Requirement) -> Result<Admission, Refusal> {
        let Some(key) = self.presented(request, requirement)? else { return Ok(self.admit_without_key()) };
        let merchant = self.merchant(request, requirement);
        let need = self.need(request, requirement, merchant.as_deref())?;
        let verdict = self.verifiers().hold(key, &need, requirement).await;
        self.admit(verdict.map_err(|Unavailable| self.refusal(Problem::unavailable()))?, merchant, requirement)
    }

    /// As [`check`](Self::check), where that needs no network; `None` where the server has to be asked, and nothing was done.
    ///
    /// What it saves a framework is not the time of the judgement but all that it takes to come back to a request later.
    #[must_use]
    pub fn check_remembered(
        &self,
        request: &RequestHead<'_>,
        requirement: &Requirement,
    ) -> Option<Result<Admission, Refusal>> {
        let checked = || {
            let Some(key) = self.presented(request, requirement)? else { return Ok(Some(self.admit_without_key())) };
            let merchant = self.merchant(request, requirement);
            let need = self.need(request, requirement, merchant.as_deref())?;
            let verdict = self.verifiers().hold_remembered(key, &need);
            verdict.map(|verdict| self.admit(verdict, merchant, requirement)).transpose()
        };
        checked().transpose()
    }

    /// The key that a request presents; none where it may do without and has none.
    fn presented<'a>(&self, request: &RequestHead<'a>, requirement: &Requirement) -> Result<Option<&'a str>, Refusal> {
        match Credential::read(request.first_two(&self.policy().headers)) {
            Credential::One(key) => Ok(Some(key)),
            Credential::None if requirement.optional => Ok(None),
            Credential::None => Err(self.missing()),
            Credential::Unreadable => Err(self.refusal(Problem::invalid_api_key())),
            Credential::Several => {
                let detail = "Present exactly one credential, once.";
                Err(self.refusal(Problem::new(ProblemCode::MultipleCredentials, detail)))
            }
        }
    }

    fn merchant(&self, request: &RequestHead<'_>, requirement: &Requirement) -> Option<String> {
        requirement.merchant.as_ref().unwrap_or(&self.policy().merchant).of(request)
    }

    fn admit_without_key(&self) -> Admission {
        Admission(Admitted::WithoutKey(self.clone()))
    }

    fn admit(&self, held: Verdict, merchant: Option<String>, requirement: &Requirement) -> Result<Admission, Refusal> {
        if let Err(denial) = held.outcome {
            return Err(self.refuse(denial, requirement).with_rate(held.rate, held.retry_after_seconds));
        }
        // Who comes without a key where one is needed never gets past here, whatever the verdict is made of.
        let key = VerifiedKey::hold(self.clone(), held, merchant);
        let key = key.ok_or_else(|| self.refusal(Problem::invalid_api_key()))?;
        Ok(Admission(Admitted::With(key)))
    }

    /// What the request needs of its key.
    pub(crate) fn need<'a>(
        &self,
        request: &RequestHead<'a>,
        requirement: &Requirement,
        merchant: Option<&'a str>,
    ) -> Result<Need<'a>, Refusal> {
        let policy = self.policy();
        let scopes = policy.catalogue.needed(requirement.scopes.iter().map(tollkey_core::Scope::as_str));
        Ok(Need {
            viewer: None,
            identity_only: false,
            scopes: scopes.map_err(|rule| {
                tracing::error!(%rule, "a route requires a scope that the guard was not told of; it is refused");
                self.refusal(Problem::new(
                    ProblemCode::InvalidRequirement,
                    "The route requires something unknown; its operator's log says what.",
                ))
            })?,
            mode: requirement.mode,
            method: Some(request.method),
            path: Some(RequestPath::new(request.target, &policy.route_base)),
            merchant,
            client_ip: client_address(request.peer, || request.all("x-forwarded-for"), &policy.trusted_proxies),
        })
    }

    fn missing(&self) -> Refusal {
        let headers = &self.policy().headers;
        self.refusal(if headers.contains(&credential::AUTHORIZATION) {
            Problem::new(ProblemCode::MissingCredentials, "Present an API key as Bearer.")
        } else {
            let detail = format!("Present an API key in {}.", headers.join(" or "));
            Problem::new(ProblemCode::MissingCredentials, detail)
        })
    }

    pub(crate) fn refuse(&self, denial: Denial, requirement: &Requirement) -> Refusal {
        let mut problem = Problem::denied(denial);
        if denial == Denial::InsufficientScope {
            problem.needed_scopes.clone_from(&requirement.scopes);
        }
        self.refusal(problem)
    }

    fn refusal(&self, problem: Problem) -> Refusal {
        Refusal::new(problem, &self.policy().realm)
    }
}
