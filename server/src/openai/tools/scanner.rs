//! A call as it is written: an object whose name and arguments are wanted before it is complete.

/// Reads one object `{"name": …, "arguments" or "parameters": …}` piece by piece.
#[derive(Debug, Default)]
pub(super) struct Scanner {
    raw: String,
    /// Bytes of `raw` that were looked at.
    at: usize,
    stage: Stage,
    /// Where the key or value that is being read begins, and whether it is a key.
    begin: usize,
    is_key: bool,
    /// Open brackets, and whether a string is open, within a value.
    depth: usize,
    string: bool,
    escaped: bool,
    key: String,
    pub(super) name: Option<String>,
    /// Where the arguments begin, and end if they have.
    arguments: Option<(usize, Option<usize>)>,
    /// Bytes of the arguments that were handed out.
    sent: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Stage {
    /// Before the object.
    #[default]
    Open,
    /// Before a key, or the end of an empty object.
    Key,
    Colon,
    Value,
    Inside,
    Comma,
    Done,
    Bad,
}

impl Scanner {
    /// Takes text; once the object has ended, yields what lies behind it.
    pub(super) fn push<'a>(&mut self, text: &'a str) -> Option<&'a str> {
        let before = self.raw.len();
        self.raw.push_str(text);
        while self.at < self.raw.len() && !matches!(self.stage, Stage::Done | Stage::Bad) {
            self.step(self.raw.as_bytes()[self.at]);
        }
        self.is_done().then(|| &text[self.at - before..])
    }

    fn step(&mut self, byte: u8) {
        let blank = matches!(byte, b' ' | b'\n' | b'\t' | b'\r');
        match (self.stage, byte) {
            (Stage::Inside, _) => return self.inside(byte),
            (Stage::Open, b'{') | (Stage::Comma, b',') => self.stage = Stage::Key,
            (Stage::Comma, b'}') => self.stage = Stage::Done,
            (Stage::Key, b'}') if self.key.is_empty() => self.stage = Stage::Done,
            (Stage::Colon, b':') => self.stage = Stage::Value,
            (Stage::Key, b'"') | (Stage::Value, _) if !blank => return self.enter(byte),
            _ if blank => {}
            _ => {
                self.stage = Stage::Bad;
                return;
            }
        }
        self.at += 1;
    }

    /// A key or a value begins.
    fn enter(&mut self, byte: u8) {
        self.is_key = self.stage == Stage::Key;
        self.begin = self.at;
        if !self.is_key && matches!(self.key.as_str(), "arguments" | "parameters") && self.arguments.is_none()
        {
            self.arguments = Some((self.at, None));
        }
        self.string = byte == b'"';
        self.depth = usize::from(matches!(byte, b'{' | b'['));
        self.stage = Stage::Inside;
        self.at += 1;
    }

    fn inside(&mut self, byte: u8) {
        let escaped = std::mem::take(&mut self.escaped);
        if self.string {
            match byte {
                _ if escaped => {}
                b'\\' => self.escaped = true,
                b'"' => self.string = false,
                _ => {}
            }
        } else {
            match byte {
                // Behind a number or a word; the byte is not part of it.
                b',' | b'}' | b' ' | b'\n' | b'\t' | b'\r' if self.depth == 0 => return self.leave(),
                b'"' => self.string = true,
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
        }
        self.at += 1;
        if self.depth == 0 && !self.string && matches!(byte, b'"' | b'}' | b']') {
            self.leave();
        }
    }

    /// It has ended.
    fn leave(&mut self) {
        let text = &self.raw[self.begin..self.at];
        if self.is_key || self.key == "name" {
            let Ok(text) = serde_json::from_str::<String>(text) else {
                self.stage = Stage::Bad;
                return;
            };
            if self.is_key {
                (self.key, self.stage) = (text, Stage::Colon);
                return;
            }
            self.name.get_or_insert(text);
        }
        if let Some((_, end @ None)) = &mut self.arguments {
            *end = Some(self.at);
        }
        self.stage = Stage::Comma;
    }

    /// Whether the object is complete.
    pub(super) fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    /// Whether this is no such object.
    pub(super) fn is_bad(&self) -> bool {
        self.stage == Stage::Bad
    }

    /// Whether arguments have begun.
    pub(super) fn has_arguments(&self) -> bool {
        self.arguments.is_some()
    }

    /// What is new of the arguments, as JSON. Arguments that some models write as a string come when they are complete.
    pub(super) fn arguments(&mut self) -> String {
        let Some((start, end)) = self.arguments else { return String::new() };
        let so_far = &self.raw[start..end.unwrap_or(self.at)];
        if so_far.starts_with('"') {
            let due = end.is_some() && self.sent == 0;
            self.sent = if due { so_far.len() } else { self.sent };
            let decoded = || serde_json::from_str(so_far).unwrap_or_else(|_| so_far.to_owned());
            return if due { decoded() } else { String::new() };
        }
        let new = so_far[self.sent..].to_owned();
        self.sent = so_far.len();
        new
    }

    /// What was not looked at because the object ends, or is none, before it.
    pub(super) fn rest(&self) -> &str {
        &self.raw[self.at..]
    }

    /// All text so far.
    pub(super) fn raw(&self) -> &str {
        &self.raw
    }
}
