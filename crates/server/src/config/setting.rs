//! What a setting is.

/// One setting: an environment variable, a member of the configuration file and, unless it is a secret, a flag.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The environment variable.
    pub env: &'static str,
    /// The flag, without its dashes. `None` for what must not stand on a command line.
    pub flag: Option<&'static str>,
    /// How the value is written.
    pub form: Form,
    /// The value it has when nobody sets it; `None` where the help says what happens then.
    pub default: Option<&'static str>,
    /// What it does, for `--help` and the documentation.
    pub help: &'static str,
}

impl Setting {
    /// Its name in the configuration file: `TOLLKEY_LOG_FORMAT` is `log_format` there.
    #[must_use]
    pub fn member(&self) -> String {
        self.env
            .strip_prefix("TOLLKEY_")
            .unwrap_or(self.env)
            .to_ascii_lowercase()
    }

    /// Its help with its variable and its default, on one line.
    #[must_use]
    pub fn help_line(&self) -> String {
        let default = self
            .default
            .map(|default| format!(" [default: {default}]"))
            .unwrap_or_default();
        format!("{}{default} [env: {}]", self.help, self.env)
    }
}

/// How a value is written. Everywhere but in the configuration file it is text; there it has the type that fits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// A text; a string in the file.
    Text(&'static str),
    /// A whole number; an integer in the file.
    Number,
    /// Texts with commas between them; an array of strings, or one string, in the file.
    List(&'static str),
    /// `true` or `false`; a boolean in the file, and a flag that means `true` when it stands alone.
    Switch,
}

impl Form {
    /// What stands for the value in `--help`.
    #[must_use]
    pub fn placeholder(self) -> &'static str {
        match self {
            Self::Text(name) | Self::List(name) => name,
            Self::Number => "NUMBER",
            Self::Switch => "BOOL",
        }
    }
}
