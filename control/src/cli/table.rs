//! Prints columns: as wide as their widest cell, numbers to the right, a dash where nothing is.

use std::fmt;

/// Where a column's cells stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Align {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// A table with a line of titles.
#[derive(Debug)]
pub(super) struct Table<const COLUMNS: usize> {
    aligns: [Align; COLUMNS],
    /// The titles are the first line.
    lines: Vec<[String; COLUMNS]>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    /// A table of these columns, without rows.
    pub(super) fn new(columns: [(Align, &str); COLUMNS]) -> Table<COLUMNS> {
        let titles = columns.map(|(_, title)| title.to_owned());
        Table { aligns: columns.map(|(align, _)| align), lines: vec![titles] }
    }

    /// Adds a row. Cells may come from a pod's creator: characters that would move the terminal's
    /// cursor are replaced.
    pub(super) fn row(&mut self, cells: [String; COLUMNS]) {
        self.lines.push(cells.map(|cell| match cell.as_str() {
            "" => "-".to_owned(),
            _ => cell.replace(char::is_control, "?"),
        }));
    }
}

impl<const COLUMNS: usize> fmt::Display for Table<COLUMNS> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |cell: &String| cell.chars().count();
        let mut widths = [0; COLUMNS];
        for line in &self.lines {
            for (widest, cell) in widths.iter_mut().zip(line) {
                *widest = width(cell).max(*widest);
            }
        }
        for line in &self.lines {
            let mut text = String::new();
            for ((cell, align), widest) in line.iter().zip(self.aligns).zip(widths) {
                let space = " ".repeat(widest - width(cell));
                text += &match align {
                    Align::Left => format!("{cell}{space}  "),
                    Align::Right => format!("{space}{cell}  "),
                };
            }
            writeln!(out, "{}", text.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_numbers_stand_to_the_right() {
        let mut table = Table::new([(Align::Left, "POD"), (Align::Right, "N"), (Align::Left, "X")]);
        table.row(["a/b-long".to_owned(), "7".to_owned(), String::new()]);
        table.row(["é".to_owned(), "1234".to_owned(), "y".to_owned()]);
        let expected = "\
POD          N  X
a/b-long     7  -
é         1234  y
";
        assert_eq!(table.to_string(), expected);
    }

    #[test]
    fn a_name_cannot_move_the_cursor() {
        let mut table = Table::new([(Align::Left, "POD")]);
        table.row(["evil\x1b[2J\nname".to_owned()]);
        assert_eq!(table.to_string(), "POD\nevil?[2J?name\n");
    }
}
