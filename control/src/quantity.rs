//! Numbers as Kubernetes writes them: `10M` is ten million, `10Mi` is 10 · 2^20.
//!
//! Rates and bursts are asked for in pods' annotations this way, so the command line reads and
//! prints them the same. What is read is rounded up to a whole number, like `Quantity.Value` does
//! (k8s.io/apimachinery, `pkg/api/resource`); what is printed reads back as itself.

use std::fmt;
use std::str::FromStr;

/// Binary suffixes, each with its power of two.
const BINARY: [(&str, u32); 6] =
    [("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];

/// Decimal suffixes, each with its power of ten.
const DECIMAL: [(&str, i32); 9] = [
    ("n", -9),
    ("u", -6),
    ("m", -3),
    ("k", 3),
    ("M", 6),
    ("G", 9),
    ("T", 12),
    ("P", 15),
    ("E", 18),
];

/// Most digits that count, as many as 2^64 has: with a binary suffix they stay below 2^128.
const DIGITS_MAX: usize = 20;

/// A whole number, at least 1 when it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Quantity(pub u64);

/// Why a text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// It is written in another way.
    #[error("it is no quantity; write a number and perhaps a unit, as in 10M, 1500k, 1.5G or 10Mi")]
    Malformed,
    /// It is 0, negative or a fraction.
    #[error("it is less than 1; write 1 or more (m is a thousandth, M a million)")]
    BelowOne,
    /// It is above 2^64 - 1, or has more digits than anybody can mean.
    #[error("it does not fit; write at most {} and {DIGITS_MAX} digits", u64::MAX)]
    TooLarge,
}

impl FromStr for Quantity {
    type Err = QuantityError;

    /// Reads a sign, digits with or without a point among them, and a suffix: none, one of
    /// `n u m k M G T P E`, one of `Ki Mi Gi Ti Pi Ei`, or an exponent such as `e6` (`E6` too).
    fn from_str(text: &str) -> Result<Quantity, QuantityError> {
        let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let end = unsigned.find(|c| !is_number(c)).unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.len() + fraction.len() == 0 || fraction.contains('.') {
            return Err(QuantityError::Malformed);
        }
        let (power_of_two, power_of_ten) = powers(suffix).ok_or(QuantityError::Malformed)?;
        if text.starts_with('-') {
            return Err(QuantityError::BelowOne);
        }
        let fraction = fraction.trim_end_matches('0');
        let digits = format!("{whole}{fraction}");
        let digits = digits.trim_start_matches('0');
        if digits.is_empty() {
            return Err(QuantityError::BelowOne);
        }
        if digits.len() > DIGITS_MAX {
            return Err(QuantityError::TooLarge);
        }
        let digits: u128 = digits.parse().expect("at most 20 digits fit in 128 bits");
        let power_of_ten = i64::from(power_of_ten) - fraction.len() as i64;
        scale(digits << power_of_two, power_of_ten).map(Quantity)
    }
}

/// `number · 10^power`, rounded up.
fn scale(number: u128, power: i64) -> Result<u64, QuantityError> {
    let ten = u32::try_from(power.unsigned_abs()).ok().and_then(|power| 10_u128.checked_pow(power));
    let scaled = match (ten, power.is_negative()) {
        // 10^39 and more: whatever is divided by it is below 1, whatever is multiplied too large.
        (None, true) => return Err(QuantityError::BelowOne),
        (None, false) => None,
        (Some(ten), true) if number < ten => return Err(QuantityError::BelowOne),
        (Some(ten), true) => Some(number.div_ceil(ten)),
        (Some(ten), false) => number.checked_mul(ten),
    };
    scaled.and_then(|scaled| u64::try_from(scaled).ok()).ok_or(QuantityError::TooLarge)
}

/// The powers of two and of ten that a suffix stands for.
fn powers(suffix: &str) -> Option<(u32, i32)> {
    if suffix.is_empty() {
        return Some((0, 0));
    }
    if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == suffix) {
        return Some((0, *power));
    }
    if let Some((_, power)) = BINARY.iter().find(|(name, _)| *name == suffix) {
        return Some((*power, 0));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?;
    let digits = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // An exponent that does not fit is beyond all bounds, whatever it is.
    let beyond = if exponent.starts_with('-') { i32::MIN } else { i32::MAX };
    Some((0, exponent.parse().unwrap_or(beyond)))
}

/// Without loss and short: `10M`, `1500k`, `10Mi`.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Quantity(value) = *self;
        let decimal =
            DECIMAL.iter().rev().filter(|(_, power)| *power > 0).find_map(|(name, power)| {
                let unit = 10_u64.pow(power.unsigned_abs());
                (value != 0 && value.is_multiple_of(unit))
                    .then(|| format!("{}{name}", value / unit))
            });
        let decimal = decimal.unwrap_or_else(|| value.to_string());
        let binary = BINARY.iter().rev().find_map(|(name, power)| {
            let unit = 1_u64 << power;
            (value != 0 && value.is_multiple_of(unit)).then(|| format!("{}{name}", value / unit))
        });
        // 1024000 is 1024k, not 1000Ki: people think in thousands unless the other is shorter.
        f.write_str(
            binary.filter(|binary| binary.len() < decimal.len()).as_ref().unwrap_or(&decimal),
        )
    }
}

#[cfg(test)]
mod tests;
