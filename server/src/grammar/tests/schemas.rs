//! Documents of random schemas, sampled at a high temperature, against an independent validator.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::{Compiler, Grammar, GrammarError};
use super::{block_on, generate, vocabulary};

fn leaf() -> impl Strategy<Value = Value> {
    let bounds = |low: i32, width: i32| json!({ "type": "integer", "minimum": low, "maximum": low + width });
    prop_oneof![
        Just(json!({ "type": "null" })),
        Just(json!({ "type": "boolean" })),
        (-500..500i32, 0..2000i32).prop_map(move |(low, width)| bounds(low, width)),
        (1..40u32, 0..3u32).prop_map(|(of, digits)| {
            let divisor = f64::from(of) / 10f64.powi(digits as i32);
            json!({ "type": "integer", "multipleOf": divisor.ceil(), "minimum": 0, "maximum": 1000 })
        }),
        (-30..30i32, 1..90i32).prop_map(|(low, width)| {
            json!({ "type": "number", "exclusiveMinimum": f64::from(low) / 4.0, "maximum": f64::from(low + width) / 4.0 })
        }),
        (0..4usize, 0..6usize)
            .prop_map(|(least, more)| json!({ "type": "string", "minLength": least, "maxLength": least + more })),
        prop_oneof![Just("^[a-f]{2,4}$"), Just("^(ab|cd)*x?$"), Just("^[A-Z][a-z]*-[0-9]{1,3}$"), Just(r"^\d{4}$")]
            .prop_map(|pattern| json!({ "type": "string", "pattern": pattern })),
        prop_oneof![Just("uuid"), Just("ipv4")]
            .prop_map(|format| json!({ "type": "string", "format": format })),
        prop::collection::vec(prop_oneof![Just(json!(1)), Just(json!("ü\"\\")), Just(json!(null)), Just(json!([2.5]))], 1..4)
            .prop_map(|values| json!({ "enum": values })),
    ]
}

fn schema() -> impl Strategy<Value = Value> {
    leaf().prop_recursive(3, 12, 3, |inner| {
        let object = |list: Vec<(Value, bool)>, more: Option<Value>| {
            let name = |i: usize| ["a", "b\"", "ü", "d e"][i % 4];
            let required: Vec<&str> =
                list.iter().enumerate().filter(|(_, (_, must))| *must).map(|(i, _)| name(i)).collect();
            let properties: serde_json::Map<String, Value> =
                list.iter().enumerate().map(|(i, (schema, _))| (name(i).to_owned(), schema.clone())).collect();
            json!({ "type": "object", "properties": properties, "required": required,
                    "additionalProperties": more.unwrap_or(json!(false)) })
        };
        prop_oneof![
            (prop::collection::vec((inner.clone(), any::<bool>()), 0..4), prop::option::weighted(0.2, inner.clone()))
                .prop_map(move |(list, more)| object(list, more)),
            (inner.clone(), 0..2usize, 0..3usize).prop_map(|(items, least, more)| {
                json!({ "type": "array", "items": items, "minItems": least, "maxItems": least + more })
            }),
            prop::collection::vec(inner.clone(), 1..3)
                .prop_map(|items| json!({ "type": "array", "minItems": items.len(), "prefixItems": items, "items": false })),
            prop::collection::vec(inner.clone(), 1..3).prop_map(|options| json!({ "anyOf": options })),
            (inner.clone(), inner).prop_map(|(one, other)| {
                json!({ "type": "object", "required": ["x", "y"], "additionalProperties": false,
                        "properties": { "x": one, "y": { "anyOf": [other, { "type": "null" }] } } })
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, max_shrink_iters: 60, ..ProptestConfig::default() })]

    #[test]
    fn documents_of_random_schemas_are_valid(schema in schema(), seed: u64) {
        let (tokenizer, eos) = vocabulary(&["\":", "\"}", "{\"", "\", \"", "true", "null", "12", "]}", "\\u00fc"]);
        let compiler = Compiler::new(&tokenizer, &[eos]).expect("a compiler");
        let validator = jsonschema::options().should_validate_formats(true).build(&schema).expect("a valid schema");
        let grammar = Grammar::schema(schema.clone(), false).expect("a grammar");
        for round in 0..4 {
            let constraint = match block_on(compiler.compile(grammar.clone(), tokio::time::Instant::now())) {
                Ok(constraint) => constraint,
                // A busy machine; and divisors that no number within the bounds has.
                Err(GrammarError::Deadline(_) | GrammarError::Invalid(_)) => return Err(TestCaseError::reject("not compiled")),
                Err(error) => panic!("{schema}: {error}"),
            };
            let found = generate(&tokenizer, eos, constraint, &[(u32::from(b'"'), 4.0), (eos, 8.0)], 300, seed ^ round);
            if found.complete {
                let value: Result<Value, _> = serde_json::from_str(&found.text);
                // JSON bounds no number's exponent; readers do.
                if value.as_ref().is_err_and(|error| error.to_string().starts_with("number out of range")) {
                    continue;
                }
                let value = value.unwrap_or_else(|error| panic!("{schema}: {error}: {}", found.text));
                prop_assert!(validator.is_valid(&value), "{schema}: {value}");
            }
        }
    }
}
