//! DEL and GC: what is gone stays gone, what fails is tried again, and a daemon that is away is no
//! reason to keep a pod from being deleted.

use super::Invocation;
use super::attach::{transport_error, unexpected_reply};
use crate::client::{self, ClientError};
use crate::ipam::Delegate;
use crate::protocol::{Call, DelRequest, GcRequest, Reply};
use crate::queue;
use crate::spec::{CniError, Verb, code};

/// Carries out DEL: ours first, so that no address is free for others while a pod still has it.
/// Neither the namespace nor prevResult is looked at; both may be gone.
pub(super) fn del(invocation: &Invocation) -> Result<(), CniError> {
    let Invocation { environment, conf, stdin } = invocation;
    tell_or_queue(invocation)?;
    match Delegate::find(conf, environment, stdin)? {
        Some(delegate) => delegate.run(Verb::Del),
        None => Ok(()),
    }
}

/// Tells the daemon to detach, or notes it for the daemon's next start.
pub(super) fn tell_or_queue(invocation: &Invocation) -> Result<(), CniError> {
    let error = match tell(invocation) {
        Ok(answer) => return answer,
        Err(error @ ClientError::Path { .. }) => return Err(transport_error(&error)),
        Err(error) => error,
    };
    let dir = queue::directory(&invocation.conf.socket);
    queue::push(&dir, &request(invocation)).map_err(|full| {
        CniError::new(code::TRY_AGAIN, error.to_string()).with_details(full.to_string())
    })?;
    // The daemon drains the queue after it has bound its socket. Had it done both between our call
    // and our note, the note would wait for its next start; then it answers now.
    if matches!(error, ClientError::Unreachable { .. })
        && let Ok(answer) = tell(invocation)
    {
        return answer;
    }
    Ok(())
}

/// Tells the daemon to detach, and forgets the note of an earlier DEL when it has. The outer error
/// is that the daemon was not told.
pub(super) fn tell(invocation: &Invocation) -> Result<Result<(), CniError>, ClientError> {
    let call = Call::Del(request(invocation));
    let answer = match client::ask(&invocation.conf.socket, call, None, client::DEADLINE)? {
        Reply::Done => {
            let dir = queue::directory(&invocation.conf.socket);
            let attachment = invocation.environment.attachment(&invocation.conf);
            queue::remove(&dir, &attachment)
                .map_err(|error| CniError::new(code::IO, error.to_string()))
        }
        Reply::Error(error) => Err(error.into()),
        _ => Err(unexpected_reply(Verb::Del)),
    };
    Ok(answer)
}

fn request(invocation: &Invocation) -> DelRequest {
    DelRequest { attachment: invocation.environment.attachment(&invocation.conf) }
}

/// Carries out GC, by the daemon and by the delegate, whichever fails.
pub(super) fn gc(invocation: &Invocation) -> Result<(), CniError> {
    let Invocation { environment, conf, stdin } = invocation;
    let valid = conf.valid_attachments()?;
    let call = Call::Gc(GcRequest { network: conf.name.clone(), valid });
    let ours = match client::ask(&conf.socket, call, None, client::DEADLINE) {
        Ok(Reply::Done) => Ok(()),
        Ok(Reply::Error(error)) => Err(error.into()),
        Ok(_) => Err(unexpected_reply(Verb::Gc)),
        Err(error) => Err(transport_error(&error)),
    };
    let theirs = match Delegate::find(conf, environment, stdin) {
        Ok(Some(delegate)) => delegate.run(Verb::Gc),
        Ok(None) => Ok(()),
        Err(error) => Err(error),
    };
    match (ours, theirs) {
        (Err(ours), Err(theirs)) => Err(ours.with_details(format!("IPAM: {theirs}"))),
        (ours, theirs) => ours.and(theirs),
    }
}
