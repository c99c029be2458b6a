//! What processes have used so far, as the system counts it.

use std::collections::BTreeMap;
use std::time::Instant;

/// Ticks of the kernel's CPU accounting per second, as user space sees them.
const TICKS_PER_SECOND: f64 = 100.0;

/// Counts of one process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Used {
    /// Seconds of processor time.
    pub(crate) cpu: f64,
    /// Bytes sent to storage.
    pub(crate) written: f64,
    /// Resident MiB now, and at most.
    pub(crate) resident: f64,
    pub(crate) peak: f64,
}

/// What a process has used; nothing if it is gone.
pub(crate) fn used(pid: u32) -> Used {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok();
    let number = |text: &str, key: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).unwrap_or(0.0)
    };
    let (Some(stat), Some(io), Some(status)) = (read("stat"), read("io"), read("status")) else {
        return Used::default();
    };
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks = fields.split_whitespace().skip(11).take(2).map(|f| f.parse::<f64>().unwrap());
    Used {
        cpu: ticks.sum::<f64>() / TICKS_PER_SECOND,
        written: number(&io, "write_bytes:"),
        resident: number(&status, "VmRSS:") / 1024.0,
        peak: number(&status, "VmHWM:") / 1024.0,
    }
}

/// Bytes that the loopback device of this network namespace has carried.
pub(crate) fn carried() -> f64 {
    let text = std::fs::read_to_string("/proc/net/dev").unwrap();
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("lo:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// All processes at one moment: servers, then those with agents.
#[derive(Debug, Clone)]
pub(crate) struct Reading {
    at: Instant,
    servers: Vec<Used>,
    agents: Vec<Used>,
    carried: f64,
}

/// What happened between two readings.
#[derive(Debug, Clone)]
pub(crate) struct Spent {
    /// Seconds.
    pub(crate) time: f64,
    /// By server.
    pub(crate) servers: Vec<Used>,
    /// Of all processes with agents together.
    pub(crate) agents: Used,
    /// Bytes on the wire.
    pub(crate) carried: f64,
}

impl Reading {
    pub(crate) fn take(servers: &[u32], agents: &[u32]) -> Self {
        let all = |pids: &[u32]| pids.iter().map(|pid| used(*pid)).collect();
        let (servers, agents) = (all(servers), all(agents));
        Self { at: Instant::now(), servers, agents, carried: carried() }
    }

    /// What was used from this reading to the `later` one; memory is that of the later one.
    pub(crate) fn until(&self, later: &Self) -> Spent {
        let diff = |from: &Used, to: &Used| Used {
            cpu: (to.cpu - from.cpu).max(0.0),
            written: (to.written - from.written).max(0.0),
            ..*to
        };
        let each = |from: &[Used], to: &[Used]| -> Vec<Used> {
            from.iter().zip(to).map(|(from, to)| diff(from, to)).collect()
        };
        let agents = each(&self.agents, &later.agents);
        let sum = |part: fn(&Used) -> f64| agents.iter().map(part).sum();
        Spent {
            time: later.at.duration_since(self.at).as_secs_f64(),
            servers: each(&self.servers, &later.servers),
            agents: Used {
                cpu: sum(|used| used.cpu),
                written: sum(|used| used.written),
                resident: sum(|used| used.resident),
                peak: sum(|used| used.peak),
            },
            carried: later.carried - self.carried,
        }
    }
}

/// Requests that change something, by verb and kind, as servers count them.
pub(crate) type Changes = BTreeMap<(String, String), f64>;

/// What only the leader's memory keeps.
const VOLATILE: [&str; 2] = ["leases", "events"];

/// Adds what a server's metrics say of requests that it has granted.
pub(crate) fn count_changes(metrics: &str, changes: &mut Changes) {
    for line in metrics.lines() {
        let Some(rest) = line.strip_prefix("edgeorc_apiserver_requests_total{") else { continue };
        let Some((labels, count)) = rest.split_once("} ") else { continue };
        let label = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\""))?;
            rest.split_once('"').map(|(value, _)| value.to_owned())
        };
        let (verb, resource) = (label("verb").unwrap(), label("resource").unwrap());
        let is_change = ["create", "update", "patch", "delete"].contains(&verb.as_str());
        let is_granted = label("code").unwrap().starts_with('2');
        if is_change && is_granted && !VOLATILE.contains(&resource.as_str()) {
            *changes.entry((verb, resource)).or_default() += count.trim().parse::<f64>().unwrap();
        }
    }
}
