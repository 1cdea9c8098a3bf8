//! Fields that ask for output of a certain form: OpenAI's `response_format` and vLLM's `structured_outputs`, with the
//! names that the latter had before.

use serde_json::{Value, json};

use crate::error::ApiError;
use crate::grammar::{Grammar, GrammarError};
use crate::json::{Field, Fields, describe, shorten, wrong};

/// A grammar, and the field to name where it is refused.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) grammar: Grammar,
    pub(super) field: String,
}

impl Wanted {
    /// Too long a grammar is refused here, before anything of its size is done for the request.
    ///
    /// # Errors
    /// 400.
    pub(super) fn new(field: impl Into<String>, grammar: Grammar) -> Result<Self, ApiError> {
        let wanted = Wanted { grammar, field: field.into() };
        match wanted.grammar.check_length() {
            Ok(()) => Ok(wanted),
            Err(error) => Err(wanted.refused(&error)),
        }
    }

    /// What the client hears where the grammar does not compile.
    pub(super) fn refused(&self, error: &GrammarError) -> ApiError {
        match error {
            GrammarError::Busy => ApiError::unavailable("grammar_busy", "the grammar compiler is busy"),
            _ => ApiError::field(&self.field, format!("{}: {error}", self.field)),
        }
    }
}

/// The grammar that a request asks for, if any.
///
/// # Errors
/// 400, also where two fields ask for one.
pub(super) fn wanted(f: &mut Fields) -> Result<Option<Wanted>, ApiError> {
    let mut found = response_format(f)?;
    let structured = match f.value("structured_outputs") {
        None => None,
        Some(value) => Some(structured_outputs(Fields::at("structured_outputs", value)?)?),
    };
    let older = ["guided_json", "guided_regex", "guided_choice", "guided_grammar"];
    let older = older.map(|name| f.value(name).map(|value| (name, value)));
    let mut others: Vec<Wanted> = structured.into_iter().collect();
    for (name, value) in older.into_iter().flatten() {
        others.push(constraint(name, &name["guided_".len()..], value)?);
    }
    for other in others {
        if let Some(first) = &found {
            let message = format!("{}: {} asks for a form already", other.field, first.field);
            return Err(ApiError::field(other.field, message));
        }
        found = Some(other);
    }
    Ok(found)
}

fn response_format(f: &mut Fields) -> Result<Option<Wanted>, ApiError> {
    let Some(value) = f.value("response_format") else { return Ok(None) };
    let mut format = Fields::at("response_format", value)?;
    match format.get::<String>("type")?.as_deref() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(any_object("response_format")?)),
        Some("json_schema") => {
            let path = "response_format.json_schema";
            let missing = |path: &str| ApiError::field(path, format!("{path}: missing"));
            let inner = format.value("json_schema").ok_or_else(|| missing(path))?;
            let mut inner = Fields::at(path, inner)?;
            let field = inner.name("schema");
            // Documentation for the model's developers, and a promise that is kept in either case.
            inner.get::<String>("name")?;
            inner.get::<String>("description")?;
            inner.get::<bool>("strict")?;
            let schema = inner.value("schema").ok_or_else(|| missing(&field))?;
            Ok(Some(schema_of(&field, schema)?))
        }
        Some(other) => {
            let got = shorten(other);
            let message =
                format!("response_format.type: expected text, json_object or json_schema, got {got}");
            Err(ApiError::field("response_format.type", message))
        }
        None => Err(ApiError::field("response_format.type", "response_format.type: missing")),
    }
}

/// One of vLLM's kinds, and nothing that would make it another one.
fn structured_outputs(mut fields: Fields) -> Result<Wanted, ApiError> {
    let path = fields.name("");
    let path = path.trim_end_matches('.').to_owned();
    let mut found: Option<Wanted> = None;
    for kind in ["json", "regex", "choice", "grammar", "json_object"] {
        let Some(value) = fields.value(kind) else { continue };
        let field = fields.name(kind);
        if kind == "json_object" && value == Value::Bool(false) {
            continue;
        }
        if found.is_some() {
            let message = format!("{path}: exactly one of json, regex, choice, grammar and json_object");
            return Err(ApiError::field(path, message));
        }
        found = Some(constraint(&field, kind, value)?);
    }
    for hint in ["disable_fallback", "disable_any_whitespace", "disable_additional_properties"] {
        fields.get::<bool>(hint)?;
    }
    fields.refuse("whitespace_pattern", &[])?;
    fields.refuse("structural_tag", &[])?;
    found.ok_or_else(|| {
        ApiError::field(
            &path,
            format!("{path}: one of json, regex, choice, grammar and json_object is needed"),
        )
    })
}

fn constraint(field: &str, kind: &str, value: Value) -> Result<Wanted, ApiError> {
    let string = |value: &Value| String::from_value(value).ok_or_else(|| wrong::<String>(field, value));
    match kind {
        "json" => {
            // vLLM takes the schema as a text as well.
            let schema = match &value {
                Value::String(text) => crate::json::parse(text.as_bytes())
                    .map_err(|_| ApiError::field(field, format!("{field}: the text is no valid JSON")))?,
                _ => value,
            };
            schema_of(field, schema)
        }
        "regex" => Wanted::new(field, Grammar::regex(&string(&value)?)),
        "grammar" => Wanted::new(field, Grammar::Lark(string(&value)?)),
        "choice" => {
            let texts = match &value {
                Value::Array(list) if !list.is_empty() => list.iter().map(String::from_value).collect(),
                _ => None::<Vec<String>>,
            };
            let Some(texts) = texts else {
                let got = describe(&value);
                return Err(ApiError::field(
                    field,
                    format!("{field}: expected a list of strings, got {got}"),
                ));
            };
            if texts.iter().any(String::is_empty) {
                return Err(ApiError::field(field, format!("{field}: a choice is empty")));
            }
            Wanted::new(field, Grammar::choice(&texts))
        }
        _ => match bool::from_value(&value) {
            Some(_) => any_object(field),
            None => Err(wrong::<bool>(field, &value)),
        },
    }
}

fn any_object(field: &str) -> Result<Wanted, ApiError> {
    schema_of(field, json!({ "type": "object" }))
}

fn schema_of(field: &str, schema: Value) -> Result<Wanted, ApiError> {
    let grammar = Grammar::schema(schema, false);
    Wanted::new(field, grammar.map_err(|e| ApiError::field(field, format!("{field}: {e}")))?)
}
