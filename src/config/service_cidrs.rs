//! The ranges that Services have their addresses of.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::ConfigError;

/// Addresses of one range that are given out at most: an IPv6 range has more than anyone can use.
const ADDRESSES_MAX: u64 = 1 << 20;
/// Bounds of the low band that is kept for people who choose their own addresses; Kubernetes'.
const STATIC_MIN: u64 = 16;
const STATIC_MAX: u64 = 256;
/// The band is this part of the range, within its bounds; Kubernetes' figure.
const STATIC_PART: u64 = 16;
/// Longest prefixes: smaller ranges have no room for the API's own Service and another.
const PREFIX_MAX_V4: u8 = 29;
const PREFIX_MAX_V6: u8 = 125;

/// A range of Service addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceCidr {
    base: IpAddr,
    prefix: u8,
}

impl ServiceCidr {
    /// Reads `10.43.0.0/16` or `fd00:43::/112`: a range that starts at its first address.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (base, prefix) = text.split_once('/')?;
        let (base, prefix): (IpAddr, u8) = (base.parse().ok()?, prefix.parse().ok()?);
        let (bits, prefix_max) = match base {
            IpAddr::V4(_) => (32, PREFIX_MAX_V4),
            IpAddr::V6(_) => (128, PREFIX_MAX_V6),
        };
        if prefix == 0 || prefix > prefix_max {
            return None;
        }
        let host_bits = u128::MAX.checked_shr(128 - (bits - u32::from(prefix))).unwrap_or(0);
        (bits_of(base) & host_bits == 0).then_some(Self { base, prefix })
    }

    /// Whether it is a range of IPv6.
    #[must_use]
    pub fn is_v6(&self) -> bool {
        self.base.is_ipv6()
    }

    /// `IPv4` or `IPv6`.
    #[must_use]
    pub fn family(&self) -> &'static str {
        if self.is_v6() { "IPv6" } else { "IPv4" }
    }

    /// Whether `ip` is in the range.
    #[must_use]
    pub fn contains(&self, ip: IpAddr) -> bool {
        ip.is_ipv6() == self.is_v6() && (bits_of(ip) ^ bits_of(self.base)) >> self.host_bits() == 0
    }

    /// Whether the range and the one of `base` and `prefix` share addresses.
    #[must_use]
    pub fn overlaps(&self, base: IpAddr, prefix: u8) -> bool {
        let width = if self.is_v6() { 128 } else { 32 };
        base.is_ipv6() == self.is_v6()
            && (bits_of(base) ^ bits_of(self.base))
                .checked_shr(width - u32::from(prefix.min(self.prefix)))
                .unwrap_or(0)
                == 0
    }

    /// Offsets of the addresses that Services may have: not the network's own, and of IPv4 not the
    /// broadcast.
    #[must_use]
    pub fn offsets(&self) -> std::ops::Range<u64> {
        let size = 1_u64.checked_shl(self.host_bits()).unwrap_or(ADDRESSES_MAX).min(ADDRESSES_MAX);
        let end = if self.is_v6() { size } else { size - 1 };
        1..end
    }

    /// The first offset that is given to Services that ask for no address in particular; the ones
    /// below are used for them once all others are taken.
    #[must_use]
    pub fn dynamic_from(&self) -> u64 {
        let size = self.offsets().end;
        let band = (size / STATIC_PART).clamp(STATIC_MIN, STATIC_MAX);
        // A range that is hardly larger than the band has none.
        if band.saturating_mul(2) > size { 1 } else { band + 1 }
    }

    /// The address at `offset`.
    #[must_use]
    pub fn address(&self, offset: u64) -> IpAddr {
        match self.base {
            IpAddr::V4(base) => {
                let offset = u32::try_from(offset).unwrap_or(u32::MAX);
                Ipv4Addr::from_bits(base.to_bits().saturating_add(offset)).into()
            }
            IpAddr::V6(base) => {
                Ipv6Addr::from_bits(base.to_bits().saturating_add(offset.into())).into()
            }
        }
    }

    /// The first one: the API's own.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.address(1)
    }

    fn host_bits(&self) -> u32 {
        let width: u32 = if self.is_v6() { 128 } else { 32 };
        width.saturating_sub(u32::from(self.prefix))
    }
}

impl std::fmt::Display for ServiceCidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

fn bits_of(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => ip.to_bits().into(),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

/// The cluster's ranges of Service addresses, the primary family first. All servers of a cluster
/// must be given the same ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ServiceCidrs {
    /// What Services are in by default.
    pub primary: ServiceCidr,
    /// The other family, if the cluster has both.
    pub secondary: Option<ServiceCidr>,
}

impl Default for ServiceCidrs {
    /// `10.43.0.0/16`.
    fn default() -> Self {
        let base = Ipv4Addr::new(10, 43, 0, 0).into();
        Self { primary: ServiceCidr { base, prefix: 16 }, secondary: None }
    }
}

impl ServiceCidrs {
    /// Reads `--service-cidr`: one range, or one of each family with a comma between.
    ///
    /// # Errors
    ///
    /// [`ConfigError::ServiceCidrs`].
    pub(crate) fn build(text: Option<&str>) -> Result<Self, ConfigError> {
        let Some(text) = text else { return Ok(Self::default()) };
        let bad = || ConfigError::ServiceCidrs { text: text.to_owned() };
        let mut ranges = text.split(',').map(|part| ServiceCidr::parse(part.trim()));
        let primary = ranges.next().flatten().ok_or_else(bad)?;
        let secondary = ranges.next().map(|range| range.ok_or_else(bad)).transpose()?;
        let is_pair = secondary.is_none_or(|range| range.is_v6() != primary.is_v6());
        if !is_pair || ranges.next().is_some() {
            return Err(bad());
        }
        Ok(Self { primary, secondary })
    }

    /// The ranges, the primary one first.
    pub fn iter(&self) -> impl Iterator<Item = &ServiceCidr> {
        std::iter::once(&self.primary).chain(&self.secondary)
    }

    /// The range of that family, `IPv4` or `IPv6`.
    #[must_use]
    pub fn of_family(&self, family: &str) -> Option<&ServiceCidr> {
        self.iter().find(|range| range.family() == family)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> ServiceCidr {
        ServiceCidr::parse(text).unwrap()
    }

    #[test]
    fn a_low_band_is_kept_for_addresses_that_people_choose() {
        for (text, from) in [
            ("10.43.0.0/16", 257),
            ("10.96.0.0/12", 257),
            ("10.43.0.0/24", 17),
            ("10.43.0.0/28", 1),
            ("fd00:43::/112", 257),
        ] {
            assert_eq!(range(text).dynamic_from(), from, "{text}");
        }
        let v4 = range("10.43.0.0/16");
        assert_eq!(v4.offsets(), 1..65_535);
        assert_eq!(v4.first().to_string(), "10.43.0.1");
        assert_eq!(v4.address(65_534).to_string(), "10.43.255.254");
        let v6 = range("fd00:43::/64");
        assert_eq!(v6.offsets(), 1..ADDRESSES_MAX);
        assert_eq!(v6.address(257).to_string(), "fd00:43::101");
    }

    #[test]
    fn a_range_contains_its_addresses_and_overlaps_its_neighbours() {
        let v4 = range("10.43.0.0/16");
        assert!(v4.contains("10.43.255.255".parse().unwrap()));
        assert!(!v4.contains("10.44.0.0".parse().unwrap()));
        assert!(!v4.contains("::ffff:10.43.0.1".parse().unwrap()));
        assert!(v4.overlaps("10.0.0.0".parse().unwrap(), 8));
        assert!(v4.overlaps("10.43.8.0".parse().unwrap(), 21));
        assert!(!v4.overlaps("10.42.0.0".parse().unwrap(), 16));
        assert!(!v4.overlaps("fd00::".parse().unwrap(), 8));
        assert!(range("fd00:43::/112").contains("fd00:43::ffff".parse().unwrap()));
        assert!(!range("fd00:43::/112").contains("fd00:43::1:0".parse().unwrap()));
    }

    #[test]
    fn one_range_or_one_of_each_family_is_taken() {
        let built = ServiceCidrs::build(Some("fd00:43::/112, 10.43.0.0/16")).unwrap();
        assert_eq!(built.primary.family(), "IPv6");
        assert_eq!(built.of_family("IPv4").unwrap().to_string(), "10.43.0.0/16");
        assert_eq!(ServiceCidrs::build(None).unwrap(), ServiceCidrs::default());
        for bad in [
            "",
            "10.43.0.0",
            "10.43.0.1/16",
            "10.43.0.0/30",
            "10.43.0.0/16,10.44.0.0/16",
            "10.43.0.0/16,fd00::/112,fd01::/112",
            "10.43.0.0/16,x",
            "0.0.0.0/0",
        ] {
            assert!(ServiceCidrs::build(Some(bad)).is_err(), "{bad}");
        }
    }
}
