//! Directives, citations and links in texts that arrive in any parts.

use super::*;
use proptest::prelude::*;

fn parser() -> Parser {
    Parser::new(AllowedHosts::new(["shop.example"]))
}

/// The pieces of a text that arrives in these parts, adjacent prose joined, and what was dropped.
fn pieces<'a>(parts: impl IntoIterator<Item = &'a str>) -> (Vec<Piece>, u32, u32) {
    let mut parser = parser();
    let mut all: Vec<Piece> = Vec::new();
    let mut add = |new: Vec<Piece>| {
        for piece in new {
            match (all.last_mut(), piece) {
                (Some(Piece::Text(text)), Piece::Text(more)) => text.push_str(&more),
                (_, piece) => all.push(piece),
            }
        }
    };
    for part in parts {
        add(parser.push(part));
    }
    add(parser.finish());
    (all, parser.malformed(), parser.links_dropped())
}

fn shown(text: &str) -> String {
    let show = |piece: &Piece| match piece {
        Piece::Text(text) => text.clone(),
        Piece::Cite(n) => format!("[{n}]"),
        Piece::Directive(_) => "#".into(),
    };
    pieces([text]).0.iter().map(show).collect()
}

#[test]
fn directives() {
    let product = |id: &str, layout| Directive::Product { id: id.into(), layout };
    let ids = |ids: &[&str]| ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>();
    for (tag, directive) in [
        ("<card product=\"B01\"/>", Some(product("B01", None))),
        ("<card product=\"B01\" layout=\"compact\" />", Some(product("B01", Some(Layout::Compact)))),
        ("<card product=\"B01\" layout=\"odd\">", Some(product("B01", None))),
        ("<list ids=\"A, B,A\"/>", Some(Directive::List { ids: ids(&["A", "B"]), layout: None })),
        (
            "<compare ids=\"A,B\" attrs=\"weight, price\"/>",
            Some(Directive::Compare { ids: ids(&["A", "B"]), attrs: ids(&["weight", "price"]) }),
        ),
        ("<reviews product=\"a>b\"/>", Some(Directive::Reviews { id: "a>b".into() })),
        ("<link product=\"x\"/>", Some(Directive::Link { id: "x".into() })),
        ("<order/>", Some(Directive::Order)),
        ("<card/>", None),
        ("<card product=\"\"/>", None),
        ("<card product=\"a b\"/>", None),
        ("<card product=\"a\" product=\"b\"/>", None),
        ("<card product=a/>", None),
        ("<card product=\"a\" href=\"x\"/>", None),
        ("<compare ids=\"A\"/>", None),
        ("<compare ids=\"A,B,C,D,E\"/>", None),
        ("<order id=\"7\"/>", None),
        ("</card>", None),
        ("<card product=\"a", None),
        ("<ca", None),
        ("<", None),
    ] {
        let expected: Vec<Piece> = directive.iter().cloned().map(Piece::Directive).collect();
        let dropped = u32::from(directive.is_none());
        assert_eq!(pieces([tag]), (expected, dropped, 0), "{tag}");
    }
}

#[test]
fn prose_stays_prose() {
    for text in [
        "a < b and c > d",
        "1<2 <3",
        "[see] (note)",
        "and/or",
        "1/2",
        "[2024]",
        "[]",
        "[,]",
        "www",
        "w",
        "ww w",
        "wonderful",
        "// done",
        "a // b",
        "[1",
        "x/",
        "read [this](/help) now",
        "[this](#top)",
        "https://shop.example/p/1?x=y, and",
        "[1][2] [3]",
        "www.shop.example",
    ] {
        let expected = if text == "www.shop.example" { "" } else { text };
        assert_eq!(shown(text), expected);
    }
}

#[test]
fn links_lead_only_where_they_may() {
    for (text, expected) in [
        ("see https://evil.example/?q=1 now", "see https: now"),
        ("![x](https://evil.example/p.png)", "![x]"),
        ("[x](//evil.example)", "[x]"),
        ("[1](https://evil.example)", "[1]"),
        ("[x](javascript:alert(1))", "[x])"),
        ("[x](/\\evil.example)", "[x]"),
        ("[x]: https://evil.example", "[x]: https:"),
        ("<img src=\"//evil.example/x\">", "< img src=\"\">"),
        ("<b>bold</b>", "< b>bold< /b>"),
        ("<a href='javascript:x()'>", "< a href='javascript:x()'>"),
        ("<cat><<!--", "< cat><< !--"),
        ("www.evil.example", ""),
        ("https://shop.example@evil.example/", "https:"),
        ("https://shop.example.evil.example/", "https:"),
        ("https:\\\\evil.example", "https:"),
        ("[x](&#104;ttps://evil.example)", "[x]"),
        ("[x](https://shop.example/a)", "[x](https://shop.example/a)"),
    ] {
        assert_eq!(shown(text), expected, "{text}");
    }
    assert_eq!(shown(&format!("a //{} b", "e".repeat(5000))), "a  b");
}

fn texts() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => "[ a-z.]{0,6}",
        2 => Just("<card product=\"B01\"/>".to_owned()),
        2 => "\\[[0-9, ]{0,6}\\]",
        1 => Just("<compare ids=\"A,B\" attrs=\"x\"/>".to_owned()),
        1 => "<(card|list|c|/card|order)[ a-z=\"/]{0,8}>?",
        1 => "(https?:)?[/\\\\]{1,3}[a-z.@]{0,12}",
        1 => Just("https://shop.example/x".to_owned()),
        1 => "[\\[\\]()<>/w\"é\n]{1,4}",
    ];
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..Default::default() })]

    #[test]
    fn cuts_change_nothing(text in texts(), cuts in prop::collection::vec(0usize..64, 0..16)) {
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|&c| text.is_char_boundary(c.min(text.len()))).collect();
        cuts.iter_mut().for_each(|c| *c = (*c).min(text.len()));
        cuts.extend([0, text.len()]);
        cuts.sort_unstable();
        let parts: Vec<&str> = cuts.windows(2).map(|w| &text[w[0]..w[1]]).collect();
        prop_assert_eq!(pieces(parts), pieces([text.as_str()]));
    }

    /// Whatever is written, no absolute address but an allowed one comes out, and little is ever held back.
    #[test]
    fn nothing_foreign_comes_out(text in texts()) {
        let out = shown(&text);
        for (at, _) in out.match_indices("//") {
            // A path may have empty parts.
            if out[..at].rsplit(ends_link).next().is_some_and(|run| run.contains("//shop.example")) {
                continue;
            }
            let rest = &out[at + 2..];
            let host: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '@')).collect();
            prop_assert!(host.is_empty() || host.starts_with(['.', '@']) || host == "shop.example", "{:?} of {:?}", out, text);
        }
        let mut parser = parser();
        for c in text.chars() {
            parser.push(c.encode_utf8(&mut [0; 4]));
            prop_assert!(parser.held.len() <= LONGEST_LINK + 4);
        }
    }
}
