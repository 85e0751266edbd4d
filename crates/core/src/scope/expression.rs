//! Expressions of scopes: `links:read AND (sessions:read OR sessions:write)`.
//!
//! ```text
//! expression  = conjunction *( OR conjunction )
//! conjunction = operand *( AND operand )
//! operand     = scope / "(" expression ")"
//! scope       = 1*( "A"-"Z" / "a"-"z" / "0"-"9" / "." / "_" / ":" / "*" / "/" / "-" )
//! ```
//!
//! AND binds more strongly than OR. Both are case-insensitive, and white space separates tokens. `*` has no special
//! meaning.

use super::{Catalogue, ScopeSet};
use crate::Invalid;

/// A condition on the scopes of a key.
///
/// ```
/// use tollkey_core::{Catalogue, Family, Scope, ScopeExpression};
///
/// let catalogue = Catalogue::default();
/// let expression = ScopeExpression::parse("links:read and (events:read or commerce)", &catalogue)?;
/// let scopes = |names: &[Scope]| catalogue.expand(Family::Commerce, names);
/// assert!(expression.is_satisfied_by(scopes(&[Scope::LINKS_READ, Scope::EVENTS_READ])));
/// assert!(!expression.is_satisfied_by(scopes(&[Scope::LINKS_READ])));
/// # Ok::<(), tollkey_core::Invalid>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopeExpression(Node);

impl ScopeExpression {
    /// The maximum length of the text in bytes.
    pub const MAX_LENGTH: usize = 1000;
    /// The maximum number of parentheses around an operand.
    pub const MAX_DEPTH: usize = 32;

    /// Parses an expression. No key has a scope that the catalogue does not contain.
    ///
    /// # Errors
    /// [`Invalid`] if the text is not an expression, is longer than [`Self::MAX_LENGTH`] or nests deeper than
    /// [`Self::MAX_DEPTH`]. The message has the position, but never a part of the text.
    pub fn parse(text: &str, catalogue: &Catalogue) -> Result<Self, Invalid> {
        if !(1..=Self::MAX_LENGTH).contains(&text.len()) {
            let max = Self::MAX_LENGTH;
            return Err(Invalid::new(format!("must have 1 to {max} characters")));
        }
        let mut parser = Parser {
            text,
            catalogue,
            token: Token::End,
            start: 0,
            end: 0,
            depth: 0,
        };
        parser.advance()?;
        let root = parser.expression()?;
        match parser.token {
            Token::End => Ok(Self(root)),
            _ => Err(parser.expected("AND, OR or the end")),
        }
    }

    /// Whether a key with these scopes satisfies the condition.
    #[must_use]
    pub fn is_satisfied_by(&self, scopes: ScopeSet) -> bool {
        self.0.is_satisfied_by(scopes)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    /// A scope; `None` if the catalogue does not contain it.
    Scope(Option<ScopeSet>),
    All(Vec<Node>),
    Any(Vec<Node>),
}

impl Node {
    fn is_satisfied_by(&self, scopes: ScopeSet) -> bool {
        let is_satisfied = |node: &Self| node.is_satisfied_by(scopes);
        match self {
            Self::Scope(scope) => scope.is_some_and(|scope| scopes.contains_all(scope)),
            Self::All(nodes) => nodes.iter().all(is_satisfied),
            Self::Any(nodes) => nodes.iter().any(is_satisfied),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Scope(&'a str),
    And,
    Or,
    Open,
    Close,
    End,
}

/// A recursive descent parser. [`ScopeExpression::MAX_DEPTH`] bounds the recursion.
struct Parser<'a> {
    text: &'a str,
    catalogue: &'a Catalogue,
    /// The current token, and its bytes in the text.
    token: Token<'a>,
    start: usize,
    end: usize,
    depth: usize,
}

impl<'a> Parser<'a> {
    fn expression(&mut self) -> Result<Node, Invalid> {
        let first = self.conjunction()?;
        self.chain(first, Token::Or, Self::conjunction, Node::Any)
    }

    fn conjunction(&mut self) -> Result<Node, Invalid> {
        let first = self.operand()?;
        self.chain(first, Token::And, Self::operand, Node::All)
    }

    /// Parses the rest of `first OPERATOR next OPERATOR next …`.
    fn chain(
        &mut self,
        first: Node,
        operator: Token<'static>,
        next: fn(&mut Self) -> Result<Node, Invalid>,
        combine: fn(Vec<Node>) -> Node,
    ) -> Result<Node, Invalid> {
        if self.token != operator {
            return Ok(first);
        }
        let mut nodes = vec![first];
        while self.token == operator {
            self.advance()?;
            nodes.push(next(self)?);
        }
        Ok(combine(nodes))
    }

    fn operand(&mut self) -> Result<Node, Invalid> {
        match self.token {
            Token::Scope(name) => {
                self.advance()?;
                let index = self.catalogue.index(name);
                Ok(Node::Scope(index.map(|index| ScopeSet(1 << index))))
            }
            Token::Open => self.in_parentheses(),
            Token::And | Token::Or | Token::Close | Token::End => {
                Err(self.expected("a scope or an opening parenthesis"))
            }
        }
    }

    fn in_parentheses(&mut self) -> Result<Node, Invalid> {
        if self.depth == ScopeExpression::MAX_DEPTH {
            let max = ScopeExpression::MAX_DEPTH;
            return Err(Invalid::new(format!("must nest at most {max} parentheses")));
        }
        self.depth += 1;
        self.advance()?;
        let inner = self.expression()?;
        if self.token != Token::Close {
            return Err(self.expected("AND, OR or a closing parenthesis"));
        }
        self.depth -= 1;
        self.advance()?;
        Ok(inner)
    }

    /// Reads the next token.
    fn advance(&mut self) -> Result<(), Invalid> {
        let rest = &self.text[self.end..];
        let token = rest.trim_start_matches([' ', '\t', '\n', '\r']);
        self.start = self.text.len() - token.len();
        let is_of_scope =
            |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | ':' | '*' | '/' | '-');
        let name = &token[..token.find(|c: char| !is_of_scope(c)).unwrap_or(token.len())];
        let length;
        (self.token, length) = match token.chars().next() {
            None => (Token::End, 0),
            Some('(') => (Token::Open, 1),
            Some(')') => (Token::Close, 1),
            Some(_) if name.is_empty() => {
                return Err(Invalid::new(format!(
                    "has an invalid character at position {}; use scopes, AND, OR and parentheses",
                    self.position()
                )));
            }
            Some(_) if name.eq_ignore_ascii_case("and") => (Token::And, name.len()),
            Some(_) if name.eq_ignore_ascii_case("or") => (Token::Or, name.len()),
            Some(_) => (Token::Scope(name), name.len()),
        };
        self.end = self.start + length;
        Ok(())
    }

    fn expected(&self, token: &str) -> Invalid {
        Invalid::new(format!("must have {token} at position {}", self.position()))
    }

    /// Returns the position of the current token in characters, from 1. All characters before it are ASCII.
    fn position(&self) -> usize {
        self.start + 1
    }
}
