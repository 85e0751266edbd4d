//! Applications to choose from, and the applications of listed keys.

use tollkey_core::{ApiKey, Application, ApplicationId, Problem};
use tollkey_service::{RequestActor, applications};

use crate::state::State;

/// How many applications can be chosen from.
const APPLICATIONS: u32 = 100;

#[derive(Debug, Clone)]
pub(in super::super) struct Choice {
    pub(in super::super) id: String,
    pub(in super::super) name: String,
    pub(in super::super) is_enabled: bool,
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

/// Returns the newest applications, and these.
pub(super) async fn choices(
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

pub(super) async fn application_of(
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
