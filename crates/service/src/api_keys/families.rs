//! The families of keys that each API manages.

use tollkey_core::Family;

/// Returns the families that share a key limit with this family: those of the same API.
pub(super) fn families_sharing_limit(family: Family) -> &'static [Family] {
    match family {
        Family::Commerce => COMMERCE,
        Family::Secret | Family::Publishable => ACCOUNT,
        Family::Application => APPLICATION,
    }
}

pub const COMMERCE: &[Family] = &[Family::Commerce];

pub const ACCOUNT: &[Family] = &[Family::Secret, Family::Publishable];

pub const APPLICATION: &[Family] = &[Family::Application];
