//! The settings in effect, each with where its value was found: what `tollkey config check` prints.

use super::{
    ConfigError, Database, DatabaseKind, Setting, Source,
    declared::{DATABASE_URL, SECRETS, SETTINGS},
    sources::Sources,
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

/// Returns all settings in effect. `derived` are the values of those whose default depends on something else.
pub(super) fn effective(
    sources: &Sources<'_>,
    database: &Database,
    derived: &[(&Setting, String)],
) -> Result<Vec<EffectiveSetting>, ConfigError> {
    let mut all = Vec::new();
    for setting in SETTINGS {
        let secret = SECRETS.iter().find(|(secret, _)| secret.env == setting.env);
        let own = sources.get(setting)?;
        // A secret in a file is the value of its setting, too, and the setting's default does not count beside it.
        let file = match secret {
            Some((_, file)) => sources.get(file)?,
            None => None,
        };
        let (value, from) = match (own, file) {
            (_, Some(file)) => (Some(HIDDEN.to_owned()), Source::File(file.text.as_str().into())),
            (Some(own), None) => {
                let text = if secret.is_some() { HIDDEN.to_owned() } else { own.text.as_str().to_owned() };
                (Some(text), own.from)
            }
            (None, None) => {
                let derived = derived.iter().find(|(it, _)| it.env == setting.env);
                (derived.map(|(_, value)| value.clone()), Source::Default)
            }
        };
        let is_database = setting.env == DATABASE_URL.env;
        let value = if is_database { Some(database.location()) } else { value };
        all.push(EffectiveSetting { name: setting.env, value, from });
    }
    Ok(all)
}

impl Database {
    /// Returns `SQLite` or `PostgreSQL`.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        match self.kind {
            DatabaseKind::Postgres => "PostgreSQL",
            DatabaseKind::SqliteFile(_) | DatabaseKind::SqliteMemory => "SQLite",
        }
    }

    /// Returns the file, or host, port and name of the database: never a user or a password.
    #[must_use]
    pub fn location(&self) -> String {
        match &self.kind {
            DatabaseKind::SqliteMemory => "sqlite://:memory:".to_owned(),
            DatabaseKind::SqliteFile(path) => format!("sqlite://{}", path.display()),
            DatabaseKind::Postgres => postgres_location(self.url.expose()),
        }
    }
}

/// The URL without user, password and parameters. Of the parameters only a host, a port and a database name are shown.
fn postgres_location(url: &str) -> String {
    const UNCLEAR: &str = "postgres://(unclear)";
    let Some((_, rest)) = url.split_once("://") else { return UNCLEAR.to_owned() };
    let (rest, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, name) = rest.split_once('/').unwrap_or((rest, ""));
    let hosts = authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts);
    // A password with an unescaped `/` or `@` would show up here: only what can be a host and a name is shown.
    let is_host = |c: char| c.is_ascii_alphanumeric() || "-._:,[]".contains(c);
    let is_name = |c: char| c.is_alphanumeric() || "-_.%".contains(c);
    let unescaped_slash = name.contains(['/', '@']) || authority.rsplit_once('@').is_none() && rest.contains('@');
    // What is no port behind a host is a part of a password.
    let has_port = |host: &str| match host.rsplit_once(':') {
        Some((_, port)) if !host.ends_with(']') => port.is_empty() || port.parse::<u16>().is_ok(),
        _ => true,
    };
    let is_clear = hosts.chars().all(is_host) && hosts.split(',').all(has_port) && name.chars().all(is_name);
    if !is_clear || unescaped_slash || parameters.contains('@') {
        return UNCLEAR.to_owned();
    }
    let parameter = |wanted: &str| {
        let pairs = form_urlencoded::parse(parameters.as_bytes());
        pairs.filter(|(own, _)| own == wanted).map(|(_, value)| value.into_owned()).last()
    };
    let host = parameter("host").filter(|host| host.chars().all(|c| is_host(c) || c == '/'));
    let host = host.unwrap_or_else(|| hosts.to_owned());
    let port = parameter("port").filter(|port| port.parse::<u16>().is_ok());
    let name = parameter("dbname").filter(|name| name.chars().all(is_name)).unwrap_or_else(|| name.to_owned());
    let host = if host.is_empty() { "(local socket)" } else { &host };
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    format!("postgres://{host}{port}/{name}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Secret;

    #[test]
    fn location_shows_neither_user_nor_password() {
        for (url, location) in [
            ("postgres://db.example:5433/keys", "postgres://db.example:5433/keys"),
            ("postgres://me:canary@db.example/keys", "postgres://db.example/keys"),
            ("postgresql://canary@[::1]:5432/keys?sslmode=require", "postgres://[::1]:5432/keys"),
            ("postgres://me:can%40ary@a.example,b.example:1/keys", "postgres://a.example,b.example:1/keys"),
            ("postgres:///keys?host=/run/postgresql&user=canary", "postgres:///run/postgresql/keys"),
            ("postgres://db.example?dbname=keys&port=6432&password=canary", "postgres://db.example:6432/keys"),
            ("postgres:///keys", "postgres://(local socket)/keys"),
            // Unescaped characters in a password.
            ("postgres://me:can/ary@db.example/keys", "postgres://(unclear)"),
            ("postgres://me:can@ary@db.example/keys", "postgres://db.example/keys"),
            ("postgres://me:canary#x@db.example/keys", "postgres://db.example/keys"),
            ("postgres://me:can?ary@db.example/keys", "postgres://(unclear)"),
            ("postgres://me:123?ary@db.example/keys", "postgres://(unclear)"),
            ("postgres://me:can ary/keys", "postgres://(unclear)"),
        ] {
            let database = Database { url: Secret::new(url), kind: DatabaseKind::Postgres };
            let shown = database.location();
            assert_eq!(shown, location, "{url}");
            assert!(!shown.contains("canary") && !shown.contains("ary"), "{shown}");
        }
    }
}
