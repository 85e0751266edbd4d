//! Accounts: the tenants. An account is not created; it exists as soon as a management token names it.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};
use strum::{AsRefStr, Display, EnumString, IntoStaticStr, VariantArray};

use crate::{
    Invalid, Problem, ProblemCode, Restrictions,
    feature::Feature,
    spelling::{spelled, unknown_value},
    text::is_external_id,
};

/// The ID of an account, which the issuer of management tokens chooses: `[A-Za-z0-9._:@-]{1,128}`, except `.` and `..`,
/// which clients and proxies remove from the path of a URL.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct AccountId(Arc<str>);

impl AccountId {
    /// Reads a stored ID. Accepts `.` and `..`, which can have been stored before they were rejected.
    ///
    /// # Errors
    /// [`Invalid`] unless it is `[A-Za-z0-9._:@-]{1,128}`.
    pub fn stored(text: &str) -> Result<Self, Invalid> {
        if !is_external_id(text) {
            return Err(Invalid::new(
                "must have 1 to 128 characters from A-Z a-z 0-9 . _ : @ -",
            ));
        }
        Ok(Self(text.into()))
    }

    /// The ID as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AccountId {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if matches!(text, "." | "..") {
            return Err(Invalid::new(
                "must not be . or .., because URLs drop these segments",
            ));
        }
        Self::stored(text)
    }
}
impl fmt::Display for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
impl fmt::Debug for AccountId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// An account and its settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// Its ID.
    pub id: AccountId,
    /// The operating model, which limits its scoped keys.
    pub operating_model: OperatingModel,
}

impl Account {
    /// Creates an account with the default settings.
    #[must_use]
    pub fn new(id: AccountId) -> Self {
        Self {
            id,
            operating_model: OperatingModel::default(),
        }
    }
}

/// How an account does business. It limits the features that the account's scoped keys can have: `ecosystem` includes all
/// five, `managed_ecosystem` the two that forward data, and the other models have no scoped keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(AsRefStr, Display, EnumString, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "snake_case", parse_err_ty = Invalid, parse_err_fn = unknown_value::<Self>)]
pub enum OperatingModel {
    /// One merchant: no scoped keys.
    #[default]
    PrimaryMerchant,
    /// A platform or marketplace: no scoped keys.
    Platform,
    /// Scoped keys with all five features.
    Ecosystem,
    /// Scoped keys with only the two features that forward data.
    ManagedEcosystem,
}

spelled!(OperatingModel, "All models, in the document's order.");

impl OperatingModel {
    /// Returns the features that a scoped key can have (hellgate, "Ecosystems" and "Managed Ecosystems"). Empty if
    /// scoped keys are not available.
    #[must_use]
    pub fn features(self) -> &'static [Feature] {
        match self {
            Self::PrimaryMerchant | Self::Platform => &[],
            Self::Ecosystem => &Feature::ALL,
            Self::ManagedEcosystem => {
                &[Feature::PaymentDataForward, Feature::CardholderDataForward]
            }
        }
    }

    /// Checks that an account with this model can have a key with these restrictions.
    ///
    /// # Errors
    /// `scoped_keys_unavailable` for a scoped key if the model does not have them, `feature_unavailable` for a feature
    /// that the model does not have.
    pub fn check(self, restrictions: &Restrictions) -> Result<(), Problem> {
        if !restrictions.is_scoped() {
            return Ok(());
        }
        let available = self.features();
        if available.is_empty() {
            return Err(Problem::new(
                ProblemCode::ScopedKeysUnavailable,
                format!(
                    "Scoped keys are not available with the operating model `{self}`. Remove the merchants and features of the key."
                ),
            ));
        }
        match restrictions
            .features
            .iter()
            .flatten()
            .find(|feature| !available.contains(feature))
        {
            None => Ok(()),
            Some(feature) => Err(Problem::new(
                ProblemCode::FeatureUnavailable,
                format!(
                    "The feature `{}` is not available with the operating model `{self}`. Remove it from the key.",
                    feature.as_str()
                ),
            )),
        }
    }
}
