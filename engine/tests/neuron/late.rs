//! Programs that follow while others serve, and how large the KV cache is.

use std::time::{Duration, Instant};

use super::*;

/// Waits until so many programs are loaded; says whether they are.
fn loaded(rig: &Rig, count: usize) -> bool {
    let started = Instant::now();
    let ready = || rig.figures.programs.iter().filter(|it| it.compilation_seconds().is_some()).count();
    while ready() < count && started.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(5));
    }
    ready() == count
}

fn gated() -> (Arc<Gate>, Setup) {
    let gate = Arc::new(Gate::default());
    (gate.clone(), Setup { gate: Some(gate), ..Setup::default() })
}

#[test]
fn it_serves_before_all_programs_are_there_and_then_with_all() {
    let Some(folder) = families().into_iter().next() else { return };
    for ranks in [1, 2] {
        let (gate, setup) = gated();
        let rig = Setup { ranks, ..setup }.start(&folder).expect("it starts");
        check(&rig, &folder);
        let ran = |rig: &Rig| rig.figures.programs.iter().filter(|it| it.executions() > 0).count();
        assert_eq!((loaded(&rig, 2), ran(&rig)), (true, 2), "a decode for all, and a prompt chunk");
        gate.open();
        // Requests meanwhile are served by what is there.
        check(&rig, &folder);
        assert!(loaded(&rig, BUCKETS.len()), "{:?}", rig.figures);
        check(&rig, &folder);
        assert!(ran(&rig) > 2, "{:?}", rig.figures);
        rig.finish();
    }
}

/// What it is told to end during is no matter.
#[test]
fn it_ends_while_programs_follow() {
    let Some(folder) = families().into_iter().next() else { return };
    let (_gate, setup) = gated();
    let rig = setup.start(&folder).expect("it starts");
    let started = Instant::now();
    rig.finish();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

/// Every status, when loading a program that comes late returns it once.
#[test]
fn what_each_status_does_to_a_late_program() {
    let Some(folder) = families().into_iter().next() else { return };
    for status in Status::known() {
        let (gate, setup) = gated();
        let rig = setup.start(&folder).expect("it starts");
        rig.double.set("SOFTNRT_FAULT", &format!("load@1:{}", status.code()));
        let reaction = status.reaction(Phase::Load);
        gate.open();
        if reaction.is_fatal() {
            // It ends with the first request that finds out.
            let why = loop {
                match rig.handle.submit(greedy(&[1, 2], 3)).map(|mut it| read(&mut it.remove(0)).2) {
                    Ok(None) => {}
                    Ok(Some(RequestError::EngineDead(why))) => break why,
                    other => panic!("{status}: {other:?}"),
                }
            };
            assert!(why.contains(status.name().expect("a known one")), "{status}: {why}");
            assert!(rig.thread.join().expect("no panic").is_err(), "{status}: the process must end");
            continue;
        }
        let tolerated = reaction == Reaction::Wait;
        let count = if tolerated { BUCKETS.len() } else { BUCKETS.len() - 1 };
        assert!(loaded(&rig, count), "{status}: {:?}", rig.figures);
        check(&rig, &folder);
        rig.finish();
    }
}

/// The first programs that do not fit are asked for with fewer blocks; sizes that are compiled already come first.
#[test]
fn the_cache_is_what_free_memory_allows() {
    let Some(folder) = families().into_iter().next() else { return };
    let memory = |megabytes: usize| ("SOFTNRT_MEMORY", (megabytes << 20).to_string());
    let start = |memory, sizes: &[usize], reserve| {
        let setup = Setup {
            kv_blocks: 40,
            kv: KvSource::Device { reserve },
            sizes: sizes.to_vec(),
            settings: vec![memory],
            ..Setup::default()
        };
        setup.start(&folder)
    };
    let most = 8 * CONTEXT / BLOCK;
    let plenty = start(memory(512), &[], 0).expect("it starts");
    assert_eq!(plenty.kv_blocks, most, "no more than all sequences could hold");
    check(&plenty, &folder);
    plenty.finish();
    let compiled = start(memory(512), &[30, 40], 0).expect("it starts");
    assert_eq!(compiled.kv_blocks, 40 - dummies(), "what is compiled already");
    compiled.finish();
    // A reserve that leaves a few hundred kilobytes.
    let reserve = free(&folder, 64) - (300 << 10);
    let tight = start(memory(64), &[], reserve).expect("it starts");
    assert!((8..most).contains(&tight.kv_blocks), "{} blocks", tight.kv_blocks);
    check(&tight, &folder);
    tight.finish();
    let error = start(memory(64), &[], free(&folder, 64) - 1).err().expect("it does not start").to_string();
    assert!(error.contains("KV blocks"), "{error}");
}

/// Blocks that the padding of [`BUCKETS`] is parked on: one for a chunk of 16 tokens.
fn dummies() -> usize {
    16usize.div_ceil(BLOCK)
}

/// Bytes that are free once the weights are on the device.
fn free(folder: &Path, megabytes: usize) -> u64 {
    let checkpoint = Checkpoint::open(folder).expect("a model");
    let double = Double::new(&[("SOFTNRT_MEMORY", &(megabytes << 20).to_string())]);
    let device = Device::claim(double.library().clone(), 1).expect("a core");
    let model = DeviceModel {
        ranks: 1,
        dtype: DType::F32,
        weights: DeviceWeights::Float,
        candidates: 16,
        top_k: TopKForm::Hlo,
        block_size: BLOCK,
        kv_blocks: 40,
    };
    device.upload(&checkpoint, &model, &|_| {}).expect("there is room");
    device.free_memory().expect("it tells").expect("it can tell")
}
