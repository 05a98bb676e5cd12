use super::*;

fn rule(priority: u32, verdict: Verdict) -> Policy {
    Policy { ipv6: false, priority, conditions: Vec::new(), iif: None, own_packets: false, verdict }
}

fn only(condition: &str, priority: u32, verdict: Verdict) -> Policy {
    Policy { conditions: vec![condition.to_owned()], ..rule(priority, verdict) }
}

#[test]
fn the_tables_of_unconditional_rules_stand_in_their_order_once() {
    let order = Order::of(&[
        rule(0, Verdict::Lookup(255)),
        rule(100, Verdict::Lookup(7)),
        rule(200, Verdict::Nop),
        rule(300, Verdict::Lookup(7)),
        rule(32766, Verdict::Lookup(254)),
        Policy { ipv6: true, ..rule(0, Verdict::Lookup(255)) },
    ]);
    assert_eq!((order.v4.as_slice(), order.v6.as_slice()), (&[255, 7, 254][..], &[255][..]));
    assert_eq!((order.len(), order.place(false, 254), order.place(true, 254)), (3, Some(2), None));
}

#[test]
fn a_rule_with_a_condition_is_passed_over() {
    let marked = only("fwmark 0x1", 100, Verdict::Lookup(7));
    let refused = only("iif lo", 230, Verdict::Refuse);
    let order = Order::of(&[marked, refused, rule(32766, Verdict::Lookup(254))]);
    assert_eq!(order.v4, [254]);
}

#[test]
fn a_goto_leads_on_and_one_without_target_is_passed_over() {
    let order = Order::of(&[
        rule(100, Verdict::Goto(300)),
        rule(200, Verdict::Lookup(7)),
        rule(300, Verdict::Goto(99)),
        rule(32766, Verdict::Lookup(254)),
    ]);
    assert_eq!(order.v4, [254]);
}

#[test]
fn behind_a_refusal_no_table_is_looked_into() {
    let order = Order::of(&[
        rule(0, Verdict::Lookup(255)),
        rule(100, Verdict::Refuse),
        rule(32766, Verdict::Lookup(254)),
    ]);
    assert_eq!(order.v4, [255]);
}
