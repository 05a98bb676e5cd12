//! Chains of others that drop what is forwarded, and which packets of pods their rules let pass.
//! Read for `viaduct doctor`; nothing here writes.
//!
//! Rules are a program, and whether one ever accepts a packet cannot be told by looking. So only
//! rules that say it plainly count: accept what comes from a prefix, or in by an interface. One
//! with any other condition (a port, a connection's state, a set) counts for nothing, and so does
//! what a jump leads to, unless it stands in the same table and says it plainly itself.
//!
//! Numbers are those of include/uapi/linux/netfilter/nf_tables.h and .../netfilter.h.

use ipnet::IpNet;
use std::net::IpAddr;

use super::NftError;
use super::encode::{Batch, FAMILY_INET, FAMILY_UNSPECIFIED, SUBSYSTEM, TABLE_NAME, message};
use super::exchange::Exchange;
use crate::attributes::{attribute, attributes};
use crate::nfnetlink::u32_at;

/// `NFPROTO_IPV4` and `NFPROTO_IPV6`; iptables-nft writes into these families.
const FAMILY_IPV4: u8 = 2;
const FAMILY_IPV6: u8 = 10;
/// `NF_INET_FORWARD`.
const HOOK_FORWARD: u32 = 2;
/// `NF_DROP` and `NF_ACCEPT`, as policy and as verdict.
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

/// `NFTA_CHAIN_NAME`, `NFTA_CHAIN_HOOK`, `NFTA_CHAIN_POLICY`; `NFTA_HOOK_HOOKNUM`.
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const HOOK_NUMBER: u16 = 1;
/// `NFTA_RULE_EXPRESSIONS`, `NFTA_LIST_ELEM`, `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`.
const RULE_EXPRESSIONS: u16 = 4;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
/// `NFTA_DATA_VALUE`, `NFTA_DATA_VERDICT`, `NFTA_VERDICT_CODE`.
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
/// `NFTA_META_KEY`, `NFT_META_IIFNAME`, `NFT_META_NFPROTO`.
const META_KEY: u16 = 2;
const META_IIFNAME: u32 = 6;
const META_NFPROTO: u32 = 15;
/// `NFTA_PAYLOAD_BASE`, `NFTA_PAYLOAD_OFFSET`; `NFT_PAYLOAD_NETWORK_HEADER`.
const PAYLOAD_BASE: u16 = 2;
const PAYLOAD_OFFSET: u16 = 3;
const NETWORK_HEADER: u32 = 1;
/// Where the source address stands in a header (RFC 791 §3.1, RFC 8200 §3).
const IPV4_SOURCE: u32 = 12;
const IPV6_SOURCE: u32 = 8;
/// `NFTA_BITWISE_MASK`; `NFTA_CMP_OP`, `NFTA_CMP_DATA`, `NFT_CMP_EQ`; `NFTA_IMMEDIATE_DATA`.
const BITWISE_MASK: u16 = 4;
const COMPARE_OPERATION: u16 = 2;
const COMPARE_DATA: u16 = 3;
const EQUAL: u32 = 0;
const IMMEDIATE_DATA: u16 = 2;

/// A base chain of hook forward whose policy is drop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardChain {
    /// `ip`, `ip6` or `inet`, as `nft` writes it.
    pub family: &'static str,
    /// Name of its table.
    pub table: String,
    /// Its own name.
    pub name: String,
    /// What rules of that table accept without further conditions.
    pub accepted: Vec<Accepted>,
}

impl ForwardChain {
    /// Whether packets of this family pass the chain.
    #[must_use]
    pub fn sees(&self, prefix: &IpNet) -> bool {
        match self.family {
            "ip" => matches!(prefix, IpNet::V4(_)),
            "ip6" => matches!(prefix, IpNet::V6(_)),
            _ => true,
        }
    }
}

/// What a rule accepts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// Everything.
    All,
    /// What comes from here.
    Source(IpNet),
    /// What comes in by an interface of this name, or whose name begins so (`*` at the end).
    Interface(String),
}

/// Every base chain of hook forward that drops by policy.
pub(super) fn dropping(exchange: &mut Exchange) -> Result<Vec<ForwardChain>, NftError> {
    let mut found: Vec<(u8, ForwardChain)> = Vec::new();
    let question = Batch::list(message::GETCHAIN, FAMILY_UNSPECIFIED, |_| ());
    exchange.list(&question, |part| {
        if let Some((message::NEWCHAIN, family, rest)) = part.of(SUBSYSTEM) {
            found.extend(dropping_chain(family, rest).map(|chain| (family, chain)));
        }
    })?;
    for (family, chain) in &mut found {
        let table = chain.table.clone();
        let question = Batch::list(message::GETRULE, *family, |list| list.text(TABLE_NAME, &table));
        exchange.list(&question, |part| {
            // A kernel that does not filter by table lists them all.
            if let Some((message::NEWRULE, _, rest)) = part.of(SUBSYSTEM)
                && text(rest, TABLE_NAME).as_deref() == Some(table.as_str())
            {
                chain.accepted.extend(accepted(rest));
            }
        })?;
    }
    Ok(found.into_iter().map(|(_, chain)| chain).collect())
}

fn dropping_chain(family: u8, bytes: &[u8]) -> Option<ForwardChain> {
    let family = match family {
        FAMILY_INET => "inet",
        FAMILY_IPV4 => "ip",
        FAMILY_IPV6 => "ip6",
        _ => return None,
    };
    // A chain without a hook is called by rules only.
    let hook = attribute(bytes, CHAIN_HOOK)?;
    let forwards = number(hook, HOOK_NUMBER)? == HOOK_FORWARD;
    let drops = number(bytes, CHAIN_POLICY)? == DROP;
    let (table, name) = (text(bytes, TABLE_NAME)?, text(bytes, CHAIN_NAME)?);
    let chain = ForwardChain { family, table, name, accepted: Vec::new() };
    (forwards && drops).then_some(chain)
}

/// What the register holds while a rule is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loaded {
    Nothing,
    Interface,
    Family,
    Source { ipv6: bool },
}

/// What a rule accepts, if it says so plainly.
fn accepted(rule: &[u8]) -> Option<Accepted> {
    let mut loaded = Loaded::Nothing;
    let mut mask: Option<&[u8]> = None;
    let mut condition = None;
    for (kind, element) in attributes(attribute(rule, RULE_EXPRESSIONS)?) {
        if kind != LIST_ELEMENT {
            continue;
        }
        let data = attribute(element, EXPRESSION_DATA).unwrap_or_default();
        match text(element, EXPRESSION_NAME)?.as_str() {
            "counter" => {}
            "meta" => loaded = of_meta(data)?,
            "payload" => (loaded, mask) = (of_payload(data)?, None),
            "bitwise" => mask = Some(attribute(attribute(data, BITWISE_MASK)?, DATA_VALUE)?),
            "cmp" if number(data, COMPARE_OPERATION) == Some(EQUAL) => {
                let value = attribute(attribute(data, COMPARE_DATA)?, DATA_VALUE)?;
                if let Some(means) = meaning(loaded, value, mask)?
                    && condition.replace(means).is_some()
                {
                    return None; // Two conditions at once are narrower than either.
                }
            }
            "immediate" => {
                let verdict = attribute(attribute(data, IMMEDIATE_DATA)?, DATA_VERDICT)?;
                let accepts = number(verdict, VERDICT_CODE)? == ACCEPT;
                return accepts.then_some(condition.unwrap_or(Accepted::All));
            }
            _ => return None,
        }
    }
    None
}

fn of_meta(data: &[u8]) -> Option<Loaded> {
    match number(data, META_KEY)? {
        META_IIFNAME => Some(Loaded::Interface),
        META_NFPROTO => Some(Loaded::Family),
        _ => None,
    }
}

fn of_payload(data: &[u8]) -> Option<Loaded> {
    match (number(data, PAYLOAD_BASE)?, number(data, PAYLOAD_OFFSET)?) {
        (NETWORK_HEADER, IPV4_SOURCE) => Some(Loaded::Source { ipv6: false }),
        (NETWORK_HEADER, IPV6_SOURCE) => Some(Loaded::Source { ipv6: true }),
        _ => None,
    }
}

/// What it means that the register holds `value`: `Some(None)` is nothing of interest, `None` is
/// nothing that can be said plainly.
fn meaning(loaded: Loaded, value: &[u8], mask: Option<&[u8]>) -> Option<Option<Accepted>> {
    match loaded {
        Loaded::Nothing => None,
        Loaded::Family => Some(None),
        Loaded::Interface => {
            // Without the zero byte at its end the name is the beginning of one.
            let end = value.iter().position(|byte| *byte == 0);
            let name = value.get(..end.unwrap_or(value.len()))?;
            let star = if end.is_none() { "*" } else { "" };
            Some(Some(Accepted::Interface(format!("{}{star}", String::from_utf8_lossy(name)))))
        }
        Loaded::Source { ipv6 } => Some(Some(Accepted::Source(prefix(ipv6, value, mask)?))),
    }
}

/// The prefix that a comparison of (the first bytes of) an address with `value` means.
fn prefix(ipv6: bool, value: &[u8], mask: Option<&[u8]>) -> Option<IpNet> {
    let bits = |bytes: &[u8]| bytes.iter().map(|byte| byte.leading_ones()).sum::<u32>();
    let len = u8::try_from(mask.map_or(value.len() as u32 * 8, bits)).ok()?;
    let address: IpAddr =
        if ipv6 { filled::<16>(value)?.into() } else { filled::<4>(value)?.into() };
    IpNet::new(address, len).ok()
}

/// The bytes, and zeros after them.
fn filled<const LEN: usize>(value: &[u8]) -> Option<[u8; LEN]> {
    let mut bytes = [0; LEN];
    bytes.get_mut(..value.len())?.copy_from_slice(value);
    Some(bytes)
}

/// A number in network byte order.
fn number(bytes: &[u8], wanted: u16) -> Option<u32> {
    u32_at(attribute(bytes, wanted)?, 0).map(u32::from_be)
}

fn text(bytes: &[u8], wanted: u16) -> Option<String> {
    let value = attribute(bytes, wanted)?;
    let value = value.strip_suffix(b"\0").unwrap_or(value);
    Some(String::from_utf8_lossy(value).into_owned())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::nfnetlink::messages;
    use crate::nft::encode::Attributes;

    /// The attributes of a message that holds what `content` writes.
    fn written(content: impl FnOnce(&mut Attributes)) -> Vec<u8> {
        let batch = Batch::list(message::NEWRULE, FAMILY_IPV4, content);
        let message = messages(batch.bytes()).next().expect("a message");
        message.of(SUBSYSTEM).expect("of nf_tables").2.to_vec()
    }

    fn chain(hook: u32, policy: u32) -> Vec<u8> {
        written(|list| {
            list.text(TABLE_NAME, "filter");
            list.text(CHAIN_NAME, "FORWARD");
            list.nested(CHAIN_HOOK, |hooked| hooked.number(HOOK_NUMBER, hook));
            list.number(CHAIN_POLICY, policy);
        })
    }

    /// Writes one expression.
    type Step = fn(&mut Attributes);

    fn rule(steps: &[(&str, Step)]) -> Vec<u8> {
        written(|list| {
            list.nested(RULE_EXPRESSIONS, |list| {
                for (name, data) in steps {
                    list.nested(LIST_ELEMENT, |element| {
                        element.text(EXPRESSION_NAME, name);
                        element.nested(EXPRESSION_DATA, data);
                    });
                }
            });
        })
    }

    const SOURCE: (&str, Step) = ("payload", |data| {
        data.number(PAYLOAD_BASE, NETWORK_HEADER);
        data.number(PAYLOAD_OFFSET, IPV4_SOURCE);
    });
    const IS_10_244: (&str, Step) = ("cmp", |data| {
        data.number(COMPARE_OPERATION, EQUAL);
        data.nested(COMPARE_DATA, |value| value.raw(DATA_VALUE, &[10, 244]));
    });
    const IIFNAME: (&str, Step) = ("meta", |data| data.number(META_KEY, META_IIFNAME));
    const IS_VIADUCT0: (&str, Step) = ("cmp", |data| {
        data.number(COMPARE_OPERATION, EQUAL);
        data.nested(COMPARE_DATA, |value| value.raw(DATA_VALUE, b"viaduct0\0\0\0\0\0\0\0\0"));
    });
    const IS_VD: (&str, Step) = ("cmp", |data| {
        data.number(COMPARE_OPERATION, EQUAL);
        data.nested(COMPARE_DATA, |value| value.raw(DATA_VALUE, b"vd"));
    });
    const COUNTER: (&str, Step) = ("counter", |_| ());
    const ACCEPTS: (&str, Step) = ("immediate", |data| {
        data.nested(IMMEDIATE_DATA, |value| {
            value.nested(DATA_VERDICT, |verdict| verdict.number(VERDICT_CODE, ACCEPT));
        });
    });
    const DROPS: (&str, Step) = ("immediate", |data| {
        data.nested(IMMEDIATE_DATA, |value| {
            value.nested(DATA_VERDICT, |verdict| verdict.number(VERDICT_CODE, DROP));
        });
    });

    #[test]
    fn only_a_chain_of_hook_forward_that_drops_by_policy_is_one() {
        let found = dropping_chain(FAMILY_IPV4, &chain(HOOK_FORWARD, DROP)).expect("it drops");
        assert_eq!((found.family, found.table.as_str()), ("ip", "filter"));
        assert_eq!(found.name, "FORWARD");
        assert_eq!(dropping_chain(FAMILY_IPV4, &chain(HOOK_FORWARD, ACCEPT)), None);
        assert_eq!(dropping_chain(FAMILY_IPV4, &chain(1, DROP)), None, "hook input");
        assert_eq!(dropping_chain(7, &chain(HOOK_FORWARD, DROP)), None, "a bridge's");
    }

    #[test]
    fn a_rule_that_plainly_accepts_a_prefix_or_an_interface_is_understood() {
        let source = Accepted::Source("10.244.0.0/16".parse().expect("prefix"));
        assert_eq!(accepted(&rule(&[SOURCE, IS_10_244, COUNTER, ACCEPTS])), Some(source));
        let interface = Accepted::Interface("viaduct0".to_owned());
        assert_eq!(accepted(&rule(&[IIFNAME, IS_VIADUCT0, ACCEPTS])), Some(interface));
        let wildcard = Accepted::Interface("vd*".to_owned());
        assert_eq!(accepted(&rule(&[IIFNAME, IS_VD, ACCEPTS])), Some(wildcard));
        assert_eq!(accepted(&rule(&[ACCEPTS])), Some(Accepted::All));
    }

    #[test]
    fn a_mask_shortens_the_prefix() {
        let masked: (&str, Step) = ("bitwise", |data| {
            data.nested(BITWISE_MASK, |mask| mask.raw(DATA_VALUE, &[255, 254, 0, 0]));
        });
        let value: (&str, Step) = ("cmp", |data| {
            data.number(COMPARE_OPERATION, EQUAL);
            data.nested(COMPARE_DATA, |value| value.raw(DATA_VALUE, &[10, 244, 0, 0]));
        });
        let source = Accepted::Source("10.244.0.0/15".parse().expect("prefix"));
        assert_eq!(accepted(&rule(&[SOURCE, masked, value, ACCEPTS])), Some(source));
    }

    #[test]
    fn a_rule_with_another_condition_or_verdict_counts_for_nothing() {
        let state: (&str, Step) = ("ct", |_| ());
        let not_equal: (&str, Step) = ("cmp", |data| {
            data.number(COMPARE_OPERATION, 1);
            data.nested(COMPARE_DATA, |value| value.raw(DATA_VALUE, &[10, 244]));
        });
        for steps in [
            &[SOURCE, IS_10_244, DROPS][..],
            &[SOURCE, IS_10_244],
            &[SOURCE, not_equal, ACCEPTS],
            &[SOURCE, IS_10_244, state, ACCEPTS],
            &[SOURCE, IS_10_244, IIFNAME, IS_VIADUCT0, ACCEPTS],
        ] {
            assert_eq!(accepted(&rule(steps)), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_of_a_kernel_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = accepted(&bytes);
            let _ = dropping_chain(FAMILY_INET, &bytes);
            let _ = prefix(bytes.len().is_multiple_of(2), &bytes, Some(bytes.as_slice()));
        }
    }
}
