//! JSON Lines as `millrace index` takes them: one record a line, a bad one reported with its line and left out.
//! `docs/catalog.md` has the schema.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::clean::{clean, redact};
use crate::assistant::source::{Media, Passage, Price, PriceRange, Product, Rating, Source};

/// Bytes of the longest line.
const MAX_LINE: usize = 4 << 20;
/// Characters of the longest id.
const MAX_ID: usize = 256;

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Products.
    Catalog,
    /// Reviews by customers.
    Reviews,
    /// Questions with answers.
    Qa,
    /// Policies of the shop.
    Policies,
}

/// A line that was understood.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// A product, new or changed.
    Product(Box<Product>),
    /// A review, an answer or a policy, new or changed.
    Passage(Passage),
    /// A product that is gone, and with it all that was said of it.
    DeleteProduct(String),
    /// A passage that is gone.
    DeletePassage(String),
}

/// A line that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// The file.
    pub file: PathBuf,
    /// Counted from 1.
    pub line: u64,
    /// What is wrong with it.
    pub why: String,
}

impl std::fmt::Display for BadLine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.file.display(), self.line, self.why)
    }
}

/// Reads a file line by line. `each` gets every record, or the reason why a line is none.
///
/// # Errors
/// Where the file cannot be read.
pub fn read(
    path: &Path,
    kind: Kind,
    each: &mut dyn FnMut(Result<Record, BadLine>, u64),
) -> std::io::Result<()> {
    let mut reader = BufReader::new(File::open(path)?);
    let (mut line, mut bytes, mut number) = (Vec::new(), 0u64, 0);
    loop {
        line.clear();
        let read = reader.by_ref().take(MAX_LINE as u64 + 1).read_until(b'\n', &mut line)?;
        if read == 0 {
            return Ok(());
        }
        bytes += read as u64;
        number += 1;
        let mut bad = None;
        if read > MAX_LINE && !line.ends_with(b"\n") {
            bad = Some(format!("it is longer than {MAX_LINE} bytes"));
            bytes += skip_line(&mut reader)?;
        }
        let text = line.trim_ascii();
        if text.is_empty() {
            continue;
        }
        let result = match bad {
            Some(why) => Err(why),
            None => parse(text, kind),
        };
        each(result.map_err(|why| BadLine { file: path.into(), line: number, why }), bytes);
    }
}

fn skip_line(reader: &mut impl BufRead) -> std::io::Result<u64> {
    let mut skipped = 0;
    loop {
        let buffer = reader.fill_buf()?;
        let end = buffer.iter().position(|byte| *byte == b'\n');
        let count = end.map_or(buffer.len(), |end| end + 1);
        reader.consume(count);
        skipped += count as u64;
        if end.is_some() || count == 0 {
            return Ok(skipped);
        }
    }
}

/// Reads one line.
///
/// # Errors
/// What is wrong with it, naming the field.
pub fn parse(line: &[u8], kind: Kind) -> Result<Record, String> {
    let value: Value = serde_json::from_slice(line).map_err(|error| format!("no JSON: {error}"))?;
    let Value::Object(map) = value else { return Err("no JSON object".into()) };
    let fields = Fields(map);
    let id = fields.id("id")?.ok_or("id: missing")?;
    let deleted = fields.0.get("deleted") == Some(&Value::Bool(true));
    match kind {
        Kind::Catalog if deleted => Ok(Record::DeleteProduct(id)),
        Kind::Catalog => fields.product(id).map(|product| Record::Product(Box::new(product))),
        _ => {
            let (source, name) = match kind {
                Kind::Reviews => (Source::Review, "review"),
                Kind::Qa => (Source::Qa, "qa"),
                _ => (Source::Policy, "policy"),
            };
            let id = format!("{name}/{id}");
            if deleted {
                return Ok(Record::DeletePassage(id));
            }
            fields.passage(id, source).map(Record::Passage)
        }
    }
}

struct Fields(Map<String, Value>);

impl Fields {
    /// The first of some names that is there and not null.
    fn any(&self, names: &[&'static str]) -> Option<(&'static str, &Value)> {
        names.iter().find_map(|name| Some((*name, self.0.get(*name).filter(|value| !value.is_null())?)))
    }

    fn id(&self, name: &'static str) -> Result<Option<String>, String> {
        let Some((_, value)) = self.any(&[name]) else { return Ok(None) };
        let id = match value {
            Value::String(id) => id.clone(),
            Value::Number(id) if id.is_u64() => id.to_string(),
            _ => return Err(format!("{name}: a string belongs here")),
        };
        // Ids stand in directives, addresses and grammars.
        let fits = (1..=MAX_ID).contains(&id.len())
            && id
                .chars()
                .all(|c| c.is_ascii_graphic() && !matches!(c, '"' | '<' | '>' | '&' | ',' | '\'' | '\\'));
        match fits {
            true => Ok(Some(id)),
            false => Err(format!(
                "{name}: an id has 1 to {MAX_ID} printable ASCII characters other than space, comma, quotes, \\, <, > and &"
            )),
        }
    }

    /// Cleaned text, where there is any. An object may have it under one of `within`.
    fn text(&self, names: &[&'static str], within: &[&str]) -> Result<Option<String>, String> {
        let Some((name, value)) = self.any(names) else { return Ok(None) };
        let text = match value {
            Value::String(text) => Some(text.as_str()),
            Value::Object(map) => within.iter().find_map(|key| map.get(*key)?.as_str()),
            _ => None,
        };
        let text = text.ok_or_else(|| format!("{name}: a text belongs here"))?;
        Ok(Some(clean(text)).filter(|text| !text.is_empty()))
    }

    fn required(&self, names: &[&'static str]) -> Result<String, String> {
        self.text(names, &[])?.ok_or_else(|| format!("{}: missing or empty", names[0]))
    }

    fn texts(&self, names: &[&'static str]) -> Result<Vec<String>, String> {
        let Some((name, value)) = self.any(names) else { return Ok(Vec::new()) };
        let bad = || format!("{name}: a list of texts belongs here");
        let mut texts = Vec::new();
        for item in value.as_array().ok_or_else(bad)? {
            let text = item.as_str().or_else(|| item.get("value")?.as_str()).ok_or_else(bad)?;
            texts.push(clean(text));
        }
        texts.retain(|text| !text.is_empty());
        Ok(texts)
    }

    fn number(&self, names: &[&'static str], within: &str) -> Result<Option<f64>, String> {
        let Some((name, value)) = self.any(names) else { return Ok(None) };
        let number = value.as_f64().or_else(|| value.get(within)?.as_f64());
        number.map(Some).ok_or_else(|| format!("{name}: a number belongs here"))
    }

    fn product(&self, id: String) -> Result<Product, String> {
        Ok(Product {
            title: self.required(&["title", "name"])?,
            brand: self.text(&["brand"], &["name"])?,
            description: self.text(&["description"], &["plain", "html", "markdown"])?,
            bullets: self.texts(&["bullets", "features"])?,
            categories: self.texts(&["categories"])?,
            attributes: self.attributes()?,
            url: self.link()?,
            media: self.typed::<Vec<Media>>("media")?.unwrap_or_default(),
            price_range: self.price_range()?,
            rating: self.rating()?,
            id,
        })
    }

    fn attributes(&self) -> Result<BTreeMap<String, String>, String> {
        let Some((_, value)) = self.any(&["attributes"]) else { return Ok(BTreeMap::new()) };
        let map = value.as_object().ok_or("attributes: an object belongs here")?;
        let mut attributes = BTreeMap::new();
        for (name, value) in map {
            let value = match value {
                Value::Null => continue,
                Value::String(text) => clean(text),
                Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
                Value::Number(number) => number.to_string(),
                _ => return Err(format!("attributes.{name}: a text, a number or a boolean belongs here")),
            };
            let name = clean(name);
            if !name.is_empty() && !value.is_empty() {
                attributes.insert(name, value);
            }
        }
        Ok(attributes)
    }

    /// A page of the shop: a path, or an address that a browser opens without running anything.
    fn link(&self) -> Result<Option<String>, String> {
        let Some((_, value)) = self.any(&["url"]) else { return Ok(None) };
        let url = value.as_str().ok_or("url: a text belongs here")?;
        let known = url.starts_with("https://")
            || url.starts_with("http://")
            || (url.starts_with('/') && !url.starts_with("//"));
        match known && !url.contains(|c: char| c.is_whitespace() || c.is_control()) {
            true => Ok(Some(url.to_owned())),
            false => Err("url: it begins with neither https://, http:// nor /".into()),
        }
    }

    fn typed<T: serde::de::DeserializeOwned>(&self, name: &'static str) -> Result<Option<T>, String> {
        let Some((_, value)) = self.any(&[name]) else { return Ok(None) };
        serde_json::from_value(value.clone()).map(Some).map_err(|error| format!("{name}: {error}"))
    }

    fn price_range(&self) -> Result<Option<PriceRange>, String> {
        let range: Option<PriceRange> = match self.typed("price_range")? {
            Some(range) => Some(range),
            None => self.typed::<Price>("price")?.map(|price| PriceRange { min: price.clone(), max: price }),
        };
        match &range {
            Some(range)
                if range.min.currency != range.max.currency || range.min.amount > range.max.amount =>
            {
                Err("price_range: min and max are of one currency, and min is the lower".into())
            }
            _ => Ok(range),
        }
    }

    fn rating(&self) -> Result<Option<Rating>, String> {
        let rating = self.typed::<Rating>("rating")?;
        match &rating {
            Some(rating) if !(rating.scale_max > 0.0 && (0.0..=rating.scale_max).contains(&rating.value)) => {
                Err("rating: value lies between 0 and scale_max".into())
            }
            _ => Ok(rating),
        }
    }

    fn passage(&self, id: String, source: Source) -> Result<Passage, String> {
        let product = self.id("product")?;
        if product.is_none() && source != Source::Policy {
            return Err("product: missing".into());
        }
        let (title, text) = match source {
            Source::Qa => (Some(self.required(&["question"])?), self.required(&["answer", "text"])?),
            _ => (self.text(&["title", "name"], &[])?, self.required(&["text", "reviewBody"])?),
        };
        let rating = self.number(&["rating", "reviewRating"], "ratingValue")?.map(|stars| stars as f32);
        if rating.is_some_and(|stars| !(1.0..=5.0).contains(&stars)) {
            return Err("rating: stars lie between 1 and 5".into());
        }
        let helpful = self.number(&["helpful", "upvoteCount"], "value")?;
        let stranger = |text: String| if source == Source::Policy { text } else { redact(&text) };
        Ok(Passage {
            id,
            product,
            source,
            text: stranger(text),
            title: title.map(stranger),
            rating,
            helpful: helpful.map(|count| count.clamp(0.0, f64::from(u32::MAX)) as u32),
            date: self.text(&["date", "datePublished"], &[])?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_in_ucp_words_and_in_plain_ones() {
        let line = br#"{"id":"p1","title":"<b>Iron pan</b>","brand":{"name":"Ferro"},"description":{"plain":"A pan."},
            "categories":[{"value":"Kitchen"},"Pans"],"attributes":{"diameter":28,"oven_safe":true,"none":null},
            "price":{"amount":4995,"currency":"EUR"},"url":"/p/p1","features":["Lasts"],"unknown":1}"#;
        let Ok(Record::Product(product)) = parse(line, Kind::Catalog) else { panic!("a product") };
        assert_eq!((product.title.as_str(), product.brand.as_deref()), ("Iron pan", Some("Ferro")));
        assert_eq!(product.categories, ["Kitchen", "Pans"]);
        assert_eq!(product.attributes["oven_safe"], "yes");
        assert_eq!(product.price_range.unwrap().max.amount, 4995);
    }

    #[test]
    fn bad_lines_name_their_field() {
        for (kind, line, named) in [
            (Kind::Catalog, "{", "JSON"),
            (Kind::Catalog, "[]", "object"),
            (Kind::Catalog, r#"{"title":"x"}"#, "id"),
            (Kind::Catalog, r#"{"id":"a b","title":"x"}"#, "id"),
            (Kind::Catalog, r#"{"id":"a\"/>","title":"x"}"#, "id"),
            (Kind::Catalog, r#"{"id":"a"}"#, "title"),
            (Kind::Catalog, r#"{"id":"a","title":"<p></p>"}"#, "title"),
            (Kind::Catalog, r#"{"id":"a","title":"x","url":"javascript:alert(1)"}"#, "url"),
            (Kind::Catalog, r#"{"id":"a","title":"x","price":{"amount":-1,"currency":"EUR"}}"#, "price"),
            (Kind::Catalog, r#"{"id":"a","title":"x","attributes":{"k":[1]}}"#, "attributes.k"),
            (
                Kind::Catalog,
                r#"{"id":"a","title":"x","rating":{"value":9,"scale_max":5,"count":1}}"#,
                "rating",
            ),
            (Kind::Reviews, r#"{"id":"r","text":"x"}"#, "product"),
            (Kind::Reviews, r#"{"id":"r","product":"a","text":"x","rating":7}"#, "rating"),
            (Kind::Qa, r#"{"id":"q","product":"a","answer":"x"}"#, "question"),
            (Kind::Policies, r#"{"id":"q","title":"x"}"#, "text"),
        ] {
            let error = parse(line.as_bytes(), kind).unwrap_err();
            assert!(error.contains(named), "{line}: {error}");
        }
    }

    #[test]
    fn what_strangers_write_is_redacted() {
        let line = br#"{"id":"r","product":"a","text":"mail me: a@b.example","title":"+1 555 123 4567"}"#;
        let Ok(Record::Passage(passage)) = parse(line, Kind::Reviews) else { panic!("a review") };
        assert_eq!((passage.text.as_str(), passage.title.as_deref()), ("mail me: [e-mail]", Some("[phone]")));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_record_or_an_error(line: Vec<u8>) {
            for kind in [Kind::Catalog, Kind::Reviews, Kind::Qa, Kind::Policies] {
                let _ = parse(&line, kind);
            }
        }
    }
}
