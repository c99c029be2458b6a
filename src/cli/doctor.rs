//! `edgeorc doctor`.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::args::OutputFormat;
use super::exit::{self, Failure};
use super::output;
use crate::config::{Environment, NodeFlags, NodeSettings};
use crate::roles::{self, Finding, Verdict};
use crate::rt::WallClock;

/// `edgeorc doctor`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  edgeorc doctor\n  \
    edgeorc doctor --data-dir /mnt/ssd/edgeorc -o json\n\n\
    Needs no running node and starts none. Fails when something keeps a node from starting.")]
pub(super) struct Doctor {
    /// Where the node would keep its state [default: as `node start`]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Address it would listen on [default: all]
    #[arg(long, value_name = "IP")]
    bind_address: Option<IpAddr>,
    /// Port of the API (TCP) and between nodes (UDP) [default: 6443]
    #[arg(long, value_name = "PORT")]
    api_port: Option<u16>,
    /// Port at which apps would be served [default: 8080]
    #[arg(long, value_name = "PORT")]
    ingress_port: Option<u16>,
    /// Examine the machine as if guests were interpreted
    #[arg(long, hide = true)]
    pulley: bool,
    /// Format of the output: json or yaml
    #[arg(short, long, value_enum)]
    output: Option<OutputFormat>,
}

/// Examines this machine.
pub(super) fn run(doctor: Doctor, environment: &Environment) -> Result<(), Failure> {
    let flags = NodeFlags {
        // The machine's own name may be no node's; that is for `node start` to say.
        node_name: Some("doctor".to_owned()),
        bind_address: doctor.bind_address,
        data_dir: doctor.data_dir,
        api_port: doctor.api_port,
        ingress_port: doctor.ingress_port,
        pulley: doctor.pulley,
        ..NodeFlags::default()
    };
    let settings = NodeSettings::build(flags, environment)
        .map_err(|cause| Failure::with(exit::USAGE, cause.to_string()))?;
    let findings = roles::examine(&settings, &WallClock::system());
    match doctor.output {
        Some(OutputFormat::Wide | OutputFormat::Name) => {
            return Err(Failure::with(exit::USAGE, "doctor prints -o json or -o yaml"));
        }
        Some(format) => output::document(&json!({"findings": findings}), format)?,
        None => output::data(&table(&findings))?,
    }
    let failed: Vec<_> =
        findings.iter().filter(|f| f.verdict == Verdict::Fail).map(|f| f.name).collect();
    if failed.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(format!("a node cannot run here: see {}", failed.join(", "))))
}

fn table(findings: &[Finding]) -> String {
    let mut rows = vec![["", "WHAT", "FOUND", "WHY"].map(str::to_owned).to_vec()];
    rows.extend(findings.iter().map(|finding| {
        let verdict = match finding.verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        vec![
            verdict.to_owned(),
            finding.name.to_owned(),
            finding.value.clone(),
            finding.why.clone(),
        ]
    }));
    output::columns(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_finding_is_a_line_with_its_reason() {
        let finding = Finding {
            name: "clock",
            verdict: Verdict::Fail,
            value: "1970".to_owned(),
            why: "it is wrong".to_owned(),
        };
        assert_eq!(
            table(&[finding]),
            "       WHAT    FOUND   WHY\nFAIL   clock   1970    it is wrong\n"
        );
    }
}
