//! Texts that the sentence rules talk about.

use bdhs::sampling::SentenceRule;
use proptest::prelude::*;

/// Text from pieces that the rules talk about, in any order.
pub fn tricky_text() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "A",
        "cat",
        "the",
        "I",
        "Dr",
        "No",
        "no",
        "U.S",
        "e.g",
        "p.m",
        "3",
        "5",
        "12",
        "３",
        ".",
        ".",
        ". ",
        "..",
        "…",
        "!",
        "?",
        "。",
        "！",
        "．",
        "\"",
        "”",
        "“",
        ")",
        "(",
        "*",
        "_",
        "-",
        "• ",
        " ",
        " ",
        " ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "猫",
        "か",
        "😀",
        "é",
        "e\u{301}",
        "قط",
        "แมว",
        "\u{a0}",
        "\u{2028}",
    ]);
    prop_oneof![
        4 => prop::collection::vec(pieces, 0..24).prop_map(|pieces| pieces.concat()),
        1 => any::<String>(),
    ]
}

pub fn any_rule() -> impl Strategy<Value = SentenceRule> {
    prop::sample::select(vec![SentenceRule::Unicode, SentenceRule::FirstDot])
}
