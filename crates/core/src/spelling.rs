//! The spellings of enum values in the database, in JSON and in error messages.
//!
//! Each of these enums derives its spellings with strum and its list of values with [`array`]. The spellings
//! are stored and sent, so the tests here fix them: a variant can be renamed, but its spelling cannot.

use strum::VariantArray;

use crate::Invalid;

/// Returns the error for a text that is not the spelling of a value of `T`. For `#[strum(parse_err_fn = …)]`.
pub(crate) fn unknown_value<T: VariantArray + AsRef<str>>(_text: &str) -> Invalid {
    let values: Vec<&str> = T::VARIANTS.iter().map(AsRef::as_ref).collect();
    Invalid::new(format!("must be one of {}", values.join(", ")))
}

/// Returns the values of an enum as an array.
///
/// # Panics
/// If `N` is not the number of values. In a constant, that is a compile error.
pub(crate) const fn array<T: Copy, const N: usize>(variants: &[T]) -> [T; N] {
    match variants.as_array() {
        Some(array) => *array,
        None => panic!("N is not the number of variants"),
    }
}

/// Adds the list of all values, with this documentation, and the spelling to an enum that derives the traits of strum.
macro_rules! spelled {
    ($type:ident, $all:literal) => {
        impl $type {
            #[doc = $all]
            pub const ALL: [Self; <Self as strum::VariantArray>::VARIANTS.len()] =
                $crate::spelling::array(<Self as strum::VariantArray>::VARIANTS);

            /// The spelling that is stored and sent.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                self.into()
            }
        }
    };
}
pub(crate) use spelled;

#[cfg(test)]
mod tests {
    use std::{fmt, str::FromStr};

    use super::*;
    use crate::{
        Denial, Family, Mode, OperatingModel, Status,
        audit::{Action, ActorKind, TargetKind},
        feature::Feature,
    };

    /// Checks that these are all values of `T` in their order, that each value is formatted as its spelling
    /// and parsed from it, and that other spellings are rejected.
    fn assert_spellings<T>(spellings: &[(T, &str)])
    where
        T: VariantArray
            + FromStr<Err = Invalid>
            + AsRef<str>
            + fmt::Display
            + fmt::Debug
            + PartialEq,
    {
        let texts: Vec<&str> = spellings.iter().map(|(_, text)| *text).collect();
        assert_eq!(T::VARIANTS.len(), spellings.len(), "{texts:?}");
        for (value, (expected, text)) in T::VARIANTS.iter().zip(spellings) {
            assert_eq!(value, expected);
            assert_eq!((value.as_ref(), value.to_string().as_str()), (*text, *text));
            assert_eq!(text.parse::<T>().as_ref(), Ok(value));
        }
        let error = format!("must be one of {}", texts.join(", "));
        for other in [
            "",
            "other",
            &format!("{} ", texts[0]),
            &texts[0].to_uppercase(),
        ] {
            assert_eq!(other.parse::<T>().unwrap_err().to_string(), error);
        }
    }

    #[test]
    fn values_of_the_audit_log_keep_their_spelling() {
        assert_spellings(&[
            (Action::ApiKeyCreated, "api_key.created"),
            (Action::ApiKeyUpdated, "api_key.updated"),
            (Action::ApiKeyRevoked, "api_key.revoked"),
            (Action::ApiKeySuspended, "api_key.suspended"),
            (Action::ApiKeyResumed, "api_key.resumed"),
            (Action::ApiKeyRotated, "api_key.rotated"),
            (Action::ApplicationCreated, "application.created"),
            (Action::ApplicationUpdated, "application.updated"),
            (Action::ApplicationEnabled, "application.enabled"),
            (Action::ApplicationDisabled, "application.disabled"),
            (Action::ApplicationDeleted, "application.deleted"),
            (Action::AccountUpdated, "account.updated"),
        ]);
        assert_spellings(&[
            (ActorKind::Merchant, "merchant"),
            (ActorKind::Operator, "operator"),
            (ActorKind::ApiKey, "api_key"),
            (ActorKind::Cli, "cli"),
        ]);
        assert_spellings(&[
            (TargetKind::ApiKey, "api_key"),
            (TargetKind::Application, "application"),
            (TargetKind::Account, "account"),
        ]);
    }

    #[test]
    fn values_of_keys_and_accounts_keep_their_spelling() {
        assert_spellings(&[
            (Family::Commerce, "commerce"),
            (Family::Application, "application"),
            (Family::Secret, "secret"),
            (Family::Publishable, "publishable"),
        ]);
        assert_spellings(&[(Mode::Live, "live"), (Mode::Test, "test")]);
        assert_spellings(&[
            (Status::Revoked, "revoked"),
            (Status::Expired, "expired"),
            (Status::Suspended, "suspended"),
            (Status::Active, "active"),
        ]);
        assert_spellings(&[
            (Feature::TokensList, "tokens.list"),
            (Feature::TokensRetrieve, "tokens.retrieve"),
            (Feature::PaymentDataList, "payment_data.list"),
            (Feature::PaymentDataForward, "payment_data.forward"),
            (Feature::CardholderDataForward, "cardholder_data.forward"),
        ]);
        assert_spellings(&[
            (OperatingModel::PrimaryMerchant, "primary_merchant"),
            (OperatingModel::Platform, "platform"),
            (OperatingModel::Ecosystem, "ecosystem"),
            (OperatingModel::ManagedEcosystem, "managed_ecosystem"),
        ]);
    }

    #[test]
    fn denials_keep_their_spelling() {
        assert_spellings(&[
            (Denial::UnknownKey, "unknown_key"),
            (Denial::Revoked, "revoked"),
            (Denial::Expired, "expired"),
            (Denial::Suspended, "suspended"),
            (Denial::ApplicationDisabled, "application_disabled"),
            (Denial::WrongMode, "wrong_mode"),
            (Denial::IpNotAllowed, "ip_not_allowed"),
            (Denial::RouteNotAllowed, "route_not_allowed"),
            (Denial::MerchantNotAllowed, "merchant_not_allowed"),
            (Denial::InsufficientScope, "insufficient_scope"),
            (Denial::RateLimited, "rate_limited"),
        ]);
    }

    #[test]
    fn values_are_spelled_the_same_in_json() {
        fn assert_json_spellings<T: VariantArray + serde::Serialize + AsRef<str>>() {
            for value in T::VARIANTS {
                assert_eq!(serde_json::to_value(value).unwrap(), value.as_ref());
            }
        }
        assert_json_spellings::<ActorKind>();
        assert_json_spellings::<Denial>();
        assert_json_spellings::<Family>();
        assert_json_spellings::<Feature>();
        assert_json_spellings::<Mode>();
        assert_json_spellings::<OperatingModel>();
        assert_json_spellings::<Status>();
        assert_json_spellings::<TargetKind>();
    }
}
