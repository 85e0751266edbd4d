//! How Tollkey keeps things: diesel over SQLite and PostgreSQL.
//!
//! A [`Store`] is opened from a URL. [`Store::read`] gives a [`Reader`] on one snapshot, [`Store::write`] a
//! [`Writer`] on one transaction; both hop to the blocking pool there and nowhere else. What belongs to a tenant is
//! reached through [`Reader::account`] and [`Writer::account`] alone, which filter by account, so a query cannot
//! cross tenants. The exceptions are modules of their own, each saying why:
//!
//! | module | asks across accounts because |
//! |---|---|
//! | [`verification`] | a presented key is all that is known |
//! | [`leases`] | verifiers follow the changes of all accounts |
//! | [`usage`] | counts of all accounts are flushed in one batch |
//! | [`service_keys`] | they belong to the operator, not to an account |
//! | [`sessions`] | a browser's cookie is all that is known, and operators belong to no account |
//! | [`pending_revocations`] | any replica finishes the revocations of all accounts |
//! | [`audit_export`] | the operator verifies all chains |
//! | `bulk` | measurements need keys of many accounts |
#![deny(unsafe_code)]

pub mod account;
pub mod audit_export;
#[cfg(feature = "bulk")]
pub mod bulk;
mod connect_failure;
mod connection;
mod error;
pub mod kept_answers;
pub mod leases;
mod lineage;
mod migrations;
pub mod pending_revocations;
mod postgres_session;
mod readiness;
mod rights;
mod rows;
mod schema;
pub mod service_keys;
pub mod sessions;
mod sqlite_file;
mod store;
#[cfg(feature = "test-util")]
pub mod testing;
mod url;
pub mod usage;
pub mod verification;
mod wake;
mod watch;

pub use account::{
    AccountReader, AccountWriter, AuditFilter, AuditPage, Batch, DayUsage, EXAMINED_ENTRIES,
    EXAMINED_KEYS, KeyCursor, KeyFilter, KeyPage, Paged,
};
pub use connection::Backend;
pub use error::{Error, UniqueViolation};
pub use kept_answers::KeptAnswer;
pub use leases::Behind;
pub use migrations::{LockHolder, SchemaError};
pub use postgres_session::Unsuitable;
pub use readiness::NotReady;
pub use store::{Change, OpenError, OpenOptions, Owner, Reader, Store, Writer, Written};
pub use url::{BadUrl, DatabaseUrl};
pub use verification::{FoundKey, Snapshot};
pub use wake::Listener;

// Linked through diesel; naming them pins how they are built (see the workspace manifest). So does `wake` for libpq.
use libsqlite3_sys as _;
#[cfg(feature = "pg-tls")]
use openssl_sys as _;
