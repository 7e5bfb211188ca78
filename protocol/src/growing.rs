//! Structs that grow. On the wire they are their length and then their fields: what a newer build has added behind the last field is
//! passed over by one that does not know it, and where an older build's ends, the fields after it have their defaults.
//!
//! So such a struct may get a field at its end, marked `#[serde(default)]`, without a new [`crate::Level`]. Nothing else about it may
//! change, and what the field says must be of no use to who does not know it.

use crate::codec;
use serde::de::value::Error;
use serde::de::{self, DeserializeOwned, DeserializeSeed, Deserializer, SeqAccess, Visitor};
use serde::ser::{self, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;

/// Has structs grow that derive `Serialize` and `Deserialize` with `#[serde(remote = "Self")]`.
macro_rules! grows {
    ($($name:ident),+) => {$(
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                struct Fields<'a>(&'a $name);
                impl serde::Serialize for Fields<'_> {
                    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                        // What was derived, which is before the trait's.
                        $name::serialize(self.0, serializer)
                    }
                }
                $crate::growing::write(&Fields(self), serializer)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Fields($name);
                impl<'de> serde::Deserialize<'de> for Fields {
                    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                        $name::deserialize(deserializer).map(Fields)
                    }
                }
                $crate::growing::read::<Fields, D>(deserializer).map(|fields| fields.0)
            }
        }
    )+};
}
pub(crate) use grows;

/// Writes fields behind their length.
pub(crate) fn write<S: Serializer>(fields: &impl Serialize, serializer: S) -> Result<S::Ok, S::Error> {
    let bytes = codec::encode(fields).map_err(ser::Error::custom)?;
    serializer.serialize_bytes(&bytes)
}

/// Reads the fields that there are.
pub(crate) fn read<'de, T: DeserializeOwned, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_bytes(Bytes(PhantomData))
}

struct Bytes<T>(PhantomData<T>);

impl<T: DeserializeOwned> Visitor<'_> for Bytes<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the fields of a struct")
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<T, E> {
        T::deserialize(Fields { rest: bytes }).map_err(E::custom)
    }
}

/// Fields, one after the other.
struct Fields<'de> {
    rest: &'de [u8],
}

impl<'de> Deserializer<'de> for Fields<'de> {
    type Error = Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_seq(self)
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, Error> {
        Err(de::Error::custom("only a struct with named fields grows"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

impl<'de> SeqAccess<'de> for Fields<'de> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let (value, used) = codec::decode_first(seed, self.rest).map_err(de::Error::custom)?;
        self.rest = &self.rest[used..];
        Ok(Some(value))
    }
}

#[cfg(test)]
mod tests {
    use crate::codec;
    use serde::{Deserialize, Serialize};

    #[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
    #[serde(remote = "Self")]
    struct Before {
        name: String,
        rooms: Vec<u16>,
    }

    #[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
    #[serde(remote = "Self")]
    struct After {
        name: String,
        rooms: Vec<u16>,
        #[serde(default)]
        guests: Option<String>,
        #[serde(default)]
        floors: u8,
    }
    grows!(Before, After);

    /// Among others, as a struct in a message is.
    fn decoded<T: serde::de::DeserializeOwned>(message: &impl Serialize) -> Vec<(T, u64)> {
        codec::decode(&codec::encode(message).expect("small")).expect("it can be read")
    }

    fn before(name: &str) -> Before {
        Before { name: name.into(), rooms: vec![1, 2] }
    }

    fn after(name: &str) -> After {
        After { name: name.into(), rooms: vec![1, 2], guests: Some("two".into()), floors: 3 }
    }

    #[test]
    fn what_an_older_build_does_not_know_is_passed_over() {
        let read: Vec<(Before, u64)> = decoded(&vec![(after("a"), 7_u64), (after("b"), 8)]);
        assert_eq!(read, [(before("a"), 7), (before("b"), 8)]);
    }

    #[test]
    fn what_an_older_build_did_not_say_has_its_default() {
        let read: Vec<(After, u64)> = decoded(&vec![(before("a"), 7_u64), (before("b"), 8)]);
        let bare = |name| After { guests: None, floors: 0, ..after(name) };
        assert_eq!(read, [(bare("a"), 7), (bare("b"), 8)]);
    }

    #[test]
    fn what_both_know_is_read_as_it_was_written() {
        let read: Vec<(After, u64)> = decoded(&vec![(after("a"), 7_u64)]);
        assert_eq!(read, [(after("a"), 7)]);
    }

    #[test]
    fn a_field_that_was_always_there_must_be_there_and_whole() {
        let whole = codec::encode(&before("a")).expect("small");
        assert_eq!(codec::decode::<Before>(&whole), Ok(before("a")));
        // As long as they say, and too short for what they are to hold.
        for fields in [&whole[8..8], &whole[8..12], &whole[8..17], &whole[8..whole.len() - 1]] {
            let forged = codec::encode(&serde_bytes::Bytes::new(fields)).expect("small");
            assert!(codec::decode::<Before>(&forged).is_err(), "{fields:?}");
        }
        assert!(codec::decode::<Before>(&whole[..whole.len() - 1]).is_err());
    }
}
