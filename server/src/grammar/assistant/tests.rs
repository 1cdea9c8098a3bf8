//! What comes out of a model that wants to name what it may not, and out of the answer that is made of it.

use std::collections::{BTreeSet, HashSet};
use std::time::{Duration, Instant};

use millrace_models::Checkpoint;
use millrace_models::text::Tokenizer;

use super::super::Compiler;
use super::super::tests::{block_on, generate, vocabulary};
use super::{Allowed, grammar};
use crate::assistant::compose::{Desk, Summary, TextFailure, TextSource, compose};
use crate::assistant::event::{CardBody, Citation, Event};

/// A text that arrives in parts of a few characters.
struct Parts(Vec<String>);

impl TextSource for Parts {
    async fn next(&mut self) -> Option<Result<String, TextFailure>> {
        self.0.pop().map(Ok)
    }
}

fn desk(products: &[&str], citations: &[u32]) -> Desk {
    let citation = |number: &u32| Citation {
        number: *number,
        source: "review".into(),
        doc_id: format!("r{number}"),
        product: None,
        title: "Review".into(),
        quote: "Good.".into(),
    };
    Desk {
        products: products.iter().map(|id| (*id).to_owned()).collect(),
        citations: citations.iter().map(citation).collect(),
        ..Desk::default()
    }
}

/// What leaves: the prose, the products of the cards, and the numbers of the sources.
fn leaves(desk: &Desk, raw: &str) -> (String, HashSet<String>, BTreeSet<u32>, Summary) {
    let (mut prose, mut products, mut sources) = (String::new(), HashSet::new(), BTreeSet::new());
    let chars: Vec<char> = raw.chars().collect();
    let mut parts: Vec<String> = chars.chunks(3).map(|part| part.iter().collect()).collect();
    parts.reverse();
    let emit = |event| match event {
        Event::Text(text) => prose += &text,
        Event::Source(citation) => drop(sources.insert(citation.number)),
        Event::Card(card) => match card.body {
            CardBody::Product { r#ref, .. }
            | CardBody::ReviewSummary { r#ref, .. }
            | CardBody::Navigation { r#ref, .. } => drop(products.insert(r#ref.id)),
            CardBody::ProductList { items } | CardBody::Comparison { columns: items, .. } => {
                products.extend(items.into_iter().map(|item| item.r#ref.id));
            }
            CardBody::OrderStatus { .. } => panic!("an order that nobody asked for"),
            CardBody::SuggestedQuestions { .. } => panic!("a suggestion that nobody made"),
        },
        _ => {}
    };
    let (summary, result) = block_on(compose(&mut Parts(parts), desk, emit));
    result.expect("the text does not fail");
    (prose, products, sources, summary)
}

/// Pieces that a model would put together to name foreign products, cite nothing, and quote prices.
const WANTED: [&str; 62] = [
    "<card product=\"",
    "<compare ids=\"",
    "<list ids=\"",
    "<reviews product=\"",
    "<link product=\"",
    "<order/>",
    "\"/>",
    "/>",
    "<",
    "[",
    "]",
    "[1]",
    "[9]",
    "[1, 2]",
    "B01",
    "B02",
    "B99",
    "Ü/x",
    "\u{200b}",
    "$",
    " $19.99",
    "19.99",
    " 20",
    "20",
    " euro",
    "euros",
    " EUR ",
    "USD",
    " usd ",
    " dollars",
    "dollar",
    "€",
    "£",
    " cents",
    " bucks",
    " twenty",
    " costs ",
    "5",
    "http://evil.example/",
    "www.",
    "evil.example",
    "&#36;",
    "&pound;",
    " the",
    " is",
    ". ",
    "\n",
    "-",
    "**",
    " layout=\"compact\"",
    " layout=\"huge\"",
    " attrs=\"",
    "weight",
    ",",
    "\"",
    "<script>",
    "](",
    "</card>",
    "cent",
    "eur",
    "\u{FF04}",
    "a",
];

#[test]
fn answers_name_only_what_was_retrieved_and_no_amounts() {
    let (tokenizer, eos) = vocabulary(&WANTED);
    let compiler = Compiler::new(&tokenizer, &[eos]).expect("a compiler");
    let bias: Vec<(u32, f32)> = (256..256 + WANTED.len() as u32).map(|id| (id, 9.0)).collect();
    let attributes = ["weight".to_owned(), "fit, size".to_owned()];
    let worlds: [(&[&str], &[u32]); 4] =
        [(&["B01", "B02", "Ü/x"], &[1, 2, 12]), (&["B01"], &[]), (&[], &[3]), (&[], &[])];
    let starts = worlds.map(|(products, citations)| {
        let ids: Vec<String> = products.iter().map(|id| (*id).to_owned()).collect();
        let allowed = Allowed { products: &ids, attributes: &attributes, citations };
        compiler.compile_own(&grammar(&allowed)).expect("it compiles")
    });
    // By rules of their own.
    let amount = regex::Regex::new(
        r"(?i)\p{Sc} ?\d|\b(usd|eur) ?\d|\b\d+([.,]\d+)?[ *_-]*(\p{Sc}|(euros?|eur|usd|dollars?|cents?|bucks)\b)",
    );
    let amount = amount.expect("a pattern");
    let (mut shown, mut complete, mut amounts) = (0, 0, 0);
    for seed in 0..10_000u64 {
        let world = (seed % 4) as usize;
        let (products, citations) = worlds[world];
        let found = generate(&tokenizer, eos, starts[world].fork(), &bias, 24, seed);
        let (prose, cards, sources, summary) = leaves(&desk(products, citations), &found.text);
        let what = || format!("seed {seed}: {:?} became {prose:?}", found.text);
        assert!(cards.iter().all(|id| products.contains(&id.as_str())), "{cards:?}, {}", what());
        assert!(sources.iter().all(|number| citations.contains(number)), "{sources:?}, {}", what());
        for tag in
            ["<card", "<list", "<compare", "<reviews", "<link", "<order", "</card", "<script", "//evil"]
        {
            assert!(!prose.contains(tag), "{tag} in {}", what());
        }
        assert!(!amount.is_match(&prose), "an amount in {}", what());
        // A text that was cut short may end inside a directive, which is then dropped; nothing else needs dropping.
        assert!(summary.dropped == 0 || (!found.complete && summary.dropped == 1), "{summary:?}, {}", what());
        shown += cards.len();
        amounts += summary.amounts_dropped;
        complete += usize::from(found.complete);
    }
    println!("10000 answers, {complete} complete, {shown} cards, {amounts} amounts dropped");
    assert!(
        shown > 100 && complete > 100 && amounts > 100,
        "{shown} cards, {complete} complete, {amounts} amounts"
    );
}

fn accepts(compiler: &Compiler, allowed: &Allowed<'_>, eos: u32, text: &str) -> bool {
    let mut constraint = compiler.compile_own(&grammar(allowed)).expect("it compiles");
    let mut set = Vec::new();
    let has = |set: &[u32], token: u32| set[token as usize / 32] >> (token % 32) & 1 == 1;
    for byte in text.bytes() {
        constraint.allowed(&mut set).expect("a set");
        if !has(&set, byte.into()) {
            return false;
        }
        constraint.accept(byte.into()).expect("allowed");
    }
    constraint.allowed(&mut set).expect("a set");
    has(&set, eos)
}

#[test]
fn ordinary_prose_is_free() {
    let (tokenizer, eos) = vocabulary(&[]);
    let compiler = Compiler::new(&tokenizer, &[eos]).expect("a compiler");
    let ids = ["B01".to_owned(), "B-7/x".to_owned()];
    let allowed = Allowed { products: &ids, attributes: &["weight".to_owned()], citations: &[1, 2] };
    for text in [
        "Yes, it is dishwasher-safe [1][2].",
        "It weighs 5 pounds and holds 2.5 L; 20 cm wide, 3 audio channels, 18/10 steel, 100% cotton.",
        "A European pen for the centre of 2 yen-style rooms? \"Sure\" & R&D: 20 centimetres.",
        "<card product=\"B01\"/>\n\n<card product=\"B-7/x\" layout=\"compact\"/> and <compare ids=\"B01,B-7/x\" attrs=\"weight\"/>",
        "<list ids=\"B01\"/> <reviews product=\"B01\"/><link product=\"B01\"/>",
        "日本 🦀 naïve — “quoted”",
        "",
    ] {
        assert!(accepts(&compiler, &allowed, eos, text), "{text}");
    }
    for text in [
        "<card product=\"B02\"/>",
        "<card product=\"B01\"",
        "<compare ids=\"B01,B01\"/>",
        "<order/>",
        "[3]",
        "[1",
        "$5",
        "5 €",
        "<b>",
        "\u{1}",
    ] {
        assert!(!accepts(&compiler, &allowed, eos, text), "{text}");
    }
}

/// No directive that the grammar allows is longer than the parser reads.
#[test]
fn long_names_fit_into_tags() {
    let (tokenizer, eos) = vocabulary(&[]);
    let compiler = Compiler::new(&tokenizer, &[eos]).expect("a compiler");
    for length in [1, 40, 90, 128] {
        let ids: Vec<String> = ["a", "b", "c", "d"].map(|id| id.repeat(length)).to_vec();
        let attributes: Vec<String> = ["p", "q"].map(|name| name.repeat(length)).to_vec();
        let allowed = Allowed { products: &ids, attributes: &attributes, citations: &[] };
        let mut longest = 0;
        for count in 1..=8 {
            for (name, attrs) in [("list", 0), ("compare", 0), ("compare", 8)] {
                let list: Vec<&str> = ids.iter().cycle().take(count).map(String::as_str).collect();
                let by: Vec<&str> = attributes.iter().cycle().take(attrs).map(String::as_str).collect();
                let by = if by.is_empty() { String::new() } else { format!(" attrs=\"{}\"", by.join(",")) };
                let tag = format!("<{name} ids=\"{}\"{by}/>", list.join(","));
                if accepts(&compiler, &allowed, eos, &tag) {
                    longest = longest.max(tag.len());
                    assert!(tag.len() <= crate::assistant::directive::LONGEST_TAG, "{tag}");
                }
            }
        }
        assert!(longest > length, "{length}");
    }
}

/// What a grammar costs on a real vocabulary, with as many products and passages as a question brings.
#[test]
fn sets_are_cheap_on_a_real_vocabulary() {
    let Some(path) = std::env::var_os("MILLRACE_TEST_MODEL") else {
        #[allow(clippy::print_stderr, reason = "a test that skips says so")]
        {
            eprintln!("skipped: MILLRACE_TEST_MODEL does not name the SmolLM2 file");
        }
        return;
    };
    let checkpoint = Checkpoint::open(std::path::Path::new(&path)).expect("the model opens");
    let tokenizer = Tokenizer::from_gguf(checkpoint.gguf().expect("a GGUF file")).expect("its tokenizer");
    let compiler = Compiler::new(&tokenizer, &[2]).expect("a compiler");
    let ids: Vec<String> = (0..16).map(|i| format!("SKU-{:05}", i * 977)).collect();
    let attributes: Vec<String> = (0..40).map(|i| format!("attribute {i}")).collect();
    let citations: Vec<u32> = (1..=8).collect();
    let allowed = Allowed { products: &ids, attributes: &attributes, citations: &citations };
    // The first one also makes the vocabulary's tables.
    compiler.compile_own(&grammar(&Allowed::default())).expect("it compiles");
    let begun = Instant::now();
    let mut constraint = compiler.compile_own(&grammar(&allowed)).expect("it compiles");
    let compiled = begun.elapsed();
    let answer = "No, this pan is not dishwasher safe: the seasoning comes off, so wash it by hand and dry it [3]. \
                  It weighs 1.4 kg and works on induction [1]. <card product=\"SKU-00977\"/> Other customers liked how \
                  quickly it heats up, and say that it gets better with use [5].";
    let tokens = tokenizer.encode(answer, false).expect("tokens");
    let (mut set, mut times) = (Vec::new(), Vec::new());
    for &token in &tokens {
        let before = Instant::now();
        constraint.allowed(&mut set).expect("a set");
        assert!(set[token as usize / 32] >> (token % 32) & 1 == 1, "{:?}", tokenizer.token(token));
        constraint.accept(token).expect("allowed");
        times.push(before.elapsed());
    }
    times.sort_unstable();
    let mean = times.iter().sum::<Duration>() / times.len() as u32;
    let (median, most) = (times[times.len() / 2], times[times.len() - 1]);
    println!(
        "compiled in {compiled:?}; {} tokens: median {median:?}, mean {mean:?}, most {most:?}",
        times.len()
    );
    // Generous, for an unoptimised build on a busy machine.
    assert!(median < Duration::from_millis(1), "{median:?}");
}
