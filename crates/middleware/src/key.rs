//! The key that was let in.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::{Map, Value};
use tollkey_core::{Denial, Family, Mode, Record, Scope, Timestamp};
use tollkey_verifier::{Known, Verdict};

use crate::{Guard, Refusal, RequestHead, Requirement};

/// The key a request was let in with. Cheap to clone.
///
/// The request counts as a use of the key when it is [concluded](crate::Admission::conclude), or when the last clone is dropped.
#[derive(Clone)]
pub struct VerifiedKey(Arc<Held>);

struct Held {
    guard: Guard,
    record: Known,
    verdict: Verdict,
    merchant: Option<String>,
    concluded: AtomicBool,
}

impl VerifiedKey {
    /// Holds a verdict that allows.
    pub(crate) fn hold(guard: Guard, verdict: Verdict, merchant: Option<String>) -> Option<Self> {
        verdict.allowed()?;
        let record = verdict.record.clone()?;
        Some(Self(Arc::new(Held { guard, record, verdict, merchant, concluded: AtomicBool::new(false) })))
    }

    pub(crate) fn guard(&self) -> &Guard {
        &self.0.guard
    }

    fn record(&self) -> &Record {
        &self.0.record
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> String {
        self.record().key.id.to_string()
    }

    /// Whose it is.
    #[must_use]
    pub fn account_id(&self) -> &str {
        self.record().key.account_id.as_str()
    }

    /// Its application, for keys of applications.
    #[must_use]
    pub fn application_id(&self) -> Option<String> {
        self.record().key.application_id.map(|id| id.to_string())
    }

    /// Its label.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.record().key.name
    }

    /// Which key system it belongs to.
    #[must_use]
    pub fn family(&self) -> Family {
        self.record().key.family
    }

    /// Live or test.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.record().key.mode
    }

    /// The scopes it satisfies, of those that this guard knows.
    pub fn scopes(&self) -> impl Iterator<Item = &Scope> {
        self.0.guard.policy().catalogue.names(self.record().scopes)
    }

    /// Whether it satisfies that scope.
    #[must_use]
    pub fn has_scope(&self, scope: &Scope) -> bool {
        self.scopes().any(|own| own == scope)
    }

    /// The merchant the request is about, when it names one; a key that is bound to merchants is bound to this one.
    #[must_use]
    pub fn merchant(&self) -> Option<&str> {
        self.0.merchant.as_deref()
    }

    /// The merchants it is bound to; `None` is any.
    #[must_use]
    pub fn merchants(&self) -> Option<&[String]> {
        self.record().key.grants.merchants.as_deref()
    }

    /// When it ends; `None` is never.
    #[must_use]
    pub fn expires_at(&self) -> Option<Timestamp> {
        self.record().key.grants.expires_at
    }

    /// The metadata attached to it. Parsed by each call: keep the result.
    #[must_use]
    pub fn metadata(&self) -> Option<Map<String, Value>> {
        self.record().key.metadata.as_ref().map(tollkey_core::metadata::Metadata::object)
    }

    /// The fields `RateLimit-Policy` and `RateLimit` for the answer, where the key has a limit.
    pub(crate) fn rate_limit_fields(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.0.verdict.rate.iter().flat_map(|rate| crate::refusal::rate_fields(rate, None))
    }

    /// Requires more of it, further in. A refusal costs the key nothing of its allowance, and is no use of it.
    ///
    /// # Errors
    /// The [`Refusal`] to answer with.
    pub(crate) fn require(&self, request: &RequestHead<'_>, requirement: &Requirement) -> Result<(), Refusal> {
        let Held { guard, verdict, merchant, .. } = &*self.0;
        let own = requirement.merchant.as_ref().map(|source| source.of(request));
        let merchant = own.unwrap_or_else(|| merchant.clone());
        let need = guard.need(request, requirement, merchant.as_deref()).inspect_err(|_| self.release())?;
        guard.verifiers().judge_held(verdict, &need).map_err(|denial| {
            self.0.end(Some(Err(denial)));
            guard.refuse(denial, requirement)
        })
    }

    /// Ends the request: it was a use of the key, unless it ended before. Whether it was.
    pub(crate) fn conclude(&self) -> bool {
        self.0.end(Some(Ok(())))
    }

    /// Ends the request as if it had not been.
    pub(crate) fn release(&self) {
        self.0.end(None);
    }
}

impl Held {
    /// Only the first of several does anything, and says so.
    fn end(&self, outcome: Option<Result<(), Denial>>) -> bool {
        let first = !self.concluded.swap(true, Ordering::AcqRel);
        if first {
            self.guard.verifiers().end(&self.verdict, outcome);
        }
        first
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.end(Some(Ok(())));
    }
}

impl fmt::Debug for VerifiedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.record().key;
        f.debug_struct("VerifiedKey")
            .field("id", &key.id)
            .field("account_id", &key.account_id.as_str())
            .field("family", &key.family)
            .field("mode", &key.mode)
            .finish_non_exhaustive()
    }
}
