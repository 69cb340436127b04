//! Tables for people: aligned, and never wider than [`COLUMNS`].

use std::io::IsTerminal as _;

/// How wide lines get, whatever the terminal's width.
pub const COLUMNS: usize = 80;

/// Between two columns.
const GAP: usize = 2;

/// What belongs to a row and stands below it is indented by that.
const INDENT: usize = 4;

/// Where the last column has no more room than this, it has lines of its own instead.
const LAST_COLUMNS_MIN: usize = 14;

/// One column.
pub struct Column {
    /// Its title. That of states is `STATE`: they are coloured.
    pub title: &'static str,
    /// How wide it gets.
    pub width_max: usize,
    /// What is wider is cut in its middle; otherwise the rest of its row goes to a line of its own.
    pub cut: bool,
}

/// One row.
pub struct Row {
    /// A text for each column.
    pub cells: Vec<String>,
    /// Texts below it.
    pub notes: Vec<String>,
}

/// Whether states are to be coloured.
pub fn colours() -> bool {
    let variable = |name: &str| std::env::var_os(name).unwrap_or_default();
    std::io::stdout().is_terminal() && variable("NO_COLOR").is_empty() && variable("TERM") != "dumb"
}

/// The text in the colour of the state that it is.
pub fn coloured(state: &str, colours: bool) -> String {
    let colour = match state {
        _ if !colours => return state.to_owned(),
        "ok" | "forwarding" | "ready" | "reachable" => 32,
        "pending" | "left-out" | "starting" | "idle" | "degraded" | "withdrawn" => 33,
        _ => 31,
    };
    format!("\u{1b}[{colour}m{state}\u{1b}[0m")
}

/// The table as text; without its titles where `titles` is false.
pub fn render(columns: &[Column], rows: &[Row], titles: bool, colours: bool) -> String {
    let mut widths: Vec<usize> = columns.iter().map(|column| if titles { wide(column.title) } else { 0 }).collect();
    for row in rows {
        for ((width, column), cell) in widths.iter_mut().zip(columns).zip(&row.cells) {
            // One that is too wide and not cut has a line of its own, and so does not move the others.
            *width = (*width).max(match wide(cell) {
                wide if wide <= column.width_max => wide,
                _ if column.cut => column.width_max,
                _ => 0,
            });
        }
    }
    let last = columns.len().saturating_sub(1);
    let room = COLUMNS.saturating_sub(widths.iter().take(last).map(|width| width + GAP).sum());
    let last_below = room < LAST_COLUMNS_MIN.min(widths.last().copied().unwrap_or_default());
    let mut text = String::new();
    let mut put = |cells: &[&str], notes: &[String], colours: bool| {
        let (mut line, mut filled, mut start) = (String::new(), 0, 0);
        for (i, ((cell, column), width)) in cells.iter().zip(columns).zip(&widths).enumerate() {
            let below = i == last && last_below;
            if below || (i > 0 && filled + GAP > start) {
                // The cell before was too wide, or this one would be.
                text.push_str(line.trim_end());
                text.push('\n');
                (line, filled) = (String::new(), 0);
            }
            let start_here = if below { INDENT } else { start };
            line.push_str(&" ".repeat(start_here - filled));
            let shown = cut(cell, if column.cut && i < last { *width } else { COLUMNS - start_here });
            filled = start_here + wide(&shown);
            line.push_str(&if column.title == "STATE" { coloured(&shown, colours) } else { shown });
            start += width + GAP;
        }
        text.push_str(line.trim_end());
        text.push('\n');
        for note in notes {
            wrap(&mut text, note, INDENT, INDENT);
        }
    };
    if titles {
        put(&columns.iter().map(|column| column.title).collect::<Vec<_>>(), &[], false);
    }
    for row in rows {
        put(&row.cells.iter().map(String::as_str).collect::<Vec<_>>(), &row.notes, colours);
    }
    text
}

fn wide(text: &str) -> usize {
    text.chars().count()
}

/// The text in no more than `width` columns: its middle is left out.
pub fn cut(text: &str, width: usize) -> String {
    let count = text.chars().count();
    if count <= width {
        return text.to_owned();
    }
    let (head, tail) = (width / 2, width.saturating_sub(width / 2 + 1));
    text.chars().take(head).chain(['…']).chain(text.chars().skip(count - tail)).collect()
}

/// Appends the words, broken before [`COLUMNS`]: the first line indented by `first`, the others by `indent`.
pub fn wrap(text: &mut String, words: &str, first: usize, indent: usize) {
    let mut line = " ".repeat(first);
    let mut at = first;
    let mut empty = true;
    for word in words.split_whitespace() {
        let mut rest: Vec<char> = word.chars().collect();
        if !empty && at + 1 + rest.len() > COLUMNS {
            text.push_str(&line);
            text.push('\n');
            (line, at, empty) = (" ".repeat(indent), indent, true);
        }
        if !empty {
            line.push(' ');
            at += 1;
        }
        // Longer than a line.
        while at + rest.len() > COLUMNS {
            let tail = rest.split_off(COLUMNS - at);
            line.extend(rest);
            text.push_str(&line);
            text.push('\n');
            (line, at, rest) = (" ".repeat(indent), indent, tail);
        }
        at += rest.len();
        line.extend(rest);
        empty = false;
    }
    text.push_str(&line);
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS_SHOWN: [Column; 4] = [
        Column { title: "ADDRESS", width_max: 16, cut: false },
        Column { title: "SINK", width_max: 10, cut: true },
        Column { title: "STATE", width_max: 10, cut: true },
        Column { title: "OWNER", width_max: 99, cut: true },
    ];

    fn row(cells: [&str; 4], note: &str) -> Row {
        let notes = if note.is_empty() { vec![] } else { vec![note.to_owned()] };
        Row { cells: cells.map(str::to_owned).to_vec(), notes }
    }

    #[test]
    fn cells_are_aligned_and_cut_where_they_may_be() {
        let rows = [
            row(["1.2.3.4:80", "stdout", "ok", "docker:web"], ""),
            row(["[2001:db8:1:2:3:4:5:6]:65535/tcp", "host-switch:x", "conflict", "nat:1"], "taken"),
        ];
        let expect = "\
ADDRESS     SINK        STATE     OWNER
1.2.3.4:80  stdout      ok        docker:web
[2001:db8:1:2:3:4:5:6]:65535/tcp
            host-…ch:x  conflict  nat:1
    taken
";
        assert_eq!(render(&COLUMNS_SHOWN, &rows, true, false), expect);
        let bare = render(&COLUMNS_SHOWN, rows.get(..1).unwrap(), false, true);
        assert_eq!(bare, "1.2.3.4:80  stdout  \u{1b}[32mok\u{1b}[0m  docker:web\n");
    }

    #[test]
    fn the_last_column_goes_below_where_it_has_no_room() {
        static NARROW: [Column; 2] =
            [Column { title: "A", width_max: 75, cut: false }, Column { title: "B", width_max: 99, cut: true }];
        let rows = [Row { cells: vec!["a".repeat(70), "b".repeat(100)], notes: vec![] }];
        let text = render(&NARROW, &rows, true, false);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines, ["A", "    B", &"a".repeat(70), &format!("    {}…{}", "b".repeat(38), "b".repeat(37))]);
    }

    #[test]
    fn no_line_is_too_wide() {
        let long = "x".repeat(300);
        let rows = [row([&long, &long, &long, &long], &format!("{long} and {long} words {}", "w ".repeat(99)))];
        let text = render(&COLUMNS_SHOWN, &rows, true, false);
        assert!(text.lines().all(|line| line.chars().count() <= COLUMNS), "{text}");
        let mut words = String::new();
        wrap(&mut words, "one two", 78, 2);
        assert_eq!(words, format!("{}on\n  e two\n", " ".repeat(78)));
        assert_eq!(cut("abcdef", 4), "ab…f");
    }
}
