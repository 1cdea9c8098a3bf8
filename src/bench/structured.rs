//! What forms cost: the time of a step of sixteen answers, free, under a JSON schema, and under the grammar of the
//! shopping assistant's answers. The three take turns, so that whatever else the machine does meets all of them, and
//! what the forms yield is checked before anything is timed.

use std::sync::{Arc, Mutex};

use anyhow::{Context, bail, ensure};
use millrace_engine::{
    Constraint, Event, Handle, Observer, Request, RequestStats, SamplingParams, StepStats,
};
use millrace_models::text::Tokenizer;
use millrace_server::Forms;
use serde::Serialize;
use serde_json::{Value, json};

use crate::args::BenchArgs;
use crate::load;

const ROWS: usize = 16;
const TOKENS: u32 = 96;
const ROUNDS: usize = 15;

/// Medians, in milliseconds, and the medians over the rounds of their ratio to the free answers of the same round.
#[derive(Debug, Serialize)]
struct Cost {
    form: &'static str,
    step_ms: f64,
    ratio: f64,
    lowest_ratio: f64,
    highest_ratio: f64,
    /// What the engine does beside the backend's work, where forms are worked out: mean over a round's steps.
    host_ms: f64,
    /// What it does more than for free answers, as a share of their step. Other work on the machine moves it less than
    /// it moves the ratio of steps.
    host_share: f64,
}

/// Steps that decode all rows and nothing else: seconds of the host, and in all.
#[derive(Clone, Default)]
struct Steps(Arc<Mutex<Vec<(f64, f64)>>>);

/// A round's steps of one kind, in milliseconds: their median, and the mean of the host's part.
#[derive(Clone, Copy, Default)]
struct Turn {
    step: f64,
    host: f64,
}

impl Observer for Steps {
    fn step(&mut self, stats: &StepStats<'_>) {
        if stats.rows == ROWS && stats.computed_tokens == ROWS && stats.generation_tokens == ROWS {
            let all = stats.host_seconds + stats.device_seconds;
            self.0.lock().expect("no panic").push((stats.host_seconds, all));
        }
    }

    fn request(&mut self, _: &RequestStats) {}
}

type Form = Option<Box<dyn Constraint>>;

pub(super) fn run(args: &BenchArgs) -> anyhow::Result<()> {
    let mut model = args.model.clone();
    model.graph.max_num_seqs = model.graph.max_num_seqs.max(ROWS);
    let loaded = load::open(&model, &Default::default())?;
    let text = loaded.text()?;
    let (tokenizer, eos) = (text.tokenizer, text.defaults.eos_token_ids);
    let steps = Steps::default();
    let engine = loaded.start(&model, ROWS, false, Box::new(steps.clone()))?;

    let forms = Forms::new(&tokenizer, &eos)?;
    let products: Vec<String> = (1..=8).map(|n| format!("KP-{n:02}")).collect();
    let attributes = ["weight_g", "material", "capacity_ml", "dishwasher_safe"].map(String::from);
    let citations: Vec<u32> = (1..=8).collect();
    let list = json!({ "type": "array", "minItems": 1000, "items": person() });
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let prompt = tokenizer
        .encode("A list of people, each with a name, an age and a city, and what they cook:", true)?;
    let ask = |form: Form, seed: usize, tokens: u32| {
        let params = SamplingParams {
            temperature: 0.8,
            seed: Some(seed as u64),
            max_tokens: tokens,
            eos_token_ids: eos.clone(),
            // Each answer is to be as long as it may.
            logit_bias: if tokens == TOKENS {
                eos.iter().map(|id| (*id, -100.0)).collect()
            } else {
                Vec::new()
            },
            ..SamplingParams::default()
        };
        Request { prompt: prompt.clone(), params, n: 1, constraint: form, ..Request::default() }
    };

    let document =
        runtime.block_on(answers(&engine.handle, vec![ask(Some(forms.schema(&person())?), 1, 300)]))?;
    check(&tokenizer.decode(&document[0], true))?;

    let names = ["free", "JSON schema", "assistant's answer"];
    let mut rounds: Vec<[Turn; 3]> = Vec::new();
    for round in 0..ROUNDS {
        let mut turns = [Turn::default(); 3];
        for (kind, turn) in turns.iter_mut().enumerate() {
            let requests = (0..ROWS).map(|row| -> anyhow::Result<Request> {
                let form = match kind {
                    0 => None,
                    1 => Some(forms.schema(&list)?),
                    _ => Some(forms.answer(&products, &attributes, &citations)?),
                };
                Ok(ask(form, round * ROWS + row, TOKENS))
            });
            let requests = requests.collect::<anyhow::Result<Vec<_>>>()?;
            steps.0.lock().expect("no panic").clear();
            let answers = runtime.block_on(answers(&engine.handle, requests))?;
            if kind == 1 {
                check_beginnings(&tokenizer, &answers)?;
            }
            let mut taken = std::mem::take(&mut *steps.0.lock().expect("no panic"));
            ensure!(taken.len() > 20, "{}: only {} steps had {ROWS} rows", names[kind], taken.len());
            taken.sort_by(|a, b| a.1.total_cmp(&b.1));
            let host: f64 = taken.iter().map(|(host, _)| host).sum();
            *turn = Turn { step: taken[taken.len() / 2].1 * 1e3, host: host / taken.len() as f64 * 1e3 };
        }
        rounds.push(turns);
    }
    engine.stop()?;
    let costs: Vec<Cost> = (0..3).map(|kind| cost(names[kind], kind, &rounds)).collect();
    if args.json {
        println!("{}", serde_json::to_string_pretty(&costs)?);
    } else {
        println!(
            "a step of {ROWS} answers, medians of {ROUNDS} rounds that take turns; the host's part of it"
        );
        for Cost { form, step_ms, ratio, lowest_ratio, highest_ratio, host_ms, host_share } in costs {
            println!(
                "{form:20} {step_ms:7.2} ms   {ratio:.3} of free ({lowest_ratio:.3} to {highest_ratio:.3})   \
                 {host_ms:.2} ms   {:+.1} % of a free step",
                host_share * 100.0
            );
        }
    }
    Ok(())
}

fn cost(form: &'static str, kind: usize, rounds: &[[Turn; 3]]) -> Cost {
    let sorted = |of: &dyn Fn(&[Turn; 3]) -> f64| {
        let mut list: Vec<f64> = rounds.iter().map(of).collect();
        list.sort_by(f64::total_cmp);
        list
    };
    let middle = rounds.len() / 2;
    let ratios = sorted(&|round| round[kind].step / round[0].step);
    Cost {
        form,
        step_ms: sorted(&|round| round[kind].step)[middle],
        ratio: ratios[middle],
        lowest_ratio: ratios[0],
        highest_ratio: ratios[rounds.len() - 1],
        host_ms: sorted(&|round| round[kind].host)[middle],
        host_share: sorted(&|round| (round[kind].host - round[0].host) / round[0].step)[middle],
    }
}

fn person() -> Value {
    let name = json!({ "type": "string", "minLength": 1, "maxLength": 20 });
    json!({ "type": "object", "required": ["name", "age", "city"], "additionalProperties": false, "properties": {
        "name": name, "age": { "type": "integer", "minimum": 0, "maximum": 120 }, "city": name,
        "likes": { "type": "array", "items": name, "maxItems": 3 } } })
}

/// A document must be one of a person.
fn check(text: &str) -> anyhow::Result<()> {
    let value: Value = serde_json::from_str(text).with_context(|| format!("not JSON: {text}"))?;
    let age = value["age"].as_u64().filter(|age| *age <= 120);
    let names = ["name", "city"].map(|key| value[key].as_str().is_some_and(|text| !text.is_empty()));
    ensure!(age.is_some() && names == [true; 2], "not a person: {text}");
    Ok(())
}

/// Lists that were cut short must still begin with people, where one fits.
fn check_beginnings(tokenizer: &Tokenizer, answers: &[Vec<u32>]) -> anyhow::Result<()> {
    for answer in answers {
        let text = tokenizer.decode(answer, true);
        let inner = text.strip_prefix('[').with_context(|| format!("not a list: {text}"))?;
        match serde_json::Deserializer::from_str(inner).into_iter::<Value>().next() {
            Some(Ok(first)) => check(&first.to_string())?,
            Some(Err(error)) if error.is_eof() => {}
            _ => bail!("not a list of people: {text}"),
        }
    }
    Ok(())
}

/// The tokens of each request.
async fn answers(handle: &Handle, requests: Vec<Request>) -> anyhow::Result<Vec<Vec<u32>>> {
    let mut streams = Vec::with_capacity(requests.len());
    for request in requests {
        streams.push(handle.submit(request)?.pop().context("a request has one sequence")?);
    }
    let mut answers = Vec::with_capacity(streams.len());
    for mut events in streams {
        let mut tokens = Vec::new();
        while let Some(event) = events.recv().await {
            match event {
                Event::Started { .. } => {}
                Event::Token { token, .. } => tokens.push(token),
                Event::Finished(_) => break,
                Event::Failed(error) => return Err(error.into()),
            }
        }
        answers.push(tokens);
    }
    Ok(answers)
}
