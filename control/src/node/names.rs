//! Everything of ours that can be seen in the kernel, in one place: an uninstall looks for these,
//! and routing daemons filter by them. Only additions are compatible.

use std::net::{Ipv4Addr, Ipv6Addr};

/// The kernel's end of the node port: routes to pods lead into it.
pub const NODE_IFNAME: &str = "viaduct0";

/// The workers' end of the node port: an XSK, and the kernel's way to the pods beside it.
pub const WORKER_IFNAME: &str = "viaduct1";

/// What the name of every pod's host end begins with; 12 hexadecimal digits follow.
pub const HOST_IFNAME_PREFIX: &str = "vd";

/// What every alias (cookie) of ours begins with.
pub const COOKIE_PREFIX: &str = "viaduct:";

/// The cookie of the node port.
pub const NODE_COOKIE: &str = "viaduct:node";

/// The routing table with one route per pod: "VD" in ASCII. Any number would do that is neither a
/// reserved one (253 to 255) nor in the first hundreds, where people number tables by hand.
pub const ROUTE_TABLE: u32 = 0x5644;

/// Priority of the rule that sends what comes in by [`WORKER_IFNAME`] to [`ROUTE_TABLE`]: after
/// the local table (0), so that the node's own addresses stay its own, and before the rules of
/// VPN and multi-homing set-ups, which begin in the thousands.
pub const RULE_PRIORITY: u32 = 220;

/// `rtm_protocol` of our routes and rules, for filters such as BIRD's. Free in the kernel's
/// list (linux/rtnetlink.h, `RTPROT_*`) and in iproute2's.
pub const ROUTE_PROTOCOL: u8 = 118;

/// The pods' IPv4 gateway, on every host end. Link-local (RFC 3927), so no cluster routes it.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// The router that the kernel's route to the pods names; only a neighbor entry of
/// [`NODE_IFNAME`] knows it. It cannot be [`GATEWAY_V4`]: the kernel refuses a route by one of its
/// own addresses ("Nexthop has invalid gateway"), and every host end has that one.
pub const NODE_GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);

/// The pods' IPv6 gateway, and the router of the kernel's route to them: no interface of the node
/// has it as an address.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Ethernet address of every pod's host end. One for all is fine: each is alone on its link with
/// one pod. Locally administered (second lowest bit of the first octet, IEEE 802 §8.2).
pub const HOST_MAC: [u8; 6] = [0x0a, 0x00, 0x00, 0x00, 0x00, 0x01];

/// First octet of the Ethernet addresses we assign: locally administered, unicast, and not `02`,
/// which marks what a pod's kernel knows about a packet (design §4).
const MAC_FIRST_OCTET: u8 = 0x0a;

/// FNV-1a, 64 bits: stable over versions and machines, unlike the hashes of the standard library.
fn fnv1a(parts: &[&str]) -> u64 {
    let bytes = parts.iter().flat_map(|part| part.bytes().chain([0]));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// Name of a pod's host end: `vd` and 48 bits of a hash of the attachment, 14 of the 15 bytes an
/// interface name may have. Two attachments share one by chance at 1 in 2^48.
pub fn host_ifname(network: &str, container_id: &str, ifname: &str) -> String {
    let hash = fnv1a(&[network, container_id, ifname]) & 0xffff_ffff_ffff;
    format!("{HOST_IFNAME_PREFIX}{hash:012x}")
}

/// The text that says whose device this is (`ip link` shows it as the alias); at most 255 bytes
/// reach the kernel, hence the limits on its parts in the CNI specification.
pub fn cookie(network: &str, container_id: &str, ifname: &str) -> String {
    format!("{COOKIE_PREFIX}{network}/{container_id}/{ifname}")
}

/// The Ethernet address we give a pod, or an end of the node port: always the same for a name,
/// and it looks random to everybody else.
pub fn mac_for(name: &str) -> [u8; 6] {
    let [_, _, _, b, c, d, e, f] = fnv1a(&["mac", name]).to_be_bytes();
    [MAC_FIRST_OCTET, b, c, d, e, f]
}

/// The link-local IPv6 address made of an Ethernet address (RFC 4291 appendix A, modified EUI-64).
pub fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let half = |high: u8, low: u8| u16::from_be_bytes([high, low]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, half(a ^ 2, b), half(c, 0xff), half(0xfe, d), half(e, f))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_hash_is_fnv_1a() {
        // Test vectors of the FNV page are without our separator: fold it out by hand.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        for byte in *b"foobar" {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        assert_eq!(hash, 0x8594_4171_f739_67e8, "the published vector for foobar");
        assert_eq!(fnv1a(&["foobar"]), hash.wrapping_mul(0x0000_0100_0000_01b3));
    }

    #[test]
    fn parts_of_a_name_do_not_run_into_each_other() {
        assert_ne!(host_ifname("ab", "c", "eth0"), host_ifname("a", "bc", "eth0"));
        assert_ne!(host_ifname("a", "b", "ceth0"), host_ifname("a", "bc", "eth0"));
    }

    #[test]
    fn a_name_of_an_earlier_version_stays_what_it_was() {
        assert_eq!(host_ifname("viaduct", "c0ffee", "eth0"), "vd3550fc358683");
    }

    #[test]
    fn the_node_ports_ends_have_names_that_the_kernel_takes_and_that_are_no_pods() {
        for name in [NODE_IFNAME, WORKER_IFNAME] {
            assert!((1..=15).contains(&name.len()) && !name.contains('\0'), "{name}");
            assert!(!name.starts_with(HOST_IFNAME_PREFIX), "rules tell them apart by this");
        }
    }

    #[test]
    fn a_link_local_address_is_the_modified_eui_64() {
        let expected: Ipv6Addr = "fe80::034:56ff:fe78:9abc".parse().expect("address");
        assert_eq!(link_local([0x02, 0x34, 0x56, 0x78, 0x9a, 0xbc]), expected);
    }

    proptest! {
        #[test]
        fn names_fit_the_kernel_and_addresses_are_no_markers(
            network in ".{0,80}", container in "[0-9a-f]{1,64}", ifname in "[a-z0-9]{1,15}",
        ) {
            let name = host_ifname(&network, &container, &ifname);
            prop_assert_eq!(name.len(), 14);
            prop_assert!(name.starts_with(HOST_IFNAME_PREFIX));
            let mac = mac_for(&name);
            prop_assert_eq!(mac[0] & 1, 0, "unicast");
            prop_assert_eq!(mac[0] & 2, 2, "locally administered");
            prop_assert_ne!(mac[0], 2);
            prop_assert_ne!(mac, HOST_MAC);
        }
    }
}
