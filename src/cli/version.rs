//! `edgeorc version`.

use clap::Args;
use serde_json::{Value, json};

use super::api::{ACCEPT_JSON, Session};
use super::args::{Global, OutputFormat};
use super::exit::{self, Failure};
use super::output;
use crate::config::Environment;

/// `edgeorc version`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  edgeorc version\n  edgeorc version --client -o json")]
pub(super) struct Version {
    /// Only of this program; asks no server
    #[arg(long)]
    client: bool,
    /// Format of the output: json or yaml
    #[arg(short, long, value_enum)]
    output: Option<OutputFormat>,
}

/// Prints the versions of both sides. When no server answers, the client's is printed all the
/// same and the verb fails.
pub(super) async fn run(
    version: Version,
    global: &Global,
    environment: &Environment,
) -> Result<(), Failure> {
    if matches!(version.output, Some(OutputFormat::Wide | OutputFormat::Name)) {
        return Err(Failure::with(exit::USAGE, "version prints -o json or -o yaml"));
    }
    let mut both = json!({"clientVersion": own()});
    let failed = if version.client {
        None
    } else {
        match server(global, environment).await {
            Ok(server) => {
                if let Some(both) = both.as_object_mut() {
                    both.insert("serverVersion".to_owned(), server);
                }
                None
            }
            Err(failure) => Some(failure),
        }
    };
    match version.output {
        Some(format) => output::document(&both, format)?,
        None => output::data(&text(&both))?,
    }
    failed.map_or(Ok(()), Err)
}

async fn server(global: &Global, environment: &Environment) -> Result<Value, Failure> {
    let session = Session::open(global, environment).await?;
    Ok(session.get("/version", ACCEPT_JSON).await?)
}

fn own() -> Value {
    json!({
        "gitVersion": concat!("v", env!("CARGO_PKG_VERSION")),
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    })
}

fn text(both: &Value) -> String {
    [("Client", "/clientVersion/gitVersion"), ("Server", "/serverVersion/gitVersion")]
        .iter()
        .filter_map(|(side, path)| Some((side, both.pointer(path)?.as_str()?)))
        .map(|(side, version)| format!("{side} Version: {version}\n"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_side_that_is_known_has_a_line() {
        let mut both = json!({"clientVersion": own()});
        assert_eq!(text(&both), format!("Client Version: v{}\n", env!("CARGO_PKG_VERSION")));
        both["serverVersion"] = json!({"gitVersion": "v1.36.0"});
        assert!(text(&both).ends_with("Server Version: v1.36.0\n"));
    }
}
