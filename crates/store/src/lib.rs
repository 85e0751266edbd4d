//! Tollkey's storage: diesel over SQLite and PostgreSQL.
//!
//! A [`Store`] is opened from a URL. [`Store::read`] passes a [`Reader`] on one snapshot to a closure, [`Store::write`]
//! a [`Writer`] on one transaction; both run the closure on the blocking pool. Data of a tenant is only reachable
//! through [`Reader::account`] and [`Writer::account`], which filter by account. These modules query across accounts:
//!
//! | module | reason |
//! |---|---|
//! | [`verification`] | the account is not known before the key is found |
//! | [`leases`] | verifiers follow the changes of all accounts |
//! | [`usage`] | usage counts of all accounts are written in one batch |
//! | [`service_keys`] | service keys belong to the operator |
//! | [`sessions`] | the account is not known before the session is found, and operators have none |
//! | [`idempotency_records`] | the ID of a record covers the account, and old records of all accounts are deleted |
//! | [`pending_revocations`] | any replica can finish a revocation |
//! | [`audit_export`] | the operator verifies all chains |
//! | `bulk` | benchmarks need keys of many accounts |
//!
//! | feature | effect |
//! |---|---|
//! | `pg-tls` | TLS to PostgreSQL, with an OpenSSL that is built from source; needs perl and make |
//! | `bulk` | the module `bulk`, which fills an empty database with many keys |
//! | `test-util` | the module `testing`: a private PostgreSQL and fresh databases for tests |
#![deny(unsafe_code)]

pub mod account;
pub mod audit_export;
#[cfg(feature = "bulk")]
pub mod bulk;
#[cfg(feature = "pg-tls")]
mod certificate;
mod connect_failure;
mod connection;
mod error;
pub mod idempotency_records;
pub mod leases;
mod lineage;
mod migrations;
mod open_error;
pub mod pending_revocations;
mod postgres_session;
mod readiness;
mod rights;
mod rows;
mod schema;
mod schema_error;
pub mod service_keys;
pub mod sessions;
mod sqlite_file;
mod store;
mod target;
#[cfg(feature = "test-util")]
pub mod testing;
mod url;
pub mod usage;
pub mod verification;
mod wake;
mod watch;

pub use account::{
    AccountReader, AccountWriter, AuditFilter, AuditPage, Batch, DayUsage, EXAMINED_ENTRIES,
    EXAMINED_KEYS, KeyCursor, KeyFilter, KeyPage, Page,
};
pub use error::{Error, UniqueViolation};
pub use idempotency_records::IdempotencyRecord;
pub use leases::LaggingVerifier;
pub use open_error::OpenError;
pub use postgres_session::UnsupportedServer;
pub use readiness::NotReady;
pub use schema_error::{LockHolder, SchemaError};
pub use store::{Change, Committed, OpenOptions, Owner, PoolStats, Reader, Store, Writer};
pub use target::Backend;
pub use url::{BadUrl, DatabaseUrl};
pub use verification::{FoundKey, Snapshot};
pub use wake::Listener;

// Dependencies of diesel, named here to set their build features (see the workspace manifest). `wake` uses libpq.
use libsqlite3_sys as _;
