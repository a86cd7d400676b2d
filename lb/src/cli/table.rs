//! Tables with aligned columns.

use super::output::Ink;

/// Columns as wide as they must be; those that hold only numbers are aligned to the right.
pub(super) fn table<const N: usize>(ink: Ink, header: [&str; N], rows: &[[String; N]]) -> String {
    let mut text = String::new();
    let columns: [(usize, bool); N] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].as_str());
        let width = cells
            .clone()
            .chain([header[column]])
            .map(|cell| cell.chars().count())
            .max();
        let numeric = !rows.is_empty()
            && cells
                .into_iter()
                .all(|cell| cell.bytes().all(|byte| byte.is_ascii_digit()));
        (width.unwrap_or_default(), numeric)
    });
    let header = header.map(str::to_owned);
    for (line, row) in std::iter::once(&header).chain(rows).enumerate() {
        let last = N
            - 1
            - row
                .iter()
                .rev()
                .take_while(|cell| cell.is_empty())
                .count()
                .min(N - 1);
        let cells = row[..=last].iter().zip(columns).enumerate().map(
            |(column, (cell, (width, numeric)))| {
                let padded = match (numeric, column == last) {
                    (true, _) => format!("{cell:>width$}"),
                    // No blanks at the end of a line.
                    (false, true) => cell.clone(),
                    (false, false) => format!("{cell:<width$}"),
                };
                if line == 0 {
                    ink.head(&padded)
                } else {
                    ink.cell(&padded)
                }
            },
        );
        text.push_str(&cells.collect::<Vec<_>>().join("  "));
        text.push('\n');
    }
    text
}

/// What is shown where there is nothing.
pub(super) fn or_dash(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "-".into(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_numbers_to_the_right() {
        let rows = [
            ["web".into(), "7".into(), "a".into()],
            ["dns-long".into(), "1234".into(), "b".into()],
        ];
        let expected = "NAME         N  X\nweb          7  a\ndns-long  1234  b\n";
        assert_eq!(table(Ink::Plain, ["NAME", "N", "X"], &rows), expected);
        assert_eq!(table(Ink::Plain, ["NAME", "N"], &[]), "NAME  N\n");
    }

    #[test]
    fn colours_do_not_move_columns() {
        let rows = [
            ["up".into(), "1".into()],
            ["draining".into(), "2".into()],
            ["x".into(), String::new()],
        ];
        let coloured = table(Ink::Colours, ["STATE", "N"], &rows);
        assert!(coloured.contains("\x1b[32mup      \x1b[0m"), "{coloured:?}");
        let plain = table(Ink::Plain, ["STATE", "N"], &rows);
        let mut stripped = coloured;
        for code in ["\x1b[0m", "\x1b[1m", "\x1b[32m", "\x1b[33m"] {
            stripped = stripped.replace(code, "");
        }
        assert_eq!(stripped, plain);
        assert!(plain.ends_with("\nx\n"));
    }
}
