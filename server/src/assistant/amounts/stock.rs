//! Stock levels and days of delivery in words: "only 3 left", "sold out", "ships tomorrow". A rule is a phrase; it holds
//! nothing back but what may still become one.

use std::sync::LazyLock;

use super::Past;
use super::cursor::{Cursor, Open, Told};
use super::money::{is_number_word, number, stands_alone};

/// What a phrase consists of, and first of words or a number.
enum Part {
    /// One of these words.
    One(Vec<&'static str>),
    /// Any number of these words.
    Any(Vec<&'static str>),
    /// A number, in figures or words.
    Number,
    /// Nothing that is counted or described follows.
    Alone,
}

struct Rule {
    /// What the word before must be one of, `^` for none in this sentence; empty for anything.
    after: Vec<&'static str>,
    parts: Vec<Part>,
}

const BE: &str = "^ , is are was were be being s re t m not isn aren currently now still back always usually again also and or but \
     yes no longer never already both all definitely probably only left remaining available item items unit units pieces product \
     have has had more many plenty few several some";
/// Words that say that a bare "3 left" is about stock.
const COUNTED: &str = "^ , is are s have has with still about there";
const DAYS: &str = "today|tomorrow|tonight|monday|tuesday|wednesday|thursday|friday|saturday|sunday|heute|morgen|montag|dienstag|\
     mittwoch|donnerstag|freitag|samstag|demain|mañana";
const UNITS: &str = "unit|units|piece|pieces|item|items|pair|pairs|copy|copies|sets|pcs|of|them|these|those|more|stück|stk|exemplare|\
     unidades|exemplaires|pezzi|stuks";
const SHIP: &str = "ship|ships|shipped|shipping|dispatched|dispatches|delivered|delivers|delivery|arrive|arrives|arriving|lieferung|\
     livré|livraison|versand|entrega";

/// The words before, and the phrase: `a|b` is one of them, `*a|b` any number of them, `#` a number, `.` that nothing is
/// counted behind it.
const RULES: &[(&str, &str)] = &[
    ("", "out of stock"),
    ("", "sold out"),
    ("", "back in stock"),
    (BE, "in stock ."),
    (COUNTED, "# *units left|remaining|available ."),
    ("", "# unit|units|piece|pieces|items|pairs|copies left|remaining ."),
    ("", "# *units *left|remaining|currently|still|available in stock"),
    ("", "only|just|last # *units left|remaining|available ."),
    ("", "only|just|last # *units *left|remaining in stock"),
    ("", "only|just a few|couple|handful *units left|remaining|available ."),
    ("", "only few *units left|remaining ."),
    ("", "last # unit|units|piece|pieces|items|pairs|copies"),
    ("", "stock is|s *now|currently|very|running|getting low|limited ."),
    ("", "stock level|levels *is|are|of #"),
    ("", "running|is|are low on|in stock ."),
    ("", "low|limited stock ."),
    ("", "backordered"),
    ("", "back ordered"),
    ("", "on backorder"),
    ("", "on back order ."),
    ("", "currently|temporarily|presently|momentarily available|unavailable ."),
    ("", "no longer available ."),
    ("", "available|ready now|immediately|today ."),
    ("", "*ship *on|by|before|as|early|this|next|the|latest|at|it|is|for|am|le|el|till|until *day"),
    ("", "*ship this|next|nächste week|month|woche"),
    ("", "get|have|receive it|yours|them|one *on|by|before|as|early|this *day"),
    ("", "auf lager ."),
    ("", "nicht vorrätig|lieferbar|verfügbar ."),
    ("", "sofort|wieder|bald|derzeit|aktuell|heute|morgen lieferbar|verfügbar|versandfertig|vorrätig ."),
    ("", "ausverkauft|vergriffen ."),
    ("^ , ist sind noch nur derzeit aktuell", "vorrätig|lieferbar ."),
    ("", "nur noch *wenige # *units *auf|lager|vorrätig|verfügbar|übrig ."),
    ("", "noch # *units *auf lager|vorrätig|verfügbar|übrig ."),
    ("", "en rupture *de|stock"),
    ("", "rupture de stock"),
    ("", "reste|restent *plus|que|seulement # *units *en|stock ."),
    ("^ , est sont actuellement temporairement déjà produit article", "épuisé|épuisée|épuisés|épuisées ."),
    (
        "^ , est sont actuellement es está esta están estan hay tenemos toujours encore articles unidades #",
        "en stock .",
    ),
    ("^ , está esta están estan actualmente temporalmente producto", "agotado|agotada|agotados|agotadas ."),
    ("", "sin existencias|stock ."),
    ("", "quedan|queda|restam *solo|sólo|apenas|únicamente # *units *en|em|stock|estoque ."),
    ("^ , è sono attualmente prodotto già", "esaurito|esaurita|esauriti|esaurite ."),
    ("", "restano|rimangono *solo|soltanto # *units ."),
    ("", "op voorraad ."),
    ("", "uitverkocht"),
    ("", "nog maar # *units *op|voorraad ."),
    ("", "em estoque ."),
    ("", "esgotado|esgotada"),
    ("", "på lager ."),
    ("är finns", "i lager ."),
    ("", "slutsåld|slutsålt|udsolgt|utsolgt"),
];

static COMPILED: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let words = |list: &'static str| -> Vec<&'static str> {
        match list {
            "units" => UNITS.split('|').collect(),
            "day" => DAYS.split('|').collect(),
            "ship" => SHIP.split('|').collect(),
            other => other.split('|').collect(),
        }
    };
    let part = |text: &'static str| match text {
        "#" => Part::Number,
        "." => Part::Alone,
        // Of these two names of lists exactly one word is meant.
        "*day" | "*ship" => Part::One(words(&text[1..])),
        _ => match text.strip_prefix('*') {
            Some(list) => Part::Any(words(list)),
            None => Part::One(words(text)),
        },
    };
    let rule = |(after, phrase): &(&'static str, &'static str)| Rule {
        after: after.split_whitespace().collect(),
        parts: phrase.split_whitespace().map(part).collect(),
    };
    RULES.iter().map(rule).collect()
});

/// Bytes of the longest phrase that begins here, at the start of a word or number.
pub(super) fn phrase(past: &Past, c: Cursor<'_>) -> Told<Option<usize>> {
    let before = past.words().next().unwrap_or("^");
    let fits = |rule: &&Rule| rule.after.is_empty() || rule.after.contains(&before);
    let word = { c }.word()?.to_lowercase();
    let counts = word.starts_with(char::is_numeric) || is_number_word(&word);
    let begins = |rule: &&Rule| match rule.parts.first() {
        Some(Part::One(words)) => words.contains(&word.as_str()),
        _ => counts,
    };
    let (mut longest, mut open) = (None, false);
    for rule in COMPILED.iter().filter(begins).filter(fits) {
        match follow(&rule.parts, c) {
            Ok(end) => longest = longest.max(end),
            Err(Open) => open = true,
        }
    }
    if open { Err(Open) } else { Ok(longest) }
}

/// Where a phrase ends that begins here; `None` where it does not.
fn follow(parts: &[Part], mut c: Cursor<'_>) -> Told<Option<usize>> {
    let start = c.at;
    for part in parts {
        let before = c;
        match part {
            Part::Alone => {
                if !stands_alone(c)? {
                    return Ok(None);
                }
            }
            Part::Number => {
                if c.at > start {
                    c.gap()?;
                }
                if !number(&mut c)? {
                    return Ok(None);
                }
            }
            Part::One(words) => {
                let word = if c.at > start { c.next_word()? } else { c.word()?.to_lowercase() };
                if !words.contains(&word.as_str()) {
                    return Ok(None);
                }
            }
            Part::Any(words) => {
                let mut last = before;
                loop {
                    let word = c.next_word()?;
                    if word.is_empty() || !words.contains(&word.as_str()) {
                        break;
                    }
                    last = c;
                }
                c = last;
            }
        }
    }
    Ok(Some(c.at))
}
