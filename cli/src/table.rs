//! Columns for people.

use std::path::Path;

/// Prints rows under a head, each column as wide as its widest cell.
pub(crate) fn print(head: &[&str], rows: impl Iterator<Item = Vec<String>>) {
    for line in lines(head, rows) {
        println!("{line}");
    }
}

/// The lines of such a table.
pub(crate) fn lines(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Vec<String> {
    let mut lines = vec![head.iter().map(|cell| (*cell).to_owned()).collect::<Vec<_>>()];
    lines.extend(rows);
    render(&lines).iter().map(|line| plain(line)).collect()
}

/// Text from elsewhere, as a terminal may be given it: control characters, which
/// could move the cursor and paint over what was printed, are replaced.
pub(crate) fn plain(text: &str) -> String {
    let shown = |c: char| if c.is_control() && c != '\n' { '\u{fffd}' } else { c };
    text.chars().map(shown).collect()
}

/// Text from elsewhere that must stay on its line: an end of line in it could begin one
/// that looks like ours.
pub(crate) fn line(text: &str) -> String {
    plain(text).replace('\n', "\u{fffd}")
}

/// A file's name, as a line may have it.
pub(crate) fn name_of(path: &Path) -> String {
    line(&path.display().to_string())
}

fn render(lines: &[Vec<String>]) -> Vec<String> {
    let mut widths: Vec<usize> = Vec::new();
    for line in lines {
        widths.resize(widths.len().max(line.len()), 0);
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = cell.chars().count().max(*width);
        }
    }
    let pad = |line: &Vec<String>| {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    lines.iter().map(pad).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn text_from_elsewhere_cannot_paint() {
        assert_eq!(super::plain("\u{1b}[2Aok\u{9b}\r"), "\u{fffd}[2Aok\u{fffd}\u{fffd}");
    }

    #[test]
    fn a_name_stays_on_its_line() {
        let name = super::name_of(std::path::Path::new("a\u{1b}[2J\ncasemate: all good"));
        assert_eq!(name, "a\u{fffd}[2J\u{fffd}casemate: all good");
    }

    #[test]
    fn columns_line_up() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let lines = super::render(&[row(["NAME", "RISK"]), row(["a", "high"])]);
        assert_eq!(lines, ["NAME  RISK", "a     high"]);
    }
}
