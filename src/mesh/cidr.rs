//! Address ranges.

use std::net::IpAddr;

/// A range of addresses, as `10.42.3.0/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cidr {
    base: IpAddr,
    prefix: u8,
}

impl Cidr {
    /// `None` when the text is no range.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (base, prefix) = text.split_once('/')?;
        let (base, prefix): (IpAddr, u8) = (base.parse().ok()?, prefix.parse().ok()?);
        let max = if base.is_ipv4() { 32 } else { 128 };
        (prefix <= max).then_some(Self { base, prefix })
    }

    /// Its lowest address.
    pub(super) fn first(&self) -> IpAddr {
        match self.base {
            IpAddr::V4(base) => {
                let shift = 32_u32.saturating_sub(self.prefix.into());
                let mask = u32::MAX.checked_shl(shift).unwrap_or(0);
                IpAddr::V4((base.to_bits() & mask).into())
            }
            IpAddr::V6(base) => {
                let shift = 128_u32.saturating_sub(self.prefix.into());
                let mask = u128::MAX.checked_shl(shift).unwrap_or(0);
                IpAddr::V6((base.to_bits() & mask).into())
            }
        }
    }

    pub(super) fn contains(&self, ip: IpAddr) -> bool {
        match (self.base, ip) {
            (IpAddr::V4(base), IpAddr::V4(ip)) => {
                let shift = 32_u32.saturating_sub(self.prefix.into());
                let differs = base.to_bits() ^ ip.to_bits();
                differs.checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(base), IpAddr::V6(ip)) => {
                let shift = 128_u32.saturating_sub(self.prefix.into());
                let differs = base.to_bits() ^ ip.to_bits();
                differs.checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_contains_its_addresses_and_no_others() {
        let range = Cidr::parse("10.42.3.0/24").unwrap();
        assert!(range.contains("10.42.3.255".parse().unwrap()));
        assert!(!range.contains("10.42.4.0".parse().unwrap()));
        assert!(!range.contains("::1".parse().unwrap()));
        let all = Cidr::parse("0.0.0.0/0").unwrap();
        assert!(all.contains("255.1.2.3".parse().unwrap()));
        let first = |text: &str| Cidr::parse(text).unwrap().first().to_string();
        assert_eq!(first("10.42.3.77/24"), "10.42.3.0");
        assert_eq!(first("10.42.3.77/0"), "0.0.0.0");
        assert_eq!(first("10.42.3.77/32"), "10.42.3.77");
        assert_eq!(first("fd00:42:1:2:3::/48"), "fd00:42:1::");
        assert_eq!(first("fd00::/0"), "::");
        let six = Cidr::parse("fd00:42::/64").unwrap();
        assert!(six.contains("fd00:42::1".parse().unwrap()));
        assert!(!six.contains("fd00:43::1".parse().unwrap()));
        assert_eq!(Cidr::parse("10.0.0.0/33"), None);
        assert_eq!(Cidr::parse("10.0.0.0"), None);
    }
}
