//! `millrace doctor`: what this machine has for Millrace, what the store holds, and what is wrong in words. It claims
//! no core, so it may run beside a server.

mod facts;
mod findings;

use std::fmt::Write as _;
use std::path::Path;

use anyhow::bail;
use serde_json::{Value, json};

use crate::args::{Backend, DoctorArgs};
use facts::Facts;
use findings::{Finding, Severity, findings, target};

/// Prints the report. Fails where something keeps the devices from being used, so that a probe can ask.
pub(crate) fn run(args: &DoctorArgs) -> anyhow::Result<()> {
    let facts = Facts::gather(
        Path::new("/"),
        args.neuron_library.as_deref(),
        &args.compiler,
        args.neuron_store.as_deref(),
    );
    let neuron = args.backend == Backend::Neuron;
    let found = findings(&facts, neuron);
    if args.json {
        println!("{:#}", report(&facts, &found));
    } else {
        print!("{}", text(&facts, &found));
    }
    match found.iter().filter(|finding| finding.severity == Severity::Error).count() {
        0 => Ok(()),
        1 => bail!("one thing must be mended"),
        n => bail!("{n} things must be mended"),
    }
}

/// The same as [`text`], for programs.
fn report(facts: &Facts, found: &[Finding]) -> Value {
    let devices = facts.inventory.devices.iter().map(|device| {
        json!({
            "index": device.index,
            "node": device.node,
            "listed": device.listed,
            "cores": device.cores,
            "core_architecture": device.core_arch,
            "name": device.name,
            "serial_number": device.serial_number,
            "connected": device.connected,
            "mem_ecc_uncorrected": device.ecc.mem_uncorrected,
            "mem_ecc_repairable_uncorrected": device.ecc.mem_repairable_uncorrected,
            "sram_ecc_uncorrected": device.ecc.sram_uncorrected,
        })
    });
    json!({
        "millrace": crate::VERSION,
        "instance_type": facts.inventory.instance_type,
        "target": facts.inventory.instance_type.as_deref().and_then(target),
        "driver_version": facts.inventory.driver_version,
        "devices": devices.collect::<Vec<_>>(),
        "library": facts.library,
        "compiler": facts.compiler,
        "environment": facts.variables.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "host": facts.host,
        "store": facts.store,
        "findings": found,
    })
}

fn text(facts: &Facts, found: &[Finding]) -> String {
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name:<18} {value}");
    };
    let or = |value: &Option<String>, other: &str| value.clone().unwrap_or_else(|| other.to_owned());
    let count = |value: Option<u32>| value.map_or("?".to_owned(), |value| value.to_string());

    line("millrace", crate::VERSION);
    let instance = or(&facts.inventory.instance_type, "unknown");
    match facts.inventory.instance_type.as_deref().and_then(target) {
        Some(target) => line("instance", &format!("{instance} (compile with --target {target})")),
        None => line("instance", &instance),
    }
    let host = &facts.host;
    let gib = |bytes: Option<u64>| {
        bytes.map_or("?".into(), |bytes| format!("{:.1}", bytes as f64 / (1u64 << 30) as f64))
    };
    let vector = host.vector.as_ref().map_or("portable kernels".to_owned(), |units| units.join(" "));
    line(
        "host",
        &format!(
            "{} cores, {} GiB of memory ({} free), {vector}",
            host.cores,
            gib(host.memory),
            gib(host.available)
        ),
    );
    line("driver", &or(&facts.inventory.driver_version, "not loaded"));
    for device in &facts.inventory.devices {
        let node = if device.node { "can be opened" } else { "no file in /dev" };
        let name = device.name.as_deref().unwrap_or("device");
        let arch = device.core_arch.as_deref().unwrap_or("architecture unknown");
        let errors = if device.ecc.any() { ", memory errors" } else { "" };
        line(
            &format!("/dev/neuron{}", device.index),
            &format!("{name}, {} cores, {arch}, {node}{errors}", count(device.cores)),
        );
    }
    let library = &facts.library;
    match &library.path {
        Some(path) => {
            line("runtime", &format!("{}, version {}", path.display(), or(&library.version, "unknown")));
            line(
                "visible cores",
                &format!("{} of {}", count(library.visible_cores), count(library.total_cores)),
            );
            if !library.lacks.is_empty() {
                line("runtime lacks", &format!("{} (optional)", library.lacks.join(" ")));
            }
        }
        None => line("runtime", "not found"),
    }
    let compiler = &facts.compiler;
    line("compiler", &format!("{}, {}", compiler.program.display(), or(&compiler.version, "not found")));
    for (name, value) in &facts.variables {
        line("environment", &format!("{name}={value}"));
    }
    if let Some(store) = &facts.store {
        line("store", &format!("{}, {} graphs", store.path.display(), store.graphs.len()));
        for group in
            store.graphs.chunk_by(|a, b| (&a.model, &a.target, a.ranks) == (&b.model, &b.target, b.ranks))
        {
            let buckets: Vec<_> = group.iter().map(|graph| graph.bucket.as_str()).collect();
            let mib = group.iter().map(|graph| graph.bytes).sum::<u64>() as f64 / (1 << 20) as f64;
            let first = &group[0];
            let cores = if first.ranks == 1 { "core" } else { "cores" };
            line(
                "",
                &format!(
                    "{} for {} {} {cores}, {mib:.1} MiB: {}",
                    first.model,
                    first.ranks,
                    first.target,
                    buckets.join(" ")
                ),
            );
        }
    }
    out.push('\n');
    if found.is_empty() {
        out.push_str("Nothing is wrong.\n");
    }
    for Finding { severity, what, remedy } in found {
        let severity = match severity {
            Severity::Error => "ERROR",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        let _ = writeln!(out, "{severity}: {what}\n    {remedy}");
    }
    out
}
