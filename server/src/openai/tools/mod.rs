//! Tools: which ones a request offers, how its model writes a call, the grammar that makes it write one, and the calls
//! in what it wrote.
//!
//! Families of models write calls in their own ways, and their chat templates show which. `Tagged` is Hermes' and
//! Qwen's, `<tool_call>{"name": …, "arguments": {…}}</tool_call>` among prose; `Bare` is Llama 3's, an answer that is
//! the object itself. A model whose template knows no tools is told of them, and of the first way, in a system message.

mod describe;
mod grammar;
mod reader;
mod scanner;

pub(super) use reader::{Piece, Reader};

use serde_json::{Map, Value, json};

use super::structured::Wanted;
use crate::error::ApiError;
use crate::json::{Fields, describe as found, shorten};
use crate::service::Loaded;

/// Tools in one request.
const MAX_TOOLS: usize = 128;

/// How a model writes a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Syntax {
    Tagged,
    Bare,
}

/// Around a tagged call.
const OPEN: &str = "<tool_call>";
const CLOSE: &str = "</tool_call>";

/// A function the model may call.
#[derive(Clone, Debug)]
struct Function {
    name: String,
    description: String,
    /// The schema of its arguments.
    parameters: Value,
    strict: bool,
}

/// What must come out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Choice {
    /// Calls or prose.
    Auto,
    /// At least one call.
    Required,
    /// One call of this function.
    Named(usize),
}

/// The tools of a request.
#[derive(Clone, Debug)]
pub(super) struct Tools {
    /// In OpenAI's form, for the template.
    list: Value,
    functions: Vec<Function>,
    choice: Choice,
    parallel: bool,
    syntax: Syntax,
    /// The template knows no tools.
    described: bool,
}

impl Tools {
    /// The tools that a request offers and does not forbid.
    ///
    /// # Errors
    /// 400.
    pub(super) fn of(f: &mut Fields, model: &Loaded) -> Result<Option<Tools>, ApiError> {
        let parallel = f.or("parallel_tool_calls", true)?;
        let (list, choice) = (f.value("tools"), f.value("tool_choice"));
        let refuse = |what: String| Err(ApiError::field("tools", format!("tools: {what}")));
        let functions = match &list {
            None => Vec::new(),
            Some(Value::Array(list)) if list.len() <= MAX_TOOLS => functions(list)?,
            Some(Value::Array(list)) => return refuse(format!("at most {MAX_TOOLS}, got {}", list.len())),
            Some(other) => return refuse(format!("expected a list, got {}", found(other))),
        };
        let Some(choice) = tool_choice(choice, &functions)? else { return Ok(None) };
        let (Some(list), false) = (list, functions.is_empty()) else { return Ok(None) };
        let source = model.template.as_ref().map_or("", |template| template.source());
        let (syntax, described) = syntax(source);
        Ok(Some(Tools { list, functions, choice, parallel, syntax, described }))
    }

    /// The tools as the template takes them; `None` where it does not.
    pub(super) fn for_template(&self) -> Option<&Value> {
        (!self.described).then_some(&self.list)
    }

    /// Tells a model whose template knows no tools of them.
    pub(super) fn describe(&self, messages: &mut Vec<Value>) {
        if self.described {
            describe::describe(&self.functions, messages);
        }
    }

    /// The grammar of an answer, where there is one. Prose may be of the form that the request asks for.
    ///
    /// # Errors
    /// 400 where both cannot be had.
    pub(super) fn grammar(&self, form: Option<Wanted>) -> Result<Option<Wanted>, ApiError> {
        grammar::of(self, form)
    }

    /// Finds the calls in an answer.
    pub(super) fn reader(&self) -> Reader {
        Reader::new(self.syntax, self.functions.iter().map(|function| function.name.clone()).collect())
    }

    /// Whether the calls' marks are special tokens of the model, which texts must show then.
    pub(super) fn needs_special(&self, model: &Loaded) -> bool {
        let special = |mark| model.tokenizer.id(mark).is_some_and(|id| model.tokenizer.is_special(id));
        self.syntax == Syntax::Tagged && special(OPEN)
    }
}

/// How a template writes calls, and whether it knows nothing of tools.
fn syntax(template: &str) -> (Syntax, bool) {
    // The variable, not the word: templates have messages as well.
    let knows = ["if tools", "in tools", "tools is", "not tools", "tools |", "tools|"];
    match knows.iter().any(|code| template.contains(code)) {
        true if template.contains(OPEN) => (Syntax::Tagged, false),
        true => (Syntax::Bare, false),
        false => (Syntax::Tagged, true),
    }
}

fn missing(field: &str) -> ApiError {
    ApiError::field(field, format!("{field}: missing"))
}

fn functions(list: &[Value]) -> Result<Vec<Function>, ApiError> {
    let mut functions: Vec<Function> = Vec::with_capacity(list.len());
    for (index, tool) in list.iter().enumerate() {
        let mut tool = Fields::at(&format!("tools[{index}]"), tool.clone())?;
        let field = tool.name("type");
        let kind = tool.get::<String>("type")?.ok_or_else(|| missing(&field))?;
        if kind != "function" {
            let message = format!("{field}: expected function, got {}", shorten(&kind));
            return Err(ApiError::field(field, message));
        }
        let field = tool.name("function");
        let function = tool.value("function").ok_or_else(|| missing(&field))?;
        let mut function = Fields::at(&field, function)?;
        let field = function.name("name");
        let name = function.get::<String>("name")?.ok_or_else(|| missing(&field))?;
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        let problem = if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
            Some("must have 1 to 64 letters, digits, underscores, hyphens and dots".to_owned())
        } else {
            let twice = functions.iter().any(|other| other.name == name);
            twice.then(|| format!("{} is there twice", shorten(&name)))
        };
        if let Some(problem) = problem {
            return Err(ApiError::field(&field, format!("{field}: {problem}")));
        }
        let parameters = function.get::<Map<String, Value>>("parameters")?;
        functions.push(Function {
            name,
            description: function.or("description", String::new())?,
            parameters: parameters.map_or_else(|| json!({ "type": "object" }), Value::Object),
            strict: function.or("strict", false)?,
        });
    }
    Ok(functions)
}

/// What `tool_choice` asks for; `None` where no tool is to be called.
fn tool_choice(value: Option<Value>, functions: &[Function]) -> Result<Option<Choice>, ApiError> {
    let wrong = |message: String| Err(ApiError::field("tool_choice", format!("tool_choice: {message}")));
    let choice = match value {
        None => Choice::Auto,
        Some(Value::String(choice)) => match choice.as_str() {
            "none" => return Ok(None),
            "auto" => Choice::Auto,
            "required" => Choice::Required,
            other => {
                return wrong(format!("expected none, auto, required or a function, got {}", shorten(other)));
            }
        },
        Some(value @ Value::Object(_)) => {
            let kind = value["type"].as_str();
            let (Some("function"), Some(name)) = (kind, value["function"]["name"].as_str()) else {
                return wrong("expected {\"type\": \"function\", \"function\": {\"name\": …}}".to_owned());
            };
            match functions.iter().position(|function| function.name == name) {
                Some(index) => Choice::Named(index),
                None => return wrong(format!("{} is not among the tools", shorten(name))),
            }
        }
        Some(other) => return wrong(format!("expected a string or an object, got {}", found(&other))),
    };
    if functions.is_empty() && choice != Choice::Auto {
        return wrong("there are no tools to choose from".to_owned());
    }
    Ok(Some(choice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_show_how_calls_are_written() {
        assert_eq!(syntax("{% if tools %}<tool_call>{% endif %}"), (Syntax::Tagged, false));
        assert_eq!(syntax("{{ tools | tojson }} {\"name\": …, \"parameters\": …}"), (Syntax::Bare, false));
        assert_eq!(syntax("{{ messages }}"), (Syntax::Tagged, true));
    }
}
