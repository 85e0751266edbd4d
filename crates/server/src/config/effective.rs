//! The settings in effect, each with where its value was found: what `tollkey config check` prints.

use super::{
    Database,
    declared::{DATABASE_URL, FORMER, SECRETS, SETTINGS},
    setting::Setting,
    sources::{ConfigError, Source, Sources},
};

/// A setting in effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveSetting {
    /// Its variable.
    pub name: &'static str,
    /// Its value, or what stands for a secret. Never the secret itself. `None` where it has none.
    pub value: Option<String>,
    /// Where the value was found.
    pub from: Source,
}

/// What is shown instead of a secret.
const HIDDEN: &str = "(hidden)";

/// Returns all settings in effect. `derived` are the values of those whose default depends on something else, `renamed` the
/// former names in use, each with the name of its setting.
pub(super) fn effective(
    sources: &Sources<'_>,
    database: &Database,
    derived: &[(&Setting, String)],
    renamed: &[(&str, &str)],
) -> Result<Vec<EffectiveSetting>, ConfigError> {
    let mut all = Vec::new();
    for setting in SETTINGS {
        let secret = SECRETS.iter().find(|(secret, _)| secret.env == setting.env);
        let former = renamed.iter().find(|(_, name)| *name == setting.env);
        let former = former.and_then(|(former, _)| FORMER.iter().find(|it| it.env == *former));
        let own = sources.get(former.unwrap_or(setting))?;
        // A secret in a file is the value of its setting, too, and the setting's default does not count beside it.
        let file = match secret {
            Some((_, file)) => sources.get(file)?,
            None => None,
        };
        let (value, from) = match (own, file) {
            (_, Some(file)) => (
                Some(HIDDEN.to_owned()),
                Source::File(file.text.as_str().into()),
            ),
            (Some(own), None) => {
                let text = if secret.is_some() {
                    HIDDEN.to_owned()
                } else {
                    own.text.as_str().to_owned()
                };
                (Some(text), own.from)
            }
            (None, None) => {
                let derived = derived.iter().find(|(it, _)| it.env == setting.env);
                (derived.map(|(_, value)| value.clone()), Source::Default)
            }
        };
        let is_database = setting.env == DATABASE_URL.env;
        let value = if is_database {
            Some(database.url.target())
        } else {
            value
        };
        all.push(EffectiveSetting {
            name: setting.env,
            value,
            from,
        });
    }
    Ok(all)
}
