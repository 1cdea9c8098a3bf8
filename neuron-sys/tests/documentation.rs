//! The table of status codes in docs/neuron.md is printed from the code. `MILLRACE_UPDATE_SNAPSHOTS=1` writes it anew.

use std::fmt::Write as _;
use std::path::Path;

use neuron_sys::{Phase, Status};

const BEGIN: &str = "<!-- statuses: printed by neuron-sys/tests/documentation.rs -->\n";
const END: &str = "<!-- end of statuses -->\n";

fn table() -> String {
    let mut table =
        "| status | meaning | at start | at load | while serving |\n| --- | --- | --- | --- | --- |\n"
            .to_owned();
    for status in Status::known().filter(|status| *status != Status::SUCCESS) {
        let phases =
            [Phase::Init, Phase::Load, Phase::Run].map(|phase| format!("{:?}", status.reaction(phase)));
        let (code, name) = (status.code(), status.name().expect("a known status has a name"));
        let meaning = status.meaning().expect("a known status has a meaning");
        let _ = writeln!(table, "| {code} {name} | {meaning} | {} |", phases.join(" | "));
    }
    table
}

#[test]
fn the_table_of_statuses_is_the_code_s() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/neuron.md");
    let text = std::fs::read_to_string(&path).expect("docs/neuron.md is there");
    let (head, rest) = text.split_once(BEGIN).expect("it marks the table's beginning");
    let (found, tail) = rest.split_once(END).expect("it marks the table's end");
    if std::env::var_os("MILLRACE_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, format!("{head}{BEGIN}{}{END}{tail}", table()))
            .expect("docs/neuron.md can be written");
        return;
    }
    assert_eq!(found, table(), "run this test with MILLRACE_UPDATE_SNAPSHOTS=1 to write the table anew");
}
