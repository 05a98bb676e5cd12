//! Prints a JSON array while its elements come, the way `serde_json` prints one that is there.

use std::io::{self, Write};

use serde_json::Value;

/// An array that is being printed.
pub(super) struct Array<'a, W> {
    out: &'a mut W,
    /// Whether an element stands before the next one.
    begun: bool,
}

impl<'a, W: Write> Array<'a, W> {
    /// Prints nothing yet: a command that fails at once has no output.
    pub(super) fn new(out: &'a mut W) -> Array<'a, W> {
        Array { out, begun: false }
    }

    /// Prints one more element.
    pub(super) fn row(&mut self, row: &Value) -> io::Result<()> {
        let before = if self.begun { ",\n" } else { "[\n" };
        self.begun = true;
        // No string of JSON has a line break of its own.
        let row = format!("{row:#}").replace('\n', "\n  ");
        write!(self.out, "{before}  {row}")
    }

    /// Prints the end.
    pub(super) fn end(self) -> io::Result<()> {
        self.out.write_all(if self.begun { b"\n]\n" } else { b"[]\n" })?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_pieces_are_what_the_whole_would_be() {
        let nested = json!({"a": {"b": [1, "two\nlines"], "c": {}}, "d": null});
        for rows in [vec![], vec![json!(1)], vec![nested.clone(), json!([]), nested]] {
            let mut out = Vec::new();
            let mut array = Array::new(&mut out);
            rows.iter().try_for_each(|row| array.row(row)).expect("a vector takes it");
            array.end().expect("a vector takes it");
            let whole = format!("{:#}\n", Value::Array(rows));
            assert_eq!(String::from_utf8(out).expect("text"), whole);
        }
    }
}
