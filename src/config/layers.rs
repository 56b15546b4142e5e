//! The layers of the configuration, the strongest of which wins.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::value::Value;

use super::{Error, Setting, Source, file, parse};
use crate::control::check::Invalid;

/// A value and where it was written.
#[derive(Clone, Debug)]
pub(super) struct Found<T> {
    pub(super) value: T,
    pub(super) source: Source,
}

impl<T> Found<T> {
    pub(super) fn default(value: T) -> Self {
        Self { value, source: Source::Default }
    }

    pub(super) fn parse<U>(
        self,
        key: &'static str,
        parse: impl FnOnce(T) -> Result<U, Invalid>,
    ) -> Result<Found<U>, Error> {
        let Self { value, source } = self;
        match parse(value) {
            Ok(value) => Ok(Found { value, source }),
            Err(invalid) => Err(wrong(key, &source, invalid)),
        }
    }
}

pub(super) fn wrong(key: &'static str, source: &Source, invalid: Invalid) -> Error {
    let Invalid { cause, next_step } = invalid;
    Error::Value { key, from: source.clone(), cause, next_step }
}

/// The layers, and what was taken from them so far.
pub(super) struct Layers<'a> {
    pub(super) file: Option<(PathBuf, String)>,
    pub(super) environment: &'a dyn Fn(&'static str) -> Option<String>,
    pub(super) settings: Vec<Setting>,
}

impl Layers<'_> {
    /// The strongest layer's value.
    pub(super) fn pick<T>(
        &self,
        flag: Option<T>,
        flag_name: &'static str,
        file: Option<Spanned<T>>,
    ) -> Option<Found<T>> {
        match flag {
            Some(value) => Some(Found { value, source: Source::Flag(flag_name) }),
            None => file.map(|found| {
                let line = self.line(found.span().start);
                Found { value: found.into_inner(), source: line }
            }),
        }
    }

    /// As [`Self::pick`], with an environment variable between.
    pub(super) fn pick_with<T>(
        &self,
        flag: Option<T>,
        flag_name: &'static str,
        variable: &'static str,
        from_text: impl FnOnce(String) -> T,
        file: Option<Spanned<T>>,
    ) -> Option<Found<T>> {
        if flag.is_some() {
            return self.pick(flag, flag_name, None);
        }
        match (self.environment)(variable) {
            Some(text) => {
                Some(Found { value: from_text(text), source: Source::Environment(variable) })
            }
            None => self.pick(None, flag_name, file),
        }
    }

    pub(super) fn line(&self, offset: usize) -> Source {
        let (path, text) = self.file.clone().unwrap_or_default();
        Source::File { path, line: file::line_of(&text, offset) }
    }

    /// Notes what is in effect.
    pub(super) fn note<T>(&mut self, key: &'static str, found: &Found<T>, value: impl Into<Value>) {
        let value = Some(value.into().to_string());
        self.settings.push(Setting { key, value, source: found.source.clone() });
    }

    pub(super) fn note_unset(&mut self, key: &'static str) {
        self.settings.push(Setting { key, value: None, source: Source::Default });
    }

    pub(super) fn note_option<T>(
        &mut self,
        key: &'static str,
        found: Option<Found<T>>,
        text: impl FnOnce(&T) -> String,
    ) -> Option<T> {
        match found {
            Some(found) => {
                self.note(key, &found, text(&found.value));
                Some(found.value)
            }
            None => {
                self.note_unset(key);
                None
            }
        }
    }

    pub(super) fn number<T: TryFrom<i64> + Copy>(
        &mut self,
        key: &'static str,
        found: Option<Found<i64>>,
        default: i64,
        range: RangeInclusive<i64>,
    ) -> Result<T, Error> {
        let found = found.unwrap_or_else(|| Found::default(default));
        let found = found.parse(key, |value| number(value, &range))?;
        self.note(key, &found, found.value);
        T::try_from(found.value).map_err(|_| wrong(key, &found.source, out_of(found.value, &range)))
    }

    pub(super) fn duration(
        &mut self,
        key: &'static str,
        found: Option<Spanned<String>>,
        default: Duration,
        range: RangeInclusive<Duration>,
    ) -> Result<Duration, Error> {
        let found = match self.pick(None, "", found) {
            None => Found::default(default),
            Some(found) => found.parse(key, |text| {
                let ends = (range.start(), range.end());
                parse::duration(&text).filter(|value| range.contains(value)).ok_or_else(|| {
                    Invalid::new(
                        format!("`{text}` is not a duration that it can have"),
                        format!(
                            "write a number with ms, s, m, h or d, from {} to {}",
                            parse::duration_text(*ends.0),
                            parse::duration_text(*ends.1)
                        ),
                    )
                })
            })?,
        };
        self.note(key, &found, parse::duration_text(found.value));
        Ok(found.value)
    }
}

pub(super) fn out_of(value: i64, range: &RangeInclusive<i64>) -> Invalid {
    Invalid::new(
        format!("{value} is out of range"),
        format!("write a number from {} to {}", range.start(), range.end()),
    )
}

pub(super) fn number(value: i64, range: &RangeInclusive<i64>) -> Result<i64, Invalid> {
    if range.contains(&value) { Ok(value) } else { Err(out_of(value, range)) }
}

pub(super) fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

pub(super) fn list<T>(values: Vec<T>) -> Option<Vec<T>> {
    (!values.is_empty()).then_some(values)
}
