//! SentencePiece's byte-pair segmentation, by the scores of the pieces.
//!
//! A text starts as its characters; again and again the adjacent pair whose concatenation is the piece with the highest
//! score is joined, of equal ones the leftmost (Kudo & Richardson, 2018; Sennrich et al., 2016). Models converted to a
//! list of merges lose the ties, so the pieces and scores are used as they are.

use rustc_hash::FxHashMap;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use tokenizers::Token;

/// What a piece is; the numbers are those of `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl Kind {
    pub(super) fn new(code: i64) -> Option<Self> {
        use Kind::*;
        [Normal, Unknown, Control, UserDefined, Unused, Byte].into_iter().find(|kind| *kind as i64 == code)
    }
}

/// The pieces a text may be cut into.
#[derive(Debug)]
pub(super) struct Spm {
    pieces: FxHashMap<String, Piece>,
    /// The ids of the 256 bytes, if the model spells unknown characters with them.
    bytes: Option<Box<[u32; 256]>>,
    unknown: Option<u32>,
    /// Whitespace runs that are taken whole wherever they stand, longest first.
    runs: Vec<String>,
}

#[derive(Clone, Copy, Debug)]
struct Piece {
    id: u32,
    score: f32,
    /// It may be a step towards a longer piece but is not given out.
    unused: bool,
}

/// A part of the text between two others; empty once it was joined to the one before.
#[derive(Clone, Copy, Debug)]
struct Symbol {
    start: usize,
    end: usize,
    previous: usize,
    next: usize,
    /// A run that takes no part in joining.
    frozen: bool,
}

const NONE: usize = usize::MAX;

/// Two symbols that would make a piece.
#[derive(PartialEq)]
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    length: usize,
}

impl Eq for Pair {}
impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Pair {
    fn cmp(&self, other: &Self) -> Ordering {
        self.score.total_cmp(&other.score).then_with(|| other.left.cmp(&self.left))
    }
}

impl Spm {
    /// `tokens` gives each id's piece, score and kind. Control and unknown pieces are never cut out of a text, and user
    /// defined ones only if they are white space: the others are added tokens, found before segmentation.
    pub(super) fn new<'a>(tokens: impl Iterator<Item = (&'a str, f32, Kind)>) -> Self {
        let mut spm = Self { pieces: FxHashMap::default(), bytes: None, unknown: None, runs: Vec::new() };
        let mut bytes = FxHashMap::default();
        for (id, (piece, score, kind)) in tokens.enumerate() {
            let id = id as u32;
            match kind {
                Kind::Byte => {
                    if let Some(byte) = super::detokenizer::byte_token(piece) {
                        bytes.insert(byte, id);
                    }
                }
                Kind::Unknown => spm.unknown = Some(id),
                Kind::Control => {}
                Kind::UserDefined if !is_space(piece) => {}
                Kind::Normal | Kind::Unused | Kind::UserDefined => {
                    // Converters write the spaces of user defined pieces as spaces.
                    let piece = piece.replace(' ', "▁");
                    if kind == Kind::UserDefined {
                        spm.runs.push(piece.clone());
                    }
                    let unused = kind == Kind::Unused;
                    spm.pieces.entry(piece).or_insert(Piece { id, score, unused });
                }
            }
        }
        spm.runs.sort_by_key(|run| std::cmp::Reverse(run.len()));
        let all: Option<Vec<u32>> = (0..=255).map(|byte| bytes.get(&byte).copied()).collect();
        spm.bytes = all.and_then(|all| all.into_boxed_slice().try_into().ok());
        spm
    }

    /// The tokens of a text whose spaces are already `▁`.
    pub(super) fn tokenize(&self, text: &str) -> Vec<Token> {
        let mut symbols = self.symbols(text);
        let mut queue = BinaryHeap::new();
        // For a piece that is not given out: the length of its left half when it was last proposed.
        let mut halves = FxHashMap::default();
        for left in 0..symbols.len().saturating_sub(1) {
            self.propose(text, &symbols, left, &mut queue, &mut halves);
        }
        while let Some(Pair { left, right, length, .. }) = queue.pop() {
            let (a, b) = (symbols[left], symbols[right]);
            // Stale if either side has grown or gone since.
            if a.start == a.end || b.start == b.end || b.end - a.start != length {
                continue;
            }
            symbols[left].end = b.end;
            symbols[left].next = b.next;
            symbols[right].end = b.start;
            if b.next != NONE {
                symbols[b.next].previous = left;
            }
            if a.previous != NONE {
                self.propose(text, &symbols, a.previous, &mut queue, &mut halves);
            }
            self.propose(text, &symbols, left, &mut queue, &mut halves);
        }
        let mut tokens = Vec::new();
        for symbol in symbols.iter().filter(|symbol| symbol.start < symbol.end) {
            self.emit(text, symbol.start, symbol.end, &halves, &mut tokens);
        }
        tokens
    }

    /// The text as runs and single characters.
    fn symbols(&self, text: &str) -> Vec<Symbol> {
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        let mut start = 0;
        while let Some(char) = text[start..].chars().next() {
            let run = if char == '▁' || char.is_whitespace() {
                self.runs.iter().find(|run| text[start..].starts_with(run.as_str()))
            } else {
                None
            };
            let end = start + run.map_or(char.len_utf8(), String::len);
            let index = symbols.len();
            let previous = index.checked_sub(1).unwrap_or(NONE);
            symbols.push(Symbol { start, end, previous, next: index + 1, frozen: run.is_some() });
            start = end;
        }
        if let Some(last) = symbols.last_mut() {
            last.next = NONE;
        }
        symbols
    }

    /// Queues the pair that begins with symbol `left`, if it makes a piece.
    fn propose<'t>(
        &self,
        text: &'t str,
        symbols: &[Symbol],
        left: usize,
        queue: &mut BinaryHeap<Pair>,
        halves: &mut FxHashMap<&'t str, usize>,
    ) {
        let a = symbols[left];
        let Some(b) = symbols.get(a.next) else { return };
        if a.frozen || b.frozen {
            return;
        }
        let joined = &text[a.start..b.end];
        if let Some(piece) = self.pieces.get(joined) {
            queue.push(Pair { score: piece.score, left, right: a.next, length: joined.len() });
            if piece.unused {
                halves.insert(joined, a.end - a.start);
            }
        }
    }

    /// Appends the tokens of one symbol: its piece, the halves of one that is not given out, or bytes.
    fn emit(
        &self,
        text: &str,
        start: usize,
        end: usize,
        halves: &FxHashMap<&str, usize>,
        tokens: &mut Vec<Token>,
    ) {
        // A stack, since a chain of unused pieces is as deep as a file cares to make it.
        let mut parts = vec![(start, end)];
        while let Some((start, end)) = parts.pop() {
            let part = &text[start..end];
            match (self.pieces.get(part), halves.get(part)) {
                (Some(piece), Some(&half)) if piece.unused => {
                    parts.push((start + half, end));
                    parts.push((start, start + half));
                }
                (Some(piece), _) => tokens.push(Token::new(piece.id, String::new(), (start, end))),
                (None, _) => self.emit_unknown(part, start, tokens),
            }
        }
    }

    fn emit_unknown(&self, part: &str, start: usize, tokens: &mut Vec<Token>) {
        let end = start + part.len();
        match (&self.bytes, self.unknown) {
            (Some(bytes), _) => {
                let ids = part.bytes().map(|byte| bytes[usize::from(byte)]);
                tokens.extend(ids.map(|id| Token::new(id, String::new(), (start, end))));
            }
            // SentencePiece gives one unknown id for adjacent unknown characters.
            (None, Some(unknown)) if tokens.last().is_none_or(|last| last.id != unknown) => {
                tokens.push(Token::new(unknown, String::new(), (start, end)));
            }
            (None, _) => {}
        }
    }
}

/// Whether a piece is nothing but white space.
pub(super) fn is_space(piece: &str) -> bool {
    piece.chars().all(|char| char == '▁' || char.is_whitespace())
}
