//! Which texts of a product or a passage are searched by their words, and what each counts: the same for every
//! implementation of [`Retrieve`](crate::assistant::Retrieve).

use crate::assistant::source::{Passage, Product};

/// Weights of a product's fields: title, brand, description with selling points, categories, attributes.
pub(crate) const PRODUCT: [f32; 5] = [2.0, 1.0, 1.0, 1.0, 0.3];
/// Weights of a passage's fields: its title (a question, a headline), its text, the product's title.
pub(crate) const PASSAGE: [f32; 3] = [1.0, 1.0, 0.3];

/// The fields of a product.
pub(crate) fn of_product(product: &Product) -> [String; PRODUCT.len()] {
    let prose: Vec<&str> = product.description.iter().chain(&product.bullets).map(String::as_str).collect();
    let attributes: Vec<&str> = product.attributes.values().map(String::as_str).collect();
    [
        product.title.clone(),
        product.brand.clone().unwrap_or_default(),
        prose.join(" "),
        product.categories.join(" "),
        attributes.join(" "),
    ]
}

/// The fields of a passage about a product of that title.
pub(crate) fn of_passage<'a>(passage: &'a Passage, product: &'a str) -> [&'a str; PASSAGE.len()] {
    [passage.title.as_deref().unwrap_or_default(), &passage.text, product]
}
