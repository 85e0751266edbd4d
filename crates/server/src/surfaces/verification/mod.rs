//! Verification: for resource servers (`/verify`, `/introspect`), for gateways (`/authz/*`) and for the key itself
//! (`/whoami`).

mod ask;
mod gateway;
mod own;
mod present;

pub use ask::{introspect, verify, verify_batch};
pub use gateway::{AuthRequest, ExtAuthz, ForwardAuth};
pub use own::{revoke_whoami, whoami};
