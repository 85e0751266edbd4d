//! Reads the configuration file, and files that hold one secret or key.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use tollkey_core::Invalid;
use zeroize::Zeroizing;

use super::{
    setting::{self, CONFIG, Setting, ValueType},
    sources::ConfigError,
    unknown::nearest_field,
};

const SECRET_FILE_MAX: u64 = 64 * 1024;
const CONFIG_FILE_MAX: u64 = 1024 * 1024;

/// A configuration file without unknown fields.
pub(super) struct ConfigFile {
    pub(super) path: PathBuf,
    pub(super) mode: u32,
    fields: toml::Table,
}

impl ConfigFile {
    /// The outer error means that the file cannot be read, the inner one that it is invalid.
    pub(super) fn read(path: &Path) -> io::Result<Result<Self, ConfigError>> {
        let (text, mode) = read_text(path, CONFIG_FILE_MAX)?;
        Ok(Self::parse(path, &text, mode))
    }

    pub(super) fn read_if_exists(path: &Path) -> Result<Option<Self>, ConfigError> {
        match Self::read(path) {
            Ok(file) => file.map(Some),
            // A broken symbolic link is an error: its settings would be ignored without a message.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && path.symlink_metadata().is_err() =>
            {
                Ok(None)
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                let rule = format!(
                    "{error}; run the command as the user of the server, or name another file with --config"
                );
                Err(file_error(path, rule))
            }
            Err(error) => Err(file_error(path, error.to_string())),
        }
    }

    fn parse(path: &Path, text: &str, mode: u32) -> Result<Self, ConfigError> {
        let fields: toml::Table = toml::from_str(text).map_err(|error| {
            // The error's `Display` quotes the line, which may contain a secret.
            let at = error.span().map_or(0, |span| span.start);
            let line = text.bytes().take(at).filter(|b| *b == b'\n').count() + 1;
            file_error(path, format!("line {line}: {}", error.message()))
        })?;
        let mut known: Vec<String> = setting::all().map(Setting::field).collect();
        known.retain(|field| *field != CONFIG.field());
        if let Some(name) = fields.keys().find(|name| !known.contains(name)) {
            let shown: String = name.chars().take(64).collect();
            let nearest = nearest_field(name);
            let rule = format!("unknown field {shown:?}; did you mean {nearest:?}?");
            return Err(file_error(path, rule));
        }
        Ok(Self {
            path: path.to_owned(),
            fields,
            mode,
        })
    }

    pub(super) fn has(&self, field: &str) -> bool {
        self.fields.contains_key(field)
    }

    /// Returns the value of a setting as it would be in the environment, or the rule that its type breaks.
    pub(super) fn text(&self, setting: &Setting) -> Result<Option<Zeroizing<String>>, Invalid> {
        let value = self.fields.get(&setting.field());
        let text = value.map(|value| as_text(setting.form, value));
        Ok(text.transpose()?.map(Zeroizing::new))
    }
}

fn file_error(path: &Path, rule: String) -> ConfigError {
    ConfigError::File {
        path: path.to_owned(),
        rule: Invalid::new(rule),
    }
}

pub(super) fn unreadable(error: &io::Error) -> Invalid {
    Invalid::new(format!("cannot read the file that it names: {error}"))
}

fn as_text(form: ValueType, value: &toml::Value) -> Result<String, Invalid> {
    use toml::Value::{Array, Boolean, Integer, String as Text};
    match (form, value) {
        (ValueType::Text | ValueType::List, Text(text)) => Ok(text.clone()),
        (ValueType::List, Array(entries)) => entries
            .iter()
            .map(|entry| entry.as_str().filter(|text| !text.contains(',')))
            .collect::<Option<Vec<_>>>()
            .map(|texts| texts.join(","))
            .ok_or_else(|| Invalid::new("must be an array of strings without commas")),
        (ValueType::Number, Integer(number)) => Ok(number.to_string()),
        (ValueType::Boolean, Boolean(on)) => Ok(on.to_string()),
        (ValueType::Text, _) => Err(Invalid::new("must be a string")),
        (ValueType::List, _) => Err(Invalid::new("must be an array of strings")),
        (ValueType::Number, _) => Err(Invalid::new("must be an integer")),
        (ValueType::Boolean, _) => Err(Invalid::new("must be true or false")),
    }
}

/// Reads a file of at most `max` bytes, and its permission bits.
fn read_bytes(path: &Path, max: u64) -> io::Result<(Zeroizing<Vec<u8>>, u32)> {
    let file = fs::File::open(path)?;
    let mode = file.metadata()?.permissions().mode() & 0o777;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(io::Error::other(format!("it is larger than {max} bytes")));
    }
    Ok((bytes, mode))
}

fn read_text(path: &Path, max: u64) -> io::Result<(Zeroizing<String>, u32)> {
    let (bytes, mode) = read_bytes(path, max)?;
    let text = str::from_utf8(&bytes).map_err(|_| {
        io::Error::other("it is not UTF-8; save it as UTF-8 without a byte order mark")
    })?;
    Ok((Zeroizing::new(text.to_owned()), mode))
}

/// Reads the secret in a file, without the line break that editors and secret stores add, and the permission bits of
/// the file. The error does not name the path: it may be a secret that was set in the variable with `_FILE` by mistake.
pub(super) fn read_secret(path: &Path) -> Result<(Zeroizing<String>, u32), Invalid> {
    let (text, mode) = read_text(path, SECRET_FILE_MAX).map_err(|error| unreadable(&error))?;
    let line = text
        .strip_suffix("\r\n")
        .or_else(|| text.strip_suffix('\n'))
        .unwrap_or(&text);
    if line.trim().is_empty() {
        return Err(Invalid::new(
            "the file that it names is empty; write the secret into it",
        ));
    }
    Ok((Zeroizing::new(line.to_owned()), mode))
}

/// The file that `TOLLKEY_JWT_PUBLIC_KEY_FILE` names. It is read only once, because it may be a pipe.
#[derive(Debug, Clone)]
pub struct PublicKeyFile {
    path: PathBuf,
    pem: Result<Vec<u8>, String>,
}

impl PublicKeyFile {
    /// If reading fails, [`TokenVerifier::open`](crate::auth::jwt::TokenVerifier::open) returns the error.
    #[must_use]
    pub fn read(path: PathBuf) -> Self {
        let pem = match read_bytes(&path, SECRET_FILE_MAX) {
            Ok((pem, _)) => Ok(pem.to_vec()),
            Err(error) => Err(error.to_string()),
        };
        Self { path, pem }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn pem(&self) -> Result<&[u8], &str> {
        self.pem.as_deref().map_err(String::as_str)
    }
}

/// Returns whether a PEM text has the two characters `\n` instead of line breaks.
pub(crate) fn has_escaped_line_breaks(pem: &[u8]) -> bool {
    pem.windows(2).any(|pair| pair == b"\\n")
}
