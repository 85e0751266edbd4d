//! The settings, which all sessions can read and operators can change.

use actix_web::{HttpRequest, get, post, web};
use askama::Template;
use tollkey_core::{AccountId, OperatingModel, Preconditions, Problem, ServiceKey, ServiceKeyId};
use tollkey_service::{
    Outcome, accounts,
    idempotency::CreationPermit,
    service_keys::{self, CreatedServiceKey},
    sessions,
};

use super::{
    fields::Fields,
    once::{self, once},
    page::{self, Done, Frame, Time, can_be_corrected, see_other},
    session::{SignedIn, Visitor},
};
use crate::{
    body::{Body, Query},
    rejection::HandlerResult,
    state::State,
    surfaces::parameters::path_id,
};

const SECTION: &str = "settings";
/// Service keys belong to no account.
const NO_ACCOUNT: &str = "";

struct ServiceKeyView {
    id: String,
    name: String,
    last4: String,
    created: Time,
    revoked: Option<Time>,
}

impl From<&ServiceKey> for ServiceKeyView {
    fn from(key: &ServiceKey) -> Self {
        Self {
            id: key.id.to_string(),
            name: key.name.clone(),
            last4: key.last4.clone(),
            created: Time(key.created_at),
            revoked: key.revoked_at.map(Time),
        }
    }
}

struct Model {
    name: &'static str,
    label: &'static str,
    hint: &'static str,
    is_chosen: bool,
}

fn models(chosen: OperatingModel) -> Vec<Model> {
    let texts = |model| match model {
        OperatingModel::PrimaryMerchant => ("Primary merchant", "One merchant. No scoped keys."),
        OperatingModel::Platform => ("Platform", "A platform or marketplace. No scoped keys."),
        OperatingModel::Ecosystem => (
            "Ecosystem",
            "Keys can be restricted to merchants and features.",
        ),
        OperatingModel::ManagedEcosystem => (
            "Managed ecosystem",
            "Keys can be restricted to merchants, and can only forward requests.",
        ),
    };
    OperatingModel::ALL
        .into_iter()
        .map(|model| {
            let (label, hint) = texts(model);
            Model {
                name: model.as_str(),
                label,
                hint,
                is_chosen: model == chosen,
            }
        })
        .collect()
}

#[derive(Template)]
#[template(path = "settings.html")]
struct SettingsPage {
    frame: Frame,
    account: String,
    is_operator: bool,
    models: Vec<Model>,
    application_key_limit: u32,
    account_key_limit: Option<u32>,
    scopes: Vec<String>,
    service_keys: Vec<ServiceKeyView>,
    fields: Fields,
}

impl SettingsPage {
    async fn new(state: &State, visitor: &SignedIn, fields: Fields) -> Result<Self, Problem> {
        let model = accounts::get(&state.service, visitor.by.account_id.clone())
            .await?
            .operating_model;
        let is_operator = visitor.session.is_operator;
        // Service keys belong to the operator, so sessions of accounts do not list them.
        let keys = if is_operator {
            service_keys::list(&state.service).await?
        } else {
            Vec::new()
        };
        Ok(Self {
            frame: Frame::of(visitor, SECTION, "Settings"),
            account: visitor.by.account_id.to_string(),
            is_operator,
            models: models(model),
            application_key_limit: state.service.limits.application_keys,
            account_key_limit: state.service.limits.account_keys,
            scopes: state
                .service
                .catalogue
                .scopes()
                .iter()
                .map(ToString::to_string)
                .collect(),
            service_keys: keys.iter().map(ServiceKeyView::from).collect(),
            fields,
        })
    }
}

#[get("/settings")]
pub(super) async fn show(
    state: web::Data<State>,
    visitor: SignedIn,
    query: Query,
) -> HandlerResult {
    let Done { done } = query.read()?;
    let mut settings =
        SettingsPage::new(&state, &visitor, once::untouched(&state, NO_ACCOUNT)).await?;
    settings.frame = settings
        .frame
        .done(done.as_deref(), &["model", "once", "service-key-revoked"]);
    page::page(&settings)
}

#[post("/settings/operating-model")]
pub(super) async fn set_model(
    state: web::Data<State>,
    visitor: SignedIn,
    body: Body,
) -> HandlerResult {
    visitor.operator()?;
    let fields = Fields::read(&body)?;
    let account = visitor.by.account_id.as_str();
    if fields.get("account") != account {
        return Err(once::for_another_account(account).into());
    }
    let model = fields.get("operating_model").parse();
    let model: OperatingModel =
        model.map_err(|_| Problem::field("operating_model", "is not one of the choices"))?;
    let by = &visitor.by;
    accounts::set_operating_model(&state.service, by, model, Preconditions::NONE).await?;
    Ok(see_other("/dashboard/settings?done=model"))
}

#[derive(Template)]
#[template(path = "service_key_created.html")]
struct CreatedPage<'a> {
    frame: Frame,
    name: &'a str,
    text: &'a str,
}

#[post("/settings/service-keys")]
pub(super) async fn create_service_key(
    state: web::Data<State>,
    visitor: SignedIn,
    request: HttpRequest,
    body: Body,
) -> HandlerResult {
    let (actor, fields) = (visitor.operator()?, Fields::read(&body)?);
    let run = async |creating: CreationPermit<ServiceKeyId>| {
        let name = ServiceKey::parse_name(fields.get("name"))
            .map_err(|rule| Problem::field("/name", rule.to_string()))?;
        service_keys::create_once(&state.service, &actor.id, name, creating).await
    };
    let creator = (NO_ACCOUNT, actor);
    let form = (request.path(), &fields, &body);
    match once(&state, creator, form, run).await {
        Ok(Outcome::Created(CreatedServiceKey { key, text })) => {
            let frame = Frame::of(&visitor, SECTION, "Service key created");
            page::page(&CreatedPage {
                frame,
                name: &key.name,
                text: text.expose(),
            })
        }
        Ok(Outcome::Replayed(_)) => Ok(see_other("/dashboard/settings?done=once")),
        Ok(Outcome::ReplayedResponse(stored)) => Ok(once::redirect(&stored)),
        Err(problem) if can_be_corrected(&problem) => {
            let fields = once::with_errors(&state, NO_ACCOUNT, fields, &problem);
            page::rejected(
                &problem,
                &SettingsPage::new(&state, &visitor, fields).await?,
            )
        }
        Err(problem) => Err(problem.into()),
    }
}

#[derive(Template)]
#[template(path = "service_key_revoke.html")]
struct RevokePage {
    frame: Frame,
    key: ServiceKeyView,
}

#[get("/settings/service-keys/{id}/revoke")]
pub(super) async fn ask_revoke_service_key(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
) -> HandlerResult {
    visitor.operator()?;
    let id: ServiceKeyId = path_id(&id)?;
    let key = service_keys::get(&state.service, id).await?;
    page::page(&RevokePage {
        frame: Frame::of(&visitor, SECTION, "Revoke service key"),
        key: (&key).into(),
    })
}

#[post("/settings/service-keys/{id}/revoke")]
pub(super) async fn revoke_service_key(
    state: web::Data<State>,
    visitor: SignedIn,
    id: web::Path<String>,
) -> HandlerResult {
    let actor = visitor.operator()?;
    let id = path_id(&id)?;
    service_keys::revoke(&state.service, &actor.id, id, Preconditions::NONE).await?;
    Ok(see_other("/dashboard/settings?done=service-key-revoked"))
}

#[derive(Template)]
#[template(path = "account.html")]
struct AccountPage {
    frame: Frame,
    fields: Fields,
}

impl AccountPage {
    fn new(visitor: &Visitor, fields: Fields) -> Self {
        Self {
            frame: Frame::of_session(
                &visitor.active.session,
                &visitor.root,
                "",
                "Choose an account",
            ),
            fields,
        }
    }
}

/// There is no list of accounts: any valid ID is an account.
#[get("/account")]
pub(super) async fn ask_account(visitor: Visitor) -> HandlerResult {
    visitor.operator()?;
    let account = visitor
        .active
        .session
        .account_id
        .as_ref()
        .map(ToString::to_string)
        .unwrap_or_default();
    page::page(&AccountPage::new(
        &visitor,
        Fields::default().with("account", account),
    ))
}

#[post("/account")]
pub(super) async fn choose_account(
    state: web::Data<State>,
    visitor: Visitor,
    body: Body,
) -> HandlerResult {
    visitor.operator()?;
    let fields = Fields::read(&body)?;
    match fields.get("account").parse::<AccountId>() {
        Ok(account) => {
            sessions::choose_account(&state.service, &visitor.active, account).await?;
            Ok(see_other("/dashboard/keys?done=account"))
        }
        Err(rule) => {
            let problem = Problem::field("/account", rule.to_string());
            page::rejected(
                &problem,
                &AccountPage::new(&visitor, fields.with_errors(&problem)),
            )
        }
    }
}
