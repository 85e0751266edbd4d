//! The dashboard: pages under `/dashboard`. They call the same services as the API.
//!
//! | module | content |
//! |---|---|
//! | `gate` | middleware: rejects cross-site writes, redirects requests without a session to the sign-in page |
//! | `session` | the session cookie and the person who is signed in |
//! | `page`, `assets` | what all pages share: frame, headers, errors, times; style, script, icon |
//! | `fields`, `once` | the fields of a form; forms that create something |
//!
//! The other modules are pages. Forms work without script. No URL contains a secret, and no page is cached.

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

pub const SURFACE: Surface = Surface {
    render: page::render_problem,
    set_headers: page::set_headers,
    ..Surface::api(&["/dashboard"], Document::NONE)
};

/// Mounts the routes, literal ones before those with an ID.
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
