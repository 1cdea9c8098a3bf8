//! Takes prices and stock levels out of the model's prose while it streams.
//!
//! Both are live data: they come from the store's systems and stand in cards. What the model writes of them it has from
//! old reviews, or made up. `money` knows amounts, `stock` phrases about availability and days of delivery; a note
//! that leads to the card stands in their place. Nothing is held back but what may still become one of them: a number
//! until the word behind it is complete, a word that begins a phrase until the next one. How the text is cut into parts
//! changes nothing. What is left alone is anything a number can count: weights, sizes, ratings, times.

mod cursor;
mod money;
mod stock;
#[cfg(test)]
mod tests;
mod words;

use std::collections::VecDeque;

use cursor::{Cursor, Open, Told, is_unspaced};

/// Unicode's currency signs (class `Sc`), as the inside of a regular expression's character class.
pub(crate) const CURRENCY_SIGNS: &str = "$\\xA2-\\xA5\\u{58F}\\u{60B}\\u{7FE}\\u{7FF}\\u{9F2}\\u{9F3}\\u{9FB}\\u{AF1}\\u{BF9}\\u{E3F}\\u{17DB}\
     \\u{20A0}-\\u{20CF}\\u{A838}\\u{FDFC}\\u{FE69}\\u{FF04}\\u{FFE0}\\u{FFE1}\\u{FFE5}\\u{FFE6}\
     \\u{11FDD}-\\u{11FE0}\\u{1E2FF}\\u{1ECB0}";

/// Bytes that are looked at for an amount or a phrase; of a longer one the rest is looked at anew.
const MOST: usize = 256;
/// Words of a sentence that are remembered.
const MOST_WORDS: usize = 10;

/// What stands in the place of what is taken out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Notes {
    /// For a price.
    pub price: &'static str,
    /// For a stock level or a day of delivery.
    pub availability: &'static str,
}

impl Default for Notes {
    /// For a shop whose cards show neither.
    fn default() -> Self {
        Notes { price: "…", availability: "…" }
    }
}

impl Notes {
    /// Those that lead to the cards, in the language of a locale such as `de-AT`; English where it is not known.
    pub fn of_locale(locale: &str) -> Self {
        let language = locale.split(['-', '_']).next().unwrap_or_default().to_ascii_lowercase();
        let (price, availability) = match language.as_str() {
            "de" => ("(siehe Preis)", "(siehe Verfügbarkeit)"),
            "fr" => ("(voir le prix)", "(voir la disponibilité)"),
            "es" => ("(ver precio)", "(ver disponibilidad)"),
            "it" => ("(vedi prezzo)", "(vedi disponibilità)"),
            "nl" => ("(zie prijs)", "(zie voorraad)"),
            "pt" => ("(ver preço)", "(ver disponibilidade)"),
            _ => ("(see price)", "(see availability)"),
        };
        Notes { price, availability }
    }

    fn of(self, kind: Kind) -> &'static str {
        match kind {
            Kind::Price => self.price,
            Kind::Availability => self.availability,
        }
    }
}

/// What the model may not write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Price,
    Availability,
}

/// The filter.
#[derive(Debug, Default)]
pub struct Amounts {
    notes: Notes,
    held: String,
    /// Bytes of what is held that have left already, since something else than prose came behind them.
    sent: usize,
    /// What stood before what is held.
    past: Past,
    prices: u32,
    availabilities: u32,
}

/// What was read of the sentence up to some place.
#[derive(Clone, Debug, Default)]
struct Past {
    last: Option<char>,
    /// In lower case, the last one at the end; `#` for a number, `,` for a comma.
    words: VecDeque<String>,
}

impl Past {
    fn last(&self) -> Option<char> {
        self.last
    }

    /// From the last one back.
    fn words(&self) -> impl Iterator<Item = &str> {
        self.words.iter().rev().map(String::as_str)
    }

    /// Whether what follows goes on with a word or a number.
    fn is_inside(&self) -> bool {
        self.last.is_some_and(|c| c.is_alphanumeric() && !is_unspaced(c))
    }

    fn push(&mut self, word: &str) {
        if self.words.len() == MOST_WORDS {
            self.words.pop_front();
        }
        let numeric = word.starts_with(char::is_numeric);
        self.words.push_back(if numeric { "#".to_owned() } else { word.to_lowercase() });
    }

    /// Goes past a whole word or number, or past anything else.
    fn pass(&mut self, text: &str) {
        if text.starts_with(char::is_alphanumeric) && !self.is_inside() {
            // A citation says nothing.
            if !(self.last == Some('[') && text.starts_with(char::is_numeric)) {
                self.push(text);
            }
        } else {
            for c in text.chars() {
                let abbreviated = ["approx", "ca", "incl", "inkl", "max", "min", "env", "aprox", "st"];
                match c {
                    '.' if self.words().next().is_some_and(|word| abbreviated.contains(&word)) => {}
                    '.' | '!' | '?' | ';' | '\n' | '。' | '！' | '？' => self.words.clear(),
                    ',' => self.push(","),
                    _ => {}
                }
            }
        }
        self.last = text.chars().last().or(self.last);
    }

    /// Goes past what was taken out.
    fn cut(&mut self) {
        self.push("0");
        self.last = Some(')');
    }
}

/// What stands at a place in the text.
enum Found {
    /// So many bytes that are taken out.
    Cut(Kind, usize),
    /// So many bytes that stay: a word, a number, or what is between them.
    Plain(usize),
}

impl Amounts {
    /// A filter at the start of a text.
    pub fn new(notes: Notes) -> Self {
        Amounts { notes, ..Amounts::default() }
    }

    /// Amounts of money that were taken out.
    pub fn prices_dropped(&self) -> u32 {
        self.prices
    }

    /// Stock levels and days of delivery that were taken out.
    pub fn availability_dropped(&self) -> u32 {
        self.availabilities
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
        let mut past = self.past.clone();
        while at < self.held.len() {
            let rest = &self.held[at..];
            // Nothing is open at an end.
            let Ok(found) = look(&past, rest, true) else { break };
            match found {
                Found::Cut(kind, length) => {
                    self.leave_out(kind, &past, &mut out);
                    self.held.drain(..at + length);
                    self.sent = self.sent.saturating_sub(at + length);
                    past.cut();
                    (self.past, at) = (past.clone(), 0);
                }
                Found::Plain(length) => {
                    out.push_str(&self.held[self.sent.clamp(at, at + length)..at + length]);
                    past.pass(&rest[..length]);
                    at += length;
                }
            }
        }
        self.sent = self.sent.max(at);
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
            let rest = &self.held[at..];
            // What is decided rests on so much and no more, however much has come at once.
            let window = &rest[..rest.floor_char_boundary(MOST)];
            let found = match look(&self.past, window, ended && window.len() == rest.len()) {
                Ok(found) => found,
                Err(Open) if rest.len() < MOST => break,
                // No longer than that: as if the text ended there. Nothing is open at an end.
                Err(Open) => look(&self.past, window, true)
                    .unwrap_or(Found::Plain(rest.chars().next().map_or(1, char::len_utf8))),
            };
            match found {
                Found::Plain(length) => {
                    let end = at + length;
                    out.push_str(&self.held[self.sent.clamp(at, end)..end]);
                    self.past.pass(&self.held[at..end]);
                    at = end;
                }
                Found::Cut(kind, length) => {
                    let past = self.past.clone();
                    self.leave_out(kind, &past, &mut out);
                    self.past.cut();
                    at += length;
                }
            }
            self.sent = self.sent.max(at);
        }
        self.held.drain(..at);
        self.sent = self.sent.saturating_sub(at);
        out
    }

    fn leave_out(&mut self, kind: Kind, past: &Past, out: &mut String) {
        match kind {
            Kind::Price => self.prices += 1,
            Kind::Availability => self.availabilities += 1,
        }
        let note = self.notes.of(kind);
        // What stands before may be the half of it that has left.
        let last = out.chars().last().or_else(|| self.held[..self.sent].chars().last()).or(past.last());
        if note.starts_with('(') && last.is_some_and(|c| c.is_alphanumeric() && !is_unspaced(c)) {
            out.push(' ');
        }
        out.push_str(note);
    }
}

/// What begins here.
fn look(past: &Past, text: &str, ended: bool) -> Told<Found> {
    let cursor = Cursor::new(text, ended);
    let Some(first) = cursor.peek()? else { return Ok(Found::Plain(text.len())) };
    let starts = first.is_alphanumeric() && !past.is_inside();
    if starts && let Some(length) = stock::phrase(past, cursor)? {
        return Ok(Found::Cut(Kind::Availability, length));
    }
    if (starts || money::is_sign(first))
        && let Some(length) = money::amount(past, cursor)?
    {
        return Ok(Found::Cut(Kind::Price, length));
    }
    let mut end = cursor;
    if starts {
        if first.is_numeric() {
            end.figures()?;
        } else {
            end.word()?;
        }
        return Ok(Found::Plain(end.at));
    }
    // Up to whatever may begin something.
    let (mut length, mut inside) = (0, past.is_inside());
    for c in text.chars() {
        let starts = money::is_sign(c) || (c.is_alphanumeric() && !inside);
        if starts && length > 0 {
            break;
        }
        length += c.len_utf8();
        inside = c.is_alphanumeric() && !is_unspaced(c);
    }
    Ok(Found::Plain(length))
}
