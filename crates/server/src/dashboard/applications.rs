//! The applications of an account.

use actix_web::{HttpRequest, HttpResponse, get, post, web};
use askama::Template;
use serde::Deserialize;
use tollkey_core::{
    Application, ApplicationId, Family, FieldErrors, Preconditions, Problem, Status,
};
use tollkey_service::{Outcome, api_keys, applications, idempotency::CreationPermit};

use super::{
    fields::Fields,
    keys::{Choice, KeyView},
    once::{self, once},
    page::{self, Done, Frame, Time, can_be_corrected, see_other},
    session::SignedIn,
};
use crate::{
    body::{Body, Query},
    rejection::HandlerResult,
    state::State,
    surfaces::parameters::{paging, path_id},
};

const SECTION: &str = "applications";
const PAGE_SIZE: u32 = 50;
/// Maximum number of keys of an application that are shown and counted.
const MAX_KEYS: u32 = 100;
/// The status of keys that stop working with their application.
const AFFECTED_STATUS: Option<Status> = Some(Status::Active);

struct View {
    id: String,
    name: String,
    description: Option<String>,
    is_enabled: bool,
    created: Time,
}

impl From<&Application> for View {
    fn from(application: &Application) -> Self {
        Self {
            id: application.id.to_string(),
            name: application.name.clone(),
            description: application.description.clone(),
            is_enabled: application.is_enabled,
            created: Time(application.created_at),
        }
    }
}

/// Redirects to the page of an application, which shows this notice.
fn see_application(id: ApplicationId, done: &str) -> HttpResponse {
    see_other(&format!("/dashboard/applications/{id}?done={done}"))
}

#[derive(Deserialize)]
struct ListQuery {
    page: Option<u32>,
    done: Option<String>,
}

#[derive(Template)]
#[template(path = "applications.html")]
struct ListPage {
    frame: Frame,
    applications: Vec<View>,
    page: u64,
    pages: u64,
    total: u64,
}

#[get("/applications")]
pub(super) async fn list(
    state: web::Data<State>,
    visitor: SignedIn,
    query: Query,
) -> HandlerResult {
    let query: ListQuery = query.read()?;
    let (page, limit) = paging(query.page, Some(PAGE_SIZE))?;
    let found = applications::page(&state.service, &visitor.by, page, limit, false).await?;
    page::page(&ListPage {
        frame: Frame::of(&visitor, SECTION, "Applications")
            .done(query.done.as_deref(), &["deleted"]),
        applications: found
            .items
            .iter()
            .map(|(application, _)| View::from(application))
            .collect(),
        page: page.into(),
        pages: found.total.div_ceil(u64::from(PAGE_SIZE)),
        total: found.total,
    })
}

#[derive(Template)]
#[template(path = "application_form.html")]
struct FormPage {
    frame: Frame,
    /// The edited application; `None` to create one.
    application: Option<View>,
    fields: Fields,
}

impl FormPage {
    fn new(visitor: &SignedIn, application: Option<&Application>, fields: Fields) -> Self {
        let title = match application {
            Some(_) => "Edit application",
            None => "Create application",
        };
        Self {
            frame: Frame::of(visitor, SECTION, title),
            application: application.map(View::from),
            fields,
        }
    }
}

fn read(fields: &Fields) -> Result<(String, Option<String>), Problem> {
    let mut checks = FieldErrors::default();
    let name = checks.check("/name", Application::parse_name(fields.get("name")));
    let description = checks.check(
        "/description",
        Application::parse_description(fields.filled("description")),
    );
    let (Some(name), Some(description)) = (name, description) else {
        return Err(checks.into_problem());
    };
    Ok((name, description))
}

#[get("/applications/new")]
pub(super) async fn new(state: web::Data<State>, visitor: SignedIn) -> HandlerResult {
    let fields = once::untouched(&state, visitor.by.account_id.as_str());
    page::page(&FormPage::new(&visitor, None, fields))
}

#[post("/applications/new")]
pub(super) async fn create(
    state: web::Data<State>,
    visitor: SignedIn,
    request: HttpRequest,
    body: Body,
) -> HandlerResult {
    let (by, fields) = (&visitor.by, Fields::read(&body)?);
    let run = async |creating: CreationPermit<ApplicationId>| {
        let (name, description) = read(&fields)?;
        applications::create(&state.service, by, name, description, creating).await
    };
    let creator = (by.account_id.as_str(), &by.actor);
    let form = (request.path(), &fields, &body);
    match once(&state, creator, form, run).await {
        Ok(Outcome::Created(Application { id, .. }) | Outcome::Replayed(id)) => {
            Ok(see_application(id, "created"))
        }
        Ok(Outcome::ReplayedResponse(stored)) => Ok(once::redirect(&stored)),
        Err(problem) if can_be_corrected(&problem) => {
            let fields = once::with_errors(&state, by.account_id.as_str(), fields, &problem);
            page::rejected(&problem, &FormPage::new(&visitor, None, fields))
        }
        Err(problem) => Err(problem.into()),
    }
}

#[get("/applications/{id}/edit")]
pub(super) async fn edit(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
) -> HandlerResult {
    let application = applications::get(&state.service, &visitor.by, path_id(&id)?).await?;
    let fields = Fields::default()
        .with("name", application.name.clone())
        .with(
            "description",
            application.description.clone().unwrap_or_default(),
        );
    page::page(&FormPage::new(&visitor, Some(&application), fields))
}

#[post("/applications/{id}/edit")]
pub(super) async fn update(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
    body: Body,
) -> HandlerResult {
    let (by, id, fields) = (&visitor.by, path_id(&id)?, Fields::read(&body)?);
    let updated = match read(&fields) {
        Ok((name, description)) => {
            let (name, description) = (Some(name), Some(description));
            applications::update(
                &state.service,
                by,
                id,
                name,
                description,
                Preconditions::NONE,
            )
            .await
        }
        Err(problem) => Err(problem),
    };
    match updated {
        Ok(_) => Ok(see_application(id, "updated")),
        Err(problem) if can_be_corrected(&problem) => {
            let application = applications::get(&state.service, by, id).await?;
            let fields = fields.with_errors(&problem);
            page::rejected(
                &problem,
                &FormPage::new(&visitor, Some(&application), fields),
            )
        }
        Err(problem) => Err(problem.into()),
    }
}

struct ApplicationKeys {
    application: View,
    keys: Vec<KeyView>,
    more: bool,
}

impl ApplicationKeys {
    async fn of(
        state: &State,
        visitor: &SignedIn,
        id: ApplicationId,
        status: Option<Status>,
    ) -> Result<Self, Problem> {
        let by = &visitor.by;
        let application = applications::get(&state.service, by, id).await?;
        let key_query = api_keys::KeyQuery {
            application: Some(id),
            status,
            ..api_keys::KeyQuery::of(&[Family::Application])
        };
        let found = api_keys::list(&state.service, by, key_query, None, MAX_KEYS).await?;
        let now = state.service.clock.now();
        let choice = [Choice::from(application.clone())];
        let keys = found
            .keys
            .iter()
            .map(|key| KeyView::new(key, &choice, now))
            .collect();
        Ok(Self {
            application: View::from(&application),
            keys,
            more: found.next.is_some(),
        })
    }
}

#[derive(Template)]
#[template(path = "application.html")]
struct ShowPage {
    frame: Frame,
    whole: ApplicationKeys,
}

#[get("/applications/{id}")]
pub(super) async fn show(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
    query: Query,
) -> HandlerResult {
    let Done { done } = query.read()?;
    let whole = ApplicationKeys::of(&state, &visitor, path_id(&id)?, None).await?;
    let notices: &[&str] = match (whole.application.is_enabled, whole.keys.is_empty()) {
        (false, _) => &["updated", "disabled"],
        (true, true) => &["updated", "enabled", "created"],
        (true, false) => &["updated", "enabled"],
    };
    let frame =
        Frame::of(&visitor, SECTION, whole.application.name.clone()).done(done.as_deref(), notices);
    page::page(&ShowPage { frame, whole })
}

#[derive(Template)]
#[template(path = "application_stop.html")]
struct StopPage {
    frame: Frame,
    whole: ApplicationKeys,
    is_deletion: bool,
    fields: Fields,
}

impl StopPage {
    fn new(visitor: &SignedIn, whole: ApplicationKeys, is_deletion: bool, fields: Fields) -> Self {
        let title = if is_deletion {
            "Delete application"
        } else {
            "Disable application"
        };
        Self {
            frame: Frame::of(visitor, SECTION, title),
            whole,
            is_deletion,
            fields,
        }
    }
}

#[get("/applications/{id}/disable")]
pub(super) async fn ask_disable(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
) -> HandlerResult {
    let whole = ApplicationKeys::of(&state, &visitor, path_id(&id)?, AFFECTED_STATUS).await?;
    page::page(&StopPage::new(&visitor, whole, false, Fields::default()))
}

#[post("/applications/{id}/disable")]
pub(super) async fn disable(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
) -> HandlerResult {
    let id = path_id(&id)?;
    applications::set_enabled(&state.service, &visitor.by, id, false, Preconditions::NONE).await?;
    Ok(see_application(id, "disabled"))
}

#[post("/applications/{id}/enable")]
pub(super) async fn enable(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
) -> HandlerResult {
    let id = path_id(&id)?;
    applications::set_enabled(&state.service, &visitor.by, id, true, Preconditions::NONE).await?;
    Ok(see_application(id, "enabled"))
}

#[get("/applications/{id}/delete")]
pub(super) async fn ask_delete(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
) -> HandlerResult {
    let whole = ApplicationKeys::of(&state, &visitor, path_id(&id)?, AFFECTED_STATUS).await?;
    page::page(&StopPage::new(&visitor, whole, true, Fields::default()))
}

#[post("/applications/{id}/delete")]
pub(super) async fn delete(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
    body: Body,
) -> HandlerResult {
    let (id, fields) = (path_id(&id)?, Fields::read(&body)?);
    let whole = ApplicationKeys::of(&state, &visitor, id, AFFECTED_STATUS).await?;
    if !fields.confirms("confirm", &whole.application.name) {
        let problem = Problem::field("/confirm", "is not the name of the application");
        let page = StopPage::new(&visitor, whole, true, fields.with_errors(&problem));
        return page::rejected(&problem, &page);
    }
    applications::delete(&state.service, &visitor.by, id, Preconditions::NONE).await?;
    Ok(see_other("/dashboard/applications?done=deleted"))
}
