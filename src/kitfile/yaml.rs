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

use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory as _};

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

/// Whether plain `text` is read as a text, and not as what YAML 1.2 or a careful reader of 1.1 makes of it.
fn reads_as_text(text: &str) -> bool {
    let old_boolean =
        matches!(text, "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" | "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF");
    let named = matches!(
        text,
        "" | "~" | "null" | "Null" | "NULL" | "true" | "True" | "TRUE" | "false" | "False" | "FALSE" | ".nan" | ".NaN" | ".NAN"
    ) || matches!(text.strip_prefix(['+', '-']).unwrap_or(text), ".inf" | ".Inf" | ".INF");
    let counted = match text.bytes().next() {
        Some(b'.') => is_bare_fraction(text),
        Some(b'+' | b'-' | b'0'..=b'9') => is_timestamp(text) || is_number(&text.replace('_', "")) || is_base_60(text),
        _ => false,
    };
    !(old_boolean || named || counted)
}

/// `.5`, `.5e3`, with `_` between digits, and not beyond the range of a float.
fn is_bare_fraction(text: &str) -> bool {
    let grouped = |digits: &str| digits.split('_').all(|group| !group.is_empty() && all_digits(group));
    let Some(rest) = text.strip_prefix('.') else { return false };
    let (fraction, exponent) = match rest.split_once(['e', 'E']) {
        Some((fraction, exponent)) => (fraction, Some(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))),
        None => (rest, None),
    };
    grouped(fraction) && exponent.is_none_or(grouped) && is_finite(&text.replace('_', ""))
}

/// An integer or a float as Go and YAML write them; `text` has no `_` any more.
fn is_number(text: &str) -> bool {
    let (negative, digits) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    // Go's integers: 64 bits, signed with a sign, in the base that the prefix gives.
    let lower = digits.to_ascii_lowercase();
    let prefixed = [("0b", 2), ("0o", 8), ("0x", 16)].into_iter().find_map(|(prefix, base)| Some((lower.strip_prefix(prefix)?, base)));
    let (number, base) = match prefixed {
        Some((number, base)) if !number.is_empty() => (number, base),
        _ => match lower.strip_prefix('0') {
            Some(rest) if !rest.is_empty() => (rest, 8),
            _ => (lower.as_str(), 10),
        },
    };
    if number.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && let Ok(value) = u64::from_str_radix(number, base)
    {
        let most = if negative { 1 << 63 } else { i64::MAX as u64 };
        if value <= most || digits.len() == text.len() {
            return true;
        }
    }
    if is_decimal(digits) && is_finite(text) {
        return true;
    }
    // What go-yaml adds: after `0b` and `0o` it reads a signed number, so that `0b-1` is one.
    for (prefix, base) in [("0b", 2), ("0o", 8)] {
        let rest = match text.strip_prefix('-').filter(|_| negative) {
            Some(unsigned) => unsigned.strip_prefix(prefix).map(|rest| format!("-{rest}")),
            None => text.strip_prefix(prefix).map(str::to_owned),
        };
        if rest.is_some_and(|rest| i64::from_str_radix(&rest, base).is_ok()) {
            return true;
        }
    }
    false
}

/// `(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?`
fn is_decimal(text: &str) -> bool {
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['+', '-']).unwrap_or(exponent))),
        None => (text, None),
    };
    let is_mantissa = match mantissa.split_once('.') {
        Some(("", fraction)) => !fraction.is_empty() && all_digits(fraction),
        Some((whole, fraction)) => all_digits(whole) && all_digits(fraction),
        None => !mantissa.is_empty() && all_digits(mantissa),
    };
    is_mantissa && exponent.is_none_or(|exponent| !exponent.is_empty() && all_digits(exponent))
}

fn is_finite(decimal: &str) -> bool {
    decimal.parse::<f64>().is_ok_and(f64::is_finite)
}

fn all_digits(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit())
}

/// `[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?`
fn is_base_60(text: &str) -> bool {
    let text = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let grouped = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit() || byte == b'_');
    let mut parts = whole.split(':');
    let first = parts.next().unwrap_or_default();
    let is_sixtieth = |part: &str| match part.as_bytes() {
        [one] => one.is_ascii_digit(),
        [ten, one] => (b'0'..=b'5').contains(ten) && one.is_ascii_digit(),
        _ => false,
    };
    let mut count = 0;
    let sixtieths = parts.all(|part| {
        count += 1;
        is_sixtieth(part)
    });
    first.starts_with(|digit: char| digit.is_ascii_digit()) && grouped(first) && sixtieths && count > 0 && grouped(fraction)
}

/// A date, or a date and a time, as go-yaml reads them.
fn is_timestamp(text: &str) -> bool {
    let mut rest = text;
    let Some(year) = rest.get(..4).filter(|year| all_digits(year)) else { return false };
    rest = &rest[4..];
    let date = (|| {
        literal(&mut rest, "-")?;
        let month = one_or_two(&mut rest)?;
        literal(&mut rest, "-")?;
        jiff::civil::Date::new(year.parse().ok()?, i8::try_from(month).ok()?, i8::try_from(one_or_two(&mut rest)?).ok()?).ok()
    })();
    if date.is_none() {
        return false;
    }
    if rest.is_empty() {
        return true;
    }
    let zoned = rest.starts_with(['T', 't']);
    let rest = if zoned { rest.get(1..) } else { rest.strip_prefix(' ').map(|rest| rest.trim_start_matches(' ')) };
    let Some(mut rest) = rest else { return false };
    let time = (|| {
        let hour = one_or_two(&mut rest)?;
        literal(&mut rest, ":")?;
        let minute = one_or_two(&mut rest)?;
        literal(&mut rest, ":")?;
        let second = one_or_two(&mut rest)?;
        (hour < 24 && minute < 60 && second < 60).then_some(())
    })();
    if time.is_none() {
        return false;
    }
    if let Some(fraction) = rest.strip_prefix(['.', ',']) {
        let end = fraction.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(fraction.len());
        if end > 0 {
            rest = &fraction[end..];
        }
    }
    if zoned { is_zone(rest) } else { rest.is_empty() }
}

/// `Z`, `+07:00`.
fn is_zone(text: &str) -> bool {
    match text.as_bytes() {
        [b'Z'] => true,
        [b'+' | b'-', h1, h2, b':', m1, m2] if [h1, h2, m1, m2].iter().all(|digit| digit.is_ascii_digit()) => {
            (h1 - b'0') * 10 + (h2 - b'0') <= 24 && (m1 - b'0') * 10 + (m2 - b'0') <= 60
        }
        _ => false,
    }
}

fn literal(rest: &mut &str, wanted: &str) -> Option<()> {
    *rest = rest.strip_prefix(wanted)?;
    Some(())
}

fn one_or_two(rest: &mut &str) -> Option<u8> {
    let digits = rest.bytes().take(2).take_while(u8::is_ascii_digit).count();
    let (number, after) = rest.split_at(digits);
    *rest = after;
    number.parse().ok()
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

/// Sorts a map as go-yaml does: numbers in keys by value, letters after other characters (but before them after a digit).
///
/// That order is not always transitive, which the sorts of the standard library may answer with a panic; this merge does not mind.
pub(super) fn sorted<'a>(entries: Vec<(&'a str, Yaml<'a>)>) -> Vec<(&'a str, Yaml<'a>)> {
    let mut runs: Vec<Vec<_>> = entries.into_iter().map(|(key, value)| vec![(key.chars().collect::<Vec<_>>(), key, value)]).collect();
    while runs.len() > 1 {
        let mut pairs = runs.into_iter();
        runs = Vec::new();
        while let Some(first) = pairs.next() {
            runs.push(match pairs.next() {
                Some(second) => merge(first, second),
                None => first,
            });
        }
    }
    runs.into_iter().flatten().map(|(_, key, value)| (key, value)).collect()
}

type Sortable<'a> = (Vec<char>, &'a str, Yaml<'a>);

fn merge<'a>(first: Vec<Sortable<'a>>, second: Vec<Sortable<'a>>) -> Vec<Sortable<'a>> {
    let mut merged = Vec::with_capacity(first.len() + second.len());
    let (mut first, mut second) = (first.into_iter().peekable(), second.into_iter().peekable());
    while let (Some(a), Some(b)) = (first.peek(), second.peek()) {
        let next = if comes_before(&b.0, &a.0) { second.next() } else { first.next() };
        merged.extend(next);
    }
    merged.extend(first);
    merged.extend(second);
    merged
}

fn comes_before(a: &[char], b: &[char]) -> bool {
    let Some(at) = a.iter().zip(b).position(|(a, b)| a != b) else { return a.len() < b.len() };
    let (Some(&left), Some(&right)) = (a.get(at), b.get(at)) else { return false };
    let after_digit = at.checked_sub(1).and_then(|before| a.get(before)).is_some_and(|letter| is_digit(*letter));
    match (is_letter(left), is_letter(right)) {
        (true, true) => return left < right,
        (true, false) => return after_digit,
        (false, true) => return !after_digit,
        (false, false) => {}
    }
    // A zero here belongs to a number that has begun before, unless only zeros have come of it: then it says nothing by itself.
    let begun = || a.iter().take(at).rev().take_while(|letter| is_digit(**letter)).any(|letter| *letter != '0');
    let start = i64::from((left == '0' || right == '0') && begun());
    let value = |letters: &[char]| {
        let digits = letters.iter().skip(at).take_while(|letter| is_digit(**letter));
        digits.fold((start, 0), |(value, count): (i64, usize), digit| {
            (value.wrapping_mul(10).wrapping_add(i64::from(u32::from(*digit)) - i64::from(u32::from('0'))), count + 1)
        })
    };
    let (a, b) = (value(a), value(b));
    if a == b { left < right } else { a < b }
}

fn is_digit(letter: char) -> bool {
    letter.general_category() == GeneralCategory::DecimalNumber
}

fn is_letter(letter: char) -> bool {
    letter.general_category_group() == GeneralCategoryGroup::Letter
}
