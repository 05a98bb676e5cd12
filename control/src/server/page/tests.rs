//! Pages against the whole listing, also one that changes while it is read.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Bound;
use std::time::Instant;

use cni_bridge::frame::encode;
use ipnet::IpNet;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::report::RouteRow;

/// Rows by their keys.
type Rows = BTreeMap<(u8, String), String>;

/// One page of `rows`.
fn page_of(rows: &Rows, after: Option<&str>) -> Reply {
    page(after, |after: Option<(u8, String)>| {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let rows = rows.range((from, Bound::Unbounded));
        rows.map(|(key, text)| (key.clone(), json!({"key": key, "text": text})))
    })
}

/// All rows as a reader gets them; `between` is called before each page but the first.
fn read(rows: &mut Rows, mut between: impl FnMut(&mut Rows)) -> Vec<Value> {
    let mut seen = Vec::new();
    let mut after: Option<String> = None;
    loop {
        let reply = page_of(rows, after.as_deref());
        encode(&reply).expect("a page fits in a frame");
        match reply {
            Reply::Page { rows: page, next } => {
                assert!(!page.is_empty(), "every page goes on");
                seen.extend(page);
                after = Some(next);
            }
            Reply::Listing(Value::Array(rest)) => {
                seen.extend(rest);
                return seen;
            }
            other => panic!("{other:?} is no page"),
        }
        between(rows);
    }
}

fn keys(seen: &[Value]) -> Vec<(u8, String)> {
    seen.iter().map(|row| serde_json::from_value(row["key"].clone()).expect("a key")).collect()
}

/// Keys and texts whose JSON is longer than they are, and texts so long that a few fill a page.
fn row() -> impl Strategy<Value = ((u8, String), String)> {
    let name = prop_oneof![Just(String::new()), "[a-c\"\\\\]{1,40}"];
    let text = prop_oneof![
        "[a-z]{0,20}",
        (0..40_000_usize).prop_map(|length| "x".repeat(length)),
        (0..15_000_usize).prop_map(|length| "\"".repeat(length)),
    ];
    ((any::<u8>(), name), text)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn pages_one_after_another_are_the_whole_listing(
        rows in prop::collection::btree_map(any::<u8>(), row(), 0..60),
    ) {
        let mut rows: Rows = rows.into_values().collect();
        let whole: Vec<Value> =
            rows.iter().map(|(key, text)| json!({"key": key, "text": text})).collect();
        prop_assert!(read(&mut rows, |_| ()) == whole);
    }

    #[test]
    fn what_stays_while_a_listing_is_read_is_shown_once_and_nothing_twice(
        rows in prop::collection::vec(row(), 20..60),
        changes in prop::collection::vec((row(), any::<prop::sample::Index>()), 0..40),
    ) {
        let mut rows: Rows = rows.into_iter().collect();
        let mut stayed: BTreeSet<(u8, String)> = rows.keys().cloned().collect();
        let mut ever = stayed.clone();
        let mut changes = changes.into_iter();
        let seen = read(&mut rows, |rows| {
            for ((key, text), gone) in changes.by_ref().take(4) {
                let gone = rows.keys().nth(gone.index(rows.len())).expect("below the length").clone();
                rows.remove(&gone);
                stayed.remove(&gone);
                ever.insert(key.clone());
                rows.insert(key, text);
            }
        });
        let seen = keys(&seen);
        prop_assert!(seen.is_sorted_by(|one, next| one < next), "{:?}", seen);
        let seen: BTreeSet<_> = seen.into_iter().collect();
        prop_assert!(seen.is_superset(&stayed));
        prop_assert!(seen.is_subset(&ever));
    }
}

#[test]
fn a_listing_that_fits_in_a_page_is_one_reply_and_one_byte_more_makes_two_pages() {
    let half = "x".repeat(PAGE_BYTES_MAX / 2);
    let filled = |bytes: usize| -> Rows {
        [((0, String::new()), half.clone()), ((1, String::new()), "x".repeat(bytes))].into()
    };
    let around = PAGE_BYTES_MAX - half.len();
    let fits = |bytes: &usize| matches!(page_of(&filled(*bytes), None), Reply::Listing(_));
    let longest = (around - 150..around).take_while(fits).last().expect("the shortest one fits");
    let Reply::Page { rows, next } = page_of(&filled(longest + 1), None) else {
        panic!("it does not fit");
    };
    assert_eq!((rows.len(), next.as_str()), (1, "[0,\"\"]"));
}

#[test]
fn a_page_asks_only_for_the_rows_it_takes() {
    let mut asked = 0;
    let reply = page(None, |_: Option<u32>| {
        (0..1_000_000_u32).map(|key| {
            asked += 1;
            (key, "x".repeat(1000))
        })
    });
    let Reply::Page { rows, next } = reply else { panic!("a gigabyte fits in no page") };
    assert_eq!(asked, rows.len() + 1, "one more to see that it does not fit");
    assert_eq!(next, (rows.len() - 1).to_string());
}

#[test]
#[ignore = "measures; run alone with --release and --nocapture"]
fn a_page_of_routes_takes_the_control_thread_some_milliseconds() {
    let route = |number: u32| RouteRow {
        dst: IpNet::new(Ipv4Addr::from(number << 8).into(), 24).expect("a prefix"),
        via: Some(Ipv4Addr::from(0xc000_0201).into()),
        dev: "eth1".to_owned(),
        port: Some(4001),
        source: "bgp".to_owned(),
        hops: Vec::new(),
    };
    let mut times_us: Vec<u128> = Vec::new();
    let (mut after, mut rows) = (None::<String>, 0);
    loop {
        let start = Instant::now();
        let reply = page(after.as_deref(), |after: Option<RouteRow>| {
            let first = after.map_or(0, |after| match after.dst.addr() {
                IpAddr::V4(address) => (u32::from(address) >> 8) + 1,
                IpAddr::V6(_) => unreachable!("there are none"),
            });
            (first..1_000_000).map(|number| (route(number), route(number)))
        });
        let frame = encode(&reply).expect("a page fits in a frame");
        times_us.push(start.elapsed().as_micros());
        assert!(frame.len() <= FRAME_BYTES_MAX + 4);
        match reply {
            Reply::Page { rows: page, next } => (rows, after) = (rows + page.len(), Some(next)),
            Reply::Listing(rest) => {
                rows += rest.as_array().expect("an array").len();
                break;
            }
            other => panic!("{other:?} is no page"),
        }
    }
    assert_eq!(rows, 1_000_000);
    let (pages, sum) = (times_us.len(), times_us.iter().sum::<u128>());
    times_us.sort_unstable();
    println!(
        "{pages} pages, {sum} us, median {} us, max {} us",
        times_us[pages / 2],
        times_us[pages - 1]
    );
}

#[test]
fn a_row_that_is_longer_than_a_page_is_a_page_of_its_own() {
    let mut rows: Rows = [0, 1, 2]
        .map(|key| ((key, String::new()), "x".repeat(usize::from(key % 2) * 2 * PAGE_BYTES_MAX)))
        .into();
    assert_eq!(read(&mut rows, |_| ()).len(), 3);
    let Reply::Page { rows: second, .. } = page_of(&rows, Some("[0,\"\"]")) else {
        panic!("a third row is left");
    };
    assert_eq!(second.len(), 1);
}

#[test]
fn a_row_that_fits_in_no_frame_does_not_stop_the_rest() {
    let long = "x".repeat(FRAME_BYTES_MAX + 1);
    let rows: Rows =
        [((0, String::new()), long), ((1, String::new()), String::new())].into_iter().collect();
    let first = page_of(&rows, None);
    assert!(encode(&first).is_err(), "whoever asked is told so");
    let Reply::Page { next, .. } = first else { panic!("another row is left") };
    assert!(matches!(page_of(&rows, Some(&next)), Reply::Listing(_)));
}

#[test]
fn what_is_no_end_of_a_page_is_refused_with_the_mend() {
    for after in ["", "{", "7", "[0]", "[0,\"\",1]", "null"] {
        let Reply::Error(error) = page_of(&Rows::new(), Some(after)) else {
            panic!("{after} is taken for a key");
        };
        assert_eq!(error.code, code::DECODE);
        assert!(error.msg.contains("list it anew"), "{}", error.msg);
    }
}

#[test]
fn a_sieved_listing_goes_on_after_so_many_rows_of_either_kind() {
    let wanted = |number: u32| number.is_multiple_of(100);
    let rows = |after: Option<u32>| {
        let first = after.map_or(0, |number| number + 1);
        (first..1000).map(move |number| (number, wanted(number).then_some(number)))
    };
    let (mut seen, mut pages, mut after) = (Vec::new(), 0, None::<String>);
    loop {
        pages += 1;
        match sieved_page(after.as_deref(), 64, rows) {
            Reply::Page { rows, next } => {
                assert!(after.as_ref() != Some(&next), "every page goes on");
                seen.extend(rows);
                after = Some(next);
            }
            Reply::Listing(Value::Array(rest)) => {
                seen.extend(rest);
                break;
            }
            other => panic!("{other:?} is no page"),
        }
    }
    assert_eq!(json!(seen), json!((0..1000_u32).filter(|n| wanted(*n)).collect::<Vec<_>>()));
    assert_eq!(pages, 1000 / 64 + 1, "a page is 64 rows that were looked at");
}
