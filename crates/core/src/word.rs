//! The words of short lists: each is shown as, can be taken for, and is read from the text it has on the wire.

use std::{fmt, str::FromStr};

use crate::{
    Denial, Family, Invalid, Mode, OperatingModel, Status,
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
        impl FromStr for $word {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                Self::ALL
                    .into_iter()
                    .find(|word| word.$text() == text)
                    .ok_or_else(|| Invalid::new(format!("must be one of {}", Self::ALL.map(Self::$text).join(", "))))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_read_as_it_is_shown_and_another_is_told_which_there_are() {
        fn read<const N: usize, T>(words: [T; N])
        where
            T: FromStr<Err = Invalid> + AsRef<str> + fmt::Display + fmt::Debug + PartialEq,
        {
            let mut rule = "must be one of ".to_owned();
            for (i, word) in words.iter().enumerate() {
                assert_eq!(
                    (
                        &word.to_string().parse::<T>().unwrap(),
                        word.to_string().as_str()
                    ),
                    (word, word.as_ref())
                );
                rule = rule + if i == 0 { "" } else { ", " } + word.as_ref();
            }
            for other in [
                "",
                "other",
                &format!("{} ", words[0]),
                &words[0].to_string().to_uppercase(),
            ] {
                assert_eq!(
                    other.parse::<T>().unwrap_err().to_string(),
                    rule,
                    "{other:?}"
                );
            }
        }
        read(Action::ALL);
        read(ActorKind::ALL);
        read(Denial::ALL);
        read(Family::ALL);
        read(Feature::ALL);
        read(Mode::ALL);
        read(OperatingModel::ALL);
        read(Status::ALL);
        read(TargetKind::ALL);
        assert_eq!(
            "tset".parse::<Mode>().unwrap_err().to_string(),
            "must be one of live, test"
        );
    }

    /// What is shown is what is printed as JSON.
    #[cfg(feature = "serde")]
    #[test]
    fn a_word_is_shown_as_it_is_on_the_wire() {
        fn same<T: serde::Serialize + AsRef<str>>(words: impl IntoIterator<Item = T>) {
            for word in words {
                assert_eq!(serde_json::to_value(&word).unwrap(), word.as_ref());
            }
        }
        same(ActorKind::ALL);
        same(Denial::ALL);
        same(Family::ALL);
        same(Feature::ALL);
        same(Mode::ALL);
        same(OperatingModel::ALL);
        same(Status::ALL);
        same(TargetKind::ALL);
    }
}
