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
pub struct Admission {
    guard: Guard,
    key: Option<VerifiedKey>,
}

impl Admission {
    /// The key; none where none is needed and none was there.
    #[must_use]
    pub fn key(&self) -> Option<&VerifiedKey> {
        self.key.as_ref()
    }

    /// The key, where the request may not do without.
    ///
    /// # Errors
    /// The [`Refusal`] to answer with.
    pub fn needed_key(&self) -> Result<&VerifiedKey, Refusal> {
        self.key.as_ref().ok_or_else(|| self.guard.missing())
    }

    /// Requires more, further in. A refusal costs the key nothing of its allowance, and is no use of it.
    ///
    /// # Errors
    /// The [`Refusal`] to answer with.
    pub fn require(&self, request: &RequestHead<'_>, requirement: &Requirement) -> Result<(), Refusal> {
        match &self.key {
            None if requirement.optional => Ok(()),
            None => Err(self.guard.missing()),
            Some(key) => key.require(request, requirement),
        }
    }

    /// Ends the request: it was a use of the key, unless it was refused further in. Gives the fields that belong into the answer
    /// to a use, lower-case names and values.
    pub fn conclude(&self) -> Vec<(&'static str, String)> {
        match &self.key {
            Some(key) if key.conclude() => key.rate_limit_fields().collect(),
            _ => Vec::new(),
        }
    }

    /// Makes way for another admission of the same request by that guard, a layer inside of a layer: only that one counts.
    pub fn give_way_to(&self, guard: &Guard) {
        if Arc::ptr_eq(&self.guard.0, &guard.0)
            && let Some(key) = &self.key
        {
            key.release();
        }
    }
}

impl Guard {
    /// Judges a request.
    ///
    /// # Errors
    /// The [`Refusal`] to answer with.
    pub async fn check(&self, request: &RequestHead<'_>, requirement: &Requirement) -> Result<Admission, Refusal> {
        let key = self.key_of(request, requirement).await?;
        Ok(Admission { guard: self.clone(), key })
    }

    async fn key_of(
        &self,
        request: &RequestHead<'_>,
        requirement: &Requirement,
    ) -> Result<Option<VerifiedKey>, Refusal> {
        let problem = |code, detail: &str| self.refusal(Problem::new(code, detail));
        let headers = self.policy().headers.iter();
        let found = headers.flat_map(|name| request.all(name).map(|value| (*name, value)));
        let key = match Credential::read(found) {
            Credential::One(key) => key,
            Credential::None if requirement.optional => return Ok(None),
            Credential::None => return Err(self.missing()),
            Credential::Unreadable => return Err(self.refusal(Problem::invalid_api_key())),
            Credential::Several => {
                return Err(problem(ProblemCode::MultipleCredentials, "Present exactly one credential, once."));
            }
        };
        let merchant = requirement.merchant.as_ref().unwrap_or(&self.policy().merchant).of(request);
        let need = self.need(request, requirement, merchant.as_deref())?;
        let verdict = self.verifiers().hold(key, &need, requirement).await;
        let verdict = verdict.map_err(|Unavailable| self.refusal(Problem::unavailable()))?;
        if let Err(denial) = verdict.outcome {
            let refusal = self.refuse(denial, requirement);
            return Err(refusal.with_rate(verdict.rate, verdict.retry_after_seconds));
        }
        // Who comes without a key where one is needed never gets past here, whatever the verdict is made of.
        let key = VerifiedKey::hold(self.clone(), verdict, merchant);
        key.map(Some).ok_or_else(|| self.refusal(Problem::invalid_api_key()))
    }

    /// What the request needs of its key.
    pub(crate) fn need<'a>(
        &self,
        request: &RequestHead<'a>,
        requirement: &Requirement,
        merchant: Option<&'a str>,
    ) -> Result<Need<'a>, Refusal> {
        let policy = self.policy();
        let forwarded_for = request.all("x-forwarded-for").map(|value| String::from_utf8_lossy(value));
        let forwarded_for = forwarded_for.collect::<Vec<_>>().join(",");
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
            client_ip: client_address(request.peer, &forwarded_for, &policy.trusted_proxies),
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
