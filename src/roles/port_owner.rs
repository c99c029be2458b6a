//! Who listens on a port of this machine, as far as `/proc` tells.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// State of a TCP socket that listens, and of a UDP socket that is bound, in the kernel's tables.
const LISTENS: &str = "0A";
const BOUND: &str = "07";
/// Processes that are looked at.
const PROCESSES_MAX: usize = 100_000;

/// Name and number of the process that keeps `at` from being listened on. `protocol` is `tcp` or
/// `udp`. `None`: it is gone by now, or another user's.
pub(super) fn find(protocol: &str, at: SocketAddr) -> Option<(String, u32)> {
    let state = if protocol == "tcp" { LISTENS } else { BOUND };
    let mut inodes = Vec::new();
    for table in [protocol.to_owned(), format!("{protocol}6")] {
        let text = std::fs::read_to_string(format!("/proc/net/{table}")).unwrap_or_default();
        inodes.extend(text.lines().skip(1).filter_map(|line| socket(line, state, at)));
    }
    let wanted: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    if wanted.is_empty() {
        return None;
    }
    let processes = std::fs::read_dir("/proc").ok()?.flatten().take(PROCESSES_MAX);
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let owner = pids.find(|pid| {
        let sockets = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut links = sockets.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        links.any(|link| wanted.iter().any(|wanted| link.as_os_str() == wanted.as_str()))
    })?;
    let name = std::fs::read_to_string(format!("/proc/{owner}/comm")).ok()?;
    Some((name.trim().to_owned(), owner))
}

/// The inode of a line's socket, if it is in the way of `at`.
fn socket(line: &str, state: &str, at: SocketAddr) -> Option<u64> {
    let mut words = line.split_whitespace().skip(1);
    let (ip, port) = words.next()?.split_once(':')?;
    let (_peer, found) = (words.next()?, words.next()?);
    let is_same_port = u16::from_str_radix(port, 16).ok()? == at.port();
    let ip = address(ip)?;
    let is_same_ip = ip == at.ip() || ip.is_unspecified() || at.ip().is_unspecified();
    // Of the words behind the state, the inode is the sixth.
    let inode = words.nth(5)?.parse().ok()?;
    (found == state && is_same_port && is_same_ip).then_some(inode)
}

/// An address as the kernel writes it: words of 32 bits in this machine's order.
fn address(hex: &str) -> Option<IpAddr> {
    let word = |at: usize| Some(u32::from_str_radix(hex.get(at..at + 8)?, 16).ok()?.to_ne_bytes());
    if hex.len() == 8 {
        return Some(IpAddr::V4(Ipv4Addr::from(word(0)?)));
    }
    let mut bytes = [0; 16];
    for (at, part) in bytes.chunks_exact_mut(4).enumerate() {
        part.copy_from_slice(&word(at * 8)?);
    }
    Some(IpAddr::V6(Ipv6Addr::from(bytes)).to_canonical())
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;

    #[test]
    fn this_process_is_found_by_its_sockets_and_free_ports_are_nobodys() {
        let own = std::process::id();
        for bind in ["127.0.0.1:0", "0.0.0.0:0", "[::1]:0"] {
            let Ok(tcp) = TcpListener::bind(bind) else { continue };
            let udp = UdpSocket::bind(bind).unwrap();
            for (protocol, at) in
                [("tcp", tcp.local_addr().unwrap()), ("udp", udp.local_addr().unwrap())]
            {
                let (name, pid) = find(protocol, at).unwrap();
                assert_eq!(pid, own, "{protocol} {at}: {name}");
                assert!(!name.is_empty());
            }
        }
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(find("tcp", free), None);
    }
}
