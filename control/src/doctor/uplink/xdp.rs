//! Where the XDP program of an uplink runs and whether its frames are copied, or why not better.
//! What is said before a daemon has tried is what driver and settings tell.

use super::super::Row;
use super::super::facts::{Facts, Nic, Read, VirtioFeatures};
use super::{could, fit, is_veth};
use crate::netlink::Link;
use crate::report::UplinkRow;

/// The longest packet in bytes that fits one buffer of a driver: a page, less 256 bytes of
/// headroom, an Ethernet header with a tag, and what the kernel keeps at the end of it.
const ONE_BUFFER_MTU_MAX: u32 = 3498;

/// `VIRTIO_NET_F_CTRL_GUEST_OFFLOADS`: the guest can stop what the host does for it.
const VIRTIO_CONTROL: usize = 2;

/// What the host does for a guest that no XDP program can take: checksums left open, and merged
/// packets (`VIRTIO_NET_F_GUEST_CSUM`, `_TSO4`, `_TSO6`, `_ECN`, `_UFO`, `_USO4`, `_USO6`;
/// drivers/net/virtio_net.c, `virtnet_xdp_set`).
const VIRTIO_GUEST: [usize; 7] = [1, 7, 8, 9, 10, 54, 55];

/// `VIRTIO_F_ACCESS_PLATFORM`: the device is given addresses that the kernel has mapped for it,
/// which zero-copy sockets need (drivers/net/virtio_net.c, `virtnet_xsk_pool_enable`).
const VIRTIO_ACCESS_PLATFORM: usize = 33;

/// What the daemon says of an uplink that its workers use.
fn in_use<'a>(facts: &'a Facts, name: &str) -> Option<&'a UplinkRow> {
    let status = facts.daemon.status.as_ref().ok()?;
    status.uplinks.iter().find(|uplink| uplink.device == name && uplink.queues > 0)
}

/// Where the XDP program of an uplink will run, as far as driver and settings tell.
enum Mode {
    /// In the driver.
    Native,
    /// Behind it.
    Generic { why: String, mend: String },
    /// The kernel does not tell.
    Untold(String),
}

fn mode(link: &Link, nic: &Nic) -> Mode {
    let generic = |why: String, mend: &str| Mode::Generic { why, mend: mend.to_owned() };
    let driver = nic.driver.as_deref().unwrap_or("its driver");
    if is_veth(link) {
        return generic("of a veth it keeps super-packets whole".to_owned(), "");
    }
    let features = match &nic.xdp {
        Ok(Some(features)) => features,
        Ok(None) => {
            let why = "before Linux 6.3 the kernel does not tell what a driver can do";
            return Mode::Untold(format!("{}: {why}", link.name));
        }
        Err(why) => return Mode::Untold(why.clone()),
    };
    if !features.native {
        let mend = "a NIC whose driver runs XDP programs itself is faster";
        return generic(format!("{driver} runs no XDP programs"), mend);
    }
    if nic.virtio.as_ref().is_some_and(host_offloads_stay) {
        let why = "the host leaves checksums open and merges packets, and cannot be told to stop";
        let mend = "give the virtual machine's NIC guest_csum=off,guest_tso4=off,guest_tso6=off,\
                    guest_ecn=off,guest_ufo=off";
        return generic(why.to_owned(), mend);
    }
    if !features.multi_buffer && link.mtu > ONE_BUFFER_MTU_MAX {
        let why = format!(
            "{driver} takes up to {ONE_BUFFER_MTU_MAX} bytes in one buffer and no packets of \
             several, and the MTU is {}",
            link.mtu
        );
        let mend = format!("ip link set {} mtu {ONE_BUFFER_MTU_MAX}", link.name);
        return generic(why, &mend);
    }
    Mode::Native
}

fn host_offloads_stay(VirtioFeatures(features): &VirtioFeatures) -> bool {
    !features.contains(&VIRTIO_CONTROL) && VIRTIO_GUEST.iter().any(|bit| features.contains(bit))
}

/// No XDP program of others is on an uplink; where ours runs, or will.
pub(super) fn xdp(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "uplink_xdp";
    let row = |(link, nic): (&Link, &Nic)| {
        let name = &link.name;
        if let Some(running) = link.xdp_program.filter(|running| nic.pinned != Some(*running)) {
            let found = format!("{name} runs XDP program {running}, which is not ours");
            let mend = format!(
                "see whose it is with bpftool prog show id {running}, and detach it with ip link \
                 set dev {name} xdp off (or bpftool link detach)"
            );
            return Row::amiss(CHECK, found, mend);
        }
        let now = in_use(facts, name);
        match (now.and_then(|now| now.xdp.as_deref()), mode(link, nic)) {
            (Some("native"), _) => Row::well(CHECK, format!("{name} runs XDP in its driver")),
            (None, Mode::Native) => Row::well(CHECK, format!("{name} can run XDP in its driver")),
            (_, Mode::Generic { why, mend }) => {
                could(CHECK, format!("{name} runs XDP in generic mode: {why}"), &mend)
            }
            (None, Mode::Untold(why)) => Row::unknown(CHECK, why, ""),
            (Some(_), Mode::Native | Mode::Untold(_)) => {
                let note = now.and_then(|now| now.note.as_deref());
                let why = note.unwrap_or("the driver refuses native mode");
                could(CHECK, format!("{name} runs XDP in generic mode: {why}"), "see dmesg")
            }
        }
    };
    fit(facts).map(row).collect()
}

/// Whether frames go without a copy, or why not.
pub(super) fn zero_copy(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "uplink_zero_copy";
    let row = |(link, nic): (&Link, &Nic)| {
        let name = &link.name;
        let obstacle = no_zero_copy(link, nic);
        let Some(now) = in_use(facts, name) else {
            return match obstacle {
                Ok(None) => Row::well(CHECK, format!("{name} can do without copies")),
                Ok(Some((why, mend))) => could(CHECK, format!("{name} copies: {why}"), &mend),
                Err(why) => Row::unknown(CHECK, why, ""),
            };
        };
        let found = format!("{} of {} queues of {name} copy nothing", now.zero_copy, now.queues);
        if now.zero_copy == now.queues {
            return Row::well(CHECK, found);
        }
        let (why, mend) = match obstacle {
            Ok(Some(reason)) => reason,
            Ok(None) | Err(_) => {
                let note = now.note.as_deref().unwrap_or("the driver refuses");
                (note.to_owned(), "see dmesg".to_owned())
            }
        };
        could(CHECK, format!("{found}: {why}"), &mend)
    };
    fit(facts).map(row).collect()
}

/// Why a NIC cannot do without copies, and what to do; `None` if it can, an error if the kernel
/// does not tell.
fn no_zero_copy(link: &Link, nic: &Nic) -> Read<Option<(String, String)>> {
    let reason = |why: String, mend: &str| Ok(Some((why, mend.to_owned())));
    let driver = nic.driver.as_deref().unwrap_or("its driver");
    if is_veth(link) {
        return reason("a veth has no zero-copy".to_owned(), "");
    }
    match mode(link, nic) {
        Mode::Native => {}
        Mode::Generic { mend, .. } => {
            return reason("it takes native mode, see uplink_xdp".to_owned(), &mend);
        }
        Mode::Untold(why) => return Err(why),
    }
    let Ok(Some(features)) = &nic.xdp else { return Ok(None) };
    if !features.zero_copy {
        let mend = "a newer kernel may have it for this NIC; else a NIC whose driver has it";
        return reason(format!("{driver} has no zero-copy in this kernel"), mend);
    }
    if link.mtu > ONE_BUFFER_MTU_MAX && features.zero_copy_segments_max <= 1 {
        let why = format!(
            "zero-copy of {driver} takes packets in one buffer only, up to {ONE_BUFFER_MTU_MAX} \
             bytes, and the MTU is {}",
            link.mtu
        );
        return reason(why, &format!("ip link set {} mtu {ONE_BUFFER_MTU_MAX}", link.name));
    }
    if nic.virtio.as_ref().is_some_and(|virtio| !virtio.0.contains(&VIRTIO_ACCESS_PLATFORM)) {
        let mend = "give the virtual machine's NIC disable-legacy=on,iommu_platform=on";
        return reason("the virtio device takes no mapped addresses".to_owned(), mend);
    }
    Ok(None)
}
