//! The arguments, as clap reads them.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Kubernetes for WebAssembly, in one binary.
#[derive(Debug, Parser)]
#[command(
    name = "edgeorc",
    version,
    about,
    after_help = "Examples:\n  \
        edgeorc up                                   try it: one node, one app, one URL\n  \
        edgeorc up app.wasm                          the same with your own app\n  \
        edgeorc node start                           start the first node of a cluster\n  \
        edgeorc deploy app.wasm --replicas 3 --wait  run an app\n  \
        edgeorc get pods -o wide                     see where it runs\n\n\
        Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 bad input file, 4 no API server,\n\
        5 timed out, 6 node could not start, 7 join refused.",
    disable_help_subcommand = true
)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Which cluster and namespace.
#[derive(Debug, Args)]
pub(super) struct Global {
    /// File with the cluster's address and credentials [default: $KUBECONFIG, then the admin
    /// kubeconfig of this machine's node, then ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// Namespace of the objects
    #[arg(short, long, global = true, default_value = "default")]
    pub(super) namespace: String,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start one node, run an app on it, and print the app's URL
    Up(Up),
    /// Start nodes and let others join
    #[command(subcommand)]
    Node(Node),
    /// Run a WebAssembly app, or update it
    Deploy(Deploy),
    /// List objects, or show some
    Get(Get),
    /// Show an object in detail, with its events
    Describe(Describe),
    /// Print what a pod wrote
    Logs(Logs),
    /// Set the number of replicas
    Scale(Scale),
    /// Delete objects
    Delete(Delete),
    /// Print the admin kubeconfig of this machine's node
    Kubeconfig(KubeconfigFlags),
    /// Print completions for a shell
    #[command(after_help = "Example:\n  edgeorc completions bash > /etc/bash_completion.d/edgeorc")]
    Completions {
        /// Which shell
        shell: clap_complete::Shell,
    },
    /// Compile one module (the node runs this as a child process)
    #[command(hide = true)]
    Compile(Compile),
}

/// `edgeorc up`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  edgeorc up\n  edgeorc up app.wasm --data-dir ./state\n\n\
    The app's URL is the only line on stdout, printed once the app answers. Ctrl-C stops everything.")]
pub(super) struct Up {
    /// The app: a component or a core module [default: a small hello app in the binary]
    pub(super) app: Option<PathBuf>,
    /// Where state is kept [default: a temporary folder, removed at the end]
    #[arg(long, value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// Address to listen on
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub(super) bind_address: IpAddr,
    /// Port of the API, TCP and UDP [default: 6443]
    #[arg(long, value_name = "PORT")]
    pub(super) api_port: Option<u16>,
    /// Port at which apps are served [default: 8080]
    #[arg(long, value_name = "PORT")]
    pub(super) ingress_port: Option<u16>,
    /// Port the app listens on inside its pod
    #[arg(long, default_value_t = 8080)]
    pub(super) port: u16,
    /// Number of pods
    #[arg(long, default_value_t = 1)]
    pub(super) replicas: u32,
    /// Environment of the app
    #[arg(long, value_name = "K=V")]
    pub(super) env: Vec<String>,
}

/// `edgeorc node`.
#[derive(Debug, Subcommand)]
pub(super) enum Node {
    /// Start this machine's node: the first of a new cluster, or one more with --join
    #[command(after_help = "Examples:\n  edgeorc node start\n  \
        edgeorc node start --join https://192.168.1.10:6443 --token eo1...")]
    Start(NodeStart),
    /// Let nodes join
    #[command(subcommand)]
    Token(Token),
}

/// `edgeorc node start`.
#[derive(Debug, Args)]
pub(super) struct NodeStart {
    /// Server of the cluster to join
    #[arg(long, value_name = "URL", requires = "token")]
    pub(super) join: Option<String>,
    /// Token that allows the join; `edgeorc node token create` makes one
    #[arg(long, requires = "join")]
    pub(super) token: Option<String>,
    /// Name of the node [default: the host name]
    #[arg(long, value_name = "N")]
    pub(super) node_name: Option<String>,
    /// Address to listen on [default: all]
    #[arg(long, value_name = "IP")]
    pub(super) bind_address: Option<IpAddr>,
    /// Where state is kept [default: $EDGEORC_DATA_DIR, /var/lib/edgeorc as root,
    /// ~/.local/share/edgeorc otherwise]
    #[arg(long, value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    /// Port of the API (TCP) and between nodes (UDP) [default: 6443]
    #[arg(long, value_name = "PORT")]
    pub(super) api_port: Option<u16>,
    /// Port at which apps are served on every node [default: 8080]
    #[arg(long, value_name = "PORT")]
    pub(super) ingress_port: Option<u16>,
    /// Folder of the host that pods may mount; DIR:ro only to read
    #[arg(long, value_name = "DIR")]
    pub(super) allow_host_path: Vec<String>,
}

/// `edgeorc node token`.
#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// Make a token that lets one node join within the hour
    #[command(
        after_help = "Example:\n  edgeorc node start --join https://192.168.1.10:6443 \\\n    \
        --token \"$(edgeorc node token create)\""
    )]
    Create {
        /// How long the token is good, in minutes
        #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=10080))]
        ttl_minutes: u32,
    },
}

/// `edgeorc deploy`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  edgeorc deploy app.wasm\n  \
    edgeorc deploy app.wasm --name shop --replicas 6 --env LOG=debug --wait\n  \
    edgeorc deploy app.wasm --sidecar cache.wasm:9090")]
pub(super) struct Deploy {
    /// The app: a component or a core module
    pub(super) app: PathBuf,
    /// Name of the app [default: the file's name]
    #[arg(long)]
    pub(super) name: Option<String>,
    /// Number of pods [default: 1, or as it is when the app exists]
    #[arg(long)]
    pub(super) replicas: Option<u32>,
    /// Port the app listens on inside its pod
    #[arg(long, default_value_t = 8080)]
    pub(super) port: u16,
    /// Environment of the app
    #[arg(long, value_name = "K=V")]
    pub(super) env: Vec<String>,
    /// One more component in the same pod: started before the app, ended after it
    #[arg(long, value_name = "FILE[:PORT]")]
    pub(super) sidecar: Vec<String>,
    /// Host name the ingress serves the app at [default: NAME.NAMESPACE.localhost]
    #[arg(long)]
    pub(super) host: Option<String>,
    /// Wait until all pods are ready
    #[arg(long)]
    pub(super) wait: bool,
    /// How long to wait, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    pub(super) timeout: u64,
    /// What to print of the objects made
    #[arg(short, long, value_enum)]
    pub(super) output: Option<OutputFormat>,
}

/// `edgeorc get`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  edgeorc get pods\n  edgeorc get deploy,svc\n  \
    edgeorc get pod/hello-abc -o yaml\n  edgeorc get all -A -o wide")]
pub(super) struct Get {
    /// KIND, KIND/NAME, or several kinds with commas; then names
    #[arg(required = true, value_name = "KIND[/NAME]")]
    pub(super) what: Vec<String>,
    /// Format of the output
    #[arg(short, long, value_enum)]
    pub(super) output: Option<OutputFormat>,
    /// In all namespaces
    #[arg(short = 'A', long)]
    pub(super) all_namespaces: bool,
    /// Only objects with these labels
    #[arg(short = 'l', long)]
    pub(super) selector: Option<String>,
}

/// `edgeorc describe`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  edgeorc describe deploy/hello")]
pub(super) struct Describe {
    /// KIND/NAME, or KIND and NAME
    #[arg(required = true, num_args = 1..=2, value_name = "KIND/NAME")]
    pub(super) what: Vec<String>,
}

/// `edgeorc logs`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  edgeorc logs hello-5d8c-abcde -f\n  edgeorc logs deploy/hello --tail 20"
)]
pub(super) struct Logs {
    /// POD, or deploy/NAME for one of its pods
    pub(super) pod: String,
    /// Container of the pod [default: the first]
    #[arg(short, long)]
    pub(super) container: Option<String>,
    /// Go on as lines are written
    #[arg(short, long)]
    pub(super) follow: bool,
    /// Only the last N lines
    #[arg(long, value_name = "N")]
    pub(super) tail: Option<u64>,
    /// Only lines of the last N seconds
    #[arg(long, value_name = "SECONDS")]
    pub(super) since: Option<u64>,
    /// Put the time before each line
    #[arg(long)]
    pub(super) timestamps: bool,
    /// Of the container before the last restart
    #[arg(short, long)]
    pub(super) previous: bool,
}

/// `edgeorc scale`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  edgeorc scale deploy/hello --replicas 6")]
pub(super) struct Scale {
    /// KIND/NAME, or KIND and NAME
    #[arg(required = true, num_args = 1..=2, value_name = "KIND/NAME")]
    pub(super) what: Vec<String>,
    /// Number of pods
    #[arg(long)]
    pub(super) replicas: u32,
}

/// `edgeorc delete`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  edgeorc delete app hello       the deployment, service and ingress of an app\n  \
    edgeorc delete pod hello-5d8c-abcde"
)]
pub(super) struct Delete {
    /// KIND/NAME, or KIND and NAMEs; `app NAME` is all that `deploy` made
    #[arg(required = true, value_name = "KIND/NAME")]
    pub(super) what: Vec<String>,
    /// Do not wait until the objects are gone
    #[arg(long)]
    pub(super) no_wait: bool,
    /// How long to wait, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    pub(super) timeout: u64,
}

/// `edgeorc kubeconfig`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  edgeorc kubeconfig > ~/.kube/config")]
pub(super) struct KubeconfigFlags {
    /// Where the node keeps its state
    #[arg(long, value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
}

/// `edgeorc compile`.
#[derive(Debug, Args)]
pub(super) struct Compile {
    /// Module or component
    pub(super) input: PathBuf,
    /// File to write
    pub(super) output: PathBuf,
}

/// Formats of `-o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum OutputFormat {
    /// One JSON document
    Json,
    /// One YAML document
    Yaml,
    /// A table with more columns
    Wide,
    /// KIND/NAME lines
    Name,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_definitions_hold_together() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_join_needs_a_token() {
        assert!(Arguments::try_parse_from(["edgeorc", "node", "start", "--join", "x"]).is_err());
    }
}
