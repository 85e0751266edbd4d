//! The settings as data, for reading values, for help and documentation, and for detecting misspelled names.

use std::{ffi::OsStr, fmt::Write as _, sync::LazyLock};

use clap::{Arg, Args as _, Command};

use super::declared::Values;

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
    /// Whether its value must not be shown. The next setting is then that of the secret's file.
    pub is_secret: bool,
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
    let mut settings = Vec::new();
    for arg in Values::augment_args(Command::new("settings")).get_arguments() {
        let setting = Setting::of_arg(arg);
        let file = setting.is_secret.then(|| Setting {
            value_name: "PATH".to_owned(),
            help: format!("File that holds `{}`", setting.env),
            ..setting.renamed(format!("{}_FILE", setting.env))
        });
        settings.push(setting);
        settings.extend(file);
    }
    settings
});

/// The former names of [`SETTINGS`], which are accepted with a warning and not documented: the hidden aliases of flags.
/// Each with the variable of the setting.
pub(super) static FORMER: LazyLock<Vec<(Setting, String)>> = LazyLock::new(|| {
    let command = Values::augment_args(Command::new("settings"));
    let former = command.get_arguments().flat_map(|arg| {
        let flags = arg.get_all_aliases().unwrap_or_default().into_iter();
        flags.map(|flag| {
            let setting = Setting::of_arg(arg);
            let env = format!("TOLLKEY_{}", flag.to_uppercase().replace('-', "_"));
            (setting.renamed(env), setting.env)
        })
    });
    former.collect()
});

/// The configuration file: the only setting that is not a field of the file.
pub static CONFIG: LazyLock<Setting> = LazyLock::new(|| {
    Setting::of_arg(
        &Arg::new("config")
            .long("config")
            .env("TOLLKEY_CONFIG")
            .value_name("PATH")
            .help(
                "Configuration file; by default `tollkey.toml` in the working directory or, if that does not exist, \
                 `/etc/tollkey/tollkey.toml`",
            )
            .help_heading("Configuration file"),
    )
});

pub(super) fn documented() -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().chain([&*CONFIG])
}

pub(super) fn all() -> impl Iterator<Item = &'static Setting> {
    documented().chain(FORMER.iter().map(|(former, _)| former))
}

impl Setting {
    fn of_arg(arg: &Arg) -> Self {
        let text = |text: &OsStr| text.to_string_lossy().into_owned();
        let value_name = arg.get_value_names().unwrap_or_default().join(" ");
        Self {
            // A secret has its variable as ID.
            env: arg.get_env().map_or_else(|| arg.get_id().to_string(), text),
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
            is_secret: arg.is_hide_env_values_set(),
        }
    }

    /// Returns a setting like this one with another name, a flag, no default and a value that can be shown.
    fn renamed(&self, env: String) -> Self {
        let mut setting = Self {
            env,
            default: None,
            is_secret: false,
            ..self.clone()
        };
        setting.flag = Some(setting.field().replace('_', "-"));
        setting
    }

    /// Returns its name in the configuration file: `TOLLKEY_LOG_FORMAT` is `log_format` there.
    #[must_use]
    pub fn field(&self) -> String {
        let name = self.env.strip_prefix("TOLLKEY_").unwrap_or(&self.env);
        name.to_ascii_lowercase()
    }

    /// Returns its value as it is written in the configuration file: that of the package, otherwise its default, otherwise
    /// a placeholder.
    fn packaged_value(&self) -> String {
        let packaged = PACKAGED.iter().find(|(env, _)| *env == self.env);
        let value = packaged
            .map(|(_, value)| *value)
            .or(self.default.as_deref());
        let text = value.unwrap_or(&self.value_name);
        match (self.form, value) {
            (ValueType::Number | ValueType::Boolean, _) => text.to_owned(),
            (ValueType::List, None) => format!("[{:?}]", text.trim_end_matches(",...")),
            (ValueType::Text | ValueType::List, _) => format!("{text:?}"),
        }
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
    for setting in documented() {
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
    for setting in documented() {
        if heading != setting.heading {
            heading = &setting.heading;
            let columns = "| Variable | Default | Meaning |\n|---|---|---|\n";
            let _ = write!(page, "\n## {heading}\n\n{columns}");
        }
        let default = setting.default.as_ref();
        let default = default.map_or_else(String::new, |default| format!("`{default}`"));
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

/// The settings that the Debian package sets in its configuration file, with their values.
pub(super) const PACKAGED: [(&str, &str); 3] = [
    ("DATABASE_URL", "sqlite:///var/lib/tollkey/tollkey.db"),
    (
        "TOLLKEY_JWT_HS256_SECRET_FILE",
        "/etc/tollkey/jwt-hs256-secret",
    ),
    ("TOLLKEY_DRAIN_SECONDS", "5"),
];

/// The width of the comments in the configuration file.
const WIDTH: usize = 100;

/// Returns the configuration file of the Debian package, `deploy/debian/tollkey.toml`: every setting with its default
/// as a comment, and the settings of the package.
#[must_use]
pub fn configuration_file() -> String {
    let mut file = String::from(include_str!("tollkey.toml"));
    let mut heading = "";
    for setting in SETTINGS.iter() {
        if heading != setting.heading {
            heading = &setting.heading;
            let _ = write!(file, "\n\n### {heading}\n");
        }
        file.push('\n');
        let mut line = String::from("#");
        for word in format!("{}.", setting.help).split_whitespace() {
            if line.chars().count() + 1 + word.chars().count() > WIDTH {
                let _ = writeln!(file, "{line}");
                line.truncate(1);
            }
            line.push(' ');
            line.push_str(word);
        }
        let _ = writeln!(file, "{line}");
        let is_packaged = PACKAGED.iter().any(|(env, _)| *env == setting.env);
        let comment = if is_packaged { "" } else { "#" };
        let (field, value) = (setting.field(), setting.packaged_value());
        let _ = writeln!(file, "{comment}{field} = {value}");
    }
    file
}
