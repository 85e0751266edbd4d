//! Finds environment variables whose names begin with `TOLLKEY_` and that no part of Tollkey reads.

use std::{ffi::OsString, fmt};

use strsim::levenshtein;

use super::setting::{self, SETTINGS, Setting};

/// The variables that the client library reads (`Client::from_env`), which may also be set for the server.
const CLIENT_VARIABLES: [&str; 3] = ["TOLLKEY_URL", "TOLLKEY_TOKEN", "TOLLKEY_SERVICE_KEY"];
const PREFIX: &str = "TOLLKEY_";
const TEST_PREFIX: &str = "TOLLKEY_TEST_";
const REPORTED_MAX: usize = 32;
/// In characters.
const NAME_MAX: usize = 64;

/// An environment variable that looks like a setting and has no effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnknownVariable {
    /// Its name, truncated to 64 characters.
    pub name: String,
    pub nearest: &'static str,
}

impl fmt::Display for UnknownVariable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, nearest } = self;
        write!(
            f,
            "{name} is an unknown environment variable and has no effect; did you mean {nearest}?"
        )
    }
}

/// Returns the unknown variables among these, sorted by name and without their values.
pub(super) fn unknown_variables(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Vec<UnknownVariable> {
    let mut unknown: Vec<UnknownVariable> = variables
        .into_iter()
        .filter_map(|(name, value)| {
            let name = name.to_string_lossy();
            let is_unknown = name.starts_with(PREFIX) && !is_known(&name, &value.to_string_lossy());
            is_unknown.then(|| UnknownVariable {
                name: name
                    .chars()
                    .take(NAME_MAX)
                    .map(|c| if c.is_ascii_graphic() { c } else { '?' })
                    .collect(),
                nearest: nearest_variable(&name),
            })
        })
        .collect();
    unknown.sort_by(|a, b| a.name.cmp(&b.name));
    unknown.truncate(REPORTED_MAX);
    unknown
}

fn is_known(name: &str, value: &str) -> bool {
    setting::all().any(|setting| setting.env == name)
        || CLIENT_VARIABLES.contains(&name)
        || name.starts_with(TEST_PREFIX)
        || is_of_kubernetes(name, value)
}

/// Returns whether Kubernetes sets this variable in the pods of a namespace with a service named `tollkey` or
/// `tollkey-…`. `TOLLKEY_PORT=8080` is a mistake: the value of Kubernetes is a URL, such as `tcp://10.0.0.1:8080`.
fn is_of_kubernetes(name: &str, value: &str) -> bool {
    let is_url = ["tcp://", "udp://", "sctp://"]
        .iter()
        .any(|scheme| value.starts_with(scheme));
    // For each port, `_PORT_8080_TCP`, also with the suffixes `_PROTO`, `_PORT` and `_ADDR`.
    let of_a_port = ["_PROTO", "_PORT", "_ADDR"]
        .iter()
        .find_map(|suffix| name.strip_suffix(suffix))
        .unwrap_or(name);
    let mut words = of_a_port.rsplit('_');
    let (protocol, number, port) = (words.next(), words.next(), words.next());
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.ends_with("_PORT") && is_url
        || matches!(protocol, Some("TCP" | "UDP" | "SCTP"))
            && number.is_some_and(|number| number.parse::<u16>().is_ok())
            && port == Some("PORT")
}

/// `TOLLKEY_DATABASE_URL` is nearest to `DATABASE_URL`.
fn nearest_variable(name: &str) -> &'static str {
    let settings = setting::documented().map(|setting| setting.env.as_str());
    nearest(name, settings.chain(CLIENT_VARIABLES))
}

pub(super) fn nearest_field(name: &str) -> String {
    let fields: Vec<String> = SETTINGS.iter().map(Setting::field).collect();
    nearest(name, fields.iter().map(String::as_str)).to_owned()
}

/// Returns the name that is most like `name`, without regard to case and to the prefix `TOLLKEY_`.
fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> &'a str {
    let bare = |name: &str| {
        // Limits the time of the comparison.
        let name: String = name.chars().take(NAME_MAX).collect();
        let name = name.to_ascii_uppercase();
        name.strip_prefix(PREFIX).unwrap_or(&name).to_owned()
    };
    let name = bare(name);
    known
        .min_by_key(|known| levenshtein(&name, &bare(known)))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unknown(variables: &[(&str, &str)]) -> Vec<(String, &'static str)> {
        let variables = variables
            .iter()
            .map(|(name, value)| (OsString::from(name), OsString::from(value)));
        unknown_variables(variables)
            .into_iter()
            .map(|unknown| (unknown.name, unknown.nearest))
            .collect()
    }

    #[test]
    fn unknown_variable_is_reported_with_the_nearest_one() {
        for (name, nearest) in [
            ("TOLLKEY_LISTN", "TOLLKEY_LISTEN"),
            ("TOLLKEY_JWT_SECRET", "TOLLKEY_JWT_ISSUER"),
            ("TOLLKEY_JWT_HS256_SECRT", "TOLLKEY_JWT_HS256_SECRET"),
            (
                "TOLLKEY_JWT_HS265_SECRET_FILE",
                "TOLLKEY_JWT_HS256_SECRET_FILE",
            ),
            ("TOLLKEY_DATABASE_URL", "DATABASE_URL"),
            ("TOLLKEY_DATABASE_URL_FILE", "DATABASE_URL_FILE"),
            ("TOLLKEY_LOGFORMAT", "TOLLKEY_LOG_FORMAT"),
            ("TOLLKEY_log", "TOLLKEY_LOG"),
            ("TOLLKEY_LOG_FILE", "TOLLKEY_LOG"),
            ("TOLLKEY_TOKENS", "TOLLKEY_TOKEN"),
            ("TOLLKEY_PORTS", "TOLLKEY_URL"),
        ] {
            let found = unknown(&[(name, "canary")]);
            assert_eq!(found.len(), 1, "{name}");
            assert_eq!(found[0].0, name);
            // Several variables are equally near to these names, so any of them can be reported.
            if !["TOLLKEY_JWT_SECRET", "TOLLKEY_LOG_FILE", "TOLLKEY_PORTS"].contains(&name) {
                assert_eq!(found[0].1, nearest, "{name}");
            }
        }
        // An operator may have meant these as a setting of the port.
        for name in [
            "TOLLKEY_PORT",
            "TOLLKEY_METRICS_PORT",
            "TOLLKEY_PORT_8080",
            "TOLLKEY_PORT_TCP",
        ] {
            assert_eq!(unknown(&[(name, "8080")]).len(), 1, "{name}");
        }
        assert_eq!(nearest_field("lisen"), "listen");
        assert_eq!(nearest_field("TOLLKEY_LISTEN"), "listen");
    }

    #[test]
    fn known_variables_are_not_reported() {
        let mut known: Vec<(&str, &str)> = setting::all()
            .map(|setting| (setting.env.as_str(), "x"))
            .collect();
        known.extend(CLIENT_VARIABLES.map(|name| (name, "x")));
        known.extend([
            ("TOLLKEY_TEST_REQUIRE_POSTGRES", "1"),
            ("PATH", "/bin"),
            ("tollkey_listen", "x"),
            ("MY_TOLLKEY_LISTEN", "x"),
        ]);
        // The variables of Kubernetes for the services `tollkey` and `tollkey-metrics-eu`.
        for service in ["TOLLKEY", "TOLLKEY_METRICS_EU"] {
            for (name, value) in [
                ("SERVICE_HOST", "10.0.0.1"),
                ("SERVICE_PORT", "8080"),
                ("SERVICE_PORT_HTTP", "8080"),
                ("PORT", "tcp://10.0.0.1:8080"),
                ("PORT_8080_TCP", "tcp://10.0.0.1:8080"),
                ("PORT_8080_TCP_PROTO", "tcp"),
                ("PORT_8080_TCP_PORT", "8080"),
                ("PORT_8080_TCP_ADDR", "10.0.0.1"),
                ("PORT_53_UDP", "udp://10.0.0.1:53"),
                ("PORT_53_SCTP_ADDR", "10.0.0.1"),
            ] {
                let name: &'static str = format!("{service}_{name}").leak();
                known.push((name, value));
            }
        }
        for variable in known {
            assert_eq!(unknown(&[variable]), [], "{variable:?}");
        }
    }

    #[test]
    fn report_is_bounded_and_shows_no_value() {
        let many: Vec<_> = (0..100)
            .map(|n| (format!("TOLLKEY_X{n:03}"), "canary".to_owned()))
            .collect();
        let many = many.iter().map(|(name, value)| (name.into(), value.into()));
        assert_eq!(unknown_variables(many).len(), REPORTED_MAX);
        let long = format!("TOLLKEY_{}\u{1b}[31m", "é".repeat(100));
        let found = unknown_variables([(long.into(), "canary".into())]);
        assert_eq!(found[0].name.chars().count(), NAME_MAX);
        assert!(
            found[0].name.is_ascii() && !format!("{found:?}").contains("canary"),
            "{found:?}"
        );
    }
}
