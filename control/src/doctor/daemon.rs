//! What a daemon that runs says of itself. One that does not run is no finding: the other checks
//! say why it cannot.

use super::Row;
use super::facts::Facts;
use crate::report::WorkerRow;

/// The daemon answers, in this network namespace, and has nothing to complain about.
pub(super) fn daemon(facts: &Facts) -> Vec<Row> {
    const CHECK: &str = "daemon";
    let socket = facts.daemon.socket.display();
    let status = match (&facts.daemon.status, &facts.daemon.here) {
        (Ok(status), _) => status,
        (Err(why), Ok(true)) => {
            let found = format!("a viaductd runs in this network namespace, but {why}");
            let mend = "name its socket with --socket; if it is the right one, see its log";
            return vec![Row::amiss(CHECK, found, mend)];
        }
        (Err(why), _) => return vec![Row::unknown(CHECK, why, "start viaductd")],
    };
    let mut findings = Vec::new();
    if facts.daemon.here == Ok(false) {
        let found =
            format!("the viaductd on {socket} runs in another network namespace than this check");
        let mend = "nsenter --net=/proc/PID/ns/net viaduct doctor, with the process id of viaductd";
        findings.push(Row::amiss(CHECK, found, mend));
    }
    for problem in &status.problems {
        // The daemon's sentences name what to do at their end.
        let problem = problem.as_str();
        let parts = problem.split_once("; ").or_else(|| problem.split_once(": "));
        let (found, mend) = parts.unwrap_or((problem, "see viaductd's log"));
        findings.push(Row::amiss(CHECK, found, mend));
    }
    if !status.ready && status.problems.is_empty() {
        let found = format!("viaductd on {socket} is still starting");
        findings.push(Row::amiss(CHECK, found, "wait, or look at its log"));
    }
    findings.extend(status.workers.iter().filter(|worker| !lawful(worker)).map(|worker| {
        let found = format!("worker {} has lost track of frames or packets", worker.id);
        Row::amiss(CHECK, found, "report this as a bug, with what viaduct status --json prints")
    }));
    Row::all_or(findings, || {
        let workers = status.workers.len();
        let found = format!("viaductd {} is ready, no worker of {workers} hangs", status.version);
        Row::well(CHECK, found)
    })
}

fn lawful(worker: &WorkerRow) -> bool {
    worker.frames.conserved() && worker.packets.conserved()
}
