//! What a driver can do for XDP and AF_XDP, as the kernel tells it by the generic netlink family
//! `netdev` (linux/netdev.h, Documentation/netlink/specs/netdev.yaml), since Linux 6.3.
//!
//! A NIC may still refuse native mode or zero-copy with its present settings; whoever attaches or
//! binds hears why. This says what no setting will change.

use rustix::io::Errno;

use crate::attributes::{attribute_u32, attribute_u64, put};
use crate::genetlink::{Family, Genetlink, GenetlinkError};

// linux/netdev.h
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_A_DEV_XDP_ZC_MAX_SEGS: u16 = 4;
const NETDEV_A_DEV_XSK_FEATURES: u16 = 6;
const NETDEV_XDP_ACT_BASIC: u64 = 1;
const NETDEV_XDP_ACT_REDIRECT: u64 = 2;
const NETDEV_XDP_ACT_XSK_ZEROCOPY: u64 = 8;
const NETDEV_XDP_ACT_RX_SG: u64 = 32;
const NETDEV_XSK_FLAGS_TX_CHECKSUM: u64 = 2;

static FAMILY: Family = Family::new("netdev");

/// What a driver can do for XDP and AF_XDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpFeatures {
    /// It runs XDP programs itself, and they may redirect: native mode.
    pub native: bool,
    /// Native mode takes packets that lie in several buffers, as those above some 3.5 kB do.
    pub multi_buffer: bool,
    /// AF_XDP sockets without a copy.
    pub zero_copy: bool,
    /// Buffers that a packet of such a socket may lie in; 1 is one buffer, 0 is not told, which
    /// kernels before 6.6 do.
    pub zero_copy_segments_max: u32,
    /// AF_XDP sockets may have it fill in checksums (`XDP_TXMD_FLAGS_CHECKSUM`, since Linux 6.8).
    pub tx_checksum: bool,
}

impl XdpFeatures {
    fn from_answer(answer: &[u8]) -> Option<XdpFeatures> {
        let flags = attribute_u64(answer, NETDEV_A_DEV_XDP_FEATURES)?;
        let native = NETDEV_XDP_ACT_BASIC | NETDEV_XDP_ACT_REDIRECT;
        let xsk = attribute_u64(answer, NETDEV_A_DEV_XSK_FEATURES).unwrap_or(0);
        Some(XdpFeatures {
            native: flags & native == native,
            multi_buffer: flags & NETDEV_XDP_ACT_RX_SG != 0,
            zero_copy: flags & NETDEV_XDP_ACT_XSK_ZEROCOPY != 0,
            zero_copy_segments_max: attribute_u32(answer, NETDEV_A_DEV_XDP_ZC_MAX_SEGS)
                .unwrap_or(0),
            tx_checksum: xsk & NETDEV_XSK_FLAGS_TX_CHECKSUM != 0,
        })
    }
}

/// What the driver of the interface `ifindex`, of the network namespace the calling thread is in,
/// can do. `None` on a kernel that does not tell, which are those before 6.3. Anybody may ask.
///
/// # Errors
/// There is no such interface (`ENODEV`), or netlink fails.
pub fn xdp_features(ifindex: u32) -> Result<Option<XdpFeatures>, GenetlinkError> {
    let mut genetlink = match Genetlink::open(&FAMILY) {
        Ok(genetlink) => genetlink,
        Err(error) if error.is(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    let what = format!("read the XDP features of interface {ifindex}");
    let mut body = Vec::new();
    put(&mut body, NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes());
    let answer = genetlink.exchange(&what, NETDEV_CMD_DEV_GET, &body)?;
    let features = answer.as_deref().and_then(XdpFeatures::from_answer);
    features.map(Some).ok_or(GenetlinkError::Malformed { what })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(flags: u64, segments: Option<u32>, xsk: u64) -> Vec<u8> {
        let mut body = Vec::new();
        put(&mut body, NETDEV_A_DEV_IFINDEX, &7u32.to_ne_bytes());
        put(&mut body, NETDEV_A_DEV_XDP_FEATURES, &flags.to_ne_bytes());
        if let Some(segments) = segments {
            put(&mut body, NETDEV_A_DEV_XDP_ZC_MAX_SEGS, &segments.to_ne_bytes());
        }
        put(&mut body, NETDEV_A_DEV_XSK_FEATURES, &xsk.to_ne_bytes());
        body
    }

    #[test]
    fn flags_are_told_apart() {
        let nothing = XdpFeatures::default();
        let read = |flags, xsk| XdpFeatures::from_answer(&answer(flags, None, xsk));
        assert_eq!(read(0, 0), Some(nothing));
        assert_eq!(read(1, 0), Some(nothing), "a driver that cannot redirect is of no use");
        assert_eq!(read(3, 0), Some(XdpFeatures { native: true, ..nothing }));
        assert_eq!(read(8, 0), Some(XdpFeatures { zero_copy: true, ..nothing }));
        assert_eq!(read(32, 1), Some(XdpFeatures { multi_buffer: true, ..nothing }));
        assert_eq!(read(0, 2), Some(XdpFeatures { tx_checksum: true, ..nothing }));
        let segments = XdpFeatures::from_answer(&answer(0, Some(17), 0));
        assert_eq!(segments, Some(XdpFeatures { zero_copy_segments_max: 17, ..nothing }));
    }

    #[test]
    fn an_answer_without_flags_is_none() {
        let mut body = Vec::new();
        put(&mut body, NETDEV_A_DEV_IFINDEX, &7u32.to_ne_bytes());
        assert_eq!(XdpFeatures::from_answer(&body), None);
    }

    #[test]
    fn loopback_has_no_native_mode_and_interface_0_is_none() {
        let loopback = xdp_features(1).expect("every namespace has it");
        assert!(loopback.is_none_or(|features| !features.native && !features.zero_copy));
        if loopback.is_some() {
            xdp_features(u32::MAX).expect_err("no such interface");
        }
    }
}
