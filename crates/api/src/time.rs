//! Times in JSON: whole seconds, as RFC 3339 or as Unix time, as the API documents define.

use std::{fmt, time::SystemTime};

use jiff::{Timestamp, Unit};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use tollkey_core::{Invalid, time::to_seconds};

/// A time in RFC 3339 with whole seconds, such as `2026-02-23T12:00:00Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(
    feature = "openapi",
    derive(utoipa::ToSchema),
    schema(value_type = String, format = DateTime, example = "2026-02-23T12:00:00Z")
)]
pub struct Rfc3339(Timestamp);

/// A time in Unix time: whole seconds since 1970-01-01T00:00:00Z.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema), schema(value_type = i64, example = 1_771_848_000))]
pub struct UnixSeconds(Timestamp);

/// A time in a request: Unix seconds or RFC 3339.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Timestamp);

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for Moment {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
        use utoipa::openapi::{
            KnownFormat, ObjectBuilder, SchemaFormat, Type, schema::AnyOfBuilder,
        };

        let seconds = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Int64)))
            .maximum(Some(END_OF_9999));
        let text = ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::DateTime)));
        AnyOfBuilder::new()
            .description(Some("A time: Unix seconds or RFC 3339."))
            .examples(["2030-01-01T00:00:00Z"])
            .item(seconds)
            .item(text)
            .into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for Moment {}

impl From<Timestamp> for Rfc3339 {
    fn from(at: Timestamp) -> Self {
        Self(to_seconds(at))
    }
}
impl From<Timestamp> for UnixSeconds {
    fn from(at: Timestamp) -> Self {
        Self(to_seconds(at))
    }
}
impl From<Timestamp> for Moment {
    fn from(at: Timestamp) -> Self {
        Self(at)
    }
}
impl From<Rfc3339> for Timestamp {
    fn from(at: Rfc3339) -> Self {
        at.0
    }
}
impl From<UnixSeconds> for Timestamp {
    fn from(at: UnixSeconds) -> Self {
        at.0
    }
}
impl From<Moment> for Timestamp {
    fn from(at: Moment) -> Self {
        at.0
    }
}

impl From<Rfc3339> for SystemTime {
    fn from(at: Rfc3339) -> Self {
        at.0.into()
    }
}
impl From<UnixSeconds> for SystemTime {
    fn from(at: UnixSeconds) -> Self {
        at.0.into()
    }
}
impl From<Rfc3339> for Moment {
    fn from(at: Rfc3339) -> Self {
        Self(at.0)
    }
}
impl From<UnixSeconds> for Moment {
    fn from(at: UnixSeconds) -> Self {
        Self(at.0)
    }
}
impl From<SystemTime> for Moment {
    /// Replaces a time that is out of range with the nearest [`Timestamp`].
    fn from(at: SystemTime) -> Self {
        let nearest = if at < SystemTime::UNIX_EPOCH {
            Timestamp::MIN
        } else {
            Timestamp::MAX
        };
        Self(Timestamp::try_from(at).unwrap_or(nearest))
    }
}

impl Rfc3339 {
    /// Returns the time as a [`Timestamp`].
    #[must_use]
    pub fn timestamp(self) -> Timestamp {
        self.0
    }
}
impl UnixSeconds {
    /// Returns the time as a [`Timestamp`].
    #[must_use]
    pub fn timestamp(self) -> Timestamp {
        self.0
    }

    /// The whole seconds since 1970-01-01T00:00:00Z.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.0.as_second()
    }
}
impl Moment {
    /// Creates the time that is this many seconds after 1970-01-01T00:00:00Z. A time in the last hours of the
    /// year 9999 becomes [`Timestamp::MAX`], because [`Timestamp`] ends before them.
    ///
    /// # Errors
    /// [`Invalid`] for a time outside the years -9999 to 9999.
    pub fn from_unix(seconds: i64) -> Result<Self, Invalid> {
        if (Timestamp::MAX.as_second()..=END_OF_9999).contains(&seconds) {
            return Ok(Self(Timestamp::MAX));
        }
        Timestamp::from_second(seconds)
            .map(Self)
            .map_err(|_| Invalid::new(EXPECTED))
    }

    /// Returns the time as a [`Timestamp`].
    #[must_use]
    pub fn timestamp(self) -> Timestamp {
        self.0
    }
}

impl fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
/// Writes RFC 3339, such as `2026-02-23T12:00:00Z`.
impl fmt::Display for UnixSeconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
/// Writes RFC 3339, rounded to whole seconds, as in a request.
impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.round(Unit::Second).unwrap_or(self.0).fmt(f)
    }
}

impl Serialize for Rfc3339 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Rfc3339 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Moment::deserialize(deserializer).map(|moment| Self::from(moment.0))
    }
}
impl Serialize for UnixSeconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(self.seconds())
    }
}
impl<'de> Deserialize<'de> for UnixSeconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Moment::deserialize(deserializer).map(|moment| Self::from(moment.0))
    }
}
impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MomentVisitor)
    }
}

impl std::str::FromStr for Moment {
    type Err = Invalid;

    /// Reads Unix seconds or RFC 3339 from a query, in which an unescaped `+` arrives as a space.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let read = text
            .parse()
            .map_or_else(|_| rfc_3339(text), Self::from_unix);
        read.map_err(|rule| match rfc_3339(&text.replacen(' ', "+", 1)) {
            Ok(_) => Invalid::new(
                "must not contain a space; write the + of the offset as %2B, or use a time that ends in Z",
            ),
            Err(_) => rule,
        })
    }
}

fn rfc_3339(text: &str) -> Result<Moment, Invalid> {
    let parsed = is_rfc_3339(text)
        .then(|| text.parse().ok().or_else(|| last_hours(text)))
        .flatten();
    parsed.map(Moment).ok_or_else(|| Invalid::new(EXPECTED))
}

/// Returns [`Timestamp::MAX`] if `text` has the form of RFC 3339 and is in the last hours of the year 9999 in
/// UTC, which [`Timestamp`] cannot represent.
fn last_hours(text: &str) -> Option<Timestamp> {
    let local: jiff::civil::DateTime = text.get(..19)?.parse().ok()?;
    let zone = text
        .get(text.len() - 6..)
        .filter(|zone| zone.starts_with(['+', '-']));
    let offset = match zone {
        Some(zone) => {
            let (hours, minutes): (i64, i64) =
                (zone.get(1..3)?.parse().ok()?, zone.get(4..)?.parse().ok()?);
            let seconds = (hours < 24 && minutes < 60).then_some(hours * 3600 + minutes * 60)?;
            if zone.starts_with('-') {
                -seconds
            } else {
                seconds
            }
        }
        None => 0,
    };
    let epoch = jiff::civil::date(1970, 1, 1).at(0, 0, 0, 0);
    let seconds = local.duration_since(epoch).as_secs() - offset;
    (Timestamp::MAX.as_second()..=END_OF_9999)
        .contains(&seconds)
        .then_some(Timestamp::MAX)
}

/// Whether a text has the form of RFC 3339, section 5.6. jiff's parser also accepts spaces, signed years and names of
/// time zones.
fn is_rfc_3339(text: &str) -> bool {
    // A `0` in the pattern is any digit.
    let matches = |text: &str, pattern: &str| {
        text.len() == pattern.len()
            && text.bytes().zip(pattern.bytes()).all(|(b, p)| {
                if p == b'0' {
                    b.is_ascii_digit()
                } else {
                    b == p
                }
            })
    };
    let Some((seconds, rest)) = text.split_at_checked(19) else {
        return false;
    };
    let zone = rest.strip_prefix('.').map_or(rest, |rest| {
        rest.trim_start_matches(|c: char| c.is_ascii_digit())
    });
    let fraction = &rest[..rest.len() - zone.len()];
    matches(&seconds.to_ascii_uppercase(), "0000-00-00T00:00:00")
        && fraction != "."
        && (zone.eq_ignore_ascii_case("z") || matches(zone, "+00:00") || matches(zone, "-00:00"))
}

/// 9999-12-31T23:59:59Z.
const END_OF_9999: i64 = 253_402_300_799;

/// The largest floating-point number that is read as an integer: 2^53.
const MAX_EXACT_FLOAT: f64 = 9_007_199_254_740_992.0;

const EXPECTED: &str = "must be Unix seconds or an RFC 3339 time such as 2027-01-01T00:00:00Z";

struct MomentVisitor;

impl de::Visitor<'_> for MomentVisitor {
    type Value = Moment;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Unix seconds or an RFC 3339 time such as 2027-01-01T00:00:00Z")
    }

    fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Moment, E> {
        Moment::from_unix(seconds).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Moment, E> {
        i64::try_from(seconds)
            .map_err(|_| E::custom(EXPECTED))
            .and_then(|seconds| self.visit_i64(seconds))
    }

    /// Accepts whole numbers such as `5.0`.
    fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Moment, E> {
        if seconds.fract() != 0.0 || seconds.abs() > MAX_EXACT_FLOAT {
            return Err(E::custom(EXPECTED));
        }
        #[expect(
            clippy::cast_possible_truncation,
            reason = "a whole number of at most 2^53"
        )]
        self.visit_i64(seconds as i64)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Moment, E> {
        rfc_3339(text).map_err(E::custom)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn written(time: &impl Serialize) -> String {
        serde_json::to_string(time).unwrap()
    }

    fn read(json: &str) -> Option<Moment> {
        serde_json::from_str(json).ok()
    }

    #[test]
    fn times_are_whole_seconds() {
        let time = at("2026-02-23T12:00:00.999999Z");
        assert_eq!(written(&Rfc3339::from(time)), "\"2026-02-23T12:00:00Z\"");
        assert_eq!(written(&UnixSeconds::from(time)), "1771848000");
        let before_1970 = at("1969-12-31T23:59:58.5Z");
        assert_eq!(written(&UnixSeconds::from(before_1970)), "-2");
    }

    #[test]
    fn times_are_displayed_as_rfc_3339_and_converted() {
        let at = at("2026-02-23T12:00:00Z");
        let (text, seconds, moment) = (Rfc3339::from(at), UnixSeconds::from(at), Moment::from(at));
        for shown in [text.to_string(), seconds.to_string(), moment.to_string()] {
            assert_eq!(shown, "2026-02-23T12:00:00Z");
        }
        for timestamp in [text.timestamp(), seconds.timestamp(), moment.timestamp()] {
            assert_eq!(timestamp, at);
        }
        assert_eq!(seconds.seconds(), 1_771_848_000);
        let system = SystemTime::from(at);
        for converted in [SystemTime::from(text), SystemTime::from(seconds)] {
            assert_eq!(converted, system);
        }
        for converted in [Moment::from(text), seconds.into(), system.into()] {
            assert_eq!(moment, converted);
        }
    }

    #[test]
    fn parsed_times_are_whole_seconds() {
        for text in ["\"2026-02-23T12:00:00.75Z\"", "1771848000"] {
            let rfc_3339: Rfc3339 = serde_json::from_str(text).unwrap();
            let seconds: UnixSeconds = serde_json::from_str(text).unwrap();
            for shown in [rfc_3339.to_string(), seconds.to_string()] {
                assert_eq!(shown, "2026-02-23T12:00:00Z");
            }
        }
    }

    #[test]
    fn time_out_of_range_becomes_the_first_or_last_timestamp() {
        let far = Duration::from_secs(400_000_000_000);
        let last = Moment::from(SystemTime::UNIX_EPOCH + far);
        assert_eq!(last.timestamp(), Timestamp::MAX);
        let first = Moment::from(SystemTime::UNIX_EPOCH - far);
        assert_eq!(first.timestamp(), Timestamp::MIN);
        // The last timestamp is accepted in a request.
        assert_eq!(read(&written(&last)), Some(last));
    }

    #[test]
    fn moment_is_parsed_from_a_query_or_a_number() {
        let moment = Moment::from(at("2026-02-23T12:00:00Z"));
        for text in [
            "1771848000",
            "2026-02-23T12:00:00Z",
            "2026-02-23T13:00:00+01:00",
        ] {
            assert_eq!(text.parse(), Ok(moment), "{text}");
        }
        assert_eq!(Moment::from_unix(1_771_848_000), Ok(moment));
        let before_1970 = Moment::from_unix(-1).unwrap();
        assert_eq!(before_1970.to_string(), "1969-12-31T23:59:59Z");
        for rejected in [
            "2026-02-23",
            "",
            "1771848000.5",
            "9223372036854775807",
            "99999999999999999999",
            "2026-02-23 12:00:00Z",
            "2026-02-23T12:00:00 0000",
            " 2026-02-23",
        ] {
            let error = rejected.parse::<Moment>().unwrap_err();
            assert_eq!(error.to_string(), EXPECTED, "{rejected}");
        }
        for unescaped in ["2026-02-23T12:00:00 00:00", "2026-02-23T12:00:00.5 05:30"] {
            let error = unescaped.parse::<Moment>().unwrap_err().to_string();
            let rule = "write the + of the offset as %2B";
            assert!(error.contains(rule), "{unescaped}: {error}");
        }
        let error = Moment::from_unix(i64::MAX).unwrap_err();
        assert_eq!(error.to_string(), EXPECTED);
    }

    #[test]
    fn last_hours_of_9999_become_the_last_timestamp() {
        for text in [
            "253402300799",
            "253402300799.0",
            "253402207200",
            "\"9999-12-31T23:59:59Z\"",
            "\"9999-12-31t23:59:59.999z\"",
            "\"9999-12-31T23:59:59+05:30\"",
            "\"9999-12-31T12:00:00-11:59\"",
            "\"9999-12-30T22:00:01Z\"",
        ] {
            let last = read(text).unwrap().timestamp();
            assert_eq!(last, Timestamp::MAX, "{text}");
            assert_eq!(written(&Rfc3339::from(last)), "\"9999-12-30T22:00:00Z\"");
        }
        for text in [
            "253402300800",
            "9223372036854775807",
            "\"9999-12-31T23:59:59-00:01\"",
            "\"9999-12-31T24:00:00Z\"",
            "\"9999-12-32T00:00:00Z\"",
            "\"9999-12-31T23:59:59+24:00\"",
            "\"9999-12-31T23:60:00Z\"",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }

    #[test]
    fn moment_is_unix_seconds_or_rfc_3339() {
        let moment = Moment::from(at("2026-02-23T12:00:00Z"));
        for text in [
            "1771848000",
            "1771848000.0",
            "1.771848e9",
            "\"2026-02-23T12:00:00Z\"",
            "\"2026-02-23T13:00:00+01:00\"",
            "\"2026-02-23t07:00:00-05:00\"",
        ] {
            assert_eq!(read(text), Some(moment), "{text}");
        }
        assert!(read("\"2026-02-23T12:00:00.5z\"").is_some());
        for text in [
            "\"2026-02-23 12:00:00Z\"",
            "\"+002026-02-23T12:00:00Z\"",
            "\"2026-02-23T12:00Z\"",
            "\"2026-02-23T12:00:00\"",
            "\"2026-02-23T12:00:00.Z\"",
            "\"2026-02-23T12:00:00+00\"",
            "\"2026-02-23T12:00:00Z[Europe/Berlin]\"",
            "\"2026-02-23T12:00:00é\"",
            "1771848000.5",
            "1e17",
            "-1e300",
            "\"2026-02-23\"",
            "\"1771848000\"",
            "true",
            "9223372036854775807",
            "[]",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
