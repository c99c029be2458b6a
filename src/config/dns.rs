//! The DNS server for the host and its network.

use std::net::{IpAddr, SocketAddr};

use crate::config::ConfigError;

/// The port of DNS.
const PORT: u16 = 53;

/// Where the cluster's names are served, and who knows the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsSettings {
    /// Address that is listened on, by UDP and TCP.
    pub bind: SocketAddr,
    /// Servers that other names are asked of, in this order. Empty: those of the host's
    /// `/etc/resolv.conf`.
    pub upstreams: Vec<SocketAddr>,
}

impl DnsSettings {
    /// Reads `--dns-bind` and `--dns-upstream`; `None` without the first.
    ///
    /// # Errors
    ///
    /// [`ConfigError::DnsAddress`].
    pub(crate) fn build(
        bind: Option<&str>,
        upstreams: &[String],
    ) -> Result<Option<Self>, ConfigError> {
        let Some(bind) = bind else { return Ok(None) };
        let read = |flag, text: &str| {
            address(text).ok_or_else(|| ConfigError::DnsAddress {
                flag,
                text: text.to_owned(),
                example: "192.168.1.10, 192.168.1.10:5353 or [fd00::10]:53",
            })
        };
        let bind = read("--dns-bind", bind)?;
        let upstreams: Result<_, _> =
            upstreams.iter().map(|text| read("--dns-upstream", text)).collect();
        Ok(Some(Self { bind, upstreams: upstreams? }))
    }
}

/// `IP`, `IP:PORT` or `[IP]:PORT`.
fn address(text: &str) -> Option<SocketAddr> {
    if let Ok(ip) = text.parse::<IpAddr>() {
        return Some(SocketAddr::new(ip, PORT));
    }
    text.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_have_the_port_of_dns_unless_they_say_another() {
        let upstreams = ["1.1.1.1".to_owned(), "[fd00::1]:5353".to_owned()];
        let built = DnsSettings::build(Some("127.0.0.1:1053"), &upstreams).unwrap().unwrap();
        assert_eq!(built.bind, "127.0.0.1:1053".parse().unwrap());
        let wanted: [SocketAddr; 2] =
            ["1.1.1.1:53".parse().unwrap(), "[fd00::1]:5353".parse().unwrap()];
        assert_eq!(built.upstreams, wanted);
        assert_eq!(DnsSettings::build(None, &upstreams).unwrap(), None);
        assert!(DnsSettings::build(Some("dns.example.org"), &[]).is_err());
        assert!(DnsSettings::build(Some("127.0.0.1"), &["x".to_owned()]).is_err());
    }
}
