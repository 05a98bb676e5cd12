//! ADD: from a request to a pod whose packets flow, or to nothing at all.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use cni_bridge::protocol::{AddReply, AddRequest, Addressing, Attachment, CallError, PodAddress};
use dataplane::xsk::program::{Fallback, PortEntry, PortKind};
use ipnet::IpNet;

use super::compile::{flow_generation, port_of};
use super::{EndpointError, EndpointSpec, Engine, Record, call_error, pod_cookie};
use crate::config::MTU_MIN;
use crate::endpoint::{self, Offloads, in_namespace};
use crate::node::{HOST_MAC, host_ifname, mac_for};
use crate::state::{
    Change, Effect, HostPortRecord, MasqueradeWish, NewPod, PodRecord, host_ports_of,
};
use crate::sysctl;

/// The code of an ADD that must wait: its interface is still being removed.
pub const ADD_WAITS: u32 = 11;

/// Code of a failure of the kernel or the workers.
pub(super) const FAILED: u32 = 999;

/// What an ADD is about to make.
struct Plan {
    attachment: Attachment,
    cookie: String,
    host_ifname: String,
    mac: [u8; 6],
    addresses: Vec<PodAddress>,
    routes: Vec<IpNet>,
    route_mtu: u32,
    host_ports: Vec<HostPortRecord>,
}

impl Engine {
    /// Whether an ADD of this attachment has to wait until an earlier one is gone.
    #[must_use]
    pub fn must_wait(&self, attachment: &Attachment) -> bool {
        self.leaving.values().any(|leaving| leaving == attachment)
    }

    /// CNI ADD. When it returns, every worker forwards for the pod; when it fails, nothing is
    /// left of it.
    pub fn attach(&mut self, request: &AddRequest, netns: OwnedFd) -> Result<AddReply, CallError> {
        self.state
            .admit(&request.attachment)
            .map_err(|error| call_error(error.cni_code(), &error))?;
        let plan = self.plan(request)?;
        let made = self.make(request, &plan, &netns);
        if made.is_err() && self.state.pod(&request.attachment).is_none() {
            let now_ns = self.now_ns();
            self.ipam.free(&request.attachment, now_ns);
        }
        let pod = made?;
        Ok(AddReply {
            host_ifname: plan.host_ifname,
            host_mac: text(pod.host_mac),
            mac: text(pod.mac),
            mtu: pod.route_mtu,
            addresses: pod.addresses,
            port_mappings: request.port_mappings.len(),
            bandwidth: pod.limits,
        })
    }

    /// Everything that can be refused without touching the kernel.
    fn plan(&mut self, request: &AddRequest) -> Result<Plan, CallError> {
        let attachment = request.attachment.clone();
        let Attachment { network, container_id, ifname } = &attachment;
        let invalid = |msg| CallError { code: 7, msg, details: String::new() };
        let host_ifname = host_ifname(network, container_id, ifname);
        let mac = match &request.mac {
            None => mac_for(&host_ifname),
            Some(wanted) => parse_mac(wanted).map_err(invalid)?,
        };
        let route_mtu = request.mtu.unwrap_or(self.route_mtu);
        let most = self.ports.route_mtu_max();
        if !(MTU_MIN..=most).contains(&route_mtu) {
            let msg = format!("mtu {route_mtu} is not possible here; use {MTU_MIN} to {most}");
            return Err(invalid(msg));
        }
        let mut routes = Vec::with_capacity(request.routes.len());
        for route in &request.routes {
            let dst = route.dst.parse::<IpNet>();
            routes.push(dst.map_err(|_| invalid(format!("route {} is no prefix", route.dst)))?);
        }
        // Last, since it takes something.
        let addresses = self.addresses(request)?;
        let host_ports = self.host_ports(request, &addresses).inspect_err(|_| {
            let now_ns = self.now_ns();
            self.ipam.free(&attachment, now_ns);
        })?;
        let cookie = pod_cookie(&attachment);
        Ok(Plan { cookie, host_ifname, mac, addresses, routes, route_mtu, host_ports, attachment })
    }

    /// The host ports of a pod with these addresses, none of which another pod has.
    fn host_ports(
        &self,
        request: &AddRequest,
        addresses: &[PodAddress],
    ) -> Result<Vec<HostPortRecord>, CallError> {
        host_ports_of(&request.port_mappings, addresses)
            .and_then(|found| self.state.admit_host_ports(&found).map(|()| found))
            .map_err(|error| call_error(error.cni_code(), &error))
    }

    fn addresses(&mut self, request: &AddRequest) -> Result<Vec<PodAddress>, CallError> {
        let now_ns = self.now_ns();
        match &request.addressing {
            Addressing::Embedded { requested, ranges } => self
                .ipam
                .allocate(&request.attachment, requested, ranges, now_ns)
                .map(host_prefixes)
                .map_err(|error| call_error(error.cni_code(), &error)),
            Addressing::Delegated(addresses) => {
                for PodAddress { address, .. } in addresses {
                    // Outside of our prefixes it is nobody else's; inside it must not be given
                    // out twice.
                    match self.ipam.reserve(&request.attachment, *address) {
                        Ok(()) | Err(crate::ipam::IpamError::Outside { .. }) => {}
                        Err(error) => {
                            self.ipam.free(&request.attachment, now_ns);
                            return Err(call_error(error.cni_code(), &error));
                        }
                    }
                }
                Ok(addresses.clone())
            }
        }
    }

    /// The steps that touch something, each undone if a later one fails.
    fn make(
        &mut self,
        request: &AddRequest,
        plan: &Plan,
        netns: &OwnedFd,
    ) -> Result<PodRecord, CallError> {
        let addresses: Vec<IpAddr> = plan.addresses.iter().map(|a| a.address).collect();
        let spec = EndpointSpec {
            netns: netns.as_fd(),
            ifname: &plan.attachment.ifname,
            host_ifname: &plan.host_ifname,
            cookie: &plan.cookie,
            mac: plan.mac,
            host_mac: HOST_MAC,
            addresses: &addresses,
            route_mtu: plan.route_mtu,
            device_mtu: self.ports.offloads.device_mtu(plan.route_mtu),
            offloads: self.ports.offloads,
            routes: &plan.routes,
        };
        let made = endpoint::attach(&mut self.host, &spec).map_err(endpoint_error)?;
        let served = self.serve_new(request, plan, netns, made.host_index, made.pod_index);
        if served.is_err() {
            let undone = endpoint::detach(&mut self.host, &plan.host_ifname, &plan.cookie);
            if let Err(error) = undone {
                tracing::error!(%error, host_ifname = plan.host_ifname, "undo an ADD");
            }
        }
        served
    }

    fn serve_new(
        &mut self,
        request: &AddRequest,
        plan: &Plan,
        netns: &OwnedFd,
        host_ifindex: u32,
        pod_ifindex: u32,
    ) -> Result<PodRecord, CallError> {
        let fail = |error: &dyn std::error::Error| call_error(FAILED, error);
        let stat = rustix::fs::fstat(netns).map_err(|error| fail(&error))?;
        if self.ports.offloads == Offloads::Full {
            in_namespace(netns.as_fd(), || self.programs.attach_marker(pod_ifindex))
                .map_err(|error| fail(&error))?
                .map_err(|error| fail(&error))?;
        }
        let new = NewPod {
            attachment: plan.attachment.clone(),
            netns: request.netns.clone(),
            netns_inode: stat.st_ino,
            netns_dev: stat.st_dev,
            host_ifname: plan.host_ifname.clone(),
            host_ifindex,
            mac: plan.mac,
            host_mac: HOST_MAC,
            addresses: plan.addresses.clone(),
            route_mtu: plan.route_mtu,
            offloads: self.ports.offloads,
            pod_namespace: request.pod_namespace.clone(),
            pod_name: request.pod_name.clone(),
            fallback: crate::state::Fallback::Pass,
            host_ports: plan.host_ports.clone(),
            masquerade: MasqueradeWish::of(request.snat, request.masq_all),
            limits: request.bandwidth,
        };
        let effect = self
            .state
            .apply(Change::Add(new))
            .map_err(|error| call_error(error.cni_code(), &error))?;
        let Effect::Added(pod) = effect else { unreachable!("an Add that succeeds adds") };
        let opened = self.open_host_ports(&pod).and_then(|()| self.serve(&pod));
        let result = opened.and_then(|()| {
            self.reach_pods()?;
            let record = Record::Attached(Box::new(pod.clone()));
            self.journal.append(&record).map_err(anyhow::Error::from)
        });
        if let Err(error) = result {
            self.forget(&pod);
            let msg = format!("{error:#}");
            return Err(CallError { code: FAILED, msg, details: String::new() });
        }
        self.purge_kernel_flows(&pod);
        Ok(pod)
    }

    /// The kernel leads the pod's host ports to it: its own processes' at once, and what comes by a
    /// wire as long as no worker does.
    fn open_host_ports(&mut self, pod: &PodRecord) -> anyhow::Result<()> {
        if pod.host_ports.is_empty() {
            return Ok(());
        }
        // While no worker is there, answers to 127.0.0.1 come in by the pod's own interface.
        sysctl::write(&format!("ipv4/conf/{}/route_localnet", pod.host_ifname), "1")?;
        Ok(self.add_kernel_host_ports(pod)?)
    }

    /// From a pod in the state to packets in its worker. Also the last step of re-adoption.
    pub(super) fn serve(&mut self, pod: &PodRecord) -> anyhow::Result<()> {
        self.guard(pod)?;
        let id = port_of(pod);
        let device = (pod.host_ifname.as_str(), pod.host_ifindex);
        let socket = self.workers.add_port(pod.worker, id, device, flow_generation(pod))?;
        self.lead_host_ports(pod);
        let served = self.publish().map_err(anyhow::Error::from).and_then(|()| {
            self.programs.set_socket(u32::from(id.0), socket.as_fd())?;
            self.take_host_ports(pod)
        });
        if served.is_err() {
            self.withdraw_host_ports(pod);
        }
        served
    }

    /// The XDP program at the pod's host end, and what it may send while no worker serves it.
    /// Entries first: a program without them passes everything.
    pub(super) fn guard(&mut self, pod: &PodRecord) -> anyhow::Result<()> {
        for PodAddress { address, .. } in &pod.addresses {
            self.programs.allow_source(pod.host_ifindex, *address)?;
        }
        let entry = PortEntry {
            slot: u32::from(port_of(pod).0),
            worker: u32::from(pod.worker),
            fallback: match pod.fallback {
                crate::state::Fallback::Pass => Fallback::Pass,
                crate::state::Fallback::Drop => Fallback::Drop,
            },
            mac: pod.mac,
            kind: PortKind::Pod,
        };
        self.programs.set_port(pod.host_ifindex, &entry)?;
        self.programs.attach(pod.host_ifindex, &pod.host_ifname)?;
        Ok(())
    }
}

fn endpoint_error(error: EndpointError) -> CallError {
    let code = match &error {
        EndpointError::AlreadyExists { .. } => 100,
        EndpointError::NoIpv6 { .. } => 7,
        _ => FAILED,
    };
    call_error(code, &error)
}

/// Embedded addresses are host addresses: a pod shares no subnet with another.
fn host_prefixes(addresses: Vec<PodAddress>) -> Vec<PodAddress> {
    let host = |address: PodAddress| PodAddress {
        prefix_len: if address.address.is_ipv4() { 32 } else { 128 },
        ..address
    };
    addresses.into_iter().map(host).collect()
}

/// MAC address in the form people write.
pub(super) fn text(mac: [u8; 6]) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// A unicast MAC address; that it is no marker is checked by the state.
fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let mend = || format!("mac {text} is no address like 0a:58:0a:f4:01:05");
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2).ok_or_else(mend)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| mend())?;
    }
    match parts.next() {
        None if mac != [0; 6] => Ok(mac),
        _ => Err(mend()),
    }
}
