//! From the model's text to prose, directives and citations, while the text arrives in pieces.
//!
//! A directive is a tag such as `<card product="B01" layout="compact"/>`, a citation is `[1]` or `[1, 2]`. Nothing is
//! held back but what may still become one of them, or a link: links lead only where the shop allows, since a hostile
//! review could talk the model into writing one that carries data away. A malformed directive and a link that is not
//! allowed vanish and are counted; any other tag is made plain text by a space. How the text is cut into pieces changes nothing.

use super::event::Layout;

/// What the text consists of.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    /// Prose.
    Text(String),
    /// Evidence of that number is cited here.
    Cite(u32),
    /// A card stands here.
    Directive(Directive),
}

/// What the model wants shown.
#[derive(Clone, Debug, PartialEq)]
pub enum Directive {
    /// `<card product="ID"/>`
    Product {
        /// The product.
        id: String,
        /// How.
        layout: Option<Layout>,
    },
    /// `<list ids="ID,ID"/>`
    List {
        /// One to eight products.
        ids: Vec<String>,
        /// How.
        layout: Option<Layout>,
    },
    /// `<compare ids="ID,ID" attrs="weight,material"/>`
    Compare {
        /// Two to four products.
        ids: Vec<String>,
        /// What to compare them by; empty leaves the choice to the catalog.
        attrs: Vec<String>,
    },
    /// `<reviews product="ID"/>`
    Reviews {
        /// The product.
        id: String,
    },
    /// `<link product="ID"/>`
    Link {
        /// The product.
        id: String,
    },
    /// `<order/>`: the order that the shopper asks about. The model cannot name one.
    Order,
}

impl Directive {
    /// The products it names.
    pub fn products(&self) -> &[String] {
        match self {
            Directive::Product { id, .. } | Directive::Reviews { id } | Directive::Link { id } => {
                std::slice::from_ref(id)
            }
            Directive::List { ids, .. } | Directive::Compare { ids, .. } => ids,
            Directive::Order => &[],
        }
    }
}

const NAMES: [&str; 6] = ["card", "list", "compare", "reviews", "link", "order"];
/// Bytes of the longest tag that may be held back.
pub(crate) const LONGEST_TAG: usize = 512;
/// Bytes of the longest address that is looked at; a longer one is not allowed.
const LONGEST_LINK: usize = 2048;
const LONGEST_CITATION: usize = 32;

/// Hosts that links may lead to.
#[derive(Clone, Debug, Default)]
pub struct AllowedHosts(Vec<String>);

impl AllowedHosts {
    /// Exactly these hosts, without regard to case; none of their subdomains.
    pub fn new<S: Into<String>>(hosts: impl IntoIterator<Item = S>) -> Self {
        AllowedHosts(hosts.into_iter().map(|host| host.into().to_ascii_lowercase()).collect())
    }

    /// Whether a link may lead to this address: one within the shop, or an absolute one to an allowed host.
    pub fn allow(&self, address: &str) -> bool {
        let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '\\' | '"' | '\'' | '<' | '>' | '`');
        if address.is_empty() || !address.chars().all(plain) {
            return false;
        }
        let lower = address.to_ascii_lowercase();
        match lower.strip_prefix("https://").or_else(|| lower.strip_prefix("http://")) {
            Some(rest) => self.allow_authority(rest),
            // Entities could spell what is looked for here.
            None => !lower.starts_with("//") && !lower.contains(':') && !lower.contains('&'),
        }
    }

    /// Of an address without its scheme and slashes.
    fn allow_authority(&self, rest: &str) -> bool {
        let authority = rest.split(['/', '?', '#', '\\']).next().unwrap_or("");
        let host = authority.split_once(':').map_or(authority, |(host, _)| host).to_ascii_lowercase();
        self.0.contains(&host)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mode {
    Text,
    /// From `<`.
    Tag,
    /// From `[`.
    Citation,
    /// From the first slash of what may be `//`.
    Slash,
    /// From `w` at the start of a word.
    Www,
    /// From `//` or `www.`.
    Link,
    /// From the parenthesis of `](`.
    Target,
    /// In what is left of an address that is too long.
    Swallow,
}

/// The streaming parser.
#[derive(Debug)]
pub struct Parser {
    allowed: AllowedHosts,
    mode: Mode,
    held: String,
    /// The last character that has left.
    last: char,
    malformed: u32,
    links: u32,
}

impl Parser {
    /// A parser at the start of a text.
    pub fn new(allowed: AllowedHosts) -> Self {
        Parser { allowed, mode: Mode::Text, held: String::new(), last: '\n', malformed: 0, links: 0 }
    }

    /// Directives that were dropped because they could not be read.
    pub fn malformed(&self) -> u32 {
        self.malformed
    }

    /// Links that were dropped because they led elsewhere.
    pub fn links_dropped(&self) -> u32 {
        self.links
    }

    /// What the next part of the text brings.
    pub fn push(&mut self, text: &str) -> Vec<Piece> {
        let mut out = Vec::new();
        text.chars().for_each(|c| self.step(c, &mut out));
        out
    }

    /// What was held back, at the end of the text.
    pub fn finish(&mut self) -> Vec<Piece> {
        let mut out = Vec::new();
        match self.mode {
            Mode::Text | Mode::Swallow => {}
            // The text was cut short: what still could become a directive is none of prose.
            Mode::Tag => self.drop_tag(),
            Mode::Link => self.end_link(' ', &mut out),
            Mode::Target => self.end_target(&mut out),
            Mode::Citation | Mode::Slash | Mode::Www => self.release(&mut out),
        }
        self.mode = Mode::Text;
        out
    }

    fn step(&mut self, c: char, out: &mut Vec<Piece>) {
        match self.mode {
            Mode::Text => self.text(c, out),
            Mode::Tag => self.tag(c, out),
            Mode::Citation => match c {
                ']' => self.end_citation(out),
                '0'..='9' | ',' | ' ' if self.held.len() < LONGEST_CITATION => self.held.push(c),
                _ => self.not_special(c, out),
            },
            Mode::Slash => match c {
                '/' | '\\' => self.hold(c, Mode::Link),
                _ => self.not_special(c, out),
            },
            Mode::Www => match (self.held.len(), c) {
                (3, '.') => self.hold(c, Mode::Link),
                (1 | 2, 'w' | 'W') => self.held.push(c),
                _ => self.not_special(c, out),
            },
            Mode::Link => {
                if ends_link(c) {
                    self.end_link(c, out);
                    self.step(c, out);
                } else {
                    self.hold_link(c);
                }
            }
            Mode::Target => match c {
                ')' => {
                    self.held.push(c);
                    self.end_target(out);
                }
                _ if c.is_whitespace() => {
                    self.end_target(out);
                    self.step(c, out);
                }
                _ => self.hold_link(c),
            },
            Mode::Swallow => {
                if c.is_whitespace() || matches!(c, ')' | '>' | '"') {
                    self.mode = Mode::Text;
                    self.text(c, out);
                }
            }
        }
    }

    fn text(&mut self, c: char, out: &mut Vec<Piece>) {
        match c {
            '<' => self.hold(c, Mode::Tag),
            '[' => self.hold(c, Mode::Citation),
            // What stood between two slashes may have been dropped.
            '/' | '\\' if matches!(self.last, '/' | '\\') => self.hold(c, Mode::Link),
            '/' | '\\' => self.hold(c, Mode::Slash),
            'w' | 'W' if !self.last.is_alphanumeric() => self.hold(c, Mode::Www),
            '(' if self.last == ']' => self.hold(c, Mode::Target),
            _ => self.emit(c, out),
        }
    }

    fn tag(&mut self, c: char, out: &mut Vec<Piece>) {
        if !self.is_tag() {
            let mut longer = self.held.clone();
            longer.push(c);
            let name = longer[1..].strip_prefix('/').unwrap_or(&longer[1..]);
            let ended =
                matches!(c, ' ' | '/' | '>') && NAMES.contains(&&name[..name.len().saturating_sub(1)]);
            if !ended && !NAMES.iter().any(|known| known.starts_with(name)) {
                // What would be markup to a client that reads some is none with a space in it.
                if longer[1..].starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '!' | '?'))
                {
                    self.held.insert(1, ' ');
                }
                self.not_special(c, out);
                return;
            }
        }
        self.held.push(c);
        let quoted = self.held.matches('"').count() % 2 == 1;
        if c == '>' && !quoted {
            match read_tag(&self.held) {
                Some(directive) => {
                    self.held.clear();
                    out.push(Piece::Directive(directive));
                }
                None => self.drop_tag(),
            }
            self.mode = Mode::Text;
        } else if c == '\n' || self.held.len() > LONGEST_TAG {
            self.drop_tag();
            self.mode = Mode::Text;
        }
    }

    /// Whether what is held is more than the beginning of a name.
    fn is_tag(&self) -> bool {
        let name = self.held.trim_start_matches('<').trim_start_matches('/');
        let end = name.find([' ', '/', '>']);
        end.is_some_and(|end| NAMES.contains(&&name[..end]))
    }

    fn drop_tag(&mut self) {
        self.held.clear();
        self.malformed += 1;
    }

    fn end_citation(&mut self, out: &mut Vec<Piece>) {
        let numbers = self.held[1..].split(',').map(|n| n.trim());
        let numbers: Option<Vec<u32>> =
            numbers.map(|n| n.parse().ok().filter(|_| (1..=3).contains(&n.len()))).collect();
        match numbers {
            Some(numbers) => {
                self.held.clear();
                out.extend(numbers.into_iter().map(Piece::Cite));
                (self.mode, self.last) = (Mode::Text, ']');
            }
            None => self.not_special(']', out),
        }
    }

    fn end_link(&mut self, terminator: char, out: &mut Vec<Piece>) {
        self.mode = Mode::Text;
        let rest = self.held.trim_start_matches(['/', '\\']);
        let slashes = self.held.starts_with("//") || rest.len() == self.held.len();
        // Two slashes and nothing behind them: a comment, an emoticon. Anything else could still get a host.
        let harmless = rest.is_empty() && terminator.is_whitespace();
        if harmless || (slashes && self.allowed.allow(&format!("http://{rest}"))) {
            self.release(out);
        } else {
            self.held.clear();
            self.links += 1;
        }
    }

    fn end_target(&mut self, out: &mut Vec<Piece>) {
        self.mode = Mode::Text;
        let target = self.held.trim_start_matches('(').trim_end_matches(')');
        if self.allowed.allow(target) {
            self.release(out);
        } else {
            self.held.clear();
            self.links += 1;
        }
    }

    fn hold(&mut self, c: char, mode: Mode) {
        self.held.push(c);
        self.mode = mode;
    }

    fn hold_link(&mut self, c: char) {
        self.held.push(c);
        if self.held.len() > LONGEST_LINK {
            self.held.clear();
            self.links += 1;
            self.mode = Mode::Swallow;
        }
    }

    /// What is held is prose after all, and `c` may begin something else.
    fn not_special(&mut self, c: char, out: &mut Vec<Piece>) {
        self.mode = Mode::Text;
        self.release(out);
        self.text(c, out);
    }

    fn release(&mut self, out: &mut Vec<Piece>) {
        let held = std::mem::take(&mut self.held);
        held.chars().for_each(|c| self.emit(c, out));
    }

    fn emit(&mut self, c: char, out: &mut Vec<Piece>) {
        self.last = c;
        match out.last_mut() {
            Some(Piece::Text(text)) => text.push(c),
            _ => out.push(Piece::Text(c.into())),
        }
    }
}

fn ends_link(c: char) -> bool {
    c.is_whitespace() || matches!(c, '<' | '>' | '"' | '\'' | '(' | ')' | '[' | ']' | '{' | '}' | '|' | '`')
}

/// A whole tag, `<` to `>`.
fn read_tag(tag: &str) -> Option<Directive> {
    let inner = tag.strip_prefix('<')?.strip_suffix('>')?;
    let inner = inner.strip_suffix('/').unwrap_or(inner).trim_end();
    let (name, mut rest) = inner.split_once(' ').unwrap_or((inner, ""));
    let mut attributes: Vec<(&str, &str)> = Vec::new();
    while !rest.trim_start().is_empty() {
        let (key, after) = rest.trim_start().split_once("=\"")?;
        let (value, after) = after.split_once('"')?;
        if attributes.iter().any(|(known, _)| *known == key) {
            return None;
        }
        attributes.push((key, value));
        rest = after;
    }
    let known: &[&str] = match name {
        "card" => &["product", "layout"],
        "list" => &["ids", "layout"],
        "compare" => &["ids", "attrs"],
        "reviews" | "link" => &["product"],
        "order" => &[],
        _ => return None,
    };
    if !attributes.iter().all(|(key, _)| known.contains(key)) {
        return None;
    }
    let get = |name: &str| attributes.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    let layout = get("layout").and_then(Layout::from_name);
    let ids = |least: usize, most: usize| {
        let mut ids: Vec<String> = Vec::new();
        for id in get("ids")?.split(',').map(str::trim) {
            if !is_id(id) {
                return None;
            }
            if !ids.iter().any(|known| known == id) {
                ids.push(id.to_owned());
            }
        }
        (least..=most).contains(&ids.len()).then_some(ids)
    };
    let product = || get("product").filter(|id| is_id(id)).map(str::to_owned);
    Some(match name {
        "card" => Directive::Product { id: product()?, layout },
        "list" => Directive::List { ids: ids(1, 8)?, layout },
        "compare" => {
            let attrs = get("attrs").unwrap_or("").split(',').map(str::trim);
            let attrs = attrs.filter(|attr| !attr.is_empty()).take(12).map(str::to_owned).collect();
            Directive::Compare { ids: ids(2, 4)?, attrs }
        }
        "reviews" => Directive::Reviews { id: product()? },
        "link" => Directive::Link { id: product()? },
        _ => Directive::Order,
    })
}

fn is_id(id: &str) -> bool {
    (1..=128).contains(&id.len()) && !id.chars().any(|c| c.is_control() || c.is_whitespace())
}

#[cfg(test)]
mod tests;
