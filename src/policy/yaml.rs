//! YAML as a policy may be written: a tree of texts, lists and mappings that know their lines.
//!
//! The parser gives events, and the tree is made of them here, because that is where depth, number of nodes, aliases and keys that come
//! twice are seen before anything is built of them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use saphyr_parser::{Event, Parser, ScalarStyle, Tag};

use crate::limits;

/// A value, and the line where it begins.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) line: usize,
    pub(super) value: Value,
    /// Itself and all that is in it.
    size: usize,
    /// Levels of lists and mappings.
    depth: usize,
}

/// What a node is. Numbers and booleans are texts: a policy has neither.
#[derive(Debug, Clone)]
pub(super) enum Value {
    /// `null`, `~`, or nothing at all.
    Null,
    /// Any other scalar, as it was written.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping; no key comes twice.
    Mapping(Vec<(String, Node)>),
}

/// One document of a file.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) root: Node,
    /// Its bytes. Those of all documents together are the file.
    pub(super) text: Range<usize>,
}

/// Why a text is no such YAML.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum YamlError {
    /// It is no YAML.
    #[error("line {line}: {what}")]
    Syntax {
        /// Where.
        line: usize,
        /// What the parser says.
        what: String,
    },
    /// A key stands twice in one mapping.
    #[error("line {line}: `{key}` stands here a second time")]
    Duplicate {
        /// Of the second one.
        line: usize,
        /// The key.
        key: String,
    },
    /// A key is no text.
    #[error("line {line}: a key has to be a text")]
    Key {
        /// Where.
        line: usize,
    },
    /// A value has a tag, which would make something else of it.
    #[error("line {line}: the tag `{tag}` has no meaning in a policy")]
    Tag {
        /// Where.
        line: usize,
        /// The tag.
        tag: String,
    },
    /// An alias stands inside of what it stands for.
    #[error("line {line}: an alias cannot stand for what it stands in")]
    Circle {
        /// Where.
        line: usize,
    },
    /// Lists and mappings stand in each other too deep.
    #[error("line {line}: lists and mappings stand in each other more than {limit} deep", limit = limits::POLICY_DEPTH)]
    TooDeep {
        /// Where.
        line: usize,
    },
    /// There are too many values.
    #[error("line {line}: more than {limit} values, aliases counted as what they stand for", limit = limits::POLICY_NODES)]
    TooMany {
        /// Where.
        line: usize,
    },
    /// There are too many documents.
    #[error("line {line}: more than {limit} documents in one file", limit = limits::POLICY_DOCUMENTS)]
    TooManyDocuments {
        /// Where.
        line: usize,
    },
}

/// The documents of a text. There may be none.
pub(super) fn documents(text: &str) -> Result<Vec<Document>, YamlError> {
    let mut builder = Builder::default();
    let mut starts = Vec::new();
    let mut roots = Vec::new();
    for event in Parser::new_from_str(text) {
        let (event, span) =
            event.map_err(|error| YamlError::Syntax { line: error.marker().line().max(1), what: error.info().to_owned() })?;
        let line = span.start.line();
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd => {}
            Event::DocumentStart(_) => {
                if starts.len() == limits::POLICY_DOCUMENTS {
                    return Err(YamlError::TooManyDocuments { line });
                }
                starts.push(span.start.index());
                builder.start_document();
            }
            Event::DocumentEnd => roots.push(builder.root.take().unwrap_or_else(|| Node::new(line, Value::Null))),
            Event::Alias(anchor) => builder.alias(anchor, line)?,
            Event::Scalar(text, style, anchor, tag) => {
                let value = scalar(text.into_owned(), style, tag.as_deref(), line)?;
                builder.finished(Node::new(line, value), anchor)?;
            }
            Event::SequenceStart(anchor, tag) => builder.open(anchor, tag.as_deref(), line, Open::List(Vec::new()))?,
            Event::MappingStart(anchor, tag) => {
                builder.open(anchor, tag.as_deref(), line, Open::Mapping { entries: Vec::new(), keys: BTreeSet::new(), key: None })?;
            }
            Event::SequenceEnd | Event::MappingEnd => builder.close()?,
        }
    }
    Ok(roots.into_iter().zip(pieces(text, &starts)).map(|(root, text)| Document { root, text }).collect())
}

/// Where each document begins and ends in bytes, given in which characters they begin. What stands before the first belongs to it.
fn pieces(text: &str, starts: &[usize]) -> Vec<Range<usize>> {
    let mut offsets = text.char_indices().map(|(offset, _)| offset);
    let mut passed = 0;
    let mut begins: Vec<usize> = Vec::new();
    for &start in starts.iter().skip(1) {
        begins.push(offsets.nth(start - passed).unwrap_or(text.len()));
        passed = start + 1;
    }
    let ends = begins.clone().into_iter().chain([text.len()]);
    [0].into_iter().chain(begins).zip(ends).map(|(begin, end)| begin..end).collect()
}

fn scalar(text: String, style: ScalarStyle, tag: Option<&Tag>, line: usize) -> Result<Value, YamlError> {
    match tag {
        Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => Ok(Value::Text(text)),
        Some(tag) => Err(YamlError::Tag { line, tag: tag.to_string() }),
        None if style == ScalarStyle::Plain && matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL") => Ok(Value::Null),
        None => Ok(Value::Text(text)),
    }
}

impl Node {
    fn new(line: usize, value: Value) -> Self {
        let (size, depth) = match &value {
            Value::Null | Value::Text(_) => (1, 0),
            Value::List(items) => measure(items.iter()),
            Value::Mapping(entries) => measure(entries.iter().map(|(_, node)| node)),
        };
        Self { line, value, size, depth }
    }
}

fn measure<'n>(nodes: impl Iterator<Item = &'n Node>) -> (usize, usize) {
    let (size, depth) = nodes.fold((1, 0), |(size, depth), node| (size + node.size, depth.max(node.depth)));
    (size, depth + 1)
}

/// A document in the making.
#[derive(Default)]
struct Builder {
    /// What is open, from the outside in, with its line and its anchor.
    open: Vec<(Open, usize, usize)>,
    root: Option<Node>,
    anchors: BTreeMap<usize, Node>,
    /// Of the whole file.
    nodes: usize,
}

enum Open {
    List(Vec<Node>),
    Mapping { entries: Vec<(String, Node)>, keys: BTreeSet<String>, key: Option<String> },
}

impl Builder {
    fn start_document(&mut self) {
        self.open.clear();
        self.anchors.clear();
        self.root = None;
    }

    fn count(&mut self, nodes: usize, line: usize) -> Result<(), YamlError> {
        self.nodes += nodes;
        if self.nodes > limits::POLICY_NODES { Err(YamlError::TooMany { line }) } else { Ok(()) }
    }

    fn open(&mut self, anchor: usize, tag: Option<&Tag>, line: usize, what: Open) -> Result<(), YamlError> {
        if let Some(tag) = tag {
            return Err(YamlError::Tag { line, tag: tag.to_string() });
        }
        if self.open.len() == limits::POLICY_DEPTH {
            return Err(YamlError::TooDeep { line });
        }
        self.count(1, line)?;
        self.open.push((what, line, anchor));
        Ok(())
    }

    fn close(&mut self) -> Result<(), YamlError> {
        let Some((open, line, anchor)) = self.open.pop() else { return Ok(()) };
        let value = match open {
            Open::List(items) => Value::List(items),
            Open::Mapping { entries, .. } => Value::Mapping(entries),
        };
        self.attach(Node::new(line, value), anchor)
    }

    fn finished(&mut self, node: Node, anchor: usize) -> Result<(), YamlError> {
        self.count(1, node.line)?;
        self.attach(node, anchor)
    }

    fn alias(&mut self, anchor: usize, line: usize) -> Result<(), YamlError> {
        let meant = self.anchors.get(&anchor).ok_or(YamlError::Circle { line })?;
        let (size, depth) = (meant.size, meant.depth);
        if self.open.len() + depth > limits::POLICY_DEPTH {
            return Err(YamlError::TooDeep { line });
        }
        // Counted before it is copied.
        self.count(size, line)?;
        let node = self.anchors.get(&anchor).cloned().ok_or(YamlError::Circle { line })?;
        self.attach(Node { line, ..node }, 0)
    }

    /// Puts a node where it belongs, and remembers it if it has an anchor.
    fn attach(&mut self, node: Node, anchor: usize) -> Result<(), YamlError> {
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some((Open::List(items), ..)) => items.push(node),
            Some((Open::Mapping { entries, keys, key }, ..)) => match key.take() {
                Some(key) => entries.push((key, node)),
                None => {
                    let Value::Text(text) = node.value else { return Err(YamlError::Key { line: node.line }) };
                    if !keys.insert(text.clone()) {
                        return Err(YamlError::Duplicate { line: node.line, key: text });
                    }
                    *key = Some(text);
                }
            },
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(node: &Node) -> String {
        match &node.value {
            Value::Null => "-".into(),
            Value::Text(text) => format!("{text:?}"),
            Value::List(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
            Value::Mapping(entries) => {
                format!("{{{}}}", entries.iter().map(|(key, node)| format!("{key}={}", shown(node))).collect::<Vec<_>>().join(" "))
            }
        }
    }

    #[test]
    fn values_are_texts_lists_and_mappings() {
        for (text, expected) in [
            ("a: b", "{a=\"b\"}"),
            ("a: 1\nb: true\nc: 1e3", "{a=\"1\" b=\"true\" c=\"1e3\"}"),
            ("a:\nb: ~\nc: null\nd: 'null'\ne: ''", "{a=- b=- c=- d=\"null\" e=\"\"}"),
            ("[a, {b: c}, []]", "[\"a\" {b=\"c\"} []]"),
            ("a: |\n  x\n  y\n", "{a=\"x\\ny\\n\"}"),
            ("a: &x [1]\nb: *x", "{a=[\"1\"] b=[\"1\"]}"),
            ("a: !!str null", "{a=\"null\"}"),
        ] {
            let documents = documents(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(documents.iter().map(|document| shown(&document.root)).collect::<Vec<_>>(), [expected], "{text}");
        }
    }

    #[test]
    fn documents_share_the_file_among_them() {
        for (text, expected) in [
            ("", &[][..]),
            ("# nothing\n", &[]),
            ("a: b\n", &["a: b\n"]),
            ("# é\n---\na: b\n---\nc: d\n", &["# é\n---\na: b\n", "---\nc: d\n"]),
            ("a: é\n...\n---\nb: c\n---\n", &["a: é\n...\n", "---\nb: c\n", "---\n"]),
        ] {
            let documents = documents(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            let pieces: Vec<_> = documents.iter().map(|document| &text[document.text.clone()]).collect();
            assert_eq!(pieces, expected, "{text:?}");
        }
    }

    #[test]
    fn what_is_refused_is_said_with_its_line() {
        let bomb = format!(
            "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n{}",
            (1..9).map(|n| format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 10].join(", "))).collect::<String>()
        );
        let deep = (0..40).map(|level| format!("{}a:\n", " ".repeat(level))).collect::<String>();
        let deeper_by_alias = format!("a: &a {}{}\nb: {}*a{}", "[".repeat(20), "]".repeat(20), "[".repeat(20), "]".repeat(20));
        for (text, expected) in [
            ("a: b\nc: d\na: e", YamlError::Duplicate { line: 3, key: "a".into() }),
            ("a: b\n\"a\": e", YamlError::Duplicate { line: 2, key: "a".into() }),
            ("[a]: b", YamlError::Key { line: 1 }),
            ("~: b", YamlError::Key { line: 1 }),
            ("a: !!int 1", YamlError::Tag { line: 1, tag: "tag:yaml.org,2002:!int".into() }),
            ("a: !x {b: c}", YamlError::Tag { line: 1, tag: "!x".into() }),
            ("a: &a\n  b: *a", YamlError::Circle { line: 2 }),
            (&bomb, YamlError::TooMany { line: 5 }),
            (&deep, YamlError::TooDeep { line: 1 + limits::POLICY_DEPTH }),
            (&deeper_by_alias, YamlError::TooDeep { line: 2 }),
            (&"--- a\n".repeat(limits::POLICY_DOCUMENTS + 1), YamlError::TooManyDocuments { line: limits::POLICY_DOCUMENTS + 1 }),
        ] {
            assert_eq!(documents(text).expect_err(text), expected, "{text:.200}");
        }
        for text in ["a: [", "a: b: c", "*none", "a: 'x", "%YAML 9.9.9\n---\na"] {
            assert!(matches!(documents(text), Err(YamlError::Syntax { .. })), "{text:?}");
        }
        assert!(documents(&"- ".repeat(300_000)).is_err(), "depth ends before the stack does");
    }
}
