//! What tells of a passage whether it answers a question, beside being found: the numbers that [`super::rank`] weighs.
//!
//! Nearness in meaning and shared words say what a passage is about. Whether it *answers* shows in other things: who
//! says it, whether it begins with a yes or a no, names a number with a unit, tells of own experience, doubts, only
//! praises, or asks itself. Most of these count for one kind of question and not for another, so a question is first
//! taken for a closed one (yes or no), for one after a measure, or for neither.

use crate::assistant::source::{Passage, Source};

/// A passage with what searching it gave.
pub(crate) struct Found<'a> {
    pub(crate) passage: &'a Passage,
    /// BM25F of the question's words, as a share of the best among those ranked together; 0 to 1.
    pub(crate) words: f32,
    /// Cosine of the question and the passage.
    pub(crate) meaning: f32,
    /// Cosine of the question and the passage without its title: of a Q&A, the answer alone.
    pub(crate) answer: f32,
}

/// The names of the signals, in their order.
pub const NAMES: [&str; 26] = [
    "meaning",
    "answer_meaning",
    "review_meaning",
    "qa_meaning",
    "words",
    "length",
    "answer_length",
    "review",
    "qa",
    "attribute",
    "attribute_closed",
    "verdict",
    "verdict_closed",
    "negation",
    "negation_closed",
    "experience",
    "experience_closed",
    "doubt",
    "doubt_closed",
    "praise",
    "praise_closed",
    "number",
    "number_closed",
    "number_measure",
    "unit_measure",
    "asks",
];

/// A number for each of [`NAMES`].
pub type Signals = [f32; NAMES.len()];

/// What kind of question is asked; at most one of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    /// Yes or no would answer it, as a verb before its subject shows; "how do I" has one too.
    closed: bool,
    /// A number would: a size, a weight, a count.
    measure: bool,
}

impl Asked {
    pub(crate) fn of(question: &str) -> Asked {
        const VERBS: [&str; 15] = [
            "is", "are", "was", "were", "does", "do", "did", "can", "could", "will", "would", "has", "have",
            "should", "am",
        ];
        const SUBJECTS: [&str; 9] = ["it", "this", "that", "these", "those", "they", "the", "you", "i"];
        /// After "how" only: alone they are about other things too.
        const HOW: [&str; 8] = ["many", "much", "long", "old", "big", "high", "far", "large"];
        const MEASURES: [&str; 27] = [
            "wide",
            "tall",
            "deep",
            "thick",
            "heavy",
            "often",
            "size",
            "sizes",
            "dimension",
            "dimensions",
            "diameter",
            "length",
            "width",
            "height",
            "weight",
            "weigh",
            "inches",
            "ounces",
            "oz",
            "cm",
            "mm",
            "year",
            "voltage",
            "volts",
            "watt",
            "watts",
            "capacity",
        ];
        let words = words(question);
        let pair = |first: &dyn Fn(&str) -> bool, second: &dyn Fn(&str) -> bool| {
            words.windows(2).any(|pair| first(&pair[0]) && second(&pair[1]))
        };
        let measure = words.iter().any(|word| MEASURES.contains(&word.as_str()))
            || pair(&|word| word == "how", &|word| HOW.contains(&word));
        let verb = |word: &str| VERBS.contains(&word);
        let closed =
            words.first().is_some_and(|word| verb(word)) || pair(&verb, &|word| SUBJECTS.contains(&word));
        Asked { closed: closed && !measure, measure }
    }
}

/// The signals of a passage for a question.
pub(crate) fn signals(asked: Asked, found: &Found<'_>) -> Signals {
    const VERDICT: [&str; 7] = ["yes", "yep", "yeah", "yup", "no", "nope", "not"];
    const NEGATION: [&str; 10] =
        ["not", "no", "never", "without", "cannot", "cant", "dont", "doesnt", "none", "nor"];
    const EXPERIENCE: [&str; 11] = ["i", "my", "we", "me", "our", "us", "mine", "i'm", "i've", "i'd", "i'll"];
    const DOUBT: [&str; 10] =
        ["sure", "maybe", "probably", "think", "believe", "idea", "guess", "know", "might", "unsure"];
    const PRAISE: [&str; 16] = [
        "love",
        "loves",
        "loved",
        "great",
        "good",
        "happy",
        "excellent",
        "recommend",
        "perfect",
        "perfectly",
        "pleased",
        "disappointed",
        "amazing",
        "awesome",
        "nice",
        "best",
    ];
    let Found { passage, .. } = found;
    let said = words(&passage.text);
    let any = |list: &[&str]| flag(said.iter().any(|word| list.contains(&word.as_str())));
    let (review, qa) = (passage.source == Source::Review, passage.source == Source::Qa);
    let (closed, measure) = (flag(asked.closed), flag(asked.measure));
    let whole =
        said.len() + passage.title.as_deref().filter(|_| has_title(passage)).map_or(0, |t| words(t).len());
    let attribute = flag(!review && !qa && names_a_value(&passage.text));
    let verdict = flag(said.first().is_some_and(|word| VERDICT.contains(&word.as_str())));
    let negation = any(&NEGATION).max(flag(said.iter().any(|word| word.ends_with("n't"))));
    let (experience, doubt, praise) = (any(&EXPERIENCE), any(&DOUBT), any(&PRAISE));
    let number = flag(passage.text.contains(|c: char| c.is_ascii_digit()));
    let log = |count: usize| (1.0 + count as f32).ln();
    [
        found.meaning,
        found.answer,
        found.meaning * flag(review),
        found.meaning * flag(qa),
        found.words,
        log(whole),
        log(said.len()),
        flag(review),
        flag(qa),
        attribute,
        attribute * closed,
        verdict,
        verdict * closed,
        negation,
        negation * closed,
        experience,
        experience * closed,
        doubt,
        doubt * closed,
        praise,
        praise * closed,
        number,
        number * closed,
        number * measure,
        flag(has_unit(&passage.text, &said)) * measure,
        flag(passage.text.contains('?')),
    ]
}

fn flag(holds: bool) -> f32 {
    f32::from(u8::from(holds))
}

/// Whether a title says more than the text: an attribute's name is in its text.
fn has_title(passage: &Passage) -> bool {
    passage.source != Source::Attribute
}

/// Words in lower case, with the apostrophes in them.
fn words(text: &str) -> Vec<String> {
    let text = text.replace('\u{2019}', "'").to_lowercase();
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '\'').map(|word| word.trim_matches('\''));
    words.filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

/// Whether a text has the form of technical data: `item weight: 2 pounds`.
fn names_a_value(text: &str) -> bool {
    const LONGEST: usize = 40;
    text.char_indices().nth(LONGEST + 1).map_or(text, |(end, _)| &text[..end]).split_once(':').is_some_and(
        |(name, value)| {
            name.len() > 1
                && value.starts_with(char::is_whitespace)
                && name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == ' ')
        },
    )
}

/// Whether a number comes with a unit: `28 cm`, `5lbs`, `12"`.
fn has_unit(text: &str, words: &[String]) -> bool {
    const UNITS: [&str; 36] = [
        "in", "inch", "inches", "cm", "mm", "m", "ft", "foot", "feet", "oz", "ounce", "ounces", "lb", "lbs",
        "pound", "pounds", "kg", "g", "gallon", "gallons", "quart", "quarts", "cup", "cups", "w", "watt",
        "watts", "v", "volt", "volts", "mah", "hours", "years", "months", "days", "minutes",
    ];
    let unit = |word: &str| UNITS.contains(&word);
    let digit = |c: char| c.is_ascii_digit();
    let follows = words.iter().enumerate().any(|(i, word)| {
        let rest = word.trim_start_matches(digit);
        let next = words.get(i + 1).map_or("", String::as_str);
        rest.len() < word.len() && (unit(rest) || rest.is_empty() && (unit(next) || next == "x"))
    });
    follows || text.split('"').any(|before| before.len() < text.len() && before.ends_with(digit))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn passage(source: Source, title: Option<&str>, text: &str) -> Passage {
        Passage {
            id: "x".into(),
            product: None,
            source,
            text: text.into(),
            title: title.map(str::to_owned),
            rating: None,
            helpful: None,
            date: None,
        }
    }

    fn of(question: &str, passage: &Passage) -> impl Fn(&str) -> f32 {
        let found = Found { passage, words: 0.5, meaning: 0.25, answer: 0.125 };
        let signals = signals(Asked::of(question), &found);
        move |name| signals[NAMES.iter().position(|other| *other == name).unwrap()]
    }

    #[test]
    fn questions_are_told_apart() {
        for (question, closed, measure) in [
            ("Is it dishwasher-safe?", true, false),
            ("my pan is old, can I use it on induction?", true, false),
            ("How wide is it?", false, true),
            ("what are the dimensions", false, true),
            ("How long is the cord?", false, true),
            ("How to clean a long cord?", false, false),
            ("How do I clean a long cord?", true, false),
            ("What colour", false, false),
            ("", false, false),
        ] {
            assert_eq!(Asked::of(question), Asked { closed, measure }, "{question}");
        }
    }

    #[test]
    fn signals_are_what_their_names_say() {
        let answer =
            passage(Source::Qa, Some("how wide is it?"), "Yes, I don\u{2019}t doubt it is 12\" wide.");
        let closed = of("Does it fit a door?", &answer);
        for name in ["qa", "verdict", "verdict_closed", "negation_closed", "experience", "number_closed"] {
            assert_eq!(closed(name), 1.0, "{name}");
        }
        for name in ["review", "attribute", "doubt", "praise", "number_measure", "unit_measure", "asks"] {
            assert_eq!(closed(name), 0.0, "{name}");
        }
        assert_eq!(
            (closed("qa_meaning"), closed("review_meaning"), closed("answer_meaning")),
            (0.25, 0.0, 0.125)
        );
        assert!(closed("length") > closed("answer_length"));
        assert_eq!(of("How wide is it?", &answer)("unit_measure"), 1.0);

        let review = passage(Source::Review, None, "Works great, but will it last 3 winters?");
        let open = of("what colour", &review);
        assert_eq!((open("review"), open("praise"), open("asks"), open("number")), (1.0, 1.0, 1.0, 1.0));
        assert_eq!((open("praise_closed"), open("length") - open("answer_length")), (0.0, 0.0));
    }

    #[test]
    fn technical_data_and_units_have_their_forms() {
        for (text, named) in [
            ("item weight: 2 pounds", true),
            ("item_weight:  { value:2 }", true),
            ("https://example.com", false),
            ("It is, as they say: good", false),
            (": 3", false),
            ("", false),
            (&format!("{}: 3", "a".repeat(41)), false),
        ] {
            assert_eq!(names_a_value(text), named, "{text}");
        }
        for (text, unit) in
            [("28 cm", true), ("5lbs", true), ("12\" wide", true), ("3 x 4", true), ("7.5 inches", true)]
                .into_iter()
                .chain([("28 pieces", false), ("cm", false), ("say \"so\"", false), ("ends in 12", false)])
        {
            assert_eq!(has_unit(text, &words(text)), unit, "{text}");
        }
    }

    proptest! {
        /// Whatever a text holds, its signals are finite and small.
        #[test]
        fn signals_are_bounded(text in "\\PC{0,80}", title in prop::option::of("\\PC{0,20}"), question in "\\PC{0,40}") {
            for source in Source::ALL {
                let passage = passage(source, title.as_deref(), &text);
                let found = Found { passage: &passage, words: 1.0, meaning: 1.0, answer: 1.0 };
                for signal in signals(Asked::of(&question), &found) {
                    prop_assert!((0.0..=6.0).contains(&signal), "{signal}");
                }
            }
        }
    }
}
