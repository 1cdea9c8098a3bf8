//! A shop made up at random, and what is asked of every implementation of `Retrieve` over it.
#![allow(dead_code, reason = "each test file takes what it needs")]

use std::fmt::Write as _;
use std::sync::Arc;

use millrace_server::assistant::{Filters, Retrieve, RetrieveRequest, Source};
use millrace_server::{Embed, EmbedError};
use proptest::test_runner::{RngAlgorithm, TestRng};

/// Words as directions in small whole numbers: sums are exact in whatever order they are taken.
pub(crate) struct Words(pub(crate) &'static str);

pub(crate) const DIM: usize = 16;

impl Embed for Words {
    fn id(&self) -> &str {
        self.0
    }

    fn dim(&self) -> usize {
        DIM
    }

    fn embed(&self, texts: &[&str]) -> Result<Vec<Vec<f32>>, EmbedError> {
        let vector = |text: &&str| {
            let mut vector = vec![0.0f32; DIM];
            for word in text.to_lowercase().split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()) {
                let hash = word.bytes().fold(7usize, |hash, byte| hash.wrapping_mul(31) + usize::from(byte));
                vector[hash % DIM] += 1.0 / 64.0;
            }
            vector
        };
        Ok(texts.iter().map(vector).collect())
    }
}

pub(crate) fn encoder() -> Arc<dyn Embed> {
    Arc::new(Words("words"))
}

const VOCABULARY: [&str; 24] = [
    "wool",
    "hat",
    "warm",
    "golf",
    "glove",
    "pan",
    "iron",
    "skillet",
    "dishwasher",
    "safe",
    "cold",
    "weather",
    "steel",
    "café",
    "röster",
    "28",
    "cm",
    "induction",
    "rust",
    "ball",
    "leather",
    "light",
    "washing",
    "washed",
];

pub(crate) struct Shop(TestRng);

impl Shop {
    /// From the seed in `PROPTEST_SEED`, which is printed, else always the same.
    pub(crate) fn new() -> Shop {
        let seed =
            std::env::var("PROPTEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(20_261_123u64);
        println!("PROPTEST_SEED={seed}");
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
        Shop(TestRng::from_seed(RngAlgorithm::ChaCha, &bytes))
    }

    fn below(&mut self, end: usize) -> usize {
        use proptest::prelude::Rng as _;
        (self.0.next_u32() as usize) % end
    }

    pub(crate) fn text(&mut self, most: usize) -> String {
        let words: Vec<&str> =
            (0..=self.below(most)).map(|_| VOCABULARY[self.below(VOCABULARY.len())]).collect();
        words.join(" ")
    }

    pub(crate) fn product(&mut self, id: usize) -> String {
        let (title, brand, description) = (self.text(3), self.text(1), self.text(30));
        let (category, material, bullet) = (self.text(1), self.text(1), self.text(5));
        let price = 100 * (1 + self.below(9));
        format!(
            r#"{{"id":"p{id}","title":"{title}","brand":"{brand}","description":"{description}.","bullets":["{bullet}"],
            "categories":["Shop","{category}"],"attributes":{{"Material":"{material}","with \"quotes\" \\":"{{a,b}}"}},
            "price_range":{{"min":{{"amount":{price},"currency":"EUR"}},"max":{{"amount":{},"currency":"EUR"}}}}}}"#,
            price + 150
        )
        .replace('\n', " ")
    }

    pub(crate) fn qa(&mut self, id: usize) -> String {
        let (question, answer) = (self.text(6), self.text(9));
        format!(r#"{{"id":"q{id}","product":"p{}","question":"{question}?","answer":"{answer}"}}"#, id % 60)
    }

    pub(crate) fn review(&mut self, id: usize, products: usize) -> String {
        let (product, title, text) = (self.below(products), self.text(2), self.text(12));
        format!(r#"{{"id":"r{id}","product":"p{product}","title":"{title}","text":"{text}","rating":4}}"#)
    }
}

pub(crate) fn lines(count: usize, mut line: impl FnMut(usize) -> String) -> String {
    (0..count).fold(String::new(), |mut text, i| {
        let _ = writeln!(text, "{}", line(i));
        text
    })
}

/// What is asked of every implementation.
pub(crate) fn questions() -> Vec<RetrieveRequest> {
    let mut filters = vec![
        Filters::default(),
        Filters { products: vec!["p3".into(), "p4".into(), "none".into()], ..Filters::default() },
        Filters { categories: vec!["WOOL".into(), "hat".into()], ..Filters::default() },
        Filters { sources: vec![Source::Review, Source::Qa], ..Filters::default() },
        Filters { price_min: Some(500), ..Filters::default() },
        Filters { price_max: Some(300), sources: vec![Source::Policy, Source::Bullet], ..Filters::default() },
        Filters { attributes: [("MATERIAL".into(), "Wool".into())].into(), ..Filters::default() },
        Filters { attributes: [("with \"quotes\" \\".into(), "{a,b}".into())].into(), ..Filters::default() },
        Filters { price_max: Some(u64::MAX), ..Filters::default() },
    ];
    filters.push(Filters {
        categories: vec!["shop".into()],
        price_min: Some(200),
        price_max: Some(700),
        products: (0..30).map(|i| format!("p{i}")).collect(),
        sources: vec![Source::Description, Source::Review, Source::Policy],
        ..Filters::default()
    });
    let queries = [
        "",
        " ",
        "hat",
        "warm wool hat",
        "does the iron skillet rust in the dishwasher",
        "cafe roster",
        "nowhere",
        "' OR 1=1; --",
        "28 cm",
        "washes hats hats hats",
        "returns",
    ];
    let mut all = Vec::new();
    for query in queries {
        for filters in &filters {
            for limit in [0, 3, 12, 1000] {
                all.push(RetrieveRequest { query: query.into(), filters: filters.clone(), limit });
            }
        }
    }
    all
}

/// What an implementation answers, scores to the bit.
pub(crate) async fn answers(index: &dyn Retrieve) -> Vec<(String, Vec<(String, u32)>)> {
    let mut all = Vec::new();
    for question in questions() {
        let passages = index.retrieve(question.clone()).await.unwrap().evidence;
        let passages = passages.iter().map(|found| (found.passage.id.clone(), found.score.to_bits()));
        all.push((format!("passages: {question:?}"), passages.collect()));
        let products = index.search_products(question.clone()).await.unwrap();
        let products = products.iter().map(|(product, score)| (product.id.clone(), score.to_bits()));
        all.push((format!("products: {question:?}"), products.collect()));
    }
    all
}
