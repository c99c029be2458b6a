//! The arguments, as clap reads them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::apply::Apply;
use super::await_for::Wait;
use super::bundle::Bundle;
use super::doctor::Doctor;
use super::events::Events;
use super::rollout::RolloutVerb;
use super::top::Top;
use super::version::Version;
use super::why::Why;
use super::words::{duration, replicas};

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
        edgeorc get pods -o wide                     see where it runs\n  \
        edgeorc doctor                               see what this machine can do\n\n\
        Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 bad input file, 4 no API server,\n\
        5 timed out, 6 node could not start, 7 join refused, 141 nobody reads the output.",
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
    /// Context of the kubeconfig [default: its current one]
    #[arg(long, global = true, value_name = "NAME")]
    pub(super) context: Option<String>,
    /// Namespace of the objects [default: the context's, or `default`]
    #[arg(short, long, global = true)]
    pub(super) namespace: Option<String>,
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
    /// Push a WebAssembly app to the cluster's registry
    Push(Push),
    /// Create or update objects as files describe them
    Apply(Apply),
    /// List objects, or show some
    Get(Get),
    /// Show an object in detail, with its events
    Describe(Describe),
    /// Print what a pod wrote
    Logs(Logs),
    /// Show what nodes or pods use, now and in the last hour
    Top(Top),
    /// List events, oldest first
    Events(Events),
    /// Tell what each node says to a pod that waits, and what would help
    Why(Why),
    /// Set the number of replicas
    Scale(Scale),
    /// Follow, repeat or look back at the rollouts of a deployment
    #[command(subcommand)]
    Rollout(RolloutVerb),
    /// Wait until objects are as they should be, or gone
    Wait(Wait),
    /// Delete objects
    Delete(Delete),
    /// Bring images to clusters without a way to registries
    #[command(subcommand)]
    Bundle(Bundle),
    /// Print the kubeconfig in use: the admin's of this machine's node, if nothing else is named
    Kubeconfig(KubeconfigFlags),
    /// Tell what a node would choose on this machine and why, and what is in its way
    Doctor(Doctor),
    /// Print the versions of this program and of the server
    Version(Version),
    /// Print completions for a shell
    #[command(
        visible_alias = "completion",
        after_help = "Example:\n  edgeorc completions bash > /etc/bash_completion.d/edgeorc"
    )]
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
    #[arg(long, default_value = "1", value_parser = replicas, allow_negative_numbers = true)]
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
    Start(Box<NodeStart>),
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
    /// Port at which apps are served with TLS on every node, 0 for none [default: 8443]
    #[arg(long, value_name = "PORT")]
    pub(super) ingress_https_port: Option<u16>,
    /// Write a line to the log for every request at the ingress
    #[arg(long)]
    pub(super) ingress_access_log: bool,
    /// Wait before a container that failed first runs again; Kubernetes: 10s [default: 10ms]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(super) restart_backoff_min: Option<Duration>,
    /// Longest wait; each is twice the last. Kubernetes: 5m [default: 10s]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(super) restart_backoff_max: Option<Duration>,
    /// Mirrors and credentials of image registries [default: registries.yaml in the data folder]
    #[arg(long, value_name = "FILE")]
    pub(super) registries_file: Option<PathBuf>,
    /// Use of the disk above which unused images are deleted [default: 85]
    #[arg(long, value_name = "PERCENT", alias = "image-gc-high-threshold")]
    pub(super) image_gc_high: Option<u8>,
    /// Use of the disk down to which they are deleted [default: 80]
    #[arg(long, value_name = "PERCENT", alias = "image-gc-low-threshold")]
    pub(super) image_gc_low: Option<u8>,
    /// Never compile on this node; run what servers with the same CPU compile
    #[arg(long)]
    pub(super) no_compile: bool,
    /// Folder of the host that pods may mount; DIR:ro only to read
    #[arg(long, value_name = "DIR")]
    pub(super) allow_host_path: Vec<String>,
    /// Range of pods, or one of each family; the same on all servers [default: 10.42.0.0/16]
    #[arg(long, value_name = "CIDR[,CIDR]")]
    pub(super) cluster_cidr: Option<String>,
    /// Prefix length of the part of it that each node gets [default: 24]
    #[arg(long, value_name = "BITS")]
    pub(super) node_cidr_mask_size: Option<u8>,
    /// Range of Services, or one of each family; the same on all servers [default: 10.43.0.0/16]
    #[arg(long, value_name = "CIDR[,CIDR]", alias = "service-cluster-ip-range")]
    pub(super) service_cidr: Option<String>,
    /// Serve the cluster's names to the host and its network [default: not]
    #[arg(long, value_name = "IP[:PORT]")]
    pub(super) dns_bind: Option<String>,
    /// Server that other names are asked of [default: the host's]
    #[arg(long, value_name = "IP[:PORT]", requires = "dns_bind")]
    pub(super) dns_upstream: Vec<String>,
    /// How many pods this node takes [default: 250]
    #[arg(long, value_name = "N")]
    pub(super) max_pods: Option<u32>,
    /// Label of the node, as topology.kubernetes.io/zone=barn; it goes when a later start does not name it
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) node_label: Vec<String>,
    /// What this machine has that others have not, as edgeorc.io/gpio=4; pods ask for it by name
    #[arg(long, value_name = "NAME=N")]
    pub(super) extended_resource: Vec<String>,
    /// Device that pods can claim, as camera0=/dev/video0,model=ov5647,pixels=5000000
    #[arg(long, value_name = "NAME=PATH")]
    pub(super) device: Vec<String>,
    /// When the node is short of something: like memory.available<100Mi,nodefs.available<10%; or
    /// none [default: kubelet's parts, with bounds]
    #[arg(long, value_name = "LIST")]
    pub(super) eviction_hard: Option<String>,
    /// How long that lasts after its last sign [default: 5m]
    #[arg(long = "eviction-transition", value_name = "TIME", value_parser = duration,
        alias = "eviction-pressure-transition-period")]
    pub(super) eviction_pressure_transition_period: Option<Duration>,
    /// Send traces of requests to an OTLP collector, for example http://127.0.0.1:4318 [default:
    /// $OTEL_EXPORTER_OTLP_ENDPOINT, else not]
    #[arg(long, value_name = "URL")]
    pub(super) otlp_endpoint: Option<String>,
    /// Part of the requests that begin a trace, from 0 to 1 [default: by $OTEL_TRACES_SAMPLER, else
    /// all]
    #[arg(long, value_name = "RATIO")]
    pub(super) trace_ratio: Option<String>,
    /// Size the sandboxes for addresses of at most so many bits: for tests of small machines
    #[arg(long, value_name = "BITS", hide = true, value_parser = clap::value_parser!(u32).range(32..=64))]
    pub(super) address_bits_max: Option<u32>,
    /// Interpret guests, as on machines for which there is no code generator: for tests of those
    #[arg(long, hide = true)]
    pub(super) pulley: bool,
    /// Folder with the proc and sys that tell what the machine is like: for tests of hot ones
    #[arg(long, value_name = "DIR", hide = true)]
    pub(super) machine_root: Option<PathBuf>,
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
    #[arg(long, value_parser = replicas, allow_negative_numbers = true)]
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
    /// How long to wait: seconds, or for example 2m30s
    #[arg(long, value_name = "TIME", default_value = "120s", value_parser = duration)]
    pub(super) timeout: Duration,
    /// What to print of the objects made
    #[arg(short, long, value_enum)]
    pub(super) output: Option<OutputFormat>,
}

/// `edgeorc push`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  edgeorc push app.wasm shop/cart:v1\n  \
    kubectl set image deploy/cart cart=\"$(edgeorc push app.wasm shop/cart:v2 -o name)\"")]
pub(super) struct Push {
    /// The app: a component or a core module
    pub(super) app: PathBuf,
    /// What pods will call it: NAME[:TAG] [default tag: latest]
    pub(super) name: String,
    /// What to print of the image
    #[arg(short, long, value_enum)]
    pub(super) output: Option<PushFormat>,
}

/// Formats of `push -o`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum PushFormat {
    /// Name, digest and size as one JSON document
    Json,
    /// The image's name alone
    Name,
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
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub(super) tail: Option<i64>,
    /// Only lines of the last while: seconds, or for example 5m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(super) since: Option<Duration>,
    /// Put the time before each line
    #[arg(long)]
    pub(super) timestamps: bool,
    /// Of the last run that ended before the present one
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
    #[arg(long, value_parser = replicas, allow_negative_numbers = true)]
    pub(super) replicas: u32,
}

/// `edgeorc delete`.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  edgeorc delete app hello       the deployment, service and ingress of an app\n  \
    edgeorc delete pod hello-5d8c-abcde --wait=false"
)]
pub(super) struct Delete {
    /// KIND/NAME, or KIND and NAMEs; `app NAME` is all that `deploy` made
    #[arg(required = true, value_name = "KIND/NAME")]
    pub(super) what: Vec<String>,
    /// Wait until the objects are gone; of an app, until its pods are gone as well
    #[arg(
        long, value_name = "BOOL", default_value_t = true, default_missing_value = "true",
        num_args = 0..=1, require_equals = true, action = clap::ArgAction::Set
    )]
    pub(super) wait: bool,
    /// How long to wait: seconds, or for example 2m30s
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub(super) timeout: Duration,
    /// What is not there counts as deleted
    #[arg(long)]
    pub(super) ignore_not_found: bool,
}

/// `edgeorc kubeconfig`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  edgeorc kubeconfig > ~/.kube/config\n\n\
    Prints that of --data-dir, else of --kubeconfig, else the first file of $KUBECONFIG with something\n\
    in it, else the admin kubeconfig of this machine's node.")]
pub(super) struct KubeconfigFlags {
    /// Folder of a node whose admin kubeconfig is printed
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
    /// Compile for addresses of at most so many bits
    #[arg(long, value_name = "BITS", hide = true)]
    pub(super) address_bits_max: Option<u32>,
    /// Compile for the interpreter
    #[arg(long, hide = true)]
    pub(super) pulley: bool,
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
    fn replicas_beyond_what_kubernetes_counts_are_refused_with_the_bounds() {
        let scale =
            |n: &str| Arguments::try_parse_from(["edgeorc", "scale", "deploy/a", "--replicas", n]);
        assert!(scale("2147483647").is_ok() && scale("0").is_ok());
        for bad in ["2147483648", "99999999999999999999", "-1", "many"] {
            let refused = scale(bad).unwrap_err().to_string();
            assert!(refused.contains("0 to 2147483647") && refused.contains(bad), "{refused}");
        }
    }

    #[test]
    fn delete_waits_unless_told_otherwise() {
        let wait = |flags: &[&str]| {
            let words = ["edgeorc", "delete", "app", "x"].iter().chain(flags);
            match Arguments::try_parse_from(words).unwrap().command {
                Command::Delete(delete) => delete.wait,
                _ => unreachable!("it says delete"),
            }
        };
        assert!(wait(&[]) && wait(&["--wait"]) && wait(&["--wait=true"]));
        assert!(!wait(&["--wait=false"]));
    }

    #[test]
    fn a_join_needs_a_token() {
        assert!(Arguments::try_parse_from(["edgeorc", "node", "start", "--join", "x"]).is_err());
    }
}
