//! Where sentences end: the documented rules, and that streaming and splitting agree on any text.

use bdhs::sampling::{End, SentenceRule};
use proptest::prelude::*;

use crate::common::texts::{any_rule, tricky_text};

fn split(rule: SentenceRule, text: &str) -> Vec<&str> {
    rule.split(text).into_iter().map(|range| &text[range]).collect()
}

fn unicode(text: &str) -> Vec<&str> {
    split(SentenceRule::Unicode, text)
}

#[test]
fn sentences_end_at_ascii_and_full_width_marks() {
    assert_eq!(unicode("A cat. A dog! A cow? A"), ["A cat.", "A dog!", "A cow?", "A"]);
    assert_eq!(
        unicode("一只猫。一只狗！真的？是．好"),
        ["一只猫。", "一只狗！", "真的？", "是．", "好"]
    );
    assert_eq!(unicode("你好!我很好.谢谢"), ["你好!", "我很好.", "谢谢"]);
    assert_eq!(unicode("大小是３．５米。好"), ["大小是３．５米。", "好"]);
}

#[test]
fn dots_inside_numbers_abbreviations_initials_and_ellipses_do_not_end_a_sentence() {
    for whole in [
        "It is 3.5 m long.",
        "The U.S. Army is here.",
        "Fruit, e.g. apples, i.e. food.",
        "Dr. Who and Mrs. Smith vs. J. Doe et al. Agree.",
        "No. 5 is Fig. 3 on p. 12 of Oct. 4.",
        "See example.com or main.rs now.",
        "Well... maybe it is… or not.",
        "approx. five of them.",
        "She has a Ph.D. Student there.",
        "\"Stop!\" he said.",
        "1. A cat.",
        "...",
        "?!",
        "... The cat.",
    ] {
        assert_eq!(unicode(whole), [whole]);
    }
}

#[test]
fn dots_that_look_alike_do_end_a_sentence() {
    assert_eq!(unicode("I say no. It is five."), ["I say no.", "It is five."]);
    assert_eq!(unicode("It is 3.5. It grows."), ["It is 3.5.", "It grows."]);
    assert_eq!(unicode("At 5 p.m. The cat sleeps."), ["At 5 p.m.", "The cat sleeps."]);
    assert_eq!(unicode("Wait... The cat moved."), ["Wait...", "The cat moved."]);
    assert_eq!(unicode("So do I. He left."), ["So do I.", "He left."]);
    assert_eq!(unicode("Cats, dogs, etc. The end."), ["Cats, dogs, etc.", "The end."]);
    assert_eq!(unicode("In 2019. The end."), ["In 2019.", "The end."]);
    assert_eq!(unicode("What?! Really?? Yes!!!"), ["What?!", "Really??", "Yes!!!"]);
    assert_eq!(unicode("Nice! 😀 Good."), ["Nice!", "😀 Good."]);
    assert_eq!(unicode("قطة. كلب؟ نعم."), ["قطة.", "كلب؟ نعم."]);
}

#[test]
fn closing_quotes_and_brackets_belong_to_the_sentence() {
    assert_eq!(unicode("He said \"stop.\" She did."), ["He said \"stop.\"", "She did."]);
    assert_eq!(unicode("(A cat.) [A dog!] B."), ["(A cat.)", "[A dog!]", "B."]);
    assert_eq!(unicode("他说：“好。”然后走了。"), ["他说：“好。”", "然后走了。"]);
    assert_eq!(
        unicode("**Bold.** \"Really?\". (See it)"),
        ["**Bold.**", "\"Really?\".", "(See it)"]
    );
    assert_eq!(unicode("He left. (see below)"), ["He left. (see below)"]);
}

#[test]
fn blank_lines_and_list_items_end_a_sentence() {
    assert_eq!(unicode("Title\n\nA cat"), ["Title", "A cat"]);
    assert_eq!(unicode("Title\r\n\r\nA cat"), ["Title", "A cat"]);
    assert_eq!(
        unicode("We see:\n- a cat\n- a dog\n* one\n• two"),
        ["We see:", "- a cat", "- a dog", "* one", "• two"]
    );
    assert_eq!(
        unicode("Steps:\n1. Go.\n2) Run\n12. Stop"),
        ["Steps:", "1. Go.", "2) Run", "12. Stop"]
    );
    assert_eq!(unicode("See Dr.\n\nWho"), ["See Dr.", "Who"]);
    assert_eq!(
        unicode("a wrapped\nline of text\n-5 degrees\n2019 was"),
        ["a wrapped\nline of text\n-5 degrees\n2019 was"]
    );
}

#[test]
fn paper_mode_ends_a_sentence_at_the_first_dot_character() {
    let paper = |text| split(SentenceRule::FirstDot, text);
    assert_eq!(paper("It is 3.5 m! Dr. X. End"), ["It is 3.", "5 m! Dr.", "X.", "End"]);
    assert_eq!(paper("Well... no"), ["Well.", "no"]);
    assert_eq!(paper("一。二"), ["一。二"]);
    assert_eq!(paper("..."), ["..."]);
    assert_eq!(SentenceRule::FirstDot.first_end("It is 3.5", 0, false), End::At(8));
}

#[test]
fn a_text_without_anything_visible_has_no_sentence() {
    for rule in [SentenceRule::Unicode, SentenceRule::FirstDot] {
        assert!(rule.split("").is_empty());
        assert!(rule.split(" \n\t ").is_empty());
        assert_eq!(rule.first_end(" \n", 0, true), End::Open);
    }
}

#[test]
fn the_streaming_stop_waits_for_what_decides() {
    let end = |text| SentenceRule::Unicode.first_end(text, 0, false);
    assert_eq!(end("A cat"), End::Open);
    assert_eq!(end("A cat."), End::Undecided);
    assert_eq!(end("A cat. "), End::Undecided);
    assert_eq!(end("A cat. T"), End::At(6));
    assert_eq!(end("It is 3."), End::Undecided);
    assert_eq!(end("It is 3.5"), End::Open);
    assert_eq!(end("一。"), End::Undecided);
    assert_eq!(end("一。二"), End::At("一。".len()));
    assert_eq!(end("A cat\n"), End::Undecided);
    assert_eq!(end("A cat\n\n"), End::At(5));
    assert_eq!(end("A cat\n1"), End::Undecided);
    assert_eq!(end("A cat\n1. "), End::At(5));
    assert_eq!(SentenceRule::Unicode.first_end("A cat.", 0, true), End::At(6));
    assert_eq!(SentenceRule::Unicode.first_end("A cat ", 0, true), End::At(5));
}

#[test]
fn an_end_inside_the_kept_part_does_not_stop_the_completion() {
    let rule = SentenceRule::Unicode;
    assert_eq!(rule.first_end("No. The cat", 3, false), End::Open);
    assert_eq!(rule.first_end("No. The cat. It", 3, false), End::At(12));
    assert_eq!(rule.first_end("No. The cat", 0, false), End::At(3));
    assert_eq!(rule.first_end("The items\n\nNew", 9, false), End::At(9));
    assert_eq!(rule.first_end("The cat", 7, true), End::At(7));
    assert_eq!(SentenceRule::FirstDot.first_end("It is 3.5 m. X", 8, false), End::At(12));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn splitting_keeps_every_byte(text in tricky_text(), rule in any_rule()) {
        let sentences = rule.split(&text);
        let mut joined = String::new();
        let mut at = 0;
        for sentence in &sentences {
            let between = &text[at..sentence.start];
            prop_assert!(between.chars().all(|c| c.is_whitespace() || c == '.' && rule == SentenceRule::FirstDot));
            joined += between;
            joined += &text[sentence.clone()];
            prop_assert_eq!(text[sentence.clone()].trim(), &text[sentence.clone()]);
            prop_assert!(!sentence.is_empty());
            at = sentence.end;
        }
        joined += &text[at..];
        prop_assert!(text[at..].chars().all(|c| c.is_whitespace() || c == '.' && rule == SentenceRule::FirstDot));
        prop_assert_eq!(sentences.is_empty(), text.trim().is_empty());
        prop_assert_eq!(joined, text);
    }

    #[test]
    fn streaming_any_prefix_gives_the_splitters_end(text in tricky_text(), rule in any_rule()) {
        for sentence in rule.split(&text) {
            let rest = &text[sentence.start..];
            if rule == SentenceRule::FirstDot && rest.starts_with('.') {
                continue; // A text of dots only, which splitting keeps whole.
            }
            let full = rule.first_end(rest, 0, true);
            prop_assert_eq!(full, End::At(sentence.len()));
            for (at, c) in rest.char_indices() {
                if let End::At(end) = rule.first_end(&rest[..at + c.len_utf8()], 0, false) {
                    prop_assert_eq!(End::At(end), full, "prefix {:?}", &rest[..at + c.len_utf8()]);
                }
            }
        }
    }

    #[test]
    fn an_end_once_given_is_final_for_any_kept_part(text in tricky_text(), kept in 0usize..12, rule in any_rule()) {
        let kept = text.char_indices().map(|(at, _)| at).nth(kept).unwrap_or(0);
        let ends: Vec<End> = text.char_indices()
            .filter(|(at, _)| *at >= kept)
            .map(|(at, c)| rule.first_end(&text[..at + c.len_utf8()], kept, false))
            .filter(|end| matches!(end, End::At(_)))
            .collect();
        prop_assert!(ends.windows(2).all(|pair| pair[0] == pair[1]), "{:?}", ends);
        if let Some(&end) = ends.first() {
            prop_assert_eq!(end, rule.first_end(&text, kept, true));
            let End::At(byte) = end else { unreachable!() };
            prop_assert!(byte >= kept && text.is_char_boundary(byte));
        }
    }
}
