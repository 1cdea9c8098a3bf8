//! The grammar of an answer that calls tools.
//!
//! A call that must come is all of the answer. Where calls are tagged and only may come, prose runs free until it
//! writes the opening tag; from there on the call is held to its function's schema.

use super::{CLOSE, Choice, Function, OPEN, Syntax, Tools};
use crate::error::ApiError;
use crate::grammar::{Grammar, quote};
use crate::openai::structured::Wanted;

/// Calls in one answer.
const MAX_CALLS: usize = 32;

pub(super) fn of(tools: &Tools, form: Option<Wanted>) -> Result<Option<Wanted>, ApiError> {
    let refuse = |field: &str, why| Err(ApiError::field(field, format!("{field}: {why}")));
    let form = match (&form, tools.choice) {
        (None, Choice::Auto) if tools.syntax == Syntax::Bare => return Ok(None),
        (None, _) => None,
        (Some(Wanted { grammar: Grammar::Schema(schema), .. }), Choice::Auto) => Some(schema),
        (Some(form), Choice::Auto) => {
            return refuse(&form.field, "beside tools, only a JSON schema is supported");
        }
        (Some(form), _) => return refuse(&form.field, "the answer must be a call, as tool_choice says"),
    };
    let (functions, more) = match tools.choice {
        Choice::Named(index) => (&tools.functions[index..=index], 0),
        _ => (&tools.functions[..], if tools.parallel { MAX_CALLS - 1 } else { 0 }),
    };
    let mut rules: String =
        functions.iter().enumerate().map(|(index, function)| rule(index, function, tools.syntax)).collect();
    let calls: Vec<String> = (0..functions.len()).map(|index| format!("call_{index}")).collect();
    rules += &format!("call: {}\n", calls.join(" | "));
    // What follows the first opening tag; bare calls have none, and Llama 3 writes one of them at a time.
    let (open, close) = (quote(OPEN), quote(CLOSE));
    let (first, rest) = match tools.syntax {
        Syntax::Bare => (String::new(), "call".to_owned()),
        Syntax::Tagged => {
            rules += &format!("tagged: /\\n?/ call /\\n?/ {close}\n");
            // A range that ends at zero is none to the compiler.
            let further =
                if more > 0 { format!(" (/\\n?/ {open} tagged){{0,{more}}}") } else { String::new() };
            (open.clone(), format!("tagged{further}"))
        }
    };
    let start = match (tools.choice, form) {
        (Choice::Auto, None) => {
            rules += &format!("lead[lazy]: /(.|\\n)*{OPEN}/\n");
            rules += &format!("TEXT: /(.|\\n)+/ & ~/(.|\\n)*{OPEN}(.|\\n)*/\n");
            format!("TEXT? | lead {rest}")
        }
        (_, None) => format!("{first} {rest}"),
        (_, Some(schema)) => {
            rules += &format!("form: %json {schema}\n");
            format!("form | {first} {rest}")
        }
    };
    Wanted::new("tools", Grammar::Lark(format!("start: {start}\n{rules}"))).map(Some)
}

/// A call of one function.
fn rule(index: usize, function: &Function, syntax: Syntax) -> String {
    let key = match syntax {
        Syntax::Tagged => "arguments",
        Syntax::Bare => "parameters",
    };
    let head = quote(&format!("{{\"name\": {}, \"{key}\": ", quote(&function.name)));
    // Without `strict`, what the compiler does not know of a schema is left to the model.
    match Grammar::schema(function.parameters.clone(), !function.strict) {
        Ok(Grammar::Schema(schema)) => {
            format!("call_{index}: {head} arguments_{index} \"}}\"\narguments_{index}: %json {schema}\n")
        }
        _ => unreachable!("parameters are an object"),
    }
}
