//! The sample catalog in `examples/catalog`: every line is one that the index takes, and what is said of a product
//! agrees with it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use millrace_server::assistant::index::lines::{Kind, parse};
use serde_json::Value;

fn rows(name: &str) -> Vec<Value> {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/catalog").join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

fn text<'a>(row: &'a Value, name: &str) -> &'a str {
    row[name].as_str().unwrap_or_else(|| panic!("{name} of {row}"))
}

#[test]
fn the_sample_catalog_is_consistent() {
    let (products, reviews, qa) = (rows("products.jsonl"), rows("reviews.jsonl"), rows("qa.jsonl"));
    let policies = rows("policies.jsonl");
    for (kind, rows) in
        [(Kind::Catalog, &products), (Kind::Reviews, &reviews), (Kind::Qa, &qa), (Kind::Policies, &policies)]
    {
        let mut ids = BTreeSet::new();
        for row in rows {
            parse(row.to_string().as_bytes(), kind).unwrap_or_else(|error| panic!("{error}: {row}"));
            assert!(ids.insert(text(row, "id")), "twice: {row}");
            let whole = row.to_string();
            assert!(!whole.contains("  ") && !whole.contains(" .") && !whole.contains("|"), "{row}");
        }
    }
    let categories: BTreeSet<&str> =
        products.iter().map(|product| product["categories"][0].as_str().unwrap()).collect();
    assert!(products.len() >= 150 && categories.len() >= 8, "{} in {categories:?}", products.len());
    assert!(reviews.len() >= 3 * products.len() && policies.len() >= 3);
    let titles: BTreeSet<&str> = products.iter().map(|product| text(product, "title")).collect();
    assert_eq!(titles.len(), products.len());

    let mut stars: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let known: BTreeSet<&str> = products.iter().map(|product| text(product, "id")).collect();
    for row in reviews.iter().chain(&qa) {
        assert!(known.contains(text(row, "product")), "{row}");
        if let Some(rating) = row["rating"].as_f64() {
            stars.entry(text(row, "product")).or_default().push(rating);
        }
    }
    for product in &products {
        let id = text(product, "id");
        let price = &product["price_range"]["min"];
        assert!(price["amount"].as_u64().is_some_and(|amount| amount >= 100), "{id}: {price}");
        assert_eq!(price["currency"], "EUR");
        let (given, rating) = (&stars[id], &product["rating"]);
        assert_eq!(rating["count"].as_u64(), Some(given.len() as u64), "{id}");
        let average = given.iter().sum::<f64>() / given.len() as f64;
        assert!((rating["value"].as_f64().unwrap() - average).abs() <= 0.051, "{id}: {rating}, {average}");
        assert!(product["attributes"].as_object().unwrap().len() >= 3, "{id}");
    }
}

/// What customers answered is what the attributes say, for the questions where that can be told.
#[test]
fn answers_agree_with_attributes() {
    let attributes: BTreeMap<String, Value> =
        rows("products.jsonl").iter().map(|p| (text(p, "id").to_owned(), p["attributes"].clone())).collect();
    let mut checked = 0;
    for row in rows("qa.jsonl") {
        let attribute = match text(&row, "question") {
            q if q.contains("dishwasher") => "dishwasher_safe",
            q if q.contains("induction hob") => "induction",
            q if q.contains("dimmed") => "dimmable",
            q if q.contains("left-handed") => "left_handed",
            q if q.contains("with a cable") => "wired",
            q if q.contains("for stereo") => "stereo_pair",
            q if q.contains("drill concrete") => "hammer",
            q if q.contains("cabin luggage") => "cabin_size",
            _ => continue,
        };
        let Some(value) = attributes[text(&row, "product")][attribute].as_str() else { continue };
        let yes = text(&row, "answer").starts_with("Yes");
        assert_eq!(yes, value == "yes", "{attribute} = {value}: {row}");
        checked += 1;
    }
    assert!(checked >= 30, "{checked}");
}
