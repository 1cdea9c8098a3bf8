//! What the shopping assistant may write, made anew for each request from what was retrieved for it.
//!
//! Prose is free. `<` begins a directive and `[` a citation, always; both name only what was retrieved, so no other
//! product or source can come out of the model, however sure it is of one. Signs of currencies are no part of prose:
//! prices come from the store's systems. Prose is one lexeme without a memory, so that the set of allowed tokens is the
//! same from one token to the next and costs nothing; amounts in words are left to
//! [`Amounts`](crate::assistant::amounts::Amounts).
//!
//! ```text
//! <card product="ID"/>    <card product="ID" layout="compact"/>    <reviews product="ID"/>    <link product="ID"/>
//! <list ids="ID,…"/>    <compare ids="ID,ID,…"/>    <compare ids="ID,ID" attrs="NAME,…"/>
//! [1]
//! ```

use super::{Grammar, quote};
use crate::assistant::amounts::CURRENCY_SIGNS;
use crate::assistant::directive::LONGEST_TAG;

/// What an answer may name.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Allowed<'a> {
    /// Product ids. One that cannot stand between quotes is left out.
    pub(crate) products: &'a [String],
    /// Names of attributes that products can be compared by; left out like ids.
    pub(crate) attributes: &'a [String],
    /// Numbers of the passages that may be cited.
    pub(crate) citations: &'a [u32],
}

/// Products that may be compared, the first ones: the grammar grows with the square of their number.
const MOST_COMPARED: usize = 32;
/// Attributes that may be compared by, the first ones.
const MOST_ATTRIBUTES: usize = 64;
/// Bytes of what stands around the names in the longest directive.
const AROUND: usize = 64;

/// Layouts that a card may be given.
const LAYOUTS: [&str; 4] = ["compact", "full", "carousel", "table"];

/// The grammar of an answer.
pub(crate) fn grammar(allowed: &Allowed<'_>) -> Grammar {
    let products = names(allowed.products, char::is_whitespace);
    let mut attributes = names(allowed.attributes, |_| false);
    attributes.truncate(MOST_ATTRIBUTES);
    let mut parts = Vec::new();
    let mut rules = format!("PROSE: /[^<\\[{CURRENCY_SIGNS}\\x00-\\x08\\x0B-\\x1F\\x7F]+/\n");
    if !products.is_empty() {
        parts.extend(["card", "list"]);
        let layouts = LAYOUTS.map(quote).join(" | ");
        let listed = fitting(&products, LONGEST_TAG - AROUND).min(8);
        rules += &format!("ID: {}\nLAYOUT: {layouts}\n", literals(&products));
        rules += "layout: \" layout=\\\"\" LAYOUT \"\\\"\"\n";
        rules += "card: (\"<card product=\\\"\" ID \"\\\"\" layout? | (\"<reviews\" | \"<link\") \" product=\\\"\" ID \"\\\"\") \"/>\"\n";
        let others = more("ID", listed - 1);
        rules += &format!("list: \"<list ids=\\\"\" ID{others} \"\\\"\" layout? \"/>\"\n");
    }
    let compared = &products[..products.len().min(MOST_COMPARED)];
    // Half a tag for the products, half for what they are compared by.
    let columns = fitting(compared, LONGEST_TAG / 2 - AROUND).min(4);
    if compared.len() > 1 && columns > 1 {
        parts.push("compare");
        // At least two different ones.
        let pair = |first: &&str| {
            let others: Vec<&str> = compared.iter().copied().filter(|id| id != first).collect();
            format!("{} \",\" ({})", quote(first), literals(&others))
        };
        let pairs: Vec<String> = compared.iter().map(pair).collect();
        rules += &format!("pair: {}\n", pairs.join(" | "));
        rules += &format!("compare: \"<compare ids=\\\"\" pair{} \"\\\"\"", more("ID", columns - 2));
        let by = fitting(&attributes, LONGEST_TAG / 2).min(8);
        if by > 0 {
            let others = more("ATTRIBUTE", by - 1);
            rules += &format!(" (\" attrs=\\\"\" ATTRIBUTE{others} \"\\\"\")?");
        }
        rules += " \"/>\"\n";
        if by > 0 {
            rules += &format!("ATTRIBUTE: {}\n", literals(&attributes));
        }
    }
    if !allowed.citations.is_empty() {
        parts.push("CITATION");
        let numbers: Vec<String> = allowed.citations.iter().map(|n| quote(&format!("[{n}]"))).collect();
        rules += &format!("CITATION: {}\n", numbers.join(" | "));
    }
    let others = parts.join(" | ");
    let start = match others.is_empty() {
        true => "start: PROSE?\n".to_owned(),
        false => format!("start: PROSE? (other PROSE?)*\nother: {others}\n"),
    };
    Grammar::Lark(start + &rules)
}

/// Names that can stand between quotes in a comma-separated list, in order, each once.
fn names(list: &[String], refused: impl Fn(char) -> bool) -> Vec<&str> {
    let stands = |name: &&str| {
        let plain = |c: char| !c.is_control() && !refused(c) && !matches!(c, '"' | ',' | '<' | '>');
        (1..=128).contains(&name.len()) && name.trim() == *name && name.chars().all(plain)
    };
    let mut names: Vec<&str> = list.iter().map(String::as_str).filter(stands).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn literals(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| quote(name)).collect();
    quoted.join(" | ")
}

/// Up to so many more of an item behind the first, with commas between.
fn more(item: &str, most: usize) -> String {
    if most == 0 { String::new() } else { format!(" (\",\" {item}){{0,{most}}}") }
}

/// How many of these fit into so many bytes with commas between, whichever they are.
fn fitting(names: &[&str], bytes: usize) -> usize {
    names.iter().map(|name| name.len()).max().map_or(0, |longest| bytes / (longest + 1))
}

#[cfg(test)]
mod tests;
