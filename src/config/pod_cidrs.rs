//! How the cluster's pod addresses are cut into one range per node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use crate::config::{ConfigError, ServiceCidrs};

/// Most bits between the cluster's prefix and a node's: bounds the book of allocations.
const NODE_BITS_MAX: u8 = 16;
/// Longest prefix of a node's range: below it there is no address left for a pod.
const NODE_PREFIX_MAX: u8 = 29;
/// Prefix of a node's IPv6 range, if the cluster's leaves room for it: that of any network.
const NODE_PREFIX_V6: u8 = 64;
/// Longest prefix of a node's IPv6 range.
const NODE_PREFIX_V6_MAX: u8 = 112;

/// The cluster's range of pod addresses and the size of a node's part. All servers of a cluster must
/// be given the same one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodCidrs {
    base: u32,
    prefix: u8,
    node_prefix: u8,
    six: Option<PodCidrsV6>,
}

/// The cluster's second range. A node has the same number in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PodCidrsV6 {
    base: u128,
    node_prefix: u8,
}

impl Default for PodCidrs {
    /// `10.42.0.0/16`, a /24 for each of 256 nodes.
    fn default() -> Self {
        Self { base: u32::from_be_bytes([10, 42, 0, 0]), prefix: 16, node_prefix: 24, six: None }
    }
}

impl PodCidrs {
    /// Reads `--cluster-cidr` and `--node-cidr-mask-size`; what is missing is as by default.
    ///
    /// # Errors
    ///
    /// [`ConfigError::ClusterCidr`] and [`ConfigError::NodeCidrMaskSize`].
    pub(crate) fn build(
        cidr: Option<&str>,
        node_prefix: Option<u8>,
        services: &ServiceCidrs,
    ) -> Result<Self, ConfigError> {
        let default = Self::default();
        let refused = || ConfigError::ClusterCidr { text: cidr.unwrap_or_default().to_owned() };
        let (four, six) = match cidr.and_then(|text| text.split_once(',')) {
            Some((four, six)) => (Some(four), Some(six)),
            None => (cidr, None),
        };
        let (base, prefix) = match four {
            None => (default.base, default.prefix),
            Some(text) => parse(text).ok_or_else(refused)?,
        };
        // A Service's address must not be a pod's.
        if services.iter().any(|range| range.overlaps(Ipv4Addr::from(base).into(), prefix)) {
            let text = format!("{}/{prefix}", Ipv4Addr::from(base));
            return Err(ConfigError::ClusterCidr { text });
        }
        let node_prefix = node_prefix.unwrap_or(default.node_prefix);
        let bits = node_prefix.checked_sub(prefix);
        if node_prefix > NODE_PREFIX_MAX || bits.is_none_or(|bits| bits > NODE_BITS_MAX) {
            return Err(ConfigError::NodeCidrMaskSize { size: node_prefix, prefix });
        }
        let six = match six {
            None => None,
            Some(text) => {
                let six = PodCidrsV6::build(text, node_prefix - prefix, services);
                Some(six.ok_or_else(refused)?)
            }
        };
        Ok(Self { base, prefix, node_prefix, six })
    }

    /// For how many nodes there is a range.
    #[must_use]
    pub fn count(self) -> u32 {
        1 << (self.node_prefix - self.prefix)
    }

    /// The range with this number, as `10.42.3.0/24`.
    #[must_use]
    pub fn cidr(self, number: u32) -> String {
        let base = self.base.wrapping_add(number.wrapping_mul(self.addresses()));
        format!("{}/{}", Ipv4Addr::from(base), self.node_prefix)
    }

    /// The IPv6 range with this number, as `fd00:42:0:3::/64`; `None` if the cluster has none.
    #[must_use]
    pub fn cidr_v6(self, number: u32) -> Option<String> {
        let six = self.six?;
        let part = u128::from(number) << (128 - u32::from(six.node_prefix));
        let base = Ipv6Addr::from_bits(six.base.wrapping_add(part));
        Some(format!("{base}/{}", six.node_prefix))
    }

    /// Numbers of the ranges that share addresses with `cidr`: one, unless the size of the ranges
    /// was another when `cidr` was given to its node. Empty for one outside the cluster's range.
    #[must_use]
    pub fn numbers(self, cidr: &str) -> RangeInclusive<u32> {
        let none = RangeInclusive::new(1, 0);
        let Some((base, prefix)) = parse(cidr) else { return none };
        if !overlap((base, prefix), (self.base, self.prefix)) {
            return none;
        }
        if prefix <= self.prefix {
            return 0..=self.count() - 1;
        }
        let first = (base - self.base) / self.addresses();
        let last = (base | !mask(prefix)) - self.base;
        first..=last / self.addresses()
    }

    /// Addresses in a node's range.
    fn addresses(self) -> u32 {
        1 << (32 - self.node_prefix)
    }
}

impl PodCidrsV6 {
    /// Reads a range with room for the parts of as many nodes as `node_bits` can count.
    fn build(text: &str, node_bits: u8, services: &ServiceCidrs) -> Option<Self> {
        let (base, prefix) = text.split_once('/')?;
        let (base, prefix): (Ipv6Addr, u8) = (base.parse().ok()?, prefix.parse().ok()?);
        let node_prefix = prefix.checked_add(node_bits)?.max(NODE_PREFIX_V6);
        let host_bits = 128_u32.checked_sub(prefix.into())?;
        let hosts = 1_u128.checked_shl(host_bits)?.wrapping_sub(1);
        let is_first = base.to_bits() & hosts == 0;
        let is_apart = !services.iter().any(|range| range.overlaps(IpAddr::V6(base), prefix));
        (is_first && is_apart && prefix > 0 && node_prefix <= NODE_PREFIX_V6_MAX)
            .then_some(Self { base: base.to_bits(), node_prefix })
    }
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0)
}

fn overlap((a, a_prefix): (u32, u8), (b, b_prefix): (u32, u8)) -> bool {
    (a ^ b) & mask(a_prefix.min(b_prefix)) == 0
}

/// Reads a range whose address is its first.
fn parse(text: &str) -> Option<(u32, u8)> {
    let (base, prefix) = text.split_once('/')?;
    let (base, prefix) = (u32::from(base.parse::<Ipv4Addr>().ok()?), prefix.parse::<u8>().ok()?);
    (prefix <= 32 && base & !mask(prefix) == 0).then_some((base, prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(cidr: Option<&str>, size: Option<u8>) -> Result<PodCidrs, ConfigError> {
        PodCidrs::build(cidr, size, &ServiceCidrs::default())
    }

    #[test]
    fn a_range_has_a_number_and_a_number_a_range() {
        let default = build(None, None).unwrap();
        assert_eq!((default, default.count()), (PodCidrs::default(), 256));
        assert_eq!(default.cidr(7), "10.42.7.0/24");
        assert_eq!(default.numbers("10.42.7.0/24"), 7..=7);
        let wide = build(Some("10.64.0.0/10"), Some(21)).unwrap();
        assert_eq!((wide.count(), wide.cidr(33).as_str()), (2048, "10.65.8.0/21"));
        assert_eq!(wide.numbers("10.65.8.0/21"), 33..=33);
        let one = build(Some("192.168.0.0/22"), Some(22)).unwrap();
        assert_eq!((one.count(), one.cidr(0).as_str()), (1, "192.168.0.0/22"));
    }

    #[test]
    fn a_node_has_the_same_number_in_both_families() {
        let both = build(Some("10.42.0.0/16,fd00:42::/48"), None).unwrap();
        assert_eq!(both.cidr(7), "10.42.7.0/24");
        assert_eq!(both.cidr_v6(7).unwrap(), "fd00:42:0:7::/64");
        assert_eq!(both.cidr_v6(255).unwrap(), "fd00:42:0:ff::/64");
        let narrow = build(Some("10.42.0.0/16,fd00:42::/96"), None).unwrap();
        assert_eq!(narrow.cidr_v6(7).unwrap(), "fd00:42::700:0/104");
        assert_eq!(build(None, None).unwrap().cidr_v6(7), None);
        for bad in [
            "10.42.0.0/16,",
            "10.42.0.0/16,10.44.0.0/16",
            "fd00:42::/48,10.42.0.0/16",
            "10.42.0.0/16,fd00:42::1/48",
            "10.42.0.0/16,fd00:42::/112",
            "10.42.0.0/16,fd00:42::/48,fd00:44::/48",
        ] {
            let refused = build(Some(bad), None);
            assert!(matches!(refused, Err(ConfigError::ClusterCidr { .. })), "{bad}");
        }
    }

    #[test]
    fn ranges_of_another_size_block_all_they_touch() {
        let cidrs = build(None, Some(22)).unwrap();
        assert_eq!(cidrs.numbers("10.42.5.0/24"), 1..=1);
        assert_eq!(cidrs.numbers("10.42.16.0/20"), 4..=7);
        assert_eq!(cidrs.numbers("10.0.0.0/8"), 0..=63);
        for foreign in ["10.44.0.0/24", "10.41.255.0/24", "x", "10.42.0.1/24", ""] {
            assert!(cidrs.numbers(foreign).is_empty(), "{foreign}");
        }
    }

    #[test]
    fn what_cannot_serve_is_refused() {
        for bad in [
            "",
            "10.42.0.0",
            "10.42.1.0/16",
            "10.42.0.0/33",
            "fd00::/48",
            "10.43.8.0/21",
            "10.0.0.0/8",
        ] {
            let refused = build(Some(bad), None);
            assert!(matches!(refused, Err(ConfigError::ClusterCidr { .. })), "{bad}");
        }
        for (cidr, size) in [(None, 15), (None, 30), (Some("10.128.0.0/9"), 26)] {
            let refused = build(cidr, Some(size));
            assert!(matches!(refused, Err(ConfigError::NodeCidrMaskSize { .. })), "{size}");
        }
    }
}
