//! The KV cache as a tensor: what is written is what is read, rounded; what cannot be is refused.

use half::{bf16, f16};
use millrace_graph::{DType, Type};
use millrace_kernels::kv::{KvError, KvRole, KvTensor};
use proptest::{prelude::*, sample::select};

proptest! {
    #[test]
    fn a_slot_reads_as_it_was_written(
        dtype in select(vec![DType::F32, DType::F16, DType::BF16, DType::I8]),
        role in select(vec![KvRole::Key, KvRole::Value]),
        block in select(vec![8usize, 16, 24, 32, 64, 128]),
        heads in 1..4usize,
        dim in select(vec![1usize, 8, 20, 64, 130, 256]),
        padding in 0..3usize,
        slots in prop::collection::hash_set(0..3 * 8i32, 1..24),
        bits in any::<u32>(),
    ) {
        let mut cache = KvTensor::new(&Type::new(dtype, [3, block, heads, dim]), role).unwrap();
        let slots: Vec<i32> = slots.into_iter().collect();
        let (row, stride) = (heads * dim, heads * dim + padding);
        // Every bit pattern but NaN, infinities and subnormals among them.
        let value = |i: usize| {
            let x = f32::from_bits(bits.wrapping_mul(2 * i as u32 + 1));
            if x.is_nan() { i as f32 } else { x }
        };
        let values: Vec<f32> = (0..slots.len() * stride).map(value).collect();
        (0..3).for_each(|block| cache.poison(block));
        let middle = slots.len() / 2;
        for tokens in [middle..slots.len(), 0..middle] {
            // SAFETY: rows for all slots, which are below the 24 that the smallest cache has.
            unsafe { cache.write(values.as_ptr(), stride, &slots, tokens) };
        }
        let mut out = vec![0.0; row];
        for slot in 0..3 * block {
            cache.read(slot, &mut out);
            match slots.iter().position(|s| *s as usize == slot) {
                None => prop_assert!(out.iter().all(|x| x.is_nan()), "slot {} was not written", slot),
                Some(token) if dtype == DType::I8 => {
                    for (out, row) in out.chunks(dim).zip(values[token * stride..][..row].chunks(dim)) {
                        prop_assert!(is_in_counts(row, out), "{:?} as {:?}", row, out);
                    }
                }
                Some(token) => {
                    for (out, x) in out.iter().zip(&values[token * stride..]) {
                        let want = match dtype {
                            DType::F16 => f16::from_f32(*x).to_f32(),
                            DType::BF16 => bf16::from_f32(*x).to_f32(),
                            _ => *x,
                        };
                        prop_assert_eq!(out.to_bits(), want.to_bits(), "{} as {}", x, dtype);
                    }
                }
            }
        }
    }
}

/// Whether `out` is `row` in whole counts of a 127th of its largest magnitude, to the nearest; NaN where it has what is
/// not finite.
fn is_in_counts(row: &[f32], out: &[f32]) -> bool {
    if row.iter().any(|x| !x.is_finite()) {
        return out.iter().all(|x| x.is_nan());
    }
    let largest = row.iter().fold(0.0, |max: f64, x| max.max(f64::from(x.abs())));
    let step = largest / 127.0;
    // Half a step, and what f32 loses on the way; magnitudes that an inverse cannot be taken of are 0.
    let tolerance = if largest < 1.6e-36 { largest } else { step * 0.50002 };
    row.iter().zip(out).all(|(x, out)| (f64::from(*x) - f64::from(*out)).abs() <= tolerance)
}

#[test]
fn what_is_no_cache_is_refused() {
    let new = |dtype, shape: &[usize]| KvTensor::new(&Type::new(dtype, shape), KvRole::Key);
    for (dtype, shape) in [
        (DType::I32, &[2, 16, 1, 8][..]),
        (DType::Q8_0, &[2, 16, 1, 32]),
        (DType::F32, &[2, 16, 8]),
        (DType::F32, &[2, 16, 0, 8]),
        (DType::F32, &[0, 16, 1, 8]),
    ] {
        assert!(matches!(new(dtype, shape), Err(KvError::Type(_))), "{dtype} {shape:?}");
    }
    assert_eq!(new(DType::F32, &[2, 12, 1, 8]).unwrap_err(), KvError::BlockSize(12));
    // More than a machine has, more than the allocator takes, more than a number holds.
    for blocks in [1 << 42, 1 << 58, usize::MAX] {
        for role in [KvRole::Key, KvRole::Value] {
            let error = KvTensor::new(&Type::new(DType::F16, [blocks, 16, 3, 60]), role).unwrap_err();
            assert!(matches!(error, KvError::Memory { .. }), "{error}");
        }
    }
}

/// A cache larger than what is used of it must cost little: the resident set grows with writes, not with `new`.
#[cfg(target_os = "linux")]
#[test]
fn untouched_blocks_take_no_memory() {
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/statm").unwrap();
        status.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let before = resident();
    let cache = KvTensor::new(&Type::new(DType::F16, [4096, 16, 8, 128]), KvRole::Value).unwrap();
    assert_eq!(cache.bytes(), 4096 * 16 * 8 * 128 * 2);
    let row = vec![1.0; 8 * 128];
    // SAFETY: one row, and a slot of the cache.
    unsafe { cache.write(row.as_ptr(), 0, &[4096 * 8], 0..1) };
    let grown = resident().saturating_sub(before);
    assert!(grown < cache.bytes() / 8, "{grown} bytes became resident");
}
