//! Grammars through the engine's own path from a mask to a token, with logits that want the wrong thing.

mod schemas;

use std::sync::Arc;
use std::time::{Duration, Instant};

use millrace_engine::{Constraint, Sampler, SamplerState, SamplingParams};
use millrace_models::text::Tokenizer;
use serde_json::{Value, json};

use super::{Compiler, Grammar, GrammarError};

/// Each byte is a token, and so are `extra`; the last one ends a sequence.
pub(crate) fn vocabulary(extra: &[&str]) -> (Tokenizer, u32) {
    let spelling = |byte: u8| {
        let printable = |b: u8| matches!(b, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
        if printable(byte) {
            return char::from(byte);
        }
        let index = (0..byte).filter(|b| !printable(*b)).count() as u32;
        char::from_u32(0x100 + index).expect("below the surrogates")
    };
    let spelled = |text: &str| text.bytes().map(spelling).collect::<String>();
    let mut vocab: serde_json::Map<String, Value> =
        (0..=255u8).map(|byte| (spelling(byte).to_string(), byte.into())).collect();
    for (text, id) in extra.iter().zip(256..) {
        vocab.insert(spelled(text), id.into());
    }
    let eos = vocab.len() as u32;
    let level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let file = json!({
        "version": "1.0", "normalizer": null, "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "added_tokens": [{ "id": eos, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
                           "normalized": false, "special": true }],
        "model": { "type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": false, "fuse_unk": false },
    });
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).expect("a file");
    (Tokenizer::from_directory(dir.path()).expect("a tokenizer"), eos)
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(future)
}

/// A small random generator whose seed a failure prints.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn logit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 24) as f32 * 8.0
    }
}

pub(super) struct Generated {
    pub(super) text: String,
    pub(super) complete: bool,
}

/// Samples at a high temperature. `bias` is added to the logits of tokens.
pub(super) fn generate(
    tokenizer: &Tokenizer,
    eos: u32,
    mut constraint: Box<dyn Constraint>,
    bias: &[(u32, f32)],
    max: usize,
    seed: u64,
) -> Generated {
    let mut random = Random(seed);
    let params = SamplingParams { temperature: 1.5, ..SamplingParams::default() };
    let mut state = SamplerState::new(Arc::new(params), seed, 0, Arc::new([]));
    let mut sampler = Sampler::new(tokenizer.vocab_size());
    let mut ids = Vec::new();
    let mut complete = false;
    while ids.len() < max && !complete {
        constraint.allowed(state.allowed()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let mut logits: Vec<f32> = (0..tokenizer.vocab_size()).map(|_| random.logit()).collect();
        bias.iter().for_each(|(token, bias)| logits[*token as usize] += bias);
        let (token, _) =
            sampler.sample(&mut logits, &state).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        state.accept(token);
        if token == eos {
            complete = true;
        } else {
            ids.push(token);
            complete = constraint.accept(token).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
    }
    Generated { text: tokenizer.decode(&ids, true), complete }
}

#[test]
fn documents_satisfy_their_schemas() {
    let (tokenizer, eos) =
        vocabulary(&["\":", "\"}", "{\"", "\", \"", "true", "null", "123", "]}", "\\u00e9", "  "]);
    let compiler = Compiler::new(&tokenizer, &[eos]).expect("a compiler");
    let schemas = [
        json!({ "type": "object", "properties": { "name": { "type": "string", "maxLength": 8 }, "age": { "type": "integer", "minimum": 0, "maximum": 130 } }, "required": ["name", "age"], "additionalProperties": false }),
        json!({ "type": "array", "items": { "enum": ["red", "green", 1, null, true] }, "minItems": 2, "maxItems": 4 }),
        json!({ "anyOf": [{ "type": "boolean" }, { "type": "number", "exclusiveMinimum": 1.5, "maximum": 2.75 }] }),
        json!({ "type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$" }),
        json!({ "type": "string", "format": "date" }),
        json!({ "const": { "a": [1, "ü", { "b": null }] } }),
        json!({ "type": "object", "properties": { "next": { "$ref": "#" }, "v": { "type": "integer", "minimum": 0, "maximum": 9 } }, "required": ["v"], "additionalProperties": false }),
        json!({ "$defs": { "p": { "type": "object", "properties": { "x": { "type": "integer" }, "y": { "type": "integer" } }, "required": ["x", "y"], "additionalProperties": false } }, "type": "object", "properties": { "from": { "$ref": "#/$defs/p" }, "to": { "$ref": "#/$defs/p" } }, "required": ["from", "to"], "additionalProperties": false }),
        json!({ "type": "array", "prefixItems": [{ "type": "string", "maxLength": 3 }, { "type": "null" }], "items": false, "minItems": 2 }),
        json!({ "type": ["integer", "null"], "multipleOf": 5, "minimum": -20, "maximum": 20 }),
        json!({ "type": "object", "additionalProperties": { "type": "integer", "minimum": 0, "maximum": 3 }, "maxProperties": 2 }),
        json!({ "type": "string", "minLength": 2, "maxLength": 5 }),
        json!({ "type": "object" }),
        json!({}),
    ];
    for schema in &schemas {
        let validator = jsonschema::validator_for(schema).expect("a valid schema");
        let grammar = Grammar::schema(schema.clone(), false).expect("a grammar");
        let mut complete = 0;
        for seed in 0..60 {
            let constraint = block_on(compiler.compile(grammar.clone(), tokio::time::Instant::now()))
                .expect("it compiles");
            let found =
                generate(&tokenizer, eos, constraint, &[(u32::from(b'"'), 4.0), (eos, 8.0)], 200, seed);
            if found.complete {
                complete += 1;
                // JSON bounds no number's exponent; readers do.
                let value: Value = match serde_json::from_str(&found.text) {
                    Err(error) if error.to_string().starts_with("number out of range") => continue,
                    value => {
                        value.unwrap_or_else(|error| panic!("{schema}, seed {seed}: {error}: {}", found.text))
                    }
                };
                assert!(validator.is_valid(&value), "{schema}, seed {seed}: {value}");
            }
        }
        assert!(complete >= 20, "{schema}: only {complete} came to an end");
    }
}

#[test]
fn choices_and_patterns_are_matched_as_a_whole() {
    let (tokenizer, eos) = vocabulary(&[]);
    let compiler = Compiler::new(&tokenizer, &[eos]).expect("a compiler");
    let texts = ["yes", "yes, please", "no \"thanks\"", "a/b\\c", "grüß\n"].map(String::from);
    for seed in 0..100 {
        let choice = block_on(compiler.compile(Grammar::choice(&texts), tokio::time::Instant::now()))
            .expect("it compiles");
        let found = generate(&tokenizer, eos, choice, &[], 64, seed);
        assert!(found.complete && texts.contains(&found.text), "seed {seed}: {:?}", found.text);
        let pattern = block_on(
            compiler.compile(Grammar::regex(r"[0-9]{3}-[a-f/]{2,4}(x|yz)"), tokio::time::Instant::now()),
        )
        .expect("it compiles");
        let found = generate(&tokenizer, eos, pattern, &[], 64, seed);
        let (digits, rest) = found.text.split_once('-').expect("a hyphen");
        let letters = rest.trim_end_matches(['x', 'y', 'z']);
        assert!(found.complete && digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit()));
        assert!(
            (2..=4).contains(&letters.len()) && letters.bytes().all(|b| b"abcdef/".contains(&b)),
            "{rest}"
        );
        assert!(matches!(&rest[letters.len()..], "x" | "yz"), "seed {seed}: {rest}");
    }
}

/// Within half a second: an answer or a refusal, and afterwards a compiler that works.
#[test]
fn hostile_grammars_are_refused_in_time() {
    let (tokenizer, eos) = vocabulary(&[]);
    let compiler = Compiler::new(&tokenizer, &[eos]).expect("a compiler");
    let nested = |depth: usize, leaf: Value| {
        (0..depth).fold(leaf, |inner, _| json!({ "type": "array", "items": inner }))
    };
    let branches = |n: usize| -> Vec<Value> {
        (0..n).map(|i| json!({ "properties": { (format!("p{i}")): { "type": "string", "pattern": format!("^(a|b{i})*$") } }, "required": [format!("p{i}")] })).collect()
    };
    let product: Vec<Value> = (0..20).map(|_| json!({ "anyOf": branches(8) })).collect();
    let wide: serde_json::Map<String, Value> = (0..4000)
        .map(|i| {
            (format!("property{i}"), json!({ "type": "string", "pattern": format!("^x{i}[a-z]{{1,50}}$") }))
        })
        .collect();
    let chain: serde_json::Map<String, Value> =
        (0..3000).map(|i| (format!("d{i}"), json!({ "anyOf": [{ "$ref": format!("#/$defs/d{}", i + 1) }, { "$ref": format!("#/$defs/d{}", i + 1) }] }))).collect();
    let rules: String = (0..4000).map(|i| format!("A{i}: A{} A{}\n", i + 1, i + 1)).collect();
    let schema = |value: &Value| Grammar::schema(value.clone(), false).expect("an object");
    let cases = [
        ("deep", schema(&nested(100, json!({ "type": "integer" })))),
        ("product of alternatives", schema(&json!({ "allOf": product }))),
        ("wide", schema(&json!({ "type": "object", "properties": wide }))),
        ("chain", schema(&json!({ "$defs": chain, "$ref": "#/$defs/d0" }))),
        ("reference to itself", schema(&json!({ "$ref": "#" }))),
        ("remote", schema(&json!({ "$ref": "http://127.0.0.1:9/x" }))),
        (
            "many items",
            schema(&json!({ "type": "array", "items": { "type": "string" }, "minItems": 1_000_000_000u64 })),
        ),
        ("long strings", schema(&json!({ "type": "string", "minLength": 2_000_000_000u64 }))),
        ("large numbers", schema(&json!({ "type": "integer", "multipleOf": 999_999_937, "minimum": 5 }))),
        ("repeated pattern", Grammar::regex("((a{1,1000}){1,1000}){1,1000}")),
        ("ambiguous pattern", Grammar::regex("(a|aa|aaa)*(b|bb)*((a|b)*c){1,200}.{1000}")),
        ("not a pattern", Grammar::regex("(((")),
        ("nested pattern", Grammar::regex(&("(".repeat(50_000) + "a" + &")".repeat(50_000)))),
        (
            "nested rule",
            Grammar::Lark("start: ".to_owned() + &"(".repeat(50_000) + "\"a\"" + &")".repeat(50_000)),
        ),
        ("open rule", Grammar::Lark("start: ".to_owned() + &"(".repeat(100_000))),
        ("doubling terminals", Grammar::Lark(format!("start: A0\n{rules}A4000: \"a\""))),
        ("left recursion", Grammar::Lark("start: start start | \"a\" | ".to_owned())),
        ("no start", Grammar::Lark("root ::= \"a\"".to_owned())),
        ("empty", Grammar::Lark(String::new())),
        ("no text", Grammar::Lark("start: /a/ & /b/".to_owned())),
        ("too long", Grammar::Lark("x".repeat(1 << 20))),
    ];
    for (name, grammar) in cases {
        let started = Instant::now();
        let answer = block_on(async {
            let mut constraint = compiler.compile(grammar, tokio::time::Instant::now()).await?;
            // What compiles must also be usable, or fail as cheaply.
            let (mut allowed, mut slowest) = (Vec::new(), Duration::ZERO);
            for _ in 0..50 {
                let before = Instant::now();
                let Ok(()) = constraint.allowed(&mut allowed) else { break };
                let Some(word) = allowed.iter().position(|word| *word != 0) else { break };
                let token = word as u32 * 32 + allowed[word].trailing_zeros();
                if token == eos || !matches!(constraint.accept(token), Ok(false)) {
                    break;
                }
                slowest = slowest.max(before.elapsed());
            }
            Ok::<_, GrammarError>(slowest)
        });
        let took = started.elapsed();
        println!("{name}: {answer:?} after {took:?}");
        // The deadline is 400 ms; the rest is for a machine that is busy with other tests, in a build without optimisation.
        assert!(took < Duration::from_secs(5), "{name}: {took:?}");
        if let Ok(slowest) = answer {
            assert!(slowest < Duration::from_secs(2), "{name}: a token took {slowest:?}");
        }
    }
    // What ran into its deadline ends some time, by its fuel.
    let deadline = Instant::now() + Duration::from_secs(120);
    while let Err(error) = block_on(compiler.compile(Grammar::regex("a+"), tokio::time::Instant::now())) {
        assert!(error == GrammarError::Busy && Instant::now() < deadline, "{error}");
    }
}

/// Several hostile grammars at once are refused in time, and what others ask for meanwhile is compiled.
#[test]
fn hostile_grammars_do_not_starve_others() {
    let (tokenizer, eos) = vocabulary(&["x"]);
    let compiler = Compiler::new(&tokenizer, &[eos]).expect("a compiler");
    let hostile = |seed: usize| {
        let rules: String = (0..4000).map(|i| format!("A{i}: A{} A{}\n", i + 1, i + 1)).collect();
        Grammar::Lark(format!("start: A0\n{rules}A4000: \"{seed}\""))
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let started = Instant::now();
        let attacks: Vec<_> = (0..6)
            .map(|seed| {
                let compiler = compiler.clone();
                tokio::spawn(async move {
                    (
                        compiler.compile(hostile(seed), tokio::time::Instant::now()).await.map(drop),
                        started.elapsed(),
                    )
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(50)).await;
        // A deadline that passes on a busy machine is no starvation: it is tried again, while they still run.
        let mut tries = 0;
        while let Err(error) =
            compiler.compile(Grammar::choice(&["yes".to_owned()]), tokio::time::Instant::now()).await
        {
            tries += 1;
            assert!(tries < 8, "{error}");
        }
        for attack in attacks {
            let (result, took) = attack.await.expect("no panic");
            assert!(
                matches!(result, Err(GrammarError::Invalid(_) | GrammarError::Deadline(_))),
                "{result:?}"
            );
            assert!(took < Duration::from_secs(5), "{took:?}");
            println!("hostile: {result:?} after {took:?}");
        }
    });
}

#[test]
fn the_cache_is_bounded_and_its_grammars_start_afresh() {
    let (tokenizer, eos) = vocabulary(&[]);
    let compiler = Compiler::new(&tokenizer, &[eos]).expect("a compiler");
    for number in 0..900 {
        // On a busy machine even this may miss the deadline.
        while let Err(error) =
            block_on(compiler.compile(Grammar::choice(&[format!("{number}")]), tokio::time::Instant::now()))
        {
            assert!(matches!(error, GrammarError::Deadline(_)), "{error}");
        }
        let (entries, bytes) = compiler.cached();
        assert!(entries > 0 && bytes <= super::cache::Cache::LIMIT);
    }
    assert!(compiler.cached().0 < 900);
    let mut first =
        block_on(compiler.compile(Grammar::choice(&["ab".to_owned()]), tokio::time::Instant::now()))
            .expect("it compiles");
    let (mut before, mut after) = (Vec::new(), Vec::new());
    first.allowed(&mut before).expect("a set");
    first.accept(u32::from(b'a')).expect("allowed");
    let mut second =
        block_on(compiler.compile(Grammar::choice(&["ab".to_owned()]), tokio::time::Instant::now()))
            .expect("it compiles");
    second.allowed(&mut after).expect("a set");
    assert_eq!(before, after);
    // A fork goes on from where it was made, and apart from then on.
    let mut fork = first.fork();
    assert_eq!((first.accept(u32::from(b'b')), fork.accept(u32::from(b'b'))), (Ok(true), Ok(true)));
}
