//! Ranges of keys that a role may read or write, and whether a request lies within them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// What a permission allows, and what a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Read,
    Write,
    Both,
}

impl Kind {
    /// By etcd's number; `None` for one that it does not have.
    pub(crate) fn from_number(number: i32) -> Option<Self> {
        [Self::Read, Self::Write, Self::Both].into_iter().find(|kind| kind.number() == number)
    }

    pub(crate) const fn number(self) -> i32 {
        match self {
            Self::Read => 0,
            Self::Write => 1,
            Self::Both => 2,
        }
    }
}

/// A range of keys, as requests give ranges, and what may be done with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Permission {
    pub(crate) kind: Kind,
    #[serde(serialize_with = "encode", deserialize_with = "decode")]
    pub(crate) key: Vec<u8>,
    #[serde(serialize_with = "encode", deserialize_with = "decode")]
    pub(crate) range_end: Vec<u8>,
}

impl Permission {
    /// What the root role has, in etcd's form.
    pub(crate) fn everything() -> Self {
        Self { kind: Kind::Both, key: Vec::new(), range_end: vec![0] }
    }

    /// A range must begin with a key and end after it; an end of one zero byte is "all above".
    pub(crate) fn is_valid(&self) -> bool {
        let end = self.range_end.as_slice();
        !self.key.is_empty() && (end.is_empty() || end == [0] || self.key.as_slice() < end)
    }

    pub(crate) fn same_range(&self, other: &Self) -> bool {
        self.key == other.key && self.range_end == other.range_end
    }
}

fn encode<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

fn decode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    STANDARD.decode(text).map_err(de::Error::custom)
}

/// All that a user may do: ranges without overlap or touch, in order.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ranges {
    read: Vec<Span>,
    write: Vec<Span>,
}

/// From a key up to one that is not in it; `None` is no end.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    start: Vec<u8>,
    end: Option<Vec<u8>>,
}

impl Span {
    fn new(key: &[u8], range_end: &[u8]) -> Self {
        let end = match range_end {
            // One key: up to the least key above it.
            [] => Some([key, &[0]].concat()),
            [0] => None,
            end => Some(end.to_vec()),
        };
        Self { start: key.to_vec(), end }
    }

    fn reaches(&self, key: &[u8]) -> bool {
        self.end.as_deref().is_none_or(|end| key <= end)
    }
}

impl Ranges {
    pub(crate) fn new<'a>(permissions: impl Iterator<Item = &'a Permission> + Clone) -> Self {
        let of = |wanted: Kind| {
            let granted = permissions.clone().filter(|p| p.kind == wanted || p.kind == Kind::Both);
            merge(granted.map(|p| Span::new(&p.key, &p.range_end)).collect())
        };
        Self { read: of(Kind::Read), write: of(Kind::Write) }
    }

    /// Whether one of the ranges holds all of the request's. An empty range counts as its first
    /// key.
    pub(crate) fn allow(&self, kind: Kind, key: &[u8], range_end: &[u8]) -> bool {
        let within = |spans: &[Span]| {
            let mut wanted = Span::new(key, range_end);
            if wanted.end.as_ref().is_some_and(|end| *end <= wanted.start) {
                wanted = Span::new(key, &[]);
            }
            let upto = spans.partition_point(|span| span.start <= wanted.start);
            upto.checked_sub(1).and_then(|last| spans.get(last)).is_some_and(|span| {
                match (&span.end, &wanted.end) {
                    (None, _) => true,
                    (Some(end), Some(wanted)) => wanted <= end,
                    (Some(_), None) => false,
                }
            })
        };
        match kind {
            Kind::Read => within(&self.read),
            Kind::Write => within(&self.write),
            Kind::Both => within(&self.read) && within(&self.write),
        }
    }
}

fn merge(mut spans: Vec<Span>) -> Vec<Span> {
    spans.sort_by(|a, b| a.start.cmp(&b.start));
    let mut merged: Vec<Span> = Vec::new();
    for span in spans {
        match merged.last_mut().filter(|last| last.reaches(&span.start)) {
            Some(last) => {
                let further = match (&last.end, &span.end) {
                    (None, _) => false,
                    (_, None) => true,
                    (Some(last), Some(end)) => end > last,
                };
                if further {
                    last.end = span.end;
                }
            }
            None => merged.push(span),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(permissions: &[(Kind, &str, &str)]) -> Ranges {
        let permissions: Vec<Permission> = permissions
            .iter()
            .map(|(kind, key, end)| Permission {
                kind: *kind,
                key: (*key).into(),
                range_end: (*end).into(),
            })
            .collect();
        Ranges::new(permissions.iter())
    }

    #[test]
    fn a_request_must_lie_wholly_within() {
        let ranges = ranges(&[(Kind::Read, "b", "d"), (Kind::Both, "x", "")]);
        let read = |key: &str, end: &str| ranges.allow(Kind::Read, key.as_bytes(), end.as_bytes());
        assert!(read("b", "") && read("c", "") && read("b", "d") && read("cc", "d"));
        assert!(!read("a", "") && !read("d", "") && !read("b", "e") && !read("a", "c"));
        assert!(!read("b", "\0"), "to the end of all keys");
        assert!(read("x", "") && read("x", "x\0") && !read("x", "y") && !read("x\0", ""));
        assert!(ranges.allow(Kind::Write, b"x", b"") && !ranges.allow(Kind::Write, b"c", b""));
        assert!(read("c", "b") && !read("e", "b"), "an empty range counts as its first key");
    }

    #[test]
    fn ranges_that_touch_or_overlap_are_one() {
        let ranges = ranges(&[
            (Kind::Both, "d", "f"),
            (Kind::Both, "b", "d"),
            (Kind::Both, "a", "c"),
            (Kind::Both, "m", "\0"),
            (Kind::Both, "p", "q"),
            (Kind::Both, "g", ""),
        ]);
        let write =
            |key: &str, end: &str| ranges.allow(Kind::Write, key.as_bytes(), end.as_bytes());
        assert!(write("a", "f") && !write("a", "g") && !write("e", "g\0"));
        assert!(write("m", "\0") && write("z", "\0") && write("q", "zz"));
        assert!(!write("l", "\0"));
    }

    #[test]
    fn backward_and_empty_permissions_are_not_valid() {
        let valid = |key: &str, end: &str| {
            Permission { kind: Kind::Read, key: key.into(), range_end: end.into() }.is_valid()
        };
        assert!(valid("a", "") && valid("a", "b") && valid("b", "\0") && valid("\0", "\0"));
        assert!(!valid("", "") && !valid("", "\0") && !valid("b", "a") && !valid("b", "b"));
    }
}
