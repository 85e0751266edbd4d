//! The families of keys that each surface manages.

use tollkey_core::Family;

/// The families that the surface of commerce keys manages.
pub const COMMERCE: &[Family] = &[Family::Commerce];

/// The families that the surface of account keys manages.
pub const ACCOUNT: &[Family] = &[Family::Secret, Family::Publishable];
