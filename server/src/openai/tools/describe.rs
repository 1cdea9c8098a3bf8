//! Tools for a model whose chat template has no place for them: in prose.

use serde_json::{Value, json};

use super::{CLOSE, Function, OPEN};

/// Puts the tools into the system message, and what the template would drop (calls and their results) into contents.
pub(super) fn describe(functions: &[Function], messages: &mut Vec<Value>) {
    messages.iter_mut().for_each(rewrite);
    let line = |function: &Function| {
        let Function { name, description, parameters, .. } = function;
        json!({ "name": name, "description": description, "parameters": parameters }).to_string()
    };
    let lines: Vec<String> = functions.iter().map(line).collect();
    let text = format!(
        "You can call these functions. Each line describes one, its parameters by a JSON schema:\n{}\n\n\
         To call one, write exactly:\n{OPEN}\n{{\"name\": NAME, \"arguments\": {{…}}}}\n{CLOSE}\n\
         Its result is given to you in the next message.",
        lines.join("\n")
    );
    match messages.first_mut() {
        Some(first) if first["role"] == "system" => {
            let own = first["content"].as_str().unwrap_or_default();
            first["content"] = format!("{own}\n\n{text}").trim_start().into();
        }
        _ => messages.insert(0, json!({ "role": "system", "content": text })),
    }
}

fn rewrite(message: &mut Value) {
    let mut content = message["content"].as_str().unwrap_or_default().to_owned();
    if message["role"] == "tool" {
        *message = json!({ "role": "user", "content": format!("Result of the call:\n{content}") });
        return;
    }
    let calls = message.as_object_mut().and_then(|message| message.remove("tool_calls"));
    let Some(Value::Array(calls)) = calls else { return };
    for call in calls {
        let function = &call["function"];
        let arguments = match &function["arguments"] {
            Value::String(text) => text.clone(),
            Value::Null => "{}".to_owned(),
            object => object.to_string(),
        };
        let (name, gap) = (&function["name"], if content.is_empty() { "" } else { "\n" });
        content += &format!("{gap}{OPEN}\n{{\"name\": {name}, \"arguments\": {arguments}}}\n{CLOSE}");
    }
    message["content"] = content.into();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_a_conversation_is_lost() {
        let parameters = json!({ "type": "object" });
        let functions =
            [Function { name: "f".into(), description: "Does it.".into(), parameters, strict: false }];
        let call =
            json!({ "id": "1", "type": "function", "function": { "name": "f", "arguments": "{\"a\": 1}" } });
        let mut messages = vec![
            json!({ "role": "user", "content": "Hi" }),
            json!({ "role": "assistant", "content": null, "tool_calls": [call] }),
            json!({ "role": "tool", "content": "42", "tool_call_id": "1" }),
        ];
        describe(&functions, &mut messages);
        assert_eq!(messages.len(), 4);
        let system = messages[0]["content"].as_str().expect("text");
        assert!(system.contains("{\"name\":\"f\",\"description\":\"Does it.\""), "{system}");
        let expected = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}}\n</tool_call>";
        assert_eq!(messages[2], json!({ "role": "assistant", "content": expected }));
        assert_eq!(messages[3], json!({ "role": "user", "content": "Result of the call:\n42" }));
        let mut own = vec![json!({ "role": "system", "content": "Be brief." })];
        describe(&functions, &mut own);
        assert!(
            own.len() == 1 && own[0]["content"].as_str().is_some_and(|t| t.starts_with("Be brief.\n\nYou"))
        );
    }
}
