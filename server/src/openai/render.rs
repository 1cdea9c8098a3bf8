//! The shapes of answers, as OpenAI and vLLM have them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use millrace_engine::{Logprob, TokenLogprobs};
use millrace_models::text::Tokenizer;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::choice::{Delta, Finish, Scored};
use super::parse::{Api, Show};
use super::prompt::Prompt;
use super::tools::Piece;

/// What all chunks of an answer have in common.
pub(crate) struct Answer<'a> {
    pub(crate) api: Api,
    pub(crate) id: String,
    pub(crate) created: u64,
    pub(crate) model: String,
    pub(crate) fingerprint: String,
    pub(crate) show: Show,
    pub(crate) tokenizer: &'a Tokenizer,
}

/// Tokens that a request took.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Usage {
    pub(crate) prompt: usize,
    pub(crate) completion: usize,
    pub(crate) cached: usize,
}

impl Usage {
    pub(crate) fn json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": { "cached_tokens": self.cached },
        })
    }
}

/// The text that stands before the generated one, where a prompt is echoed.
pub(crate) fn echoed(
    prompt: &Prompt,
    show: Show,
    tokenizer: &Tokenizer,
    skip_special: bool,
) -> Option<String> {
    show.echo.then(|| prompt.text.clone().unwrap_or_else(|| tokenizer.decode(&prompt.ids, skip_special)))
}

/// A piece of a call in a stream: its beginning, or more of its arguments.
pub(crate) struct Call(Value);

impl Call {
    pub(crate) fn begin(answer: &str, choice: usize, number: usize, name: String) -> Call {
        let mut call = whole_call(answer, choice, number, name);
        call["index"] = number.into();
        Call(call)
    }

    pub(crate) fn more(number: usize, arguments: String) -> Call {
        Call(json!({ "index": number, "function": { "arguments": arguments } }))
    }
}

/// A call without arguments. Its id is not to appear twice in a conversation, so it goes back to a counter as well.
fn whole_call(answer: &str, choice: usize, number: usize, name: String) -> Value {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    let count = CALLS.fetch_add(1, Ordering::Relaxed);
    let digest = Sha256::digest(format!("{answer} {choice} {number} {now} {count}"));
    let id: String = digest.iter().take(12).map(|byte| format!("{byte:02x}")).collect();
    let function = json!({ "name": name, "arguments": "" });
    json!({ "id": format!("call_{id}"), "type": "function", "function": function })
}

impl Answer<'_> {
    fn object(&self, chunk: bool) -> &'static str {
        match (self.api, chunk) {
            (Api::Chat, false) => "chat.completion",
            (Api::Chat, true) => "chat.completion.chunk",
            (Api::Completion, _) => "text_completion",
        }
    }

    fn envelope(&self, chunk: bool, choices: Vec<Value>) -> Value {
        json!({
            "id": self.id,
            "object": self.object(chunk),
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.fingerprint,
            "choices": choices,
        })
    }

    /// A chunk of a stream.
    pub(crate) fn chunk(&self, choices: Vec<Value>) -> Value {
        self.envelope(true, choices)
    }

    /// A whole answer.
    pub(crate) fn whole(&self, choices: Vec<Value>, usage: Usage) -> Value {
        let mut answer = self.envelope(false, choices);
        answer["usage"] = usage.json();
        answer
    }

    /// The first chunk of a chat's choice.
    pub(crate) fn role(&self, index: usize) -> Value {
        let delta = json!({ "role": "assistant", "content": "" });
        json!({ "index": index, "delta": delta, "logprobs": null, "finish_reason": null })
    }

    /// A piece of a call.
    pub(crate) fn call(&self, index: usize, call: &Call) -> Value {
        json!({ "index": index, "delta": { "tool_calls": [call.0] }, "logprobs": null, "finish_reason": null })
    }

    /// Puts the calls that were found in a choice's text in its place.
    pub(crate) fn add_calls(
        &self,
        choice: &mut Value,
        index: usize,
        pieces: &[Piece],
        finish: Option<&Finish>,
    ) {
        let (mut text, mut calls) = (String::new(), Vec::new());
        for piece in pieces {
            match piece {
                Piece::Text(more) => text.push_str(more),
                Piece::Call(name) => calls.push(whole_call(&self.id, index, calls.len(), name.clone())),
                Piece::Arguments(more) => {
                    if let Some(Value::String(arguments)) =
                        calls.last_mut().map(|call| &mut call["function"]["arguments"])
                    {
                        arguments.push_str(more);
                    }
                }
            }
        }
        let message = &mut choice["message"];
        message["content"] = if text.is_empty() && !calls.is_empty() { Value::Null } else { text.into() };
        if !calls.is_empty() {
            message["tool_calls"] = calls.into();
        }
        if let Some(finish) = finish {
            choice["finish_reason"] = finish.reason().into();
            choice["stop_reason"] = finish.stop_reason();
        }
    }

    /// The last chunk of a chat's choice: why it ended, and nothing else.
    pub(crate) fn finish(&self, index: usize, delta: &Delta) -> Value {
        let mut choice = json!({ "index": index, "delta": {}, "logprobs": null });
        self.add_finish(&mut choice, delta);
        choice
    }

    /// A piece of a choice. Of a chat it does not contain the end, which has a chunk of its own.
    pub(crate) fn piece(&self, index: usize, delta: &Delta, echo: Option<&Echo<'_>>) -> Value {
        let mut choice = match self.api {
            Api::Chat => json!({
                "index": index,
                "delta": { "content": delta.text },
                "logprobs": self.chat_logprobs(delta),
                "finish_reason": null,
            }),
            Api::Completion => self.completion_choice(index, delta, echo),
        };
        if self.show.token_ids {
            choice["token_ids"] = delta.token_ids.clone().into();
        }
        choice
    }

    /// A whole choice.
    pub(crate) fn choice(
        &self,
        index: usize,
        delta: &Delta,
        prompt: &Prompt,
        echo: Option<&Echo<'_>>,
    ) -> Value {
        let mut choice = match self.api {
            Api::Chat => {
                let message = json!({ "role": "assistant", "content": delta.text, "refusal": null });
                let mut choice =
                    json!({ "index": index, "message": message, "logprobs": self.chat_logprobs(delta) });
                self.add_finish(&mut choice, delta);
                choice
            }
            Api::Completion => self.completion_choice(index, delta, echo),
        };
        if self.show.token_ids {
            choice["token_ids"] = delta.token_ids.clone().into();
        }
        if self.api == Api::Completion {
            if self.show.prompt_logprobs {
                choice["prompt_logprobs"] = self.prompt_logprobs(delta);
            }
            if self.show.token_ids {
                choice["prompt_token_ids"] = prompt.ids.clone().into();
            }
        }
        choice
    }

    fn completion_choice(&self, index: usize, delta: &Delta, echo: Option<&Echo<'_>>) -> Value {
        let text = format!("{}{}", echo.map_or("", |e| e.text), delta.text);
        let logprobs = if self.show.logprobs { self.completion_logprobs(delta, echo) } else { Value::Null };
        let mut choice = json!({ "index": index, "text": text, "logprobs": logprobs });
        self.add_finish(&mut choice, delta);
        choice
    }

    fn add_finish(&self, choice: &mut Value, delta: &Delta) {
        choice["finish_reason"] = delta.finish.as_ref().map_or(Value::Null, |f| f.reason().into());
        choice["stop_reason"] = delta.finish.as_ref().map_or(Value::Null, |f| f.stop_reason());
    }

    fn name(&self, token: u32) -> String {
        if self.show.tokens_as_ids {
            return format!("token_id:{token}");
        }
        self.tokenizer.token(token).unwrap_or_default()
    }

    fn chat_logprobs(&self, delta: &Delta) -> Value {
        if !self.show.logprobs {
            return Value::Null;
        }
        let one = |l: &Logprob| {
            let bytes = self.tokenizer.token_bytes(l.token);
            json!({ "token": self.name(l.token), "logprob": finite(l.logprob), "bytes": bytes })
        };
        let token = |scored: &Scored| {
            let mut entry = one(&scored.logprobs.chosen);
            entry["top_logprobs"] = scored.logprobs.top.iter().map(one).collect();
            entry
        };
        json!({ "content": delta.logprobs.iter().map(token).collect::<Value>() })
    }

    fn completion_logprobs(&self, delta: &Delta, echo: Option<&Echo<'_>>) -> Value {
        let (mut offsets, mut values, mut names, mut tops) = (vec![], vec![], vec![], vec![]);
        let mut add = |offset: usize, token: u32, logprobs: Option<&TokenLogprobs>| {
            offsets.push(offset);
            names.push(self.name(token));
            values.push(logprobs.map_or(Value::Null, |l| finite(l.chosen.logprob)));
            tops.push(logprobs.map_or(Value::Null, |l| {
                // The chosen one is shown also where it is not among the best.
                let entries = std::iter::once(&l.chosen).chain(&l.top);
                let map: Map<String, Value> =
                    entries.map(|l| (self.name(l.token), finite(l.logprob))).collect();
                map.into()
            }));
        };
        let start = echo.map_or(0, |e| e.start);
        if let Some(echo) = echo.filter(|e| !e.text.is_empty()) {
            let mut detokenizer = self.tokenizer.detokenizer(echo.skip_special);
            let mut offset = 0;
            for (i, &token) in echo.ids.iter().enumerate() {
                add(offset, token, delta.prompt_logprobs.get(i).and_then(Option::as_ref));
                offset += detokenizer.push(token).chars().count();
            }
        }
        for scored in &delta.logprobs {
            add(start + scored.offset, scored.logprobs.chosen.token, Some(&scored.logprobs));
        }
        json!({ "text_offset": offsets, "token_logprobs": values, "tokens": names, "top_logprobs": tops })
    }

    /// vLLM's shape: one object per prompt token, keyed by id.
    pub(crate) fn prompt_logprobs(&self, delta: &Delta) -> Value {
        let entry = |l: &Logprob| {
            let value =
                json!({ "logprob": finite(l.logprob), "rank": l.rank, "decoded_token": self.name(l.token) });
            (l.token.to_string(), value)
        };
        let position = |logprobs: &Option<TokenLogprobs>| match logprobs {
            None => Value::Null,
            Some(l) => std::iter::once(&l.chosen).chain(&l.top).map(entry).collect::<Map<_, _>>().into(),
        };
        delta.prompt_logprobs.iter().map(position).collect()
    }
}

/// The prompt as the beginning of a completion.
pub(crate) struct Echo<'a> {
    /// Empty in the chunks after the first.
    pub(crate) text: &'a str,
    /// Its length in characters, where the generated text begins.
    pub(crate) start: usize,
    pub(crate) ids: &'a [u32],
    pub(crate) skip_special: bool,
}

/// JSON has no infinity. A token that cannot come gets vLLM's value for it.
fn finite(logprob: f32) -> Value {
    logprob.max(-9999.0).into()
}
