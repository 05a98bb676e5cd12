//! The netlink socket through which the table is written, and what the kernel's answers mean.

use std::io;

use netlink_sys::SocketAddr;
use rustix::io::Errno;
use rustix::net::sockopt::set_socket_send_buffer_size_force;

use super::NftError;
use super::encode::{Batch, SUBSYSTEM, Step, message};
use crate::attributes::attributes;
use crate::nfnetlink::{Connection, KIND_DONE, KIND_ERROR, Received, u32_at};

/// Largest batch: one message to netlink must fit the send buffer. A prefix takes up to 80 bytes
/// and may be both in `pods` and `direct`, a host port takes up to 190: this is room for 25,000 of
/// the former and 65,536 of the latter, which is as many as the XDP program's maps hold.
const SEND_BUFFER_BYTES: usize = 16 << 20;

/// `NLM_F_ACK_TLVS`: attributes that explain follow the error.
const FLAG_EXPLAINED: u16 = 0x200;
/// Bytes of `struct nlmsgerr`: the error and the header of the message it is about.
const ERROR_LEN: usize = 20;
/// `NLMSGERR_ATTR_MSG`, `NLMSGERR_ATTR_OFFS`.
const EXPLANATION_TEXT: u16 = 1;
const EXPLANATION_OFFSET: u16 = 2;

/// An open socket, known to the kernel by its port id.
pub(super) struct Exchange {
    connection: Connection,
    port_id: u32,
}

/// What the kernel said about one message.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    sequence: u32,
    /// 0: the message was carried out.
    errno: i32,
    /// Where in the message the kernel found fault, in bytes from the start of its header.
    offset: Option<u32>,
    text: String,
}

impl Exchange {
    /// Opens the socket in the network namespace of the calling thread.
    pub(super) fn open() -> Result<Exchange, NftError> {
        open().map_err(socket_error)
    }

    /// The id under which the kernel announces what this socket changed.
    pub(super) fn port_id(&self) -> u32 {
        self.port_id
    }

    /// Has the kernel carry out a finished batch. It is not asked to do nothing, which no kernel
    /// before Linux 6.10 confirms.
    pub(super) fn apply(&mut self, batch: &Batch) -> Result<(), NftError> {
        if batch.is_empty() {
            return Ok(());
        }
        let mut confirmed = false;
        let mut refusal: Option<Answer> = None;
        self.send(batch)?;
        self.receive(|message| {
            let Some(answer) = answer(message) else {
                return;
            };
            if answer.errno == 0 {
                confirmed |= batch.is_last(answer.sequence);
            } else if refusal.as_ref().is_none_or(|first| answer.sequence < first.sequence) {
                // Later refusals are consequences: rules of a chain that could not be made.
                refusal = Some(answer);
            }
        })?;
        match refusal {
            Some(answer) => Err(refused(batch, answer)),
            None if confirmed => Ok(()),
            None => Err(NftError::Unconfirmed),
        }
    }

    /// Asks a single question whose answer is an object or `ENOENT`: what `read` makes of the
    /// object's attributes, or `None`.
    pub(super) fn object<T>(
        &mut self,
        question: &Batch,
        mut read: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, NftError> {
        let mut found = None;
        self.send(question)?;
        self.receive(|message| {
            found = Some(match (answer(message), message.of(SUBSYSTEM)) {
                (None, Some((_, _, object))) => Ok(read(object)),
                (Some(answer), _) if answer.errno != Errno::NOENT.raw_os_error() => Err(answer),
                _ => Ok(None),
            });
        })?;
        match found {
            Some(Ok(found)) => Ok(found),
            Some(Err(answer)) => Err(refused(question, answer)),
            None => Err(NftError::Unconfirmed),
        }
    }

    /// Asks for a list and gives each message of it to `each`.
    pub(super) fn list(
        &mut self,
        question: &Batch,
        mut each: impl FnMut(&Received<'_>),
    ) -> Result<(), NftError> {
        let mut end = None;
        self.send(question)?;
        self.receive(|message| match message.kind {
            KIND_DONE | KIND_ERROR => end = u32_at(message.payload, 0).map(u32::cast_signed),
            _ => each(message),
        })?;
        match end {
            Some(0) => Ok(()),
            Some(code) => {
                Err(NftError::List { source: io::Error::from_raw_os_error(code.saturating_neg()) })
            }
            None => Err(NftError::Unconfirmed),
        }
    }

    fn send(&mut self, batch: &Batch) -> Result<(), NftError> {
        self.connection.send(batch.bytes()).map_err(|source| NftError::Exchange { source })
    }

    fn receive(&mut self, mut each: impl FnMut(&Received<'_>)) -> Result<(), NftError> {
        let failed = |source| NftError::Exchange { source };
        while let Some(messages) = self.connection.receive().map_err(failed)? {
            messages.for_each(|message| each(&message));
        }
        Ok(())
    }
}

fn open() -> io::Result<Exchange> {
    let connection = Connection::open()?;
    let mut address = SocketAddr::new(0, 0);
    connection.socket.get_address(&mut address)?;
    connection.socket.set_ext_ack(true)?;
    set_socket_send_buffer_size_force(&connection.socket, SEND_BUFFER_BYTES)?;
    Ok(Exchange { connection, port_id: address.port_number() })
}

/// What it means that a netfilter socket cannot be opened.
pub(super) fn socket_error(source: io::Error) -> NftError {
    if source.raw_os_error() == Some(Errno::PROTONOSUPPORT.raw_os_error()) {
        let object = "the netlink socket".to_owned();
        return NftError::ModuleMissing { object, module: "nfnetlink", source };
    }
    NftError::Socket { source }
}

/// Reads an acknowledgement or error; `None` for any other message.
fn answer(message: &Received<'_>) -> Option<Answer> {
    if message.kind != KIND_ERROR {
        return None;
    }
    let (head, explanation) = message.payload.split_at_checked(ERROR_LEN)?;
    let errno = u32_at(head, 0)?.cast_signed().checked_neg()?;
    let mut answer =
        Answer { sequence: message.sequence, errno, offset: None, text: String::new() };
    if message.flags & FLAG_EXPLAINED != 0 {
        for (kind, value) in attributes(explanation) {
            match kind {
                EXPLANATION_OFFSET => answer.offset = u32_at(value, 0),
                EXPLANATION_TEXT => {
                    let text = String::from_utf8_lossy(value);
                    answer.text = format!(": {}", text.trim_end_matches('\0'));
                }
                _ => {}
            }
        }
    }
    Some(answer)
}

/// The error for a message that was refused.
fn refused(batch: &Batch, answer: Answer) -> NftError {
    let source = io::Error::from_raw_os_error(answer.errno);
    let step = batch.step(answer.sequence);
    let object = step.map_or("a message", |step| step.object.as_str()).to_owned();
    if step.is_some_and(|step| does_not_fit(step, answer.errno)) {
        return NftError::Changed { object, source };
    }
    let module = step.and_then(|step| missing_module(step, answer.errno, answer.offset));
    if let Some(module) = module {
        return NftError::ModuleMissing { object, module, source };
    }
    let mend = match Errno::from_raw_os_error(answer.errno) {
        Errno::PERM => "run viaductd as root, and see that no other process owns the table",
        _ => "see `nft list table inet viaduct` and the kernel's log",
    };
    NftError::Refused { object, source, detail: answer.text, mend }
}

/// Whether the answer means that elements, or the set itself, are not what we made them.
fn does_not_fit(step: &Step, errno: i32) -> bool {
    let differs = [Errno::NOENT, Errno::EXIST, Errno::BUSY];
    matches!(step.kind, Some(message::NEWSETELEM | message::DELSETELEM))
        && differs.contains(&Errno::from_raw_os_error(errno))
}

/// The module whose absence the answer to a message means, if it means one. The kernel has asked
/// modprobe for it by then.
fn missing_module(step: &Step, errno: i32, offset: Option<u32>) -> Option<&'static str> {
    let absent = [Errno::NOENT, Errno::OPNOTSUPP, Errno::AFNOSUPPORT];
    if !absent.contains(&Errno::from_raw_os_error(errno)) {
        return None;
    }
    match step.kind {
        // The frame is refused if the nf_tables subsystem is absent, the table if it was built
        // without CONFIG_NF_TABLES_INET.
        None | Some(message::NEWTABLE | message::NEWSET) => Some("nf_tables"),
        Some(message::NEWCHAIN) => Some("nft_chain_nat"),
        Some(message::NEWRULE) => Some(match step.expression_at(offset?)? {
            "masq" => "nft_masq",
            "ct" | "notrack" => "nft_ct",
            "fib" => "nft_fib_inet",
            "nat" => "nft_nat",
            _ => "nf_tables",
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A batch of one rule whose second expression, 28 bytes into the message, is `name`.
    fn batch_with(name: &'static str) -> Batch {
        let mut batch = Batch::begin();
        batch.add(message::NEWRULE, "a rule of chain postrouting".into(), |attributes| {
            attributes.mark_expression("meta");
            attributes.number(1, 0);
            attributes.mark_expression(name);
            attributes.number(1, 0);
        });
        batch.finish()
    }

    fn refusal(errno: Errno, sequence: u32, offset: Option<u32>) -> Answer {
        Answer { sequence, errno: errno.raw_os_error(), offset, text: String::new() }
    }

    #[test]
    fn an_unknown_expression_names_the_module_that_has_it() {
        for (name, module) in [
            ("masq", "nft_masq"),
            ("ct", "nft_ct"),
            ("fib", "nft_fib_inet"),
            ("nat", "nft_nat"),
            ("cmp", "nf_tables"),
        ] {
            let error = refused(&batch_with(name), refusal(Errno::NOENT, 1, Some(28)));
            assert!(error.to_string().contains(&format!("modprobe {module}")), "{error}");
            assert!(error.to_string().contains("a rule of chain postrouting"), "{error}");
        }
    }

    #[test]
    fn a_refusal_that_no_module_explains_names_none() {
        for answer in [
            refusal(Errno::NOENT, 1, None),
            refusal(Errno::NOENT, 1, Some(20 + 3)),
            refusal(Errno::INVAL, 1, Some(28)),
            refusal(Errno::NOENT, 77, Some(28)),
        ] {
            let error = refused(&batch_with("masq"), answer);
            assert!(matches!(error, NftError::Refused { .. }), "{error}");
        }
    }

    #[test]
    fn a_refused_frame_means_that_nf_tables_is_missing() {
        let error = refused(&batch_with("masq"), refusal(Errno::OPNOTSUPP, 0, None));
        assert!(error.to_string().contains("modprobe nf_tables"), "{error}");
    }

    #[test]
    fn elements_that_do_not_fit_are_told_from_other_refusals() {
        let mut batch = Batch::begin();
        batch.add(message::DELSETELEM, "the elements of set a".into(), |_| ());
        batch.add(message::NEWSET, "set b".into(), |_| ());
        let batch = batch.finish();
        let error = refused(&batch, refusal(Errno::NOENT, 1, None));
        assert!(matches!(error, NftError::Changed { .. }), "{error}");
        for answer in [refusal(Errno::INVAL, 1, None), refusal(Errno::EXIST, 2, None)] {
            let error = refused(&batch, answer);
            assert!(matches!(error, NftError::Refused { .. }), "{error}");
        }
    }

    #[test]
    fn missing_rights_are_named() {
        let error = refused(&batch_with("masq"), refusal(Errno::PERM, 0, None));
        assert!(error.to_string().contains("run viaductd as root"), "{error}");
    }

    #[test]
    fn a_short_or_absurd_answer_is_no_answer() {
        let message = |payload| Received {
            kind: KIND_ERROR,
            flags: FLAG_EXPLAINED,
            sequence: 1,
            port_id: 0,
            payload,
        };
        assert_eq!(answer(&message(&[0; 19])), None);
        let mut lowest = [0; 20];
        lowest[..4].copy_from_slice(&i32::MIN.to_ne_bytes());
        assert_eq!(answer(&message(&lowest)), None);
        assert!(answer(&message(&[0; 20])).is_some());
    }
}
