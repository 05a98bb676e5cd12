//! The table, one file per section of the checklist, and the few steps that several files share.

mod add;
mod arguments;
mod bandwidth;
mod check;
mod del;
mod environment;
mod gc;
mod ipam;
mod port_mappings;
mod process;
mod result;
mod status;
mod stdin;
mod version;

use serde_json::Value;

use super::answer::{self, ErrorObject};
use super::attached::Snapshot;
use super::case::{Case, Checked};
use super::trial::{Container, Trial};
use crate::plugin::Invocation;

/// Every row, in the order of the checklist.
pub fn all() -> Vec<Case> {
    let mut cases: Vec<Case> = [
        environment::cases(),
        process::cases(),
        stdin::cases(),
        version::cases(),
        add::cases(),
        result::cases(),
        ipam::cases(),
        del::cases(),
        check::cases(),
        status::cases(),
        gc::cases(),
        arguments::cases(),
        port_mappings::cases(),
        bandwidth::cases(),
    ]
    .into_iter()
    .flatten()
    .collect();
    cases.sort_by_key(|case| case.line); // stable: within a line the order of the files stays
    cases
}

/// The call must be refused with one of these codes (any, when empty), and must leave the
/// container and the node as they were.
fn refused(
    trial: &Trial,
    container: &Container,
    invocation: &Invocation,
    codes: &[u64],
) -> Checked<ErrorObject> {
    let before = Snapshot::of(&trial.node, container)?;
    let what = invocation.command.as_deref().unwrap_or("a call without CNI_COMMAND");
    let error = answer::error(&trial.ask(invocation)?, what, codes)?;
    before.holds_again(&trial.node, container)?;
    Ok(error)
}

/// The call must be answered: with success or with a proper error. Whatever it is, DEL must then
/// succeed and leave nothing. Returns whether it was a success.
fn answered(trial: &Trial, container: &Container, invocation: &Invocation) -> Checked<bool> {
    let before = Snapshot::of(&trial.node, container)?;
    let outcome = trial.ask(invocation)?;
    let success = outcome.code == Some(0);
    if success {
        let result = answer::result(&outcome, "ADD")?;
        trial.del(container, &result)?;
    } else {
        answer::error(&outcome, "ADD", &[])?;
    }
    before.holds_again(&trial.node, container)?;
    Ok(success)
}

/// ADD of a new container; both.
fn attached(trial: &Trial) -> Checked<(std::sync::Arc<Container>, Value)> {
    let container = trial.container()?;
    let result = trial.add(&container)?;
    Ok((container, result))
}

/// Puts a stranger's device where ADD wants to put its own.
fn occupy(container: &Container) -> Checked {
    let ifname = container.ifname.as_str();
    let peer = ["type", "veth", "peer", "name", "stranger"];
    container.netns.ip(&[&["link", "add", ifname], &peer[..]].concat())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_are_unique_and_begin_with_their_line() {
        let cases = all();
        let ids: BTreeSet<&str> = cases.iter().map(|case| case.id.as_str()).collect();
        assert_eq!(ids.len(), cases.len());
        for case in &cases {
            assert!(case.id.starts_with(&format!("b{:02}-", case.line)), "{}", case.id);
            assert!(
                case.id.bytes().all(|b| b.is_ascii_lowercase()
                    || b.is_ascii_digit()
                    || b == b'-'
                    || b == b'.'),
                "{}",
                case.id
            );
        }
    }

    #[test]
    fn every_line_that_can_be_asked_from_outside_is_asked() {
        // 11: replacing a binary is the installer's. 24, 28: need a daemon to stop. 26, 30: need
        // traffic. 31 is asked as far as ids go.
        let beyond = [11, 24, 26, 28, 30];
        let asked: BTreeSet<u8> = all().iter().map(|case| case.line).collect();
        let wanted: BTreeSet<u8> = (1..=38).filter(|line| !beyond.contains(line)).collect();
        assert_eq!(asked, wanted);
    }
}
