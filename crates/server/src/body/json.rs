//! Parses a JSON body, a form or a query so that all of its invalid fields are found.
//!
//! A valid body is parsed directly. Otherwise it is parsed into a tree of nodes, and the tree into the type. Serde
//! stops at the first error, which is recorded. Then the invalid node is replaced by a placeholder that
//! deserializes as any type, and the tree is deserialized again. So the types of `tollkey-api` are the only
//! description of a body.

use serde::{
    Deserialize, Deserializer,
    de::{
        DeserializeOwned, Error as _, IntoDeserializer, MapAccess, SeqAccess, Visitor,
        value::{MapDeserializer, SeqDeserializer},
    },
    forward_to_deserialize_any,
};
use tollkey_core::{FieldError, FieldErrors, Problem, ProblemCode};

use super::{
    Read, escape,
    fault::{Fault, unknown},
};

/// Maximum number of invalid fields that a response names.
const MAX_ERRORS: usize = 32;
/// Maximum number of times a body is deserialized: some placeholders are replaced more than once.
const MAX_ATTEMPTS: usize = 96;
/// Largest floating-point number that is read as a whole number: 2^53.
const MAX_WHOLE: f64 = 9_007_199_254_740_992.0;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

pub(super) fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(bytes)
}

pub(super) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<Read<T>, Problem> {
    let bytes = without_mark(bytes);
    // Serde would also accept an array for a struct.
    if bytes.trim_ascii_start().first() == Some(&b'{')
        && let Ok(value) = serde_json::from_slice(bytes)
    {
        return Ok(Read {
            value,
            errors: FieldErrors::default(),
        });
    }
    let root: Node = serde_json::from_slice(bytes).map_err(|error| malformed(&error))?;
    if !matches!(root, Node::Object(_)) {
        return Err(Problem::field("", "The body must be a JSON object."));
    }
    read_tree(root)
}

pub(super) fn read_form<T: DeserializeOwned>(bytes: &[u8]) -> Result<Read<T>, Problem> {
    read_tree(Node::of_pairs(bytes, Node::Text))
}

pub(super) fn read_query<T: DeserializeOwned>(text: &[u8]) -> Result<T, Problem> {
    read_tree(Node::of_pairs(text, Node::Parameter))
        .and_then(Read::value)
        .map_err(|problem| {
            // A parameter has a name instead of a pointer.
            let named = |error: FieldError| FieldError {
                pointer: error.pointer.trim_start_matches('/').to_owned(),
                ..error
            };
            Problem::validation(problem.errors.into_iter().map(named).collect())
        })
}

fn malformed(error: &serde_json::Error) -> Problem {
    let (line, column) = (error.line(), error.column());
    let message = error.to_string();
    let reason = message
        .rsplit_once(" at line ")
        .map_or(message.as_str(), |(reason, _)| reason);
    Problem::new(
        ProblemCode::MalformedJson,
        format!("The body is not valid JSON at line {line}, column {column}: {reason}."),
    )
}

fn read_tree<T: DeserializeOwned>(mut root: Node) -> Result<Read<T>, Problem> {
    let mut errors = FieldErrors::default();
    root.take_repeated(&mut Vec::new(), &mut errors);
    for _ in 0..MAX_ATTEMPTS {
        let error = match serde_path_to_error::deserialize::<_, T>(&root) {
            Ok(value) => return Ok(Read { value, errors }),
            Err(error) => error,
        };
        let steps = steps(error.path());
        let repaired = root.repair(&steps, error.into_inner(), &mut errors);
        if !repaired || errors.len() >= MAX_ERRORS {
            break;
        }
    }
    Err(errors.into_problem())
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Field(String),
    Item(usize),
}

fn steps(path: &serde_path_to_error::Path) -> Vec<Step> {
    use serde_path_to_error::Segment;
    let step = |segment: &Segment| match segment {
        Segment::Map { key } => Some(Step::Field(key.clone())),
        Segment::Seq { index } => Some(Step::Item(*index)),
        Segment::Enum { .. } | Segment::Unknown => None,
    };
    path.iter().map_while(step).collect()
}

/// Returns the JSON pointer of a node (RFC 6901).
fn pointer(steps: &[Step]) -> String {
    let step = |step: &Step| match step {
        Step::Field(name) => format!("/{}", escape(name)),
        Step::Item(index) => format!("/{index}"),
    };
    steps.iter().map(step).collect()
}

/// An object keeps repeated fields.
#[derive(Debug, Clone)]
enum Node {
    Null,
    Bool(bool),
    Signed(i64),
    Unsigned(u64),
    Float(f64),
    Text(String),
    /// A string that is read as a number or a boolean where one is expected.
    Parameter(String),
    Array(Vec<Node>),
    Object(Vec<(String, Node)>),
    /// A placeholder for an invalid value: it deserializes as any type, and as this string where a variant is expected.
    StandIn(String),
}

impl Node {
    fn of_pairs(text: &[u8], value: fn(String) -> Self) -> Self {
        let pairs = form_urlencoded::parse(text).into_owned();
        Self::Object(pairs.map(|(name, text)| (name, value(text))).collect())
    }

    /// Removes repeated fields from every object and records an error for each. `path` leads to this node.
    fn take_repeated(&mut self, path: &mut Vec<Step>, errors: &mut FieldErrors) {
        match self {
            Self::Array(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    path.push(Step::Item(index));
                    item.take_repeated(path, errors);
                    path.pop();
                }
            }
            Self::Object(fields) => {
                let mut names = std::collections::HashSet::new();
                fields.retain(|(name, _)| {
                    let is_first = names.insert(name.clone());
                    if !is_first && errors.len() < MAX_ERRORS {
                        errors.add(
                            format!("{}/{}", pointer(path), escape(name)),
                            "must not be repeated",
                        );
                    }
                    is_first
                });
                // Only arrays and objects can contain a repeated name.
                for (name, value) in fields.iter_mut().filter(|(_, value)| value.is_container()) {
                    path.push(Step::Field(name.clone()));
                    value.take_repeated(path, errors);
                    path.pop();
                }
            }
            _ => {}
        }
    }

    fn is_container(&self) -> bool {
        matches!(self, Self::Array(_) | Self::Object(_))
    }

    fn find(&mut self, steps: &[Step]) -> Option<&mut Self> {
        let Some((step, rest)) = steps.split_first() else {
            return Some(self);
        };
        let inner = match (step, self) {
            (Step::Field(name), Self::Object(fields)) => fields
                .iter_mut()
                .find(|(own, _)| own == name)
                .map(|(_, value)| value),
            (Step::Item(index), Self::Array(items)) => items.get_mut(*index),
            _ => None,
        };
        inner?.find(rest)
    }

    /// Records an error and replaces its node, so that deserialization can continue; `false` if it cannot.
    fn repair(&mut self, steps: &[Step], fault: Fault, errors: &mut FieldErrors) -> bool {
        let detail = fault.to_string();
        match fault {
            Fault::Missing(name) => {
                errors.add(format!("{}/{}", pointer(steps), escape(name)), detail);
                match self.find(steps) {
                    Some(Self::Object(fields)) => fields.push((name.to_owned(), Self::stand_in())),
                    Some(node @ Self::StandIn(_)) => {
                        *node = Self::Object(vec![(name.to_owned(), Self::stand_in())])
                    }
                    _ => return false,
                }
                true
            }
            Fault::Unknown(name, known) => {
                // The path may lead to the field or to the object that has it.
                let has = |node: Option<&mut Self>| matches!(node, Some(Self::Object(fields)) if fields.iter().any(|(own, _)| *own == name));
                let steps = match steps.split_last() {
                    Some((_, outer)) if !has(self.find(steps)) => outer,
                    _ => steps,
                };
                let Some(Self::Object(fields)) = self.find(steps) else {
                    return false;
                };
                let before = fields.len();
                fields.retain(|(own, _)| {
                    let is_known = known.contains(&own.as_str());
                    if !is_known && errors.len() < MAX_ERRORS {
                        errors.add(
                            format!("{}/{}", pointer(steps), escape(own)),
                            unknown(own, known),
                        );
                    }
                    is_known
                });
                fields.len() < before
            }
            Fault::NoVariant(variants) => {
                errors.add(pointer(steps), detail);
                match (self.find(steps), variants.first()) {
                    (Some(Self::StandIn(text)), _) if !text.is_empty() => false,
                    (Some(node), Some(first)) => {
                        *node = Self::StandIn((*first).to_owned());
                        true
                    }
                    _ => false,
                }
            }
            Fault::Rule(_) => {
                errors.add(pointer(steps), detail);
                match self.find(steps) {
                    None | Some(Self::StandIn(_)) => false,
                    Some(node) => {
                        *node = Self::stand_in();
                        true
                    }
                }
            }
        }
    }

    fn stand_in() -> Self {
        Self::StandIn(String::new())
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(NodeVisitor)
    }
}

struct NodeVisitor;

impl<'de> Visitor<'de> for NodeVisitor {
    type Value = Node;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Node, E> {
        Ok(Node::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Node, E> {
        Ok(Node::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Node, E> {
        Ok(Node::Signed(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Node, E> {
        Ok(Node::Unsigned(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Node, E> {
        Ok(Node::Float(value))
    }

    fn visit_str<E>(self, text: &str) -> Result<Node, E> {
        Ok(Node::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut array = Vec::new();
        while let Some(item) = items.next_element()? {
            array.push(item);
        }
        Ok(Node::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Node, A::Error> {
        let mut object = Vec::new();
        while let Some(field) = fields.next_entry()? {
            object.push(field);
        }
        Ok(Node::Object(object))
    }
}

impl<'de> IntoDeserializer<'de, Fault> for &'de Node {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl Node {
    /// Reads a whole number, which may be written as `5.0`.
    fn deserialize_whole<'de, V: Visitor<'de>>(&'de self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Self::StandIn(_) => visitor.visit_u64(0),
            Self::Parameter(text) => match text.parse() {
                Ok(number) => visitor.visit_i64(number),
                Err(_) => self.deserialize_any(visitor),
            },
            #[expect(
                clippy::cast_possible_truncation,
                reason = "a whole number of at most 2^53"
            )]
            Self::Float(number) if number.fract() == 0.0 && number.abs() <= MAX_WHOLE => {
                visitor.visit_i64(*number as i64)
            }
            _ => self.deserialize_any(visitor),
        }
    }
}

macro_rules! whole_numbers {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            self.deserialize_whole(visitor)
        }
    )*};
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Node::Null | Node::StandIn(_) => visitor.visit_unit(),
            Node::Bool(value) => visitor.visit_bool(*value),
            Node::Signed(number) => visitor.visit_i64(*number),
            Node::Unsigned(number) => visitor.visit_u64(*number),
            Node::Float(number) => visitor.visit_f64(*number),
            Node::Text(text) | Node::Parameter(text) => visitor.visit_borrowed_str(text),
            Node::Array(items) => visitor.visit_seq(SeqDeserializer::new(items.iter())),
            Node::Object(fields) => {
                let fields = fields.iter().map(|(name, value)| (name.as_str(), value));
                visitor.visit_map(MapDeserializer::new(fields))
            }
        }
    }

    whole_numbers! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Node::Null | Node::StandIn(_) => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Node::StandIn(_) => visitor.visit_bool(false),
            Node::Parameter(text) if text == "true" || text == "false" => {
                visitor.visit_bool(text == "true")
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Node::StandIn(text) => visitor.visit_borrowed_str(text),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Node::StandIn(_) => {
                visitor.visit_seq(SeqDeserializer::new(std::iter::empty::<&Node>()))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match self {
            Node::StandIn(_) => {
                visitor.visit_map(MapDeserializer::new(std::iter::empty::<(&str, &Node)>()))
            }
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_map(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match self {
            Node::Text(text) | Node::Parameter(text) => {
                visitor.visit_enum(text.as_str().into_deserializer())
            }
            Node::StandIn(_) => visitor.visit_enum(
                variants
                    .first()
                    .copied()
                    .unwrap_or_default()
                    .into_deserializer(),
            ),
            _ => Err(Fault::custom("must be a string")),
        }
    }

    forward_to_deserialize_any! {
        f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct ignored_any i128 u128
    }
}
