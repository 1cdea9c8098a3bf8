//! What a product's own data says, as passages that can be quoted.

use crate::assistant::source::{Passage, Product, Source};

/// Words of a passage cut out of a description.
const WORDS: usize = 100;

/// The passages that a product's record gives: its attributes, its selling points, its description in pieces.
pub(crate) fn of_product(product: &Product) -> Vec<Passage> {
    let passage = |source: Source, which: String, title: Option<String>, text: String| Passage {
        id: format!("{}/{}/{which}", source.name(), product.id),
        product: Some(product.id.clone()),
        source,
        text,
        title,
        rating: None,
        helpful: None,
        date: None,
    };
    let attributes = product.attributes.iter().map(|(name, value)| {
        let words = name.replace('_', " ");
        passage(Source::Attribute, name.clone(), Some(words.clone()), format!("{words}: {value}"))
    });
    let bullets = product
        .bullets
        .iter()
        .enumerate()
        .map(|(i, text)| passage(Source::Bullet, i.to_string(), None, text.clone()));
    let pieces = pieces(product.description.as_deref().unwrap_or_default());
    let description = pieces
        .into_iter()
        .enumerate()
        .map(|(i, text)| passage(Source::Description, i.to_string(), None, text));
    attributes.chain(bullets).chain(description).collect()
}

/// What stands for a product as a whole where meanings are compared.
pub(crate) fn product_text(product: &Product) -> String {
    let mut text = product.title.clone();
    for part in [product.brand.as_deref(), product.description.as_deref()].into_iter().flatten() {
        text.push_str(". ");
        text.push_str(part);
    }
    text
}

/// What stands for a passage where meanings are compared.
pub(crate) fn embedded_text(passage: &Passage) -> String {
    match &passage.title {
        Some(title) if passage.source != Source::Attribute => format!("{title} {}", passage.text),
        _ => passage.text.clone(),
    }
}

/// What a Q&A answers, without the question: whether an answer fits another question shows better alone.
pub(crate) fn answer_text(passage: &Passage) -> Option<&str> {
    (passage.source == Source::Qa && passage.title.is_some()).then_some(passage.text.as_str())
}

/// A text in pieces of at most about [`WORDS`] words, cut between sentences where there are any.
fn pieces(text: &str) -> Vec<String> {
    let mut pieces = Vec::new();
    let (mut piece, mut words) = (String::new(), 0);
    for sentence in text.split_inclusive(['.', '!', '?', ';']) {
        let count = sentence.split_whitespace().count();
        if words > 0 && words + count > WORDS {
            pieces.push(std::mem::take(&mut piece));
            words = 0;
        }
        for word in sentence.split_inclusive(' ') {
            if words == WORDS {
                pieces.push(std::mem::take(&mut piece));
                words = 0;
            }
            piece.push_str(word);
            words += usize::from(!word.trim().is_empty());
        }
    }
    pieces.push(piece);
    pieces.iter().map(|piece| piece.trim().to_owned()).filter(|piece| !piece.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_hold_all_words_and_no_more_than_they_may() {
        let long = "word ".repeat(250);
        for text in ["", "One. Two! Three?", long.as_str(), &format!("{} End. {long}", "a b c. ".repeat(60))]
        {
            let cut = pieces(text);
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            assert_eq!(words(&cut.join(" ")), words(text));
            assert!(cut.iter().all(|piece| (1..=WORDS).contains(&words(piece).len())), "{cut:?}");
        }
        assert_eq!(pieces("One. Two.").len(), 1);
    }
}
