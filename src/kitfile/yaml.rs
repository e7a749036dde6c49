//! YAML as go-yaml v3 writes it, with an indentation of two, for the values that a Kitfile can hold.
//!
//! No library in Rust writes these bytes, so the rules are here, each with its name:
//!
//! * **Layout.** Block style; a list is indented below its key; a list in a list starts on the line of its dash; empty lists and maps
//!   are `[]` and `{}`. Lines are never folded. Only a list of authors is in flow style.
//! * **Plain, if it reads back as text** ([`reads_as_text`]): what a reader of YAML 1.2, or of some of 1.1, would take for a boolean, a
//!   null, a number, a date or a base-60 number is in double quotes.
//! * **Single quotes** for what has an indicator where plain text must not have one, or blanks at its ends; **double quotes** for what
//!   has characters to escape, tabs, or blanks beside line breaks ([`Shape`]).
//! * **Literal** (`|`) for what has a line feed, unless it is a short key, is in flow style, or has what a literal cannot hold.
//! * **Keys** of more than 128 bytes, or of several lines, are written with `? `.
//! * **Numbers** are floats with the fewest digits that read back, as Go's `%g`.
//! * **Maps** are in natural order ([`sorted`]).
//! * **Oddities**, kept because the bytes are the point: characters outside the basic plane are escaped; a text that starts with a byte
//!   order mark has all of it escaped; a literal that starts with a line feed loses it (the hint `|2` is there, the empty line is not);
//!   after U+2028, U+2029 inside quotes the next line is indented.

mod order;
mod plain;

pub(super) use order::sorted;
use plain::reads_as_text;

/// A value to be written.
#[derive(Debug)]
pub(super) enum Yaml<'a> {
    Null,
    Bool(bool),
    Number(f64),
    Text(&'a str),
    List(Vec<Yaml<'a>>),
    /// A list of texts on one line.
    Flow(Vec<Yaml<'a>>),
    /// In the order given; for free-form maps see [`sorted`].
    Map(Vec<(&'a str, Yaml<'a>)>),
}

/// Writes `root`, a map, as a document.
pub(super) fn document(root: &Yaml<'_>) -> String {
    let mut writer = Writer { out: String::new(), column: 0, blank: true, fresh: true };
    writer.value(root, None);
    writer.indent(0);
    writer.out
}

/// The length in bytes up to which a key needs no `? `.
const SIMPLE_KEY: usize = 128;

/// Spaces per level.
const STEP: usize = 2;

/// Where a scalar stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Context {
    Block,
    Flow,
    SimpleKey,
}

struct Writer {
    out: String,
    /// Characters since the last line break.
    column: usize,
    /// Whether what was written last separates from what comes next.
    blank: bool,
    /// Whether nothing but indentation (and the dashes, which count as such) stands in the line.
    fresh: bool,
}

impl Writer {
    /// Writes a value whose parent's children stand at `indent`; `None` for the document.
    fn value(&mut self, value: &Yaml<'_>, indent: Option<usize>) {
        let below = indent.map_or(0, |indent| indent + STEP);
        match value {
            Yaml::Null => self.plain("null"),
            Yaml::Bool(value) => self.plain(if *value { "true" } else { "false" }),
            Yaml::Number(value) => self.plain(&number(*value)),
            Yaml::Text(text) => self.text(text, below, Context::Block),
            Yaml::List(elements) if elements.is_empty() => self.empty("[", "]"),
            Yaml::Map(entries) if entries.is_empty() => self.empty("{", "}"),
            Yaml::List(elements) => {
                for element in elements {
                    self.indent(below);
                    self.mark("-", true);
                    self.value(element, Some(below));
                }
            }
            Yaml::Flow(elements) => self.flow(elements, below),
            Yaml::Map(entries) => {
                for (key, value) in entries {
                    self.indent(below);
                    self.key(key, below);
                    self.value(value, Some(below));
                }
            }
        }
    }

    fn key(&mut self, key: &str, indent: usize) {
        if key.len() <= SIMPLE_KEY && !key.contains(is_break) {
            self.text(key, indent + STEP, Context::SimpleKey);
            self.put(":");
            self.after(false);
        } else {
            self.mark("?", true);
            self.text(key, indent + STEP, Context::Block);
            self.indent(indent);
            self.mark(":", true);
        }
    }

    fn flow(&mut self, elements: &[Yaml<'_>], indent: usize) {
        self.mark("[", false);
        self.blank = true;
        for (position, element) in elements.iter().enumerate() {
            if position > 0 {
                self.put(",");
                self.after(false);
            }
            if let Yaml::Text(text) = element {
                self.text(text, indent + STEP, Context::Flow);
            }
        }
        self.put("]");
        self.after(false);
    }

    fn empty(&mut self, open: &str, close: &str) {
        self.mark(open, false);
        self.put(close);
        self.after(false);
    }

    fn text(&mut self, text: &str, indent: usize, context: Context) {
        let shape = Shape::of(text);
        let plain = match context {
            Context::Flow => shape.plain_in_flow,
            Context::Block | Context::SimpleKey => shape.plain,
        };
        if text.contains('\n') {
            if shape.literal && context == Context::Block { self.literal(text, indent) } else { self.double_quoted(text) }
        } else if !reads_as_text(text) {
            self.double_quoted(text);
        } else if plain {
            self.plain(text);
        } else if shape.single_quoted {
            self.single_quoted(text, indent);
        } else {
            self.double_quoted(text);
        }
    }

    fn plain(&mut self, text: &str) {
        self.separate();
        self.put(text);
        self.after(false);
    }

    fn single_quoted(&mut self, text: &str, indent: usize) {
        self.mark("'", false);
        let mut broken = false;
        for letter in text.chars() {
            if is_break(letter) {
                self.put_break(letter);
                broken = true;
                continue;
            }
            if broken && letter != ' ' {
                self.indent(indent);
                broken = false;
            }
            if letter == '\'' {
                self.put("'");
            }
            self.put_char(letter);
            self.fresh &= letter == ' ';
        }
        self.put("'");
        self.after(false);
    }

    fn double_quoted(&mut self, text: &str) {
        self.mark("\"", false);
        let marked = text.starts_with('\u{feff}');
        for letter in text.chars() {
            if !marked && is_printable(letter) && !is_break(letter) && !matches!(letter, '"' | '\\') {
                self.put_char(letter);
                continue;
            }
            let short = match letter {
                '\0' => '0',
                '\u{7}' => 'a',
                '\u{8}' => 'b',
                '\t' => 't',
                '\n' => 'n',
                '\u{b}' => 'v',
                '\u{c}' => 'f',
                '\r' => 'r',
                '\u{1b}' => 'e',
                '"' => '"',
                '\\' => '\\',
                '\u{85}' => 'N',
                '\u{a0}' => '_',
                '\u{2028}' => 'L',
                '\u{2029}' => 'P',
                other => {
                    let code = u32::from(other);
                    match code {
                        0..=0xff => self.put(&format!("\\x{code:02X}")),
                        0x100..=0xffff => self.put(&format!("\\u{code:04X}")),
                        _ => self.put(&format!("\\U{code:08X}")),
                    }
                    continue;
                }
            };
            self.put("\\");
            self.put_char(short);
        }
        self.put("\"");
        self.after(false);
    }

    fn literal(&mut self, text: &str, indent: usize) {
        self.mark("|", false);
        if text.starts_with(|first| first == ' ' || is_break(first)) {
            self.put("2");
        }
        let mut from_end = text.chars().rev();
        match (from_end.next().is_some_and(is_break), from_end.next()) {
            (false, _) => self.put("-"),
            (true, None) => self.put("+"),
            (true, Some(before)) if is_break(before) => self.put("+"),
            (true, Some(_)) => {}
        }
        self.after(false);
        self.blank = true;
        let mut broken = true;
        for letter in text.chars() {
            if is_break(letter) {
                self.put_break(letter);
                broken = true;
                continue;
            }
            if broken {
                self.indent(indent);
                broken = false;
            }
            self.put_char(letter);
            self.fresh = false;
        }
    }

    /// Starts a line at `indent`, unless this one is still good for it.
    fn indent(&mut self, indent: usize) {
        if !self.fresh || self.column > indent || (self.column == indent && !self.blank) {
            self.put_break('\n');
        }
        while self.column < indent {
            self.put_char(' ');
        }
        self.blank = true;
    }

    /// Writes an indicator that must stand apart from what is before it. A dash and its like leave a line `fresh`.
    fn mark(&mut self, indicator: &str, fresh: bool) {
        self.separate();
        self.put(indicator);
        self.after(fresh);
    }

    fn after(&mut self, fresh: bool) {
        self.blank = false;
        self.fresh &= fresh;
    }

    fn separate(&mut self) {
        if !self.blank {
            self.put_char(' ');
        }
    }

    fn put(&mut self, text: &str) {
        self.out.push_str(text);
        self.column += text.chars().count();
    }

    fn put_char(&mut self, letter: char) {
        self.out.push(letter);
        self.column += 1;
    }

    fn put_break(&mut self, letter: char) {
        self.out.push(letter);
        self.column = 0;
        self.fresh = true;
    }
}

/// Which styles can hold a text.
struct Shape {
    plain: bool,
    plain_in_flow: bool,
    single_quoted: bool,
    literal: bool,
}

impl Shape {
    fn of(text: &str) -> Self {
        let mut indicator = text.starts_with("---") || text.starts_with("...");
        let mut flow_indicator = indicator;
        let (mut special, mut tab, mut breaks, mut break_space, mut space_break) = (false, false, false, false, false);
        let mut before = None;
        let mut letters = text.chars().peekable();
        while let Some(letter) = letters.next() {
            let next_blank = letters.peek().is_none_or(|next| matches!(next, ' ' | '\t'));
            match (before, letter) {
                (None, '#' | ',' | '[' | ']' | '{' | '}' | '&' | '*' | '!' | '|' | '>' | '\'' | '"' | '%' | '@' | '`') => indicator = true,
                (None, '-') => indicator |= next_blank,
                (None, '?') | (_, ':') => {
                    flow_indicator = true;
                    indicator |= next_blank;
                }
                (Some(_), ',' | '?' | '[' | ']' | '{' | '}') => flow_indicator = true,
                (Some(before), '#') => indicator |= matches!(before, ' ' | '\t' | '\0') || is_break(before),
                _ => {}
            }
            tab |= letter == '\t';
            special |= letter != '\t' && !is_printable(letter);
            breaks |= is_break(letter);
            break_space |= letter == ' ' && before.is_some_and(is_break);
            space_break |= is_break(letter) && before == Some(' ');
            before = Some(letter);
        }
        let at_end = |letter: Option<char>| letter.is_some_and(|letter| letter == ' ' || is_break(letter));
        let bare = !(at_end(text.chars().next()) || at_end(before) || breaks || break_space || space_break || tab || special);
        Self {
            plain: bare && !indicator,
            plain_in_flow: bare && !indicator && !flow_indicator && !text.is_empty(),
            single_quoted: !(break_space || space_break || tab || special),
            literal: !(before.is_none_or(|last| last == ' ') || space_break || special),
        }
    }
}

fn is_break(letter: char) -> bool {
    matches!(letter, '\r' | '\n' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

fn is_printable(letter: char) -> bool {
    matches!(letter, '\n' | ' '..='~' | '\u{a0}'..='\u{d7ff}' | '\u{e000}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}')
}

/// A float as Go's `%g` prints it with the fewest digits: `1e-05`, `0.0001`, `100000`, `1e+06`.
fn number(value: f64) -> String {
    let mut shortest = format!("{value:e}");
    // Of two equally short and equally near ones Rust takes the larger, Go the even one, as exact formatting does.
    let digits = shortest.split('e').next().unwrap_or_default().bytes().filter(u8::is_ascii_digit).count();
    let exact = format!("{value:.*e}", digits.saturating_sub(1));
    if exact.parse() == Ok(value) {
        shortest = exact;
    }
    let (mantissa, exponent) = shortest.split_once('e').unwrap_or((&shortest, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if !(-4..6).contains(&exponent) {
        return format!("{mantissa}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs());
    }
    let decimals = digits as i32 - 1 - exponent;
    format!("{value:.*}", usize::try_from(decimals).unwrap_or_default())
}
