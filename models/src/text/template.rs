//! Chat templates: a conversation as the text its model was taught to read.
//!
//! The templates come with models, written in Jinja for the environment that the transformers library sets up, so that
//! environment is rebuilt here on `minijinja`. They are programs from strangers: each run has a budget of work (fuel),
//! which bounds time and memory, and a bound on its recursion. See [`super::guard`] for how users' text is kept apart
//! from markers.

use super::guard::Disguise;
use super::{TextError, Tokenizer, files, python};
use crate::Gguf;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, Value as Jinja, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State};
use serde_json::{Map, Value};
use std::path::Path;
use std::sync::Arc;

/// The work a run may do for its own sake, beside what the size of the conversation calls for. One unit is about an
/// instruction or 64 bytes; the whole is a few milliseconds and a dozen megabytes.
const FUEL: u64 = 150_000;
const FUEL_PER_MESSAGE: u64 = 2_000;
const BYTES_PER_FUEL: u64 = 2;
/// Levels of nesting; a macro that calls itself takes several at once.
const RECURSION: usize = 200;
/// Templates of real models are some kilobytes.
const LARGEST_SOURCE: usize = 1 << 20;

/// Why a conversation cannot be turned into a prompt.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// The model comes without a template.
    #[error("{place} has no chat template; {remedy}, or send plain prompts to /v1/completions")]
    Missing {
        /// The directory or file of the model.
        place: String,
        /// Where a template may be put.
        remedy: &'static str,
    },
    /// The template is no valid Jinja.
    #[error("{place}, line {line}: {message}")]
    Invalid {
        /// The file, or the key of the GGUF metadata.
        place: String,
        /// Counted from 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// The template itself refused the conversation.
    #[error("the model's chat template refuses this conversation: {0}")]
    Refused(String),
    /// A message cannot be given to a template.
    #[error("messages[{index}]: {message}")]
    Message {
        /// Its position in the conversation.
        index: usize,
        /// What is wrong with it.
        message: String,
    },
    /// The options contradict each other or the conversation.
    #[error("{0}")]
    Options(&'static str),
    /// The template failed on this conversation, or exceeded its limits.
    #[error("{place}, line {line}: the template fails on this conversation: {message}")]
    Failed {
        /// The file, or the key of the GGUF metadata.
        place: String,
        /// Counted from 1; 0 if unknown.
        line: usize,
        /// What happened there.
        message: String,
    },
    /// A file cannot be read, or the result cannot be encoded.
    #[error(transparent)]
    Text(#[from] TextError),
}

/// The tokens with a role of their own, as the model spells them; templates see them under these names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a sequence.
    pub bos_token: Option<String>,
    /// Ends a sequence.
    pub eos_token: Option<String>,
    /// Stands for what the vocabulary cannot spell.
    pub unk_token: Option<String>,
    /// Fills unused places of a batch.
    pub pad_token: Option<String>,
}

impl SpecialTokens {
    fn named(&self) -> impl Iterator<Item = (&'static str, &String)> {
        let named = [
            ("bos_token", &self.bos_token),
            ("eos_token", &self.eos_token),
            ("unk_token", &self.unk_token),
            ("pad_token", &self.pad_token),
        ];
        named.into_iter().filter_map(|(name, token)| Some((name, token.as_ref()?)))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &String> {
        self.named().map(|(_, token)| token)
    }
}

/// What to render beside the messages.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions<'a> {
    /// End with the opening of the assistant's answer.
    pub add_generation_prompt: bool,
    /// Leave the last message open, so that the model continues it.
    pub continue_final_message: bool,
    /// The tools the model may call, a list in OpenAI's form.
    pub tools: Option<&'a Value>,
    /// Documents for templates that take some.
    pub documents: Option<&'a Value>,
    /// Further variables (`chat_template_kwargs`). They cannot replace the ones above or the messages.
    pub kwargs: Map<String, Value>,
}

/// A compiled chat template. Clones share it.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    source: Arc<str>,
    place: Arc<str>,
    special: SpecialTokens,
}

/// The name under which the environment keeps the one template.
const NAME: &str = "chat";

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`TemplateError::Invalid`] if it is no valid Jinja or longer than a megabyte.
    pub fn new(source: &str, special: SpecialTokens) -> Result<Self, TemplateError> {
        Self::compile(source, special, "chat template")
    }

    /// The template of a Hugging Face directory: `chat_template.jinja`, else `chat_template.json`, else the
    /// `chat_template` of `tokenizer_config.json` (of several, the one named `default`).
    ///
    /// # Errors
    /// [`TemplateError::Missing`] if there is none, and as [`new`](Self::new).
    pub fn from_directory(dir: &Path) -> Result<Self, TemplateError> {
        let config = files::object(dir, "tokenizer_config.json")?.unwrap_or_default();
        let map = files::object(dir, "special_tokens_map.json")?.unwrap_or_default();
        let special = SpecialTokens::from_objects(&config, &map);
        let place = |name: &str| dir.join(name).display().to_string();
        if let Some(source) = files::text(dir, "chat_template.jinja")? {
            return Self::compile(&source, special, &place("chat_template.jinja"));
        }
        let own = files::object(dir, "chat_template.json")?.unwrap_or_default();
        for (object, name) in [(&own, "chat_template.json"), (&config, "tokenizer_config.json")] {
            if let Some(source) = object.get("chat_template").and_then(default_of) {
                return Self::compile(source, special, &format!("{} (chat_template)", place(name)));
            }
        }
        let remedy = "add a chat_template.jinja to it";
        Err(TemplateError::Missing { place: dir.display().to_string(), remedy })
    }

    /// The template of a GGUF file, under `tokenizer.chat_template`.
    ///
    /// # Errors
    /// [`TemplateError::Missing`] if there is none, and as [`new`](Self::new).
    pub fn from_gguf(metadata: &Gguf) -> Result<Self, TemplateError> {
        let place = "tokenizer.chat_template";
        let Some(source) = metadata.string(place).map_err(TextError::from)? else {
            let remedy = "convert it from a checkpoint that has one";
            return Err(TemplateError::Missing { place: metadata.file().to_owned(), remedy });
        };
        Self::compile(
            source,
            super::gguf::special_tokens(metadata)?,
            &format!("{} ({place})", metadata.file()),
        )
    }

    fn compile(source: &str, special: SpecialTokens, place: &str) -> Result<Self, TemplateError> {
        let invalid =
            |line, message: String| TemplateError::Invalid { place: place.to_owned(), line, message };
        if source.len() > LARGEST_SOURCE {
            let message =
                format!("{} bytes, more than the {LARGEST_SOURCE} a template may have", source.len());
            return Err(invalid(1, message));
        }
        let mut environment = environment();
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|error| invalid(error.line().unwrap_or(0), describe(&error)))?;
        Ok(Self { environment: Arc::new(environment), source: source.into(), place: place.into(), special })
    }

    /// The template's own text: what it mentions tells what it can write.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt as text. A list of text parts as a message's content is joined by line breaks, and a tool call's
    /// arguments are parsed, since templates expect the one as a string and the others as an object.
    ///
    /// # Errors
    /// [`TemplateError::Message`] for a message that is no object or has parts other than text,
    /// [`TemplateError::Refused`] if the template raises an exception, [`TemplateError::Failed`] if it fails or exceeds
    /// its limits, and [`TemplateError::Options`] for options that contradict each other.
    pub fn render(&self, messages: &[Value], options: &RenderOptions) -> Result<String, TemplateError> {
        let messages = prepare(messages)?;
        self.run(messages, options.tools, options.documents, &options.kwargs, options)
    }

    /// The prompt as ids. Special tokens come from the template alone: what spells one in a message, a tool or a
    /// variable is encoded as ordinary text. No special tokens are added around the whole, since templates write them.
    ///
    /// # Errors
    /// As [`render`](Self::render), and [`TemplateError::Text`] if the prompt cannot be encoded.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Value],
        options: &RenderOptions,
    ) -> Result<Vec<u32>, TemplateError> {
        let mut messages = prepare(messages)?;
        let (mut tools, mut documents) = (options.tools.cloned(), options.documents.cloned());
        let mut kwargs = Value::Object(options.kwargs.clone());
        let source: &str = &self.source;

        let mut inputs = vec![source];
        let parts = messages.iter().chain(&tools).chain(&documents).chain([&kwargs]);
        parts.for_each(|part| strings(part, &mut inputs));
        let disguise = Disguise::new(tokenizer.markers(), inputs);
        let mut disguise = disguise.ok_or(TemplateError::Options(
            "the conversation uses so many private-use characters that none is left to protect it",
        ))?;
        // A token that is not special, such as `<tool_call>`, structures the conversation if the template writes it;
        // then it is for the template and the assistant, whose answers contain it, to write.
        let mut apply = |value: &mut Value, by_assistant: bool| {
            let template = (!by_assistant).then_some(source);
            // Templates look for keys, and write them between quotes.
            map_strings(value, &mut |text, key| disguise.apply(tokenizer.markers(), text, !key, template))
        };
        let mut disguised = false;
        for message in &mut messages {
            let role = message.get("role").and_then(Value::as_str).unwrap_or_default().to_owned();
            disguised |= apply(message, role == "assistant");
            // Templates compare roles, and build markers of them.
            if !role.is_empty() && role.chars().all(|char| char.is_ascii_alphanumeric() || char == '_') {
                message["role"] = Value::String(role);
            }
        }
        for value in tools.iter_mut().chain(&mut documents).chain([&mut kwargs]) {
            disguised |= apply(value, false);
        }
        let kwargs = kwargs.as_object().cloned().unwrap_or_default();
        let text = self.run(messages, tools.as_ref(), documents.as_ref(), &kwargs, options);
        let text = text.map_err(|error| match error {
            TemplateError::Refused(message) => TemplateError::Refused(disguise.take_off(&message)),
            other => other,
        })?;
        Ok(tokenizer.encode_disguised(&text, disguised.then_some(&disguise), false)?)
    }

    fn run(
        &self,
        mut messages: Vec<Value>,
        tools: Option<&Value>,
        documents: Option<&Value>,
        kwargs: &Map<String, Value>,
        options: &RenderOptions,
    ) -> Result<String, TemplateError> {
        let end = if options.continue_final_message { Some(mark_end(&mut messages, options)?) } else { None };
        let mut size = 0;
        let mut add = |value: &Value| {
            let mut texts = Vec::new();
            strings(value, &mut texts);
            size += texts.iter().map(|text| text.len() as u64 + 16).sum::<u64>();
        };
        messages.iter().chain(tools).chain(documents).for_each(&mut add);
        kwargs.values().for_each(&mut add);
        let fuel = FUEL + FUEL_PER_MESSAGE * messages.len() as u64 + size / BYTES_PER_FUEL;

        let jinja = |value: &Value| Jinja::from(Serde(value));
        let absent = || Jinja::from(());
        let variables = kwargs.iter().map(|(name, value)| (name.clone(), jinja(value)));
        let special =
            self.special.named().map(|(name, token)| (name.to_owned(), Jinja::from(token.as_str())));
        let own = [
            ("messages", Jinja::from(Serde(&messages))),
            ("tools", tools.map_or_else(absent, jinja)),
            ("documents", documents.map_or_else(absent, jinja)),
            ("add_generation_prompt", Jinja::from(options.add_generation_prompt)),
        ];
        let own = own.into_iter().map(|(name, value)| (name.to_owned(), value));
        let context = Jinja::from_pairs(special.chain(variables).chain(own));

        // The budget is the environment's; a copy of it shares everything else.
        let mut environment = (*self.environment).clone();
        environment.set_fuel(Some(fuel));
        let rendered = environment.get_template(NAME).and_then(|template| template.render(context));
        let mut text = rendered.map_err(|error| self.failure(&error))?;
        if let Some(end) = end {
            let cut = text.rfind(end).ok_or(TemplateError::Options(
                "continue_final_message: the chat template does not write the last message as it is",
            ))?;
            text.truncate(cut);
        }
        Ok(text)
    }

    fn failure(&self, error: &Error) -> TemplateError {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if let Some(Raised(message)) = error.downcast_ref() {
                return TemplateError::Refused(message.clone());
            }
            cause = error.source();
        }
        let message = match error.kind() {
            ErrorKind::OutOfFuel => "it does more work than a conversation of this size calls for".to_owned(),
            _ => describe(error),
        };
        TemplateError::Failed { place: self.place.to_string(), line: error.line().unwrap_or(0), message }
    }
}

/// The source in a `chat_template` entry: a string, or a list of named ones.
fn default_of(entry: &Value) -> Option<&str> {
    match entry {
        Value::String(source) => Some(source),
        Value::Array(named) => {
            let default = named.iter().find(|one| one.get("name").and_then(Value::as_str) == Some("default"));
            default.or_else(|| named.first().filter(|_| named.len() == 1))?.get("template")?.as_str()
        }
        _ => None,
    }
}

/// Appends a character to the last message after which the prompt is to be cut, and returns it.
fn mark_end(messages: &mut [Value], options: &RenderOptions) -> Result<char, TemplateError> {
    if options.add_generation_prompt {
        let contradiction = "continue_final_message and add_generation_prompt exclude each other";
        return Err(TemplateError::Options(contradiction));
    }
    let mut inputs = Vec::new();
    messages.iter().for_each(|message| strings(message, &mut inputs));
    let free = |char: &char| !inputs.iter().any(|text| text.contains(*char));
    let end = ('\u{e000}'..='\u{f8ff}').find(free);
    let end = end.ok_or(TemplateError::Options("the conversation uses every private-use character"))?;
    let last = messages.last_mut().and_then(|message| message.get_mut("content"));
    let Some(Value::String(content)) = last else {
        return Err(TemplateError::Options(
            "continue_final_message: the last message has no text to continue",
        ));
    };
    content.push(end);
    Ok(end)
}

/// The messages as templates expect them.
fn prepare(messages: &[Value]) -> Result<Vec<Value>, TemplateError> {
    let prepare = |(index, message): (usize, &Value)| {
        let refuse = |message: String| TemplateError::Message { index, message };
        let mut message = message.clone();
        let Some(object) = message.as_object_mut() else { return Err(refuse("not an object".to_owned())) };
        if let Some(content) = object.get_mut("content") {
            if let Value::Array(parts) = content {
                *content = Value::String(join(parts).map_err(refuse)?);
            } else if !matches!(content, Value::String(_) | Value::Null) {
                return Err(refuse("content must be a string, a list of parts, or null".to_owned()));
            }
        }
        let calls = object.get_mut("tool_calls").and_then(Value::as_array_mut);
        for (number, call) in calls.into_iter().flatten().enumerate() {
            let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
            if let Value::String(json) = arguments {
                let json = if json.trim().is_empty() { "{}" } else { json.as_str() };
                *arguments = serde_json::from_str(json)
                    .map_err(|error| refuse(format!("tool_calls[{number}].function.arguments: {error}")))?;
            }
        }
        Ok(message)
    };
    messages.iter().enumerate().map(prepare).collect()
}

/// The text of content given in parts.
fn join(parts: &[Value]) -> Result<String, String> {
    fn text((index, part): (usize, &Value)) -> Result<&str, String> {
        let kind = part.get("type").and_then(Value::as_str);
        let text = match kind {
            Some(kind @ ("text" | "refusal")) => part.get(kind).and_then(Value::as_str),
            Some(kind) => return Err(format!("content[{index}]: a part of type {kind:?} is not supported")),
            None => return Err(format!("content[{index}]: a part needs a type")),
        };
        text.ok_or_else(|| format!("content[{index}]: the part has no text"))
    }
    Ok(parts.iter().enumerate().map(text).collect::<Result<Vec<_>, _>>()?.join("\n"))
}

/// Every string in a value, keys of objects included.
fn strings<'a>(value: &'a Value, into: &mut Vec<&'a str>) {
    match value {
        Value::String(text) => into.push(text),
        Value::Array(items) => items.iter().for_each(|item| strings(item, into)),
        Value::Object(entries) => entries.iter().for_each(|(key, value)| {
            into.push(key);
            strings(value, into);
        }),
        _ => {}
    }
}

/// Replaces every string in a value, keys included, for which `replace` gives another; whether there was one.
/// `replace` is told whether it is a key.
fn map_strings(value: &mut Value, replace: &mut impl FnMut(&str, bool) -> Option<String>) -> bool {
    match value {
        Value::String(text) => match replace(text, false) {
            Some(other) => {
                *text = other;
                true
            }
            None => false,
        },
        Value::Array(items) => {
            items.iter_mut().fold(false, |changed, item| map_strings(item, replace) | changed)
        }
        Value::Object(entries) => {
            let mut changed = false;
            let renamed = std::mem::take(entries).into_iter().map(|(key, mut value)| {
                changed |= map_strings(&mut value, replace);
                let other = replace(&key, true);
                changed |= other.is_some();
                (other.unwrap_or(key), value)
            });
            *entries = renamed.collect();
            changed
        }
        _ => false,
    }
}

/// What `raise_exception` was called with.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Raised(String);

/// Jinja as transformers configures it.
fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.unwrap_or_default());
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_recursion_limit(RECURSION);
    environment.set_unknown_method_callback(python::method);
    environment.set_formatter(|out, state, value| {
        let text = python::print(state, value)?;
        out.write_str(&text).map_err(Error::from)
    });
    environment.add_filter("tojson", python::tojson);
    environment.add_filter("string", |state: &State, value: &Jinja| python::print(state, value));
    // To Jinja, a string can be iterated and indexed.
    let is_sequence =
        |value: &Jinja| matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map);
    environment.add_test("sequence", is_sequence);
    environment.add_test("iterable", |value: &Jinja| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Iterable)
    });
    environment.add_function("raise_exception", |message: String| -> Result<Jinja, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
    });
    environment.add_function("strftime_now", |format: String| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        python::strftime(&format, now.as_secs())
    });
    environment
}

/// `{% generation %}` marks the assistant's text for training; here it stands for nothing, as `{% if true %}` does.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let body = tag.strip_prefix(['-', '+']).unwrap_or(tag);
        out.push_str(&tag[..tag.len() - body.len()]);
        let name = body.trim_start();
        let ends = |tail: &str| tail.trim_start().trim_start_matches(['-', '+']).starts_with("%}");
        rest = body;
        for (keyword, stand_in) in [("generation", " if true"), ("endgeneration", " endif")] {
            if let Some(tail) = name.strip_prefix(keyword).filter(|tail| ends(tail)) {
                out.push_str(stand_in);
                // The line count stays what the author sees.
                out.extend(body[..body.len() - tail.len()].chars().filter(|char| *char == '\n'));
                out.push(' ');
                rest = tail;
            }
        }
    }
    out + rest
}

/// An error's kind and detail, without the location, which is reported apart.
fn describe(error: &Error) -> String {
    match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    }
}
