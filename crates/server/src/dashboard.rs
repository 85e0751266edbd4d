//! The dashboard: pages for people, under `/dashboard`. They call the same services as the API.
//!
//! | module | says |
//! |---|---|
//! | here | the routes |
//! | `gate` | what every request goes through: writes of other sites are refused, who is not signed in is sent to the door |
//! | `session` | the cookie, and who it is |
//! | `sign_in` | the ways in, and out |
//! | `page` | what all pages share: their frame, headers, errors, times |
//! | `fields`, `once` | the fields of a form, and forms that make something |
//! | `assets` | style, script, icon |
//! | `keys`, `applications`, `audit`, `settings` | the pages |
//!
//! Every form works without script. Nothing that is secret stands in a URL, and no page is kept by a cache.

mod applications;
mod assets;
mod audit;
mod fields;
mod gate;
mod keys;
mod once;
pub mod page;
mod search;
pub mod session;
mod settings;
pub mod sign_in;

use actix_web::{get, middleware::from_fn, web};

use crate::{
    rejection::HandlerResult,
    surface::{Document, Surface},
};

/// The dashboard: errors are pages.
pub const SURFACE: Surface = Surface {
    render: page::render_problem,
    set_headers: page::set_headers,
    ..Surface::api(&["/dashboard"], Document::NONE)
};

/// The routes. The literal ones stand before those with an id.
pub fn configure(config: &mut web::ServiceConfig) {
    let signed_in = web::scope("")
        .wrap(from_fn(gate::signed_in))
        .service(home)
        .service(sign_in::sign_out)
        .configure(keys::configure)
        .service(applications::list)
        .service(applications::new)
        .service(applications::create)
        .service(applications::show)
        .service(applications::edit)
        .service(applications::update)
        .service(applications::ask_disable)
        .service(applications::disable)
        .service(applications::enable)
        .service(applications::ask_delete)
        .service(applications::delete)
        .service(audit::list)
        .service(audit::export)
        .service(audit::verify)
        .service(settings::show)
        .service(settings::set_model)
        .service(settings::create_service_key)
        .service(settings::ask_revoke_service_key)
        .service(settings::revoke_service_key)
        .service(settings::ask_account)
        .service(settings::choose_account);
    let open = web::scope("/dashboard")
        .wrap(from_fn(gate::same_site))
        .service(assets::file)
        .service(sign_in::show)
        .service(sign_in::link_page)
        .service(sign_in::by_link)
        .service(sign_in::by_oidc)
        .service(sign_in::come_back)
        .service(sign_in::by_token)
        .service(sign_in::signed_out);
    config.service(open.service(signed_in));
}

#[get("")]
async fn home() -> HandlerResult {
    Ok(page::see_other("/dashboard/keys"))
}
