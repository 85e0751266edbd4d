//! The operations of operators, on accounts and service keys: snake_case, Unix seconds.

use serde::{Deserialize, Serialize};
use tollkey_core::OperatingModel;

use crate::{Open, Secret, time::UnixSeconds};

/// An account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct Account {
    /// The ID of the account, as in the account claim of management tokens.
    #[cfg_attr(feature = "openapi", schema(example = "acme"))]
    pub id: String,
    /// The operating model of the account. It limits the features of scoped keys.
    #[cfg_attr(feature = "openapi", schema(value_type = OperatingModel))]
    pub operating_model: Open<OperatingModel>,
}

/// The body of `PUT /accounts/{id}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PutAccount {
    /// The operating model of the account.
    #[serde(deserialize_with = "crate::enum_value::required")]
    pub operating_model: OperatingModel,
}

/// The body of `POST /service-keys`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateServiceKey {
    /// The label of the service key: 1 to 100 characters after trimming white space.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "checkout gateway", min_length = 1, max_length = 100)
    )]
    pub name: String,
}

/// A new service key. Only the response to its creation contains the full key.
#[derive(Debug, Clone, Deserialize)]
#[cfg_attr(feature = "server", derive(Serialize))]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct CreatedServiceKey {
    /// The ID of the service key.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000004")
    )]
    pub id: String,
    /// The label of the service key.
    #[cfg_attr(feature = "openapi", schema(example = "checkout gateway"))]
    pub name: String,
    /// The full service key. Store it now: it is not returned again.
    #[serde(serialize_with = "crate::secret::write")]
    #[cfg_attr(feature = "openapi", schema(value_type = String, example = "tks_YOUR_SERVICE_KEY_HERE"))]
    pub key: Secret,
    /// The time when the service key was created.
    pub created_at: UnixSeconds,
}

/// A service key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(not(feature = "server"), non_exhaustive)]
pub struct ServiceKey {
    /// The ID of the service key.
    #[cfg_attr(
        feature = "openapi",
        schema(example = "0198c0de-0000-7000-8000-000000000004")
    )]
    pub id: String,
    /// The label of the service key.
    #[cfg_attr(feature = "openapi", schema(example = "checkout gateway"))]
    pub name: String,
    /// The last four characters of the service key.
    #[cfg_attr(feature = "openapi", schema(example = "9z8a"))]
    pub last4: String,
    /// The time when the service key was created.
    pub created_at: UnixSeconds,
    /// The time when the service key was revoked, or null.
    #[cfg_attr(feature = "openapi", schema(required))]
    pub revoked_at: Option<UnixSeconds>,
}
