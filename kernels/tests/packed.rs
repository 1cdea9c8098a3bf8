//! Packed weights in files: what is read is what was written, bit by bit, and no damaged byte goes unnoticed.

mod common;

use std::fs::File;
use std::io::{Error, ErrorKind, Write};

use common::Random;
use millrace_graph::{DType, TensorView, Type};
use millrace_kernels::{PackedError, Pool, Weights};
use proptest::prelude::*;
use tempfile::tempfile;

const KEY: [u8; 32] = [7; 32];

const FORMATS: [DType; 11] = [
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

/// Bytes of a type, drawn from a seed: any bits are a weight.
fn stored(ty: &Type, seed: u64) -> Vec<u8> {
    let mut random = Random(seed);
    (0..ty.bytes().expect("whole blocks")).map(|_| random.next() as u8).collect()
}

/// A matrix, experts and a vector in each of some formats, and an alias.
fn weights(formats: &[DType], seed: u64, pool: &Pool) -> Weights {
    let mut weights = Weights::new();
    for (at, dtype) in formats.iter().enumerate() {
        let cols = if dtype.block_len() == 1 { 37 } else { dtype.block_len() };
        for (name, shape) in
            [("matrix", vec![13, cols]), ("experts", vec![2, 5, cols]), ("vector", vec![cols])]
        {
            let ty = Type::new(*dtype, shape);
            let bytes = stored(&ty, seed + at as u64);
            weights
                .insert(&format!("{at}.{name}"), &TensorView::new(ty, &bytes), pool)
                .expect("a weight of a known format");
        }
    }
    weights.share("head", "0.matrix").expect("it is there");
    weights
}

fn written(weights: &Weights) -> Vec<u8> {
    let mut bytes = Vec::new();
    weights.write(&KEY, &mut bytes).expect("memory takes everything");
    bytes
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile().expect("a temporary file");
    file.write_all(bytes).expect("written");
    file
}

#[test]
fn what_was_written_is_read() {
    for threads in [1, 3] {
        let pool = Pool::new(threads);
        let packed = weights(&FORMATS, 1, &pool);
        let bytes = written(&packed);
        let read = Weights::map(&file(&bytes), &KEY, &pool).expect("nothing is wrong with it");
        // The names, the types and every packed byte.
        assert_eq!(written(&read), bytes);
        assert_eq!(read.bytes(), packed.bytes());
        assert_eq!(read.ty("head"), packed.ty("0.matrix"));
        assert!(read.ty("head").is_some());
        assert_eq!(read.ty("nothing"), None);
        let again = Weights::map(&file(&written(&read)), &KEY, &pool).expect("nor with its copy");
        assert_eq!(written(&again), bytes);
    }
}

#[test]
fn no_weights_are_weights() {
    let pool = Pool::new(1);
    let bytes = written(&Weights::new());
    assert_eq!(Weights::map(&file(&bytes), &KEY, &pool).expect("an empty table").bytes(), 0);
}

/// If this fails because packing has changed, count `LAYOUT` in `matrix/pack.rs` up and put the new sums here: files
/// that older programs wrote must not be taken for what this one would write.
#[test]
fn the_layout_is_the_one_of_its_version() {
    let pool = Pool::new(2);
    let sums = FORMATS.map(|dtype| crc32fast::hash(&written(&weights(&[dtype], 2, &pool))));
    assert_eq!(sums, LAYOUT_1);
}

const LAYOUT_1: [u32; 11] = [
    3565809487, 1500721973, 1797978822, 2222268756, 3934303716, 2293102310, 2429146836, 3497091057,
    1748401085, 2255092633, 3136851574,
];

fn refused(bytes: &[u8], pool: &Pool) -> PackedError {
    Weights::map(&file(bytes), &KEY, pool).expect_err("it is not what was written")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// A flipped bit, a missing end, bytes too many, a stretch of zeros: each anywhere in the file.
    #[test]
    fn damage_is_noticed(at: prop::sample::Index, bit in 0u8..8, run in 1usize..5000, format in 0usize..11) {
        let pool = Pool::new(1);
        let whole = written(&weights(&[FORMATS[format]], 3, &pool));
        let at = at.index(whole.len());

        let mut flipped = whole.clone();
        flipped[at] ^= 1 << bit;
        refused(&flipped, &pool);

        refused(&whole[..at], &pool);

        let mut longer = whole.clone();
        longer.splice(at..at, std::iter::repeat_n(0, run));
        refused(&longer, &pool);

        let mut zeros = whole.clone();
        let end = zeros.len().min(at + run);
        zeros[at..end].fill(0);
        if zeros != whole {
            refused(&zeros, &pool);
        }
    }

    /// A header whose checksum is right and whose numbers are not: sizes and counts are not believed.
    #[test]
    fn numbers_are_checked(at in 16usize..400, value in prop_oneof![
        Just(0u64), Just(u64::MAX), Just(u64::from(u32::MAX)), Just(1 << 40), any::<u64>()], width in prop_oneof![Just(1usize), Just(4), Just(8)]) {
        let pool = Pool::new(1);
        let whole = written(&weights(&[DType::Q8_0, DType::F32], 4, &pool));
        let mut forged = whole.clone();
        forged[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        forged[12..16].fill(0);
        let header = u64::from_le_bytes(whole[16..24].try_into().expect("eight bytes")) as usize;
        let sum = crc32fast::hash(&forged[..header]);
        forged[12..16].copy_from_slice(&sum.to_le_bytes());
        // Other names and types of the same sizes may pass: the key is what tells weights apart.
        if let Ok(read) = Weights::map(&file(&forged), &KEY, &pool) {
            prop_assert_eq!(written(&read).len(), whole.len());
        }
    }
}

#[test]
fn other_weights_and_versions_are_refused() {
    let pool = Pool::new(1);
    let whole = written(&weights(&[DType::Q4_1], 5, &pool));
    let other = Weights::map(&file(&whole), &[8; 32], &pool);
    assert!(matches!(other, Err(PackedError::Key)), "{other:?}");
    let mut older = whole.clone();
    older[8] ^= 0xff;
    assert!(matches!(refused(&older, &pool), PackedError::Version { .. }));
    let mut foreign = whole;
    foreign[..8].copy_from_slice(b"notours!");
    assert!(matches!(refused(&foreign, &pool), PackedError::Version { .. }));
    assert!(matches!(refused(&[], &pool), PackedError::Damaged(_)));
    let directory = File::open(env!("CARGO_MANIFEST_DIR")).expect("a directory");
    assert!(Weights::map(&directory, &KEY, &pool).is_err());
}

/// A disk that is full after some bytes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.0 == 0 {
            return Err(Error::from(ErrorKind::StorageFull));
        }
        let taken = bytes.len().min(self.0);
        self.0 -= taken;
        Ok(taken)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_an_error_wherever_it_fills() {
    let weights = weights(&[DType::F16], 6, &Pool::new(1));
    let whole = written(&weights).len();
    for room in (0..whole).step_by(97).chain([whole - 1]) {
        let error = weights.write(&KEY, &mut Full(room)).expect_err("there is no room");
        assert_eq!(error.kind(), ErrorKind::StorageFull, "with room for {room} bytes");
    }
    weights.write(&KEY, &mut Full(whole)).expect("it fits");
}
