//! The keys of an account.

mod form;
mod view;

use actix_web::{
    HttpRequest, HttpResponse, get,
    http::header::{HOST, ORIGIN},
    post, web,
};
use askama::Template;
use serde::Deserialize;
use tollkey_core::{
    ApiKey, Application, ApplicationId, Checks, Family, Invalid, KeyId, KeyText, Problem, Status,
    api_key::Unchangeable, audit::Action, key_text::Kind, text, time::day,
};

pub(super) use self::view::KeyView;
use self::{
    form::{NewKeyForm, Wish},
    view::{EffectiveStatus, Usage},
};
use super::{
    audit::EntryView,
    fields::Fields,
    once::{self, once},
    page::{self, Done, Frame, can_be_mended, see_other, whole_window},
    session::SignedIn,
};
use crate::{
    body::{Body, Query},
    rejection::HandlerResult,
    state::State,
    surfaces::{members, parameters::path_id},
};
use tollkey_service::{
    Outcome, RequestActor, accounts,
    api_keys::{self, CreatedKey},
    applications, audit,
    idempotency::Creating,
};

const SECTION: &str = "keys";
/// How many keys a page shows.
const SHOWN: u32 = 50;
/// How many applications can be chosen from.
const APPLICATIONS: u32 = 100;
/// For how many days usage is shown, today included.
const USAGE_DAYS: i32 = 30;
/// How many audit entries are shown beside a key.
const ENTRIES: u32 = 20;

/// What the list is asked for. What is empty was left as it is in the form.
#[derive(Debug, Clone, Default, Deserialize)]
struct Asked {
    #[serde(default)]
    q: String,
    #[serde(default)]
    mode: String,
    #[serde(default)]
    status: String,
    #[serde(default)]
    application: String,
    #[serde(default)]
    cursor: String,
    done: Option<String>,
}

impl Asked {
    fn is_filtered(&self) -> bool {
        [&self.q, &self.mode, &self.status, &self.application]
            .iter()
            .any(|field| !field.is_empty())
    }

    fn wanted(&self) -> Result<api_keys::KeyQuery, Problem> {
        let filled = |field: &'static str, text: &str| {
            Some(text.trim().to_owned())
                .filter(|_| !text.trim().is_empty())
                .map(|text| (field, text))
        };
        fn read<T: std::str::FromStr>(
            field: Option<(&'static str, String)>,
        ) -> Result<Option<T>, Problem> {
            field
                .map(|(name, text)| {
                    text.parse()
                        .map_err(|_| Problem::field(name, "is not one of the choices"))
                })
                .transpose()
        }
        let status = filled("status", &self.status).map(|(name, text)| {
            let known = EffectiveStatus::ALL
                .into_iter()
                .find(|status| status.as_str() == text);
            known.ok_or_else(|| Problem::field(name, "is not one of the choices"))
        });
        let (status, application_enabled) = status
            .transpose()?
            .map(EffectiveStatus::filter)
            .map_or((None, None), |(status, enabled)| (Some(status), enabled));
        Ok(api_keys::KeyQuery {
            mode: read(filled("mode", &self.mode))?,
            status,
            application_enabled,
            application: read(filled("application", &self.application))?,
            text: text::search(Some(&self.q))
                .map_err(|rule| Problem::field("q", rule.to_string()))?,
            ..api_keys::KeyQuery::of(&Family::ALL)
        })
    }

    /// The same list, behind that place.
    fn from(&self, cursor: String) -> String {
        let pairs = [
            ("q", self.q.as_str()),
            ("mode", &self.mode),
            ("status", &self.status),
            ("application", &self.application),
            ("cursor", &cursor),
        ];
        let filled: Vec<_> = pairs
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .collect();
        format!(
            "/dashboard/keys?{}",
            serde_urlencoded::to_string(filled).unwrap_or_default()
        )
    }
}

/// An application to choose.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    pub(super) id: String,
    pub(super) name: String,
    pub(super) is_enabled: bool,
}

impl From<Application> for Choice {
    fn from(application: Application) -> Self {
        Self {
            id: application.id.to_string(),
            name: application.name,
            is_enabled: application.is_enabled,
        }
    }
}

/// The newest applications, and these.
async fn choices(
    state: &State,
    by: &RequestActor,
    these: impl IntoIterator<Item = ApplicationId>,
) -> Result<Vec<Choice>, Problem> {
    let found = applications::newest_and(
        &state.service,
        by,
        APPLICATIONS,
        these.into_iter().collect(),
    )
    .await?;
    let mut choices: Vec<Choice> = found.into_iter().map(Choice::from).collect();
    choices.sort_by_key(|choice| choice.name.to_lowercase());
    Ok(choices)
}

/// The application of a key, if it has one.
async fn application_of(
    state: &State,
    by: &RequestActor,
    key: &ApiKey,
) -> Result<Vec<Choice>, Problem> {
    let Some(id) = key.application_id else {
        return Ok(Vec::new());
    };
    let found = applications::newest_and(&state.service, by, 0, [id].into()).await?;
    Ok(found.into_iter().map(Choice::from).collect())
}

#[derive(Template)]
#[template(path = "keys.html")]
struct ListPage {
    frame: Frame,
    statuses: [EffectiveStatus; 5],
    asked: Asked,
    keys: Vec<KeyView>,
    applications: Vec<Choice>,
    next: Option<String>,
    /// The page is not full although the list goes on: the search has examined as many keys as a page may.
    is_partial: bool,
}

/// Whether a text that is looked for has a key in it.
pub(super) fn has_secret(text: &str) -> bool {
    text.split_whitespace().any(|word| Kind::of(word).is_some())
}

/// To the list, where somebody looked for a key by its text: that must not stay in the address bar.
pub(super) fn pasted(request: &HttpRequest, place: &str) -> HttpResponse {
    whole_window(request.headers(), &format!("{place}?done=pasted"))
}

#[get("/keys")]
pub(super) async fn list(
    state: web::Data<State>,
    visitor: SignedIn,
    request: HttpRequest,
    query: Query,
) -> HandlerResult {
    let asked: Asked = query.read()?;
    if has_secret(&asked.q) {
        return Ok(pasted(&request, "/dashboard/keys"));
    }
    let by = &visitor.by;
    let cursor = Some(asked.cursor.as_str()).filter(|cursor| !cursor.is_empty());
    let (limit, after) = members::listing(Some(SHOWN), cursor)?;
    let wanted = asked.wanted()?;
    let asked_for = wanted.application;
    let found = api_keys::list(&state.service, by, wanted, after, limit).await?;
    let shown = found.keys.iter().filter_map(|key| key.application_id);
    let applications = choices(&state, by, shown.chain(asked_for)).await?;
    let now = state.service.clock.now();
    let is_partial = found.next.is_some() && found.keys.len() < limit as usize;
    page::page(&ListPage {
        is_partial,
        statuses: EffectiveStatus::ALL,
        frame: Frame::of(&visitor, SECTION, "API keys")
            .done(asked.done.as_deref(), &["account", "pasted"]),
        keys: found
            .keys
            .iter()
            .map(|key| KeyView::new(key, &applications, now))
            .collect(),
        next: found
            .next
            .map(|next| asked.from(members::shown_cursor(next))),
        applications,
        asked,
    })
}

#[derive(Deserialize)]
struct NewFor {
    #[serde(default)]
    application: String,
}

#[derive(Template)]
#[template(path = "key_new.html")]
struct NewPage {
    frame: Frame,
    form: NewKeyForm,
    fields: Fields,
}

impl NewPage {
    async fn new(state: &State, visitor: &SignedIn, fields: Fields) -> Result<Self, Problem> {
        let model = accounts::get(&state.service, visitor.by.account_id.clone())
            .await?
            .operating_model;
        let chosen = fields.get("application").parse().ok();
        let form = NewKeyForm::new(state, model, choices(state, &visitor.by, chosen).await?);
        Ok(Self {
            frame: Frame::of(visitor, SECTION, "New key"),
            form,
            fields,
        })
    }
}

#[get("/keys/new")]
pub(super) async fn new(state: web::Data<State>, visitor: SignedIn, query: Query) -> HandlerResult {
    let NewFor { application } = query.read()?;
    let fields = NewKeyForm::untouched(&state, visitor.by.account_id.as_str(), &application);
    page::page(&NewPage::new(&state, &visitor, fields).await?)
}

#[derive(Template)]
#[template(path = "key_created.html")]
struct CreatedPage<'a> {
    frame: Frame,
    key: KeyView,
    text: &'a str,
    /// Where this server is, as the browser has it.
    base: String,
    is_successor: bool,
}

#[post("/keys/new")]
pub(super) async fn create(
    state: web::Data<State>,
    visitor: SignedIn,
    request: HttpRequest,
    body: Body,
) -> HandlerResult {
    let fields = Fields::read(&body)?;
    let by = &visitor.by;
    let run = async |creating: Creating<KeyId>| {
        let Wish {
            family,
            application,
            key,
        } = form::read(&fields, &state.service.catalogue, state.service.clock.now())?;
        match application {
            Some(id) => {
                api_keys::create_for_application(&state.service, by, id, key, creating).await
            }
            None => api_keys::create(&state.service, by, family, key, creating).await,
        }
    };
    match once(
        &state,
        (by.account_id.as_str(), &by.actor),
        request.path(),
        (&fields, &body),
        run,
    )
    .await
    {
        Ok(Outcome::Created(CreatedKey { key, text })) => {
            shown_once(&state, &visitor, &request, &key, &text)
        }
        Ok(Outcome::Replayed(id)) => Ok(see_other(&format!("/dashboard/keys/{id}?done=once"))),
        Ok(Outcome::ReplayedResponse(stored)) => Ok(once::redirect(&stored)),
        Err(problem) if can_be_mended(&problem) => {
            let fields = once::refused(&state, by.account_id.as_str(), fields, &problem);
            page::refused(&problem, &NewPage::new(&state, &visitor, fields).await?)
        }
        Err(problem) => Err(problem.into()),
    }
}

/// The one page that shows the text of a key.
fn shown_once(
    state: &State,
    visitor: &SignedIn,
    request: &HttpRequest,
    key: &ApiKey,
    text: &KeyText,
) -> HandlerResult {
    // The origin that the browser uses, which a proxy may hide from the server: a form has it in `Origin`.
    let header = |name| {
        request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    let base = header(ORIGIN)
        .filter(|origin| *origin != "null")
        .map(str::to_owned);
    let base = base.unwrap_or_else(|| format!("https://{}", header(HOST).unwrap_or_default()))
        + state.public_path.path("").as_str();
    page::page(&CreatedPage {
        frame: Frame::of(visitor, SECTION, "Your new key"),
        key: KeyView::new(key, &[], state.service.clock.now()),
        text: text.expose(),
        base,
        is_successor: key.rotated_from.is_some(),
    })
}

#[derive(Template)]
#[template(path = "key.html")]
struct KeyPage {
    frame: Frame,
    key: KeyView,
    usage: Usage,
    entries: Vec<EntryView>,
    /// The entry of the rotation that created this key, and its predecessor. The entry's target is the predecessor.
    creation: Option<(EntryView, KeyView)>,
    /// The key that is to take over, and whether this one is still needed.
    successor: Option<KeyView>,
}

#[get("/keys/{id}")]
pub(super) async fn show(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
    query: Query,
) -> HandlerResult {
    let Done { done } = query.read()?;
    let (by, id) = (&visitor.by, path_id(&id)?);
    let key = api_keys::get(&state.service, by, &Family::ALL, id).await?;
    let now = state.service.clock.now();
    let today = day(now);
    let usage = api_keys::usage(&state.service, by, id, today - USAGE_DAYS + 1).await?;
    let about = audit::Filter {
        limit: ENTRIES,
        target_id: Some(id.to_string()),
        ..audit::Filter::default()
    };
    let found = audit::list(&state.service, by, about).await?;
    let creation = match key.rotated_from {
        Some(predecessor) if found.next.is_none() => creation_of(&state, by, predecessor).await?,
        _ => None,
    };
    let applications = application_of(&state, by, &key).await?;
    // What the address says was done is told while it is so: anybody can make a link.
    let told: &[&str] = match key.status(now) {
        Status::Revoked => &["once", "revoked"],
        Status::Suspended => &["once", "suspended"],
        Status::Active => &["once", "resumed"],
        _ => &["once"],
    };
    let successor = match key.rotated_to {
        Some(successor) => Some(api_keys::get(&state.service, by, &Family::ALL, successor).await?),
        None => None,
    };
    page::page(&KeyPage {
        frame: Frame::of(&visitor, SECTION, key.name.clone()).done(done.as_deref(), told),
        key: KeyView::new(&key, &applications, now),
        usage: Usage::new(&usage, today, USAGE_DAYS),
        entries: found.entries.iter().map(EntryView::from).collect(),
        creation,
        successor: successor.map(|key| KeyView::new(&key, &applications, now)),
    })
}

/// The audit entry of the rotation of a key, and the key.
async fn creation_of(
    state: &State,
    by: &RequestActor,
    id: KeyId,
) -> Result<Option<(EntryView, KeyView)>, Problem> {
    let rotation = audit::Filter {
        limit: 1,
        action: Some(Action::ApiKeyRotated),
        target_id: Some(id.to_string()),
        ..audit::Filter::default()
    };
    let found = audit::list(&state.service, by, rotation).await?;
    let Some(entry) = found.entries.first() else {
        return Ok(None);
    };
    let predecessor = api_keys::get(&state.service, by, &Family::ALL, id).await?;
    Ok(Some((
        EntryView::from(entry),
        KeyView::new(&predecessor, &[], state.service.clock.now()),
    )))
}

#[derive(Template)]
#[template(path = "key_revoke.html")]
struct RevokePage {
    frame: Frame,
    key: KeyView,
    fields: Fields,
}

impl RevokePage {
    async fn new(
        state: &State,
        visitor: &SignedIn,
        id: KeyId,
        fields: Fields,
    ) -> Result<Self, Problem> {
        let key = api_keys::get(&state.service, &visitor.by, &Family::ALL, id).await?;
        let applications = application_of(state, &visitor.by, &key).await?;
        let key = KeyView::new(&key, &applications, state.service.clock.now());
        Ok(Self {
            frame: Frame::of(visitor, SECTION, "Revoke a key"),
            key,
            fields,
        })
    }
}

#[get("/keys/{id}/revoke")]
pub(super) async fn ask_revoke(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
) -> HandlerResult {
    page::page(&RevokePage::new(&state, &visitor, path_id(&id)?, Fields::default()).await?)
}

#[post("/keys/{id}/revoke")]
pub(super) async fn revoke(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
    body: Body,
) -> HandlerResult {
    let (by, id, fields) = (&visitor.by, path_id(&id)?, Fields::read(&body)?);
    let name = api_keys::get(&state.service, by, &Family::ALL, id)
        .await?
        .name;
    let mut checks = Checks::default();
    let confirmed = if fields.confirms("confirm", &name) {
        Ok(())
    } else {
        Err(Invalid::new("is not the name of the key"))
    };
    let confirmed = checks.member("/confirm", confirmed);
    let reason = checks.member("/reason", text::optional(fields.filled("reason"), 255));
    let (Some(()), Some(reason)) = (confirmed, reason) else {
        let problem = checks.into_problem();
        return page::refused(
            &problem,
            &RevokePage::new(&state, &visitor, id, fields.refused(&problem)).await?,
        );
    };
    api_keys::revoke(&state.service, by, &Family::ALL, id, reason).await?;
    Ok(see_other(&format!("/dashboard/keys/{id}?done=revoked")))
}

#[derive(Template)]
#[template(path = "key_rotate.html")]
struct RotatePage {
    frame: Frame,
    key: KeyView,
    /// Why the key cannot be rotated; then the page has no form.
    obstacle: Option<Unchangeable>,
    fields: Fields,
}

impl RotatePage {
    async fn new(
        state: &State,
        visitor: &SignedIn,
        id: KeyId,
        fields: Fields,
    ) -> Result<Self, Problem> {
        let key = api_keys::get(&state.service, &visitor.by, api_keys::COMMERCE, id).await?;
        let now = state.service.clock.now();
        let (obstacle, key) = (key.rotatable(now).err(), KeyView::new(&key, &[], now));
        Ok(Self {
            frame: Frame::of(visitor, SECTION, "Rotate a key"),
            key,
            obstacle,
            fields,
        })
    }
}

#[get("/keys/{id}/rotate")]
pub(super) async fn ask_rotate(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
) -> HandlerResult {
    let fields = once::untouched(&state, visitor.by.account_id.as_str()).with("overlap", "86400");
    page::page(&RotatePage::new(&state, &visitor, path_id(&id)?, fields).await?)
}

#[post("/keys/{id}/rotate")]
pub(super) async fn rotate(
    state: web::Data<State>,
    visitor: SignedIn,
    request: HttpRequest,
    id: web::Path<String>,
    body: Body,
) -> HandlerResult {
    let (by, id, fields) = (&visitor.by, path_id(&id)?, Fields::read(&body)?);
    let run = async |creating: Creating<KeyId>| {
        let overlap =
            form::overlap(&fields).map_err(|rule| Problem::field("/overlap", rule.to_string()))?;
        api_keys::rotate(&state.service, by, id, overlap, creating).await
    };
    match once(
        &state,
        (by.account_id.as_str(), &by.actor),
        request.path(),
        (&fields, &body),
        run,
    )
    .await
    {
        Ok(Outcome::Created(CreatedKey { key, text })) => {
            shown_once(&state, &visitor, &request, &key, &text)
        }
        Ok(Outcome::Replayed(id)) => Ok(see_other(&format!("/dashboard/keys/{id}?done=once"))),
        Ok(Outcome::ReplayedResponse(stored)) => Ok(once::redirect(&stored)),
        Err(problem) if can_be_mended(&problem) => {
            let fields = once::refused(&state, by.account_id.as_str(), fields, &problem);
            page::refused(
                &problem,
                &RotatePage::new(&state, &visitor, id, fields).await?,
            )
        }
        Err(problem) => Err(problem.into()),
    }
}

#[post("/keys/{id}/suspend")]
pub(super) async fn suspend(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
) -> HandlerResult {
    let key = api_keys::suspend(&state.service, &visitor.by, path_id(&id)?).await?;
    Ok(see_other(&format!(
        "/dashboard/keys/{}?done=suspended",
        key.id
    )))
}

#[post("/keys/{id}/resume")]
pub(super) async fn resume(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
) -> HandlerResult {
    let key = api_keys::resume(&state.service, &visitor.by, path_id(&id)?).await?;
    Ok(see_other(&format!(
        "/dashboard/keys/{}?done=resumed",
        key.id
    )))
}
