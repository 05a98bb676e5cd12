//! Reads what is to be known of uplinks beside netlink's description of interfaces: driver,
//! channels, offloads, what the driver can do for XDP.

use std::fs;
use std::path::{Path, PathBuf};

use dataplane::xsk::program::pinned_uplink_program;

use super::facts::{Nic, Read, VirtioFeatures};
use crate::ethtool::{Ethtool, EthtoolError};
use crate::netdev::xdp_features;
use crate::netlink::Link;

/// Those of the named interfaces that are there.
pub(super) fn read(names: &[String], links: &[Link], bpf_dir: &Path) -> Vec<Nic> {
    let links = names.iter().filter_map(|name| links.iter().find(|link| link.name == *name));
    links.map(|link| nic(link, bpf_dir)).collect()
}

fn nic(link: &Link, bpf_dir: &Path) -> Nic {
    let name = &link.name;
    let mut ethtool = Ethtool::open().map_err(|error| error.to_string());
    let channels = ask(&mut ethtool, |ethtool| ethtool.channels(name));
    let features = ask(&mut ethtool, |ethtool| ethtool.active_features(name));
    let device = Device::find(Path::new("/sys/class/net"), link);
    Nic {
        name: name.clone(),
        driver: device.as_ref().and_then(Device::driver).or_else(|| link.kind.clone()),
        channels,
        xdp: xdp_features(link.index).map_err(|error| error.to_string()),
        features,
        virtio: device.as_ref().and_then(Device::virtio),
        pinned: pinned_uplink_program(bpf_dir, name),
    }
}

fn ask<T>(
    ethtool: &mut Read<Ethtool>,
    read: impl FnOnce(&mut Ethtool) -> Result<T, EthtoolError>,
) -> Read<T> {
    let ethtool = ethtool.as_mut().map_err(|why| why.clone())?;
    read(ethtool).map_err(|error| error.to_string())
}

/// The folder of an interface's device in sysfs.
struct Device(PathBuf);

impl Device {
    /// `None` for an interface without hardware, and if the sysfs that is mounted is that of
    /// another network namespace: it must show this interface's index and address.
    fn find(sysfs: &Path, link: &Link) -> Option<Device> {
        let folder = sysfs.join(&link.name);
        let says = |file: &str, what: &str| {
            fs::read_to_string(folder.join(file)).is_ok_and(|text| text.trim() == what)
        };
        let mac: Vec<String> = link.mac?.iter().map(|byte| format!("{byte:02x}")).collect();
        let is_it = says("ifindex", &link.index.to_string()) && says("address", &mac.join(":"));
        let device = folder.join("device");
        (is_it && device.exists()).then_some(Device(device))
    }

    fn driver(&self) -> Option<String> {
        let driver = fs::read_link(self.0.join("driver")).ok()?;
        Some(driver.file_name()?.to_string_lossy().into_owned())
    }

    /// A digit for each feature of a virtio device (drivers/virtio/virtio.c, `features_show`).
    fn virtio(&self) -> Option<VirtioFeatures> {
        self.driver().filter(|driver| driver == "virtio_net")?;
        let digits = fs::read_to_string(self.0.join("features")).ok()?;
        let numbers = digits.trim().bytes().enumerate().filter(|(_, digit)| *digit == b'1');
        Some(VirtioFeatures(numbers.map(|(number, _)| number).collect()))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    fn link(index: u32) -> Link {
        Link { index, name: "eth1".to_owned(), mac: Some([2, 0, 0, 0, 0, 0xab]), ..Link::default() }
    }

    fn sysfs(driver: &str) -> TempDir {
        let root = tempfile::tempdir().expect("a directory");
        let folder = root.path().join("eth1");
        fs::create_dir_all(folder.join("device")).expect("make it");
        fs::write(folder.join("ifindex"), "7\n").expect("write");
        fs::write(folder.join("address"), "02:00:00:00:00:ab\n").expect("write");
        symlink(format!("../../bus/x/drivers/{driver}"), folder.join("device/driver"))
            .expect("link");
        fs::write(folder.join("device/features"), "10100001\n").expect("write");
        root
    }

    #[test]
    fn the_driver_is_the_name_of_what_sysfs_points_to() {
        let root = sysfs("ice");
        let device = Device::find(root.path(), &link(7)).expect("it is this one");
        assert_eq!(device.driver().as_deref(), Some("ice"));
        assert_eq!(device.virtio(), None);
    }

    #[test]
    fn features_of_virtio_are_the_places_of_their_digits() {
        let root = sysfs("virtio_net");
        let device = Device::find(root.path(), &link(7)).expect("it is this one");
        assert_eq!(device.virtio(), Some(VirtioFeatures([0, 2, 7].into())));
    }

    #[test]
    fn sysfs_of_another_namespace_is_not_believed() {
        let root = sysfs("ice");
        assert!(Device::find(root.path(), &link(8)).is_none(), "another index");
        let other = Link { mac: Some([2, 0, 0, 0, 0, 1]), ..link(7) };
        assert!(Device::find(root.path(), &other).is_none(), "another address");
        let gone = Link { name: "eth2".to_owned(), ..link(7) };
        assert!(Device::find(root.path(), &gone).is_none(), "another name");
    }

    #[test]
    fn an_interface_that_is_not_there_has_nothing_to_read() {
        let names = ["eth7".to_owned()];
        assert!(read(&names, &[link(7)], Path::new("/nonexistent")).is_empty());
    }
}
