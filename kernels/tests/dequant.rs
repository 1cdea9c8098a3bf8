//! Dequantisation against the `gguf` package, bit for bit, and quantisation against the formats' steps.
#![allow(clippy::print_stderr, reason = "a test that cannot run must say so")]

use std::process::Command;

use millrace_graph::DType;
use millrace_kernels::dequant::{FormatError, dequantise};
use millrace_kernels::quantise::quantise;
use proptest::prelude::*;

const FLOATS: [DType; 11] = [
    DType::F32,
    DType::F16,
    DType::BF16,
    DType::Q4_0,
    DType::Q4_1,
    DType::Q5_0,
    DType::Q5_1,
    DType::Q8_0,
    DType::Q4K,
    DType::Q5K,
    DType::Q6K,
];

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().map(|c| c.to_digit(16).expect("hex") as u8).collect();
    digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

/// Checks lines of `format blocks floats`; yields the formats seen.
fn check(lines: &str, source: &str) -> Vec<DType> {
    let mut seen = Vec::new();
    for (number, line) in lines.lines().enumerate() {
        let [name, blocks, floats] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{source} line {number}: {line}");
        };
        let dtype = FLOATS.into_iter().find(|dtype| dtype.name() == name).expect("a known format");
        let want: Vec<u32> =
            unhex(floats).chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        let mut out = vec![0.0; want.len()];
        dequantise(dtype, &unhex(blocks), &mut out).expect("whole blocks");
        let got: Vec<u32> = out.iter().map(|x| x.to_bits()).collect();
        assert!(!want.is_empty() && got == want, "{source} line {number}, {dtype}: {out:?}");
        seen.push(dtype);
    }
    seen.dedup();
    seen
}

#[test]
fn checked_in_blocks_match_bit_for_bit() {
    assert_eq!(check(include_str!("data/gguf_blocks.txt"), "fixture"), FLOATS);
}

#[test]
fn random_blocks_match_the_gguf_package() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/gguf_reference.py");
    if !Command::new("python3").args(["-c", "import gguf"]).output().is_ok_and(|out| out.status.success()) {
        eprintln!("skipped: python3 has no package gguf");
        return;
    }
    let out = Command::new("python3").args([script, "20", "60"]).output().expect("python3");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(check(&String::from_utf8_lossy(&out.stdout), "seed 20"), FLOATS);
}

#[test]
fn lengths_and_formats_are_checked() {
    let mut out = [0.0; 32];
    assert!(dequantise(DType::Q4_0, &[0; 18], &mut out).is_ok());
    for (bytes, elements) in [(17, 32), (19, 32), (18, 31), (0, 32), (36, 32), (18, 0)] {
        let refused = dequantise(DType::Q4_0, &vec![0; bytes], &mut out[..elements]);
        assert!(matches!(refused, Err(FormatError::Length { .. })), "{bytes} bytes, {elements} elements");
    }
    assert_eq!(dequantise(DType::I32, &[0; 128], &mut out), Err(FormatError::NotFloat(DType::I32)));
    assert_eq!(quantise(DType::U8, &out, &mut [0; 32]), Err(FormatError::NotFloat(DType::U8)));
    assert!(matches!(quantise(DType::Q8_0, &out, &mut [0; 33]), Err(FormatError::Length { .. })));
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
        out[5] = bad;
        let refused = quantise(DType::Q4_1, &out, &mut [0; 20]);
        assert_eq!(refused, Err(FormatError::Range { dtype: DType::Q4_1, index: 5 }), "{bad}");
    }
}

/// The largest error that the format may make in a sub-block with these extremes, within a block of absolute
/// maximum `block`: see the module's introduction.
fn tolerance(dtype: DType, low: f32, high: f32, block: f32) -> f32 {
    let absmax = high.max(-low);
    // Rounding of f16 scales and minima, relative and absolute.
    let f16 = 1.0 / 1024.0;
    let with_min = |levels: f32| {
        let step = (high - low) / levels;
        step / 2.0 + low.abs() * f16 + step * f16
    };
    let k_with_min = |levels: f32| {
        // The sub-block's grid starts at or below 0; both its scale and its minimum are rounded up to a
        // multiple of 1/63 of the block's largest.
        let unit_min = block / 63.0 * (1.0 + f16);
        let range = high.max(0.0) - low.min(0.0) + unit_min;
        let unit = (2.0 * block + unit_min) / levels / 63.0 * (1.0 + f16);
        (range / levels + unit) / 2.0 * (1.0 + f16)
    };
    let error = match dtype {
        DType::F32 => 0.0,
        DType::F16 => absmax / 2048.0,
        DType::BF16 => absmax / 256.0,
        DType::Q4_0 => absmax / 8.0 * (1.0 + f16),
        DType::Q5_0 => absmax / 16.0 * (1.0 + f16),
        DType::Q4_1 => with_min(15.0),
        DType::Q5_1 => with_min(31.0),
        DType::Q8_0 => absmax / 127.0 / 2.0 * (1.0 + f16),
        DType::Q4K => k_with_min(15.0),
        DType::Q5K => k_with_min(31.0),
        DType::Q6K => (absmax / 31.0 + block / 31.0 / 127.0 * (1.0 + f16)) / 2.0 * (1.0 + f16),
        other => panic!("{other}"),
    };
    // f16's subnormal step times the most levels a grid has, and f32's own rounding.
    error + if dtype == DType::F32 { 0.0 } else { 6e-8 * 127.0 * 63.0 + absmax * 1e-6 }
}

fn sub_block(dtype: DType) -> usize {
    match dtype {
        DType::F32 | DType::F16 | DType::BF16 => 1,
        DType::Q6K => 16,
        _ => 32,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn quantising_errs_by_less_than_a_step(
        unit in prop::collection::vec(-1.0f32..1.0, 512),
        offset in -2.0f32..2.0,
        scales in prop::collection::vec(-12i32..9, 32),
    ) {
        // Each 16 elements have a magnitude of their own: sub-blocks differ.
        let x: Vec<f32> = unit
            .iter()
            .enumerate()
            .map(|(i, x)| (x + offset) * 2f32.powi(scales[i / 16]))
            .collect();
        for dtype in FLOATS {
            let mut bytes = vec![0; dtype.bytes(x.len()).unwrap()];
            quantise(dtype, &x, &mut bytes).unwrap();
            let mut back = vec![0.0; x.len()];
            dequantise(dtype, &bytes, &mut back).unwrap();
            for start in (0..x.len()).step_by(sub_block(dtype)) {
                let around = start / 256 * 256;
                let block = x[around..around + 256].iter().fold(0.0, |max: f32, x| max.max(x.abs()));
                let part = &x[start..start + sub_block(dtype)];
                let low = part.iter().copied().fold(f32::INFINITY, f32::min);
                let high = part.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let most = tolerance(dtype, low, high, block);
                for (x, y) in part.iter().zip(&back[start..]) {
                    prop_assert!((x - y).abs() <= most, "{dtype}: {x} became {y}, allowed {most}");
                }
            }
        }
    }
}

#[test]
fn extremes_survive() {
    for dtype in FLOATS {
        for fill in [0.0f32, 65504.0, -65504.0, 1e-8, -3.0] {
            let x = [fill; 256];
            let mut bytes = vec![0; dtype.bytes(256).unwrap()];
            quantise(dtype, &x, &mut bytes).unwrap();
            let mut back = [1.0; 256];
            dequantise(dtype, &bytes, &mut back).unwrap();
            let worst = back.iter().fold(0.0, |worst: f32, y| worst.max((y - fill).abs()));
            assert!(worst <= fill.abs() / 31.0 + 1e-6, "{dtype}: {fill} became {:?}", &back[..4]);
        }
        // The whole range of f16 within one block.
        let x: Vec<f32> = (0..256).map(|i| if i % 2 == 0 { 65504.0 } else { -65504.0 }).collect();
        let mut bytes = vec![0; dtype.bytes(256).unwrap()];
        quantise(dtype, &x, &mut bytes).unwrap();
        let mut back = [1.0; 256];
        dequantise(dtype, &bytes, &mut back).unwrap();
        assert!(
            back.iter().zip(&x).all(|(y, x)| (y - x).abs() <= 65504.0 / 7.0),
            "{dtype}: {:?}",
            &back[..4]
        );
    }
}
