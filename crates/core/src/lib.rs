//! The domain rules of Tollkey: keys, access decisions, state transitions and the audit chain.
//!
//! Nothing here reads a clock, a socket, a database or an environment variable. Time and randomness are arguments, so a
//! test can state each rule as a row of a table.
//!
//! The feature `openapi` adds schemas of the types for utoipa.
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod access;
pub mod account;
pub mod api_key;
pub mod application;
pub mod audit;
pub mod ceiling;
pub mod change;
pub mod credential;
pub mod etag;
pub mod feature;
pub mod heap;
pub mod hex;
pub mod id;
pub mod key_format;
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

pub use access::{
    AccessRequest, Authorized, Denial, KeyContext, Viewer, decide, decide_requirements,
    decide_usable,
};
pub use account::{Account, AccountId, OperatingModel};
pub use api_key::{ApiKey, Restrictions, Status};
pub use application::Application;
pub use change::{ChangeLog, Changed, Position, Seq, VerifierId};
pub use etag::{EntityTag, Preconditions};
pub use id::{ApplicationId, AuditId, Id, KeyId, ServiceKeyId};
pub use jiff::Timestamp;
pub use key_format::{Digest, Family, Mode, PlainKey};
pub use network::IpList;
pub use problem::{FieldError, FieldErrors, Invalid, Problem, ProblemCode};
pub use rate_limit::RateLimit;
pub use route::{RequestPath, RouteBase, leads_above_root};
pub use scope::{Catalogue, Scope, ScopeExpression, ScopeSet};
pub use service_key::ServiceKey;
pub use time::Clock;
pub use usage::Usage;
