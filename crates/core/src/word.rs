//! The words of short lists: each is shown as, and can be taken for, the text it has on the wire.

use std::fmt;

use crate::{
    Denial, Family, Mode, OperatingModel, Status,
    audit::{Action, ActorKind, TargetKind},
    feature::Feature,
};

macro_rules! words {
    ($($word:ty: $text:ident,)*) => {$(
        impl AsRef<str> for $word {
            fn as_ref(&self) -> &str {
                self.$text()
            }
        }
        impl fmt::Display for $word {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.$text())
            }
        }
    )*};
}

words! {
    Action: as_str,
    ActorKind: as_str,
    Denial: code,
    Family: as_str,
    Feature: as_str,
    Mode: as_str,
    OperatingModel: as_str,
    Status: as_str,
    TargetKind: as_str,
}

#[cfg(all(test, feature = "serde"))]
mod tests {
    use serde::Serialize;

    use super::*;

    /// What is shown is what is printed as JSON.
    #[test]
    fn a_word_is_shown_as_it_is_on_the_wire() {
        fn same<T: Serialize + AsRef<str> + fmt::Display>(words: impl IntoIterator<Item = T>) {
            for word in words {
                assert_eq!(serde_json::to_value(&word).unwrap(), word.as_ref());
                assert_eq!(word.to_string(), word.as_ref());
            }
        }
        same(ActorKind::ALL);
        same(Denial::ALL);
        same(Family::ALL);
        same(Feature::ALL);
        same(Mode::ALL);
        same(OperatingModel::ALL);
        same([Status::Revoked, Status::Expired, Status::Suspended, Status::Active]);
        same(TargetKind::ALL);
    }
}
