//! Reads settings from flags, the environment and the configuration file. The first in this order takes precedence.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use clap::{
    Arg, ArgMatches, Args as _, Command, FromArgMatches as _, ValueHint,
    error::{ContextKind, ContextValue},
};
use tollkey_core::Invalid;
use tollkey_store::DatabaseUrl;
use zeroize::Zeroizing;

use super::{
    declared::{DATABASE_URL, Values},
    files::{ConfigFile, read_secret, unreadable},
    rules,
    setting::{self, CONFIG, FORMER, SETTINGS, Setting, ValueType},
};

const OTHERS_READ: u32 = 0o004;

/// The values of flags, which are accepted before and after a subcommand.
#[derive(Clone, Default)]
pub struct Options(BTreeMap<&'static str, Zeroizing<String>>);

impl Options {
    /// Adds a flag for each setting to a command.
    #[must_use]
    pub fn add_to(command: Command) -> Command {
        // clap shows global flags in the help of every subcommand. These are hidden; `after_long_help` shows them once.
        let args = setting::all().filter_map(flag).map(|arg| arg.hide(true));
        command.args(args).after_long_help(setting::help())
    }

    /// Adds a flag with its help for each documented setting to a command, for completions.
    pub(crate) fn add_documented_to(command: Command) -> Command {
        let args = setting::documented().filter_map(|setting| {
            let hint = match setting.value_name.as_str() {
                "PATH" => ValueHint::FilePath,
                _ => ValueHint::Other,
            };
            Some(flag(setting)?.value_hint(hint).help(&setting.help))
        });
        command.args(args)
    }

    /// Reads the flags that [`Options::add_to`] added.
    #[must_use]
    pub fn from_matches(matches: &ArgMatches) -> Self {
        let flags = setting::all().filter_map(|setting| {
            let flag = setting.flag.as_deref()?;
            let value = matches.get_one::<String>(flag)?;
            Some((flag, Zeroizing::new(value.clone())))
        });
        Self(flags.collect())
    }
}

/// Returns the flag of a setting, unless it is a secret.
fn flag(setting: &'static Setting) -> Option<Arg> {
    let flag = setting.flag.as_deref()?;
    let name = setting.value_name.as_str();
    let arg = Arg::new(flag).long(flag).value_name(name).global(true);
    Some(match setting.form {
        ValueType::Boolean => arg
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true"),
        _ => arg,
    })
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A database URL may hold a password: names only.
        f.debug_set().entries(self.0.keys()).finish()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingSource {
    Flag(&'static str),
    Environment,
    /// In this file: the configuration file, or the one that holds a secret.
    File(PathBuf),
    Default,
}

impl fmt::Display for SettingSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag --{flag}"),
            Self::Environment => f.write_str("environment"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A setting, and where its value is set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The variable of the setting, even if a flag or the file set the value; the former name if that was used.
    pub name: &'static str,
    pub source: SettingSource,
}

impl Origin {
    pub(super) fn invalid(&self, rule: Invalid) -> ConfigError {
        ConfigError::Invalid(self.clone(), rule)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.name, self.source)
    }
}

/// A setting that is valid, but probably a mistake. Never shows the value of a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The variable of the setting.
    pub setting: String,
    pub text: String,
}

impl Warning {
    pub(super) fn new(setting: &str, text: String) -> Self {
        let setting = setting.to_owned();
        Self { setting, text }
    }
}

/// Why a setting cannot be used. Names the setting, where its value is set and the rule, but never the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{0}: {1}")]
    Invalid(Origin, Invalid),
    #[error("{0} and {1} exclude each other; set one of them")]
    Exclusive(Origin, Origin),
    #[error("{needed} must be set, because {} is ({})", because.name, because.source)]
    Missing {
        needed: &'static str,
        because: Origin,
    },
    #[error("configuration file {path}: {rule}", path = path.display())]
    File { path: PathBuf, rule: Invalid },
}

pub(super) struct Value {
    pub(super) text: Zeroizing<String>,
    pub(super) origin: Origin,
}

/// Returns the value of a setting. An empty value is an error even if another source takes precedence: the operator
/// probably forgot it.
fn value(
    setting: &'static Setting,
    options: &Options,
    env: &dyn Fn(&str) -> Option<OsString>,
    file: Option<&ConfigFile>,
) -> Result<Option<Value>, ConfigError> {
    let name = setting.env.as_str();
    let flag = setting.flag.as_deref().and_then(|flag| {
        let text = options.0.get(flag)?;
        Some((Ok(text.clone()), SettingSource::Flag(flag)))
    });
    let variable = env(name).map(|text| {
        let text = text.into_string().map(Zeroizing::new);
        let text = text.map_err(|_| Invalid::new("must be UTF-8"));
        (text, SettingSource::Environment)
    });
    let field = file.and_then(|file| {
        let text = file.text(setting).transpose()?;
        Some((text, SettingSource::File(file.path.clone())))
    });

    let mut first = None;
    for (text, source) in [flag, variable, field].into_iter().flatten() {
        let origin = Origin { name, source };
        match text {
            Ok(text) if text.trim().is_empty() => {
                let rule = Invalid::new("must not be empty; leave it out instead");
                return Err(origin.invalid(rule));
            }
            Ok(text) => first = first.or(Some(Value { text, origin })),
            Err(rule) => return Err(origin.invalid(rule)),
        }
    }
    Ok(first)
}

/// All values that are set, by the name of their variable.
pub(super) struct Sources {
    values: BTreeMap<&'static str, Value>,
    file: Option<ConfigFile>,
    pub(super) warnings: Vec<Warning>,
}

impl Sources {
    /// Reads all sources. A flag or the environment can name the configuration file; the default is `default_file`, if
    /// it exists.
    pub(super) fn read(
        options: &Options,
        env: &dyn Fn(&str) -> Option<OsString>,
        default_file: &Path,
    ) -> Result<Self, ConfigError> {
        let file = match value(&CONFIG, options, env, None)? {
            None => ConfigFile::read_if_exists(default_file)?,
            Some(named) => match ConfigFile::read(Path::new(named.text.as_str())) {
                Ok(file) => Some(file?),
                Err(error) => return Err(named.origin.invalid(unreadable(&error))),
            },
        };
        let value = |setting| value(setting, options, env, file.as_ref());
        let mut values = BTreeMap::new();
        let mut warnings = Vec::new();
        for setting in SETTINGS.iter() {
            values.extend(value(setting)?.map(|value| (setting.env.as_str(), value)));
        }
        for (former, name) in FORMER.iter() {
            let Some(value) = value(former)? else {
                continue;
            };
            let former = &former.env;
            let text = format!(
                "{former} was renamed to {name}; the former name is accepted in this release only"
            );
            warnings.push(Warning::new(former, text));
            let origin = value.origin.clone();
            if let Some(own) = values.insert(name.as_str(), value) {
                return Err(ConfigError::Exclusive(own.origin, origin));
            }
        }
        let mut sources = Self {
            values,
            file,
            warnings,
        };
        for secret in SETTINGS.iter().filter(|setting| setting.is_secret) {
            sources.read_secret(secret)?;
        }
        Ok(sources)
    }

    /// Reads a secret from the file that its setting with `_FILE` names, if that is set, and checks it.
    fn read_secret(&mut self, setting: &'static Setting) -> Result<(), ConfigError> {
        let name = setting.env.as_str();
        let file_name = format!("{name}_FILE");
        self.at_most_one(&[name, &file_name])?;
        if let Some(file) = self.values.get(file_name.as_str()) {
            let path = PathBuf::from(file.text.as_str());
            let (text, mode) = read_secret(&path).map_err(|rule| file.origin.invalid(rule))?;
            self.warnings.extend(warn_if_readable(name, &path, mode));
            let source = SettingSource::File(path);
            let origin = Origin { name, source };
            self.values.insert(name, Value { text, origin });
        }
        let Some(Value { text, origin }) = self.values.get(name) else {
            return Ok(());
        };
        rules::clean(text).map_err(|rule| origin.invalid(rule))?;
        let is_database = name == DATABASE_URL;
        if !is_database && let Some(weakness) = rules::weakness(text) {
            let text = format!(
                "{name} {weakness} and can be guessed; create one with `openssl rand -hex 32`"
            );
            self.warnings.push(Warning::new(name, text));
        }
        let has_secret =
            !is_database || DatabaseUrl::parse(text).is_ok_and(|url| url.has_password());
        if let Some(file) = &self.file
            && file.has(&setting.field())
            && has_secret
        {
            let warning = warn_if_readable(name, &file.path, file.mode);
            self.warnings.extend(warning);
        }
        Ok(())
    }

    /// Returns the value of a setting, or `None` if it has its default.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.values.get(name)
    }

    pub(super) fn invalid(&self, name: &'static str, rule: impl Into<String>) -> ConfigError {
        let default = Origin {
            name,
            source: SettingSource::Default,
        };
        let origin = self.get(name).map_or(&default, |value| &value.origin);
        origin.invalid(Invalid::new(rule.into()))
    }

    pub(super) fn at_most_one(&self, names: &[&str]) -> Result<(), ConfigError> {
        let mut set = names.iter().filter_map(|name| self.get(name));
        match (set.next(), set.next()) {
            (Some(first), Some(second)) => Err(ConfigError::Exclusive(
                first.origin.clone(),
                second.origin.clone(),
            )),
            _ => Ok(()),
        }
    }

    /// Returns an error if one of `needed` is not set although one of `because` is.
    pub(super) fn require(
        &self,
        needed: &[&'static str],
        because: &[&str],
    ) -> Result<(), ConfigError> {
        let because = because.iter().find_map(|name| self.get(name));
        let missing = needed.iter().find(|name| self.get(name).is_none());
        match (missing, because) {
            (Some(needed), Some(because)) => Err(ConfigError::Missing {
                needed,
                because: because.origin.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Parses all values that are not secrets by the types and rules of their declarations.
    pub(super) fn parse(&self) -> Result<Values, ConfigError> {
        let command = Values::augment_args(Command::new("settings").no_binary_name(true));
        let parsed = command
            .get_arguments()
            .filter(|arg| !arg.is_hide_env_values_set());
        let arguments = parsed.filter_map(|arg| {
            let value = self.get(arg.get_env()?.to_str()?)?;
            Some(format!("--{}={}", arg.get_long()?, value.text.as_str()))
        });
        let arguments: Vec<String> = arguments.collect();
        command
            // `Sources::read` has already read the environment, by other rules.
            .mut_args(|arg| arg.env(None::<&str>))
            .try_get_matches_from(arguments)
            .and_then(|matches| Values::from_arg_matches(&matches))
            .map_err(|error| self.broken_rule(&error))
    }

    /// Converts an error of clap, whose text would show the value, to the setting and the rule.
    fn broken_rule(&self, error: &clap::Error) -> ConfigError {
        let argument = match error.get(ContextKind::InvalidArg) {
            Some(ContextValue::String(argument)) => argument.trim_start_matches('-'),
            _ => "",
        };
        let flag = argument.split([' ', '=', '[']).next();
        let setting = SETTINGS.iter().find(|it| it.flag.as_deref() == flag);
        let rule = std::error::Error::source(error)
            .map_or_else(|| error.kind().to_string(), ToString::to_string);
        self.invalid(setting.map_or("settings", |it| &it.env), rule)
    }

    /// Returns all settings in effect. `derived` are the values of settings whose default depends on something else.
    pub(super) fn effective(&self, derived: &[(&str, Option<String>)]) -> Vec<EffectiveSetting> {
        let all = SETTINGS.iter().map(|setting| {
            let name = setting.env.as_str();
            let value = self.get(name);
            let text = match value {
                Some(_) if setting.is_secret => Some(HIDDEN),
                Some(value) => Some(value.text.as_str()),
                None => setting.default.as_deref(),
            };
            let derived = derived.iter().find(|(it, _)| *it == name);
            EffectiveSetting {
                name,
                value: derived
                    .and_then(|(_, value)| value.clone())
                    .or_else(|| text.map(str::to_owned)),
                from: value.map_or(SettingSource::Default, |it| it.origin.source.clone()),
            }
        });
        all.collect()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectiveSetting {
    pub name: &'static str,
    /// Its value, or a placeholder for a secret. `None` if it has no value.
    pub value: Option<String>,
    pub from: SettingSource,
}

const HIDDEN: &str = "(hidden)";

fn warn_if_readable(setting: &str, path: &Path, mode: u32) -> Option<Warning> {
    (mode & OTHERS_READ != 0).then(|| {
        let path = path.display();
        let text = format!(
            "{setting}: every user of this machine can read {path} (mode {mode:o}); use chmod 600"
        );
        Warning::new(setting, text)
    })
}
