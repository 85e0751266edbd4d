//! The file of the public key that verifies management tokens.

use std::path::{Path, PathBuf};

use super::files::read_pem;

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
        let pem = read_pem(&path).map_err(|error| error.to_string());
        Self { path, pem }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn pem(&self) -> Result<&[u8], &str> {
        self.pem.as_deref().map_err(String::as_str)
    }

    pub(crate) fn has_escaped_line_breaks(&self) -> bool {
        self.pem
            .as_ref()
            .is_ok_and(|pem| has_escaped_line_breaks(pem))
    }
}

/// Returns whether a PEM text has the two characters `\n` instead of line breaks.
pub(crate) fn has_escaped_line_breaks(pem: &[u8]) -> bool {
    pem.windows(2).any(|pair| pair == b"\\n")
}
