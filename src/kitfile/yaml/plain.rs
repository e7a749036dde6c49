//! What a reader of YAML takes a plain text for.

/// Whether plain `text` is read as a text, and not as what YAML 1.2 or a careful reader of 1.1 makes of it.
pub(super) fn reads_as_text(text: &str) -> bool {
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
