//! Section: one table of ulvs.toml, read key by key. Whatever is wrong with a key (unknown, of the
//! wrong kind, out of range) is noted with its place, and reading goes on.

use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Problems, nearest};

/// A table of the file.
pub struct Section<'a> {
    /// What people call it: `[director]`, `[[port]]`.
    title: &'static str,
    table: &'a DeTable<'a>,
    span: Range<usize>,
    keys: &'a [&'a str],
}

/// A piece of text out of the file.
#[derive(Clone, Debug)]
pub struct Word<'a> {
    /// The text without its quotes.
    pub text: &'a str,
    /// Where it stands, quotes included.
    pub span: Range<usize>,
}

impl<'a> Section<'a> {
    /// Opens `table`; keys other than `keys` are noted, with the nearest known one.
    pub fn open(
        title: &'static str,
        table: &'a DeTable<'a>,
        span: Range<usize>,
        keys: &'a [&'a str],
        problems: &mut Problems,
    ) -> Section<'a> {
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if !keys.contains(&name) {
                unknown_key(title, name, key.span(), keys, problems);
            }
        }
        Section {
            title,
            table,
            span,
            keys,
        }
    }

    /// Where the section stands: its header.
    pub fn span(&self) -> Range<usize> {
        self.span.clone()
    }

    /// Is the key there?
    pub fn has(&self, key: &str) -> bool {
        debug_assert!(
            self.keys.contains(&key),
            "{key} is no key of {}",
            self.title
        );
        self.table.contains_key(key)
    }

    /// Where a key's value stands; the section itself if the key is not there.
    pub fn span_of(&self, key: &str) -> Range<usize> {
        self.table.get(key).map_or(self.span(), Spanned::span)
    }

    /// Where a key itself stands.
    pub fn key_span(&self, key: &str) -> Range<usize> {
        let found = self.table.get_key_value(key);
        found.map_or(self.span(), |(key, _)| key.span())
    }

    fn value(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        debug_assert!(
            self.keys.contains(&key),
            "{key} is no key of {}",
            self.title
        );
        self.table.get(key)
    }

    /// A text.
    pub fn text(&self, key: &str, problems: &mut Problems) -> Option<Word<'a>> {
        word(self.value(key)?, key, problems)
    }

    /// One of several words.
    pub fn choice<T: Copy>(
        &self,
        key: &str,
        choices: &[(&str, T)],
        problems: &mut Problems,
    ) -> Option<T> {
        let word = self.text(key, problems)?;
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == word.text) {
            return Some(*value);
        }
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let what = format!("no such {key}: {:?}", word.text);
        problems.add(word.span, what, format!("one of {}", names.join(", ")));
        if let Some(near) = nearest(word.text, &names) {
            problems.hint(format!("did you mean \"{near}\"?"));
        }
        None
    }

    /// A whole number within `range`.
    pub fn integer(
        &self,
        key: &str,
        range: RangeInclusive<i64>,
        problems: &mut Problems,
    ) -> Option<i64> {
        let value = self.value(key)?;
        let Some(number) = value.get_ref().as_integer() else {
            wrong_kind(value, key, "a whole number", problems);
            return None;
        };
        let parsed = i64::from_str_radix(number.as_str(), number.radix()).ok();
        let fits = parsed.filter(|number| range.contains(number));
        if fits.is_none() {
            let what = format!("`{key}` is out of range");
            let label = format!("{} to {}", range.start(), range.end());
            problems.add(value.span(), what, label);
        }
        fits
    }

    /// `true` or `false`.
    pub fn boolean(&self, key: &str, problems: &mut Problems) -> Option<bool> {
        let value = self.value(key)?;
        let found = value.get_ref().as_bool();
        if found.is_none() {
            wrong_kind(value, key, "true or false", problems);
        }
        found
    }

    /// A list of texts.
    pub fn texts(&self, key: &str, problems: &mut Problems) -> Vec<Word<'a>> {
        let items = self.items(key, "a list of texts", problems);
        let words = items.iter().map(|item| word(item, key, problems));
        words.collect::<Vec<_>>().into_iter().flatten().collect()
    }

    /// A list of tables, each opened with `keys`.
    pub fn tables(
        &self,
        key: &str,
        title: &'static str,
        keys: &'static [&'static str],
        problems: &mut Problems,
    ) -> Vec<Section<'a>> {
        let mut sections = Vec::new();
        let kind = match title.starts_with('[') {
            true => format!("written {title}"),
            false => "a list of tables".to_string(),
        };
        for item in self.items(key, &kind, problems) {
            match item.get_ref().as_table() {
                Some(table) => {
                    let section = Section::open(title, table, item.span(), keys, problems);
                    sections.push(section);
                }
                None => wrong_kind(item, key, "a table", problems),
            }
        }
        sections
    }

    /// A table of its own, opened with `keys`.
    pub fn table<'k>(
        &self,
        key: &str,
        title: &'static str,
        keys: &'k [&'k str],
        problems: &mut Problems,
    ) -> Option<Section<'k>>
    where
        'a: 'k,
    {
        let value = self.value(key)?;
        let Some(table) = value.get_ref().as_table() else {
            wrong_kind(value, key, &format!("a table, written {title}"), problems);
            return None;
        };
        Some(Section::open(title, table, value.span(), keys, problems))
    }

    /// A whole number, or a switch for one: `true` is 1.
    pub fn number_or_switch(&self, key: &str, problems: &mut Problems) -> Option<i64> {
        match self.value(key)?.get_ref().as_bool() {
            Some(switch) => Some(i64::from(switch)),
            None => self.integer(key, i64::MIN..=i64::MAX, problems),
        }
    }

    /// The key must be there.
    pub fn require(&self, key: &str, example: &str, problems: &mut Problems) -> bool {
        if !self.has(key) {
            problems.add(self.span(), format!("{} needs `{key}`", self.title), "");
            problems.hint(format!("for example {key} = {example}"));
        }
        self.has(key)
    }

    fn items(&self, key: &str, kind: &str, problems: &mut Problems) -> &'a [Spanned<DeValue<'a>>] {
        let Some(value) = self.value(key) else {
            return &[];
        };
        match value.get_ref().as_array() {
            Some(array) => array,
            None => {
                wrong_kind(value, key, kind, problems);
                &[]
            }
        }
    }
}

fn word<'a>(
    value: &'a Spanned<DeValue<'a>>,
    key: &str,
    problems: &mut Problems,
) -> Option<Word<'a>> {
    let Some(text) = value.get_ref().as_str() else {
        wrong_kind(value, key, "a text in quotes", problems);
        return None;
    };
    let span = value.span();
    Some(Word { text, span })
}

fn wrong_kind(value: &Spanned<DeValue<'_>>, key: &str, kind: &str, problems: &mut Problems) {
    let found = value.get_ref().type_str();
    let article = if found.starts_with(['a', 'i']) {
        "an"
    } else {
        "a"
    };
    let label = format!("this is {article} {found}");
    problems.add(value.span(), format!("`{key}` must be {kind}"), label);
}

fn unknown_key(
    title: &str,
    name: &str,
    span: Range<usize>,
    keys: &[&str],
    problems: &mut Problems,
) {
    problems.add(span, format!("{title} has no key `{name}`"), "unknown key");
    problems.hint(match nearest(name, keys) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("it has {}", keys.join(", ")),
    });
}
