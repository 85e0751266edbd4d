//! The rules of Tollkey.
//!
//! What an API key is, who may use it for what, which changes it goes through and how those changes are
//! chained in the audit log. Nothing here reads a clock, a socket, a database or an environment variable:
//! time and randomness are arguments, so every rule can be stated as a row of a test table.
//!
//! | module | says |
//! |---|---|
//! | [`id`] | identifiers and their two printed forms |
//! | [`key_text`] | the text of a key: families, modes, minting, parsing, digest |
//! | [`api_key`] | a key as it is kept: grants, status, transitions |
//! | [`application`], [`account`], [`service_key`] | what keys belong to, and what resource servers present |
//! | [`scope`], [`feature`], [`route`], [`network`], [`rate_limit`] | what a key can be restricted to |
//! | [`credential`] | the one credential of a request, and where it stands |
//! | [`access`] | the one decision: may this key do that, now? |
//! | [`ceiling`] | a key cannot create a key beyond what it holds itself |
//! | [`lineage`] | what a key inherits from its ancestors |
//! | [`audit`] | entries and the hash chain over them |
//! | [`session`] | who is signed in to the dashboard, and until when |
//! | [`heap`] | how much memory values take |
//! | [`change`], [`usage`] | what verifiers and the store tell each other: what changed, what was used |
//! | [`problem`] | everything that can go wrong, in words and as a status |
#![forbid(unsafe_code)]

pub mod access;
pub mod account;
pub mod api_key;
pub mod application;
pub mod audit;
pub mod ceiling;
pub mod change;
pub mod credential;
pub mod feature;
pub mod heap;
pub mod hex;
pub mod id;
pub mod key_text;
pub mod lineage;
pub mod metadata;
pub mod network;
pub mod problem;
pub mod rate_limit;
pub mod route;
pub mod scope;
pub mod service_key;
pub mod session;
mod spelling;
pub mod text;
pub mod time;
pub mod usage;

pub use access::{Denial, Grant, Need, Record, Viewer, decide, decide_further, decide_usable};
pub use account::{Account, AccountId, OperatingModel};
pub use api_key::{ApiKey, Grants, Status};
pub use application::Application;
pub use change::{ChangeLog, Changed, Position, Seq, VerifierId};
pub use id::{ApplicationId, AuditId, Id, KeyId, ServiceKeyId};
pub use jiff::Timestamp;
pub use key_text::{Digest, Family, KeyText, Mode};
pub use network::IpList;
pub use problem::{Checks, FieldError, Invalid, Problem, ProblemCode};
pub use rate_limit::RateLimit;
pub use route::{RequestPath, RouteBase};
pub use scope::{Catalogue, Scope, ScopeSet};
pub use service_key::ServiceKey;
pub use time::Clock;
pub use usage::Usage;
