//! A step that fails costs those who caused it; a backend that fails costs everybody, and says so.

use std::collections::HashSet;

use proptest::prelude::*;

use crate::fake::*;
use millrace_engine::*;

fn requests(count: u32) -> Vec<Request> {
    (0..count).map(|at| greedy((0..6 + at).map(|i| (i * at) % 9 + 1).collect(), 12)).collect()
}

fn submit(engine: &Engine, requests: &[Request]) -> Vec<Receiver> {
    requests
        .iter()
        .map(|request| engine.handle.submit(request.clone()).expect("accepted").remove(0))
        .collect()
}

/// The request of a row, by the token that each of these tests puts first.
fn marked(step: &Step, marks: &HashSet<TokenId>, of: &mut std::collections::HashMap<SeqId, TokenId>) -> bool {
    for row in &step.rows {
        if row.position == 0 {
            of.insert(row.seq, step.tokens_of(row)[0]);
        }
    }
    step.rows.iter().any(|row| of.get(&row.seq).is_some_and(|mark| marks.contains(mark)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// From some step on, every step with a guilty sequence fails.
    #[test]
    fn only_the_guilty_fail(guilty in prop::collection::hash_set(20u32..30, 0..6), from in 0u64..12, block_size in 1usize..6) {
        let mut seen = std::collections::HashMap::new();
        let marks = guilty.clone();
        let hook = Box::new(move |number, step: &Step| match marked(step, &marks, &mut seen) && number >= from {
            true => Err(RunError::Step("scripted".to_owned())),
            false => Ok(()),
        });
        let config = EngineConfig { max_model_len: 64, ..EngineConfig::default() };
        let engine = Engine::start(FakeRunner::new(400, block_size, ROOMY, hook), config);
        let mut requests = requests(10);
        requests.iter_mut().zip(20..).for_each(|(request, mark)| request.prompt[0] = mark);
        let mut receivers = submit(&engine, &requests);
        for (request, receiver) in requests.iter().zip(&mut receivers) {
            let (outcome, expected) = (Outcome::of(receiver), expected(request, 0, 64));
            if guilty.contains(&request.prompt[0]) && matches!(outcome.end, Ending::Failed(_)) {
                prop_assert!(expected.tokens.starts_with(&outcome.tokens));
                prop_assert_eq!(outcome.end, Ending::Failed(RequestError::Refused("scripted".to_owned())));
            } else {
                prop_assert!(!guilty.contains(&request.prompt[0]) || from > 0, "the guilty fail");
                prop_assert_eq!(outcome, expected);
            }
        }
        let totals = engine.finish();
        prop_assert_eq!(totals.requests.len(), 10);
    }

    /// Steps that fail now and then, for no sequence's fault, and for a whole batch only.
    #[test]
    fn a_passing_fault_costs_nothing(faults in prop::collection::hash_set(0u64..60, 0..20)) {
        let engine = Engine::roomy(Box::new(move |number, step| {
            match faults.contains(&number) && step.rows.len() > 1 {
                true => Err(RunError::Step("too many".to_owned())),
                false => Ok(()),
            }
        }));
        let requests = requests(5);
        let mut receivers = submit(&engine, &requests);
        for (request, receiver) in requests.iter().zip(&mut receivers) {
            prop_assert_eq!(Outcome::of(receiver), expected(request, 0, 128));
        }
        engine.finish();
    }
}

/// Followers of a prompt whose first sequence fails take over.
#[test]
fn what_a_failed_step_wrote_is_not_shared() {
    let engine = Engine::roomy(Box::new(|number, step| match number == 0 || step.rows.len() > 1 {
        true => Err(RunError::Step("scripted".to_owned())),
        false => Ok(()),
    }));
    let request = Request { n: 3, ..greedy(vec![3; 20], 4) };
    let mut receivers = engine.handle.submit(request.clone()).expect("accepted");
    let outcomes: Vec<_> = receivers.iter_mut().map(Outcome::of).collect();
    assert!(matches!(outcomes[0].end, Ending::Failed(_)));
    assert_eq!(outcomes[1].tokens, expected(&request, 1, 128).tokens);
    assert_eq!(outcomes[2].tokens, expected(&request, 2, 128).tokens);
    engine.finish();
}

#[test]
fn a_dead_backend_fails_everybody() {
    let engine = Engine::roomy(Box::new(|number, _| match number {
        4 => Err(RunError::Fatal("scripted".to_owned())),
        _ => Ok(()),
    }));
    let mut receivers = submit(&engine, &requests(6));
    for receiver in &mut receivers {
        let Ending::Failed(RequestError::EngineDead(reason)) = Outcome::of(receiver).end else {
            panic!("everybody is told");
        };
        assert!(reason.contains("scripted"), "{reason}");
    }
    assert_eq!(engine.handle.submit(greedy(vec![1], 1)).expect_err("refused"), SubmitError::Closed);
    let error = engine.thread.join().expect("no panic").expect_err("the thread ends with the error");
    assert!(matches!(error, RunError::Fatal(_)));
    assert!(!engine.handle.is_alive());
    assert_eq!(engine.handle.load(), Load { queued: 0, running: 0 });
    assert_eq!(engine.record.totals().gauges, [0; 3]);
    assert_eq!(engine.record.totals().requests.len(), 6);
}

/// The backend dies between the halves of a step: what the first half finished stays finished.
#[test]
fn a_dead_backend_takes_back_nothing() {
    let engine = Engine::roomy(Box::new(|number, _| match number {
        2 => Err(RunError::Step("scripted".to_owned())),
        4 => Err(RunError::Fatal("scripted".to_owned())),
        _ => Ok(()),
    }));
    let mut receivers = engine.handle.submit(Request { n: 2, ..greedy(vec![1], 3) }).expect("accepted");
    assert_eq!(Outcome::of(&mut receivers[0]).end, Ending::Finished(FinishReason::Length));
    assert!(matches!(Outcome::of(&mut receivers[1]).end, Ending::Failed(RequestError::EngineDead(_))));
    engine.thread.join().expect("no panic").expect_err("the thread ends with the error");
    let totals = engine.record.totals();
    assert_eq!(totals.gauges, [0; 3]);
    assert_eq!(totals.requests[0].finished, [Some(FinishReason::Length), None]);
}

#[test]
fn a_panic_closes_every_channel() {
    let engine = Engine::roomy(Box::new(|number, _| {
        assert_ne!(number, 3, "scripted");
        Ok(())
    }));
    let mut receivers = submit(&engine, &requests(4));
    for receiver in &mut receivers {
        assert_eq!(Outcome::of(receiver).end, Ending::None);
    }
    assert!(engine.thread.join().is_err());
    assert!(!engine.handle.is_alive());
    assert_eq!(engine.handle.submit(greedy(vec![1], 1)).expect_err("refused"), SubmitError::Closed);
}
