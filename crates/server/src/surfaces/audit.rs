//! The audit log.

pub mod present;

use crate::{
    auth::ManagementCaller,
    body::Query,
    rejection::HandlerResult,
    state::State,
    surface::{Document, Surface},
};
use actix_web::{HttpResponse, get, http::header, web};
use tollkey_api::audit as api;
use tollkey_service::audit;
use utoipa_actix_web::service_config::ServiceConfig;

pub(super) use self::present::{filter, filter_named};

pub const SURFACE: Surface = Surface::api(
    &["/api/v1/audit-log"],
    Document {
        has_account_parameter: true,
        ..Document::new("audit log", "The log of all changes in an account.")
    },
);

pub fn configure(config: &mut ServiceConfig<'_>) {
    config.service(list);
}

/// List the audit log.
///
/// Returns an array with one entry for each change, newest first. Each entry is written in the
/// transaction of its change, and its hash covers the previous entry of the account; `tollkey audit
/// verify` checks the hashes. If more entries follow, the response has a `Link` header with
/// `rel="next"`. A page can have fewer entries than `limit`, or none, although more pages follow.
#[utoipa::path(
    tag = "audit log",
    operation_id = "listAuditLog",
    security(("management_token" = [])),
    params(api::ListAuditLog),
    responses((status = 200, description = "A page of entries.", body = Vec<api::AuditEntry>, headers(("Link" = String, description = "The URL of the next page, with `rel=\"next\"`. Absent on the last page."))))
)]
#[get("/audit-log")]
pub async fn list(
    state: web::Data<State>,
    caller: ManagementCaller,
    query: Query,
) -> HandlerResult {
    let query: api::ListAuditLog = query.read()?;
    let filter = filter(&query)?;
    let found = audit::list(&state.service, &caller.0, filter).await?;
    let mut response = HttpResponse::Ok();
    if let Some(next) = found.next {
        let next = api::ListAuditLog {
            cursor: Some(next.to_string()),
            ..query
        };
        let query = serde_urlencoded::to_string(next).unwrap_or_default();
        response.insert_header((
            header::LINK,
            format!("</api/v1/audit-log?{query}>; rel=\"next\""),
        ));
    }
    Ok(response.json(found.entries.iter().map(present::entry).collect::<Vec<_>>()))
}
