//! Small applications, as a reader of the documentation would write them. They import only from `tollkey_axum` or
//! only from `tollkey_actix`, and share [`library`].

mod in_actix;
mod in_axum;

/// Functions for applications of both frameworks.
mod library {
    use tollkey_middleware::{Denial, Rejection, VerifiedKey};

    /// Describes a key for a log.
    pub fn describe(key: &VerifiedKey) -> String {
        let expiration = key
            .expires_at()
            .map_or_else(|| "never".to_owned(), |time| time.to_string());
        format!(
            "{} {} {} expires {expiration}",
            key.account_id(),
            key.family(),
            key.mode()
        )
    }

    /// Returns the label of a rejection for a metric.
    pub fn label(rejection: &Rejection) -> &'static str {
        match rejection.denial() {
            Some(Denial::InsufficientScope) => "scope",
            Some(Denial::RateLimited) => "rate limit",
            Some(denial) => denial.code(),
            None if rejection.status() == 503 => "server",
            None => rejection.code(),
        }
    }
}
