//! Metadata: limited in size, and unchanged when it is read back.

use proptest::prelude::*;
use serde_json::{Map, Value, json};
use tollkey_core::metadata::Metadata;

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(object) => object,
        other => panic!("{other} is not an object"),
    }
}

/// JSON as callers send it: every kind of value, a few levels deep.
pub(crate) fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[^\\x00]{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-zé\"\\\\]{0,6}", inner), 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

pub(crate) fn any_object() -> impl Strategy<Value = Map<String, Value>> {
    prop::collection::vec(("[a-z]{1,6}", any_json()), 0..4)
        .prop_map(|fields| fields.into_iter().collect())
}

proptest! {
    /// Including the order of fields and all bits of numbers: the store keeps the text, and the audit chain hashes it.
    #[test]
    fn stored_metadata_is_read_back_unchanged(original in any_object()) {
        let metadata = Metadata::new(original.clone()).unwrap();
        let read = metadata.object();
        prop_assert_eq!(&read, &original);
        let again = Metadata::new(read).unwrap();
        prop_assert_eq!(again.as_json(), metadata.as_json());
        prop_assert_eq!(Metadata::parse(metadata.as_json()), Ok(again));
    }

    #[test]
    fn number_is_read_back_as_the_same_text(number: f64) {
        let text = json!(number).to_string();
        let read: Value = serde_json::from_str(&text).unwrap();
        prop_assert_eq!(read.to_string(), text);
    }
}

#[test]
fn metadata_larger_than_4_kib_is_rejected() {
    let of_size = |bytes: usize| {
        Metadata::new(object(
            json!({ "a": "x".repeat(bytes - r#"{"a":""}"#.len()) }),
        ))
    };
    assert_eq!(of_size(4096).unwrap().as_json().len(), 4096);
    assert_eq!(
        of_size(4097).unwrap_err().to_string(),
        "must be at most 4096 bytes of JSON"
    );
}

#[test]
fn metadata_with_a_nul_character_is_rejected() {
    for rejected in [
        json!({"a": "\0"}),
        json!({"a\0": 1}),
        json!({"a": [{"b": ["x\0y"]}]}),
        json!({"a": {"\0": {}}}),
    ] {
        let error = Metadata::new(object(rejected)).unwrap_err();
        assert_eq!(error.to_string(), "must not contain NUL characters");
    }
    // A backslash followed by `u0000` is not a NUL.
    assert!(Metadata::new(object(json!({"a": r"\u0000"}))).is_ok());
}

#[test]
fn metadata_with_more_than_64_levels_is_rejected() {
    let nested = |levels: usize, level: fn(Value) -> Value| {
        object(json!({ "a": (1..levels).fold(Value::Null, |inner, _| level(inner)) }))
    };
    for level in [|inner| json!([inner]), |inner| json!({ "b": inner })] {
        let deepest = Metadata::new(nested(64, level)).unwrap();
        let entry = json!({ "changes": { "metadata": { "from": null, "to": deepest.object() } } });
        assert_eq!(
            serde_json::from_str::<Value>(&entry.to_string()).unwrap(),
            entry
        );
        assert_eq!(
            Metadata::new(nested(65, level)).unwrap_err().to_string(),
            "must have at most 64 levels of nesting"
        );
    }
}

#[test]
fn stored_text_is_read_unchanged() {
    for json in [
        r#"{}"#,
        r#"{"z":1,"a":2,"m":{"z":[],"a":{}}}"#,
        r#"{"n":[0,-0.0,1.0,1e+300,1.7976931348623157e+308,5e-324,18446744073709551615,-9223372036854775808,0.1]}"#,
        r#"{"text":"\"\\\n\u0001é\\u0000"}"#,
    ] {
        let metadata = Metadata::parse(json).unwrap();
        assert_eq!(metadata.as_json(), json);
        assert_eq!(
            Value::Object(metadata.object()).to_string(),
            json,
            "the order of fields and all digits of numbers"
        );
        assert_eq!(Metadata::new(metadata.object()).unwrap().as_json(), json);
    }
    // A text that is too long only because of white space.
    let spaced = format!("{{\"a\":{}1}}", " ".repeat(5000));
    assert_eq!(Metadata::parse(&spaced).unwrap().as_json(), r#"{"a":1}"#);
}

#[test]
fn invalid_stored_text_is_rejected() {
    let nested = |levels: usize| {
        format!(
            r#"{{"a":{}{}}}"#,
            "[".repeat(levels - 1),
            "]".repeat(levels - 1)
        )
    };
    assert!(Metadata::parse(&nested(64)).is_ok());
    let too_long = format!(r#"{{"a":"{}"}}"#, "x".repeat(4096));
    for (json, rule) in [
        ("", "must be an object"),
        ("[]", "must be an object"),
        ("null", "must be an object"),
        ("1", "must be an object"),
        ("\"{}\"", "must be an object"),
        ("{\"a\":1", "must be an object"),
        ("{} {}", "must be an object"),
        ("{\"a\":1e999}", "must be an object"),
        ("{\"a\":\"\\ud800\"}", "must be an object"),
        ("{\"a\":[\"\\u0000\"]}", "must not contain NUL characters"),
        ("{\"a\":{\"\\u0000\":1}}", "must not contain NUL characters"),
        (&nested(65), "must have at most 64 levels of nesting"),
        (&nested(1000), "must have at most 64 levels of nesting"),
        (&too_long, "must be at most 4096 bytes of JSON"),
    ] {
        assert_eq!(
            Metadata::parse(json).unwrap_err().to_string(),
            rule,
            "{json}"
        );
    }
}

#[test]
fn equality_of_metadata_ignores_the_order_of_fields() {
    let parse = |json| Metadata::parse(json).unwrap();
    assert_eq!(parse(r#"{"a":1,"b":2}"#), parse(r#"{"b":2,"a":1}"#));
    assert_ne!(parse(r#"{"a":1}"#), parse(r#"{"a":1.0}"#));
    assert_ne!(parse(r#"{"a":1}"#), parse(r#"{"a":1,"b":null}"#));
    assert_eq!(Metadata::default(), parse("{ }"));
}

#[test]
fn memory_of_the_largest_metadata_is_little_more_than_its_text() {
    let zeros = json!({ "a": vec![0; 2040] });
    let metadata = Metadata::new(object(zeros)).unwrap();
    assert_eq!(metadata.as_json().len(), 4087);
    assert!(
        metadata.heap_bytes() < 5 * 1024,
        "{}",
        metadata.heap_bytes()
    );
}
