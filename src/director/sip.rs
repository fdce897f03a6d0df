//! The Call-ID of a SIP message (RFC 3261 section 25.1), as the persistence engine `sip` wants it: the
//! value of the first such header, in its long or compact form. Nothing else of SIP is understood.

/// Longest Call-ID in bytes that counts.
const CALL_ID_BYTES_MAX: usize = crate::conn::EngineData::BYTES_MAX;

/// The header's name, and its compact form.
const NAME: &[u8] = b"call-id";
const COMPACT: u8 = b'i';

/// The Call-ID of this message; `None` if it has none, one that is too long, or one that no line end
/// follows. A header begins behind a line end: the first line is none.
pub(super) fn call_id(message: &[u8]) -> Option<&[u8]> {
    let mut rest = message;
    loop {
        rest = next_line(rest)?;
        if let Some(behind) = behind_name(rest) {
            return value(behind);
        }
    }
}

/// What stands behind the next line end (CR, LF or both).
fn next_line(text: &[u8]) -> Option<&[u8]> {
    let at = text.iter().position(|byte| is_line_end(*byte))?;
    let both = text[at] == b'\r' && text.get(at + 1) == Some(&b'\n');
    Some(&text[at + 1 + usize::from(both)..])
}

/// What stands behind the header's name, if the line begins with it. The compact form is one letter, and
/// must not be the beginning of a longer name.
fn behind_name(line: &[u8]) -> Option<&[u8]> {
    let (name, behind) = line.split_at_checked(NAME.len()).unwrap_or((&[], &[]));
    if name.eq_ignore_ascii_case(NAME) {
        return Some(behind);
    }
    match line {
        [first, second, ..] if first.eq_ignore_ascii_case(&COMPACT) => {
            (!second.is_ascii_alphabetic()).then_some(&line[1..])
        }
        _ => None,
    }
}

/// The value behind the name: colon, `word [ "@" word ]`, line end.
fn value(behind: &[u8]) -> Option<&[u8]> {
    let (colon, text) = skip_blanks(behind)?.split_first()?;
    if *colon != b':' {
        return None;
    }
    let text = skip_blanks(text)?;
    let mut len = word_len(text);
    if len > 0 && text.get(len) == Some(&b'@') {
        let domain = word_len(&text[len + 1..]);
        if domain == 0 {
            return None;
        }
        len += 1 + domain;
    }
    let ends = text.get(len).is_some_and(|byte| is_line_end(*byte));
    ((1..=CALL_ID_BYTES_MAX).contains(&len) && ends).then(|| &text[..len])
}

/// Skips blanks, and one line end that a blank follows: the header goes on in the next line.
fn skip_blanks(text: &[u8]) -> Option<&[u8]> {
    let text = skip(text);
    if !text.first().is_some_and(|byte| is_line_end(*byte)) {
        return Some(text);
    }
    let next = next_line(text)?;
    is_blank(*next.first()?).then(|| skip(next))
}

fn skip(text: &[u8]) -> &[u8] {
    let blanks = text.iter().take_while(|byte| is_blank(**byte)).count();
    &text[blanks..]
}

fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

fn is_line_end(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

/// How many bytes of a `word` stand here.
fn word_len(text: &[u8]) -> usize {
    let of_word =
        |byte: &u8| byte.is_ascii_alphanumeric() || b"-.!%*_+`'~()<>:\\\"/[]?{}".contains(byte);
    text.iter().take_while(|byte| of_word(byte)).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_lines(lines: &str) -> Option<String> {
        let message = format!("INVITE sip:b@h SIP/2.0\r\n{lines}");
        let found = call_id(message.as_bytes());
        found.map(|id| String::from_utf8_lossy(id).into_owned())
    }

    #[test]
    fn every_way_to_write_it() {
        for lines in [
            "Call-ID: a1@h\r\n",
            "Via: x\r\ncall-id:a1@h\r\nCall-ID: later\r\n",
            "CALL-ID   :   a1@h\r\n",
            "i:a1@h\n",
            "I : a1@h\r",
            "Call-ID:\r\n a1@h\r\n",
            "Call-ID\r\n\t: a1@h;x\r\n",
            "In-Reply-To: zz@z\r\ni: a1@h\r\n",
            "Via: x\r\n i: folded\r\nCall-ID: a1@h\r\n",
        ] {
            let expected = (!lines.contains(';')).then(|| "a1@h".to_string());
            assert_eq!(in_lines(lines), expected, "{lines:?}");
        }
        assert_eq!(in_lines("i: <{a}>\r\n").as_deref(), Some("<{a}>"));
    }

    #[test]
    fn none_where_there_is_none() {
        for lines in [
            "",
            "Via: x\r\n",
            "Call-ID: a1@h",
            "Call-ID: a1@\r\n",
            "Call-ID: @h\r\n",
            "Call-ID:\r\na1@h\r\n",
            "Call-ID a1@h\r\n",
            "Call-ID: a1@h x\r\n",
            "i",
            "Call-ID",
            "Call-ID:",
        ] {
            assert_eq!(in_lines(lines), None, "{lines:?}");
        }
        assert_eq!(call_id(b"Call-ID: a1@h\r\n"), None, "the first line");
        let long = |len: usize| in_lines(&format!("i: {}\r\n", "x".repeat(len)));
        assert_eq!(long(255).map(|id| id.len()), Some(255));
        assert_eq!(long(256), None);
    }
}
