//! Line 33: STATUS says whether an ADD would work now.

use super::attached;
use crate::conformance::answer;
use crate::conformance::case::{Case, Need, case};

/// The rows.
pub fn cases() -> Vec<Case> {
    vec![
        case("b33-ready").says("STATUS of a plugin that works is silent, exit 0").ask(|t| {
            let outcome = t.ask(&t.network_invocation("STATUS", &t.conf()))?;
            t.note(format!("STATUS took {} ms", outcome.took.as_millis()));
            answer::silent(&outcome, "STATUS")
        }),
        case("b33-without-path").says("STATUS needs no CNI_PATH").ask(|t| {
            let mut call = t.network_invocation("STATUS", &t.conf());
            call.set("CNI_PATH", None);
            answer::silent(&t.ask(&call)?, "STATUS without CNI_PATH")
        }),
        case("b33-agrees-with-add").says("after a STATUS of success an ADD works").ask(|t| {
            answer::silent(&t.ask(&t.network_invocation("STATUS", &t.conf()))?, "STATUS")?;
            attached(t).map(|_| ())
        }),
    ]
    .into_iter()
    .map(|case| case.needs(Need::Verb("STATUS")))
    .collect()
}
