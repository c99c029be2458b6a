//! Hosts as network namespaces, a switch between them whose ports can be cut, and nodes on them.
//!
//! Needs root, `ip` and, for what filters packets, `nft`.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{
    API_PORT, INGRESS_PORT, PATIENCE, Process, edgeorc, eventually, get, succeed, taking_pods,
};

/// Longest a request may take.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);

/// A namespace that is removed at the end.
#[derive(Debug)]
pub(crate) struct Namespace(pub(crate) String);

impl Namespace {
    pub(crate) fn make(name: &str) -> Self {
        let name = format!("eo{}-{name}", std::process::id() % 100_000);
        succeed(Command::new("ip").args(["netns", "add", &name]));
        let this = Self(name);
        this.ip("link set lo up");
        this
    }

    pub(crate) fn ip(&self, words: &str) {
        succeed(Command::new("ip").args(["-n", &self.0]).args(words.split(' ')));
    }

    pub(crate) fn nft(&self, rules: &str) {
        let mut child = self.command("nft");
        let mut child = child.args(["-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "{rules}");
    }

    /// A program that runs in it.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0]).arg(program);
        command
    }

    /// The device `t0` that somebody has made gets its address, and all routes.
    pub(crate) fn connect(&self, address: IpAddr) {
        self.ip(&format!("addr add {address}/24 dev t0"));
        self.ip("link set t0 mtu 1500 up");
        self.ip("route add default dev t0");
    }

    /// The device as it was after [`Self::connect`], once more: routes go with a link that is down.
    pub(crate) fn set_link(&self, is_up: bool) {
        self.ip(&format!("link set t0 {}", if is_up { "up" } else { "down" }));
        if is_up {
            self.ip("route replace default dev t0");
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

/// A switch. What it does not forward is lost without a word, as on a real one.
#[derive(Debug)]
pub(crate) struct Switch(Namespace);

impl Switch {
    pub(crate) fn make(name: &str) -> Self {
        let space = Namespace::make(name);
        space.ip("link add br0 type bridge");
        space.ip("link set br0 up");
        Self(space)
    }

    /// Gives `host` its device `t0`, and plugs it in.
    pub(crate) fn plug(&self, host: &Host) {
        let port = host.name;
        let peer = format!("link add t0 type veth peer name {port} netns {}", self.0.0);
        host.space.ip(&peer);
        self.mend(host);
        self.0.ip(&format!("link set {port} up"));
        host.space.connect(host.address);
    }

    /// Nothing of `host` is forwarded any more, nor to it.
    pub(crate) fn cut(&self, host: &Host) {
        self.0.ip(&format!("link set {} nomaster", host.name));
    }

    pub(crate) fn mend(&self, host: &Host) {
        self.0.ip(&format!("link set {} master br0", host.name));
    }
}

/// A node on a host of its own.
pub(crate) struct Host {
    pub(crate) name: &'static str,
    pub(crate) space: Namespace,
    pub(crate) address: IpAddr,
    pub(crate) data_dir: PathBuf,
    /// Further variables of the environment.
    pub(crate) environment: Vec<(&'static str, String)>,
    pub(crate) process: Option<Process>,
}

impl Host {
    pub(crate) fn new(folder: &Path, name: &'static str, address: &str) -> Self {
        let address = address.parse().unwrap();
        let data_dir = folder.join(name);
        let (space, environment) = (Namespace::make(name), Vec::new());
        Self { name, space, address, data_dir, environment, process: None }
    }

    /// Starts the node; `join` is a server's address and a token. Without it, and from its own disk,
    /// it goes on as what it was.
    pub(crate) fn start(&mut self, join: Option<(IpAddr, &str)>) {
        let program = edgeorc();
        let mut command = self.space.command(program.get_program());
        command.envs(self.environment.iter().cloned());
        // Any address: that of the host may change.
        command.args(["node", "start", "--node-name", self.name, "--bind-address", "0.0.0.0"]);
        command.arg("--data-dir").arg(&self.data_dir);
        if let Some((server, token)) = join {
            command.args(["--join", &format!("https://{server}:{API_PORT}"), "--token", token]);
        }
        let log = self.data_dir.with_extension("log");
        self.process = Some(Process::spawn(&mut command, log));
    }

    pub(crate) fn process(&mut self) -> &mut Process {
        self.process.as_mut().unwrap()
    }

    /// Runs `edgeorc` here, as the administrator whose rights are on this disk.
    pub(crate) fn edgeorc(&self, args: &[&str]) -> Command {
        let mut command = self.space.command(edgeorc().get_program());
        command.args(args).arg("--kubeconfig").arg(self.data_dir.join("admin.kubeconfig"));
        command
    }

    pub(crate) fn kubectl(&self, args: &[&str]) -> Command {
        let mut command = self.space.command("kubectl");
        command.arg("--kubeconfig").arg(self.data_dir.join("admin.kubeconfig"));
        command.arg("--cache-dir").arg(self.data_dir.with_extension("kube-cache")).args(args);
        command
    }

    /// Each host asks itself: what is under test is the way from there to the pods.
    pub(crate) fn ingress(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::from([127, 0, 0, 1]), INGRESS_PORT)
    }

    /// Runs `work` on a thread in this host's network.
    pub(crate) fn within<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let space = self.space.0.clone();
        std::thread::spawn(move || {
            enter(&space);
            work()
        })
        .join()
        .unwrap()
    }

    /// Addresses of the pods that answer here, until `wanted` of them have.
    pub(crate) fn until_answered_by(&self, wanted: usize) {
        let at = self.ingress();
        let seen = self.within(move || {
            let mut seen = BTreeSet::new();
            let begun = Instant::now();
            while seen.len() < wanted && begun.elapsed() < PATIENCE {
                if let Ok(answer) = get(at, "hello.default.localhost", "/", REQUEST_LIMIT)
                    && answer.code == 200
                {
                    seen.extend(answer.body.split_whitespace().nth(3).map(str::to_owned));
                }
            }
            seen
        });
        assert_eq!(seen.len(), wanted, "{}: {seen:?}", self.name);
    }
}

/// This thread's sockets are in the network of `space` from now on.
pub(crate) fn enter(space: &str) {
    let file = std::fs::File::open(format!("/run/netns/{space}")).unwrap();
    rustix::thread::move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&file),
        Some(rustix::thread::LinkNameSpaceType::Network),
    )
    .unwrap();
}

/// Waits until the nodes of these names are ready and take pods.
pub(crate) fn wait_ready(asked: &Host, names: &[&str]) {
    eventually("the nodes are ready", 2 * PATIENCE, || {
        let output = asked.edgeorc(&["get", "nodes", "-o", "json"]).output().unwrap();
        let ready = taking_pods(&output)?;
        let is_ready = |name: &&str| ready.iter().any(|one| one == name);
        if names.iter().all(is_ready) { Ok(()) } else { Err(format!("{ready:?}")) }
    });
}
