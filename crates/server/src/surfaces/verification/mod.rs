//! Verification: for resource servers (`/verify`, `/introspect`, and `/sync` for those that verify themselves), for gateways (`/authz/*`) and for the key itself
//! (`/whoami`).

mod ask;
mod gateway;
mod own;
mod present;
mod subscription;

pub use ask::{introspect, verify, verify_batch};
pub use gateway::{AuthRequest, ExtAuthz, ForwardAuth};
pub use own::{revoke_whoami, whoami};
pub use subscription::{sync, sync_lookup};
