//! The kernel's nf_tables table `inet viaduct`: masquerade for what pods send through the node
//! port, all host ports, and what keeps the kernel's NAT whole while the daemon is dead.
//!
//! The table is written by netlink: executing `nft` would cost 2 to 3 ms each time and a package
//! on the node. Every write is one nfnetlink batch, which the kernel applies whole or not at all
//! (include/uapi/linux/netfilter/nfnetlink.h, NFNL_MSG_BATCH_BEGIN), and it names no table but
//! ours: rules of kube-proxy, of a firewall or of an operator are never changed.
//!
//! What the table holds, and why, stands in `ruleset.rs`, for host ports in `host_ports.rs` and
//! `host_port_rules.rs`. `encode.rs`, `sets.rs` and `expressions.rs` make the bytes of the
//! messages; `exchange.rs` sends them and reads the answers. `forward.rs` alone looks at tables of
//! others, for `viaduct doctor`.

mod conditions;
mod encode;
mod exchange;
mod expressions;
mod forward;
mod host_port_rules;
mod host_ports;
mod intervals;
mod monitor;
mod ruleset;
mod sets;

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;

use encode::{Batch, message};
use exchange::Exchange;
pub use forward::{Accepted, ForwardChain};
pub use host_ports::HostPortEntry;
pub use monitor::NftMonitor;

/// Name of the only table that Viaduct writes (family `inet`, so it covers IPv4 and IPv6).
pub const TABLE: &str = "viaduct";

/// What the table has to say: a pure function of this is written by [`NftTable::ensure`].
///
/// Prefixes may overlap, touch or repeat, and host bits are ignored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NftConfig {
    /// Prefixes of the pods of this node. Only packets from these are ever masqueraded.
    pub pod_cidrs: Vec<IpNet>,
    /// Destinations which pods reach with their own address.
    pub direct: Vec<IpNet>,
    /// Parts of `direct` that are left to the kernel, and so are masqueraded like the internet.
    pub kernel: Vec<IpNet>,
    /// Masquerade what pods send to destinations outside `direct`. Connections of pods that the
    /// kernel DNATed are masqueraded in either case: without it their replies bypass the kernel.
    pub masquerade: bool,
    /// All host ports, no two of the same [`HostPortEntry::host_port`].
    pub host_ports: Vec<HostPortEntry>,
    /// Local addresses at which no host port is asked, because they are not the node's: kube-proxy
    /// in IPVS mode gives those of all Services to a device `kube-ipvs0`.
    pub not_node: Vec<IpAddr>,
}

/// What the guard dropped: answers of pods that nobody would have translated while no worker was
/// alive, and that would have shown a pod's address in place of the node's.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Guarded {
    /// How many packets.
    pub packets: u64,
    /// Their IP packets' bytes.
    pub bytes: u64,
}

/// Why the table could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NftError {
    /// The netlink socket could not be opened, bound or prepared.
    #[error("cannot open a netfilter netlink socket ({source}); run viaductd as root")]
    Socket {
        /// What the kernel answered.
        source: io::Error,
    },
    /// A message could not be sent to the kernel, or its answer could not be received.
    #[error("cannot exchange netlink messages about table inet viaduct ({source}); try again")]
    Exchange {
        /// What the kernel answered.
        source: io::Error,
    },
    /// The kernel lacks a part of nf_tables.
    #[error(
        "the kernel cannot make {object} of table inet viaduct ({source}); \
         load the module {module} (modprobe {module}) or a kernel that has it"
    )]
    ModuleMissing {
        /// The object that could not be made.
        object: String,
        /// The module that implements it.
        module: &'static str,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The kernel refused an object for another reason.
    #[error("the kernel refused {object} of table inet viaduct ({source}{detail}); {mend}")]
    Refused {
        /// The object that was refused.
        object: String,
        /// What the kernel answered.
        source: io::Error,
        /// The kernel's own sentence, preceded by `: `, or empty.
        detail: String,
        /// What the operator can do.
        mend: &'static str,
    },
    /// An element could not be added or removed because the sets are not what we made them.
    #[error(
        "{object} of table inet viaduct do not fit what is there ({source}): another process \
         changed the table; write it anew"
    )]
    Changed {
        /// The elements.
        object: String,
        /// What the kernel answered.
        source: io::Error,
    },
    /// The kernel took a batch and neither confirmed nor refused it.
    #[error("the kernel did not confirm table inet viaduct; try again")]
    Unconfirmed,
    /// The kernel does not list its chains or rules.
    #[error("cannot list the chains and rules of nf_tables ({source}); run this as root")]
    List {
        /// What the kernel answered.
        source: io::Error,
    },
}

/// Our table in the network namespace in which this was opened.
pub struct NftTable {
    exchange: Exchange,
}

impl NftTable {
    /// Opens the socket through which the table is written. Nothing is written yet.
    ///
    /// # Errors
    /// [`NftError::Socket`] without `CAP_NET_ADMIN`, [`NftError::ModuleMissing`] without nfnetlink.
    pub fn open() -> Result<NftTable, NftError> {
        Ok(NftTable { exchange: Exchange::open()? })
    }

    /// Replaces whatever is in our table by what `config` asks for, in one atomic batch: no packet
    /// meets half of the rules. Connections that exist keep the translation they have.
    ///
    /// # Errors
    /// Every variant of [`NftError`] but `Socket`; the table is then as it was before.
    pub fn ensure(&mut self, config: &NftConfig) -> Result<(), NftError> {
        // The counter goes with the table, so it is carried over. What is dropped between the two
        // steps is not counted.
        let guarded = self.guarded()?;
        self.exchange.apply(&ruleset::replacement(config, guarded))
    }

    /// Adds host ports to what [`NftTable::ensure`] wrote, in one atomic batch whose size depends
    /// on these alone. One that is there already is no error.
    ///
    /// # Errors
    /// [`NftError::Changed`] if the table is not there, or one of these leads elsewhere: call
    /// `ensure` then. [`NftError::Exchange`], [`NftError::Refused`], [`NftError::Unconfirmed`].
    /// None of them is added then.
    pub fn add_host_ports(&mut self, entries: &[HostPortEntry]) -> Result<(), NftError> {
        self.exchange.apply(&host_ports::addition(entries))
    }

    /// Takes host ports away, in one atomic batch whose size depends on these alone: all that lead
    /// to one port of a pod together, as they go with the pod. Connections that exist keep the
    /// translation they have.
    ///
    /// # Errors
    /// [`NftError::Changed`] if one of them is not there: call [`NftTable::ensure`] then. Else as
    /// [`NftTable::add_host_ports`]. None of them is gone then.
    pub fn remove_host_ports(&mut self, gone: &[HostPortEntry]) -> Result<(), NftError> {
        self.exchange.apply(&host_ports::removal(gone))
    }

    /// Follows [`NftConfig::pod_cidrs`], which were `before`, in one atomic batch that names only
    /// what differs.
    ///
    /// # Errors
    /// As [`NftTable::remove_host_ports`].
    pub fn change_pods(&mut self, before: &[IpNet], after: &[IpNet]) -> Result<(), NftError> {
        self.exchange.apply(&ruleset::pods_change(before, after))
    }

    /// Follows [`NftConfig::not_node`]: `came` joined it, `went` left it.
    ///
    /// # Errors
    /// As [`NftTable::remove_host_ports`].
    pub fn change_not_node(&mut self, came: &[IpAddr], went: &[IpAddr]) -> Result<(), NftError> {
        self.exchange.apply(&host_ports::not_node_change(came, went))
    }

    /// What the guard has dropped since the table was first written in this boot, or since
    /// somebody else removed it; zero if there is no table.
    ///
    /// # Errors
    /// [`NftError::Exchange`], [`NftError::Refused`] or [`NftError::Unconfirmed`].
    pub fn guarded(&mut self) -> Result<Guarded, NftError> {
        let question = ruleset::counter_question(host_port_rules::GUARDED);
        let answer = self.exchange.object(&question, ruleset::counted)?;
        Ok(answer.unwrap_or_default())
    }

    /// Removes the table. It is no error if there is none.
    ///
    /// # Errors
    /// As [`NftTable::ensure`].
    pub fn remove(&mut self) -> Result<(), NftError> {
        self.exchange.apply(&ruleset::removal())
    }

    /// Whether the table exists. That nobody changed its rules is [`NftMonitor`]'s to say.
    ///
    /// # Errors
    /// [`NftError::Exchange`], [`NftError::Refused`] or [`NftError::Unconfirmed`].
    pub fn present(&mut self) -> Result<bool, NftError> {
        let question = Batch::single(message::GETTABLE, "the presence", |attributes| {
            attributes.text(encode::TABLE_NAME, TABLE);
        });
        Ok(self.exchange.object(&question, |_| Some(()))?.is_some())
    }

    /// The chains of everybody that drop forwarded packets unless a rule takes them, with the rules
    /// that let pods' packets through. Reads only.
    ///
    /// # Errors
    /// [`NftError::Exchange`], [`NftError::List`] or [`NftError::Unconfirmed`].
    pub fn dropping_forward_chains(&mut self) -> Result<Vec<ForwardChain>, NftError> {
        forward::dropping(&mut self.exchange)
    }

    /// Opens a monitor that tells when a process other than the holder of this `NftTable` changes
    /// our table.
    ///
    /// # Errors
    /// [`NftError::Socket`].
    pub fn monitor(&self) -> Result<NftMonitor, NftError> {
        NftMonitor::open(self.exchange.port_id())
    }
}
