//! Names and addresses of nodes: read, checked, or taken from the machine.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};

use crate::config::ConfigError;

/// Default port of the API (TCP) and of everything between nodes (UDP).
pub(super) const API_PORT: u16 = 6443;
/// Longest node name, in bytes: it becomes a DNS label and a certificate name.
const NODE_NAME_BYTES_MAX: usize = 63;

/// `host:port` of `url`, which may carry `https://`; the port defaults to the API's.
pub(super) fn parse_server(url: &str) -> Result<String, ConfigError> {
    let bad = || ConfigError::JoinAddress { url: url.to_owned() };
    let rest = url.strip_prefix("https://").unwrap_or(url).trim_end_matches('/');
    if rest.is_empty() || rest.contains(['/', ' ', '@', '?']) {
        return Err(bad());
    }
    if rest.parse::<SocketAddr>().is_ok() {
        return Ok(rest.to_owned());
    }
    if let Ok(ip) = rest.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, API_PORT).to_string());
    }
    match rest.split_once(':') {
        None => Ok(format!("{rest}:{API_PORT}")),
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
            Ok(rest.to_owned())
        }
        Some(_) => Err(bad()),
    }
}

/// Whether `name` is a DNS-1123 label.
pub(super) fn is_dns_label(name: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_edge = |c: Option<char>| c.is_some_and(|c| c != '-' && inner(c));
    name.len() <= NODE_NAME_BYTES_MAX
        && name.chars().all(inner)
        && is_edge(name.chars().next())
        && is_edge(name.chars().last())
}

/// The machine's host name as a DNS label: lower case, up to the first dot.
pub(super) fn host_name() -> String {
    let uname = rustix::system::uname();
    let full = uname.nodename().to_string_lossy().to_lowercase();
    full.split('.').next().unwrap_or_default().replace('_', "-")
}

/// The address of the default route's interface when `bind` is unspecified. Sends nothing.
pub(super) fn advertise(bind: IpAddr) -> IpAddr {
    if !bind.is_unspecified() {
        return bind;
    }
    // Connecting a UDP socket only asks the routing table which source address it would use.
    let probe = || -> std::io::Result<IpAddr> {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        Ok(socket.local_addr()?.ip())
    };
    probe().ok().filter(|ip| !ip.is_unspecified()).unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_address_may_leave_out_scheme_and_port() {
        let cases = [
            ("https://10.0.0.1:6443/", "10.0.0.1:6443"),
            ("10.0.0.1", "10.0.0.1:6443"),
            ("pi-1", "pi-1:6443"),
            ("pi-1:7000", "pi-1:7000"),
            ("[::1]", "[::1]:6443"),
            ("https://[::1]:1", "[::1]:1"),
        ];
        for (given, wanted) in cases {
            assert_eq!(parse_server(given).unwrap(), wanted, "{given}");
        }
        for bad in ["", "https://", "a:b", "a/b", ":1", "a b"] {
            assert!(parse_server(bad).is_err(), "{bad}");
        }
    }
}
