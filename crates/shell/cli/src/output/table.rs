//! Columns in plain text, as Go's tabwriter sets them for docker.
//!
//! Owns: widths. Does not know: what stands in the cells.
//! Invariant: a cell is at least ten wide, three spaces apart, and the last one is not padded.

use std::fmt::Write;

/// Aligns lines whose cells are parted by tabs.
pub(super) fn align(lines: &[String]) -> String {
    let rows: Vec<Vec<&str>> = lines.iter().map(|line| line.split('\t').collect()).collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            let cells = rows.iter().filter(|row| column + 1 < row.len());
            let widest = cells.map(|row| row[column].chars().count() + PADDING).max();
            widest.unwrap_or(0).max(WIDTH_MIN)
        })
        .collect();
    let mut out = String::new();
    for row in rows {
        for (cell, width) in row.iter().zip(&widths).take(row.len() - 1) {
            // Writing to a string does not fail.
            let _ = write!(out, "{cell:<width$}");
        }
        out.push_str(row.last().unwrap_or(&""));
        out.push('\n');
    }
    out
}

const WIDTH_MIN: usize = 10;
const PADDING: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_dockers() {
        let lines = ["ID\tNAME\tERROR\tPORTS", "hgh62r83yrec\tweb.1\t\t"].map(str::to_owned);
        let expected = "ID             NAME      ERROR     PORTS\n\
                        hgh62r83yrec   web.1               \n";
        assert_eq!(align(&lines), expected);
    }
}
