//! Chat templates against Jinja2, and their limits.

use crate::{shared, skipped};
use millrace_models::text::{ChatTemplate, RenderOptions, SpecialTokens, TemplateError, Tokenizer};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/text/data").join(name)
}

fn tokens() -> SpecialTokens {
    let token = |text: &str| Some(text.to_owned());
    SpecialTokens { bos_token: token("<s>"), eos_token: token("</s>"), ..SpecialTokens::default() }
}

#[test]
fn every_conversation_is_rendered_as_jinja2_renders_it() {
    let recorded: Value =
        serde_json::from_slice(&std::fs::read(data("template_cases.json")).unwrap()).unwrap();
    let (mut compared, mut wrong) = (0, Vec::new());
    for rendered in recorded["rendered"].as_array().unwrap() {
        let name = rendered["template"].as_str().unwrap();
        let source = std::fs::read_to_string(data("templates").join(name)).unwrap();
        let template = ChatTemplate::new(&source, tokens()).unwrap_or_else(|error| panic!("{name}: {error}"));
        for (case, expected) in
            recorded["cases"].as_array().unwrap().iter().zip(rendered["texts"].as_array().unwrap())
        {
            let options = RenderOptions {
                add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap_or(true),
                tools: case.get("tools"),
                documents: case.get("documents"),
                kwargs: case["kwargs"].as_object().cloned().unwrap_or_default(),
                ..RenderOptions::default()
            };
            let text = template.render(case["messages"].as_array().unwrap(), &options);
            compared += 1;
            if text.as_ref().ok().map(String::as_str) != expected.as_str() {
                wrong.push(format!("{name}, {case}:\n{text:?}\ninstead of\n{expected:?}"));
            }
        }
    }
    assert!(compared > 300);
    assert!(wrong.is_empty(), "{} of {compared} differ; the first:\n{}", wrong.len(), wrong[0]);
}

#[test]
fn the_recorded_texts_are_jinja2s() {
    let has_jinja2 = Command::new("python3").args(["-c", "import jinja2"]).output();
    if !has_jinja2.is_ok_and(|output| output.status.success()) {
        return skipped("python3 with jinja2 is not there, so the recorded texts are not rendered again");
    }
    let output = Command::new("python3").arg(data("template_cases.py")).arg("--check").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn render(source: &str, messages: &[Value]) -> Result<String, TemplateError> {
    ChatTemplate::new(source, tokens())?.render(messages, &RenderOptions::default())
}

#[test]
fn a_template_that_does_too_much_is_stopped_soon() {
    let long = "x".repeat(100_000);
    let bombs = [
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ messages | tojson }}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% macro f(n) %}{{ f(n + 1) ~ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{{ 'x' * 10000000000 }}",
        "{{ '%10000000000d' | format(1) }}",
        "{{ '{:>10000000000}'.format('x') }}",
        "{{ '{:>{}}'.format('x', 10000000000) }}",
        "{{ messages[0].content.replace('x', messages[0].content) }}",
        "{{ messages[0].content.replace('', messages[0].content) }}",
        "{{ messages[0].content | replace('x', messages[0].content) }}",
        "{{ messages[0].content.join(messages[0].content | list) }}",
        "{{ messages[0].content | list | join(messages[0].content) }}",
        "{{ 'x' | indent(10000000000, true) }}",
        "{{ [1] | tojson(indent=10000000000) }}",
        "{{ (messages[0].content | list) | batch(1000000000, 'x') | list }}",
        "{{ range(100000) | map('string') | join(messages[0].content) }}",
        "{{ [1] * 1000000000 }}",
        "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}{{ ns.l }}",
        "{% set ns = namespace(l=[]) %}{% for i in range(5000) %}{% set ns.l = [ns.l] %}{% endfor %}{{ ns.l | tojson }}",
        "{% for i in range(99999) %}{{ 'aaaaaaaaaaaaaaaaaaaaaaaa' | replace('a', 'bbbbbbbbbbbbbbbbbbbbbbbbbbbbbb') }}{% endfor %}",
        "{% for i in range(99999) %}{{ strftime_now('%Y%Y%Y%Y%Y%Y%Y%Y%Y%Y%Y%Y%Y%Y%Y') }}{% endfor %}",
        "{% for i in range(99999) %}{% set x = messages[0].content.split('') %}{% endfor %}",
        "{% for i in range(99999) %}{% set x = messages[0].content.upper() | trim | length %}{% endfor %}",
        "{% for i in range(99999) %}{% if 'yy' in messages[0].content %}{% endif %}{% endfor %}",
        "{% for i in range(99999) %}{% set x = messages[0].content.find('yy') %}{% endfor %}",
        "{% include 'chat' %}",
    ];
    for bomb in bombs {
        let template = ChatTemplate::new(bomb, tokens()).unwrap();
        let messages = [json!({"role": "user", "content": long})];
        let started = Instant::now();
        let error = template.render(&messages, &RenderOptions::default()).expect_err(bomb);
        let took = started.elapsed();
        assert!(matches!(error, TemplateError::Failed { .. }), "{bomb}: {error}");
        assert!(!error.to_string().contains("unknown"), "{bomb}: {error}");
        // Alone it takes some milliseconds; the machine may be busy with other tests.
        assert!(took < Duration::from_secs(2), "{bomb}: {took:?}");
    }
}

#[test]
fn a_long_conversation_is_within_the_limits() {
    let turn = |i: usize| json!({"role": if i.is_multiple_of(2) { "user" } else { "assistant" }, "content": "word ".repeat(40)});
    let many: Vec<Value> = (0..5001).map(turn).collect();
    let huge = [json!({"role": "user", "content": "x".repeat(8 << 20)})];
    for name in ["chatml", "headers", "inst", "turns", "tools", "reasoning", "flags", "sys"] {
        let source = std::fs::read_to_string(data(&format!("templates/{name}.jinja"))).unwrap();
        for messages in [&many[..], &huge[..]] {
            let text = render(&source, messages).unwrap_or_else(|error| panic!("{name}: {error}"));
            assert!(text.len() > messages.len() * 150);
        }
    }
}

#[test]
fn there_is_no_way_out_of_a_template() {
    for source in [
        "{{ ''.__class__.__mro__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ messages.__class__ }}{{ messages[0].__init__.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.system('id') }}",
        "{{ self._TemplateReference__context }}",
        "{{ lipsum.__globals__['os'].environ }}",
        "{{ [].append(1) }}",
    ] {
        match render(source, &[json!({"role": "user", "content": "x"})]) {
            Err(TemplateError::Failed { .. }) => {}
            Ok(text) => assert_eq!(text, "", "{source}"),
            Err(error) => panic!("{source}: {error}"),
        }
    }
}

#[test]
fn errors_say_where_and_what() {
    let error = ChatTemplate::new("line\n{% if %}\n", tokens()).unwrap_err();
    assert!(matches!(error, TemplateError::Invalid { line: 2, .. }), "{error}");
    let error = ChatTemplate::new("\n\n{{ x | nosuchfilter }}", tokens())
        .and_then(|template| template.render(&[], &RenderOptions::default()))
        .unwrap_err()
        .to_string();
    assert!(error.contains("line 3") && error.contains("nosuchfilter"), "{error}");
    let user = json!({"role": "user", "content": "x"});
    let error =
        render("{{ raise_exception('no ' ~ messages[0].role) }}", std::slice::from_ref(&user)).unwrap_err();
    assert!(matches!(&error, TemplateError::Refused(message) if message == "no user"), "{error}");
    assert!(matches!(ChatTemplate::new(&" ".repeat(2 << 20), tokens()), Err(TemplateError::Invalid { .. })));

    let part = |part: Value| json!({"role": "user", "content": [{"type": "text", "text": "a"}, part]});
    for (message, expected) in [
        (json!("x"), "messages[1]: not an object"),
        (json!({"role": "user", "content": 3}), "messages[1]: content must be"),
        (
            part(json!({"type": "image_url", "image_url": {"url": "x"}})),
            "messages[1]: content[1]: a part of type \"image_url\"",
        ),
        (part(json!({"text": "b"})), "messages[1]: content[1]: a part needs a type"),
        (part(json!({"type": "text"})), "messages[1]: content[1]: the part has no text"),
        (part(json!("b")), "messages[1]: content[1]: a part needs a type"),
        (
            json!({"tool_calls": [{"function": {"arguments": "{"}}]}),
            "messages[1]: tool_calls[0].function.arguments",
        ),
    ] {
        let error = render("", &[user.clone(), message]).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}

#[test]
fn messages_reach_templates_in_the_form_they_expect() {
    let parts =
        json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]});
    assert_eq!(render("{{ messages[0].content }}", &[parts]).unwrap(), "a\nb");
    let call = |arguments: Value| json!({"role": "assistant", "tool_calls": [{"function": {"arguments": arguments}}]});
    let source =
        "{{ messages[0].tool_calls[0].function.arguments | tojson }}|{{ messages[0].content is defined }}";
    assert_eq!(
        render(source, &[call(json!("{\"b\": 1, \"a\": [2]}"))]).unwrap(),
        "{\"b\": 1, \"a\": [2]}|False"
    );
    assert_eq!(render(source, &[call(json!(""))]).unwrap(), "{}|False");
    assert_eq!(render(source, &[call(json!({"x": null}))]).unwrap(), "{\"x\": null}|False");
}

#[test]
fn the_last_message_can_be_continued() {
    let source = std::fs::read_to_string(data("templates/chatml.jinja")).unwrap();
    let template = ChatTemplate::new(&source, tokens()).unwrap();
    let messages =
        [json!({"role": "user", "content": "2"}), json!({"role": "assistant", "content": "3, 4, "})];
    let options = RenderOptions { continue_final_message: true, ..RenderOptions::default() };
    let text = template.render(&messages, &options).unwrap();
    assert!(text.ends_with("<|im_start|>assistant\n3, 4, "), "{text:?}");
    let both = RenderOptions { add_generation_prompt: true, ..options.clone() };
    assert!(matches!(template.render(&messages, &both), Err(TemplateError::Options(_))));
    assert!(matches!(template.render(&[], &options), Err(TemplateError::Options(_))));
    let silent = ChatTemplate::new("{{ messages[0].content }}", tokens()).unwrap();
    assert!(matches!(silent.render(&messages, &options), Err(TemplateError::Options(_))));
}

#[test]
fn variables_cannot_replace_the_conversation() {
    let template = ChatTemplate::new(
        "{{ messages | length }}{{ add_generation_prompt }}{{ own }}{{ bos_token }}",
        tokens(),
    );
    let kwargs: Map<_, _> = [
        ("messages".to_owned(), json!([])),
        ("add_generation_prompt".to_owned(), json!(true)),
        ("own".to_owned(), json!("!")),
    ]
    .into_iter()
    .collect();
    let options = RenderOptions { kwargs, ..RenderOptions::default() };
    let text = template.unwrap().render(&[json!({"role": "user", "content": "x"})], &options).unwrap();
    assert_eq!(text, "1False!<s>");
}

/// The checkpoints that every other test uses.
#[test]
fn the_word_level_tokenizers_of_the_golden_checkpoints_work() {
    let Some(golden) = shared("golden") else { return skipped("golden is not there") };
    let names =
        ["llama", "llama_tied", "llama3_rope", "mistral_window", "qwen2", "qwen3", "qwen3_moe", "gemma3"];
    for name in names {
        let dir = golden.join(name);
        let tokenizer = Tokenizer::from_directory(&dir).unwrap();
        assert_eq!(tokenizer.encode("t5 t17", true).unwrap(), [5, 17], "{name}");
        assert_eq!(tokenizer.decode(&[5, 17, 2], true), "t5 t17", "{name}");
        assert_eq!((tokenizer.bos_id(), tokenizer.eos_id()), (Some(1), Some(2)), "{name}");
        let template = ChatTemplate::from_directory(&dir).unwrap();
        let messages =
            [json!({"role": "user", "content": "t5 </s>"}), json!({"role": "user", "content": "t17"})];
        let ids = template.encode(&tokenizer, &messages, &RenderOptions::default()).unwrap();
        assert!(ids.starts_with(&[5]) && ids.ends_with(&[17]) && !ids.contains(&2), "{name}: {ids:?}");
        let defaults = millrace_models::text::GenerationDefaults::from_directory(&dir).unwrap();
        assert_eq!((defaults.bos_token_id, &defaults.eos_token_ids[..]), (Some(1), &[2][..]), "{name}");
    }
}
