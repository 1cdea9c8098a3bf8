use std::path::Path;

use super::*;

const PASSAGES: [&str; 4] = [
    "It weighs 1.40 kg and holds 28 cm of pan. Made of carbon steel.",
    "No, wash it by hand with warm water.",
    "The black handle stays cool. Five years of guarantee.",
    "Yes, dishwasher-safe in the upper rack.",
];

fn judged(text: &str) -> Sentences {
    let quote = |number: u32| PASSAGES.get(number as usize - 1).map(|text| (*text).to_owned());
    // However the text is cut, the same is found.
    let mut whole = Grounding::new(quote, ["Kestrel 30 skillet"]);
    whole.push(text);
    let mut pieces = Grounding::new(quote, ["Kestrel 30 skillet"]);
    text.chars().for_each(|c| pieces.push(&c.to_string()));
    let counts = whole.finish();
    assert_eq!(counts, pieces.finish(), "{text}");
    counts
}

#[test]
fn sentences_are_held_against_what_they_cite() {
    for (text, total, cited, supported) in [
        ("", 0, 0, 0),
        ("[1]", 0, 0, 0),
        ("It is made of carbon steel [1].", 1, 1, 1),
        ("It is made of carbon steel.[1]", 1, 1, 1),
        ("It is made of carbon steel. [1] It is nice.", 2, 1, 1),
        // A full stop in a number ends nothing.
        ("It weighs 1.4 kg [1].", 1, 1, 1),
        ("It weighs 1.5 kg [1].", 1, 1, 0),
        ("It weighs 1,4 kg [1]. The handle is black [3].", 2, 2, 2),
        ("The handle is red [3].", 1, 1, 0),
        ("The guarantee is 5 years [3]!\nIt is made of steel [1]", 2, 2, 2),
        ("The guarantee is six years [3].", 1, 1, 0),
        // About something else.
        ("The guarantee covers the handle [1].", 1, 1, 0),
        ("The guarantee covers the handle [1][3].", 1, 1, 1),
        // The product's own name has a number.
        ("The Kestrel 30 skillet is made of carbon steel [1].", 1, 1, 1),
        ("The Kestrel 31 skillet is made of carbon steel [1].", 1, 1, 0),
        ("Yes, wash it by hand [2].", 1, 1, 0),
        ("No, wash it by hand [2].", 1, 1, 1),
        ("No, wash it by hand [2][4].", 1, 1, 1),
        // A citation of nothing supports nothing but what needs no support.
        ("It is made of steel [9].", 1, 1, 0),
        ("- carbon steel [1]\n- cool handle [3]\n", 2, 2, 2),
    ] {
        assert_eq!(judged(text), Sentences { total, cited, supported }, "{text}");
    }
}

#[test]
fn numbers_are_read_as_people_write_them() {
    for (text, value) in [
        ("1,000", "1000"),
        ("1,000.50", "1000.5"),
        ("1.50", "1.5"),
        ("2,5", "2.5"),
        ("007", "7"),
        ("0", "0"),
        ("3.", "3"),
    ] {
        assert_eq!(number(text), value, "{text}");
    }
}

/// hetPQA's answers, each written by people from one passage, are found to stand in it, and not in another one.
#[test]
#[allow(clippy::print_stderr, clippy::print_stdout)]
fn answers_are_told_from_those_of_other_passages() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let file = "shared/data/contextual-product-qa/hetPQA/answer_generation/dev.csv";
    let Some(text) = root.map(|dir| dir.join(file)).find_map(|file| std::fs::read_to_string(file).ok())
    else {
        eprintln!("skipped: no ../{file}");
        return;
    };
    let rows: Vec<Vec<&str>> = text.lines().skip(1).map(|line| line.split('\t').collect()).collect();
    let rows: Vec<&Vec<&str>> = rows.iter().filter(|row| row.len() == 5).collect();
    assert!(rows.len() > 300);
    let stemmer = Stemmer::create(Algorithm::English);
    let stands = |answer: &str, passage: &str| {
        Claims::of(answer, &stemmer).stand_in(&[Claims::of(passage, &stemmer)], &Claims::default())
    };
    let share = |distance: usize| {
        let other = |at: usize| rows[(at + distance) % rows.len()][2];
        let found = rows.iter().enumerate().filter(|(at, row)| stands(row[3], other(*at))).count();
        found as f64 / rows.len() as f64
    };
    let (own, other) = (share(0), share(101));
    println!(
        "grounding: of {} answers {own:.3} stand in their passage, {other:.3} in another one",
        rows.len()
    );
    assert!(own > 0.85 && other < 0.08, "{own} and {other}");
}
