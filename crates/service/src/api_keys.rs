//! API keys of all families. One file for each operation.

mod create;
mod created;
mod entry;
mod families;
mod limit;
mod list;
mod revoke;
mod rotate;
mod suspend;
mod transition;
mod update;

pub use tollkey_core::api_key::NewKey;

pub(crate) use self::entry::status_change;
pub use self::{
    create::{create, create_for_application},
    created::CreatedKey,
    families::{ACCOUNT, COMMERCE},
    list::{KeyList, KeyQuery, get, list, page_of_application, usage},
    revoke::{revoke, revoke_of_application},
    rotate::rotate,
    suspend::{resume, suspend},
    update::update,
};
