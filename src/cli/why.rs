//! `edgeorc why`: what each node says to a pod that waits.

use clap::Args;
use serde_json::Value;

use super::api::{Session, chain};
use super::args::{Global, OutputFormat};
use super::exit::{self, Failure};
use super::output;
use crate::api::json::{int_at, is_true, items_at, text_at};
use crate::config::Environment;
use crate::roles::{self, WhyError};

/// `edgeorc why`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  edgeorc why hello-5d8c-abcde\n  edgeorc why hello-0 -n shop -o yaml"
)]
pub(super) struct Why {
    /// The pod: NAME or pod/NAME
    pod: String,
    /// Format of the output: json or yaml
    #[arg(short, long, value_enum)]
    output: Option<OutputFormat>,
}

/// Tells where the pod is, or why it is nowhere.
pub(super) async fn run(
    why: Why,
    global: &Global,
    environment: &Environment,
) -> Result<(), Failure> {
    if matches!(why.output, Some(OutputFormat::Wide | OutputFormat::Name)) {
        return Err(Failure::with(exit::USAGE, "why prints -o json or -o yaml"));
    }
    let name = match why.pod.split_once('/') {
        None => why.pod.as_str(),
        Some(("pod" | "pods" | "po", name)) if !name.is_empty() => name,
        Some(_) => return Err(Failure::with(exit::USAGE, "name a pod, for example `pod/hello-0`")),
    };
    let session = Session::open(global, environment).await?;
    let told = roles::why(&session.client, &environment.proxies, &session.namespace, name).await;
    let told = told.map_err(|refused| match &refused {
        WhyError::Api(kube::Error::Api(_)) | WhyError::NoPod { .. } | WhyError::Json(_) => {
            Failure::failed(chain(&refused))
        }
        WhyError::Api(_) => Failure::with(exit::UNREACHABLE, chain(&refused)),
    })?;
    match why.output {
        Some(format) => output::document(&told, format),
        None => output::data(&text(&told)),
    }
}

/// The answer for people: one sentence, then a line for each reason of each node.
fn text(told: &Value) -> String {
    let mut text = format!("{}\n", text_at(told, "/message"));
    let choice = text_at(told, "/choice");
    if !choice.is_empty() {
        text.push_str(&format!("choice: {choice}\n"));
    }
    let head = ["NODE", "ANSWER", "PLUGIN", "REASON", "WHAT WOULD HELP"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for node in items_at(told, "/nodes") {
        let name = text_at(node, "/node").to_owned();
        if is_true(node, "/fits") {
            let score = int_at(node, "/score").unwrap_or(0);
            rows.push(vec![name.clone(), format!("yes, score {score}")]);
        }
        for because in items_at(node, "/reasons") {
            let [plugin, reason, hint] =
                ["/plugin", "/reason", "/hint"].map(|key| text_at(because, key).to_owned());
            rows.push(vec![name.clone(), "no".to_owned(), plugin, reason, hint]);
        }
    }
    text.push('\n');
    text.push_str(&output::columns(&rows));
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_reason_has_a_line() {
        let told = json!({
            "pod": "default/p", "message": "0/2 nodes are available.",
            "nodes": [
                {"node": "a", "fits": false, "reasons": [
                    {"plugin": "NodeResourcesFit", "reason": "Insufficient cpu", "hint": "less"}]},
                {"node": "b", "fits": true, "score": 250},
            ],
        });
        assert_eq!(
            text(&told),
            "0/2 nodes are available.\n\n\
             NODE   ANSWER           PLUGIN             REASON             WHAT WOULD HELP\n\
             a      no               NodeResourcesFit   Insufficient cpu   less\n\
             b      yes, score 250\n"
        );
    }
}
