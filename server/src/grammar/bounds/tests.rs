use super::*;
use serde_json::json;

#[test]
fn ordinary_schemas_pass() {
    let person = json!({ "type": "object", "description": "…", "properties": {
        "name": { "type": "string", "pattern": "^[A-Z]" }, "price": { "type": "number", "multipleOf": 0.01 },
        "dozens": { "type": "integer", "multipleOf": 12_000 },
        "next": { "anyOf": [{ "$ref": "#/$defs/person" }, { "type": "null" }] } } });
    for document in [
        json!({ "$defs": { "person": person }, "type": "array", "items": { "$ref": "#/$defs/person" } }),
        json!({ "$defs": { "person": person }, "allOf": [{ "$ref": "#/$defs/person", "description": "…" }] }),
        json!({ "$defs": { "person": { "type": "object", "properties": { "a": { "enum": [1, 2, 3] } } } },
                "allOf": [{ "$ref": "#/$defs/person" }, { "properties": { "b": { "$ref": "#" } } }] }),
        json!({ "type": "string", "enum": (0..1000).map(|n| n.to_string()).collect::<Vec<_>>() }),
        json!({ "properties": { "allOf": { "type": "string" }, "multipleOf": { "type": "number" }, "$ref": {} } }),
    ] {
        assert_eq!(schema(&document), Ok(()), "{document}");
    }
}

#[test]
fn what_multiplies_is_refused() {
    let pairs =
        |n: usize| (0..n).map(|i| json!({ "anyOf": [{ "required": [i.to_string()] }, { "type": "null" }] }));
    let doubling = |depth: usize, name: &dyn Fn(usize) -> String| {
        let level = |i: usize| {
            (format!("d{i}"), json!({ "allOf": [{ "$ref": name(i + 1) }, { "$ref": name(i + 1) }] }))
        };
        let defs: Map<String, Value> = (0..depth).map(level).collect();
        json!({ "$defs": defs, "$ref": name(0) })
    };
    let plain = |i: usize| format!("#/$defs/d{i}");
    // Through properties that both sides have.
    let inner = |i: usize| json!({ "properties": { "a": { "$ref": plain(i + 1) } } });
    let through: Map<String, Value> =
        (0..40).map(|i| (format!("d{i}"), json!({ "allOf": [inner(i), inner(i)] }))).collect();
    let divisors = |a: f64, b: f64| json!({ "allOf": [{ "multipleOf": a }, { "multipleOf": b }] });
    for document in [
        json!({ "allOf": pairs(16).collect::<Vec<_>>() }),
        doubling(40, &plain),
        doubling(40, &|i| format!("#/%24defs/d{i}")),
        doubling(3000, &plain),
        json!({ "$defs": through, "$ref": "#/$defs/d0" }),
        json!({ "multipleOf": 999_999_937 }),
        json!({ "multipleOf": 1e300 }),
        divisors(65_537.0, 65_539.0),
        divisors(211.0, 1009.0),
        divisors(0.001, 1000.0),
        json!({ "required": (0..2000).map(|n| n.to_string()).collect::<Vec<_>>() }),
        json!({ "enum": (0..30_000).collect::<Vec<_>>() }),
    ] {
        let text: String = document.to_string().chars().take(200).collect();
        assert!(
            matches!(schema(&document), Err(GrammarError::Invalid(why)) if why.starts_with("too complex")),
            "{text}"
        );
    }
    assert_eq!(schema(&json!({ "allOf": pairs(6).collect::<Vec<_>>() })), Ok(()));
    assert_eq!(schema(&divisors(12.0, 18.0)), Ok(()));
}

#[test]
fn terminals_are_counted_as_they_are_written_out() {
    let rules = |from: &str, count: usize| -> String {
        (0..count).map(|i| format!("{from}{i}: {from}{} {from}{}\n", i + 1, i + 1)).collect()
    };
    let ends = |from: &str, count: usize| format!("{from}{count}: \"a\"\n");
    for (grammar, passes) in [
        (rules("A", 40) + &ends("A", 40), false),
        (rules("A", 12) + &ends("A", 12), true),
        (rules("_A", 40) + &ends("_A", 40), false),
        (rules("a", 40) + &ends("a", 40), true),
        // In literals and comments names are text.
        (
            "start: \"A0 A0\" /A0 \\/ A0/ // A0\n".to_owned() + &"# A0: A0 A0\n".repeat(40) + "A0: \"x\"\n",
            true,
        ),
        // Attributes stand between a name and its colon, and alternatives on lines of their own.
        (rules("A", 40).replace(':', "[lazy]:").replace(" A", "\n  | A") + &ends("A", 40), false),
        ("start: %json {\"multipleOf\": 99999999} \"x\"".to_owned(), false),
        (
            "start: a b\na: %json {\"type\": \"string\"}\nb: %json {\"multipleOf\": 99999999}".to_owned(),
            false,
        ),
    ] {
        let text: String = grammar.chars().take(60).collect();
        assert_eq!(lark(&format!("start: A0\n{grammar}")).is_ok(), passes, "{text}");
    }
}
