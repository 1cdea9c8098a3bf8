//! `millrace generate`: one answer, streamed to the terminal.

use std::io::{Read, Write};

use anyhow::{Context, bail};
use millrace_engine::{Event, Request, SamplingParams};
use millrace_models::text::{RenderOptions, StopStrings};
use serde_json::json;

use crate::args::GenerateArgs;
use crate::load::{self, Text};

/// Answers the prompt.
pub(crate) fn run(args: &GenerateArgs) -> anyhow::Result<()> {
    let prompt = match args.prompt.as_str() {
        "-" => {
            let mut text = String::new();
            std::io::stdin()
                .read_to_string(&mut text)
                .context("cannot read the prompt from standard input")?;
            text
        }
        text => text.to_owned(),
    };
    let loaded = load::open(&args.model, &Default::default())?;
    let Text { tokenizer, template, defaults } = loaded.text()?;
    let ids = if args.raw {
        tokenizer.encode(&prompt, true)?
    } else {
        let template =
            template.context("this model has no chat template; --raw continues the prompt as it is")?;
        let mut messages = Vec::new();
        if let Some(system) = &args.system {
            messages.push(json!({"role": "system", "content": system}));
        }
        messages.push(json!({"role": "user", "content": prompt}));
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        template.encode(&tokenizer, &messages, &options)?
    };
    let room = loaded.max_model_len.saturating_sub(ids.len());
    if room == 0 {
        bail!("the prompt has {} tokens, the model takes {}", ids.len(), loaded.max_model_len);
    }
    let params = SamplingParams {
        temperature: args.temperature.or(defaults.temperature).unwrap_or(1.0),
        top_p: args.top_p.or(defaults.top_p).unwrap_or(1.0),
        top_k: args.top_k.or(defaults.top_k).filter(|k| *k > 0),
        repetition_penalty: defaults.repetition_penalty.unwrap_or(1.0),
        seed: Some(args.model.seed),
        eos_token_ids: defaults.eos_token_ids.clone(),
        max_tokens: args.max_tokens.min(room as u32),
        ..SamplingParams::default()
    };
    let engine = loaded.start(&args.model, 1, false, Box::new(()))?;
    let request = Request { prompt: ids, params, n: 1, ..Request::default() };
    let mut events = engine.handle.submit(request)?.pop().context("a request has one sequence")?;
    let mut detokenizer = tokenizer.detokenizer(true);
    let mut stop = StopStrings::new(&args.stop, false).matcher();
    let mut out = std::io::stdout().lock();
    let mut stopped = false;
    while let Some(event) = events.blocking_recv() {
        let text = match event {
            Event::Started { .. } => continue,
            Event::Token { token, .. } => detokenizer.push(token),
            Event::Finished(_) => break,
            Event::Failed(error) => return Err(error.into()),
        };
        let (safe, found) = stop.push(&text);
        write!(out, "{safe}")?;
        out.flush()?;
        if found.is_some() {
            stopped = true;
            break;
        }
    }
    if !stopped {
        let (safe, found) = stop.push(&detokenizer.finish());
        write!(out, "{safe}")?;
        if found.is_none() {
            write!(out, "{}", stop.finish())?;
        }
    }
    writeln!(out)?;
    drop(events);
    engine.stop()
}
