//! Where settings come from: flag, then environment, then file, then default. The first that has one wins.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    ffi::OsString,
    fmt, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use tollkey_core::Invalid;
use zeroize::Zeroizing;

use tollkey_api::Secret;

use super::{
    declared::{CONFIG, FORMER, SETTINGS},
    rules,
    setting::{Form, Setting},
    unknown::nearest_field,
    warning::Warning,
};

/// The most a file with a secret can hold.
const SECRET_FILE_MAX: u64 = 64 * 1024;
/// The most a configuration file can hold.
const CONFIG_FILE_MAX: u64 = 1024 * 1024;
/// The permission bit that lets every user of the machine read a file.
const OTHERS_READ: u32 = 0o004;

/// The settings that were given as flags. Flattened into the command line, valid before and after a subcommand.
#[derive(Clone, Default)]
pub struct Options(BTreeMap<&'static str, Zeroizing<String>>);

impl Args for Options {
    fn augment_args(command: Command) -> Command {
        let former = FORMER.iter().map(|setting| (setting, true));
        command.args(
            SETTINGS
                .iter()
                .chain([&CONFIG])
                .map(|setting| (setting, false))
                .chain(former)
                .filter_map(|(setting, hidden)| {
                    let flag = setting.flag?;
                    let arg = Arg::new(flag)
                        .long(flag)
                        .value_name(setting.form.placeholder())
                        .help(setting.help_line())
                        .help_heading("Settings")
                        .action(ArgAction::Set)
                        .global(true)
                        .hide(hidden);
                    Some(match setting.form {
                        Form::Switch => arg
                            .num_args(0..=1)
                            .require_equals(true)
                            .default_missing_value("true"),
                        _ => arg,
                    })
                }),
        )
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
        for flag in SETTINGS
            .iter()
            .chain([&CONFIG])
            .chain(FORMER)
            .filter_map(|setting| setting.flag)
        {
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

/// Where a value was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// On the command line.
    Flag(&'static str),
    /// In the environment.
    Environment,
    /// In this file: the configuration file, or the one that holds a secret.
    File(PathBuf),
    /// Nowhere: it is the default.
    Default,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(flag) => write!(f, "flag --{flag}"),
            Self::Environment => f.write_str("environment"),
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A setting cannot be used. Names the setting, where its value was found and the rule; never the value of a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The value breaks a rule.
    #[error("{setting} ({from}): {rule}")]
    Invalid {
        /// The setting's variable.
        setting: &'static str,
        /// Where the value was found.
        from: Source,
        /// The rule.
        rule: Invalid,
    },
    /// Two settings of which only one can be set.
    #[error(
        "{first} ({first_from}) and {second} ({second_from}) exclude each other; set one of them"
    )]
    Exclusive {
        /// One of them.
        first: &'static str,
        /// Where it was found.
        first_from: Source,
        /// The other.
        second: &'static str,
        /// Where it was found.
        second_from: Source,
    },
    /// A setting that another one needs.
    #[error("{needed} must be set, because {because} is ({from})")]
    Missing {
        /// What is missing.
        needed: &'static str,
        /// What needs it.
        because: &'static str,
        /// Where that was found.
        from: Source,
    },
    /// The configuration file cannot be used.
    #[error("configuration file {path}: {rule}", path = path.display())]
    File {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        rule: Invalid,
    },
}

/// A value as it was found.
pub(super) struct Given {
    pub(super) text: Zeroizing<String>,
    pub(super) from: Source,
}

/// All places where a value can be found.
pub(super) struct Sources<'a> {
    options: &'a Options,
    env: &'a dyn Fn(&str) -> Option<OsString>,
    file: Option<ConfigFile>,
    warnings: RefCell<Vec<Warning>>,
}

impl<'a> Sources<'a> {
    /// Reads the configuration file: the one that flag or environment name, else `default_file` when it is there.
    pub(super) fn open(
        options: &'a Options,
        env: &'a dyn Fn(&str) -> Option<OsString>,
        default_file: &Path,
    ) -> Result<Self, ConfigError> {
        let mut sources = Self {
            options,
            env,
            file: None,
            warnings: RefCell::default(),
        };
        let unreadable = |error: &io::Error| {
            Invalid::new(format!("cannot read the file that it names: {error}"))
        };
        sources.file = match sources.get(&CONFIG)? {
            Some(given) => {
                let path = Path::new(given.text.as_str());
                let text = read_config(path)
                    .map_err(|error| invalid(&CONFIG, given.from, unreadable(&error)))?;
                Some(ConfigFile::parse(path, text)?)
            }
            None => match read_config(default_file) {
                Ok(text) => Some(ConfigFile::parse(default_file, text)?),
                // A link that leads nowhere is no missing file: its settings would be left out silently.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound
                        && default_file.symlink_metadata().is_err() =>
                {
                    None
                }
                Err(error) => return Err(file_error(default_file, error.to_string())),
            },
        };
        Ok(sources)
    }

    /// The value of a setting that is set, and where; `None` where it has its default.
    pub(super) fn set(&self, setting: &Setting) -> Result<Option<Source>, ConfigError> {
        Ok(self
            .get(setting)?
            .map(|given| given.from)
            .filter(|from| *from != Source::Default))
    }

    /// Notes what is probably a mistake.
    pub(super) fn warn(&self, warning: Warning) {
        self.warnings.borrow_mut().push(warning);
    }

    /// What was noted, and whether every user can read a configuration file with one of these settings, which are secrets.
    pub(super) fn into_warnings(self, secrets: &[&'static str]) -> Vec<Warning> {
        let mut warnings = self.warnings.into_inner();
        if let Some(file) = self.file
            && file.mode & OTHERS_READ != 0
        {
            let held = SETTINGS
                .iter()
                .filter(|it| secrets.contains(&it.env) && file.members.contains_key(&it.member()));
            warnings.extend(held.map(|it| Warning::ReadableSecret {
                setting: it.env,
                path: file.path.clone(),
                mode: file.mode,
            }));
        }
        warnings
    }

    /// The value of a setting, its default included. An empty one is an error wherever it stands, also where
    /// another place would win: it is a variable somebody forgot to fill.
    pub(super) fn get(&self, setting: &Setting) -> Result<Option<Given>, ConfigError> {
        let mut found = None;
        for given in [
            self.flag(setting),
            self.variable(setting)?,
            self.member(setting)?,
        ]
        .into_iter()
        .flatten()
        {
            if given.text.trim().is_empty() {
                return Err(invalid(
                    setting,
                    given.from,
                    Invalid::new("must not be empty; leave it out instead"),
                ));
            }
            found = found.or(Some(given));
        }
        let default = || {
            Some(Given {
                text: Zeroizing::new(setting.default?.to_owned()),
                from: Source::Default,
            })
        };
        Ok(found.or_else(default))
    }

    /// The value of a setting, read by `rule`.
    pub(super) fn parse<T>(
        &self,
        setting: &Setting,
        rule: impl FnOnce(&str) -> Result<T, Invalid>,
    ) -> Result<Option<T>, ConfigError> {
        self.get(setting)?
            .map(|given| rule(&given.text).map_err(|broken| invalid(setting, given.from, broken)))
            .transpose()
    }

    /// A secret, set itself or as the file that holds it. Both at once is an error, whatever the places.
    pub(super) fn secret(
        &self,
        setting: &Setting,
        file: &Setting,
    ) -> Result<Option<(Secret, Source)>, ConfigError> {
        let found = self.read_secret(setting, file)?;
        if let Some((secret, from)) = &found {
            rules::clean(secret.expose()).map_err(|rule| invalid(setting, from.clone(), rule))?;
        }
        Ok(found)
    }

    fn read_secret(
        &self,
        setting: &Setting,
        file: &Setting,
    ) -> Result<Option<(Secret, Source)>, ConfigError> {
        let own = self.get(setting)?;
        let Some(path) = self.get(file)? else {
            return Ok(own.map(|given| (Secret::new(given.text.as_str()), given.from)));
        };
        if let Some(own) = own
            && own.from != Source::Default
        {
            return Err(ConfigError::Exclusive {
                first: setting.env,
                first_from: own.from,
                second: file.env,
                second_from: path.from,
            });
        }
        let file_path = PathBuf::from(path.text.as_str());
        let (secret, mode) =
            read_secret(&file_path).map_err(|rule| invalid(file, path.from, rule))?;
        if mode & OTHERS_READ != 0 {
            self.warn(Warning::ReadableSecret {
                setting: setting.env,
                path: file_path.clone(),
                mode,
            });
        }
        Ok(Some((secret, Source::File(file_path))))
    }

    fn flag(&self, setting: &Setting) -> Option<Given> {
        let flag = setting.flag?;
        Some(Given {
            text: self.options.0.get(flag)?.clone(),
            from: Source::Flag(flag),
        })
    }

    fn variable(&self, setting: &Setting) -> Result<Option<Given>, ConfigError> {
        let from = Source::Environment;
        match (self.env)(setting.env).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(Given {
                text: Zeroizing::new(text),
                from,
            })),
            Some(Err(_)) => Err(invalid(setting, from, Invalid::new("must be UTF-8"))),
        }
    }

    fn member(&self, setting: &Setting) -> Result<Option<Given>, ConfigError> {
        let Some(file) = &self.file else {
            return Ok(None);
        };
        let Some(value) = file.members.get(&setting.member()) else {
            return Ok(None);
        };
        let from = Source::File(file.path.clone());
        match as_text(setting.form, value) {
            Ok(text) => Ok(Some(Given {
                text: Zeroizing::new(text),
                from,
            })),
            Err(rule) => Err(invalid(setting, from, rule)),
        }
    }
}

pub(super) fn invalid(setting: &Setting, from: Source, rule: Invalid) -> ConfigError {
    ConfigError::Invalid {
        setting: setting.env,
        from,
        rule,
    }
}

/// The configuration file, whose fields are all known.
struct ConfigFile {
    path: PathBuf,
    members: toml::Table,
    mode: u32,
}

fn file_error(path: &Path, rule: String) -> ConfigError {
    ConfigError::File {
        path: path.to_owned(),
        rule: Invalid::new(rule),
    }
}

/// The text of a configuration file, and the permission bits of the file.
fn read_config(path: &Path) -> io::Result<(Zeroizing<String>, u32)> {
    let (text, mode) = read_file(path, CONFIG_FILE_MAX)?;
    Ok((text, mode))
}

impl ConfigFile {
    fn parse(path: &Path, (text, mode): (Zeroizing<String>, u32)) -> Result<Self, ConfigError> {
        let members: toml::Table = toml::from_str(&text).map_err(|error| {
            // Its own text quotes the line, which may hold a secret: say where and what only.
            let at = error.span().map_or(0, |span| span.start);
            let line = text.bytes().take(at).filter(|b| *b == b'\n').count() + 1;
            file_error(path, format!("line {line}: {}", error.message()))
        })?;
        let is_known = |name: &str| {
            SETTINGS
                .iter()
                .chain(FORMER)
                .any(|setting| setting.member() == name)
        };
        match members.keys().find(|name| !is_known(name)) {
            Some(name) => {
                let shown: String = name.chars().take(64).collect();
                Err(file_error(
                    path,
                    format!(
                        "unknown field {shown:?}; did you mean {:?}?",
                        nearest_field(name)
                    ),
                ))
            }
            None => Ok(Self {
                path: path.to_owned(),
                members,
                mode,
            }),
        }
    }
}

fn as_text(form: Form, value: &toml::Value) -> Result<String, Invalid> {
    use toml::Value::{Array, Boolean, Integer, String as Text};
    match (form, value) {
        (Form::Text(_) | Form::List(_), Text(text)) => Ok(text.clone()),
        (Form::List(_), Array(entries)) => entries
            .iter()
            .map(|entry| entry.as_str().filter(|text| !text.contains(',')))
            .collect::<Option<Vec<_>>>()
            .map(|texts| texts.join(","))
            .ok_or_else(|| Invalid::new("must be an array of strings without commas")),
        (Form::Number, Integer(number)) => Ok(number.to_string()),
        (Form::Switch, Boolean(on)) => Ok(on.to_string()),
        (Form::Text(_), _) => Err(Invalid::new("must be a string")),
        (Form::List(_), _) => Err(Invalid::new("must be an array of strings")),
        (Form::Number, _) => Err(Invalid::new("must be an integer")),
        (Form::Switch, _) => Err(Invalid::new("must be true or false")),
    }
}

/// The text of a file of at most that many bytes, and its permission bits.
fn read_file(path: &Path, max: u64) -> io::Result<(Zeroizing<String>, u32)> {
    let file = fs::File::open(path)?;
    let mode = mode(&file.metadata()?);
    let mut text = Zeroizing::new(String::new());
    file.take(max + 1)
        .read_to_string(&mut text)
        .map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => {
                io::Error::other("it is not UTF-8; save it as UTF-8 without a byte order mark")
            }
            _ => error,
        })?;
    if text.len() as u64 > max {
        return Err(io::Error::other(format!("it is larger than {max} bytes")));
    }
    Ok((text, mode))
}

#[cfg(unix)]
fn mode(metadata: &fs::Metadata) -> u32 {
    std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777
}

#[cfg(not(unix))]
fn mode(_: &fs::Metadata) -> u32 {
    0
}

/// The secret in a file, without the one line break that editors and secret stores leave at its end, and the permission
/// bits of the file. The error does not name the path: it is a secret where the variable was taken for its sibling
/// without `_FILE`.
fn read_secret(path: &Path) -> Result<(Secret, u32), Invalid> {
    let (text, mode) = read_file(path, SECRET_FILE_MAX)
        .map_err(|error| Invalid::new(format!("cannot read the file that it names: {error}")))?;
    let line = text
        .strip_suffix("\r\n")
        .or_else(|| text.strip_suffix('\n'))
        .unwrap_or(&text);
    if line.trim().is_empty() {
        return Err(Invalid::new(
            "the file that it names is empty; write the secret into it",
        ));
    }
    Ok((Secret::new(line), mode))
}
