//! Section: one table of ulvs.toml, read key by key. Whatever is wrong with a key (unknown, of the
//! wrong kind, out of range) is noted with its place, and reading goes on.

use std::ops::{Range, RangeInclusive};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Problems, nearest};

/// A table of the file.
pub struct Section<'a> {
    /// What people call it: `[director]`, `[[port]]`.
    title: &'static str,
    table: &'a DeTable<'a>,
    span: Range<usize>,
    keys: &'static [&'static str],
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
        keys: &'static [&'static str],
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
            let what = format!("{key} is out of range");
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
        for item in self.items(key, &format!("written {title}"), problems) {
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
    pub fn table(
        &self,
        key: &str,
        title: &'static str,
        keys: &'static [&'static str],
        problems: &mut Problems,
    ) -> Option<Section<'a>> {
        let value = self.value(key)?;
        let Some(table) = value.get_ref().as_table() else {
            wrong_kind(value, key, &format!("a table, written {title}"), problems);
            return None;
        };
        Some(Section::open(title, table, value.span(), keys, problems))
    }

    /// Plain values laid over `default`: the table `key` may have any of the fields that `T` has, so
    /// that a new field needs no line here. A switch may also be written 0 or 1, as in sysctl.
    pub fn overlay<T: Serialize + DeserializeOwned>(
        &self,
        key: &str,
        title: &'static str,
        default: T,
        problems: &mut Problems,
    ) -> T {
        let Some(value) = self.value(key) else {
            return default;
        };
        let Some(table) = value.get_ref().as_table() else {
            wrong_kind(value, key, &format!("a table, written {title}"), problems);
            return default;
        };
        let mut fields = serde_json::to_value(&default).expect("plain fields");
        let known = fields.as_object().cloned().unwrap_or_default();
        let names: Vec<&str> = known.keys().map(String::as_str).collect();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            let Some(old) = known.get(name) else {
                unknown_key(title, name, key.span(), &names, problems);
                continue;
            };
            fields[name] = plain(value.get_ref(), old);
            if let Err(error) = T::deserialize(&fields) {
                fields[name] = old.clone();
                problems.add(value.span(), format!("{name}: {error}"), "");
                problems.hint(format!("the default is {old}"));
            }
        }
        T::deserialize(&fields).unwrap_or(default)
    }

    /// Notes every zero among the values of the table `key`.
    pub fn refuse_zeros(&self, key: &str, problems: &mut Problems) {
        let table = self.value(key).and_then(|value| value.get_ref().as_table());
        for (key, value) in table.into_iter().flatten() {
            let number = value.get_ref().as_integer();
            if number.is_some_and(|number| number.as_str() == "0") {
                let name = key.get_ref().as_ref();
                problems.add(value.span(), format!("{name} must be at least 1"), "");
            }
        }
    }

    /// The key must be there.
    pub fn require(&self, key: &str, example: &str, problems: &mut Problems) -> bool {
        if !self.has(key) {
            problems.add(self.span(), format!("{} needs {key}", self.title), "");
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
    problems.add(value.span(), format!("{key} must be {kind}"), label);
}

fn unknown_key(
    title: &str,
    name: &str,
    span: Range<usize>,
    keys: &[&str],
    problems: &mut Problems,
) {
    problems.add(span, format!("{title} has no key {name:?}"), "unknown key");
    problems.hint(match nearest(name, keys) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("it has {}", keys.join(", ")),
    });
}

/// A TOML value as JSON; an integer where a switch was is taken as one.
fn plain(value: &DeValue<'_>, old: &Value) -> Value {
    match value {
        DeValue::Boolean(switch) => Value::Bool(*switch),
        DeValue::Integer(number) => {
            let number = i64::from_str_radix(number.as_str(), number.radix()).ok();
            match (old, number) {
                (Value::Bool(_), Some(bit @ 0..=1)) => Value::Bool(bit == 1),
                (_, Some(number)) => Value::from(number),
                (_, None) => Value::Null,
            }
        }
        DeValue::String(text) => Value::from(text.as_ref()),
        DeValue::Float(number) => Value::from(number.as_str()),
        other => Value::from(other.type_str()),
    }
}
