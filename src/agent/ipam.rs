//! Addresses of this node's pods, from the node's range.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::agent::dirs::PodDir;

/// First host number given to a pod; the ones below are the network and the node.
const FIRST_HOST: u32 = 2;

/// A range of IPv4 addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    base: u32,
    size: u32,
}

impl Range {
    /// Reads `10.42.1.0/24`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (base, bits) = text.split_once('/')?;
        let (base, bits) = (base.parse::<Ipv4Addr>().ok()?, bits.parse::<u32>().ok()?);
        let size = 1_u32.checked_shl(32_u32.checked_sub(bits)?)?;
        Some(Self { base: u32::from(base) & !(size - 1), size })
    }

    fn contains(self, ip: IpAddr) -> bool {
        let IpAddr::V4(ip) = ip else { return false };
        let offset = u32::from(ip).wrapping_sub(self.base);
        (FIRST_HOST..self.size.saturating_sub(1)).contains(&offset)
    }

    fn addresses(self) -> impl Iterator<Item = IpAddr> {
        (FIRST_HOST..self.size.saturating_sub(1))
            .map(move |offset| IpAddr::V4(Ipv4Addr::from(self.base.wrapping_add(offset))))
    }
}

/// Gives each pod an address of its own, the same one after a restart of the agent.
#[derive(Debug)]
pub(crate) struct Ipam {
    range: watch::Receiver<Option<Range>>,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    by_uid: BTreeMap<String, IpAddr>,
    /// The address given last: a freed one rests as long as possible, so that nobody meets a new
    /// pod under the address of an old one.
    last: Option<IpAddr>,
}

impl Ipam {
    /// Over the range that the node gets once it is registered.
    pub(crate) fn new(range: watch::Receiver<Option<Range>>) -> Self {
        Self { range, taken: Mutex::default() }
    }

    /// The pod's address. Waits until the node has a range.
    ///
    /// # Errors
    ///
    /// When the range is used up or the address cannot be written down.
    pub(crate) async fn address(&self, uid: &str, dir: &PodDir) -> Result<IpAddr, String> {
        let range = {
            let mut range = self.range.clone();
            let found = range.wait_for(Option::is_some).await;
            let found = found.map_err(|_| "the agent is stopping".to_owned())?;
            (*found).ok_or_else(|| "the node has no pod range".to_owned())?
        };
        let before = dir.read_address();
        let ip = self.choose(range, uid, before)?;
        if before != Some(ip) {
            dir.write_address(ip)
                .await
                .map_err(|cause| format!("cannot keep the pod's address: {cause}"))?;
        }
        Ok(ip)
    }

    fn choose(&self, range: Range, uid: &str, before: Option<IpAddr>) -> Result<IpAddr, String> {
        let mut taken = self.taken.lock();
        if let Some(ip) = taken.by_uid.get(uid).filter(|ip| range.contains(**ip)) {
            return Ok(*ip);
        }
        let is_free = |ip: &IpAddr| range.contains(*ip) && !taken.by_uid.values().any(|t| t == ip);
        let after = taken.last;
        let next = range.addresses().filter(|ip| after.is_none_or(|last| *ip > last));
        let found = before.filter(is_free).or_else(|| next.chain(range.addresses()).find(is_free));
        let ip = found.ok_or_else(|| "the node's pod range is used up".to_owned())?;
        taken.by_uid.insert(uid.to_owned(), ip);
        taken.last = Some(ip);
        Ok(ip)
    }

    /// Keeps for a pod the address it had before the agent was restarted. Called for all of them
    /// before the first one asks, so that none gets another's.
    pub(crate) fn reserve(&self, uid: &str, ip: IpAddr) {
        let mut taken = self.taken.lock();
        if !taken.by_uid.values().any(|other| *other == ip) {
            taken.by_uid.insert(uid.to_owned(), ip);
        }
    }

    /// Gives the pod's address back.
    pub(crate) fn release(&self, uid: &str) {
        self.taken.lock().by_uid.remove(uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ipam() -> (Ipam, Range) {
        let range = Range::parse("10.42.1.0/29").unwrap();
        let (_, receiver) = watch::channel(Some(range));
        (Ipam::new(receiver), range)
    }

    #[test]
    fn addresses_are_never_double_and_rest_after_use() {
        let (ipam, range) = ipam();
        let give = |uid: &str| ipam.choose(range, uid, None).unwrap().to_string();
        assert_eq!(give("a"), "10.42.1.2");
        assert_eq!(give("a"), "10.42.1.2");
        assert_eq!(give("b"), "10.42.1.3");
        ipam.taken.lock().by_uid.remove("a");
        assert_eq!(give("c"), "10.42.1.4");
        assert_eq!(give("d"), "10.42.1.5");
        assert_eq!(give("e"), "10.42.1.6");
        assert_eq!(give("f"), "10.42.1.2");
        assert!(ipam.choose(range, "g", None).is_err());
    }

    #[test]
    fn a_pod_keeps_its_address_over_a_restart_unless_it_is_taken_or_foreign() {
        let (ipam, range) = ipam();
        let before = |text: &str| Some(text.parse::<IpAddr>().unwrap());
        assert_eq!(ipam.choose(range, "a", before("10.42.1.5")).unwrap().to_string(), "10.42.1.5");
        assert_ne!(ipam.choose(range, "b", before("10.42.1.5")).unwrap().to_string(), "10.42.1.5");
        let foreign = ipam.choose(range, "c", before("10.42.9.5")).unwrap();
        assert!(range.contains(foreign));
    }

    #[test]
    fn reserved_addresses_are_given_to_their_pods_only_and_foreign_ones_to_nobody() {
        let (ipam, range) = ipam();
        ipam.reserve("a", "10.42.1.2".parse().unwrap());
        ipam.reserve("b", "10.42.9.6".parse().unwrap());
        assert_eq!(ipam.choose(range, "c", None).unwrap().to_string(), "10.42.1.3");
        assert_eq!(ipam.choose(range, "a", None).unwrap().to_string(), "10.42.1.2");
        assert!(range.contains(ipam.choose(range, "b", None).unwrap()), "the range has moved");
    }

    #[test]
    fn ranges_are_read() {
        assert!(Range::parse("10.42.0.0/24").is_some());
        for bad in ["", "10.42.0.0", "10.42.0.0/33", "x/24"] {
            assert_eq!(Range::parse(bad), None, "{bad}");
        }
    }
}
