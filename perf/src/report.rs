//! What a measurement found: as tables for people, as JSON for programs.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// Everything one subcommand measured.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Name of the subcommand.
    pub measurement: &'static str,
    /// For eyes only: the JSON has the figures themselves.
    #[serde(skip)]
    pub tables: Vec<Table>,
    /// What was to be reached.
    pub targets: Vec<Target>,
    /// What could not be measured, and why; the rest was.
    pub failures: Vec<String>,
    /// Every figure.
    pub figures: Value,
}

impl Report {
    /// Of a measurement that succeeds as a whole, or fails.
    pub fn new(
        measurement: &'static str,
        tables: Vec<Table>,
        targets: Vec<Target>,
        figures: Value,
    ) -> Report {
        Report { measurement, tables, targets, failures: Vec::new(), figures }
    }
}

/// A figure that is to be reached.
#[derive(Clone, Debug, Serialize)]
pub struct Target {
    /// What the figure is, with its unit.
    pub what: String,
    /// What was measured; NaN if nothing was, which meets nothing.
    pub measured: f64,
    /// The bound.
    pub bound: Bound,
    /// Whether it was kept.
    pub met: bool,
}

/// On which side of a target the good figures are.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// This or more.
    AtLeast(f64),
    /// This or less.
    AtMost(f64),
}

impl Target {
    /// Judges a figure.
    pub fn new(what: impl Into<String>, measured: f64, bound: Bound) -> Target {
        let met = match bound {
            Bound::AtLeast(least) => measured >= least,
            Bound::AtMost(most) => measured <= most,
        };
        Target { what: what.into(), measured, bound, met }
    }
}

/// Columns of text with a title. The first column is left-aligned, figures are right-aligned.
#[derive(Clone, Debug)]
pub struct Table {
    title: String,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with its column heads.
    pub fn new(title: impl Into<String>, heads: &[&str]) -> Table {
        let heads = heads.iter().map(|head| (*head).to_owned()).collect();
        Table { title: title.into(), rows: vec![heads] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        writeln!(out, "{}", self.title)?;
        for row in &self.rows {
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                if column == 0 {
                    write!(out, "  {cell:width$}")?;
                } else {
                    write!(out, "  {cell:>width$}")?;
                }
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for table in &self.tables {
            writeln!(out, "{table}")?;
        }
        let mut targets = Table::new("targets", &["", "target", "measured", ""]);
        for Target { what, measured, bound, met } in &self.targets {
            let bound = match bound {
                Bound::AtLeast(least) => format!(">= {least}"),
                Bound::AtMost(most) => format!("<= {most}"),
            };
            let verdict = match met {
                true => "met",
                false if measured.is_nan() => "not measured",
                false => "missed",
            };
            targets.row([what.clone(), bound, shown(*measured, 2), verdict.to_owned()]);
        }
        if !self.targets.is_empty() {
            write!(out, "{targets}")?;
        }
        self.failures.iter().try_for_each(|failure| writeln!(out, "failed: {failure}"))
    }
}

/// A figure for tables, with so many digits behind the point; `-` for what was not measured.
pub fn shown(figure: f64, digits: usize) -> String {
    if figure.is_nan() { "-".to_owned() } else { format!("{figure:.digits$}") }
}

/// Tells who waits what is being done, on stderr.
pub fn progress(what: &str) {
    eprintln!("viaduct-perf: {what}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_met_on_its_good_side_and_on_the_bound() {
        assert!(Target::new("t", 3.0, Bound::AtLeast(3.0)).met);
        assert!(!Target::new("t", 2.9, Bound::AtLeast(3.0)).met);
        assert!(Target::new("t", 5.0, Bound::AtMost(5.0)).met);
        assert!(!Target::new("t", 5.1, Bound::AtMost(5.0)).met);
    }

    #[test]
    fn what_was_not_measured_meets_no_target_and_says_so() {
        let bounds = [Bound::AtLeast(0.0), Bound::AtMost(1.0)];
        let targets: Vec<Target> = bounds.map(|bound| Target::new("t", f64::NAN, bound)).into();
        assert!(targets.iter().all(|target| !target.met));
        let (tables, failures, figures) = (Vec::new(), Vec::new(), Value::Null);
        let report = Report { measurement: "m", tables, targets, failures, figures };
        assert_eq!(report.to_string().matches("-  not measured\n").count(), 2);
    }

    #[test]
    fn figures_line_up_under_their_heads() {
        let mut table = Table::new("t", &["arm", "Gbit/s"]);
        table.row(["viaduct".to_owned(), "31.0".to_owned()]);
        assert_eq!(table.to_string(), "t\n  arm      Gbit/s\n  viaduct    31.0\n");
    }
}
