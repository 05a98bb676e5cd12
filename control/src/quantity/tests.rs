//! Quantities as Kubernetes reads them, and against exact arithmetic on their digits.

use proptest::prelude::*;

use super::*;

fn read(text: &str) -> Result<u64, QuantityError> {
    text.parse().map(|Quantity(value)| value)
}

#[test]
fn quantities_are_read_as_kubernetes_reads_them() {
    for (text, value) in [
        ("1", 1),
        ("10M", 10_000_000),
        ("10Mi", 10_485_760),
        ("1500k", 1_500_000),
        ("1.5G", 1_500_000_000),
        ("1.5Ki", 1536),
        ("0.5Gi", 1 << 29),
        ("2T", 2_000_000_000_000),
        ("1P", 1_000_000_000_000_000),
        ("18E", 18_000_000_000_000_000_000),
        ("15Ei", 15 << 60),
        ("12e6", 12_000_000),
        ("12E6", 12_000_000),
        ("1e+3", 1000),
        ("5000e-3", 5),
        ("1000m", 1),
        ("3000000u", 3),
        ("2000000000n", 2),
        ("+7", 7),
        ("007", 7),
        (".5k", 500),
        ("5.", 5),
        ("18446744073709551615", u64::MAX),
        ("000000000000000000000000000001.000000000000000000000000000", 1),
    ] {
        assert_eq!(read(text), Ok(value), "{text}");
    }
}

#[test]
fn what_is_between_two_whole_numbers_is_rounded_up() {
    for (text, value) in
        [("1.1", 2), ("1.0000000000000000001", 2), ("1001m", 2), ("1.5", 2), ("1.0005k", 1001)]
    {
        assert_eq!(read(text), Ok(value), "{text}");
    }
}

#[test]
fn less_than_one_is_refused_and_not_rounded_up() {
    let texts =
        "0|0M|0.0|-1|-10M|-0|100m|0.1|0.999999999|999m|1n|1e-3|1e-30|9e-40|1e-99999999999999";
    for text in texts.split('|') {
        assert_eq!(read(text), Err(QuantityError::BelowOne), "{text}");
    }
}

#[test]
fn what_does_not_fit_is_refused_and_not_cut_off() {
    for text in [
        "18446744073709551616",
        "18446744073709551615.1",
        "18.5E",
        "16Ei",
        "1e20",
        "1e40",
        "1e2147483648",
        "1e99999999999999",
        "99999999999999999999Ei",
        "123456789012345678901",
        "1.23456789012345678901",
    ] {
        assert_eq!(read(text), Err(QuantityError::TooLarge), "{text}");
    }
}

#[test]
fn other_texts_are_no_quantities() {
    let texts = "|M|.|+|-|-M|1.2.3|1..2|10 M| 10M|10M |10MM|10K|10mi|10mb|10Mbit|10Mbps|10M/s|1e|1e+|\
                 1e3k|1e 3|e3|0x10|1_000|1,5|١|none|--1|+-1|NaN|inf";
    for text in texts.split('|') {
        assert_eq!(read(text), Err(QuantityError::Malformed), "{text}");
    }
    assert!(QuantityError::Malformed.to_string().contains("10M"));
}

#[test]
fn numbers_are_printed_short_and_without_loss() {
    for (value, text) in [
        (0, "0"),
        (1, "1"),
        (999, "999"),
        (1000, "1k"),
        (1024, "1Ki"),
        (1_500_000, "1500k"),
        (10_000_000, "10M"),
        (10_485_760, "10Mi"),
        (1_024_000, "1024k"),
        (1_000_000_000, "1G"),
        (1_234_567, "1234567"),
        (u64::MAX, "18446744073709551615"),
        (1 << 63, "8Ei"),
    ] {
        assert_eq!(Quantity(value).to_string(), text);
    }
}

/// The value of these digits by schoolbook arithmetic on decimal digits, with no number wider than
/// one digit and a carry: `whole.fraction · 10^power · 2^doublings`, rounded up.
fn oracle(whole: &str, fraction: &str, power: i32, doublings: u32) -> Option<u64> {
    // Least significant digit first; `point` digits stand behind the point.
    let mut digits: Vec<u32> =
        format!("{whole}{fraction}").chars().rev().filter_map(|c| c.to_digit(10)).collect();
    for _ in 0..doublings {
        let mut carry = 0;
        for digit in &mut digits {
            let doubled = *digit * 2 + carry;
            (*digit, carry) = (doubled % 10, doubled / 10);
        }
        digits.push(carry);
    }
    let point = fraction.len() as i32 - power;
    let at = |place: i32| usize::try_from(place).ok().and_then(|p| digits.get(p)).copied();
    let rest = (0..point).any(|place| at(place).unwrap_or(0) > 0);
    let top = digits.len() as i32;
    let whole: Vec<u32> =
        (point..top.max(point + 1)).rev().map(|place| at(place).unwrap_or(0)).collect();
    let fold = |sum: u128, digit: &u32| sum.checked_mul(10)?.checked_add(u128::from(*digit));
    let floor = whole.iter().try_fold(0_u128, fold)?;
    if floor == 0 {
        return None;
    }
    u64::try_from(floor + u128::from(rest)).ok()
}

proptest! {
    #[test]
    fn reading_is_exact_arithmetic(
        whole in "[0-9]{1,12}",
        fraction in "[0-9]{0,8}",
        (suffix, power, doublings) in prop_oneof![
            Just((String::new(), 0, 0)),
            prop::sample::select(&DECIMAL).prop_map(|(name, power)| (name.to_owned(), power, 0)),
            prop::sample::select(&BINARY).prop_map(|(name, power)| (name.to_owned(), 0, power)),
            (-12..12).prop_map(|power: i32| (format!("e{power}"), power, 0)),
        ],
    ) {
        let text = format!("{whole}.{fraction}{suffix}");
        prop_assert_eq!(read(&text).ok(), oracle(&whole, &fraction, power, doublings), "{}", text);
    }

    #[test]
    fn what_is_printed_reads_back_as_itself(
        value in prop_oneof![
            1..=u64::MAX,
            (1..10_000_u64, 0..5_u32).prop_map(|(n, k)| n * 1000_u64.pow(k)),
            (1..1000_u64, 0..6_u32).prop_map(|(n, k)| n << (10 * k)),
        ],
    ) {
        prop_assert_eq!(read(&Quantity(value).to_string()), Ok(value));
    }

    #[test]
    fn no_text_makes_the_reader_panic(text in "\\PC{0,40}", numeric in "[-+.0-9eEkMGi]{0,60}") {
        let _ = read(&text);
        let _ = read(&numeric);
    }
}
