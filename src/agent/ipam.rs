//! Addresses of this node's pods, from the node's ranges: one of each family that it has.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::agent::backlog::Backlog;
use crate::agent::dirs::PodDir;

/// First host number given to a pod; the ones below are the network and the node.
const FIRST_HOST: u32 = 2;
/// Host numbers of an IPv6 range that are used: more than pods fit on a node.
const HOSTS_V6_MAX: u32 = 1 << 16;

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    base: IpAddr,
    /// The first host number that is none.
    end: u32,
}

impl Range {
    /// Reads `10.42.1.0/24` or `fd00:42:0:1::/64`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (base, bits) = text.split_once('/')?;
        let (base, bits) = (base.parse::<IpAddr>().ok()?, bits.parse::<u32>().ok()?);
        match base {
            IpAddr::V4(base) => {
                let size = 1_u32.checked_shl(32_u32.checked_sub(bits)?)?;
                let base = Ipv4Addr::from(u32::from(base) & !(size - 1)).into();
                // The last one is the broadcast.
                Some(Self { base, end: size.saturating_sub(1) })
            }
            IpAddr::V6(base) => {
                let host_bits = 128_u32.checked_sub(bits)?;
                let hosts = 1_u128.checked_shl(host_bits)? - 1;
                let base = Ipv6Addr::from_bits(base.to_bits() & !hosts).into();
                let end = u32::try_from(hosts).unwrap_or(u32::MAX).min(HOSTS_V6_MAX);
                Some(Self { base, end })
            }
        }
    }

    fn contains(self, ip: IpAddr) -> bool {
        let offset = match (self.base, ip) {
            (IpAddr::V4(base), IpAddr::V4(ip)) => u32::from(ip).wrapping_sub(u32::from(base)),
            (IpAddr::V6(base), IpAddr::V6(ip)) => {
                let offset = ip.to_bits().wrapping_sub(base.to_bits());
                u32::try_from(offset).unwrap_or(u32::MAX)
            }
            _ => return false,
        };
        (FIRST_HOST..self.end).contains(&offset)
    }

    fn addresses(self) -> impl Iterator<Item = IpAddr> {
        (FIRST_HOST..self.end).map(move |offset| match self.base {
            IpAddr::V4(base) => Ipv4Addr::from(u32::from(base).wrapping_add(offset)).into(),
            IpAddr::V6(base) => {
                Ipv6Addr::from_bits(base.to_bits().wrapping_add(offset.into())).into()
            }
        })
    }
}

/// The node's ranges, one of each family at most. The first is that of a pod's first address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<Range>);

impl Ranges {
    /// `None` when there is none, or one cannot be read.
    pub(crate) fn parse(texts: &[String]) -> Option<Self> {
        let mut ranges: Vec<Range> = Vec::new();
        for text in texts {
            let range = Range::parse(text)?;
            if ranges.iter().all(|known| known.base.is_ipv4() != range.base.is_ipv4()) {
                ranges.push(range);
            }
        }
        (!ranges.is_empty()).then_some(Self(ranges))
    }
}

/// Gives each pod addresses of its own, the same ones after a restart of the agent.
#[derive(Debug)]
pub(crate) struct Ipam {
    ranges: watch::Receiver<Option<Ranges>>,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    by_uid: BTreeMap<String, Vec<IpAddr>>,
    /// The addresses given last, of each family: a freed one rests as long as possible, so that
    /// nobody meets a new pod under the address of an old one.
    last: BTreeMap<bool, IpAddr>,
}

impl Ipam {
    /// Over the ranges that the node gets once it is registered.
    pub(crate) fn new(ranges: watch::Receiver<Option<Ranges>>) -> Self {
        Self { ranges, taken: Mutex::default() }
    }

    /// The pod's addresses. Waits until the node has a range. New ones are put into `backlog`.
    ///
    /// # Errors
    ///
    /// When a range is used up.
    pub(crate) async fn addresses(
        &self,
        uid: &str,
        dir: &PodDir,
        backlog: &Backlog,
    ) -> Result<Vec<IpAddr>, String> {
        let ranges = {
            let mut ranges = self.ranges.clone();
            let found = ranges.wait_for(Option::is_some).await;
            let found = found.map_err(|_| "the agent is stopping".to_owned())?;
            found.clone().ok_or_else(|| "the node has no pod range".to_owned())?
        };
        let before = dir.read_addresses();
        let ips = self.choose(&ranges, uid, &before)?;
        if before != ips {
            dir.keep_addresses_later(&ips, backlog);
        }
        Ok(ips)
    }

    fn choose(&self, ranges: &Ranges, uid: &str, before: &[IpAddr]) -> Result<Vec<IpAddr>, String> {
        let mut taken = self.taken.lock();
        let mut chosen = Vec::new();
        for range in &ranges.0 {
            let own = taken.by_uid.get(uid).into_iter().flatten();
            if let Some(ip) = own.copied().find(|ip| range.contains(*ip)) {
                chosen.push(ip);
                continue;
            }
            let is_free = |ip: &IpAddr| {
                range.contains(*ip) && !taken.by_uid.values().flatten().any(|other| other == ip)
            };
            let after = taken.last.get(&range.base.is_ipv4()).copied();
            let next = range.addresses().filter(|ip| after.is_none_or(|last| *ip > last));
            let found = before.iter().copied().find(is_free);
            let found = found.or_else(|| next.chain(range.addresses()).find(is_free));
            let ip = found.ok_or_else(|| "the node's pod range is used up".to_owned())?;
            taken.last.insert(range.base.is_ipv4(), ip);
            chosen.push(ip);
        }
        taken.by_uid.insert(uid.to_owned(), chosen.clone());
        Ok(chosen)
    }

    /// Keeps for a pod the addresses it had before the agent was restarted. Called for all of them
    /// before the first one asks, so that none gets another's.
    pub(crate) fn reserve(&self, uid: &str, ips: &[IpAddr]) {
        let mut taken = self.taken.lock();
        let is_free = |ip: &&IpAddr| !taken.by_uid.values().flatten().any(|other| other == *ip);
        let free: Vec<IpAddr> = ips.iter().filter(is_free).copied().collect();
        if !free.is_empty() {
            taken.by_uid.insert(uid.to_owned(), free);
        }
    }

    /// Gives the pod's addresses back.
    pub(crate) fn release(&self, uid: &str) {
        self.taken.lock().by_uid.remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipam(ranges: &[&str]) -> (Ipam, Ranges) {
        let texts: Vec<String> = ranges.iter().map(ToString::to_string).collect();
        let ranges = Ranges::parse(&texts).unwrap();
        let (_, receiver) = watch::channel(Some(ranges.clone()));
        (Ipam::new(receiver), ranges)
    }

    fn text(ips: &[IpAddr]) -> String {
        ips.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    }

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split(' ').map(|ip| ip.parse().unwrap()).collect()
    }

    #[test]
    fn addresses_are_never_double_and_rest_after_use() {
        let (ipam, ranges) = ipam(&["10.42.1.0/29"]);
        let give = |uid: &str| text(&ipam.choose(&ranges, uid, &[]).unwrap());
        assert_eq!(give("a"), "10.42.1.2");
        assert_eq!(give("a"), "10.42.1.2");
        assert_eq!(give("b"), "10.42.1.3");
        ipam.taken.lock().by_uid.remove("a");
        assert_eq!(give("c"), "10.42.1.4");
        assert_eq!(give("d"), "10.42.1.5");
        assert_eq!(give("e"), "10.42.1.6");
        assert_eq!(give("f"), "10.42.1.2");
        assert!(ipam.choose(&ranges, "g", &[]).is_err());
    }

    #[test]
    fn a_pod_has_an_address_of_each_family_of_its_node() {
        let (ipam, ranges) = ipam(&["10.42.1.0/24", "fd00:42:0:1::/64"]);
        let give = |uid: &str| text(&ipam.choose(&ranges, uid, &[]).unwrap());
        assert_eq!(give("a"), "10.42.1.2 fd00:42:0:1::2");
        assert_eq!(give("b"), "10.42.1.3 fd00:42:0:1::3");
        ipam.release("a");
        assert_eq!(give("c"), "10.42.1.4 fd00:42:0:1::4");
        // A pod of before keeps what it had, and gets what it had not.
        ipam.reserve("old", &ips("10.42.1.9"));
        assert_eq!(give("old"), "10.42.1.9 fd00:42:0:1::5");
        let before = ips("10.42.1.20 fd00:42:0:1::20");
        assert_eq!(ipam.choose(&ranges, "back", &before).unwrap(), before);
    }

    #[test]
    fn a_pod_keeps_its_address_over_a_restart_unless_it_is_taken_or_foreign() {
        let (ipam, ranges) = ipam(&["10.42.1.0/29"]);
        let give = |uid: &str, had: &str| text(&ipam.choose(&ranges, uid, &ips(had)).unwrap());
        assert_eq!(give("a", "10.42.1.5"), "10.42.1.5");
        assert_ne!(give("b", "10.42.1.5"), "10.42.1.5");
        assert!(ranges.0[0].contains(give("c", "10.42.9.5").parse().unwrap()));
    }

    #[test]
    fn reserved_addresses_are_given_to_their_pods_only_and_foreign_ones_to_nobody() {
        let (ipam, ranges) = ipam(&["10.42.1.0/29"]);
        ipam.reserve("a", &ips("10.42.1.2"));
        ipam.reserve("b", &ips("10.42.9.6"));
        let give = |uid: &str| text(&ipam.choose(&ranges, uid, &[]).unwrap());
        assert_eq!(give("c"), "10.42.1.3");
        assert_eq!(give("a"), "10.42.1.2");
        assert!(ranges.0[0].contains(give("b").parse().unwrap()), "the range has moved");
    }

    #[test]
    fn ranges_are_read() {
        for good in ["10.42.0.0/24", "fd00:42::/64", "fd00:42::/112"] {
            assert!(Range::parse(good).is_some(), "{good}");
        }
        for bad in ["", "10.42.0.0", "10.42.0.0/33", "x/24", "fd00::/129", "fd00::"] {
            assert_eq!(Range::parse(bad), None, "{bad}");
        }
        assert_eq!(Ranges::parse(&[]), None);
        assert_eq!(Ranges::parse(&["x".to_owned()]), None);
    }
}
