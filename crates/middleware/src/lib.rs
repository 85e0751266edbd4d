//! What protects an API with Tollkey, whatever its framework.
//!
//! A [`Guard`] subscribes to a server and judges requests from its own memory: no network on a remembered key, and yet a
//! revoked key is refused from the moment the revocation is answered. `tollkey-axum` and `tollkey-actix` hand their requests
//! to it and turn what it says into answers; neither decides anything.
//!
//! | module | says |
//! |---|---|
//! | [`guard`] | the connection to the server, and the settings |
//! | [`requirement`] | what a route needs of a key |
//! | [`request`] | what is read of a request |
//! | [`key`] | the key that was let in |
//! | [`refusal`] | the answer to who was not (RFC 6750, RFC 9457) |
#![forbid(unsafe_code)]

pub mod guard;
mod judge;
pub mod key;
pub mod refusal;
pub mod request;
pub mod requirement;
#[cfg(feature = "test-util")]
pub mod testing;

pub use guard::{ConnectError, Guard, GuardBuilder};
pub use judge::Admission;
pub use key::VerifiedKey;
pub use refusal::{Answer, Refusal};
pub use request::{Headers, RequestHead};
pub use requirement::{Merchant, Requirement};
pub use tollkey_core::{Denial, Family, Mode, Scope};
