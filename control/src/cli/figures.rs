//! Numbers as people read them: three digits and a unit. `--json` has them whole.

/// Powers of 1000, as network people count.
const PREFIXES: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];

/// Counts up to this many stand as they are.
const WHOLE_MAX: u64 = 99_999;

/// Three significant digits and the prefix.
fn shortened(value: u64) -> (String, &'static str) {
    let mut scaled = value as f64;
    let mut prefix = 0;
    // From here on three digits would be rounded to 1000.
    while scaled >= 999.5 {
        scaled /= 1000.0;
        prefix += 1;
    }
    let decimals = match scaled {
        _ if prefix == 0 => 0,
        ..9.995 => 2,
        ..99.95 => 1,
        _ => 0,
    };
    // 2^64 is 18.4 E.
    (format!("{scaled:.decimals$}"), PREFIXES[prefix])
}

/// A number of things: `1.23M`.
pub(super) fn count(value: u64) -> String {
    if value <= WHOLE_MAX {
        return value.to_string();
    }
    let (digits, prefix) = shortened(value);
    format!("{digits}{prefix}")
}

/// A number of bytes: `1.23 MB`.
pub(super) fn bytes(value: u64) -> String {
    let (digits, prefix) = shortened(value);
    format!("{digits} {prefix}B")
}

/// A share of 1: `44%`.
pub(super) fn percent(ratio: f64) -> String {
    format!("{:.0}%", ratio * 100.0)
}

/// A time in its two largest units: `3d 4h`.
pub(super) fn duration(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, _, _) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_whole_while_they_are_short() {
        assert_eq!(count(0), "0");
        assert_eq!(count(99_999), "99999");
        assert_eq!(count(100_000), "100k");
        assert_eq!(count(1_234_567), "1.23M");
        assert_eq!(count(u64::MAX), "18.4E");
    }

    #[test]
    fn rounding_up_to_a_thousand_takes_the_next_unit() {
        assert_eq!(count(999_499), "999k");
        assert_eq!(count(999_500), "1.00M");
        assert_eq!(count(9_994_999), "9.99M");
        assert_eq!(count(9_995_000), "10.0M");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1000), "1.00 kB");
        assert_eq!(bytes(71_604_886_000), "71.6 GB");
    }

    #[test]
    fn durations_have_two_units() {
        assert_eq!(duration(0), "0s");
        assert_eq!(duration(59), "59s");
        assert_eq!(duration(60), "1m 0s");
        assert_eq!(duration(3_599), "59m 59s");
        assert_eq!(duration(3_600), "1h 0m");
        assert_eq!(duration(273_845), "3d 4h");
    }
}
