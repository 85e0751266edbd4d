//! The pages of an account's keys, one file each.

mod choice;
mod create;
mod form;
mod list;
mod revoke;
mod rotate;
mod show;
mod suspend;
mod view;

use actix_web::web;

pub(super) use self::{choice::Choice, view::KeyView};

/// Mounts the routes, literal ones before those with an ID.
pub(super) fn configure(config: &mut web::ServiceConfig) {
    config
        .service(list::list)
        .service(create::new)
        .service(create::create)
        .service(show::show)
        .service(revoke::ask_revoke)
        .service(revoke::revoke)
        .service(rotate::ask_rotate)
        .service(rotate::rotate)
        .service(suspend::suspend)
        .service(suspend::resume);
}
