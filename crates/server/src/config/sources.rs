//! Reads settings from flags, the environment and the configuration file. The first in this order takes precedence.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
};

use clap::{
    Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches,
    error::{ContextKind, ContextValue},
};
use tollkey_core::Invalid;
use zeroize::Zeroizing;

use tollkey_api::Secret;

use super::{
    declared::{SECRETS, Values},
    files::{ConfigFile, read_secret, unreadable},
    rules,
    setting::{self, CONFIG, FORMER, SETTINGS, Setting, ValueType},
    warning::{Warning, weakness},
};

const OTHERS_READ: u32 = 0o004;

/// The settings that are set by flags, which are accepted before and after a subcommand.
#[derive(Clone, Default)]
pub struct Options(BTreeMap<&'static str, Zeroizing<String>>);

impl Args for Options {
    fn augment_args(command: Command) -> Command {
        // clap shows global flags in the help of every subcommand. These are hidden; `after_long_help` shows them once.
        let args = setting::all().filter_map(|setting| {
            let flag = setting.flag.as_deref()?;
            let arg = Arg::new(flag)
                .long(flag)
                .value_name(setting.value_name.as_str())
                .action(ArgAction::Set)
                .global(true)
                .hide(true);
            Some(match setting.form {
                ValueType::Boolean => arg
                    .num_args(0..=1)
                    .require_equals(true)
                    .default_missing_value("true"),
                _ => arg,
            })
        });
        command.args(args).after_long_help(setting::help())
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Options {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut options = Self::default();
        options.update_from_arg_matches(matches)?;
        Ok(options)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for flag in setting::all().filter_map(|setting| setting.flag.as_deref()) {
            if let Some(value) = matches.get_one::<String>(flag) {
                self.0.insert(flag, Zeroizing::new(value.clone()));
            }
        }
        Ok(())
    }
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

/// Why a setting cannot be used. Names the setting, where its value is set and the rule, but never the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("{setting} ({from}): {rule}")]
    Invalid {
        /// The setting's variable.
        setting: &'static str,
        from: SettingSource,
        rule: Invalid,
    },
    #[error(
        "{first} ({first_from}) and {second} ({second_from}) exclude each other; set one of them"
    )]
    Exclusive {
        first: &'static str,
        first_from: SettingSource,
        second: &'static str,
        second_from: SettingSource,
    },
    #[error("{needed} must be set, because {because} is ({from})")]
    Missing {
        needed: &'static str,
        because: &'static str,
        from: SettingSource,
    },
    #[error("configuration file {path}: {rule}", path = path.display())]
    File { path: PathBuf, rule: Invalid },
}

struct Value {
    /// The variable of the setting, even if a flag or the file set the value; the former name if that was used.
    name: &'static str,
    text: Zeroizing<String>,
    source: SettingSource,
}

struct ValueLookup<'a> {
    options: &'a Options,
    env: &'a dyn Fn(&str) -> Option<OsString>,
    file: Option<&'a ConfigFile>,
}

impl ValueLookup<'_> {
    /// An empty value is an error even if another source takes precedence: the operator probably forgot it.
    fn value(&self, setting: &'static Setting) -> Result<Option<Value>, ConfigError> {
        let name = setting.env.as_str();
        let flag = setting.flag.as_deref().and_then(|flag| {
            let text = self.options.0.get(flag)?;
            Some((Ok(text.clone()), SettingSource::Flag(flag)))
        });
        let variable = (self.env)(name).map(|text| {
            let text = text.into_string().map(Zeroizing::new);
            let text = text.map_err(|_| Invalid::new("must be UTF-8"));
            (text, SettingSource::Environment)
        });
        let field = self.file.and_then(|file| {
            let text = file.text(setting).transpose()?;
            Some((text, SettingSource::File(file.path.clone())))
        });

        let mut first = None;
        for (text, source) in [flag, variable, field].into_iter().flatten() {
            let text = match text {
                Ok(text) if text.trim().is_empty() => {
                    Err(Invalid::new("must not be empty; leave it out instead"))
                }
                text => text,
            };
            match text {
                Ok(text) => first = first.or(Some(Value { name, text, source })),
                Err(rule) => return Err(invalid(name, source, rule)),
            }
        }
        Ok(first)
    }
}

/// All values that are set, by the name of their variable.
pub(super) struct Sources {
    values: BTreeMap<&'static str, Value>,
    pub(super) warnings: Vec<Warning>,
    file: Option<ConfigFile>,
}

impl Sources {
    /// Reads all sources. A flag or the environment can name the configuration file; the default is `default_file`, if
    /// it exists.
    pub(super) fn read(
        options: &Options,
        env: &dyn Fn(&str) -> Option<OsString>,
        default_file: &Path,
    ) -> Result<Self, ConfigError> {
        let named = ValueLookup {
            options,
            env,
            file: None,
        }
        .value(&CONFIG)?;
        let file = match named {
            None => ConfigFile::read_if_exists(default_file)?,
            Some(named) => match ConfigFile::read(Path::new(named.text.as_str())) {
                Ok(file) => Some(file?),
                Err(error) => return Err(invalid(named.name, named.source, unreadable(&error))),
            },
        };
        let lookup = ValueLookup {
            options,
            env,
            file: file.as_ref(),
        };
        let mut values = BTreeMap::new();
        let mut warnings = Vec::new();
        for setting in SETTINGS.iter() {
            values.extend(
                lookup
                    .value(setting)?
                    .map(|value| (setting.env.as_str(), value)),
            );
        }
        for former in FORMER.iter() {
            let (Some(value), Some(setting)) = (lookup.value(former)?, &former.replaced_by) else {
                continue;
            };
            if let Some(own) = values.get(setting.as_str()) {
                return Err(exclusive(own, &value));
            }
            warnings.push(Warning::Renamed {
                former: value.name,
                setting,
            });
            values.insert(setting, value);
        }
        Ok(Self {
            values,
            warnings,
            file,
        })
    }

    /// Returns where a setting is set, or `None` if it has its default.
    pub(super) fn set(&self, name: &str) -> Option<&SettingSource> {
        self.values.get(name).map(|value| &value.source)
    }

    pub(super) fn invalid(&self, name: &'static str, rule: Invalid) -> ConfigError {
        match self.values.get(name) {
            Some(value) => invalid(value.name, value.source.clone(), rule),
            None => invalid(name, SettingSource::Default, rule),
        }
    }

    pub(super) fn at_most_one(&self, names: &[&str]) -> Result<(), ConfigError> {
        let mut set = names.iter().filter_map(|name| self.values.get(name));
        match (set.next(), set.next()) {
            (Some(first), Some(second)) => Err(exclusive(first, second)),
            _ => Ok(()),
        }
    }

    /// Returns an error if `needed` is not set although `because` is.
    pub(super) fn require(
        &self,
        needed: &'static str,
        because: &'static str,
    ) -> Result<(), ConfigError> {
        match (self.values.get(needed), self.values.get(because)) {
            (None, Some(Value { source, .. })) => Err(ConfigError::Missing {
                needed,
                because,
                from: source.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Parses all values that are not secrets by the types and rules of their declarations.
    pub(super) fn parse(&self) -> Result<Values, ConfigError> {
        let command = Values::augment_args(Command::new("settings").no_binary_name(true))
            // `Sources::read` has already read the environment, by other rules.
            .mut_args(|arg| arg.env(None::<&str>));
        let arguments = command.get_arguments().filter_map(|arg| {
            let setting = SETTINGS
                .iter()
                .find(|it| it.flag.as_deref() == arg.get_long())?;
            let value = self.values.get(setting.env.as_str())?;
            Some(format!("--{}={}", arg.get_long()?, value.text.as_str()))
        });
        let arguments: Vec<String> = arguments.collect();
        command
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
        self.invalid(setting.map_or("settings", |it| &it.env), Invalid::new(rule))
    }

    /// Returns a secret and where it is set: in its own setting, or in the file that its setting with `_FILE` names. It
    /// is an error to set both.
    pub(super) fn secret(
        &mut self,
        name: &'static str,
    ) -> Result<Option<(Secret, SettingSource)>, ConfigError> {
        let file_name = format!("{name}_FILE");
        self.at_most_one(&[name, &file_name])?;
        let (secret, source) = match (self.values.get(name), self.values.get(file_name.as_str())) {
            (Some(own), _) => (Secret::new(own.text.as_str()), own.source.clone()),
            (None, Some(file)) => {
                let path = PathBuf::from(file.text.as_str());
                let (secret, mode) = read_secret(&path)
                    .map_err(|rule| invalid(file.name, file.source.clone(), rule))?;
                self.warnings.extend(warn_if_readable(name, &path, mode));
                (secret, SettingSource::File(path))
            }
            (None, None) => return Ok(None),
        };
        rules::clean(secret.expose()).map_err(|rule| invalid(name, source.clone(), rule))?;
        Ok(Some((secret, source)))
    }

    pub(super) fn warn_if_weak(&mut self, setting: &'static str, secret: &Secret) {
        let weak = weakness(secret.expose());
        self.warnings
            .extend(weak.map(|reason| Warning::WeakSecret { setting, reason }));
    }

    pub(super) fn warn_of_readable_file(&mut self, secrets: &[&'static str]) {
        let Some(file) = &self.file else { return };
        let names = SETTINGS.iter().map(|it| (it.env.as_str(), it.field()));
        let held = names.filter(|(name, field)| secrets.contains(name) && file.has(field));
        self.warnings
            .extend(held.filter_map(|(name, _)| warn_if_readable(name, &file.path, file.mode)));
    }

    /// Returns all settings in effect. `values` replace the values of the sources: for settings whose default depends
    /// on something else, and for values that must not be shown unchanged.
    pub(super) fn effective(&self, values: &[(&str, String)]) -> Vec<EffectiveSetting> {
        let all = SETTINGS.iter().map(|setting| {
            let name = setting.env.as_str();
            let is_secret = SECRETS.iter().any(|secret| secret.env == name);
            // A secret in a file is also the value of the setting without `_FILE`.
            let file = self
                .values
                .get(format!("{name}_FILE").as_str())
                .filter(|_| is_secret);
            let (text, from) = match (self.values.get(name), file) {
                (_, Some(file)) => (Some(HIDDEN), SettingSource::File(file.text.as_str().into())),
                (Some(own), None) if is_secret => (Some(HIDDEN), own.source.clone()),
                (Some(own), None) => (Some(own.text.as_str()), own.source.clone()),
                (None, None) => (setting.default.as_deref(), SettingSource::Default),
            };
            let replacement = values.iter().find(|(it, _)| *it == name);
            let value = replacement
                .map_or(text, |(_, value)| Some(value))
                .map(str::to_owned);
            EffectiveSetting { name, value, from }
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

fn invalid(setting: &'static str, from: SettingSource, rule: Invalid) -> ConfigError {
    ConfigError::Invalid {
        setting,
        from,
        rule,
    }
}

fn exclusive(first: &Value, second: &Value) -> ConfigError {
    ConfigError::Exclusive {
        first: first.name,
        first_from: first.source.clone(),
        second: second.name,
        second_from: second.source.clone(),
    }
}

fn warn_if_readable(setting: &'static str, path: &Path, mode: u32) -> Option<Warning> {
    let path = path.to_owned();
    (mode & OTHERS_READ != 0).then_some(Warning::ReadableSecret {
        setting,
        path,
        mode,
    })
}
