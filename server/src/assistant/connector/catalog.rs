//! The shop's own index as a source of cards: what a product is, and what its reviews say, counted.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::assistant::hydrate::{Connector, FetchError, Found, Lookup};
use crate::assistant::source::{Passage, Retrieve, Source};

/// Products as the catalog describes them. Prices are left out: the catalog's were true when it was indexed.
pub(crate) struct CatalogConnector(pub(crate) Arc<dyn Retrieve>);

impl Connector for CatalogConnector {
    fn lookup(&self, lookup: Lookup) -> Pin<Box<dyn Future<Output = Found> + Send + '_>> {
        Box::pin(async move {
            let products = self.0.products(lookup.keys).await.map_err(|_| FetchError::Failed)?;
            let entry = |product: Arc<crate::assistant::Product>| {
                let mut value = serde_json::to_value(&*product).map_err(|_| FetchError::Invalid)?;
                if let Some(fields) = value.as_object_mut() {
                    fields.remove("price_range");
                }
                Ok((product.id.clone(), value))
            };
            products.into_iter().map(entry).collect()
        })
    }
}

/// What the reviews of a product say.
pub(crate) struct ReviewConnector(pub(crate) Arc<dyn Retrieve>);

impl Connector for ReviewConnector {
    fn lookup(&self, lookup: Lookup) -> Pin<Box<dyn Future<Output = Found> + Send + '_>> {
        Box::pin(async move {
            let mut found = std::collections::HashMap::new();
            for id in lookup.keys {
                let reviews = self.0.passages(id.clone(), vec![Source::Review]).await;
                let reviews = reviews.map_err(|_| FetchError::Failed)?;
                if !reviews.is_empty() {
                    found.insert(id, summary(&reviews));
                }
            }
            Ok(found)
        })
    }
}

/// Aspects that shoppers ask about, and the words by which a review is taken to speak of one.
const ASPECTS: [(&str, &[&str]); 8] = [
    ("quality", &["quality", "well made", "cheaply made", "solid", "flimsy", "material"]),
    ("durability", &["durable", "durability", "lasted", "broke", "broken", "wear", "sturdy"]),
    ("size and fit", &["size", "fit", "fits", "small", "large", "tight", "loose"]),
    ("comfort", &["comfort", "comfortable", "uncomfortable", "soft", "warm", "cold"]),
    ("ease of use", &["easy", "easily", "difficult", "hard to", "instructions", "assembly"]),
    ("cleaning", &["clean", "cleaning", "wash", "washed", "dishwasher", "stain", "rust"]),
    ("value", &["value", "worth", "money", "overpriced", "bargain"]),
    ("look", &["color", "colour", "beautiful", "looks", "design", "ugly", "style"]),
];

/// Counts over reviews. A review of four stars and more speaks well of the aspects it mentions, one of two and less
/// badly; quotes are the most helpful of either.
pub(crate) fn summary(reviews: &[Arc<Passage>]) -> Value {
    let mut histogram = [0u32; 5];
    let (mut sum, mut rated) = (0.0f64, 0u32);
    for stars in reviews.iter().filter_map(|review| review.rating) {
        let stars = stars.clamp(1.0, 5.0);
        histogram[(stars.round() as usize).clamp(1, 5) - 1] += 1;
        (sum, rated) = (sum + f64::from(stars), rated + 1);
    }
    let mut aspects = Vec::new();
    for (name, words) in ASPECTS {
        let mut sides: BTreeMap<bool, Vec<&Arc<Passage>>> = BTreeMap::new();
        for review in reviews.iter().filter(|review| mentions(&review.text, words)) {
            match review.rating {
                Some(stars) if stars >= 4.0 => sides.entry(true).or_default().push(review),
                Some(stars) if stars <= 2.0 => sides.entry(false).or_default().push(review),
                _ => {}
            }
        }
        let count = |positive| sides.get(&positive).map_or(0, Vec::len);
        if count(true) + count(false) < 2 {
            continue;
        }
        let best = |reviews: &Vec<&Arc<Passage>>| {
            let best =
                reviews.iter().max_by_key(|r| (r.helpful.unwrap_or(0), std::cmp::Reverse(r.id.clone())));
            best.map(|review| json!({ "docId": review.id, "rating": review.rating, "text": excerpt(&review.text) }))
        };
        let quotes: Vec<Value> = sides.values().rev().filter_map(best).collect();
        aspects.push(
            json!({ "name": name, "positive": count(true), "negative": count(false), "quotes": quotes }),
        );
    }
    let mentioned = |aspect: &Value| {
        let count = |name: &str| aspect[name].as_u64().unwrap_or(0);
        std::cmp::Reverse(count("positive") + count("negative"))
    };
    aspects.sort_by_key(mentioned);
    aspects.truncate(5);
    let rating = (rated > 0).then(|| (sum / f64::from(rated) * 10.0).round() / 10.0);
    json!({ "rating": rating, "count": reviews.len(), "histogram": histogram, "aspects": aspects })
}

fn mentions(text: &str, words: &[&str]) -> bool {
    let lower = text.to_lowercase();
    let whole = |at: usize, word: &str| {
        let before = lower[..at].chars().next_back();
        let after = lower[at + word.len()..].chars().next();
        !before.is_some_and(char::is_alphanumeric) && !after.is_some_and(char::is_alphanumeric)
    };
    words.iter().any(|word| lower.match_indices(word).any(|(at, _)| whole(at, word)))
}

/// The beginning of a text, to the end of a word.
fn excerpt(text: &str) -> String {
    const MOST: usize = 240;
    match text.char_indices().nth(MOST) {
        None => text.to_owned(),
        Some((end, _)) => {
            format!("{}…", text[..end].rsplit_once(' ').map_or(&text[..end], |(start, _)| start))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reviews_are_counted() {
        let review = |id: &str, stars: f32, helpful, text: &str| {
            Arc::new(Passage {
                id: id.into(),
                product: Some("B1".into()),
                source: Source::Review,
                text: text.into(),
                title: None,
                rating: Some(stars),
                helpful,
                date: None,
            })
        };
        let reviews = [
            review("r1", 5.0, Some(1), "Easy to clean."),
            review("r2", 4.0, Some(9), "I clean it in the dishwasher."),
            review("r3", 1.0, None, "Stain after one wash, and it broke."),
            review("r4", 3.0, None, "It cleans itself? No."),
        ];
        let summary = summary(&reviews);
        assert_eq!(summary["rating"], 3.3);
        assert_eq!(summary["histogram"], json!([1, 0, 1, 1, 1]));
        // One mention is no trend, and a word within another is no mention.
        assert_eq!(summary["aspects"].as_array().unwrap().len(), 1, "{summary}");
        let aspect = &summary["aspects"][0];
        assert_eq!(
            (&aspect["name"], &aspect["positive"], &aspect["negative"]),
            (&json!("cleaning"), &json!(2), &json!(1))
        );
        assert_eq!(aspect["quotes"][0]["docId"], "r2");
        assert_eq!(aspect["quotes"][1]["docId"], "r3");
    }
}
