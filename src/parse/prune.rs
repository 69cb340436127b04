//! JSON without what nobody asked for: only wanted keys become values, the rest is passed over without being stored.
//!
//! Nothing is judged here. What is not of the kind that was expected is kept, so that whoever reads it can say so.

use std::fmt;

use serde_core::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// What is kept of a value. Objects and arrays where nothing of them is wanted become empty ones.
pub(crate) enum Want {
    /// Text, a number, a boolean or null.
    Plain,
    /// These keys of an object. Of keys that are there twice, the last counts.
    Keys(&'static [(&'static str, Want)]),
    /// This of each element of an array, up to [`ELEMENTS_MAX`] and one more.
    Each(&'static Want),
}

/// Elements of an array that are to be read. One more is kept, to tell.
pub(crate) const ELEMENTS_MAX: usize = 1000;

/// Reads one value, and checks all of it.
pub(crate) fn prune(json: &[u8], want: &'static Want) -> Result<Value, serde_json::Error> {
    let mut json = serde_json::Deserializer::from_slice(json);
    let value = Pruned(want).deserialize(&mut json)?;
    json.end()?;
    Ok(value)
}

/// Reads what is wanted of one value.
pub(crate) struct Pruned(pub(crate) &'static Want);

impl<'de> DeserializeSeed<'de> for Pruned {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Pruned {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Value, A::Error> {
        let mut kept = Vec::new();
        if let Want::Each(want) = self.0 {
            while kept.len() <= ELEMENTS_MAX {
                match elements.next_element_seed(Pruned(want))? {
                    Some(element) => kept.push(element),
                    None => return Ok(Value::Array(kept)),
                }
            }
        }
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Value::Array(kept))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let wanted = if let Want::Keys(wanted) = self.0 { *wanted } else { &[] };
        let mut kept = Map::new();
        while let Some(found) = entries.next_key_seed(Key(wanted))? {
            match found {
                Some((key, want)) => drop(kept.insert((*key).to_owned(), entries.next_value_seed(Pruned(want))?)),
                None => drop(entries.next_value::<IgnoredAny>()?),
            }
        }
        Ok(Value::Object(kept))
    }
}

type Keys = &'static [(&'static str, Want)];

/// Which of the wanted keys this is.
struct Key(Keys);

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Option<&'static (&'static str, Want)>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
    type Value = Option<&'static (&'static str, Want)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().find(|(wanted, _)| *wanted == key))
    }
}
