//! What is taken out of texts before they are kept: markup, characters that nobody sees, and in what customers write,
//! what identifies them.

use std::borrow::Cow;
use std::sync::LazyLock;

use regex::{Captures, Regex};

static TAG: LazyLock<Regex> = LazyLock::new(|| pattern(r"(?s)<!--.*?-->|</?[A-Za-z!?][^<>]*>"));
static MAIL: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}"));
static DIGITS: LazyLock<Regex> = LazyLock::new(|| pattern(r"\+?\(?[0-9](?:[ .()/-]{0,2}[0-9]){7,18}"));

/// Street addresses as they are written in English and German. Words that also name goods ("2 Drive bays") count only
/// with a town's code behind them.
static STREET: LazyLock<Regex> = LazyLock::new(|| {
    pattern(concat!(
        r"\b[0-9]{1,5}[A-Za-z]? (?:[A-Z][A-Za-z'.-]* ){1,3}",
        r"(?:(?:(?:Street|Avenue|Road|Boulevard|Lane)\b|(?:St|Ave|Rd|Blvd|Ln)\b\.?)(?:,? (?:Apt|Unit|Suite|#)\.? ?[0-9A-Za-z]+)?",
        r"|(?:Drive|Dr|Court|Ct|Way|Place|Pl|Terrace|Parkway|Pkwy|Square|Sq)\b\.?,? [A-Z][A-Za-z .]{1,30},? [A-Z]{2} [0-9]{5})",
        r"(?:,? [A-Z][A-Za-z .]{1,30},? [A-Z]{2} [0-9]{5}(?:-[0-9]{4})?)?",
        r"|\b[A-ZÄÖÜ][a-zäöüß-]+(?:straße|strasse|str\.|weg|platz|allee|gasse) [0-9]{1,4}[a-z]?\b(?:, [0-9]{5} [A-ZÄÖÜ][a-zäöüß]+)?",
        r"|\bP\.? ?O\.? Box [0-9]{1,6}\b"
    ))
});

fn pattern(text: &str) -> Regex {
    Regex::new(text).unwrap_or_else(|error| unreachable!("a constant pattern: {error}"))
}

/// Plain text: no markup, no control, zero-width or direction-changing character, and single spaces. A text that was
/// cleaned stays as it is.
pub(crate) fn clean(text: &str) -> String {
    let mut text = tidy(text);
    // An entity may hide a tag, and what is left of one tag may be another. Each round that changes anything shortens
    // the text.
    loop {
        let decoded = decode(&text);
        let stripped = tidy(&TAG.replace_all(&decoded, " "));
        if stripped == text {
            return text;
        }
        text = stripped;
    }
}

/// Single spaces for white space, nothing for what cannot be seen.
fn tidy(text: &str) -> String {
    let mut tidy = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_whitespace() || c.is_control() {
            if !tidy.is_empty() && !tidy.ends_with(' ') {
                tidy.push(' ');
            }
        } else if !invisible(c) {
            tidy.push(c);
        }
    }
    tidy.truncate(tidy.trim_end().len());
    tidy
}

/// Zero-width and direction-changing characters, tags and variation selectors that carry hidden text, and the
/// private-use areas. The joiner stays: it makes emoji.
fn invisible(c: char) -> bool {
    matches!(c,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
        | '\u{180b}'..='\u{180f}' | '\u{200b}' | '\u{200c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0e}' | '\u{feff}' | '\u{ffa0}'
        | '\u{fff9}'..='\u{fffb}' | '\u{e000}'..='\u{f8ff}' | '\u{e0000}'..='\u{e0fff}' | '\u{f0000}'..='\u{10ffff}')
}

fn decode(text: &str) -> Cow<'_, str> {
    const ENTITIES: [(&str, &str); 7] = [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#39;", "'"),
        ("&apos;", "'"),
        ("&nbsp;", " "),
        ("&amp;", "&"),
    ];
    if !text.contains('&') {
        return Cow::Borrowed(text);
    }
    Cow::Owned(ENTITIES.iter().fold(text.to_owned(), |text, (entity, c)| text.replace(entity, c)))
}

/// The text with e-mail and street addresses, payment card and phone numbers replaced by what they were. Digits that run on
/// without a separator are a number of something else, unless they check out as a card's.
pub(crate) fn redact(text: &str) -> String {
    let text = MAIL.replace_all(text, "[e-mail]");
    let number = |found: &Captures<'_>| {
        let run = &found[0];
        let digits: Vec<u32> = run.chars().filter_map(|c| c.to_digit(10)).collect();
        let groups: Vec<&str> = run.split(|c: char| !c.is_ascii_digit()).filter(|g| !g.is_empty()).collect();
        let international = run.starts_with('+');
        let grouped = (2..=5).contains(&groups.len()) && groups[1..].iter().all(|group| group.len() >= 2);
        match digits.len() {
            13..=19 if luhn(&digits) => "[card]".to_owned(),
            8..=15 if international => "[phone]".to_owned(),
            10..=12 if grouped && groups.iter().any(|group| group.len() >= 3) => "[phone]".to_owned(),
            _ => run.to_owned(),
        }
    };
    let text = STREET.replace_all(&text, "[address]");
    DIGITS.replace_all(&text, number).into_owned()
}

/// Whether the digits end in the check digit that payment cards have (ISO/IEC 7812-1).
fn luhn(digits: &[u32]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(i, digit)| match i % 2 {
            0 => *digit,
            _ if *digit > 4 => digit * 2 - 9,
            _ => digit * 2,
        })
        .sum();
    sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn markup_and_hidden_characters_go() {
        for (text, want) in [
            ("<p>Good <b>pan</b></p>", "Good pan"),
            ("a &lt;script&gt;alert(1)&lt;/script&gt; b", "a alert(1) b"),
            ("&amp;lt;b&amp;gt;x", "x"),
            ("5 < 6 and 7 > 3", "5 < 6 and 7 > 3"),
            ("ig\u{200b}nore\u{202e} me\u{feff}", "ignore me"),
            ("<<b>b>x", "< b>x"),
            ("one\n\n two\t", "one two"),
            ("R&D at AT&T", "R&D at AT&T"),
        ] {
            assert_eq!(clean(text), want, "{text:?}");
        }
    }

    #[test]
    fn what_identifies_customers_goes_and_what_names_goods_stays() {
        for (text, want) in [
            ("write to jane.doe+x@mail.example.co.uk.", "write to [e-mail]."),
            ("call +49 30 1234567", "call [phone]"),
            ("call (555) 123-4567 now", "call [phone] now"),
            ("555-123-4567", "[phone]"),
            ("card 4111 1111 1111 1111", "card [card]"),
            ("card 4111111111111111", "card [card]"),
            ("send it to 12 Oak Tree Road, Springfield, IL 62704 please", "send it to [address] please"),
            ("I live at 221B Baker Street.", "I live at [address]."),
            ("at 7 Elm Drive, Austin, TX 78701", "at [address]"),
            ("Hauptstraße 12, 10115 Berlin", "[address]"),
            ("PO Box 1234", "[address]"),
            ("has 2 Drive bays and a 1 TB Hard Drive", "has 2 Drive bays and a 1 TB Hard Drive"),
            ("a 3 Way Light, 10 Place settings", "a 3 Way Light, 10 Place settings"),
            ("Bluetooth 5 St. Patrick edition", "Bluetooth 5 St. Patrick edition"),
            ("EAN 0095205603217", "EAN 0095205603217"),
            ("model 1234567890", "model 1234567890"),
            ("on 2009-12-10", "on 2009-12-10"),
            ("1 2 3 4 5 6 7 8 9 10", "1 2 3 4 5 6 7 8 9 10"),
            ("WR30X320, 41A5483-C", "WR30X320, 41A5483-C"),
        ] {
            assert_eq!(redact(text), want, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn cleaning_twice_changes_nothing(text in "(<|>|/|b|&lt;|&gt;|&amp;|!|-|\u{200b}|\u{202e}| |é|\\PC){0,40}") {
            let once = clean(&text);
            prop_assert!(!once.chars().any(|c| c.is_control() || invisible(c)), "{once:?}");
            prop_assert!(!TAG.is_match(&once), "{once:?}");
            prop_assert_eq!(clean(&once), once);
        }
    }
}
