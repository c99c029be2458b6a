//! Stand-in for `agnhost`, the image of Kubernetes' end-to-end tests: one program, many small
//! servers and tools, chosen by the first argument. Written for WASI, where a pod has TCP, its
//! volumes, its environment and its clock, and neither a shell, nor UDP, nor other programs.
//!
//! A library that exports `wasi:cli/run`, no program with a `main`: linked as a program, old linkers
//! and C libraries run all constructors again whenever the host hands bytes over, and trap.
//!
//! Exit codes: that of the subcommand; 1 when it fails; 2 for arguments that make no sense, and for
//! subcommands of the original that are left out.

mod connect;
mod dial;
mod files;
mod flags;
mod host;
mod http;
mod liveness;
mod logs_generator;
mod mounttest;
mod netexec;
mod porter;
mod rt;
mod serve_hostname;
mod simple;
mod tcp;
mod test_webserver;

/// Version of `agnhost` whose ways these are.
const LIKE_VERSION: &str = "2.40";
/// Exit code for arguments that make no sense.
const EXIT_USAGE: i32 = 2;

/// Why a subcommand ended.
pub(crate) enum Failure {
    /// The arguments make no sense. Exit code 2.
    Usage(String),
    /// It could not do its work. Exit code 1.
    Failed(String),
}

impl From<String> for Failure {
    fn from(words: String) -> Self {
        Self::Usage(words)
    }
}

/// A subcommand: what it does with its arguments.
type Run = fn(&[String]) -> Result<(), Failure>;

const SUBCOMMANDS: &[(&str, &str, Run)] = &[
    ("connect", "HOST:PORT [--timeout 5s]: says why it cannot connect", connect::run),
    ("dns-server-list", "prints the name servers of /etc/resolv.conf", simple::dns_server_list),
    ("dns-suffix", "prints the search list of /etc/resolv.conf", simple::dns_suffix),
    ("entrypoint-tester", "prints its arguments", simple::entrypoint_tester),
    ("etc-hosts", "prints /etc/hosts", simple::etc_hosts),
    ("liveness", "[--port 8080]: /healthz is 200 for 10 s, then 500", liveness::run),
    ("logs-generator", "-t LINES -d DURATION: prints lines at an even rate", logs_generator::run),
    ("mounttest", "[--file_content PATH] …: looks at files of volumes", mounttest::run),
    ("netexec", "[--http-port 8080]: a server to talk to, see /dial and /echo", netexec::run),
    ("pause", "sleeps until it is stopped", simple::pause),
    ("porter", "serves the value of SERVE_PORT_n on port n, for all n", porter::run),
    ("serve-hostname", "[--port 9376] [--tcp]: answers with the pod's name", serve_hostname::run),
    ("test-webserver", "[--port 80]: serves the files of the volumes", test_webserver::run),
];

const NO_TLS: &str = "it needs a TLS server, which this stand-in does not have";
const NO_API: &str = "it needs a TLS client for the API, which this stand-in does not have";
const NO_UDP: &str = "it needs sockets beyond TCP, which pods do not have";
const NOT_HERE: &str = "this stand-in does not have it";

/// Subcommands of the original that are left out, and why.
const LEFT_OUT: &[(&str, &str)] = &[
    ("audit-proxy", NOT_HERE),
    ("crd-conversion-webhook", NO_TLS),
    ("env", "print the environment with the image busybox"),
    ("fake-gitserver", NOT_HERE),
    ("grpc-health-checking", NOT_HERE),
    ("guestbook", NOT_HERE),
    ("inclusterclient", NO_API),
    ("mtlsclient", NO_TLS),
    ("mtlsserver", NO_TLS),
    ("net", NO_UDP),
    ("nettest", NO_API),
    ("no-snat-test", NOT_HERE),
    ("no-snat-test-proxy", NOT_HERE),
    ("nosnat", NOT_HERE),
    ("openidmetadata", NO_API),
    ("podcertificatesigner", NO_API),
    ("port-forward-tester", NOT_HERE),
    ("resource-consumer-controller", NOT_HERE),
    ("tcp-reset", "a pod's TCP stack sends no reset on demand"),
    ("webhook", NO_TLS),
];

wasip2::cli::command::export!(Agnhost);

struct Agnhost;

impl wasip2::exports::cli::run::Guest for Agnhost {
    fn run() -> Result<(), ()> {
        match main() {
            0 => Ok(()),
            1 => Err(()),
            code => std::process::exit(code),
        }
    }
}

/// Gives the exit code.
fn main() -> i32 {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((name, rest)) = args.split_first() else {
        eprint!("{}", usage());
        return EXIT_USAGE;
    };
    if matches!(name.as_str(), "help" | "--help" | "-h") {
        print!("{}", usage());
        return 0;
    }
    if matches!(name.as_str(), "--version" | "version") {
        println!("agnhost stand-in for WebAssembly, like {LIKE_VERSION}");
        return 0;
    }
    let Some((_, _, run)) = SUBCOMMANDS.iter().find(|(known, _, _)| known == name) else {
        match LEFT_OUT.iter().find(|(known, _)| known == name) {
            Some((_, why)) => eprintln!("agnhost: {name} is left out: {why}"),
            None => eprint!("agnhost: unknown subcommand {name}\n{}", usage()),
        }
        return EXIT_USAGE;
    };
    match run(rest) {
        Ok(()) => 0,
        Err(Failure::Usage(words)) => {
            eprintln!("agnhost {name}: {words}");
            EXIT_USAGE
        }
        Err(Failure::Failed(words)) => {
            eprintln!("agnhost {name}: {words}");
            1
        }
    }
}

fn usage() -> String {
    let mut text = "Usage: agnhost SUBCOMMAND [FLAGS]\n\n".to_owned();
    for (name, words, _) in SUBCOMMANDS {
        text.push_str(&format!("  {name:18} {words}\n"));
    }
    text
}
