//! Whom packets are from and for.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::Generator;
use crate::daemon::{NODE_V4, NODE_V6, OUTSIDE_V4, OUTSIDE_V6};

impl Generator<'_> {
    pub(super) fn destination_v4(&mut self) -> Ipv4Addr {
        let plan = self.plan;
        let any = self.random.number(4) as u32;
        match self.random.below(100) {
            0..=49 => plan.pod_b.0,
            50..=61 => NODE_V4,
            62..=71 => OUTSIDE_V4,
            72..=74 => Ipv4Addr::from(0xcb00_7100 | any & 0xff), // 203.0.113.0/24
            75..=81 => plan.nobody.0,
            82..=84 => plan.pod_a.0,
            85..=86 => Ipv4Addr::new(169, 254, 1, 1),
            87..=88 => Ipv4Addr::from(0xa9fe_0000 | any & 0xffff), // link-local
            89..=90 => Ipv4Addr::from(0x7f00_0000 | any & 0xff_ffff), // loopback
            91 => Ipv4Addr::from(any & 0xff_ffff),                 // this network
            92..=95 => Ipv4Addr::from(0xe000_0000 | any & 0x0fff_ffff), // multicast
            96..=97 => Ipv4Addr::from(0xf000_0000 | any & 0x0fff_ffff), // reserved
            _ => Ipv4Addr::BROADCAST,
        }
    }

    pub(super) fn source_v4(&mut self) -> Ipv4Addr {
        let plan = self.plan;
        let any = self.random.number(4) as u32;
        if self.random.chance(92) {
            return plan.pod_a.0;
        }
        match self.random.below(9) {
            0 => plan.pod_b.0,
            1 => NODE_V4,
            2 => plan.nobody.0,
            3 => OUTSIDE_V4,
            4 => Ipv4Addr::UNSPECIFIED,
            5 => Ipv4Addr::from(0xa9fe_0000 | any & 0xffff),
            6 => Ipv4Addr::from(0x7f00_0000 | any & 0xff_ffff),
            7 => Ipv4Addr::from(0xe000_0000 | any & 0x1fff_ffff),
            _ => Ipv4Addr::from(any),
        }
    }

    pub(super) fn destination_v6(&mut self) -> Ipv6Addr {
        let plan = self.plan;
        let any = self.random.number(16);
        match self.random.below(100) {
            0..=49 => plan.pod_b.1,
            50..=61 => NODE_V6,
            62..=71 => OUTSIDE_V6,
            72..=74 => Ipv6Addr::from(0x2001_0db8_ffff_u128 << 80 | any & 0xffff),
            75..=81 => plan.nobody.1,
            82..=84 => plan.pod_a.1,
            85..=86 => Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
            87..=88 => Ipv6Addr::from(0xfe80_u128 << 112 | any >> 64),
            89..=90 => Ipv6Addr::LOCALHOST,
            91 => Ipv6Addr::UNSPECIFIED,
            92..=96 => Ipv6Addr::from(0xff_u128 << 120 | any >> 8), // multicast of any scope
            97 => Ipv4Addr::from(any as u32).to_ipv6_mapped(),
            98 => Ipv6Addr::from(0xfec0_u128 << 112 | any >> 64), // site-local of old
            _ => Ipv6Addr::from(0x3fff_u128 << 112 | any >> 16),  // documentation (RFC 9637)
        }
    }

    pub(super) fn source_v6(&mut self) -> Ipv6Addr {
        let plan = self.plan;
        let any = self.random.number(16);
        if self.random.chance(92) {
            return plan.pod_a.1;
        }
        match self.random.below(9) {
            0 => plan.pod_b.1,
            1 => NODE_V6,
            2 => plan.nobody.1,
            3 => OUTSIDE_V6,
            4 => Ipv6Addr::UNSPECIFIED,
            5 => Ipv6Addr::from(0xfe80_u128 << 112 | any >> 64),
            6 => Ipv6Addr::LOCALHOST,
            7 => Ipv6Addr::from(0xff_u128 << 120 | any >> 8),
            _ => Ipv4Addr::from(any as u32).to_ipv6_mapped(),
        }
    }
}
