//! Which addresses may be reached.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

/// A range of addresses: `10.1.0.0/16`, or one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Network {
    address: IpAddr,
    bits: u32,
}

/// Whether `address` is public, or in one of `networks`.
pub(super) fn may_reach(address: IpAddr, networks: &[Network]) -> bool {
    let address = address.to_canonical();
    networks.iter().any(|network| network.contains(address)) || is_public(address)
}

impl Network {
    fn contains(self, address: IpAddr) -> bool {
        match (self.address, address) {
            (IpAddr::V4(ours), IpAddr::V4(theirs)) => {
                let shift = 32_u32.saturating_sub(self.bits);
                ours.to_bits().checked_shr(shift) == theirs.to_bits().checked_shr(shift)
            }
            (IpAddr::V6(ours), IpAddr::V6(theirs)) => {
                let shift = 128_u32.saturating_sub(self.bits);
                ours.to_bits().checked_shr(shift) == theirs.to_bits().checked_shr(shift)
            }
            _ => false,
        }
    }
}

impl TryFrom<String> for Network {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("expected an address or a range like 10.1.0.0/16, got {text:?}");
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits.parse().map_err(|_| wrong())?)),
            None => (text.as_str(), None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.unwrap_or(most);
        if bits > most || address != address.to_canonical() {
            return Err(wrong());
        }
        Ok(Self { address, bits })
    }
}

impl From<Network> for String {
    fn from(network: Network) -> Self {
        format!("{}/{}", network.address, network.bits)
    }
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

/// Not in the IANA IPv4 special-purpose registry (RFC 6890), not multicast,
/// not reserved.
fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(a == 0
        || a == 10
        || a == 127
        || (a == 100 && (64..128).contains(&b))
        || (a == 169 && b == 254)
        || (a == 172 && (16..32).contains(&b))
        || (a == 192 && b == 168)
        || (a == 192 && b == 0 && (c == 0 || c == 2))
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b == 18 || b == 19))
        || (a == 198 && b == 51 && c == 100)
        || (a == 203 && b == 0 && c == 113)
        || a >= 224)
}

/// Global unicast (2000::/3) without what carries an IPv4 address inside
/// (6to4, Teredo) and what is for documents.
fn is_public_v6(address: Ipv6Addr) -> bool {
    let [first, second, ..] = address.segments();
    first & 0xe000 == 0x2000
        && first != 0x2002
        && !(first == 0x2001 && (second < 0x0200 || second == 0x0db8))
        && first & 0xfff0 != 0x3ff0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_inside_are_not_public() {
        for text in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "192.0.0.1",
            "192.0.2.1",
            "192.88.99.1",
            "192.168.1.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001::1",
            "2001:db8::1",
            "2002:7f00:1::1",
            "3fff::1",
            "::7f00:1",
            "100::1",
            "5f00::1",
        ] {
            assert!(!may_reach(text.parse().unwrap(), &[]), "{text}");
        }
        for text in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00::1"] {
            assert!(may_reach(text.parse().unwrap(), &[]), "{text}");
        }
    }

    #[test]
    fn networks_are_read_strictly_and_contain_their_range_alone() {
        let network = |text: &str| Network::try_from(text.to_owned());
        let inner = [network("10.1.0.0/16").unwrap(), network("::1").unwrap()];
        for (text, expected) in
            [("10.1.2.3", true), ("::ffff:10.1.2.3", true), ("10.2.0.1", false), ("::1", true)]
        {
            assert_eq!(may_reach(text.parse().unwrap(), &inner), expected, "{text}");
        }
        assert!(may_reach("10.9.9.9".parse().unwrap(), &[network("0.0.0.0/0").unwrap()]));
        for text in
            ["", "10", "10.0.0.0/33", "::1/129", "010.0.0.1", "10.0.0.0/x", "::ffff:10.0.0.1"]
        {
            assert!(network(text).is_err(), "{text}");
        }
    }
}
