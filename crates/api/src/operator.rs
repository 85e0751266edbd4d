//! What operators manage: accounts and service keys. snake_case, Unix seconds.

use serde::{Deserialize, Serialize};
use tollkey_core::OperatingModel;

use crate::{Open, Secret, time::UnixSeconds};

/// An account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Account {
    /// Its id, as management tokens name it.
    #[cfg_attr(feature = "openapi", schema(example = "acme"))]
    pub id: String,
    /// How it does business; bounds what its scoped keys can do.
    #[cfg_attr(feature = "openapi", schema(value_type = OperatingModel))]
    pub operating_model: Open<OperatingModel>,
}

/// The body of `PUT /accounts/{id}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PutAccount {
    /// How the account does business.
    #[serde(deserialize_with = "crate::word::required")]
    pub operating_model: OperatingModel,
}

/// The body of `POST /service-keys`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateServiceKey {
    /// What it is for: 1 to 100 characters after trimming.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "checkout gateway", min_length = 1, max_length = 100)
    )]
    pub name: String,
}

/// A new service key, with its text. This is the only answer that ever holds it.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "server", derive(Serialize))]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct CreatedServiceKey {
    /// Its id.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000004")
    )]
    pub id: String,
    /// What it is for.
    #[cfg_attr(feature = "openapi", schema(example = "checkout gateway"))]
    pub name: String,
    /// The whole key. Store it now: it cannot be shown again.
    #[serde(serialize_with = "crate::secret::write")]
    #[cfg_attr(feature = "openapi", schema(example = "tks_YOUR_SERVICE_KEY_HERE"))]
    pub key: Secret,
    /// When it was made.
    pub created_at: UnixSeconds,
}

/// A service key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct ServiceKey {
    /// Its id.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000004")
    )]
    pub id: String,
    /// What it is for.
    #[cfg_attr(feature = "openapi", schema(example = "checkout gateway"))]
    pub name: String,
    /// The last four characters.
    #[cfg_attr(feature = "openapi", schema(example = "9z8a"))]
    pub last4: String,
    /// When it was made.
    pub created_at: UnixSeconds,
    /// When it was revoked; null while it works.
    pub revoked_at: Option<UnixSeconds>,
}
