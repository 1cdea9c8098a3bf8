//! Amounts of money: a number beside a currency's sign, code or name, in figures or in words; a number that a word such
//! as "costs" makes a price; a discount in percent.

use super::Past;
use super::cursor::{Cursor, Told};
use super::words::{
    BETWEEN, CODES, CODES_BEHIND, COPULAS, DISCOUNTS, DOLLARS, EXACT_CODES, FILLERS, FOLLOWERS, FOR, LIMITS,
    LINKS, MULTIPLES, NAMES, NOT_MONEY, NUMBERS, PAID, PERCENT, PRICE_NOUNS, PRICED, SOLD, STOPPED, UNITS,
    UNSPACED,
};

pub(super) fn is_sign(c: char) -> bool {
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

/// Whether it is a number in words.
pub(super) fn is_number_word(word: &str) -> bool {
    NUMBERS.contains(&word)
}

/// Goes past a number, in figures or words; whether there is one.
pub(super) fn number(c: &mut Cursor<'_>) -> Told<bool> {
    if c.peek()?.is_some_and(char::is_numeric) {
        c.figures()?;
        return Ok(true);
    }
    let mut found = false;
    loop {
        let mut ahead = *c;
        if found {
            ahead.gap()?;
        }
        if !is_number_word(&ahead.word()?.to_lowercase()) {
            return Ok(found);
        }
        (*c, found) = (ahead, true);
    }
}

/// Bytes of an amount that begins here, at the start of a word, of a number, or at a sign.
pub(super) fn amount(past: &Past, mut c: Cursor<'_>) -> Told<Option<usize>> {
    let Some(first) = c.peek()? else { return Ok(None) };
    if is_sign(first) {
        c.bump(first);
        return behind(c);
    }
    if first.is_numeric() {
        return if past.last() == Some('[') { Ok(None) } else { beside(past, c) };
    }
    let mut name = c;
    let word = name.word()?;
    let lower = word.to_lowercase();
    if DOLLARS.contains(&lower.as_str()) && name.take(|c| c == '$')?.is_some() {
        return behind(name);
    }
    if is_number_word(&lower)
        && let Some(amount) = beside(past, c)?
    {
        return Ok(Some(amount));
    }
    // `EUR 5` and `EUR5`.
    let letters = word.find(char::is_numeric).unwrap_or(word.len());
    let code = &lower[..lower.find(char::is_numeric).unwrap_or(lower.len())];
    let stopped = STOPPED.contains(&code) && letters == word.len() && name.take(|c| c == '.')?.is_some();
    if stopped {
        return behind(name);
    }
    if CODES.contains(&code) || EXACT_CODES.contains(&&word[..letters]) {
        c.at += letters;
        return behind(c);
    }
    Ok(None)
}

/// An amount whose sign or code ends here.
fn behind(mut c: Cursor<'_>) -> Told<Option<usize>> {
    c.gap()?;
    if !number(&mut c)? {
        return Ok(None);
    }
    multiple(&mut c)?;
    // `$20-30`, `$20 to $30`: the second is the same money if it counts nothing.
    let mut ahead = c;
    if link(&mut ahead)? {
        let signed = ahead.take(is_sign)?.is_some();
        if number(&mut ahead)? && (signed || stands_alone(ahead)?) {
            multiple(&mut ahead)?;
            c = ahead;
        }
    }
    Ok(Some(c.at))
}

/// Goes past what the number before is multiplied by.
fn multiple(c: &mut Cursor<'_>) -> Told<()> {
    let mut ahead = *c;
    if MULTIPLES.contains(&ahead.next_word()?.as_str()) {
        *c = ahead;
    }
    Ok(())
}

/// Goes past what joins the two ends of a range; whether it is there.
fn link(c: &mut Cursor<'_>) -> Told<bool> {
    let mut ahead = *c;
    let from = ahead.at;
    ahead.gap()?;
    let hyphen = c.rest()[..ahead.at - from].contains('-');
    if hyphen && ahead.peek()?.is_some_and(|c| c.is_numeric() || is_sign(c)) {
        *c = ahead;
        return Ok(true);
    }
    let dash = ahead.take(|c| matches!(c, '–' | '—' | '‑'))?.is_some();
    if !dash && !LINKS.contains(&ahead.word()?.to_lowercase().as_str()) {
        return Ok(false);
    }
    ahead.gap()?;
    *c = ahead;
    Ok(true)
}

/// A number here, with a currency behind it or a word that makes it a price before it.
fn beside(past: &Past, mut c: Cursor<'_>) -> Told<Option<usize>> {
    number(&mut c)?;
    let bare = c;
    if let Some(end) = round(c)? {
        return Ok(Some(end));
    }
    // `five hundred US dollars`, `20 to 30 euros`.
    for _ in 0..6 {
        let before = c;
        if link(&mut c)? && (c.peek()?.is_some_and(is_sign) || number(&mut c)?) {
            continue;
        }
        c = before;
        c.gap()?;
        let Some(next) = c.peek()? else { break };
        if is_sign(next) {
            c.bump(next);
            return Ok(Some(c.at));
        }
        c.take(|c| matches!(c, '万' | '千' | '만' | '천'))?;
        if let Some(name) = UNSPACED.iter().find(|name| c.rest().starts_with(**name)) {
            return Ok(Some(c.at + name.len()));
        }
        let mut ahead = c;
        let percent = ahead.take(|c| c == '%')?.is_some();
        if percent {
            return discount(past, ahead);
        }
        let word = ahead.word()?;
        let lower = word.to_lowercase();
        let name = lower.as_str();
        if PERCENT.contains(&name) {
            if name != "percent"
                && matches!(name, "por" | "pour" | "per")
                && !matches!(ahead.next_word()?.as_str(), "ciento" | "cent" | "cento")
            {
                break;
            }
            return discount(past, ahead);
        }
        if NAMES.contains(&name)
            || CODES.contains(&name)
            || EXACT_CODES.contains(&word)
            || CODES_BEHIND.contains(&word)
        {
            let other = NOT_MONEY.iter().find(|(money, _)| *money == name);
            let is_other = match other {
                Some((_, things)) => things.contains(&{ ahead }.next_word()?.as_str()),
                None => false,
            };
            if is_other {
                break;
            }
            return Ok(Some(ahead.at));
        }
        if matches!(name, "pound" | "pounds") && { ahead }.next_word()? == "sterling" {
            ahead.next_word()?;
            return Ok(Some(ahead.at));
        }
        if !BETWEEN.contains(&name) && !NUMBERS.contains(&name) {
            break;
        }
        c = ahead;
    }
    bare_price(past, bare)
}

/// Where `,-` or `.–` ends, as behind round prices in Europe.
fn round(mut c: Cursor<'_>) -> Told<Option<usize>> {
    let is_round = c.take(|c| matches!(c, ',' | '.'))?.is_some()
        && c.take(|c| matches!(c, '-' | '–' | '—'))?.is_some()
        && !c.peek()?.is_some_and(char::is_alphanumeric);
    Ok(is_round.then_some(c.at))
}

/// A discount, behind its percent sign: `20% off`, or `a discount of 20%`.
fn discount(past: &Past, c: Cursor<'_>) -> Told<Option<usize>> {
    let mut ahead = c;
    let mut word = ahead.next_word()?;
    if matches!(word.as_str(), "de" | "di") {
        word = ahead.next_word()?;
    }
    if DISCOUNTS.contains(&word.as_str()) {
        return Ok(Some(ahead.at));
    }
    let before = past.words().find(|word| !FILLERS.contains(word) && !COPULAS.contains(word));
    let given = before.is_some_and(|word| DISCOUNTS.contains(&word) && word != "off");
    Ok(given.then_some(c.at))
}

/// Whether a number counts nothing, which is known by what follows it.
pub(super) fn stands_alone(mut c: Cursor<'_>) -> Told<bool> {
    if c.peek()?.is_some_and(char::is_alphanumeric) {
        return Ok(false);
    }
    if c.gap()? {
        return Ok(true);
    }
    match c.peek()? {
        None => Ok(true),
        Some(next) if next.is_alphanumeric() => Ok(FOLLOWERS.contains(&c.word()?.to_lowercase().as_str())),
        Some(next) => {
            Ok(!matches!(next, '%' | '°' | '"' | '”' | '″' | '′' | '/' | '×' | '\'' | '’' | '+' | '½'))
        }
    }
}

/// How sure the words before a number are that it is a price.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speaks {
    /// Unless it has a unit.
    OfPrices,
    /// Where it counts nothing.
    Perhaps,
}

fn speaks(past: &Past) -> Option<Speaks> {
    let mut words = past.words().peekable();
    let (mut limit, mut copula, mut of, mut at) = (false, false, false, false);
    // "A price of 20": what is nearer to the number comes first.
    while let Some(word) =
        words.next_if(|word| FILLERS.contains(word) || LIMITS.contains(word) || COPULAS.contains(word))
    {
        limit |= LIMITS.contains(&word);
        copula |= COPULAS.contains(&word);
        of |= word == "of";
        at |= matches!(word, "at" | "from" | "between" | "desde");
        // The words that fill are some of those that sell.
        if matches!(word, "sale") && at {
            return Some(Speaks::Perhaps);
        }
        if word == "retail" {
            return Some(Speaks::OfPrices);
        }
    }
    if words.next_if(|word| FOR.contains(word)).is_some() {
        while words.next_if(|word| FILLERS.contains(word) && *word != "sale").is_some() {}
        let sold =
            words.peek().is_some_and(|word| SOLD.contains(word) || PRICED.contains(word) || *word == "sale");
        return (sold || limit).then_some(Speaks::Perhaps);
    }
    let word = words.next().unwrap_or("");
    if PRICED.contains(&word) {
        return Some(if of { Speaks::Perhaps } else { Speaks::OfPrices });
    }
    let sets_back = word == "back" && words.any(|word| matches!(word, "set" | "sets" | "setting"));
    let spoken = PAID.contains(&word)
        || sets_back
        || (at && SOLD.contains(&word))
        || (copula && past.words().any(|word| PRICE_NOUNS.contains(&word)));
    spoken.then_some(Speaks::Perhaps)
}

/// Letters of what is a unit for being written onto a number, if it is none of [`UNITS`].
const LONGEST_UNIT: usize = 4;

/// A number without a currency that is a price by the words before it.
fn bare_price(past: &Past, mut c: Cursor<'_>) -> Told<Option<usize>> {
    let Some(speaks) = speaks(past) else { return Ok(None) };
    let mut ahead = c;
    if link(&mut ahead)? && number(&mut ahead)? {
        c = ahead;
    }
    let mut ahead = c;
    let attached = ahead.peek()?.is_some_and(char::is_alphanumeric);
    let word = ahead.next_word()?;
    if matches!(word.as_str(), "pound" | "pounds" | "pfund") {
        return Ok(Some(ahead.at));
    }
    // `40x`, `3rd` and `16GB` are no prices, nor is a number before a unit; one that runs into a long word is.
    let has_unit = attached && word.chars().count() <= LONGEST_UNIT
        || UNITS.contains(&word.as_str())
        || matches!(ahead.peek()?, Some('%' | '°' | '"' | '″' | '×')) && word.is_empty();
    let is_price = match speaks {
        Speaks::OfPrices => !has_unit,
        Speaks::Perhaps => !has_unit && stands_alone(c)?,
    };
    Ok(is_price.then_some(c.at))
}
