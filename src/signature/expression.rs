//! Regular expressions over identities: each matches the whole text or nothing.
//!
//! An expression is parsed alone and only then put between the two ends, so that none of its parts can get outside (`a|b`, `a)|(b`). What Go
//! reads differently is kept out, because policies travel: nested classes and operations on them, and (since `\d` and `\w` mean ASCII to
//! Go) any text that is not ASCII. Addresses in certificates are ASCII.

use std::convert::Infallible;
use std::fmt;

use regex_automata::meta;
use regex_syntax::ast::parse::ParserBuilder;
use regex_syntax::ast::{self, Ast, ClassSetBinaryOp, ClassSetItem, Flag, FlagsItemKind, GroupKind, Visitor};
use regex_syntax::hir::translate::TranslatorBuilder;
use regex_syntax::hir::{Hir, Look};

use crate::limits;

/// A regular expression that was compiled.
#[derive(Clone)]
pub struct Expression {
    text: String,
    compiled: meta::Regex,
}

/// Why a text is no regular expression that a policy may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    /// It is empty, and would match nothing.
    #[error("the expression is empty")]
    Empty,
    /// It is malformed.
    #[error("`{0}` is no regular expression: {1}")]
    Syntax(String, String),
    /// Something in it means something else to Go, or nothing.
    #[error("`{0}`: {1} means something else in Go's expressions, which policies are written in")]
    Dialect(String, &'static str),
    /// It becomes too large.
    #[error("`{0}` needs more than {limit} bytes when it is compiled", limit = limits::POLICY_EXPRESSION_BYTES)]
    TooLarge(String),
}

impl Expression {
    /// Compiles `text`.
    pub fn new(text: &str) -> Result<Self, ExpressionError> {
        if text.is_empty() {
            return Err(ExpressionError::Empty);
        }
        let syntax = |error: &dyn fmt::Display| {
            let line = error.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            ExpressionError::Syntax(text.to_owned(), line)
        };
        let ast = ParserBuilder::new().nest_limit(limits::POLICY_EXPRESSION_DEPTH).build().parse(text).map_err(|error| syntax(&error))?;
        if let Some(what) = foreign(&ast) {
            return Err(ExpressionError::Dialect(text.to_owned(), what));
        }
        let hir = TranslatorBuilder::new().build().translate(text, &ast).map_err(|error| syntax(&error))?;
        let compiled = whole(hir).ok_or_else(|| ExpressionError::TooLarge(text.to_owned()))?;
        Ok(Self { text: text.to_owned(), compiled })
    }

    /// Whether all of `text` is what the expression says. Never an empty text.
    pub fn matches(&self, text: &str) -> bool {
        !text.is_empty() && text.is_ascii() && self.compiled.is_match(text)
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}/", self.text)
    }
}

/// Compiles what matches `hir` between the two ends of a text.
pub(crate) fn whole(hir: Hir) -> Option<meta::Regex> {
    let whole = Hir::concat(vec![Hir::look(Look::Start), hir, Hir::look(Look::End)]);
    let config = meta::Config::new().nfa_size_limit(Some(limits::POLICY_EXPRESSION_BYTES));
    meta::Builder::new().configure(config).build_from_hir(&whole).ok()
}

/// What in an expression Go reads differently.
fn foreign(ast: &Ast) -> Option<&'static str> {
    struct Search(Option<&'static str>);
    impl Visitor for Search {
        type Output = Option<&'static str>;
        type Err = Infallible;

        fn finish(self) -> Result<Option<&'static str>, Infallible> {
            Ok(self.0)
        }

        fn visit_pre(&mut self, ast: &Ast) -> Result<(), Infallible> {
            let flags = match ast {
                Ast::Flags(flags) => Some(&flags.flags),
                Ast::Group(group) => match &group.kind {
                    GroupKind::NonCapturing(flags) => Some(flags),
                    _ => None,
                },
                Ast::Assertion(assertion) => {
                    use ast::AssertionKind::{EndLine, EndText, NotWordBoundary, StartLine, StartText, WordBoundary};
                    if !matches!(assertion.kind, StartLine | EndLine | StartText | EndText | WordBoundary | NotWordBoundary) {
                        self.0 = Some("a half word boundary");
                    }
                    None
                }
                _ => None,
            };
            let known = |flag: &Flag| matches!(flag, Flag::CaseInsensitive | Flag::MultiLine | Flag::DotMatchesNewLine | Flag::SwapGreed);
            if flags.is_some_and(|flags| flags.items.iter().any(|item| matches!(&item.kind, FlagsItemKind::Flag(flag) if !known(flag)))) {
                self.0 = Some("a flag other than i, m, s and U");
            }
            Ok(())
        }

        fn visit_class_set_item_pre(&mut self, item: &ClassSetItem) -> Result<(), Infallible> {
            if matches!(item, ClassSetItem::Bracketed(_)) {
                self.0 = Some("a class inside a class");
            }
            Ok(())
        }

        fn visit_class_set_binary_op_pre(&mut self, _: &ClassSetBinaryOp) -> Result<(), Infallible> {
            self.0 = Some("`&&`, `--` or `~~` in a class");
            Ok(())
        }
    }
    let Ok(found) = ast::visit(ast, Search(None));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_matches_all_of_a_text() {
        for (expression, matching, others) in [
            ("a|ab", &["a", "ab"][..], &["abc", "xa", "b"][..]),
            (
                "release@acme\\.example",
                &["release@acme.example"],
                &["release@acme.example.evil", "xrelease@acme.example", "release@acmeXexample"],
            ),
            ("^a$", &["a"], &["a\n", "ba"]),
            ("(?i)ab", &["AB", "ab"], &["A"]),
            ("(?m)^a$", &["a"], &["a\nb", "b\na"]),
            (".*", &["x", "a b"], &["", "a\nb", "é"]),
            ("(?s).*", &["a\nb"], &[""]),
            ("\\d+", &["17"], &["\u{661}", "17a"]),
            ("a*", &["aa"], &["", "b"]),
            ("x#y z", &["x#y z"], &["x"]),
        ] {
            let compiled = Expression::new(expression).unwrap_or_else(|error| panic!("{error}"));
            assert!(matching.iter().all(|text| compiled.matches(text)), "{expression} matches {matching:?}");
            assert!(!others.iter().any(|text| compiled.matches(text)), "{expression} matches none of {others:?}");
        }
    }

    #[test]
    fn what_go_reads_differently_is_refused() {
        for text in ["[a&&b]", "[a--b]", "[a~~b]", "[[a]b]", "(?x)a # b", "(?x:a b)", "(?-u)a", "\\b{start}a"] {
            assert!(matches!(Expression::new(text), Err(ExpressionError::Dialect(..))), "{text}: {:?}", Expression::new(text));
        }
        for text in
            ["(", "a)|(b", "[", "a{2", "\\", "*", "(?P<n>a)(?P<n>b)", &"(".repeat(300), &format!("{}a{}", "(".repeat(300), ")".repeat(300))]
        {
            assert!(matches!(Expression::new(text), Err(ExpressionError::Syntax(..))), "{text}: {:?}", Expression::new(text));
        }
        assert_eq!(Expression::new("").expect_err("nothing"), ExpressionError::Empty);
        assert!(matches!(Expression::new("((a{1000}){1000}){1000}"), Err(ExpressionError::TooLarge(_))));
    }
}
