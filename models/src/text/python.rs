//! What chat templates expect of Python: its JSON, its way to print values, its `strftime`.

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};
use std::fmt::Write as _;

/// What one unit of fuel pays for where bytes are copied or searched.
const BYTES_PER_FUEL: usize = 64;

/// How deep a value may be nested to be written out; templates can nest values without bound, a stack is bounded.
const DEPTH: usize = 128;

/// `tojson` with the parameters and the spelling of Python's `json.dumps`. Nothing is escaped for HTML.
pub(super) fn tojson(
    state: &State,
    value: &Value,
    indent: Option<Value>,
    options: Kwargs,
) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get("indent")?,
    };
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(spaces) if spaces.as_str().is_some() => spaces.as_str().map(str::to_owned),
        Some(spaces) => {
            let spaces = usize::try_from(spaces)?;
            if spaces > 64 {
                return Err(Error::new(ErrorKind::InvalidOperation, "tojson: an indent above 64"));
            }
            Some(" ".repeat(spaces))
        }
    };
    let separators: Option<(String, String)> = match options.get::<Option<Value>>("separators")? {
        Some(pair) if !pair.is_none() => {
            let part = |index| pair.get_item_by_index(index).map(|part| part.to_string());
            Some((part(0)?, part(1)?))
        }
        _ => None,
    };
    let (item, key) =
        separators.unwrap_or_else(|| (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned()));
    let json = Json {
        indent,
        item,
        key,
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    options.assert_all_used()?;
    let mut out = String::new();
    json.write(state, value, 0, &mut out)?;
    Ok(out)
}

struct Json {
    indent: Option<String>,
    item: String,
    key: String,
    ascii: bool,
    sort: bool,
}

impl Json {
    fn write(&self, state: &State, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        enter(state, depth)?;
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number => number(value, out),
            ValueKind::String => self.string(state, value.as_str().unwrap_or_default(), out)?,
            ValueKind::Seq | ValueKind::Iterable => {
                self.list('[', ']', value.try_iter()?, depth, out, |item, out| {
                    self.write(state, &item, depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut keys: Vec<Value> = value.try_iter()?.collect();
                if self.sort {
                    keys.sort();
                }
                self.list('{', '}', keys.into_iter(), depth, out, |key, out| {
                    let name = match key.kind() {
                        ValueKind::String => key.as_str().unwrap_or_default().to_owned(),
                        ValueKind::None => "null".to_owned(),
                        ValueKind::Bool => key.is_true().to_string(),
                        _ => key.to_string(),
                    };
                    self.string(state, &name, out)?;
                    out.push_str(&self.key);
                    self.write(state, &value.get_item(&key)?, depth + 1, out)
                })?;
            }
            kind => {
                let message = format!("tojson: a value of type {kind} has no JSON form");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        }
        Ok(())
    }

    fn list(
        &self,
        open: char,
        close: char,
        items: impl Iterator<Item = Value>,
        depth: usize,
        out: &mut String,
        mut write: impl FnMut(Value, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        out.push(open);
        let mut empty = true;
        for item in items {
            if !empty {
                out.push_str(&self.item);
            }
            empty = false;
            self.line(depth + 1, out);
            write(item, out)?;
        }
        if !empty {
            self.line(depth, out);
        }
        out.push(close);
        Ok(())
    }

    fn line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }

    fn string(&self, state: &State, text: &str, out: &mut String) -> Result<(), Error> {
        state.consume_fuel((text.len() / BYTES_PER_FUEL) as u64)?;
        out.push('"');
        let mut rest = text;
        let special =
            |char: char| char < ' ' || char == '"' || char == '\\' || (self.ascii && !char.is_ascii());
        while let Some(at) = rest.find(special) {
            let (plain, tail) = rest.split_at(at);
            out.push_str(plain);
            let mut chars = tail.chars();
            match chars.next() {
                Some('"') => out.push_str("\\\""),
                Some('\\') => out.push_str("\\\\"),
                Some('\n') => out.push_str("\\n"),
                Some('\r') => out.push_str("\\r"),
                Some('\t') => out.push_str("\\t"),
                Some('\u{8}') => out.push_str("\\b"),
                Some('\u{c}') => out.push_str("\\f"),
                Some(char) => {
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                None => {}
            }
            rest = chars.as_str();
        }
        out.push_str(rest);
        out.push('"');
        Ok(())
    }
}

/// The methods of Python's strings, lists and dictionaries, paid for before they work: the library charges for what a
/// method returned, and by then `'{:>9999999999}'.format('x')` has the memory.
pub(super) fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        let size = method_size(text, name, args);
        state.consume_fuel((size / BYTES_PER_FUEL) as u64 + 1)?;
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args)
}

/// A bound for the bytes that a method of a string reads or writes.
fn method_size(text: &str, name: &str, args: &[Value]) -> usize {
    let length = |index: usize| args.get(index).and_then(Value::as_str).map_or(0, str::len);
    let copies = |count: usize, each: usize| text.len().saturating_add(count.saturating_mul(each));
    match name {
        "replace" => {
            let old = args.first().and_then(Value::as_str).unwrap_or_default();
            copies(text.matches(old).count(), length(1))
        }
        "join" => copies(args.first().and_then(Value::len).unwrap_or(0), text.len()),
        "format" => {
            // A width or precision is written in the text or is one of the arguments.
            let written = text.split(|char: char| !char.is_ascii_digit()).filter(|digits| !digits.is_empty());
            let written = written.map(|digits| digits.parse().unwrap_or(usize::MAX));
            let given = args.iter().map(|arg| arg.as_usize().unwrap_or(0));
            written.chain(given).fold(text.len(), usize::saturating_add)
        }
        _ => text.len(),
    }
}

/// Every visited value costs fuel, so that a small template cannot write a large value again and again for nothing.
fn enter(state: &State, depth: usize) -> Result<(), Error> {
    if depth > DEPTH {
        let message = format!("a value nested deeper than {DEPTH} cannot be written out");
        return Err(Error::new(ErrorKind::InvalidOperation, message));
    }
    state.consume_fuel(1)
}

fn number(value: &Value, out: &mut String) {
    match f64::try_from(value.clone()) {
        Ok(float) if !value.is_integer() => out.push_str(&float_repr(float)),
        _ => {
            let _ = write!(out, "{value}");
        }
    }
}

/// A float as Python's `repr` writes it: the shortest digits that read back as the same number.
fn float_repr(float: f64) -> String {
    if !float.is_finite() {
        return if float.is_nan() {
            "NaN"
        } else if float > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .to_owned();
    }
    let scientific = format!("{float:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if float != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{float}");
    if plain.contains('.') { plain } else { plain + ".0" }
}

/// A value as Python's `str` writes it.
pub(super) fn print(state: &State, value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    match value.kind() {
        ValueKind::String | ValueKind::Undefined => {
            let _ = write!(out, "{value}");
        }
        _ => repr(state, value, 0, &mut out)?,
    }
    Ok(out)
}

/// A value as Python's `repr` writes it.
fn repr(state: &State, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
    enter(state, depth)?;
    match value.kind() {
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => number(value, out),
        ValueKind::String => quote(value.as_str().unwrap_or_default(), out),
        ValueKind::Seq => {
            let tuple = value.is_tuple();
            out.push(if tuple { '(' } else { '[' });
            for (index, item) in value.try_iter()?.enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                repr(state, &item, depth + 1, out)?;
            }
            out.push_str(if tuple && value.len() == Some(1) { "," } else { "" });
            out.push(if tuple { ')' } else { ']' });
        }
        ValueKind::Map => {
            out.push('{');
            for (index, key) in value.try_iter()?.enumerate() {
                out.push_str(if index == 0 { "" } else { ", " });
                repr(state, &key, depth + 1, out)?;
                out.push_str(": ");
                repr(state, &value.get_item(&key)?, depth + 1, out)?;
            }
            out.push('}');
        }
        _ => {
            let _ = write!(out, "{value}");
        }
    }
    Ok(())
}

/// A string literal: in single quotes, unless it contains these and no double ones.
fn quote(text: &str, out: &mut String) {
    let mark = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(mark);
    for char in text.chars() {
        match char {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            char if char == mark => {
                out.push('\\');
                out.push(char);
            }
            char if char < ' ' || ('\u{7f}'..'\u{a1}').contains(&char) || char == '\u{ad}' => {
                let _ = write!(out, "\\x{:02x}", u32::from(char));
            }
            char => out.push(char),
        }
    }
    out.push(mark);
}

const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// A moment, in seconds since 1970 UTC, in the format that Python's `strftime` takes. A conversion that is not known
/// stands for itself.
pub(super) fn strftime(format: &str, seconds: u64) -> String {
    let (days, clock) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day, yearday) = civil(days);
    let (hour, minute, second) = (clock / 3600, clock / 60 % 60, clock % 60);
    let (weekday, month_name) = (DAYS[((days + 4) % 7) as usize], MONTHS[month as usize - 1]);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(char) = chars.next() {
        if char != '%' {
            out.push(char);
            continue;
        }
        let mut code = chars.next();
        let padded = code != Some('-');
        if !padded {
            code = chars.next();
        }
        let mut number = |value: u64, width: usize| {
            let _ = if padded { write!(out, "{value:0width$}") } else { write!(out, "{value}") };
        };
        match code {
            Some('Y') => number(year, 4),
            Some('y') => number(year % 100, 2),
            Some('m') => number(month, 2),
            Some('d') => number(day, 2),
            Some('j') => number(yearday, 3),
            Some('H') => number(hour, 2),
            Some('I') => number((hour + 11) % 12 + 1, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('w') => number((days + 4) % 7, 1),
            Some('e') => {
                let _ = write!(out, "{day:2}");
            }
            Some('B') => out.push_str(month_name),
            Some('b' | 'h') => out.push_str(&month_name[..3]),
            Some('A') => out.push_str(weekday),
            Some('a') => out.push_str(&weekday[..3]),
            Some('p') => out.push_str(if hour < 12 { "AM" } else { "PM" }),
            Some('F') => out.push_str(&strftime("%Y-%m-%d", seconds)),
            Some('T') => out.push_str(&strftime("%H:%M:%S", seconds)),
            Some('Z') => out.push_str("UTC"),
            Some('z') => out.push_str("+0000"),
            Some('%') => out.push('%'),
            other => {
                out.push_str(if padded { "%" } else { "%-" });
                out.extend(other);
            }
        }
    }
    out
}

/// Year, month, day and day of the year of a day counted from 1970-01-01.
fn civil(mut days: u64) -> (u64, u64, u64, u64) {
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // Whole cycles of the calendar first: the loop below then runs at most 400 times.
    let mut year = 1970 + 400 * (days / 146_097);
    days %= 146_097;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let (yearday, mut month) = (days + 1, 1);
    let february = 28 + u64::from(leap(year));
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    (year, month, days + 1, yearday)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_does() {
        let cases = [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (-2.5e-7, "-2.5e-07"),
            (123456.789, "123456.789"),
            (f64::NAN, "NaN"),
        ];
        for (float, expected) in cases {
            assert_eq!(float_repr(float), expected);
        }
    }

    #[test]
    fn strings_are_quoted_as_python_does() {
        for (text, expected) in [
            ("a", "'a'"),
            ("it's", "\"it's\""),
            ("'\"", "'\\'\"'"),
            ("a\nb\\", "'a\\nb\\\\'"),
            ("\u{1}é", "'\\x01é'"),
        ] {
            let mut out = String::new();
            quote(text, &mut out);
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn dates() {
        assert_eq!(strftime("%Y-%m-%d %H:%M:%S %A %j", 0), "1970-01-01 00:00:00 Thursday 001");
        assert_eq!(strftime("%d %b %Y", 951_782_400), "29 Feb 2000");
        assert_eq!(
            strftime("%B %-d, %y %I:%M %p %a %e|%Q%%", 1_735_732_805),
            "January 1, 25 12:00 PM Wed  1|%Q%"
        );
        assert_eq!(strftime("%F %T", 4_107_542_399), "2100-02-28 23:59:59");
        assert_eq!(strftime("%F %j", 4_107_542_400), "2100-03-01 060");
        let _ = strftime("%F %T", u64::MAX);
    }
}
