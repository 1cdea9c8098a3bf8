//! The calls in an answer, as it is written. Any way of cutting the answer into pieces gives the same calls.

use super::scanner::Scanner;
use super::{CLOSE, OPEN, Syntax};

/// A piece of an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::openai) enum Piece {
    /// Prose.
    Text(String),
    /// A call of this function begins.
    Call(String),
    /// More of its arguments, a JSON text.
    Arguments(String),
}

/// Reads an answer. It holds back what may turn out to be a call, and nothing else.
#[derive(Debug)]
pub(in crate::openai) struct Reader {
    syntax: Syntax,
    names: Vec<String>,
    /// Text that is not decided.
    held: String,
    state: State,
    /// Calls so far.
    pub(in crate::openai) calls: usize,
}

#[derive(Debug)]
enum State {
    /// Before a call, and before the first word of a bare answer.
    Text,
    /// In a call, of which something was handed out or not.
    Call { scanner: Scanner, begun: bool },
    /// Behind a tagged call, before its closing tag.
    Close,
    /// No call can come any more.
    Plain,
}

impl Reader {
    pub(super) fn new(syntax: Syntax, names: Vec<String>) -> Self {
        Reader { syntax, names, held: String::new(), state: State::Text, calls: 0 }
    }

    /// Takes more of the answer.
    pub(in crate::openai) fn push(&mut self, text: &str) -> Vec<Piece> {
        self.held.push_str(text);
        let mut pieces = Vec::new();
        while self.step(&mut pieces) {}
        pieces
    }

    /// The answer has ended.
    pub(in crate::openai) fn finish(&mut self) -> Vec<Piece> {
        let mut pieces = Vec::new();
        match std::mem::replace(&mut self.state, State::Plain) {
            State::Call { scanner, begun: false } => self.give_up(&scanner, &mut pieces),
            State::Call { .. } | State::Close => self.held.clear(),
            State::Text | State::Plain => {}
        }
        let rest = std::mem::take(&mut self.held);
        if self.calls == 0 || !rest.trim().is_empty() {
            add_text(rest, &mut pieces);
        }
        pieces
    }

    /// Decides about some of the text that is held; false where more is needed.
    fn step(&mut self, pieces: &mut Vec<Piece>) -> bool {
        match (&self.state, self.syntax) {
            (State::Plain, _) => {
                add_text(std::mem::take(&mut self.held), pieces);
                false
            }
            (State::Text, Syntax::Tagged) => self.tagged_text(pieces),
            (State::Text, Syntax::Bare) => self.bare_text(),
            (State::Call { .. }, _) => self.call(pieces),
            (State::Close, _) => {
                let text = self.held.trim_start();
                if CLOSE.starts_with(text) && text != CLOSE {
                    return false;
                }
                self.held = text.strip_prefix(CLOSE).unwrap_or(text).to_owned();
                self.state = State::Text;
                true
            }
        }
    }

    fn bare_text(&mut self) -> bool {
        if self.calls > 0 {
            // What separates calls.
            self.held = self.held.trim_start_matches([' ', '\n', ';']).to_owned();
        }
        let text = self.held.trim_start();
        if text.is_empty() {
            return false;
        }
        self.state = match text.starts_with('{') {
            true => State::Call { scanner: Scanner::default(), begun: false },
            false => State::Plain,
        };
        true
    }

    fn tagged_text(&mut self, pieces: &mut Vec<Piece>) -> bool {
        if let Some(at) = self.held.find(OPEN) {
            let before = self.held[..at].trim_end().to_owned();
            self.held.drain(..at + OPEN.len());
            add_text(before, pieces);
            self.state = State::Call { scanner: Scanner::default(), begun: false };
            return true;
        }
        // A tag may have begun, and the blanks before it go with it.
        let begun = (1..OPEN.len()).rev().find(|length| self.held.ends_with(&OPEN[..*length])).unwrap_or(0);
        let keep = self.held[..self.held.len() - begun].trim_end().len();
        let rest = self.held.split_off(keep);
        add_text(std::mem::replace(&mut self.held, rest), pieces);
        false
    }

    fn call(&mut self, pieces: &mut Vec<Piece>) -> bool {
        let State::Call { scanner, begun } = &mut self.state else { return false };
        let text = std::mem::take(&mut self.held);
        let behind = scanner.push(&text).map(str::to_owned);
        let known = scanner.name.as_ref().is_some_and(|name| self.names.contains(name));
        let bare_end = scanner.is_done() && !scanner.has_arguments() && self.syntax == Syntax::Tagged;
        if !*begun && known && (scanner.has_arguments() || bare_end) {
            *begun = true;
            self.calls += 1;
            pieces.push(Piece::Call(scanner.name.clone().unwrap_or_default()));
        }
        if *begun {
            let new = if bare_end { "{}".to_owned() } else { scanner.arguments() };
            if !new.is_empty() {
                pieces.push(Piece::Arguments(new));
            }
        }
        if scanner.is_bad() || (scanner.is_done() && !*begun) {
            match std::mem::replace(&mut self.state, State::Plain) {
                State::Call { scanner, begun: true } => self.held = scanner.rest().to_owned(),
                State::Call { scanner, .. } => self.give_up(&scanner, pieces),
                _ => {}
            }
            return true;
        }
        let Some(behind) = behind else { return false };
        self.held = behind;
        self.state = if self.syntax == Syntax::Tagged { State::Close } else { State::Text };
        true
    }

    /// It was not a call after all.
    fn give_up(&mut self, scanner: &Scanner, pieces: &mut Vec<Piece>) {
        let open = if self.syntax == Syntax::Tagged { OPEN } else { "" };
        add_text(format!("{open}{}", scanner.raw()), pieces);
    }
}

fn add_text(text: String, pieces: &mut Vec<Piece>) {
    if !text.is_empty() {
        pieces.push(Piece::Text(text));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Reads an answer in parts; neighbours of the same kind become one.
    fn read<'a>(syntax: Syntax, parts: impl IntoIterator<Item = &'a str>) -> Vec<Piece> {
        let mut reader = Reader::new(syntax, vec!["f".into(), "g".into()]);
        let mut pieces: Vec<Piece> = parts.into_iter().flat_map(|part| reader.push(part)).collect();
        pieces.extend(reader.finish());
        let mut merged: Vec<Piece> = Vec::new();
        for piece in pieces {
            match (merged.last_mut(), piece) {
                (Some(Piece::Text(all)), Piece::Text(text)) => all.push_str(&text),
                (Some(Piece::Arguments(all)), Piece::Arguments(text)) => all.push_str(&text),
                (_, piece) => merged.push(piece),
            }
        }
        merged
    }

    fn text(text: &str) -> Vec<Piece> {
        vec![Piece::Text(text.to_owned())]
    }

    fn call(name: &str, arguments: &str) -> Vec<Piece> {
        vec![Piece::Call(name.to_owned()), Piece::Arguments(arguments.to_owned())]
    }

    #[test]
    fn calls_are_found_and_everything_else_is_prose() {
        use Syntax::{Bare, Tagged};
        let tagged = |inner: &str| format!("{OPEN}\n{inner}\n{CLOSE}");
        let f = tagged(r#"{"name": "f", "arguments": {"a": "}\"</tool_call>{", "b": [1, {}]}}"#);
        let fa = r#"{"a": "}\"</tool_call>{", "b": [1, {}]}"#;
        let g = tagged(r#"{"arguments": {}, "name": "g"}"#);
        let unknown = tagged(r#"{"name": "h", "arguments": {}}"#);
        let person = r#"{"name": "Bob", "age": 3}"#;
        let two = r#"{"name": "f", "parameters": {}}; {"name": "g", "arguments": {}}"#;
        let cases: Vec<(Syntax, &str, Vec<Piece>)> = vec![
            (Tagged, "Prose, a < b {\"name\": 1}\n", text("Prose, a < b {\"name\": 1}\n")),
            (Tagged, &f, call("f", fa)),
            (Tagged, r#"<tool_call>{"name": "g"}"#, call("g", "{}")),
            (Tagged, r#"<tool_call>{"name": "f", "arguments": "{\"a\": 1}"}"#, call("f", "{\"a\": 1}")),
            (Tagged, "<tool_call>nonsense</tool_call>", text("<tool_call>nonsense</tool_call>")),
            (Tagged, &unknown, text(&unknown)),
            (Tagged, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1", call("f", "{\"a\": 1")),
            (Tagged, "<tool_call>\n{\"name\": \"f", text("<tool_call>\n{\"name\": \"f")),
            (Tagged, "ends in <tool_", text("ends in <tool_")),
            (Bare, r#"{"name": "f", "parameters": {"a": 1}}"#, call("f", "{\"a\": 1}")),
            (Bare, two, [call("f", "{}"), call("g", "{}")].concat()),
            (Bare, person, text(person)),
            (Bare, r#"{"name": "f", "age": 3}"#, text(r#"{"name": "f", "age": 3}"#)),
            (Bare, "  prose {", text("  prose {")),
            (Bare, "", vec![]),
        ];
        let both = format!("Let me see. \n{f}\n{g}\n");
        let cases = cases.into_iter().chain([(
            Tagged,
            both.as_str(),
            [text("Let me see."), call("f", fa), call("g", "{}")].concat(),
        )]);
        for (syntax, answer, expected) in cases {
            assert_eq!(read(syntax, [answer]), expected, "{answer}");
            let characters: Vec<String> = answer.chars().map(String::from).collect();
            assert_eq!(
                read(syntax, characters.iter().map(String::as_str)),
                expected,
                "{answer}, by characters"
            );
        }
    }

    proptest! {
        #[test]
        fn any_cut_gives_the_same_calls(
            parts in prop::collection::vec(prop_oneof![
                Just(OPEN.to_owned()), Just(CLOSE.to_owned()), Just("{\"name\": \"f\", \"arguments\": ".to_owned()),
                Just("{\"name\": \"g\"}".to_owned()), Just("{\"a\": \"\\\"}\"}".to_owned()), Just("}".to_owned()),
                Just("\n".to_owned()), Just("{".to_owned()), Just("\"".to_owned()), "[ -~é]{0,6}"
            ], 0..10),
            tagged: bool, cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..12),
        ) {
            let syntax = if tagged { Syntax::Tagged } else { Syntax::Bare };
            let answer = parts.concat();
            let at = cuts.iter().map(|cut| cut.index(answer.len() + 1)).chain([0, answer.len()]);
            let mut at: Vec<usize> = at.filter(|at| answer.is_char_boundary(*at)).collect();
            at.sort_unstable();
            let pieces = at.windows(2).map(|pair| &answer[pair[0]..pair[1]]);
            prop_assert_eq!(read(syntax, pieces), read(syntax, [answer.as_str()]));
        }
    }
}
