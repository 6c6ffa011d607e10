//! The generated part of a document that people edit as well.

/// Line before the generated part.
const BEGIN: &str =
    "<!-- Written by `make bench`, which replaces everything up to the end mark -->\n";

/// Line after it.
const END: &str = "<!-- End of what `make bench` writes -->\n";

/// Replaces the text between the marks of a page. Everything else stays as it is. A page without
/// marks gets them at its end.
pub fn replace(page: &str, text: &str) -> String {
    let marked = page.split_once(BEGIN).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(END)?;
        Some((before, after))
    });
    let (before, after) = marked.unwrap_or((page, ""));
    let gap = if before.is_empty() || before.ends_with("\n\n") { "" } else { "\n" };
    format!("{before}{gap}{BEGIN}{}\n{END}{after}", text.trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_wrote_above_and_below_the_generated_part_survives() {
        let page = format!("# Page\n\nby hand\n\n{BEGIN}\n## Old\n\n1\n{END}\n## Hand\n\n7\n");
        let expected = format!("# Page\n\nby hand\n\n{BEGIN}\n## New\n\n2\n{END}\n## Hand\n\n7\n");
        assert_eq!(replace(&page, "\n## New\n\n2\n"), expected);
        assert_eq!(replace(&expected, "\n## New\n\n2\n"), expected);
    }

    #[test]
    fn a_page_without_marks_keeps_all_its_text() {
        assert_eq!(
            replace("# Page\n\nby hand\n", "2\n"),
            format!("# Page\n\nby hand\n\n{BEGIN}2\n{END}")
        );
        assert_eq!(replace("", "2"), format!("{BEGIN}2\n{END}"));
        let cut = format!("a\n\n{BEGIN}b\n");
        assert!(replace(&cut, "2").starts_with(&cut), "no end mark");
    }

    #[test]
    fn the_page_of_the_benchmarks_has_the_marks() {
        let page = include_str!("../../docs/BENCHMARKS.md");
        let (_, rest) = page.split_once(BEGIN).expect("a begin");
        let (generated, by_hand) = rest.split_once(END).expect("an end");
        assert!(generated.contains("\n## A complete file\n"));
        for heading in ["\n## Tags\n", "\n## Simulation\n"] {
            assert!(by_hand.contains(heading) && !generated.contains(heading));
        }
    }
}
