//! The settings as data, for reading values, for help and documentation, and for detecting misspelled names.

use std::{ffi::OsStr, fmt::Write as _, sync::LazyLock};

use clap::{Arg, Args as _, Command};

use super::declared::{SECRETS, SecretDeclaration, Values};

/// One setting: an environment variable, a field of the configuration file and, unless it is a secret, a flag.
#[derive(Debug, Clone)]
pub struct Setting {
    pub env: String,
    /// The flag, without its dashes. `None` for a secret that must not be on a command line.
    pub flag: Option<String>,
    pub form: ValueType,
    pub value_name: String,
    /// The value if the setting is not set; `None` if the help describes the default.
    pub default: Option<String>,
    /// A phrase without a period at its end.
    pub help: String,
    pub heading: String,
    /// The setting that replaces this one. This one is then a former name: accepted with a warning, not documented.
    pub replaced_by: Option<String>,
}

/// The type of a value in the configuration file. Everywhere else, it is text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueType {
    Text,
    Number,
    /// An array of strings, or one string with commas.
    List,
    /// Its flag means `true` without a value.
    Boolean,
}

/// In the order of the documentation.
pub static SETTINGS: LazyLock<Vec<Setting>> = LazyLock::new(|| {
    let command = Values::augment_args(Command::new("settings"));
    let mut settings = Vec::new();
    let mut secrets: Vec<_> = SECRETS.iter().collect();
    let mut heading = None;
    for arg in command.get_arguments() {
        // Each group begins with its secrets.
        if heading != arg.get_help_heading() {
            heading = arg.get_help_heading();
            let of_group = secrets.extract_if(.., |it| Some(it.heading) == heading);
            settings.extend(of_group.flat_map(Setting::of_secret));
        }
        settings.push(Setting::of_arg(arg));
    }
    settings
});

/// Former names of settings: the hidden aliases of [`SETTINGS`].
pub(super) static FORMER: LazyLock<Vec<Setting>> = LazyLock::new(|| {
    let command = Values::augment_args(Command::new("settings"));
    let args = command.get_arguments();
    args.flat_map(|arg| {
        let former = arg.get_all_aliases().unwrap_or_default().into_iter();
        former.map(|flag| {
            let setting = Setting::of_arg(arg);
            Setting {
                env: format!("TOLLKEY_{}", flag.to_uppercase().replace('-', "_")),
                flag: Some(flag.to_owned()),
                default: None,
                replaced_by: Some(setting.env),
                ..setting
            }
        })
    })
    .collect()
});

/// The configuration file: the only setting that is not a field of the file.
pub static CONFIG: LazyLock<Setting> = LazyLock::new(|| Setting {
    env: "TOLLKEY_CONFIG".to_owned(),
    flag: Some("config".to_owned()),
    form: ValueType::Text,
    value_name: "PATH".to_owned(),
    default: None,
    help: "Configuration file; by default `tollkey.toml` in the working directory, if it exists"
        .to_owned(),
    heading: "Configuration file".to_owned(),
    replaced_by: None,
});

pub(super) fn all() -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().chain([&*CONFIG]).chain(FORMER.iter())
}

impl Setting {
    fn of_arg(arg: &Arg) -> Self {
        let text = |text: &OsStr| text.to_string_lossy().into_owned();
        let value_name = arg
            .get_value_names()
            .map(|names| names.join(" "))
            .unwrap_or_default();
        Self {
            env: arg.get_env().map(text).unwrap_or_default(),
            flag: arg.get_long().map(str::to_owned),
            form: match value_name.as_str() {
                "NUMBER" => ValueType::Number,
                "BOOL" => ValueType::Boolean,
                name if name.ends_with(",...") => ValueType::List,
                _ => ValueType::Text,
            },
            value_name,
            default: arg
                .get_default_values()
                .first()
                .map(|default| text(default)),
            help: arg.get_help().map(ToString::to_string).unwrap_or_default(),
            heading: arg.get_help_heading().unwrap_or_default().to_owned(),
            replaced_by: None,
        }
    }

    /// Returns the setting of a secret, and the setting of its file.
    fn of_secret(secret: &SecretDeclaration) -> [Self; 2] {
        let mut own = Self {
            env: secret.env.to_owned(),
            flag: None,
            form: ValueType::Text,
            value_name: secret.value_name.to_owned(),
            default: secret.default.map(str::to_owned),
            help: secret.help.to_owned(),
            heading: secret.heading.to_owned(),
            replaced_by: None,
        };
        let mut file = Self {
            env: format!("{}_FILE", secret.env),
            value_name: "PATH".to_owned(),
            default: None,
            help: format!("File that holds `{}`", secret.env),
            ..own.clone()
        };
        file.flag = Some(file.field().replace('_', "-"));
        if secret.has_flag {
            own.flag = Some(own.field().replace('_', "-"));
        }
        [own, file]
    }

    /// Returns its name in the configuration file: `TOLLKEY_LOG_FORMAT` is `log_format` there.
    #[must_use]
    pub fn field(&self) -> String {
        let name = self.env.strip_prefix("TOLLKEY_").unwrap_or(&self.env);
        name.to_ascii_lowercase()
    }

    #[must_use]
    pub fn help_line(&self) -> String {
        let default = match &self.default {
            Some(default) => format!(" [default: {default}]"),
            None => String::new(),
        };
        format!("{}{default} [env: {}]", self.help, self.env)
    }
}

pub(super) fn help() -> String {
    let mut help = String::from(
        "Settings are accepted before and after every command. Each is a flag, an environment\n\
         variable and a field of the configuration file; the first in this order wins.",
    );
    let mut heading = "";
    for setting in SETTINGS.iter().chain([&*CONFIG]) {
        if heading != setting.heading {
            heading = &setting.heading;
            let _ = write!(help, "\n\n{heading}:");
        }
        let name = match (&setting.flag, setting.form) {
            (Some(flag), ValueType::Boolean) => format!("--{flag}[=<{}>]", setting.value_name),
            (Some(flag), _) => format!("--{flag} <{}>", setting.value_name),
            (None, _) => format!("(a secret has no flag) <{}>", setting.value_name),
        };
        let line = setting.help_line().replace('`', "");
        let _ = write!(help, "\n      {name}\n          {line}");
    }
    help
}

/// Returns the page `docs/settings.md`.
#[must_use]
pub fn markdown() -> String {
    let mut page = String::from(include_str!("settings.md"));
    let mut heading = "";
    for setting in SETTINGS.iter().chain([&*CONFIG]) {
        if heading != setting.heading {
            heading = &setting.heading;
            let columns = "| Variable | Default | Meaning |\n|---|---|---|\n";
            let _ = write!(page, "\n## {heading}\n\n{columns}");
        }
        let default = match &setting.default {
            Some(default) => format!("`{default}`"),
            None => String::new(),
        };
        let no_flag = if setting.flag.is_none() {
            ". No flag"
        } else {
            ""
        };
        let (env, help) = (&setting.env, &setting.help);
        let _ = writeln!(page, "| `{env}` | {default} | {help}{no_flag}. |");
    }
    page
}
