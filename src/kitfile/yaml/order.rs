//! The order of the keys of a free-form map.

use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory as _};

use super::Yaml;

/// Sorts a map as go-yaml does: numbers in keys by value, letters after other characters (but before them after a digit).
///
/// That order is not always transitive, which the sorts of the standard library may answer with a panic; this merge does not mind.
pub(in crate::kitfile) fn sorted<'a>(entries: Vec<(&'a str, Yaml<'a>)>) -> Vec<(&'a str, Yaml<'a>)> {
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
