//! Features: the endpoints that a scoped key can be limited to (hellgate, "Scoped API Keys").

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};
use strum::{AsRefStr, Display, EnumString, IntoStaticStr, VariantArray};

use crate::{
    Invalid,
    route::{RequestPath, Template},
    spelling::{spelled, unknown_value},
};

/// A feature of a scoped key: `tokens.list` allows `GET /tokens`, `tokens.retrieve` allows `GET /tokens/{id}`,
/// `payment_data.list` allows `GET /tokens/{id}/payment-data`, `payment_data.forward` allows
/// `POST /payment-data/{id}/forward`, and `cardholder_data.forward` allows `POST /forward`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(AsRefStr, Display, EnumString, IntoStaticStr, VariantArray)]
#[strum(parse_err_ty = Invalid, parse_err_fn = unknown_value::<Self>)]
pub enum Feature {
    /// `GET /tokens`: list tokens.
    #[serde(rename = "tokens.list")]
    #[strum(serialize = "tokens.list")]
    TokensList,
    /// `GET /tokens/{id}`: retrieve token details.
    #[serde(rename = "tokens.retrieve")]
    #[strum(serialize = "tokens.retrieve")]
    TokensRetrieve,
    /// `GET /tokens/{id}/payment-data`: list payment data bundles.
    #[serde(rename = "payment_data.list")]
    #[strum(serialize = "payment_data.list")]
    PaymentDataList,
    /// `POST /payment-data/{id}/forward`: forward payment data.
    #[serde(rename = "payment_data.forward")]
    #[strum(serialize = "payment_data.forward")]
    PaymentDataForward,
    /// `POST /forward`: forward cardholder data.
    #[serde(rename = "cardholder_data.forward")]
    #[strum(serialize = "cardholder_data.forward")]
    CardholderDataForward,
}

/// The route of each feature, in the order of [`Feature`].
static ROUTES: LazyLock<[Template; 5]> = LazyLock::new(|| {
    [
        Template::new("GET", "/tokens"),
        Template::new("GET", "/tokens/{id}"),
        Template::new("GET", "/tokens/{id}/payment-data"),
        Template::new("POST", "/payment-data/{id}/forward"),
        Template::new("POST", "/forward"),
    ]
});

spelled!(
    Feature,
    "All features, in the order of the hellgate document."
);

impl Feature {
    /// Reads the features of a scoped key, in their order and without duplicates.
    ///
    /// # Errors
    /// [`Invalid`] for an unknown name and for an empty list.
    pub fn parse_list<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Vec<Self>, Invalid> {
        let mut features = Vec::new();
        for name in names {
            let feature: Self = name.parse()?;
            if !features.contains(&feature) {
                features.push(feature);
            }
        }
        if features.is_empty() {
            return Err(Invalid::new(
                "must not be empty; on creation, omit the field to set no restriction",
            ));
        }
        Ok(features)
    }

    /// Whether this feature covers the request.
    #[must_use]
    pub fn allows(self, method: &str, path: RequestPath<'_>) -> bool {
        ROUTES[self as usize].matches(method, path)
    }
}
