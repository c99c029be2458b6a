//! Six hosts as six network namespaces: three servers, an agent behind NAT, one whose address
//! changes, one without UDP; then loss and delay on every link.
//!
//! Needs root, `ip`, `nft`, `python3` and `/dev/net/tun`: `just test-network` runs it.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::hosts::{Host, Namespace, enter, wait_ready};
use crate::network::Load;
use crate::support::{hello, succeed};

/// How long the load runs in each phase.
const PHASE: Duration = Duration::from_secs(20);
/// One way, and of each packet on each link.
const DELAY_MS: u32 = 50;
const LOSS: f64 = 0.05;

/// The wire between the namespaces.
struct Testbed {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Testbed {
    fn start(hosts: &[(&Namespace, &str)]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/testbed.py");
        let mut command = Command::new("python3");
        command
            .arg(script)
            .args(hosts.iter().map(|(space, prefix)| format!("{}={prefix}", space.0)));
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("python3");
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut this = Self { child, input, output };
        this.expect("ready");
        this
    }

    fn expect(&mut self, wanted: &str) {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), wanted, "the testbed did not start");
    }

    fn set(&mut self, delay_ms: u32, loss: f64) {
        // In one piece: half a line is none.
        self.input.write_all(format!("{delay_ms} {loss}\n").as_bytes()).unwrap();
        self.expect("set");
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sum of a counter of all its labels, on the server `host`.
fn counter(host: &Host, name: &str) -> u64 {
    let metrics = succeed(&mut host.kubectl(&["get", "--raw", "/metrics"]));
    let values = metrics.lines().filter(|line| line.starts_with(name));
    values.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
}

/// Load from every host for a while; what failed of it.
fn load_everywhere(hosts: &[Host], during: impl FnOnce()) -> (usize, Vec<String>) {
    let loads: Vec<_> = hosts
        .iter()
        .map(|host| {
            let space = host.space.0.clone();
            (host.name, Load::start_in(host.ingress(), move || enter(&space)))
        })
        .collect();
    during();
    let (mut asked, mut failed) = (0, Vec::new());
    for (name, load) in loads {
        let outcome = load.stop();
        asked += outcome.asked;
        let gets = outcome.failures.into_iter().filter(|(_, method, _)| *method == "GET");
        failed.extend(gets.map(|(_, _, why)| format!("{name}: {why}")));
    }
    (asked, failed)
}

#[test]
#[ignore = "needs root, network namespaces, nft and python3: just test-network"]
fn hosts_behind_nat_on_the_move_and_without_udp_reach_all_pods() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = Namespace::make("gw");
    let plan = [
        ("one", "10.99.1.2"),
        ("two", "10.99.2.2"),
        ("three", "10.99.3.2"),
        ("nat", "192.168.77.2"),
        ("mobile", "10.99.5.2"),
        ("tcp", "10.99.6.2"),
    ];
    let mut hosts: Vec<Host> =
        plan.iter().map(|(name, at)| Host::new(folder.path(), name, at)).collect();
    let mut wires: Vec<(&Namespace, &str)> = vec![(&gateway, "10.99.4.")];
    for (host, prefix) in hosts.iter().zip(["10.99.1.", "10.99.2.", "10.99.3."]) {
        wires.push((&host.space, prefix));
    }
    wires.push((&hosts[4].space, "10.99.5."));
    wires.push((&hosts[5].space, "10.99.6."));
    let mut testbed = Testbed::start(&wires);
    for host in hosts.iter().filter(|host| host.name != "nat") {
        host.space.connect(host.address);
    }
    // A home router: what comes from inside goes out under its own address, nothing comes in.
    gateway.connect("10.99.4.2".parse().unwrap());
    let inside = &hosts[3].space;
    inside.ip(&format!("link add up0 type veth peer name down0 netns {}", gateway.0));
    inside.ip("addr add 192.168.77.2/24 dev up0");
    inside.ip("link set up0 up");
    inside.ip("route add default via 192.168.77.1");
    gateway.ip("addr add 192.168.77.1/24 dev down0");
    gateway.ip("link set down0 up");
    succeed(gateway.command("sh").args(["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]));
    gateway.nft(
        "table ip nat { chain out { type nat hook postrouting priority 100; oifname \"t0\" masquerade; }\n}\n",
    );
    hosts[5].space.nft(
        "table ip f { chain i { type filter hook input priority 0; iifname \"t0\" meta l4proto udp drop; }
           chain o { type filter hook output priority 0; oifname \"t0\" meta l4proto udp drop; }\n}\n",
    );

    hosts[0].start(None);
    wait_ready(&hosts[0], &["one"]);
    let server = hosts[0].address;
    for at in 1..hosts.len() {
        let token = succeed(&mut hosts[0].edgeorc(&["node", "token", "create"]));
        hosts[at].start(Some((server, token.trim())));
        let name = hosts[at].name;
        wait_ready(&hosts[0], &[name]);
    }
    let hello = hello();
    let hello = hello.to_str().unwrap();
    let replicas = (2 * hosts.len()).to_string();
    succeed(&mut hosts[0].edgeorc(&["deploy", hello, "--replicas", &replicas, "--wait"]));
    for host in &hosts {
        let started = Instant::now();
        host.until_answered_by(2 * plan.len());
        eprintln!("{}: all pods answered within {:?}", host.name, started.elapsed());
    }

    let ejections = "edgeorc_mesh_ejections_total";
    testbed.set(DELAY_MS, LOSS);
    // The links are learnt: connections of before may have been made for a better network.
    std::thread::sleep(Duration::from_secs(5));
    let before = counter(&hosts[0], ejections);
    let (asked, failed) = load_everywhere(&hosts, || std::thread::sleep(PHASE));
    let ejected = counter(&hosts[0], ejections) - before;
    eprintln!(
        "{LOSS} loss, {DELAY_MS} ms each way: {asked} requests, {} failed, {ejected} ejections",
        failed.len()
    );
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(ejected, 0, "false ejections");
    testbed.set(0, 0.0);

    let mobile = hosts.iter().find(|host| host.name == "mobile").unwrap();
    let (asked, failed) = load_everywhere(&hosts, || {
        std::thread::sleep(Duration::from_secs(3));
        // In this order: the second address of a network goes with the first.
        mobile.space.ip("addr del 10.99.5.2/24 dev t0");
        mobile.space.ip("addr add 10.99.5.77/24 dev t0");
        // The routes went with the old address.
        mobile.space.ip("route replace default dev t0");
        std::thread::sleep(PHASE);
    });
    eprintln!("address changed: {asked} requests, {} failed", failed.len());
    assert!(failed.is_empty(), "{failed:?}");
    for host in &hosts {
        host.until_answered_by(2 * plan.len());
    }
}
