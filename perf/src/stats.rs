//! Medians, percentiles and ratios of measured figures. What was not measured is not a number
//! (NaN): it meets no target, and JSON writes `null`.

use std::time::Duration;

use serde::Serialize;

/// The middle of `values`, or the mean of the two middle ones. NaN for none, and where one of them
/// was not measured.
pub fn median(values: &[f64]) -> f64 {
    let sorted = sorted(values);
    match sorted.len().checked_sub(1) {
        Some(last) if !values.iter().any(|value| value.is_nan()) => {
            (sorted[last / 2] + sorted[last.div_ceil(2)]) / 2.0
        }
        _ => f64::NAN,
    }
}

fn sorted(values: &[f64]) -> Vec<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

/// The smallest value that at least `share` (0 to 1) of the values do not exceed (nearest rank).
/// NaN for none.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

/// How long something took, over many times.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Times {
    /// How many times.
    pub count: usize,
    /// Median, in microseconds.
    pub p50_us: f64,
    /// 99th percentile, in microseconds.
    pub p99_us: f64,
    /// 99.9th percentile, in microseconds.
    pub p999_us: f64,
    /// The longest, in microseconds.
    pub max_us: f64,
}

impl Times {
    /// Sums up `samples`.
    pub fn of(samples: &[Duration]) -> Times {
        let micros: Vec<f64> = samples.iter().map(|sample| sample.as_secs_f64() * 1e6).collect();
        let sorted = sorted(&micros);
        Times {
            count: sorted.len(),
            p50_us: percentile(&sorted, 0.5),
            p99_us: percentile(&sorted, 0.99),
            p999_us: percentile(&sorted, 0.999),
            max_us: percentile(&sorted, 1.0),
        }
    }
}

/// Figures of one arm against those of another, turn by turn: what the machine did to one turn it
/// did to the other, too.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// `measured/baseline`, by their names.
    pub of: String,
    /// Median of the ratios of the turns.
    pub median: f64,
    /// The ratio of every turn.
    pub turns: Vec<f64>,
}

impl Ratio {
    /// Compares turn by turn. A turn whose baseline is zero says nothing and is left out; where a
    /// turn was not measured, there is no median.
    pub fn of(measured: (&str, &[f64]), baseline: (&str, &[f64])) -> Ratio {
        let turns: Vec<f64> = std::iter::zip(measured.1, baseline.1)
            .filter(|(_, baseline)| **baseline > 0.0 || baseline.is_nan())
            .map(|(measured, baseline)| measured / baseline)
            .collect();
        Ratio { of: format!("{} / {}", measured.0, baseline.0), median: median(&turns), turns }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn without_figures_there_is_no_median_no_percentile_and_no_ratio() {
        assert!(median(&[]).is_nan() && median(&[1.0, -f64::NAN, 2.0]).is_nan());
        assert!(percentile(&[], 0.5).is_nan() && Times::of(&[]).max_us.is_nan());
        let ratio =
            |measured: &[f64], baseline: &[f64]| Ratio::of(("a", measured), ("b", baseline)).median;
        assert!(ratio(&[1.0], &[0.0]).is_nan());
        assert!(ratio(&[1.0, 2.0, 3.0], &[1.0, f64::NAN, 1.0]).is_nan());
        assert!(ratio(&[1.0, f64::NAN, 3.0], &[1.0, 2.0, 1.0]).is_nan());
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&values, 0.5), 50.0);
        assert_eq!(percentile(&values, 0.99), 99.0);
        assert_eq!(percentile(&values, 0.999), 100.0);
        assert_eq!(percentile(&[7.0], 0.01), 7.0);
    }

    #[test]
    fn a_ratio_is_the_median_of_turns_and_not_the_ratio_of_medians() {
        // The machine was three times as fast in the second turn, for both.
        let ratio = Ratio::of(("a", &[2.0, 6.0, 2.0]), ("b", &[1.0, 3.0, 2.0]));
        assert_eq!(ratio.turns, [2.0, 2.0, 1.0]);
        assert_eq!(ratio.median, 2.0);
        assert_eq!(ratio.of, "a / b");
    }

    #[test]
    fn a_turn_without_a_baseline_is_left_out() {
        assert_eq!(Ratio::of(("a", &[2.0, 6.0]), ("b", &[0.0, 3.0])).turns, [2.0]);
    }
}
