//! What a client may send to hurt whoever compiles it. Each document is built anew, different by `salt`, so that no
//! cache of what was compiled before helps.

use serde_json::{Map, Value, json};

/// A document, and whether it must be refused: the others may be served, within the same time.
pub(crate) struct Hostile {
    pub(crate) name: &'static str,
    /// The fields of the request that carry it.
    pub(crate) fields: Value,
    pub(crate) refused: bool,
}

pub(crate) fn corpus(salt: usize) -> Vec<Hostile> {
    let mut all = schemas(salt);
    all.extend(patterns(salt));
    all.extend(grammars(salt));
    all.extend(tools(salt));
    all
}

fn repeat(count: usize, item: impl Fn(usize) -> String) -> String {
    (0..count).map(item).collect()
}

fn keyed(count: usize, value: impl Fn(usize) -> (String, Value)) -> Value {
    Value::Object((0..count).map(value).collect::<Map<_, _>>())
}

fn listed(count: usize, value: impl Fn(usize) -> Value) -> Value {
    Value::Array((0..count).map(value).collect())
}

fn nested(depth: usize, leaf: Value, around: impl Fn(Value) -> Value) -> Value {
    (0..depth).fold(leaf, |inner, _| around(inner))
}

fn schemas(salt: usize) -> Vec<Hostile> {
    let integer = json!({ "type": "integer" });
    let branch = |at: usize, i: usize| json!({ "properties": { (format!("p{at}_{i}")): { "type": "string", "pattern": format!("^(a|b{i})*$") } }, "required": [format!("p{at}_{i}")] });
    let text = |pattern: &str| json!({ "type": "string", "pattern": pattern });
    // A level of definitions that names the next one twice, in so many ways.
    let doubling = |depth: usize, both: &dyn Fn(Value) -> Value| {
        let next = |i: usize| json!({ "$ref": format!("#/$defs/d{}", i + 1) });
        let mut defs = keyed(depth, |i| (format!("d{i}"), both(next(i))));
        defs[format!("d{depth}")] =
            json!({ "type": "object", "properties": { (format!("leaf{salt}")): text("^[a-z]+$") } });
        json!({ "$defs": defs, "$ref": "#/$defs/d0" })
    };
    let cases: Vec<(&str, Value, bool)> = vec![
        ("arrays 100 deep", nested(100, integer.clone(), |s| json!({ "type": "array", "items": s })), false),
        (
            "objects 60 deep",
            nested(60, integer.clone(), |s| json!({ "type": "object", "properties": { "x": s } })),
            false,
        ),
        ("alternatives 60 deep", nested(60, integer, |s| json!({ "anyOf": [s, { "type": "null" }] })), false),
        (
            "alternatives, six of six of six",
            nested(6, json!({ "const": salt }), |s| json!({ "anyOf": vec![s; 6] })),
            false,
        ),
        (
            "product of 20 times 8 alternatives",
            json!({ "allOf": listed(20, |at| json!({ "anyOf": listed(8, |i| branch(at, i)) })) }),
            true,
        ),
        (
            "product of 16 pairs",
            json!({ "allOf": listed(16, |at| json!({ "anyOf": listed(2, |i| branch(at, i)) })) }),
            true,
        ),
        (
            "product of 3 times 30 alternatives",
            json!({ "allOf": listed(3, |at| json!({ "anyOf": listed(30, |i| branch(at, i)) })) }),
            true,
        ),
        (
            "oneOf of 600 that overlap",
            json!({ "oneOf": listed(600, |i| json!({ "type": "object", "properties": { (format!("k{i}")): { "type": "integer" } } })) }),
            true,
        ),
        (
            "oneOf of 600 numbers",
            json!({ "oneOf": listed(600, |i| json!({ "type": "number", "minimum": i, "exclusiveMaximum": i + 1 })) }),
            false,
        ),
        (
            "4000 properties with patterns",
            json!({ "type": "object", "properties": keyed(4000, |i| (format!("p{i}"), text(&format!("^x{i}[a-z]{{1,50}}$")))) }),
            true,
        ),
        (
            "8000 properties",
            json!({ "type": "object", "properties": keyed(8000, |i| (format!("property{i}"), json!({ "type": "null" }))) }),
            true,
        ),
        (
            "8000 properties without a value",
            json!({ "type": "object", "required": listed(8000, |i| json!(format!("property{i}"))) }),
            true,
        ),
        ("a value of 20000", json!({ "enum": listed(20_000, |i| json!(format!("{i}{salt}"))) }), false),
        (
            "values with a long beginning",
            json!({ "enum": listed(60, |i| json!("a".repeat(4000) + &i.to_string())) }),
            false,
        ),
        ("one large value", json!({ "const": listed(10_000, |i| json!({ "a": i })) }), true),
        (
            "1000 properties of 1000 values",
            json!({ "type": "object", "properties": keyed(200, |i| (format!("p{i}"), json!({ "enum": listed(100, |v| json!(v * i)) }))) }),
            false,
        ),
        (
            "definitions as alternatives, 2^3000",
            doubling(3000, &|next| json!({ "anyOf": [next, next] })),
            false,
        ),
        ("definitions as intersections, 2^40", doubling(40, &|next| json!({ "allOf": [next, next] })), true),
        (
            "definitions as properties, 2^40",
            doubling(40, &|next| json!({ "type": "object", "properties": { "a": next, "b": next } })),
            false,
        ),
        (
            "definitions as items, 2^40",
            doubling(40, &|next| json!({ "type": "array", "prefixItems": [next, next] })),
            false,
        ),
        ("a reference to itself", json!({ "$ref": "#" }), true),
        (
            "references in a circle",
            json!({ "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } }, "$ref": "#/$defs/a" }),
            true,
        ),
        ("an intersection with itself", json!({ "allOf": [{ "$ref": "#" }, { "type": "object" }] }), true),
        ("a remote reference", json!({ "$ref": "http://127.0.0.1:9/x" }), true),
        ("a reference to nothing", json!({ "$ref": "#/$defs/none" }), true),
        (
            "a billion items",
            json!({ "type": "array", "items": { "type": "string" }, "minItems": 1_000_000_000u64 }),
            false,
        ),
        (
            "a thousand items of a thousand of a thousand",
            nested(
                4,
                json!({ "type": "null" }),
                |s| json!({ "type": "array", "items": s, "minItems": 1000, "maxItems": 1000 }),
            ),
            false,
        ),
        (
            "2000 items by place",
            json!({ "prefixItems": listed(2000, |i| json!({ "type": "string", "maxLength": i + 1 })), "items": false }),
            false,
        ),
        ("a string of two billion", json!({ "type": "string", "minLength": 2_000_000_000u64 }), false),
        (
            "a string of 10000 to a million",
            json!({ "type": "string", "minLength": 10_000 + salt, "maxLength": 1_000_000 }),
            false,
        ),
        ("a million properties", json!({ "type": "object", "minProperties": 1_000_000 + salt }), false),
        ("large bounds", json!({ "type": "integer", "minimum": 1, "maximum": 1e300 }), false),
        (
            "bounds with all digits",
            json!({ "type": "number", "minimum": 0.123_456_789_012_345_67, "maximum": 98_765.432_109_876_54 }),
            false,
        ),
        ("a large divisor", json!({ "type": "integer", "multipleOf": 999_999_937, "minimum": 5 }), true),
        (
            "a small divisor",
            json!({ "type": "number", "multipleOf": 0.000_000_7, "minimum": 0, "maximum": 1000 }),
            false,
        ),
        (
            "divisors of each other",
            json!({ "allOf": [{ "type": "integer", "multipleOf": 65_537 }, { "type": "integer", "multipleOf": 65_539 }] }),
            true,
        ),
        ("a counted pattern, to the third", text("^((a{1,1000}){1,1000}){1,1000}$"), false),
        ("a class ten thousand times", text(r"^\p{L}{1,10000}$"), false),
        (
            "fifty patterns at once",
            json!({ "allOf": listed(50, |i| text(&format!("^.*{}.*$", (b'a' + (i % 26) as u8) as char))) }),
            false,
        ),
        (
            "patterns of names that overlap",
            json!({ "type": "object", "patternProperties": keyed(200, |i| (format!("^[a-z]{{0,{i}}}x"), json!({ "type": "integer" }))) }),
            true,
        ),
        (
            "a pattern and a length",
            json!({ "type": "string", "pattern": "^(.*a){1,40}.{30}$", "maxLength": 4000 }),
            true,
        ),
        (
            "a long name",
            json!({ "type": "object", "properties": { "n(".repeat(30_000): { "type": "null" } }, "required": ["n(".repeat(30_000)] }),
            false,
        ),
        (
            "words that nobody knows",
            json!({ "type": "object", "not": { "type": "null" }, "if": {}, "dependentSchemas": {} }),
            true,
        ),
        (
            "a list of types, six deep",
            nested(
                6,
                json!({}),
                |s| json!({ "type": ["object", "array", "string", "null", "number"], "items": s, "properties": { "a": s, "b": s }, "additionalProperties": s }),
            ),
            // What refuses it is the deadline, which a fast machine keeps.
            false,
        ),
    ];
    let form = |schema: Value| json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": schema } } });
    cases
        .into_iter()
        .map(|(name, mut schema, refused)| {
            schema["$comment"] = json!(salt);
            Hostile { name, fields: form(schema), refused }
        })
        .collect()
}

fn patterns(salt: usize) -> Vec<Hostile> {
    let cases = [
        ("counted to the third", "((a{1,1000}){1,1000}){1,1000}".to_owned(), false),
        ("counted a million times", "[a-z]{1000000}".to_owned(), false),
        ("counted a hundred thousand times", "(ab?){100000}".to_owned(), false),
        ("options counted thrice", "(((a?){30}a{30}){30}a{30}){30}".to_owned(), false),
        ("ambiguous", "(a|aa|aaa)*(b|bb)*((a|b)*c){1,200}.{1000}".to_owned(), false),
        ("the 21st from the end", "(.*a){1,50}.{20}".to_owned(), false),
        ("the 31st from the end", "(a|b)*a(a|b){30}".to_owned(), false),
        ("letters of all scripts", r"(\w\p{Greek}\W){2000}".to_owned(), false),
        ("without regard to case", format!("(?i){}", "straße".repeat(5000)), false),
        ("nested plus", "((((x+)+)+)+)+y".to_owned(), false),
        ("open groups", "(((".to_owned(), true),
        ("50000 groups", "(".repeat(50_000) + "a" + &")".repeat(50_000), true),
        ("50000 alternatives", repeat(50_000, |i| format!("{i}|")) + "x", false),
        ("alternatives of anything", repeat(3000, |i| format!(".*{i}|")) + "x", false),
        ("a look ahead", "(?=a)b".to_owned(), true),
        ("a back reference", r"(a)\1".to_owned(), true),
    ];
    cases
        .into_iter()
        .map(|(name, pattern, refused)| Hostile {
            name,
            fields: json!({ "structured_outputs": { "regex": format!("(?:{pattern}){{1}}|q{salt}") } }),
            refused,
        })
        .collect()
}

fn grammars(salt: usize) -> Vec<Hostile> {
    let cases = [
        ("50000 groups in a rule", format!("start: {}\"a\"{}", "(".repeat(50_000), ")".repeat(50_000)), true),
        ("100000 open groups", "start: ".to_owned() + &"(".repeat(100_000), true),
        (
            "terminals that double 4000 times",
            format!("start: A0\n{}A4000: \"a\"", repeat(4000, |i| format!("A{i}: A{} A{}\n", i + 1, i + 1))),
            true,
        ),
        (
            "rules that double 4000 times",
            format!("start: r0\n{}r4000: \"a\"", repeat(4000, |i| format!("r{i}: r{} r{}\n", i + 1, i + 1))),
            false,
        ),
        (
            "rules that are nothing, doubled",
            format!(
                "start: r0 \"b\"\n{}r300: \"a\"?",
                repeat(300, |i| format!("r{i}: r{} r{}\n", i + 1, i + 1))
            ),
            false,
        ),
        ("recursion to the left, ambiguous", "start: start start | \"a\" | ".to_owned(), false),
        (
            "ambiguous lexemes",
            format!("start: (A | B | C)*\nA: /[a-z]{{1,{}}}/\nB: /[a-y]+/\nC: /.*/", 90 + salt % 9),
            false,
        ),
        (
            "ten thousand lexemes",
            format!(
                "start: ({}X)*\nX: \"x\"\n{}",
                repeat(10_000, |i| format!("T{i} | ")),
                repeat(10_000, |i| format!("T{i}: /t{i}[a-f]+/\n"))
            ),
            true,
        ),
        (
            "counted rules, to the third",
            "start: (((\"a\"{0,1000}){0,1000}){0,1000}){0,1000}".to_owned(),
            false,
        ),
        (
            "counted lists, to the third",
            "start: a{1000}\na: b{1000}\nb: c{1000}\nc: (\"x\" \"y\" \"z\"){1000}".to_owned(),
            false,
        ),
        ("a complement of what doubles", "start: T\nT: /[a-z]+/ & ~/(.*a.{20}b.*)/".to_owned(), false),
        (
            "fifty intersections",
            format!(
                "start: T\nT: /.*/{}",
                repeat(50, |i| format!(" & /(.*{}.{{5}}.*)/", (b'a' + (i % 26) as u8) as char))
            ),
            false,
        ),
        ("an empty intersection", "start: /a/ & /b/".to_owned(), true),
        ("no start", "root ::= \"a\"".to_owned(), true),
        ("nothing", String::new(), true),
        ("a megabyte", "x".repeat(1 << 20), true),
        (
            "a hostile schema inside",
            "start: a a\na: %json {\"type\": \"string\", \"pattern\": \"((a{1,1000}){1,1000}){1,1000}\"}"
                .to_owned(),
            false,
        ),
        (
            "a text to quote from",
            format!(
                "start: T\nT: %regex {{\"substring_chars\": \"{}\"}}",
                repeat(20_000, |i| ((b'a' + (i * i % 23) as u8) as char).to_string())
            ),
            false,
        ),
    ];
    cases
        .into_iter()
        .map(|(name, mut grammar, refused)| {
            // Behind the bound on its length even without this.
            if !grammar.is_empty() {
                grammar += &format!("\n// {salt}\n");
            }
            Hostile { name, fields: json!({ "structured_outputs": { "grammar": grammar } }), refused }
        })
        .collect()
}

fn tools(salt: usize) -> Vec<Hostile> {
    let function = |i: usize, parameters: Value| json!({ "type": "function", "function": { "name": format!("f{i}_{salt}"), "parameters": parameters } });
    let wide = keyed(60, |i| (format!("p{i}"), json!({ "type": "string", "maxLength": 1000 + i })));
    let deep = nested(90, json!({ "type": "null" }), |s| json!({ "type": "array", "items": s }));
    let cases = [
        ("128 tools", listed(128, |i| function(i, json!({ "type": "object", "properties": wide }))), false),
        (
            "a tool that goes deep",
            json!([function(0, json!({ "type": "object", "properties": { "a": deep } }))]),
            false,
        ),
        (
            "a tool with a counted pattern",
            json!([function(
                0,
                json!({ "type": "object", "properties": { "a": { "type": "string", "pattern": "((a{1,1000}){1,1000}){1,1000}" } }, "required": ["a"] })
            )]),
            false,
        ),
    ];
    let choices = [
        ("one of 100000", listed(30_000, |i| json!(format!("{i}:{salt}"))), false),
        ("a choice of one long text", json!(["x".repeat(200_000) + &salt.to_string()]), false),
        ("choices that begin alike", listed(50, |i| json!("ab".repeat(2000) + &i.to_string())), false),
    ];
    let tools = cases.into_iter().map(|(name, tools, refused)| Hostile {
        name,
        fields: json!({ "tools": tools, "tool_choice": "required" }),
        refused,
    });
    let choices = choices.into_iter().map(|(name, choice, refused)| Hostile {
        name,
        fields: json!({ "structured_outputs": { "choice": choice } }),
        refused,
    });
    tools.chain(choices).collect()
}
