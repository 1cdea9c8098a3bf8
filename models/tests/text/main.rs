//! Text through whole tokenizers and templates: real ones where they are at hand, small ones of our own everywhere.

#[path = "../support/gguf_writer.rs"]
#[allow(dead_code, reason = "another test binary uses the rest")]
#[allow(unreachable_pub, reason = "a module of several test binaries")]
mod gguf_writer;

#[path = "../../../tests/support/cached.rs"]
mod cached;
mod smollm2;
mod templates;

use std::path::{Path, PathBuf};

/// The folder beside the repository that holds answers computed elsewhere, if it is there.
fn shared(what: &str) -> Option<PathBuf> {
    let mut dirs = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let path = dirs.find(|dir| dir.join("Cargo.lock").exists())?.parent()?.join("shared").join(what);
    path.exists().then_some(path)
}

/// Says on the terminal that a test could not run.
#[allow(clippy::print_stderr, reason = "a skipped test must be seen")]
fn skipped(why: &str) {
    eprintln!("skipped: {why}");
}

/// What can go wrong with text: scripts, joiners, controls, look-alikes, long runs.
const NASTY: &[&str] = &[
    "",
    " ",
    "  ",
    "\n",
    "\r\n\t\u{b}\u{c}",
    "a",
    " a",
    "a ",
    "Hello, world!",
    "I'm you're WE'LL they'd",
    "1234567890 3.14159 1,000,000",
    "naïve café Ångström e\u{301} \u{1e9b}\u{323}",
    "Ω≈ç√∫˜µ≤≥÷ ﷽ ﷺ",
    "田中さんにあげて下さい 사회과학원 𐐜 𐐔𐐇𐐝",
    "السلام עליכם \u{202e}right to left\u{202c}",
    "👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 1️⃣ 🤷🏽‍♀️",
    "z̶͎͍̦̙̝a͉͓l̵͎g̹͉o̱͓",
    "\u{0}\u{1}\u{7f}\u{80}\u{ad}\u{200b}\u{200d}\u{2028}\u{feff}\u{fffd}\u{fffe}\u{ffff}\u{10ffff}",
    "\u{e000}\u{f8ff}\u{f0000}\u{10fffd}",
    "<|im_start|> <|im_end|><|endoftext|>",
    "<script>alert(0)</script> {{ 7*7 }} {% raw %} %s%n ${jndi:ldap}",
    "SELECT * FROM t; -- ' \" ` \\ \\\\ //",
    "▁▁▁ Ġ Ċ <0x0A> ## [UNK] <s></s>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "                                                                ",
    "....................................................!!!!!!!!????",
];
