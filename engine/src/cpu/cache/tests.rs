use millrace_graph::{DType, TensorView, Type};
use proptest::prelude::*;

use super::*;

fn wanted<'a>(name: &'a str, ty: &Type, view: &TensorView<'a>) -> Wanted<'a> {
    Wanted { name, ty: ty.clone(), source: Source::Stored(view.clone()) }
}

fn key(wanted: &[Wanted<'_>], pool: &Pool) -> [u8; 32] {
    Entry::of(Path::new(""), wanted, pool, &|| ()).key
}

/// Whatever packing reads is in the key, and the number of threads is not.
#[test]
fn the_key_is_of_all_that_packing_reads() {
    let (one, three) = (Pool::new(1), Pool::new(3));
    let bytes: Vec<u8> = (0..3 * CHUNK).map(|at| (at / 7) as u8).collect();
    let ty = Type::new(DType::F32, [3, CHUNK / 4]);
    let view = TensorView::new(ty.clone(), &bytes);
    let first = key(&[wanted("w", &ty, &view)], &one);
    assert_eq!(first, key(&[wanted("w", &ty, &view)], &three));

    let half = Type::new(DType::F16, [3, CHUNK / 4]);
    let wide = Type::new(DType::F32, [CHUNK / 4, 3]);
    let of_wide = TensorView::new(wide.clone(), &bytes);
    let parts = TensorView { parts: bytes.chunks(CHUNK).collect(), ..view.clone() };
    let offset = TensorView { offset: 1.0, ..view.clone() };
    let rope = TensorView { order: RowOrder::RopeInterleaved { heads: 1 }, ..view.clone() };
    let mut others = vec![
        key(&[wanted("v", &ty, &view)], &one),
        key(&[wanted("w", &half, &view)], &one),
        key(&[wanted("w", &wide, &of_wide)], &one),
        key(&[wanted("w", &ty, &parts)], &one),
        key(&[wanted("w", &ty, &offset)], &one),
        key(&[wanted("w", &ty, &rope)], &one),
        key(&[], &one),
    ];
    let alias = Wanted { name: "w2", ty: ty.clone(), source: Source::Alias("w") };
    others.push(key(&[wanted("w", &ty, &view), alias], &one));
    others.push(key(&[wanted("w", &ty, &view), wanted("w2", &ty, &view)], &one));
    for at in [0, CHUNK - 1, CHUNK, 3 * CHUNK - 1] {
        let mut other = bytes.clone();
        other[at] ^= 1;
        let other = TensorView::new(ty.clone(), &other);
        others.push(key(&[wanted("w", &ty, &other)], &three));
    }
    others.push(first);
    let count = others.len();
    others.sort_unstable();
    others.dedup();
    assert_eq!(others.len(), count, "two kinds of weights have one key");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn where_one_weight_ends_is_in_the_key(bytes in prop::collection::vec(any::<u8>(), 2..64), at: prop::sample::Index) {
        let pool = Pool::new(1);
        let cut = |at: usize| {
            let (a, b) = bytes.split_at(at);
            let types = [a, b].map(|bytes| Type::new(DType::U8, [bytes.len()]));
            let views = [TensorView::new(types[0].clone(), a), TensorView::new(types[1].clone(), b)];
            key(&[wanted("a", &types[0], &views[0]), wanted("b", &types[1], &views[1])], &pool)
        };
        let at = at.index(bytes.len() - 1);
        prop_assert_ne!(cut(at), cut(at + 1));
        prop_assert_eq!(cut(at), cut(at));
    }
}

fn entry(directory: &Path) -> Entry {
    Entry { directory: directory.to_owned(), key: [3; 32], identified: Duration::ZERO }
}

fn names(directory: &Path) -> Vec<String> {
    let listing = fs::read_dir(directory).expect("a directory");
    let name = |entry: io::Result<fs::DirEntry>| entry.expect("an entry").file_name().into_string();
    let mut names: Vec<_> = listing.map(|entry| name(entry).expect("it is text")).collect();
    names.sort();
    names
}

/// A write that fails, as on a full disk, leaves what was there before and nothing else.
#[test]
fn a_write_that_fails_leaves_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let entry = entry(&directory.path().join("made/on/the/way"));
    let fails = |file: &mut File| {
        io::Write::write_all(file, &[1; 1000])?;
        Err(io::Error::from(io::ErrorKind::StorageFull))
    };
    let error = entry.replace(fails).expect_err("it failed");
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(names(&entry.directory), Vec::<String>::new());

    entry.replace(|file| io::Write::write_all(file, b"whole")).expect("it is written");
    entry.replace(fails).expect_err("it failed");
    assert_eq!(names(&entry.directory), [format!("{}.packed", "03".repeat(32))]);
    assert_eq!(fs::read(entry.path()).expect("it is there"), b"whole");
}

#[test]
fn what_killed_processes_left_is_removed_in_time() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = |name: &str, age: u64| {
        let file = File::create(directory.path().join(name)).expect("a file");
        file.set_modified(SystemTime::now() - Duration::from_secs(age)).expect("its time");
    };
    place(".0.1.0.staging", 2 * 3600);
    place(".0.2.0.staging", 60);
    place("notes.staging", 2 * 3600);
    place("old.packed", 900 * 3600);
    entry(directory.path()).replace(|_| Ok(())).expect("it is written");
    let kept = names(directory.path());
    assert_eq!(
        kept,
        [".0.2.0.staging", &format!("{}.packed", "03".repeat(32)), "notes.staging", "old.packed"]
    );
}
