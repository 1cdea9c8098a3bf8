//! What is refused unseen: documents that would cost the compiler more than its fuel counts.
//!
//! The compiler pays for the derivatives of patterns, for grammar symbols and for sets of tokens, and counted patterns
//! of any number cost it nothing. It does not pay for what these make of a small text:
//!
//! - an intersection of schemas (`allOf`, or a reference with keywords beside it) copies each side once for each
//!   alternative of the other, so alternatives multiply, and references in it are copied out, so they double;
//! - `multipleOf` is an automaton with a state for each remainder, and two of them meet in their least common multiple;
//! - a terminal of a Lark grammar is written out wherever another terminal names it;
//! - each property of an object is set against all others.
//!
//! Here the first three are estimated from above, in time linear in the text, and the last is bounded by number.

#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::GrammarError;

/// JSON values in the schemas of a grammar.
const MAX_VALUES: usize = 20_000;
/// Subschemas when intersections are written out. The compiler itself gives up at 50 000, but only counts the steps.
const MAX_SIZE: u64 = 20_000;
/// Properties of one object, named or required.
const MAX_PROPERTIES: usize = 1_000;
/// Patterns, of strings and of names.
const MAX_PATTERNS: usize = 250;
/// The least common multiple of divisors that may meet. The compiler multiplies two of them in 32 bits.
const MAX_DIVISOR: u64 = 50_000;
/// References within references of one intersection.
const MAX_DEPTH: usize = 64;
/// Bytes of all terminals when names are written out.
const MAX_TERMINALS: u64 = 1 << 20;

fn refused<T>(why: impl Into<String>) -> Result<T, GrammarError> {
    Err(GrammarError::Invalid(format!("too complex: {}", why.into())))
}

/// Refuses a JSON schema that is beyond the bounds.
///
/// # Errors
/// [`GrammarError::Invalid`], which says what is too much.
pub(super) fn schema(root: &Value) -> Result<(), GrammarError> {
    count(root)?;
    let mut walk = Walk {
        root,
        known: HashMap::new(),
        open: Vec::new(),
        waiting: Vec::new(),
        seen: HashSet::new(),
        divisors: Vec::new(),
        patterns: 0,
        mixes: false,
    };
    let mut size = walk.extent(root, false)?.size;
    while let Some(target) = walk.waiting.pop() {
        if let Some(schema) = walk.find(target) {
            size = size.saturating_add(walk.extent(schema, false)?.size);
        }
    }
    if size > MAX_SIZE {
        return refused(format!("its intersections come to more than {MAX_SIZE} subschemas"));
    }
    if walk.patterns > MAX_PATTERNS {
        return refused(format!("at most {MAX_PATTERNS} patterns, got {}", walk.patterns));
    }
    divisors(&walk.divisors, walk.mixes)
}

/// The number of values, bounded.
fn count(root: &Value) -> Result<(), GrammarError> {
    let (mut values, mut waiting) = (0, vec![root]);
    while let Some(value) = waiting.pop() {
        values += 1;
        match value {
            Value::Array(list) => waiting.extend(list),
            Value::Object(map) => waiting.extend(map.values()),
            _ => {}
        }
        if values + waiting.len() > MAX_VALUES {
            return refused(format!("at most {MAX_VALUES} JSON values"));
        }
    }
    Ok(())
}

/// How large a schema is once intersections are written out, and into how many alternatives it falls apart at most
/// where another one is intersected with it.
#[derive(Clone, Copy)]
struct Extent {
    size: u64,
    alternatives: u64,
}

impl Extent {
    const ONE: Extent = Extent { size: 1, alternatives: 1 };

    /// Beside each other in one value, such as two properties.
    fn beside(self, other: Extent) -> Extent {
        Extent {
            size: self.size.saturating_add(other.size),
            alternatives: self.alternatives.max(other.alternatives),
        }
    }

    fn or(self, other: Extent) -> Extent {
        Extent {
            size: self.size.saturating_add(other.size),
            alternatives: self.alternatives.saturating_add(other.alternatives),
        }
    }

    fn and(self, other: Extent) -> Extent {
        let copied = |size: u64, times: u64| size.saturating_mul(times);
        Extent {
            size: copied(self.size, other.alternatives).saturating_add(copied(other.size, self.alternatives)),
            alternatives: copied(self.alternatives, other.alternatives),
        }
    }
}

struct Walk<'a> {
    root: &'a Value,
    /// Of references within intersections.
    known: HashMap<&'a str, Extent>,
    /// Those being worked out.
    open: Vec<&'a str>,
    /// References outside intersections, which become rules of their own: each counts once.
    waiting: Vec<&'a str>,
    seen: HashSet<&'a str>,
    divisors: Vec<&'a Value>,
    patterns: usize,
    /// Whether divisors of several places may meet.
    mixes: bool,
}

/// Keywords that alternate or intersect rather than describe.
const APPLICATORS: [&str; 6] = ["allOf", "anyOf", "oneOf", "enum", "const", "$ref"];
/// Keywords that say nothing of the value.
const SILENT: [&str; 12] = [
    "$id",
    "$schema",
    "$comment",
    "title",
    "description",
    "default",
    "examples",
    "readOnly",
    "deprecated",
    "$defs",
    "definitions",
    "x-guidance",
];

impl<'a> Walk<'a> {
    fn find(&self, reference: &str) -> Option<&'a Value> {
        let pointer = reference.strip_prefix('#')?;
        match pointer.contains('%') {
            false => self.root.pointer(pointer),
            true => self.root.pointer(&unescape(pointer)),
        }
    }

    fn extent(&mut self, schema: &'a Value, inlined: bool) -> Result<Extent, GrammarError> {
        let Value::Object(map) = schema else { return Ok(Extent::ONE) };
        let describes =
            map.keys().any(|key| !APPLICATORS.contains(&key.as_str()) && !SILENT.contains(&key.as_str()));
        let applied = map.keys().filter(|key| APPLICATORS.contains(&key.as_str())).count();
        let several = |value: &Value| value.as_array().is_some_and(|list| list.len() > 1);
        let intersects = usize::from(describes) + applied > 1 || map.get("allOf").is_some_and(several);
        self.mixes |= intersects;
        let inlined = inlined || intersects;
        let mut whole = self.described(map, inlined)?;
        for (key, value) in map {
            let list = value.as_array().map(Vec::as_slice).unwrap_or_default();
            let part = match key.as_str() {
                "allOf" => {
                    list.iter().try_fold(Extent::ONE, |all, one| Ok(all.and(self.extent(one, inlined)?)))?
                }
                "anyOf" | "oneOf" => {
                    let none = Extent { size: 1, alternatives: 0 };
                    list.iter().try_fold(none, |all, one| Ok(all.or(self.extent(one, inlined)?)))?
                }
                "enum" => Extent { size: list.len() as u64, alternatives: list.len() as u64 },
                "$ref" => self.reference(value, inlined)?,
                _ => continue,
            };
            whole = if intersects { whole.and(part) } else { whole.beside(part) };
            if whole.size > MAX_SIZE {
                return refused(format!("its intersections come to more than {MAX_SIZE} subschemas"));
            }
        }
        Ok(whole)
    }

    /// What describes a value, without alternatives and intersections of its own.
    fn described(&mut self, map: &'a Map<String, Value>, inlined: bool) -> Result<Extent, GrammarError> {
        let mut whole = Extent::ONE;
        for (key, value) in map {
            let children: Vec<&'a Value> = match (key.as_str(), value) {
                ("properties" | "patternProperties", Value::Object(children)) => {
                    if key == "patternProperties" {
                        self.patterns += children.len();
                    }
                    self.few(key, children.len())?;
                    children.values().collect()
                }
                ("required", Value::Array(names)) => {
                    self.few(key, names.len())?;
                    continue;
                }
                ("prefixItems" | "items", Value::Array(children)) => children.iter().collect(),
                ("items" | "additionalProperties" | "additionalItems", child) => vec![child],
                ("pattern", _) => {
                    self.patterns += 1;
                    continue;
                }
                ("multipleOf", divisor) => {
                    self.divisors.push(divisor);
                    continue;
                }
                _ => continue,
            };
            for child in children {
                whole = whole.beside(self.extent(child, inlined)?);
            }
        }
        Ok(whole)
    }

    fn few(&self, key: &str, count: usize) -> Result<(), GrammarError> {
        if count > MAX_PROPERTIES {
            return refused(format!("at most {MAX_PROPERTIES} {key} in one object, got {count}"));
        }
        Ok(())
    }

    fn reference(&mut self, value: &'a Value, inlined: bool) -> Result<Extent, GrammarError> {
        let Some(target) = value.as_str() else { return Ok(Extent::ONE) };
        if !inlined {
            if self.seen.insert(target) {
                self.waiting.push(target);
            }
            return Ok(Extent::ONE);
        }
        if let Some(known) = self.known.get(target) {
            return Ok(*known);
        }
        // The compiler refuses what comes back to itself, or leaves it a reference.
        if self.open.contains(&target) {
            return Ok(Extent::ONE);
        }
        if self.open.len() == MAX_DEPTH {
            return refused(format!("more than {MAX_DEPTH} references within each other in an intersection"));
        }
        let Some(schema) = self.find(target) else { return Ok(Extent::ONE) };
        self.open.push(target);
        let extent = self.extent(schema, true)?;
        self.open.pop();
        self.known.insert(target, extent);
        Ok(extent)
    }
}

/// A pointer without percent-encoding.
fn unescape(pointer: &str) -> String {
    let mut bytes = Vec::with_capacity(pointer.len());
    let mut rest = pointer.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()).filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Each divisor, and what they come to together where they may meet.
fn divisors(divisors: &[&Value], together: bool) -> Result<(), GrammarError> {
    let large = || refused(format!("multipleOf leads to more than {MAX_DIVISOR} remainders"));
    let mut decimals = Vec::new();
    for divisor in divisors {
        // Without an exponent, whatever its size.
        let text = divisor.as_f64().unwrap_or(1.0).abs().to_string();
        let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
        match format!("{whole}{fraction}").parse::<u64>() {
            Ok(digits) if digits <= MAX_DIVISOR => decimals.push((digits.max(1), fraction.len() as u32)),
            _ => return large(),
        }
    }
    let places = decimals.iter().map(|(_, places)| *places).max().unwrap_or(0);
    let mut common = 1u64;
    for (digits, own) in decimals.into_iter().filter(|_| together) {
        let scaled = 10u64.checked_pow(places - own).and_then(|scale| scale.checked_mul(digits));
        let Some(scaled) = scaled.filter(|scaled| *scaled <= MAX_DIVISOR) else { return large() };
        common = common / gcd(common, scaled) * scaled;
        if common > MAX_DIVISOR {
            return large();
        }
    }
    Ok(())
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Refuses a Lark grammar that is beyond the bounds, as are the schemas in it.
///
/// # Errors
/// [`GrammarError::Invalid`], which says what is too much.
pub(super) fn lark(text: &str) -> Result<(), GrammarError> {
    let definitions = definitions(text)?;
    let mut sizes = HashMap::new();
    let mut total = 0u64;
    for name in definitions.keys().filter(|name| is_terminal(name)) {
        total = total.saturating_add(size_of(name, &definitions, &mut sizes));
        if total > MAX_TERMINALS {
            return refused(format!(
                "its terminals come to more than {MAX_TERMINALS} bytes when they are written out"
            ));
        }
    }
    Ok(())
}

/// Bytes of literals, and the names that stand beside them.
#[derive(Default)]
struct Definition<'a> {
    bytes: u64,
    names: Vec<&'a str>,
}

fn is_terminal(name: &str) -> bool {
    name.trim_start_matches('_').starts_with(|c: char| c.is_ascii_uppercase())
}

/// Of a terminal with all that it names. As deep as the names go, which the compiler does as well.
fn size_of<'a>(
    name: &'a str,
    definitions: &HashMap<&'a str, Definition<'a>>,
    sizes: &mut HashMap<&'a str, u64>,
) -> u64 {
    if let Some(known) = sizes.get(name) {
        return *known;
    }
    // Until it is known, for one that names itself, which the compiler refuses.
    sizes.insert(name, 1);
    let size = definitions.get(name).map_or(1, |definition| {
        let parts = definition.names.iter().map(|name| size_of(name, definitions, sizes));
        parts.fold(definition.bytes, u64::saturating_add)
    });
    sizes.insert(name, size);
    size
}

/// The definitions of a grammar, as far as sizes need them: literals, names and nested schemas are told apart.
fn definitions(text: &str) -> Result<HashMap<&str, Definition<'_>>, GrammarError> {
    let mut found: HashMap<&str, Definition<'_>> = HashMap::new();
    let mut current = "";
    let mut rest = text;
    // Whether only spaces stand before `rest` in its line.
    let mut first = true;
    while let Some(c) = rest.chars().next() {
        let taken = match c {
            '\n' => {
                first = true;
                rest = &rest[1..];
                continue;
            }
            _ if c.is_whitespace() => c.len_utf8(),
            '#' => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '"' | '/' => {
                let length = literal(rest, c);
                found.entry(current).or_default().bytes += length as u64;
                length
            }
            '%' if rest.starts_with("%json") => {
                let inner = &rest["%json".len()..];
                let mut values = serde_json::Deserializer::from_str(inner).into_iter::<Value>();
                match values.next() {
                    Some(Ok(value)) => {
                        schema(&value)?;
                        "%json".len() + values.byte_offset()
                    }
                    // The compiler says what is wrong with it.
                    _ => return Ok(found),
                }
            }
            _ if c.is_ascii_alphabetic() || c == '_' => {
                let end = rest
                    .find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '_' | '-'))
                    .unwrap_or(rest.len());
                let name = &rest[..end];
                if first && defines(&rest[end..]) {
                    current = name;
                    found.entry(name).or_default();
                } else {
                    found.entry(current).or_default().names.push(name);
                }
                end
            }
            _ => c.len_utf8(),
        };
        // Marks of rules stand before their names.
        first &= c.is_whitespace() || matches!(c, '!' | '?');
        rest = &rest[taken..];
    }
    Ok(found)
}

/// Bytes of a literal with its quotes.
fn literal(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        if !escaped && (c == quote || c == '\n' && quote == '"') {
            return at + c.len_utf8();
        }
        escaped = c == '\\' && !escaped;
    }
    text.len()
}

/// Whether a colon follows a name, behind attributes, a priority or parameters.
fn defines(behind: &str) -> bool {
    let line = behind.lines().next().unwrap_or_default();
    let colon = line.find(':');
    colon.is_some_and(|colon| {
        !line[..colon].contains(['"', '/', '|', '(']) || line.trim_start().starts_with(['[', '.', '{'])
    })
}
