//! Takes amounts of money out of the model's prose while it streams.
//!
//! Prices are live data: they come from the store's systems and stand in cards. What the model writes of them it has from
//! old reviews, or made up. An amount is a number beside a currency's sign, code or name, in figures or in words. Nothing
//! is held back but what may still become one: a number until the word behind it is complete.

/// Unicode's currency signs (class `Sc`), as the inside of a regular expression's character class.
pub(crate) const CURRENCY_SIGNS: &str = "$\\xA2-\\xA5\\u{58F}\\u{60B}\\u{7FE}\\u{7FF}\\u{9F2}\\u{9F3}\\u{9FB}\\u{AF1}\\u{BF9}\\u{E3F}\\u{17DB}\
     \\u{20A0}-\\u{20CF}\\u{A838}\\u{FDFC}\\u{FE69}\\u{FF04}\\u{FFE0}\\u{FFE1}\\u{FFE5}\\u{FFE6}\
     \\u{11FDD}-\\u{11FE0}\\u{1E2FF}\\u{1ECB0}";

fn is_sign(c: char) -> bool {
    matches!(
        c,
        '$' | '\u{A2}'..='\u{A5}' | '\u{58F}' | '\u{60B}' | '\u{7FE}' | '\u{7FF}' | '\u{9F2}' | '\u{9F3}'
    ) || matches!(c, '\u{9FB}' | '\u{AF1}' | '\u{BF9}' | '\u{E3F}' | '\u{17DB}' | '\u{20A0}'..='\u{20CF}')
        || matches!(
            c,
            '\u{A838}' | '\u{FDFC}' | '\u{FE69}' | '\u{FF04}' | '\u{FFE0}' | '\u{FFE1}' | '\u{FFE5}'
        )
        || matches!(c, '\u{FFE6}' | '\u{11FDD}'..='\u{11FE0}' | '\u{1E2FF}' | '\u{1ECB0}')
}

/// Codes of ISO 4217, which stand on either side of a number.
const CODES: [&str; 20] = [
    "usd", "eur", "gbp", "jpy", "chf", "cny", "inr", "cad", "aud", "rmb", "nzd", "sek", "nok", "dkk", "pln",
    "mxn", "brl", "krw", "hkd", "sgd",
];
/// Names, which stand behind a number. Not `pound`, which is a weight as well, nor `won`.
const NAMES: [&str; 27] = [
    "dollar", "dollars", "buck", "bucks", "euro", "euros", "cent", "cents", "pence", "quid", "yen", "yuan",
    "rupee", "rupees", "franc", "francs", "peso", "pesos", "krona", "kronor", "kroner", "zloty", "ruble",
    "rubles", "lira", "rand", "sterling",
];
/// What may stand between a number and a name.
const BETWEEN: [&str; 8] =
    ["us", "american", "canadian", "australian", "singapore", "hong", "kong", "pounds"];
/// Numbers in words.
const NUMBERS: [&str; 30] = [
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
    "thirty",
    "forty",
    "fifty",
    "sixty",
    "seventy",
    "eighty",
    "ninety",
    "hundred",
    "thousand",
    "million",
];

/// Bytes of a number, of a word, and of what stands between them, beyond which there is no amount.
const LONGEST: usize = 48;
/// Bytes of an amount. A longer one leaves by its first number.
const MOST: usize = 256;

/// Stands in an amount's place.
const LEFT_OUT: char = '…';

/// The filter. How the text is cut into parts changes nothing.
#[derive(Debug, Default)]
pub struct Amounts {
    held: String,
    /// Bytes of what is held that have left already, since something else than prose came behind them.
    sent: usize,
    /// The last character before what is held.
    before: Option<char>,
    dropped: u32,
}

/// What stands at a place in the text.
enum Found {
    /// An amount of so many bytes.
    Amount(usize),
    /// So many bytes that are none and do not begin one.
    Plain(usize),
    /// The text must go on before it can be told.
    Open,
}

impl Amounts {
    /// Amounts that were taken out.
    pub fn dropped(&self) -> u32 {
        self.dropped
    }

    /// What may be shown now that this has come.
    pub fn push(&mut self, text: &str) -> String {
        self.held.push_str(text);
        self.run(false)
    }

    /// What was held back, where something else than prose follows. An amount does not come about around that either:
    /// what has left is looked at again with what comes behind, and its second half is taken out.
    pub fn pause(&mut self) -> String {
        let (mut out, mut at) = (String::new(), 0);
        let mut before = self.before;
        while at < self.held.len() {
            let rest = &self.held[at..];
            match look(before, rest, true) {
                Found::Amount(length) => {
                    self.dropped += 1;
                    out.push(LEFT_OUT);
                    self.held.drain(..at + length);
                    self.sent = self.sent.saturating_sub(at + length);
                    (self.before, before, at) = (Some(LEFT_OUT), Some(LEFT_OUT), 0);
                }
                Found::Plain(length) => {
                    out.push_str(&self.held[self.sent.clamp(at, at + length)..at + length]);
                    before = rest[..length].chars().last();
                    at += length;
                }
                // Nothing is open at an end.
                Found::Open => break,
            }
        }
        self.sent = at;
        out
    }

    /// What was held back, at the end.
    pub fn finish(&mut self) -> String {
        self.run(true)
    }

    fn run(&mut self, ended: bool) -> String {
        let mut out = String::new();
        let mut at = 0;
        while at < self.held.len() {
            let length = match look(self.before, &self.held[at..], ended) {
                Found::Open if self.held.len() - at < MOST => break,
                Found::Open => self.held[at..].chars().next().map_or(1, char::len_utf8),
                Found::Plain(length) => length,
                Found::Amount(length) => {
                    self.dropped += 1;
                    self.skip(at + length);
                    at += length;
                    // What is left on either side does not become an amount without it.
                    out.push(LEFT_OUT);
                    self.before = Some(LEFT_OUT);
                    continue;
                }
            };
            let end = at + length;
            out.push_str(&self.held[self.sent.clamp(at, end)..end]);
            self.skip(end);
            self.before = self.held[at..end].chars().last();
            at = end;
        }
        self.held.drain(..at);
        self.sent = self.sent.saturating_sub(at);
        out
    }

    /// Counts the text up to here as sent.
    fn skip(&mut self, to: usize) {
        self.sent = self.sent.max(to);
    }
}

/// What begins here, behind this character.
fn look(before: Option<char>, text: &str, ended: bool) -> Found {
    let Some(first) = text.chars().next() else { return Found::Open };
    let inside = before.is_some_and(char::is_alphanumeric);
    if is_sign(first) {
        // A sign, a number: `$5`, and `US$ 5` by its second half.
        let length = first.len_utf8();
        return amount_behind(text, length, ended).unwrap_or(Found::Plain(length));
    }
    if first.is_numeric() && !inside {
        return number(text, ended);
    }
    if first.is_alphabetic() && !inside {
        let Some(length) = word(text, ended) else { return Found::Open };
        let lower = text[..length].to_ascii_lowercase();
        if NUMBERS.contains(&lower.as_str()) {
            return number(text, ended);
        }
        // `EUR 5` and `EUR5`.
        let letters = &lower[..lower.find(char::is_numeric).unwrap_or(lower.len())];
        let code = CODES.contains(&letters).then_some(letters.len());
        return code.and_then(|code| amount_behind(text, code, ended)).unwrap_or(Found::Plain(length));
    }
    // Up to whatever may begin an amount.
    let mut length = 0;
    let mut last = before;
    for c in text.chars() {
        let starts = is_sign(c) || (c.is_alphanumeric() && !last.is_some_and(char::is_alphanumeric));
        if starts && length > 0 {
            break;
        }
        length += c.len_utf8();
        last = Some(c);
    }
    Found::Plain(length)
}

/// A number behind a sign or code of so many bytes.
fn amount_behind(text: &str, length: usize, ended: bool) -> Option<Found> {
    let gap = gap(&text[length..], ended);
    let Some(gap) = gap else { return Some(Found::Open) };
    let from = length + gap;
    let rest = &text[from..];
    match rest.chars().next() {
        None if ended => None,
        None => Some(Found::Open),
        Some(c) if c.is_numeric() => match figures(rest, ended) {
            None => Some(Found::Open),
            Some(figures) => Some(Found::Amount(from + figures)),
        },
        Some(_) => None,
    }
}

/// A number here, with a currency behind it or not.
fn number(text: &str, ended: bool) -> Found {
    let first = text.chars().next().unwrap_or(' ');
    let length = if first.is_numeric() { figures(text, ended) } else { word(text, ended) };
    let Some(plain) = length else { return Found::Open };
    let mut at = plain;
    // `five hundred US dollars`.
    for _ in 0..6 {
        let Some(gap) = gap(&text[at..], ended) else { return Found::Open };
        let rest = &text[at + gap..];
        match rest.chars().next() {
            None if ended => return Found::Plain(plain),
            None => return Found::Open,
            Some(c) if is_sign(c) => return Found::Amount(at + gap + c.len_utf8()),
            Some(c) if c.is_alphabetic() => {
                let Some(length) = word(rest, ended) else { return Found::Open };
                let lower = rest[..length].to_ascii_lowercase();
                let name = lower.as_str();
                at += gap + length;
                if NAMES.contains(&name) || CODES.contains(&name) {
                    return Found::Amount(at);
                }
                if !BETWEEN.contains(&name) && !NUMBERS.contains(&name) {
                    return Found::Plain(plain);
                }
            }
            Some(_) => return Found::Plain(plain),
        }
    }
    Found::Plain(plain)
}

/// Bytes of figures with separators between them: `1,299.00`. `None` where more may come.
fn figures(text: &str, ended: bool) -> Option<usize> {
    let mut length = 0;
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c.is_numeric() {
            length = at + c.len_utf8();
        } else if matches!(c, '.' | ',' | '\'' | '’') {
            match chars.peek() {
                Some((_, next)) if next.is_numeric() => {}
                Some(_) => return Some(length),
                None => return (ended || length > LONGEST).then_some(length),
            }
        } else {
            return Some(length);
        }
        if length > LONGEST {
            return Some(length);
        }
    }
    ended.then_some(length)
}

/// Bytes of a word. `None` where more may come.
fn word(text: &str, ended: bool) -> Option<usize> {
    let end = text.find(|c: char| !c.is_alphanumeric());
    // The first part of a long one, wherever the text ends now.
    let limit = text.char_indices().map(|(at, _)| at).find(|at| *at > LONGEST);
    match (end, limit) {
        (Some(end), limit) => Some(limit.map_or(end, |limit| limit.min(end))),
        (None, Some(limit)) => Some(limit),
        (None, None) => ended.then_some(text.len()),
    }
}

/// Bytes between a number and its unit: spaces, hyphens, emphasis, citations. `None` where more may come.
fn gap(text: &str, ended: bool) -> Option<usize> {
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        if c == '[' {
            let rest = text[at + 1..].trim_start_matches(|c: char| c.is_ascii_digit());
            match rest.chars().next() {
                None if ended => return Some(at),
                None => return None,
                Some(']') => at = text.len() - rest.len() + 1,
                Some(_) => return Some(at),
            }
        } else if c.is_whitespace()
            || matches!(c, '*' | '_' | '~' | '-' | '`' | '(' | '\u{2009}' | '\u{2060}')
        {
            at += c.len_utf8();
        } else {
            return Some(at);
        }
        if at > LONGEST {
            return Some(at);
        }
    }
    ended.then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all<'a>(parts: impl IntoIterator<Item = &'a str>) -> (String, u32) {
        let mut amounts = Amounts::default();
        let mut out = String::new();
        for part in parts {
            out += &amounts.push(part);
        }
        out += &amounts.finish();
        (out, amounts.dropped())
    }

    #[test]
    fn amounts_go() {
        for (text, expected) in [
            ("It costs $19.99 today.", "It costs … today."),
            ("It costs 1,299.00 € now", "It costs … now"),
            ("for EUR 5.", "for …."),
            ("for EUR5, or 5EUR.", "for …, or …."),
            ("only twenty-five US dollars!", "only …!"),
            ("**20** dollars", "**…"),
            ("20[3] bucks", "…"),
            ("£ 7", "…"),
            ("US$20", "US…"),
            ("fifty cents", "…"),
            ("five hundred thousand yen and", "… and"),
            ("50 pounds sterling", "…"),
            ("٢٠ €", "…"),
        ] {
            let (out, dropped) = all([text]);
            assert_eq!(out, expected, "{text}");
            assert!(dropped > 0, "{text}");
        }
    }

    #[test]
    fn other_numbers_stay() {
        for text in [
            "It weighs 1.4 kg, 3 pounds, and is 20 centimetres wide.",
            "One of two: B01USD, 20 USB ports, 5 audio channels.",
            "In 2024. 12 of 15 reviewers [1][2] liked it; 4.5 of 5",
            "dollars and cents, EUR and $ alone",
            "cents: 5",
            "20 in. pan; ten dollies",
            "$",
            "7",
            "1,",
        ] {
            assert_eq!(all([text]), (text.to_owned(), 0), "{text}");
        }
    }

    /// A card between a number and its currency does not help.
    #[test]
    fn an_amount_does_not_come_about_around_a_card() {
        let mut amounts = Amounts::default();
        let out =
            amounts.push("for 20 EUR19.9") + &amounts.pause() + &amounts.push(" eur.") + &amounts.finish();
        assert_eq!(out, "for 20 … eur.");
        for (before, after, shown) in
            [("20 ", "dollars.", "20 …."), ("EUR", " 5.", "EUR…."), ("20", " kg", "20 kg")]
        {
            let mut amounts = Amounts::default();
            let mut out = amounts.push(before);
            out += &amounts.pause();
            assert_eq!(out, before, "nothing is behind the card that was before it");
            out += &amounts.push(after);
            out += &amounts.finish();
            assert_eq!(out, shown);
        }
    }

    fn texts() -> impl Strategy<Value = String> {
        let part = prop_oneof![
            3 => "[ a-z.]{0,6}",
            2 => "[0-9]{1,3}([.,][0-9]{1,2})?",
            2 => prop::sample::select(vec!["$", "€", "USD", "eur ", " dollars", "cents", " twenty", "us ", "[1]", "**", "-", " "])
                .prop_map(str::to_owned),
            1 => "[a-zé日🦀 ]{0,4}",
        ];
        prop::collection::vec(part, 0..14).prop_map(|parts| parts.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, ..Default::default() })]

        #[test]
        fn cuts_change_nothing_and_no_amount_is_left(text in texts(), cuts in prop::collection::vec(0usize..80, 0..16)) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c.min(text.len())).filter(|&c| text.is_char_boundary(c)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let whole = all([text.as_str()]);
            prop_assert_eq!(&all(cuts.windows(2).map(|w| &text[w[0]..w[1]])), &whole);
            prop_assert!(whole.1 > 0 || whole.0 == text);
            // By a rule of its own.
            let left = regex::Regex::new(r"(?i)[$€] ?[0-9]|\b(usd|eur) ?[0-9]|\b[0-9]+ ?([$€]|(usd|eur|dollars|cents)\b)").unwrap();
            prop_assert!(!left.is_match(&whole.0), "{:?} of {:?}", whole.0, text);
        }
    }
}
