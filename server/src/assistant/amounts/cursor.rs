//! Reading ahead in a text that may go on: what cannot be told yet is [`Open`], not guessed.

/// Bytes of a number, of a word, and of what stands between them, beyond which neither is looked for.
const LONGEST: usize = 48;

/// The text must go on before it can be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Open;

/// What can be told, or that nothing can be yet.
pub(super) type Told<T> = Result<T, Open>;

/// A place in a text.
#[derive(Clone, Copy)]
pub(super) struct Cursor<'a> {
    text: &'a str,
    /// Bytes from where the reading began.
    pub(super) at: usize,
    ended: bool,
}

/// Writing systems without spaces, where a word ends is not marked.
pub(super) fn is_unspaced(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{ac00}'..='\u{d7af}')
}

impl<'a> Cursor<'a> {
    /// At the start of a text, to which nothing will be added if it has `ended`.
    pub(super) fn new(text: &'a str, ended: bool) -> Self {
        Cursor { text, at: 0, ended }
    }

    /// The text from here, as far as it is known.
    pub(super) fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    /// The next character; `None` at the end.
    pub(super) fn peek(&self) -> Told<Option<char>> {
        match self.rest().chars().next() {
            None if !self.ended => Err(Open),
            next => Ok(next),
        }
    }

    /// Goes past this character, which is the next one.
    pub(super) fn bump(&mut self, c: char) {
        self.at += c.len_utf8();
    }

    /// Goes past the next character where it is this one.
    pub(super) fn take(&mut self, wanted: impl Fn(char) -> bool) -> Told<Option<char>> {
        let next = self.peek()?.filter(|c| wanted(*c));
        next.inspect(|c| self.bump(*c));
        Ok(next)
    }

    /// Letters and digits up to something else, empty where there are none. Of a long run the first part; of a system
    /// without spaces one character.
    pub(super) fn word(&mut self) -> Told<&'a str> {
        let from = self.at;
        while let Some(c) = self.take(char::is_alphanumeric)? {
            if is_unspaced(c) || self.at - from > LONGEST || self.peek()?.is_some_and(is_unspaced) {
                break;
            }
        }
        Ok(&self.text[from..self.at])
    }

    /// Digits with separators between them: `1,299.00`, `1 299,00`, `1'299`.
    pub(super) fn figures(&mut self) -> Told<()> {
        let from = self.at;
        let mut first_group = 0;
        loop {
            while self.take(char::is_numeric)?.is_some() {
                first_group += 1;
            }
            if self.at - from > LONGEST {
                return Ok(());
            }
            let mut ahead = *self;
            match ahead
                .take(|c| matches!(c, '.' | ',' | '\'' | '’' | ' ' | '\u{a0}' | '\u{2009}' | '\u{202f}'))?
            {
                Some('.' | ',' | '\'' | '’') if ahead.peek()?.is_some_and(char::is_numeric) => {
                    *self = ahead
                }
                // Groups of three and no longer.
                Some(c) if c.is_whitespace() && first_group <= 3 => {
                    let group = ahead;
                    for _ in 0..3 {
                        if ahead.take(char::is_numeric)?.is_none() {
                            return Ok(());
                        }
                    }
                    if ahead.peek()?.is_some_and(char::is_numeric) {
                        return Ok(());
                    }
                    *self = group;
                    first_group = 0;
                }
                _ => return Ok(()),
            }
        }
    }

    /// What may stand within a phrase: spaces, hyphens, emphasis, an opening parenthesis, citations. Whether a line has
    /// ended in it.
    pub(super) fn gap(&mut self) -> Told<bool> {
        let (from, mut line) = (self.at, false);
        while self.at - from <= LONGEST {
            if let Some(c) = self.take(|c| {
                c.is_whitespace() || matches!(c, '*' | '_' | '~' | '-' | '`' | '(' | '\u{2011}' | '\u{2060}')
            })? {
                line |= c == '\n';
                continue;
            }
            let mut ahead = *self;
            if ahead.take(|c| c == '[')?.is_none() {
                break;
            }
            while ahead.take(|c| c.is_ascii_digit())?.is_some() && ahead.at - from <= LONGEST {}
            if ahead.take(|c| c == ']')?.is_none() {
                break;
            }
            *self = ahead;
        }
        Ok(line)
    }

    /// The next word behind a gap, in lower case; empty where something else comes.
    pub(super) fn next_word(&mut self) -> Told<String> {
        self.gap()?;
        Ok(self.word()?.to_lowercase())
    }
}
