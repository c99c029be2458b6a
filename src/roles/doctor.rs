//! What a node would choose on this machine and why, and what is in its way. Starts nothing.

use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;

use edgeorc_runtime::{Allocator, CodeClass, Executor, Machine, Plan};
use jiff::Timestamp;
use rustix::fs::{statfs, statvfs};
use serde::Serialize;

use crate::agent::check_registries_file;
use crate::config::NodeSettings;
use crate::roles::data_dir::FREE_BYTES_MIN;
use crate::roles::{module, port_owner};
use crate::rt::WallClock;

/// RAM below which only a few small apps fit beside the node, in bytes.
const MEMORY_BYTES_SMALL: u64 = 256 << 20;
/// Free bytes below which images and logs soon fill the disk.
const FREE_BYTES_SMALL: u64 = 512 << 20;
/// A clock before this program was written is wrong: no certificate would be valid.
const CLOCK_MIN: &str = "2026-01-01T00:00:00Z";
/// A clock after this has an error of decades.
const CLOCK_MAX: &str = "2100-01-01T00:00:00Z";
/// File systems by the number that the kernel calls them, and what is wrong with them for state.
const FILE_SYSTEMS: &[(u32, &str, Option<&str>)] = &[
    (0xEF53, "ext4", None),
    (0x5846_5342, "xfs", None),
    (0x9123_683E, "btrfs", None),
    (0xF2F5_2010, "f2fs", None),
    (0x2FC1_2FC1, "zfs", None),
    (0x794C_7630, "overlayfs", Some("it may go with its container; name a volume with --data-dir")),
    (0x0102_1994, "tmpfs", Some("it is memory: nothing is left after a restart of the machine")),
    (0x8584_58F6, "ramfs", Some("it is memory: nothing is left after a restart of the machine")),
    (0x4D44, "vfat", Some("it keeps no access rights: keys can be read by everybody")),
    (0x6969, "nfs", Some("a network file system may lose what was flushed; use a local disk")),
    (
        0xFF53_4D42,
        "cifs",
        Some("a network file system may lose what was flushed; use a local disk"),
    ),
    (
        0xFE53_4D42,
        "smb2",
        Some("a network file system may lose what was flushed; use a local disk"),
    ),
];

/// Whether something is as a node needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// A node runs, with a disadvantage.
    Warn,
    /// A node does not start, or soon stops.
    Fail,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// What was looked at, for example `addressBits`.
    pub name: &'static str,
    /// Whether it is as a node needs it.
    pub verdict: Verdict,
    /// What was found or chosen.
    pub value: String,
    /// Why it matters, or why it was chosen.
    pub why: String,
}

impl Finding {
    fn new(
        name: &'static str,
        verdict: Verdict,
        value: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        Self { name, verdict, value: value.into(), why: why.into() }
    }
}

/// Looks at everything that a node with these settings depends on.
#[must_use]
pub fn examine(settings: &NodeSettings, clock: &WallClock) -> Vec<Finding> {
    let mut findings = examine_machine(module::machine(settings.sandboxes));
    findings.extend(disk(&settings.data_dir));
    findings.extend(ports(settings));
    findings.push(judge_clock(clock.now()));
    let file = settings.images.registries_file.clone();
    findings.extend(registries(&file.unwrap_or_else(|| settings.data_dir.join("registries.yaml"))));
    findings
}

/// The machine, and the engine that was made for it.
fn examine_machine(machine: Machine) -> Vec<Finding> {
    let mut findings = judge_machine(&machine);
    let plan = Plan::new(machine);
    match plan.tried() {
        Ok(tried) => findings.extend(judge_plan(&plan, &tried)),
        Err(error) => findings.push(Finding::new(
            "engine",
            Verdict::Fail,
            error.to_string(),
            "no guest can run without it",
        )),
    }
    findings.push(judge_executor(&plan));
    findings.push(match plan.try_compiler() {
        Ok(()) => Finding::new(
            "compiler",
            Verdict::Ok,
            match machine.executor {
                Executor::Native => format!("Cranelift for {}", std::env::consts::ARCH),
                Executor::Pulley32 => "Cranelift for Pulley with 32 bits".to_owned(),
                Executor::Pulley64 => "Cranelift for Pulley with 64 bits".to_owned(),
            },
            "apps that no server has compiled are compiled here, in a child process of their own",
        ),
        Err(error) => {
            let why = "apps run only if a server with the same CPU compiles them";
            Finding::new("compiler", Verdict::Warn, error.to_string(), why)
        }
    });
    findings
}

/// What runs the guests' code.
fn judge_executor(plan: &Plan) -> Finding {
    let arch = std::env::consts::ARCH;
    if plan.machine.executor == Executor::Native {
        return Finding::new("executor", Verdict::Ok, arch, "guests are run by the processor");
    }
    let value = "Pulley";
    if let Err(error) = plan.try_executor() {
        return Finding::new("executor", Verdict::Fail, value, error.to_string());
    }
    let why = format!("guests are interpreted, many times slower than native code for {arch}");
    Finding::new("executor", Verdict::Warn, value, why)
}

fn judge_machine(machine: &Machine) -> Vec<Finding> {
    let short = if machine.address_bits < 46 {
        "as much as the kernel gives a process; too short for 4 GiB and a guard for each memory"
    } else {
        "as much as the kernel gives a process"
    };
    let mut findings = vec![
        Finding::new("addressBits", Verdict::Ok, machine.address_bits.to_string(), short),
        Finding::new(
            "pageSize",
            Verdict::Ok,
            format!("{} KiB", machine.page_bytes >> 10),
            "what the kernel maps at once",
        ),
    ];
    if let Some(limit) = machine.address_bytes_max {
        findings.push(Finding::new(
            "addressLimit",
            Verdict::Warn,
            format!("{} MiB", limit >> 20),
            "`ulimit -v` is set; without it more memories can be kept ready",
        ));
    }
    let memory = format!("{} MiB", machine.memory_bytes >> 20);
    findings.push(if machine.memory_bytes < MEMORY_BYTES_SMALL {
        let why = "a few small apps fit; compiling a large one may fail";
        Finding::new("memory", Verdict::Warn, memory, why)
    } else {
        Finding::new("memory", Verdict::Ok, memory, "of the machine, or of this control group")
    });
    let threads = machine.cores.to_string();
    findings.push(Finding::new(
        "guestThreads",
        Verdict::Ok,
        threads,
        "one for each core; they yield to the control plane",
    ));
    findings
}

fn judge_plan(wish: &Plan, plan: &Plan) -> Vec<Finding> {
    let class = match plan.class {
        CodeClass::Wide if plan.machine.executor != Executor::Native => {
            "each memory reserves all that it can address"
        }
        CodeClass::Wide => "no bounds checks: each memory reserves all that it can address",
        CodeClass::Dense => "bounds checks: addresses are short, so that reservations are small",
        CodeClass::Tiny => "32 bits: memories are small and move when they grow",
    };
    let reserved = format!(
        "{} MiB and a guard of {} KiB for each memory",
        plan.reservation_bytes() >> 20,
        plan.guard_bytes() >> 10
    );
    let allocator = match (plan.allocator, wish.allocator) {
        (Allocator::Pooling { slots }, wished) => {
            let value = format!("pool of {slots} memories and {} stacks", Plan::stacks(slots));
            if plan.allocator == wished {
                let why = "at most half of the address space, and two for each MiB of memory";
                Finding::new("allocator", Verdict::Ok, value, why)
            } else {
                let why = "the kernel refused a larger reservation";
                Finding::new("allocator", Verdict::Warn, value, why)
            }
        }
        (Allocator::OnDemand { reason }, _) => {
            let value = "one mapping for each memory, without a pool";
            Finding::new("allocator", Verdict::Warn, value, reason)
        }
    };
    vec![
        Finding::new("memoryLayout", Verdict::Ok, reserved, class),
        allocator,
        Finding::new(
            "guestMemoryMax",
            Verdict::Ok,
            format!("{} MiB", plan.memory_bytes_max >> 20),
            "the most that one memory can grow to",
        ),
    ]
}

/// The file system of the data directory, or of the folder it will be made in.
fn disk(data_dir: &Path) -> Vec<Finding> {
    let mut folder = data_dir;
    while !folder.exists() {
        match folder.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => folder = parent,
            _ => folder = Path::new("."),
        }
    }
    let shown = data_dir.display().to_string();
    let mut findings = vec![if !folder.is_dir() {
        let why = "it is no folder; name another one with --data-dir";
        Finding::new("dataDir", Verdict::Fail, shown, why)
    } else if let Err(cause) = try_folder(folder) {
        let why = format!("no folder can be made in {}: {cause}; use --data-dir", folder.display());
        Finding::new("dataDir", Verdict::Fail, shown, why)
    } else if folder == data_dir {
        Finding::new("dataDir", Verdict::Ok, shown, "it is there and can be written to")
    } else {
        Finding::new("dataDir", Verdict::Ok, shown, "it will be made at the first start")
    }];
    if let Ok(system) = statfs(folder) {
        // The kernel's numbers have 32 bits; the field's width differs between machines.
        let number = u32::try_from(system.f_type & 0xffff_ffff).unwrap_or_default();
        let known = FILE_SYSTEMS.iter().find(|(of, _, _)| *of == number);
        findings.push(match known {
            Some((_, name, None)) => {
                Finding::new("fileSystem", Verdict::Ok, *name, "of the data directory")
            }
            Some((_, name, Some(why))) => Finding::new("fileSystem", Verdict::Warn, *name, *why),
            None => Finding::new(
                "fileSystem",
                Verdict::Ok,
                format!("{number:#x}"),
                "of the data directory; this program does not know it",
            ),
        });
    }
    if let Ok(space) = statvfs(folder) {
        findings.push(judge_space(space.f_bavail.saturating_mul(space.f_frsize)));
    }
    findings
}

/// Makes a folder and takes it away: rights alone do not tell of file systems that take none.
fn try_folder(parent: &Path) -> std::io::Result<()> {
    let folder = parent.join(format!(".edgeorc-doctor-{}", std::process::id()));
    std::fs::create_dir(&folder)?;
    std::fs::remove_dir(&folder)
}

fn judge_space(free: u64) -> Finding {
    let value = format!("{} MiB", free >> 20);
    if free < FREE_BYTES_MIN {
        let why = format!("a node needs {} MiB to start", FREE_BYTES_MIN >> 20);
        return Finding::new("freeSpace", Verdict::Fail, value, why);
    }
    if free < FREE_BYTES_SMALL {
        let why = "images and logs may soon fill the disk";
        return Finding::new("freeSpace", Verdict::Warn, value, why);
    }
    Finding::new("freeSpace", Verdict::Ok, value, "for state, images, compiled code and logs")
}

/// Whether the ports can be listened on.
fn ports(settings: &NodeSettings) -> Vec<Finding> {
    let api = SocketAddr::new(settings.bind_address, settings.api_port);
    let ingress = SocketAddr::new(settings.bind_address, settings.ingress_port);
    let tcp = |at: SocketAddr| TcpListener::bind(at).map(|_| ());
    let udp = |at: SocketAddr| UdpSocket::bind(at).map(|_| ());
    vec![
        judge_port("apiPort", "tcp", api, tcp(api), "--api-port"),
        judge_port("peerPort", "udp", api, udp(api), "--api-port"),
        judge_port("ingressPort", "tcp", ingress, tcp(ingress), "--ingress-port"),
    ]
}

fn judge_port(
    name: &'static str,
    protocol: &str,
    at: SocketAddr,
    bound: std::io::Result<()>,
    flag: &str,
) -> Finding {
    let value = format!("{at}/{protocol}");
    match bound {
        Ok(()) => Finding::new(name, Verdict::Ok, value, "it is free"),
        Err(cause) if cause.kind() == std::io::ErrorKind::AddrInUse => {
            let why = match port_owner::find(protocol, at) {
                Some((owner, pid)) if owner == "edgeorc" => {
                    format!("a node runs there already (process {pid}); {flag} names another port")
                }
                Some((owner, pid)) => {
                    format!("{owner} (process {pid}) uses it; {flag} names another port")
                }
                None => format!("it is in use; {flag} names another port"),
            };
            Finding::new(name, Verdict::Fail, value, why)
        }
        Err(cause) => {
            let why = format!("it cannot be listened on: {cause}; see --bind-address");
            Finding::new(name, Verdict::Fail, value, why)
        }
    }
}

/// The file with mirrors and credentials, if there is one.
fn registries(file: &Path) -> Option<Finding> {
    file.exists().then(|| {
        let shown = file.display().to_string();
        match check_registries_file(file) {
            Ok(()) => Finding::new("registries", Verdict::Ok, shown, "mirrors and credentials"),
            Err(why) => {
                let why = format!("a node goes on with the last good one: {why}");
                Finding::new("registries", Verdict::Warn, shown, why)
            }
        }
    })
}

fn judge_clock(now: Timestamp) -> Finding {
    let limit = |text: &str| text.parse::<Timestamp>().unwrap_or(now);
    let value = now.to_string();
    if now < limit(CLOCK_MIN) || now > limit(CLOCK_MAX) {
        let why = "it is wrong: certificates would not be valid; set it, or start a time service";
        return Finding::new("clock", Verdict::Fail, value, why);
    }
    Finding::new("clock", Verdict::Ok, value, "certificates and logs depend on it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(finding: &Finding) -> Verdict {
        finding.verdict
    }

    #[test]
    fn an_interpreted_machine_is_told_so() {
        let found = examine_machine(Machine::probe().interpreted());
        let named = |name: &str| found.iter().find(|finding| finding.name == name).unwrap();
        let executor = named("executor");
        assert_eq!((executor.verdict, executor.value.as_str()), (Verdict::Warn, "Pulley"));
        assert!(named("compiler").value.contains("Pulley"), "{found:?}");
    }

    #[test]
    fn a_raspberry_pi_with_short_addresses_is_told_what_it_gets() {
        let machine = Machine {
            address_bits: 39,
            address_bytes_max: None,
            page_bytes: 4096,
            memory_bytes: 128 << 20,
            cores: 4,
            executor: Executor::Native,
        };
        let found = judge_machine(&machine);
        let memory = found.iter().find(|finding| finding.name == "memory").unwrap();
        assert_eq!((memory.verdict, memory.value.as_str()), (Verdict::Warn, "128 MiB"));
        let plan = Plan::new(machine);
        let found = judge_plan(&plan, &plan);
        assert!(found[0].why.contains("addresses are short"), "{found:?}");
        let smaller = Plan { allocator: Allocator::Pooling { slots: 64 }, ..plan };
        let refused = judge_plan(&plan, &smaller);
        assert!(refused[1].verdict == Verdict::Warn && refused[1].why.contains("refused"));
    }

    #[test]
    fn space_and_time_that_do_not_do_are_failures() {
        assert_eq!(verdict(&judge_space(1 << 20)), Verdict::Fail);
        assert_eq!(verdict(&judge_space(100 << 20)), Verdict::Warn);
        assert_eq!(verdict(&judge_space(10 << 30)), Verdict::Ok);
        assert_eq!(verdict(&judge_clock(Timestamp::UNIX_EPOCH)), Verdict::Fail);
        assert_eq!(verdict(&judge_clock("2026-06-01T00:00:00Z".parse().unwrap())), Verdict::Ok);
    }

    #[test]
    fn a_broken_registries_file_is_named_and_a_missing_one_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("registries.yaml");
        assert_eq!(registries(&file), None);
        std::fs::write(&file, "mirrors: {}").unwrap();
        assert_eq!(registries(&file).unwrap().verdict, Verdict::Ok);
        std::fs::write(&file, "mirors: {}").unwrap();
        let found = registries(&file).unwrap();
        assert!(found.verdict == Verdict::Warn && found.why.contains("mirors"), "{found:?}");
    }

    #[test]
    fn a_port_in_use_is_told_with_its_flag() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let at = taken.local_addr().unwrap();
        let found =
            judge_port("apiPort", "tcp", at, TcpListener::bind(at).map(|_| ()), "--api-port");
        assert!(found.verdict == Verdict::Fail && found.why.contains("--api-port"), "{found:?}");
        let owner = format!("(process {})", std::process::id());
        assert!(found.why.contains(&owner), "{found:?}");
    }

    #[test]
    fn a_data_dir_that_is_not_there_yet_is_judged_by_the_folder_above() {
        let folder = tempfile::tempdir().unwrap();
        let found = disk(&folder.path().join("a/b"));
        assert!(found[0].verdict == Verdict::Ok && found[0].why.contains("first start"));
        let file = folder.path().join("file");
        std::fs::write(&file, "x").unwrap();
        assert_eq!(disk(&file)[0].verdict, Verdict::Fail);
        let found = disk(Path::new("/proc/edgeorc"));
        assert!(found[0].verdict == Verdict::Fail && found[0].why.contains("/proc"), "{found:?}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left behind");
    }
}
