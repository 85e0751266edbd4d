//! The families of keys that each surface manages.

use tollkey_core::Family;

/// The families of the keys that are limited together with keys of this family: those of the same surface.
pub(super) fn limited_with(family: Family) -> &'static [Family] {
    match family {
        Family::Commerce => COMMERCE,
        Family::Secret | Family::Publishable => ACCOUNT,
        Family::Application => APPLICATION,
    }
}

/// The families that the surface of commerce keys manages.
pub const COMMERCE: &[Family] = &[Family::Commerce];

/// The families that the surface of account keys manages.
pub const ACCOUNT: &[Family] = &[Family::Secret, Family::Publishable];

/// The families that the surface of applications manages.
pub const APPLICATION: &[Family] = &[Family::Application];
